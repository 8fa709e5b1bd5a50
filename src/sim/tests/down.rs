//! An address that was given up is known to be down, until it is dialed with success.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{SECOND, config, dialed, every};
use crate::observe::Events;
use crate::sim::testing::{self, Acceptor, Sim, elapsed};
use crate::{Address, Backoff, Error, Health, Manager, ManagerEvent, Outcome, Session};

fn message() -> Bytes {
    Bytes::from_static(b"message")
}

/// Without a peer, since now.
async fn orphaned(backoff: Backoff) -> (Manager, Address) {
    let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
    drop((acceptor, far));
    testing::sleep(10 * SECOND).await;
    (manager, address)
}

/// When each of the next attempts failed, and what else was told.
async fn failures(events: &mut Events<ManagerEvent>, failures: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    while times.len() < failures {
        if let ManagerEvent::DialFailed { .. } = events.next().await.unwrap() {
            times.push(elapsed());
        }
    }
    times
}

fn gaps(times: &[Duration]) -> Vec<Duration> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

/// As an exponential backoff, without its jitter.
fn doubling() -> Backoff {
    let delays = || std::iter::successors(Some(SECOND), |delay| Some((*delay * 2).min(8 * SECOND)));
    Backoff::from_fn(delays).max_elapsed(10 * SECOND)
}

#[test]
fn four_writes_in_a_row_cost_the_time_of_the_retries_once() {
    Sim::default().run(async {
        let (manager, address) = orphaned(doubling()).await;
        for n in 0..4 {
            let began = elapsed();
            let written = manager.write(&address, message()).await;
            let Err(Error::NotSent { message: Some(unsent), source, .. }) = written else { panic!("{written:?}") };
            assert_eq!(unsent.into_inner(), message());
            assert!(matches!(*source, Error::Dial { .. }), "the last error: {source:?}");
            assert_eq!((elapsed() - began).is_zero(), n > 0, "{n}");
        }
        assert_eq!(elapsed(), 10 * SECOND + 7 * SECOND);
    });
}

#[test]
fn what_a_sink_sends_then_is_a_letter_at_once_and_so_is_what_was_accepted_before() {
    Sim::default().run(async {
        let (manager, address) = orphaned(doubling()).await;
        let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
        for n in 0..4 {
            let sent = sink.send((address.clone(), message())).await;
            assert!(matches!(sent, Err(Error::NotSent { .. })), "{sent:?}");
            let letter = letters.next().now_or_never().expect("it is there").unwrap();
            assert_eq!((letter.outcome, letter.attempts), (Outcome::GaveUp, 4), "{n}");
        }
        let total = manager.stats().total;
        assert_eq!((total.accepted, total.dead_lettered, total.held), (4, 4, 0));
        assert_eq!(elapsed(), 17 * SECOND);
    });
}

#[test]
fn it_is_dialed_by_the_backoff_and_then_at_its_longest_delay_until_it_is_closed() {
    Sim::default().run(async {
        let (manager, address) = orphaned(doubling()).await;
        let mut events = manager.events();
        let write = manager.write(&address, message());
        let (written, times) = futures::join!(write, failures(&mut events, 10));
        written.unwrap_err();
        assert_eq!(gaps(&times), [1, 2, 4, 8, 8, 8, 8, 8, 8].map(|s| s * SECOND));
        manager.close(&address).await.unwrap();
        testing::sleep(100 * SECOND).await;
        assert!(events.next().now_or_never().is_none(), "it is forgotten");
        assert!(manager.health(&address).is_none());
    });
}

#[test]
fn where_the_backoff_has_no_more_delays_the_longest_goes_on() {
    for (backoff, expected) in [
        (Backoff::from_fn(|| [SECOND, 3 * SECOND, 2 * SECOND]), [1, 3, 2, 3, 3, 3]),
        (Backoff::from_fn(|| [Duration::ZERO; 0]), [1; 6]),
    ] {
        Sim::default().run(async {
            let (manager, address) = orphaned(backoff).await;
            let mut events = manager.events();
            let write = manager.write(&address, message());
            let (written, times) = futures::join!(write, failures(&mut events, 7));
            written.unwrap_err();
            assert_eq!(gaps(&times), expected.map(|s| s * SECOND));
        });
    }
}

