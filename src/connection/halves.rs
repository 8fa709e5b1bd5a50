//! The two halves of a connection, with a session or without.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::sink::{Sink, SinkExt};
use futures::stream::Stream;

use super::socket::Shared;
use super::{lingering_write, plain_read, plain_write, session};
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::framed::Messages;
use crate::identity::Identity;
use crate::peer::Peer;
use crate::transport;
use crate::wire::{Frames, Output};

/// The receiving half of a [`Connection`](crate::Connection): a `Stream<Item = Result<Bytes, Error>>`.
pub struct ReadHalf(Read);

enum Read {
    Plain(Box<plain_read::Plain>),
    Session(session::Read),
}

/// The sending half of a [`Connection`](crate::Connection): a `Sink<Bytes>`.
pub struct WriteHalf(Write);

enum Write {
    Plain(Box<plain_write::Plain>),
    Lingering(Box<lingering_write::Lingering>),
    Session(Box<session::Write>),
}

impl ReadHalf {
    pub(super) fn plain(shared: Arc<Shared>) -> Self {
        Self(Read::Plain(Box::new(plain_read::Plain::new(shared))))
    }

    pub(super) fn session(read: session::Read) -> Self {
        Self(Read::Session(read))
    }

    /// Waits for the next messages, all of one read together: see [`Messages`]. `None` at the end.
    ///
    /// It can be mixed with the stream: what that has not yielded of a read comes first. The errors and the end are
    /// those of the stream. With [`Config::session`](crate::Config::session), they count as taken when the next are
    /// asked for. Dropping the future loses nothing.
    pub fn next_batch(&mut self) -> impl Future<Output = Option<Result<Messages, Error>>> + Send + Unpin {
        poll_fn(|cx| match &mut self.0 {
            Read::Plain(read) => read.poll_next_batch(cx),
            Read::Session(read) => read.poll_next_batch(cx),
        })
    }

    /// What was received and is not taken.
    #[inline]
    pub(crate) fn frames(&mut self) -> &mut Frames {
        match &mut self.0 {
            Read::Plain(read) => read.frames(),
            Read::Session(read) => read.frames(),
        }
    }

    /// Waits for more frames; `false` at the end.
    pub(crate) fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        match &mut self.0 {
            Read::Plain(read) => read.poll_frames(cx),
            Read::Session(read) => read.poll_frames(cx),
        }
    }

    /// The last message that was taken out of the frames did not decode. In a session it is refused.
    #[cold]
    pub(crate) fn refuse_last(&mut self) {
        if let Read::Session(read) = &mut self.0 {
            read.refuse_last();
        }
    }

    /// See [`Connection::peer`](crate::Connection::peer).
    pub fn peer(&self) -> Option<Peer> {
        match &self.0 {
            Read::Plain(read) => read.shared().peer(),
            Read::Session(read) => read.shared().peer,
        }
    }

    /// See [`Connection::peer_addr`](crate::Connection::peer_addr).
    pub fn peer_addr(&self) -> io::Result<Endpoint> {
        self.stream().ok_or(io::ErrorKind::NotConnected)?.peer_addr()
    }

    /// See [`Connection::local_addr`](crate::Connection::local_addr).
    pub fn local_addr(&self) -> io::Result<Endpoint> {
        self.stream().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// See [`Connection::identity`](crate::Connection::identity).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.stream()?.identity()
    }

    /// The socket, if there is one.
    fn stream(&self) -> Option<transport::Stream> {
        match &self.0 {
            Read::Plain(read) => Some(read.shared().stream()),
            Read::Session(read) => read.shared().line.stream(),
        }
    }
}

impl WriteHalf {
    pub(super) fn plain(shared: Arc<Shared>) -> Self {
        Self(match shared.config.linger.without_task() {
            None => Write::Plain(Box::new(plain_write::Plain::new(shared))),
            Some(linger) => Write::Lingering(Box::new(lingering_write::Lingering::new(shared, linger))),
        })
    }

    pub(super) fn session(write: session::Write) -> Self {
        Self(Write::Session(Box::new(write)))
    }

