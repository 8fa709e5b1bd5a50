//! How old the messages of a route are: from their `feed` on, wherever they have been since.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};

use super::outages::{ANYWHERE, SECOND, every};
use super::routes_back::{A, B};
use crate::sim::testing::{self, Acceptor, Sim};
use crate::{Address, Config, DeadLetters, Manager, Outcome, Route, RouteSink};

/// How exact it is: ages are told apart by the 64th part of a second.
const TICK: Duration = Duration::from_millis(20);

/// Nobody is at either address, and each is away for good.
fn config() -> Config {
    Config::new().max_message_size(64 << 10).message_ttl(SECOND).reconnect(every(100 * SECOND))
}

/// The letters of five messages come after a second: their numbers, and whether both addresses had any of them.
async fn expired(letters: &mut DeadLetters) -> (Vec<u8>, bool) {
    let (mut numbers, mut by_both) = (Vec::new(), false);
    for _ in 0..5 {
        let letter = letters.next().await.unwrap();
        assert_eq!(letter.outcome, Outcome::Expired);
        let age = testing::elapsed();
        assert!((SECOND..SECOND + TICK).contains(&age), "{}: {age:?}", letter.message[0]);
        numbers.push(letter.message[0]);
        by_both |= letter.tried() == [A, B].map(Address::from);
    }
    (numbers, by_both)
}

async fn feed(sink: &mut RouteSink) {
    for number in 0..5 {
        sink.feed(Bytes::from(vec![number; 1000])).await.unwrap();
    }
}

/// One is in the queue of the address, one waits for room in it, and the others are in the route.
#[test]
fn messages_that_are_fed_together_are_too_old_together() {
    Sim::default().run(async {
        let manager = Manager::new(config().queue_bytes(1000));
        manager.open(A).unwrap();
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::failover([A]));
        feed(&mut sink).await;
        assert_eq!(expired(&mut letters).await.0, [0, 1, 2, 3, 4]);
        sink.flush().await.unwrap();
    });
}

/// Both that was accepted by the first, and what still waits for room there.
#[test]
fn a_message_does_not_grow_young_at_the_next_address() {
    for (queue, is_late) in [(1000, false), (1 << 20, false), (1000, true), (1 << 20, true)] {
        Sim::default().run(async move {
            let manager = Manager::new(config().queue_bytes(queue).close_timeout(SECOND / 10));
            let mut letters = manager.dead_letters();
            manager.open(A).unwrap();
            if !is_late {
                manager.open(B).unwrap();
            }
            let mut sink = manager.sink_to(Route::failover([A, B]));
            feed(&mut sink).await;
            testing::sleep(SECOND / 2).await;
            if is_late {
                // It has looked for what is too old, and found nothing, before any of it comes.
                manager.open(B).unwrap();
                testing::sleep(SECOND / 4).await;
            }
            manager.close(A).await.unwrap_err();
            assert!(testing::elapsed() < SECOND);
            let (mut numbers, by_both) = expired(&mut letters).await;
            numbers.sort_unstable();
            assert_eq!((numbers, by_both), (vec![0, 1, 2, 3, 4], true));
        });
    }
}

/// The first takes a part of one message, and nothing more: what is behind that is found to be too old when it is closed.
#[test]
fn what_is_too_old_when_it_comes_back_goes_to_no_other_address() {
    Sim { capacity: 1000, ..Sim::default() }.run(async {
        let (acceptor, first) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let manager =
            Manager::new(config().queue_bytes(1000).write_timeout(None).close_timeout(SECOND).drain_timeout(SECOND));
        manager.dial(first).await.unwrap();
        let far = acceptor.accept(&Config::new()).await;
        manager.open(B).unwrap();
        let mut letters = manager.dead_letters();
        let first = Address::from(first);
        let mut sink = manager.sink_to(Route::failover([first.clone(), B.into()]));
        let mut fed = 0;
        while testing::within(Some(SECOND / 10), sink.feed(vec![fed; 30_000].into())).await.is_some() {
            fed += 1;
        }
        testing::sleep(SECOND).await;
        manager.close(&first).await.unwrap_err();
        drop(far);
        let began = testing::elapsed();
        let mut came = Vec::new();
        for _ in 0..fed {
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.outcome, letter.tried().len()), (Outcome::Expired, 1), "{}", letter.message[0]);
            came.push((letter.message[0], letter.tried()[0] == first));
        }
        assert_eq!(testing::elapsed(), began);
        came.sort_unstable();
        // The last two were not given to an address before.
        assert!(came.iter().map(|(number, _)| *number).eq(0..fed), "{came:?}");
        assert_eq!(came.iter().filter(|(_, is_of_first)| *is_of_first).count(), usize::from(fed) - 2, "{came:?}");
    });
}
