//! What becomes of the messages of one session: its task delivers them, while connections come and go.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;

use super::decoding::{Decoding, Undecoded};
use super::member::Member;
use super::peers::Running;
use super::received::{Arrival, Received};
use super::shared::{Choice, Handling};
use crate::connection::{self, Connection, Inlet, Returned};
use crate::error::{BoxError, Error, Loss};
use crate::foreign::{self, PanicSource};
use crate::framed::{self, CHUNK};
use crate::queue::{ITEM, Outbox, Sender, Share, Unsettled, Verdict};
use crate::session::{Settled, frame_len};
use crate::sync::Given;
use crate::transport::Stream;
use crate::wire::Frames;

/// How long callbacks are called in a row: as long as an ACK waits. They may take any time, and until then nobody is told what they
/// have taken, a connection that comes back waits, and so does whatever else there is to do for the session.
const RUNS_FOR: Duration = Duration::from_millis(1);

pub(super) struct SessionDelivery {
    running: Running,
    member: Arc<Member>,
    inbox: Sender<Arrival>,
    choice: Given<Choice>,
    /// `None` until the program has chosen.
    delivery: Option<Handling>,
    /// Where what comes goes, if the program has a connection for the session.
    inlet: Option<Arc<Inlet>>,
    /// Where what it has sent and that comes back goes then.
    returned: Arc<Returned>,
    /// What was counted as received, and is not delivered.
    stash: VecDeque<Stashed>,
    /// Of the inbox, for what is read next.
    share: Option<Share>,
    /// A callback's future, which is never dropped before its end: it may have done its work.
    call: Option<Call>,
    /// A message did not decode, and that is the end.
    undecoded: bool,
}

/// A batch that was received.
struct Stashed {
    frames: Frames,
    memory: usize,
    unsettled: Unsettled,
    /// The messages that a callback has taken and the session was not told of, and the bytes of their frames.
    taken: (u64, u64),
}

/// A message in the hands of an asynchronous callback.
struct Call {
    message: Unsettled,
    called: BoxFuture<'static, Result<Result<(), BoxError>, foreign::Panic>>,
}

/// Why nothing more is delivered.
pub(super) enum Undelivered {
    /// A callback, or the decoder, panicked.
    Panicked,
    /// A message did not decode, and that is the end.
    Undecoded,
    /// The listener is gone.
    Stopped,
}

impl SessionDelivery {
    pub(super) fn new(running: Running, member: Arc<Member>, inbox: Sender<Arrival>) -> Self {
        Self {
            choice: running.choice(),
            running,
            member,
            inbox,
            delivery: None,
            inlet: None,
            returned: Arc::default(),
            stash: VecDeque::new(),
            share: None,
            call: None,
            undecoded: false,
        }
    }

    /// Whether the program has a connection for the session, or may still choose that.
    pub(super) fn may_be_handed_over(&self) -> bool {
        self.inlet.is_some() || self.delivery.is_none()
    }