    /// After an error: takes the messages that were accepted and not handed whole to the kernel, the oldest first, so
    /// that the next write does not send them. While the connection is open it has none to give back.
    ///
    /// With [`Config::session`](crate::Config::session), these are the messages that no connection was ever given whole, when
    /// the attempts to open one were given up, or the messages were older than
    /// [`message_ttl`](crate::Config::message_ttl): the other end has none of them. What came back is held until it is taken, by
    /// this or by [`take_in_doubt`](Self::take_in_doubt), and nothing bounds it: take it after each error.
    ///
    /// A connection that a listener accepted in a session gives back less: when the session is over, only what was fed and not
    /// flushed is here. Other messages that were never sent are reported as [`Event::Undelivered`](crate::Event::Undelivered).
    pub fn take_unsent(&mut self) -> Vec<Bytes> {
        match &mut self.0 {
            Write::Plain(write) => write.take_unsent(),
            Write::Lingering(write) => write.take_unsent(),
            Write::Session(write) => write.take_unsent(),
        }
    }

    /// With [`Config::session`](crate::Config::session), after [`Error::SessionLost`] or [`Error::NotSent`]: takes the
    /// messages that were sent and not acknowledged, and those that the program at the other end has refused, the
    /// oldest first. It is not known whether the first were taken; they are not sent again. Without a session there are
    /// none.
    pub fn take_in_doubt(&mut self) -> Vec<Bytes> {
        match &mut self.0 {
            Write::Plain(_) | Write::Lingering(_) => Vec::new(),
            Write::Session(write) => write.take_in_doubt(),
        }
    }

    /// Waits until the program at the other end has taken all that was accepted, with
    /// [`Config::session`](crate::Config::session). It flushes first.
    ///
    /// The errors are [`Error::NoSession`] for a connection without one, [`Error::NotSent`] where some came back, as
    /// [`take_in_doubt`](Self::take_in_doubt) and [`take_unsent`](Self::take_unsent) then have them, and [`Error::Closed`] where
    /// some were fed and nothing more is accepted. It waits as long as the other end does. Dropping the future loses nothing.
    pub fn barrier(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        poll_fn(|cx| match &mut self.0 {
            Write::Plain(_) | Write::Lingering(_) => Poll::Ready(Err(Error::NoSession)),
            Write::Session(write) => write.poll_barrier(cx),
        })
    }

    /// Flushes, then ends this direction, as `poll_close` does. It takes `close_timeout` at the most, and each call has all
    /// that time, whatever became of one before it. When it is over, the error is [`Error::Timeout`]; the others are those of a
    /// flush. After an error, what is unsent is held, and the next flush opens a dialed connection again. Dropping the future
    /// loses nothing.
    ///
    /// With [`Config::session`](crate::Config::session), it waits until all is acknowledged: `Ok` means that the program at the
    /// other end has taken everything. The errors are those of [`barrier`](Self::barrier) and [`Error::Timeout`], after which the
    /// session goes on.
    pub fn close(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        match &mut self.0 {
            Write::Plain(write) => write.closing().clear(),
            Write::Lingering(write) => write.begin_close(),
            Write::Session(write) => write.closing().clear(),
        }
        poll_fn(|cx| self.poll_close_unpin(cx))
    }

    /// Accepts a message that stays with the program, without waiting: it is copied behind the others, where `feed` needs a
    /// [`Bytes`] for each. `Ok(false)` where `feed` would wait: then it was not accepted, and [`ready`](Self::ready) waits.
    ///
    /// Nothing is allocated for a message of less than 64 KiB, as the buffers are used again. The errors are those of `feed`,
    /// with a copy of the message. What was accepted is sent by a flush, by `ready` when 60 KiB are pending, or when it has
    /// [lingered](crate::Config::linger).
    #[inline]
    pub fn try_feed(&mut self, message: &[u8]) -> Result<bool, Error> {
        // So little that it becomes part of the caller.
        let copied = match &mut self.0 {
            Write::Plain(write) => write.copy(message),
            Write::Session(write) => write.copy(message),
            Write::Lingering(_) => false,
        };
        if copied { Ok(true) } else { self.try_feed_first(message) }
    }

