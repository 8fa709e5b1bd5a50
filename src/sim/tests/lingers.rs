//! What is fed and not flushed is sent all the same, and when.

use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{ANYWHERE, SECOND, config, dialed, every};
use crate::sim::testing::{self, Acceptor, Sim, elapsed};
use crate::{Address, Config, Error, LinkStats, Listener, Manager, Outcome, Route, Session};

pub(super) const MS: Duration = Duration::from_millis(1);
/// The default.
pub(super) const LINGER: Duration = Duration::from_millis(5);

fn balanced(manager: &Manager) -> LinkStats {
    let total = manager.stats().total;
    assert_eq!(total.accepted, total.written + total.dead_lettered + total.held);
    total
}

/// The content of so many frames of a byte.
pub(super) async fn frames(far: &mut testing::Stream, frames: usize) -> Vec<u8> {
    let mut wire = vec![0; 5 * frames];
    far.read_exact(&mut wire).await.unwrap();
    wire.chunks(5).map(|frame| frame[4]).collect()
}

pub(super) fn byte(n: u8) -> Bytes {
    Bytes::from(vec![n])
}

#[test]
fn what_is_fed_is_sent_when_it_has_lingered_and_not_before() {
    for linger in [None, Some(Duration::ZERO), Some(MS), Some(SECOND)] {
        Sim::default().run(async {
            let config = linger.map_or(config(), |linger| config().linger(linger));
            let linger = linger.unwrap_or(LINGER);
            let (manager, address, _acceptor, mut far) = dialed(config).await;
            let mut sink = manager.sink();
            // More than once: the timer is set again.
            for round in 0..3 {
                let began = elapsed();
                sink.feed((address.clone(), byte(round))).await.unwrap();
                assert_eq!(
                    (balanced(&manager).accepted, balanced(&manager).written),
                    (u64::from(round) + 1, round.into())
                );
                assert_eq!(frames(&mut far, 1).await, [round]);
                assert_eq!(elapsed() - began, linger);
                assert_eq!(balanced(&manager).written, u64::from(round) + 1);
                testing::sleep(SECOND).await;
            }
            sink.flush().await.unwrap();
        });
    }
}

/// The time begins with the first of them, and does not begin anew with each.
#[test]
fn what_is_fed_meanwhile_goes_with_the_first() {
    Sim::default().run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let mut sink = manager.sink();
        let began = elapsed();
        for n in 0..5 {
            assert!(sink.try_feed(&address, &[n]).unwrap());
            testing::sleep(MS).await;
        }
        assert_eq!(frames(&mut far, 5).await, [0, 1, 2, 3, 4]);
        assert_eq!(elapsed() - began, LINGER);
    });
}

#[test]
fn a_flush_does_not_wait_for_what_lingers() {
    Sim::default().run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let mut sink = manager.sink();
        let began = elapsed();
        sink.send((address.clone(), byte(1))).await.unwrap();
        assert_eq!(frames(&mut far, 1).await, [1]);
        assert_eq!(elapsed(), began);
        // The timer of that one does not hurry the next.
        testing::sleep(3 * MS).await;
        sink.feed((address, byte(2))).await.unwrap();
        assert_eq!(frames(&mut far, 1).await, [2]);
        assert_eq!(elapsed() - began, 3 * MS + LINGER);
    });
}

#[test]
fn where_lingering_is_off_nothing_is_sent_before_a_flush() {
    Sim::default().run(async {
        let (manager, address, _acceptor, mut far) = dialed(config().linger(None)).await;
        let mut sink = manager.sink();
        sink.feed((address.clone(), byte(1))).await.unwrap();
        assert!(testing::within(Some(100 * SECOND), frames(&mut far, 1)).await.is_none());
        assert_eq!((balanced(&manager).accepted, balanced(&manager).held), (1, 1));
        sink.flush().await.unwrap();
        assert_eq!(frames(&mut far, 1).await, [1]);
    });
}

