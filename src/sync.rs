//! Locks that a panic does not poison, lists of those who wait, and signals that are given once.
//!
//! No code of the program is called or dropped under a lock, and a waker is such code: it may be the last owner of the
//! task that waits, and with it of something whose drop takes the same lock. So a waker that is replaced, removed or to be
//! woken is handed out, to be dropped or woken when the lock is released.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::foreign;

/// A mutex. Nothing panics halfway under it, so one that was poisoned is whole.
#[derive(Debug, Default)]
pub(crate) struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those who wait, in the order in which they came. Each of them leaves with the key that it was given.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    last: u64,
    /// `None` for those that were woken and have not come back yet.
    waiting: BTreeMap<u64, Option<Waker>>,
}

/// A place among those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u64);

impl Waiters {
    /// Waits, behind the others if it has no place yet. What is returned is to be dropped without the lock.
    #[must_use]
    pub(crate) fn wait(&mut self, place: &mut Option<Key>, waker: &Waker) -> Option<Waker> {
        let key = *place.get_or_insert_with(|| {
            self.last += 1;
            Key(self.last)
        });
        match self.waiting.entry(key.0).or_default() {
            Some(waiting) if waiting.will_wake(waker) => None,
            waiting => waiting.replace(waker.clone()),
        }
    }

    /// Gives the place up. What is returned is to be dropped without the lock.
    #[must_use]
    pub(crate) fn leave(&mut self, place: &mut Option<Key>) -> Option<Waker> {
        self.waiting.remove(&place.take()?.0).flatten()
    }

    /// Whether nobody has waited longer than whoever has this place, or none yet.
    pub(crate) fn is_first(&self, place: Option<Key>) -> bool {
        self.waiting.keys().next().is_none_or(|first| place == Some(Key(*first)))
    }

    /// Takes the waker of whoever has waited longest, to be woken without the lock; they keep their place.
    #[must_use]
    pub(crate) fn take_first(&mut self) -> Option<Waker> {
        self.waiting.values_mut().next()?.take()
    }

    /// Takes the wakers of all, to be woken without the lock; they keep their places.
    #[must_use]
    pub(crate) fn take_all(&mut self) -> Vec<Waker> {
        self.waiting.values_mut().filter_map(Option::take).collect()
    }
}

/// Something that becomes known once, and that many can wait for.
#[derive(Debug)]
pub(crate) struct Signal<T>(Arc<Lock<SignalState<T>>>);

#[derive(Debug)]
struct SignalState<T> {
    value: Option<T>,
    waiters: Waiters,
}

impl<T> Default for Signal<T> {
    fn default() -> Self {
        Self(Arc::new(Lock::new(SignalState { value: None, waiters: Waiters::default() })))
    }
}

impl<T> Clone for Signal<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Signal<T> {
    /// Gives it. The first value stays.
    pub(crate) fn give(&self, value: T) {
        let mut state = self.0.lock();
        if state.value.is_some() {
            return;
        }
        state.value = Some(value);
        let wakers = mem::take(&mut state.waiters).take_all();
        drop(state);
        for waker in wakers {
            // Whose executor is gone does not wait.
            let _ = foreign::wake(waker);
        }
    }

    /// Whether it has been given.
    pub(crate) fn get(&self) -> Option<T> {
        self.0.lock().value.clone()
    }

    /// Waits for it.
    pub(crate) fn wait(&self) -> Given<T> {
        Given { signal: self.clone(), place: None }
    }
}

/// Ready when the signal is given.
#[derive(Debug)]
pub(crate) struct Given<T> {
    signal: Signal<T>,
    place: Option<Key>,
}

impl<T: Clone> Future for Given<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let mut state = this.signal.0.lock();
        if let Some(value) = &state.value {
            return Poll::Ready(value.clone());
        }
        let replaced = state.waiters.wait(&mut this.place, cx.waker());
        drop(state);
        let _ = foreign::dispose(replaced);
        Poll::Pending
    }
}

impl<T> Unpin for Given<T> {}

impl<T> Drop for Given<T> {
    fn drop(&mut self) {
        let left = self.signal.0.lock().waiters.leave(&mut self.place);
        let _ = foreign::dispose(left);
    }
}
