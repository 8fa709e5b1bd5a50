//! The receiving half of a connection.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::Stream;

use super::socket::Shared;
use crate::deadline::Deadline;
use crate::endpoint::Endpoint;
use crate::error::{Error, Limit};
use crate::framed::{Messages, Reader};
use crate::identity::Identity;
use crate::observe::Reason;
use crate::peer::Peer;
use crate::transport;
use crate::wire::{Decoder, Frames};

/// The receiving half of a [`Connection`](crate::Connection): a `Stream<Item = Result<Bytes, Error>>`.
pub struct ReadHalf {
    reader: Reader<transport::Stream>,
    /// Which of the connection's sockets the reader reads.
    generation: u64,
    ended: bool,
    slow: Deadline,
    /// The last to be dropped: it tells that the socket is closed.
    shared: Arc<Shared>,
}

impl ReadHalf {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (stream, generation) = (shared.socket().stream.clone(), 0);
        let reader = Reader::with(stream, Decoder::with(shared.codec));
        Self { reader, generation, ended: false, slow: Deadline::new(&shared.config.runtime), shared }
    }

    /// See [`Connection::peer`](crate::Connection::peer).
    pub fn peer(&self) -> Option<Peer> {
        self.shared.peer()
    }

    /// See [`Connection::peer_addr`](crate::Connection::peer_addr).
    pub fn peer_addr(&self) -> io::Result<Endpoint> {
        self.shared.stream().peer_addr()
    }

    /// See [`Connection::local_addr`](crate::Connection::local_addr).
    pub fn local_addr(&self) -> io::Result<Endpoint> {
        self.shared.stream().local_addr()
    }

    /// See [`Connection::identity`](crate::Connection::identity).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.shared.stream().identity()
    }

    /// Waits for the next messages, all of one read together: see [`Messages`]. `None` at the end.
    ///
    /// It goes together with the stream, in turn: what that has not yielded of a read is what comes first. The errors and the
    /// end are those of the stream. Dropping the future loses nothing.
    pub fn next_batch(&mut self) -> impl Future<Output = Option<Result<Messages, Error>>> + Send + Unpin {
        poll_fn(|cx| {
            if self.reader.frames().is_empty() && !ready!(self.poll_frames(cx))? {
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(Messages::new(self.reader.take_frames()))))
        })
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
            // Whoever dialed may wait for a reply as long as they like.
            self.slow.clear();
            return Poll::Pending;
        };
        self.slow.poll(limit, &self.shared.config, 0, cx)
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

impl Stream for ReadHalf {
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

impl fmt::Debug for ReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadHalf").field("ended", &self.ended).finish_non_exhaustive()
    }
}
