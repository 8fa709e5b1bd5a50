//! What the program has taken and the session has not been told, of messages that are acknowledged one by one.

use crate::sync::BriefLock;

/// How many bytes are taken before the session is told, and it is asked again whether an ACK is due: both cost more than to take a
/// short message.
pub(crate) const TOLD_EVERY: u64 = 4096;

/// Messages that were taken one behind the other. The session that is under the lock of the queue has them told first by whoever
/// takes that lock, so nobody can tell the difference; this one is held for a moment, and is taken behind that.
pub(super) struct Settling(BriefLock<Run>);

/// Positions, and the bytes of their frames.
#[derive(Default)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// How many more bytes there may be: none where the session is to be told at once.
    room: u64,
}

impl Settling {
    pub(super) fn new() -> Self {
        Self(BriefLock::new(Run::default()))
    }

    /// Puts so many behind the others; `false` where the session is to be told.
    #[inline]
    pub(super) fn put(&self, first: u64, count: u64, bytes: u64) -> bool {
        let run = &mut *self.0.lock();
        if bytes >= run.room || first != run.first + run.count {
            return false;
        }
        run.count += count;
        run.bytes += bytes;
        run.room -= bytes;
        true
    }

    /// From now on those from `first` on are put together, up to so many bytes.
    pub(super) fn begin(&self, first: u64, room: u64) {
        *self.0.lock() = Run { first, count: 0, bytes: 0, room };
    }

    /// Takes what there is. Nothing is put behind it.
    #[inline]
    pub(super) fn take(&self) -> Run {
        std::mem::take(&mut *self.0.lock())
    }
}
