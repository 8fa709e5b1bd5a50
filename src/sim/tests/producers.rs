//! What producers may put in, and what a flush tells them.

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{ANYWHERE, SECOND, config, dialed, every};
use crate::sim::testing::Sim;
use crate::sim::testing::{self, Acceptor};
use crate::{Address, Error, Limit, LinkStats, Manager, Outcome};

const QUEUE: usize = 256 << 10;

fn one_kb() -> Bytes {
    Bytes::from_static(&[7; 1000])
}

fn balanced(manager: &Manager) -> LinkStats {
    let total = manager.stats().total;
    assert_eq!(total.accepted, total.written + total.dead_lettered + total.held);
    total
}

/// Each is given up at once, as by a timeout around the `send`.
fn a_sink_for_each_message(manager: &Manager, address: &Address) {
    const SINKS: u64 = 1_000;
    for _ in 0..SINKS {
        let _ = manager.sink().send((address.clone(), one_kb())).now_or_never();
    }
    let total = balanced(manager);
    assert!((QUEUE..QUEUE + 1_004).contains(&total.held_bytes), "{total:?}");
    assert_eq!(total.accepted, SINKS);
    assert!(total.dead_lettered > SINKS - 300, "{total:?}");
    // All of it is counted where it was sent to.
    let counted = manager.stats().addresses[address];
    assert_eq!((counted.accepted, counted.dead_lettered), (SINKS, total.dead_lettered));
}

#[test]
fn a_sink_for_each_message_is_bounded_while_the_address_is_down() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(SECOND)).queue_bytes(QUEUE)).await;
        let mut letters = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        a_sink_for_each_message(&manager, &address);
        let letter = letters.next().await.unwrap();
        assert_eq!((letter.message, letter.outcome, letter.attempts), (one_kb(), Outcome::QueueFull, 0));
        assert!(matches!(*letter.error, Error::QueueFull { max: QUEUE }), "{:?}", letter.error);
        // What is neither held, nor a letter, nor on its way to be one is lost, and counted.
        let mut taken = 1;
        while testing::within(Some(SECOND / 10), letters.next()).await.is_some() {
            taken += 1;
        }
        assert_eq!(taken + manager.stats().lost, balanced(&manager).dead_lettered);
        let ending = manager.shutdown(SECOND / 10).await.remove(&address).unwrap();
        assert_eq!((ending.written, ending.dead_lettered), (0, 1_000));
    });
}

#[test]
fn a_sink_for_each_message_is_bounded_while_the_peer_takes_nothing() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, _far) = dialed(config().queue_bytes(QUEUE)).await;
        a_sink_for_each_message(&manager, &address);
    });
}

/// What a flush that is not waited for cannot hand over stays in its sink.
#[test]
fn a_flush_hands_over_only_what_there_is_room_for() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let mut sinks: Vec<_> = (0..200).map(|_| manager.sink()).collect();
        for (n, sink) in sinks.iter_mut().enumerate() {
            assert_eq!(sink.send((address.clone(), one_kb())).now_or_never().is_some(), n == 0);
        }
        // One batch is being written, and another waits.
        assert!(balanced(&manager).held_bytes < 2 * (64 << 10));
        let reading = async {
            for _ in 0..200 {
                far.read_exact(&mut [0; 1004]).await.unwrap();
            }
        };
        let flushing = async {
            for sink in &mut sinks {
                sink.flush().await.unwrap();
            }
        };
        futures::join!(reading, flushing);
        assert_eq!(balanced(&manager).written, 200);
    });
}

#[test]
fn queue_bytes_below_a_hand_over_are_a_bound_too() {
    Sim::default().run(async {
        const QUEUE: usize = 4 << 10;
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(SECOND)).queue_bytes(QUEUE)).await;
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        let mut fed = 0;
        while sink.feed((address.clone(), one_kb())).now_or_never().is_some() {
            fed += 1;
        }
        assert!(balanced(&manager).held_bytes < 2 * QUEUE, "{:?}", balanced(&manager));
        // As much is in the sink.
        assert!((8..=10).contains(&fed), "{fed} messages");
        let mut writes: Vec<_> = (0..100).map(|_| Box::pin(manager.write(&address, one_kb()))).collect();
        assert!(writes.iter_mut().all(|write| write.now_or_never().is_none()));
        assert!(balanced(&manager).held_bytes < 2 * QUEUE, "{:?}", balanced(&manager));
    });
}

#[track_caller]
fn assert_not_sent(flushed: Result<(), Error>) {
    assert!(matches!(flushed, Err(Error::NotSent { message: None, .. })), "{flushed:?}");
}

