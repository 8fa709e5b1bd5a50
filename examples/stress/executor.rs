//! The executors that tasks run on. Each ends at a moment of somebody else's choice, with whatever waits on it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Wake, Waker};
use std::thread;

use fastrand::Rng;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::faults::{Kind, chance, happened, is_left_out, plant};
use super::foreign::look_around;

/// An executor. Dropped, it ends.
pub(crate) struct Executor(Form);

enum Form {
    /// The threads that the library's own tasks run on. Only its tasks end.
    AsyncStd(Vec<async_std::task::JoinHandle<()>>),
    /// A runtime of its own, which ends with its tasks.
    Tokio(Option<tokio::runtime::Runtime>),
    Own(Own),
}

impl Executor {
    /// Any of them.
    pub(crate) fn any(rng: &mut Rng) -> Self {
        match rng.u32(0..3) {
            0 if !is_left_out(Kind::WakerIsLast) => Self(Form::Own(Own::start(false))),
            _ => Self::orderly(rng),
        }
    }

    /// One that drops all its tasks when it ends, as executors should.
    pub(crate) fn orderly(rng: &mut Rng) -> Self {
        match rng.u32(0..3) {
            0 => Self::async_std(),
            1 if !is_left_out(Kind::WakerPanics) => Self(Form::Own(Own::start(true))),
            _ => Self::tokio(),
        }
    }

    pub(crate) fn async_std() -> Self {
        Self(Form::AsyncStd(Vec::new()))
    }

    fn tokio() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        runtime.map_or_else(|_| Self::async_std(), |runtime| Self(Form::Tokio(Some(runtime))))
    }

    pub(crate) fn spawn(&mut self, task: BoxFuture<'static, ()>) {
        match &mut self.0 {
            Form::AsyncStd(handles) => handles.push(async_std::task::spawn(task)),
            Form::Tokio(Some(runtime)) => drop(runtime.spawn(task)),
            Form::Tokio(None) => {}
            Form::Own(own) => own.spawn(task),
        }
    }

    /// Ends it, with whatever waits on it.
    pub(crate) fn end(self) {
        drop(self);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        match &mut self.0 {
            Form::AsyncStd(handles) => {
                for handle in handles.drain(..) {
                    // The first poll marks it as cancelled.
                    let _ = handle.cancel().now_or_never();
                }
            }
            Form::Tokio(runtime) => drop(runtime.take()),
            Form::Own(own) => own.end(),
        }
    }
}

/// A small executor with one thread. It may end without dropping its tasks: then each is left to the wakers that others
/// hold, as with many a hand-made one. To wake a task of an ended one panics, or does nothing.
struct Own {
    shared: Arc<Shared>,
    tasks: Vec<Weak<Task>>,
    thread: Option<thread::JoinHandle<()>>,
    drops_tasks: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    turn: Condvar,
    /// What it is to wake a task after the end.
    panics: bool,
}

#[derive(Default)]
struct Queue {
    ready: VecDeque<Arc<Task>>,
    /// It polls no more; and its thread is gone.
    ended: bool,
    gone: bool,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next task, until the end.
    fn next(&self) -> Option<Arc<Task>> {
        let mut queue = self.queue();
        loop {
            if queue.ended {
                return None;
            }
            if let Some(task) = queue.ready.pop_front() {
                return Some(task);
            }
            queue = self.turn.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Own {
    fn start(drops_tasks: bool) -> Self {
        let shared =
            Arc::new(Shared { queue: Mutex::default(), turn: Condvar::new(), panics: chance(Kind::WakerPanics, 2) });
        let running = shared.clone();
        let thread = thread::spawn(move || {
            while let Some(task) = running.next() {
                task.queued.store(false, Ordering::Release);
                task.run();
            }
        });
        Self { shared, tasks: Vec::new(), thread: Some(thread), drops_tasks }
    }

    fn spawn(&mut self, future: BoxFuture<'static, ()>) {
        let (shared, queued) = (self.shared.clone(), AtomicBool::new(false));
        let task = Arc::new(Task { shared, queued, future: Mutex::new(Some(future)) });
        self.tasks.retain(|task| task.strong_count() > 0);
        self.tasks.push(Arc::downgrade(&task));
        task.wake();
    }

    fn end(&mut self) {
        let ready = {
            let mut queue = self.shared.queue();
            queue.ended = true;
            std::mem::take(&mut queue.ready)
        };
        self.shared.turn.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.queue().gone = true;
        if self.drops_tasks {
            for task in self.tasks.drain(..).filter_map(|task| task.upgrade()) {
                let future = task.future().take();
                drop(future);
            }
        }
        drop(ready);
    }
}

struct Task {
    shared: Arc<Shared>,
    /// It is in the queue.
    queued: AtomicBool,
    future: Mutex<Option<BoxFuture<'static, ()>>>,
}

impl Task {
    fn future(&self) -> MutexGuard<'_, Option<BoxFuture<'static, ()>>> {
        self.future.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: &Arc<Self>) {
        let waker = Waker::from(self.clone());
        let mut future = self.future();
        let Some(running) = &mut *future else { return };
        if running.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            let ended = future.take();
            drop(future);
            drop(ended);
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        if chance(Kind::WakerComesBack, 64) {
            look_around();
        }
        let shared = self.shared.clone();
        let mut queue = shared.queue();
        if queue.ended {
            let panics = queue.gone && shared.panics;
            drop(queue);
            if panics {
                plant(Kind::WakerPanics);
            }
            return;
        }
        if !self.queued.swap(true, Ordering::AcqRel) {
            queue.ready.push_back(self);
            drop(queue);
            shared.turn.notify_one();
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let left = self.future.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if left.is_some() && !self.queued.load(Ordering::Acquire) {
            happened(Kind::WakerIsLast);
        }
    }
}
