//! Which address of a route a message goes to, and what becomes of what comes back.

use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt, stream};

use super::outages::{SECOND, every};
use crate::sim::testing::{self, Sim};
use crate::{
    Address, Backoff, BoxError, Config, Error, Listener, Manager, ManagerEvent, Outcome, Peer, Route, RouteSink,
    Session,
};

const A: &str = "127.0.0.1:5001";
const B: &str = "127.0.0.1:5002";
const C: &str = "127.0.0.1:5003";

fn config() -> Config {
    Config::new().close_timeout(SECOND).max_message_size(64 << 10)
}

/// Given up after two seconds.
fn hasty() -> Config {
    config().reconnect(Backoff::from_fn(|| [SECOND; 2]))
}

fn manager(config: Config) -> Manager {
    let manager = Manager::new(config);
    [A, B, C].iter().for_each(|address| manager.open(*address).unwrap());
    manager
}

async fn listen(address: &str) -> Listener {
    Listener::bind(address, config()).await.unwrap()
}

async fn send(sink: &mut RouteSink, numbers: impl IntoIterator<Item = u8>) {
    for number in numbers {
        sink.feed(Bytes::from(vec![number; 100])).await.unwrap();
    }
    sink.flush().await.unwrap();
}

/// What has come until now.
async fn received(listener: &mut Listener) -> Vec<u8> {
    let mut numbers = Vec::new();
    while let Some(message) = testing::within(Some(SECOND / 100), listener.next()).await {
        numbers.push(message.unwrap().1[0]);
    }
    numbers
}

#[test]
fn failover_gives_the_next_what_the_first_had_not_sent_and_comes_back_to_the_first() {
    Sim::default().run(async {
        let manager = manager(hasty());
        let mut letters = manager.dead_letters();
        let (mut a, mut b) = (listen(A).await, listen(B).await);
        testing::sleep(SECOND).await;
        let mut sink = manager.sink_to(Route::failover([A, B]));
        send(&mut sink, 0..10).await;
        assert!(received(&mut a).await.into_iter().eq(0..10));
        drop(a);
        testing::sleep(SECOND).await;
        // It is away, and has these, until it is given up.
        for number in 10..20 {
            sink.feed(Bytes::from(vec![number; 100])).await.unwrap();
        }
        assert!(sink.flush().now_or_never().is_none());
        assert_eq!(received(&mut b).await, Vec::<u8>::new());
        sink.flush().await.unwrap();
        send(&mut sink, 20..30).await;
        assert!(received(&mut b).await.into_iter().eq(10..30));
        let mut a = listen(A).await;
        testing::sleep(2 * SECOND).await;
        send(&mut sink, 30..40).await;
        assert!(received(&mut a).await.into_iter().eq(30..40));
        assert!(letters.next().now_or_never().is_none());
        assert_eq!(manager.stats().total.written, 40);
    });
}

#[test]
fn without_reconnect_an_address_that_failed_is_tried_again_after_a_second() {
    Sim::default().run(async {
        let manager = manager(config());
        let mut b = listen(B).await;
        testing::sleep(SECOND).await;
        let mut events = manager.events();
        let mut sink = manager.sink_to(Route::failover([A, B]));
        send(&mut sink, 0..10).await;
        let dials = |events: &mut crate::Events<ManagerEvent>| {
            let told = std::iter::from_fn(|| events.next().now_or_never().flatten());
            told.filter(|event| matches!(event, ManagerEvent::DialFailed { .. })).count()
        };
        let first = dials(&mut events);
        for number in 10..20 {
            send(&mut sink, [number]).await;
        }
        assert_eq!((first, dials(&mut events)), (1, 0), "it is left alone");
        assert!(received(&mut b).await.into_iter().eq(0..20));
        let mut a = listen(A).await;
        testing::sleep(SECOND).await;
        send(&mut sink, 20..30).await;
        assert!(received(&mut a).await.into_iter().eq(20..30));
    });
}

