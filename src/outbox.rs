//! The bounded queue of one peer's outgoing messages: many producers, one transport.
//!
//! Whoever waits for room or for a flush takes the transport out of the queue, writes what everybody has put in, and
//! puts it back: no task stands between a producer and a socket that takes what it is given. When the socket does not,
//! the queue is *stalled*, and its driver, the task that owns the peer, goes on as the socket allows. Only the driver
//! opens a new transport where the old one broke.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::io::AsyncWrite;

use crate::backlog::{Backlog, Books, Load, Transport};
use crate::error::Error;
use crate::foreign::{self, PanicSource};
use crate::ledger::{Fate, Ticket, Verdict};
use crate::wire::{Codec, Output};
use crate::writer::Writer;

/// The queue of one peer.
pub(crate) struct Outbox<W> {
    state: Mutex<Backlog<W>>,
    rules: Rules<W>,
}

/// How a queue treats what it holds.
pub(crate) struct Rules<W> {
    /// Looks, before each write, whether a transport would take it and lose it.
    pub(crate) is_dead: fn(&W) -> bool,
    /// How many bytes are held before producers wait, while there is no transport: where that is not as at other times.
    pub(crate) room_while_down: Option<usize>,
    /// How old a message may be when it is given to a transport.
    pub(crate) ttl: Option<Duration>,
}

impl<W> Default for Rules<W> {
    fn default() -> Self {
        Self { is_dead: |_| false, room_while_down: None, ttl: None }
    }
}

/// What a queue held when it was closed.
pub(crate) struct Rest {
    last: Ticket,
    /// How many messages had been given back by then.
    given_back: u64,
}

/// What an attempt to write did.
enum Step {
    /// The transport took a batch.
    Wrote,
    /// There is nothing to write.
    Idle,
    /// Somebody else is writing, and wakes the waiting when they are done.
    Busy,
    /// The transport takes no more for now.
    Full,
    /// The next messages are too old to be sent: the driver takes them back first.
    Expired,
    /// There is no transport, or none any more.
    Gone,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(crate) fn new(io: W, codec: Codec, rules: Rules<W>) -> Self {
        Self { state: Mutex::new(Backlog::new(io, codec, rules.ttl)), rules }
    }

    // ---- producers

    /// Accepts a message. It never waits.
    pub(crate) fn push(&self, message: Bytes) -> Result<Ticket, Error> {
        self.lock().push(message)
    }

    /// Accepts a message of which its producer has a copy: if it is not written, the producer returns it.
    pub(crate) fn push_claimed(&self, message: Bytes) -> Result<Ticket, Error> {
        let mut state = self.lock();
        let ticket = state.push(message)?;
        state.ledger.claim(ticket);
        Ok(ticket)
    }

    /// The producer of this message no longer waits. Where it was given back, returns why: nobody else has it.
    pub(crate) fn unclaim(&self, ticket: Ticket) -> Option<Verdict> {
        let mut state = self.lock();
        let given_back = state.ledger.unclaim(ticket);
        if !state.ledger.is_over(ticket) && !state.pending.is_empty() {
            // Whoever is writing now wakes those who wait, and may not be the one to go on.
            state.stall();
        }
        given_back
    }

