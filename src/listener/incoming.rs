//! The messages of all peers, as one stream.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::{FusedStream, Stream};

use super::batch::Batch;
use super::decoding::{AnyValues, Decoding, Undecoded};
use super::handle::{Closer, ListenerStats, debug, stats};
use super::member::Member;
use super::peers::Running;
use super::read_on::{Lent, Loaned};
use super::received::{Arrival, Received};
use super::shared::Handling;
use crate::endpoint::Endpoint;
use crate::error::BoxError;
use crate::framed::{self, CHUNK};
use crate::identity::Identity;
use crate::observe::{Event, Events, Reason};
use crate::peer::Peer;
use crate::queue::{ITEM, Parcel, Receiver, Share};
use crate::runtime::Task;
use crate::session::Settled;

/// The receiving half of a [`Listener`](crate::Listener): a `Stream` of `(Peer, Bytes)`. Dropping it ends the listener.
pub struct Incoming {
    pub(crate) arrivals: Arrivals,
    /// The one that is being taken apart.
    batch: Option<Batch>,
    borrowed: Option<Borrowed>,
    /// The session of the batch ends when its values are taken: the message behind them did not decode.
    undecoded: bool,
}

/// What every form of listener stands on: it ends with this.
pub(crate) struct Arrivals {
    pub(crate) shared: Running,
    pub(crate) inbox: Receiver<Arrival>,
    pub(crate) _accept: Task,
}

/// A peer whose reader is lent to this end.
struct Borrowed {
    member: Arc<Member>,
    lent: Lent,
    /// How much it may still bring before others have their turn, in bytes: no more than a full inbox would hold.
    bytes_left: usize,
}

impl Stream for Incoming {
    type Item = (Peer, Bytes);

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            // The way of most messages, which is short enough to become part of the consumer.
            if let Some(batch) = &mut this.batch
                && let Some(len) = batch.frames().find()
            {
                return Poll::Ready(Some((batch.peer(), batch.frames().cut(len))));
            }
            if !ready!(this.poll_batch(cx)) {
                return Poll::Ready(None);
            }
        }
    }
}

impl FusedStream for Incoming {
    fn is_terminated(&self) -> bool {
        self.batch.is_none() && self.arrivals.inbox.is_terminated()
    }
}

impl Arrivals {
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Parcel<Arrival>>> {
        // The first poll is the choice, if there was none.
        self.shared.choose(Handling::Inbox);
        Pin::new(&mut self.inbox).poll_next(cx)
    }

