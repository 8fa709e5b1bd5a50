//! Locks that a panic does not poison, lists of those who wait, and signals that are given once.
//!
//! No code of the program is called or dropped under a lock, and a waker is such code: it may be the last owner of the
//! task that waits, and with it of something whose drop takes the same lock. So a waker that is replaced, removed or to be
//! woken is handed out, to be dropped or woken when the lock is released.

use std::collections::BTreeMap;
use std::future::Future;
use std::mem;
use std::ops::{Deref, DerefMut, RangeInclusive};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, PoisonError, TryLockError};
use std::task::{Context, Poll, Waker};

use crate::foreign::{self, PanicHook, PanicSource};

/// Those of std, or where a test tries the orders in which threads can run, those that let it choose.
#[cfg(not(all(test, buffstreams_shuttle)))]
mod primitives {
    pub(super) use spin::mutex::SpinMutex;
    pub(crate) use spin::mutex::SpinMutexGuard as BriefGuard;
    pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
}
#[cfg(all(test, buffstreams_shuttle))]
mod primitives {
    pub(crate) use shuttle::sync::{Mutex, MutexGuard, MutexGuard as BriefGuard, atomic};
}
use primitives::Mutex;
#[cfg(not(all(test, buffstreams_shuttle)))]
use primitives::SpinMutex;
pub(crate) use primitives::{BriefGuard, MutexGuard, atomic};

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

    /// The same where nobody holds it.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lock that is held for a moment, nearly always by the same thread. It is released by a store: a mutex takes an instruction that
/// waits until all that was written is out of the processor, which costs more than to copy a short message. Where two meet, one
/// lets other threads run until the other has finished.
#[cfg(not(all(test, buffstreams_shuttle)))]
pub(crate) struct BriefLock<T>(SpinMutex<T>);

#[cfg(not(all(test, buffstreams_shuttle)))]
impl<T> BriefLock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(SpinMutex::new(value))
    }

    #[inline(always)]
    pub(crate) fn lock(&self) -> BriefGuard<'_, T> {
        match self.0.try_lock() {
            Some(guard) => guard,
            None => self.wait(),
        }
    }

    #[cold]
    fn wait(&self) -> BriefGuard<'_, T> {
        loop {
            std::thread::yield_now();
            if let Some(guard) = self.0.try_lock() {
                return guard;
            }
        }
    }
}

/// Where the order of threads is tried, it is as any other.
#[cfg(all(test, buffstreams_shuttle))]
pub(crate) use self::Lock as BriefLock;

/// What is under a lock, and has wakers to be woken or dropped when that is released.
pub(crate) trait Wakes {
    fn later(&mut self) -> &mut Later;
}

impl<T: Wakes> Lock<T> {
    /// As [`lock`](Self::lock), and when the lock is released what was put aside is done. If that panics, `panicked` is told.
    pub(crate) fn hold<'a>(&'a self, panicked: Option<&'a PanicHook>) -> Guard<'a, T> {
        Guard { state: Some(self.lock()), panicked }
    }
}

/// Wakers that were put aside under a lock, to be woken or dropped without it. The first of each kind take no memory.
#[derive(Debug, Default)]
pub(crate) struct Later {
    woken: Option<Waker>,
    dropped: Option<Waker>,
    #[allow(clippy::box_collection)] // There are many locks, and hardly ever more wakers.
    others: Option<Box<Vec<Then>>>,
}

#[derive(Debug)]
enum Then {
    Wake(Waker),
    Drop(Waker),
}

impl Later {
    pub(crate) fn wake(&mut self, waker: Option<Waker>) {
        let Some(waker) = waker else { return };
        if let Some(woken) = self.woken.replace(waker) {
            self.others.get_or_insert_default().push(Then::Wake(woken));
        }
    }

    pub(crate) fn drop(&mut self, waker: Option<Waker>) {
        let Some(waker) = waker else { return };
        if let Some(dropped) = self.dropped.replace(waker) {
            self.others.get_or_insert_default().push(Then::Drop(dropped));
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.woken.is_none() && self.dropped.is_none()
    }

    /// Does it, without the lock. If something panics, `panicked` is told.
    #[cold]
    fn run(self, panicked: Option<&PanicHook>) {
        let others = self.others.map_or_else(Vec::new, |others| *others);
        let last = self.woken.map(Then::Wake).into_iter().chain(self.dropped.map(Then::Drop));
        for then in others.into_iter().chain(last) {
            let done = match then {
                Then::Wake(waker) => foreign::wake(waker),
                Then::Drop(waker) => foreign::dispose(waker),
            };
            if let (Err(panic), Some(panicked)) = (done, panicked) {
                panicked(PanicSource::Waker, panic);
            }
        }
    }
}

/// A lock that is held. Dropped, it first releases the lock, and then does what was put aside.
pub(crate) struct Guard<'a, T: Wakes> {
    /// `None` while it is being dropped.
    state: Option<MutexGuard<'a, T>>,
    panicked: Option<&'a PanicHook>,
}

impl<T: Wakes> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        let later = state.later();
        if !later.is_empty() {
            let later = mem::take(later);
            drop(state);
            later.run(self.panicked);
        }
    }
}

impl<T: Wakes> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.state.as_ref().expect("it is held until it is dropped")
    }
}

impl<T: Wakes> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.state.as_mut().expect("it is held until it is dropped")
    }
}

