//! What a queue has in an acknowledged session: both directions of it, and what was sent and is not acknowledged.
//!
//! It is under the lock of the queue, with all that depends on it: who counts a batch that came, who has settled one, and who
//! writes the next see one state. Nothing in here writes.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use super::ordinal::Ordinal;
use super::settling::{Run, TOLD_EVERY};
use crate::session::{Control, End, ErrorCode, Positions, Settled, Side, Terms, Violation, Why};
use crate::wire::{Codec, Output, Replay};

/// One end of a session, and the frames that it holds.
pub(crate) struct Session {
    ordinal: Ordinal,
    side: Side,
    window: u32,
    end: End,
    /// From what is acknowledged to what this connection was offered.
    replay: Replay,
    /// Of those, what was refused, by where each run begins, with where it ends: it is over when what is before it is.
    refusals: BTreeMap<u64, (u64, Why)>,
    /// How many bytes of the batch that is being written come before its first frame, and how many of it were written.
    batch: Batch,
    /// What is said once, in front of the next batch.
    says: Says,
    /// GOAWAY came: the ms that the next session is to wait.
    retry: Option<u32>,
    /// Its time began then.
    began: Instant,
    /// The task of this end waits until an ACK is due.
    ack_awaited: bool,
    /// How many bytes were settled since somebody looked at the clock for that.
    settled: u64,
    untaken: UntakenCounts,
}

/// How many messages were sent and not taken, in this session and those before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UntakenCounts {
    pub(crate) in_doubt: u64,
    pub(crate) refused: u64,
}

#[derive(Default)]
struct Batch {
    /// The bytes of its controls.
    front: usize,
    written: usize,
    /// The position of its first frame.
    first: u64,
}

#[derive(Default)]
struct Says {
    heartbeat: bool,
    goaway: Option<u32>,
    /// The last that is said.
    error: Option<ErrorCode>,
    /// The connection was told that it is the last: nothing follows.
    ended: bool,
}

/// What was acknowledged: messages that are over, some of which were not taken.
#[derive(Default)]
pub(crate) struct Settlement {
    /// In order: how many were acknowledged before these, and these, which were not.
    pub(crate) untaken: Vec<(u64, Vec<Bytes>, Why)>,
    /// How many more were acknowledged.
    pub(crate) acked: u64,
    /// May be memory of the program: to be dropped without a lock.
    pub(crate) dropped: Vec<Bytes>,
}

/// What a control was about, beside what was settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obeyed {
    Nothing,
    /// How far the session is, or that there is room for more.
    Changed,
    /// The session is over: the other end says so.
    Over(ErrorCode),
}

impl Session {
    /// A new one, without a connection. `window` is what it accepts, in bytes.
    pub(crate) fn new(side: Side, window: u32, codec: Codec, now: Instant) -> Self {
        Self {
            ordinal: Ordinal::FIRST,
            side,
            window,
            end: End::new(side, window),
            replay: Replay::new(codec),
            refusals: BTreeMap::new(),
            batch: Batch::default(),
            says: Says::default(),
            retry: None,
            began: now,
            ack_awaited: false,
            settled: 0,
            untaken: UntakenCounts::default(),
        }
    }

    /// A new one of the same side and window.
    pub(crate) fn another(&self, codec: Codec, now: Instant) -> Self {
        Self { ordinal: self.ordinal.next(), untaken: self.untaken, ..Self::new(self.side, self.window, codec, now) }
    }

    pub(super) fn ordinal(&self) -> Ordinal {
        self.ordinal
    }

    /// Counts what was not taken.
    pub(crate) fn count_untaken(&mut self, messages: usize, why: Why) {
        let count = match why {
            Why::Refused => &mut self.untaken.refused,
            Why::Dropped => &mut self.untaken.in_doubt,
        };
        *count += messages as u64;
    }

    pub(crate) fn untaken(&self) -> UntakenCounts {
        self.untaken
    }

