//! A listener seen from elsewhere: how it is closed, and what it has counted.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::shared::Shared;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::identity::Identity;
use crate::peer::Peer;

/// Closes a [`Listener`](crate::Listener) from elsewhere. Cheap to clone.
///
/// The example `signals` closes with one on Ctrl-C and SIGTERM.
#[derive(Clone)]
pub struct Closer {
    shared: Arc<Shared>,
}

/// What a listener has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerStats {
    /// How many peers are connected now, sessions included that are without a connection.
    pub connections: usize,
    /// How many have been accepted.
    pub accepted: u64,
    /// How many were closed at once, because of `max_connections`.
    pub refused: u64,
    /// How many messages were received, those in the inbox included.
    pub messages: u64,
    /// How many bytes they have on the wire, headers included.
    pub bytes: u64,
    /// How many callbacks returned an error, or panicked.
    pub callback_errors: u64,
    /// How many sessions there are now, those without a connection included. This and what follows is 0 without
    /// [`Config::session`](crate::Config::session).
    pub sessions: usize,
    /// How many of them are without a connection.
    pub detached: usize,
    /// How many messages were received in them and are not over: not settled by the program, or behind one of the same peer that is
    /// not. Their senders hold on to them, and are at a standstill when they fill
    /// [`window_bytes`](crate::Session::window_bytes). This is counted when it is asked for, peer by peer.
    pub untaken: u64,
}

impl Closer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Closes the listener: see [`Listener::close`](crate::Listener::close). It takes `close_timeout` at the most; then the error is
    /// [`Error::Timeout`]. Dropping the future does not take the close back.
    ///
    /// It waits for the tasks of the peers. So do not await it in a callback, and, with a sink of replies, not between
    /// two messages in the task that takes them: the message that has just been taken may still be answered, so it
    /// would wait for itself until `close_timeout`.
    pub async fn close(&self) -> Result<(), Error> {
        self.shared.close().await
    }

    /// The address that the listener listens on.
    pub fn local_addr(&self) -> Endpoint {
        self.shared.local_addr.clone()
    }

    /// Who a peer is, as its transport has verified: see [`Identity`]. `None` if the transport does not know, as over
    /// plain TCP, and when the peer is gone.
    pub fn identity(&self, peer: Peer) -> Option<Arc<Identity>> {
        self.shared.identity(peer)
    }

    /// Whether the listener is gone.
    pub(crate) fn is_stopped(&self) -> bool {
        self.shared.is_stopped()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.shared)
    }
}

pub(crate) fn stats(shared: &Shared) -> ListenerStats {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (sessions, detached) = shared.sessions.as_ref().map(|sessions| sessions.counts()).unwrap_or_default();
    ListenerStats {
        connections: shared.connections(),
        accepted: count(&shared.counters.accepted),
        refused: count(&shared.counters.refused),
        messages: count(&shared.counters.messages),
        bytes: count(&shared.counters.bytes),
        callback_errors: count(&shared.counters.callback_errors),
        sessions,
        detached,
        untaken: shared.untaken(),
    }
}

pub(crate) fn debug(name: &str, shared: &Shared, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (local_addr, connections) = (&shared.local_addr, shared.connections());
    f.debug_struct(name).field("local_addr", local_addr).field("connections", &connections).finish_non_exhaustive()
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Closer", &self.shared, f)
    }
}