#[test]
fn round_robin_takes_turns_and_passes_over_those_that_are_down_or_full() {
    Sim::default().run(async {
        let manager = manager(config().reconnect(every(SECOND)).queue_bytes(1000));
        let (mut a, mut b) = (listen(A).await, listen(B).await);
        testing::sleep(2 * SECOND).await;
        let mut sink = manager.sink_to(Route::round_robin([A, B]));
        for number in 0..6 {
            send(&mut sink, [number]).await;
        }
        assert_eq!((received(&mut a).await, received(&mut b).await), (vec![0, 2, 4], vec![1, 3, 5]));
        drop(a);
        testing::sleep(SECOND / 10).await;
        // It is away, and takes what its queue has room for.
        for number in 0..100 {
            sink.feed(Bytes::from(vec![number; 100])).await.unwrap();
        }
        testing::sleep(SECOND / 2).await;
        assert!(received(&mut b).await.len() > 70);
    });
}

#[test]
fn broadcast_gives_each_its_copy_and_makes_letters_of_what_is_for_one_that_is_down() {
    Sim::default().run(async {
        let manager = manager(hasty());
        let mut letters = manager.dead_letters();
        let (mut a, mut b) = (listen(A).await, listen(B).await);
        testing::sleep(5 * SECOND).await;
        let began = testing::elapsed();
        let mut sink = manager.sink_to(Route::broadcast([A, B, C]));
        send(&mut sink, 0..10).await;
        assert_eq!(testing::elapsed(), began, "nobody waits for the one that is down");
        assert!(received(&mut a).await.into_iter().eq(0..10));
        assert!(received(&mut b).await.into_iter().eq(0..10));
        for number in 0..10 {
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.message[0], letter.outcome), (number, Outcome::GaveUp));
            assert_eq!((letter.address.as_str(), letter.tried()), (C, &[Address::from(C)][..]));
        }
        assert!(letters.next().now_or_never().is_none());
    });
}

#[test]
fn broadcast_waits_for_the_slowest() {
    Sim { capacity: 1000, ..Sim::default() }.run(async {
        let manager = manager(config());
        let (mut a, b) = (listen(A).await, Listener::bind(B, config().inbox_bytes(128 << 10)).await.unwrap());
        testing::sleep(SECOND).await;
        let mut sink = manager.sink_to(Route::broadcast([A, B]));
        let mut fed = 0;
        while testing::within(Some(SECOND), sink.feed(Bytes::from(vec![7; 10_000]))).await.is_some() {
            fed += 1;
            received(&mut a).await;
        }
        let most = (128 + 4 * 64) << 10;
        assert!((2..most / 10_000).contains(&fed), "{fed}");
        drop(b);
    });
}

#[test]
fn by_key_an_address_that_is_down_moves_its_own_keys_alone() {
    Sim::default().run(async {
        let manager = manager(hasty());
        let (mut a, mut b, mut c) = (listen(A).await, listen(B).await, listen(C).await);
        testing::sleep(SECOND).await;
        let mut sink = manager.sink_to(Route::by_key(|message| message[0], [A, B, C]));
        send(&mut sink, (0..100).chain(0..100)).await;
        let before = [received(&mut a).await, received(&mut b).await, received(&mut c).await];
        for numbers in &before {
            let (first, again) = numbers.split_at(numbers.len() / 2);
            assert_eq!(first, again);
            assert!(first.len() > 15, "{first:?}");
        }
        drop(b);
        testing::sleep(SECOND).await;
        send(&mut sink, 0..100).await;
        let (of_a, of_c) = (received(&mut a).await, received(&mut c).await);
        // Their own keys stay, and each that came is of the other.
        let moved = |now: &[u8], own: &[u8]| {
            assert!(own.iter().all(|number| now.contains(number)));
            now.iter().filter(|number| !own.contains(number)).all(|number| before[1].contains(number))
        };
        assert!(moved(&of_a, &before[0]) && moved(&of_c, &before[2]));
        let mut all: Vec<_> = of_a.into_iter().chain(of_c).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..100));
    });
}

