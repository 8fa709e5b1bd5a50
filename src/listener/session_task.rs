//! The task of one acknowledged session: it outlives the connections of the session, and has one at a time.

use std::future::{Future, poll_fn};
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;

use super::member::Member;
use super::peers::Running;
use super::received::Arrival;
use super::seating::{Called, Offer};
use super::session_delivery::{SessionDelivery, Undelivered};
use super::sessions::{BUSY, SessionTable};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::{Limit, Loss};
use crate::foreign::{self, PanicSource};
use crate::link::{Attached, Break, Came, lost_by};
use crate::observe::{Event, Reason};
use crate::queue::Sender;
use crate::session::{Control, ErrorCode, Side, Status, Violation};
use crate::transport::Stream;

/// How long a peer may take nothing of the replies to it, of which there are as many as there may be, where `write_timeout` is off:
/// it must not hold up those to others.
const SLOW: Duration = Duration::from_secs(30);
/// After how many batches in a row a task lets others run: a firehose must not keep a thread for itself.
const BATCHES_IN_A_ROW: u32 = 4;

/// Runs until the session is over, and tells how it ended, whatever panics in it.
pub(crate) fn run(
    running: Running,
    table: Arc<SessionTable>,
    member: Arc<Member>,
    first: Offer,
    inbox: Sender<Arrival>,
) -> impl Future<Output = ()> + Send {
    let (failing, of) = (running.clone(), member.clone());
    let task = async move {
        let mut task = SessionTask {
            slow: Deadline::new(&running.config.runtime),
            stalled: Deadline::new(&running.config.runtime),
            delivery: SessionDelivery::new(running.clone(), member.clone(), inbox),
            running,
            member,
            table,
            goes_away: false,
            buried: false,
        };
        let reason = task.serve(first).await;
        task.finish(reason).await;
    };
    foreign::run(task, drop).map(move |ended| {
        if let Err(panic) = ended {
            failing.failed(&of, PanicSource::Task, panic);
        }
    })
}

struct SessionTask {
    running: Running,
    member: Arc<Member>,
    table: Arc<SessionTable>,
    delivery: SessionDelivery,
    /// How long the peer takes for what it is doing while this end closes.
    slow: Deadline,
    /// How long it has taken nothing of the replies to it, of which there are as many as there may be.
    stalled: Deadline,
    /// It was told on this connection that this end closes.
    goes_away: bool,
    /// The table remembers its end.
    buried: bool,
}

/// What follows.
enum Next {
    Offer(Box<Offer>),
    /// Without a connection.
    Wait,
    Over(Reason),
}

/// How a connection of the session ended.
enum End {
    Fenced(Box<Offer>),
    Broke(Break),
    /// A callback panicked.
    Panicked,
    /// The session has lost its place.
    Lost(Reason),
    /// This end does not wait any more.
    Gone(ErrorCode, Reason),
}

impl From<Undelivered> for End {
    fn from(undelivered: Undelivered) -> Self {
        match undelivered {
            Undelivered::Panicked => Self::Panicked,
            Undelivered::Undecoded => Self::Gone(ErrorCode::Gone, Reason::DecodeFailed),
            Undelivered::Stopped => Self::Gone(ErrorCode::Gone, Reason::Stopped),
        }
    }
}

impl SessionTask {
    /// Serves one connection after the other, until the session is over.
    async fn serve(&mut self, first: Offer) -> Reason {
        let mut next = self.connected(first, true).await;
        loop {
            next = match next {
                Next::Offer(offer) => self.connected(*offer, false).await,
                Next::Wait => self.wait().await,
                Next::Over(reason) => return reason,
            };
        }
    }

