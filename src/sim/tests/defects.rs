//! What panics in the task of an address: a backoff of the program, or a defect of this crate. That address ends its outage, or
//! is closed, and nobody else notices.

use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::foreign::{away, panics};
use super::outages::{ANYWHERE, SECOND, config, dialed};
use crate::foreign::PanicSource;
use crate::sim::testing::Sim;
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Side, plant_at};
use crate::{Backoff, Error, Outcome};

/// Delays of 100 ms, which panic when they are asked for the second, or when they are dropped.
struct Delays {
    left: usize,
    drops: bool,
}

impl Iterator for Delays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        assert!(self.left > 0 || self.drops, "no more");
        self.left = self.left.checked_sub(1)?;
        Some(SECOND / 10)
    }
}

impl Drop for Delays {
    fn drop(&mut self) {
        assert!(!self.drops, "dropped");
    }
}

/// All that is held comes back, and the address is dialed in the background. Another address does not notice.
fn a_panic_in_a_backoff_gives_up(backoff: Backoff, text: &str, attempts: u32) {
    Sim::default().run(async {
        let (manager, address) = away(config().reconnect(backoff)).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        let (other, other_addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        manager.dial(other_addr).await.unwrap();
        let (mut other, _) = other.accept(&config()).await.unwrap();
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        let mut sink = manager.sink();
        for _ in 0..2 {
            sink.feed((address.clone(), Bytes::from_static(b"letter"))).await.unwrap();
        }
        let write = manager.write(&address, Bytes::from_static(b"write"));
        let both = async { futures::join!(write, sink.flush()) };
        let (written, flushed) = testing::within(Some(60 * SECOND), both).await.expect("they come back");
        let Err(Error::NotSent { source: why, message: Some(message), .. }) = written else { panic!("{written:?}") };
        assert_eq!(message.into_inner(), "write");
        assert!(matches!(*why, Error::Panicked { what: PanicSource::Backoff }), "{why:?}");
        assert!(matches!(flushed, Err(Error::NotSent { .. })), "{flushed:?}");
        for _ in 0..2 {
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.message, letter.outcome), (Bytes::from_static(b"letter"), Outcome::GaveUp));
            assert_eq!((letter.attempts, letter.error.to_string()), (attempts, why.to_string()));
        }
        assert_eq!(panics(&mut events), [(Some(address.clone()), PanicSource::Backoff, text.to_owned())]);

        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        let config = config();
        let _far = testing::within(Some(60 * SECOND), acceptor.accept(&config)).await.expect("it is dialed").unwrap();
        testing::sleep(SECOND).await;
        manager.write(&address, Bytes::new()).await.unwrap();
        manager.write(other_addr, Bytes::from_static(b"other")).await.unwrap();
        other.read_exact(&mut [0; 9]).await.unwrap();
        let total = manager.stats().total;
        assert_eq!((total.written, total.dead_lettered, total.held), (2, 3, 0));
        manager.shutdown(SECOND).await;
    });
}

#[test]
fn delays_whose_making_panics() {
    let backoff = Backoff::from_fn(|| -> Delays { panic!("not made") });
    a_panic_in_a_backoff_gives_up(backoff, "not made", 1);
}

#[test]
fn delays_that_panic_when_they_are_asked() {
    let backoff = Backoff::from_fn(|| Delays { left: 1, drops: false });
    a_panic_in_a_backoff_gives_up(backoff, "no more", 2);
}

#[test]
fn delays_that_panic_when_they_are_dropped_at_their_end() {
    let backoff = Backoff::from_fn(|| Delays { left: 1, drops: true });
    a_panic_in_a_backoff_gives_up(backoff, "dropped", 2);
}

/// The outage is over: that is told, and nobody else minds.
#[test]
fn delays_that_panic_when_they_are_dropped_after_an_outage() {
    Sim::default().run(async {
        let backoff = Backoff::from_fn(|| Delays { left: 100, drops: true });
        let (manager, address) = away(config().reconnect(backoff)).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        let mut events = manager.events();
        let mut write = Box::pin(manager.write(&address, Bytes::from_static(b"one")));
        assert!((&mut write).now_or_never().is_none());
        testing::sleep(SECOND).await;
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        let config = config();
        let (written, far) = futures::join!(write, acceptor.accept(&config));
        written.unwrap();
        testing::sleep(10 * SECOND).await;
        assert!(panics(&mut events).is_empty());
        drop(far);
        testing::sleep(SECOND).await;
        let write = manager.write(&address, Bytes::from_static(b"two"));
        let (written, _far) = futures::join!(write, acceptor.accept(&config));
        written.unwrap();
        assert_eq!(panics(&mut events), [(Some(address.clone()), PanicSource::Drop, "dropped".to_owned())]);
    });
}

