//! The halves of a connection. They share no lock on the way of the messages; where one of them breaks or replaces the
//! socket, the other finds out.

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::AsyncReadExt;
use futures::sink::Sink;
use futures::stream::Stream;

use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::events::Reason;
use crate::net;
use crate::peer::{Address, Peer};
use crate::reader::Reader;
use crate::retries::Retries;
use crate::wire::{Codec, Decoder, Output};
use crate::writer::{HIGH_WATER, Writer};

/// The receiving half of a [`Connection`](crate::Connection): a `Stream<Item = Result<Bytes, Error>>`.
pub struct ReadHalf {
    shared: Arc<Shared>,
    reader: Reader<net::Stream>,
    /// Which of the connection's sockets the reader reads.
    generation: u64,
    ended: bool,
    slow: Deadline,
}

/// The sending half of a [`Connection`](crate::Connection): a `Sink<Bytes>`.
pub struct WriteHalf {
    shared: Arc<Shared>,
    state: WriteState,
    retries: Retries,
    /// Why it broke, or could not be opened again.
    why: Option<Error>,
    /// The socket has taken what it was given: the peer may have closed before it is given more.
    at_rest: bool,
    stalled: Deadline,
    closing: Deadline,
}

/// What is done with an open writer.
type Write = fn(&mut Writer<net::Stream>, &mut Context<'_>) -> Poll<Result<(), Error>>;

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
    origin: Origin,
    socket: Mutex<Socket>,
}