    /// Goes on with this connection, to its end.
    async fn connected(&mut self, offer: Offer, is_new: bool) -> Next {
        let Offer { place, mut stream, from, hello, taken } = offer;
        drop(taken);
        self.delivery.stand_back();
        let (member, table) = (self.member.clone(), self.table.clone());
        let Some(seating) = &member.session else { return Next::Over(Reason::Stopped) };
        if !is_new && let Err(status) = table.attach(seating, &hello) {
            let refusal = table.welcome(&hello, status, Default::default()).encode();
            stream.part_in_background(refusal.to_vec(), place, &self.running.config.runtime);
            return Next::Wait;
        }
        // A dialer says nothing behind its HELLO before it has the answer.
        let resumed = match stream.has_input() {
            true => Err(Violation::Malformed),
            false => member.outbox.resume_session(&hello.positions, &hello.terms),
        };
        let (positions, untaken) = match resumed {
            Ok(resumed) => resumed,
            Err(violation) => {
                let code = violation.code().unwrap_or(ErrorCode::Position);
                let error = Control::Error(code).encode();
                stream.part_in_background(error.to_vec(), place, &self.running.config.runtime);
                return Next::Over(Reason::Session(code));
            }
        };
        self.delivery.count_untaken(untaken.letters());
        let status = if is_new { Status::New } else { Status::Resumed };
        let welcome = table.welcome(&hello, status, positions);
        let welcomed = answer(&self.running.config, &mut stream, &welcome.encode()).await;
        let goes_on = self.running.attach(&member, stream.clone());
        if !welcomed || !goes_on || !member.outbox.resume(stream.clone()) {
            member.outbox.unresume_session();
            self.running.detach(&member);
            self.detach(hello.epoch);
            return if goes_on { Next::Wait } else { Next::Over(Reason::Stopped) };
        }
        if !is_new {
            let replayed = (positions.sent - hello.positions.received) as usize;
            self.running.reporter.report(Event::Resumed { peer: member.peer, from, replayed });
        }
        self.goes_away = false;
        let (config, codec) = (&self.running.config, self.running.codec);
        let mut attached = Attached::new(stream, Side::Dialer, codec, config, &table.terms, &hello.terms);
        let end = poll_fn(|cx| self.poll_serve(&mut attached, hello.epoch, cx)).await;
        self.delivery.stand_back();
        // The last words, if there are any.
        let code = match &end {
            End::Broke(Break::Violation(violation)) => violation.code(),
            End::Gone(code, _) => Some(*code),
            End::Lost(Reason::Session(code)) => Some(*code),
            End::Lost(_) => Some(ErrorCode::Gone),
            _ => None,
        };
        let is_over = member.outbox.is_session_over();
        if let Some(code) = code {
            member.outbox.say_error(code);
            let _ = poll_fn(|cx| Poll::Ready(member.outbox.poll_drive(cx))).await;
            let stream = attached.stream();
            drop(attached);
            self.running.release(&member);
            member.outbox.lose().await;
            stream.part_in_background(Vec::new(), place, &self.running.config.runtime);
        } else {
            drop(attached);
            self.running.detach(&member);
            member.outbox.lose().await;
            // The next peer finds room.
            drop(place);
        }
        match end {
            // However it ended: the peer may have missed the last ACK.
            End::Broke(Break::Closed | Break::Error(_)) if is_over => {
                table.bury(&seating.key, hello.epoch, member.outbox.positions());
                self.buried = true;
                Next::Over(Reason::Closed)
            }
            end => self.ended(end, hello.epoch),
        }
    }

    /// What follows when a connection has ended in this way.
    fn ended(&mut self, end: End, epoch: u32) -> Next {
        let member = self.member.clone();
        let reason = match end {
            End::Fenced(offer) => {
                self.detach(epoch);
                return Next::Offer(offer);
            }
            End::Gone(_, reason) => return Next::Over(reason),
            End::Lost(why) => return Next::Over(why),
            End::Broke(Break::Over(code)) => return Next::Over(Reason::Session(code)),
            End::Broke(Break::Violation(violation)) => {
                let code = violation.code().unwrap_or(ErrorCode::Malformed);
                return Next::Over(Reason::Session(code));
            }
            End::Broke(Break::Closed) => Reason::Closed,
            End::Broke(Break::Error(error)) => Reason::of(&error),
            End::Panicked => Reason::CallbackPanicked,
        };
        if self.running.is_closing() {
            // It could not come back: the port is free.
            let is_cut = member.is_cut.load(Ordering::Acquire);
            let cut = || Reason::of(&self.running.config.ran_out(Limit::DrainTimeout));
            return Next::Over(if is_cut { cut() } else { reason });
        }
        self.detach(epoch);
        self.running.reporter.report(Event::Detached { peer: member.peer, reason });
        Next::Wait
    }

