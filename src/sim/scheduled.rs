//! A world of several threads, in an order that shuttle draws: each lock and each atomic is a place where another thread may go on.
//!
//! In the [simulator](super) a poll is never interrupted. Here the same tasks, sockets and clock are those of an executor of three
//! threads, so that two ends of a race meet in the middle of it. `.ci/interleavings` builds and runs this.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use futures::FutureExt;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{FailurePersistence, Runner, thread};

use super::testing::Sim;
use super::world::{Call, Ending, World};
use crate::sync::Lock;

const THREADS: usize = 3;
/// How many orders each of the two schedulers draws, if `BUFFSTREAMS_SEEDS` says nothing else.
const ORDERS: usize = 120;
/// Where they begin to draw.
const SEED: u64 = 11;
/// How often PCT lets another thread go first.
const CHANGES: usize = 4;
/// What a poll needs in a build for tests.
const STACK: usize = 1 << 20;

/// Runs `main` in a world of its own for each order. It is polled as a task, so it, and no other, may fail by a panic.
pub(crate) fn explore<F>(sim: Sim, main: impl Fn() -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    // Some locks belong to the process, and those of shuttle to the thread that runs it.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let orders = std::env::var("BUFFSTREAMS_SEEDS").map_or(ORDERS, |orders| orders.parse().expect("a number"));
    let main = Arc::new(main);
    run("random", RandomScheduler::new_from_seed(SEED, orders), &sim, &main);
    run("PCT", PctScheduler::new_from_seed(SEED, CHANGES, orders), &sim, &main);
}

/// Says in which order `main` failed.
fn run<F>(name: &str, orders: impl Scheduler + 'static, sim: &Sim, main: &Arc<impl Fn() -> F + Send + Sync + 'static>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    // An order is thousands of choices: its number says the same.
    config.silence_warnings = true;
    config.failure_persistence = FailurePersistence::None;
    let begun = Arc::new(AtomicUsize::new(0));
    let (sim, main, count) = (sim.clone(), main.clone(), begun.clone());
    let world = move || {
        let seed = count.fetch_add(1, Ordering::Relaxed) as u64;
        let sim = Sim { seed: Some(seed), ..sim.clone() };
        sim.enter(|sim| {
            let _ending = Ending(&sim.0);
            work_on(&sim.0, main());
        });
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| Runner::new(orders, config).run(world))) {
        let begun = begun.load(Ordering::Relaxed);
        eprintln!(
            "failed in order {begun} of {name}: BUFFSTREAMS_SEEDS={begun} goes through those before, and that one"
        );
        resume_unwind(panic);
    }
}

/// Runs all tasks on some threads, until `main` is over.
fn work_on(world: &Arc<World>, main: impl Future<Output = ()> + Send + 'static) {
    let workers = Arc::new(Workers { world: world.clone(), busy: Lock::default(), ended: AtomicBool::new(false) });
    let ends = workers.clone();
    world.spawn(main.map(move |()| ends.ended.store(true, Ordering::Relaxed)).boxed());
    let others: Vec<_> = (1..THREADS)
        .map(|_| {
            let workers = workers.clone();
            thread::spawn(move || workers.work())
        })
        .collect();
    workers.work();
    others.into_iter().for_each(|thread| thread.join().expect("it has not panicked"));
}

/// What the threads share.
struct Workers {
    world: Arc<World>,
    /// The tasks that are being polled, and for each whether it was called meanwhile.
    busy: Lock<BTreeMap<u64, Option<Arc<Call>>>>,
    ended: AtomicBool,
}

impl Workers {
    fn work(&self) {
        loop {
            let mut busy = self.busy.lock();
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let Some(call) = self.world.next() else {
                let can_run = !busy.is_empty();
                // Only what is being polled calls a task; where nothing is, the lock keeps it so.
                assert!(can_run || self.world.jump(), "stalled: nothing can run, and no timer is set");
                drop(busy);
                thread::yield_now();
                continue;
            };
            call.begin();
            if let Some(called) = busy.get_mut(&call.task) {
                *called = Some(call);
                continue;
            }
            busy.insert(call.task, None);
            drop(busy);
            self.world.poll_task(&call);
            if let Some(called) = self.busy.lock().remove(&call.task).flatten() {
                called.wake();
            }
        }
    }
}
