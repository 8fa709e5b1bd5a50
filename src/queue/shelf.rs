//! What a sink has fed and not handed over, where the queue can reach it: it waits for a flush, and not for ever.
//!
//! A sink puts messages on its shelf under a lock of its own, which nobody else wants but for a moment. The queue knows each shelf
//! that holds something: so it is counted, and is handed over when it has lingered long enough. Where both are locked, the queue
//! is locked first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::Batch;
use super::books::{Fate, Ticket};
use super::place::Turn;
use crate::error::Error;
use crate::sync::{BriefGuard, BriefLock};
use crate::wire::Output;

/// The driver that comes and finds all flushed sets a timer for the next only if it found that less than this part of the linger
/// ago: a timer that is set costs the reactor at each of its turns, and a call costs more only where there are many.
const SOON: u32 = 16;

/// The shelf of one sink for one queue.
pub(crate) struct Shelf {
    shelved: BriefLock<Shelved>,
    /// Whether what is here when the queue is closed stays, for its producer to take back.
    pub(super) keeps: bool,
}

/// What is on a shelf, and what became of what was.
pub(super) struct Shelved {
    pub(super) batch: Batch,
    /// Each message is to be marked when it comes. If not, they are marked together when they are handed over, no later than they
    /// linger, which is as exact as ages are.
    pub(super) marks: bool,
    pub(super) at: At,
    /// The last message that was accepted, until its producer asks.
    pub(super) ticket: Option<Ticket>,
}

/// Where a queue has a shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nowhere: it is empty, or the queue is closed.
    Nowhere,
    /// Among those that linger, under this number.
    Lingers(u64),
    InLine(Turn),
}

impl Shelf {
    /// An empty one, for messages of this format. Where its queue is closed, all is accepted that is there.
    pub(crate) fn new(output: Output) -> Arc<Self> {
        Self::with(output, Fate::default(), false)
    }

    /// The same, but where its queue is closed, all stays that is there, for its producer to take back. What was handed over has
    /// this fate.
    pub(crate) fn that_keeps(output: Output, fate: Fate) -> Arc<Self> {
        Self::with(output, fate, true)
    }

    fn with(output: Output, fate: Fate, keeps: bool) -> Arc<Self> {
        let batch = Batch::new(output, fate);
        let shelved = BriefLock::new(Shelved { batch, marks: false, at: At::Nowhere, ticket: None });
        Arc::new(Self { shelved, keeps })
    }

    #[inline(always)]
    pub(super) fn lock(&self) -> BriefGuard<'_, Shelved> {
        self.shelved.lock()
    }

    /// Accepts a copy of a short message behind others that are there: the queue knows of them, and is open, or it would have taken
    /// them. How many bytes there are then; `None` where it is not so simple: see [`Outbox::feed`](super::Outbox::feed).
    #[inline(always)]
    pub(crate) fn copy(&self, message: &[u8]) -> Option<usize> {
        let shelved = &mut *self.lock();
        let batch = &mut shelved.batch;
        if batch.messages == 0 || shelved.marks || !batch.output.push_short(message) {
            return None;
        }
        batch.messages += 1;
        Some(batch.output.len())
    }

    /// How many messages it holds, and how many bytes those have on the wire.
    pub(crate) fn held(&self) -> (usize, usize) {
        let Shelved { batch, .. } = &*self.lock();
        (batch.messages, batch.output.len())
    }

    /// Whether its producer has nothing to do here: nothing to hand over, and nothing to hear of what was.
    pub(crate) fn is_idle(&self) -> bool {
        let shelved = self.lock();
        shelved.batch.messages == 0 && shelved.ticket.is_none()
    }

    /// Why messages that were here came back, once.
    pub(crate) fn tell(&self) -> Option<Arc<Error>> {
        self.lock().batch.fate.take()
    }

    /// Whether nothing of that is left to tell.
    pub(crate) fn is_clear(&self) -> bool {
        self.lock().batch.fate.is_clear()
    }

    /// Its queue is closed or has let go of it: takes all that is here.
    pub(crate) fn take(&self) -> Vec<Bytes> {
        let Shelved { batch, .. } = &mut *self.lock();
        batch.ages = None;
        batch.messages = 0;
        batch.output.take_messages()
    }

    /// It goes on with another queue, where all is over that went through the one before.
    pub(crate) fn follow(&self) {
        self.lock().ticket = None;
    }
}

impl Shelved {
    /// Accepts the message that `push` puts behind the others. How many bytes there are then.
    #[inline(always)]
    pub(super) fn push(
        &mut self,
        push: impl FnOnce(&mut Output) -> Result<(), Error>,
        now: impl FnOnce() -> Option<Instant>,
    ) -> Result<usize, Error> {
        self.batch.push_with(push)?;
        if self.marks || self.batch.messages == 1 {
            self.mark(now);
        }
        Ok(self.batch.output.len())
    }

    /// Writes down how old those are that were not marked when they came.
    pub(super) fn mark_all(&mut self, now: impl FnOnce() -> Option<Instant>) {
        if !self.marks {
            self.mark(now);
        }
    }

    fn mark(&mut self, now: impl FnOnce() -> Option<Instant>) {
        if let Some(ages) = &mut self.batch.ages
            && let Some(now) = now()
        {
            ages.mark(self.batch.messages as u64, 0, now);
        }
    }
}

