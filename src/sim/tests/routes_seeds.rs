//! Routes over addresses that die and come back, are closed and opened, or give no answer, and connections that break, at random:
//! each message has one end, none goes to two addresses that should go to one, and each address has what it was given in order.

use std::collections::BTreeMap;
use std::env;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{join, join3};
use futures::{SinkExt, StreamExt};

use super::cuts::named;
use super::number;
use crate::sim::testing::{self, Cut, Fault, Side, Sim};
use crate::{
    Address, Backoff, Bytes, Config, DeadLetter, DeadLetters, Error, Listener, Manager, ManagerSink, Outcome, Route,
    RouteSink, Session,
};

const MILLI: Duration = Duration::from_millis(1);
const FAULTS: usize = 4;
const LONGEST: usize = 4 << 10;
/// Where the numbers of those messages begin that do not go through the route.
const BESIDE: u32 = 1_000;

/// What one seed draws.
struct Draw(fastrand::Rng);

impl Draw {
    fn fork(&mut self) -> Self {
        Self(self.0.fork())
    }

    fn config(&mut self) -> Config {
        let config = Config::new().max_message_size(LONGEST).queue_bytes(self.0.usize(2..32) << 10);
        let backoff = Backoff::exponential(10 * MILLI, 100 * MILLI).max_elapsed(MILLI * self.0.u32(50..800));
        let config = config.reconnect(Some(backoff).filter(|_| self.0.u8(..4) > 0));
        let ttl = Some(MILLI * self.0.u32(100..2_000)).filter(|_| self.0.u8(..6) == 0);
        let close = MILLI * [5_000, self.0.u32(..500)][self.0.usize(..2)];
        config.close_timeout(close).message_ttl(ttl).session(Some(Session::new()).filter(|_| self.0.u8(..3) == 0))
    }

    fn cut(&mut self) -> Cut {
        let side = if self.0.bool() { Side::Dialer } else { Side::Acceptor };
        let fault = [Fault::Fin, Fault::Rst][self.0.usize(..2)];
        Cut { connection: self.0.usize(..8), side, after: self.0.usize(..20_000), fault }
    }

    fn outages(&mut self, addresses: usize) -> Vec<Outage> {
        let outage = |draw: &mut fastrand::Rng| Outage {
            after: MILLI * draw.u32(..400),
            address: draw.usize(..addresses),
            kind: [Kind::Opened, Kind::Dialed, Kind::NoAnswer][draw.usize(..3)],
            length: MILLI * draw.u32(..800),
        };
        (0..self.0.usize(..5)).map(|_| outage(&mut self.0)).collect()
    }

    fn route(&mut self, addresses: &[Address]) -> Route {
        match self.0.u8(..4) {
            0 => Route::failover(addresses),
            1 => Route::round_robin(addresses),
            2 => Route::broadcast(addresses),
            _ => Route::by_key(|message| number(message) % 5, addresses),
        }
    }

    fn message(&mut self, number: u32) -> Bytes {
        let most = [0, 100, LONGEST - 4][self.0.usize(..3)];
        let len = self.0.usize(..=most);
        number.to_be_bytes().into_iter().chain((0..len).map(|_| 7)).collect()
    }

    async fn dawdle(&mut self, most: u32) {
        if self.0.u8(..6) == 0 {
            testing::sleep(MILLI * self.0.u32(..most)).await;
        }
    }
}

/// What becomes of an address in the middle.
struct Outage {
    after: Duration,
    address: usize,
    kind: Kind,
    length: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It is closed, and opened again.
    Opened,
    /// It is closed, and dialed again, or opened where nobody answers.
    Dialed,
    /// Nobody there answers who dials.
    NoAnswer,
}

/// One after the other.
async fn disturb(manager: &Manager, addrs: Vec<SocketAddr>, outages: Vec<Outage>) {
    for Outage { after, address, kind, length } in outages {
        let addr = addrs[address];
        testing::sleep(after).await;
        if kind == Kind::NoAnswer {
            testing::black_hole(addr);
            testing::sleep(length).await;
            testing::heal(addr);
            continue;
        }
        // What it could not deliver are letters. Where the shutdown has begun with it, it stays closed.
        if let Err(Error::NotOpen { .. }) = manager.close(addr).await {
            return;
        }
        testing::sleep(length).await;
        if kind == Kind::Opened || manager.dial(addr).await.is_err() {
            let opened = manager.open(addr);
            assert!(matches!(opened, Ok(()) | Err(Error::Closed { .. })), "{opened:?}");
        }
    }
}

