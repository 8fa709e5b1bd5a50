//! What the queue of a peer holds: messages, the transport or what it left behind, the books, and who waits.
//!
//! Changes of one moment, under the lock of the outbox. Nothing in here writes.

use std::mem;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncWrite;

use crate::error::Error;
use crate::ledger::{Fate, Ledger, Ticket, Verdict};
use crate::wire::{Codec, Output};
use crate::writer::Writer;

/// What one queue holds, and who waits for it.
pub(crate) struct Backlog<W> {
    /// What was accepted and is not with the transport yet.
    pub(crate) pending: Output,
    pub(crate) transport: Transport<W>,
    pub(crate) ledger: Ledger,
    /// How many bytes transports have taken.
    pub(crate) progress: u64,
    /// The transport takes no more, or there is none: the driver has to act.
    pub(crate) stalled: bool,
    /// Why the transport broke, for the driver to tell.
    pub(crate) broken: Option<Error>,
    /// The transport is to be dropped as soon as nobody writes to it.
    pub(crate) lost: bool,
    /// Nothing more is accepted.
    pub(crate) closed: bool,
    /// There is to be no other transport.
    pub(crate) ended: bool,
    /// Producers that wait for room, or for their batch to be over.
    pub(crate) waiting: Vec<Waker>,
    pub(crate) driver: Option<Waker>,
}

/// Where the messages go.
pub(crate) enum Transport<W> {
    Idle(Writer<W>),
    /// Somebody is writing; this is with them.
    Taken(Load),
    /// It broke. What it did not take whole, from the start of the oldest frame.
    Gone(Output),
}

/// How much a transport was given to write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Load {
    pub(crate) fn of(output: &Output) -> Self {
        Self { messages: output.held(), bytes: output.len() }
    }
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

impl<W: AsyncWrite + Unpin> Backlog<W> {
    /// Nothing yet, for this transport. With a `ttl`, older messages are to be given back.
    pub(crate) fn new(io: W, codec: Codec, ttl: Option<Duration>) -> Self {
        Self {
            pending: Output::new(codec),
            transport: Transport::Idle(Writer::with(io, Output::new(codec))),
            ledger: Ledger::new(ttl),
            progress: 0,
            stalled: false,
            broken: None,
            lost: false,
            closed: false,
            ended: false,
            waiting: Vec::new(),
            driver: None,
        }
    }

    pub(crate) fn push(&mut self, message: Bytes) -> Result<Ticket, Error> {
        if self.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        self.pending.push(message)?;
        Ok(self.ledger.accept(1, None))
    }

    /// Accepts all `messages` messages that one producer has put together, which may want to know their fate.
    pub(crate) fn append(&mut self, output: &mut Output, messages: usize, fate: Option<&Fate>) -> Ticket {
        self.pending.append(output);
        let ticket = self.ledger.accept(messages as u64, fate);
        if matches!(self.transport, Transport::Gone(_)) && !self.stalled {
            // Its producer may find room, and not look after it.
            self.stall();
        }
        ticket
    }

    /// Gives back the `count` oldest of what is held and not with a transport.
    pub(crate) fn give_back_oldest(&mut self, count: u64, verdict: &Verdict) -> Vec<Bytes> {
        let held = self.held();
        let mut messages = match &mut self.transport {
            Transport::Gone(output) => output.take_oldest(count as usize),
            Transport::Idle(_) | Transport::Taken(_) => Vec::new(),
        };
        messages.append(&mut self.pending.take_oldest(count as usize - messages.len()));
        let unclaimed = self.ledger.give_back(held, messages, verdict);
        self.wake_waiting();
        unclaimed
    }

    /// How many messages are too old to be sent, while a transport has not begun with them.
    pub(crate) fn expired(&mut self) -> u64 {
        let begun = match &self.transport {
            Transport::Idle(writer) => !writer.output().is_empty(),
            Transport::Taken(_) => true,
            Transport::Gone(_) => false,
        };
        let held = self.held();
        if begun { 0 } else { self.ledger.expired(held) }
    }

    /// How many messages were accepted and are neither written nor given back.
    pub(crate) fn held(&self) -> u64 {
        let with_transport = match &self.transport {
            Transport::Idle(writer) => writer.output().held(),
            Transport::Taken(load) => load.messages,
            Transport::Gone(output) => output.held(),
        };
        (with_transport + self.pending.held()) as u64
    }

    /// How many bytes they have on the wire, as far as those are not written.
    pub(crate) fn held_bytes(&self) -> usize {
        let with_transport = match &self.transport {
            Transport::Idle(writer) => writer.output().len(),
            Transport::Taken(load) => load.bytes,
            Transport::Gone(output) => output.len(),
        };
        with_transport + self.pending.len()
    }

    /// Ends a turn of writing.
    pub(crate) fn put_back(&mut self, writer: Writer<W>) {
        if mem::take(&mut self.lost) {
            self.transport = Transport::Gone(writer.into_output());
            self.stall();
            self.wake_waiting();
        } else {
            self.transport = Transport::Idle(writer);
        }
    }

    /// Leaves it to the driver to go on.
    pub(crate) fn stall(&mut self) {
        self.stalled = true;
        self.call_driver();
    }

    pub(crate) fn call_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    pub(crate) fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|waiting| waiting.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    pub(crate) fn wake_waiting(&mut self) {
        for waker in self.waiting.drain(..) {
            waker.wake();
        }
    }

    pub(crate) fn books(&self) -> Books {
        let held = self.held();
        Books {
            accepted: self.ledger.accepted(),
            written: self.ledger.accepted() - self.ledger.given_back() - held,
            given_back: self.ledger.given_back(),
            held,
            held_bytes: self.held_bytes(),
            bytes: self.progress,
        }
    }
}
