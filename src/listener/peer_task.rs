//! The task of one accepted connection: reads what comes, delivers it, and drives the replies that the socket does not
//! take at once.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt;

use super::member::Member;
use super::peers::{Running, Seat};
use super::read_on::PeerReader;
use super::received::Arrival;
use super::shared::{AsyncCallback, Callback, Handling};
use crate::connection::{Connection, OnEnd};
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::foreign::{self, Panic, PanicSource};
use crate::framed::{CHUNK, HIGH_WATER, Reader};
use crate::observe::{Event, Reason};
use crate::queue::{ITEM, Sender, Share};
use crate::wire::Decoder;
use crate::{runtime, transport};

/// After how many batches in a row a task lets others run: a firehose must not keep a thread for itself.
const BATCHES_IN_A_ROW: u32 = 4;
/// For how long a reader that is lent to the consumer may bring nothing, unless a time limit is shorter: up to that much later
/// is noticed what becomes of a peer whose messages nobody asks for.
const LOAN: Duration = Duration::from_millis(50);

/// Runs until the connection ends, and tells how it ended, whatever panics in it. The inbox ends with the last task that
/// holds a sender, whatever it is used for.
pub(crate) fn run(
    seat: Seat,
    member: Arc<Member>,
    stream: transport::Stream,
    inbox: Sender<Arrival>,
) -> impl Future<Output = ()> + Send {
    let (running, leaving) = (Running::clone(&seat), member.clone());
    let (slow, stalled) = (Deadline::new(&seat.config.runtime), Deadline::new(&seat.config.runtime));
    let task = PeerTask { stream, member, slow, stalled, half_closed: false, seat };
    // The callback tells by itself if it panics when the task is dropped.
    foreign::run(serve(task, inbox), drop).map(move |ended| match ended {
        Ok(Some(Ended { seat, reason, inbox: _inbox })) => seat.leave(&leaving, reason),
        Ok(None) => {}
        Err(panic) => running.failed(&leaving, PanicSource::Task, panic),
    })
}

/// A connection of which the socket is closed, as far as its task had it. It is told before the inbox may end.
struct Ended {
    seat: Seat,
    reason: Reason,
    inbox: Sender<Arrival>,
}

/// Returns how the connection ended; `None` if it has another owner.
///
/// Most connections are idle, and wait for a message: the size of this future is what they cost. On the heap is what few of them do,
/// or do once. And it is no `async fn`, which has room twice for what it is given: where that comes, and where it is used.
#[allow(clippy::manual_async_fn)] // As said above.
fn serve(mut task: PeerTask, mut inbox: Sender<Arrival>) -> impl Future<Output = Option<Ended>> + Send {
    async move {
        // Without a choice the listener is gone, and its tasks with it.
        let delivery = task.seat.chosen().await?;
        if let Handling::Connections = delivery {
            hand_over(task, inbox).boxed().await;
            return None;
        }
        let reader = Box::new(Reader::with(task.stream.clone(), Decoder::with(task.seat.plain_codec)));
        let end = match delivery {
            Handling::Callback(callback) => task.call(reader, callback.get()).await,
            Handling::AsyncCallback(callback) => task.call_async(reader, callback.get()).boxed().await,
            Handling::Decoded(decoding) => task.decode(reader, &mut inbox, &decoding).boxed().await,
            Handling::Inbox | Handling::Connections => task.fill(reader, &mut inbox).await,
        };
        // It may have waited for room when it ended.
        inbox.leave();
        let reason = task.finish(end).boxed().await;
        Some(Ended { seat: task.close(), reason, inbox })
    }
}