/// The first is too old before the second is handed over, or after it; the second is written.
#[test]
fn a_flush_tells_of_a_message_that_grew_too_old_before_or_after_the_next_was_handed_over() {
    for pause in [SECOND / 2, SECOND * 2] {
        Sim::default().run(async {
            let config = config().message_ttl(SECOND).reconnect(every(SECOND / 10));
            let (manager, address, acceptor, far) = dialed(config.clone()).await;
            let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
            let mut letters = manager.dead_letters();
            drop((far, acceptor));
            testing::sleep(SECOND).await;
            let mut sink = manager.sink();
            assert!(sink.send((address.clone(), Bytes::from_static(b"1"))).now_or_never().is_none());
            testing::sleep(pause).await;
            assert!(sink.send((address.clone(), Bytes::from_static(b"2"))).now_or_never().is_none());
            assert_eq!(letters.next().await.unwrap().message, "1");
            let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
            let (mut far, _) = acceptor.accept(&config).await.unwrap();
            let mut frame = [0; 5];
            far.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame, [0, 0, 0, 1, b'2']);
            assert_not_sent(sink.flush().await);
            sink.flush().await.expect("it is told once");
        });
    }
}

/// The first is given up, the second is written by the next connection: the flush that comes after both tells.
#[test]
fn a_flush_tells_of_a_message_that_was_given_up_before_the_last_one_was_written() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config()).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        let mut letters = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        assert!(sink.send((address.clone(), Bytes::from_static(b"1"))).now_or_never().is_none());
        assert_eq!(letters.next().await.unwrap().message, "1");
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        sink.feed((address.clone(), Bytes::from_static(b"2"))).await.unwrap();
        let config = config();
        let (flushed, accepted) = futures::join!(sink.flush(), acceptor.accept(&config));
        assert_not_sent(flushed);
        let mut frame = [0; 5];
        accepted.unwrap().0.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame, [0, 0, 0, 1, b'2']);
        sink.flush().await.expect("it is told once");
    });
}

/// Both in one hand-over, which is cut: the first is with the kernel, the second is not.
#[test]
fn a_flush_tells_its_own_sink_alone() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, acceptor, mut far) = dialed(config()).await;
        let mut blocker = Box::pin(manager.write(&address, Bytes::from(vec![7; 2000])));
        assert!((&mut blocker).now_or_never().is_none());
        let (mut well, mut cut) = (manager.sink(), manager.sink());
        for sink in [&mut well, &mut cut] {
            for _ in 0..2 {
                sink.feed((address.clone(), Bytes::from(vec![7; 400]))).await.unwrap();
            }
            assert!(sink.flush().now_or_never().is_none());
        }
        far.read_exact(&mut [0; 2004]).await.unwrap();
        blocker.await.unwrap();
        testing::sleep(SECOND).await;
        // The kernel has two of the four, and a part of the third.
        drop((far, acceptor));
        let (well, cut) = futures::join!(well.flush(), cut.flush());
        well.expect("both are written");
        assert_not_sent(cut);
        assert_eq!((balanced(&manager).written, balanced(&manager).dead_lettered), (3, 2));
    });
}

/// Its sink has messages before it and after it, and both are written.
#[test]
fn a_flush_does_not_tell_of_what_came_in_between() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config().message_ttl(SECOND)).await;
        let mut sink = manager.sink();
        assert!(sink.send((address.clone(), Bytes::from(vec![7; 2000]))).now_or_never().is_none());
        let mut between = Box::pin(manager.write(&address, one_kb()));
        assert!((&mut between).now_or_never().is_none());
        testing::sleep(SECOND * 2).await;
        assert!(sink.send((address.clone(), one_kb())).now_or_never().is_none());
        far.read_exact(&mut [0; 2004 + 1004]).await.unwrap();
        between.await.unwrap_err();
        sink.flush().await.expect("both of its own are written");
    });
}

/// A sink that does not ask while others have their messages back, again and again.
#[test]
fn a_flush_tells_however_many_failures_came_after_its_own() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config()).await;
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let (mut late, mut untouched) = (manager.sink(), manager.sink());
        assert!(late.send((address.clone(), one_kb())).now_or_never().is_none());
        for _ in 0..1_000 {
            manager.write(&address, one_kb()).await.unwrap_err();
        }
        assert_not_sent(late.flush().await);
        untouched.flush().await.expect("nothing came through it");
    });
}