/// A batch was handed over because it was full, and the sink goes on with another address.
#[test]
fn a_batch_that_was_handed_over_and_is_not_flushed_lingers_as_well() {
    Sim::default().run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let (acceptor, other) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        manager.dial(other).await.unwrap();
        let mut sink = manager.sink();
        let long = Bytes::from_static(&[7; 60 << 10]);
        sink.feed((address, long.clone())).await.unwrap();
        sink.feed((other.into(), byte(1))).await.unwrap();
        let began = elapsed();
        assert_eq!(balanced(&manager).held_bytes, long.len() + 4);
        far.read_exact(&mut vec![0; long.len() + 4]).await.unwrap();
        assert_eq!(elapsed() - began, LINGER);
        drop(acceptor);
    });
}

/// Nothing lingers, so that nobody else comes for it.
#[test]
fn a_batch_that_is_full_is_sent_where_lingering_is_off() {
    const LONG: usize = 60 << 10;
    for session in [None, Some(Session::new())] {
        Sim::default().run(async {
            let config = config().max_message_size(64 << 10).linger(None).session(session);
            let mut listener = Listener::bind(ANYWHERE, config.clone()).await.unwrap();
            let address = Address::from(listener.local_addr());
            let manager = Manager::new(config);
            manager.dial(&address).await.unwrap();
            let mut sink = manager.sink();
            for _ in 0..3 {
                let began = elapsed();
                assert!(sink.try_feed(&address, &[7; LONG]).unwrap());
                sink.ready().await.unwrap();
                let came = testing::within(Some(SECOND), listener.next()).await.expect("it is sent");
                assert_eq!((came.unwrap().1.len(), elapsed()), (LONG, began));
            }
            // One that is not full is not.
            sink.feed((address.clone(), byte(1))).await.unwrap();
            assert!(testing::within(Some(100 * SECOND), listener.next()).await.is_none());
        });
    }
}

#[test]
fn sinks_of_one_address_linger_by_themselves_and_keep_their_order() {
    Sim::default().run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let mut sinks: Vec<_> = (0..3).map(|_| manager.sink()).collect();
        let began = elapsed();
        for round in 0..2 {
            for (n, sink) in sinks.iter_mut().enumerate() {
                sink.feed((address.clone(), byte(10 * n as u8 + round))).await.unwrap();
                testing::sleep(MS / 2).await;
            }
        }
        // The second flushes: what it has fed goes in front.
        sinks[1].flush().await.unwrap();
        assert_eq!(frames(&mut far, 2).await, [10, 11]);
        assert_eq!(elapsed() - began, 3 * MS);
        assert_eq!(frames(&mut far, 2).await, [0, 1]);
        assert_eq!(elapsed() - began, LINGER);
        assert_eq!(frames(&mut far, 2).await, [20, 21]);
        assert_eq!(elapsed() - began, LINGER + MS);
    });
}

/// The address is down: what lingered opens it.
#[test]
fn what_lingers_opens_the_connection() {
    for config in [config(), config().reconnect(every(SECOND))] {
        Sim::default().run(async {
            let (manager, address, acceptor, far) = dialed(config.clone()).await;
            drop(far);
            testing::sleep(SECOND).await;
            let mut sink = manager.sink();
            let began = elapsed();
            sink.feed((address, byte(1))).await.unwrap();
            let (mut far, _) = acceptor.accept(&config).await.unwrap();
            assert_eq!(frames(&mut far, 1).await, [1]);
            assert_eq!(elapsed() - began, LINGER);
        });
    }
}

#[test]
fn what_lingers_comes_back_where_it_cannot_be_written() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config()).await;
        let mut letters = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        sink.feed((address.clone(), byte(1))).await.unwrap();
        let letter = letters.next().await.unwrap();
        assert_eq!((letter.message, letter.outcome), (byte(1), Outcome::NotSent));
        let flushed = sink.flush().await;
        assert!(matches!(flushed, Err(Error::NotSent { message: None, .. })), "{flushed:?}");
        sink.flush().await.expect("it is told once");
        assert_eq!((balanced(&manager).accepted, balanced(&manager).dead_lettered), (1, 1));
    });
}