#[test]
fn a_letter_says_who_had_it_and_only_a_message_for_nobody_is_an_error() {
    Sim::default().run(async {
        let manager = manager(hasty());
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::failover([A, B]));
        sink.feed(Bytes::from_static(b"nobody")).await.unwrap();
        let flushed = sink.flush().await;
        let Err(Error::NotSent { address, source, .. }) = flushed else { panic!("{flushed:?}") };
        assert_eq!((address.as_str(), matches!(*source, Error::Dial { .. })), (B, true));
        let letter = letters.next().await.unwrap();
        assert_eq!((letter.outcome, letter.address.as_str(), letter.attempts > 0), (Outcome::GaveUp, B, true));
        assert_eq!(letter.tried(), [A, B].map(Address::from));
        sink.flush().await.expect("it is told once");

        // One of them takes it all: a forward goes on.
        let mut b = listen(B).await;
        testing::sleep(2 * SECOND).await;
        let lines = stream::iter((0..10).map(|number| Ok(Bytes::from(vec![number]))));
        lines.forward(&mut sink).await.unwrap();
        assert!(received(&mut b).await.into_iter().eq(0..10));
        assert!(letters.next().now_or_never().is_none());
    });
}

#[test]
fn what_no_address_of_the_route_is_open_for_is_a_letter_that_nobody_had() {
    Sim::default().run(async {
        let manager = Manager::new(config());
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink_to(Route::failover([A, B]));
        let sent = sink.send(Bytes::from_static(b"nobody")).await;
        assert!(matches!(sent, Err(Error::NotOpen { message: None, .. })), "{sent:?}");
        let letter = letters.next().await.unwrap();
        assert_eq!((letter.outcome, letter.tried()), (Outcome::Closed, &[][..]));
        let total = manager.stats().total;
        assert_eq!((total.accepted, total.dead_lettered), (1, 1));
    });
}

#[test]
fn an_address_that_is_closed_gives_what_it_had_to_the_next() {
    Sim::default().run(async {
        let manager = manager(config().reconnect(every(SECOND)));
        let mut b = listen(B).await;
        testing::sleep(SECOND).await;
        let mut sink = manager.sink_to(Route::failover([A, B]));
        for number in 0..10 {
            sink.feed(Bytes::from(vec![number; 100])).await.unwrap();
        }
        assert!(sink.flush().now_or_never().is_none());
        testing::sleep(SECOND).await;
        manager.close(A).await.unwrap_err();
        sink.flush().await.unwrap();
        assert!(received(&mut b).await.into_iter().eq(0..10));
    });
}

/// The other end refuses one of them, and then dies with the rest.
#[test]
fn what_was_refused_or_is_in_doubt_goes_to_no_other_address() {
    Sim::default().run(async {
        let with = |config: Config| config.session(Session::new());
        let manager = manager(with(hasty()));
        let mut letters = manager.dead_letters();
        let a = Listener::bind(A, with(config())).await.unwrap();
        let mut b = Listener::bind(B, with(config())).await.unwrap();
        testing::sleep(2 * SECOND).await;
        let serving = a.serve_in_background(|_: Peer, message: &[u8]| -> Result<(), BoxError> {
            if message[0] == 1 { Err("refused".into()) } else { Ok(()) }
        });
        let mut sink = manager.sink_to(Route::failover([A, B]));
        send(&mut sink, 0..3).await;
        let letter = testing::within(Some(SECOND), letters.next()).await.expect("a letter").unwrap();
        assert_eq!((letter.message[0], letter.outcome), (1, Outcome::Refused));
        assert_eq!(letter.tried(), [Address::from(A)]);
        drop(serving);
        let a = Listener::bind(A, with(config())).await.unwrap();
        testing::sleep(5 * SECOND).await;
        send(&mut sink, 3..5).await;
        testing::sleep(SECOND / 10).await;
        drop(a);
        for number in 3..5 {
            let letter = testing::within(Some(60 * SECOND), letters.next()).await.expect("a letter").unwrap();
            assert_eq!((letter.message[0], letter.outcome), (number, Outcome::InDoubt));
            assert_eq!(letter.tried(), [Address::from(A)]);
        }
        let total = manager.stats().total;
        assert_eq!((total.refused, total.in_doubt), (1, 2));
        sink.flush().await.expect("that one address failed is no error");
        assert_eq!(received(&mut b).await, Vec::<u8>::new());
    });
}

