//! A listener: the messages of all peers as one `Stream`, a callback for each, or a connection for each peer.

mod accept;
mod batch;
mod batches;
mod callback;
mod decoding;
mod deliveries;
mod greeting;
mod handle;
mod handshakes;
mod incoming;
mod late_outbox;
mod member;
#[cfg(feature = "metrics")]
mod metrics;
mod peer_decode;
mod peer_fill;
mod peer_task;
mod peers;
mod place;
mod principal;
mod read_on;
mod received;
mod replies;
mod seating;
mod session_delivery;
mod session_task;
mod sessions;
mod shared;
mod tombstone;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::{FusedStream, Stream};

use crate::config::Config;
use crate::connection::Connection;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::identity::Identity;
use crate::observe::{Event, Events};
use crate::peer::{Address, Peer};
use crate::queue::{self, Parcel};
use crate::runtime::OwnedSocket;
use crate::transport::Acceptor;
use crate::wire::Codec;
use handle::{debug, stats};
use incoming::Arrivals;
use peers::Running;
use received::Arrival;
use shared::{Handling, Shared};

pub use batch::Batch;
pub use batches::Batches;
pub use callback::Serving;
pub(crate) use decoding::{Decoding, Spare, Values};
pub use deliveries::{Deliveries, Delivery, DeliveryId};
pub use handle::{Closer, ListenerStats};
pub use incoming::Incoming;
#[cfg(test)]
pub(crate) use read_on::{Loan, Loaned};
pub use replies::Outgoing;

/// A listening socket: a `Stream` of `(Peer, Bytes)` with the messages of all who connect.
///
/// It accepts from the moment it is bound. What becomes of the messages is chosen by what is done with it first:
///
/// - polled as a `Stream`, or [`split`](Self::split): a task per connection reads batches of messages into one inbox,
///   from which the stream takes them. Each peer's messages come in order; peers take turns. A stream that finds the
///   inbox empty reads on from the peer that it served last, up to as much as the inbox would hold. Errors are not items:
///   a peer that fails ends alone, and [`events`](Self::events) reports it.
/// - [`batches`](Self::batches): the same, a read at a time, to look at the messages where they lie.
/// - [`deliveries`](Self::deliveries): the same, each to be acknowledged by the program, in any order.
/// - [`typed`](Self::typed), [`decode`](Self::decode): messages of a type, decoded where the stream is polled, or in the
///   connection's own task.
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

/// The connections of a [`Listener`], one [`Connection`] each, instead of the merged stream.
///
/// A connection counts towards `max_connections` until its socket is closed: when both its halves are dropped or, after it
/// was closed, when its peer has closed as well, which takes `close_timeout` at the most. It does not end with the listener, unless
/// it is in a session: that ends when this is dropped.
///
/// The stream ends when the listener was closed and all connections have been yielded; where they are in sessions, when these are
/// over as well. Dropping a future of `next` loses no connection.
pub struct Connections {
    arrivals: Arrivals,
}

impl Listener {
    /// Listens on `address`: `host:port`, a `SocketAddr`, Go's `:port` for all interfaces, of IPv6 and IPv4, or
    /// `unix:/path`. Port 0 lets the system choose; [`local_addr`](Self::local_addr) returns which.
    ///
    /// It is one socket, at one address. `:port` that is taken on one side only, be it IPv6 or IPv4, is an error; where
    /// the system has no IPv6, it is all of IPv4. For a name, it is the first of its addresses that this machine has,
    /// in the system's order; if that one is taken, it is an error, although another may be free.
    ///
    /// A Unix socket has a file, with the permissions of [`Config::unix_mode`]. It is removed when the listener closes
    /// or is dropped, if it is still the same. A file that a dead process left behind is replaced. Where a process
    /// answers, the error is of the kind `AddrInUse`, and that process sees a connection that comes and goes. A file
    /// that is no socket is an error of the kind `AlreadyExists`, and stays. Of two listeners of this library that
    /// begin at the same time at the same path, one gets it, and neither takes it from one that is alive. For that it
    /// locks the folder, which must be readable. Other programs do not know this lock: one that has bound the path and
    /// does not listen yet looks dead, and one that keeps the folder locked for five seconds makes this an error of the
    /// kind `TimedOut`. On other systems than Linux and Android, a listener whose queue is full may look dead as well.
    ///
    /// It waits for the name to be resolved, and for a folder that is locked. The errors are [`Error::Config`] and
    /// [`Error::Bind`]. Dropping the future gives the attempt up, and nothing is listened on.
    pub async fn bind(address: impl Into<Address>, config: Config) -> Result<Self, Error> {
        let (address, codec) = (address.into(), config.codec()?);
        let (acceptor, local_addr) = Acceptor::bind(&address, &config).await?;
        Ok(Self::new(acceptor, local_addr, config, codec))
    }