/// Those who wait, by what they wait for, and then in the order in which they came. Each of them leaves with the key that it
/// was given.
#[derive(Debug)]
pub(crate) struct Waiters<K = ()> {
    last: u64,
    /// `None` for those that were woken and have not come back yet.
    waiting: BTreeMap<Key<K>, Option<Waker>>,
}

/// A place among those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key<K = ()> {
    what: K,
    number: u64,
}

impl<K> Default for Waiters<K> {
    fn default() -> Self {
        Self { last: 0, waiting: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> Waiters<K> {
    /// Waits for something, behind the others who do if it has no place there yet; a place of another kind is given up. What
    /// is returned is to be dropped without the lock.
    #[must_use]
    pub(crate) fn wait_for(&mut self, what: K, place: &mut Option<Key<K>>, waker: &Waker) -> Option<Waker> {
        let before = match place {
            Some(key) if key.what != what => self.leave(place),
            _ => None,
        };
        let key = *place.get_or_insert_with(|| {
            self.last += 1;
            Key { what, number: self.last }
        });
        match self.waiting.entry(key).or_default() {
            Some(waiting) if waiting.will_wake(waker) => None,
            waiting => {
                let waker = waker.clone();
                waiting.replace(waker).or(before)
            }
        }
    }

    /// Gives the place up. What is returned is to be dropped without the lock.
    #[must_use]
    #[inline]
    pub(crate) fn leave(&mut self, place: &mut Option<Key<K>>) -> Option<Waker> {
        self.waiting.remove(&place.take()?).flatten()
    }

    /// Whether nobody has waited longer than the one who has this place, or none yet.
    pub(crate) fn is_first(&self, place: Option<Key<K>>) -> bool {
        self.waiting.keys().next().is_none_or(|first| place == Some(*first))
    }

    /// Takes the waker of the one who has waited longest, to be woken without the lock; they keep their place.
    #[must_use]
    #[inline]
    pub(crate) fn take_first(&mut self) -> Option<Waker> {
        // As mostly.
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.values_mut().next()?.take()
    }

    /// Takes the wakers of all, to be woken without the lock; they keep their places.
    #[must_use]
    pub(crate) fn take_all(&mut self) -> Vec<Waker> {
        self.waiting.values_mut().filter_map(Option::take).collect()
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether somebody waits for one of these.
    #[inline]
    pub(crate) fn any(&self, what: RangeInclusive<K>) -> bool {
        self.next(what).is_some()
    }

    /// Puts aside the wakers of all who wait for one of these. They have no place any more.
    #[inline]
    pub(crate) fn wake(&mut self, what: RangeInclusive<K>, later: &mut Later) {
        while let Some(key) = self.next(what.clone()) {
            later.wake(self.waiting.remove(&key).flatten());
        }
    }

    #[inline]
    fn next(&self, what: RangeInclusive<K>) -> Option<Key<K>> {
        // As mostly.
        if self.waiting.is_empty() {
            return None;
        }
        let (first, last) = what.into_inner();
        let keys = Key { what: first, number: 0 }..=Key { what: last, number: u64::MAX };
        self.waiting.range(keys).next().map(|(key, _)| *key)
    }
}

impl Waiters {
    /// Waits, behind the others if it has no place yet. What is returned is to be dropped without the lock.
    #[must_use]
    pub(crate) fn wait(&mut self, place: &mut Option<Key>, waker: &Waker) -> Option<Waker> {
        self.wait_for((), place, waker)
    }
}

/// Something that becomes known once, and that many can wait for. To look whether it is costs an atomic load.
#[derive(Debug)]
pub(crate) struct Signal<T>(Arc<SignalState<T>>);

#[derive(Debug)]
struct SignalState<T> {
    value: OnceLock<T>,
    waiters: Lock<Waiters>,
}

impl<T> Default for Signal<T> {
    fn default() -> Self {
        Self(Arc::new(SignalState { value: OnceLock::new(), waiters: Lock::default() }))
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
        if self.0.value.set(value).is_err() {
            return;
        }
        // Who comes later sees it.
        let wakers = self.0.waiters.lock().take_all();
        for waker in wakers {
            // Whose executor is gone does not wait.
            let _ = foreign::wake(waker);
        }
    }

    /// What was given, if it was.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.value.get()
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
        let mut waiters = this.signal.0.waiters.lock();
        if let Some(value) = this.signal.get() {
            let value = value.clone();
            drop(waiters);
            return Poll::Ready(value);
        }
        let replaced = waiters.wait(&mut this.place, cx.waker());
        drop(waiters);
        let _ = foreign::dispose(replaced);
        Poll::Pending
    }
}

impl<T> Unpin for Given<T> {}

impl<T> Drop for Given<T> {
    fn drop(&mut self) {
        let left = self.signal.0.waiters.lock().leave(&mut self.place);
        let _ = foreign::dispose(left);
    }
}

/// Counts how often it is called, as a waker.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Calls(std::sync::atomic::AtomicUsize);

#[cfg(test)]
impl Calls {
    /// One, and its waker.
    pub(crate) fn waker() -> (Arc<Self>, Waker) {
        let calls = Arc::<Self>::default();
        (calls.clone(), futures::task::waker(calls))
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
}

#[cfg(test)]
impl futures::task::ArcWake for Calls {
    fn wake_by_ref(calls: &Arc<Self>) {
        calls.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}
