//! A connection: a `Sink` of messages and a `Stream` of the replies. No task and no lock stands between it and its
//! socket; it moves when it is polled.

use std::fmt;
use std::future::Future;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::AsyncReadExt;
use futures::sink::Sink;
use futures::stream::Stream;

use crate::config::Config;
use crate::error::Error;
use crate::events::Reason;
use crate::net::{self, Deadline};
use crate::peer::Address;
use crate::reader::Reader;
use crate::wire::{Codec, Decoder, Output};
use crate::writer::Writer;

/// One connection: a `Sink<Bytes>` of messages and a `Stream<Item = Result<Bytes, Error>>` of the replies.
///
/// # Sending
///
/// - `poll_ready` waits while 64 KiB are pending, and while the connection is being opened again.
/// - `start_send` never waits and never loses a message; one over the limit comes back in
///   [`Error::MessageTooLarge`], and the sink works on.
/// - `poll_flush` is ready when the kernel has taken everything. That the peer's host, or its program, has it is more
///   than TCP can tell.
/// - `poll_close` flushes, then ends this direction (`shutdown(Write)`); replies can still be read. It takes
///   `close_timeout` at the most.
///
/// `feed` many and `flush` once: small messages then share a system call. A peer that takes nothing for `write_timeout`
/// is given up with [`Error::Timeout`].
///
/// # When it breaks
///
/// A write error is returned once, as [`Error::Write`], and closes the connection. What was accepted and not handed whole
/// to the kernel is held, and the next write opens the connection again and sends that first, in order; a frame that
/// was cut is sent again from its start, because the receiver discards a part of a frame. A peer that has closed is
/// noticed before the next write, which then opens the connection again. If that fails, the error says why, what is held
/// stays held, and the next write tries again; [`take_unsent`](Self::take_unsent) takes the messages back.
/// A connection that was accepted cannot be opened again: its errors are final.
///
/// # Receiving
///
/// The stream ends when the peer closes between two messages. An end inside a message is [`Error::Truncated`], a header
/// that makes no sense is [`Error::Frame`], a message that takes longer than `frame_timeout` is [`Error::Timeout`]; the
/// stream ends after each of them. When the connection was opened again, polling it again yields the new replies.
///
/// # Cancel safety and dropping
///
/// Dropping a future of `next`, `feed`, `send`, `flush` or `close` loses nothing that was accepted. Dropping the
/// connection closes its socket at once, without waiting for what is pending; close it first. After a close, what the
/// peer still sends is read and discarded in the background for `close_timeout` at the most, since a socket that is
/// dropped with unread input would cut off our own last messages.
pub struct Connection {
    read: ReadHalf,
    write: WriteHalf,
}

/// The receiving half of a [`Connection`]: a `Stream<Item = Result<Bytes, Error>>`.
pub struct ReadHalf {
    shared: Arc<Shared>,
    reader: Reader<net::Stream>,
    /// Which of the connection's sockets the reader reads.
    generation: u64,
    ended: bool,
    slow: Deadline,
}

/// The sending half of a [`Connection`]: a `Sink<Bytes>`.
pub struct WriteHalf {
    shared: Arc<Shared>,
    state: WriteState,
    /// Nothing is pending since the last look at whether the peer has closed.
    at_rest: bool,
    /// How much was pending when the socket took no more.
    stalled_at: usize,
    stalled: Deadline,
    closing: Deadline,
}

enum WriteState {
    Open(Writer<net::Stream>),
    /// It broke; what is held.
    Down(Output),
    /// It is being opened again.
    Dialing(Output, Pin<Box<dyn Future<Output = Result<net::Stream, Error>> + Send>>),
    Closed,
}

/// What the halves have in common. Off the data path: it is locked when a socket breaks, ends or is replaced.
struct Shared {
    config: Config,
    codec: Codec,
    /// Where to dial again; `None` for a connection that was accepted.
    address: Option<Address>,
    socket: Mutex<Socket>,
    on_end: Option<OnEnd>,
}

/// Told once, when both halves are gone, how it ended.
pub(crate) type OnEnd = Box<dyn Fn(Reason) + Send + Sync>;

struct Socket {
    stream: net::Stream,
    /// How often it has been opened again.
    generation: u64,
    /// How it ended.
    end: Option<Reason>,
    half_closed: bool,
}

impl Connection {
    /// Connects to `address`: `host:port`, a `SocketAddr`, or Go's `:port` for this machine.
    ///
    /// A name is resolved, and each of its addresses tried, within `dial_timeout`. The errors are [`Error::Config`],
    /// [`Error::Dial`] and [`Error::DialTimeout`]. Dropping the future gives the attempt up.
    pub async fn dial(address: impl Into<Address>, config: Config) -> Result<Self, Error> {
        let (address, codec) = (address.into(), config.codec()?);
        let stream = net::dial(&address, &config).await?;
        Ok(Self::open(stream, config, codec, Some(address), None))
    }

