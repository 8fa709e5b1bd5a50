//! What comes in a session, until the program that has the connection takes it.

use std::collections::VecDeque;
use std::mem;
use std::task::{Context, Poll, Waker};

use crate::error::Error;
use crate::queue::Unsettled;
use crate::sync::{Later, Lock, Wakes};
use crate::wire::Frames;

/// The messages that have come and were not taken: the window bounds them.
#[derive(Default)]
pub(crate) struct Inlet(Lock<State>);

#[derive(Default)]
struct State {
    came: VecDeque<Came>,
    /// Nothing more comes.
    ended: bool,
    waiting: Option<Waker>,
    later: Later,
}

/// What the program finds.
pub(crate) enum Came {
    Batch(Batch),
    /// Told once, between what came before and what comes behind it.
    Error(Error),
}

/// Whole frames, as one read has brought them.
pub(crate) struct Batch {
    pub(crate) frames: Frames,
    /// Its messages, until the program has taken them.
    pub(crate) unsettled: Unsettled,
}

impl Wakes for State {
    fn later(&mut self) -> &mut Later {
        &mut self.later
    }
}

impl Inlet {
    pub(crate) fn push(&self, batch: Batch) {
        self.put(Came::Batch(batch));
    }

    /// Something is to be told.
    pub(crate) fn fail(&self, error: Error) {
        self.put(Came::Error(error));
    }

    fn put(&self, came: Came) {
        let mut state = self.0.hold(None);
        if !state.ended {
            state.came.push_back(came);
        }
        state.call();
    }

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        let mut state = self.0.hold(None);
        state.ended = true;
        state.call();
    }

    /// Forgets what is here: nobody takes it any more.
    pub(crate) fn close(&self) {
        let came = {
            let mut state = self.0.hold(None);
            state.ended = true;
            mem::take(&mut state.came)
        };
        drop(came);
    }

    /// Waits for what comes; `None` at the end.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<Came>> {
        let mut state = self.0.hold(None);
        if let Some(came) = state.came.pop_front() {
            return Poll::Ready(Some(came));
        }
        if state.ended {
            return Poll::Ready(None);
        }
        if state.waiting.as_ref().is_none_or(|waiting| !waiting.will_wake(cx.waker())) {
            let replaced = state.waiting.replace(cx.waker().clone());
            state.later.drop(replaced);
        }
        Poll::Pending
    }
}

impl State {
    fn call(&mut self) {
        self.later.wake(self.waiting.take());
    }
}
