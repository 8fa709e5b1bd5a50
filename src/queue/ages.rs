//! How old messages are, about: when they were accepted, some at a time. Pure: what time it is comes as an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The time of acceptance is kept this much finer than `message_ttl`.
const MARKS: u32 = 64;

/// When messages were accepted, about. They are numbered in their order.
pub(crate) struct Ages {
    ttl: Duration,
    marks: VecDeque<Mark>,
    /// Up to this one they are with a transport, which may bring them back.
    begun: u64,
}

/// The messages up to `last` that come after the mark before, accepted from `begun` to `newest`.
struct Mark {
    last: u64,
    begun: Instant,
    newest: Instant,
}

impl Ages {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, marks: VecDeque::new(), begun: 0 }
    }

    /// All up to `last` have been accepted by now, and all up to `over` are of no interest any more.
    pub(crate) fn mark(&mut self, last: u64, over: u64, now: Instant) {
        self.forget(over);
        self.add(Mark { last, begun: now, newest: now });
    }

    /// Takes over those of messages that come behind the `first` of these.
    pub(crate) fn append(&mut self, other: &mut Self, first: u64, over: u64) {
        self.forget(over);
        for mark in other.marks.drain(..) {
            self.add(Mark { last: first + mark.last, ..mark });
        }
    }

    /// When this message was accepted, about: not before. `None` where it is not known any more.
    pub(crate) fn accepted_at(&self, number: u64) -> Option<Instant> {
        let at = self.marks.partition_point(|mark| mark.last < number);
        self.marks.get(at).map(|mark| mark.newest)
    }

    /// It may be older than the one before it, if another producer has been faster.
    fn add(&mut self, mark: Mark) {
        match self.marks.back_mut() {
            Some(back) if mark.newest.saturating_duration_since(back.begun) < self.ttl / MARKS => {
                back.last = mark.last;
                back.begun = back.begun.min(mark.begun);
                back.newest = back.newest.max(mark.newest);
            }
            _ => self.marks.push_back(mark),
        }
    }

    /// The last that is too old of the messages behind `begun`. Those before are with a transport, and those up to `over` will not
    /// come back.
    pub(crate) fn last_expired(&mut self, over: u64, begun: u64, now: Instant) -> Option<u64> {
        self.forget(over);
        self.begun = begun;
        let is_old = |mark: &&Mark| now.saturating_duration_since(mark.newest) >= self.ttl;
        let last = self.marks.iter().take_while(is_old).last()?.last;
        (last > begun).then_some(last)
    }

    /// When the next message that no transport has may be too old, if the oldest that is not marked here was accepted at `unmarked`,
    /// or comes later.
    pub(crate) fn next_expiry(&self, unmarked: Instant) -> Option<Instant> {
        let next = self.marks.iter().find(|mark| mark.last > self.begun);
        next.map_or(unmarked, |mark| mark.newest).checked_add(self.ttl)
    }

    /// Whether messages are as exactly told apart if they are marked together after this time.
    pub(crate) fn is_within_a_mark(ttl: Duration, after: Duration) -> bool {
        after < ttl / MARKS
    }

    fn forget(&mut self, over: u64) {
        while self.marks.front().is_some_and(|mark| mark.last <= over) {
            self.marks.pop_front();
        }
    }
}
