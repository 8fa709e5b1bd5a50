//! Each time limit ends what it limits exactly at its time, not before; and what nobody answers holds up nobody else.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::{SinkExt, StreamExt};

use super::audit::dead_lettered;
use super::outages::{SECOND, every};
use crate::observe::{Event, Events, ManagerEvent, Reason};
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Cut, black_hole, plan};
use crate::sim::testing::{Fault, Side};
use crate::sim::testing::{Sim, elapsed};
use crate::{Address, Backoff, Config, Connection, Error, Limit, Listener, Manager, WireFormat};

/// An odd time, that nothing else comes to by chance.
const LIMIT: Duration = Duration::from_millis(7_013);
const BEFORE: Duration = Duration::from_millis(7_012);
const ANYWHERE: &str = "127.0.0.1:0";
const HOLE: &str = "10.0.0.1:5031";

fn config() -> Config {
    // Every limit that is not looked at is off.
    let config = Config::new().wire_format(WireFormat::u32_be()).dial_timeout(None).write_timeout(None);
    config.frame_timeout(None).close_timeout(None)
}

fn one_kib() -> Bytes {
    Bytes::from_static(&[7; 1024])
}

/// Why the only peer was disconnected, and when.
async fn disconnected(events: &mut Events<Event>) -> (Reason, Duration) {
    loop {
        if let Event::Disconnected { reason, .. } = events.next().await.unwrap() {
            return (reason, elapsed());
        }
    }
}

#[track_caller]
fn assert_timeout((reason, at): (Reason, Duration), setting: Limit, expected: Duration) {
    assert!(matches!(reason, Reason::Timeout { what, after: LIMIT } if what == setting), "{reason:?}");
    assert_eq!(at, expected);
}

/// Receives and forgets.
fn receive(mut listener: Listener) -> testing::Task {
    testing::spawn(async move { while listener.next().await.is_some() {} })
}

/// Somebody who accepts, and then does nothing.
async fn silent() -> (Address, Acceptor) {
    let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
    (addr.into(), acceptor)
}

fn small() -> Sim {
    Sim { capacity: 1024, ..Sim::default() }
}

#[test]
fn idle_timeout() {
    Sim::default().run(async {
        let listener = Listener::bind(ANYWHERE, config().idle_timeout(LIMIT)).await.unwrap();
        let (mut events, address) = (listener.events(), listener.local_addr().into());
        let _receiving = receive(listener);
        let mut peer = testing::dial(&address, &config()).await.unwrap();
        for _ in 0..3 {
            testing::sleep(BEFORE).await;
            peer.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
        }
        assert_timeout(disconnected(&mut events).await, Limit::IdleTimeout, 3 * BEFORE + LIMIT);
    });
}

#[test]
fn frame_timeout_of_a_listener() {
    Sim::default().run(async {
        let listener = Listener::bind(ANYWHERE, config().frame_timeout(LIMIT)).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let stats = listener.closer();
        let _receiving = receive(listener);
        let mut other = Connection::dial(&address, config()).await.unwrap();
        let mut slow = testing::dial(&address, &config()).await.unwrap();
        testing::sleep(3 * LIMIT).await;
        slow.write_all(&[0, 0, 1, 0]).await.unwrap();
        // One byte now and then does not start it over.
        let _dripping = testing::spawn(async move {
            while slow.write_all(&[7]).await.is_ok() {
                testing::sleep(LIMIT / 10).await;
            }
        });
        let (ended, ()) = futures::join!(disconnected(&mut events), async {
            for _ in 0..20 {
                other.send(one_kib()).await.unwrap();
                testing::sleep(LIMIT / 10).await;
            }
        });
        assert_timeout(ended, Limit::FrameTimeout, 4 * LIMIT);
        assert_eq!((stats.stats().messages, stats.stats().connections), (20, 1));
    });
}

