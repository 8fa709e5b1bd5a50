//! Read buffers, lent and given back.
//!
//! A fresh buffer costs page faults on every read, so buffers are used again; an idle connection holds none, because it
//! borrows one for the time of a read. One pool serves the whole process, as an allocator does: what one connection
//! gives back, the next one borrows.
//!
//! A buffer whose messages the program still holds is kept by the pool as well, and is lent again when the last of them
//! is gone. So nothing is allocated in the long run, not even a count of references: the one of the first time is kept.

use std::cell::Cell;
use std::collections::VecDeque;
use std::mem;
use std::ops::{Deref, DerefMut};

use bytes::{Bytes, BytesMut};

use crate::sync::Lock;

/// The size of a read, in bytes. Smaller ones cost system calls, larger ones fall out of a core's cache.
pub(crate) const CHUNK: usize = 1 << CHUNK_BITS;
const CHUNK_BITS: u32 = 16;
/// The smallest buffer, in bytes.
const LEAST: usize = 1 << LEAST_BITS;
const LEAST_BITS: u32 = 6;
/// One shelf for each power of two, from the smallest buffer to a chunk.
const SHELVES: usize = (CHUNK_BITS - LEAST_BITS + 1) as usize;
/// How many buffers of a size are kept for later: 2 MiB of chunks, and as much of all that are smaller.
const KEEP: usize = 32;
/// How many bytes are kept for later in buffers larger than a chunk.
const KEEP_LARGE: usize = 8 * 1024 * 1024;
/// How many buffers of a size are looked at for one that nobody uses, before another one is made.
const LOOKS: usize = 4;
/// What a buffer may have over twice what was received, in bytes: a frame of a round size fits with its header, and with
/// the start of the next.
const SLACK: usize = 8 * 1024;
/// A large buffer is lent for a frame at least this fraction of its size, so that a message never pins much more.
const WASTE: usize = 4;

static POOL: Lock<Pool> =
    Lock::new(Pool { shelves: [const { VecDeque::new() }; SHELVES], large: VecDeque::new(), ahead: 0 });

/// While this lives, large buffers of this thread are made anew. How much a read may bring, and what counts against an inbox,
/// does not depend then on what the process did before: a run of the simulator can be repeated.
#[cfg(any(test, feature = "sim"))]
pub(crate) struct FreshBuffers(());

#[cfg(any(test, feature = "sim"))]
impl FreshBuffers {
    pub(crate) fn begin() -> Self {
        FRESH.set(FRESH.get() + 1);
        Self(())
    }
}

#[cfg(any(test, feature = "sim"))]
impl Drop for FreshBuffers {
    fn drop(&mut self) {
        FRESH.set(FRESH.get() - 1);
    }
}

thread_local! {
    /// How many [`FreshBuffers`] there are.
    static FRESH: Cell<u32> = const { Cell::new(0) };
}

/// Each buffer as a whole; on every shelf those at the front are most likely free.
struct Pool {
    shelves: [VecDeque<Bytes>; SHELVES],
    /// Those that are larger than a chunk.
    large: VecDeque<Bytes>,
    /// How many bytes of these are lent for frames of which less was received: no more than are kept, or peers that announce
    /// large frames and stall would get them all, one by one.
    ahead: usize,
}

/// A buffer that goes back to the pool when it is dropped, or, frozen, when its last message is dropped.
#[derive(Debug)]
pub(crate) struct Lent {
    buf: BytesMut,
    /// It was lent whole, before that much was received.
    ahead: bool,
}

impl Lent {
    /// A buffer of [`CHUNK`] bytes.
    pub(crate) fn chunk() -> Self {
        Self::fitting(CHUNK)
    }

