//! The books of a queue: which messages were accepted, which are over, and how each of them ended.
//!
//! Messages are numbered from 1 as they are accepted, and leave in that order. Numbers only; the bytes are in the queue.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::error::{Error, Limit};

/// The time of acceptance is kept this much finer than `message_ttl`.
const MARKS: u32 = 64;

/// The books of one queue.
pub(crate) struct Books {
    /// How many were accepted: the number of the last.
    accepted: u64,
    /// The last message of the batch that the transport was given.
    batch: u64,
    /// Up to this one all are over: written, or given back.
    over: u64,
    given_back: u64,
    /// Why the last were given back.
    why: Option<Arc<Error>>,
    /// Whose messages are not over, in order: as many entries as there were hand-overs, at the most.
    owned: VecDeque<Owned>,
    /// Messages whose producer waits to have them back if they are not written, and why they were not.
    claimed: BTreeMap<u64, Option<Verdict>>,
    ages: Option<Ages>,
}

/// What became of a message that was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The connection broke and could not be opened again, and [`Config::reconnect`](crate::Config::reconnect) is off.
    NotSent,
    /// It was older than [`Config::message_ttl`](crate::Config::message_ttl) before it could be sent.
    Expired,
    /// The connection broke, and all attempts of [`Config::reconnect`](crate::Config::reconnect) were in vain.
    GaveUp,
    /// The address was closed before it could be sent.
    Closed,
    /// Its sink was dropped while [`Config::queue_bytes`](crate::Config::queue_bytes) were held: there was no room for it.
    QueueFull,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSent => "the connection broke and could not be opened again",
            Self::Expired => "it was too old before it could be sent",
            Self::GaveUp => "all attempts to open the connection again were in vain",
            Self::Closed => "its address was closed before it could be sent",
            Self::QueueFull => "there was no room for it when its sink was dropped",
        })
    }
}

/// Why messages were given back.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    /// How often the address was dialed for them.
    pub(crate) attempts: u32,
    pub(crate) error: Arc<Error>,
}

impl Verdict {
    /// The queue was closed.
    pub(crate) fn closed() -> Self {
        Self { outcome: Outcome::Closed, attempts: 0, error: Arc::new(Error::Closed { message: None }) }
    }

    /// They were older than `ttl`; the address had been dialed so often in the meantime.
    pub(crate) fn expired(ttl: Duration, attempts: u32) -> Self {
        let error = Arc::new(Error::Timeout { what: Limit::MessageTtl, after: ttl });
        Self { outcome: Outcome::Expired, attempts, error }
    }

    /// The queue holds `max` bytes or more, and its producer cannot wait.
    pub(crate) fn queue_full(max: usize) -> Self {
        Self { outcome: Outcome::QueueFull, attempts: 0, error: Arc::new(Error::QueueFull { max }) }
    }
}

/// Why messages of one producer were given back: the first reason since it last asked. A clone is the same. The books
/// write it down here, so that they need not remember it for a producer that may never ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate(Arc<OnceLock<Arc<Error>>>);

impl Fate {
    /// Why, if any were; when all of the producer's messages are over.
    pub(crate) fn take(&mut self) -> Option<Arc<Error>> {
        let why = self.0.get()?.clone();
        *self = Self::default();
        Some(why)
    }

    /// Whether none were, so far.
    pub(crate) fn is_clear(&self) -> bool {
        self.0.get().is_none()
    }

    fn tell(&self, why: &Arc<Error>) {
        // The first reason stays.
        let _ = self.0.set(why.clone());
    }
}

/// The messages of these numbers are of one producer.
struct Owned {
    first: u64,
    last: u64,
    fate: Fate,
}

/// When messages were accepted, about.
struct Ages {
    ttl: Duration,
    marks: VecDeque<Mark>,
}

/// The messages up to `last` that come after the mark before, accepted from `begun` to `newest`.
struct Mark {
    last: u64,
    begun: Instant,
    newest: Instant,
}

/// A producer's place in the queue: the number of its last message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl Ticket {
    /// Before that of any message.
    pub(crate) const FIRST: Self = Self(0);
}

