//! Callbacks keep all threads of the runtime: a manager still closes its sockets, and its closes still come to an end.

use std::future::Future;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use async_std::task::block_on;
use buffstreams::{Bytes, Config, Error, Limit, Listener, Manager, Outcome, Serving};
use futures::{FutureExt, SinkExt, StreamExt};
use socket2::{Domain, Socket, Type};

use crate::net::{
    FEW_THREADS, SOON, alone, callbacks_may_block, config, descriptors, number, numbered, put, raw, threads, until,
};
use crate::peers::{BlackHole, is_closed_by_peer};

/// Long before the threads are free again.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Callbacks that wait for the end of a test.
struct Blocked {
    release: mpsc::Sender<()>,
    _peers: Vec<TcpStream>,
    _serving: Serving,
}

impl Blocked {
    /// As many as there are threads. There are more peers than that: an executor may have one of their tasks on its way from one
    /// queue to another while a thread looks for work, and look there again only when something else comes.
    fn all_threads() -> Self {
        let (entered, entering) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let released = Arc::new(Mutex::new(released));
        let listener = block_on(Listener::bind("127.0.0.1:0", config())).unwrap();
        let mut peers: Vec<_> = (0..2 * threads()).map(|_| raw(listener.local_addr().ip().unwrap())).collect();
        let entered = Mutex::new(entered);
        let serving = listener.serve_in_background(move |_, _| {
            // Nobody counts those that come after the release.
            let _ = entered.lock().unwrap().send(());
            // Until the sender is dropped: the first that waits has the lock, and the others wait for it.
            let _ = released.lock().unwrap().recv_timeout(SOON);
            Ok(())
        });
        peers.iter_mut().for_each(|peer| put(peer, b"block"));
        for called in 0..threads() {
            let entered = entering.recv_timeout(SOON);
            assert!(entered.is_ok(), "{called} of {} callbacks are called: {:?}", threads(), serving.closer().stats());
        }
        Self { release, _peers: peers, _serving: serving }
    }

    fn release(self) {
        drop(self.release);
    }
}

/// Runs the test in a process whose runtime has so many threads.
#[track_caller]
fn with_few_threads(name: &str, test: impl FnOnce()) {
    alone(name, FEW_THREADS, test);
}

/// A manager of one address, and the other end of its connection.
fn dialed(config: Config) -> (Manager, TcpStream, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let manager = Manager::new(config);
    block_on(manager.dial(listener.local_addr().unwrap())).unwrap();
    let (far, _) = listener.accept().unwrap();
    (manager, far, listener)
}

/// Reads what came, and the end of the connection behind it.
#[track_caller]
fn assert_ended(mut far: TcpStream) -> usize {
    far.set_read_timeout(Some(AT_ONCE)).unwrap();
    let mut received = Vec::new();
    match far.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the connection is open yet: {error}"),
    }
    received.len()
}

/// Waits for what does not need the runtime's threads.
#[track_caller]
fn soon<F: Future>(future: F) -> F::Output {
    let start = Instant::now();
    let output = block_on(async_std::future::timeout(SOON, future)).expect("it should not wait for the threads");
    assert!(start.elapsed() < 2 * AT_ONCE, "{:?}", start.elapsed());
    output
}

#[test]
fn dropping_a_manager_closes_its_sockets() {
    with_few_threads("blocked::dropping_a_manager_closes_its_sockets", || {
        let (manager, far, listener) = dialed(config());
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        block_on(manager.dial(second.local_addr().unwrap())).unwrap();
        let (other, _) = second.accept().unwrap();
        let events = manager.events();
        let mut sink = manager.sink();
        block_on(sink.feed((listener.local_addr().unwrap().into(), Bytes::from_static(b"held")))).unwrap();
        let blocked = Blocked::all_threads();
        drop(manager);
        drop(sink);
        assert_ended(far);
        assert_ended(other);
        soon(events.count());
        blocked.release();
    });
}

#[test]
fn a_close_ends_at_its_deadline() {
    if !callbacks_may_block() {
        return;
    }
    with_few_threads("blocked::a_close_ends_at_its_deadline", || {
        let limit = Duration::from_millis(100);
        let (manager, far, listener) = dialed(config().max_message_size(32 << 20).close_timeout(limit));
        let address = listener.local_addr().unwrap();
        let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
        // More than the sockets hold.
        block_on(sink.feed((address.into(), Bytes::from(vec![7; 32 << 20])))).unwrap();
        assert!(sink.flush().now_or_never().is_none());
        let blocked = Blocked::all_threads();
        let closed = soon(manager.close(address));
        assert!(matches!(closed, Err(Error::Timeout { what: Limit::CloseTimeout, .. })), "{closed:?}");
        // Its threads are free no earlier, and what it held has come back.
        assert_eq!(soon(letters.next()).unwrap().outcome, Outcome::Closed);
        assert!(assert_ended(far) > 0);
        soon(manager.dial(address)).expect("it is free");
        assert_eq!(manager.stats().total.dead_lettered, 1);
        blocked.release();
    });
}

