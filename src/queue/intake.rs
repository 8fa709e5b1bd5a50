//! What comes into a queue: single messages, what producers have put together, and what sinks have on their shelves.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::io::AsyncWrite;

use super::ages::Ages;
use super::batch::Batch;
use super::books::Ticket;
use super::held::{Held, Transport};
use super::line::{Accepted, Offer};
use super::place::{Place, Stage, Wait};
use super::shelf::{At, Shelf, Shelved};
use super::verdict::Verdict;
use crate::error::Error;
use crate::framed::HIGH_WATER;
use crate::wire::Output;

impl<W: AsyncWrite + Unpin> Held<W> {
    /// Accepts a message, and leaves what it was copied from to its owner.
    pub(crate) fn push(&mut self, message: &mut Bytes) -> Result<Ticket, Error> {
        if self.is_closed() {
            return Err(Error::Closed { message: Some(mem::take(message).into()) });
        }
        self.pending.push_from(message)?;
        Ok(self.books.accept(1, None, self.rules.now()))
    }

    /// Accepts a message of which its producer has a copy, when there is room.
    pub(crate) fn offer(&mut self, message: Bytes) -> Result<Stage, Error> {
        if self.is_closed() {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        let offer = Offer::Message(self.pending.check(message)?);
        let has_turn = self.line.is_empty() && self.has_room(HIGH_WATER);
        Ok(if has_turn { Stage::Accepted(self.accept(offer).ticket) } else { Stage::InLine(self.line.join(offer)) })
    }

    /// Accepts a batch, when there is room; it is empty then. `false` if nothing more is accepted.
    pub(crate) fn offer_batch(&mut self, batch: &mut Batch, place: &mut Place) -> bool {
        if self.is_closed() {
            return false;
        }
        if self.line.is_empty() && self.has_room(HIGH_WATER) {
            place.stage = Stage::Accepted(self.accept_batch(batch));
            return true;
        }
        let spare = place.spare.take();
        let mut offer = spare.unwrap_or_else(|| Box::new(Batch::new(batch.output.another(), batch.fate.clone())));
        offer.fate = batch.fate.clone();
        mem::swap(&mut offer.output, &mut batch.output);
        mem::swap(&mut offer.ages, &mut batch.ages);
        offer.messages = mem::take(&mut batch.messages);
        place.stage = Stage::InLine(self.line.join(Offer::Batch(offer)));
        true
    }

    fn accept(&mut self, offer: Offer) -> Accepted {
        match offer {
            Offer::Message(message) => {
                // It was checked; and it is not the last owner of what is dropped here.
                let _ = self.pending.push(message);
                let ticket = self.books.accept(1, None, self.rules.now());
                self.books.claim(ticket);
                self.call_for_transport();
                Accepted { ticket, batch: None }
            }
            Offer::Batch(mut batch) => {
                let ticket = self.accept_batch(&mut batch);
                Accepted { ticket, batch: Some(batch) }
            }
            Offer::Shelf(shelf) => Accepted { ticket: self.accept_shelved(&mut shelf.lock(), true), batch: None },
        }
    }

    /// Accepts all that one producer has put together.
    fn accept_batch(&mut self, batch: &mut Batch) -> Ticket {
        self.pending.append(&mut batch.output);
        let messages = mem::take(&mut batch.messages) as u64;
        let ticket = match &mut batch.ages {
            None => self.books.accept(messages, Some(&batch.fate), self.rules.now()),
            ages => self.books.accept_aged(messages, Some(&batch.fate), ages.as_mut()),
        };
        self.call_for_transport();
        ticket
    }

    /// Accepts all that is on the shelf of a sink. It may want to know their fate.
    fn accept_shelved(&mut self, shelved: &mut Shelved, tells: bool) -> Ticket {
        shelved.at = At::Nowhere;
        shelved.mark_all(|| self.rules.now());
        let Shelved { batch, ticket: last, .. } = shelved;
        self.pending.append(&mut batch.output);
        let messages = mem::take(&mut batch.messages) as u64;
        let ticket = self.books.accept_aged(messages, tells.then_some(&batch.fate), batch.ages.as_mut());
        *last = Some(ticket);
        self.call_for_transport();
        ticket
    }

    /// Where there is no transport, the driver opens one: a producer that has found room may not look again.
    fn call_for_transport(&mut self) {
        if matches!(self.transport, Transport::Gone(_)) && !self.stalled {
            self.stall();
        }
    }

    /// Whether less than `mark` bytes are pending, or what counts instead while there is no transport.
    pub(crate) fn has_room(&self, mark: usize) -> bool {
        let has_room = self.pending.len() < mark;
        let Some(room) = self.rules.room_while_down else { return has_room };
        match &self.transport {
            Transport::Gone(_) => self.held_or_unburied() < room,
            _ if self.session.is_some() => has_room && self.held_or_unburied() < room,
            _ => has_room,
        }
    }

    /// How many bytes are held, and have come back and are not taken.
    fn held_or_unburied(&self) -> usize {
        self.held_bytes() + self.unburied
    }

    /// There may be more room than there was: lets in those who wait for it, in turn.
    pub(crate) fn let_in(&mut self) {
        while !self.is_closed()
            && self.has_room(HIGH_WATER)
            && let Some((turn, offer)) = self.line.next()
        {
            let is_asked_for = !matches!(offer, Offer::Shelf(_));
            let accepted = self.accept(offer);
            // On a shelf it is written down.
            if is_asked_for {
                self.line.let_in(turn, accepted);
            }
            self.wake(Wait::Accepted(turn), Wait::Accepted(turn));
        }
        self.wake_for_room();
    }

    /// Whether what was handed over is accepted; `None` where it waits in the line of a queue that was closed.
    pub(crate) fn is_accepted(&mut self, place: &mut Place) -> Option<Result<(), Wait>> {
        if let Stage::InLine(turn) = place.stage {
            if self.line.is_waiting(turn) {
                return if self.is_closed() { None } else { Some(Err(Wait::Accepted(turn))) };
            }
            place.stage = Stage::Nothing;
            if let Some(Accepted { ticket, batch }) = self.line.accepted(turn) {
                place.stage = Stage::Accepted(ticket);
                place.spare = batch;
            }
        }
        Some(Ok(()))
    }

    // ---- shelves

    /// Accepts the message that `push` puts on an empty shelf, of which it knows from then on. It comes back where nothing is
    /// accepted any more.
    pub(super) fn feed_first<F: FnOnce(&mut Output) -> Result<(), Error>>(
        &mut self,
        shelf: &Arc<Shelf>,
        push: F,
    ) -> Result<Result<usize, Error>, F> {
        if self.is_closed() {
            return Err(push);
        }
        let mut shelved = shelf.lock();
        let linger = self.rules.linger();
        let now = (linger.is_some() || self.rules.ttl.is_some()).then(|| self.rules.clock());
        if let Some(ttl) = &self.rules.ttl {
            shelved.batch.ages.get_or_insert_with(|| Ages::new(ttl.after));
            shelved.marks = linger.is_none_or(|linger| !Ages::is_within_a_mark(ttl.after, linger));
        }
        let pushed = shelved.push(push, || now);
        if pushed.is_ok() {
            let (number, calls) = self.lingering.add(shelf, now, linger);
            shelved.at = At::Lingers(number);
            if calls {
                self.call_driver();
            }
        }
        Ok(pushed)
    }

    /// As the producer: hands over what is on the shelf, when there is room, and says where that is. `false` where something is on
    /// it and nothing is accepted any more.
    pub(super) fn hand_over(&mut self, shelf: &Arc<Shelf>, place: &mut Place) -> bool {
        let shelved = &mut *shelf.lock();
        if shelved.batch.messages > 0 {
            if self.is_closed() {
                return false;
            }
            if let Some(stage) = self.admit(shelf, shelved) {
                place.stage = stage;
                return true;
            }
        }
        if let Some(ticket) = shelved.ticket.take() {
            place.stage = Stage::Accepted(ticket);
        }
        true
    }

    /// Accepts what is on the shelf where there is room, or else lets it wait in line.
    fn admit(&mut self, shelf: &Arc<Shelf>, shelved: &mut Shelved) -> Option<Stage> {
        match shelved.at {
            At::InLine(turn) => return Some(Stage::InLine(turn)),
            At::Lingers(number) => self.lingering.remove(number),
            At::Nowhere => {}
        }
        if self.line.is_empty() && self.has_room(HIGH_WATER) {
            self.accept_shelved(shelved, true);
            return None;
        }
        // What comes from now on may wait for long.
        shelved.mark_all(|| self.rules.now());
        shelved.marks = shelved.batch.ages.is_some();
        let turn = self.line.join(Offer::Shelf(shelf.clone()));
        shelved.at = At::InLine(turn);
        Some(Stage::InLine(turn))
    }

    /// As the producer, which goes: accepts what is on the shelf, while less than `max` bytes are held or have come back and are
    /// not taken, and knows nothing of it from then on. The error is why not.
    pub(super) fn part(&mut self, shelf: &Shelf, max: usize) -> Result<(), Verdict> {
        let shelved = &mut *shelf.lock();
        match mem::replace(&mut shelved.at, At::Nowhere) {
            // It is not the last owner of the shelf.
            At::InLine(turn) => drop(self.line.leave(turn)),
            At::Lingers(number) => self.lingering.remove(number),
            At::Nowhere => {}
        }
        if shelved.batch.messages > 0 {
            if self.is_closed() {
                return Err(Verdict::closed());
            }
            if self.held_or_unburied() >= max {
                // They were counted as accepted while they were on the shelf, and still are.
                self.unshelved += shelved.batch.messages as u64;
                return Err(Verdict::queue_full(max));
            }
            self.accept_shelved(shelved, false);
        }
        self.leave_to_driver();
        Ok(())
    }

    /// As the driver: hands over what has lingered long enough, and has it written with all that was handed over before. When to
    /// look again, if there is more.
    pub(super) fn hand_over_due(&mut self, now: Instant) -> Option<Instant> {
        let (linger, is_idle) = (self.rules.linger()?, !self.has_more());
        let at = self.lingering.look(now, linger, is_idle)?;
        if at > now {
            return Some(at);
        }
        while let Some(shelf) = self.lingering.take_due(now, linger) {
            let shelved = &mut *shelf.lock();
            shelved.at = At::Nowhere;
            let _ = self.admit(&shelf, shelved);
        }
        if self.has_more() {
            // Nobody else may come for it.
            self.stalled = true;
        }
        self.lingering.looked(linger)
    }

    /// Nothing more is accepted: what is on the shelves is now, whether or not there is room, but where it stays.
    pub(super) fn clear_shelves(&mut self) {
        for shelf in self.line.take_shelves().into_iter().chain(self.lingering.take_all()) {
            let shelved = &mut *shelf.lock();
            shelved.at = At::Nowhere;
            if !shelf.keeps {
                self.accept_shelved(shelved, true);
            }
        }
    }

    /// How many messages are on shelves.
    pub(super) fn shelved(&self) -> u64 {
        self.lingering.iter().chain(self.line.shelves()).map(|shelf| shelf.held().0 as u64).sum()
    }
}
