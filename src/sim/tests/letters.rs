//! Dead letters, in virtual time: whoever takes them may wait for the address that they come from, and one that they come
//! from waits for whoever takes them.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{SECOND, config, dialed, every};
use crate::sim::testing::Sim;
use crate::sim::testing::{self, Acceptor};
use crate::{Backoff, ManagerEvent, Outcome};

const QUEUE: usize = 16 << 10;
const MESSAGE: &[u8] = &[7; 1000];

/// It gives up after three attempts.
fn hasty() -> Backoff {
    Backoff::from_fn(|| [SECOND / 10; 2])
}

/// Whoever takes the letters sends them to the same address again, which is down, and is given messages by others, too.
fn failover_into_the_same_address(backoff: Option<Backoff>) {
    const MESSAGES: usize = 300;
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff).queue_bytes(QUEUE)).await;
        let addr = address.as_str().parse::<SocketAddr>().unwrap();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let (mut letters, mut sink, to) = (manager.dead_letters(), manager.sink(), address.clone());
        let _failover = testing::spawn(async move {
            while let Some(letter) = letters.next().await {
                // What is not sent comes again.
                let _ = sink.send((to.clone(), letter.message)).await;
            }
        });
        let (mut sink, to) = (manager.sink(), address.clone());
        let _producing = testing::spawn(async move {
            for _ in 0..MESSAGES {
                let _ = sink.send((to.clone(), Bytes::from_static(MESSAGE))).await;
            }
        });
        testing::sleep(1_000 * SECOND).await;
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        let receiving = async {
            let (mut far, _) = acceptor.accept(&config()).await.unwrap();
            for _ in 0..MESSAGES {
                far.read_exact(&mut [0; 1004]).await.unwrap();
            }
        };
        testing::within(Some(60 * SECOND), receiving).await.expect("all of them arrive");
        assert_eq!((manager.stats().lost, manager.stats().total.written), (0, MESSAGES as u64));
    });
}

#[test]
fn letters_may_be_sent_to_their_own_address_again() {
    failover_into_the_same_address(Some(hasty()));
    failover_into_the_same_address(None);
}

/// While letters are not taken, nothing else of their address comes back; and it is dialed all the same.
#[test]
fn an_address_whose_letters_are_not_taken_holds_on_to_the_next() {
    for backoff in [None, Some(hasty())] {
        Sim::default().run(async {
            let (manager, address, acceptor, far) = dialed(config().reconnect(backoff).queue_bytes(QUEUE)).await;
            let addr = address.as_str().parse::<SocketAddr>().unwrap();
            let mut letters = manager.dead_letters();
            drop((far, acceptor));
            testing::sleep(SECOND).await;
            let mut sinks: Vec<_> = (0..3).map(|_| manager.sink()).collect();
            for sink in &mut sinks {
                // More than the letters have room for.
                for _ in 0..30 {
                    sink.start_send_unpin((address.clone(), Bytes::from_static(MESSAGE))).unwrap();
                }
                assert!(sink.flush().now_or_never().is_none());
                testing::sleep(100 * SECOND).await;
            }
            let total = manager.stats().total;
            assert_eq!((total.dead_lettered, total.written), (30, 0));
            assert!(total.held >= 30, "{total:?}");
            let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
            let receiving = async {
                let (mut far, _) = acceptor.accept(&config()).await.unwrap();
                for _ in 0..60 {
                    far.read_exact(&mut [0; 1004]).await.unwrap();
                }
            };
            let flushing = async {
                sinks[0].flush().await.unwrap_err();
                sinks[1].flush().await.unwrap();
                sinks[2].flush().await.unwrap();
            };
            testing::within(Some(10 * SECOND), async { futures::join!(receiving, flushing) })
                .await
                .expect("it is dialed");
            for _ in 0..30 {
                letters.next().await.unwrap();
            }
            assert_eq!((manager.stats().lost, manager.stats().total.written), (0, 60));
        });
    }
}

/// The connection is up, and its messages grow too old: those whose letters are not taken wait, and are not sent.
#[test]
fn what_is_too_old_is_held_until_the_letters_before_it_are_taken() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let config = config().message_ttl(SECOND).queue_bytes(4 << 10).write_timeout(10 * SECOND);
        let (manager, address, _acceptor, mut far) = dialed(config).await;
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        for round in 0..3 {
            let mut sink = manager.sink();
            let blocker = [(address.clone(), Bytes::from(vec![7; 2000]))];
            let late = (0..10).map(|_| (address.clone(), Bytes::from_static(MESSAGE)));
            for message in blocker.into_iter().filter(|_| round < 2) {
                assert!(sink.send(message).now_or_never().is_none());
            }
            for message in late {
                sink.start_send_unpin(message).unwrap();
            }
            assert!(sink.flush().now_or_never().is_none());
            testing::sleep(2 * SECOND).await;
            if round < 2 {
                far.read_exact(&mut [0; 2004]).await.unwrap();
            }
            testing::sleep(100 * SECOND).await;
            let total = manager.stats().total;
            assert_eq!((total.written, total.dead_lettered, total.held), (2.min(round + 1), 10, 10 * round));
        }
        for _ in 0..30 {
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.outcome, letter.attempts), (Outcome::Expired, 0));
        }
        assert!(events.next().now_or_never().is_none(), "the peer did nothing wrong");
        manager.write(&address, Bytes::from_static(b"new")).await.unwrap();
        assert_eq!((manager.stats().total.written, manager.stats().total.held), (3, 0));
    });
}

