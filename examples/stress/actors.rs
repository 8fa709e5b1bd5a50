//! What the actors share: the pauses and the end, who is where, and a watchdog that finds one that hangs.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use buffstreams::Address;
use fastrand::Rng;

use super::books::{Books, violation};
use super::faults;
use super::tasks::no_panic;

/// An actor that says nothing for so long hangs.
const HANG: Duration = Duration::from_secs(20);
/// How often an actor that rests says so, and the watchdog looks.
const TICK: Duration = Duration::from_millis(100);

/// What an actor does, and since when.
pub(crate) struct Beat {
    name: String,
    state: Mutex<State>,
}

struct State {
    what: &'static str,
    since: Instant,
    episodes: u64,
    ended: bool,
}

impl Beat {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// It goes on with this.
    pub(crate) fn at(&self, what: &'static str) {
        let mut state = lock(&self.state);
        (state.what, state.since) = (what, Instant::now());
    }

    /// Lets others act.
    pub(crate) fn rest(&self, time: Duration) {
        self.at("rests");
        thread::sleep(time);
    }

    fn describe(&self) -> String {
        let State { what, since, episodes, ended } = *lock(&self.state);
        let ended = if ended { ", ended" } else { "" };
        format!("{:16} {what}, for {:?}, in episode {episodes}{ended}", self.name, since.elapsed())
    }
}

/// All that the actors share.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) books: Books,
    places: Mutex<Vec<(Address, Manners)>>,
    beats: Mutex<Vec<Arc<Beat>>>,
    gate: Mutex<Gate>,
    moved: Condvar,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    over: bool,
    resting: usize,
}

/// How the end behaves that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// It receives.
    Receives,
    /// It answers each message with the same.
    Answers,
    /// Everything else.
    Bad,
}

/// An address that others may dial, until this is dropped.
pub(crate) struct Sign {
    world: Arc<World>,
    address: Address,
}

impl Drop for Sign {
    fn drop(&mut self) {
        lock(&self.world.places).retain(|(address, _)| *address != self.address);
    }
}

impl World {
    pub(crate) fn publish(self: &Arc<Self>, address: impl Into<Address>, manners: Manners) -> Sign {
        let address = address.into();
        lock(&self.places).push((address.clone(), manners));
        Sign { world: self.clone(), address }
    }

    /// Somebody to dial.
    pub(crate) fn anybody(&self, rng: &mut Rng) -> Option<(Address, Manners)> {
        rng.choice(&*lock(&self.places)).cloned()
    }

    /// Starts an actor on a thread of its own: one episode after the other, until all is over. The choices of each follow
    /// from the seed and its number.
    pub(crate) fn start(
        self: &Arc<Self>,
        name: &str,
        seed: u64,
        mut episode: impl FnMut(&Arc<Self>, &Beat, &mut Rng) + Send + 'static,
    ) -> thread::JoinHandle<()> {
        let state = State { what: "starts", since: Instant::now(), episodes: 0, ended: false };
        let beat = Arc::new(Beat { name: name.to_owned(), state: Mutex::new(state) });
        let number = {
            let mut beats = lock(&self.beats);
            beats.push(beat.clone());
            beats.len() as u64
        };
        let (world, mut rng) = (self.clone(), Rng::with_seed(seed ^ number << 32));
        thread::spawn(move || {
            while world.may_act(&beat).is_continue() {
                lock(&beat.state).episodes += 1;
                if no_panic(|| episode(&world, &beat, &mut rng)).is_none() {
                    violation(format!("a panic came out of the library: {}", beat.describe()));
                }
            }
            drop(episode);
            lock(&beat.state).ended = true;
        })
    }

    /// Waits while all pause.
    fn may_act(&self, beat: &Beat) -> ControlFlow<()> {
        let mut gate = lock(&self.gate);
        gate.resting += usize::from(gate.closed);
        let mut rested = gate.closed;
        while gate.closed && !gate.over {
            beat.at("pauses");
            gate = self.moved.wait_timeout(gate, TICK).unwrap_or_else(PoisonError::into_inner).0;
            rested = true;
        }
        gate.resting -= usize::from(rested);
        if gate.over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Waits until every actor has ended its episode. They go on when `meanwhile` has ended.
    pub(crate) fn pause<T>(&self, meanwhile: impl FnOnce() -> T) -> T {
        lock(&self.gate).closed = true;
        while lock(&self.gate).resting < lock(&self.beats).len() {
            thread::sleep(Duration::from_millis(10));
        }
        let output = meanwhile();
        lock(&self.gate).closed = false;
        self.moved.notify_all();
        output
    }

    /// No more episodes.
    pub(crate) fn end(&self) {
        lock(&self.gate).over = true;
        self.moved.notify_all();
    }

    /// Looks for an actor that hangs, until it is told to stop. Then it says where all of them are, and ends the process:
    /// nobody else may be able to.
    pub(crate) fn watch(self: &Arc<Self>, how: String) -> Watchdog {
        let (world, over) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let stop = over.clone();
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                thread::park_timeout(TICK);
                let beats = lock(&world.beats).clone();
                let hangs = |beat: &&Arc<Beat>| {
                    let state = lock(&beat.state);
                    !state.ended && state.since.elapsed() > HANG
                };
                if let Some(hung) = beats.iter().find(hangs) {
                    eprintln!("{} hangs: {how}", hung.name);
                    beats.iter().for_each(|beat| eprintln!("  {}", beat.describe()));
                    faults::counts().iter().for_each(|(name, count)| eprintln!("  {count:>9}  {name}"));
                    super::books::violations().iter().for_each(|what| eprintln!("broken: {what}"));
                    std::process::exit(2);
                }
            }
        });
        Watchdog { over, thread }
    }
}

/// Stops with [`stop`](Self::stop).
pub(crate) struct Watchdog {
    over: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Watchdog {
    pub(crate) fn stop(self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        let _ = self.thread.join();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