#[test]
fn frame_timeout_of_a_connection() {
    Sim::default().run(async {
        let (address, acceptor) = silent().await;
        let mut connection = Connection::dial(&address, config().frame_timeout(LIMIT)).await.unwrap();
        let (mut peer, _) = acceptor.accept(&config()).await.unwrap();
        assert!(testing::within(Some(9 * LIMIT), connection.next()).await.is_none(), "a reply may take its time");
        peer.write_all(&[0, 0]).await.unwrap();
        let error = connection.next().await.unwrap().unwrap_err();
        assert!(matches!(error, Error::Timeout { what: Limit::FrameTimeout, after: LIMIT }), "{error:?}");
        assert_eq!(elapsed(), 10 * LIMIT);
    });
}

#[test]
fn write_timeout_of_a_connection() {
    small().run(async {
        let (address, acceptor) = silent().await;
        let mut connection = Connection::dial(&address, config().write_timeout(LIMIT)).await.unwrap();
        let (mut peer, _) = acceptor.accept(&config()).await.unwrap();
        let (sent, ()) = futures::join!(connection.send(Bytes::from(vec![7; 4096])), async {
            // It starts over with every byte that is taken.
            testing::sleep(BEFORE).await;
            peer.read_exact(&mut [0]).await.unwrap();
        });
        let error = sent.unwrap_err();
        assert!(matches!(error, Error::Timeout { what: Limit::WriteTimeout, after: LIMIT }), "{error:?}");
        assert_eq!(elapsed(), BEFORE + LIMIT);
    });
}

#[test]
fn write_timeout_of_a_manager() {
    small().run(async {
        let (address, acceptor) = silent().await;
        let manager = Manager::new(config().write_timeout(LIMIT));
        let mut events = manager.events();
        manager.dial(&address).await.unwrap();
        let (mut peer, _) = acceptor.accept(&config()).await.unwrap();
        drop(acceptor);
        let (sent, ()) = futures::join!(manager.write(&address, Bytes::from(vec![7; 4096])), async {
            testing::sleep(BEFORE).await;
            peer.read_exact(&mut [0]).await.unwrap();
        });
        // Nobody listens there any more, so the message comes back.
        assert_eq!(sent.unwrap_err().into_unsent().unwrap().len(), 4096);
        assert_eq!(elapsed(), BEFORE + LIMIT);
        while !matches!(events.next().await.unwrap(), ManagerEvent::Broken { error: Some(error), .. }
            if matches!(*error, Error::Timeout { what: Limit::WriteTimeout, after: LIMIT }))
        {}
    });
}

#[test]
fn write_timeout_of_a_listener() {
    small().run(async {
        let listener = Listener::bind(ANYWHERE, config().write_timeout(LIMIT)).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let (mut incoming, mut outgoing) = listener.split();
        let mut peer = Connection::dial(&address, config()).await.unwrap();
        peer.send(one_kib()).await.unwrap();
        testing::sleep(LIMIT).await;
        let (from, message) = incoming.next().await.unwrap();
        outgoing.feed((from, message.clone())).await.unwrap();
        outgoing.feed((from, message)).await.unwrap();
        let (flushed, ended) = futures::join!(outgoing.flush(), disconnected(&mut events));
        flushed.unwrap();
        assert_timeout(ended, Limit::WriteTimeout, 2 * LIMIT);
    });
}

#[test]
fn close_timeout_of_a_connection() {
    small().run(async {
        let (address, _acceptor) = silent().await;
        let mut connection = Connection::dial(&address, config().close_timeout(LIMIT)).await.unwrap();
        connection.feed(Bytes::from(vec![7; 4096])).await.unwrap();
        let error = connection.close().await.unwrap_err();
        assert!(matches!(error, Error::Timeout { what: Limit::CloseTimeout, after: LIMIT }), "{error:?}");
        assert_eq!(elapsed(), LIMIT);
    });
}