/// The age counts from the feed, however long it lingers, and also where it does not.
#[test]
fn what_lingers_expires() {
    let ttl = SECOND;
    for (linger, after) in [(Some(SECOND / 2), ttl), (Some(2 * SECOND), ttl), (None, 3 * SECOND)] {
        Sim::default().run(async {
            let config = config().message_ttl(ttl).linger(linger).reconnect(every(SECOND * 100));
            let (manager, address, acceptor, far) = dialed(config).await;
            let mut letters = manager.dead_letters();
            drop((far, acceptor));
            testing::sleep(SECOND).await;
            let mut sink = manager.sink();
            let began = elapsed();
            sink.feed((address, byte(1))).await.unwrap();
            let next = testing::within(Some(3 * SECOND), letters.next()).await;
            let letter = match next {
                Some(letter) => letter,
                None => {
                    assert!(sink.flush().now_or_never().is_none());
                    letters.next().await
                }
            };
            let letter = letter.unwrap();
            assert_eq!((letter.message, letter.outcome), (byte(1), Outcome::Expired));
            let took = elapsed() - began;
            assert!((after..after + ttl / 64).contains(&took), "{took:?} with {linger:?}");
            assert!(matches!(sink.flush().await, Err(Error::NotSent { .. })));
            assert_eq!((balanced(&manager).accepted, balanced(&manager).dead_lettered), (1, 1));
        });
    }
}

/// Each counts by itself, though they lie on one shelf.
#[test]
fn what_was_fed_later_expires_later() {
    Sim::default().run(async {
        let config = config().message_ttl(SECOND).linger(None).reconnect(every(SECOND * 100));
        let (manager, address, acceptor, far) = dialed(config).await;
        let mut letters = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        let began = elapsed();
        for n in 0..3 {
            sink.feed((address.clone(), byte(n))).await.unwrap();
            testing::sleep(SECOND / 4).await;
        }
        assert!(sink.flush().now_or_never().is_none());
        for n in 0..3 {
            assert_eq!(letters.next().await.unwrap().message, byte(n));
            let due = SECOND + SECOND / 4 * n.into();
            assert!((due..due + SECOND / 64).contains(&(elapsed() - began)), "{n}: {:?}", elapsed() - began);
        }
    });
}

#[test]
fn what_lingers_waits_for_room_in_turn() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let long = Bytes::from_static(&[9; 70 << 10]);
        // One is with the connection, and another fills the queue.
        let mut writes: Vec<_> = (0..2).map(|_| Box::pin(manager.write(&address, long.clone()))).collect();
        assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
        let mut sinks: Vec<_> = (0..2).map(|_| manager.sink()).collect();
        sinks[0].feed((address.clone(), byte(1))).await.unwrap();
        testing::sleep(SECOND).await;
        let mut last = Box::pin(manager.write(&address, byte(4)));
        assert!((&mut last).now_or_never().is_none());
        // It goes with the one before it, whose turn it is.
        sinks[0].feed((address.clone(), byte(2))).await.unwrap();
        sinks[1].feed((address.clone(), byte(5))).await.unwrap();
        testing::sleep(SECOND).await;
        assert!(sinks[0].flush().now_or_never().is_none());
        sinks[0].feed((address.clone(), byte(3))).await.unwrap();
        assert_eq!((balanced(&manager).accepted, balanced(&manager).held), (6, 6));
        far.read_exact(&mut vec![0; 2 * (long.len() + 4)]).await.unwrap();
        assert_eq!(frames(&mut far, 5).await, [1, 2, 3, 4, 5]);
        testing::sleep(SECOND).await;
        for sink in &mut sinks {
            sink.flush().now_or_never().expect("it is written").unwrap();
        }
        assert_eq!((balanced(&manager).written, balanced(&manager).held), (7, 0));
    });
}