/// What an address received, and by which connection.
type Received = Arc<Mutex<Vec<(u64, u32)>>>;

/// An address that comes, dies and comes back until it is told to stay.
async fn serve(addr: Address, config: Config, received: Received, stays: Arc<AtomicBool>, mut draw: Draw) {
    loop {
        if !stays.load(Ordering::Relaxed) {
            testing::sleep(MILLI * draw.0.u32(..600)).await;
        }
        let mut listener = Listener::bind(&addr, config.clone()).await.unwrap();
        let dies = testing::now() + MILLI * draw.0.u32(..1_000);
        while testing::now() < dies || stays.load(Ordering::Relaxed) {
            if let Some(Some((peer, message))) = testing::within(Some(50 * MILLI), listener.next()).await {
                received.lock().unwrap().push((peer.id(), number(&message)));
                draw.dawdle(30).await;
            }
        }
    }
}

async fn produce(mut sink: RouteSink, messages: u32, mut draw: Draw) {
    for number in 0..messages {
        // An error of a flush is of messages that are letters.
        let message = draw.message(number);
        match draw.0.u8(..8) {
            0 => drop(sink.send(message).await),
            _ => sink.feed(message).await.unwrap(),
        }
        draw.dawdle(100).await;
    }
    match draw.0.bool() {
        true => drop(sink.flush().await),
        // In the background.
        false => drop(sink),
    }
}

/// Another producer for the same addresses. How many messages it sent; those to an address that is closed come back at once.
async fn produce_beside(mut sink: ManagerSink, addresses: &[Address], mut draw: Draw) -> u32 {
    let mut accepted = 0;
    for number in BESIDE..BESIDE + draw.0.u32(..40) {
        let to = addresses[draw.0.usize(..addresses.len())].clone();
        match sink.feed((to, draw.message(number))).await {
            Ok(()) => accepted += 1,
            Err(error) => assert!(matches!(error, Error::NotOpen { .. }), "{error}"),
        }
        draw.dawdle(150).await;
    }
    match draw.0.bool() {
        true => drop(sink.flush().await),
        false => drop(sink),
    }
    accepted
}

async fn take(mut letters: DeadLetters, mut draw: Draw) -> Vec<DeadLetter> {
    let mut taken = Vec::new();
    while let Some(letter) = letters.next().await {
        taken.push(letter);
        draw.dawdle(50).await;
    }
    taken
}

/// A decreasing sequence of this length, within those of one connection, takes as many ways by which messages came there.
fn longest_decrease(numbers: &[u32]) -> usize {
    let mut ends: Vec<u32> = Vec::new();
    for number in numbers {
        let at = ends.partition_point(|end| end > number);
        match ends.get_mut(at) {
            Some(end) => *end = *number,
            None => ends.push(*number),
        }
    }
    ends.len()
}

struct Books {
    route: Route,
    messages: u32,
    beside: u32,
    /// Whether an address was closed in the middle.
    closed: bool,
    received: BTreeMap<Address, Vec<(u64, u32)>>,
    letters: Vec<DeadLetter>,
    delivered: u64,
    lost: u64,
}

fn check(books: &Books) {
    let copies = if books.route.is_broadcast() { books.route.addresses().len() as u64 } else { 1 };
    let accepted = u64::from(books.messages) * copies + u64::from(books.beside);
    assert_eq!(accepted, books.delivered + books.letters.len() as u64 + books.lost, "each has one end");

    // Who had it, of a broadcast at each address by itself.
    let mut ends = BTreeMap::<(u32, Option<&Address>), u32>::new();
    let of = |address| books.route.is_broadcast().then_some(address);
    for (address, received) in &books.received {
        let mut connections = BTreeMap::<u64, Vec<u32>>::new();
        for (peer, number) in received {
            *ends.entry((*number, of(address))).or_default() += 1;
            connections.entry(*peer).or_default().push(*number);
        }
        // An address that is closed gives back at once what it has not accepted, and later the rest: as two addresses do.
        let trails = match (books.route.is_broadcast(), books.closed) {
            (true, _) => 1,
            (false, false) => [0, 1, 2, 5][books.route.addresses().len()],
            (false, true) => [0, 1, 3, 13][books.route.addresses().len()],
        };
        for numbers in connections.values() {
            let (routed, beside): (Vec<_>, Vec<_>) = numbers.iter().partition(|number| **number < BESIDE);
            assert!(longest_decrease(&routed) <= trails, "{address}: {numbers:?}");
            assert!(beside.is_sorted(), "{address}: {numbers:?}");
        }
    }
    assert!(ends.values().all(|times| *times == 1), "none is taken twice");
    for letter in &books.letters {
        let tried = letter.tried();
        assert!(tried.is_empty() || tried.last() == Some(&letter.address), "{letter:?}");
        assert!(tried.iter().enumerate().all(|(at, one)| !tried[..at].contains(one)), "{letter:?}");
        assert!(!books.route.is_broadcast() || tried.len() <= 1, "{letter:?}");
        let times = ends.entry((number(&letter.message), of(&letter.address))).or_default();
        let may_be_taken = letter.outcome == Outcome::InDoubt;
        assert!(*times == 0 || may_be_taken, "it was taken: {letter:?}");
        *times += 10;
        assert!(*times < 20, "it comes back twice: {letter:?}");
    }
}

