//! A dead letter, and those that wait to be taken.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use crate::error::Error;
use crate::foreign::{self, Panic};
use crate::peer::Address;
use crate::queue::{ITEM, Outcome, Verdict};
use crate::sync::{Key, Lock, Waiters};

/// A message that a manager had accepted and that came back: it was not sent, or its `outcome` says that it was.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Where it should have gone, as it was given to the manager.
    pub address: Address,
    /// The message.
    pub message: Bytes,
    /// What became of it.
    pub outcome: Outcome,
    /// How often the address had been dialed in the outage that it is a victim of; 0 where that was not the reason.
    pub attempts: u32,
    /// Why.
    pub error: Arc<Error>,
    /// Of a route: what it was given to.
    pub(super) tried: Option<Arc<[Address]>>,
}

impl DeadLetter {
    pub(crate) fn new(address: &Address, message: Bytes, verdict: &Verdict) -> Self {
        let Verdict { outcome, attempts, error } = verdict.clone();
        Self { address: address.clone(), message, outcome, attempts, error, tried: None }
    }

    /// The addresses that it was given to, in order. Only a message of a [`Route`](crate::Route) can have more than one: then
    /// `address`, `outcome`, `attempts` and `error` are those of the last. There is none if no address of the route was open, or if
    /// it is the copy of a [broadcast](crate::Route::broadcast) for an address that was not, or that was left alone.
    pub fn tried(&self) -> &[Address] {
        self.tried.as_deref().unwrap_or(std::slice::from_ref(&self.address))
    }
}

/// The letters of one taker.
#[derive(Default)]
pub(super) struct Queue(pub(super) Lock<QueueState>);

#[derive(Default)]
pub(super) struct QueueState {
    pub(super) letters: VecDeque<DeadLetter>,
    pub(super) bytes: usize,
    /// No more come: they go to another, or the manager is gone.
    pub(super) closed: bool,
    /// Nobody takes them any more.
    pub(super) left: bool,
    /// Letters that wait for room.
    pub(super) senders: Waiters,
    pub(super) taker: Option<Waker>,
    /// Those who wait until all letters are taken.
    pub(super) watchers: Waiters,
}

/// What became of a letter that was to be put into a queue.
pub(super) enum Put {
    Done,
    /// It is for another queue.
    Closed,
    /// Nobody takes it.
    Left,
}

/// A letter's place among those that wait for room.
pub(super) struct Turn {
    pub(super) queue: Arc<Queue>,
    pub(super) place: Option<Key>,
}

impl Queue {
    /// No more letters come.
    pub(super) fn close(&self) {
        let mut state = self.0.lock();
        state.closed = true;
        let (mut waiting, taker) = (state.senders.take_all(), state.taker.take());
        waiting.extend(state.watchers.take_all());
        drop(state);
        for waker in waiting.into_iter().chain(taker) {
            // Whose executor is gone does not wait.
            let _ = foreign::wake(waker);
        }
    }

    /// Waits until all letters are taken, and their taker asks for the next, or takes none any more. `none_comes` says whether
    /// more are on their way.
    pub(super) async fn taken(&self, none_comes: impl Fn() -> bool) {
        let mut place = None;
        poll_fn(|cx| {
            let mut state = self.0.lock();
            let all_taken = state.letters.is_empty() && state.senders.is_empty() && state.taker.is_some();
            if state.closed || state.left || (all_taken && none_comes()) {
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
        .await;
    }

    pub(super) fn wake_watchers(&self) {
        let watchers = self.0.lock().watchers.take_all();
        for waker in watchers {
            // Whose executor is gone does not wait.
            let _ = foreign::wake(waker);
        }
    }
}

impl Turn {
    /// Puts the letter in when there is room for it, and for those before it. Wakers that panicked are told of.
    pub(super) fn poll_put(
        &mut self,
        letter: &mut Option<DeadLetter>,
        room: usize,
        cx: &mut Context<'_>,
    ) -> Poll<(Put, Vec<Panic>)> {
        let mut state = self.queue.0.lock();
        let bytes = letter.as_ref().map_or(0, |letter| cost(&letter.message));
        let put = if state.closed {
            Put::Closed
        } else if state.left {
            Put::Left
        } else if state.senders.is_first(self.place) && (state.bytes == 0 || state.bytes + bytes <= room) {
            state.bytes += bytes;
            state.letters.extend(letter.take());
            Put::Done
        } else {
            let replaced = state.senders.wait(&mut self.place, cx.waker());
            drop(state);
            let _ = foreign::dispose(replaced);
            return Poll::Pending;
        };
        let left = state.senders.leave(&mut self.place);
        // There may be room for the next one, too.
        let (taker, next) = (state.taker.take(), state.senders.take_first());
        drop(state);
        let _ = foreign::dispose(left);
        let woken = [taker, next].into_iter().flatten().map(foreign::wake);
        Poll::Ready((put, woken.filter_map(Result::err).collect()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.place.is_none() {
            return;
        }
        let mut state = self.queue.0.lock();
        let left = state.senders.leave(&mut self.place);
        let next = state.senders.take_first();
        drop(state);
        let _ = foreign::dispose(left);
        // Whose executor is gone does not wait.
        let _ = next.map(foreign::wake);
    }
}

/// How much of the room the letter of this message takes.
pub(super) fn cost(message: &Bytes) -> usize {
    message.len() + ITEM
}
