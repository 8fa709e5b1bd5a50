//! The sending half of a connection without a session: what is written, what is held while there is no socket, and opening one
//! again.

use std::fmt;
use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::sink::Sink;

use super::socket::{Origin, Shared};
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::foreign;
use crate::framed::{HIGH_WATER, Writer};
use crate::link::{Down, Progress, Retries};
use crate::observe::Reason;
use crate::sync::Lock;
use crate::transport;
use crate::wire::Output;

/// That of a connection without a session.
pub(crate) struct Plain {
    state: WriteState,
    /// Under a lock that is never taken, because the program's delays are not `Sync`.
    retries: Lock<Retries>,
    stalled: Deadline,
    closing: Deadline,
    /// The last to be dropped: it tells that the socket is closed.
    shared: Arc<Shared>,
}

/// What is done with an open writer.
type Write = fn(&mut Writer<transport::Stream>, &mut Context<'_>) -> Poll<Result<(), Error>>;

enum WriteState {
    Open(Open),
    /// It broke; what is held.
    Down(Output, Then),
    Closed,
}

struct Open {
    writer: Writer<transport::Stream>,
    last: Last,
}

/// How the last write has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// It left nothing: what is held has come since.
    Drained,
    /// It left some, for which there is room.
    Left,
    /// It waits, or has failed.
    Unfinished,
}

/// What is next where there is no socket.
enum Then {
    /// It is opened again; with why it is down, unless that was told.
    Reopen(Down<Option<Error>>),
    /// This is told first, with the message that there was no room for, or by the next flush.
    Tell(Error),
}

