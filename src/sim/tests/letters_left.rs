//! Dead letters that nobody takes while their address goes on, is closed, or was closed: they are bounded, and none is forgotten.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::SECOND;
use crate::sim::testing::{self, Sim};
use crate::{Backoff, Config, DeadLetters, Listener, Manager, Outcome, Session};

const A: &str = "127.0.0.1:5001";
/// There is room for one letter.
const ONE: usize = 900;

fn config() -> Config {
    Config::new().close_timeout(10 * SECOND)
}

fn message(n: u8) -> Bytes {
    Bytes::from(vec![n; 100])
}

/// A listener whose program refuses each message, and a manager that has dialed it in a session.
async fn refused(config: Config) -> (Manager, testing::Task) {
    let mut deliveries = Listener::bind(A, Config::new().session(Session::new())).await.unwrap().deliveries();
    let refusing = testing::spawn(async move {
        while let Some(delivery) = deliveries.next().await {
            delivery.refuse();
        }
    });
    let manager = Manager::new(config.session(Session::new()));
    manager.dial(A).await.unwrap();
    (manager, refusing)
}

/// All letters until the stream ends.
async fn all(letters: DeadLetters) -> Vec<u8> {
    let taken = letters.map(|letter| {
        assert_eq!(letter.outcome, Outcome::Refused);
        letter.message[0]
    });
    testing::within(Some(SECOND), taken.collect()).await.expect("they end")
}

#[test]
fn refused_messages_whose_letters_wait_are_letters_or_counted_when_their_address_is_closed() {
    for queue_bytes in [ONE, 2 * ONE, 1 << 20] {
        Sim::default().run(async {
            let (manager, _refusing) = refused(config().queue_bytes(queue_bytes)).await;
            let (letters, mut sink) = (manager.dead_letters(), manager.sink());
            for n in 0..5 {
                sink.feed((A.into(), message(n))).await.unwrap();
                testing::sleep(SECOND / 100).await;
            }
            let _ = manager.close(A).await;
            manager.shutdown(SECOND).await;
            let (taken, total) = (all(letters).await, manager.stats().total);
            assert_eq!((total.accepted, total.dead_lettered), (5, 5));
            assert_eq!(taken.len() as u64 + manager.stats().lost, 5, "{taken:?}");
            assert!(taken.is_sorted(), "{taken:?}");
            if queue_bytes > 2 * ONE {
                assert_eq!(taken, [0, 1, 2, 3, 4]);
            }
        });
    }
}

#[test]
fn a_sink_waits_while_as_much_was_refused_as_its_queue_holds_and_goes_on_when_letters_are_taken() {
    const QUEUE: usize = 8 << 10;
    const LEN: usize = 2000;
    /// In the stream of letters, on their way there, and twice where the next wait: all that is held may come back at once.
    const MOST: u64 = 4 * (QUEUE / LEN + 1) as u64;
    Sim::default().run(async {
        let (manager, _refusing) = refused(config().queue_bytes(QUEUE)).await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        let mut taken = 0;
        for round in 0..3 {
            for n in 0.. {
                let sent = testing::within(Some(SECOND), sink.send((A.into(), Bytes::from(vec![n; LEN])))).await;
                if sent.is_none() {
                    break;
                }
                assert!(n < 100, "it is bounded");
            }
            let total = manager.stats().total;
            assert!(total.dead_lettered - taken <= MOST, "{round}: {total:?}");
            // All that was sent is acknowledged, and the connection stands.
            assert_eq!(
                (total.accepted - total.dead_lettered, total.held, total.reconnects),
                (1, 1, 0),
                "{round}: {total:?}"
            );
            while testing::within(Some(SECOND), letters.next()).await.is_some() {
                taken += 1;
            }
            assert_eq!(manager.stats().total.dead_lettered, taken);
        }
        assert_eq!(manager.stats().lost, 0);
    });
}

/// The letters of an outage before fill the stream, and the one that waits in front of it is still there.
#[test]
fn a_close_of_an_address_that_is_up_again_does_not_wait_for_its_earlier_letters() {
    for session in [None, Some(Session::new())] {
        for shuts_down in [false, true] {
            Sim::default().run(async {
                let config = config().session(session.clone());
                let backoff = Backoff::from_fn(|| [SECOND; 2]);
                let manager = Manager::new(config.clone().reconnect(backoff).queue_bytes(ONE));
                let mut letters = manager.dead_letters();
                manager.open(A).unwrap();
                let mut sink = manager.sink();
                for n in 0..3 {
                    sink.feed((A.into(), message(n))).await.unwrap();
                }
                testing::sleep(5 * SECOND).await;
                assert!(manager.health(A).unwrap().is_down());
                let mut listener = Listener::bind(A, config).await.unwrap();
                testing::sleep(2 * SECOND).await;
                assert!(!manager.health(A).unwrap().is_down());
                sink.feed((A.into(), message(3))).await.unwrap();
                let taking = async {
                    assert_eq!(listener.next().await.unwrap().1[0], 3);
                    listener.close().await.unwrap();
                    assert!(listener.next().await.is_none());
                };
                let closing = async {
                    let began = testing::elapsed();
                    if shuts_down {
                        let ending = manager.shutdown(10 * SECOND).await[&A.into()];
                        assert_eq!((ending.written, ending.dead_lettered, ending.cut), (1, 3, false));
                    } else {
                        manager.close(A).await.unwrap();
                    }
                    assert!(testing::elapsed() - began < SECOND, "{:?}", testing::elapsed() - began);
                };
                futures::join!(taking, closing);
                for n in 0..3 {
                    let letter = letters.next().await.unwrap();
                    assert_eq!((letter.message[0], letter.outcome), (n, Outcome::GaveUp));
                }
                assert_eq!(manager.stats().lost, 0);
            });
        }
    }
}

#[test]
fn the_letters_end_with_a_shutdown_although_an_address_is_still_being_dialed() {
    Sim::default().run(async {
        let manager = Manager::new(config());
        testing::black_hole(A.parse::<SocketAddr>().unwrap());
        let mut letters = manager.dead_letters();
        let dialing = manager.clone();
        let _dialing = testing::spawn(async move { drop(dialing.dial(A).await) });
        testing::sleep(SECOND).await;
        manager.shutdown(SECOND).await;
        assert!(matches!(testing::within(Some(60 * SECOND), letters.next()).await, Some(None)));
        assert!(manager.dead_letters().next().now_or_never().is_some_and(|letter| letter.is_none()));
    });
}
