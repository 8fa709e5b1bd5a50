//! A world of one thread: its tasks, which run one at a time in an order that a seed decides, and its clock, which jumps
//! to the next timer when nothing can run.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::network::Network;
use crate::foreign;
use crate::framed::FreshBuffers;
use crate::runtime::Timer;
use crate::sync::Lock;

/// After so many polls at one moment something only goes in circles.
const POLLS_AT_ONCE: u64 = 1_000_000;
/// After so many jumps of the clock without a poll of the program, it is asked whether it waits for a time at all.
const JUMPS_ALONE: u64 = 1_000_000;
/// The future that was given to `run`.
const MAIN: u64 = 0;
/// Where the hash begins: that of FNV.
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

/// What happens in a world, for its hash.
#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Poll,
    Jump,
    Draw,
    Connect,
    Accept,
    Read,
    Write,
    /// A connection is closed or reset, at one of its ends or on the way.
    End,
}

/// What the clones of a simulation share.
pub(super) struct World {
    start: Instant,
    state: Lock<State>,
    ready: Ready,
}

struct State {
    now: Duration,
    timers: BTreeMap<(Duration, u64), Set>,
    tasks: BTreeMap<u64, Task>,
    /// The task that is being polled, or was last.
    polled: u64,
    /// The last number that was given to a task or a timer.
    last: u64,
    seed: Option<u64>,
    /// Decides the order of tasks; 0 for first come, first served.
    order: u64,
    /// What is drawn.
    random: u64,
    trace: Option<Vec<String>>,
    hash: u64,
    ended: bool,
    network: Network,
    #[cfg(test)]
    planted: Option<(&'static str, Option<End>)>,
}

/// A timer that is set.
struct Set {
    /// By whom.
    task: u64,
    waker: Waker,
}

/// One end of a connection.
#[cfg(test)]
type End = (Arc<Lock<super::cable::Cable>>, super::cable::Side);

type Ready = Arc<Calls>;
type Calls = Lock<VecDeque<Arc<Call>>>;

struct Task {
    /// `None` while it is being polled.
    future: Option<BoxFuture<'static, ()>>,
}

/// Wakes a task.
pub(super) struct Call {
    pub(super) task: u64,
    called: AtomicBool,
    /// Not the queue itself, which holds this while it is there.
    ready: Weak<Calls>,
}

impl Call {
    fn new(task: u64, ready: &Ready) -> Arc<Self> {
        Arc::new(Self { task, called: AtomicBool::new(false), ready: Arc::downgrade(ready) })
    }

    /// It is being answered: from now on, the task is called anew.
    pub(super) fn begin(&self) {
        self.called.store(false, Ordering::Relaxed);
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        if !self.called.swap(true, Ordering::Relaxed)
            && let Some(ready) = self.ready.upgrade()
        {
            ready.lock().push_back(self);
        }
    }
}

/// Any number but 0, and far from that of the next seed.
fn scatter(seed: u64) -> u64 {
    seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// No two numbers make the same of one hash.
fn mix(hash: u64, number: u64) -> u64 {
    (hash.rotate_left(5) ^ number).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// A number for these bytes, in words for speed.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let all = words.iter().copied().chain([last]);
    all.fold(HASH_START ^ bytes.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(word)))
}

/// Marsaglia's xorshift.
fn draw(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

impl World {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            now: Duration::ZERO,
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            polled: MAIN,
            last: MAIN,
            seed: None,
            order: 0,
            random: scatter(0),
            trace: None,
            hash: HASH_START,
            ended: false,
            network: Network::new(capacity),
            #[cfg(test)]
            planted: None,
        };
        Self { start: Instant::now(), state: Lock::new(state), ready: Ready::default() }
    }

    pub(super) fn set_seed(&self, seed: u64) {
        let mut state = self.state.lock();
        (state.seed, state.order, state.random) = (Some(seed), scatter(seed), scatter(!seed));
    }

    pub(super) fn set_traced(&self) {
        self.state.lock().trace = Some(Vec::new());
    }

    pub(super) fn network<T>(&self, visit: impl FnOnce(&mut Network) -> T) -> T {
        visit(&mut self.state.lock().network)
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.state.lock().now
    }

    pub(super) fn now(&self) -> Instant {
        self.start + self.elapsed()
    }