/// The shelves that hold something and do not wait in line, in the order in which they came. Most queues have none, and no memory
/// for them. Pure: what time it is comes as an argument.
#[derive(Default)]
pub(crate) struct Lingering(Option<Box<Shelves>>);

#[derive(Default)]
struct Shelves {
    last: u64,
    /// Each with the time of its first message, where that is known.
    shelves: BTreeMap<u64, (Option<Instant>, Arc<Shelf>)>,
    /// The driver is to look at them then.
    look: Option<Instant>,
    /// It has a timer for that. It may find that they were handed over meanwhile: where there are many, it is called once in that
    /// time, and not for each.
    is_set: bool,
    /// When it came last and found that all were.
    idle: Option<Instant>,
}

impl Lingering {
    /// Holds something from now on. `Some(true)` where the driver is to be called, to look at it in time.
    pub(super) fn add(&mut self, shelf: &Arc<Shelf>, now: Option<Instant>, linger: Option<Duration>) -> (u64, bool) {
        let all = self.0.get_or_insert_default();
        all.last += 1;
        all.shelves.insert(all.last, (now, shelf.clone()));
        if all.look.is_none()
            && let (Some(now), Some(linger)) = (now, linger)
        {
            // What is further away than the clock can tell never comes.
            all.look = now.checked_add(linger);
            return (all.last, all.look.is_some());
        }
        (all.last, false)
    }

    pub(super) fn remove(&mut self, number: u64) {
        if let Some(all) = &mut self.0 {
            all.shelves.remove(&number);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Shelf>> {
        self.0.iter().flat_map(|all| all.shelves.values().map(|(_, shelf)| shelf))
    }

    /// All of them, which are forgotten.
    pub(super) fn take_all(&mut self) -> Vec<Arc<Shelf>> {
        let all = self.0.take();
        all.into_iter().flat_map(|all| all.shelves.into_values().map(|(_, shelf)| shelf)).collect()
    }

    /// As the driver, which has come: when it is to look. `is_idle` says that there is nothing else to be written.
    pub(super) fn look(&mut self, now: Instant, linger: Duration, is_idle: bool) -> Option<Instant> {
        let all = self.0.as_mut()?;
        let at = all.look?;
        if at > now && !all.is_set && is_idle && all.shelves.is_empty() {
            let before = all.idle.replace(now);
            if before.is_none_or(|before| now.saturating_duration_since(before) >= linger / SOON) {
                all.look = None;
                return None;
            }
        }
        all.is_set = true;
        Some(at)
    }

    /// Takes out the next that is due.
    pub(super) fn take_due(&mut self, now: Instant, linger: Duration) -> Option<Arc<Shelf>> {
        let shelves = &mut self.0.as_mut()?.shelves;
        let first = shelves.first_entry()?;
        let (since, _) = first.get();
        let is_due = since.and_then(|since| since.checked_add(linger)).is_some_and(|at| at <= now);
        is_due.then(|| first.remove().1)
    }

    /// The driver has looked. When it looks again: when the next is due, if there is one.
    pub(super) fn looked(&mut self, linger: Duration) -> Option<Instant> {
        if let Some(all) = &mut self.0 {
            let first = all.shelves.values().next().and_then(|(since, _)| *since);
            all.look = first.and_then(|since| since.checked_add(linger));
            all.is_set = all.look.is_some();
        }
        self.0.as_ref()?.look
    }

    /// When the oldest message of all came, where that is known.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.as_ref()?.shelves.values().next()?.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const LINGER: Duration = Duration::from_millis(16);
    const MS: Duration = Duration::from_millis(1);

    /// Kept here because nothing else sees how often a timer is set.
    #[test]
    fn a_timer_is_set_for_what_is_not_flushed_and_for_sinks_that_flush_very_often() {
        let shelf = Shelf::new(Output::new(Config::new().codec().unwrap()));
        let (mut lingering, began) = (Lingering::default(), Instant::now());
        let mut flushed = |at: Duration, calls: bool| {
            let now = began + at;
            let (number, is_called) = lingering.add(&shelf, Some(now), Some(LINGER));
            lingering.remove(number);
            assert_eq!(is_called, calls, "{at:?}");
            lingering.look(now, LINGER, true).map(|look| look - began)
        };
        // Each is flushed when the driver comes.
        assert_eq!(flushed(MS, true), None);
        assert_eq!(flushed(2 * MS, true), None);
        // Now they come fast: there is a timer, and it is not called for the next ones.
        assert_eq!(flushed(2 * MS + MS / 2, true), Some(2 * MS + MS / 2 + LINGER));
        assert_eq!(flushed(9 * MS, false), Some(2 * MS + MS / 2 + LINGER));
        assert_eq!(lingering.looked(LINGER), None);
        // What is not flushed has one, and so has what was handed over and is not written.
        let now = began + 100 * MS;
        let (number, _) = lingering.add(&shelf, Some(now), Some(LINGER));
        assert_eq!(lingering.look(now, LINGER, true), Some(now + LINGER));
        lingering.remove(number);
        assert_eq!(lingering.looked(LINGER), None);
        let (number, _) = lingering.add(&shelf, Some(now), Some(LINGER));
        lingering.remove(number);
        assert_eq!(lingering.look(now, LINGER, false), Some(now + LINGER));
    }
}