#[test]
fn a_backoff_that_panics_when_it_is_dropped() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    for (delays, closed) in [(true, false), (false, false), (false, true)] {
        Sim::default().run(async {
            let bomb = Bomb;
            let backoff = Backoff::from_fn(move || {
                let _ = &bomb;
                [SECOND; 3]
            });
            let (manager, address) = away(config().reconnect(backoff)).await;
            if delays {
                // They are in use.
                assert!(manager.sink().send((address.clone(), Bytes::from_static(b"x"))).now_or_never().is_none());
                testing::sleep(SECOND).await;
            }
            if closed {
                // Then it is the manager that drops the last of it.
                manager.close(&address).await.unwrap();
            }
            drop(manager);
            testing::sleep(SECOND).await;
        });
    }
}

// ---- defects of this crate

/// An address whose task panics is closed in order, with what it holds, and can be dialed again.
fn a_defect_ends_its_address(what: &'static str) {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, acceptor, far) = dialed(config()).await;
        let (other, other_addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        manager.dial(other_addr).await.unwrap();
        let _other = other.accept(&config()).await.unwrap();
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        let mut sink = manager.sink();
        sink.feed((address.clone(), Bytes::from(vec![7; 5000]))).await.unwrap();
        assert!(sink.flush().now_or_never().is_none());
        let mut write = Box::pin(manager.write(&address, Bytes::from_static(b"write")));
        assert!((&mut write).now_or_never().is_none());
        // Nobody listens there for the moment, or what is held would be sent again.
        drop(acceptor);
        plant_at(0, Side::Dialer, what);
        let both = async { futures::join!(write, sink.flush()) };
        let (written, flushed) = testing::within(Some(SECOND), both).await.expect("they come back");
        assert!(matches!(&written, Err(Error::NotSent { message: Some(_), .. })), "{written:?}");
        assert!(matches!(flushed, Err(Error::NotSent { .. })), "{flushed:?}");
        let letter = letters.next().await.unwrap();
        assert_eq!(letter.message.len(), 5000);
        drop(far);
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        match what {
            "read" => {
                assert!(matches!(*letter.error, Error::Panicked { what: PanicSource::Task }), "{letter:?}");
                assert_eq!(letter.outcome, Outcome::Closed);
                assert_eq!(manager.addresses(), [other_addr.into()]);
                let text = "planted: read".to_owned();
                assert_eq!(panics(&mut events), [(Some(address.clone()), PanicSource::Task, text)]);
                manager.dial(&address).await.expect("it is free");
            }
            // That is a connection that breaks.
            _ => assert_eq!(letter.outcome, Outcome::NotSent),
        }
        let config = config();
        let (written, _far) = futures::join!(manager.write(&address, Bytes::new()), acceptor.accept(&config));
        written.unwrap();
        manager.write(other_addr, Bytes::new()).await.unwrap();
        let total = manager.stats().total;
        assert_eq!((total.accepted, total.written, total.dead_lettered, total.held), (4, 2, 2, 0));
    });
}

#[test]
fn a_defect_in_the_task_of_an_address() {
    a_defect_ends_its_address("read");
}

#[test]
fn a_defect_while_the_queue_of_an_address_is_written() {
    a_defect_ends_its_address("write");
}

#[test]
fn a_defect_while_an_address_is_closed() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, _far) = dialed(config().close_timeout(None)).await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        sink.feed((address.clone(), Bytes::from(vec![7; 5000]))).await.unwrap();
        let mut closing = Box::pin(manager.close(&address));
        drop(sink);
        assert!((&mut closing).now_or_never().is_none());
        plant_at(0, Side::Dialer, "read");
        let closed = testing::within(Some(SECOND), closing).await.expect("it is closed");
        let Err(Error::NotSent { source, .. }) = closed else { panic!("{closed:?}") };
        assert!(matches!(*source, Error::Panicked { what: PanicSource::Task }), "{source:?}");
        assert_eq!(letters.next().await.unwrap().outcome, Outcome::Closed);
        assert!(manager.addresses().is_empty());
        assert_eq!((manager.stats().total.accepted, manager.stats().total.dead_lettered), (1, 1));
    });
}
