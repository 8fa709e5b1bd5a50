//! The books of a queue: which messages were accepted, which are over, and how each of them ended.
//!
//! Messages are numbered from 1 as they are accepted, and leave in that order. Numbers only; the bytes are in the queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ages::Ages;
use super::returns::{Returned, Returns, Trail};
use super::verdict::Verdict;
use crate::error::Error;
use crate::sync::{Later, Lock};

/// The books of one queue.
pub(crate) struct Books {
    /// How many were accepted: the number of the last.
    accepted: u64,
    /// The last message of the batch that the transport was given.
    batch: u64,
    /// Up to this one all were written, or given back.
    written: u64,
    /// Up to this one all are over: written, in a session acknowledged, or given back.
    over: u64,
    /// Those above that were given back although others before them are not over, in order: the first and the last of each run.
    gone: VecDeque<(u64, u64)>,
    given_back: u64,
    /// Why the last were given back.
    why: Option<Arc<Error>>,
    /// Whose messages are not over, in order: as many entries as there were hand-overs, at the most.
    owned: VecDeque<Owned>,
    /// Messages whose producer waits to have them back if they are not written, and why they were not.
    claimed: BTreeMap<u64, Option<Verdict>>,
    ages: Option<Ages>,
}

/// Why messages of one producer were given back: the first reason since it last asked. A clone is the same. The books
/// write it down here, so that they need not remember it for a producer that may never ask.
#[derive(Clone, Default)]
pub(crate) struct Fate(Arc<Told>);

#[derive(Default)]
struct Told {
    why: Lock<Option<Arc<Error>>>,
    /// Where they go, if the producer takes them back itself.
    home: Option<(Arc<Returns>, Trail)>,
}

impl Fate {
    /// That of messages which come back to their producer, with this trail.
    pub(crate) fn of(returns: Arc<Returns>, trail: Trail) -> Self {
        Self(Arc::new(Told { why: Lock::default(), home: Some((returns, trail)) }))
    }

    /// The trail of messages that come back to their producer.
    pub(crate) fn trail(&self) -> Option<&Trail> {
        self.0.home.as_ref().map(|(_, trail)| trail)
    }

    /// Brings a message back to its producer. What is returned is to be woken without any lock.
    #[must_use]
    pub(crate) fn bring_home(&self, message: Bytes, verdict: &Verdict, since: Option<Instant>) -> Option<Waker> {
        let (returns, trail) = self.0.home.as_ref()?;
        returns.put(Returned { message, verdict: verdict.clone(), trail: trail.clone(), since })
    }

    /// Why, if any were since this was asked last.
    pub(crate) fn take(&self) -> Option<Arc<Error>> {
        self.0.why.lock().take()
    }

    /// Whether none were, so far.
    pub(crate) fn is_clear(&self) -> bool {
        self.0.why.lock().is_none()
    }

    fn tell(&self, why: &Arc<Error>) {
        // The first reason stays.
        self.0.why.lock().get_or_insert_with(|| why.clone());
    }
}

/// Messages that were given back, but for those that their producer has a copy of.
#[derive(Default)]
pub(crate) struct Back<M> {
    /// Those of producers that do not take them back.
    pub(crate) strays: Vec<M>,
    /// The others, with the time of their acceptance where they have an age.
    pub(crate) home: Vec<(Fate, M, Option<Instant>)>,
}

impl Back<Bytes> {
    /// Those of producers that take them back go there; returns the rest. Who is to be woken is put aside.
    pub(crate) fn send_home(self, verdict: &Verdict, later: &mut Later) -> Vec<Bytes> {
        for (fate, message, since) in self.home {
            later.wake(fate.bring_home(message, verdict, since));
        }
        self.strays
    }
}

