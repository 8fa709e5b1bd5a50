//! What is the same for a queue as long as it lives.

use std::time::{Duration, Instant};

use crate::foreign::PanicHook;
use crate::runtime::Handle;

/// How a queue treats what it holds.
pub(crate) struct Rules<W> {
    /// Looks, before each batch, whether a transport would take it and lose it.
    pub(crate) is_dead: fn(&W) -> bool,
    /// How many bytes are held before producers wait, while there is no transport: where that is not as at other times.
    pub(crate) room_while_down: Option<usize>,
    /// How old a message may be when it is given to a transport.
    pub(crate) ttl: Option<Ttl>,
    /// How long what a sink has fed may wait for a flush.
    pub(crate) linger: Option<Duration>,
    /// What tells the time in a session, and of what lingers.
    pub(crate) clock: Option<Handle>,
    /// Is told where the waker of somebody who waits panics.
    pub(crate) panicked: Option<PanicHook>,
}

/// An age, and the clock that tells it.
pub(crate) struct Ttl {
    pub(crate) after: Duration,
    pub(crate) runtime: Handle,
}

impl<W> Rules<W> {
    /// How long what a sink has fed may wait until it is handed over: not so long that it is too old by that.
    pub(crate) fn linger(&self) -> Option<Duration> {
        let linger = self.linger?;
        Some(self.ttl.as_ref().map_or(linger, |ttl| linger.min(ttl.after / 2)))
    }

    /// What time it is, in a session and for what lingers.
    pub(crate) fn clock(&self) -> Instant {
        self.clock.as_ref().map_or_else(Instant::now, Handle::now)
    }

    /// What time it is, where a message may be too old.
    pub(crate) fn now(&self) -> Option<Instant> {
        self.ttl.as_ref().map(|ttl| ttl.runtime.now())
    }
}

impl<W> Default for Rules<W> {
    fn default() -> Self {
        Self { is_dead: |_| false, room_while_down: None, ttl: None, linger: None, clock: None, panicked: None }
    }
}