/// Gives the connection to the program, which reads and writes it by itself.
async fn hand_over(task: PeerTask, mut inbox: Sender<Arrival>) {
    let PeerTask { seat, member, stream, .. } = task;
    let share = poll_fn(|cx| inbox.poll_reserve(ITEM, cx)).await;
    let (config, codec, peer) = (seat.config.clone(), seat.plain_codec, member.peer);
    seat.hand_over(&member).await;
    let on_end = OnEnd::new(move |reason| seat.leave(&member, reason));
    let connection = Connection::accepted(stream, config, codec, peer, on_end);
    // If there is no consumer any more, the connection ends with the item.
    let _ = inbox.send(Arrival::Connection(Box::new(connection)), share);
}

pub(crate) struct PeerTask {
    stream: transport::Stream,
    pub(crate) member: Arc<Member>,
    /// How long the peer takes for what it is doing now.
    slow: Deadline,
    /// How long it has taken nothing of the replies to it.
    stalled: Deadline,
    half_closed: bool,
    /// The last to be dropped, as the place is free when the socket is closed.
    pub(crate) seat: Seat,
}

/// What became of a connection, when not a clean end.
pub(crate) enum End {
    Error(Error),
    /// The callback did.
    Panicked(Panic),
    /// A message did not decode, and that is the end.
    Undecoded,
    /// The consumer is gone.
    Stopped,
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What there is to read.
pub(crate) enum Readable {
    /// Whole frames, and the share of the inbox that was reserved for them.
    Frames(Option<Share>),
    CleanEnd,
}

impl PeerTask {
    /// The callback on each message where it lies.
    async fn call(&mut self, mut reader: PeerReader, callback: &Callback) -> Result<(), End> {
        let mut in_a_row = 0;
        loop {
            if let Readable::CleanEnd = poll_fn(|cx| self.poll_readable(&mut reader, None, cx)).await? {
                return Ok(());
            }
            self.visit(&mut reader, callback)?;
            in_a_row = rest(in_a_row).await;
        }
    }

    fn visit(&self, reader: &mut PeerReader, callback: &Callback) -> Result<(), End> {
        let (member, seat) = (&self.member, &self.seat);
        let visit = |message: &[u8]| {
            // Not from a variable: the peer would be copied twice for each message.
            if let Err(error) = callback(member.peer, message) {
                seat.call_failed(member.peer, error);
            }
        };
        let visited = foreign::call(|| reader.visit(visit));
        // The messages of the read were received, also where a callback has panicked on one of them.
        let (messages, bytes) = visited.as_ref().map_or_else(|_| reader.visit(|_| ()), |counts| *counts);
        seat.count(messages, bytes);
        visited.map(drop).map_err(End::Panicked)
    }

    /// The callback's future for each message, one after the other.
    async fn call_async(&mut self, mut reader: PeerReader, callback: &AsyncCallback) -> Result<(), End> {
        let mut in_a_row = 0;
        while let Readable::Frames(_) = poll_fn(|cx| self.poll_readable(&mut reader, None, cx)).await? {
            let (peer, seat) = (self.member.peer, &self.seat);
            let batch = reader.take();
            seat.count(batch.messages, batch.bytes);
            for message in batch.frames {
                // The call may panic as well as its future, and that when it is dropped with the task.
                let call = async { callback(peer, message).await };
                let called = foreign::run(call, |panic| seat.call_panicked(peer, panic)).await;
                if let Err(error) = called.map_err(End::Panicked)? {
                    seat.call_failed(peer, error);
                }
            }
            in_a_row = rest(in_a_row).await;
        }
        Ok(())
    }

