//! The bounded queue between the reader tasks and the consumer: batches in, in turn, within a budget of bytes.
//!
//! The only file that names flume. Its channel keeps the order; the budget is what bounds it. A reader reserves its
//! share *before* it reads, so that a thousand readers in front of a full inbox hold nothing. Nobody waits in the channel
//! itself, which would allocate for each wait: who sends has a place already, and who receives leaves a waker here.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use flume::TryRecvError;
use futures::stream::{FusedStream, Stream};
use futures::task::AtomicWaker;

/// What an item costs beside its bytes: its place in the queue, twice that while the queue grows, and what the allocator
/// keeps around both.
pub(crate) const ITEM: usize = 512;

/// An inbox for `budget` bytes.
pub(crate) fn inbox<T: Send + 'static>(budget: usize) -> (Sender<T>, Receiver<T>) {
    // Every item costs at least ITEM, so the budget is always full before the channel is.
    let (tx, rx) = flume::bounded(budget / ITEM + 1);
    let state = State { used: 0, ended: false, next_ticket: 0, waiting: VecDeque::new() };
    let budget = Arc::new(Budget { total: budget, state: Mutex::new(state), consumer: AtomicWaker::new() });
    let receiver = Receiver { items: rx, budget: budget.clone(), ended: false };
    (Sender { tx: Some(tx), budget, ticket: None }, receiver)
}

/// One reader's end. A clone waits in the queue for itself.
pub(crate) struct Sender<T> {
    /// `None` when it is dropped.
    tx: Option<flume::Sender<Parcel<T>>>,
    budget: Arc<Budget>,
    ticket: Option<u64>,
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
        let in_turn = state.waiting.front().is_none_or(|(first, _)| Some(*first) == self.ticket);
        let granted = state.ended || (in_turn && state.fits(bytes, self.budget.total));
        if !granted {
            let ticket = *self.ticket.get_or_insert_with(|| state.new_ticket());
            state.wait(ticket, cx.waker());
            return Poll::Pending;
        }
        if let Some(ticket) = self.ticket.take() {
            state.leave(ticket);
        }
        state.used += bytes;
        drop(state);
        Poll::Ready(Share { budget: self.budget.clone(), bytes })
    }

    /// Puts an item into the queue. There is room: the share is the place.
    pub(crate) fn send(&self, item: T, share: Share) -> Result<(), Disconnected> {
        if self.budget.lock().ended {
            return Err(Disconnected);
        }
        let tx = self.tx.as_ref().ok_or(Disconnected)?;
        tx.try_send(Parcel { item, share }).map_err(|_| Disconnected)?;
        self.budget.consumer.wake();
        Ok(())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { tx: self.tx.clone(), budget: self.budget.clone(), ticket: None }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let mut state = self.budget.lock();
            state.leave(ticket);
        }
        // The last one ends the queue.
        self.tx = None;
        self.budget.consumer.wake();
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

    /// A part of the budget for the consumer itself, if `bytes` fit and nobody waits for them.
    pub(crate) fn reserve(&self, bytes: usize) -> Option<Share> {
        let mut state = self.budget.lock();
        if !state.waiting.is_empty() || !state.fits(bytes, self.budget.total) {
            return None;
        }
        state.used += bytes;
        drop(state);
        Some(Share { budget: self.budget.clone(), bytes })
    }

    fn take(&mut self) -> Poll<Option<Parcel<T>>> {
        match self.items.try_recv() {
            Ok(parcel) => Poll::Ready(Some(parcel)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }
}

impl<T> Stream for Receiver<T> {
    type Item = Parcel<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(taken) = self.take() {
            return Poll::Ready(taken);
        }
        // What came between the look and the waker has woken nobody.
        self.budget.consumer.register(cx.waker());
        self.take()
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
        self.budget.lock().used == self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

struct Budget {
    total: usize,
    state: Mutex<State>,
    /// Who takes the items, when it waits for one.
    consumer: AtomicWaker,
}

struct State {
    used: usize,
    /// The consumer is gone: nobody has to wait for it.
    ended: bool,
    next_ticket: u64,
    /// Those who wait, by ticket: the first has waited longest, and only it is woken.
    waiting: VecDeque<(u64, Waker)>,
}

impl Budget {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        for (_, waker) in &state.waiting {
            waker.wake_by_ref();
        }
    }

    fn release(&self, bytes: usize) {
        if bytes > 0 {
            let mut state = self.lock();
            state.used -= bytes;
            state.wake_first();
        }
    }
}

impl State {
    fn fits(&self, bytes: usize, total: usize) -> bool {
        self.used == 0 || self.used + bytes <= total
    }

    fn new_ticket(&mut self) -> u64 {
        self.next_ticket += 1;
        self.next_ticket
    }

    fn wait(&mut self, ticket: u64, waker: &Waker) {
        match self.waiting.binary_search_by_key(&ticket, |(waiting, _)| *waiting) {
            Ok(at) => self.waiting[at].1.clone_from(waker),
            Err(at) => self.waiting.insert(at, (ticket, waker.clone())),
        }
    }

    /// Ends a wait; the next in the queue may fit as well.
    fn leave(&mut self, ticket: u64) {
        if let Ok(at) = self.waiting.binary_search_by_key(&ticket, |(waiting, _)| *waiting) {
            self.waiting.remove(at);
        }
        self.wake_first();
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.waiting.front() {
            waker.wake_by_ref();
        }
    }
}
