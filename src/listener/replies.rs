//! The replies of a listener: a `Sink` of messages, each to the peer that it names.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::sink::{Sink, SinkExt};

use super::member::Member;
use super::shared::Shared;
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::framed::HIGH_WATER;
use crate::observe::Event;
use crate::peer::{ById, Peer};
use crate::queue::{Place, Stage};
use crate::wire::Output;

/// From this many peers on, those that are written are forgotten before a flush.
const PRUNE_FROM: usize = 64;

/// The replying half of a [`Listener`](crate::Listener): a `Sink` of `(Peer, Bytes)`.
///
/// - `start_send` puts the message behind the others to that peer and never waits. A message over the limit comes back in
///   [`Error::MessageTooLarge`], and the sink works on. A message to a peer that is gone is dropped, with an
///   [`Event::Undelivered`](crate::Event::Undelivered): one bad peer is no reason to fail the others.
/// - `poll_ready` waits while `queue_bytes` are held for the last peer that was written to.
/// - `poll_flush` is ready when the kernel has taken everything, or its peer is gone. A peer that takes nothing holds it
///   up until `write_timeout` disconnects that peer; `feed`, and `forward`, do not wait for it. In a session, a peer that is away or
///   takes nothing holds it up until the session is over. That comes after `write_timeout`, or 30 s without one, where `queue_bytes`
///   are held for it, and after the `ttl` where it is away. A peer that takes no messages, as a manager, holds nothing up: what is
///   sent to it is undelivered.
/// - `poll_close` flushes, for `close_timeout` at the most, and then ends the sending direction of every connection.
///
/// A peer may close its sending direction and wait for replies: its connection stays open until all its messages have been
/// taken and what was replied by then is written. So a reply should be given to the sink before the next message is asked
/// for, as `forward` does; a program that answers later should use [`Listener::connections`](crate::Listener::connections).
///
/// Dropping a future loses nothing that was accepted. Dropping the sink leaves what is pending to the background.
pub struct Outgoing {
    shared: Arc<Shared>,
    /// The peer that was written to last: mostly the next one, too.
    last: Option<Arc<Member>>,
    /// Where this waits for room there.
    room: Place,
    unflushed: ById<(Arc<Member>, Place)>,
    /// With how many of them those that are written are sought out: a sink that is always fed is never flushed.
    prune_at: usize,
    closing: Deadline,
    closed: bool,
}

impl Outgoing {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.replies.store(true, Ordering::Release);
        Self {
            closing: Deadline::new(&shared.config.runtime),
            shared,
            last: None,
            room: Place::default(),
            unflushed: ById::default(),
            prune_at: PRUNE_FROM,
            closed: false,
        }
    }

    /// Flushes, then ends the sending direction of every connection, as `poll_close` does. It takes `close_timeout` at
    /// the most: then the error is [`Error::Timeout`], and what is pending is left to the background. In a session, too, it waits
    /// until all is written, not until it is acknowledged. Dropping the future loses nothing, and each call has all of that time.
    pub fn close(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        self.closing.clear();
        poll_fn(|cx| self.poll_close_unpin(cx))
    }

    /// Accepts the message that `push` makes. It has memory of its own: the queue of a peer is locked while it takes a message, and
    /// `push` calls the program's code.
    pub(crate) fn push_with(
        &mut self,
        peer: Peer,
        push: impl FnOnce(&mut Output) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let message = Output::new(self.shared.codec).message_of(push)?;
        self.start_send_unpin((peer, message))
    }

    /// The peer, unless it is gone.
    fn member(&mut self, peer: Peer) -> Option<&Arc<Member>> {
        if self.last.as_ref().is_none_or(|last| last.peer != peer) {
            let member = self.shared.member(peer)?;
            self.leave_room();
            self.last = Some(member);
        }
        self.last.as_ref()
    }

    /// Waits no more for room at the peer that was written to last.
    fn leave_room(&mut self) {
        if let Some(last) = &self.last {
            last.outbox.leave(&mut self.room);
        }
    }
}

impl Sink<(Peer, Bytes)> for Outgoing {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        match &this.last {
            // `start_send` gives the message back.
            _ if this.closed => Poll::Ready(Ok(())),
            Some(last) => last.outbox.poll_room(this.shared.config.queue_bytes, &mut this.room, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }

    fn start_send(self: Pin<&mut Self>, (peer, message): (Peer, Bytes)) -> Result<(), Error> {
        let this = self.get_mut();
        if this.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        let sent = match this.member(peer) {
            // What is worth a system call goes now; the peer's own task goes on if the socket takes no more.
            Some(member) => member.outbox.push(message, HIGH_WATER).map(|ticket| (member.clone(), ticket)),
            None => Err(Error::Closed { message: None }),
        };
        match sent {
            Ok((member, ticket)) => {
                let (_, place) = this.unflushed.entry(peer.id()).or_insert_with(|| (member, Place::default()));
                place.stage = Stage::Accepted(ticket);
                if this.unflushed.len() >= this.prune_at {
                    this.unflushed.retain(|_, (member, place)| !member.outbox.is_over(place));
                    this.prune_at = PRUNE_FROM.max(2 * this.unflushed.len());
                }
                Ok(())
            }
            Err(Error::Closed { .. }) => {
                this.shared.reporter.report(Event::Undelivered { peer, messages: 1 });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // A peer that is gone has been reported by its own task.
        let this = self.get_mut();
        this.unflushed.retain(|_, (member, place)| member.outbox.poll_written(place, cx).is_pending());
        if this.unflushed.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let flushed = self.as_mut().poll_flush(cx);
        let this = self.get_mut();
        let result = match flushed {
            Poll::Ready(result) => result,
            Poll::Pending => Err(ready!(this.closing.poll(Limit::CloseTimeout, &this.shared.config, 0, cx))),
        };
        if !this.closed {
            this.closed = true;
            this.end_replies();
            this.shared.half_close_all();
        }
        Poll::Ready(result)
    }
}

impl Outgoing {
    /// No more replies: peers that have closed their direction are not kept for them.
    fn end_replies(&self) {
        self.shared.replies.store(false, Ordering::Release);
        self.shared.call_all();
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.leave_room();
        for (member, place) in self.unflushed.values_mut() {
            member.outbox.leave(place);
            member.outbox.leave_to_driver();
        }
        self.end_replies();
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("unflushed", &self.unflushed.len()).finish_non_exhaustive()
    }
}