    #[inline(never)]
    fn try_feed_first(&mut self, message: &[u8]) -> Result<bool, Error> {
        match &mut self.0 {
            Write::Plain(write) => write.try_feed(message),
            Write::Lingering(write) => write.try_feed(message),
            Write::Session(write) => write.try_feed(message),
        }
    }

    /// Whether only a poll can say what becomes of a message.
    pub(crate) fn must_wait(&self) -> bool {
        match &self.0 {
            Write::Plain(write) => write.must_wait(),
            Write::Lingering(write) => write.must_wait(),
            Write::Session(write) => write.must_wait(),
        }
    }

    /// Accepts the message that `push` puts behind the others.
    #[inline]
    pub(crate) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        match &mut self.0 {
            Write::Plain(write) => write.push_with(push),
            Write::Lingering(write) => write.push_with(push),
            Write::Session(write) => write.push_with(push),
        }
    }

    /// Waits as `feed` does, until [`try_feed`](Self::try_feed) accepts a message, or has an error to return: like
    /// `poll_ready` it leaves that to the next call, which has the message. Dropping the future loses nothing.
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        poll_fn(|cx| self.poll_ready_unpin(cx))
    }

    /// See [`Connection::peer`](crate::Connection::peer).
    pub fn peer(&self) -> Option<Peer> {
        match &self.0 {
            Write::Plain(write) => write.shared().peer(),
            Write::Lingering(write) => write.shared().peer(),
            Write::Session(write) => write.shared().peer,
        }
    }

    /// See [`Connection::peer_addr`](crate::Connection::peer_addr).
    pub fn peer_addr(&self) -> io::Result<Endpoint> {
        self.stream().ok_or(io::ErrorKind::NotConnected)?.peer_addr()
    }

    /// See [`Connection::local_addr`](crate::Connection::local_addr).
    pub fn local_addr(&self) -> io::Result<Endpoint> {
        self.stream().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// See [`Connection::identity`](crate::Connection::identity).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.stream()?.identity()
    }

    /// The socket, if there is one.
    fn stream(&self) -> Option<transport::Stream> {
        match &self.0 {
            Write::Plain(write) => Some(write.shared().stream()),
            Write::Lingering(write) => Some(write.shared().stream()),
            Write::Session(write) => write.shared().line.stream(),
        }
    }
}

impl Stream for ReadHalf {
    type Item = Result<Bytes, Error>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut self.get_mut().0 {
            Read::Plain(read) => Pin::new(&mut **read).poll_next(cx),
            Read::Session(read) => Pin::new(read).poll_next(cx),
        }
    }
}

impl Sink<Bytes> for WriteHalf {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.get_mut().0 {
            Write::Plain(write) => Pin::new(&mut **write).poll_ready(cx),
            Write::Session(write) => write.poll_ready(cx),
            Write::Lingering(write) => write.poll_ready(cx),
        }
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        match &mut self.get_mut().0 {
            Write::Plain(write) => Pin::new(&mut **write).start_send(message),
            Write::Session(write) => write.start_send(message),
            Write::Lingering(write) => write.start_send(message),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.get_mut().0 {
            Write::Plain(write) => Pin::new(&mut **write).poll_flush(cx),
            Write::Lingering(write) => write.poll_flush(cx),
            Write::Session(write) => write.poll_flush(cx),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.get_mut().0 {
            Write::Plain(write) => Pin::new(&mut **write).poll_close(cx),
            Write::Lingering(write) => write.poll_close(cx),
            Write::Session(write) => write.poll_close(cx),
        }
    }
}

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Read::Plain(read) => read.fmt(f),
            Read::Session(_) => f.debug_struct("ReadHalf").field("state", &"session").finish_non_exhaustive(),
        }
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Write::Plain(write) => write.fmt(f),
            Write::Lingering(write) => write.fmt(f),
            Write::Session(write) => f
                .debug_struct("WriteHalf")
                .field("state", &"session")
                .field("held", &write.held())
                .finish_non_exhaustive(),
        }
    }
}
