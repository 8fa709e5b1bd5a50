//! A link: the queue of the messages to one address, as its producers and its task share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;

use super::health::Pulse;
use super::socket::LinkSocket;
use super::stats::LinkStats;
use crate::error::{Error, Loss};
use crate::foreign;
use crate::peer::Address;
use crate::queue::{Outbox, Verdict};
use crate::transport;

/// One address: the way from its producers to its task.
pub(crate) struct Link {
    pub(crate) address: Address,
    pub(crate) outbox: Outbox<transport::Stream>,
    pub(crate) reconnects: AtomicU64,
    /// How often the address has been dialed in the outage that goes on; 0 while there is none.
    pub(super) attempts: AtomicU32,
    pub(crate) socket: LinkSocket,
    pub(crate) pulse: Pulse,
    pub(super) counters: SessionCounters,
}

/// What is counted of the sessions of a link.
#[derive(Default)]
pub(super) struct SessionCounters {
    pub(super) sessions: AtomicU64,
    pub(super) replayed: AtomicU64,
}

impl Link {
    /// Its books.
    pub(crate) fn stats(&self) -> LinkStats {
        let books = self.outbox.totals();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            accepted: books.accepted,
            written: books.written,
            acked: books.acked,
            dead_lettered: books.given_back,
            held: books.held,
            held_bytes: books.held_bytes,
            bytes: books.bytes,
            reconnects: count(&self.reconnects),
            in_doubt: books.untaken.in_doubt,
            refused: books.untaken.refused,
            replayed: count(&self.counters.replayed),
            sessions: count(&self.counters.sessions),
        }
    }

    /// Ends it, and takes back all that is held: what is in doubt, what is too old, and what was closed, or why else that is.
    pub(crate) async fn end(&self, why: Option<Arc<Error>>) -> Vec<(Vec<Bytes>, Verdict)> {
        // Also, the queue is to get no other connection while what it holds is taken back.
        self.outbox.end();
        self.socket.shut();
        self.outbox.lose().await;
        let attempts = self.attempts.load(Ordering::Relaxed);
        let (_, mut letters) = self.lose_session(Loss::Ended);
        letters.push(self.outbox.take_expired(attempts));
        let closed = Verdict { attempts, ..Verdict::closed() };
        let closed = Verdict { error: why.unwrap_or(closed.error), ..closed };
        letters.push((self.outbox.give_back(&closed), closed));
        letters
    }

    /// The session, if there is one, is over. How many messages are in doubt, and what comes back.
    pub(super) fn lose_session(&self, why: Loss) -> (usize, Vec<(Vec<Bytes>, Verdict)>) {
        let (in_doubt, untaken) = self.outbox.lose_session(why);
        (in_doubt, untaken.letters())
    }
}

impl Link {
    /// Ends it at once, and drops all that is held.
    pub(crate) fn abandon(&self) {
        self.outbox.end();
        self.socket.shut();
        // Two messages that panic when they are dropped would end the process, if that was in one go. Nobody is left to be told.
        let _ = foreign::call(|| self.outbox.lose().now_or_never());
        let (_, letters) = self.lose_session(Loss::Ended);
        for message in letters.into_iter().flat_map(|(messages, _)| messages) {
            let _ = foreign::dispose(message);
        }
        for message in self.outbox.give_back(&Verdict::closed()) {
            let _ = foreign::dispose(message);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.abandon();
        #[cfg(feature = "metrics")]
        crate::metrics::retire(self);
    }
}
