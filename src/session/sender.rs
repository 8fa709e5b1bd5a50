//! The sending end of one direction: what was sent, what is acknowledged, and what may go now. It knows positions and bytes, not
//! messages: the owner of those asks it.

use std::ops::Range;

use super::ranges::Ranges;
use super::wire::{Control, HEADER, Side, Violation};

/// So many pieces of what was refused and not yet acknowledged may there be. A receiver keeps 1,024, and those that it has
/// written can lie between those that it has still to write.
const MAX_REFUSED: usize = 2048;

/// A message is *unsent* until it was handed whole to a connection; then it has a position, and *is sent* until it is
/// acknowledged, refused or in doubt.
#[derive(Debug)]
pub(crate) struct Sender {
    side: Side,
    /// The lowest position that is still held.
    acked: u64,
    /// One past the highest that was ever handed whole to any connection.
    sent: u64,
    /// The next one to hand to this connection: up to `sent` it is a repetition.
    cursor: u64,
    /// One past the last that this connection is being given: it may be acknowledged before the writer has come back.
    offered: u64,
    /// Bytes of frames that were handed over, or are being, and not acknowledged, of all connections.
    in_flight: u64,
    /// What the peer accepts of those. 0: no messages at all.
    window: u32,
    wire: Wire,
    /// What is refused but not acknowledged: it has its end already.
    refused: Ranges,
    /// The peer still keeps refusals that are acknowledged, and is to be told.
    confirms: bool,
    /// The program sends no more.
    closing: bool,
    /// The peer takes no more.
    draining: bool,
    /// This connection has CLOSE.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Down,
    /// There is a connection, and the owner of the messages has not counted yet what is in flight.
    Rewinding,
    Up,
}

impl Sender {
    /// Of a new session, without a connection.
    pub(crate) fn new(side: Side) -> Self {
        Self {
            side,
            acked: 0,
            sent: 0,
            cursor: 0,
            offered: 0,
            in_flight: 0,
            window: 0,
            wire: Wire::Down,
            refused: Ranges::default(),
            confirms: false,
            closing: false,
            draining: false,
            closed: false,
        }
    }

