//! A listener: the messages of all peers as one `Stream`, and a `Sink` of replies.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures::sink::Sink;
use futures::stream::{FusedStream, Stream};

use crate::accept::{Arrival, Delivery, Hub, Member, Received};
use crate::config::Config;
use crate::connection::Connection;
use crate::error::Error;
use crate::events::{Event, Events};
use crate::inbox::{self, Parcel, Receiver};
use crate::net::{Acceptor, Deadline, Task};
use crate::outbox::Ticket;
use crate::peer::{Address, Peer};
use crate::writer::HIGH_WATER;

/// A listening socket: a `Stream` of `(Peer, Bytes)` with the messages of all who connect.
///
/// It accepts from the moment it is bound. What becomes of the messages is chosen by what is done with it first:
///
/// - polled as a `Stream`, or [`split`](Self::split): a task per connection reads batches of messages into one inbox,
///   from which the stream takes them. Each peer's messages come in order; peers take turns. Errors are not items: a
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
/// The stream ends after [`close`](Self::close), when every peer has closed or has been silent for `close_timeout`.
/// Dropping the listener closes its sockets and ends its tasks at once, without waiting; what was received and not taken is
/// gone. Dropping a future of `next` loses nothing.
pub struct Listener {
    incoming: Incoming,
}

/// The receiving half of a [`Listener`]: a `Stream` of `(Peer, Bytes)`. Dropping it ends the listener.
pub struct Incoming {
    arrivals: Arrivals,
    batch: Option<Batch>,
}

/// The replying half of a [`Listener`]: a `Sink` of `(Peer, Bytes)`.
///
/// - `start_send` puts the message behind the others to that peer and never waits. A message over the limit comes back in
///   [`Error::MessageTooLarge`], and the sink works on. A message to a peer that is gone is dropped, with an
///   [`Event::Undelivered`]: one bad peer is no reason to fail the others.
/// - `poll_ready` waits while `queue_bytes` are held for the last peer that was written to.
/// - `poll_flush` is ready when the kernel has taken everything, or its peer is gone. A peer that takes nothing holds it
///   up until `write_timeout` disconnects that peer; `feed`, and `forward`, do not wait for it.
/// - `poll_close` flushes, for `close_timeout` at the most, and then ends the sending direction of every connection.
///
/// A peer may close its sending direction and wait for replies: its connection stays open until all its messages have been
/// taken and what was replied by then is written. So a reply should be given to the sink before the next message is asked
/// for, as `forward` does; a program that answers later should use [`Listener::connections`].
///
/// Dropping a future loses nothing that was accepted. Dropping the sink leaves what is pending to the background.
pub struct Outgoing {
    hub: Arc<Hub>,
    /// The peer that was written to last: mostly the next one, too.
    last: Option<Arc<Member>>,
    unflushed: HashMap<u64, (Arc<Member>, Ticket)>,
    closing: Deadline,
    closed: bool,
}

/// The connections of a [`Listener`], one [`Connection`] each, instead of the merged stream.
///
/// A connection counts towards `max_connections` until both its halves are dropped. It does not end with the listener.
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
    hub: Arc<Hub>,
    inbox: Receiver<Arrival>,
    /// Dropped, it stops accepting.
    _accept: Task,
}

/// A batch that is being taken apart.
struct Batch {
    peer: Peer,
    received: Received,
    /// Its share of the inbox, free again when the batch is taken.
    _share: inbox::Share,
}

impl Listener {
    /// Listens on `address`: `host:port`, a `SocketAddr`, or Go's `:port` for all interfaces. Port 0 lets the system
    /// choose; [`local_addr`](Self::local_addr) tells.
    ///
    /// The errors are [`Error::Config`] and [`Error::Bind`].
    pub async fn bind(address: impl Into<Address>, config: Config) -> Result<Self, Error> {
        let (address, codec) = (address.into(), config.codec()?);
        let (acceptor, local_addr) = Acceptor::bind(&address).await?;
        let (sender, inbox) = inbox::inbox(config.inbox_bytes);
        let (hub, accept) = Hub::start(acceptor, local_addr, config, codec, sender);
        Ok(Self { incoming: Incoming { arrivals: Arrivals { hub, inbox, _accept: accept }, batch: None } })
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.hub().local_addr
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.hub().reporter.subscribe()
    }

    /// What it has counted so far.
    pub fn stats(&self) -> ListenerStats {
        stats(self.hub())
    }

    /// A handle to close it from elsewhere, when it has been split or is being served.
    pub fn closer(&self) -> Closer {
        Closer { hub: self.hub().clone() }
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
        let hub = self.hub().clone();
        hub.replies.store(true, Ordering::Release);
        hub.choose(Delivery::Inbox);
        let outgoing =
            Outgoing { hub, last: None, unflushed: HashMap::new(), closing: Deadline::default(), closed: false };
        (self.incoming, outgoing)
    }

