//! A manager's connection breaks: opened again, or every message comes back, each to where it belongs.

use std::net::SocketAddr;
use std::time::Duration;

use buffstreams::{Config, Error, Events, Limit, Manager, ManagerEvent, Outcome};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{BlackHole, SOON, Site, balanced, config, dialed, number, numbered, numbers, run, within};

/// The next event that is `wanted`.
async fn event<T>(events: &mut Events<ManagerEvent>, what: &str, wanted: impl Fn(ManagerEvent) -> Option<T>) -> T {
    let search = async {
        loop {
            let event = events.next().await.expect("an event");
            if let Some(found) = wanted(event) {
                return found;
            }
        }
    };
    within(SOON, what, search).await
}

async fn broken(events: &mut Events<ManagerEvent>) {
    event(events, "the break", |event| matches!(event, ManagerEvent::Broken { .. }).then_some(())).await;
}

/// A manager of which one address is down: its peer is gone, and nobody listens there.
async fn down(config: Config) -> (Manager, Events<ManagerEvent>, SocketAddr) {
    let site = Site::new();
    let (manager, far) = dialed(config, &site).await;
    let mut events = manager.events();
    let addr = site.addr;
    drop((site, far));
    broken(&mut events).await;
    (manager, events, addr)
}

#[test]
fn what_was_held_is_sent_again_first_and_in_order() {
    run(async {
        for len in [500, 5_000, 200_000] {
            let site = Site::small();
            let (manager, mut far) = dialed(config(), &site).await;
            let mut sink = manager.sink();
            let mut accepted = 0;
            while sink.feed((site.addr.into(), numbered(accepted, len))).now_or_never().is_some() {
                accepted += 1;
            }
            // More than the kernel makes room for when one of them is read.
            for _ in 0..2 {
                let fed = sink.feed((site.addr.into(), numbered(accepted, 8 << 20))).now_or_never();
                accepted += u64::from(fed.is_some());
            }
            let mut flush = Box::pin(sink.flush());
            assert!((&mut flush).now_or_never().is_none());
            // What the kernel has taken whole is lost with the reset; the rest is not.
            let whole = balanced(&manager).written;
            assert_eq!(number(&far.message().await), 0);
            assert!((&mut flush).now_or_never().is_none());
            far.reset();
            let mut again = site.accept().await;
            let closing = async {
                within(SOON, "the flush", flush).await.expect("a break that is mended is no error");
                manager.close(site.addr).await
            };
            let receiving = async {
                let wire = again.rest().await;
                drop(again);
                wire
            };
            let (closed, wire) = futures::join!(closing, receiving);
            closed.unwrap();
            let second = numbers(&wire);
            assert!(second.is_sorted_by(|a, b| a + 1 == *b), "{second:?}");
            // It may have taken some more after the look at the books, but nothing is sent twice.
            assert!(second[0] >= whole, "{} was handed over whole before {whole}", second[0]);
            assert_eq!(second.last(), Some(&(accepted - 1)));
            assert_eq!(manager.stats().total.reconnects, 1);
        }
    });
}

#[test]
fn a_peer_that_closes_while_idle_costs_no_message() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config(), &site).await;
        let mut events = manager.events();
        let mut sink = manager.sink();
        for n in 0..200 {
            drop(far);
            broken(&mut events).await;
            // By turns: the one way to send, and the other.
            let sending = async {
                match n % 2 {
                    0 => manager.write(site.addr, numbered(n, 8)).await,
                    _ => sink.send((site.addr.into(), numbered(n, 8))).await,
                }
            };
            let (sent, again) = futures::join!(sending, site.accept());
            sent.unwrap();
            far = again;
            assert_eq!(number(&far.message().await), n);
        }
        let total = balanced(&manager);
        assert_eq!((total.written, total.reconnects), (200, 200));
    });
}

