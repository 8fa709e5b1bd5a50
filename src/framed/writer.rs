//! Drives the encoder over any `AsyncWrite`. The rules of the `Sink` live here.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::io::AsyncWrite;
use futures::sink::{Sink, SinkExt};

use crate::config::Config;
use crate::error::{ConfigError, Error};
use crate::wire::Output;

/// From this many pending bytes a sink writes before it accepts more. One system call takes them all, and, with nearly any
/// message on top that is copied, one segment: a packet of the loopback device has room for 65,483 bytes. A write that is a
/// little longer costs a second segment for the rest, and that is a fifth of all that sending small messages costs.
pub(crate) const HIGH_WATER: usize = 60 * 1024;
/// How many pieces one vectored write takes at the most.
const MAX_SLICES: usize = 32;

/// Messages into any byte stream: a `Sink` of `Bytes`.
///
/// This is the writing half of a [`Connection`](crate::Connection) without its socket: for a transport of your own, a
/// file, or a test.
///
/// - `poll_ready` waits while 60 KiB or more are pending; that is the most that it holds, and one message.
/// - `start_send` copies a message of less than 4 KiB behind the others and chains a larger one. It never waits. A
///   message over the limit comes back in [`Error::MessageTooLarge`], and the sink works on.
/// - `poll_flush` is ready when the transport has taken everything.
/// - `poll_close` flushes, then closes the transport.
///
/// After [`Error::Write`] it is closed, and gives each message back in [`Error::Closed`];
/// [`into_unsent`](Self::into_unsent) gives those back that the transport had not taken whole. `poll_ready` does not
/// fail: a break that it meets is returned by `start_send`, in [`Error::NotWritten`] with the message that there was no
/// room for, or by the next flush. Dropping a future that waits loses nothing.
///
/// Large messages, and several at once, are written by `poll_write_vectored`. A socket of std, of async-std or of async-io
/// raises SIGPIPE there when its peer is gone: in a program that has restored the default action, that ends the process. A
/// [`Connection`](crate::Connection) never does.
pub struct Writer<W> {
    state: State<W>,
    output: Output,
    /// What a wait for room failed with, until that is told.
    untold: Option<io::Error>,
}

enum State<W> {
    Open(W),
    Closed,
}

impl<W> State<W> {
    fn into_io(self) -> Option<W> {
        match self {
            Self::Open(io) => Some(io),
            Self::Closed => None,
        }
    }
}

impl<W: AsyncWrite + Unpin> Writer<W> {
    /// Writes frames of `config`'s format and limit to `io`. It knows no sessions: [`Config::session`] changes nothing here.
    pub fn new(io: W, config: &Config) -> Result<Self, ConfigError> {
        config.plain_codec().map(|codec| Self::with(io, Output::new(codec)))
    }

    /// Goes on, on a new transport, with what an old one did not take.
    pub(crate) fn with(io: W, output: Output) -> Self {
        Self { state: State::Open(io), output, untold: None }
    }

    /// Accepts a message that stays with the program, without waiting: it is copied behind the others, where `feed` needs a
    /// [`Bytes`] for each. `Ok(false)` where `feed` would wait: then it was not accepted, and [`ready`](Self::ready) waits.
    ///
    /// Nothing is allocated for a message of less than 64 KiB, as the buffers are used again. The errors are those of `feed`,
    /// with a copy of the message.
    ///
    /// ```
    /// use buffstreams::{Config, Writer};
    /// use futures::SinkExt;
    ///
    /// # futures::executor::block_on(async {
    /// let mut wire = Vec::new();
    /// let mut writer = Writer::new(&mut wire, &Config::new())?;
    /// while !writer.try_feed(b"one")? {
    ///     writer.ready().await?;
    /// }
    /// writer.flush().await?;
    /// assert_eq!(wire, [6, 0, 0, b'o', b'n', b'e']);
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn try_feed(&mut self, message: &[u8]) -> Result<bool, Error> {
        if self.has_room() {
            return self.output.push_copy(message).map(|()| true);
        }
        match self.state {
            State::Open(_) => Ok(false),
            State::Closed => self.refuse(Bytes::copy_from_slice(message)).map(|()| true),
        }
    }

    /// Waits as `feed` does, until [`try_feed`](Self::try_feed) accepts a message, or has an error to return. Dropping
    /// the future loses nothing.
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Unpin {
        poll_fn(|cx| self.poll_ready_unpin(cx))
    }

    /// The messages that were accepted and that the transport has not taken whole, the oldest first.
    pub fn into_unsent(mut self) -> Vec<Bytes> {
        self.output.take_messages()
    }

    /// Takes it apart: the transport, and what was accepted and it has not taken, as it is on the wire. If it has taken a part of a
    /// frame, that is where these bytes go on, so nothing else may be written before them.
    ///
    /// After an error, and when it was closed, the transport is `None`. What is left over after an error is of no use to another
    /// transport, which needs whole frames: see [`into_unsent`](Self::into_unsent).
    pub fn into_parts(self) -> (Option<W>, Bytes) {
        let unwritten = self.output.chunks().collect::<Vec<_>>().concat().into();
        (self.state.into_io(), unwritten)
    }

    pub(crate) fn output(&self) -> &Output {
        &self.output
    }

    pub(crate) fn output_mut(&mut self) -> &mut Output {
        &mut self.output
    }

    /// What is pending, for a new transport to go on with.
    pub(crate) fn into_output(self) -> Output {
        self.into_io_and_output().1
    }

    /// The same, and the transport, if it is open.
    pub(crate) fn into_io_and_output(mut self) -> (Option<W>, Output) {
        self.output.rewind();
        (self.state.into_io(), self.output)
    }

