//! The messages of all peers, each of which is acknowledged by the program itself.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::{FusedStream, Stream};
use sha2::{Digest, Sha256};

use super::batch::Batch;
use super::handle::{Closer, ListenerStats, debug};
use super::incoming::Incoming;
use super::shared::Handling;
use crate::endpoint::Endpoint;
use crate::observe::{Event, Events};
use crate::peer::Peer;
use crate::queue::{Ordinal, Unsettled};
use crate::session::{Settled, frame_len};
use crate::wire::Frames;

/// The messages of a [`Listener`](crate::Listener), each acknowledged by the program itself: a `Stream` of [`Delivery`]. Dropping it
/// ends the listener.
///
/// It is for a program that works on several messages at once, or that may give one up: where the stream of messages has taken a
/// message as soon as the next one is asked for, here it is taken when the program says so. For the rest it is that stream, and
/// ends, waits and takes turns as that does.
pub struct Deliveries {
    incoming: Incoming,
    current: Option<Current>,
}

/// The batch that is being taken apart.
struct Current {
    frames: Frames,
    unsettled: Option<Unsettled>,
    origin: Arc<Origin>,
}

/// What the messages of a batch have in common.
struct Origin {
    batch: Batch,
    /// `None` of a peer without a session.
    session: Option<Ordinal>,
}

/// A message, and what is to be said of it: an item of [`Listener::deliveries`](crate::Listener::deliveries).
///
/// In an [acknowledged session](crate::Config::session), its sender holds on to the message until it is settled, in any order:
///
/// - [`ack`](Self::ack): the program has taken it.
/// - [`refuse`](Self::refuse): the program has not, and never will. The sender has it back as
///   [`Outcome::Refused`](crate::Outcome::Refused).
/// - dropped, as with a task that is cancelled, or a panic: nobody knows. The sender has it back as
///   [`Outcome::InDoubt`](crate::Outcome::InDoubt).
///
/// It is not delivered again in any case. One that is kept takes up its peer's [window](crate::Session::window_bytes), and its
/// part of `inbox_bytes` with all that one read has brought; so its sender comes to a standstill, as
/// [`ListenerStats::untaken`] shows. When the session is over, what is said here is for nobody.
///
/// Of a peer without a session nobody waits for what is said here: `ack` and `refuse` do nothing.
#[must_use = "a delivery that is dropped is in doubt"]
pub struct Delivery {
    message: Bytes,
    /// Its position in the session. `None` without one, and when it is settled.
    position: Option<u64>,
    origin: Arc<Origin>,
}

/// The id of a message: a one-way digest of the session's name, the listener, and the position of the message.
///
/// It stays the same when the session goes on over another connection, and no two messages have the same one. So a program that
/// stores messages can tell whether one is there already. The name of the session is a secret, and cannot be had from the id: an id
/// may be published. A message in doubt that its sender sends again is another message, with another id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId([u8; 16]);

impl Incoming {
    /// The same messages, each to be acknowledged by the program. What was received of a read and not taken comes first. See
    /// [`Listener::deliveries`](crate::Listener::deliveries).
    pub fn deliveries(self) -> Deliveries {
        self.shared().choose(Handling::Inbox);
        Deliveries { incoming: self, current: None }
    }
}

impl Deliveries {
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

    /// Waits for the next batch; `false` when none comes any more.
    #[inline(never)]
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        self.current = None;
        self.current = ready!(self.incoming.poll_next_batch(cx)).map(Current::new);
        Poll::Ready(self.current.is_some())
    }
}

impl Current {
    fn new(mut batch: Batch) -> Self {
        let (frames, unsettled) = batch.take_apart();
        let session = unsettled.as_ref().map(Unsettled::session);
        Self { frames, unsettled, origin: Arc::new(Origin { batch, session }) }
    }

    #[inline]
    fn next(&mut self) -> Option<Delivery> {
        // As `Frames::next` does, which would take 40 instructions more if it were called here.
        let len = self.frames.find()?;
        let message = self.frames.cut(len);
        let position = self.unsettled.as_mut().map(|rest| rest.pass(frame_len(message.len())));
        Some(Delivery { message, position, origin: self.origin.clone() })
    }
}

impl Stream for Deliveries {
    type Item = Delivery;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let this = self.get_mut();
        loop {
            // The way of most messages, which is short enough to become part of the consumer.
            if let Some(current) = &mut this.current
                && let Some(delivery) = current.next()
            {
                return Poll::Ready(Some(delivery));
            }
            if !ready!(this.poll_batch(cx)) {
                return Poll::Ready(None);
            }
        }
    }
}

impl FusedStream for Deliveries {
    fn is_terminated(&self) -> bool {
        self.current.is_none() && self.incoming.is_terminated()
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        // What was not yielded is no more than what is in the inbox: the program has not seen it.
        if let Some(unsettled) = self.unsettled.take() {
            unsettled.settle(&self.origin.batch.member().outbox, Settled::Dropped);
        }
    }
}

impl Delivery {
    /// Whose message it is.
    pub fn peer(&self) -> Peer {
        self.origin.batch.peer()
    }

    /// The message.
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// What it is called: see [`DeliveryId`]. `None` of a peer without a session. It is computed when it is asked for.
    pub fn id(&self) -> Option<DeliveryId> {
        let seating = self.origin.batch.member().session.as_ref()?;
        let position = self.position?;
        let mut digest = Sha256::new();
        digest.update(b"buffstreams delivery 1");
        digest.update(seating.key.id.secret());
        digest.update(seating.incarnation.to_be_bytes());
        digest.update(position.to_be_bytes());
        let mut id = [0; 16];
        id.copy_from_slice(&digest.finalize()[..16]);
        Some(DeliveryId(id))
    }

    /// The program has taken it. Its sender forgets it.
    #[inline]
    pub fn ack(mut self) {
        self.settle(Settled::Taken);
    }

    /// The program does not take it. Its sender has it back.
    pub fn refuse(mut self) {
        self.settle(Settled::Refused);
    }

    #[inline]
    fn settle(&mut self, how: Settled) {
        let Origin { batch, session } = &*self.origin;
        if let (Some(position), Some(session)) = (self.position.take(), *session) {
            batch.member().outbox.settle(session, position, 1, frame_len(self.message.len()), how);
        }
    }
}

impl Drop for Delivery {
    #[inline]
    fn drop(&mut self) {
        self.settle(Settled::Dropped);
    }
}

impl DeliveryId {
    /// The bytes of it.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for DeliveryId {
    /// 32 digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeliveryId({self})")
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("peer", &self.peer()).field("len", &self.message.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Deliveries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Deliveries", self.incoming.shared(), f)
    }
}
