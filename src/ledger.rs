//! The books of a queue: which messages were accepted, which are over, and how each of them ended.
//!
//! Messages are written in batches, so a producer waits for the batch that its last message is in. Numbers only; the
//! bytes are in the queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::error::Error;

/// How many failures are remembered for producers that have not asked yet how their messages fared.
const KEEP_FAILURES: usize = 64;

/// The books of one queue.
#[derive(Default)]
pub(crate) struct Ledger {
    /// The number of the batch that is being filled; the transport takes it whole.
    batch: u64,
    /// Batches below this one are over: written, or given back.
    over: u64,
    /// The batches that were given back, and why; the newest last.
    failures: VecDeque<Failure>,
    accepted: u64,
    given_back: u64,
    /// Messages, by their number, whose producer waits to have them back if they are not written, and why they were not.
    claimed: BTreeMap<u64, Option<Arc<Error>>>,
}

/// Of the batches above `from`, up to `until`, the messages from the number `first` on were given back.
struct Failure {
    from: u64,
    until: u64,
    first: u64,
    error: Arc<Error>,
}

/// A producer's place in the queue: its messages are over when all batches below `until` are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    until: u64,
    /// The number of the last message.
    message: u64,
}

impl Ledger {
    /// Enters messages; they are in the batch that is being filled.
    pub(crate) fn accept(&mut self, messages: u64) {
        self.accepted += messages;
    }

    /// The ticket of the last message; `filling` is whether the batch that is being filled has any.
    pub(crate) fn ticket(&self, filling: bool) -> Ticket {
        let until = if filling { self.batch + 1 } else { self.batch };
        Ticket { until, message: self.accepted }
    }

    /// The producer of this message has a copy: if it is not written, the producer returns it.
    pub(crate) fn claim(&mut self, ticket: Ticket) {
        self.claimed.insert(ticket.message, None);
    }

    /// The producer of this message no longer waits. Where it was given back, returns why: nobody else has it.
    pub(crate) fn unclaim(&mut self, ticket: Ticket) -> Option<Arc<Error>> {
        self.claimed.remove(&ticket.message)?
    }

    /// The transport takes the batch that was being filled; the next one begins.
    pub(crate) fn begin_batch(&mut self) {
        self.batch += 1;
    }

    /// The transport has taken all batches but the one that is being filled.
    pub(crate) fn batch_written(&mut self, batch: u64) {
        self.over = batch;
    }

    pub(crate) fn batch(&self) -> u64 {
        self.batch
    }

    pub(crate) fn is_over(&self, ticket: Ticket) -> bool {
        self.over >= ticket.until
    }

    /// How the messages of a ticket that is over ended: the error is why they were given back.
    pub(crate) fn outcome(&self, ticket: Ticket) -> Result<(), Arc<Error>> {
        if let Some(given_back) = self.claimed.get(&ticket.message) {
            return given_back.clone().map_or(Ok(()), Err);
        }
        let of_ticket = |failure: &&Failure| {
            failure.from < ticket.until && ticket.until <= failure.until && failure.first <= ticket.message
        };
        match self.failures.iter().find(of_ticket) {
            Some(failure) => Err(failure.error.clone()),
            None => Ok(()),
        }
    }

    /// Gives back the newest messages, those that were not written, because of `error`. Returns the ones that no producer
    /// returns itself.
    pub(crate) fn give_back<M>(&mut self, messages: Vec<M>, error: &Arc<Error>) -> Vec<M> {
        self.given_back += messages.len() as u64;
        let first = self.accepted + 1 - messages.len() as u64;
        let mut unclaimed = Vec::with_capacity(messages.len());
        for (number, message) in (first..).zip(messages) {
            match self.claimed.get_mut(&number) {
                Some(given_back) => *given_back = Some(error.clone()),
                None => unclaimed.push(message),
            }
        }
        self.batch += 1;
        if self.failures.len() == KEEP_FAILURES {
            self.failures.pop_front();
        }
        self.failures.push_back(Failure { from: self.over, until: self.batch, first, error: error.clone() });
        // So that a ticket for nothing, from now on, is not one of these.
        self.batch += 1;
        self.over = self.batch;
        unclaimed
    }

    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    pub(crate) fn given_back(&self) -> u64 {
        self.given_back
    }
}