#[test]
fn a_flush_tells_of_what_came_back_before_its_address_was_closed_and_dialed_again() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(SECOND)).close_timeout(SECOND)).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        assert!(sink.send((address.clone(), one_kb())).now_or_never().is_none());
        let mut closing = Box::pin(manager.close(&address));
        assert!((&mut closing).now_or_never().is_none());
        // Not yet: it may still be delivered.
        let error = sink.feed((address.clone(), one_kb())).await.unwrap_err();
        assert!(matches!(error, Error::NotOpen { .. }), "{error:?}");
        assert!(sink.flush().now_or_never().is_none());
        closing.await.unwrap_err();
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        manager.dial(addr).await.unwrap();
        let (mut far, _) = acceptor.accept(&config()).await.unwrap();
        sink.feed((address.clone(), one_kb())).await.unwrap();
        assert_not_sent(sink.flush().await);
        far.read_exact(&mut [0; 1004]).await.unwrap();
        assert_eq!((balanced(&manager).written, balanced(&manager).dead_lettered), (1, 1));
    });
}

/// Two addresses are closed under one sink, one after the other: each is told.
#[test]
fn a_flush_tells_of_each_address_that_was_closed() {
    Sim::default().run(async {
        let manager = Manager::new(config());
        let mut sink = manager.sink();
        for _ in 0..2 {
            let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
            manager.dial(addr).await.unwrap();
            for _ in 0..70 {
                sink.start_send_unpin((addr.into(), one_kb())).unwrap();
            }
            drop((acceptor.accept(&config()).await, acceptor));
            // What was fed is to be delivered, and nobody takes it.
            manager.close(addr).await.unwrap_err();
            // It finds that out now.
            sink.feed((addr.into(), one_kb())).await.unwrap_err();
        }
        for _ in 0..2 {
            assert_not_sent(sink.flush().await);
        }
        sink.flush().await.unwrap();
    });
}

/// The last is delivered, one before it is not.
#[test]
fn a_close_tells_of_each_message_that_it_did_not_deliver() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config().message_ttl(SECOND)).await;
        let mut sink = manager.sink();
        sink.feed((address.clone(), Bytes::from(vec![7; 2000]))).await.unwrap();
        assert!(sink.flush().now_or_never().is_none());
        sink.feed((address.clone(), Bytes::from_static(b"too old"))).await.unwrap();
        assert!(sink.flush().now_or_never().is_none());
        testing::sleep(SECOND * 2).await;
        sink.feed((address.clone(), Bytes::from_static(b"new"))).await.unwrap();
        drop(sink);
        let reading = async {
            far.read_exact(&mut [0; 2004 + 7]).await.unwrap();
            drop(far);
        };
        let (closed, ()) = futures::join!(manager.close(&address), reading);
        let Err(Error::NotSent { source, .. }) = closed else { panic!("{closed:?}") };
        assert!(matches!(*source, Error::Timeout { what: Limit::MessageTtl, .. }), "{source:?}");
        assert_eq!((balanced(&manager).written, balanced(&manager).dead_lettered), (2, 1));
    });
}

/// The sink had a message for the old connection yet, which the close has delivered; it goes on, or is dropped.
#[test]
fn a_message_that_comes_after_its_address_was_dialed_again_goes_there() {
    for dropped in [false, true] {
        Sim::default().run(async {
            let (manager, address, acceptor, mut far) = dialed(config()).await;
            let mut letters = manager.dead_letters();
            let mut sink = manager.sink();
            sink.feed((address.clone(), Bytes::from_static(b"1"))).await.unwrap();
            let old = async {
                let mut frame = [0; 5];
                far.read_exact(&mut frame).await.unwrap();
                drop(far);
                frame
            };
            let (closed, frame) = futures::join!(manager.close(&address), old);
            closed.unwrap();
            assert_eq!(frame, [0, 0, 0, 1, b'1']);
            manager.dial(&address).await.unwrap();
            let (mut far, _) = acceptor.accept(&config()).await.unwrap();
            sink.feed((address.clone(), Bytes::from_static(b"2"))).await.unwrap();
            if !dropped {
                sink.flush().await.unwrap();
            }
            drop(sink);
            let mut frame = [0; 5];
            testing::within(Some(SECOND), far.read_exact(&mut frame)).await.expect("it is sent").unwrap();
            assert_eq!(frame, [0, 0, 0, 1, b'2']);
            assert_eq!((balanced(&manager).written, balanced(&manager).dead_lettered), (2, 0));
            assert!(letters.next().now_or_never().is_none());
        });
    }
}