    /// The connection of this epoch is gone.
    fn detach(&self, epoch: u32) {
        let Some(seating) = &self.member.session else { return };
        let (outbox, held) = (&self.member.outbox, self.member.outbox.books().held_bytes);
        self.table.detach(&seating.key, epoch, outbox.positions().received, held as u64);
    }

    /// Without a connection, until the next one comes, or none any more.
    async fn wait(&mut self) -> Next {
        let Some(ttl) = self.member.session.as_ref().map(|seating| seating.ttl) else {
            return Next::Over(Reason::Stopped);
        };
        let running = self.running.clone();
        let mut closing = running.closing.wait();
        let mut expiry = pin!(running.config.runtime.sleep(ttl));
        let mut held = 0;
        let member = self.member.clone();
        poll_fn(|cx| {
            member.outbox.set_driver_while_gone(cx.waker());
            let Some(seating) = &member.session else { return Poll::Ready(Next::Over(Reason::Stopped)) };
            match seating.take() {
                Some(Called::Offer(offer)) => return Poll::Ready(Next::Offer(offer)),
                Some(Called::Over(why)) => return Poll::Ready(Next::Over(why)),
                None => {}
            }
            if closing.poll_unpin(cx).is_ready() {
                return Poll::Ready(Next::Over(Reason::Stopped));
            }
            if self.member.outbox.is_ended() {
                return Poll::Ready(Next::Over(Reason::Stopped));
            }
            if expiry.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Next::Over(Reason::SessionExpired));
            }
            if let Poll::Ready(why) = self.poll_stalled(cx) {
                return Poll::Ready(Next::Over(why));
            }
            let now_held = self.member.outbox.books().held_bytes;
            if mem::replace(&mut held, now_held) != now_held {
                self.table.hold(&seating.key, now_held as u64);
                // It may have lost its place by that.
                cx.waker().wake_by_ref();
            }
            // What panics or does not decode ends a connection, and there is none.
            match self.delivery.poll(cx) {
                Poll::Ready(Err(Undelivered::Undecoded)) => Poll::Ready(Next::Over(Reason::DecodeFailed)),
                Poll::Ready(Err(Undelivered::Stopped)) => Poll::Ready(Next::Over(Reason::Stopped)),
                Poll::Ready(Err(Undelivered::Panicked)) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Ready(Ok(())) | Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Serves a connection until it ends.
    fn poll_serve(&mut self, attached: &mut Attached, epoch: u32, cx: &mut Context<'_>) -> Poll<End> {
        // First, so that it is called for what is offered or closed after it has looked.
        self.member.outbox.set_driver(cx.waker());
        for _ in 0..BATCHES_IN_A_ROW {
            if let Some(end) = self.called(epoch) {
                return Poll::Ready(end);
            }
            if let Poll::Ready(end) = self.poll_closing(cx) {
                return Poll::Ready(end);
            }
            let member = self.member.clone();
            let reads = match self.delivery.poll_room(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(undelivered)) => return Poll::Ready(undelivered.into()),
                // Or two ends that both wait for acknowledgements would wait for ever.
                Poll::Pending => member.outbox.waits_for_acks(),
            };
            let Poll::Ready(came) = attached.poll(&member.outbox, reads, cx) else {
                if !reads && member.outbox.waits_for_acks() {
                    // By what was written just now.
                    continue;
                }
                self.delivery.release();
                return Poll::Pending;
            };
            match came {
                Came::Frames => {
                    let batch = attached.take();
                    let unsettled = match member.outbox.received(batch.messages, batch.bytes) {
                        Ok(Some(unsettled)) => unsettled,
                        // The next poll tells why.
                        Ok(None) => continue,
                        Err(violation) => return Poll::Ready(End::Broke(Break::Violation(violation))),
                    };
                    self.running.count(batch.messages, batch.bytes);
                    self.delivery.put(batch, unsettled);
                    if let Poll::Ready(Err(undelivered)) = self.delivery.poll(cx) {
                        return Poll::Ready(undelivered.into());
                    }
                }
                Came::Untaken(letters) => self.delivery.count_untaken(letters),
                Came::Control => {}
                // Replies do not expire.
                Came::Expired => {}
                Came::Broke(broke) => return Poll::Ready(End::Broke(broke)),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether a newer connection has come, or the session has lost its place.
    fn called(&self, epoch: u32) -> Option<End> {
        let seating = self.member.session.as_ref()?;
        if self.member.outbox.is_ended() {
            // The program has dropped its connection.
            return Some(End::Gone(ErrorCode::Gone, Reason::Stopped));
        }
        if seating.panicked.swap(false, Ordering::AcqRel) {
            return Some(End::Panicked);
        }
        match seating.take()? {
            Called::Offer(offer) if offer.hello.epoch > epoch => Some(End::Fenced(offer)),
            // It was judged before this one came.
            Called::Offer(offer) => {
                offer.stream.shut_down();
                None
            }
            Called::Over(why) => Some(End::Lost(why)),
        }
    }

    /// Says what is to be said where this end closes, or the other has, and keeps the time of that.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let outbox = &self.member.outbox;
        let closes = self.running.is_closing();
        if closes && !mem::replace(&mut self.goes_away, true) {
            outbox.say_goaway(BUSY.as_millis() as u32);
        }
        // A peer that the program can still answer is not told yet that nothing comes.
        let may_reply = self.delivery.may_be_handed_over() || self.running.replies.load(Ordering::Acquire);
        if (closes && !may_reply) || (!self.delivery.may_be_handed_over() && outbox.is_receiving_settled()) {
            outbox.close();
        }
        if outbox.is_closed() {
            outbox.finish_session();
        }
        let config = &self.running.config;
        if closes {
            let progress = outbox.progress() + outbox.positions().received + outbox.untaken().0;
            if let Poll::Ready(error) = self.slow.poll(Limit::CloseTimeout, config, progress, cx) {
                self.running.cut(Limit::CloseTimeout);
                return Poll::Ready(End::Gone(ErrorCode::Gone, Reason::of(&error)));
            }
        }
        self.poll_stalled(cx).map(|why| End::Gone(ErrorCode::Slow, why))
    }

    /// Ready with why, where it has taken nothing for too long of as many replies as there may be.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let (config, books) = (&self.running.config, self.member.outbox.books());
        if books.held_bytes < config.queue_bytes {
            self.stalled.clear();
            return Poll::Pending;
        }
        let limit = config.write_timeout.unwrap_or(SLOW);
        self.stalled.poll_limit(Limit::WriteTimeout, limit, books.acked, cx).map(|error| Reason::of(&error))
    }

    /// The session is over.
    async fn finish(mut self, reason: Reason) {
        if let Some(seating) = &self.member.session {
            let offer = seating.end(reason.clone());
            drop(offer);
            if !self.buried {
                self.table.remove(&seating.key);
            }
        }
        self.member.outbox.end_session();
        self.delivery.finish().await;
        let why = match reason {
            Reason::SessionExpired => Loss::Expired,
            Reason::Session(code) => lost_by(code),
            _ => Loss::Ended,
        };
        let (in_doubt, untaken) = self.member.outbox.lose_session(why);
        self.delivery.count_untaken(untaken.letters());
        self.delivery.lost(in_doubt, why);
        self.running.end_replies(&self.member).await;
        self.running.session_over(&self.member, reason);
    }
}

/// Says this, if the socket takes it in time. Whether it has.
async fn answer(config: &Config, stream: &mut Stream, bytes: &[u8]) -> bool {
    matches!(config.runtime.within(config.dial_timeout, stream.say(bytes)).await, Some(Ok(())))
}