impl Books {
    /// Empty books. With a `ttl`, messages that are older are to be given back.
    pub(crate) fn new(ttl: Option<Duration>) -> Self {
        Self {
            accepted: 0,
            batch: 0,
            over: 0,
            given_back: 0,
            why: None,
            owned: VecDeque::new(),
            claimed: BTreeMap::new(),
            ages: ttl.map(|ttl| Ages { ttl, marks: VecDeque::new() }),
        }
    }

    /// Enters messages, at that time, which is needed with a `ttl`. With a `fate`, their producer is told there if any of them
    /// are given back.
    pub(crate) fn accept(&mut self, messages: u64, fate: Option<&Fate>, now: Option<Instant>) -> Ticket {
        let first = self.accepted + 1;
        self.accepted += messages;
        if let Some(fate) = fate {
            self.own(first, self.accepted, fate);
        }
        if let (Some(ages), Some(now)) = (&mut self.ages, now) {
            ages.mark(self.accepted, self.over, now);
        }
        Ticket(self.accepted)
    }

    fn own(&mut self, first: u64, last: u64, fate: &Fate) {
        match self.owned.back_mut() {
            Some(back) if back.last + 1 == first && Arc::ptr_eq(&back.fate.0, &fate.0) => back.last = last,
            _ => self.owned.push_back(Owned { first, last, fate: fate.clone() }),
        }
    }

    /// The ticket of the last message.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.accepted)
    }

    /// The producer of this message has a copy: if it is not written, the producer returns it.
    pub(crate) fn claim(&mut self, ticket: Ticket) {
        self.claimed.insert(ticket.0, None);
    }

    /// The producer of this message no longer waits. Where it was given back, returns why: nobody else has it.
    pub(crate) fn unclaim(&mut self, ticket: Ticket) -> Option<Verdict> {
        self.claimed.remove(&ticket.0)?
    }

    /// The transport is given all that was accepted.
    pub(crate) fn begin_batch(&mut self) {
        self.batch = self.accepted;
    }

    /// The transport has taken the batch.
    pub(crate) fn batch_written(&mut self) {
        self.over = self.batch;
        while self.owned.front().is_some_and(|owned| owned.last <= self.over) {
            self.owned.pop_front();
        }
    }

    /// Up to this one all are over.
    pub(crate) fn over(&self) -> Ticket {
        Ticket(self.over)
    }

    pub(crate) fn is_over(&self, ticket: Ticket) -> bool {
        self.over >= ticket.0
    }

    /// Why the last messages were given back, if that was after `given_back` of them had been.
    pub(crate) fn why_since(&self, given_back: u64) -> Result<(), Arc<Error>> {
        match &self.why {
            Some(why) if self.given_back > given_back => Err(why.clone()),
            _ => Ok(()),
        }
    }

    /// How many of the oldest messages are too old, of `held` that are not written whole.
    pub(crate) fn expired(&mut self, held: u64, now: Instant) -> u64 {
        let written = self.accepted - held;
        self.ages.as_mut().map_or(0, |ages| ages.expired(written, now))
    }

    /// When the next message may be too old; `None` where none ever is.
    pub(crate) fn next_expiry(&self, now: Instant) -> Option<Instant> {
        let ages = self.ages.as_ref()?;
        // What is accepted after this look is due later.
        let newest = ages.marks.front().map_or(now, |mark| mark.newest);
        newest.checked_add(ages.ttl)
    }

    /// Gives back the oldest messages of the `held` that are not written whole. Returns the ones that no producer returns
    /// itself.
    pub(crate) fn give_back<M>(&mut self, held: u64, messages: Vec<M>, verdict: &Verdict) -> Vec<M> {
        if messages.is_empty() {
            return messages;
        }
        let first = self.accepted + 1 - held;
        let last = first + messages.len() as u64 - 1;
        let mut unclaimed = Vec::with_capacity(messages.len());
        for (number, message) in (first..).zip(messages) {
            match self.claimed.get_mut(&number) {
                // It is not the last owner of what is dropped here: the producer has a copy.
                Some(given_back) => *given_back = Some(verdict.clone()),
                None => unclaimed.push(message),
            }
        }
        self.tell_owners(first, last, &verdict.error);
        self.given_back += last + 1 - first;
        self.why = Some(verdict.error.clone());
        self.over = last;
        unclaimed
    }

    /// The messages from `first` to `last` were given back; those before them are written.
    fn tell_owners(&mut self, first: u64, last: u64, why: &Arc<Error>) {
        while let Some(owned) = self.owned.front()
            && owned.first <= last
        {
            if owned.last >= first {
                owned.fate.tell(why);
            }
            if owned.last > last {
                return;
            }
            self.owned.pop_front();
        }
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(crate) fn given_back(&self) -> u64 {
        self.given_back
    }
}