#[test]
fn both_turns_are_told_once_and_health_says_when_it_is_dialed_next() {
    Sim::default().run(async {
        let (manager, address) = orphaned(doubling()).await;
        let addr = address.as_str().parse::<SocketAddr>().unwrap();
        let Some(Health::Away { since }) = manager.health(&address) else { panic!() };
        assert_eq!(testing::now() - since, 10 * SECOND);
        let mut events = manager.events();
        manager.write(&address, message()).await.unwrap_err();
        let (gave_up, mut last) = (testing::now(), testing::now());
        testing::sleep(SECOND / 2).await;
        for delay in [8, 8, 8] {
            let Some(Health::Down { since, error, next_attempt: Some(next), .. }) = manager.health(&address) else {
                panic!()
            };
            assert_eq!((since, next - last), (gave_up, delay * SECOND));
            assert!(matches!(*error, Error::Dial { .. }));
            testing::sleep(delay * SECOND).await;
            last = next;
        }
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        let (mut far, _) = acceptor.accept(&config()).await.unwrap();
        testing::sleep(SECOND).await;
        assert!(matches!(manager.health(&address), Some(Health::Up)));
        manager.write(&address, message()).await.unwrap();
        far.read_exact(&mut [0; 11]).await.unwrap();
        let told: Vec<_> = std::iter::from_fn(|| events.next().now_or_never().flatten()).collect();
        let turns: Vec<_> = told.iter().filter(|event| !matches!(event, ManagerEvent::DialFailed { .. })).collect();
        let [ManagerEvent::Down { error, .. }, ManagerEvent::Opened { .. }, ManagerEvent::Up { .. }] = turns[..] else {
            panic!("{turns:?}")
        };
        assert!(matches!(**error, Error::Dial { .. }));
        assert_eq!(told.len(), 3 + 4 + 3);

        // The next outage is another one.
        drop((acceptor, far));
        testing::sleep(10 * SECOND).await;
        let began = elapsed();
        manager.write(&address, message()).await.unwrap_err();
        assert_eq!(elapsed() - began, 7 * SECOND);
    });
}

#[test]
fn a_peer_that_closes_at_once_has_the_whole_backoff_each_time() {
    Sim::default().run(async {
        let (manager, address) = orphaned(doubling()).await;
        let addr = address.as_str().parse::<SocketAddr>().unwrap();
        manager.write(&address, message()).await.unwrap_err();
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        drop(acceptor.accept(&config()).await.unwrap());
        drop(acceptor);
        testing::sleep(SECOND).await;
        assert!(matches!(manager.health(&address), Some(Health::Away { .. })));
        let began = elapsed();
        manager.write(&address, message()).await.unwrap_err();
        assert_eq!(elapsed() - began, 7 * SECOND);
    });
}

#[test]
fn a_session_that_was_given_up_is_begun_anew_in_the_background() {
    Sim::default().run(async {
        let here =
            || config().max_message_size(4096).session(Session::new()).reconnect(Backoff::from_fn(|| [SECOND; 2]));
        let listener = crate::Listener::bind("127.0.0.1:5031", here()).await.unwrap();
        let manager = Manager::new(here());
        manager.dial("127.0.0.1:5031").await.unwrap();
        drop(listener);
        testing::sleep(10 * SECOND).await;
        manager.write("127.0.0.1:5031", message()).await.unwrap_err();
        assert!(manager.health("127.0.0.1:5031").unwrap().is_down());
        let mut listener = crate::Listener::bind("127.0.0.1:5031", here()).await.unwrap();
        testing::sleep(2 * SECOND).await;
        assert!(matches!(manager.health("127.0.0.1:5031"), Some(Health::Up)));
        manager.sink().send(("127.0.0.1:5031".into(), message())).await.unwrap();
        assert_eq!(listener.next().await.unwrap().1, message());
        assert_eq!(manager.stats().total.sessions, 2);
    });
}

/// What was fed is accepted by the close, and comes back at once: there is nothing left to dial for.
#[test]
fn a_close_does_not_wait_for_the_next_attempt_where_something_was_fed() {
    Sim::default().run(async {
        let (manager, address) = orphaned(Backoff::from_fn(|| [30 * SECOND])).await;
        let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
        assert!(matches!(manager.write(&address, message()).await, Err(Error::NotSent { .. })));
        testing::sleep(SECOND).await;
        sink.feed((address.clone(), message())).await.unwrap();
        let began = elapsed();
        let closed = manager.close(&address).await;
        assert!(matches!(closed, Err(Error::NotSent { .. })), "{closed:?}");
        assert_eq!(elapsed(), began);
        assert_eq!(letters.next().now_or_never().expect("it is there").unwrap().outcome, Outcome::GaveUp);
    });
}

/// The same where what is left grows too old while the close waits.
#[test]
fn a_close_does_not_wait_for_the_next_attempt_where_all_has_expired() {
    Sim::default().run(async {
        let config = config().reconnect(every(30 * SECOND)).message_ttl(4 * SECOND).close_timeout(20 * SECOND);
        let (manager, address, acceptor, far) = dialed(config).await;
        drop((acceptor, far));
        let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
        sink.feed((address.clone(), message())).await.unwrap();
        let began = elapsed();
        let closed = manager.close(&address).await;
        assert!(matches!(closed, Err(Error::NotSent { .. })), "{closed:?}");
        assert!(elapsed() - began < 5 * SECOND, "{:?}", elapsed() - began);
        assert_eq!(letters.next().now_or_never().expect("it is there").unwrap().outcome, Outcome::Expired);
    });
}