impl Plain {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let writer = Writer::with(shared.socket().stream.clone(), Output::new(shared.codec));
        let runtime = &shared.config.runtime;
        let retries = Retries::new(shared.config.backoff(), None, runtime.now(), runtime.random());
        Self {
            retries: Lock::new(retries),
            state: WriteState::Open(Open { writer, last: Last::Drained }),
            stalled: Deadline::new(&shared.config.runtime),
            closing: Deadline::new(&shared.config.runtime),
            shared,
        }
    }

    pub(super) fn take_unsent(&mut self) -> Vec<Bytes> {
        match &mut self.state {
            WriteState::Down(output, _) => output.take_messages(),
            WriteState::Open(_) | WriteState::Closed => Vec::new(),
        }
    }

    /// The time that a close has.
    pub(super) fn closing(&mut self) -> &mut Deadline {
        &mut self.closing
    }

    /// Copies a short message behind others, as most are; `false` where it is not so simple.
    #[inline(always)]
    pub(super) fn copy(&mut self, message: &[u8]) -> bool {
        let WriteState::Open(open) = &mut self.state else { return false };
        open.writer.copy(message)
    }

    pub(super) fn try_feed(&mut self, message: &[u8]) -> Result<bool, Error> {
        match &mut self.state {
            WriteState::Open(open) if open.writer.has_room() => {
                open.writer.output_mut().push_copy(message).map(|()| true)
            }
            _ => self.try_hold(message),
        }
    }

    /// Whether nothing is pending or held.
    pub(super) fn is_empty(&self) -> bool {
        self.output().is_none_or(Output::is_empty)
    }

    /// Takes over what was accepted elsewhere, behind what it has.
    pub(super) fn append(&mut self, other: &mut Output) {
        match &mut self.state {
            WriteState::Open(open) => open.writer.output_mut().append(other),
            WriteState::Down(output, _) => output.append(other),
            WriteState::Closed => {}
        }
    }

    /// Writes all that is held, for nobody who waits: what it fails with is told by the next call that can.
    pub(super) fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let WriteState::Down(_, Then::Tell(_)) = self.state {
            return Poll::Ready(());
        }
        if let Err(error) = ready!(self.poll_drain(cx))
            && let WriteState::Down(_, then) = &mut self.state
        {
            *then = Then::Tell(error);
        }
        Poll::Ready(())
    }

    /// What this is a half of.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Waits until there is a socket to write to.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<Result<&mut Open, Error>> {
        let shared = &self.shared;
        while let WriteState::Down(output, Then::Reopen(down)) = &mut self.state
            && let Origin::Dialed { address } = &shared.origin
        {
            let retries = self.retries.get_mut();
            let stream = match ready!(down.poll_progress(retries, address, &shared.config, cx)) {
                Progress::Opened(stream) => stream,
                Progress::Due(_) | Progress::Failed => continue,
                Progress::GaveUp => {
                    retries.start_over();
                    return Poll::Ready(Err(down.why.take().unwrap_or(Error::Closed { message: None })));
                }
            };
            match take_over(shared, stream) {
                Ok(stream) => {
                    retries.opened(shared.config.runtime.now());
                    let output = mem::replace(output, Output::new(shared.codec));
                    self.state = WriteState::Open(Open { writer: Writer::with(stream, output), last: Last::Left });
                }
                Err(error) => down.why = Some(error),
            }
        }
        Poll::Ready(match &mut self.state {
            WriteState::Open(open) => Ok(open),
            WriteState::Down(..) | WriteState::Closed => Err(Error::Closed { message: None }),
        })
    }

    /// Before a write: gives up a socket that the peer has closed, which would take what is written and lose it. To accept a
    /// message is no write, and no reason to trust the socket from then on. An error is that the peer closed in the middle
    /// of a write.
    fn wake_up(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let WriteState::Open(open) = &self.state else { return Ok(()) };
        if !self.shared.is_dialed() || !self.is_closed_by_peer(&open.writer) {
            return Ok(());
        }
        if open.last != Last::Unfinished {
            // The socket is not asked: what it has to say, it says once, and the reader may wait for that.
            self.lose(Reason::Closed, Some(Error::Write(io::ErrorKind::BrokenPipe.into())));
            return Ok(());
        }
        let late = self.poll_patience(cx);
        let error = match late {
            Poll::Ready(error) => error,
            Poll::Pending => why_closed(&self.shared.stream()),
        };
        self.fail(error)
    }

    /// How long the peer may take nothing.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let WriteState::Open(open) = &self.state else { return Poll::Pending };
        self.stalled.poll(Limit::WriteTimeout, &self.shared.config, open.writer.output().taken(), cx)
    }

    fn is_closed_by_peer(&self, writer: &Writer<transport::Stream>) -> bool {
        self.shared.socket().end.is_some() || writer.io().is_none_or(transport::Stream::is_closed_by_peer)
    }

    /// Writes, and, if it is to be opened again without a word, goes on with the next socket when one breaks.
    fn poll_write(&mut self, cx: &mut Context<'_>, write: Write) -> Poll<Result<(), Error>> {
        loop {
            let open = ready!(self.poll_open(cx))?;
            let polled = write(&mut open.writer, cx);
            // Also after a write that waits: it may go on much later, if its future was dropped.
            open.last = match polled {
                Poll::Ready(Ok(())) if open.writer.output().is_empty() => Last::Drained,
                Poll::Ready(Ok(())) => Last::Left,
                _ => Last::Unfinished,
            };
            let error = match polled {
                Poll::Ready(Ok(())) => {
                    self.stalled.clear();
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => error,
                Poll::Pending => ready!(self.poll_patience(cx)),
            };
            self.fail(error)?;
        }
    }

    /// Writes all that is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Some(error) = self.take_untold() {
            return Poll::Ready(Err(error));
        }
        // Nothing to write is no reason to open anything.
        if self.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.wake_up(cx)?;
        self.poll_write(cx, Writer::poll_drain)
    }

    /// Ends the direction of an open socket, to which nothing is left to write.
    fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let WriteState::Open(open) = &mut self.state {
            ready!(open.writer.poll_shutdown(cx))?;
            self.shared.socket().half_closed = true;
        }
        Poll::Ready(Ok(()))
    }

    /// What is pending or held, unless it is closed.
    fn output(&self) -> Option<&Output> {
        match &self.state {
            WriteState::Open(open) => Some(open.writer.output()),
            WriteState::Down(output, _) => Some(output),
            WriteState::Closed => None,
        }
    }

    fn has_room_while_down(&self) -> bool {
        let mark = self.shared.config.room_while_down().unwrap_or(HIGH_WATER);
        matches!(&self.state, WriteState::Down(output, _) if self.shared.is_dialed() && output.len() < mark)
    }

    /// Accepts the message that `push` puts behind the others.
    #[inline]
    pub(crate) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        match &mut self.state {
            WriteState::Open(open) if open.writer.io().is_some() => push(open.writer.output_mut()),
            _ => {
                let message = Output::new(self.shared.codec).message_of(push)?;
                self.hold(message)
            }
        }
    }

    /// As [`hold`](Self::hold), of a copy, where no poll is needed before.
    #[cold]
    fn try_hold(&mut self, message: &[u8]) -> Result<bool, Error> {
        if self.must_wait() {
            return Ok(false);
        }
        self.hold(Bytes::copy_from_slice(message)).map(|()| true)
    }

    /// Whether only a poll can say what becomes of a message.
    pub(crate) fn must_wait(&self) -> bool {
        match &self.state {
            WriteState::Open(open) => !open.writer.has_room(),
            WriteState::Down(_, Then::Reopen(_)) => self.shared.is_dialed() && !self.has_room_while_down(),
            // It is accepted nowhere, or there is something to tell first.
            WriteState::Down(_, Then::Tell(_)) | WriteState::Closed => false,
        }
    }

    /// What is to be told before anything else.
    fn take_untold(&mut self) -> Option<Error> {
        let WriteState::Down(_, then @ Then::Tell(_)) = &mut self.state else { return None };
        match mem::replace(then, Then::Reopen(Down::new(None))) {
            Then::Tell(error) => Some(error),
            Then::Reopen(_) => None,
        }
    }

    /// Waits for room where the way of most messages ends: the socket takes no more, or there is none. What it fails with
    /// is told by `start_send`, which has the message.
    #[cold]
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &self.state {
            WriteState::Open(_) => {}
            WriteState::Down(_, Then::Reopen(_)) if self.shared.is_dialed() => {}
            // There is no socket, and will be none, or there is something to tell first.
            WriteState::Down(..) | WriteState::Closed => return Poll::Ready(Ok(())),
        }
        let polled = match self.wake_up(cx) {
            // Without a backoff there is one attempt, and it is the flush that makes it.
            Ok(()) if self.has_room_while_down() && !self.shared.reconnects() => return Poll::Ready(Ok(())),
            Ok(()) => self.poll_write(cx, Writer::poll_room),
            Err(error) => Poll::Ready(Err(error)),
        };
        let error = match polled {
            Poll::Ready(Err(error)) => error,
            // What comes meanwhile is held.
            Poll::Pending if self.has_room_while_down() => return Poll::Ready(Ok(())),
            polled => return polled,
        };
        let WriteState::Down(_, then) = &mut self.state else { return Poll::Ready(Err(error)) };
        *then = Then::Tell(error);
        Poll::Ready(Ok(()))
    }

    /// Accepts a message that no socket waits for, or gives it back. It is apart from the way of most messages, which is a
    /// branch then, and not a table of jumps.
    #[cold]
    fn hold(&mut self, message: Bytes) -> Result<(), Error> {
        if let Some(error) = self.take_untold() {
            let (address, source) = (self.shared.address(), Arc::new(error));
            return Err(Error::NotSent { address, message: Some(message.into()), source });
        }
        match &mut self.state {
            WriteState::Open(open) => open.writer.push(message),
            WriteState::Down(output, _) if self.shared.is_dialed() => output.push(message),
            WriteState::Down(..) | WriteState::Closed => Err(Error::Closed { message: Some(message.into()) }),
        }
    }

    /// The socket failed. The error is told, unless it is to be opened again without a word.
    fn fail(&mut self, error: Error) -> Result<(), Error> {
        let reason = Reason::of(&error);
        let (why, told) = if self.shared.reconnects() { (Some(error), Ok(())) } else { (None, Err(error)) };
        self.lose(reason, why);
        told
    }

    /// Gives the socket up, or the attempt to open one, and holds what it did not take. `why` is what is told of the socket if
    /// none can be opened.
    fn lose(&mut self, reason: Reason, why: Option<Error>) {
        let retries = self.retries.get_mut();
        retries.broke(self.shared.config.runtime.now());
        self.stalled.clear();
        self.state = match mem::replace(&mut self.state, WriteState::Closed) {
            WriteState::Open(Open { writer, last }) => {
                let output = writer.into_output();
                // Perhaps it broke while nothing was held, though that shows only now.
                if output.is_empty() || last == Last::Drained {
                    retries.rests();
                }
                WriteState::Down(output, Then::Reopen(Down::new(why)))
            }
            WriteState::Down(output, Then::Reopen(mut down)) => {
                down.stop();
                WriteState::Down(output, Then::Reopen(down))
            }
            other => other,
        };
        let mut socket = self.shared.socket();
        socket.stream.shut_down();
        socket.end.get_or_insert(reason);
    }
}