#[test]
fn a_message_that_is_not_accepted_comes_back() {
    Sim::default().run(async {
        let manager = manager(config());
        let mut sink = manager.sink_to(Route::failover([A]));
        let too_large = sink.start_send_unpin(Bytes::from(vec![7; 65 << 10])).unwrap_err();
        assert!(matches!(too_large, Error::MessageTooLarge { .. }));
        assert_eq!(too_large.into_unsent().unwrap().len(), 65 << 10);
        let mut closed = manager.sink_to(Route::failover([A]));
        closed.close().await.unwrap();
        let none = manager.sink_to(Route::failover(<[&str; 0]>::default()));
        manager.shutdown(SECOND).await;
        let late = manager.sink_to(Route::failover([A]));
        for mut sink in [sink, closed, none, late] {
            let error = sink.send(Bytes::from_static(b"late")).await.unwrap_err();
            assert!(matches!(error, Error::Closed { .. }), "{error:?}");
            assert_eq!(error.into_unsent().unwrap(), "late");
            sink.flush().await.unwrap();
        }
    });
}

#[test]
fn while_all_are_away_the_sink_waits_within_a_bound() {
    Sim::default().run(async {
        const QUEUE: usize = 16 << 10;
        let manager = manager(config().reconnect(every(SECOND)).queue_bytes(QUEUE));
        let mut sink = manager.sink_to(Route::round_robin([A, B]));
        let mut fed = 0;
        while testing::within(Some(10 * SECOND), sink.feed(Bytes::from(vec![7; 1000]))).await.is_some() {
            fed += 1;
        }
        // In two queues, in two batches, in two that wait for room, and in the sink.
        assert!((2 * QUEUE..8 * QUEUE).contains(&(fed * 1000)), "{fed}");
    });
}

#[test]
fn a_sink_that_is_dropped_leaves_the_rest_to_the_background() {
    Sim::default().run(async {
        let manager = manager(hasty());
        let mut sink = manager.sink_to(Route::failover([A, B]));
        for number in 0..10 {
            sink.feed(Bytes::from(vec![number; 100])).await.unwrap();
        }
        drop(sink);
        let mut b = listen(B).await;
        testing::sleep(10 * SECOND).await;
        assert!(received(&mut b).await.into_iter().eq(0..10));
    });
}

/// The letters fill their stream, and the address that is there is given nothing more: nothing is lost.
#[test]
fn letters_that_are_not_taken_make_the_sink_wait() {
    Sim::default().run(async {
        let manager = manager(hasty().queue_bytes(4 << 10));
        let mut letters = manager.dead_letters();
        let mut a = listen(A).await;
        testing::sleep(5 * SECOND).await;
        let mut sink = manager.sink_to(Route::broadcast([A, B]));
        let mut fed = 0;
        while testing::within(Some(Duration::from_secs(9)), sink.feed(Bytes::from(vec![7; 100]))).await.is_some() {
            fed += 1;
            received(&mut a).await;
        }
        assert!((10..100).contains(&fed), "{fed}");
        let taking = async {
            for _ in 0..fed {
                letters.next().await.unwrap();
            }
        };
        let (flushed, ()) = futures::join!(sink.flush(), taking);
        flushed.unwrap();
        assert_eq!(manager.stats().lost, 0);
    });
}

#[test]
fn a_key_that_panics_for_a_message_that_came_back_makes_a_letter_of_it() {
    Sim::default().run(async {
        let manager = manager(hasty());
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        let calls = std::sync::atomic::AtomicUsize::new(0);
        let key = move |_: &[u8]| match calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => 0,
            _ => panic!("no key"),
        };
        let mut sink = manager.sink_to(Route::by_key(key, [A, B]));
        sink.send(Bytes::from_static(b"once")).await.unwrap();
        assert_eq!(letters.next().await.unwrap().tried().len(), 1);
        let told = loop {
            if let ManagerEvent::Panicked { source, .. } = events.next().await.unwrap() {
                break source;
            }
        };
        assert_eq!(told, crate::PanicSource::Key);
    });
}