    pub(super) fn draw(&self) -> u64 {
        let mut state = self.state.lock();
        let drawn = draw(&mut state.random);
        state.note(What::Draw, &[drawn], || format!("draws {drawn}"));
        drawn
    }

    pub(super) fn take_trace(&self) -> Vec<String> {
        self.state.lock().trace.as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn hash(&self) -> u64 {
        self.state.lock().hash
    }

    /// Notes what happens: in numbers, and in words if anybody wants to read them.
    pub(super) fn trace(&self, what: What, numbers: &[u64], line: impl FnOnce() -> String) {
        self.state.lock().note(what, numbers, line);
    }

    /// Runs `main` to its end, and ends the world with it. `watch` is called after each poll of a task.
    pub(super) fn run<F: Future>(&self, main: F, mut watch: impl FnMut()) -> F::Output {
        let _ending = Ending(self);
        let _fresh = FreshBuffers::begin();
        let mut main = pin!(main);
        let call = Call::new(MAIN, &self.ready);
        call.clone().wake();
        // Since the clock jumped, and since the program was polled.
        let (mut polls, mut jumps) = (0, 0);
        loop {
            let Some(next) = self.next() else {
                if jumps == JUMPS_ALONE {
                    assert!(
                        self.is_timed(MAIN),
                        "stalled after {:?}: the clock has jumped {JUMPS_ALONE} times, which woke others, and the program waits \
                         for nothing that has a time; {}",
                        self.elapsed(),
                        self.told_seed()
                    );
                    jumps = 0;
                }
                jumps += 1;
                assert!(
                    self.jump(),
                    "stalled after {:?}: nothing can run, no timer is set, and nothing in here will wake anybody; {}",
                    self.elapsed(),
                    self.told_seed()
                );
                polls = 0;
                continue;
            };
            polls += 1;
            assert!(polls < POLLS_AT_ONCE, "livelock: tasks wake each other for ever; {}", self.told_seed());
            next.begin();
            {
                let mut state = self.state.lock();
                state.polled = next.task;
                state.note(What::Poll, &[next.task], || format!("task {}", next.task));
            }
            if next.task == MAIN {
                jumps = 0;
                if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&call.clone().into())) {
                    return output;
                }
            } else {
                self.poll_task(&next);
            }
            watch();
        }
    }

    /// Whether this task has set a timer. That timer's waker does not tell: it may wake the task by way of others.
    fn is_timed(&self, task: u64) -> bool {
        self.state.lock().timers.values().any(|set| set.task == task)
    }

    fn told_seed(&self) -> String {
        self.state.lock().seed.map_or_else(|| "no seed was given".to_owned(), |seed| format!("the seed is {seed}"))
    }

    /// Takes out a call of a task that can run.
    pub(super) fn next(&self) -> Option<Arc<Call>> {
        let mut ready = self.ready.lock();
        if ready.len() < 2 {
            return ready.pop_front();
        }
        let mut state = self.state.lock();
        if state.order == 0 {
            return ready.pop_front();
        }
        let at = draw(&mut state.order) % ready.len() as u64;
        ready.remove(at as usize)
    }

    /// To the moment of the next timer; `false` when there is none.
    pub(super) fn jump(&self) -> bool {
        let mut due = Vec::new();
        {
            let mut state = self.state.lock();
            let Some(((at, _), set)) = state.timers.pop_first() else { return false };
            state.now = state.now.max(at);
            due.push(set.waker);
            while let Some(entry) = state.timers.first_entry().filter(|entry| entry.key().0 <= at) {
                due.push(entry.remove().waker);
            }
            let now = state.now;
            state.note(What::Jump, &[now.as_nanos() as u64], || format!("clock {now:?}"));
        }
        wake(due);
        true
    }

    pub(super) fn poll_task(&self, call: &Arc<Call>) {
        let taken = self.state.lock().tasks.get_mut(&call.task).and_then(|task| task.future.take());
        let Some(mut future) = taken else { return };
        if future.as_mut().poll(&mut Context::from_waker(&call.clone().into())).is_ready() {
            drop(future);
            self.state.lock().tasks.remove(&call.task);
        } else if let Some(task) = self.state.lock().tasks.get_mut(&call.task) {
            task.future = Some(future);
        }
    }

    /// Starts a task. Where the world has ended, it is dropped.
    pub(super) fn spawn(&self, future: BoxFuture<'static, ()>) {
        let call = {
            let mut state = self.state.lock();
            if state.ended {
                return;
            }
            let id = state.number();
            let call = Call::new(id, &self.ready);
            state.tasks.insert(id, Task { future: Some(future) });
            call
        };
        call.wake();
    }

    fn wait(&self, at: Duration, timer: &mut Option<u64>, waker: &Waker) -> Poll<()> {
        let replaced = {
            let mut state = self.state.lock();
            if state.now >= at {
                return Poll::Ready(());
            }
            let timer = *timer.get_or_insert_with(|| state.number());
            state.set(at, timer, waker)
        };
        let _ = foreign::dispose(replaced);
        Poll::Pending
    }

    #[cfg(test)]
    pub(super) fn block(&self, duration: Duration) {
        self.state.lock().now += duration;
    }

    #[cfg(test)]
    pub(super) fn plant(&self, what: &'static str, end: Option<End>) {
        self.state.lock().planted = Some((what, end));
    }

    /// What is done; it may be what a defect was planted in.
    #[cfg(test)]
    pub(super) fn does(&self, what: &'static str, end: Option<&End>) {
        let is_it = |planted: &mut (&'static str, Option<End>)| match (&planted.1, end) {
            (Some((planted_in, side)), Some((cable, here))) => {
                planted.0 == what && Arc::ptr_eq(planted_in, cable) && side == here
            }
            (Some(_), None) => false,
            (None, _) => planted.0 == what,
        };
        let planted = self.state.lock().planted.take_if(is_it);
        assert!(planted.is_none(), "planted: {what}");
    }

    /// Wakes somebody at that time, unless it is further away than the clock can tell.
    pub(super) fn wake_at(&self, at: Duration, waker: &Waker) {
        if self.start.checked_add(at).is_none() {
            return;
        }
        let mut state = self.state.lock();
        let timer = state.number();
        let _ = state.set(at, timer, waker);
    }

    fn forget(&self, at: Duration, timer: Option<u64>) {
        let Some(timer) = timer else { return };
        let left = self.state.lock().timers.remove(&(at, timer));
        let _ = foreign::dispose(left);
    }
}

