//! Wakers between a runtime's reactor and the task that waits.

use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::foreign;
use crate::sync::Lock;

/// The waker that a reactor has of a timer, or of one direction of a socket: always the same, whichever task waits there.
///
/// A reactor keeps one waker, and drops or wakes under its lock the one that another takes the place of. A waker of the
/// program may be the last owner of its task there, and with it of sockets, whose end takes the same lock. It may also panic,
/// which ends the process where that is in a thread of tokio.
#[derive(Debug, Default)]
pub(crate) struct Forward(Lock<Option<Waker>>);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waiting = self.0.lock().take();
        let _ = waiting.map_or(Ok(()), foreign::wake);
    }
}

impl Forward {
    /// Wakes nobody until somebody waits again.
    #[cfg(any(feature = "async-std", feature = "smol", all(feature = "tokio", unix)))]
    pub(super) fn forget(&self) {
        let waiting = self.0.lock().take();
        let _ = foreign::dispose(waiting);
    }

    /// Wakes `waker` from now on. Who waited before is woken, to look again.
    pub(crate) fn set(&self, waker: &Waker) {
        let replaced = {
            let mut waiting = self.0.lock();
            match &*waiting {
                Some(waiting) if waiting.will_wake(waker) => None,
                _ => waiting.replace(waker.clone()),
            }
        };
        let _ = replaced.map_or(Ok(()), foreign::wake);
    }
}