/// Goes on with a socket that was opened. The peer may have closed it again before somebody asked: then it is as good as none,
/// but for what can be read.
fn take_over(shared: &Shared, stream: transport::Stream) -> Result<transport::Stream, Error> {
    let is_closed = stream.is_closed_by_peer();
    let replaced = {
        let mut socket = shared.socket();
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

/// What there is to say of a peer that has closed before it took what is to be written.
fn why_closed(stream: &transport::Stream) -> Error {
    Error::Write(stream.take_error().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
}

impl Sink<Bytes> for Plain {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        match &this.state {
            WriteState::Open(open) if open.writer.has_room() => Poll::Ready(Ok(())),
            _ => this.poll_room(cx),
        }
    }

    #[inline]
    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        let this = self.get_mut();
        match &mut this.state {
            WriteState::Open(open) => open.writer.push(message),
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
        let closed = match this.poll_drain(cx) {
            Poll::Ready(Ok(())) => this.poll_half_close(cx),
            flushed => flushed,
        };
        if closed.is_pending() {
            let error = ready!(this.closing.poll(Limit::CloseTimeout, &this.shared.config, 0, cx));
            this.lose(Reason::Stopped, None);
            return Poll::Ready(Err(error));
        }
        this.closing.clear();
        ready!(closed)?;
        this.state = WriteState::Closed;
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            WriteState::Open(_) => "open",
            WriteState::Down(..) => "down",
            WriteState::Closed => "closed",
        };
        let held = self.output().map_or(0, Output::held);
        f.debug_struct("WriteHalf").field("state", &state).field("held", &held).finish_non_exhaustive()
    }
}
