//! What the queue of a peer holds: messages, the transport or what it left behind, the books, and who waits.
//!
//! Changes of one moment, under the lock of the outbox. Nothing in here writes, and nothing in here wakes: the wakers of
//! those who are to be woken are put aside until the lock is released.

use std::mem;
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use futures::io::AsyncWrite;

use super::books::{Books, Ticket};
use super::line::Line;
use super::place::{Place, Turn, Wait};
use super::rules::Rules;
use super::session::{Session, Settlement};
use super::shelf::Lingering;
use super::totals::Totals;
pub(crate) use super::transport::{Load, Then, Transport};
use super::verdict::{Untaken, Verdict};
use crate::error::Error;
use crate::framed::Writer;
use crate::session::Why;
use crate::sync::{Later, Waiters, Wakes};
use crate::wire::{Codec, Output};

/// What one queue holds, and who waits for it.
pub(crate) struct Held<W> {
    /// What was accepted and is not with the transport yet.
    pub(crate) pending: Output,
    pub(crate) transport: Transport<W>,
    pub(crate) books: Books,
    /// The session that they are sent in, if it is acknowledged.
    pub(crate) session: Option<Box<Session>>,
    /// How many bytes transports have taken.
    pub(crate) progress: u64,
    /// The transport takes no more, or there is none, or its producers do not write: the driver has to act.
    pub(crate) stalled: bool,
    /// Why the transport broke, for the driver to tell.
    pub(crate) broken: Option<Error>,
    pub(crate) phase: Phase,
    pub(super) rules: Arc<Rules<W>>,
    /// What is to be accepted when there is room.
    pub(crate) line: Line,
    /// What sinks have fed and not handed over.
    pub(super) lingering: Lingering,
    /// How many bytes have come back and wait for the one who takes them. There is that much less room.
    pub(super) unburied: usize,
    /// How many messages were on the shelves of sinks that went, and came back because there was no room for them. They have no
    /// number in the books.
    pub(super) unshelved: u64,
    waiters: Waiters<Wait>,
    driver: Option<Waker>,
    /// The driver is to be called when there is room.
    pub(crate) driver_wants_room: bool,
    later: Later,
}

/// How far a queue is on its way to its end. It only goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Nothing more is accepted.
    Closed,
    /// Nor is there to be another transport.
    Ended,
}

impl<W> Wakes for Held<W> {
    fn later(&mut self) -> &mut Later {
        &mut self.later
    }
}

impl<W: AsyncWrite + Unpin> Held<W> {
    /// Nothing yet, for this transport.
    pub(crate) fn new(io: W, codec: Codec, rules: Arc<Rules<W>>) -> Self {
        let writer = Writer::with(io, Output::new(codec));
        Self { transport: Transport::Idle(writer), ..Self::down(codec, rules) }
    }

