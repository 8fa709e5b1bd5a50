//! What is so on tokio alone: what its reactor does not tell, and what runs on after it has ended.

use std::time::{Duration, Instant};

use buffstreams::{Backoff, Config, Connection, Error, Event, Limit, Listener, Manager, Reason, Tokio};
use futures::executor::block_on;
use futures::{SinkExt, StreamExt};
use socket2::SockRef;
use tokio::runtime::{Builder, Runtime};

use crate::net::{SOON, frame, raw, within};

const LIMIT: Duration = Duration::from_millis(300);

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn on(runtime: &Runtime) -> Config {
    crate::net::config().runtime(Tokio::from(runtime.handle().clone()))
}

/// A read ends in front of urgent data, and of what is behind that the reactor tells nothing. So the peer would have had something
/// to read for ever, and would never have been silent.
#[test]
fn a_peer_that_sends_urgent_data_is_ended_when_it_has_been_silent() {
    let runtime = runtime();
    block_on(async {
        let mut listener =
            Listener::bind("127.0.0.1:0", on(&runtime).idle_timeout(LIMIT).frame_timeout(LIMIT)).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let peer = raw(addr);
        SockRef::from(&peer).send(&frame(b"message")).unwrap();
        SockRef::from(&peer).send_out_of_band(b"!").unwrap();
        SockRef::from(&peer).send(b"\0").unwrap();
        // It reads only now that all of it is there.
        assert_eq!(within(SOON, listener.next()).await.unwrap().1, "message");
        let reason = loop {
            match within(SOON, events.next()).await.unwrap() {
                Event::Disconnected { reason, .. } => break reason,
                _ => continue,
            }
        };
        // What was behind it begins a frame.
        let is_timeout = matches!(reason, Reason::Timeout { what: Limit::FrameTimeout, .. });
        assert!(is_timeout, "{reason:?}");
    });
}

/// A timer of tokio panics then. The program has its time limits all the same.
#[test]
fn what_is_waited_for_ends_in_time_after_the_runtime_has_ended() {
    let runtimes = [runtime(), runtime()];
    let [listens, dials] = runtimes.each_ref().map(|runtime| on(runtime).close_timeout(LIMIT));
    let delays = Backoff::from_fn(|| std::iter::repeat(LIMIT)).max_elapsed(2 * LIMIT);
    let (manager, reconnects) = (Manager::new(dials.clone()), dials.reconnect(delays));
    let (mut listener, mut connection) = block_on(async {
        let listener = Listener::bind("127.0.0.1:0", listens).await.unwrap();
        let mut events = listener.events();
        manager.dial(listener.local_addr()).await.unwrap();
        let connection = Connection::dial(listener.local_addr(), reconnects).await.unwrap();
        for _ in 0..2 {
            while !matches!(within(SOON, events.next()).await, Some(Event::Connected { .. })) {}
        }
        (listener, connection)
    });
    let address = listener.local_addr();
    drop(runtimes);

    let began = Instant::now();
    let closed = block_on(within(SOON, listener.close()));
    assert!(matches!(closed, Err(Error::Timeout { what: Limit::CloseTimeout, .. })), "{closed:?}");
    assert!(began.elapsed() >= LIMIT);
    drop(listener);
    // It dials again, in vain, as often as the backoff says.
    let sent = block_on(within(SOON, async {
        loop {
            if let Err(error) = connection.send(b"message"[..].into()).await {
                break error;
            }
        }
    }));
    assert!(matches!(sent, Error::Dial { .. }), "{sent:?}");
    let closed = block_on(within(SOON, manager.close(address)));
    assert!(closed.is_ok() || matches!(closed, Err(Error::Timeout { what: Limit::CloseTimeout, .. })), "{closed:?}");
}