async fn run(manager: Manager, config: Config, mut draw: Draw) {
    for _ in 0..FAULTS {
        testing::plan(draw.cut());
    }
    let addrs: Vec<_> = (1..=draw.0.u16(1..=3)).map(|n| SocketAddr::from(([127, 0, 0, 1], 5000 + n))).collect();
    let addresses: Vec<_> = addrs.iter().map(|addr| Address::from(*addr)).collect();
    let stays = Arc::new(AtomicBool::new(false));
    let mut received = BTreeMap::<Address, Received>::new();
    let mut serving = Vec::new();
    for address in &addresses {
        let of_address = received.entry(address.clone()).or_default().clone();
        serving.push(testing::spawn(serve(address.clone(), config.clone(), of_address, stays.clone(), draw.fork())));
    }
    let (letters, route, messages) = (manager.dead_letters(), draw.route(&addresses), draw.0.u32(1..60));
    addresses.iter().for_each(|address| manager.open(address).unwrap());
    let outages = draw.outages(addresses.len());
    let closed = outages.iter().any(|outage| outage.kind != Kind::NoAnswer);
    let disturbing = disturb(&manager, addrs, outages);
    let (producing, beside, taking) = (draw.fork(), draw.0.bool().then(|| draw.fork()), draw.fork());
    let sending = async {
        let producing = produce(manager.sink_to(route.clone()), messages, producing);
        let beside = async {
            match beside {
                Some(draw) => produce_beside(manager.sink(), &addresses, draw).await,
                None => 0,
            }
        };
        let ((), beside) = join(producing, beside).await;
        stays.store(true, Ordering::Relaxed);
        testing::sleep(MILLI * draw.0.u32(..1_000)).await;
        match draw.0.bool() {
            true => drop(manager.shutdown_in_order(&addresses, 20_000 * MILLI).await),
            false => drop(manager.shutdown(20_000 * MILLI).await),
        }
        beside
    };
    let (beside, letters, ()) = join3(sending, take(letters, taking), disturbing).await;
    let stats = manager.stats();
    let delivered = if config.get_session().is_some() { stats.total.acked } else { stats.total.written };
    let received = received.into_iter().map(|(address, received)| (address, received.lock().unwrap().clone()));
    let (received, lost) = (received.collect(), stats.lost);
    check(&Books { route, messages, beside, closed, received, letters, delivered, lost });
}

/// Every seed of these: `BUFFSTREAMS_SEEDS` says how many, 1,000 if it is not set.
#[test]
fn each_message_of_a_route_has_one_end_whatever_dies() {
    let seeds = env::var("BUFFSTREAMS_SEEDS").map_or(1_000, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        named(format_args!("seed {seed}"), || {
            let mut draw = Draw(fastrand::Rng::with_seed(seed));
            let (config, capacity) = (draw.config(), draw.0.usize(500..64 << 10));
            let manager = Manager::new(config.clone());
            let watched = manager.clone();
            let has_session = config.get_session().is_some();
            let balances = || {
                let total = watched.stats().total;
                let over = if has_session { total.acked } else { total.written };
                assert_eq!(total.accepted, over + total.dead_lettered + total.held, "{total:?}");
            };
            let sim = Sim { capacity, seed: Some(seed), ..Sim::default() };
            sim.run_watched(run(manager, config, draw), balances);
        });
    }
}