    /// The transport, if it is open.
    pub(crate) fn into_io(self) -> Option<W> {
        self.state.into_io()
    }

    /// The transport, while it is open.
    pub(crate) fn io(&self) -> Option<&W> {
        match &self.state {
            State::Open(io) => Some(io),
            State::Closed => None,
        }
    }

    /// Whether a message would be accepted at once.
    #[inline]
    pub(crate) fn has_room(&self) -> bool {
        self.output.len() < HIGH_WATER && self.io().is_some()
    }

    /// Copies a short message behind the others, where that is all there is to do.
    #[inline(always)]
    pub(crate) fn copy(&mut self, message: &[u8]) -> bool {
        self.has_room() && self.output.push_short(message)
    }

    /// Waits until less than the high-water mark is pending.
    #[inline]
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.output.len() < HIGH_WATER {
            return Poll::Ready(self.open().map(|_| ()));
        }
        self.poll_write_below(HIGH_WATER, cx)
    }

    /// Whether only a poll can say what becomes of a message.
    pub(crate) fn must_wait(&self) -> bool {
        self.io().is_some() && !self.has_room()
    }

    /// Accepts the message that `push` puts behind the others, as the sink.
    pub(crate) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        match self.state {
            State::Open(_) => push(&mut self.output),
            State::Closed => {
                let message = self.output.another().message_of(push)?;
                self.refuse(message)
            }
        }
    }

    /// Accepts a message.
    #[inline]
    pub(crate) fn push(&mut self, message: Bytes) -> Result<(), Error> {
        match self.state {
            State::Open(_) => self.output.push(message),
            State::Closed => Err(Error::Closed { message: Some(message.into()) }),
        }
    }

    /// Gives a message back, as the sink. It is apart from the way of most messages.
    #[cold]
    fn refuse(&mut self, message: Bytes) -> Result<(), Error> {
        Err(match self.untold.take() {
            Some(source) => Error::NotWritten { message: message.into(), source },
            None => Error::Closed { message: Some(message.into()) },
        })
    }

    /// Waits until the transport has taken everything.
    pub(crate) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_write_below(1, cx))?;
        let flushed = Pin::new(self.open()?).poll_flush(cx);
        self.check(flushed)
    }

    /// Flushes, then closes the transport; ready at once when it is closed.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if matches!(self.state, State::Closed) && self.output.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_drain(cx))?;
        let closed = ready!(Pin::new(self.open()?).poll_close(cx));
        self.state = State::Closed;
        Poll::Ready(closed.map_err(Error::Write))
    }

    /// The transport. The error is why it is closed, if that was not told yet.
    fn open(&mut self) -> Result<&mut W, Error> {
        match &mut self.state {
            State::Open(io) => Ok(io),
            State::Closed => Err(self.untold.take().map_or(Error::Closed { message: None }, Error::Write)),
        }
    }

    /// Writes until less than `mark` bytes are pending.
    fn poll_write_below(&mut self, mark: usize, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while self.output.len() >= mark {
            let State::Open(io) = &mut self.state else { return Poll::Ready(self.open().map(|_| ())) };
            match ready!(poll_write(io, &self.output, cx)) {
                Ok(0) => return self.check(Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Ok(n) => self.output.advance(n),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.check(Poll::Ready(Err(error))),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Closes after an error: a transport that failed halfway has lost its place.
    fn check(&mut self, polled: Poll<io::Result<()>>) -> Poll<Result<(), Error>> {
        if let Poll::Ready(Err(_)) = polled {
            self.state = State::Closed;
        }
        polled.map_err(Error::Write)
    }

    /// Writes until there is room. What it fails with is told with the message that there is no room for.
    // A call, which keeps the way of most messages short.
    #[inline(never)]
    fn poll_write_for_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Err(Error::Write(error)) = ready!(self.poll_write_below(HIGH_WATER, cx)) {
            self.untold = Some(error);
        }
        Poll::Ready(Ok(()))
    }
}

fn poll_write<W: AsyncWrite + Unpin>(io: &mut W, output: &Output, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
    let mut chunks = output.chunks();
    let first = chunks.next().unwrap_or_default();
    match chunks.next() {
        // As mostly.
        None => Pin::new(io).poll_write(cx, first),
        Some(second) => poll_write_many(io, first, second, chunks, cx),
    }
}

/// Several pieces. It is apart, since to make room for so many costs as much as to write one.
#[inline(never)]
fn poll_write_many<'a, W: AsyncWrite + Unpin>(
    io: &mut W,
    first: &'a [u8],
    second: &'a [u8],
    others: impl Iterator<Item = &'a [u8]>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let mut slices = [IoSlice::new(&[]); MAX_SLICES];
    (slices[0], slices[1]) = (IoSlice::new(first), IoSlice::new(second));
    let mut used = 2;
    for (slice, chunk) in slices[2..].iter_mut().zip(others) {
        *slice = IoSlice::new(chunk);
        used += 1;
    }
    Pin::new(io).poll_write_vectored(cx, &slices[..used])
}

impl<W: AsyncWrite + Unpin> Sink<Bytes> for Writer<W> {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        // When it is closed, `start_send` gives the message back.
        if this.output.len() < HIGH_WATER || this.io().is_none() {
            return Poll::Ready(Ok(()));
        }
        this.poll_write_for_room(cx)
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        let this = self.get_mut();
        match this.state {
            State::Open(_) => this.output.push(message),
            State::Closed => this.refuse(message),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.get_mut().poll_drain(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.get_mut().poll_shutdown(cx)
    }
}

impl<W> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Open(_) => "open",
            State::Closed => "closed",
        };
        f.debug_struct("Writer").field("state", &state).field("pending", &self.output.len()).finish_non_exhaustive()
    }
}
