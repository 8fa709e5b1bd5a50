//! The receiving half of a connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::Stream;

use super::socket::Shared;
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::framed::{Messages, Reader};
use crate::observe::Reason;
use crate::transport;
use crate::wire::{Decoder, Frames};

/// That of a connection without a session.
pub(crate) struct Plain {
    reader: Reader<transport::Stream>,
    /// Which of the connection's sockets the reader reads.
    generation: u64,
    ended: bool,
    slow: Deadline,
    /// The last to be dropped: it tells that the socket is closed.
    shared: Arc<Shared>,
}

impl Plain {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (stream, generation) = (shared.socket().stream.clone(), 0);
        let reader = Reader::with(stream, Decoder::with(shared.codec));
        Self { reader, generation, ended: false, slow: Deadline::new(&shared.config.runtime), shared }
    }

    /// What this is a half of.
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Messages, Error>>> {
        if self.reader.frames().is_empty() && !ready!(self.poll_frames(cx))? {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Messages::new(self.reader.take_frames()))))
    }

    #[inline]
    pub(crate) fn frames(&mut self) -> &mut Frames {
        self.reader.frames()
    }

    /// Waits for more frames; `false` at the end. It comes once for each batch.
    #[inline(never)]
    pub(crate) fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        loop {
            if self.ended && !self.follow() {
                return Poll::Ready(Ok(false));
            }
            let error = match self.reader.poll_frames(cx) {
                Poll::Ready(Ok(true)) => {
                    self.slow.clear();
                    return Poll::Ready(Ok(true));
                }
                Poll::Ready(Ok(false)) => {
                    self.end(Reason::Closed);
                    continue;
                }
                Poll::Ready(Err(error)) => error,
                Poll::Pending if self.reader.waits_for_peer() => ready!(self.poll_patience(cx)),
                Poll::Pending => return Poll::Pending,
            };
            self.end(Reason::of(&error));
            return Poll::Ready(Err(error));
        }
    }

    /// What limits how long the peer may take for what comes next.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let limit = if self.reader.is_mid_frame() {
            Limit::FrameTimeout
        } else if !self.shared.is_dialed() {
            Limit::IdleTimeout
        } else {
            // The end that dialed may wait for a reply as long as it likes.
            self.slow.clear();
            return Poll::Pending;
        };
        let has_unread = || self.shared.socket().stream.has_unread();
        self.slow.poll_peer(limit, &self.shared.config, 0, has_unread, cx)
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
        let stream = {
            let socket = self.shared.socket();
            if socket.generation == self.generation {
                return false;
            }
            self.generation = socket.generation;
            socket.stream.clone()
        };
        // Without the lock: the last of the old socket goes here, and with it perhaps a waker that it has kept.
        self.reader = Reader::with(stream, Decoder::with(self.shared.codec));
        self.ended = false;
        true
    }
}

impl Stream for Plain {
    type Item = Result<Bytes, Error>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let frames = this.reader.frames();
            if let Some(len) = frames.find() {
                return Poll::Ready(Some(Ok(frames.cut(len))));
            }
            if !ready!(this.poll_frames(cx))? {
                return Poll::Ready(None);
            }
        }
    }
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("ended", &self.ended).finish_non_exhaustive()
    }
}