    /// Waits for room, as [`poll_room`](Self::poll_room) does, and accepts all `messages` messages that one producer has put
    /// together; `None` when nothing more is accepted.
    pub(crate) fn poll_append(
        &self,
        (output, messages, fate): (&mut Output, usize, &Fate),
        mark: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Ticket>> {
        loop {
            let mut state = self.lock();
            if state.closed {
                return Poll::Ready(None);
            }
            if self.has_room(&state, mark) {
                return Poll::Ready(Some(state.append(output, messages, Some(fate))));
            }
            drop(state);
            ready!(self.poll_room(mark, cx));
        }
    }

    /// Accepts the last messages of a producer that goes, for the driver to write, while less than `max` bytes are held. The
    /// error is why not.
    pub(crate) fn leave(&self, output: &mut Output, messages: usize, max: usize) -> Result<(), Verdict> {
        let mut state = self.lock();
        if messages > 0 {
            if state.closed {
                return Err(Verdict::closed());
            }
            if state.held_bytes() >= max {
                return Err(Verdict::queue_full(max));
            }
            state.append(output, messages, None);
        }
        if !state.pending.is_empty() {
            state.stall();
        }
        Ok(())
    }

    /// Waits until less than `mark` bytes are pending, or nothing more is accepted.
    pub(crate) fn poll_room(&self, mark: usize, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_producer(cx, |state| (state.closed || self.has_room(state, mark)).then_some(()))
    }

    fn has_room(&self, state: &Backlog<W>, mark: usize) -> bool {
        match (&state.transport, self.rules.room_while_down) {
            (Transport::Gone(_), Some(room)) => state.held_bytes() < room,
            _ => state.pending.len() < mark,
        }
    }

    /// Waits until the ticket's batch is over. The error is why a claimed message was given back instead of written.
    pub(crate) fn poll_written(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), Arc<Error>>> {
        self.poll_producer(cx, |state| state.ledger.is_over(ticket).then(|| state.ledger.outcome(ticket)))
    }

    /// Waits until nothing is held any more of what was accepted before the close. The error is why some was given back.
    pub(crate) fn poll_delivered(&self, rest: &Rest, cx: &mut Context<'_>) -> Poll<Result<(), Arc<Error>>> {
        let outcome = |state: &Backlog<W>| state.ledger.why_since(rest.given_back);
        self.poll_producer(cx, |state| state.ledger.is_over(rest.last).then(|| outcome(state)))
    }

    /// Whether the ticket's batch is over, one way or the other.
    pub(crate) fn is_over(&self, ticket: Ticket) -> bool {
        self.lock().ledger.is_over(ticket)
    }

    /// Leaves what is pending to the driver: its producer does not wait.
    pub(crate) fn leave_to_driver(&self) {
        let mut state = self.lock();
        if !state.pending.is_empty() {
            state.stall();
        }
    }

    /// Writes, batch by batch, until `done` says so or it takes somebody else to go on.
    fn poll_producer<T>(&self, cx: &mut Context<'_>, done: impl Fn(&Backlog<W>) -> Option<T>) -> Poll<T> {
        loop {
            let mut state = self.lock();
            if let Some(done) = done(&state) {
                return Poll::Ready(done);
            }
            if state.stalled {
                state.wait(cx.waker());
                return Poll::Pending;
            }
            // The socket need not wake anybody: when it is not ready, the driver asks it again.
            match self.step(state, &mut Context::from_waker(Waker::noop()), cx.waker()) {
                Step::Wrote => {}
                step @ (Step::Idle | Step::Busy | Step::Full | Step::Expired | Step::Gone) => {
                    let mut state = self.lock();
                    if matches!(step, Step::Full | Step::Expired) && !matches!(state.transport, Transport::Taken(_)) {
                        // Even if this producer has what it waited for, somebody must go on.
                        state.stall();
                    }
                    if let Some(done) = done(&state) {
                        return Poll::Ready(done);
                    }
                    state.wait(cx.waker());
                    if !matches!(state.transport, Transport::Taken(_)) {
                        state.stall();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    // ---- the driver

    /// Registers the driver: it is woken when the queue is stalled.
    pub(crate) fn set_driver(&self, waker: &Waker) {
        let mut state = self.lock();
        match &mut state.driver {
            Some(driver) => driver.clone_from(waker),
            None => state.driver = Some(waker.clone()),
        }
    }

    /// Lets the driver look around.
    pub(crate) fn call_driver(&self) {
        self.lock().call_driver();
    }

    /// Waits until nothing more is accepted.
    pub(crate) fn poll_closed(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.closed {
            return Poll::Ready(());
        }
        state.wait(cx.waker());
        Poll::Pending
    }

    /// Whether there is something for the driver to do.
    pub(crate) fn is_stalled(&self) -> bool {
        self.lock().stalled
    }

    /// Writes until nothing is pending. An error is that of the transport, which is gone then, whoever met it.
    pub(crate) fn poll_drive(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            let state = self.lock();
            let waiting = cx.waker().clone();
            match self.step(state, cx, &waiting) {
                Step::Wrote => {}
                Step::Idle => return Poll::Ready(Ok(())),
                Step::Busy | Step::Full | Step::Expired => return Poll::Pending,
                Step::Gone => {
                    let broken = self.lock().broken.take();
                    return Poll::Ready(Err(broken.unwrap_or(Error::Closed { message: None })));
                }
            }
        }
    }

    /// Drops the transport, which broke, as soon as nobody writes to it; what it did not take is kept.
    pub(crate) fn poll_lose(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        match mem::replace(&mut state.transport, Transport::Taken(Load::default())) {
            Transport::Taken(load) => {
                state.transport = Transport::Taken(load);
                state.lost = true;
                state.wait(cx.waker());
                return Poll::Pending;
            }
            Transport::Idle(writer) => {
                state.transport = Transport::Gone(writer.into_output());
                // There may be more room while it is down than there was.
                state.wake_waiting();
            }
            gone @ Transport::Gone(_) => state.transport = gone,
        }
        Poll::Ready(())
    }

    /// Waits, as the driver, until a transport is wanted for what is held; `false` when nothing more can come.
    pub(crate) fn poll_wanted(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.set_driver(cx.waker());
        let mut state = self.lock();
        if state.held() > 0 {
            return Poll::Ready(true);
        }
        if state.closed {
            return Poll::Ready(false);
        }
        // Or the next producer would take it that the driver knows already.
        state.stalled = false;
        Poll::Pending
    }

    /// Goes on with a new transport where the old one is gone; `false` where there is to be none any more.
    pub(crate) fn resume(&self, io: W) -> bool {
        let mut state = self.lock();
        if state.ended {
            return false;
        }
        state.transport = match mem::replace(&mut state.transport, Transport::Taken(Load::default())) {
            Transport::Gone(mut output) => {
                // It begins anew: what has grown too old meanwhile is not given to this one.
                output.append(&mut state.pending);
                mem::swap(&mut output, &mut state.pending);
                Transport::Idle(Writer::with(io, output))
            }
            other => other,
        };
        state.broken = None;
        true
    }

    /// There is to be no other transport.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
    }

    /// Whether nothing more is accepted.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How many bytes transports have taken so far: while this grows, the peer is alive.
    pub(crate) fn progress(&self) -> u64 {
        self.lock().progress
    }

    /// Takes back all that was not written when the transport is lost: those who wait for it are told. Returns the
    /// messages whose producer does not wait to return them itself, the oldest first.
    pub(crate) fn give_back(&self, verdict: &Verdict) -> Vec<Bytes> {
        let mut state = self.lock();
        let held = state.held();
        let unclaimed = state.give_back_oldest(held, verdict);
        state.stalled = false;
        unclaimed
    }

    /// Takes back what is too old to be sent, as [`give_back`](Self::give_back) does, and says why. `attempts` is how often
    /// the address was dialed in the meantime.
    pub(crate) fn take_expired(&self, attempts: u32) -> (Vec<Bytes>, Verdict) {
        let verdict = Verdict::expired(self.rules.ttl.unwrap_or_default(), attempts);
        let mut state = self.lock();
        let count = state.expired();
        (state.give_back_oldest(count, &verdict), verdict)
    }

    /// Whether something is too old to be sent: nothing is written until it is taken back.
    pub(crate) fn has_expired(&self) -> bool {
        self.lock().expired() > 0
    }

    /// When a message may be too old, at the earliest; `None` where none ever is.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.lock().ledger.next_expiry()
    }

    /// Accepts nothing more. Returns what is held, if anything is.
    pub(crate) fn close(&self) -> Option<Rest> {
        let mut state = self.lock();
        state.closed = true;
        state.wake_waiting();
        (state.held() > 0).then(|| Rest { last: state.ledger.ticket(), given_back: state.ledger.given_back() })
    }

    pub(crate) fn books(&self) -> Books {
        self.lock().books()
    }

    /// Gives the transport what it did not finish, or the next batch. The lock is not held while it writes.
    fn step(&self, mut state: MutexGuard<'_, Backlog<W>>, cx: &mut Context<'_>, waiting: &Waker) -> Step {
        if self.rules.ttl.is_some() && matches!(state.transport, Transport::Idle(_)) && state.expired() > 0 {
            return Step::Expired;
        }
        let mut writer = match mem::replace(&mut state.transport, Transport::Taken(Load::default())) {
            Transport::Idle(writer) => writer,
            Transport::Taken(load) => {
                state.transport = Transport::Taken(load);
                state.wait(waiting);
                return Step::Busy;
            }
            Transport::Gone(output) => {
                state.transport = Transport::Gone(output);
                return Step::Gone;
            }
        };
        let begins = writer.output().is_empty();
        if begins {
            if state.pending.is_empty() {
                state.pending.release();
                writer.output_mut().release();
                state.transport = Transport::Idle(writer);
                state.stalled = false;
                return Step::Idle;
            }
            writer.output_mut().append(&mut state.pending);
            state.ledger.begin_batch();
        }
        state.transport = Transport::Taken(Load::of(writer.output()));
        drop(state);

        // Also a batch that waits in the middle goes on only where somebody is left to take it.
        if writer.io().is_some_and(self.rules.is_dead) {
            let mut state = self.lock();
            state.lost = true;
            state.put_back(writer);
            return Step::Gone;
        }
        let before = writer.output().len();
        // A panic in there would leave the transport taken for ever.
        let drained = foreign::call(|| writer.poll_drain(cx));
        let defect = |_| Poll::Ready(Err(Error::Panicked { what: PanicSource::Task }));
        let drained = drained.unwrap_or_else(defect);
        // After an error the frame that was cut counts as unwritten again.
        let taken_bytes = before.saturating_sub(writer.output().len());

        let mut state = self.lock();
        state.progress += taken_bytes as u64;
        match drained {
            Poll::Ready(Ok(())) => {
                state.ledger.batch_written();
                state.put_back(writer);
                state.wake_waiting();
                Step::Wrote
            }
            Poll::Pending => {
                state.put_back(writer);
                Step::Full
            }
            Poll::Ready(Err(error)) => {
                state.broken = Some(error);
                state.lost = true;
                state.put_back(writer);
                Step::Gone
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Backlog<W>> {
        // Nothing in here calls anything that panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::config::Config;

    /// A transport that looks at the books while it is written to.
    #[derive(Clone, Default)]
    struct Looking(Arc<OnceLock<Arc<Outbox<Looking>>>>, Arc<Mutex<Vec<Books>>>);

    impl AsyncWrite for Looking {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.lock().unwrap().push(self.0.get().unwrap().books());
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Kept here because over sockets it takes another thread to look in that moment.
    #[test]
    fn the_books_count_what_somebody_is_writing() {
        let looking = Looking::default();
        let codec = Config::new().wire_format(crate::WireFormat::u32_be()).codec().unwrap();
        let outbox = Arc::new(Outbox::new(looking.clone(), codec, Rules::default()));
        assert!(looking.0.set(outbox.clone()).is_ok());
        let ticket = outbox.push(Bytes::from_static(b"message")).unwrap();
        assert!(outbox.poll_written(ticket, &mut Context::from_waker(Waker::noop())).is_ready());
        let seen = looking.1.lock().unwrap()[0];
        assert_eq!((seen.accepted, seen.written, seen.held, seen.held_bytes), (1, 0, 1, 11));
        assert_eq!((outbox.books().held, outbox.books().held_bytes, outbox.books().bytes), (0, 0, 11));
    }

    struct Calls(AtomicUsize);

    impl ArcWake for Calls {
        fn wake_by_ref(calls: &Arc<Self>) {
            calls.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Kept here because over sockets it takes a transport that breaks while a producer writes the last message.
    #[test]
    fn a_producer_calls_the_driver_that_has_nothing_to_do_whatever_it_was_called_for_before() {
        let outbox = Outbox::new(futures::io::sink(), Config::new().codec().unwrap(), Rules::default());
        let calls = Arc::new(Calls(AtomicUsize::new(0)));
        let driver = waker(calls.clone());
        let mut cx = Context::from_waker(&driver);
        outbox.lock().stall();
        assert!(outbox.poll_lose(&mut cx).is_ready());
        assert!(outbox.poll_wanted(&mut cx).is_pending());

        let ticket = outbox.push(Bytes::from_static(b"wanted")).unwrap();
        assert!(outbox.poll_written(ticket, &mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(calls.0.load(Ordering::Relaxed), 1);
        assert_eq!(outbox.poll_wanted(&mut cx), Poll::Ready(true));
    }
}
