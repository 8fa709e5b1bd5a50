//! What the sink of a route has accepted and its task has not taken, and what they tell each other.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;

use crate::error::Error;
use crate::foreign;
use crate::queue::{ITEM, Returns};
use crate::sync::{Lock, Waiters};

/// Between a sink and its task.
#[derive(Default)]
pub(crate) struct RouteQueue {
    state: Lock<State>,
    /// What the addresses gave back.
    pub(crate) returns: Arc<Returns>,
}

#[derive(Default)]
struct State {
    messages: VecDeque<Fed>,
    bytes: usize,
    phase: Phase,
    /// The manager is at its end, and accepts nothing more.
    refuses: bool,
    /// Something is not over yet.
    busy: bool,
    /// Something is not with an address yet.
    here: bool,
    /// Letters of it are not taken yet.
    burying: bool,
    /// Why a message came back that no address could take, for the next flush to tell.
    failed: Option<Error>,
    sink: Option<Waker>,
    task: Option<Waker>,
    watchers: Waiters,
}

/// A message as its sink has accepted it.
pub(crate) struct Fed {
    pub(crate) message: Bytes,
    pub(crate) key: u64,
    /// When that was, where messages have an age.
    pub(crate) since: Option<Instant>,
}

impl State {
    fn is_settled(&self, returns: &Returns) -> bool {
        !self.busy && !self.burying && returns.is_empty()
    }
}

/// It only goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// The sink is gone.
    Left,
    /// The task has ended.
    Over,
}

impl RouteQueue {
    // ---- as the sink

    /// Accepts a message. It comes back where nothing is accepted any more.
    pub(crate) fn push(&self, fed: Fed) -> Result<(), Bytes> {
        let mut state = self.state.lock();
        if state.refuses || state.phase > Phase::Open {
            return Err(fed.message);
        }
        state.bytes += cost(&fed.message);
        state.messages.push_back(fed);
        (state.busy, state.here) = (true, true);
        let task = state.task.take();
        drop(state);
        let _ = task.map(foreign::wake);
        Ok(())
    }

    /// Waits for room, or until nothing is accepted any more.
    pub(crate) fn poll_room(&self, mark: usize, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_sink(cx, |state| (state.bytes < mark || state.refuses || state.phase > Phase::Open).then_some(()))
    }

    /// Waits until all that was accepted is written or has come back, and tells if some of it was for nobody.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.poll_sink(cx, |state| match state.busy && state.phase < Phase::Over {
            true => None,
            false => Some(state.failed.take().map_or(Ok(()), Err)),
        })
    }

    fn poll_sink<T>(&self, cx: &mut Context<'_>, look: impl FnOnce(&mut State) -> Option<T>) -> Poll<T> {
        let mut state = self.state.lock();
        if let Some(found) = look(&mut state) {
            return Poll::Ready(found);
        }
        let replaced = state.sink.replace(cx.waker().clone());
        drop(state);
        let _ = foreign::dispose(replaced);
        Poll::Pending
    }

    /// How many bytes wait here.
    pub(crate) fn pending(&self) -> usize {
        self.state.lock().bytes
    }

    /// The sink is gone.
    pub(crate) fn leave(&self) {
        self.reach(Phase::Left, false);
    }

    // ---- as the manager

    /// Accepts nothing more.
    pub(crate) fn refuse(&self) {
        self.reach(Phase::Open, true);
    }

    /// Whether its task has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().phase == Phase::Over
    }

    /// Waits until all that was accepted is over, and what came back is where it goes.
    pub(crate) fn settled(&self) -> impl Future<Output = ()> {
        self.watched(State::is_settled)
    }

    /// Whether it is so.
    pub(crate) fn is_settled(&self) -> bool {
        let state = self.state.lock();
        state.is_settled(&self.returns) || state.phase == Phase::Over
    }

    /// Waits until the queues of the addresses have all that was accepted.
    pub(crate) fn handed_over(&self) -> impl Future<Output = ()> {
        self.watched(|state, returns| !state.here && returns.is_empty())
    }

    fn watched(&self, mut look: impl FnMut(&State, &Returns) -> bool) -> impl Future<Output = ()> {
        let mut place = None;
        poll_fn(move |cx| {
            let mut state = self.state.lock();
            if look(&state, &self.returns) || state.phase == Phase::Over {
                let left = state.watchers.leave(&mut place);
                drop(state);
                let _ = foreign::dispose(left);
                return Poll::Ready(());
            }
            let replaced = state.watchers.wait(&mut place, cx.waker());
            drop(state);
            let _ = foreign::dispose(replaced);
            Poll::Pending
        })
    }

    /// An address may have become one to be given messages: the task looks again.
    pub(crate) fn call(&self) {
        let task = self.state.lock().task.take();
        let _ = task.map(foreign::wake);
    }

    // ---- as the task

    /// The next message; where there is none, the task is woken when one comes.
    pub(crate) fn next(&self, cx: &mut Context<'_>) -> Option<Fed> {
        let mut state = self.state.lock();
        let Some(next) = state.messages.pop_front() else {
            drop(state);
            self.watch(cx);
            return None;
        };
        state.bytes -= cost(&next.message);
        let sink = state.sink.take();
        drop(state);
        let _ = sink.map(foreign::wake);
        Some(next)
    }

    /// The task is woken when there is something new.
    pub(crate) fn watch(&self, cx: &mut Context<'_>) {
        let replaced = self.state.lock().task.replace(cx.waker().clone());
        let _ = foreign::dispose(replaced);
    }

    /// It looks at what there is. Whether the manager accepts nothing more, and whether the sink is gone.
    pub(crate) fn begin(&self) -> (bool, bool) {
        let mut state = self.state.lock();
        (state.busy, state.here) = (true, true);
        (state.refuses, state.phase >= Phase::Left)
    }

    /// A message is for nobody. The first reason stays.
    pub(crate) fn fail(&self, error: Error) {
        let mut state = self.state.lock();
        let first = state.failed.is_none();
        let error = if first { state.failed.replace(error) } else { Some(error) };
        drop(state);
        drop(error);
    }

    /// How it is: whether what was taken is over, or at least with an address, and whether letters wait.
    pub(crate) fn tell(&self, over: bool, handed_over: bool, burying: bool) {
        let mut state = self.state.lock();
        let is_empty = state.messages.is_empty();
        (state.busy, state.here, state.burying) = (!(over && is_empty), !(handed_over && is_empty), burying);
        let sink = if state.busy { None } else { state.sink.take() };
        let watchers = if state.here { Vec::new() } else { state.watchers.take_all() };
        drop(state);
        for waker in watchers.into_iter().chain(sink) {
            let _ = foreign::wake(waker);
        }
    }

    /// The task has ended.
    pub(crate) fn over(&self) {
        self.reach(Phase::Over, false);
    }

    fn reach(&self, phase: Phase, refuses: bool) {
        let mut state = self.state.lock();
        state.refuses |= refuses;
        state.phase = state.phase.max(phase);
        let (sink, task) = (state.sink.take(), state.task.take());
        let watchers = if phase == Phase::Over { state.watchers.take_all() } else { Vec::new() };
        drop(state);
        for waker in watchers.into_iter().chain(sink).chain(task) {
            let _ = foreign::wake(waker);
        }
    }
}

impl Drop for RouteQueue {
    fn drop(&mut self) {
        // Each may be memory of the program, and nobody is left to be told of a panic.
        for Fed { message, .. } in mem::take(&mut self.state.get_mut().messages) {
            let _ = foreign::dispose(message);
        }
    }
}

fn cost(message: &Bytes) -> usize {
    message.len() + ITEM
}
