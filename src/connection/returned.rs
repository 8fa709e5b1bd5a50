//! Messages of a connection in a session that came back, until the program takes them.

use std::mem;
use std::sync::Arc;
use std::task::{Context, Waker};

use bytes::Bytes;

use crate::queue::{Fate, Outcome, Returns, Trail, Verdict};
use crate::sync::{Lock, MutexGuard};

/// Messages that came back.
#[derive(Default)]
pub(crate) struct Returned {
    /// Where those of a connection that was dialed come, in the moment in which their fate is known: who is told of it finds them.
    home: Arc<Returns>,
    state: Lock<Back>,
}

#[derive(Default)]
struct Back {
    /// They were sent, and nobody knows more, or were refused.
    in_doubt: Vec<Bytes>,
    unsent: Vec<Bytes>,
}

impl Returned {
    /// That of messages which come back here.
    pub(super) fn fate(&self) -> Fate {
        Fate::of(self.home.clone(), Trail::default())
    }

    pub(crate) fn put(&self, messages: Vec<Bytes>, verdict: &Verdict) {
        self.state.lock().put(messages, verdict);
    }

    /// What has come back so far.
    fn state(&self) -> MutexGuard<'_, Back> {
        let mut state = self.state.lock();
        while let Some(back) = self.home.take(&mut Context::from_waker(Waker::noop())) {
            state.put([back.message], &back.verdict);
        }
        state
    }

    pub(super) fn take_in_doubt(&self) -> Vec<Bytes> {
        mem::take(&mut self.state().in_doubt)
    }

    pub(super) fn take_unsent(&self) -> Vec<Bytes> {
        mem::take(&mut self.state().unsent)
    }
}

impl Back {
    fn put(&mut self, messages: impl IntoIterator<Item = Bytes>, verdict: &Verdict) {
        match verdict.outcome {
            Outcome::InDoubt | Outcome::Refused => self.in_doubt.extend(messages),
            _ => self.unsent.extend(messages),
        }
    }
}