/// It does not wait, and so the background has it at once.
#[test]
fn a_sink_that_is_dropped_does_not_linger() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config().queue_bytes(1000)).await;
        let mut letters = manager.dead_letters();
        let began = elapsed();
        let mut sink = manager.sink();
        sink.feed((address.clone(), byte(1))).await.unwrap();
        drop(sink);
        assert_eq!(frames(&mut far, 1).await, [1]);
        assert_eq!(elapsed(), began);
        // Where there is no room it comes back, also from the line.
        let long = Bytes::from_static(&[9; 70 << 10]);
        let mut writes: Vec<_> = (0..2).map(|_| Box::pin(manager.write(&address, long.clone()))).collect();
        assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
        for pause in [Duration::ZERO, SECOND] {
            let mut sink = manager.sink();
            sink.feed((address.clone(), byte(2))).await.unwrap();
            testing::sleep(pause).await;
            drop(sink);
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.message, letter.outcome), (byte(2), Outcome::QueueFull));
        }
        assert_eq!((balanced(&manager).accepted, balanced(&manager).dead_lettered), (5, 2));
    });
}

#[test]
fn a_close_and_a_shutdown_deliver_what_was_fed() {
    for (linger, shuts_down) in [(None, false), (Some(SECOND), false), (None, true), (Some(SECOND), true)] {
        Sim::default().run(async {
            let (manager, address, _acceptor, mut far) = dialed(config().linger(linger)).await;
            let (mut one, mut other) = (manager.sink(), manager.sink());
            one.feed((address.clone(), byte(1))).await.unwrap();
            other.feed((address.clone(), byte(2))).await.unwrap();
            let began = elapsed();
            let closing = async {
                match shuts_down {
                    true => assert_eq!(manager.shutdown(SECOND).await[&address].written, 2),
                    false => manager.close(&address).await.unwrap(),
                }
            };
            let reading = async {
                let frames = frames(&mut far, 2).await;
                drop(far);
                frames
            };
            assert_eq!(futures::join!(closing, reading).1, [1, 2]);
            assert_eq!(elapsed(), began);
            one.flush().await.unwrap();
            let refused = one.feed((address.clone(), byte(3))).await;
            assert!(matches!(refused, Err(Error::NotOpen { message: Some(_), .. })), "{refused:?}");
            assert_eq!((balanced(&manager).written, balanced(&manager).held), (2, 0));
        });
    }
}

pub(super) async fn listening(config: Config) -> (Listener, Address) {
    let listener = Listener::bind(ANYWHERE, config).await.unwrap();
    let address = listener.local_addr().into();
    (listener, address)
}

pub(super) fn in_session() -> Config {
    config().session(Session::new()).max_message_size(4096)
}

#[test]
fn what_is_fed_lingers_in_a_session_as_well() {
    Sim::default().run(async {
        let (mut listener, address) = listening(in_session()).await;
        let manager = Manager::new(in_session());
        manager.dial(&address).await.unwrap();
        let mut sink = manager.sink();
        for round in 0..3 {
            let began = elapsed();
            sink.feed((address.clone(), byte(round))).await.unwrap();
            assert_eq!(listener.next().await.unwrap().1, byte(round));
            assert_eq!(elapsed() - began, LINGER);
        }
        let taking = async { while listener.next().await.is_some() {} };
        let barrier = async { sink.barrier().await.unwrap() };
        futures::future::select(Box::pin(taking), Box::pin(barrier)).await;
        let total = manager.stats().total;
        assert_eq!((total.accepted, total.acked, total.held), (3, 3, 0));
    });
}

/// Its task hands on what is fed at once.
#[test]
fn a_route_sends_what_is_fed_and_nobody_flushes() {
    for config in [config(), config().linger(None), in_session()] {
        Sim::default().run(async {
            let (mut listener, address) = listening(config.clone()).await;
            let manager = Manager::new(config.clone());
            manager.dial(&address).await.unwrap();
            let mut sink = manager.sink_to(Route::failover([&address]));
            let began = elapsed();
            sink.feed(byte(1)).await.unwrap();
            assert_eq!(listener.next().await.unwrap().1, byte(1));
            assert_eq!(elapsed(), began);
            let total = manager.stats().total;
            assert_eq!((total.accepted, total.written), (1, 1));
        });
    }
}
