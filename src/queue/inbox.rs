//! The bounded queue between the reader tasks and the consumer: batches in, in turn, within a budget of bytes.
//!
//! The only file that names flume. Its channel keeps the order; the budget is what bounds it. A reader reserves its
//! share *before* it reads, so that a thousand readers in front of a full inbox hold nothing. Who gives room back grants it
//! to those in front of the line, to as many as it does for: each would have to run first if they let each other in, and on a busy
//! machine the consumer would wait for that. Nobody waits in the channel itself, which would allocate for each wait: who sends has a
//! place already, and who receives leaves a waker here.

use std::collections::BTreeMap;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use flume::TryRecvError;
use futures::stream::{FusedStream, Stream};

use crate::foreign::PanicHook;
use crate::sync::{Guard, Later, Lock, Wakes};

/// What an item costs beside its bytes: its place in the queue, twice that while the queue grows, and what the allocator
/// keeps around both.
pub(crate) const ITEM: usize = 512;

/// An inbox for `budget` bytes. `panicked` is told where the waker of somebody who waits panics.
pub(crate) fn inbox<T: Send + 'static>(budget: usize, panicked: Option<PanicHook>) -> (Sender<T>, Receiver<T>) {
    // Every item costs at least ITEM, so the budget is always full before the channel is.
    let (tx, rx) = flume::bounded(budget / ITEM + 1);
    let state = Lock::new(State { total: budget, ..State::default() });
    let budget = Arc::new(Budget { state, panicked });
    let receiver = Receiver { items: rx, budget: budget.clone(), ended: false };
    (Sender { tx: Some(tx), budget, place: None }, receiver)
}

/// One reader's end. A clone waits in the queue for itself.
pub(crate) struct Sender<T> {
    /// `None` when it is dropped.
    tx: Option<flume::Sender<Parcel<T>>>,
    budget: Arc<Budget>,
    /// Its number in the line, while it waits.
    place: Option<u64>,
}

/// An item with its share of the budget, which is free again when this is dropped.
pub(crate) struct Parcel<T> {
    pub(crate) item: T,
    pub(crate) share: Share,
}

/// The consumer is gone.
pub(crate) struct Disconnected;

impl<T> Sender<T> {
    /// Waits, in turn, until `bytes` fit in the budget. They always fit when nothing else is held.
    pub(crate) fn poll_reserve(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<Share> {
        let mut state = self.budget.lock();
        if !state.take(bytes, &mut self.place) {
            state.wait(bytes, &mut self.place, cx.waker());
            return Poll::Pending;
        }
        drop(state);
        Poll::Ready(Share { budget: self.budget.clone(), bytes })
    }

    /// Does not wait any more. One who stays in the line, and does not come for what was granted, keeps it from all who are behind.
    pub(crate) fn leave(&mut self) {
        self.budget.lock().leave(&mut self.place);
    }

    /// Puts an item into the queue. There is room: the share is the place.
    pub(crate) fn send(&self, item: T, share: Share) -> Result<(), Disconnected> {
        let tx = self.tx.as_ref().ok_or(Disconnected)?;
        // What cannot be sent is dropped without the lock.
        let sent = {
            let mut state = self.budget.lock();
            if state.ended {
                return Err(Disconnected);
            }
            let sent = tx.try_send(Parcel { item, share });
            state.call_consumer();
            sent
        };
        sent.map_err(|_| Disconnected)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { tx: self.tx.clone(), budget: self.budget.clone(), place: None }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The last one ends the queue.
        self.tx = None;
        let mut state = self.budget.lock();
        state.leave(&mut self.place);
        state.call_consumer();
    }
}

/// The consumer's end. It yields what was sent, in order, and ends when all senders are gone.
pub(crate) struct Receiver<T> {
    items: flume::Receiver<Parcel<T>>,
    budget: Arc<Budget>,
    ended: bool,
}

impl<T> Receiver<T> {
    /// Whether nothing waits to be taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// How much of the budget is in use, to be asked from elsewhere.
    #[cfg(feature = "metrics")]
    pub(crate) fn usage(&self) -> Usage {
        Usage(self.budget.clone())
    }

    /// A part of the budget for the consumer itself, if `bytes` fit and nobody waits for them.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<Share> {
        // Nobody is to be woken.
        let mut state = self.budget.state.lock();
        if !state.waiting.is_empty() || !state.fits(bytes) {
            return None;
        }
        state.used += bytes;
        drop(state);
        Some(Share { budget: self.budget.clone(), bytes })
    }

    fn take(items: &flume::Receiver<Parcel<T>>, ended: &mut bool) -> Poll<Option<Parcel<T>>> {
        match items.try_recv() {
            Ok(parcel) => Poll::Ready(Some(parcel)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => {
                *ended = true;
                Poll::Ready(None)
            }
        }
    }
}

impl<T> Stream for Receiver<T> {
    type Item = Parcel<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { items, budget, ended } = self.get_mut();
        if let Poll::Ready(taken) = Self::take(items, ended) {
            return Poll::Ready(taken);
        }
        let mut state = budget.lock();
        // What came before the waker has woken nobody; under the lock, nothing comes.
        let taken = Self::take(items, ended);
        if taken.is_pending() && state.consumer.as_ref().is_none_or(|consumer| !consumer.will_wake(cx.waker())) {
            let replaced = state.consumer.replace(cx.waker().clone());
            state.later.drop(replaced);
        }
        taken
    }
}