/// The messages of these numbers are of one producer.
struct Owned {
    first: u64,
    last: u64,
    fate: Fate,
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
            written: 0,
            over: 0,
            gone: VecDeque::new(),
            given_back: 0,
            why: None,
            owned: VecDeque::new(),
            claimed: BTreeMap::new(),
            ages: ttl.map(Ages::new),
        }
    }

    /// Enters messages, at that time, which is needed with a `ttl`. With a `fate`, their producer is told there if any of them
    /// are given back.
    pub(crate) fn accept(&mut self, messages: u64, fate: Option<&Fate>, now: Option<Instant>) -> Ticket {
        let before = self.enter(messages, fate);
        if let (Some(ages), Some(now)) = (&mut self.ages, now) {
            ages.mark(before + messages, self.over, now);
        }
        Ticket(self.accepted)
    }

    /// As [`accept`](Self::accept), for messages that were accepted elsewhere, and have an age already.
    pub(crate) fn accept_aged(&mut self, messages: u64, fate: Option<&Fate>, of_them: Option<&mut Ages>) -> Ticket {
        let before = self.enter(messages, fate);
        if let (Some(ages), Some(of_them)) = (&mut self.ages, of_them) {
            ages.append(of_them, before, self.over);
        }
        Ticket(self.accepted)
    }

    /// How many were accepted before.
    fn enter(&mut self, messages: u64, fate: Option<&Fate>) -> u64 {
        let before = self.accepted;
        self.accepted += messages;
        if let Some(fate) = fate {
            self.own(before + 1, self.accepted, fate);
        }
        before
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

    /// Of those that are not over, the transport was given so many until now, or so many of them whole, where it broke.
    pub(crate) fn begin_batch_up_to(&mut self, given: u64) {
        self.batch = self.past_gone(self.number(given));
    }

    /// The transport has taken the batch, and it is over.
    pub(crate) fn batch_written(&mut self) {
        self.batch_sent();
        self.over = self.batch;
        self.disown();
    }

    /// The transport has taken the batch, which is over when it is acknowledged.
    pub(crate) fn batch_sent(&mut self) {
        self.written = self.batch;
    }

    /// So many of those that are not over are acknowledged, or ended in another way that was told.
    pub(crate) fn acked(&mut self, messages: u64) {
        self.over = self.number(messages);
        self.pass_gone();
        self.written = self.written.max(self.over);
        self.disown();
    }

    /// The number of the message that is so far behind those that are over.
    fn number(&self, behind: u64) -> u64 {
        let mut number = self.over + behind;
        for (first, last) in &self.gone {
            if *first > number {
                break;
            }
            number += last + 1 - first;
        }
        number
    }

    /// The last of those that were given back directly behind this one, or this one.
    fn past_gone(&self, number: u64) -> u64 {
        let next = self.gone.iter().find(|(_, last)| *last > number);
        next.filter(|(first, _)| *first <= number + 1).map_or(number, |(_, last)| *last)
    }

    /// From the first to the last of these, all were given back: now, or those in between before.
    fn enter_gone(&mut self, mut first: u64, mut last: u64) {
        let begin = self.gone.partition_point(|(_, end)| end + 1 < first);
        let end = self.gone.partition_point(|(begin, _)| *begin <= last + 1);
        for (begin, end) in self.gone.drain(begin..end) {
            first = first.min(begin);
            last = last.max(end);
        }
        self.gone.insert(begin, (first, last));
    }

    /// Those that were given back before are over when those before them are.
    fn pass_gone(&mut self) {
        while let Some((first, last)) = self.gone.front()
            && *first <= self.over + 1
        {
            self.over = self.over.max(*last);
            self.gone.pop_front();
        }
    }

    /// What is over has no owner any more.
    fn disown(&mut self) {
        while self.owned.front().is_some_and(|owned| owned.last <= self.over) {
            self.owned.pop_front();
        }
    }

    /// Whether it was written, or given back.
    pub(crate) fn is_written(&self, ticket: Ticket) -> bool {
        self.written >= ticket.0
    }

    /// Up to this one all were written, or given back.
    pub(crate) fn written(&self) -> Ticket {
        Ticket(self.written)
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
        let last = self.ages.as_mut().and_then(|ages| ages.last_expired(written, written, now));
        last.map_or(0, |last| last - written)
    }

    /// The same in a session, of those that the transport was not given. Of those that are not over it was given so many whole, and
    /// so many in all: what it is given in part comes back where it breaks.
    pub(crate) fn expired_in_session(&mut self, whole: u64, given: u64, now: Instant) -> u64 {
        let (whole, given) = (self.number(whole), self.past_gone(self.number(given)));
        let last = self.ages.as_mut().and_then(|ages| ages.last_expired(whole, given, now));
        let Some(last) = last else { return 0 };
        let gone = self.gone.iter().map(|(begin, end)| (end.min(&last) + 1).saturating_sub(*begin.max(&(given + 1))));
        last - given - gone.sum::<u64>()
    }

    /// When the next message may be too old, if the oldest that is not here yet was accepted at `elsewhere`, or comes later;
    /// `None` where none ever is.
    pub(crate) fn next_expiry(&self, elsewhere: Instant) -> Option<Instant> {
        self.ages.as_ref()?.next_expiry(elsewhere)
    }

    /// Gives back the oldest messages of the `held` that are not written whole, or not over in a session. Returns those of
    /// which no producer has a copy.
    pub(crate) fn give_back<M>(&mut self, held: u64, messages: Vec<M>, verdict: &Verdict) -> Back<M> {
        if self.gone.is_empty() {
            // Of a batch that was not written to its end, the first may have been.
            self.over = self.over.max(self.accepted - held);
        }
        self.give_back_behind(0, messages, verdict)
    }

    /// As [`give_back`](Self::give_back), the oldest behind so many others, which are not over.
    pub(crate) fn give_back_behind<M>(&mut self, others: u64, messages: Vec<M>, verdict: &Verdict) -> Back<M> {
        let mut back = Back { strays: Vec::with_capacity(messages.len()), home: Vec::new() };
        let mut behind = others;
        let mut first = None;
        let mut last = 0;
        for message in messages {
            behind += 1;
            let number = self.number(behind);
            first = first.or(Some(number));
            last = number;
            match self.claimed.get_mut(&number) {
                // It is not the last owner of what is dropped here: the producer has a copy.
                Some(given_back) => *given_back = Some(verdict.clone()),
                None => match self.owner_at_home(number) {
                    Some(fate) => {
                        let since = self.ages.as_ref().and_then(|ages| ages.accepted_at(number));
                        back.home.push((fate, message, since));
                    }
                    None => back.strays.push(message),
                },
            }
        }
        let Some(first) = first else { return back };
        self.tell_owners(first, last, &verdict.error);
        self.given_back += behind - others;
        self.why = Some(verdict.error.clone());
        // Of those in between, some may have been given back before.
        if others == 0 {
            self.over = last;
            self.pass_gone();
            self.written = self.written.max(self.over);
            self.batch = self.batch.max(self.over);
            self.disown();
            return back;
        }
        // Those before them are with the transport.
        if self.written == self.batch {
            self.written = last;
        }
        self.batch = last;
        self.enter_gone(first, last);
        back
    }

    /// That of the message of this number, if its producer takes it back.
    fn owner_at_home(&self, number: u64) -> Option<Fate> {
        let at = self.owned.partition_point(|owned| owned.last < number);
        let owned = self.owned.get(at).filter(|owned| owned.first <= number)?;
        owned.fate.trail().map(|_| owned.fate.clone())
    }

    /// The messages from `first` to `last` were given back.
    fn tell_owners(&mut self, first: u64, last: u64, why: &Arc<Error>) {
        let owners = self.owned.iter().skip_while(|owned| owned.last < first);
        for owned in owners.take_while(|owned| owned.first <= last) {
            owned.fate.tell(why);
        }
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(crate) fn given_back(&self) -> u64 {
        self.given_back
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict::Outcome;
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
    /// Kept here because it takes a transport that stalls and breaks, and messages that grow too old before and behind that.
    #[test]
    fn what_a_transport_brings_back_is_in_front_of_what_had_come_back() {
        let began = Instant::now();
        let verdict = Verdict::expired(TTL, 0);
        let mut books = Books::new(Some(TTL));
        books.accept(5, None, Some(began));
        books.begin_batch_up_to(5);
        books.batch_sent();
        books.acked(5);
        // Five are being written, and of the five behind them three have grown too old.
        books.accept(5, None, Some(began));
        books.accept(3, None, Some(began + MARK));
        let newest = books.accept(2, None, Some(began + 2 * MARK));
        books.begin_batch_up_to(5);
        assert_eq!(books.expired_in_session(0, 5, began + TTL), 0, "they are with the transport");
        assert_eq!(books.next_expiry(began), Some(began + MARK + TTL));
        assert_eq!(books.expired_in_session(0, 5, began + MARK + TTL), 3);
        books.give_back_behind(5, vec![(); 3], &verdict);
        assert_eq!(books.expired_in_session(0, 5, began + MARK + TTL), 0);
        assert_eq!(books.next_expiry(began), Some(began + 2 * MARK + TTL));
        // It breaks with the third: the rest is pending again, and is too old.
        books.begin_batch_up_to(2);
        assert_eq!(books.expired_in_session(2, 2, began + MARK + TTL), 3);
        assert_eq!(books.expired_in_session(2, 2, began + 2 * MARK + TTL), 5);
        books.give_back_behind(2, vec![(); 3], &verdict);
        assert!(!books.is_written(newest), "it is not with the transport");
        // The next goes on with those that it had whole, and takes one more.
        books.begin_batch_up_to(3);
        books.batch_sent();
        assert!(!books.is_written(newest));
        books.acked(3);
        assert_eq!(books.expired_in_session(0, 0, began + 2 * MARK + TTL), 1);
        books.acked(1);
        assert!(books.is_over(newest));
        assert_eq!((books.accepted(), books.given_back()), (15, 6));
    }

    /// However they come back, one behind another or between, they are counted once.
    #[test]
    fn messages_come_back_in_any_order() {
        let verdict = Verdict::expired(TTL, 0);
        for (behind, counts, over) in
            [([2, 2, 0], [3, 2, 2], 7), ([4, 1, 1], [2, 3, 1], 0), ([6, 3, 1], [1, 2, 3], 0), ([1, 2, 3], [1, 1, 1], 0)]
        {
            let mut books = Books::new(None);
            let last = books.accept(10, None, None);
            let mut left = 10;
            for (behind, count) in behind.into_iter().zip(counts) {
                books.give_back_behind(behind, vec![(); count], &verdict);
                left -= count as u64;
            }
            assert_eq!(books.over().0, over, "{behind:?} {counts:?}");
            books.acked(left - 1);
            assert!(!books.is_over(last));
            books.acked(1);
            assert!(books.is_over(last) && books.gone.is_empty(), "{behind:?} {counts:?}");
        }
    }
}
