//! What comes back of a link, until its owner has taken it.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;

use super::{Link, Owner};
use crate::queue::{ITEM, Verdict};

/// The messages that come back of a link, in order. Its connection does not wait for them, or the one who takes them could not wait
/// for the connection; and acknowledgements are read all the same. The room in the queue is what bounds them: see
/// [`Outbox::set_unburied`](crate::queue::Outbox::set_unburied).
pub(super) struct Burials {
    link: Arc<Link>,
    owner: Arc<dyn Owner>,
    /// What is being taken.
    burying: Option<BoxFuture<'static, ()>>,
    /// What comes next.
    waiting: VecDeque<(Vec<Bytes>, Verdict)>,
    waiting_bytes: usize,
}

impl Burials {
    pub(super) fn new(link: Arc<Link>, owner: Arc<dyn Owner>) -> Self {
        Self { link, owner, burying: None, waiting: VecDeque::new(), waiting_bytes: 0 }
    }

    pub(super) fn add(&mut self, messages: Vec<Bytes>, verdict: Verdict) {
        if messages.is_empty() {
            return;
        }
        match self.burying {
            Some(_) => {
                self.waiting_bytes += cost(&messages);
                self.waiting.push_back((messages, verdict));
                self.link.outbox.set_unburied(self.waiting_bytes);
            }
            None => self.burying = Some(self.owner.take_back(messages, verdict)),
        }
    }

    /// Hands them over; ready when all are taken.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(burying) = &mut self.burying {
            ready!(burying.as_mut().poll(cx));
            self.burying = None;
            if let Some((messages, verdict)) = self.waiting.pop_front() {
                self.waiting_bytes -= cost(&messages);
                self.burying = Some(self.owner.take_back(messages, verdict));
                self.link.outbox.set_unburied(self.waiting_bytes);
            }
        }
        Poll::Ready(())
    }
}

impl Drop for Burials {
    /// The owner goes on with each of them, if it is dropped before its end.
    fn drop(&mut self) {
        self.burying = None;
        for (messages, verdict) in mem::take(&mut self.waiting) {
            drop(self.owner.take_back(messages, verdict));
        }
    }
}

/// What they cost, as they wait here.
fn cost(messages: &[Bytes]) -> usize {
    messages.iter().map(|message| message.len() + ITEM).sum()
}
