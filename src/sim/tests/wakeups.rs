//! Somebody must go on: what nobody waits for happens all the same.

use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncWriteExt;
use futures::{SinkExt, StreamExt};

use super::outages::{SECOND, config, dialed, every};
use crate::observe::Events;
use crate::sim::testing;
use crate::sim::testing::Sim;
use crate::{ManagerEvent, Outcome};

/// Waits for an event that is asked for, as long as it may take at the most.
async fn event(events: &mut Events<ManagerEvent>, what: &str, is_it: fn(&ManagerEvent) -> bool) {
    let found = async { while !is_it(&events.next().await.expect("the manager lives")) {} };
    testing::within(Some(SECOND), found).await.unwrap_or_else(|| panic!("no {what} within a second"));
}

/// Replies that nobody wants are read some at a time. The end lies behind more than that.
#[test]
fn the_end_behind_many_replies_is_noticed_though_nothing_is_written() {
    for kib in [1, 15, 16, 17, 20, 32, 33, 60] {
        Sim::default().run(async {
            let (manager, _, _acceptor, mut far) = dialed(config()).await;
            let mut events = manager.events();
            far.write_all(&vec![7; kib << 10]).await.unwrap();
            drop(far);
            event(&mut events, "Broken", |event| matches!(event, ManagerEvent::Broken { error: None, .. })).await;
        });
    }
}

/// The sink hands a batch over because it is full, and nobody flushes it.
#[test]
fn a_connection_is_opened_again_for_a_batch_that_nobody_flushes() {
    for config in [config().linger(None), config().linger(None).reconnect(every(Duration::from_millis(1)))] {
        Sim::default().run(async {
            let (manager, address, acceptor, far) = dialed(config).await;
            let mut events = manager.events();
            drop(far);
            event(&mut events, "Broken", |event| matches!(event, ManagerEvent::Broken { .. })).await;
            let mut sink = manager.sink();
            for _ in 0..62 {
                sink.feed((address.clone(), Bytes::from_static(&[7; 1000]))).await.unwrap();
            }
            assert_eq!(manager.stats().total.held_bytes, 0, "it is collected until there is a batch");
            sink.feed((address.clone(), Bytes::from_static(&[7; 1000]))).await.unwrap();
            event(&mut events, "Opened", |event| matches!(event, ManagerEvent::Opened { .. })).await;
            drop(acceptor);
        });
    }
}

/// As it is, when nobody listens any more: the messages come back.
#[test]
fn a_batch_that_nobody_flushes_comes_back_when_its_connection_cannot_be_opened() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config()).await;
        let (mut events, letters) = (manager.events(), manager.dead_letters());
        drop((acceptor, far));
        event(&mut events, "Broken", |event| matches!(event, ManagerEvent::Broken { .. })).await;
        let mut sink = manager.sink();
        for _ in 0..63 {
            sink.feed((address.clone(), Bytes::from_static(&[7; 1000]))).await.unwrap();
        }
        let letters = testing::within(Some(SECOND), letters.take(62).collect::<Vec<_>>()).await.expect("62 letters");
        assert!(letters.iter().all(|letter| letter.outcome == Outcome::NotSent));
    });
}
