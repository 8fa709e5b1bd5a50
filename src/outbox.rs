//! The bounded queue of one peer's outgoing messages: many producers, one transport.
//!
//! Whoever waits for room or for a flush takes the transport out of the queue, writes what everybody has put in, and
//! puts it back: no task stands between a producer and a socket that takes what it is given. When the socket does not,
//! the queue is *stalled*, and its driver, the task that owns the peer, goes on as the socket allows. Only the driver
//! opens a new transport where the old one broke.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::io::AsyncWrite;

use crate::error::Error;
use crate::ledger::{Ledger, Ticket};
use crate::wire::{Codec, Output};
use crate::writer::Writer;

/// The queue of one peer.
pub(crate) struct Outbox<W> {
    state: Mutex<State<W>>,
}

struct State<W> {
    /// What was accepted and is not with the transport yet.
    pending: Output,
    transport: Transport<W>,
    ledger: Ledger,
    /// How many bytes transports have taken.
    progress: u64,
    /// The transport takes no more, or there is none: the driver has to act.
    stalled: bool,
    /// Why the transport broke, for the driver to tell.
    broken: Option<Error>,
    /// The transport is to be dropped as soon as nobody writes to it.
    lost: bool,
    /// Nothing more is accepted.
    closed: bool,
    /// Producers that wait for room, or for their batch to be over.
    waiting: Vec<Waker>,
    driver: Option<Waker>,
}

enum Transport<W> {
    Idle(Writer<W>),
    /// Somebody is writing; so many messages are with them.
    Taken {
        messages: usize,
    },
    /// It broke. What it did not take whole, from the start of the oldest frame.
    Gone(Output),
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
    /// There is no transport, or none any more.
    Gone,
}

