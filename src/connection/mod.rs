//! A connection: a `Sink` of messages and a `Stream` of the replies. No task and no lock stands between it and its
//! socket, unless it lingers; it moves when it is polled.

mod halves;
mod inlet;
mod line;
mod lingering_write;
mod plain_read;
mod plain_write;
mod returned;
mod session;
mod socket;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use futures::sink::Sink;
use futures::stream::Stream;

use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::framed::Messages;
use crate::identity::Identity;
use crate::peer::{Address, Peer};
use crate::transport;
use crate::wire::Codec;
pub use halves::{ReadHalf, WriteHalf};
pub(crate) use inlet::{Batch, Inlet};
pub(crate) use line::Line;
pub(crate) use returned::Returned;
pub(crate) use socket::OnEnd;
use socket::{Origin, Shared};

/// One connection: a `Sink<Bytes>` of messages and a `Stream<Item = Result<Bytes, Error>>` of the replies.
///
/// # Sending
///
/// - `poll_ready` waits while 60 KiB are pending.
/// - `start_send` never waits and never loses a message; one over the limit comes back in
///   [`Error::MessageTooLarge`], and the sink works on.
/// - `poll_flush` is ready when the kernel has taken everything. TCP cannot tell whether the peer's host, or its
///   program, has it.
/// - `poll_close` flushes, then ends this direction (`shutdown(Write)`); replies can still be read. It takes
///   `close_timeout` at the most: then it returns [`Error::Timeout`], and the socket is closed. What is unsent is held, and the
///   next flush opens the connection again.
///
/// `feed` many and `flush` once: small messages then share a system call. Nothing is sent before a flush, or before 60 KiB are
/// pending, unless [`Config::linger`] is set, or the connection is in a session: then what was fed is sent at the latest when it has
/// lingered so long, by a task, as a flush would, and if that fails, the next call tells so as it tells of a break that it met
/// itself. A peer that takes nothing for `write_timeout` is given up with [`Error::Timeout`].
///
/// # When it breaks
///
/// An error closes the socket. What was accepted and not handed whole to the kernel is held, and so is what is accepted from
/// then on, 60 KiB of it. The next flush, be it that of a `send` or a `close`, opens the connection again and sends all that
/// is held, in order; a frame that was cut is sent again from its start, because the receiver discards a part of a frame.
/// If that fails, the error says why, what is held stays held, and the next flush tries again;
/// [`take_unsent`](Self::take_unsent) takes the messages back. From 60 KiB on, `poll_ready` does as a flush does.
///
/// Each error is returned once. `poll_flush` and `poll_close` return it as it is: [`Error::Write`] and [`Error::Timeout`], and
/// where the connection cannot be opened again [`Error::Dial`], [`Error::DialTimeout`], `Error::Tls`, or [`Error::Panicked`] if
/// the backoff does. `poll_ready` leaves it to `start_send`, which returns it as the source of [`Error::NotSent`], and the message
/// that there was no room for with it. So a message that was given to `feed` or `send` is written, held, or in the error
/// ([`Error::into_unsent`]).
///
/// A peer that has closed is noticed before the next write; that opens the connection again, and what the peer had sent
/// before can still be read. (In the middle of a write that had to wait, or just after it was dialed, it is an
/// [`Error::Write`].) A peer that has ended its sending direction looks the same, and counts as closed. Its end may
/// arrive too late: if it closes at the same moment, or if more replies than the kernel has room for lie before it. On
/// other systems than Linux and Android, any reply that was not read hides it. Over TLS it is the end of the socket
/// that counts. An end of this crate closes its socket as soon as its TLS session has ended.
///
/// With [`Config::reconnect`] no error is returned until the backoff has given up, and `poll_ready` waits only when
/// `queue_bytes` are held. No task does this: it goes on while a future of `feed`, `send`, `flush` or `close` is polled. Where it
/// [lingers](Config::linger), its task goes on with what it was to send.
///
/// A connection that was accepted cannot be opened again: its errors are final. What it holds is for `take_unsent`, and
/// a message that comes later is given back, in [`Error::Closed`], as it is after a close. It does not look whether its
/// peer has closed, because one that has ended its sending direction may wait for replies.
///
/// # Receiving
///
/// The stream ends when the peer closes between two messages. An end inside a message is [`Error::Truncated`], a header
/// that makes no sense is [`Error::Frame`], a socket that cannot be read is [`Error::Read`], and a message that takes longer than
/// `frame_timeout` is [`Error::Timeout`]. So is, for a connection that a listener accepted, a peer that sends nothing for
/// `idle_timeout`. The stream ends after each of them. When the connection was opened again, polling it again yields the new
/// replies.
///
/// # In a session
///
/// With [`Config::session`], a task opens the connection again, and errors of the socket are not returned. Flush,
/// [`barrier`](Self::barrier) and close return [`Error::NotSent`] if messages came back, with the reason as its source, and
/// [`Error::Closed`] if nothing more is accepted. The messages are in [`take_unsent`](Self::take_unsent) and
/// [`take_in_doubt`](Self::take_in_doubt). A close that takes longer than `close_timeout` returns [`Error::Timeout`] and changes
/// nothing: it can be called again.
///
/// The stream of a connection that was dialed yields [`Error::SessionLost`] once for each session that is lost, and goes on with
/// the replies of the next session. That of a connection that a listener accepted ends when the peer has closed, and where the
/// session was lost before, it yields [`Error::SessionLost`] and ends.
///
/// # Time limits
///
/// `write_timeout`, `frame_timeout`, `idle_timeout` and `close_timeout` count the time in which the program waits for
/// the connection. While it is not polled, because a future was dropped or the program is busy, none of them runs; only
/// a pause of less than a quarter of the limit looks like a wait, and counts. Each call of [`close`](Self::close) has
/// the whole time.
///
/// # Cancel safety and dropping
///
/// Dropping a future of `next`, `feed`, `send`, `flush` or `close` loses nothing that was accepted. Dropping the
/// connection closes its socket at once, without waiting for what is pending; close it first. Of an acknowledged session that was
/// dialed, the other end is told that it is over, for which the socket is kept in the background for a second at the most. After a close, what the
/// peer still sends is read and discarded in the background for `close_timeout` at the most, since a socket that is
/// dropped with unread input would cut off the last messages of this end.
pub struct Connection {
    read: ReadHalf,
    write: WriteHalf,
}

