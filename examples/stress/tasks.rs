//! Tasks that may be dropped at any moment: where each of them waits, who is left, and what panics out of the library.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use super::actors::Beat;
use super::books::violation;
use super::faults::{Kind, happened};

/// How long a task may be left when everything that it waits for has ended. Less than a hang takes to be found.
const AT_MOST: Duration = Duration::from_secs(12);

/// What a task waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Nothing,
    Write,
    Flush,
    Events,
    Letters,
    Listener,
    Close,
    Other,
}

const WAITS: [(Wait, &str, Option<Kind>); 8] = [
    (Wait::Nothing, "runs", None),
    (Wait::Write, "waits in write", Some(Kind::EndedInWrite)),
    (Wait::Flush, "waits in flush", Some(Kind::EndedInFlush)),
    (Wait::Events, "waits for events", Some(Kind::EndedInEvents)),
    (Wait::Letters, "waits for dead letters", Some(Kind::EndedInLetters)),
    (Wait::Listener, "waits in a listener", Some(Kind::EndedInListener)),
    (Wait::Close, "waits in close", Some(Kind::EndedInClose)),
    (Wait::Other, "waits for something else", None),
];

/// Where a task is. A clone is the same.
#[derive(Clone)]
pub(crate) struct Step(Arc<AtomicUsize>);

impl Step {
    /// Waits for this, and says so meanwhile.
    pub(crate) async fn during<F: Future>(&self, wait: Wait, future: F) -> F::Output {
        let before = self.0.swap(wait as usize, Ordering::Relaxed);
        let output = future.await;
        self.0.store(before, Ordering::Relaxed);
        output
    }

    fn now(&self) -> (Wait, &'static str, Option<Kind>) {
        WAITS[self.0.load(Ordering::Relaxed)]
    }
}

/// The tasks of one purpose. A clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Tasks(Arc<TasksState>);

#[derive(Default)]
struct TasksState {
    last: AtomicU64,
    left: Mutex<BTreeMap<u64, (&'static str, Step)>>,
}

impl Tasks {
    /// Makes a task. It is one of these until it is dropped.
    pub(crate) fn task<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        make: impl FnOnce(Step) -> F,
    ) -> BoxFuture<'static, ()> {
        let step = Step(Arc::new(AtomicUsize::new(Wait::Nothing as usize)));
        let id = self.0.last.fetch_add(1, Ordering::Relaxed);
        self.left().insert(id, (name, step.clone()));
        let place = Place { tasks: self.clone(), id };
        Box::pin(Watched { future: Some(Box::pin(make(step.clone()))), name, step, _place: place })
    }

    /// How many are left.
    pub(crate) fn count(&self) -> usize {
        self.left().len()
    }

    /// Waits until none is left, for a time: all that they wait for is over.
    pub(crate) fn are_gone(&self, beat: &Beat, what: &'static str) {
        self.are_gone_while(beat, what, || ());
    }

    /// The same, where something has to go on meanwhile.
    pub(crate) fn are_gone_while(&self, beat: &Beat, what: &'static str, mut go_on: impl FnMut()) {
        beat.at(what);
        let start = Instant::now();
        while self.count() > 0 {
            go_on();
            if start.elapsed() > AT_MOST {
                let left: Vec<_> =
                    self.left().values().map(|(name, step)| format!("{name} {}", step.now().1)).collect();
                return violation(format!("{}: {what}, and there are still: {left:?}", beat.name()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<u64, (&'static str, Step)>> {
        self.0.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the tasks, until it is dropped.
struct Place {
    tasks: Tasks,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.tasks.left().remove(&self.id);
    }
}

/// A task out of which nothing may panic: whatever panics here was let through by the library.
struct Watched<F> {
    future: Option<Pin<Box<F>>>,
    name: &'static str,
    step: Step,
    /// Goes last.
    _place: Place,
}

impl<F> Watched<F> {
    /// No panic is planted in what the program drops by itself.
    fn drop_future(&mut self) {
        let future = self.future.take();
        if no_panic(|| drop(future)).is_none() {
            violation(format!("a panic came out of a drop, where a {} {}", self.name, self.step.now().1));
        }
    }
}

impl<F: Future<Output = ()>> Future for Watched<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(future) = &mut self.future else { return Poll::Ready(()) };
        match no_panic(|| future.as_mut().poll(cx)) {
            Some(Poll::Pending) => return Poll::Pending,
            Some(Poll::Ready(())) => {}
            None => violation(format!("a panic came out of the library, where a {} {}", self.name, self.step.now().1)),
        }
        self.drop_future();
        Poll::Ready(())
    }
}

impl<F> Drop for Watched<F> {
    fn drop(&mut self) {
        if self.future.is_some() {
            if let (_, _, Some(kind)) = self.step.now() {
                happened(kind);
            }
            self.drop_future();
        }
    }
}

/// Calls it; `None` if it panicked.
pub(crate) fn no_panic<T>(call: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(output) => Some(output),
        Err(payload) => {
            // Its drop may panic as well.
            mem::forget(payload);
            None
        }
    }
}
