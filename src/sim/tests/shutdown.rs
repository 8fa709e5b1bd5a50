//! The end of a manager, and what comes back then: whoever takes it sends it elsewhere, as long as there is somewhere.

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{SECOND, every};
use crate::sim::testing::{self, Sim};
use crate::{Address, Config, Error, Listener, Manager, Outcome, Route};

const PRIMARY: &str = "127.0.0.1:5001";
const SPARE: &str = "127.0.0.1:5002";

/// Of the primary nobody ever hears; the spare is there.
async fn manager(config: Config) -> (Manager, Listener) {
    let manager = Manager::new(config);
    manager.open(PRIMARY).unwrap();
    let spare = Listener::bind(SPARE, Config::new()).await.unwrap();
    manager.dial(SPARE).await.unwrap();
    (manager, spare)
}

fn config() -> Config {
    Config::new().reconnect(every(SECOND))
}

async fn feed(manager: &Manager) {
    let mut sink = manager.sink();
    for number in 0..10 {
        sink.feed((PRIMARY.into(), Bytes::from(vec![number]))).await.unwrap();
    }
    assert!(sink.flush().now_or_never().is_none());
}

async fn numbers(listener: Listener) -> Vec<u8> {
    listener.map(|(_, message)| message[0]).collect().await
}

#[test]
fn after_a_shutdown_the_letters_end_behind_the_last() {
    Sim::default().run(async {
        let (manager, _spare) = manager(config()).await;
        let letters = manager.dead_letters();
        feed(&manager).await;
        manager.shutdown(SECOND).await;
        // The sinks and the manager are still there.
        let letters = testing::within(Some(SECOND), letters.collect::<Vec<_>>()).await.expect("they end");
        assert!(letters.iter().map(|letter| letter.message[0]).eq(0..10));
        assert!(letters.iter().all(|letter| letter.outcome == Outcome::Closed));
        assert!(manager.dead_letters().next().await.is_none());
    });
}

/// There is room for one of them, and the rest is on its way when the shutdown is over.
#[test]
fn letters_that_wait_for_room_come_before_the_end() {
    Sim::default().run(async {
        let (manager, _spare) = manager(config().queue_bytes(900)).await;
        let letters = manager.dead_letters();
        feed(&manager).await;
        manager.shutdown(SECOND).await;
        assert_eq!(letters.collect::<Vec<_>>().await.len(), 10);
        assert_eq!(manager.stats().lost, 0);
    });
}

#[test]
fn in_order_the_letters_of_the_first_still_go_to_the_last() {
    Sim::default().run(async {
        let (manager, spare) = manager(config()).await;
        let (mut letters, mut sink) = (manager.dead_letters(), manager.weak_sink());
        let routing = testing::spawn(async move {
            while let Some(letter) = letters.next().await {
                testing::sleep(SECOND / 100).await;
                sink.send((SPARE.into(), letter.message)).await.unwrap();
            }
        });
        feed(&manager).await;
        let closer = spare.closer();
        let closing = async {
            let endings = manager.shutdown_in_order([PRIMARY, "10.0.0.9:1"], 3 * SECOND).await;
            closer.close().await.unwrap();
            endings
        };
        let (endings, numbers) = futures::join!(closing, numbers(spare));
        assert!(numbers.into_iter().eq(0..10));
        let [primary, spare] = [PRIMARY, SPARE].map(|address| endings[&Address::from(address)]);
        assert_eq!((primary.dead_lettered, spare.written, spare.dead_lettered), (10, 10, 0));
        // Its stream has ended, and so has it.
        let mut routing = routing;
        testing::within(Some(SECOND), routing.join()).await.expect("it ends");
    });
}

/// Nobody asks for letters, or takes none of them: the deadline is for all of it.
#[test]
fn in_order_takes_no_longer_than_the_deadline() {
    Sim::default().run(async {
        for takes in [false, true] {
            let (manager, spare) = manager(config()).await;
            let letters = takes.then(|| manager.dead_letters());
            feed(&manager).await;
            let began = testing::elapsed();
            let closer = spare.closer();
            let (endings, closed) = futures::join!(manager.shutdown_in_order([PRIMARY], 3 * SECOND), closer.close());
            closed.unwrap();
            assert_eq!((endings.len(), testing::elapsed() - began <= 4 * SECOND), (2, true));
            drop(letters);
        }
    });
}

#[test]
fn in_order_a_route_gives_to_the_spare_what_the_first_had() {
    Sim::default().run(async {
        let (manager, spare) = manager(config()).await;
        let letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::failover([PRIMARY, SPARE]));
        for number in 0..10 {
            sink.feed(Bytes::from(vec![number])).await.unwrap();
        }
        let closer = spare.closer();
        let closing = async {
            let taken = letters.collect::<Vec<_>>();
            let (endings, letters) = futures::join!(manager.shutdown_in_order([PRIMARY], 5 * SECOND), taken);
            closer.close().await.unwrap();
            assert!(letters.is_empty());
            endings
        };
        let (endings, numbers) = futures::join!(closing, numbers(spare));
        assert!(numbers.into_iter().eq(0..10));
        assert_eq!(endings[&Address::from(SPARE)].written, 10);
        sink.flush().await.unwrap();
    });
}

#[test]
fn a_shutdown_makes_letters_of_what_is_in_a_route() {
    Sim::default().run(async {
        let (manager, spare) = manager(config()).await;
        let letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::failover([PRIMARY]));
        for number in 0..10 {
            sink.feed(Bytes::from(vec![number])).await.unwrap();
        }
        manager.shutdown(SECOND).await;
        drop(spare);
        let letters: Vec<_> = letters.collect().await;
        assert!(letters.iter().map(|letter| letter.message[0]).eq(0..10));
        assert!(sink.flush().await.is_err());
    });
}

#[test]
fn a_weak_sink_does_not_keep_the_manager() {
    Sim::default().run(async {
        let (manager, mut spare) = manager(config()).await;
        let (mut letters, mut sink) = (manager.dead_letters(), manager.weak_sink());
        sink.send((SPARE.into(), Bytes::from_static(b"early"))).await.unwrap();
        let mut events = manager.events();
        drop(manager);
        assert!(letters.next().await.is_none(), "no more come");
        while events.next().await.is_some() {}
        let late = sink.send((SPARE.into(), Bytes::from_static(b"late"))).await;
        assert!(matches!(late, Err(Error::NotOpen { .. }) | Err(Error::NotSent { .. })), "{late:?}");
        assert_eq!(spare.next().await.unwrap().1, "early");
    });
}