    /// The connection of a socket that a listener accepted.
    pub(crate) fn accepted(stream: net::Stream, config: Config, codec: Codec, on_end: OnEnd) -> Self {
        Self::open(stream, config, codec, None, Some(on_end))
    }

    fn open(
        stream: net::Stream,
        config: Config,
        codec: Codec,
        address: Option<Address>,
        on_end: Option<OnEnd>,
    ) -> Self {
        let reader = Reader::with(stream.clone(), Decoder::with(codec));
        let writer = Writer::with(stream.clone(), Output::new(codec));
        let socket = Mutex::new(Socket { stream, generation: 0, end: None, half_closed: false });
        let shared = Arc::new(Shared { config, codec, address, socket, on_end });
        let read = ReadHalf { shared: shared.clone(), reader, generation: 0, ended: false, slow: Deadline::default() };
        let write = WriteHalf {
            shared,
            state: WriteState::Open(writer),
            at_rest: true,
            stalled_at: 0,
            stalled: Deadline::default(),
            closing: Deadline::default(),
        };
        Self { read, write }
    }

    /// The remote end of the socket. The error is the system's, when the connection is gone.
    pub fn peer_addr(&self) -> std::io::Result<SocketAddr> {
        self.write.shared.socket().stream.peer_addr()
    }

    /// This end of the socket. The error is the system's, when the connection is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.write.shared.socket().stream.local_addr()
    }

    /// Takes it apart, for a task that receives and one that sends. They share no lock on the way of the messages. The
    /// socket closes with the last of them.
    pub fn split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }

    /// See [`WriteHalf::take_unsent`].
    pub fn take_unsent(&mut self) -> Vec<Bytes> {
        self.write.take_unsent()
    }
}

impl WriteHalf {
    /// After an error: takes the messages that were accepted and not handed whole to the kernel, the oldest first, so
    /// that the next write does not send them. While the connection is open it has none to give back.
    pub fn take_unsent(&mut self) -> Vec<Bytes> {
        match &mut self.state {
            WriteState::Down(output) | WriteState::Dialing(output, _) => output.take_messages(),
            WriteState::Open(_) | WriteState::Closed => Vec::new(),
        }
    }

    /// Waits until there is a socket to write to.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Writer<net::Stream>, Error>> {
        if self.at_rest {
            self.at_rest = false;
            if self.shared.address.is_some() && self.is_closed_by_peer() {
                self.lose(Reason::Closed);
            }
        }
        loop {
            match &mut self.state {
                WriteState::Open(_) => break,
                WriteState::Closed => return Poll::Ready(Err(Error::Closed { message: None })),
                WriteState::Down(output) => {
                    let Some(address) = self.shared.address.clone() else {
                        return Poll::Ready(Err(Error::Closed { message: None }));
                    };
                    let output = mem::replace(output, Output::new(self.shared.codec));
                    let config = self.shared.config.clone();
                    let dial = async move { net::dial(&address, &config).await };
                    self.state = WriteState::Dialing(output, Box::pin(dial));
                }
                WriteState::Dialing(output, dial) => {
                    let dialed = ready!(dial.as_mut().poll(cx));
                    let output = mem::replace(output, Output::new(self.shared.codec));
                    match dialed {
                        Ok(stream) => {
                            self.shared.socket().replace(stream.clone());
                            self.state = WriteState::Open(Writer::with(stream, output));
                        }
                        Err(error) => {
                            self.state = WriteState::Down(output);
                            return Poll::Ready(Err(error));
                        }
                    }
                }
            }
        }
        match &mut self.state {
            WriteState::Open(writer) => Poll::Ready(Ok(writer)),
            _ => unreachable!("the loop above ends with an open writer"),
        }
    }

    fn is_closed_by_peer(&self) -> bool {
        let WriteState::Open(writer) = &self.state else { return false };
        self.shared.socket().end.is_some() || writer.io().is_none_or(net::Stream::is_closed_by_peer)
    }

    /// Gives the socket up, and holds what it did not take.
    fn lose(&mut self, reason: Reason) {
        if let WriteState::Open(writer) = mem::replace(&mut self.state, WriteState::Closed) {
            self.state = WriteState::Down(writer.into_output());
        }
        let mut socket = self.shared.socket();
        socket.stream.shut_down();
        socket.end.get_or_insert(reason);
    }

    /// What a wait for the socket comes to: it may take too long, and it may fail.
    fn settle(&mut self, polled: Poll<Result<(), Error>>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let error = match polled {
            Poll::Ready(Ok(())) => {
                self.stalled.clear();
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Err(error)) => error,
            Poll::Pending => {
                let pending = match &self.state {
                    WriteState::Open(writer) => writer.output().len(),
                    _ => return Poll::Pending,
                };
                if mem::replace(&mut self.stalled_at, pending) != pending {
                    self.stalled.clear();
                }
                let after = ready!(self.stalled.poll(self.shared.config.write_timeout, cx));
                Error::Timeout { what: "write_timeout", after }
            }
        };
        self.lose(Reason::from(&error));
        Poll::Ready(Err(error))
    }
}