    /// Nothing yet, for a transport that is still to come.
    pub(crate) fn down(codec: Codec, rules: Arc<Rules<W>>) -> Self {
        Self {
            pending: Output::new(codec),
            transport: Transport::Gone(Output::new(codec)),
            books: Books::new(rules.ttl.as_ref().map(|ttl| ttl.after)),
            session: None,
            progress: 0,
            stalled: false,
            broken: None,
            phase: Phase::Open,
            rules,
            line: Line::default(),
            lingering: Lingering::default(),
            unburied: 0,
            unshelved: 0,
            waiters: Waiters::default(),
            driver: None,
            driver_wants_room: false,
            later: Later::default(),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.phase >= Phase::Closed
    }

    // ---- what goes out

    /// Gives the next batch to a writer that has none. Whether there is one.
    #[inline]
    pub(crate) fn begin_batch(&mut self, writer: &mut Writer<W>) -> bool {
        if self.session.is_some() {
            return self.begin_batch_in_session(writer);
        }
        if self.pending.is_empty() {
            self.pending.release();
            writer.output_mut().release();
            return false;
        }
        writer.output_mut().append(&mut self.pending);
        self.books.begin_batch();
        self.let_in();
        true
    }

    #[inline(never)]
    fn begin_batch_in_session(&mut self, writer: &mut Writer<W>) -> bool {
        let has_expired = self.expired() > 0;
        let Some(session) = &mut self.session else { return false };
        if session.begin_batch(&mut self.pending, has_expired, writer.output_mut(), self.rules.clock()) {
            self.books.begin_batch_up_to(session.held().0 as u64);
            self.let_in();
        } else if writer.output().is_empty() {
            session.release();
            return false;
        }
        true
    }

    pub(crate) fn batch_written(&mut self) {
        match &mut self.session {
            Some(session) => {
                session.batch_written();
                self.books.batch_sent();
            }
            None => self.books.batch_written(),
        }
        self.wake_over();
    }

    /// What was acknowledged is over. Returns what comes back to nobody who waits, with what is to be dropped without the lock.
    pub(crate) fn settle(&mut self, settlement: Settlement, verdict: impl Fn(Why) -> Verdict) -> Untaken {
        let mut untaken = Untaken { letters: Vec::new(), dropped: settlement.dropped };
        for (acked, messages, why) in settlement.untaken {
            self.books.acked(acked);
            if let Some(session) = &mut self.session {
                session.count_untaken(messages.len(), why);
            }
            let verdict = verdict(why);
            // They are the next: what was acknowledged behind them is counted below.
            let back = self.books.give_back_behind(0, messages, &verdict);
            let messages = back.send_home(&verdict, &mut self.later);
            untaken.letters.push((messages, verdict));
        }
        self.books.acked(settlement.acked);
        self.wake_over();
        self.let_in();
        untaken
    }

    /// Ends a turn of writing, in which the transport may have broken. What is returned is to be dropped without the lock.
    #[must_use]
    #[inline(never)]
    pub(crate) fn put_back(&mut self, writer: Writer<W>, breaks: bool) -> Option<W> {
        let then = match &self.transport {
            Transport::Taken(_, then) if !breaks => *then,
            _ => Then::Lose,
        };
        let io = if then == Then::Lose {
            let io = self.lose(writer);
            self.stall();
            io
        } else {
            self.transport = Transport::Idle(writer);
            None
        };
        self.wake(Wait::PutBack, Wait::PutBack);
        if then == Then::CallDriver {
            self.call_driver();
        }
        io
    }

    /// The transport is gone. What is returned is to be dropped without the lock.
    #[must_use]
    pub(crate) fn lose(&mut self, writer: Writer<W>) -> Option<W> {
        let (io, output) = match &mut self.session {
            // It has a copy of what it was giving the transport.
            Some(session) => {
                session.broke(&mut self.pending);
                self.books.begin_batch_up_to(session.held().0 as u64);
                (writer.into_io(), self.pending.another())
            }
            None => writer.into_io_and_output(),
        };
        self.transport = Transport::Gone(output);
        // There may be more room while it is down than there was.
        self.let_in();
        io
    }

    /// Gives back the `count` oldest of what is held and not with a transport.
    pub(crate) fn give_back_oldest(&mut self, count: u64, verdict: &Verdict) -> Vec<Bytes> {
        let held = self.held();
        let mut messages = match &mut self.transport {
            Transport::Gone(output) => output.take_oldest(count as usize),
            Transport::Idle(_) | Transport::Taken(..) => Vec::new(),
        };
        messages.append(&mut self.pending.take_oldest(count as usize - messages.len()));
        let back = match &self.session {
            Some(session) => self.books.give_back_behind(session.held().0 as u64, messages, verdict),
            None => self.books.give_back(held, messages, verdict),
        };
        let strays = back.send_home(verdict, &mut self.later);
        self.wake_over();
        self.let_in();
        strays
    }

    /// How many messages are too old to be sent, while a transport has not begun with them.
    pub(crate) fn expired(&mut self) -> u64 {
        if let Some(session) = &self.session {
            let (whole, given) = (session.sent() as u64, session.held().0 as u64);
            return self.rules.now().map_or(0, |now| self.books.expired_in_session(whole, given, now));
        }
        let begun = match &self.transport {
            Transport::Idle(writer) => !writer.output().is_empty(),
            Transport::Taken(..) => true,
            Transport::Gone(_) => false,
        };
        let held = self.held();
        match self.rules.now() {
            Some(now) if !begun => self.books.expired(held, now),
            _ => 0,
        }
    }

    /// How many messages were accepted and are neither written nor given back.
    pub(crate) fn held(&self) -> u64 {
        let sent = self.session.as_ref().map_or_else(|| self.transport.load().messages, |session| session.held().0);
        (sent + self.pending.held()) as u64
    }

    /// How many bytes they have on the wire, as far as those are not written.
    pub(crate) fn held_bytes(&self) -> usize {
        let sent = self.session.as_ref().map_or_else(|| self.transport.load().bytes, |session| session.held().1);
        sent + self.pending.len()
    }

    /// Accepts nothing more, but what was fed.
    pub(crate) fn close(&mut self) {
        self.clear_shelves();
        self.phase = self.phase.max(Phase::Closed);
        self.wake(Wait::Accepted(Turn::FIRST), Wait::Accepted(Turn::LAST));
        self.wake(Wait::Closed, Wait::Closed);
        self.wake_for_room();
    }

    pub(crate) fn books(&self) -> Totals {
        let held = self.held();
        let over = self.books.accepted() - self.books.given_back() - held;
        let (acked, sent) = self.session.as_ref().map_or((0, 0), |session| (over, session.sent() as u64));
        Totals {
            accepted: self.books.accepted() + self.unshelved,
            written: over + sent,
            acked,
            given_back: self.books.given_back() + self.unshelved,
            untaken: self.session.as_ref().map(|session| session.untaken()).unwrap_or_default(),
            held,
            held_bytes: self.held_bytes(),
            bytes: self.progress,
        }
    }

    // ---- who waits

    pub(crate) fn wait(&mut self, what: Wait, place: &mut Place, waker: &Waker) {
        let replaced = self.waiters.wait_for(what, &mut place.waiting, waker);
        self.later.drop(replaced);
    }

    pub(crate) fn leave(&mut self, place: &mut Place) {
        let left = self.waiters.leave(&mut place.waiting);
        self.later.drop(left);
    }

    #[inline]
    pub(super) fn wake(&mut self, first: Wait, last: Wait) {
        self.waiters.wake(first..=last, &mut self.later);
    }

    #[inline(always)]
    fn wake_over(&mut self) {
        // Mostly nobody waits.
        if !self.waiters.is_empty() {
            self.wake_those_over();
        }
    }

    #[inline(never)]
    fn wake_those_over(&mut self) {
        self.wake(Wait::Written(Ticket::FIRST), Wait::Written(self.books.written()));
        self.wake(Wait::Over(Ticket::FIRST), Wait::Over(self.books.over()));
    }

    #[inline]
    pub(super) fn wake_for_room(&mut self) {
        self.wake(Wait::Room, Wait::Room);
        if mem::take(&mut self.driver_wants_room) {
            self.call_driver();
        }
    }

    /// A producer stops writing: if others wait for what is left, the driver goes on.
    #[inline]
    pub(crate) fn pass_on(&mut self) {
        // As mostly.
        if self.waiters.is_empty() && !self.driver_wants_room {
            return;
        }
        let Transport::Idle(writer) = &self.transport else { return };
        let is_left = !writer.output().is_empty() || self.has_more();
        let is_waited_for = self.driver_wants_room || self.waiters.any(Wait::Written(Ticket::FIRST)..=Wait::Room);
        if is_left && is_waited_for && !self.stalled {
            self.stall();
        }
    }

    /// Whether there is something to begin with.
    pub(super) fn has_more(&self) -> bool {
        match &self.session {
            Some(session) => session.wants_to_write(&self.pending),
            None => !self.pending.is_empty(),
        }
    }

    /// A producer goes: the driver writes what is pending.
    pub(crate) fn leave_to_driver(&mut self) {
        if self.has_more() {
            self.stall();
        }
    }

    /// Leaves it to the driver to go on.
    pub(crate) fn stall(&mut self) {
        self.stalled = true;
        self.call_driver();
    }

    /// The driver is called once for each time that it registers.
    pub(crate) fn call_driver(&mut self) {
        self.later.wake(self.driver.take());
    }

    pub(crate) fn set_driver(&mut self, waker: &Waker) {
        if self.driver.as_ref().is_none_or(|driver| !driver.will_wake(waker)) {
            let replaced = self.driver.replace(waker.clone());
            self.later.drop(replaced);
        }
    }

    /// There is nothing more to drive.
    pub(crate) fn forget_driver(&mut self) {
        self.later.drop(self.driver.take());
    }
}
