//! The reader of a peer, lent to the consumer of its messages.
//!
//! A consumer that is done with everything else reads on by itself: no batch of a fast peer has to go through another
//! task then, and mostly through another thread. The peer's task waits meanwhile. It takes the reader back when it is
//! given back, or when it has brought nothing for a while: it is the task that keeps the time and notices the end.

use std::io;
use std::mem;
use std::num::NonZeroU64;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::Error;
use crate::net;
use crate::reader::{Batch, Reader};
use crate::sync::Lock;

/// In a box, because it is moved to and fro.
pub(crate) type PeerReader = Box<Reader<net::Stream>>;

/// Where the reader of one peer is, as far as its task does not have it.
#[derive(Default)]
pub(crate) struct Loan(Lock<State>);

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
    /// The consumer is using it.
    InUse,
    /// The consumer is using it, and has to give it back.
    Wanted,
    /// Given back, or why that could not be.
    Back(Result<PeerReader, Error>),
}

/// What a consumer gets from a reader that is lent to it.
pub(crate) enum Loaned<T> {
    Batch(T),
    /// The reader is not lent any more: its task has to be called.
    Last(T),
    /// The same, and there is nothing.
    Back,
}

impl Loan {
    /// Lets the consumer use the reader.
    pub(crate) fn lend(&self, reader: PeerReader) -> Lent {
        let quiet = (net::now(), reader.is_mid_frame());
        let mut state = self.0.lock();
        state.quiet = Some(quiet);
        state.place = Place::Out(reader);
        state.lent += 1;
        Lent(NonZeroU64::MIN.saturating_add(state.lent))
    }

    /// As the consumer: waits for the next batch, and has it counted before the task can have the reader back.
    pub(crate) fn poll_batch<T>(
        &self,
        lent: Lent,
        cx: &mut Context<'_>,
        count: impl FnOnce(Batch) -> T,
    ) -> Poll<Loaned<T>> {
        let Some(mut reader) = self.0.lock().begin_use(lent) else { return Poll::Ready(Loaned::Back) };
        let in_use = InUse(self);
        // Without the lock: the socket keeps the consumer's waker, and drops one that it has had.
        let filled = reader.poll_fill(cx);
        // A large frame waits for its bytes in the task, which has a share of the inbox for them.
        let fits = reader.fits_a_chunk();
        let batch = if fits && matches!(filled, Poll::Ready(Ok(true))) { Some(count(reader.take())) } else { None };
        mem::forget(in_use);

        let stays = fits && (filled.is_pending() || batch.is_some());
        let quiet = (batch.is_some() || filled.is_pending()).then(|| reader.is_mid_frame());
        let reader = match filled {
            Poll::Ready(Err(error)) => Err(error),
            // Where there is no batch the task looks again, and finds the frames, or the end.
            _ => Ok(reader),
        };
        let (unwanted, is_out) = {
            let mut state = self.0.lock();
            if let Some(begun) = quiet
                && (batch.is_some() || (begun && !matches!(state.quiet, Some((_, true)))))
            {
                state.quiet = Some((net::now(), begun));
            }
            state.end_use(reader, stays)
        };
        drop(unwanted);
        match batch {
            Some(batch) if is_out => Poll::Ready(Loaned::Batch(batch)),
            Some(batch) => Poll::Ready(Loaned::Last(batch)),
            None if is_out => Poll::Pending,
            None => Poll::Ready(Loaned::Back),
        }
    }

    /// As the consumer: has no more use for it. Its task has to be called.
    pub(crate) fn give_back(&self, lent: Lent) {
        let mut state = self.0.lock();
        if let Some(reader) = state.begin_use(lent) {
            state.place = Place::Back(Ok(reader));
        }
    }

    /// As the task: takes it when it has been given back.
    pub(crate) fn take_back(&self) -> Option<Result<PeerReader, Error>> {
        self.0.lock().take(|place| matches!(place, Place::Back(_)))
    }

    /// As the task: takes it wherever it is. `None` if the consumer is using it at this moment: then it gives it back, and
    /// calls the task.
    pub(crate) fn revoke(&self) -> Option<Result<PeerReader, Error>> {
        let mut state = self.0.lock();
        if let Place::InUse = state.place {
            state.place = Place::Wanted;
        }
        state.take(|place| matches!(place, Place::Out(_) | Place::Back(_)))
    }

    /// The connection ends: takes it wherever it is. One that is being used is dropped when it is given back.
    pub(crate) fn end(&self) -> Option<Result<PeerReader, Error>> {
        self.0.lock().take(|_| true)
    }

    /// Since when the peer, or the consumer, has let the other wait: since the last batch, or since the frame behind it has
    /// begun. `None` if the reader was never lent.
    pub(crate) fn quiet_since(&self) -> Option<Instant> {
        self.0.lock().quiet.map(|(since, _)| since)
    }
}

/// The consumer is using the reader, and may panic: its waker is code of the program. What has been received halfway is lost
/// then, and its connection with it.
struct InUse<'a>(&'a Loan);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        let lost = Error::Read(io::Error::other("the consumer panicked while it read"));
        let _ = self.0.0.lock().end_use(Err(lost), false);
    }
}

impl State {
    /// Takes the reader for its consumer, if this is the time that it was lent last, and it is out.
    fn begin_use(&mut self, lent: Lent) -> Option<PeerReader> {
        if lent.0.get() - 1 != self.lent {
            return None;
        }
        match mem::replace(&mut self.place, Place::InUse) {
            Place::Out(reader) => Some(reader),
            other => {
                self.place = other;
                None
            }
        }
    }

    /// Puts it back, for its consumer if it `stays` and nobody else wants it. Returns what is to be dropped without the lock,
    /// and whether it is still out.
    #[must_use]
    fn end_use(&mut self, reader: Result<PeerReader, Error>, stays: bool) -> (Option<Result<PeerReader, Error>>, bool) {
        match (&self.place, reader) {
            (Place::InUse, Ok(reader)) if stays => {
                self.place = Place::Out(reader);
                (None, true)
            }
            (Place::InUse | Place::Wanted, reader) => {
                self.place = Place::Back(reader);
                (None, false)
            }
            (_, reader) => (Some(reader), false),
        }
    }

    fn take(&mut self, which: fn(&Place) -> bool) -> Option<Result<PeerReader, Error>> {
        if !which(&self.place) {
            return None;
        }
        match mem::take(&mut self.place) {
            Place::AtHome | Place::InUse | Place::Wanted => None,
            Place::Out(reader) => Some(Ok(reader)),
            Place::Back(back) => Some(back),
        }
    }
}