    /// Goes on with a socket that listens already: a `TcpListener` or a `UnixListener` of the standard library, or a descriptor that
    /// the process was started with, as by systemd: see the example `systemd`. What waits in its queue is accepted, and the
    /// file of a Unix socket stays when the listener is gone. Where others have the same socket, as a supervisor or a copy by
    /// `try_clone`, it goes on listening for them. It is set to be non-blocking, which is so for all of them.
    ///
    /// The errors are [`Error::Config`], and [`Error::Bind`] where it is no stream socket that listens, or the runtime is the
    /// simulator.
    ///
    /// ```
    /// # use buffstreams::{Config, Listener};
    /// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let listener = Listener::from_std(socket, Config::new())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_std(socket: impl Into<OwnedSocket>, config: Config) -> Result<Self, Error> {
        let codec = config.codec()?;
        let (acceptor, local_addr) = Acceptor::adopt(socket.into(), &config)?;
        Ok(Self::new(acceptor, local_addr, config, codec))
    }

    fn new(acceptor: Acceptor, local_addr: Endpoint, config: Config, codec: Codec) -> Self {
        let shared = Running::new(Shared::new(local_addr, config, codec, acceptor.shutter()));
        let (sender, inbox) = queue::inbox(shared.config.inbox_bytes, Some(shared.panic_hook.clone()));
        #[cfg(feature = "metrics")]
        {
            let _ = shared.inbox.set(inbox.usage());
            crate::metrics::register(shared.shared());
        }
        let _accept = shared.config.runtime.spawn(accept::accept_all(shared.clone(), acceptor, sender));
        Self { incoming: Incoming::new(Arrivals { shared, inbox, _accept }) }
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> Endpoint {
        self.shared().local_addr.clone()
    }

    /// Who a peer is, as its transport has verified: see [`Identity`]. `None` if the transport does not know, as over
    /// plain TCP, and when the peer is gone.
    pub fn identity(&self, peer: Peer) -> Option<Arc<Identity>> {
        self.shared().identity(peer)
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
    /// ```
    /// use buffstreams::{Bytes, Config, Connection, Listener};
    /// use futures::{SinkExt, StreamExt, TryStreamExt};
    ///
    /// # async_std::task::block_on(async {
    /// let (incoming, outgoing) = Listener::bind("127.0.0.1:0", Config::new()).await?.split();
    /// let (address, closer) = (incoming.local_addr(), incoming.closer());
    /// let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
    ///
    /// let mut connection = Connection::dial(address, Config::new()).await?;
    /// connection.send(Bytes::from_static(b"hello")).await?;
    /// assert_eq!(connection.try_next().await?.unwrap(), "hello");
    /// closer.close().await?;
    /// echo.await
    /// # }).unwrap();
    /// ```
    pub fn split(self) -> (Incoming, Outgoing) {
        let outgoing = Outgoing::new(self.shared().shared().clone());
        self.shared().choose(Handling::Inbox);
        (self.incoming, outgoing)
    }

    /// The messages of all peers, each of which the program acknowledges, in an acknowledged session: see [`Delivery`].
    ///
    /// For replies, [`split`](Self::split) it first, and take [`Incoming::deliveries`].
    ///
    /// ```
    /// use buffstreams::{Config, Listener, Manager, Outcome, Session};
    /// use futures::{SinkExt, StreamExt};
    ///
    /// # async_std::task::block_on(async {
    /// let config = Config::new().session(Session::new());
    /// let mut deliveries = Listener::bind("127.0.0.1:0", config.clone()).await?.deliveries();
    /// let (manager, address) = (Manager::new(config), deliveries.local_addr());
    /// let mut letters = manager.dead_letters();
    /// manager.dial(address.clone()).await?;
    /// let mut sink = manager.sink();
    /// sink.feed((address.clone().into(), "to keep".into())).await?;
    /// sink.send((address.into(), "not for us".into())).await?;
    ///
    /// // In any order.
    /// let (first, second) = (deliveries.next().await.unwrap(), deliveries.next().await.unwrap());
    /// second.refuse();
    /// first.ack();
    /// let letter = letters.next().await.unwrap();
    /// assert_eq!((letter.outcome, letter.message), (Outcome::Refused, "not for us".into()));
    /// assert_eq!(manager.stats().total.acked, 1);
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn deliveries(self) -> Deliveries {
        self.into_incoming().deliveries()
    }

    /// The messages of all peers, a read at a time, to be looked at where they lie: see [`Batches`].
    ///
    /// For replies, [`split`](Self::split) it first, and take [`Incoming::batches`].
    ///
    /// ```
    /// use buffstreams::{Config, Connection, Listener};
    /// use futures::{SinkExt, StreamExt};
    ///
    /// # async_std::task::block_on(async {
    /// let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    /// let mut connection = Connection::dial(listener.local_addr(), Config::new()).await?;
    /// for word in ["one", "two", "three"] {
    ///     connection.feed(word.into()).await?;
    /// }
    /// connection.close().await?;
    ///
    /// let mut batches = listener.batches();
    /// let mut letters = 0;
    /// while letters < 11
    ///     && let Some((_peer, batch)) = batches.next().await
    /// {
    ///     for message in &batch {
    ///         letters += message.len();
    ///     }
    /// }
    /// # assert_eq!(letters, 11);
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn batches(self) -> Batches {
        self.incoming.batches()
    }

    /// One [`Connection`] for each peer, instead of the merged stream.
    ///
    /// It must be the first thing that is done with the listener. One that has been polled as a stream, or closed, goes
    /// on that way, and this stream then yields nothing.
    pub fn connections(self) -> Connections {
        self.shared().choose(Handling::Connections);
        Connections { arrivals: self.incoming.arrivals }
    }

    /// Closes: stops accepting, frees the port, and tells the peers by ending this end's sending direction of their
    /// connections. What they send until they close is still received, for `drain_timeout` at the most: read the stream
    /// to its end.
    ///
    /// It waits until they are told, for `close_timeout` at the most; then the error is [`Error::Timeout`]. Dropping the
    /// future does not take the close back.
    pub async fn close(&mut self) -> Result<(), Error> {
        self.shared().close().await
    }

    pub(crate) fn shared(&self) -> &Running {
        &self.incoming.arrivals.shared
    }

    pub(crate) fn incoming_mut(&mut self) -> &mut Incoming {
        &mut self.incoming
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

impl Connections {
    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<Event> {
        self.arrivals.events()
    }

    /// What the listener has counted so far. The messages of its connections are counted in sessions only.
    pub fn stats(&self) -> ListenerStats {
        stats(&self.arrivals.shared)
    }

    /// A handle to close the listener from elsewhere.
    pub fn closer(&self) -> Closer {
        self.arrivals.closer()
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Listener", self.shared(), f)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug("Connections", &self.arrivals.shared, f)
    }
}