#[test]
fn what_cannot_be_sent_goes_back_to_where_it_came_from() {
    run(async {
        let (manager, _events, addr) = down(config()).await;
        let mut dead = manager.dead_letters();
        let mut sink = manager.sink();
        for n in 0..10 {
            sink.feed((addr.into(), numbered(n, 100 + n as usize * 1_000))).await.unwrap();
        }
        let write = manager.write(addr, numbered(99, 8));
        let (written, flushed) = futures::join!(write, sink.flush());
        // To each writer its own.
        let error = written.expect_err("nobody listens");
        let Error::NotSent { address, source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(address.as_str(), addr.to_string());
        assert!(matches!(**source, Error::Dial { .. }), "{source:?}");
        assert_eq!(error.into_unsent(), Some(numbered(99, 8)));
        // To the sink once that, and its messages to whoever takes the dead letters.
        let error = flushed.expect_err("nobody listens");
        assert!(matches!(error, Error::NotSent { message: None, .. }), "{error:?}");
        sink.flush().await.expect("it was told once");
        for n in 0..10 {
            let letter = within(SOON, "a dead letter", dead.next()).await.unwrap();
            assert_eq!(letter.message, numbered(n, 100 + n as usize * 1_000));
            assert_eq!((letter.address.to_string(), letter.outcome), (addr.to_string(), Outcome::NotSent));
            assert!(matches!(&*letter.error, Error::Dial { .. }), "{letter:?}");
        }
        assert!(dead.next().now_or_never().is_none(), "the write's message is not among them");
        let total = balanced(&manager);
        assert_eq!((total.accepted, total.dead_lettered, total.held), (11, 11, 0));
        // The next message tries again.
        let site = Site::again(addr).await;
        let (written, mut far) = futures::join!(manager.write(addr, numbered(100, 8)), site.accept());
        written.unwrap();
        assert_eq!(number(&far.message().await), 100);
        drop(far);
        manager.close(addr).await.expect("the failures before it are no failures of a close");
    });
}

#[test]
fn a_close_after_an_outage_has_nothing_to_report() {
    run(async {
        let (manager, _events, addr) = down(config()).await;
        manager.write(addr, numbered(1, 8)).await.expect_err("nobody listens");
        manager.close(addr).await.expect("nothing was held");
        assert!(manager.addresses().is_empty());
    });
}

#[test]
fn letters_that_nobody_takes_are_counted() {
    run(async {
        let (manager, mut events, addr) = down(config()).await;
        for round in 1..=3_u64 {
            if round == 3 {
                // Nor is somebody who is gone anybody.
                drop(manager.dead_letters());
            }
            let mut sink = manager.sink();
            for n in 0..round * 7 {
                sink.feed((addr.into(), numbered(n, 8))).await.unwrap();
            }
            sink.close().await.expect_err("nobody listens");
            let lost = event(&mut events, "the loss", |event| match event {
                ManagerEvent::Lost { address, messages, .. } if address.as_str() == addr.to_string() => Some(messages),
                _ => None,
            });
            assert_eq!(lost.await as u64, round * 7);
        }
        assert_eq!(balanced(&manager).dead_lettered, 42);
    });
}

/// Nobody takes the letters of one address, and the other goes on; when they are taken, none is missing.
#[test]
fn a_slow_taker_of_dead_letters_holds_up_one_address() {
    run(async {
        let (manager, _events, addr) = down(config().queue_bytes(4 * 1024)).await;
        let mut dead = manager.dead_letters();
        let well = Site::new();
        let (made, mut far) = futures::join!(manager.dial(well.addr), well.accept());
        made.unwrap();
        let mut sink = manager.sink();
        // One batch: it is under 60 KiB, and more than the letters have room for.
        for n in 0..100 {
            sink.feed((addr.into(), numbered(n, 500))).await.unwrap();
        }
        sink.flush().await.expect_err("nobody listens");
        // Its letters are waiting, so nothing else comes back.
        let mut waiting = Box::pin(manager.write(addr, numbered(100, 8)));
        assert!((&mut waiting).now_or_never().is_none());
        for n in 0..1_000 {
            within(SOON, "the other address", manager.write(well.addr, numbered(n, 8))).await.unwrap();
            assert_eq!(number(&far.message().await), n);
        }
        assert!((&mut waiting).now_or_never().is_none());
        for n in 0..100 {
            assert_eq!(number(&within(SOON, "a dead letter", dead.next()).await.unwrap().message), n);
        }
        let error = within(SOON, "the write", waiting).await.expect_err("nobody listens");
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
    });
}

/// The one who closes may be the one who takes the letters, afterwards: those that the address was about to hand over, and
/// those that the close itself made.
#[test]
fn a_close_does_not_wait_for_the_taker_of_dead_letters() {
    for (queue_bytes, at_close) in [(4 * 1024, 0), (100 * 1024, 100)] {
        run(async {
            let limit = Duration::from_millis(200);
            // What is fed waits for the close, and is not tried before.
            let config = config().queue_bytes(queue_bytes).close_timeout(limit).linger(None);
            let (manager, _events, addr) = down(config).await;
            let mut dead = manager.dead_letters();
            let mut sink = manager.sink();
            for n in 0..100 {
                sink.feed((addr.into(), numbered(n, 500))).await.unwrap();
            }
            sink.flush().await.expect_err("nobody listens");
            for n in 100..100 + at_close {
                sink.feed((addr.into(), numbered(n, 500))).await.unwrap();
            }
            let closed = within(SOON, "the close", manager.close(addr)).await;
            assert_eq!(closed.is_err(), at_close > 0, "it is told of those that came with the close: {closed:?}");
            assert!(manager.addresses().is_empty());
            let mut numbers = Vec::new();
            for _ in 0..100 + at_close {
                numbers.push(number(&within(SOON, "a dead letter", dead.next()).await.unwrap().message));
            }
            numbers.sort_unstable();
            assert_eq!(numbers, (0..100 + at_close).collect::<Vec<_>>());
            assert_eq!(balanced(&manager).dead_lettered, 100 + at_close);
        });
    }
}

/// In one batch: a message that the peer has received whole, and one that it has not.
#[test]
fn a_message_that_was_handed_over_whole_is_not_reported_as_unsent() {
    run(async {
        let site = Site::small();
        let (manager, mut far) = dialed(config(), &site).await;
        let blocker = manager.write(site.addr, numbered(0, 4 << 20));
        let mut blocker = Box::pin(blocker);
        assert!((&mut blocker).now_or_never().is_none(), "the kernel takes 4 MiB");
        let mut small = Box::pin(manager.write(site.addr, numbered(1, 8)));
        assert!((&mut small).now_or_never().is_none());
        let mut sink = manager.sink();
        sink.feed((site.addr.into(), numbered(3, 8))).await.unwrap();
        let mut flush = Box::pin(sink.flush());
        assert!((&mut flush).now_or_never().is_none());
        let mut large = Box::pin(manager.write(site.addr, numbered(2, 8 << 20)));
        assert!((&mut large).now_or_never().is_none());
        assert_eq!(number(&far.message().await), 0);
        blocker.await.unwrap();
        assert_eq!(number(&far.message().await), 1);
        assert_eq!(number(&far.message().await), 3);
        let _ = far.read(1_000).await;
        drop(site);
        far.reset();
        within(SOON, "the small one", small).await.expect("the peer has it");
        within(SOON, "the sink", flush).await.expect("the peer has it");
        let error = within(SOON, "the large one", large).await.expect_err("the peer has a part of it");
        assert_eq!(number(&error.into_unsent().expect("the message")), 2);
        assert_eq!(balanced(&manager).dead_lettered, 1);
    });
}

/// The address answers nothing any more: it is tried for `dial_timeout`, and then everything comes back.
#[test]
fn a_redial_into_a_black_hole_has_a_deadline() {
    run(async {
        let mut hole = BlackHole::opening();
        let limit = Duration::from_millis(150);
        let manager = Manager::new(config().dial_timeout(limit));
        manager.dial(hole.addr).await.unwrap();
        let mut events = manager.events();
        drop(hole.accept());
        hole.fill();
        broken(&mut events).await;
        let error = within(SOON, "the dial timeout", manager.write(hole.addr, numbered(1, 8))).await;
        let Err(Error::NotSent { source, message: Some(_), .. }) = error else { panic!("{error:?}") };
        assert!(matches!(*source, Error::DialTimeout { after, .. } if after == limit), "{source:?}");
        // A close does not wait for a dial that gets nowhere.
        let manager = Manager::new(config().close_timeout(Duration::from_millis(100)));
        let mut hole = BlackHole::opening();
        manager.dial(hole.addr).await.unwrap();
        let mut events = manager.events();
        drop(hole.accept());
        hole.fill();
        broken(&mut events).await;
        let mut write = Box::pin(manager.write(hole.addr, numbered(2, 8)));
        assert!((&mut write).now_or_never().is_none());
        let (closed, written) = futures::join!(manager.close(hole.addr), within(SOON, "the write", write));
        assert!(matches!(closed, Err(Error::Timeout { what: Limit::CloseTimeout, .. })), "{closed:?}");
        assert_eq!(number(&written.expect_err("cut off").into_unsent().expect("the message")), 2);
    });
}

#[test]
fn a_peer_that_stops_reading_is_given_up_and_dialed_again() {
    run(async {
        let site = Site::small();
        let limit = Duration::from_millis(200);
        let (manager, mut far) = dialed(config().write_timeout(limit), &site).await;
        let mut events = manager.events();
        let mut write = Box::pin(manager.write(site.addr, numbered(1, 8 << 20)));
        assert!((&mut write).now_or_never().is_none());
        let receiving = async {
            let mut again = site.accept().await;
            (again.message().await, again)
        };
        let ((message, mut again), written) = futures::join!(receiving, within(SOON, "the write", write));
        written.expect("the second connection takes it");
        assert!(message == numbered(1, 8 << 20));
        let error = event(&mut events, "the break", |event| match event {
            ManagerEvent::Broken { error, .. } => Some(error),
            _ => None,
        });
        let error = error.await.expect("a reason");
        assert!(matches!(*error, Error::Timeout { what: Limit::WriteTimeout, .. }), "{error:?}");
        assert!(far.rest().await.len() < 8 << 20, "the first has a part of it");
        manager.write(site.addr, numbered(2, 8)).await.unwrap();
        assert_eq!(number(&again.message().await), 2);
    });
}
