//! Several producers, a time to live, and somebody who takes the dead letters: wherever the connection is cut, each message
//! has one end, and each producer is told of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{SinkExt, StreamExt};

use super::audit::CAPACITY;
use super::outages::{ANYWHERE, SECOND, config};
use crate::sim::testing::Sim;
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Cut, cables, plan};
use crate::sim::testing::{Fault, Side};
use crate::{Address, Backoff, Manager, Outcome};

const SINKS: u8 = 2;
const PRODUCERS: u8 = SINKS + 1;
const SIZES: [usize; 8] = [5, 300, 2, 40, 4097, 3, 2, 90];
/// What they are on the wire.
const WIRE: usize = PRODUCERS as usize * (4539 + 8 * 4);
const FLUSH_EVERY: usize = 2;

/// A message's producer and number.
type Name = (u8, u8);

fn message(producer: u8, n: usize) -> Bytes {
    let mut message = vec![7; SIZES[n]];
    message[..2].copy_from_slice(&[producer, n as u8]);
    message.into()
}

fn name(message: &[u8]) -> Name {
    assert_eq!(message, message_of((message[0], message[1])));
    (message[0], message[1])
}

fn message_of((producer, n): Name) -> Bytes {
    message(producer, n.into())
}

/// What was found out in a run.
#[derive(Default)]
struct Told {
    letters: BTreeMap<Name, Outcome>,
    returned: BTreeSet<Name>,
    /// What went into each flush, and whether it was all right.
    flushes: Vec<(Vec<Name>, bool)>,
}

type Shared = Arc<Mutex<Told>>;

async fn feed(manager: Manager, address: Address, producer: u8, told: Shared) {
    let (mut sink, mut since) = (manager.sink(), Vec::new());
    for n in 0..SIZES.len() {
        sink.feed((address.clone(), message(producer, n))).await.unwrap();
        since.push((producer, n as u8));
        if n % FLUSH_EVERY == 0 {
            // It is given up, unless it is quick, and what it would have told is for the next.
            let flushed = testing::within(Some(SECOND / 10), sink.flush()).await;
            if let Some(flushed) = flushed {
                told.lock().unwrap().flushes.push((mem::take(&mut since), flushed.is_ok()));
            }
        } else {
            let flushed = sink.flush().await.is_ok();
            told.lock().unwrap().flushes.push((mem::take(&mut since), flushed));
        }
    }
}

async fn write(manager: Manager, address: Address, producer: u8, told: Shared) {
    for n in 0..SIZES.len() {
        if let Err(error) = manager.write(&address, message(producer, n)).await {
            told.lock().unwrap().returned.insert(name(&error.into_unsent().unwrap()));
        }
    }
}

/// Reads all that comes; when the first connection has ended, or brings nothing more, nobody is there for a while.
async fn receive(acceptor: Acceptor, addr: SocketAddr, away: Duration) {
    let (mut first, _) = acceptor.accept(&config()).await.unwrap();
    let mut buf = [0; 4096];
    while let Some(Ok(1..)) = testing::within(Some(5 * SECOND), first.read(&mut buf)).await {}
    drop((first, acceptor));
    testing::sleep(away).await;
    let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
    while let Ok((mut next, _)) = acceptor.accept(&config()).await {
        while let Ok(1..) = next.read(&mut buf).await {}
    }
}

/// The whole frames that the connections have taken, in order.
fn taken() -> Vec<Name> {
    let mut names = Vec::new();
    cables(|cables| {
        for cable in cables {
            let cable = cable.lock();
            let mut wire = cable.lane(Side::Dialer).0;
            while let Some((header, rest)) = wire.split_first_chunk() {
                let len = u32::from_be_bytes(*header) as usize;
                let Some((message, rest)) = rest.split_at_checked(len) else { break };
                names.push(name(message));
                wire = rest;
            }
        }
    });
    names
}