#[test]
fn close_timeout_of_a_manager() {
    small().run(async {
        // One does not take what was accepted, the other does not close.
        for (size, undelivered) in [(4096, 1), (100, 0)] {
            let began = elapsed();
            let (address, _acceptor) = silent().await;
            let manager = Manager::new(config().close_timeout(LIMIT));
            let letters = manager.dead_letters();
            manager.dial(&address).await.unwrap();
            let mut sink = manager.sink();
            sink.feed((address.clone(), Bytes::from(vec![7; size]))).await.unwrap();
            drop(sink);
            let error = manager.close(&address).await.unwrap_err();
            assert!(matches!(error, Error::Timeout { what: Limit::CloseTimeout, after: LIMIT }), "{error:?}");
            assert_eq!(elapsed(), began + LIMIT);
            let letters: Vec<_> = letters.take(undelivered).collect().await;
            assert!(letters.iter().all(|letter| letter.message.len() == size));
            assert_eq!(dead_lettered(&manager.stats().total), undelivered as u64);
        }
    });
}

#[test]
fn close_timeout_of_a_listener() {
    small().run(async {
        let mut listener = Listener::bind(ANYWHERE, config().close_timeout(LIMIT)).await.unwrap();
        let address = Address::from(listener.local_addr());
        let _peer = testing::dial(&address, &config()).await.unwrap();
        assert!(testing::within(Some(LIMIT), listener.next()).await.is_none());
        // The peer is told at once, and may go on until the limit.
        listener.close().await.unwrap();
        assert_eq!(elapsed(), LIMIT);
        assert!(listener.next().await.is_none());
        assert_eq!(elapsed(), 2 * LIMIT);
    });
}

#[test]
fn dial_timeout() {
    Sim::default().run(async {
        black_hole(HOLE.parse().unwrap());
        let error = Connection::dial(HOLE, config().dial_timeout(LIMIT)).await.unwrap_err();
        assert!(matches!(error, Error::DialTimeout { after: LIMIT, .. }), "{error:?}");
        assert_eq!(elapsed(), LIMIT);
    });
}

#[test]
fn a_black_hole_holds_up_nobody_else() {
    Sim::default().run(async {
        let listener = Listener::bind(ANYWHERE, config()).await.unwrap();
        let (address, counted) = (Address::from(listener.local_addr()), listener.closer());
        let _receiving = receive(listener);
        let (doomed, acceptor) = silent().await;
        let manager = Manager::new(config().dial_timeout(LIMIT));
        manager.dial(&address).await.unwrap();
        manager.dial(&doomed).await.unwrap();
        // One address never answers, and one that was open does not when it is opened again.
        black_hole(HOLE.parse().unwrap());
        black_hole(doomed.as_str().parse().unwrap());
        drop(acceptor);
        let opening = testing::spawn({
            let manager = manager.clone();
            async move {
                assert!(matches!(manager.dial(HOLE).await, Err(Error::DialTimeout { .. })));
            }
        });
        testing::yield_now().await;
        let mut lost = std::pin::pin!(manager.write(&doomed, one_kib()));
        assert!(futures::poll!(&mut lost).is_pending());
        for _ in 0..100 {
            manager.write(&address, one_kib()).await.unwrap();
        }
        let mut sink = manager.sink();
        sink.send((address.clone(), one_kib())).await.unwrap();
        testing::yield_now().await;
        assert_eq!((elapsed(), counted.stats().messages), (Duration::ZERO, 101));
        assert_eq!(lost.await.unwrap_err().into_unsent(), Some(one_kib()));
        assert_eq!(elapsed(), LIMIT);
        drop(opening);
    });
}

#[test]
fn a_stall_of_one_peer_is_no_other_peers_matter() {
    small().run(async {
        let listener = Listener::bind(ANYWHERE, config().frame_timeout(LIMIT)).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let counted = listener.closer();
        let _receiving = receive(listener);
        plan(Cut { connection: 0, side: Side::Dialer, after: 500, fault: Fault::Stall });
        let mut stalled = Connection::dial(&address, config()).await.unwrap();
        let mut other = Connection::dial(&address, config()).await.unwrap();
        stalled.send(Bytes::from(vec![7; 800])).await.unwrap();
        for _ in 0..100 {
            other.send(one_kib()).await.unwrap();
        }
        testing::yield_now().await;
        assert_eq!((elapsed(), counted.stats().messages), (Duration::ZERO, 100));
        assert_timeout(disconnected(&mut events).await, Limit::FrameTimeout, LIMIT);
    });
}