impl<T> FusedStream for Receiver<T> {
    fn is_terminated(&self) -> bool {
        self.ended
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.budget.end();
        // flume would keep what is queued until the last sender is gone.
        self.items.drain();
    }
}

/// A part of the budget.
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// Gives a part back, so that `bytes` remain.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        if let Some(rest) = self.bytes.checked_sub(bytes) {
            self.budget.release(rest);
            self.bytes = bytes;
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is all that is held: the consumer has finished with everything else.
    pub(crate) fn is_all(&self) -> bool {
        self.budget.state.lock().used == self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

/// How much of the budget is in use.
#[cfg(feature = "metrics")]
pub(crate) struct Usage(Arc<Budget>);

#[cfg(feature = "metrics")]
impl Usage {
    /// In bytes.
    pub(crate) fn used(&self) -> usize {
        self.0.state.lock().used
    }
}

struct Budget {
    state: Lock<State>,
    panicked: Option<PanicHook>,
}

#[derive(Default)]
struct State {
    total: usize,
    /// What is held, and what is kept for those to whom it was granted, in bytes.
    used: usize,
    /// The consumer is gone: nobody has to wait for it.
    ended: bool,
    /// The line of those who wait, by their numbers. Those at its front were granted what they wait for, and come for it.
    waiting: BTreeMap<u64, Waiting>,
    /// The number of the last who joined the line.
    last: u64,
    /// From this number on, nothing was granted.
    next: u64,
    /// Who takes the items, when it waits for one.
    consumer: Option<Waker>,
    later: Later,
}

/// Somebody in the line.
struct Waiting {
    bytes: usize,
    /// `None` when it was woken.
    waker: Option<Waker>,
}

impl Wakes for State {
    fn later(&mut self) -> &mut Later {
        &mut self.later
    }
}

impl Budget {
    fn lock(&self) -> Guard<'_, State> {
        self.state.hold(self.panicked.as_ref())
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.grant();
        let consumer = state.consumer.take();
        state.later.drop(consumer);
    }

    fn release(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let is_waited_for = {
            let mut state = self.state.lock();
            state.used -= bytes;
            !state.waiting.is_empty()
        };
        // As mostly, nobody waits, and there is nobody to be woken.
        if is_waited_for {
            self.lock().grant();
        }
    }
}

impl State {
    fn fits(&self, bytes: usize) -> bool {
        self.ended || self.used == 0 || self.used + bytes <= self.total
    }

    /// Takes what was granted to one in the line, or, for one who comes now, what fits and nobody waits for.
    fn take(&mut self, bytes: usize, place: &mut Option<u64>) -> bool {
        self.change(bytes, place);
        let Some(number) = *place else {
            let is_free = !self.is_waited_for() && self.fits(bytes);
            if is_free {
                self.used += bytes;
            }
            return is_free;
        };
        let is_granted = number < self.next;
        if is_granted {
            self.waiting.remove(&number);
            *place = None;
        }
        is_granted
    }

    /// One in the line needs this amount, which may be another than it was. It keeps its place, unless it was granted less.
    fn change(&mut self, bytes: usize, place: &mut Option<u64>) {
        let Some(number) = *place else { return };
        let Some(waiting) = self.waiting.get_mut(&number) else { return };
        let before = mem::replace(&mut waiting.bytes, bytes);
        if number >= self.next {
            if bytes < before {
                self.grant();
            }
        } else if bytes <= before {
            self.used -= before - bytes;
            self.grant();
        } else {
            waiting.bytes = before;
            self.leave(place);
        }
    }

    /// Joins the line, or stays in it.
    fn wait(&mut self, bytes: usize, place: &mut Option<u64>, waker: &Waker) {
        let number = *place.get_or_insert_with(|| {
            self.last += 1;
            self.last
        });
        let waiting = self.waiting.entry(number).or_insert(Waiting { bytes, waker: None });
        if waiting.waker.as_ref().is_none_or(|waiting| !waiting.will_wake(waker)) {
            let replaced = waiting.waker.replace(waker.clone());
            self.later.drop(replaced);
        }
    }

    /// Whether there is somebody in the line who was granted nothing.
    fn is_waited_for(&self) -> bool {
        self.waiting.last_key_value().is_some_and(|(last, _)| *last >= self.next)
    }

    /// Leaves the line; what was granted is for those behind.
    fn leave(&mut self, place: &mut Option<u64>) {
        let Some(number) = place.take() else { return };
        let Some(left) = self.waiting.remove(&number) else { return };
        if number < self.next {
            self.used -= left.bytes;
        }
        self.later.drop(left.waker);
        self.grant();
    }

    /// Grants what fits to those who have waited longest, and wakes them.
    fn grant(&mut self) {
        while let Some((&number, &Waiting { bytes, .. })) = self.waiting.range(self.next..).next()
            && self.fits(bytes)
        {
            self.used += bytes;
            self.next = number + 1;
            let waker = self.waiting.get_mut(&number).and_then(|first| first.waker.take());
            self.later.wake(waker);
        }
    }

    fn call_consumer(&mut self) {
        self.later.wake(self.consumer.take());
    }
}
