//! Routes with an address whose dial hangs, and those whose manager is shut down meanwhile.

use std::net::SocketAddr;
use std::pin::pin;

use bytes::Bytes;
use futures::future::ready;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{SECOND, every};
use super::routes_back::{A, B, first_to_a};
use crate::sim::testing::{self, Sim};
use crate::{Config, DeadLetters, Error, Listener, Manager, ManagerEvent, Outcome, Route, RouteSink};

fn config() -> Config {
    Config::new().dial_timeout(5 * SECOND).close_timeout(5 * SECOND)
}

fn message(number: u8) -> Bytes {
    Bytes::from(vec![number; 1000])
}

async fn feed(sink: &mut RouteSink, numbers: std::ops::Range<u8>) {
    for number in numbers {
        sink.feed(message(number)).await.unwrap();
    }
}

/// What came until now.
async fn received(listener: &mut Listener) -> Vec<u8> {
    let mut numbers = Vec::new();
    while let Some(message) = testing::within(Some(SECOND / 100), listener.next()).await {
        numbers.push(message.unwrap().1[0]);
    }
    numbers
}

fn letters_so_far(letters: &mut DeadLetters) -> Vec<(String, u8)> {
    let so_far = std::iter::from_fn(|| letters.next().now_or_never().flatten());
    so_far.map(|letter| (letter.address.to_string(), letter.message[0])).collect()
}

/// Nobody answers at the first address, which was dialed in vain once. The second is there.
async fn half_there() -> (Manager, Listener) {
    testing::black_hole(A.parse::<SocketAddr>().unwrap());
    let listener = Listener::bind(B, config()).await.unwrap();
    let manager = Manager::new(config());
    [A, B].iter().for_each(|address| manager.open(*address).unwrap());
    testing::sleep(6 * SECOND).await;
    assert!(manager.health(A).unwrap().is_down() && !manager.health(B).unwrap().is_down());
    (manager, listener)
}

#[test]
fn one_message_at_a_time_tries_an_address_whose_dial_hangs() {
    for route in first_to_a() {
        Sim::default().run(async {
            let (manager, mut listener) = half_there().await;
            let mut sink = manager.sink_to(route);
            feed(&mut sink, 0..100).await;
            testing::sleep(SECOND / 5).await;
            assert!(received(&mut listener).await.into_iter().eq(1..100), "they do not wait for the first");
            testing::sleep(5 * SECOND).await;
            assert_eq!(received(&mut listener).await, [0]);
            // It is left alone for as long as it took.
            testing::sleep(4 * SECOND).await;
            feed(&mut sink, 100..110).await;
            assert!(received(&mut listener).await.into_iter().eq(100..110));
            testing::sleep(SECOND).await;
            feed(&mut sink, 110..120).await;
            testing::sleep(SECOND / 5).await;
            assert!(received(&mut listener).await.into_iter().eq(111..120));
            testing::sleep(5 * SECOND).await;
            assert_eq!(received(&mut listener).await, [110]);
            // Now somebody is there.
            testing::sleep(6 * SECOND).await;
            testing::heal(A.parse().unwrap());
            let mut late = Listener::bind(A, config()).await.unwrap();
            let before = testing::elapsed();
            feed(&mut sink, 120..130).await;
            sink.flush().await.unwrap();
            assert!(testing::elapsed() - before < SECOND / 100, "nobody waits for longer than the dial takes");
            assert_eq!(received(&mut late).await[0], 120);
            assert_eq!(manager.stats().total.written, 130);
        });
    }
}

#[test]
fn a_broadcast_does_not_wait_for_a_dial_that_hangs() {
    Sim::default().run(async {
        let (manager, mut listener) = half_there().await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::broadcast([A, B]));
        feed(&mut sink, 0..200).await;
        testing::sleep(SECOND / 5).await;
        assert!(received(&mut listener).await.into_iter().eq(0..200));
        let at_once = letters_so_far(&mut letters);
        assert!(at_once.into_iter().eq((1..200).map(|number| (A.to_owned(), number))));
        sink.flush().await.expect("one of them takes all");
        assert_eq!(letters_so_far(&mut letters), [(A.to_owned(), 0)]);
        let total = manager.stats().total;
        assert_eq!((total.accepted, total.written, total.dead_lettered), (400, 200, 200));

        // With nobody else that is an error, at once.
        let mut alone = manager.sink_to(Route::broadcast([A]));
        testing::sleep(5 * SECOND).await;
        feed(&mut alone, 0..1).await;
        assert!(matches!(alone.flush().await, Err(Error::NotSent { .. })));
        feed(&mut alone, 1..2).await;
        let rests = testing::within(Some(SECOND / 100), alone.flush()).await.expect("it is told at once").unwrap_err();
        assert!(
            matches!(&rests, Error::NotSent { source, .. } if matches!(**source, Error::DialTimeout { .. })),
            "{rests:?}"
        );
    });
}

