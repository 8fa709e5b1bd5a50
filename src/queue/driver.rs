//! The driver's side of a queue: what the task does that owns the peer, where the producers do not write.

use std::future::Future;
use std::mem;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::io::AsyncWrite;

use super::held::{Phase, Then, Transport};
use super::outbox::{Outbox, Step, room};
use super::place::Wait;
use super::verdict::Verdict;
use crate::error::Error;
use crate::framed::Writer;

/// How many batches it writes before it lets other tasks run.
const BATCHES_IN_A_ROW: u32 = 16;
/// How often in a `message_ttl` it looks for what is too old and not handed over, and how long it waits at least between.
const LOOKS: u32 = 64;
const TICK: Duration = Duration::from_millis(1);

impl<W: AsyncWrite + Unpin> Outbox<W> {
    /// Registers the driver: it is woken when the queue is stalled.
    pub(crate) fn set_driver(&self, waker: &Waker) {
        self.lock().set_driver(waker);
    }

    /// The same where there is no transport: it is woken by whatever is handed over.
    pub(crate) fn set_driver_while_gone(&self, waker: &Waker) {
        let mut state = self.lock();
        state.set_driver(waker);
        // Or the next producer would take it that the driver knows already, from before the transport was gone.
        state.stalled = false;
    }

    /// Lets the driver look around.
    pub(crate) fn call_driver(&self) {
        self.lock().call_driver();
    }

    /// Whether there is something for the driver to do.
    pub(crate) fn is_stalled(&self) -> bool {
        self.peek().stalled
    }

    /// Whether there is room, for the driver, which is called when there is.
    pub(crate) fn drives_room(&self, mark: usize) -> bool {
        match self.write_until(|state| room(state, mark)) {
            Ok(()) => true,
            Err((mut state, _)) => {
                state.driver_wants_room = true;
                false
            }
        }
    }

    /// Writes until nothing is pending. An error is that of the transport, which is gone then, also where a producer met it.
    pub(crate) fn poll_drive(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let mut state = self.lock();
        for _ in 0..BATCHES_IN_A_ROW {
            let step;
            (state, step) = self.step(state, cx);
            match step {
                Step::Wrote => {}
                Step::Idle => return Poll::Ready(Ok(())),
                Step::Full => return Poll::Pending,
                Step::Busy => {
                    if let Transport::Taken(_, then) = &mut state.transport {
                        *then = Then::CallDriver.max(*then);
                    }
                    return Poll::Pending;
                }
                Step::Gone => {
                    let broken = state.broken.take();
                    return Poll::Ready(Err(broken.unwrap_or(Error::Closed { message: None })));
                }
            }
        }
        drop(state);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Drops the transport, which broke, as soon as nobody writes to it; what it did not take is kept.
    pub(crate) fn lose(&self) -> impl Future<Output = ()> {
        self.attend(|place, cx| {
            let mut state = self.lock();
            match state.transport.take() {
                Transport::Taken(load, _) => {
                    state.transport = Transport::Taken(load, Then::Lose);
                    state.wait(Wait::PutBack, place, cx.waker());
                    return Poll::Pending;
                }
                Transport::Idle(writer) => {
                    let io = state.lose(writer);
                    drop(state);
                    drop(io);
                }
                gone @ Transport::Gone(_) => state.transport = gone,
            }
            Poll::Ready(())
        })
    }

    /// Waits, as the driver, until a transport is wanted for what is held; `false` when nothing more can come.
    pub(crate) fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut state = self.lock();
        state.set_driver(cx.waker());
        if state.held() > 0 {
            return Poll::Ready(true);
        }
        if state.is_closed() {
            return Poll::Ready(false);
        }
        // Or the next producer would take it that the driver knows already.
        state.stalled = false;
        Poll::Pending
    }

    /// Goes on with a new transport where the old one is gone; `false` where there is to be none any more.
    pub(crate) fn resume(&self, io: W) -> bool {
        let mut state = self.lock();
        if state.phase == Phase::Ended {
            return false;
        }
        state.transport = match state.transport.take() {
            Transport::Gone(mut output) => {
                // It begins anew: what has grown too old meanwhile is not given to this one.
                output.append(&mut state.pending);
                mem::swap(&mut output, &mut state.pending);
                Transport::Idle(Writer::with(io, output))
            }
            other => other,
        };
        state.broken = None;
        // What counts as room is not the same as before.
        state.let_in();
        true
    }

    /// Accepts nothing more, and there is to be no other transport.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.close();
        state.phase = Phase::Ended;
    }

    /// Whether there is to be no other transport.
    pub(crate) fn is_ended(&self) -> bool {
        self.peek().phase == Phase::Ended
    }

    /// How many bytes transports have taken so far: while this grows, the peer is alive.
    pub(crate) fn progress(&self) -> u64 {
        self.peek().progress
    }

    /// Takes back all that was not written when the transport is lost: those who wait for it are told. Returns the
    /// messages whose producer does not wait to return them itself, the oldest first.
    pub(crate) fn give_back(&self, verdict: &Verdict) -> Vec<Bytes> {
        let mut state = self.lock();
        let held = state.held();
        // What is let in now is another matter.
        state.stalled = false;
        if state.is_closed() {
            state.forget_driver();
        }
        state.give_back_oldest(held, verdict)
    }

    /// Takes back what is too old to be sent, as [`give_back`](Self::give_back) does, and says why. `attempts` is how often
    /// the address was dialed in the meantime.
    pub(crate) fn take_expired(&self, attempts: u32) -> (Vec<Bytes>, Verdict) {
        let verdict = Verdict::expired(self.rules.ttl.as_ref().map(|ttl| ttl.after).unwrap_or_default(), attempts);
        let mut state = self.lock();
        let count = state.expired();
        (state.give_back_oldest(count, &verdict), verdict)
    }

    /// So many bytes have come back and wait for the one who takes them, who may not. As what is held does, they take room from
    /// what is to come: else all that is sent could come back to wait there.
    pub(crate) fn set_unburied(&self, bytes: usize) {
        let mut state = self.lock();
        state.unburied = bytes;
        state.let_in();
    }

    /// Whether something is too old to be sent: nothing is written until it is taken back.
    pub(crate) fn has_expired(&self) -> bool {
        self.lock().expired() > 0
    }

    /// When a message may be too old, at the earliest; `None` where none ever is.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let now = self.rules.now()?;
        let mut state = self.lock();
        // What was sent meanwhile does not count.
        state.expired();
        // What is accepted after this look is due later; but for what was accepted elsewhere before, which is not sent either.
        let elsewhere = state.lingering.oldest().unwrap_or(now);
        let ttl = self.rules.ttl.as_ref()?.after;
        let overdue = now.saturating_duration_since(elsewhere) >= ttl;
        // What is too old already comes back when its sink hands it over, and not before: it is looked for now and then.
        let again = (ttl / LOOKS).max(TICK);
        let elsewhere = if overdue { now.checked_sub(ttl).map_or(now, |due| due + again) } else { elsewhere };
        state.books.next_expiry(elsewhere)
    }

    /// Hands over what sinks have fed, where it has lingered long enough. When to look again, if anything lingers.
    pub(crate) fn hand_over_due(&self) -> Option<Instant> {
        self.rules.linger?;
        let now = self.rules.clock();
        self.lock().hand_over_due(now)
    }
}
