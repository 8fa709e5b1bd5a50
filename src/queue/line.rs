//! The line in front of a full queue: what its producers hand over waits there, in the order in which they came.
//!
//! The messages themselves wait, not only their producers: whoever makes room lets the first of them in. So it needs nobody
//! to come back for a turn, and a producer that does not (its future lives, and is not polled) keeps no other waiting.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::books::{Fate, Ticket};
use crate::error::Error;
use crate::wire::Output;

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn(u64);

impl Turn {
    pub(crate) const FIRST: Self = Self(0);
    pub(crate) const LAST: Self = Self(u64::MAX);
}

/// What a producer hands over.
pub(crate) enum Offer {
    /// One message, of which its producer has a copy: if it is not written, the producer returns it.
    Message(Bytes),
    /// What a sink has put together.
    Batch(Box<Batch>),
}

/// Messages that one producer has put together, and where it may learn their fate.
pub(crate) struct Batch {
    pub(crate) output: Output,
    pub(crate) messages: usize,
    pub(crate) fate: Fate,
}

impl Batch {
    /// An empty one. Its producer is told the fate of what is put into it.
    pub(crate) fn new(output: Output, fate: Fate) -> Self {
        Self { output, messages: 0, fate }
    }

    /// Accepts a message. Where it is over the limit it comes back in the error.
    #[inline(always)]
    pub(crate) fn push(&mut self, message: Bytes) -> Result<(), Error> {
        self.push_with(|output| output.push(message))
    }

    /// Accepts the message that `push` puts behind the others.
    #[inline(always)]
    pub(crate) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        push(&mut self.output)?;
        self.messages += 1;
        Ok(())
    }

    /// Puts another in front of this one.
    pub(crate) fn prepend(&mut self, mut earlier: Self) {
        earlier.output.append(&mut self.output);
        self.messages += earlier.messages;
        self.output = earlier.output;
    }
}

/// Who waits to be let in. Most queues have nobody, and no memory for them.
#[derive(Default)]
pub(crate) struct Line(Option<Box<Places>>);

#[derive(Default)]
struct Places {
    last: u64,
    waiting: BTreeMap<Turn, Offer>,
    /// Those that were let in, until their producers ask.
    accepted: BTreeMap<Turn, Accepted>,
}

/// What became of one that was let in.
pub(crate) struct Accepted {
    pub(crate) ticket: Ticket,
    /// Its buffer, empty.
    pub(crate) batch: Option<Box<Batch>>,
}

impl Line {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|places| places.waiting.is_empty())
    }

    /// Waits behind the others.
    pub(crate) fn join(&mut self, offer: Offer) -> Turn {
        let places = self.0.get_or_insert_default();
        places.last += 1;
        let turn = Turn(places.last);
        places.waiting.insert(turn, offer);
        turn
    }

    /// Takes out the first.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<(Turn, Offer)> {
        self.0.as_mut()?.waiting.pop_first()
    }

    /// The one that was taken out was accepted.
    pub(crate) fn let_in(&mut self, turn: Turn, accepted: Accepted) {
        self.0.get_or_insert_default().accepted.insert(turn, accepted);
    }

    pub(crate) fn is_waiting(&self, turn: Turn) -> bool {
        self.0.as_ref().is_some_and(|places| places.waiting.contains_key(&turn))
    }

    /// As the producer, which asks once: what became of the one that does not wait any more.
    pub(crate) fn accepted(&mut self, turn: Turn) -> Option<Accepted> {
        self.0.as_mut()?.accepted.remove(&turn)
    }

    /// As the producer: takes it back, if it was not let in.
    pub(crate) fn leave(&mut self, turn: Turn) -> Option<Offer> {
        self.0.as_mut()?.waiting.remove(&turn)
    }
}
