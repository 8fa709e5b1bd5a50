//! The sending half of a connection: what is written, what is held while there is no socket, and opening one again.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::sink::{Sink, SinkExt};

use super::socket::{Origin, Shared};
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::foreign;
use crate::framed::{HIGH_WATER, Writer};
use crate::link::Retries;
use crate::observe::Reason;
use crate::peer::Peer;
use crate::sync::Lock;
use crate::transport;
use crate::wire::Output;

/// The sending half of a [`Connection`](crate::Connection): a `Sink<Bytes>`.
pub struct WriteHalf {
    state: WriteState,
    /// Under a lock that is never taken, because the program's delays are not `Sync`.
    retries: Lock<Retries>,
    /// Why it broke, or could not be opened again.
    why: Option<Error>,
    /// What a wait for room failed with: it is told with the message that there is no room for.
    untold: Option<Error>,
    /// Nothing was written since the last write ended or began to wait: the peer may have closed meanwhile.
    at_rest: bool,
    /// That write waits.
    midway: bool,
    /// That write left nothing: what is held has come since.
    drained: bool,
    stalled: Deadline,
    closing: Deadline,
    /// The last to be dropped: it tells that the socket is closed.
    shared: Arc<Shared>,
}

/// What is done with an open writer.
type Write = fn(&mut Writer<transport::Stream>, &mut Context<'_>) -> Poll<Result<(), Error>>;

enum WriteState {
    Open(Writer<transport::Stream>),
    /// It broke; what is held.
    Down(Output),
    /// It is being opened again.
    Dialing(Output, Lock<Dial>),
    Closed,
}

type Dial = Pin<Box<dyn Future<Output = Result<transport::Stream, Error>> + Send>>;

impl WriteHalf {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let writer = Writer::with(shared.socket().stream.clone(), Output::new(shared.codec));
        let runtime = &shared.config.runtime;
        let retries = Retries::new(shared.config.reconnect.clone(), None, runtime.now(), runtime.random());
        Self {
            retries: Lock::new(retries),
            state: WriteState::Open(writer),
            why: None,
            untold: None,
            at_rest: true,
            midway: false,
            drained: true,
            stalled: Deadline::new(&shared.config.runtime),
            closing: Deadline::new(&shared.config.runtime),
            shared,
        }
    }

    /// After an error: takes the messages that were accepted and not handed whole to the kernel, the oldest first, so
    /// that the next write does not send them. While the connection is open it has none to give back.
    pub fn take_unsent(&mut self) -> Vec<Bytes> {
        match &mut self.state {
            WriteState::Down(output) | WriteState::Dialing(output, _) => output.take_messages(),
            WriteState::Open(_) | WriteState::Closed => Vec::new(),
        }
    }

    /// Flushes, then ends this direction, as `poll_close` does. It takes `close_timeout` at the most, and each call has all
    /// that time, whatever became of one before it.
    pub fn close(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.closing.clear();
        poll_fn(|cx| self.poll_close_unpin(cx))
    }

    /// Who has connected, if somebody has.
    pub(crate) fn peer(&self) -> Option<Peer> {
        match self.shared.origin {
            Origin::Accepted { peer, .. } => Some(peer),
            Origin::Dialed { .. } => None,
        }
    }

    /// The socket.
    pub(crate) fn stream(&self) -> transport::Stream {
        self.shared.socket().stream.clone()
    }

    /// Waits until there is a socket to write to.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Writer<transport::Stream>, Error>> {
        loop {
            match &mut self.state {
                WriteState::Open(_) => break,
                WriteState::Closed => return Poll::Ready(Err(Error::Closed { message: None })),
                WriteState::Down(output) => {
                    let Origin::Dialed { address } = &self.shared.origin else {
                        return Poll::Ready(Err(Error::Closed { message: None }));
                    };
                    let retries = self.retries.get_mut();
                    let delay = match retries.next(self.shared.config.runtime.now()) {
                        Ok(Some(delay)) => delay,
                        ended => {
                            retries.start_over();
                            let why = ended.err().or_else(|| self.why.take());
                            return Poll::Ready(Err(why.unwrap_or(Error::Closed { message: None })));
                        }
                    };
                    let (address, config) = (address.clone(), self.shared.config.clone());
                    let output = mem::replace(output, Output::new(self.shared.codec));
                    let dial: Dial = Box::pin(async move {
                        if !delay.is_zero() {
                            config.runtime.sleep(delay).await;
                        }
                        transport::dial(&address, &config).await
                    });
                    self.state = WriteState::Dialing(output, Lock::new(dial));
                }
                WriteState::Dialing(output, dial) => {
                    let dialed = ready!(dial.get_mut().as_mut().poll(cx));
                    let output = mem::replace(output, Output::new(self.shared.codec));
                    match dialed.and_then(|stream| self.take_over(stream)) {
                        Ok(stream) => {
                            self.retries.get_mut().opened(self.shared.config.runtime.now());
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

    /// A socket that was opened. The peer may have closed it again before somebody asked: then it is as good as none, but for
    /// what can be read.
    fn take_over(&self, stream: transport::Stream) -> Result<transport::Stream, Error> {
        let is_closed = stream.is_closed_by_peer();
        let replaced = {
            let mut socket = self.shared.socket();
            let replaced = socket.replace(stream.clone());
            socket.end = is_closed.then_some(Reason::Closed);
            replaced
        };
        let _ = foreign::dispose(replaced);
        if !is_closed {
            return Ok(stream);
        }
        stream.shut_down();
        Err(why_closed(&stream))
    }

    /// Before the first write after a rest: gives up a socket that the peer has closed, which would take what is
    /// written and lose it. To accept a message is no write, and no reason to trust the socket from then on. An error is
    /// that the peer closed in the middle of a write.
    fn wake_up(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if !mem::replace(&mut self.at_rest, false) || !self.shared.is_dialed() || !self.is_closed_by_peer() {
            return Ok(());
        }
        if !mem::take(&mut self.midway) {
            self.lose(Reason::Closed);
            if self.drained {
                // It broke while nothing was held, though that shows only now.
                self.retries.get_mut().rests();
            }
            return Ok(());
        }
        let late = self.poll_patience(cx);
        let error = match late {
            Poll::Ready(error) => error,
            Poll::Pending => why_closed(&self.stream()),
        };
        self.lose(Reason::of(&error));
        if !self.shared.reconnects() {
            return Err(error);
        }
        self.why = Some(error);
        Ok(())
    }

    /// How long the peer may take nothing.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let WriteState::Open(writer) = &self.state else { return Poll::Pending };
        self.stalled.poll(Limit::WriteTimeout, &self.shared.config, writer.output().taken(), cx)
    }

    fn is_closed_by_peer(&self) -> bool {
        let WriteState::Open(writer) = &self.state else { return false };
        self.shared.socket().end.is_some() || writer.io().is_none_or(transport::Stream::is_closed_by_peer)
    }

    /// Writes, and, if it is to be opened again without a word, goes on with the next socket when one breaks.
    fn poll_write(&mut self, cx: &mut Context<'_>, write: Write) -> Poll<Result<(), Error>> {
        loop {
            let polled = write(ready!(self.poll_open(cx))?, cx);
            // Also after a write that waits: it may go on much later, if its future was dropped.
            self.at_rest = true;
            self.midway = polled.is_pending();
            self.drained = matches!(&self.state, WriteState::Open(writer) if writer.output().is_empty());
            match self.settle(polled, cx) {
                Poll::Ready(Err(error)) if self.shared.reconnects() => self.why = Some(error),
                settled => return settled,
            }
        }
    }

    /// Writes all that is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = self.untold.take() {
            return Poll::Ready(Err(error));
        }
        match &self.state {
            // Nothing to write is no reason to open anything.
            WriteState::Open(writer) if writer.output().is_empty() => return Poll::Ready(Ok(())),
            WriteState::Down(output) | WriteState::Dialing(output, _) if output.is_empty() => {
                return Poll::Ready(Ok(()));
            }
            WriteState::Closed => return Poll::Ready(Ok(())),
            _ => {}
        }
        self.wake_up(cx)?;
        self.poll_write(cx, Writer::poll_drain)
    }

    fn has_room_while_down(&self) -> bool {
        let mark = self.shared.config.room_while_down().unwrap_or(HIGH_WATER);
        match &self.state {
            WriteState::Down(output) | WriteState::Dialing(output, _) => self.shared.is_dialed() && output.len() < mark,
            WriteState::Open(_) | WriteState::Closed => false,
        }
    }

    /// Whether there is no socket, and will be none.
    fn is_closed(&self) -> bool {
        match &self.state {
            WriteState::Open(_) => false,
            WriteState::Down(_) | WriteState::Dialing(..) => !self.shared.is_dialed(),
            WriteState::Closed => true,
        }
    }

    /// Waits for room where the way of most messages ends: the socket takes no more, or there is none. What it fails with
    /// is told by `start_send`, which has the message.
    #[cold]
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.untold.is_some() || self.is_closed() {
            return Poll::Ready(Ok(()));
        }
        let polled = match self.wake_up(cx) {
            // Without a backoff there is one attempt, and it is the flush that makes it.
            Ok(()) if self.has_room_while_down() && !self.shared.reconnects() => return Poll::Ready(Ok(())),
            Ok(()) => self.poll_write(cx, Writer::poll_room),
            Err(error) => Poll::Ready(Err(error)),
        };
        match polled {
            // What comes meanwhile is held.
            Poll::Pending if self.has_room_while_down() => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => {
                self.untold = Some(error);
                Poll::Ready(Ok(()))
            }
            polled => polled,
        }
    }

    /// Accepts a message that no socket waits for, or gives it back. It is apart from the way of most messages, which is a
    /// branch then, and not a table of jumps.
    #[cold]
    fn hold(&mut self, message: Bytes) -> Result<(), Error> {
        if let Some(error) = self.untold.take() {
            let (address, source) = (self.shared.address(), Arc::new(error));
            return Err(Error::NotSent { address, message: Some(message.into()), source });
        }
        match &mut self.state {
            WriteState::Down(output) | WriteState::Dialing(output, _) if self.shared.is_dialed() => {
                output.push(message)
            }
            WriteState::Open(writer) => writer.push(message),
            _ => Err(Error::Closed { message: Some(message.into()) }),
        }
    }

    /// Gives the socket up, and holds what it did not take.
    fn lose(&mut self, reason: Reason) {
        self.retries.get_mut().broke(self.shared.config.runtime.now());
        self.stalled.clear();
        self.midway = false;
        self.state = match mem::replace(&mut self.state, WriteState::Closed) {
            WriteState::Open(writer) => WriteState::Down(writer.into_output()),
            WriteState::Dialing(output, _) => WriteState::Down(output),
            other => other,
        };
        if let WriteState::Down(output) = &self.state
            && output.is_empty()
        {
            self.retries.get_mut().rests();
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
            Poll::Pending => ready!(self.poll_patience(cx)),
        };
        self.lose(Reason::of(&error));
        Poll::Ready(Err(error))
    }
}

/// What there is to say of a peer that has closed before it took what is to be written.
fn why_closed(stream: &transport::Stream) -> Error {
    Error::Write(stream.take_error().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
}

impl Sink<Bytes> for WriteHalf {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        match &this.state {
            WriteState::Open(writer) if writer.output().len() < HIGH_WATER && writer.io().is_some() => {
                Poll::Ready(Ok(()))
            }
            _ => this.poll_room(cx),
        }
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        let this = self.get_mut();
        match &mut this.state {
            WriteState::Open(writer) => writer.push(message),
            _ => this.hold(message),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        // A close that was dropped has no part in the next one.
        this.closing.clear();
        this.poll_drain(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        let flushed = this.poll_drain(cx);
        if flushed.is_pending() {
            let error = ready!(this.closing.poll(Limit::CloseTimeout, &this.shared.config, 0, cx));
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
