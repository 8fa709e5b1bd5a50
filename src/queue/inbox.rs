//! The bounded queue between the reader tasks and the consumer: batches in, in turn, within a budget of bytes.
//!
//! The only file that names flume. Its channel keeps the order; the budget is what bounds it. A reader reserves its
//! share *before* it reads, so that a thousand readers in front of a full inbox hold nothing. Nobody waits in the channel
//! itself, which would allocate for each wait: who sends has a place already, and who receives leaves a waker here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use flume::TryRecvError;
use futures::stream::{FusedStream, Stream};

use crate::foreign::PanicHook;
use crate::sync::{Guard, Key, Later, Lock, Waiters, Wakes};

/// What an item costs beside its bytes: its place in the queue, twice that while the queue grows, and what the allocator
/// keeps around both.
pub(crate) const ITEM: usize = 512;

/// An inbox for `budget` bytes. `panicked` is told where the waker of somebody who waits panics.
pub(crate) fn inbox<T: Send + 'static>(budget: usize, panicked: Option<PanicHook>) -> (Sender<T>, Receiver<T>) {
    // Every item costs at least ITEM, so the budget is always full before the channel is.
    let (tx, rx) = flume::bounded(budget / ITEM + 1);
    let budget = Arc::new(Budget { total: budget, state: Lock::default(), panicked });
    let receiver = Receiver { items: rx, budget: budget.clone(), ended: false };
    (Sender { tx: Some(tx), budget, place: None }, receiver)
}

/// One reader's end. A clone waits in the queue for itself.
pub(crate) struct Sender<T> {
    /// `None` when it is dropped.
    tx: Option<flume::Sender<Parcel<T>>>,
    budget: Arc<Budget>,
    place: Option<Key>,
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
        let in_turn = state.waiting.is_first(self.place);
        let granted = state.ended || (in_turn && state.fits(bytes, self.budget.total));
        if !granted {
            let replaced = state.waiting.wait(&mut self.place, cx.waker());
            state.later.drop(replaced);
            return Poll::Pending;
        }
        state.leave(&mut self.place);
        state.used += bytes;
        drop(state);
        Poll::Ready(Share { budget: self.budget.clone(), bytes })
    }

    /// Does not wait any more. One who stays in the line, and does not come when it is their turn, holds up all who are behind.
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
        if !state.waiting.is_empty() || !state.fits(bytes, self.budget.total) {
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
    total: usize,
    state: Lock<State>,
    panicked: Option<PanicHook>,
}

#[derive(Default)]
struct State {
    used: usize,
    /// The consumer is gone: nobody has to wait for it.
    ended: bool,
    /// The first has waited longest, and only it is woken.
    waiting: Waiters,
    /// Who takes the items, when it waits for one.
    consumer: Option<Waker>,
    later: Later,
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
        let mut guard = self.lock();
        let state = &mut *guard;
        state.ended = true;
        state.waiting.wake(()..=(), &mut state.later);
        state.later.drop(state.consumer.take());
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            let mut state = self.lock();
            state.used -= bytes;
            state.call_first();
        }
    }
}

impl State {
    fn fits(&self, bytes: usize, total: usize) -> bool {
        self.used == 0 || self.used + bytes <= total
    }

    /// Ends a wait; the next in the queue may fit as well.
    fn leave(&mut self, place: &mut Option<Key>) {
        if place.is_some() {
            let left = self.waiting.leave(place);
            self.later.drop(left);
            self.call_first();
        }
    }

    fn call_first(&mut self) {
        let first = self.waiting.take_first();
        self.later.wake(first);
    }

    fn call_consumer(&mut self) {
        self.later.wake(self.consumer.take());
    }
}