    /// The milliseconds of this session.
    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_millis() as u64
    }

    // ---- what is held

    /// What was given to a connection and is not over.
    pub(crate) fn held(&self) -> (usize, usize) {
        (self.replay.messages(), self.replay.len())
    }

    /// How many messages were handed whole to a connection, and are not over.
    pub(crate) fn sent(&self) -> usize {
        (self.end.sender.sent() - self.end.sender.acked()) as usize
    }

    pub(crate) fn positions(&self) -> Positions {
        self.end.positions()
    }

    pub(crate) fn end(&self) -> &End {
        &self.end
    }

    pub(crate) fn end_mut(&mut self) -> &mut End {
        &mut self.end
    }

    // ---- a connection comes and goes

    /// The handshake of the other end has come, and there will be a connection.
    pub(crate) fn resume(&mut self, theirs: &Positions, terms: &Terms) -> Result<Settlement, Violation> {
        let before = self.end.sender.acked();
        self.end.resume(theirs, terms)?;
        let settlement = self.settle(before);
        // The task asks when it has the connection.
        self.ack_awaited = false;
        let sender = &mut self.end.sender;
        let again = (sender.cursor() - sender.acked()) as usize;
        let in_flight = self.replay.bytes_of(again);
        sender.rewound(in_flight as u64);
        self.batch = Batch { first: sender.cursor(), ..Batch::default() };
        self.says = Says::default();
        Ok(settlement)
    }

    /// The connection is gone, or was none. What it was not given whole goes back to `pending`.
    pub(crate) fn broke(&mut self, pending: &mut Output) {
        let sender = &mut self.end.sender;
        let frames = self.batch.written.saturating_sub(self.batch.front);
        let skip = self.batch.first.saturating_sub(sender.acked()) as usize;
        if frames > 0 {
            let whole = self.replay.whole_in(skip, frames);
            sender.handed_to(self.batch.first + whole as u64);
        }
        self.end.broke();
        let sent = (self.end.sender.sent() - self.end.sender.acked()) as usize;
        self.replay.give_back_behind(sent, pending);
        self.batch = Batch { first: self.end.sender.cursor(), ..Batch::default() };
    }

    // ---- what is written

    /// Puts the next batch into `output`, which is empty: what is to be said, and the frames that may go. Returns whether some of
    /// those came from `pending`: none do while it `has_expired` messages, which are to be taken back first.
    pub(crate) fn begin_batch(
        &mut self,
        pending: &mut Output,
        has_expired: bool,
        output: &mut Output,
        now: Instant,
    ) -> bool {
        if self.says.ended {
            return false;
        }
        let now = self.ms(now);
        if let Some(code) = self.says.error {
            self.says.ended = true;
            // What is settled until here is not in doubt.
            while let Some(control) = self.end.receiver.next(now) {
                output.put(&control.encode());
            }
            output.put(&Control::Error(code).encode());
            self.batch = Batch { front: output.len(), written: 0, first: self.end.sender.cursor() };
            return false;
        }
        let unsent = !pending.is_empty();
        let again = self.end.sender.repetitions() > 0;
        let fresh = unsent && !has_expired;
        let acks = again || fresh || self.end.receiver.due().is_some_and(|at| at <= now);
        if let Some(retry) = self.says.goaway.take() {
            output.put(&Control::Goaway { retry }.encode());
        }
        while let Some(control) = self.end.next_if(now, acks, unsent) {
            output.put(&control.encode());
        }
        if std::mem::take(&mut self.says.heartbeat) {
            output.put(&self.end.sender.heartbeat().encode());
        }
        let sender = &mut self.end.sender;
        self.batch = Batch { front: output.len(), written: 0, first: sender.cursor() };
        if !sender.may_send(0) || !(again || fresh) {
            return false;
        }
        let alone = sender.room() == u64::from(sender.window());
        let room = sender.room() as usize;
        let skip = (sender.cursor() - sender.acked()) as usize;
        let (mut frames, mut bytes) = (0, 0);
        if again {
            (frames, bytes) = self.replay.repeat(skip, room, alone, output);
        }
        let all_again = frames as u64 == sender.repetitions();
        let mut anew = 0;
        if all_again && fresh && !sender.is_draining() {
            let more;
            (anew, more) = self.replay.take_from(pending, room - bytes.min(room), alone && frames == 0, output);
            bytes += more;
        }
        if frames + anew > 0 {
            sender.offer((frames + anew) as u64, bytes as u64);
        }
        anew > 0
    }

    /// So many bytes of the batch were written.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.batch.written += bytes;
    }

    /// All of the batch was written.
    pub(crate) fn batch_written(&mut self) {
        self.end.sender.handed();
        self.batch = Batch { first: self.end.sender.cursor(), ..Batch::default() };
    }

    /// Whether this direction may be able to go on only when an ACK comes: the next frame may be longer than the room that is left,
    /// and the writer may have found so only now.
    pub(crate) fn waits_for_acks(&self) -> bool {
        self.end.sender.waits_for_acks()
    }

    /// Whether there is something that could be written now.
    pub(crate) fn wants_to_write(&self, pending: &Output) -> bool {
        let sender = &self.end.sender;
        let frames = sender.repetitions() > 0 || (!pending.is_empty() && !sender.is_draining());
        (frames && sender.may_send(0)) || self.says.goaway.is_some() || self.says.error.is_some()
    }

    /// There is nothing to write, and nothing is held.
    pub(crate) fn release(&mut self) {
        if self.replay.messages() == 0 {
            // As a connection without a session does, one that was dialed keeps the buffer of a batch. A listener may have many.
            self.replay.release(if self.side == Side::Dialer { 1 } else { 0 });
        }
    }

    pub(crate) fn say_heartbeat(&mut self) {
        self.says.heartbeat = true;
    }

    pub(crate) fn say_goaway(&mut self, retry_ms: u32) {
        self.says.goaway = Some(retry_ms);
    }

    /// The ms that the next session is to wait, once, where GOAWAY has come.
    pub(crate) fn take_retry(&mut self) -> Option<u32> {
        self.retry.take()
    }

    /// The session is over: this is the last that is said.
    pub(crate) fn say_error(&mut self, code: ErrorCode) {
        self.says.error.get_or_insert(code);
    }

    // ---- what comes

    /// So many frames came, of so many bytes in all. The position of the first.
    pub(crate) fn frames(&mut self, frames: u64, bytes: u64) -> Result<u64, Violation> {
        self.end.receiver.frames(frames, bytes)
    }

    /// The program has settled what came. When the ACK is due that tells so: `Some(true)` now, `Some(false)` later, when nobody
    /// waits for that yet. The task, in which callbacks run, waits for nothing until they have returned, however long that takes.
    pub(crate) fn settle_received(
        &mut self,
        first: u64,
        count: u64,
        bytes: u64,
        how: Settled,
        in_task: bool,
        now: impl FnOnce() -> Instant,
    ) -> Option<bool> {
        self.ack_awaited &= !in_task;
        if !self.end.receiver.settle(first, count, bytes, how) {
            return None;
        }
        let due = self.end.receiver.due()?;
        self.settled += bytes;
        if due > 0 {
            if self.ack_awaited && self.settled < TOLD_EVERY {
                return None;
            }
            self.settled = 0;
            if due > self.ms(now()) {
                let is_told = in_task || std::mem::replace(&mut self.ack_awaited, true);
                return (!is_told).then_some(false);
            }
        }
        Some(true)
    }

    /// The program has taken these, of which nobody has told so far.
    #[inline]
    pub(super) fn settle_run(&mut self, run: &Run) {
        if self.end.receiver.settle(run.first, run.count, run.bytes, Settled::Taken) {
            self.settled += run.bytes;
        }
    }

    /// What the program takes next may be put together before it is told here, while the task waits for an ACK to be due: it is told
    /// then.
    pub(super) fn puts_together(&self) -> Option<Run> {
        let (next, bytes) = self.end.receiver.in_order()?;
        self.ack_awaited.then_some(Run::new(self.ordinal, next, bytes.min(TOLD_EVERY)))
    }

    /// As the task, which waits for that: when an ACK is due.
    pub(crate) fn ack_due(&mut self) -> Option<Instant> {
        let due = self.end.receiver.due();
        self.ack_awaited = due.is_some();
        due.map(|ms| self.began + std::time::Duration::from_millis(ms))
    }

    /// A control came.
    pub(crate) fn obey(&mut self, control: Control) -> Result<(Obeyed, Settlement), Violation> {
        let End { sender, receiver } = &mut self.end;
        match control {
            Control::Ack(taken) => {
                let before = sender.acked();
                sender.ack(taken)?;
                let obeyed = if sender.is_over() { Obeyed::Changed } else { Obeyed::Nothing };
                return Ok((obeyed, self.settle(before)));
            }
            Control::Refuse { first, count, why } => {
                let refusals = &mut self.refusals;
                sender.refuse(first, count, |range| {
                    refusals.insert(range.start, (range.end, why));
                })?;
            }
            Control::Heartbeat { sent, acked } => receiver.heartbeat(sent, acked)?,
            Control::Close(end) => {
                receiver.close(end)?;
                return Ok((Obeyed::Changed, Settlement::default()));
            }
            Control::Goaway { retry } => {
                if !sender.is_draining() {
                    self.retry = Some(retry);
                }
                sender.drain();
                return Ok((Obeyed::Changed, Settlement::default()));
            }
            Control::Error(code) => return Ok((Obeyed::Over(code), Settlement::default())),
        }
        Ok((Obeyed::Nothing, Settlement::default()))
    }

    /// All from `before` to what is acknowledged now are over.
    fn settle(&mut self, before: u64) -> Settlement {
        let acked = self.end.sender.acked();
        let mut settlement = Settlement::default();
        if acked > self.batch.first {
            // They are acknowledged before the writer has come back: what is left of the batch begins behind them.
            let first = self.batch.first.max(before);
            let passed = self.replay.bytes_of((acked - before) as usize);
            self.batch.front += passed - self.replay.bytes_of((first - before) as usize);
            self.batch.first = acked;
        }
        let mut freed = 0;
        let mut at = before;
        while at < acked {
            let Some(next) = self.refusals.first_entry().filter(|next| *next.key() < acked) else {
                freed += self.replay.forget((acked - at) as usize, &mut settlement.dropped);
                settlement.acked = acked - at;
                break;
            };
            let (start, (end, why)) = next.remove_entry();
            if end > acked {
                self.refusals.insert(acked, (end, why));
            }
            let (taken, end) = (start - at, end.min(acked));
            freed += self.replay.forget(taken as usize, &mut settlement.dropped);
            let held = self.replay.len();
            let messages = self.replay.take((end - start) as usize);
            freed += held - self.replay.len();
            settlement.untaken.push((taken, messages, why));
            at = end;
        }
        self.end.sender.freed(freed as u64);
        settlement
    }

    /// The session is over, and what the other end knows of it is gone: all that was sent is in doubt, but what was refused. What
    /// was not sent stays where it is. To be [replaced](Self::new) by another.
    pub(crate) fn lose(&mut self) -> Settlement {
        let (acked, sent) = (self.end.sender.acked(), self.end.sender.sent());
        let mut settlement = Settlement::default();
        let mut at = acked;
        let mut refusals = std::mem::take(&mut self.refusals).into_iter().peekable();
        while at < sent {
            let (end, why) = match refusals.peek() {
                Some((start, (end, why))) if *start == at => (*end.min(&sent), *why),
                Some((start, _)) => (*start.min(&sent), Why::Dropped),
                None => (sent, Why::Dropped),
            };
            if end == refusals.peek().map_or(0, |(_, (end, _))| *end) {
                refusals.next();
            }
            settlement.untaken.push((0, self.replay.take((end - at) as usize), why));
            at = end;
        }
        self.end.receiver.end();
        self.end.broke();
        settlement
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::Config;

    /// A peer may refuse each message by itself, in any order and for either reason, and acknowledge them all at once. It must not
    /// take the time of that many, squared.
    #[test]
    fn a_hundred_thousand_refusals_are_settled_in_order() {
        const MESSAGES: u64 = 100_000;
        let now = Instant::now();
        let codec = Config::new().codec().unwrap();
        let (mut pending, mut output) = (Output::new(codec), Output::new(codec));
        let mut session = Session::new(Side::Listener, 0, codec, now);
        let terms = Terms { max_message: 100, window: 1 << 30, heartbeat: 0, ttl: 1000 };
        assert!(session.resume(&Positions::default(), &terms).is_ok());
        for _ in 0..MESSAGES {
            pending.push(Bytes::from_static(b"m")).unwrap();
        }
        assert!(session.begin_batch(&mut pending, false, &mut output, now));
        session.batch_written();
        let why = |position: u64| if position.is_multiple_of(2) { Why::Refused } else { Why::Dropped };
        for first in (0..MESSAGES / 2).rev().chain(MESSAGES / 2..MESSAGES) {
            assert!(session.obey(Control::Refuse { first, count: 1, why: why(first) }).is_ok());
        }
        let Ok((_, settlement)) = session.obey(Control::Ack(MESSAGES - 1)) else { panic!("it was sent") };
        let whys = settlement.untaken.iter().map(|(acked, messages, why)| (*acked, messages.len(), *why));
        assert!(whys.eq((0..MESSAGES - 1).map(|position| (0, 1, why(position)))));
        let lost = session.lose().untaken;
        assert_eq!((lost.len(), lost[0].1.len(), lost[0].2), (1, 1, why(MESSAGES - 1)));
    }
}