/// What the books of a queue say, in messages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Books {
    pub(crate) accepted: u64,
    pub(crate) written: u64,
    pub(crate) given_back: u64,
    pub(crate) held: u64,
    pub(crate) held_bytes: usize,
    /// How many bytes transports have taken.
    pub(crate) bytes: u64,
}

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(crate) fn new(io: W, codec: Codec) -> Self {
        let state = State {
            pending: Output::new(codec),
            transport: Transport::Idle(Writer::with(io, Output::new(codec))),
            ledger: Ledger::default(),
            progress: 0,
            stalled: false,
            broken: None,
            lost: false,
            closed: false,
            waiting: Vec::new(),
            driver: None,
        };
        Self { state: Mutex::new(state) }
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
    pub(crate) fn unclaim(&self, ticket: Ticket) -> Option<Arc<Error>> {
        let mut state = self.lock();
        let given_back = state.ledger.unclaim(ticket);
        if !state.ledger.is_over(ticket) && !state.pending.is_empty() {
            // Whoever is writing now wakes those who wait, and may not be the one to go on.
            state.stall();
        }
        given_back
    }

    /// Accepts all `messages` messages that one producer has put together.
    pub(crate) fn append(&self, output: &mut Output, messages: usize) -> Result<Ticket, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed { message: None });
        }
        state.pending.append(output);
        state.ledger.accept(messages as u64);
        Ok(state.ticket())
    }

    /// Waits until less than `mark` bytes are pending, or nothing more is accepted.
    pub(crate) fn poll_room(&self, mark: usize, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_producer(cx, |state| (state.pending.len() < mark || state.closed).then_some(()))
    }

    /// Waits until the ticket's batch is over. The error is why it was given back instead of written.
    pub(crate) fn poll_written(&self, ticket: Ticket, cx: &mut Context<'_>) -> Poll<Result<(), Arc<Error>>> {
        self.poll_producer(cx, |state| state.ledger.is_over(ticket).then(|| state.ledger.outcome(ticket)))
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
    fn poll_producer<T>(&self, cx: &mut Context<'_>, done: impl Fn(&State<W>) -> Option<T>) -> Poll<T> {
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
                step @ (Step::Idle | Step::Busy | Step::Full | Step::Gone) => {
                    let mut state = self.lock();
                    if matches!(step, Step::Full) && !matches!(state.transport, Transport::Taken { .. }) {
                        // Even if this producer has what it waited for, somebody must go on.
                        state.stall();
                    }
                    if let Some(done) = done(&state) {
                        return Poll::Ready(done);
                    }
                    state.wait(cx.waker());
                    if !matches!(state.transport, Transport::Taken { .. }) {
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
        if let Some(driver) = &self.lock().driver {
            driver.wake_by_ref();
        }
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
                Step::Busy | Step::Full => return Poll::Pending,
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
        match mem::replace(&mut state.transport, Transport::Taken { messages: 0 }) {
            Transport::Taken { messages } => {
                state.transport = Transport::Taken { messages };
                state.lost = true;
                state.wait(cx.waker());
                return Poll::Pending;
            }
            Transport::Idle(writer) => state.transport = Transport::Gone(writer.into_output()),
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

    /// Goes on with a new transport where the old one is gone.
    pub(crate) fn resume(&self, io: W) {
        let mut state = self.lock();
        state.transport = match mem::replace(&mut state.transport, Transport::Taken { messages: 0 }) {
            Transport::Gone(output) => Transport::Idle(Writer::with(io, output)),
            other => other,
        };
        state.broken = None;
    }

    /// Whether nothing more is accepted.
    pub(crate) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How many bytes transports have taken so far: while this grows, the peer is alive.
    pub(crate) fn progress(&self) -> u64 {
        self.lock().progress
    }

    /// Takes back all that was not written, because of `error`, when the transport is lost: those who wait for it are
    /// told. Returns the messages whose producer does not wait to return them itself, the oldest first.
    pub(crate) fn give_back(&self, error: Arc<Error>) -> Vec<Bytes> {
        let mut state = self.lock();
        let mut messages = match &mut state.transport {
            Transport::Gone(output) => output.take_messages(),
            Transport::Idle(_) | Transport::Taken { .. } => Vec::new(),
        };
        messages.append(&mut state.pending.take_messages());
        let unclaimed = state.ledger.give_back(messages, &error);
        state.stalled = false;
        state.wake_waiting();
        unclaimed
    }

    /// Accepts nothing more. The ticket is that of the last message.
    pub(crate) fn close(&self) -> Ticket {
        let mut state = self.lock();
        state.closed = true;
        state.wake_waiting();
        state.ticket()
    }

    pub(crate) fn books(&self) -> Books {
        let state = self.lock();
        let bytes = match &state.transport {
            Transport::Idle(writer) => writer.output().len(),
            Transport::Taken { .. } => 0,
            Transport::Gone(output) => output.len(),
        };
        let held = state.held();
        Books {
            accepted: state.ledger.accepted(),
            written: state.ledger.accepted() - state.ledger.given_back() - held,
            given_back: state.ledger.given_back(),
            held,
            held_bytes: bytes + state.pending.len(),
            bytes: state.progress,
        }
    }

    /// Gives the transport what it did not finish, or the next batch. The lock is not held while it writes.
    fn step(&self, mut state: MutexGuard<'_, State<W>>, cx: &mut Context<'_>, waiting: &Waker) -> Step {
        let mut writer = match mem::replace(&mut state.transport, Transport::Taken { messages: 0 }) {
            Transport::Idle(writer) => writer,
            Transport::Taken { messages } => {
                state.transport = Transport::Taken { messages };
                state.wait(waiting);
                return Step::Busy;
            }
            Transport::Gone(output) => {
                state.transport = Transport::Gone(output);
                return Step::Gone;
            }
        };
        if writer.output().is_empty() {
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
        let batch = state.ledger.batch();
        state.transport = Transport::Taken { messages: writer.output().held() };
        drop(state);

        let before = writer.output().len();
        let drained = writer.poll_drain(cx);
        // After an error the frame that was cut counts as unwritten again.
        let taken_bytes = before.saturating_sub(writer.output().len());

        let mut state = self.lock();
        state.progress += taken_bytes as u64;
        match drained {
            Poll::Ready(Ok(())) => {
                state.ledger.batch_written(batch);
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

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        // Nothing in here calls anything that panics halfway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: AsyncWrite + Unpin> State<W> {
    fn push(&mut self, message: Bytes) -> Result<Ticket, Error> {
        if self.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        self.pending.push(message)?;
        self.ledger.accept(1);
        Ok(self.ticket())
    }

    /// The ticket of the last message.
    fn ticket(&self) -> Ticket {
        self.ledger.ticket(!self.pending.is_empty())
    }

    /// How many messages were accepted and are neither written nor given back.
    fn held(&self) -> u64 {
        let with_transport = match &self.transport {
            Transport::Idle(writer) => writer.output().held(),
            Transport::Taken { messages } => *messages,
            Transport::Gone(output) => output.held(),
        };
        (with_transport + self.pending.held()) as u64
    }

    /// Ends a turn of writing.
    fn put_back(&mut self, writer: Writer<W>) {
        if mem::take(&mut self.lost) {
            self.transport = Transport::Gone(writer.into_output());
            self.stall();
            self.wake_waiting();
        } else {
            self.transport = Transport::Idle(writer);
        }
    }

    /// Calls the driver.
    fn stall(&mut self) {
        self.stalled = true;
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|waiting| waiting.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    fn wake_waiting(&mut self) {
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::config::Config;

    struct Calls(AtomicUsize);

    impl ArcWake for Calls {
        fn wake_by_ref(calls: &Arc<Self>) {
            calls.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Kept here because over sockets it takes a transport that breaks while a producer writes the last message.
    #[test]
    fn a_producer_calls_the_driver_that_has_nothing_to_do_whatever_it_was_called_for_before() {
        let outbox = Outbox::new(futures::io::sink(), Config::new().codec().unwrap());
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
