//! How the task of a link serves a connection that is up.

use std::io;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::AsyncRead;

use super::session::lost_by;
use super::task::{LinkTask, Turn, Up};
use super::{Break, Came};
use crate::error::{Error, Limit};
use crate::session::{ErrorCode, Violation};
use crate::wire::Decoder;

/// How often one poll reads replies that nobody wants before it lets other tasks run.
const READS_PER_POLL: usize = 16;

impl LinkTask {
    /// Serves the connection until there is something else to do.
    pub(super) fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, Error>> {
        match &self.up {
            Up::Down => Poll::Ready(Ok(Turn::Closed)),
            Up::Plain { .. } => self.poll_plain(cx),
            Up::Session(_) => self.poll_session(cx),
        }
    }

    fn poll_session(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, Error>> {
        let Up::Session(mut attached) = mem::replace(&mut self.up, Up::Down) else { return Poll::Pending };
        let link = self.link.clone();
        // First, so that it is called for what is closed after it has looked.
        link.outbox.set_driver(cx.waker());
        let turn = loop {
            attached.tells_expired = self.poll_buried(cx).is_ready();
            if link.outbox.is_closed() {
                link.outbox.finish_session();
            }
            if link.outbox.is_session_over() {
                // What is left is the end of the connection, behind the last words: the other end may wait for a HEARTBEAT.
                let ended = link.outbox.poll_drive(cx).map(drop);
                let ended = if ended.is_ready() { attached.stream().poll_half_close(cx).map(drop) } else { ended };
                if ended.is_pending() {
                    let stalled = self.stalled.poll(Limit::WriteTimeout, &self.config, link.outbox.progress(), cx);
                    self.up = Up::Session(attached);
                    return stalled.map(Err);
                }
                self.stalled.clear();
                break Turn::Over;
            }
            let Poll::Ready(came) = attached.poll(&link.outbox, true, cx) else {
                if link.outbox.is_session_over() {
                    continue; // The last ACK was written just now.
                }
                self.up = Up::Session(attached);
                return Poll::Pending;
            };
            match came {
                Came::Frames => {
                    let batch = attached.take();
                    match link.outbox.received(batch.messages, batch.bytes) {
                        Ok(Some(unsettled)) => self.owner.receive(batch.frames, unsettled),
                        // The next poll tells why.
                        Ok(None) => {}
                        Err(violation) => break self.violated(violation, cx),
                    }
                }
                Came::Untaken(letters) => {
                    letters.into_iter().for_each(|(messages, verdict)| self.bury(messages, verdict));
                }
                Came::Control => {
                    if let (Some(ms), Some(session)) = (link.outbox.take_retry(), &mut self.session) {
                        session.goes_away(ms);
                    }
                }
                Came::Expired => {
                    self.up = Up::Session(attached);
                    return Poll::Ready(Ok(Turn::Expired));
                }
                Came::Broke(Break::Closed) => break Turn::Closed,
                Came::Broke(Break::Error(error)) => return Poll::Ready(Err(error)),
                Came::Broke(Break::Over(code)) => break Turn::Lost(lost_by(code)),
                Came::Broke(Break::Violation(violation)) => break self.violated(violation, cx),
            }
        };
        Poll::Ready(Ok(turn))
    }

    /// The other end broke the rules: it is told, if the socket takes that, and the session is over.
    fn violated(&self, violation: Violation, cx: &mut Context<'_>) -> Turn {
        let code = violation.code().unwrap_or(ErrorCode::Malformed);
        self.link.outbox.say_error(code);
        let _ = self.link.outbox.poll_drive(cx);
        Turn::Violated(code)
    }

    fn poll_plain(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, Error>> {
        let is_free = self.poll_buried(cx).is_ready();
        self.poll_lingering(cx);
        let outbox = &self.link.outbox;
        // Asked once: of what is accepted until then, all must be written before the half-close.
        let closed = outbox.is_closed();
        let driven = match outbox.is_stalled() || closed {
            true => outbox.poll_drive(cx),
            false => Poll::Ready(Ok(())),
        };
        match driven {
            // It was found closed before it was given anything; reading tells how.
            Poll::Ready(Err(Error::Closed { .. })) => return self.poll_end(cx),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => self.stalled.clear(),
            Poll::Pending if outbox.has_expired() => {
                // If not, it is not for the peer that it waits.
                if is_free {
                    return Poll::Ready(Ok(Turn::Expired));
                }
            }
            Poll::Pending => {
                let stalled = self.stalled.poll(Limit::WriteTimeout, &self.config, outbox.progress(), cx);
                if let Poll::Ready(error) = stalled {
                    return Poll::Ready(Err(error));
                }
            }
        }
        if driven.is_ready()
            && closed
            && let Up::Plain { stream, half_closed: half_closed @ false } = &mut self.up
            && let Poll::Ready(told) = stream.poll_half_close(cx)
        {
            told.map_err(Error::Write)?;
            *half_closed = true;
        }
        self.poll_end(cx)
    }

    /// Waits for the peer to close. A manager has no stream of replies: what comes is read and forgotten, or the end might
    /// have no room to arrive.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, Error>> {
        let Up::Plain { stream, .. } = &mut self.up else { return Poll::Pending };
        for _ in 0..READS_PER_POLL {
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut [0; 1024])) {
                Ok(0) => return Poll::Ready(Ok(Turn::Closed)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // As the transport knows: the next header did not come.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    let codec = self.config.codec()?;
                    let want = Decoder::with(codec).want(&[]).unwrap_or_default();
                    return Poll::Ready(Err(Error::Truncated { got: 0, want, looks_like: None }));
                }
                Err(error) => return Poll::Ready(Err(Error::Read(error))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