/// The same while the address is down: each round grows too old.
#[test]
fn what_grows_too_old_while_its_address_is_down_waits_for_the_letters_before_it() {
    Sim::default().run(async {
        let config = config().message_ttl(SECOND).queue_bytes(QUEUE).reconnect(every(SECOND));
        let (manager, address, acceptor, far) = dialed(config).await;
        let mut letters = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sinks: Vec<_> = (0..3).map(|_| manager.sink()).collect();
        for (round, sink) in sinks.iter_mut().enumerate() {
            // There is no room for all of them among the letters.
            for _ in 0..20 {
                sink.start_send_unpin((address.clone(), Bytes::from_static(MESSAGE))).unwrap();
            }
            assert!(sink.flush().now_or_never().is_none());
            testing::sleep(100 * SECOND).await;
            let total = manager.stats().total;
            assert_eq!((total.dead_lettered, total.held), (20, 20 * round as u64), "it was accepted when it was fed");
        }
        let flushing = async {
            for sink in &mut sinks {
                sink.flush().await.unwrap_err();
            }
        };
        let taking = async {
            for _ in 0..60 {
                letters.next().await.unwrap();
            }
        };
        futures::join!(flushing, taking);
        assert_eq!((manager.stats().lost, manager.stats().total.dead_lettered), (0, 60));
    });
}

/// It was cut on a connection that broke. Letters before it are not taken, so it is held; and not given to the next connection.
#[test]
fn what_was_cut_and_has_grown_too_old_is_not_sent_again() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let config = config().message_ttl(SECOND).queue_bytes(4 << 10).reconnect(every(SECOND));
        let (manager, address, acceptor, mut far) = dialed(config.clone()).await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        assert!(sink.send((address.clone(), Bytes::from(vec![7; 2000]))).now_or_never().is_none());
        for _ in 0..10 {
            sink.start_send_unpin((address.clone(), Bytes::from_static(MESSAGE))).unwrap();
        }
        assert!(sink.flush().now_or_never().is_none());
        testing::sleep(2 * SECOND).await;
        far.read_exact(&mut [0; 2004]).await.unwrap();
        sink.flush().await.unwrap_err();
        assert!(sink.send((address.clone(), Bytes::from(vec![8; 2000]))).now_or_never().is_none());
        testing::sleep(2 * SECOND).await;
        far.read_exact(&mut [0; 1024]).await.unwrap();
        drop(far);
        let (mut far, _) = acceptor.accept(&config).await.unwrap();
        assert!(testing::within(Some(60 * SECOND), far.read(&mut [0; 1])).await.is_none(), "it is too old");
        for n in 0..11 {
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.message.len(), letter.outcome), (if n < 10 { 1000 } else { 2000 }, Outcome::Expired));
        }
        assert_eq!((manager.stats().total.written, manager.stats().total.dead_lettered), (1, 11));
    });
}

/// The task ends with letters on its hands, for which the close does not wait, and as many as there is room for are on their way already.
#[test]
fn letters_of_a_task_that_ends_go_on_in_the_background_or_are_counted() {
    Sim::default().run(async {
        let config = config().queue_bytes(4 << 10).close_timeout(SECOND);
        let mut counted = 0;
        let manager = crate::Manager::new(config.clone());
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        for _ in 0..2 {
            let (acceptor, addr) = Acceptor::bind(&super::outages::ANYWHERE.into()).await.unwrap();
            manager.dial(addr).await.unwrap();
            let far = acceptor.accept(&config).await.unwrap();
            drop((far, acceptor));
            testing::sleep(SECOND).await;
            let mut sink = manager.sink();
            for _ in 0..30 {
                sink.feed((addr.into(), Bytes::from_static(MESSAGE))).await.unwrap();
            }
            sink.flush().await.unwrap_err();
            manager.close(addr).await.unwrap();
        }
        while let Some(Some(event)) = events.next().now_or_never() {
            if let ManagerEvent::Lost { messages, .. } = event {
                counted += messages as u64;
            }
        }
        let mut taken = 0;
        while testing::within(Some(SECOND), letters.next()).await.is_some() {
            taken += 1;
        }
        // Those of the first are on their way, which leaves no place for the others.
        assert_eq!((taken, counted, manager.stats().lost), (30, 30, 30));
    });
}