/// Another task closes the address when the manager is shut down, and has more time for it.
#[test]
fn a_broadcast_does_not_wait_for_an_address_that_is_closed_while_it_is_tried() {
    Sim::default().run(async {
        let (manager, mut listener) = half_there().await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::broadcast([A, B]));
        feed(&mut sink, 0..1).await;
        assert_eq!(received(&mut listener).await, [0]);
        let mut closing = pin!(manager.close(A));
        assert!(testing::within(Some(SECOND / 100), &mut closing).await.is_none(), "it is dialed still");
        feed(&mut sink, 1..5).await;
        assert_eq!(received(&mut listener).await, [1, 2, 3, 4]);
        assert_eq!(letters_so_far(&mut letters), [1, 2, 3, 4].map(|number| (A.to_owned(), number)));
        sink.flush().await.expect("one of them takes all");
        assert_eq!(letters_so_far(&mut letters), [(A.to_owned(), 0)]);
    });
}

#[test]
fn what_a_route_gets_back_behind_a_shutdown_is_a_letter() {
    Sim::default().run(async {
        let manager = Manager::new(config().reconnect(every(SECOND)));
        let letters = manager.dead_letters();
        manager.open(A).unwrap();
        let mut sink = manager.sink_to(Route::failover([A]));
        feed(&mut sink, 0..10).await;
        testing::sleep(SECOND).await;
        let shutdown = async {
            testing::sleep(SECOND / 100).await;
            manager.shutdown(SECOND).await;
        };
        let taken = async { testing::within(Some(20 * SECOND), letters.collect::<Vec<_>>()).await.expect("they end") };
        let (closed, _, taken) = futures::join!(manager.close(A), shutdown, taken);
        assert!(closed.is_err());
        assert!(
            taken.iter().map(|letter| (letter.message[0], letter.outcome)).eq((0..10).map(|n| (n, Outcome::Closed)))
        );
        assert_eq!(manager.stats().lost, 0);
    });
}

/// While a route hands over what it has accepted, to an address that is away and has no room.
#[test]
fn a_shutdown_that_has_begun_opens_nothing_and_ends_all_when_it_is_dropped() {
    Sim::default().run(async {
        let manager = Manager::new(config().reconnect(every(SECOND)).queue_bytes(3000));
        let mut letters = manager.dead_letters();
        manager.open(A).unwrap();
        let mut sink = manager.sink_to(Route::failover([A]));
        let mut fed = 0;
        while testing::within(Some(SECOND), feed(&mut sink, fed..fed + 1)).await.is_some() {
            fed += 1;
        }
        assert!((2..20).contains(&fed), "{fed}");
        let mut shutdown = manager.shutdown(60 * SECOND).boxed();
        assert!(shutdown.as_mut().now_or_never().is_none());
        assert!(matches!(manager.open(B), Err(Error::Closed { .. })));
        assert!(matches!(manager.dial(B).await, Err(Error::Closed { .. })));
        for sink in [&mut sink, &mut manager.sink_to(Route::failover([A]))] {
            assert!(matches!(sink.send(message(100)).await, Err(Error::Closed { message: Some(_) })));
        }
        assert_eq!(manager.addresses(), [A.into()]);
        drop(shutdown);
        let mut taken = Vec::new();
        while let Some(letter) = testing::within(Some(SECOND), letters.next()).await {
            taken.push(letter.expect("the manager goes on").message[0]);
        }
        assert!(taken.is_sorted() && !taken.is_empty(), "{taken:?}");
        // There is not room for all letters at once.
        assert_eq!(taken.len() as u64 + manager.stats().lost, u64::from(fed));
        assert_eq!(manager.addresses(), []);
    });
}

/// With nobody else, what comes while an address rests is given to it as before, all at once.
#[test]
fn messages_for_nobody_but_one_that_refuses_are_not_a_dial_each() {
    Sim::default().run(async {
        let manager = Manager::new(config());
        let mut letters = manager.dead_letters();
        manager.open(A).unwrap();
        testing::sleep(SECOND).await;
        let events = manager.events();
        let mut sink = manager.sink_to(Route::failover([A]));
        for round in 0..3 {
            feed(&mut sink, 0..100).await;
            assert!(sink.flush().await.is_err());
            assert_eq!(letters_so_far(&mut letters).len(), 100);
            testing::sleep(SECOND * round).await;
        }
        drop((sink, manager));
        let dials = events.filter(|event| ready(matches!(event, ManagerEvent::DialFailed { .. }))).count().await;
        assert!(dials < 20, "{dials} dials for 300 messages");
    });
}
