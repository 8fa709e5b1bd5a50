//! Where messages come back to that their producer takes back itself, in the moment in which they are given back.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;

use super::verdict::Verdict;
use crate::foreign;
use crate::sync::Lock;

/// What a producer knows of messages that it has handed over: which of its queues have had them, the last one last.
pub(crate) type Trail = Arc<[usize]>;

/// A message that came back.
pub(crate) struct Returned {
    pub(crate) message: Bytes,
    pub(crate) verdict: Verdict,
    pub(crate) trail: Trail,
    /// Where messages have an age: when it was accepted first, about.
    pub(crate) since: Option<Instant>,
}

/// What came back to one producer, in order.
#[derive(Default)]
pub(crate) struct Returns(Lock<State>);

#[derive(Default)]
struct State {
    messages: VecDeque<Returned>,
    producer: Option<Waker>,
}

impl Returns {
    /// What is returned is to be woken without any lock.
    #[must_use]
    pub(crate) fn put(&self, returned: Returned) -> Option<Waker> {
        let mut state = self.0.lock();
        state.messages.push_back(returned);
        state.producer.take()
    }

    /// The oldest; where there is none, the producer is woken when one comes.
    pub(crate) fn take(&self, cx: &mut Context<'_>) -> Option<Returned> {
        let mut state = self.0.lock();
        if let Some(returned) = state.messages.pop_front() {
            return Some(returned);
        }
        let replaced = state.producer.replace(cx.waker().clone());
        drop(state);
        let _ = foreign::dispose(replaced);
        None
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().messages.is_empty()
    }
}

impl Drop for Returns {
    fn drop(&mut self) {
        // Each may be memory of the program, and nobody is left to be told of a panic.
        for Returned { message, .. } in std::mem::take(&mut self.0.get_mut().messages) {
            let _ = foreign::dispose(message);
        }
    }
}