/// Some were taken, some wait in it, and one more waits for room.
#[test]
fn letters_that_their_taker_leaves_behind_are_counted() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config().queue_bytes(4 << 10)).await;
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        for _ in 0..30 {
            sink.feed((address.clone(), Bytes::from_static(MESSAGE))).await.unwrap();
        }
        sink.flush().await.unwrap_err();
        for _ in 0..5 {
            letters.next().await.unwrap();
        }
        drop(letters);
        testing::sleep(SECOND).await;
        assert_eq!(manager.stats().lost, 25);
        let mut lost = Vec::new();
        while let Some(Some(event)) = events.next().now_or_never() {
            if let ManagerEvent::Lost { address: of, messages } = event {
                assert_eq!(of, address);
                lost.push(messages);
            }
        }
        assert_eq!(lost.iter().sum::<usize>(), 25);
        assert!(lost.len() <= 3, "one by one: {lost:?}");
        // Whoever asks next gets the next.
        let mut letters = manager.dead_letters();
        sink.send((address.clone(), Bytes::from_static(b"next"))).await.unwrap_err();
        assert_eq!(letters.next().await.unwrap().message, "next");
        drop(manager);
        drop(sink);
        assert!(letters.next().await.is_none());
    });
}

#[test]
fn a_letter_of_a_close_says_how_often_its_address_was_dialed() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) =
            dialed(config().reconnect(every(SECOND)).close_timeout(SECOND / 2)).await;
        let mut letters = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        assert!(manager.sink().send((address.clone(), Bytes::from_static(MESSAGE))).now_or_never().is_none());
        testing::sleep(SECOND * 7 / 2).await;
        manager.close(&address).await.unwrap_err();
        let letter = letters.next().await.unwrap();
        // At once, after each second, and when it was closed.
        assert_eq!((letter.outcome, letter.attempts), (Outcome::Closed, 5));
    });
}

/// The first is full, and nobody reads it.
#[test]
fn a_second_taker_of_dead_letters_gets_what_waits_for_room_in_the_first() {
    Sim::default().run(async {
        let config = config().queue_bytes(4 << 10).close_timeout(SECOND);
        let (manager, address, acceptor, far) = dialed(config).await;
        let mut first = manager.dead_letters();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let send = |from: u8| {
            let (mut sink, address) = (manager.sink(), address.clone());
            async move {
                for n in from..from + 15 {
                    sink.feed((address.clone(), Bytes::from(vec![n; 1000]))).await.unwrap();
                }
                sink.flush().await
            }
        };
        send(0).await.unwrap_err();
        let mut second = manager.dead_letters();
        let mut taken: Vec<u8> = Vec::new();
        for _ in 0..10 {
            let letter = testing::within(Some(SECOND), second.next()).await.expect("a letter");
            taken.push(letter.unwrap().message[0]);
        }
        // The first has what was in it, and ends.
        let had: Vec<u8> = first.by_ref().map(|letter| letter.message[0]).collect().await;
        for _ in had.len() + taken.len()..15 {
            taken.push(second.next().await.unwrap().message[0]);
        }
        assert_eq!(had.into_iter().chain(taken).collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
        assert!(first.next().await.is_none());
        // The same where they wait in the background, after a close.
        send(15).await.unwrap_err();
        let _ = manager.close(&address).await;
        let third = manager.dead_letters();
        let rest = testing::within(Some(SECOND), third.take(13).collect::<Vec<_>>()).await.expect("the rest");
        assert!(rest.iter().map(|letter| letter.message[0]).eq(17..30));
        assert_eq!(manager.stats().lost, 0);
    });
}

/// They wait in the background for whoever takes them, who does not.
#[test]
fn the_events_of_a_manager_end_with_it_though_its_letters_wait() {
    Sim::default().run(async {
        let config = config().queue_bytes(4 << 10).close_timeout(SECOND);
        let (manager, address, acceptor, far) = dialed(config).await;
        let (letters, events) = (manager.dead_letters(), manager.events());
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        for _ in 0..30 {
            sink.feed((address.clone(), Bytes::from_static(MESSAGE))).await.unwrap();
        }
        sink.flush().await.unwrap_err();
        manager.close(&address).await.unwrap();
        drop(manager);
        let mut ended = events.count();
        assert!(testing::within(Some(SECOND), &mut ended).await.is_none(), "the sink has it yet");
        drop(sink);
        testing::within(Some(SECOND), ended).await.expect("they end");
        assert_eq!(letters.count().await, 30);
    });
}
