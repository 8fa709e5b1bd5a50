//! A listener: the messages of all peers as one `Stream`, or a connection for each.

use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::{FusedStream, Stream};

use crate::accept;
use crate::config::Config;
use crate::connection::Connection;
use crate::error::Error;
use crate::events::{Event, Events};
use crate::hub::{Delivery, Hub};
use crate::inbox::{self, ITEM, Parcel, Receiver};
use crate::loan::{Lent, Loaned};
use crate::member::{Arrival, Member, Received};
use crate::net::{self, Acceptor, Task};
use crate::outgoing::Outgoing;
use crate::peer::{Address, Peer};
use crate::pool::CHUNK;
use crate::reader;
use crate::running::Running;

/// A listening socket: a `Stream` of `(Peer, Bytes)` with the messages of all who connect.
///
/// It accepts from the moment it is bound. What becomes of the messages is chosen by what is done with it first:
///
/// - polled as a `Stream`, or [`split`](Self::split): a task per connection reads batches of messages into one inbox,
///   from which the stream takes them. Each peer's messages come in order; peers take turns. A stream that finds the
///   inbox empty reads on from the peer that it served last, as much as the inbox would hold. Errors are not items: a
///   peer that fails ends alone, and [`events`](Self::events) tells.
/// - [`serve`](Self::serve), [`serve_async`](Self::serve_async): a callback per message, in the connection's own task.
/// - [`connections`](Self::connections): a [`Connection`] per peer.
///
/// Until then, connections are accepted and nothing is read from them.
///
/// # When it waits
///
/// The inbox holds `inbox_bytes`. When the program does not take messages, the readers wait, the peers' TCP windows close,
/// and their sinks are pending; nothing is lost.
///
/// # The end
///
/// The stream ends after [`close`](Self::close), when every peer has closed, or has been silent for `close_timeout`, or
/// `drain_timeout` is over.
/// Dropping the listener closes its sockets and ends its tasks at once, without waiting; what was received and not taken is
/// gone. Dropping a future of `next` loses nothing.
pub struct Listener {
    incoming: Incoming,
}

/// The receiving half of a [`Listener`]: a `Stream` of `(Peer, Bytes)`. Dropping it ends the listener.
pub struct Incoming {
    arrivals: Arrivals,
    batch: Option<Batch>,
    borrowed: Option<Borrowed>,
}

/// The connections of a [`Listener`], one [`Connection`] each, instead of the merged stream.
///
/// A connection counts towards `max_connections` until its socket is closed: when both its halves are dropped or, after it
/// was closed, when its peer has closed as well, which takes `close_timeout` at the most. It does not end with the listener.
pub struct Connections {
    arrivals: Arrivals,
}

/// Closes a [`Listener`] from elsewhere. Cheap to clone.
#[derive(Clone)]
pub struct Closer {
    hub: Arc<Hub>,
}

/// What a listener has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListenerStats {
    /// How many peers are connected now.
    pub connections: usize,
    /// How many have been accepted.
    pub accepted: u64,
    /// How many were closed at once, because of `max_connections`.
    pub refused: u64,
    /// How many messages were received, those in the inbox included.
    pub messages: u64,
    /// How many bytes they have on the wire, headers included.
    pub bytes: u64,
}

/// What every form of listener stands on: it ends with this.
struct Arrivals {
    hub: Running,
    inbox: Receiver<Arrival>,
    _accept: Task,
}

/// A peer whose reader is lent to this end.
struct Borrowed {
    member: Arc<Member>,
    lent: Lent,
    /// How much it may still bring before others have their turn, in bytes: no more than a full inbox would hold.
    bytes_left: usize,
}

/// A batch that is being taken apart.
struct Batch {
    peer: Peer,
    received: Received,
    /// Its share of the inbox, free again when the batch is taken.
    _share: inbox::Share,
}