pub(super) fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        let _ = foreign::wake(waker);
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Who is woken no more is handed out, to be dropped elsewhere.
    fn set(&mut self, at: Duration, timer: u64, waker: &Waker) -> Option<Set> {
        self.timers.insert((at, timer), Set { task: self.polled, waker: waker.clone() })
    }

    fn note(&mut self, what: What, numbers: &[u64], line: impl FnOnce() -> String) {
        self.hash = numbers.iter().fold(mix(self.hash, what as u64), |hash, number| mix(hash, *number));
        if let Some(trace) = &mut self.trace {
            trace.push(line());
        }
    }
}

/// Ends the world, and all that lives in it.
pub(super) struct Ending<'a>(pub(super) &'a World);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        // What ends may start something else.
        while let Some((_, task)) = { self.0.state.lock().tasks.pop_first() } {
            drop(task);
        }
        let timers = {
            let mut state = self.0.state.lock();
            state.ended = true;
            std::mem::take(&mut state.timers)
        };
        let _ = foreign::dispose(timers);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("World").field("now", &state.now).field("seed", &state.seed).finish_non_exhaustive()
    }
}

/// A timer.
pub(super) struct Alarm {
    world: Arc<World>,
    at: Duration,
    timer: Option<u64>,
}

impl Alarm {
    pub(super) fn new(world: Arc<World>, at: Instant) -> Self {
        let at = at.saturating_duration_since(world.start);
        Self { world, at, timer: None }
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.world.wait(this.at, &mut this.timer, cx.waker())
    }
}

impl Timer for Alarm {
    fn reset(self: Pin<&mut Self>, at: Instant) {
        let this = self.get_mut();
        this.world.forget(this.at, this.timer.take());
        this.at = at.saturating_duration_since(this.world.start);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.world.forget(self.at, self.timer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because only the count of those who hold it shows what is left.
    #[test]
    fn a_task_that_has_not_run_at_the_end_leaves_nothing_behind() {
        let world = World::new(1);
        let ready = Arc::downgrade(&world.ready);
        world.run(async { world.spawn(Box::pin(async {})) }, || {});
        drop(world);
        assert!(ready.upgrade().is_none());
    }
}
