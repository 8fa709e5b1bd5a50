//! Connections that are reset hundreds of times under load: the books balance at every moment, the order stays, nothing
//! comes twice, and every message has one end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_std::task;
use buffstreams::{Error, Manager};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{SOON, Site, balanced, config, number, numbered, numbers, run, until, within};

const RESETS: usize = 300;
const SINKS: u64 = 4;
const WRITERS: u64 = 2;

/// What became of the messages.
#[derive(Default)]
struct Ends {
    /// Per connection, in order.
    received: Mutex<Vec<Vec<u64>>>,
    dead: Mutex<Vec<u64>>,
    returned: Mutex<Vec<u64>>,
    /// Accepted by a sink.
    fed: Mutex<Vec<u64>>,
    stop: AtomicBool,
}

fn len(number: u64) -> usize {
    [8, 100, 1_000, 4_095, 4_096, 20_000][(number % 6) as usize]
}

/// Takes connections and resets them, at a byte that differs each time; now and then nobody listens for a while.
async fn reset_them(mut site: Site, ends: Arc<Ends>, goes_away: bool) {
    let addr = site.addr;
    for round in 0..RESETS {
        let mut far = site.accept().await;
        let wire = far.read(1 + round * 7919 % 60_000).await;
        ends.received.lock().unwrap().push(numbers(&wire));
        if goes_away && round % 10 == 9 {
            drop(site);
            far.reset();
            let before = ends.dead.lock().unwrap().len() + ends.returned.lock().unwrap().len();
            until("something to come back", || {
                ends.dead.lock().unwrap().len() + ends.returned.lock().unwrap().len() > before
            })
            .await;
            site = Site::again(addr).await;
        } else {
            far.reset();
        }
    }
    // From here on all is well.
    ends.stop.store(true, Ordering::Release);
    loop {
        let mut far = match site.accept().now_or_never() {
            Some(far) => far,
            None => match async_std::future::timeout(Duration::from_secs(5), site.accept()).await {
                Ok(far) => far,
                Err(_) => return,
            },
        };
        let wire = far.rest().await;
        ends.received.lock().unwrap().push(numbers(&wire));
    }
}

async fn produce(manager: Manager, addr: std::net::SocketAddr, producer: u64, ends: Arc<Ends>) {
    let mut sink = manager.sink();
    let mut next = producer << 32;
    while !ends.stop.load(Ordering::Acquire) {
        for _ in 0..1 + next % 50 {
            match sink.feed((addr.into(), numbered(next, len(next)))).await {
                Ok(()) => ends.fed.lock().unwrap().push(next),
                Err(error) => panic!("{error:?}"),
            }
            next += 1;
        }
        match next % 3 {
            // Given up at some point, and taken up again later.
            0 => drop(sink.flush().now_or_never()),
            _ => drop(sink.flush().await),
        }
    }
    while let Err(error) = sink.close().await {
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
    }
}

async fn write(manager: Manager, addr: std::net::SocketAddr, producer: u64, ends: Arc<Ends>) {
    let mut next = producer << 32;
    while !ends.stop.load(Ordering::Acquire) {
        match manager.write(addr, numbered(next, len(next))).await {
            Ok(()) => {}
            Err(error @ Error::NotSent { .. }) => {
                let message = error.into_unsent().expect("the message");
                assert_eq!(message, numbered(next, len(next)));
                ends.returned.lock().unwrap().push(next);
            }
            Err(error) => panic!("{error:?}"),
        }
        next += 1;
    }
}

fn storm(goes_away: bool) {
    run(async {
        let site = Site::small();
        let addr = site.addr;
        let manager = Manager::new(config());
        let ends = Arc::new(Ends::default());
        let far = task::spawn(reset_them(site, ends.clone(), goes_away));
        manager.dial(addr).await.unwrap();
        let mut letters = manager.dead_letters();
        let into = ends.clone();
        let taking = task::spawn(async move {
            while let Some(letter) = letters.next().await {
                into.dead.lock().unwrap().push(number(&letter.message));
            }
        });
        // Somebody looks at the books all the time.
        let (looking, done) = (manager.clone(), ends.clone());
        let looking = std::thread::spawn(move || {
            let mut looks = 0_u64;
            while !done.stop.load(Ordering::Acquire) {
                balanced(&looking);
                looks += 1;
                std::thread::yield_now();
            }
            looks
        });
        let sinks = (0..SINKS).map(|n| task::spawn(produce(manager.clone(), addr, n, ends.clone())));
        let writers = (SINKS..SINKS + WRITERS).map(|n| task::spawn(write(manager.clone(), addr, n, ends.clone())));
        let producers: Vec<_> = sinks.chain(writers).collect();
        for producer in producers {
            within(Duration::from_secs(50), "a producer", producer).await;
        }
        assert!(looking.join().expect("the books balance at every moment") > 0);
        manager.close(addr).await.unwrap();
        far.cancel().await;
        let total = balanced(&manager);
        assert_eq!((total.held, total.held_bytes), (0, 0));
        assert!(total.reconnects as usize >= RESETS - 1, "{total:?}");
        drop(manager);
        within(SOON, "the end of the dead letters", taking).await;
        check(&ends, total.accepted, total.dead_lettered, goes_away);
    });
}

fn check(ends: &Ends, accepted: u64, dead_lettered: u64, goes_away: bool) {
    let received = ends.received.lock().unwrap().concat();
    let (dead, returned) = (ends.dead.lock().unwrap(), ends.returned.lock().unwrap());
    assert_eq!(dead_lettered as usize, dead.len() + returned.len());
    // A reset may come so soon that it fails the dial; otherwise there is nothing to give back.
    assert!(dead_lettered > 0 || !goes_away);
    let mut last = BTreeMap::new();
    for n in &received {
        let last = last.insert(n >> 32, *n);
        assert!(last.is_none_or(|last| last < *n), "{n:#x} after {last:#x?}: twice, or out of order");
    }
    let came_back: BTreeSet<_> = dead.iter().chain(returned.iter()).copied().collect();
    assert_eq!(came_back.len() as u64, dead_lettered, "one came back twice");
    let both: Vec<_> = received.iter().filter(|n| came_back.contains(n)).collect();
    assert!(both.is_empty(), "received, and came back: {both:x?}");
    assert!(dead.iter().all(|n| n >> 32 < SINKS), "a write has its message back itself");
    // Of a sink's messages none has another end than these; the kernel held some when it was reset.
    let fed = ends.fed.lock().unwrap();
    let known: BTreeSet<_> = received.iter().chain(dead.iter()).copied().filter(|n| n >> 32 < SINKS).collect();
    assert!(known.iter().all(|n| fed.binary_search(n).is_ok() || fed.contains(n)));
    assert!(received.len() as u64 + dead_lettered <= accepted);
    assert!(!received.is_empty());
}

#[test]
fn a_storm_of_resets_leaves_the_books_in_order() {
    storm(false);
}

#[test]
fn a_storm_of_resets_and_refusals_leaves_the_books_in_order() {
    storm(true);
}