impl Listener {
    /// Listens on `address`: `host:port`, a `SocketAddr`, or Go's `:port` for all interfaces, of IPv6 and IPv4. Port 0 lets
    /// the system choose; [`local_addr`](Self::local_addr) tells.
    ///
    /// It is one socket, at one address. `:port` that is taken on one side only, be it IPv6 or IPv4, is an error; where the
    /// system has no IPv6, it is all of IPv4. Of a name, it is the first of its addresses that this machine has, in the
    /// system's order; if that one is taken, it is an error, although another may be free.
    ///
    /// The errors are [`Error::Config`] and [`Error::Bind`].
    pub async fn bind(address: impl Into<Address>, config: Config) -> Result<Self, Error> {
        let (address, codec) = (address.into(), config.codec()?);
        let (acceptor, local_addr) = Acceptor::bind(&address).await?;
        let hub = Running::new(Hub::new(local_addr, config, codec, acceptor.shutter()));
        let (sender, inbox) = inbox::inbox(hub.config.inbox_bytes, Some(hub.panic_hook.clone()));
        let _accept = net::spawn(accept::accept_all(hub.clone(), acceptor, sender));
        Ok(Self { incoming: Incoming { arrivals: Arrivals { hub, inbox, _accept }, batch: None, borrowed: None } })
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.hub().local_addr
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.incoming.events()
    }

    /// What it has counted so far.
    pub fn stats(&self) -> ListenerStats {
        self.incoming.stats()
    }

    /// A handle to close it from elsewhere, when it has been split or is being served.
    pub fn closer(&self) -> Closer {
        self.incoming.closer()
    }

    /// Splits it, for the messages to come in and the replies to go out.
    ///
    /// ```no_run
    /// use buffstreams::{Config, Listener};
    /// use futures::StreamExt;
    ///
    /// # async fn echo() -> Result<(), buffstreams::Error> {
    /// let (incoming, outgoing) = Listener::bind(":5031", Config::new()).await?.split();
    /// incoming.map(Ok).forward(outgoing).await
    /// # }
    /// ```
    pub fn split(self) -> (Incoming, Outgoing) {
        let outgoing = Outgoing::new(self.hub().hub().clone());
        self.hub().choose(Delivery::Inbox);
        (self.incoming, outgoing)
    }

    /// One [`Connection`] for each peer, instead of the merged stream.
    ///
    /// It must be the first thing that is done with the listener: one that has been polled as a stream, or closed, goes on
    /// that way, and this stream yields nothing then.
    pub fn connections(self) -> Connections {
        self.hub().choose(Delivery::Connections);
        Connections { arrivals: self.incoming.arrivals }
    }

    /// Closes: stops accepting, frees the port, and tells the peers by ending the sending direction of their
    /// connections. What they send until they close is still received, for `drain_timeout` at the most: read the stream to its
    /// end.
    ///
    /// It waits until they are told, for `close_timeout` at the most; then the error is [`Error::Timeout`]. Dropping the
    /// future does not take the close back.
    pub async fn close(&mut self) -> Result<(), Error> {
        self.hub().close().await
    }

    pub(crate) fn hub(&self) -> &Running {
        &self.incoming.arrivals.hub
    }

    pub(crate) fn into_incoming(self) -> Incoming {
        self.incoming
    }
}

impl Stream for Listener {
    type Item = (Peer, Bytes);

    #[inline]
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.incoming).poll_next(cx)
    }
}

impl FusedStream for Listener {
    fn is_terminated(&self) -> bool {
        self.incoming.is_terminated()
    }
}