fn one_cut(cut: Cut, away: Duration, seed: Option<u64>) -> Told {
    let backoff = Backoff::from_fn(|| [SECOND; 2]);
    let config = config().message_ttl(2 * SECOND).reconnect(backoff).write_timeout(4 * SECOND);
    let manager = Manager::new(config.close_timeout(60 * SECOND));
    let told = Shared::default();
    let session = async {
        plan(cut);
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let _receiving = testing::spawn(receive(acceptor, addr, away));
        let (address, into) = (Address::from(addr), told.clone());
        let mut letters = manager.dead_letters();
        let _taking = testing::spawn(async move {
            while let Some(letter) = letters.next().await {
                let before = into.lock().unwrap().letters.insert(name(&letter.message), letter.outcome);
                assert_eq!(before, None, "{letter:?} is one letter");
            }
        });
        manager.dial(addr).await.unwrap();
        let sinks = (0..SINKS).map(|n| feed(manager.clone(), address.clone(), n, told.clone()));
        let writes = write(manager.clone(), address.clone(), SINKS, told.clone());
        futures::join!(futures::future::join_all(sinks), writes);
        // What is held is delivered, or not, and told before.
        manager.close(addr).await.unwrap();
        testing::sleep(SECOND).await;
        check(&manager, &told.lock().unwrap());
    };
    Sim { capacity: CAPACITY, seed, traced: false }.run_watched(session, || {
        let total = manager.stats().total;
        assert_eq!(total.accepted, total.written + total.dead_lettered + total.held);
        assert!(total.held > 0 || total.held_bytes == 0, "{total:?}");
    });
    mem::take(&mut *told.lock().unwrap())
}

fn check(manager: &Manager, told: &Told) {
    let (taken, total) = (taken(), manager.stats().total);
    let came_back: Vec<_> = told.letters.keys().chain(&told.returned).copied().collect();
    assert_eq!((total.written, total.dead_lettered), (taken.len() as u64, came_back.len() as u64));
    assert_eq!((total.held, manager.stats().lost), (0, 0));
    let mut ends: Vec<_> = taken.iter().chain(&came_back).copied().collect();
    ends.sort_unstable();
    let all: Vec<_> = (0..PRODUCERS).flat_map(|producer| (0..8).map(move |n| (producer, n))).collect();
    assert_eq!(ends, all, "each has one end");
    for producer in 0..PRODUCERS {
        assert!(taken.iter().filter(|name| name.0 == producer).is_sorted(), "in order");
    }
    assert!(told.returned.iter().all(|name| name.0 == SINKS), "a write has its message back itself");
    for (names, ok) in &told.flushes {
        let came_back = names.iter().any(|name| told.letters.contains_key(name));
        assert_eq!(*ok, !came_back, "a flush of {names:?}: {:?}", told.letters);
    }
    assert!(told.letters.values().all(|outcome| matches!(outcome, Outcome::Expired | Outcome::GaveUp)));
}

fn cut_everywhere(stride: usize) {
    let (mut outcomes, mut returned, mut flushes) = (Vec::new(), 0, [0; 2]);
    for after in (0..=WIRE).step_by(stride) {
        for fault in [Fault::Fin, Fault::Rst, Fault::Stall] {
            for away in [Duration::ZERO, SECOND / 2, 10 * SECOND] {
                let told = one_cut(Cut { connection: 0, side: Side::Dialer, after, fault }, away, None);
                outcomes.extend(told.letters.into_values());
                returned += told.returned.len();
                told.flushes.iter().for_each(|(_, ok)| flushes[usize::from(*ok)] += 1);
            }
        }
    }
    // All of it happens.
    assert!(outcomes.contains(&Outcome::Expired) && outcomes.contains(&Outcome::GaveUp));
    assert!(returned > 0 && flushes[0] > 0 && flushes[1] > 0);
}

#[test]
fn each_message_has_one_end_and_its_producer_is_told() {
    cut_everywhere(29);
}

/// Without leaving anything out.
#[test]
#[ignore = "takes minutes in a debug build"]
fn each_message_has_one_end_wherever_it_is_cut() {
    cut_everywhere(1);
}

#[test]
fn each_message_has_one_end_whatever_the_order_in_which_tasks_run() {
    for seed in 0..500 {
        let fault = [Fault::Fin, Fault::Rst, Fault::Stall][seed % 3];
        let away = [Duration::ZERO, SECOND / 2, 10 * SECOND][seed / 3 % 3];
        // 7919 is a prime: the cuts are spread over the session.
        let cut = Cut { connection: 0, side: Side::Dialer, after: seed * 7919 % WIRE, fault };
        one_cut(cut, away, Some(seed as u64));
    }
}