    /// Waits until all that has come is delivered, and there is room for what a read brings.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Undelivered>> {
        ready!(self.poll(cx))?;
        if let Some(Handling::Inbox | Handling::Decoded(_)) = self.delivery
            && self.share.is_none()
        {
            self.share = Some(ready!(self.inbox.poll_reserve(CHUNK + ITEM, cx)));
        }
        Poll::Ready(Ok(()))
    }

    /// Lets go of the room, while nothing comes that could need it.
    pub(super) fn release(&mut self) {
        self.share = None;
    }

    /// Nothing is read for now: waits for no room, and holds none. Or sessions without a connection would hold the inbox, or the
    /// line in front of it, between them.
    pub(super) fn stand_back(&mut self) {
        self.release();
        self.inbox.leave();
    }

    /// Takes what was received. It is delivered by the next [`poll`](Self::poll).
    pub(super) fn put(&mut self, batch: framed::Batch, unsettled: Unsettled) {
        let framed::Batch { frames, memory, .. } = batch;
        self.stash.push_back(Stashed { frames, memory, unsettled, taken: (0, 0) });
    }

    /// Delivers what has come: into the inbox, or to the callback. Ready when there is nothing left.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Undelivered>> {
        let handling = ready!(self.poll_choice(cx))?;
        let is_callback = matches!(handling, Handling::Callback(_) | Handling::AsyncCallback(_));
        let mut began = None;
        loop {
            if let Some(call) = &mut self.call {
                let called = ready!(call.called.as_mut().poll(cx));
                let message = self.call.take().map(|call| call.message);
                message.map_or(Ok(()), |message| self.called(message, called))?;
            }
            let Some(stashed) = self.stash.front_mut() else {
                self.end_stream();
                return Poll::Ready(Ok(()));
            };
            if is_callback {
                let now = self.running.config.runtime.now();
                if now.saturating_duration_since(*began.get_or_insert(now)) >= RUNS_FOR {
                    stashed.settle_taken(&self.member.outbox);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            match &handling {
                Handling::Inbox => {
                    let room = stashed.memory + ITEM;
                    let mut share = ready!(self.poll_share(room, cx));
                    share.shrink(room);
                    if let Some(stashed) = self.stash.pop_front() {
                        // Without a consumer nothing is taken, and the task ends.
                        let _ = self.inbox.send(Arrival::Batch(stashed.received(&self.member)), share);
                    }
                }
                Handling::Decoded(decoding) => ready!(self.poll_decode(decoding, cx))?,
                Handling::Connections => {
                    if let (Some(stashed), Some(inlet)) = (self.stash.pop_front(), &self.inlet) {
                        inlet.push(connection::Batch { frames: stashed.frames, unsettled: stashed.unsettled });
                    }
                }
                Handling::Callback(callback) => {
                    let (peer, outbox) = (self.member.peer, &self.member.outbox);
                    let Some(message) = stashed.frames.next() else {
                        stashed.settle_taken(outbox);
                        self.stash.pop_front();
                        continue;
                    };
                    let called = foreign::call(|| callback.get()(peer, &message));
                    let bytes = frame_len(message.len());
                    if let Ok(Ok(())) = called {
                        stashed.taken.0 += 1;
                        stashed.taken.1 += bytes;
                    } else {
                        stashed.settle_taken(outbox);
                        let unsettled = stashed.unsettled.split_to(1, bytes);
                        self.called(unsettled, called)?;
                    }
                }
                Handling::AsyncCallback(callback) => {
                    let (callback, peer, running) = (callback.clone(), self.member.peer, self.running.clone());
                    let Some((message, unsettled)) = stashed.next() else {
                        self.stash.pop_front();
                        continue;
                    };
                    // The call may panic as well as its future.
                    let call = async move { callback.get()(peer, message).await };
                    let called = foreign::run(call, move |panic| running.call_panicked(peer, panic)).boxed();
                    self.call = Some(Call { message: unsettled, called });
                }
            }
        }
    }

    /// Where the program has a connection for the session: the peer sends no more, and all that came is there.
    fn end_stream(&self) {
        if let Some(inlet) = &self.inlet
            && self.member.outbox.is_receiving_closed()
        {
            inlet.end();
        }
    }

    /// Waits for a share of the inbox of so many bytes, or more.
    fn poll_share(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<Share> {
        match self.share.take() {
            Some(share) if bytes <= share.bytes() => Poll::Ready(share),
            // Nothing is held while a larger share is waited for, or two could wait for each other.
            too_small => {
                drop(too_small);
                self.inbox.poll_reserve(bytes, cx)
            }
        }
    }

    /// Waits until the program has chosen what becomes of the messages.
    fn poll_choice(&mut self, cx: &mut Context<'_>) -> Poll<Result<Handling, Undelivered>> {
        if let Some(delivery) = &self.delivery {
            return Poll::Ready(Ok(delivery.clone()));
        }
        let choice = ready!(self.choice.poll_unpin(cx));
        let Some(delivery) = choice.lock().clone() else { return Poll::Ready(Err(Undelivered::Stopped)) };
        if let Handling::Connections = delivery {
            let share = ready!(self.inbox.poll_reserve(ITEM, cx));
            self.hand_over(share);
        }
        self.delivery = Some(delivery.clone());
        Poll::Ready(Ok(delivery))
    }

    /// Gives the session to the program, which receives and sends by itself.
    fn hand_over(&mut self, share: Share) {
        let inlet = Arc::new(Inlet::default());
        let (shared, peer) = (&self.running, self.member.peer);
        let (line, returned) = (self.member.clone(), self.returned.clone());
        let (config, codec) = (shared.config.clone(), shared.codec);
        let connection = Connection::of_session(line, inlet.clone(), returned, config, codec, peer);
        let _ = self.inbox.send(Arrival::Connection(Box::new(connection)), share);
        self.inlet = Some(inlet);
    }

    /// Decodes the first batch, or the first piece of it.
    fn poll_decode(&mut self, decoding: &Decoding, cx: &mut Context<'_>) -> Poll<Result<(), Undelivered>> {
        if self.undecoded {
            return self.poll_taken();
        }
        let Some(most) = self.stash.front().map(|stashed| decoding.most_memory(stashed.frames.len())) else {
            return Poll::Ready(Ok(()));
        };
        let mut share = ready!(self.poll_share(most, cx));
        let Some(Stashed { frames, unsettled, .. }) = self.stash.front_mut() else { return Poll::Ready(Ok(())) };
        let (peer, before) = (self.member.peer, frames.len());
        let piece = decoding.decode(frames, |error| self.running.decode_failed(peer, error));
        let mut decoded = unsettled.split_to(piece.messages, (before - frames.len()) as u64);
        piece.except.into_iter().for_each(|(index, how)| decoded.except(index, how));
        let mut received = Received::new(&self.member, Frames::new(frames.decoder(), Bytes::new()));
        received.unsettled = Some(decoded);
        received.values = piece.values;
        self.undecoded = matches!(piece.end, Err(Undecoded::Failed));
        // What is left in front, even if it is empty, is looked at again.
        if frames.is_empty() && !self.undecoded {
            self.stash.pop_front();
        }
        if received.values.is_some() {
            share.shrink(piece.memory + ITEM);
            // Without a consumer they are dropped here, which is code of the program.
            let sent = foreign::call(|| drop(self.inbox.send(Arrival::Batch(received), share)));
            if let Err(panic) = sent {
                self.running.panicked(Some(peer), PanicSource::Drop, panic);
                return Poll::Ready(Err(Undelivered::Stopped));
            }
        } else {
            received.settle();
            drop(received);
        }
        match piece.end {
            Ok(()) => Poll::Ready(Ok(())),
            Err(Undecoded::Failed) => self.poll_taken(),
            Err(Undecoded::Panicked(panic)) => {
                self.running.call_panicked(peer, panic);
                Poll::Ready(Err(Undelivered::Panicked))
            }
        }
    }

    /// Waits until the program has taken the values in front of what did not decode: if the session ended before, they would be
    /// in doubt for the peer, which may send them again. The last of its batches calls the task.
    fn poll_taken(&self) -> Poll<Result<(), Undelivered>> {
        if !self.member.is_taken() {
            return Poll::Pending;
        }
        Poll::Ready(Err(Undelivered::Undecoded))
    }

    /// The callback has come to its end with this message.
    fn called(
        &self,
        message: Unsettled,
        called: Result<Result<(), BoxError>, foreign::Panic>,
    ) -> Result<(), Undelivered> {
        let (peer, outbox) = (self.member.peer, &self.member.outbox);
        match called {
            Ok(Ok(())) => message.settle_in_task(outbox, Settled::Taken),
            Ok(Err(error)) => {
                self.running.call_failed(peer, error);
                message.settle_in_task(outbox, Settled::Refused);
            }
            Err(panic) => {
                self.running.call_panicked(peer, panic);
                message.settle_in_task(outbox, Settled::Dropped);
                return Err(Undelivered::Panicked);
            }
        }
        Ok(())
    }

    /// Replies that the peer's program did not take.
    pub(super) fn count_untaken(&self, letters: Vec<(Vec<Bytes>, Verdict)>) {
        for (messages, verdict) in letters {
            match self.inlet {
                Some(_) => self.returned.put(messages, &verdict),
                None => self.running.undelivered(&self.member, messages),
            }
        }
    }

    /// Waits for the end of a callback that is in the middle of its work. Nothing more comes.
    pub(super) async fn finish(&mut self) {
        if let Some(call) = self.call.take() {
            let _ = call.called.await;
        }
    }

    /// The session is over: where the program has a connection for it that waits for more, it is told.
    pub(super) fn lost(&self, in_doubt: usize, why: Loss) {
        if let Some(inlet) = &self.inlet {
            // Where the peer has closed before, the program has all that it sent.
            inlet.fail(Error::SessionLost { in_doubt, why });
            inlet.end();
        }
    }
}

impl Drop for SessionDelivery {
    fn drop(&mut self) {
        // However its task ended: the program must not wait for what will not come.
        if let Some(inlet) = &self.inlet {
            inlet.end();
        }
    }
}

impl Stashed {
    fn received(self, member: &Arc<Member>) -> Received {
        let mut received = Received::new(member, self.frames);
        received.unsettled = Some(self.unsettled);
        received
    }

    /// Tells the session what a callback has taken.
    fn settle_taken(&mut self, outbox: &Outbox<Stream>) {
        let (messages, bytes) = mem::take(&mut self.taken);
        if messages > 0 {
            self.unsettled.split_to(messages, bytes).settle_in_task(outbox, Settled::Taken);
        }
    }

    /// The next message.
    fn next(&mut self) -> Option<(Bytes, Unsettled)> {
        let message = self.frames.next()?;
        let unsettled = self.unsettled.split_to(1, frame_len(message.len()));
        Some((message, unsettled))
    }
}