#[test]
fn a_shutdown_ends_at_its_deadline() {
    if !callbacks_may_block() {
        return;
    }
    with_few_threads("blocked::a_shutdown_ends_at_its_deadline", || {
        let (manager, far, _listener) = dialed(config());
        let blocked = Blocked::all_threads();
        let report = soon(manager.shutdown(Duration::from_millis(100)));
        assert!(report.values().all(|ending| ending.cut), "{report:?}");
        assert_ended(far);
        blocked.release();
    });
}

#[test]
fn dropping_the_future_of_a_close_closes_its_socket() {
    with_few_threads("blocked::dropping_the_future_of_a_close_closes_its_socket", || {
        let (manager, far, listener) = dialed(config());
        let blocked = Blocked::all_threads();
        assert!(manager.close(listener.local_addr().unwrap()).now_or_never().is_none());
        assert_ended(far);
        blocked.release();
        until(SOON, || manager.addresses().is_empty());
    });
}

/// Nobody drives a batch that waits in the middle, while its peer reads everything and closes.
#[test]
fn a_batch_that_goes_on_late_loses_nothing() {
    if !callbacks_may_block() {
        return;
    }
    with_few_threads("blocked::a_batch_that_goes_on_late_loses_nothing", || {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.set_recv_buffer_size(8 * 1024).unwrap();
        listener.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        listener.listen(16).unwrap();
        let listener = TcpListener::from(listener);
        let address = listener.local_addr().unwrap();
        let manager = Manager::new(config());
        block_on(manager.dial(address)).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let mut sink = manager.sink();
        let mut accepted = 0;
        let (blocked, written) = loop {
            loop {
                let mut feed = sink.feed((address.into(), numbered(0, accepted)));
                // Now and then a sink lets others run: one that waits is pending the next time as well.
                if (&mut feed).now_or_never().is_none() && feed.now_or_never().is_none() {
                    break;
                }
                accepted += 1;
            }
            let flushed = sink.flush().now_or_never();
            let blocked = Blocked::all_threads();
            let written = manager.stats().total.bytes as usize;
            if written < 20 * accepted as usize {
                assert!(flushed.is_none());
                break (blocked, written);
            }
            // Until the threads were blocked, the system has taken the batch after all: it gives the far end's share of its
            // memory back a moment late.
            blocked.release();
        };
        let mut received = vec![0; written];
        far.set_read_timeout(Some(SOON)).unwrap();
        far.read_exact(&mut received).unwrap();
        let ours = far.peer_addr().unwrap();
        drop(far);
        until(SOON, || is_closed_by_peer(ours));
        blocked.release();
        block_on(async_std::future::timeout(SOON, sink.flush())).expect("the next connection takes it").unwrap();
        assert_eq!(manager.stats().total.reconnects, 1, "what was left is lost");
        let (mut far, _) = listener.accept().unwrap();
        let numbers = |wire: &[u8]| wire.chunks_exact(20).map(|frame| number(&frame[4..]).1).collect::<Vec<_>>();
        // Of the frame that was cut, the first connection has a part, which its receiver discards.
        let mut all = numbers(&received);
        drop((manager, sink));
        far.set_read_timeout(Some(SOON)).unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).unwrap();
        all.extend(numbers(&rest));
        assert!(all.into_iter().eq(0..accepted), "some are missing, or came twice");
    });
}

/// Its connection broke, and nobody answers: the socket of a dial that goes on.
#[test]
fn dropping_a_manager_gives_up_a_dial() {
    with_few_threads("blocked::dropping_a_manager_gives_up_a_dial", || {
        let mut hole = BlackHole::opening();
        let manager = Manager::new(config());
        block_on(manager.dial(hole.addr)).unwrap();
        let mut events = manager.events();
        drop(hole.accept());
        hole.fill();
        block_on(events.next()).unwrap();
        let mut sink = manager.sink();
        let before = descriptors();
        block_on(sink.feed((hole.addr.into(), Bytes::from_static(b"held")))).unwrap();
        assert!(sink.flush().now_or_never().is_none());
        until(SOON, || descriptors() == before + 1);
        let blocked = Blocked::all_threads();
        let before = descriptors();
        drop((manager, sink));
        assert_eq!(descriptors(), before - 1);
        blocked.release();
    });
}