impl Connection {
    /// Connects to `address`: `host:port`, a `SocketAddr`, Go's `:port` for this machine, or `unix:/path`.
    ///
    /// A name is resolved, and each of its addresses tried, within `dial_timeout`. The errors are [`Error::Config`],
    /// [`Error::Dial`], [`Error::DialTimeout`] and, with TLS, `Error::Tls`. In a session, [`Error::Handshake`] says why the other
    /// end did not begin one, and [`Error::SessionLost`], with none in doubt, that it ended the session in its answer. Dropping the
    /// future gives the attempt up.
    pub async fn dial(address: impl Into<Address>, config: Config) -> Result<Self, Error> {
        let (address, codec) = (address.into(), config.codec()?);
        if let Some(session) = &config.session {
            let window = session.terms(codec.max()).window;
            // On the heap: who has no session does not make room for it.
            let (read, write) = session::dial(address, config, codec, window).boxed().await?;
            return Ok(Self { read: ReadHalf::session(read), write: WriteHalf::session(write) });
        }
        let stream = transport::dial(&address, &config).await?;
        Ok(Self::new(stream, config, codec, Origin::Dialed { address }))
    }

    /// That of a session that a listener has accepted.
    pub(crate) fn of_session(
        line: Arc<dyn Line>,
        inlet: Arc<Inlet>,
        returned: Arc<Returned>,
        config: Config,
        codec: Codec,
        peer: Peer,
    ) -> Self {
        let (read, write) = session::accepted(line, inlet, returned, config, codec, peer);
        Self { read: ReadHalf::session(read), write: WriteHalf::session(write) }
    }

