//! Callbacks that block every thread that the runtime has: a drop ends the sockets all the same, and a close is over at its
//! deadline. Each in a process of its own, of which the other tests need no thread.

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use buffstreams::{BoxError, Closer, Config, Error, Limit, Listener, Peer};
use futures::StreamExt;

use crate::net::{FEW_THREADS, SOON, alone, callbacks_may_block, config, put, raw, rest, threads, until};

const LIMIT: Duration = Duration::from_millis(300);

fn alone_with_few_threads(name: &str, test: impl FnOnce()) {
    alone(&format!("blocked_callbacks::{name}"), FEW_THREADS, test);
}

/// A callback that does not return before it is allowed to.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        drop(self.opened.wait_while(self.open.lock().unwrap(), |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl Gate {
    /// A callback that waits for it, and tells of each call.
    fn callback(
        self: &Arc<Self>,
        call: Sender<()>,
    ) -> impl Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync + use<> {
        let gate = self.clone();
        move |_, _| {
            call.send(()).unwrap();
            gate.pass();
            Ok(())
        }
    }
}

fn bind(config: Config) -> Listener {
    futures::executor::block_on(Listener::bind("127.0.0.1:0", config)).unwrap()
}

/// As many peers as there are threads, each in a callback, and one more that only stays.
fn block_all(closer: &Closer, called: &Receiver<()>) -> Vec<TcpStream> {
    let mut peers: Vec<_> = (0..=threads()).map(|_| raw(closer.local_addr().ip().unwrap())).collect();
    until(SOON, || closer.stats().connections == peers.len());
    for peer in &mut peers[1..] {
        put(peer, b"?");
        called.recv_timeout(SOON).unwrap();
    }
    peers
}

#[track_caller]
fn are_closed(peers: Vec<TcpStream>, addr: SocketAddr) {
    for mut peer in peers {
        assert_eq!(rest(&mut peer), b"");
    }
    until(SOON, || TcpStream::connect(addr).is_err());
}

#[test]
fn dropping_what_serves_ends_the_sockets_although_no_thread_has_time() {
    if !callbacks_may_block() {
        return;
    }
    alone_with_few_threads("dropping_what_serves_ends_the_sockets_although_no_thread_has_time", || {
        let listener = bind(config());
        let (closer, gate, (call, called)) = (listener.closer(), Arc::<Gate>::default(), mpsc::channel());
        let serving = listener.serve_in_background(gate.callback(call));
        let peers = block_all(&closer, &called);
        drop(serving);
        are_closed(peers, closer.local_addr().ip().unwrap());
        gate.open();
    });
}

#[test]
fn dropping_a_future_that_serves_ends_the_sockets_although_no_thread_has_time() {
    if !callbacks_may_block() {
        return;
    }
    alone_with_few_threads("dropping_a_future_that_serves_ends_the_sockets_although_no_thread_has_time", || {
        let listener = bind(config());
        let (closer, gate, (call, called)) = (listener.closer(), Arc::<Gate>::default(), mpsc::channel());
        let serving = listener.serve(gate.callback(call));
        let peers = block_all(&closer, &called);
        drop(serving);
        are_closed(peers, closer.local_addr().ip().unwrap());
        gate.open();
    });
}

/// The other listener's tasks have no thread because of this one's callbacks.
#[test]
fn dropping_a_listener_ends_the_sockets_although_no_thread_has_time() {
    if !callbacks_may_block() {
        return;
    }
    alone_with_few_threads("dropping_a_listener_ends_the_sockets_although_no_thread_has_time", || {
        let mut other = bind(config());
        let addr = other.local_addr().ip().unwrap();
        // The consumer has the reader of this one.
        let mut lent = raw(addr);
        for _ in 0..3 {
            put(&mut lent, b"one");
            assert_eq!(futures::executor::block_on(other.next()).unwrap().1, "one");
        }
        let listener = bind(config());
        let (closer, gate, (call, called)) = (listener.closer(), Arc::<Gate>::default(), mpsc::channel());
        let _serving = listener.serve_in_background(gate.callback(call));
        let _peers = block_all(&closer, &called);
        drop(other);
        are_closed(vec![lent], addr);
        gate.open();
    });
}

#[test]
fn a_close_is_over_at_its_deadline_although_no_thread_has_time() {
    if !callbacks_may_block() {
        return;
    }
    alone_with_few_threads("a_close_is_over_at_its_deadline_although_no_thread_has_time", || {
        let listener = bind(config().close_timeout(LIMIT).drain_timeout(2 * LIMIT));
        let (closer, gate, (call, called)) = (listener.closer(), Arc::<Gate>::default(), mpsc::channel());
        let serving = listener.serve_in_background(gate.callback(call));
        let peers = block_all(&closer, &called);
        let start = Instant::now();
        // By an executor that is not the runtime's.
        let closed = futures::executor::block_on(closer.close());
        assert!(matches!(closed, Err(Error::Timeout { what: Limit::CloseTimeout, after: LIMIT, .. })), "{closed:?}");
        assert!((LIMIT..SOON).contains(&start.elapsed()));
        // Nobody new comes, although nobody could tell the task that accepts.
        until(SOON, || TcpStream::connect(closer.local_addr().ip().unwrap()).is_err());

        let start = Instant::now();
        let closed = async_std::task::block_on(serving.close());
        let limit = 2 * LIMIT;
        assert!(
            matches!(closed, Err(Error::Timeout { what: Limit::DrainTimeout, after, .. }) if after == limit),
            "{closed:?}"
        );
        assert!((limit..SOON).contains(&start.elapsed()));
        are_closed(peers, closer.local_addr().ip().unwrap());
        gate.open();
    });
}
