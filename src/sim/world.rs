//! A world for one thread: its tasks, which run one at a time in an order that a seed decides, and its clock, which jumps
//! to the next timer when nothing can run.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use super::network::Network;

/// After so many polls at one moment something only goes in circles.
const POLLS_AT_ONCE: u64 = 1_000_000;
/// The future that was given to `run`.
const MAIN: u64 = 0;

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// How a world is made.
#[derive(Clone, Debug)]
pub(crate) struct Sim {
    /// How many bytes each direction of a connection holds.
    pub(crate) capacity: usize,
    /// Shuffles the order in which tasks run; without it, first come, first served.
    pub(crate) seed: Option<u64>,
    /// Whether to keep a record of what happens.
    pub(crate) traced: bool,
}

impl Default for Sim {
    fn default() -> Self {
        Self { capacity: 64 * 1024, seed: None, traced: false }
    }
}

pub(super) struct World {
    start: Instant,
    now: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    tasks: BTreeMap<u64, Task>,
    /// The last number that was given to a task or a timer.
    last: u64,
    ready: Ready,
    random: Option<u64>,
    trace: Option<Vec<String>>,
    planted: Option<&'static str>,
    pub(super) network: Network,
}

type Ready = Arc<Mutex<VecDeque<Arc<Call>>>>;

struct Task {
    /// `None` while it is being polled.
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    call: Arc<Call>,
    cancelled: bool,
    /// Those who wait for its end.
    joining: Vec<Waker>,
}

/// Wakes a task.
struct Call {
    task: u64,
    called: AtomicBool,
    ready: Ready,
}

impl Call {
    fn new(task: u64, ready: &Ready) -> Arc<Self> {
        Arc::new(Self { task, called: AtomicBool::new(false), ready: ready.clone() })
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        if !self.called.swap(true, Ordering::Relaxed) {
            self.ready.clone().lock().unwrap().push_back(self);
        }
    }
}

impl Sim {
    /// Runs `main` to its end in a world of its own, which ends with it.
    pub(crate) fn run<F: Future>(self, main: F) -> F::Output {
        self.run_watched(main, || {})
    }

    /// Calls `watch` after each poll of a task.
    pub(crate) fn run_watched<F: Future>(self, main: F, mut watch: impl FnMut()) -> F::Output {
        let ready = Ready::default();
        let world = World {
            start: Instant::now(),
            now: Duration::ZERO,
            timers: BTreeMap::new(),
            tasks: BTreeMap::new(),
            last: MAIN,
            ready: ready.clone(),
            // Any number but 0, and far from that of the next seed.
            random: self.seed.map(|seed| (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            trace: self.traced.then(Vec::new),
            planted: None,
            network: Network::new(self.capacity),
        };
        let before = WORLD.with_borrow_mut(|here| here.replace(world));
        assert!(before.is_none(), "there is one world at a time");
        let _end = End;
        let mut main = pin!(main);
        let call = Call::new(MAIN, &ready);
        call.clone().wake();
        let mut polls = 0;
        loop {
            let Some(next) = with(World::next).flatten() else {
                assert!(with(World::jump).unwrap_or(false), "deadlock: nothing can run, and nothing will wake it");
                polls = 0;
                continue;
            };
            polls += 1;
            assert!(polls < POLLS_AT_ONCE, "livelock: tasks wake each other for ever");
            next.called.store(false, Ordering::Relaxed);
            trace(|| format!("task {}", next.task));
            if next.task == MAIN {
                if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&call.clone().into())) {
                    return output;
                }
            } else {
                poll_task(&next);
            }
            watch();
        }
    }
}

/// Ends the world, and all that lives in it.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        // What ends may start something else.
        while let Some((_, task)) = with(|world| world.tasks.pop_first()).flatten() {
            drop(task);
        }
        drop(WORLD.with_borrow_mut(Option::take));
    }
}

/// `None` where there is no world: it has ended.
pub(super) fn with<T>(visit: impl FnOnce(&mut World) -> T) -> Option<T> {
    WORLD.with_borrow_mut(|world| world.as_mut().map(visit))
}

impl World {
    fn next(&mut self) -> Option<Arc<Call>> {
        let mut ready = self.ready.lock().unwrap();
        match &mut self.random {
            Some(random) if ready.len() > 1 => {
                // Marsaglia's xorshift.
                *random ^= *random << 13;
                *random ^= *random >> 7;
                *random ^= *random << 17;
                let at = *random % ready.len() as u64;
                ready.remove(at as usize)
            }
            _ => ready.pop_front(),
        }
    }