    /// The connection of a socket that a listener accepted.
    pub(crate) fn accepted(stream: transport::Stream, config: Config, codec: Codec, peer: Peer, on_end: OnEnd) -> Self {
        Self::new(stream, config, codec, Origin::Accepted { peer, on_end: Some(on_end) })
    }

    fn new(stream: transport::Stream, config: Config, codec: Codec, origin: Origin) -> Self {
        let shared = Shared::new(stream, config, codec, origin);
        Self { read: ReadHalf::plain(shared.clone()), write: WriteHalf::plain(shared) }
    }

    /// Who has connected, as the listener's events name them; `None` for a connection that was dialed.
    pub fn peer(&self) -> Option<Peer> {
        self.write.peer()
    }

    /// The remote end of the socket. The error is the system's, when the connection is gone.
    pub fn peer_addr(&self) -> std::io::Result<Endpoint> {
        self.write.peer_addr()
    }

    /// This end of the socket. The error is the system's, when the connection is gone.
    pub fn local_addr(&self) -> std::io::Result<Endpoint> {
        self.write.local_addr()
    }

    /// Who the other end is, as the transport has verified: see [`Identity`]. `None` if the transport does not know, as
    /// over plain TCP. After the connection was opened again, it may be another.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.write.identity()
    }

    /// Takes it apart, for a task that receives and one that sends. They share no lock on the way of the messages. The
    /// socket closes with the last of them.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// Flushes, then ends the sending direction, as `poll_close` does: see [`WriteHalf::close`]. It takes `close_timeout` at the
    /// most. Each call has all of that time, whatever became of the one before.
    pub fn close(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.write.close()
    }

    /// Accepts a message that stays with the program, without waiting: see [`WriteHalf::try_feed`].
    ///
    /// ```
    /// # use buffstreams::{Config, Connection, Listener};
    /// # use futures::{SinkExt, StreamExt};
    /// # async_std::task::block_on(async {
    /// # let mut listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    /// # let address = listener.local_addr();
    /// let mut connection = Connection::dial(address, Config::new()).await?;
    /// let mut line = String::new();
    /// for n in 0..100 {
    ///     use std::fmt::Write;
    ///     line.clear();
    ///     write!(line, "number {n}").unwrap();
    ///     while !connection.try_feed(line.as_bytes())? {
    ///         connection.ready().await?;
    ///     }
    /// }
    /// connection.flush().await?;
    /// # assert_eq!(listener.next().await.unwrap().1, "number 0");
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    #[inline]
    pub fn try_feed(&mut self, message: &[u8]) -> Result<bool, Error> {
        self.write.try_feed(message)
    }

    /// Waits until [`try_feed`](Self::try_feed) accepts a message, or has an error to return: see [`WriteHalf::ready`].
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.write.ready()
    }

    /// Waits until all that was accepted is acknowledged: see [`WriteHalf::barrier`].
    pub fn barrier(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.write.barrier()
    }

    /// See [`WriteHalf::take_in_doubt`].
    pub fn take_in_doubt(&mut self) -> Vec<Bytes> {
        self.write.take_in_doubt()
    }

    /// Waits for the next messages, all of one read together: see [`ReadHalf::next_batch`].
    pub fn next_batch(&mut self) -> impl Future<Output = Option<Result<Messages, Error>>> + Send + Unpin {
        self.read.next_batch()
    }

    /// See [`WriteHalf::take_unsent`].
    pub fn take_unsent(&mut self) -> Vec<Bytes> {
        self.write.take_unsent()
    }
}

impl Connection {
    pub(crate) fn halves(&mut self) -> (&mut ReadHalf, &mut WriteHalf) {
        (&mut self.read, &mut self.write)
    }
}

impl Sink<Bytes> for Connection {
    type Error = Error;

    #[inline]
    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.write).poll_ready(cx)
    }

    #[inline]
    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        Pin::new(&mut self.write).start_send(message)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.write).poll_close(cx)
    }
}

impl Stream for Connection {
    type Item = Result<Bytes, Error>;

    #[inline]
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.read).poll_next(cx)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("read", &self.read).field("write", &self.write).finish()
    }
}
