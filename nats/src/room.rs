//! How many messages, and bytes of them, may be in flight.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::AcqRel, Ordering::Acquire};

use tokio::sync::Notify;

/// The room for what is in flight. Clones are the same room.
#[derive(Clone, Debug)]
pub(crate) struct Room(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    max_messages: usize,
    max_bytes: usize,
    messages: AtomicUsize,
    bytes: AtomicUsize,
    left: Notify,
}

/// The room of one message, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    room: Room,
    bytes: usize,
}

impl Room {
    /// # Panics
    ///
    /// If one of them is zero: nothing would get through.
    pub(crate) fn new(max_messages: usize, max_bytes: usize) -> Self {
        assert!(max_messages > 0 && max_bytes > 0, "there is room for {max_messages} messages and {max_bytes} bytes");
        let (messages, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self(Arc::new(Inner { max_messages, max_bytes, messages, bytes, left: Notify::new() }))
    }

    /// Waits for `next` as long as there is room for it, whatever its size. Dropping the future loses nothing, if that is so for
    /// `next`.
    pub(crate) async fn for_next<T>(&self, next: impl Future<Output = T>) -> T {
        self.wait(|room| room.messages() < room.0.max_messages && room.bytes() < room.0.max_bytes).await;
        next.await
    }

    /// Waits until a half is free, or all if `all`; says how many messages and bytes that are.
    pub(crate) async fn for_many(&self, all: bool) -> (usize, usize) {
        let (max_messages, max_bytes) = (self.0.max_messages, self.0.max_bytes);
        let part = |max: usize| if all { 0 } else { max / 2 };
        self.wait(|room| room.messages() <= part(max_messages) && room.bytes() <= part(max_bytes)).await;
        (max_messages.saturating_sub(self.messages()), max_bytes.saturating_sub(self.bytes()))
    }

    async fn wait(&self, is_enough: impl Fn(&Self) -> bool) {
        while !is_enough(self) {
            let mut left = std::pin::pin!(self.0.left.notified());
            // Who leaves between this look and the wait is seen.
            left.as_mut().enable();
            if !is_enough(self) {
                left.await;
            }
        }
    }

    /// Takes room, whether there is any or not.
    pub(crate) fn take(&self, bytes: usize) -> Place {
        self.0.messages.fetch_add(1, AcqRel);
        self.0.bytes.fetch_add(bytes, AcqRel);
        Place { room: self.clone(), bytes }
    }

    pub(crate) fn messages(&self) -> usize {
        self.0.messages.load(Acquire)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Acquire)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let room = &self.room.0;
        room.bytes.fetch_sub(self.bytes, AcqRel);
        room.messages.fetch_sub(1, AcqRel);
        // All of them: several listeners may wait for the same room.
        room.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures::FutureExt;

    use super::*;

    #[test]
    fn there_is_room_until_the_messages_or_the_bytes_are_too_many() {
        let room = Room::new(2, 100);
        let first = room.take(99);
        assert!(room.for_next(ready(())).now_or_never().is_some(), "one more, whatever its size");
        let second = room.take(1);
        assert!(room.for_next(ready(())).now_or_never().is_none());
        drop(first);
        let third = room.take(200);
        assert!(room.for_next(ready(())).now_or_never().is_none());
        drop((second, third));
        assert_eq!((room.messages(), room.bytes()), (0, 0));
        assert!(room.for_next(pending::<()>()).now_or_never().is_none());
    }

    #[test]
    fn many_wait_for_a_half_or_for_all() {
        let room = Room::new(4, 100);
        let places = [10, 10, 10].map(|bytes| room.take(bytes));
        assert_eq!(room.for_many(false).now_or_never(), None);
        let [first, second, _third] = places;
        drop(first);
        assert_eq!(room.for_many(false).now_or_never(), Some((2, 80)));
        assert_eq!(room.for_many(true).now_or_never(), None);
        let mut all = std::pin::pin!(room.for_many(true));
        assert!(all.as_mut().now_or_never().is_none());
        drop((second, _third));
        assert_eq!(all.now_or_never(), Some((4, 100)), "whoever waits is woken");
    }
}