    /// A buffer that starts with these bytes, [`CHUNK`] at the most, and is hardly larger than twice as long.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::fitting(bytes.len());
        copy[..bytes.len()].copy_from_slice(bytes);
        copy
    }

    fn fitting(want: usize) -> Self {
        debug_assert!(want <= CHUNK, "{want} bytes");
        let size = want.next_power_of_two().max(LEAST);
        let kept = POOL.lock().take(size);
        kept.map_or_else(|| Self::new(size), |kept| Self { buf: kept.into(), ahead: false })
    }

    /// A buffer for a frame that needs `want` bytes and of which `got` have been received.
    ///
    /// It is hardly larger than twice what was received, or a chunk: a peer gets memory for what it sends, not for what it
    /// announces. A buffer that the process has anyway is lent whole, as long as not too much is.
    pub(crate) fn growing(want: usize, got: usize) -> Self {
        if want <= CHUNK {
            return Self::chunk();
        }
        let kept = if FRESH.get() > 0 { None } else { POOL.lock().take_large(want) };
        let twice = got.saturating_mul(2);
        match kept {
            Some(kept) => Self { buf: kept.into(), ahead: true },
            None if twice <= CHUNK => Self::chunk(),
            None => Self::new(twice.saturating_add(SLACK).min(want)),
        }
    }

    fn new(len: usize) -> Self {
        let mut buf = BytesMut::zeroed(len);
        // From the first part on references are counted, which is a part of the buffer that is used again as well.
        drop(buf.split_off(len));
        Self { buf, ahead: false }
    }

    /// What is in it, for messages to be cut from.
    pub(crate) fn freeze(mut self) -> Bytes {
        let whole = self.take();
        keep(whole.clone(), VecDeque::push_back);
        whole
    }

    fn take(&mut self) -> Bytes {
        let whole = mem::take(&mut self.buf).freeze();
        if mem::take(&mut self.ahead) {
            POOL.lock().ahead -= whole.len();
        }
        whole
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Without its buffer if that was frozen.
        if !self.buf.is_empty() {
            keep(self.take(), VecDeque::push_front);
        }
    }
}

/// Keeps it at one end, and no more than the pool should have.
fn keep(buf: Bytes, push: fn(&mut VecDeque<Bytes>, Bytes)) {
    if buf.len() > KEEP_LARGE {
        return;
    }
    loop {
        let mut pool = POOL.lock();
        let Some(least) = pool.too_much_with(buf.len()) else {
            return push(pool.shelf(buf.len()), buf);
        };
        // Freed while nobody waits for the lock.
        drop(pool);
        drop(least);
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buf
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buf
    }
}

impl Pool {
    fn shelf(&mut self, size: usize) -> &mut VecDeque<Bytes> {
        if size > CHUNK { &mut self.large } else { &mut self.shelves[(size.ilog2() - LEAST_BITS) as usize] }
    }

    /// A buffer of this size that nobody uses.
    fn take(&mut self, size: usize) -> Option<Bytes> {
        let shelf = self.shelf(size);
        for _ in 0..LOOKS.min(shelf.len()) {
            if shelf.front()?.is_unique() {
                return shelf.pop_front();
            }
            // Its messages are still held; the next look is at others.
            shelf.rotate_left(1);
        }
        None
    }

    /// A buffer larger than a chunk that nobody uses.
    fn take_large(&mut self, want: usize) -> Option<Bytes> {
        let most = KEEP_LARGE - self.ahead;
        let fits = |buf: &Bytes| (want..=most).contains(&buf.len()) && buf.len() / WASTE <= want && buf.is_unique();
        let at = self.large.iter().position(fits)?;
        let buf = self.large.remove(at)?;
        self.ahead += buf.len();
        Some(buf)
    }

    /// The buffer that has to go before one of this size comes, if there is one.
    fn too_much_with(&mut self, size: usize) -> Option<Bytes> {
        let shelf = self.shelf(size);
        let full = if size <= CHUNK {
            shelf.len() >= KEEP
        } else {
            shelf.iter().map(Bytes::len).sum::<usize>() + size > KEEP_LARGE
        };
        // At the back are those that came last, and those that were looked at in vain.
        full.then(|| shelf.pop_back()).flatten()
    }
}
