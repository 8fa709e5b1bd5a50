//! The line in front of a full queue: what its producers hand over waits there, in the order in which they came.
//!
//! The messages themselves wait, not only their producers: whoever makes room lets the first of them in. So it needs nobody
//! to come back for a turn, and a producer that does not (its future lives, and is not polled) keeps no other waiting.

use std::collections::BTreeMap;
use std::mem;

use bytes::Bytes;

use crate::error::Error;
use crate::ledger::{Fate, Ticket};
use crate::wire::{Codec, Output};

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
    pub(crate) fn new(codec: Codec) -> Self {
        Self { output: Output::new(codec), messages: 0, fate: Fate::default() }
    }

    /// Accepts a message. Where it is over the limit it comes back in the error.
    #[inline(always)]
    pub(crate) fn push(&mut self, message: Bytes) -> Result<(), Error> {
        self.output.push(message)?;
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

/// Who waits to be let in.
#[derive(Default)]
pub(crate) struct Line {
    last: u64,
    waiting: BTreeMap<Turn, Offer>,
    /// Those that were let in, until their producers ask.
    accepted: BTreeMap<Turn, Ticket>,
    /// A buffer for the next who comes.
    spare: Option<Box<Batch>>,
}

impl Line {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Waits behind the others.
    pub(crate) fn join(&mut self, offer: Offer) -> Turn {
        self.last += 1;
        let turn = Turn(self.last);
        self.waiting.insert(turn, offer);
        turn
    }

    /// As [`join`](Self::join), with what is in `batch`, which gets an empty buffer for the next messages.
    pub(crate) fn join_with(&mut self, batch: &mut Batch, codec: Codec) -> Turn {
        let mut offer = self.spare.take().unwrap_or_else(|| Box::new(Batch::new(codec)));
        mem::swap(&mut *offer, batch);
        batch.fate = offer.fate.clone();
        self.join(Offer::Batch(offer))
    }

    /// Takes out the first.
    pub(crate) fn next(&mut self) -> Option<(Turn, Offer)> {
        self.waiting.pop_first()
    }

    /// The one that was taken out was accepted.
    pub(crate) fn let_in(&mut self, turn: Turn, ticket: Ticket) {
        self.accepted.insert(turn, ticket);
    }

    /// What was in it has been taken over.
    pub(crate) fn keep(&mut self, batch: Box<Batch>) {
        self.spare = Some(batch);
    }

    /// Lets go of a buffer that may never be needed.
    pub(crate) fn release(&mut self) {
        self.spare = None;
    }

    pub(crate) fn is_waiting(&self, turn: Turn) -> bool {
        self.waiting.contains_key(&turn)
    }

    /// As the producer, which asks once: the ticket of the one that does not wait any more.
    pub(crate) fn accepted(&mut self, turn: Turn) -> Option<Ticket> {
        self.accepted.remove(&turn)
    }

    /// As the producer: takes it back, if it was not let in.
    pub(crate) fn leave(&mut self, turn: Turn) -> Option<Offer> {
        self.waiting.remove(&turn)
    }
}
