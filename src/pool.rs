//! Read buffers, lent and given back.
//!
//! A fresh buffer costs page faults on every read, so buffers are used again; an idle connection holds none, because it
//! borrows one for the time of a read. One pool serves the whole process, as an allocator does: what one connection
//! gives back, the next one borrows.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The size of a read, in bytes. Smaller ones cost system calls, larger ones fall out of a core's cache.
pub(crate) const CHUNK: usize = 64 * 1024;
/// How many chunks are kept for later: 2 MiB.
const KEEP_CHUNKS: usize = 32;
/// How many bytes are kept for later in buffers larger than a chunk.
const KEEP_LARGE: usize = 8 * 1024 * 1024;
/// What a buffer may have over twice what was received, in bytes: a frame of a round size fits with its header, and with
/// the start of the next.
const SLACK: usize = 8 * 1024;
/// A large buffer is lent for a frame at least this fraction of its size, so that a message never pins much more.
const WASTE: usize = 4;

static POOL: Mutex<Pool> = Mutex::new(Pool { chunks: Vec::new(), large: Vec::new(), large_bytes: 0 });

struct Pool {
    chunks: Vec<Box<[u8]>>,
    large: Vec<Box<[u8]>>,
    large_bytes: usize,
}

fn pool() -> MutexGuard<'static, Pool> {
    // Nothing in here can panic halfway, so a poisoned pool is a whole one.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A buffer that goes back to the pool when it is dropped; as the owner of a `Bytes`, when its last message is dropped.
#[derive(Debug)]
pub(crate) struct Lent(Box<[u8]>);

impl Lent {
    /// A buffer of [`CHUNK`] bytes.
    pub(crate) fn chunk() -> Self {
        let kept = pool().chunks.pop();
        Self(kept.unwrap_or_else(|| zeroed(CHUNK)))
    }

    /// A buffer for a frame that needs `want` bytes and of which `got` have been received.
    ///
    /// It is hardly larger than twice what was received, or a chunk: a peer gets memory for what it sends, not for what it
    /// announces. A buffer that the process has anyway is lent whole.
    pub(crate) fn growing(want: usize, got: usize) -> Self {
        if want <= CHUNK {
            return Self::chunk();
        }
        let mut pool = pool();
        let fitting = pool.large.iter().rposition(|buf| buf.len() >= want && buf.len() / WASTE <= want);
        if let Some(at) = fitting {
            let buf = pool.large.swap_remove(at);
            pool.large_bytes -= buf.len();
            return Self(buf);
        }
        drop(pool);
        let twice = got.saturating_mul(2);
        if twice <= CHUNK { Self::chunk() } else { Self(zeroed(twice.saturating_add(SLACK).min(want))) }
    }
}

fn zeroed(len: usize) -> Box<[u8]> {
    vec![0; len].into_boxed_slice()
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buf = std::mem::take(&mut self.0);
        let mut pool = pool();
        if buf.len() == CHUNK && pool.chunks.len() < KEEP_CHUNKS {
            pool.chunks.push(buf);
        } else if buf.len() > CHUNK && pool.large_bytes + buf.len() <= KEEP_LARGE {
            pool.large_bytes += buf.len();
            pool.large.push(buf);
        }
        // What is not kept is freed when the lock is gone: `pool` was declared after `buf`.
    }
}

impl Deref for Lent {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