impl Sink<Bytes> for WriteHalf {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        let polled = ready!(this.poll_open(cx))?.poll_room(cx);
        if let Poll::Ready(Ok(())) = polled {
            return polled;
        }
        this.settle(polled, cx)
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        match &mut self.get_mut().state {
            WriteState::Open(writer) => writer.push(message),
            WriteState::Down(output) | WriteState::Dialing(output, _) => output.push(message),
            WriteState::Closed => Err(Error::Closed { message: Some(message.into()) }),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        match &this.state {
            // Nothing to write is no reason to open anything.
            WriteState::Open(writer) if writer.output().is_empty() => return Poll::Ready(Ok(())),
            WriteState::Down(output) if output.is_empty() => return Poll::Ready(Ok(())),
            WriteState::Closed => return Poll::Ready(Ok(())),
            _ => {}
        }
        let polled = ready!(this.poll_open(cx))?.poll_drain(cx);
        if let Poll::Ready(Ok(())) = polled {
            this.at_rest = true;
        }
        this.settle(polled, cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let flushed = self.as_mut().poll_flush(cx);
        let this = self.get_mut();
        if flushed.is_pending() {
            let after = ready!(this.closing.poll(this.shared.config.close_timeout, cx));
            this.lose(Reason::Stopped);
            return Poll::Ready(Err(Error::Timeout { what: "close_timeout", after }));
        }
        this.closing.clear();
        ready!(flushed)?;
        if let WriteState::Open(writer) = &mut this.state {
            ready!(writer.poll_shutdown(cx))?;
            this.shared.socket().half_closed = true;
        }
        this.state = WriteState::Closed;
        Poll::Ready(Ok(()))
    }
}

impl Stream for ReadHalf {
    type Item = Result<Bytes, Error>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        match this.reader.next_buffered() {
            Some(message) => Poll::Ready(Some(Ok(message))),
            None => this.poll_received(cx),
        }
    }
}

impl ReadHalf {
    fn poll_received(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        loop {
            if self.ended && !self.follow() {
                return Poll::Ready(None);
            }
            let error = match self.reader.poll_message(cx) {
                Poll::Ready(Some(Ok(message))) => {
                    self.slow.clear();
                    return Poll::Ready(Some(Ok(message)));
                }
                Poll::Ready(Some(Err(error))) => error,
                Poll::Ready(None) => {
                    self.end(Reason::Closed);
                    continue;
                }
                Poll::Pending if self.reader.is_mid_frame() => {
                    let after = ready!(self.slow.poll(self.shared.config.frame_timeout, cx));
                    Error::Timeout { what: "frame_timeout", after }
                }
                Poll::Pending => return Poll::Pending,
            };
            self.end(Reason::from(&error));
            return Poll::Ready(Some(Err(error)));
        }
    }

    fn end(&mut self, reason: Reason) {
        self.ended = true;
        self.slow.clear();
        let mut socket = self.shared.socket();
        if socket.generation == self.generation {
            // A stream that has lost its place is of no use in either direction; one that ended can still be written.
            if !matches!(reason, Reason::Closed) {
                socket.stream.shut_down();
            }
            socket.end.get_or_insert(reason);
        }
    }

    /// Goes on with the socket that the sending half has opened since, if it has.
    fn follow(&mut self) -> bool {
        let socket = self.shared.socket();
        if socket.generation == self.generation {
            return false;
        }
        self.generation = socket.generation;
        self.reader = Reader::with(socket.stream.clone(), Decoder::with(self.shared.codec));
        self.ended = false;
        true
    }
}

impl Socket {
    fn replace(&mut self, stream: net::Stream) {
        *self = Self { stream, generation: self.generation + 1, end: None, half_closed: false };
    }
}

impl Shared {
    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let limit = self.config.close_timeout;
        let socket = self.socket.get_mut().unwrap_or_else(PoisonError::into_inner);
        if socket.half_closed && socket.end.is_none() {
            let mut stream = socket.stream.clone();
            net::spawn(async move {
                net::within(limit, discard(&mut stream)).await;
            })
            .detach();
        }
        if let Some(on_end) = &self.on_end {
            on_end(socket.end.take().unwrap_or(Reason::Stopped));
        }
    }
}

/// Reads and forgets what still comes.
pub(crate) async fn discard(stream: &mut net::Stream) {
    let mut buf = [0; 1024];
    while let Ok(1..) = stream.read(&mut buf).await {}
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

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl fmt::Debug for WriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (state, held) = match &self.state {
            WriteState::Open(writer) => ("open", writer.output().held()),
            WriteState::Down(output) => ("down", output.held()),
            WriteState::Dialing(output, _) => ("dialing", output.held()),
            WriteState::Closed => ("closed", 0),
        };
        f.debug_struct("WriteHalf").field("state", &state).field("held", &held).finish_non_exhaustive()
    }
}