    /// Waits until whole frames are in the reader's buffer. With an inbox, their share of it is reserved before anything
    /// is read.
    pub(crate) fn poll_readable(
        &mut self,
        reader: &mut Reader<transport::Stream>,
        inbox: Option<&mut Sender<Arrival>>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Readable, Error>> {
        self.poll_replies(cx)?;
        self.half_close_if_closing(cx)?;
        let share = match inbox.map(|inbox| inbox.poll_reserve(CHUNK + ITEM, cx)) {
            Some(Poll::Pending) => {
                // It is the consumer, not the peer, that makes us wait.
                self.slow.clear();
                return Poll::Pending;
            }
            Some(Poll::Ready(share)) => Some(share),
            None => None,
        };
        if self.member.outbox.made().is_some_and(|outbox| !outbox.drives_room(HIGH_WATER)) {
            // A peer that does not take its replies gets no more of them.
            self.slow.clear();
            return Poll::Pending;
        }
        let readable = match reader.poll_fill(cx)? {
            Poll::Ready(true) => Readable::Frames(share),
            Poll::Ready(false) => Readable::CleanEnd,
            Poll::Pending => {
                drop(share);
                return if reader.waits_for_peer() { self.poll_patience(reader, cx).map(Err) } else { Poll::Pending };
            }
        };
        self.slow.clear();
        Poll::Ready(Ok(readable))
    }

    /// What limits how long the peer may take for what comes next.
    fn patience(&self, reader: &Reader<transport::Stream>) -> Limit {
        if self.seat.is_closing() {
            Limit::CloseTimeout
        } else if reader.is_mid_frame() {
            Limit::FrameTimeout
        } else {
            Limit::IdleTimeout
        }
    }

    fn poll_patience(&mut self, reader: &Reader<transport::Stream>, cx: &mut Context<'_>) -> Poll<Error> {
        let limit = self.patience(reader);
        // Of a peer in the middle of a frame while this end closes, only silence counts.
        let progress = if self.seat.is_closing() { reader.received() as u64 } else { 0 };
        let has_unread = || self.stream.has_unread();
        let error = ready!(self.slow.poll_peer(limit, &self.seat.config, progress, has_unread, cx));
        if limit == Limit::CloseTimeout && reader.is_mid_frame() {
            self.seat.cut(limit);
        }
        Poll::Ready(error)
    }

    /// Tells the peer that this end closes, as soon as nothing is on its way to it.
    fn half_close_if_closing(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if !self.closes_sending() || self.half_closed || self.may_be_answered() {
            return Ok(());
        }
        match self.poll_half_close(cx) {
            Poll::Ready(closed) => closed,
            Poll::Pending => Ok(()),
        }
    }

    /// Writes all replies, and ends the sending direction.
    fn poll_half_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.half_closed {
            return Poll::Ready(Ok(()));
        }
        // One limit for both: a peer that takes all replies, and then not the end, has no more time.
        let driven = match self.member.outbox.made() {
            Some(outbox) => outbox.poll_drive(cx)?,
            None => Poll::Ready(()),
        };
        let is_closed = match driven {
            Poll::Ready(()) => {
                self.member.outbox.close();
                // A peer that is gone has no use for it.
                self.stream.poll_half_close(cx).is_ready()
            }
            Poll::Pending => false,
        };
        if !is_closed {
            return self.poll_stalled(cx).map(Err);
        }
        self.stalled.clear();
        self.half_closed = true;
        Poll::Ready(Ok(()))
    }

    /// Whether this end has nothing more to send: it closes, or the sink of replies has.
    fn closes_sending(&self) -> bool {
        self.seat.is_closing() || self.member.half_closes.load(Ordering::Acquire)
    }

    /// Whether the program has messages of this peer, and a way to reply.
    fn may_be_answered(&self) -> bool {
        self.seat.replies.load(Ordering::Acquire) && !self.member.is_taken()
    }

