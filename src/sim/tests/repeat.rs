//! The same seed makes the same run, to the last poll; without that no failure could be looked at twice.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, pending};
use futures::{SinkExt, StreamExt};

use super::audit::CAPACITY;
use crate::framed::Lent;
use crate::sim::testing;
use crate::sim::testing::{Cut, plan};
use crate::sim::testing::{Fault, Side};
use crate::sim::testing::{Sim, take_trace};
use crate::{Address, Config, Connection, Listener, Manager};

const SECOND: Duration = Duration::from_secs(1);

/// Three listeners, five producers on one manager, and a connection cut in each way.
fn trace(seed: Option<u64>) -> Vec<String> {
    Sim { capacity: CAPACITY, seed, traced: true }.run(async {
        for (connection, fault) in [Fault::Fin, Fault::Rst, Fault::Stall].into_iter().enumerate() {
            plan(Cut { connection, side: Side::Dialer, after: 5_000, fault });
        }
        let config = Config::new().frame_timeout(Duration::from_secs(1));
        let manager = Manager::new(config.clone());
        let mut addresses = Vec::new();
        let mut receiving = Vec::new();
        for _ in 0..3 {
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
            addresses.push(Address::from(listener.local_addr()));
            receiving.push(testing::spawn(async move { while listener.next().await.is_some() {} }));
            manager.dial(addresses.last().unwrap()).await.unwrap();
        }
        let producers = (0..5).map(|producer: u8| {
            let (manager, addresses) = (manager.clone(), addresses.clone());
            let mut task = testing::spawn(async move {
                for at in 0..60 {
                    let message = Bytes::from(vec![producer; 37 * at]);
                    manager.write(&addresses[at % 3], message).await.unwrap();
                }
            });
            async move { task.join().await }
        });
        join_all(producers).await;
        for address in &addresses {
            manager.close(address).await.unwrap();
        }
        take_trace()
    })
}

#[test]
fn the_same_seed_makes_the_same_run() {
    for seed in [None, Some(1), Some(2)] {
        let (once, again) = (trace(seed), trace(seed));
        let differ = once.iter().zip(&again).position(|(once, again)| once != again);
        assert_eq!((differ, once.len()), (None, again.len()));
        assert!(once.len() > 1_000, "{} things happened", once.len());
    }
}

#[test]
fn another_seed_makes_another_run() {
    assert_ne!(trace(None), trace(Some(1)));
    assert_ne!(trace(Some(1)), trace(Some(2)));
}

#[test]
fn a_run_that_cannot_go_on_says_so() {
    let run = || Sim { seed: Some(7), ..Sim::default() }.run(pending::<()>());
    let panic = std::panic::catch_unwind(run).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.starts_with("stalled after 0ns: ") && text.ends_with("the seed is 7"), "{text}");
}

/// A task that ticks for ever keeps the clock going, and nothing else.
#[test]
fn a_clock_that_others_keep_going_does_not_hide_that_main_waits_for_ever() {
    let run = || {
        Sim { seed: Some(7), ..Sim::default() }.run(async {
            let _ticking = testing::spawn(async {
                loop {
                    testing::sleep(SECOND).await;
                }
            });
            pending::<()>().await;
        })
    };
    let panic = std::panic::catch_unwind(run).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.starts_with("stalled after 1000000s: ") && text.ends_with("the seed is 7"), "{text}");
}

/// Kept here because it needs as many ticks as a test of a month has.
#[test]
fn main_may_wait_for_a_time_of_its_own_however_often_others_tick_meanwhile() {
    Sim::default().run(async {
        let _ticking = testing::spawn(async {
            loop {
                testing::sleep(SECOND).await;
            }
        });
        let far = 1_100_000 * SECOND;
        assert!(testing::within(Some(far), pending::<()>()).await.is_none());
        assert_eq!(testing::elapsed(), far);
    });
}

/// Of messages that need larger buffers than a read, which the process keeps for the next.
#[test]
fn what_the_process_did_before_makes_no_other_run() {
    let run = || {
        Sim { capacity: 1 << 20, seed: Some(1), traced: true }.run(async {
            let config = Config::new().max_message_size(1 << 20).inbox_bytes(1 << 20);
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
            let mut connection = Connection::dial(listener.local_addr(), config).await.unwrap();
            let mut sending = testing::spawn(async move {
                for len in [100_000, 300_000, 150_000, 500_000, 200_000] {
                    connection.send(Bytes::from(vec![7; len])).await.unwrap();
                }
            });
            for _ in 0..5 {
                listener.next().await.unwrap();
            }
            sending.join().await;
            take_trace()
        })
    };
    let once = run();
    // As a connection elsewhere in the process leaves it.
    let kept = (1..=8).map(|hundreds| Lent::growing(hundreds * 100_000, hundreds * 100_000));
    drop(kept.collect::<Vec<_>>());
    assert_eq!(once, run());
}