    /// What is left of one that is over: all is acknowledged.
    pub(crate) fn tombstone(side: Side, sent: u64) -> Self {
        Self { acked: sent, sent, cursor: sent, offered: sent, closing: true, ..Self::new(side) }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// Those below were sent. The others are nobody's yet: they may expire, move to another session, or come back as never sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// A connection stands, and the peer's handshake says what it has. Those below the new [`acked`](Self::acked) are over; next
    /// goes its `received`, once [`rewound`](Self::rewound) has told what is in flight.
    ///
    /// A dialer says HELLO before it has seen how far the listener's `acked` came: its `taken` may stop at a refusal that is
    /// confirmed already, and so be lower. A listener cannot be told less than it knows, and knows better.
    pub(crate) fn resume(&mut self, taken: u64, received: u64, window: u32) -> Result<(), Violation> {
        let known = match self.side {
            Side::Dialer => taken,
            Side::Listener if taken <= received => taken.max(self.acked),
            Side::Listener => return Err(Violation::Position),
        };
        if !(self.acked <= known && known <= received && received <= self.sent) {
            return Err(Violation::Position);
        }
        self.confirms = false; // The handshake has told.
        self.advance(known);
        self.cursor = received;
        self.offered = received;
        self.window = window;
        self.closed = false;
        self.wire = Wire::Rewinding;
        Ok(())
    }

    /// The bytes of the frames from `acked` to what the peer has received: they were handed over by an earlier connection, and
    /// count in the window of this one.
    pub(crate) fn rewound(&mut self, in_flight: u64) {
        self.in_flight = in_flight;
        if self.wire == Wire::Rewinding {
            self.wire = Wire::Up;
        }
    }

    /// The connection is gone. What it was [handed](Self::handed_to) has been told.
    pub(crate) fn broke(&mut self) {
        self.wire = Wire::Down;
        self.offered = self.cursor;
        self.closed = false;
        self.confirms = false;
    }

    /// Whether a frame of so many bytes, header included, may go.
    #[inline]
    pub(crate) fn may_send(&self, next: u64) -> bool {
        self.may_follow(0, 0, next)
    }

    /// The same, behind so many frames, of so many bytes, that are about to. One that is larger than the window goes alone.
    #[inline]
    pub(crate) fn may_follow(&self, frames: u64, bytes: u64, next: u64) -> bool {
        let open = self.wire == Wire::Up && self.window > 0 && !self.closed;
        let wanted = frames < self.repetitions() || !self.draining;
        let before = self.in_flight + bytes;
        open && wanted && (before == 0 || before + next <= self.window.into())
    }

    /// What the peer accepts, in bytes.
    #[inline]
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// How many bytes fit beside what is in flight.
    #[inline]
    pub(crate) fn room(&self) -> u64 {
        u64::from(self.window).saturating_sub(self.in_flight)
    }

    /// So many frames go to this connection again. When the peer drains the session, no others do.
    pub(crate) fn repetitions(&self) -> u64 {
        self.sent - self.cursor
    }

    /// So many frames are about to be handed to the connection, of so many bytes in all, headers included. Those before are
    /// [handed](Self::handed_to).
    #[inline]
    pub(crate) fn offer(&mut self, frames: u64, bytes: u64) {
        debug_assert!(self.wire == Wire::Up && !self.closed && bytes >= frames * HEADER as u64);
        debug_assert!(self.offered == self.cursor);
        self.offered += frames;
        self.in_flight += bytes;
    }

    /// Of those that were offered, all below this position were handed whole to the connection.
    #[inline]
    pub(crate) fn handed_to(&mut self, position: u64) {
        debug_assert!(position <= self.offered);
        self.cursor = self.cursor.max(position);
        self.sent = self.sent.max(self.cursor);
    }

    /// All that were offered were handed whole to the connection.
    #[inline]
    pub(crate) fn handed(&mut self) {
        self.handed_to(self.offered);
    }

    /// The next one to hand to this connection.
    pub(crate) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The peer has taken all below. How many more than before that is: their owner lets go of them, and tells how many
    /// [bytes](Self::freed) that were.
    #[inline]
    pub(crate) fn ack(&mut self, taken: u64) -> Result<u64, Violation> {
        if taken < self.acked || taken > self.offered || self.wire == Wire::Down {
            return Err(Violation::Position);
        }
        self.handed_to(taken);
        let more = taken - self.acked;
        self.advance(taken);
        Ok(more)
    }

    /// So many bytes of acknowledged frames were let go. They may be fewer than were acknowledged, and the rest follow.
    #[inline]
    pub(crate) fn freed(&mut self, bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    #[inline]
    fn advance(&mut self, taken: u64) {
        self.acked = taken;
        // Exact where it matters most: nothing in flight lets any frame go.
        if self.acked == self.offered {
            self.in_flight = 0;
        }
        if !self.refused.is_empty() {
            self.confirms |= self.refused.trim(taken);
        }
    }

    /// The peer's program has not taken these. Those that it had not said before go to `each`, in order: that is their end, and
    /// nothing else is told of them. They are held, as bytes, until an ACK passes them.
    pub(crate) fn refuse(&mut self, first: u64, count: u32, each: impl FnMut(Range<u64>)) -> Result<(), Violation> {
        let end = first.checked_add(count.into()).ok_or(Violation::Position)?;
        let inside = count > 0 && first >= self.acked && end <= self.offered && self.wire != Wire::Down;
        if !inside || self.refused.len() >= MAX_REFUSED {
            return Err(Violation::Position);
        }
        self.handed_to(end);
        self.refused.insert(first..end, each);
        Ok(())
    }

    /// The program sends no more: when all is sent, [`close`](Self::close) has what to say.
    pub(crate) fn finish(&mut self) {
        self.closing = true;
    }

    /// GOAWAY: no new messages in this session. A second one says nothing more.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining
    }

    /// CLOSE, once on each connection: when all that was sent is sent on this one, and either the peer drains, or the program has
    /// finished and nothing is unsent.
    pub(crate) fn close(&mut self, unsent: bool) -> Option<Control> {
        let complete = self.wire == Wire::Up && !self.closed && self.cursor == self.sent;
        if !complete || !(self.draining || (self.closing && !unsent)) {
            return None;
        }
        self.closed = true;
        Some(Control::Close(self.sent))
    }

    /// CLOSE is said, and all is acknowledged: this direction is over, and nothing of it in doubt.
    pub(crate) fn is_over(&self) -> bool {
        self.closed && self.acked == self.sent
    }

    /// HEARTBEAT, where the peer waits for one: an ACK has passed what it had refused, and it may forget that.
    pub(crate) fn confirm(&mut self) -> Option<Control> {
        (self.confirms && self.wire == Wire::Up).then(|| self.heartbeat())
    }

    /// HEARTBEAT, as a sign of life.
    pub(crate) fn heartbeat(&mut self) -> Control {
        self.confirms = false;
        Control::Heartbeat { sent: self.cursor, acked: self.acked }
    }

    /// Something of this direction waits for an ACK: whatever else waits, the socket is to be read.
    pub(crate) fn waits_for_acks(&self) -> bool {
        self.acked < self.sent
    }

    /// The session is over, and the peer's memory of it gone: these are in doubt, whichever connection carried them. All above
    /// [`sent`](Self::sent) was never sent.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn in_doubt(&self) -> impl Iterator<Item = Range<u64>> {
        self.refused.gaps(self.acked..self.sent)
    }
}
