//! The receiving end of one direction: what came, what the program has settled of it, and what the sender is still to be told.
//! There is never a queue of that: one latest ACK, and the refusals that the sender has not confirmed.

use std::collections::VecDeque;

use super::gaps::{Gaps, Settled};
use super::wire::{Control, HEADER, Side, Violation, Why};

/// So many ranges of refusals may be unconfirmed. At more, what is settled behind them waits.
const MAX_REFUSALS: usize = 1024;
/// The ms between two ACKs that are not for a quarter of the window.
const ACK_EVERY: u64 = 1;

#[derive(Debug)]
pub(crate) struct Receiver {
    side: Side,
    /// What the sender may have untaken, in bytes.
    window: u32,
    /// There is a connection, and it alone may bring messages.
    up: bool,
    received: u64,
    /// All below are settled, and none of those that were not taken is forgotten.
    taken: u64,
    /// What the sender of this connection knows as taken.
    told: u64,
    /// Bytes of frames that are not settled.
    untaken: u64,
    /// Bytes that were settled since the last ACK.
    untold: u64,
    /// When that was, on this connection.
    last_ack: Option<u64>,
    gaps: Gaps,
    /// Those below `taken` that were not taken and that the sender has not confirmed, ascending.
    refused: VecDeque<Refusal>,
    /// So many of them were written to this connection.
    written: usize,
    /// The sender's direction ends here.
    end: Option<u64>,
    /// This connection had CLOSE.
    closed: bool,
    /// The session is over: what is settled now reaches nobody.
    over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Refusal {
    first: u64,
    end: u64,
    why: Why,
}

impl Receiver {
    /// Of a new session, without a connection.
    pub(crate) fn new(side: Side, window: u32) -> Self {
        Self {
            side,
            window,
            up: false,
            received: 0,
            taken: 0,
            told: 0,
            untaken: 0,
            untold: 0,
            last_ack: None,
            gaps: Gaps::default(),
            refused: VecDeque::new(),
            written: 0,
            end: None,
            closed: false,
            over: false,
        }
    }

    /// What is left of one that is over: all is settled and told.
    pub(crate) fn tombstone(side: Side, window: u32, received: u64) -> Self {
        Self { received, taken: received, told: received, end: Some(received), ..Self::new(side, window) }
    }

    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// What may be said as taken in a handshake: not past a refusal that the sender may not have seen.
    pub(crate) fn taken(&self) -> u64 {
        self.refused.front().map_or(self.taken, |refusal| refusal.first)
    }

    /// Messages and bytes, headers included, that the program has not settled.
    pub(crate) fn untaken(&self) -> (u64, u64) {
        (self.received - self.taken, self.untaken)
    }

    /// A connection stands, and the sender's handshake says what it holds. The reader of the connection before must have ended:
    /// `received` goes to the peer now, or did so in the HELLO.
    ///
    /// A listener's answer is what [`taken`](Self::taken) says after this. A dialer said it before, and in the meantime its
    /// program may have taken more: what the sender knows is the `acked` of its answer.
    pub(crate) fn resume(&mut self, acked: u64, sent: u64) -> Result<(), Violation> {
        if !(acked <= self.taken && self.received <= sent) {
            return Err(Violation::Position);
        }
        self.confirmed(acked);
        self.told = if self.side == Side::Dialer { acked } else { self.taken() };
        self.written = 0;
        self.untold = 0;
        self.last_ack = None;
        self.closed = false;
        self.up = true;
        Ok(())
    }

    /// The connection is gone, or fenced: it brings no more.
    pub(crate) fn broke(&mut self) {
        self.up = false;
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up
    }

    /// So many frames came, of so many bytes in all, headers included. The position of the first.
    #[inline]
    pub(crate) fn frames(&mut self, frames: u64, bytes: u64) -> Result<u64, Violation> {
        if !self.up || self.end.is_some() {
            return Err(Violation::Position);
        }
        // One frame may be larger than the window, alone. Empty messages count as their headers, so that each is bounded.
        let window = u64::from(self.window);
        let fits = self.untaken.saturating_add(bytes) <= window || (self.untaken == 0 && frames <= 1);
        let most = (window / HEADER as u64).max(1);
        if window == 0 || !fits || self.received - self.taken + frames > most {
            return Err(Violation::Window);
        }
        let first = self.received;
        self.received += frames;
        self.untaken += bytes;
        Ok(first)
    }

    /// The program has settled `count` messages from `first` on, of so many bytes in all, headers included: in any order, each
    /// once. False, and nothing happens, where one is settled already, never came, or the session is over.
    #[inline]
    pub(crate) fn settle(&mut self, first: u64, count: u64, bytes: u64, how: Settled) -> bool {
        let end = first.saturating_add(count);
        if self.over || count == 0 || first < self.taken || end > self.received {
            return false;
        }
        if first == self.taken && self.gaps.is_empty() && self.keep(first, count, how) {
            self.taken = end;
        } else if !self.settle_behind(first..end, how) {
            return false;
        }
        self.untaken = self.untaken.saturating_sub(bytes);
        self.untold += bytes;
        true
    }