/// How the connection came about.
pub(crate) enum Origin {
    /// It can be dialed again.
    Dialed { address: Address },
    /// It cannot.
    Accepted { peer: Peer, on_end: OnEnd },
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

/// Both halves of a connection.
pub(crate) fn open(stream: net::Stream, config: Config, codec: Codec, origin: Origin) -> (ReadHalf, WriteHalf) {
    let reader = Reader::with(stream.clone(), Decoder::with(codec));
    let writer = Writer::with(stream.clone(), Output::new(codec));
    let socket = Mutex::new(Socket { stream, generation: 0, end: None, half_closed: false });
    let shared = Arc::new(Shared { config, codec, origin, socket });
    let read = ReadHalf { shared: shared.clone(), reader, generation: 0, ended: false, slow: Deadline::default() };
    let retries = Retries::new(shared.config.reconnect.clone());
    let write = WriteHalf {
        shared,
        retries,
        why: None,
        state: WriteState::Open(writer),
        at_rest: true,
        stalled: Deadline::default(),
        closing: Deadline::default(),
    };
    (read, write)
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

    /// Who has connected, if somebody has.
    pub(crate) fn peer(&self) -> Option<Peer> {
        match self.shared.origin {
            Origin::Accepted { peer, .. } => Some(peer),
            Origin::Dialed { .. } => None,
        }
    }

    /// The socket.
    pub(crate) fn stream(&self) -> net::Stream {
        self.shared.socket().stream.clone()
    }

    /// Waits until there is a socket to write to.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Writer<net::Stream>, Error>> {
        loop {
            match &mut self.state {
                WriteState::Open(_) => break,
                WriteState::Closed => return Poll::Ready(Err(Error::Closed { message: None })),
                WriteState::Down(output) => {
                    let Origin::Dialed { address } = &self.shared.origin else {
                        return Poll::Ready(Err(Error::Closed { message: None }));
                    };
                    let Some(delay) = self.retries.next() else {
                        self.retries.start_over();
                        return Poll::Ready(Err(self.why.take().unwrap_or(Error::Closed { message: None })));
                    };
                    let (address, config) = (address.clone(), self.shared.config.clone());
                    let output = mem::replace(output, Output::new(self.shared.codec));
                    let dial = async move {
                        if !delay.is_zero() {
                            net::sleep(delay).await;
                        }
                        net::dial(&address, &config).await
                    };
                    self.state = WriteState::Dialing(output, Box::pin(dial));
                }
                WriteState::Dialing(output, dial) => {
                    let dialed = ready!(dial.as_mut().poll(cx));
                    let output = mem::replace(output, Output::new(self.shared.codec));
                    match dialed {
                        Ok(stream) => {
                            self.retries.opened();
                            self.shared.socket().replace(stream.clone());
                            self.state = WriteState::Open(Writer::with(stream, output));
                            self.at_rest = true;
                        }
                        Err(error) => {
                            self.state = WriteState::Down(output);
                            self.why = Some(error);
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

    /// Before the first write after a rest: gives up a socket that the peer has closed, which would take what is
    /// written and lose it. To accept a message is no write, and no reason to trust the socket from then on.
    fn wake_up(&mut self) {
        if mem::replace(&mut self.at_rest, false) && self.shared.is_dialed() && self.is_closed_by_peer() {
            self.lose(Reason::Closed);
        }
    }

    fn is_closed_by_peer(&self) -> bool {
        let WriteState::Open(writer) = &self.state else { return false };
        self.shared.socket().end.is_some() || writer.io().is_none_or(net::Stream::is_closed_by_peer)
    }

    /// Writes, and, if it is to be opened again without a word, goes on with the next socket when one breaks.
    fn poll_write(&mut self, cx: &mut Context<'_>, write: Write) -> Poll<Result<(), Error>> {
        loop {
            let polled = write(ready!(self.poll_open(cx))?, cx);
            if polled.is_ready() {
                self.at_rest = true;
            }
            match self.settle(polled, cx) {
                Poll::Ready(Err(error)) if self.shared.reconnects() => self.why = Some(error),
                settled => return settled,
            }
        }
    }

    fn has_room_while_down(&self) -> bool {
        match &self.state {
            WriteState::Down(output) | WriteState::Dialing(output, _) => {
                self.shared.reconnects() && output.len() < self.shared.config.queue_bytes
            }
            WriteState::Open(_) | WriteState::Closed => false,
        }
    }

    /// Gives the socket up, and holds what it did not take.
    fn lose(&mut self, reason: Reason) {
        self.retries.broke();
        self.stalled.clear();
        self.state = match mem::replace(&mut self.state, WriteState::Closed) {
            WriteState::Open(writer) => WriteState::Down(writer.into_output()),
            WriteState::Dialing(output, _) => WriteState::Down(output),
            other => other,
        };
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
                let taken = match &self.state {
                    WriteState::Open(writer) => writer.output().taken(),
                    _ => return Poll::Pending,
                };
                let limit = ("write_timeout", self.shared.config.write_timeout);
                ready!(self.stalled.poll(limit, taken, cx))
            }
        };
        self.lose(Reason::from(&error));
        Poll::Ready(Err(error))
    }
}

impl WriteState {
    /// Apart from the way of most messages, to an open writer, which is a branch then and not a table of jumps.
    #[cold]
    fn push(&mut self, message: Bytes) -> Result<(), Error> {
        match self {
            Self::Open(writer) => writer.push(message),
            Self::Down(output) | Self::Dialing(output, _) => output.push(message),
            Self::Closed => Err(Error::Closed { message: Some(message.into()) }),
        }
    }
}

impl Sink<Bytes> for WriteHalf {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        match &this.state {
            WriteState::Open(writer) if writer.output().len() < HIGH_WATER && writer.io().is_some() => {
                return Poll::Ready(Ok(()));
            }
            WriteState::Open(_) => this.wake_up(),
            _ => {}
        }
        match this.poll_write(cx, Writer::poll_room) {
            // What comes meanwhile is held.
            Poll::Pending if this.has_room_while_down() => Poll::Ready(Ok(())),
            polled => polled,
        }
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        match &mut self.get_mut().state {
            WriteState::Open(writer) => writer.push(message),
            other => other.push(message),
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
        this.wake_up();
        let flushed = this.poll_write(cx, Writer::poll_drain);
        if flushed.is_ready() {
            // A close that was dropped has no part in the next one.
            this.closing.clear();
        }
        flushed
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let flushed = self.as_mut().poll_flush(cx);
        let this = self.get_mut();
        if flushed.is_pending() {
            let limit = ("close_timeout", this.shared.config.close_timeout);
            let error = ready!(this.closing.poll(limit, 0, cx));
            this.lose(Reason::Stopped);
            return Poll::Ready(Err(error));
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
                Poll::Pending if self.reader.waits_for_peer() => ready!(self.slow.poll(self.patience(), 0, cx)),
                Poll::Pending => return Poll::Pending,
            };
            self.end(Reason::from(&error));
            return Poll::Ready(Some(Err(error)));
        }
    }

    /// What limits how long the peer may take for what comes next.
    fn patience(&self) -> (&'static str, Option<Duration>) {
        let config = &self.shared.config;
        if self.reader.is_mid_frame() {
            ("frame_timeout", config.frame_timeout)
        } else if !self.shared.is_dialed() {
            ("idle_timeout", config.idle_timeout)
        } else {
            // Whoever dialed may wait for a reply as long as they like.
            ("", None)
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
    fn is_dialed(&self) -> bool {
        matches!(self.origin, Origin::Dialed { .. })
    }

    /// Whether it is opened again without a word.
    fn reconnects(&self) -> bool {
        self.is_dialed() && self.config.reconnect.is_some()
    }

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
        if let Origin::Accepted { on_end, .. } = &self.origin {
            on_end(socket.end.take().unwrap_or(Reason::Stopped));
        }
    }
}

/// Reads and forgets what still comes.
pub(crate) async fn discard(stream: &mut net::Stream) {
    let mut buf = [0; 1024];
    while let Ok(1..) = stream.read(&mut buf).await {}
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
