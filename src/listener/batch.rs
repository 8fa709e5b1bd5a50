//! What one read of a peer brought, until the program has finished with it.

use std::fmt;
use std::ops::Deref;

use super::decoding::AnyValues;
use super::member::Member;
use super::received::Received;
use crate::framed::{Messages, MessagesIter};
use crate::peer::Peer;
use crate::queue::{Share, Unsettled};
use crate::session::Settled;
use crate::wire::Frames;

/// The messages that one read of a peer brought, and their place in the inbox: an item of
/// [`Listener::batches`](crate::Listener::batches).
///
/// The messages are those of [`Messages`], which this dereferences to. They count as taken when this is dropped: their part of
/// `inbox_bytes` is free again then, and a peer that has closed its sending direction waits for replies until then.
pub struct Batch {
    peer: Peer,
    // Dropped in this order: who waits for room should find that these are taken.
    received: Received,
    _share: Share,
}

impl Batch {
    pub(crate) fn new(received: Received, share: Share) -> Self {
        Self { peer: received.member.peer, received, _share: share }
    }

    /// Whose messages these are.
    #[inline]
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// All of it is taken: nobody looks at it any more.
    #[inline]
    pub(crate) fn settle(&mut self) {
        self.received.settle();
    }

    /// It is the program's now, which has taken it when it drops it.
    pub(crate) fn given(mut self) -> Self {
        self.received.take_by_drop();
        self
    }

    /// The received batch, for the stream of messages to take apart.
    pub(crate) fn received(&mut self) -> &mut Received {
        &mut self.received
    }

    /// The messages that are left of it, for a program that settles each of them. Those before are taken.
    pub(crate) fn take_apart(&mut self) -> (Frames, Option<Unsettled>) {
        let frames = self.received.messages.frames().take_rest();
        let mut unsettled = self.received.unsettled.take();
        if let Some(unsettled) = &mut unsettled {
            unsettled.split_passed(&frames).settle(&self.member().outbox, Settled::Taken);
        }
        (frames, unsettled)
    }

    pub(crate) fn member(&self) -> &Member {
        &self.received.member
    }

    pub(crate) fn take_values(&mut self) -> Option<AnyValues> {
        self.received.values.take()
    }

    /// What is left of it, for the stream of messages to take apart.
    #[inline]
    pub(crate) fn frames(&mut self) -> &mut Frames {
        self.received.messages.frames()
    }
}

impl Deref for Batch {
    type Target = Messages;

    #[inline]
    fn deref(&self) -> &Messages {
        &self.received.messages
    }
}

impl<'a> IntoIterator for &'a Batch {
    type Item = &'a [u8];
    type IntoIter = MessagesIter<'a>;

    #[inline]
    fn into_iter(self) -> MessagesIter<'a> {
        self.iter()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("peer", &self.peer).field("messages", &**self).finish_non_exhaustive()
    }
}
