//! Routes whose address comes back, or whose time is over, while they wait for another; and those whose sink is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};

use super::outages::SECOND;
use crate::sim::testing::{self, Sim};
use crate::{Backoff, Config, Listener, Manager, Outcome, Route, RouteSink};

pub(super) const A: &str = "127.0.0.1:5001";
pub(super) const B: &str = "127.0.0.1:5002";

fn config() -> Config {
    Config::new().close_timeout(SECOND).max_message_size(64 << 10).queue_bytes(1000)
}

/// The first outages are given up after two seconds, as many as there are addresses that nobody serves, and those after them never.
fn patient_later(hasty: usize) -> Config {
    let outages = Arc::new(AtomicUsize::new(0));
    config().reconnect(Backoff::from_fn(move || {
        let delays = if outages.fetch_add(1, Ordering::Relaxed) < hasty { 2 } else { usize::MAX };
        std::iter::repeat_n(SECOND, delays)
    }))
}

fn message() -> Bytes {
    Bytes::from_static(&[7; 1000])
}

/// Of each rule that gives a message to one address, and the first message to `A`.
pub(super) fn first_to_a() -> [Route; 3] {
    [Route::failover([A, B]), Route::round_robin([A, B]), Route::by_key(|_| 2u8, [A, B])]
}

/// Feeds until the route waits.
async fn fill(sink: &mut RouteSink) {
    for _ in 0..100 {
        if testing::within(Some(SECOND), sink.feed(message())).await.is_none() {
            return;
        }
    }
    panic!("it takes all");
}

/// Within so long.
async fn goes_on(sink: &mut RouteSink, limit: Duration) {
    testing::within(Some(limit), sink.feed(message())).await.expect("it goes to the one that is there").unwrap();
}

/// The first is down, and the second breaks: it is away, and its queue fills.
#[test]
fn a_route_that_waits_for_an_address_goes_on_with_another_that_comes_up() {
    for route in first_to_a() {
        Sim::default().run(async {
            let manager = Manager::new(patient_later(1));
            manager.open(A).unwrap();
            manager.open(B).unwrap();
            let b = Listener::bind(B, config()).await.unwrap();
            testing::sleep(5 * SECOND).await;
            assert!(manager.health(A).unwrap().is_down());
            drop(b);
            let mut sink = manager.sink_to(route);
            fill(&mut sink).await;
            let mut a = Listener::bind(A, config()).await.unwrap();
            let _taking = testing::spawn(async move { while a.next().await.is_some() {} });
            while manager.health(A).unwrap().is_down() {
                testing::sleep(SECOND / 10).await;
            }
            goes_on(&mut sink, 10 * SECOND).await;
        });
    }
}

#[test]
fn a_route_that_waits_for_an_address_goes_on_with_another_that_is_opened() {
    for dials in [false, true] {
        Sim::default().run(async {
            let manager = Manager::new(patient_later(0));
            manager.open(B).unwrap();
            let mut sink = manager.sink_to(Route::failover([A, B]));
            fill(&mut sink).await;
            let mut a = Listener::bind(A, config()).await.unwrap();
            let _taking = testing::spawn(async move { while a.next().await.is_some() {} });
            match dials {
                true => manager.dial(A).await.unwrap(),
                false => manager.open(A).unwrap(),
            }
            goes_on(&mut sink, 10 * SECOND).await;
        });
    }
}

/// Without `reconnect` an address that gave something back is left alone for a second. The other one takes nothing more meanwhile.
#[test]
fn a_route_that_waits_tries_an_address_again_that_was_left_alone() {
    Sim { capacity: 1000, ..Sim::default() }.run(async {
        let manager = Manager::new(config().write_timeout(None));
        manager.open(A).unwrap();
        manager.open(B).unwrap();
        let _b = Listener::bind(B, config().inbox_bytes(64 << 10)).await.unwrap();
        testing::sleep(SECOND).await;
        let mut sink = manager.sink_to(Route::failover([A, B]));
        let began = testing::elapsed();
        // The first comes back from the one that is down.
        while testing::within(Some(SECOND / 10), sink.feed(message())).await.is_some() {}
        assert!(testing::elapsed() - began < SECOND / 2);
        let mut a = Listener::bind(A, config()).await.unwrap();
        let _taking = testing::spawn(async move { while a.next().await.is_some() {} });
        goes_on(&mut sink, SECOND).await;
    });
}

/// They wait for room among the letters as those of any other route, as long as the manager lasts.
#[test]
fn a_route_whose_sink_is_gone_loses_no_letters() {
    Sim::default().run(async {
        let manager = Manager::new(config().reconnect(Backoff::from_fn(|| [SECOND; 2])).queue_bytes(2000));
        let mut letters = manager.dead_letters();
        manager.open(A).unwrap();
        let mut sink = manager.sink_to(Route::failover([A]));
        for number in 0..10 {
            sink.feed(Bytes::from(vec![number; 100])).await.unwrap();
        }
        drop(sink);
        testing::sleep(10 * SECOND).await;
        for number in 0..10 {
            let letter = testing::within(Some(SECOND), letters.next()).await.expect("none is lost").unwrap();
            assert_eq!((letter.message[0], letter.outcome), (number, Outcome::GaveUp));
        }
        assert_eq!(manager.stats().lost, 0);
    });
}