impl Stream for Incoming {
    type Item = (Peer, Bytes);

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            // The way of most messages, which is short enough to become part of the consumer.
            if let Some(batch) = &mut this.batch
                && let Some(len) = batch.received.frames.find()
            {
                return Poll::Ready(Some((batch.peer, batch.received.frames.cut(len))));
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

impl Stream for Connections {
    type Item = Connection;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Connection>> {
        loop {
            match ready!(self.arrivals.poll_next(cx)) {
                Some(Parcel { item: Arrival::Connection(connection), .. }) => return Poll::Ready(Some(*connection)),
                Some(Parcel { item: Arrival::Batch(_), .. }) => {}
                None => return Poll::Ready(None),
            }
        }
    }
}

impl FusedStream for Connections {
    fn is_terminated(&self) -> bool {
        self.arrivals.inbox.is_terminated()
    }
}

impl Arrivals {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Parcel<Arrival>>> {
        // The first poll is the choice, if there was none.
        self.hub.choose(Delivery::Inbox);
        Pin::new(&mut self.inbox).poll_next(cx)
    }

    fn events(&self) -> Events<Event> {
        self.hub.reporter.subscribe()
    }

    fn closer(&self) -> Closer {
        Closer { hub: self.hub.hub().clone() }
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
        self.hub.stop();
    }
}

impl Incoming {
    /// Waits for the next batch; `false` when none comes any more.
    #[inline(never)]
    fn poll_batch(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        // Only now is its last message answered: see `Outgoing`.
        self.batch = None;
        ready!(self.read_on(cx));
        while self.batch.is_none() {
            match ready!(self.arrivals.poll_next(cx)) {
                Some(Parcel { item: Arrival::Batch(received), share }) => {
                    self.batch = Some(self.batch_of(received, share))
                }
                Some(Parcel { item: Arrival::Connection(_), .. }) => {}
                None => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    /// A batch out of the inbox, and with it perhaps the reader of its peer.
    fn batch_of(&mut self, received: Received, share: inbox::Share) -> Batch {
        self.borrowed = received.lent.map(|lent| Borrowed {
            member: received.member.clone(),
            lent,
            // This batch counts as well.
            bytes_left: self.arrivals.hub.config.inbox_bytes.saturating_sub(share.bytes()),
        });
        Batch { peer: received.member.peer, received, _share: share }
    }

    /// Takes the next batch of the peer whose reader is lent to this end, if there is one at once and others are not kept
    /// waiting. Pending to let other tasks run.
    fn read_on(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(Borrowed { member, lent, bytes_left }) = &mut self.borrowed else { return Poll::Ready(()) };
        let (hub, inbox) = (&self.arrivals.hub, &self.arrivals.inbox);
        // Where there is one thread for all, nobody else reads meanwhile.
        let mut may = inbox.is_empty() && member.may_be_read();
        if may && *bytes_left < CHUNK + ITEM {
            if hub.connections() == 1 {
                // Nobody else has anything to read. Somebody may want to connect.
                *bytes_left = hub.config.inbox_bytes.max(CHUNK + ITEM);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            may = false;
        }
        if let Some(mut share) = may.then(|| inbox.reserve(CHUNK + ITEM)).flatten() {
            let batch = &mut self.batch;
            let take = |taken: reader::Batch| {
                hub.count(taken.messages, taken.bytes);
                share.shrink(taken.memory + ITEM);
                *bytes_left = bytes_left.saturating_sub(share.bytes());
                *batch =
                    Some(Batch { peer: member.peer, received: Received::new(member, taken.frames), _share: share });
            };
            if let Poll::Pending | Poll::Ready(Loaned::Batch) = member.loan.poll_batch(*lent, cx, take) {
                return Poll::Ready(());
            }
        }
        self.borrowed = None;
        Poll::Ready(())
    }

    /// The address that the listener listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.arrivals.hub.local_addr
    }

    pub(crate) fn hub(&self) -> &Running {
        &self.arrivals.hub
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.arrivals.events()
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.arrivals.hub)
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        self.arrivals.closer()
    }
}

impl Connections {
    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.arrivals.events()
    }

    /// What the listener has counted so far; the messages of its connections are not counted.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.arrivals.hub)
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        self.arrivals.closer()
    }
}

impl Closer {
    /// Closes the listener: see [`Listener::close`].
    ///
    /// It waits for the peers' tasks, so not in a callback, and, with a sink of replies, not between two messages in the
    /// task that takes them: the message that has just been taken may still be answered, and it would wait for itself until
    /// `close_timeout`.
    pub async fn close(&self) -> Result<(), Error> {
        self.hub.close().await
    }

    /// The address that the listener listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.hub.local_addr
    }

    /// Whether the listener is gone.
    pub(crate) fn is_stopped(&self) -> bool {
        self.hub.is_stopped()
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.hub)
    }
}

fn stats(hub: &Hub) -> ListenerStats {
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    ListenerStats {
        connections: hub.connections(),
        accepted: count(&hub.counters.accepted),
        refused: count(&hub.counters.refused),
        messages: count(&hub.counters.messages),
        bytes: count(&hub.counters.bytes),
    }
}

fn debug(name: &str, hub: &Hub, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let (local_addr, connections) = (hub.local_addr, hub.connections());
    f.debug_struct(name).field("local_addr", &local_addr).field("connections", &connections).finish_non_exhaustive()
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Listener", self.hub(), f)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Incoming", &self.arrivals.hub, f)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Connections", &self.arrivals.hub, f)
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Closer", &self.hub, f)
    }
}
