//! The reader of a peer, lent to the consumer of its messages.
//!
//! A consumer that is done with everything else reads on by itself: no batch of a fast peer has to go through another
//! task then, and mostly through another thread. The peer's task waits meanwhile. It takes the reader back when it is
//! given back, or when it has brought nothing for a while: it is the task that keeps the time and notices the end.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::Error;
use crate::net;
use crate::reader::{Batch, Reader};

/// In a box, because it is moved to and fro.
pub(crate) type PeerReader = Box<Reader<net::Stream>>;

/// Where the reader of one peer is, as far as its task does not have it.
#[derive(Default)]
pub(crate) struct Loan(Mutex<State>);

#[derive(Default)]
struct State {
    place: Place,
    /// How often it was lent.
    lent: u64,
    /// Since when it has brought nothing, and whether a frame has begun since then.
    quiet: Option<(Instant, bool)>,
}

/// One time that a reader was lent: the consumer may use it when it has taken the batch that brings this, not before, or
/// messages would come out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lent(NonZeroU64);

#[derive(Default)]
enum Place {
    /// With the task.
    #[default]
    AtHome,
    /// The consumer may use it.
    Out(PeerReader),
    /// Given back, or why that could not be.
    Back(Result<PeerReader, Error>),
}

impl Loan {
    /// Lets the consumer use the reader.
    pub(crate) fn lend(&self, reader: PeerReader) -> Lent {
        let mut state = self.lock();
        state.quiet = Some((net::now(), reader.is_mid_frame()));
        state.place = Place::Out(reader);
        state.lent += 1;
        Lent(NonZeroU64::MIN.saturating_add(state.lent))
    }

    /// As the consumer: waits for the next batch, and has it counted before the task can have the reader back. `None` when the
    /// reader is not lent any more: its task has to be called.
    pub(crate) fn poll_batch<T>(
        &self,
        lent: Lent,
        cx: &mut Context<'_>,
        count: impl FnOnce(Batch) -> T,
    ) -> Poll<Option<T>> {
        let mut state = self.lock();
        if !state.is(lent) {
            return Poll::Ready(None);
        }
        let State { place: Place::Out(reader), quiet, .. } = &mut *state else { return Poll::Ready(None) };
        let filled = reader.poll_fill(cx);
        let begun = reader.is_mid_frame();
        if filled.is_pending() && begun && !matches!(quiet, Some((_, true))) {
            *quiet = Some((net::now(), begun));
        }
        // A large frame waits for its bytes in the task, which has a share of the inbox for them.
        let fits = reader.fits_a_chunk();
        match filled {
            Poll::Pending if fits => return Poll::Pending,
            Poll::Ready(Ok(true)) if fits => {
                let batch = reader.take();
                *quiet = Some((net::now(), reader.is_mid_frame()));
                return Poll::Ready(Some(count(batch)));
            }
            // The task looks again, and finds the frames, or the end.
            Poll::Pending | Poll::Ready(Ok(_)) => state.give_back(),
            Poll::Ready(Err(error)) => state.place = Place::Back(Err(error)),
        }
        Poll::Ready(None)
    }

    /// As the consumer: has no more use for it. Its task has to be called.
    pub(crate) fn give_back(&self, lent: Lent) {
        let mut state = self.lock();
        if state.is(lent) {
            state.give_back();
        }
    }

    /// As the task: takes it when it has been given back.
    pub(crate) fn take_back(&self) -> Option<Result<PeerReader, Error>> {
        self.lock().take(|place| matches!(place, Place::Back(_)))
    }

    /// As the task: takes it wherever it is. `None` if the task has it.
    pub(crate) fn revoke(&self) -> Option<Result<PeerReader, Error>> {
        self.lock().take(|_| true)
    }

    /// Since when the peer, or the consumer, has let the other wait: since the last batch, or since the frame behind it has
    /// begun. `None` if the reader was never lent.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        self.lock().quiet.map(|(since, _)| since)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics halfway.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it is this time that it was lent last.
    fn is(&self, lent: Lent) -> bool {
        lent.0.get() - 1 == self.lent
    }

    fn give_back(&mut self) {
        if let Some(reader) = self.take(|place| matches!(place, Place::Out(_))) {
            self.place = Place::Back(reader);
        }
    }

    fn take(&mut self, which: fn(&Place) -> bool) -> Option<Result<PeerReader, Error>> {
        if !which(&self.place) {
            return None;
        }
        match std::mem::take(&mut self.place) {
            Place::AtHome => None,
            Place::Out(reader) => Some(Ok(reader)),
            Place::Back(back) => Some(back),
        }
    }
}