impl Ages {
    /// All up to `last` have been accepted by now, and all up to `over` are of no interest any more.
    fn mark(&mut self, last: u64, over: u64, now: Instant) {
        self.forget(over);
        match self.marks.back_mut() {
            Some(mark) if now - mark.begun < self.ttl / MARKS => {
                mark.last = last;
                mark.newest = now;
            }
            _ => self.marks.push_back(Mark { last, begun: now, newest: now }),
        }
    }

    /// How many messages behind `over` are too old.
    fn expired(&mut self, over: u64, now: Instant) -> u64 {
        self.forget(over);
        let is_old = |mark: &&Mark| now.saturating_duration_since(mark.newest) >= self.ttl;
        self.marks.iter().take_while(is_old).last().map_or(0, |mark| mark.last - over)
    }

    fn forget(&mut self, over: u64) {
        while self.marks.front().is_some_and(|mark| mark.last <= over) {
            self.marks.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(6_400);
    const MARK: Duration = Duration::from_millis(100);
    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn each_outcome_has_words_of_its_own() {
        let all = [Outcome::NotSent, Outcome::Expired, Outcome::GaveUp, Outcome::Closed, Outcome::QueueFull];
        let words: std::collections::BTreeSet<_> = all.iter().map(Outcome::to_string).collect();
        assert_eq!(words.len(), all.len());
        assert_eq!(Outcome::Expired.to_string(), "it was too old before it could be sent");
    }

    /// Kept here because nothing else sees when, to the moment, a message is too old that shares a mark with older ones: it
    /// must not come back early, and no message much too late.
    #[test]
    fn the_messages_of_a_mark_are_as_old_as_its_newest() {
        let began = Instant::now();
        let mut books = Books::new(Some(TTL));
        // Two in the first mark, as late as it goes; a third in the next; a fourth by itself.
        for after in [Duration::ZERO, MARK - MOMENT, MARK, 6 * MARK] {
            books.accept(1, None, Some(began + after));
        }
        let (mut held, mut now) = (4, began + 6 * MARK);
        for (due, expired) in [(MARK - MOMENT, 2), (MARK, 1), (6 * MARK, 1)] {
            assert_eq!(books.expired(held, now), 0);
            assert_eq!(books.next_expiry(now), Some(began + TTL + due));
            now = began + TTL + due;
            assert_eq!(books.expired(held, now - MOMENT), 0, "{due:?}");
            assert_eq!(books.expired(held, now), expired, "{due:?}");
            books.give_back(held, vec![(); expired as usize], &Verdict::expired(TTL, 0));
            held -= expired;
        }
        assert_eq!((books.expired(0, now), books.given_back()), (0, 4));
        assert_eq!(books.next_expiry(now), Some(now + TTL), "none is held");
    }

    /// What is written is not what a mark that it shares with younger ones waits for.
    #[test]
    fn a_mark_that_is_written_in_part_counts_the_rest() {
        let began = Instant::now();
        let mut books = Books::new(Some(TTL));
        books.accept(3, None, Some(began));
        books.begin_batch();
        books.batch_written();
        books.accept(2, None, Some(began));
        let now = began + TTL;
        assert_eq!(books.expired(2, now - MOMENT), 0);
        assert_eq!(books.expired(2, now), 2);
        assert_eq!(books.expired(1, now), 1, "one is written meanwhile");
        assert_eq!(books.expired(0, now), 0);
    }

    /// Kept here because nothing else tells whose loss it was, of two producers that come after one another.
    #[test]
    fn a_loss_is_told_to_none_who_came_after_it() {
        let mut books = Books::new(None);
        assert!(books.why_since(0).is_ok(), "nothing was lost");
        books.accept(1, None, None);
        books.give_back(1, vec![()], &Verdict::closed());
        assert!(books.why_since(0).is_err());
        assert!(books.why_since(books.given_back()).is_ok());
    }
}
