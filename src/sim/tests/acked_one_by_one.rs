//! Acknowledged sessions: messages that the program acknowledges one by one.

use std::time::Duration;

use futures::{SinkExt, StreamExt};

use super::number;
use crate::sim::testing::{self, Sim};
use crate::{Address, Bytes, Config, Connection, Listener, Manager, Outcome, Session};

const SECOND: Duration = Duration::from_secs(1);

fn config() -> Config {
    Config::new().session(Session::new())
}

fn message(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

/// What is acknowledged one by one is put together before the session is told: whoever asks finds it told.
#[test]
fn what_is_acknowledged_one_by_one_is_told_in_time() {
    const MESSAGES: u32 = 100;
    Sim::default().run(async {
        let mut deliveries = Listener::bind("127.0.0.1:0", config()).await.unwrap().deliveries();
        let address = Address::from(deliveries.local_addr());
        let manager = Manager::new(config());
        let mut letters = manager.dead_letters();
        manager.dial(&address).await.unwrap();
        let mut sink = manager.sink();
        for n in 0..MESSAGES {
            sink.feed((address.clone(), message(n))).await.unwrap();
        }
        sink.flush().await.unwrap();
        let acked = async |acked: u64| {
            let is_told = async {
                while manager.stats().total.acked != acked {
                    testing::sleep(SECOND / 1000).await;
                }
            };
            assert!(testing::within(Some(SECOND), is_told).await.is_some(), "{:?}", manager.stats().total);
        };
        // The first is told at once. From the second on an ACK is waited for, and those behind it are put together.
        deliveries.next().await.unwrap().ack();
        acked(1).await;
        let mut kept = Vec::new();
        for n in 1..MESSAGES {
            let delivery = deliveries.next().await.unwrap();
            assert_eq!(number(delivery.message()), n);
            if n % 40 == 39 { kept.push(delivery) } else { delivery.ack() }
        }
        assert_eq!(deliveries.stats().untaken, u64::from(MESSAGES - 39), "all from the first on that is kept");
        acked(39).await;
        let [first, second] = kept.try_into().unwrap();
        first.refuse();
        acked(39 + 39).await;
        second.ack();
        assert!(testing::within(Some(SECOND), sink.barrier()).await.unwrap().is_err(), "one came back");
        let letter = letters.next().await.unwrap();
        assert_eq!((number(&letter.message), letter.outcome), (39, Outcome::Refused));
        assert_eq!((manager.stats().total.acked, deliveries.stats().untaken), (u64::from(MESSAGES - 1), 0));
    });
}

/// A flush tells a loss, and what is lost later of what was in flight then is another.
#[test]
fn a_barrier_tells_what_came_back_after_a_flush_has_told_of_another() {
    for dials in [false, true] {
        Sim::default().run(async {
            let mut deliveries = Listener::bind("127.0.0.1:0", config()).await.unwrap().deliveries();
            let address = Address::from(deliveries.local_addr());
            let manager = Manager::new(config());
            let refused = async |count: usize, came: &mut dyn FnMut() -> usize| {
                let mut all = 0;
                let are = async {
                    while all < count {
                        all += came();
                        testing::sleep(SECOND / 1000).await;
                    }
                };
                assert!(testing::within(Some(SECOND), are).await.is_some());
            };
            if dials {
                let mut connection = Connection::dial(&address, config()).await.unwrap();
                connection.feed(message(0)).await.unwrap();
                connection.feed(message(1)).await.unwrap();
                connection.flush().await.unwrap();
                deliveries.next().await.unwrap().refuse();
                refused(1, &mut || connection.take_in_doubt().len() + connection.take_unsent().len()).await;
                assert!(connection.flush().await.is_err());
                deliveries.next().await.unwrap().refuse();
                assert!(connection.barrier().await.is_err());
                assert!(connection.close().await.is_ok(), "it is told once");
            } else {
                let mut letters = manager.dead_letters();
                manager.dial(&address).await.unwrap();
                let mut sink = manager.sink();
                sink.feed((address.clone(), message(0))).await.unwrap();
                sink.feed((address.clone(), message(1))).await.unwrap();
                sink.flush().await.unwrap();
                deliveries.next().await.unwrap().refuse();
                assert_eq!(letters.next().await.unwrap().message, message(0));
                assert!(sink.flush().await.is_err());
                deliveries.next().await.unwrap().refuse();
                assert!(sink.barrier().await.is_err());
                assert!(sink.flush().await.is_ok(), "it is told once");
            }
        });
    }
}
