//! The messages of all peers, a read at a time.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::{FusedStream, Stream};

use super::batch::Batch;
use super::handle::{Closer, ListenerStats, debug};
use super::incoming::Incoming;
use super::shared::Handling;
use crate::endpoint::Endpoint;
use crate::observe::{Event, Events};
use crate::peer::Peer;

/// The messages of a [`Listener`](crate::Listener), a read at a time: a `Stream` of `(Peer, Batch)`. Dropping it ends the
/// listener.
///
/// It is the stream of messages, and ends, waits and takes turns as that does; but its items are what one read brought, whose
/// messages can be looked at where they lie. For small messages, it is the faster of the two.
///
/// A [`Batch`] has its part of `inbox_bytes` until it is dropped. So a task that keeps batches and asks for the next
/// waits for ever when those that it keeps fill the inbox. Keep messages with
/// [`Messages::slice_ref`](crate::Messages::slice_ref) or [`Messages::bytes`](crate::Messages::bytes) instead.
pub struct Batches {
    incoming: Incoming,
}

impl Incoming {
    /// The same messages, a read at a time. What was received of a read and not taken comes first. See
    /// [`Listener::batches`](crate::Listener::batches).
    pub fn batches(self) -> Batches {
        self.shared().choose(Handling::Inbox);
        Batches { incoming: self }
    }
}

impl Batches {
    /// The address that the listener listens on.
    pub fn local_addr(&self) -> Endpoint {
        self.incoming.local_addr()
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.incoming.events()
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        self.incoming.stats()
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        self.incoming.closer()
    }
}

impl Stream for Batches {
    type Item = (Peer, Batch);

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let batch = ready!(self.get_mut().incoming.poll_next_batch(cx));
        Poll::Ready(batch.map(|batch| (batch.peer(), batch)))
    }
}

impl FusedStream for Batches {
    fn is_terminated(&self) -> bool {
        self.incoming.is_terminated()
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Batches", self.incoming.shared(), f)
    }
}