    /// To the moment of the next timer; `false` when there is none.
    fn jump(&mut self) -> bool {
        let Some(((due, _), waker)) = self.timers.pop_first() else { return false };
        self.now = self.now.max(due);
        waker.wake();
        while let Some(entry) = self.timers.first_entry().filter(|entry| entry.key().0 <= due) {
            entry.remove().wake();
        }
        if let Some(trace) = &mut self.trace {
            trace.push(format!("clock {:?}", self.now));
        }
        true
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

fn poll_task(call: &Arc<Call>) {
    let id = call.task;
    let taken = with(|world| world.tasks.get_mut(&id).and_then(|task| Some((task.future.take()?, task.cancelled))));
    let Some((mut future, cancelled)) = taken.flatten() else { return };
    let ended = cancelled || future.as_mut().poll(&mut Context::from_waker(&call.clone().into())).is_ready();
    if ended {
        // Before those who wait for its end are told, and while nothing is borrowed.
        drop(future);
        let joining = with(|world| world.tasks.remove(&id)).flatten().map(|task| task.joining);
        joining.into_iter().flatten().for_each(Waker::wake);
    } else {
        with(|world| world.tasks.get_mut(&id).map(|task| task.future = Some(future)));
    }
}

/// Starts a task, and returns its number.
pub(super) fn start(future: Pin<Box<dyn Future<Output = ()> + Send>>) -> u64 {
    let started = with(|world| {
        let id = world.number();
        let call = Call::new(id, &world.ready);
        call.clone().wake();
        world.tasks.insert(id, Task { future: None, call, cancelled: false, joining: Vec::new() });
        id
    });
    let Some(id) = started else { return MAIN };
    with(|world| world.tasks.get_mut(&id).map(|task| task.future = Some(future)));
    id
}

/// The task is dropped when its turn comes, as by a runtime of threads.
pub(super) fn cancel(id: u64) {
    with(|world| {
        if let Some(task) = world.tasks.get_mut(&id) {
            task.cancelled = true;
            task.call.clone().wake();
        }
    });
}

pub(super) fn poll_joined(id: u64, cx: &mut Context<'_>) -> Poll<()> {
    let running = with(|world| world.tasks.get_mut(&id).map(|task| task.joining.push(cx.waker().clone())));
    if running.flatten().is_some() { Poll::Pending } else { Poll::Ready(()) }
}

/// What time it is here.
pub(crate) fn now() -> Instant {
    with(|world| world.start + world.now).unwrap_or_else(Instant::now)
}

/// How long the world has existed.
pub(crate) fn elapsed() -> Duration {
    with(|world| world.now).unwrap_or_default()
}

/// Keeps the only thread busy for so long: nothing else can run meanwhile.
pub(crate) fn block(duration: Duration) {
    with(|world| world.now += duration);
}

/// A defect: the next time that the library does this, it panics.
pub(crate) fn plant(what: &'static str) {
    with(|world| world.planted = Some(what));
}

/// What is done; it may be what a defect was planted in.
pub(super) fn does(what: &'static str) {
    let planted = with(|world| world.planted.take_if(|planted| *planted == what)).flatten();
    assert!(planted.is_none(), "planted: {what}");
}

/// Notes what happens, if anybody wants to know.
pub(crate) fn trace(line: impl FnOnce() -> String) {
    with(|world| world.trace.as_mut().map(|trace| trace.push(line())));
}

pub(crate) fn take_trace() -> Vec<String> {
    with(|world| world.trace.as_mut().map(mem::take)).flatten().unwrap_or_default()
}

/// A timer.
pub(super) struct Sleep {
    due: Duration,
    timer: Option<u64>,
}

impl Sleep {
    pub(super) fn new(duration: Duration) -> Self {
        Self { due: elapsed().saturating_add(duration), timer: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let polled = with(|world| {
            if world.now >= this.due {
                return Poll::Ready(());
            }
            let timer = *this.timer.get_or_insert_with(|| world.number());
            world.timers.insert((this.due, timer), cx.waker().clone());
            Poll::Pending
        });
        polled.unwrap_or(Poll::Pending)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            with(|world| world.timers.remove(&(self.due, timer)));
        }
    }
}
