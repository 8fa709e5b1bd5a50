//! What the program has taken and the session has not been told, of messages that are acknowledged one by one.

use super::ordinal::Ordinal;
use crate::sync::BriefLock;

/// How many bytes are taken before the session is told, and it is asked again whether an ACK is due: both cost more than to take a
/// short message.
pub(super) const TOLD_EVERY: u64 = 4096;

/// Messages that were taken one behind the other. To lock the queue is to tell them to its session, so nothing that depends on the
/// session can miss them. Where both are locked, the queue is locked first.
pub(super) struct Settling(BriefLock<Run>);

/// Positions in one session, and the bytes of their frames.
#[derive(Default)]
pub(super) struct Run {
    session: Option<Ordinal>,
    pub(super) first: u64,
    pub(super) count: u64,
    pub(super) bytes: u64,
    /// How many more bytes there may be: none where the session is to be told at once.
    room: u64,
}

impl Run {
    /// An empty one, of messages from `first` on, for up to so many bytes.
    pub(super) fn new(session: Ordinal, first: u64, room: u64) -> Self {
        Self { session: Some(session), first, count: 0, bytes: 0, room }
    }
}

impl Settling {
    pub(super) fn new() -> Self {
        Self(BriefLock::new(Run::default()))
    }

    /// Puts so many behind the others; `false` where the session is to be told.
    #[inline]
    pub(super) fn put(&self, session: Ordinal, first: u64, count: u64, bytes: u64) -> bool {
        let run = &mut *self.0.lock();
        if bytes >= run.room || first != run.first + run.count || Some(session) != run.session {
            return false;
        }
        run.count += count;
        run.bytes += bytes;
        run.room -= bytes;
        true
    }

    /// From now on messages are put together there.
    pub(super) fn begin(&self, run: Run) {
        *self.0.lock() = run;
    }

    /// Takes what there is. Nothing is put behind it.
    #[inline]
    pub(super) fn take(&self) -> Run {
        std::mem::take(&mut *self.0.lock())
    }
}