    pub(crate) fn events(&self) -> Events<Event> {
        self.shared.reporter.subscribe()
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer::new(self.shared.shared().clone())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.member.loan.give_back(self.lent);
        self.member.outbox.call_driver();
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Incoming {
    pub(crate) fn new(arrivals: Arrivals) -> Self {
        Self { arrivals, batch: None, borrowed: None, undecoded: false }
    }

    /// Waits for the next batch; `false` when none comes any more.
    #[inline(never)]
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        // Only now is its last message answered: see `Outgoing`. In a session, all of it is taken.
        if let Some(batch) = &mut self.batch {
            batch.settle();
            self.batch = None;
        }
        ready!(self.read_on(cx));
        while self.batch.is_none() {
            match ready!(self.arrivals.poll_next(cx)) {
                Some(Parcel { item: Arrival::Batch(received), share }) => {
                    if !received.member.is_expelled.load(Ordering::Relaxed) {
                        self.batch = Some(self.batch_of(received, share));
                    }
                }
                Some(Parcel { item: Arrival::Connection(_), .. }) => {}
                None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// Waits for the next message, and shows it.
    #[inline]
    pub(crate) fn poll_shown<T>(
        &mut self,
        to: impl FnOnce(&[u8]) -> T,
        cx: &mut Context<'_>,
    ) -> Poll<Option<(Peer, T)>> {
        loop {
            if let Some(batch) = &mut self.batch
                && let Some(len) = batch.frames().find()
            {
                return Poll::Ready(Some((batch.peer(), batch.frames().show(len, to))));
            }
            if !ready!(self.poll_batch(cx)) {
                return Poll::Ready(None);
            }
        }
    }

    /// The message that came last is not taken, in a session.
    #[cold]
    pub(crate) fn except_last(&mut self, how: Settled) {
        if let Some(batch) = &mut self.batch {
            batch.received().except_last(how);
        }
    }

    /// The message of this peer that was shown last did not decode. If the peer is to end, so are the messages behind it.
    #[cold]
    pub(crate) fn decode_failed(&mut self, peer: Peer, error: BoxError, ends: bool) {
        self.except_last(Settled::Refused);
        self.arrivals.shared.decode_failed(peer, error);
        if ends {
            self.expel_undecoded(peer);
        }
    }

    /// Ends the peer of this batch, of which the message that came last did not decode. Those before it are taken.
    #[cold]
    fn expel_undecoded(&mut self, peer: Peer) {
        if let Some(batch) = &mut self.batch {
            batch.received().settle_passed();
        }
        self.expel(peer, Reason::DecodeFailed);
    }

    /// Ends the peer of this batch, and drops its messages.
    fn expel(&mut self, peer: Peer, reason: Reason) {
        self.drop_batch();
        self.arrivals.shared.expel(peer, reason);
    }

    /// Its peer ends: neither its messages nor those of it that are in the inbox are yielded.
    fn drop_batch(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.member().is_expelled.store(true, Ordering::Relaxed);
        }
    }

    /// Waits for the next values. What was received while this was a stream of bytes is decoded here, and what its peers send
    /// after that.
    pub(crate) fn poll_values(&mut self, decoding: &Decoding, cx: &mut Context<'_>) -> Poll<Option<(Peer, AnyValues)>> {
        self.arrivals.shared.choose_decoding(decoding);
        loop {
            if let Some(batch) = &mut self.batch {
                let (peer, shared) = (batch.peer(), &self.arrivals.shared);
                if let Some(values) = batch.take_values() {
                    return Poll::Ready(Some((peer, values)));
                }
                if mem::take(&mut self.undecoded) {
                    self.expel_undecoded(peer);
                } else if !batch.frames().is_empty() {
                    let piece = batch.received().decode(decoding, |error| shared.decode_failed(peer, error));
                    match piece.end {
                        Ok(()) => {}
                        // The program has not seen the values: they are taken when it asks for more, and only then is its
                        // peer told that this is the end.
                        Err(Undecoded::Failed) if batch.received().unsettled.is_some() => self.undecoded = true,
                        Err(Undecoded::Failed) => self.expel(peer, Reason::DecodeFailed),
                        Err(Undecoded::Panicked(panic)) => {
                            if shared.call_panicked_at(peer, panic) {
                                self.drop_batch();
                            }
                        }
                    }
                    if let Some(values) = piece.values {
                        return Poll::Ready(Some((peer, values)));
                    }
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            if !ready!(self.poll_batch(cx)) {
                return Poll::Ready(None);
            }
        }
    }

    /// Waits for the next batch, or what is left of one.
    pub(crate) fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Batch>> {
        if self.batch.as_mut().is_none_or(|batch| batch.frames().is_empty()) {
            ready!(self.poll_batch(cx));
        }
        Poll::Ready(self.batch.take().map(Batch::given))
    }

    /// A batch out of the inbox, and with it perhaps the reader of its peer.
    fn batch_of(&mut self, received: Received, share: Share) -> Batch {
        self.borrowed = received.lent.map(|lent| Borrowed {
            member: received.member.clone(),
            lent,
            // This batch counts as well.
            bytes_left: self.arrivals.shared.config.inbox_bytes.saturating_sub(share.bytes()),
        });
        Batch::new(received, share)
    }

    /// Takes the next batch of the peer whose reader is lent to this end, if there is one at once and others are not kept
    /// waiting. Pending to let other tasks run.
    fn read_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Borrowed { member, lent, bytes_left }) = &mut self.borrowed else { return Poll::Ready(()) };
        let (shared, inbox) = (&self.arrivals.shared, &self.arrivals.inbox);
        // Where there is one thread for all, nobody else reads meanwhile.
        let mut may = inbox.is_empty() && member.may_be_read();
        if may && *bytes_left < CHUNK + ITEM {
            if shared.connections() == 1 {
                // Nobody else has anything to read. Somebody may want to connect.
                *bytes_left = shared.config.inbox_bytes.max(CHUNK + ITEM);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            may = false;
        }
        if let Some(mut share) = may.then(|| inbox.reserve(CHUNK + ITEM)).flatten() {
            let batch = &mut self.batch;
            let take = |taken: framed::Batch| {
                shared.count(taken.messages, taken.bytes);
                share.shrink(taken.memory + ITEM);
                *bytes_left = bytes_left.saturating_sub(share.bytes());
                *batch = Some(Batch::new(Received::new(member, taken.frames), share));
            };
            if let Poll::Pending | Poll::Ready(Loaned::Batch) =
                member.loan.poll_batch(*lent, &shared.config.runtime, cx, take)
            {
                return Poll::Ready(());
            }
        }
        self.borrowed = None;
        Poll::Ready(())
    }

    /// The address that the listener listens on.
    pub fn local_addr(&self) -> Endpoint {
        self.arrivals.shared.local_addr.clone()
    }

    /// Who a peer is, as its transport has verified: see [`Identity`]. `None` if the transport does not know, as over
    /// plain TCP, and when the peer is gone.
    pub fn identity(&self, peer: Peer) -> Option<Arc<Identity>> {
        self.arrivals.shared.identity(peer)
    }

    pub(crate) fn shared(&self) -> &Running {
        &self.arrivals.shared
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.arrivals.events()
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.arrivals.shared)
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        self.arrivals.closer()
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Incoming", &self.arrivals.shared, f)
    }
}