    /// Waits for a share of the inbox, without neglecting the rest.
    pub(crate) fn poll_share(
        &mut self,
        inbox: &mut Sender<Arrival>,
        bytes: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Share, Error>> {
        self.poll_replies(cx)?;
        self.half_close_if_closing(cx)?;
        inbox.poll_reserve(bytes, cx).map(Ok)
    }

    /// Waits for the reader that was lent, without neglecting the rest.
    pub(crate) fn poll_taken_back(&mut self, cx: &mut Context<'_>) -> Poll<Result<PeerReader, Error>> {
        self.poll_replies(cx)?;
        self.half_close_if_closing(cx)?;
        let loan = &self.member.loan;
        let Some(since) = loan.quiet_since() else { return Poll::Pending };
        let mut back = if self.seat.is_closing() { loan.revoke() } else { loan.take_back() };
        if back.is_none() {
            // Nobody may ask for the next message, or none may come: time limits must be kept, and the end noticed.
            let config = &self.seat.config;
            let limit = [config.frame_timeout, config.idle_timeout].into_iter().flatten().fold(LOAN, Duration::min);
            self.slow.start(None, since);
            ready!(self.slow.poll_for(limit, cx));
            back = loan.revoke();
        }
        if let Some(Ok(reader)) = &back
            && !self.seat.is_closing()
        {
            self.slow.start(Some(self.patience(reader)), since);
        }
        back.map_or(Poll::Pending, Poll::Ready)
    }

    /// Writes the replies that the socket did not take at once, as it allows. An error ends the peer.
    fn poll_replies(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let outbox = self.member.outbox.set_driver(cx.waker());
        if outbox.is_none_or(|outbox| !outbox.is_stalled()) {
            return Ok(());
        }
        match self.poll_drive(cx) {
            Poll::Ready(driven) => driven,
            Poll::Pending => Ok(()),
        }
    }

    /// Writes all replies. A peer that takes nothing for too long is an error.
    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let outbox = &self.member.outbox;
        if let Poll::Ready(driven) = outbox.poll_drive(cx) {
            self.stalled.clear();
            return Poll::Ready(driven);
        }
        self.poll_stalled(cx).map(Err)
    }

    /// What limits how long the peer may take nothing of what is written to it.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let limit = if self.seat.is_closing() { Limit::CloseTimeout } else { Limit::WriteTimeout };
        self.stalled.poll(limit, &self.seat.config, self.member.outbox.progress(), cx)
    }

    /// The peer sends no more; the replies to what it sent still go out. Returns why it ended.
    async fn finish(&mut self, end: Result<(), End>) -> Reason {
        let end = match end {
            Ok(()) => poll_fn(|cx| self.poll_answered(cx)).await.map_err(End::Error),
            failed => failed,
        };
        let (seat, peer) = (&self.seat, self.member.peer);
        seat.end_replies(&self.member).await;
        let is_cut = self.member.is_cut.load(Ordering::Acquire);
        let end = match end {
            // It did not end by itself.
            Ok(()) | Err(End::Error(Error::Truncated { .. } | Error::Read(_) | Error::Write(_))) if is_cut => {
                Err(End::Error(seat.config.ran_out(Limit::DrainTimeout)))
            }
            end => end,
        };
        match end {
            Ok(()) => Reason::Closed,
            Err(End::Stopped) => Reason::Stopped,
            Err(End::Undecoded) => Reason::DecodeFailed,
            Err(End::Panicked(panic)) => {
                seat.call_panicked(peer, panic);
                Reason::CallbackPanicked
            }
            Err(End::Error(error)) => {
                let reason = Reason::of(&error);
                if let Error::Frame(error) = error {
                    seat.reporter.report(Event::Rejected { peer, error });
                }
                reason
            }
        }
    }

    /// Closes the socket, as far as it is here.
    fn close(self) -> Seat {
        self.seat
    }

    /// Waits until all that the peer sent was taken, and writes what was replied, to the end.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.member.outbox.set_driver(cx.waker());
        if self.may_be_answered() {
            self.poll_replies(cx)?;
            return Poll::Pending;
        }
        self.poll_half_close(cx)
    }
}

/// Lets other tasks run, now and then.
pub(crate) async fn rest(in_a_row: u32) -> u32 {
    if in_a_row < BATCHES_IN_A_ROW {
        return in_a_row + 1;
    }
    runtime::yield_now().await;
    0
}