    /// One [`Connection`] for each peer, instead of the merged stream.
    pub fn connections(self) -> Connections {
        self.hub().choose(Delivery::Connections);
        Connections { arrivals: self.incoming.arrivals }
    }

    /// Closes: stops accepting, frees the port, and tells the peers by ending the sending direction of their
    /// connections. What they send until they close is still received: read the stream to its end.
    ///
    /// It waits until that is done, for `close_timeout` at the most; then the error is [`Error::Timeout`]. Dropping the
    /// future does not take the close back.
    pub async fn close(&mut self) -> Result<(), Error> {
        self.hub().close().await
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.incoming.arrivals.hub
    }

    /// Runs `delivery` until the listener ends.
    pub(crate) async fn run(self, delivery: Delivery) {
        let Arrivals { hub, inbox, _accept } = &mut { self.incoming.arrivals };
        hub.choose(delivery);
        // The peers' tasks hold the inbox open, and put nothing in.
        while futures::StreamExt::next(inbox).await.is_some() {}
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
            if let Some(batch) = &mut this.batch {
                if let Some(message) = batch.received.frames.next() {
                    return Poll::Ready(Some((batch.peer, message)));
                }
                // Only now is its last message answered: see `Outgoing`.
                this.batch = None;
            }
            match ready!(this.arrivals.poll_next(cx)) {
                Some(Parcel { item: Arrival::Batch(received), share }) => {
                    this.batch = Some(Batch { peer: received.member.peer, received, _share: share });
                }
                Some(Parcel { item: Arrival::Connection(_), .. }) => {}
                None => return Poll::Ready(None),
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
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.hub.stop();
    }
}

impl Outgoing {
    /// The peer, unless it is gone.
    fn member(&mut self, peer: Peer) -> Option<&Arc<Member>> {
        if self.last.as_ref().is_none_or(|last| last.peer != peer) {
            self.last = Some(self.hub.member(peer.id())?);
        }
        self.last.as_ref()
    }
}

impl Sink<(Peer, Bytes)> for Outgoing {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.closed {
            return Poll::Ready(Err(Error::Closed { message: None }));
        }
        match &self.last {
            Some(last) => last.outbox.poll_room(self.hub.config.queue_bytes, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }

    fn start_send(self: Pin<&mut Self>, (peer, message): (Peer, Bytes)) -> Result<(), Error> {
        let this = self.get_mut();
        if this.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        let sent = match this.member(peer) {
            Some(member) => member.outbox.push(message).map(|ticket| (member.clone(), ticket)),
            None => Err(Error::Closed { message: None }),
        };
        match sent {
            Ok((member, ticket)) => {
                // What is worth a system call goes now; the peer's own task goes on if the socket takes no more.
                let _ = member.outbox.poll_room(HIGH_WATER, &mut Context::from_waker(Waker::noop()));
                this.unflushed.insert(peer.id(), (member, ticket));
                Ok(())
            }
            Err(Error::Closed { .. }) => {
                this.hub.reporter.report(Event::Undelivered { peer, messages: 1 });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // A peer that is gone has been reported by its own task.
        let this = self.get_mut();
        this.unflushed.retain(|_, (member, ticket)| member.outbox.poll_written(*ticket, cx).is_pending());
        if this.unflushed.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let flushed = self.as_mut().poll_flush(cx);
        let this = self.get_mut();
        let result = match flushed {
            Poll::Ready(result) => result,
            Poll::Pending => {
                let after = ready!(this.closing.poll(this.hub.config.close_timeout, cx));
                Err(Error::Timeout { what: "close_timeout", after })
            }
        };
        if !this.closed {
            this.closed = true;
            this.end_replies();
            this.hub.half_close_all();
        }
        Poll::Ready(result)
    }
}

impl Outgoing {
    /// No more replies: peers that have closed their direction are not kept for them.
    fn end_replies(&self) {
        self.hub.replies.store(false, Ordering::Release);
        for member in self.hub.members() {
            member.outbox.call_driver();
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        for (member, _) in self.unflushed.values() {
            member.outbox.leave_to_driver();
        }
        self.end_replies();
    }
}

impl Incoming {
    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.arrivals.hub.reporter.subscribe()
    }

    /// What the listener has counted so far.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.arrivals.hub)
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        Closer { hub: self.arrivals.hub.clone() }
    }
}

impl Closer {
    /// Closes the listener: see [`Listener::close`].
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

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Outgoing", &self.hub, f)
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
