//! One end of a session: the two directions, and what they say together.

use super::handshake::{Positions, Terms};
use super::receiver::Receiver;
use super::sender::Sender;
use super::wire::{Control, Side, Violation};

#[derive(Debug)]
pub(crate) struct End {
    pub(crate) sender: Sender,
    pub(crate) receiver: Receiver,
}

impl End {
    /// Of a new session, without a connection. `window` is what it accepts.
    pub(crate) fn new(side: Side, window: u32) -> Self {
        Self { sender: Sender::new(side), receiver: Receiver::new(side, window) }
    }

    /// A listener's, of a session that is over, as far as it is remembered.
    pub(crate) fn tombstone(positions: &Positions) -> Self {
        let sender = Sender::tombstone(Side::Listener, positions.sent);
        Self { sender, receiver: Receiver::tombstone(Side::Listener, 0, positions.received) }
    }

    /// What a HELLO says, of a dialer without a connection, or a WELCOME, of a listener that has just
    /// [resumed](Self::resume).
    pub(crate) fn positions(&self) -> Positions {
        let (sender, receiver) = (&self.sender, &self.receiver);
        let (acked, sent) = (sender.acked(), sender.sent());
        Positions { acked, sent, received: receiver.received(), taken: receiver.taken() }
    }

    /// The handshake of the other end has come, by a connection that is now the only one. A violation ends the session.
    pub(crate) fn resume(&mut self, theirs: &Positions, terms: &Terms) -> Result<(), Violation> {
        self.receiver.resume(theirs.acked, theirs.sent)?;
        self.sender.resume(theirs.taken, theirs.received, terms.window)
    }

    /// Whether there is a connection.
    pub(crate) fn is_up(&self) -> bool {
        self.receiver.is_up()
    }

    /// The connection is gone, or fenced.
    pub(crate) fn broke(&mut self) {
        self.sender.broke();
        self.receiver.broke();
    }

    /// What goes in front of the next batch, or alone when it is [due](Receiver::due): until there is no more. `unsent` tells
    /// whether there is a message that was never sent.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn next(&mut self, now: u64, unsent: bool) -> Option<Control> {
        self.next_if(now, true, unsent)
    }

    /// As [`next`](Self::next), without what the receiver has to say where `acks` is false.
    #[inline]
    pub(crate) fn next_if(&mut self, now: u64, acks: bool, unsent: bool) -> Option<Control> {
        let control = if acks { self.receiver.next(now) } else { None };
        control.or_else(|| self.sender.confirm()).or_else(|| self.sender.close(unsent))
    }

    /// Both directions are closed, and all of both is acknowledged and confirmed. A dialer then ends the connection. A
    /// listener whose connection ends keeps no more than the positions: the dialer may have missed an ACK, but it knows what was
    /// refused.
    pub(crate) fn is_over(&self) -> bool {
        self.sender.is_over() && self.receiver.is_over()
    }
}

/// The epoch of the next attempt to connect; `None` where there is none, and the session is over.
pub(crate) fn next_epoch(epoch: u32) -> Option<u32> {
    epoch.checked_add(1)
}
