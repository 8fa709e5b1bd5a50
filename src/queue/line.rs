//! The line in front of a full queue: what its producers hand over waits there, in the order in which they came.
//!
//! The messages themselves wait, not only their producers: the one who makes room lets the first of them in. So it needs nobody
//! to come back for a turn, and a producer that does not (its future lives, and is not polled) keeps no other waiting.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::batch::Batch;
use super::books::Ticket;
use super::place::Turn;
use super::shelf::Shelf;

/// What a producer hands over.
pub(crate) enum Offer {
    /// One message, of which its producer has a copy: if it is not written, the producer returns it.
    Message(Bytes),
    /// What a producer has put together.
    Batch(Box<Batch>),
    /// What is on the shelf of a sink when its turn has come.
    Shelf(Arc<Shelf>),
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
        let turn = Turn::new(places.last);
        places.waiting.insert(turn, offer);
        turn
    }

    /// Takes out the first.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<(Turn, Offer)> {
        self.0.as_mut()?.waiting.pop_first()
    }

    /// The shelves that wait.
    pub(crate) fn shelves(&self) -> impl Iterator<Item = &Arc<Shelf>> {
        let waiting = self.0.iter().flat_map(|places| places.waiting.values());
        waiting.filter_map(|offer| match offer {
            Offer::Shelf(shelf) => Some(shelf),
            Offer::Message(_) | Offer::Batch(_) => None,
        })
    }

    /// Takes out the shelves.
    pub(crate) fn take_shelves(&mut self) -> Vec<Arc<Shelf>> {
        let shelves = self.shelves().cloned().collect();
        if let Some(places) = &mut self.0 {
            places.waiting.retain(|_, offer| !matches!(offer, Offer::Shelf(_)));
        }
        shelves
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