/// A flush that was given up halfway; the peer reads all that came, and closes; much later somebody flushes again.
#[test]
fn a_flush_looks_for_the_end_though_one_before_it_was_dropped() {
    for patient in [false, true] {
        small().run(async {
            let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100));
            let config = if patient { config().reconnect(backoff) } else { config() };
            let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
            let mut connection = Connection::dial(addr, config.clone()).await.unwrap();
            let (mut peer, _) = acceptor.accept(&config).await.unwrap();
            let messages = [Bytes::from_static(&[1; 996]), Bytes::from_static(&[2; 996])];
            for message in &messages {
                connection.feed(message.clone()).await.unwrap();
            }
            // One frame, and the start of the other.
            assert!(testing::within(Some(LIMIT), connection.flush()).await.is_none());
            peer.read_exact(&mut [0; 1024]).await.unwrap();
            drop(peer);
            testing::sleep(LIMIT).await;
            let mut frame = [0; 1000];
            let receiving = async {
                let (mut peer, _) = acceptor.accept(&config).await.unwrap();
                peer.read_exact(&mut frame).await.unwrap();
            };
            if !patient {
                // It broke in the middle, which is told; what was cut is held.
                let error = connection.flush().await.unwrap_err();
                assert!(matches!(&error, Error::Write(error) if error.kind() == ErrorKind::BrokenPipe), "{error:?}");
            }
            let (flushed, ()) = futures::join!(connection.flush(), receiving);
            flushed.unwrap();
            assert_eq!(frame[4..], messages[1]);
        });
    }
}

/// The same where the flush is still waited for, and goes on late.
#[test]
fn a_flush_that_waits_looks_for_the_end_before_it_goes_on() {
    for patient in [false, true] {
        small().run(async {
            let config = if patient { config().reconnect(every(SECOND)) } else { config() };
            let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
            let mut connection = Connection::dial(addr, config.clone()).await.unwrap();
            let (mut peer, _) = acceptor.accept(&config).await.unwrap();
            for n in 0..20 {
                connection.feed(Bytes::from(vec![n; 100])).await.unwrap();
            }
            let mut frames = vec![0; 1024];
            {
                let mut flush = connection.flush();
                assert!(futures::poll!(&mut flush).is_pending());
                // It may go on, and does so when the peer is gone.
                peer.read_exact(&mut frames).await.unwrap();
                drop(peer);
                if !patient {
                    let error = flush.await.unwrap_err();
                    assert!(
                        matches!(&error, Error::Write(error) if error.kind() == ErrorKind::BrokenPipe),
                        "{error:?}"
                    );
                }
            }
            let receiving = async {
                let (mut peer, _) = acceptor.accept(&config).await.unwrap();
                // Nine frames were whole.
                let mut rest = vec![0; 11 * 104];
                peer.read_exact(&mut rest).await.unwrap();
                rest
            };
            let (flushed, rest) = futures::join!(connection.flush(), receiving);
            flushed.unwrap();
            let received = [&frames[..9 * 104], &rest[..]].concat();
            assert!(received.chunks(104).map(|frame| frame[4]).eq(0..20));
        });
    }
}

/// The time of a close that was dropped does not count, when something else was done since.
#[test]
fn a_second_close_has_its_own_time() {
    small().run(async {
        let config = config().close_timeout(LIMIT);
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let mut connection = Connection::dial(addr, config.clone()).await.unwrap();
        let (mut peer, _) = acceptor.accept(&config).await.unwrap();
        for _ in 0..3 {
            connection.feed(one_kib()).await.unwrap();
        }
        assert!(testing::within(Some(BEFORE), connection.close()).await.is_none());
        assert!(testing::within(Some(BEFORE), connection.flush()).await.is_none());
        assert!(testing::within(Some(BEFORE), connection.close()).await.is_none());
        let mut all = Vec::new();
        let (closed, read) = futures::join!(connection.close(), peer.read_to_end(&mut all));
        closed.unwrap();
        assert_eq!(read.unwrap(), 3 * 1028);
    });
}
