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
use crate::framed::{Batch, Reader};
use crate::runtime::Handle;
use crate::sync::Lock;
use crate::transport;

/// In a box, because it is moved to and fro.
pub(crate) type PeerReader = Box<Reader<transport::Stream>>;

/// Where the reader of one peer is, as far as its task does not have it.
#[derive(Default)]
pub(crate) struct Loan(Lock<State>);

#[derive(Default)]
struct State {
    place: Place,
    /// What is not with one of the two: the reader, or why there is none any more.
    reader: Option<Result<PeerReader, Box<Error>>>,
    /// How often it was lent.
    lent: u64,
    /// Since when it has brought nothing, and whether a frame has begun since then.
    quiet: Option<(Instant, bool)>,
}

/// One time that a reader was lent: the consumer may use it when it has taken the batch that brings this, not before, or
/// messages would come out of order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lent(NonZeroU64);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    /// With the task.
    #[default]
    AtHome,
    /// The consumer may use it.
    Out,
    /// The consumer is using it.
    InUse,
    /// The consumer is using it, and has to give it back.
    Wanted,
    /// Given back.
    Back,
}

/// What a consumer gets from a reader that is lent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaned {
    Batch,
    /// A batch; and the reader is not lent any more: its task has to be called.
    Last,
    /// The same, without a batch.
    Back,
}

impl Loan {
    /// Lets the consumer use the reader.
    pub(crate) fn lend(&self, reader: PeerReader, runtime: &Handle) -> Lent {
        let quiet = (runtime.now(), reader.is_mid_frame());
        let mut state = self.0.lock();
        state.quiet = Some(quiet);
        (state.place, state.reader) = (Place::Out, Some(Ok(reader)));
        state.lent += 1;
        Lent(NonZeroU64::MIN.saturating_add(state.lent))
    }

    /// As the consumer: waits for the next batch, which `take` takes, and counts before the task can have the reader back.
    pub(crate) fn poll_batch(
        &self,
        lent: Lent,
        runtime: &Handle,
        cx: &mut Context<'_>,
        take: impl FnOnce(Batch),
    ) -> Poll<Loaned> {
        let Some(mut reader) = self.0.lock().begin_use(lent) else { return Poll::Ready(Loaned::Back) };
        let in_use = InUse(self);
        // Without the lock: the socket keeps the consumer's waker, and drops one that it has had.
        let filled = reader.poll_fill(cx);
        // A large frame waits for its bytes in the task, which has a share of the inbox for them.
        let fits = reader.fits_a_chunk();
        let is_batch = fits && matches!(filled, Poll::Ready(Ok(true)));
        if is_batch {
            take(reader.take());
        }
        mem::forget(in_use);

        let is_pending = filled.is_pending();
        let begun = reader.is_mid_frame();
        let reader = match filled {
            Poll::Ready(Err(error)) => Err(Box::new(error)),
            // Where there is no batch the task looks again, and finds the frames, or the end.
            _ => Ok(reader),
        };
        let mut state = self.0.lock();
        if is_batch || (is_pending && begun && !matches!(state.quiet, Some((_, true)))) {
            state.quiet = Some((runtime.now(), begun));
        }
        let stays = fits && (is_batch || is_pending);
        let unwanted = state.end_use(reader, stays);
        let is_out = state.place == Place::Out;
        drop(state);
        drop(unwanted);
        match (is_batch, is_out) {
            (true, true) => Poll::Ready(Loaned::Batch),
            (true, false) => Poll::Ready(Loaned::Last),
            (false, true) => Poll::Pending,
            (false, false) => Poll::Ready(Loaned::Back),
        }
    }

    /// As the consumer: has no more use for it. Its task has to be called.
    pub(crate) fn give_back(&self, lent: Lent) {
        let mut state = self.0.lock();
        if state.is(lent) && state.place == Place::Out {
            state.place = Place::Back;
        }
    }

    /// As the task: takes it when it has been given back.
    pub(crate) fn take_back(&self) -> Option<Result<PeerReader, Error>> {
        let mut state = self.0.lock();
        if state.place == Place::Back { state.take() } else { None }
    }

    /// As the task: takes it wherever it is. `None` if the consumer is using it at this moment: then it gives it back, and
    /// calls the task.
    pub(crate) fn revoke(&self) -> Option<Result<PeerReader, Error>> {
        let mut state = self.0.lock();
        if let Place::InUse | Place::Wanted = state.place {
            state.place = Place::Wanted;
            return None;
        }
        state.take()
    }

    /// The connection ends: takes it wherever it is. One that is being used is dropped when it is given back.
    pub(crate) fn end(&self) -> Option<Result<PeerReader, Error>> {
        self.0.lock().take()
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
        drop(self.0.0.lock().end_use(Err(Box::new(lost)), false));
    }
}

impl State {
    /// Whether it is this time that it was lent last.
    fn is(&self, lent: Lent) -> bool {
        lent.0.get() - 1 == self.lent
    }

    /// Takes the reader for its consumer, if this is the time that it was lent last, and it is out.
    fn begin_use(&mut self, lent: Lent) -> Option<PeerReader> {
        if !self.is(lent) || self.place != Place::Out {
            return None;
        }
        self.place = Place::InUse;
        self.reader.take()?.ok()
    }

    /// Puts it back, for its consumer if it `stays` and nobody else wants it. What is returned is to be dropped without the
    /// lock.
    #[must_use]
    fn end_use(
        &mut self,
        reader: Result<PeerReader, Box<Error>>,
        stays: bool,
    ) -> Option<Result<PeerReader, Box<Error>>> {
        self.place = match self.place {
            Place::InUse if stays => Place::Out,
            Place::InUse | Place::Wanted => Place::Back,
            // The connection has ended.
            Place::AtHome | Place::Out | Place::Back => return Some(reader),
        };
        self.reader.replace(reader)
    }

    fn take(&mut self) -> Option<Result<PeerReader, Error>> {
        self.place = Place::AtHome;
        self.reader.take().map(|reader| reader.map_err(|error| *error))
    }
}
