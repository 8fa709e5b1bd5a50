//! What was received from a peer, on its way to the program.

use std::sync::Arc;

use bytes::Bytes;

use super::decoding::{AnyValues, Decoding, Piece};
use super::member::{InFlight, Member};
use super::read_on::Lent;
use crate::connection::Connection;
use crate::error::BoxError;
use crate::framed::Messages;
use crate::queue::Unsettled;
use crate::session::Settled;
use crate::wire::Frames;

/// What the inbox carries.
pub(crate) enum Arrival {
    Batch(Received),
    Connection(Box<Connection>),
}

/// A batch, and whose it is.
pub(crate) struct Received {
    pub(crate) member: InFlight,
    pub(crate) messages: Messages,
    /// With these, the reader was lent.
    pub(crate) lent: Option<Lent>,
    /// What the task has decoded, instead of messages.
    pub(crate) values: Option<AnyValues>,
    /// In a session, until the program has settled it.
    pub(crate) unsettled: Option<Unsettled>,
    /// That it is dropped says that the program has taken it.
    taken_by_drop: bool,
}

impl Received {
    pub(crate) fn new(member: &Arc<Member>, frames: Frames) -> Self {
        Self::of(InFlight::new(member), frames)
    }

    /// The same, of what is counted as in flight already.
    pub(crate) fn of(member: InFlight, frames: Frames) -> Self {
        Self {
            member,
            messages: Messages::new(frames),
            lent: None,
            values: None,
            unsettled: None,
            taken_by_drop: false,
        }
    }

    /// Of the same peer, with what was decoded from it instead of messages.
    pub(crate) fn of_values(&mut self, values: AnyValues) -> Self {
        let none = Frames::new(self.messages.frames().decoder(), Bytes::new());
        let mut received = Self::new(&self.member, none);
        received.values = Some(values);
        received
    }

    /// From now on, to drop it is to take all of it.
    pub(crate) fn take_by_drop(&mut self) {
        self.taken_by_drop = true;
    }

    /// The program has taken all of it.
    #[inline]
    pub(crate) fn settle(&mut self) {
        if self.unsettled.is_some() {
            self.settle_in_session();
        }
    }

    #[inline(never)]
    fn settle_in_session(&mut self) {
        if let Some(unsettled) = self.unsettled.take() {
            unsettled.settle(&self.member.outbox, Settled::Taken);
        }
    }

    /// The last message that was taken out of it is not taken by the program.
    #[cold]
    pub(crate) fn except_last(&mut self, how: Settled) {
        if let Some(unsettled) = &mut self.unsettled {
            let passed = unsettled.passed(self.messages.frames());
            unsettled.except(passed - 1, how);
        }
    }

    /// The program has finished with what was taken out of it, but for what is known to be not taken.
    pub(crate) fn settle_passed(&mut self) {
        if let Some(unsettled) = &mut self.unsettled {
            let passed = unsettled.split_passed(self.messages.frames());
            passed.settle(&self.member.outbox, Settled::Taken);
        }
    }

    /// Decodes messages out of it: see [`Decoding::decode`].
    pub(crate) fn decode(&mut self, decoding: &Decoding, failed: impl Fn(BoxError)) -> Piece {
        let frames = self.messages.frames();
        let before = self.unsettled.as_mut().map(|unsettled| unsettled.passed(frames));
        let piece = decoding.decode(frames, failed);
        if let (Some(unsettled), Some(before)) = (&mut self.unsettled, before) {
            piece.except.iter().for_each(|(index, how)| unsettled.except(before + index, *how));
        }
        piece
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // A program that panics has not finished with what it drops.
        if self.taken_by_drop && !std::thread::panicking() {
            self.settle();
        }
    }
}
