//! One run: actors of every kind at once, each on a thread of its own, and what must hold when they have ended.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use buffstreams::{Connection, Listener};
use futures::executor::block_on;

mod accounts;
mod actors;
pub(crate) mod books;
mod clients;
mod executor;
mod faults;
mod foreign;
mod managers;
mod process;
mod producers;
/// Only a part of it is needed here.
#[allow(dead_code)]
#[path = "../fault_lab/proxy.rs"]
mod proxy;
mod raw;
mod servers;
mod tasks;
mod timer;

use actors::World;
pub(crate) use faults::leave_out;
use process::InUse;

/// From so many seconds on, everything must have happened that can.
const LONG: u64 = 60;
/// How long what has ended may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How often a soak looks at what is in use, and from when on that must not grow. One of less than four minutes does so
/// sooner, and only prints the memory.
const SAMPLE: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(60);
/// How much more memory may be in use at the end than after the warm-up, in KiB, if that is more than a tenth.
const MORE: usize = 8 * 1024;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    /// Whether the use of memory, descriptors and threads is compared with that after a warm-up, everything at rest.
    pub(crate) soak: bool,
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, seconds, soak } = self;
        write!(f, "--seed {seed} --seconds {seconds}{}", if *soak { " --soak" } else { "" })
    }
}

/// What a run came to.
pub(crate) struct Report {
    counts: Vec<(&'static str, u64)>,
    sent: u64,
    received: u64,
    before: InUse,
    after: InUse,
    took: Duration,
    /// The rules that are broken; none, if all is well.
    pub(crate) broken: Vec<String>,
}

/// Runs to the end. If an actor hangs, it says which, and ends the process with status 2.
pub(crate) fn run(settings: Settings) -> Report {
    let start = Instant::now();
    let Settings { seed, seconds, soak } = settings;
    faults::seed(seed);
    faults::hook();
    warm_up();
    let before = InUse::now();
    faults::logger();

    let world = Arc::new(World::default());
    let watchdog = world.watch(settings.to_string());
    let actors = start_actors(&world, seed);
    if soak {
        soak_for(&world, before, actors.len(), Duration::from_secs(seconds));
    } else {
        std::thread::sleep(Duration::from_secs(seconds));
    }
    world.end();
    actors.into_iter().for_each(|actor| drop(actor.join()));
    watchdog.stop();

    let after = before.at_most(GONE).unwrap_or_else(|(after, open)| {
        books::violation(format!("{before} before, {after} after: {open}"));
        after
    });
    let counts = faults::counts();
    let never = faults::never().filter(|_| seconds >= LONG).map(|name| format!("this never happened: {name}"));
    let unplanted = Some(faults::unplanted()).filter(|panics| *panics > 0);
    let unplanted = unplanted.map(|panics| format!("{panics} panics were not planted"));
    let broken = books::violations().into_iter().chain(never).chain(unplanted).collect();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let (sent, received) = (count(&world.books.sent), count(&world.books.received));
    Report { counts, sent, received, before, after, took: start.elapsed(), broken }
}

/// Has the runtimes start what they start once for all.
fn warm_up() {
    block_on(async {
        let mut listener = Listener::bind("127.0.0.1:0", servers::config()).await?;
        drop(Connection::dial(listener.local_addr(), servers::config()).await?);
        timer::sleep(Duration::from_millis(1)).await;
        listener.close().await
    })
    .unwrap_or_else(|error| books::violation(format!("the warm-up: {error:?}")));
    // What ends in the background does so soon.
    std::thread::sleep(Duration::from_millis(100));
}

fn start_actors(world: &Arc<World>, seed: u64) -> Vec<JoinHandle<()>> {
    let mut actors = Vec::new();
    let mut listener = None;
    actors.push(world.start("lasting listener", seed, move |world, beat, rng| {
        if listener.is_none() {
            listener = servers::lasting(world, beat, rng);
        }
        listener.iter().for_each(|listener| listener.look(beat));
    }));
    let mut account = None;
    actors.push(world.start("lasting manager", seed, move |world, beat, rng| {
        let account = account.get_or_insert_with(|| managers::open(rng));
        managers::episode_of(account, world, beat, rng);
    }));
    for n in 0..3 {
        actors.push(world.start(&format!("listener {n}"), seed, servers::episode));
        actors.push(world.start(&format!("manager {n}"), seed, managers::episode));
    }
    for n in 0..2 {
        actors.push(world.start(&format!("clients {n}"), seed, clients::episode));
    }
    actors.push(world.start("bad peers", seed, raw::dial));
    actors.push(world.start("bad server", seed, raw::listen));
    actors
}

/// Lets all act, and looks at the use of the process each time when all rest and nothing is open but the listener that
/// lasts. It must be at the end what it was after the warm-up.
fn soak_for(world: &Arc<World>, before: InUse, actors: usize, time: Duration) {
    let (warm_up, sample) = (WARM_UP.min(time / 4), SAMPLE.min(time / 8));
    let at_rest = InUse { descriptors: before.descriptors + 1, threads: before.threads + actors + 1, memory: 0 };
    let (start, mut first) = (Instant::now(), None);
    loop {
        std::thread::sleep(sample);
        let rest = world.pause(|| {
            world.books.retire();
            at_rest.at_most(GONE).unwrap_or_else(|(rest, open)| {
                books::violation(format!("at rest, {at_rest} may be in use, and there are {rest}: {open}"));
                rest
            })
        });
        let since = start.elapsed();
        println!("{:>4} s: {rest}", since.as_secs());
        if since < warm_up {
            continue;
        }
        let first = *first.get_or_insert(rest);
        if since < time {
            continue;
        }
        // Before, heaps still grow to what they need.
        if warm_up == WARM_UP && rest.memory > first.memory + MORE.max(first.memory / 10) {
            books::violation(format!("memory has grown: {} KiB after the warm-up, {} now", first.memory, rest.memory));
        }
        if (rest.descriptors, rest.threads) != (first.descriptors, first.threads) {
            books::violation(format!("after the warm-up: {first}; at the end: {rest}"));
        }
        return;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counts, sent, received, before, after, took, .. } = self;
        writeln!(f, "{:.1} s, {sent} messages sent, {received} received", took.as_secs_f64())?;
        writeln!(f, "in use before: {before}; after: {after}")?;
        counts.iter().try_for_each(|(name, count)| writeln!(f, "{count:>9}  {name}"))
    }
}
