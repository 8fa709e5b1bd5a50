//! Who a link is for.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::{Error, Loss};
use crate::foreign::PanicHook;
use crate::queue::{Unsettled, Verdict};
use crate::wire::Frames;

/// Who a link is for: it is told what becomes of the connection, and takes back what was not sent.
pub(crate) trait Owner: Send + Sync + 'static {
    fn report(&self, news: News);
    /// Whether an address that was given up is dialed in the background, and meanwhile gives back what it accepts.
    fn probes(&self) -> bool {
        false
    }
    /// Takes back messages of which no producer has a copy. Ready when they are taken; the next are given
    /// then. Dropped before that, or before it was polled, it goes on by itself.
    fn take_back(&self, messages: Vec<Bytes>, verdict: Verdict) -> BoxFuture<'static, ()>;
    /// In a session: frames came.
    fn receive(&self, frames: Frames, unsettled: Unsettled);
    /// Is told of what panics.
    fn panic_hook(&self) -> PanicHook;
}

/// What its owner is told of a link.
pub(crate) enum News {
    /// It was opened again.
    Opened,
    /// The connection broke; why, unless the peer closed it.
    Broken(Option<Arc<Error>>),
    DialFailed {
        error: Arc<Error>,
        /// How often it was dialed in this outage.
        attempts: u32,
    },
    /// It was dialed in vain, and given up: the last error.
    Down(Arc<Error>),
    /// It was down, and is open again.
    Up,
    /// The session goes on, and so many messages are sent once more.
    Resumed { replayed: u64 },
    /// The session is over, and so many messages are in doubt.
    SessionLost { in_doubt: usize, why: Loss },
}