    /// There is a gap in front of these, or no room to remember that they were not taken.
    fn settle_behind(&mut self, positions: std::ops::Range<u64>, how: Settled) -> bool {
        if positions.clone().any(|position| self.gaps.get(position).is_some()) {
            return false;
        }
        for position in positions {
            self.gaps.set(self.taken, position, how);
        }
        self.advance();
        true
    }

    /// Up to the lowest gap, or to the first for which there is no room among the refusals.
    fn advance(&mut self) {
        while !self.gaps.is_empty() {
            let passed = match self.gaps.get(self.taken) {
                None => break,
                Some(Settled::Taken) => self.gaps.pass_taken(self.taken),
                Some(how) if self.keep(self.taken, 1, how) => self.gaps.pass(self.taken, 1),
                Some(_) => break,
            };
            self.taken += passed;
        }
    }

    /// Remembers what was not taken, until the sender confirms it. Whether there was room.
    fn keep(&mut self, first: u64, count: u64, how: Settled) -> bool {
        let why = match how {
            Settled::Taken => return true,
            Settled::Refused => Why::Refused,
            Settled::Dropped => Why::Dropped,
        };
        let end = first + count;
        let unwritten = self.refused.len() > self.written;
        if let Some(last) = self.refused.back_mut().filter(|_| unwritten)
            && (last.end, last.why) == (first, why)
            && end - last.first <= u32::MAX.into()
        {
            last.end = end;
            return true;
        }
        let room = self.refused.len() < MAX_REFUSALS && count <= u32::MAX.into();
        if room {
            self.refused.push_back(Refusal { first, end, why });
        }
        room
    }

    /// The sender has passed all below, and knows what became of them.
    fn confirmed(&mut self, acked: u64) {
        while self.refused.front().is_some_and(|refusal| refusal.end <= acked) {
            self.refused.pop_front();
            self.written = self.written.saturating_sub(1);
        }
        if let Some(first) = self.refused.front_mut() {
            first.first = first.first.max(acked);
        }
        self.advance();
    }

    /// When something is to be written at the latest, in ms: 0 is at once. `None` where there is nothing.
    #[inline]
    pub(crate) fn due(&self) -> Option<u64> {
        let any = self.written < self.refused.len() || self.told < self.taken;
        if !self.up || !any {
            return None;
        }
        let much = self.untold >= u64::from(self.window / 4);
        Some(self.last_ack.filter(|_| !much).map_or(0, |last| last.saturating_add(ACK_EVERY)))
    }

    /// The position of the next that is not settled, and how many bytes may be settled from there on before a quarter of the window
    /// is. `None` without a connection, where some behind it are settled already, and where the last is known.
    pub(crate) fn in_order(&self) -> Option<(u64, u64)> {
        let room = u64::from(self.window / 4).saturating_sub(self.untold);
        (self.up && self.end.is_none() && self.gaps.is_empty()).then_some((self.taken, room))
    }

    /// What to write now, whether or not it is due: refusals, then the ACK that passes them, until there is no more.
    #[inline]
    pub(crate) fn next(&mut self, now: u64) -> Option<Control> {
        if !self.up {
            return None;
        }
        if let Some(Refusal { first, end, why }) = self.refused.get(self.written).copied() {
            self.written += 1;
            return Some(Control::Refuse { first, count: (end - first) as u32, why });
        }
        if self.told == self.taken {
            return None;
        }
        self.told = self.taken;
        self.untold = 0;
        self.last_ack = Some(now);
        Some(Control::Ack(self.taken))
    }

    /// HEARTBEAT came: the sender is where we are, and has seen no more than it was told.
    pub(crate) fn heartbeat(&mut self, sent: u64, acked: u64) -> Result<(), Violation> {
        if !self.up || sent != self.received || acked > self.told {
            return Err(Violation::Position);
        }
        self.confirmed(acked);
        Ok(())
    }

    /// CLOSE came.
    pub(crate) fn close(&mut self, end: u64) -> Result<(), Violation> {
        if !self.up || self.closed || end != self.received {
            return Err(Violation::Position);
        }
        self.closed = true;
        self.end = Some(end);
        Ok(())
    }

    /// The sender's direction has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.end.is_some()
    }

    /// The sender's direction has ended, and all of it is settled.
    pub(crate) fn is_settled(&self) -> bool {
        self.end == Some(self.taken)
    }

    /// And the sender was told on this connection.
    pub(crate) fn is_told(&self) -> bool {
        self.is_settled() && self.told == self.taken
    }

    /// And it has confirmed what was refused: there is nothing left to tell again.
    pub(crate) fn is_over(&self) -> bool {
        self.is_told() && self.refused.is_empty()
    }

    /// The session is over.
    pub(crate) fn end(&mut self) {
        self.over = true;
        self.up = false;
    }

    /// The words that remember what was settled out of order.
    #[cfg(test)]
    pub(super) fn words(&self) -> usize {
        self.gaps.words()
    }
}
