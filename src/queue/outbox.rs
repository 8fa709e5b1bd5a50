//! The bounded queue of one peer's outgoing messages: many producers, one transport.
//!
//! A producer that waits for room or for a flush takes the transport out of the queue, writes what everybody has put in, and
//! puts it back: no task stands between a producer and a socket that takes what it is given. When the socket does not,
//! the queue is *stalled*, and its driver, the task that owns the peer, goes on as the socket allows. Only the driver
//! opens a new transport where the old one broke.
//!
//! # Who waits, and who wakes them
//!
//! A full queue has a [line](crate::line) in front of it. Who waits to be written waits by ticket, and is woken when that is
//! over, and nobody else is. Each has a [`Place`], and leaves with it. Nobody waits in vain:
//! - Where a condition comes true, those who wait for it are taken out in the same moment: room in `let_in`, a ticket in
//!   `wake_over`. So those who are left wait for somebody to write.
//! - While somebody writes, they look again before they leave, in `write_until`: what they do not finish for others they leave
//!   to the driver (`stall`, `pass_on`). To the driver, and not to one of those who wait: nobody can tell whether that one is
//!   still polled, and all the others would wait for it.
//! - Once called, the driver writes until nothing is left. It registers before it looks, so no call is lost on the way.

use std::future::{Future, poll_fn};
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::io::AsyncWrite;

use super::batch::Batch;
use super::books::Ticket;
use super::held::{Held, Load, Then, Transport};
use super::line::Offer;
use super::place::{Place, Stage, Wait};
use super::rules::Rules;
use super::settling::Settling;
use super::shelf::Shelf;
use super::totals::Totals;
use super::verdict::Verdict;
use crate::error::Error;
use crate::foreign::{self, PanicSource};
use crate::sync::{Guard, Lock, MutexGuard};
use crate::wire::{Codec, Output};

/// The queue of one peer.
pub(crate) struct Outbox<W> {
    pub(super) state: Lock<Held<W>>,
    /// In a session, what it is still to be told.
    pub(super) settling: Settling,
    pub(crate) rules: Arc<Rules<W>>,
}

/// What a queue held when it was closed.
pub(crate) struct Rest {
    last: Ticket,
    /// How many messages had been given back by then.
    given_back: u64,
}

/// What an attempt to write did.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// The transport took a batch.
    Wrote,
    /// There is nothing to write.
    Idle,
    /// Somebody else is writing, and looks after the others.
    Busy,
    /// The transport takes no more for now, or the next messages are too old: the driver takes those back first.
    Full,
    /// There is no transport, or none any more.
    Gone,
}

pub(crate) type State<'a, W> = Guard<'a, Held<W>>;

impl<W: AsyncWrite + Unpin> Outbox<W> {
    pub(crate) fn new(io: W, codec: Codec, rules: Arc<Rules<W>>) -> Self {
        Self::with(Held::new(io, codec, rules.clone()), rules)
    }

    /// That of a transport that is still to come.
    pub(crate) fn down(codec: Codec, rules: Arc<Rules<W>>) -> Self {
        Self::with(Held::down(codec, rules.clone()), rules)
    }

    pub(super) fn with(held: Held<W>, rules: Arc<Rules<W>>) -> Self {
        Self { state: Lock::new(held), settling: Settling::new(), rules }
    }

    // ---- producers

    /// Accepts a message. It never waits, but writes what can be written at once where `mark` bytes are pending.
    pub(crate) fn push(&self, mut message: Bytes, mark: usize) -> Result<Ticket, Error> {
        let mut state = self.lock();
        let ticket = state.push(&mut message)?;
        let has_room = state.has_room(mark);
        drop(state);
        if !has_room {
            self.try_room(mark);
        }
        Ok(ticket)
    }

    /// Hands over a message of which its producer has a copy: if it is not written, the producer returns it. It is accepted when
    /// there is room, in turn.
    pub(crate) fn offer(&self, message: Bytes, place: &mut Place) -> Result<(), Error> {
        place.stage = self.lock().offer(message)?;
        Ok(())
    }

    /// Hands over what one producer has put together; the batch is empty then. `false` if nothing more is accepted.
    pub(crate) fn offer_batch(&self, batch: &mut Batch, place: &mut Place) -> bool {
        self.lock().offer_batch(batch, place)
    }

    /// Waits until what was handed over is accepted; `false` if it is not, because the queue was closed.
    pub(crate) fn poll_accepted(&self, place: &mut Place, cx: &mut Context<'_>) -> Poll<bool> {
        if !matches!(place.stage, Stage::InLine(_)) {
            return Poll::Ready(true);
        }
        self.poll_producer(place, cx, |state, place| state.is_accepted(place).map_or(Ok(false), |is| is.map(|()| true)))
    }

    /// Waits until what was accepted is over. The error is what became of a message that its producer has a copy of, where it
    /// was given back.
    pub(crate) fn poll_over(&self, place: &mut Place, cx: &mut Context<'_>) -> Poll<Result<(), Verdict>> {
        let Some(ticket) = place.stage.ticket() else { return Poll::Ready(Ok(())) };
        let given_back = self.poll_producer(place, cx, |state, place| {
            if !state.books.is_over(ticket) {
                return Err(Wait::Over(ticket));
            }
            place.stage = Stage::Nothing;
            Ok(state.books.unclaim(ticket))
        });
        given_back.map(|verdict| verdict.map_or(Ok(()), Err))
    }

    /// Waits until what was accepted is written, or given back.
    pub(crate) fn poll_written(&self, place: &mut Place, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Accepted(ticket) = place.stage else { return Poll::Ready(()) };
        self.poll_producer(place, cx, |state, place| {
            if !state.books.is_written(ticket) {
                return Err(Wait::Written(ticket));
            }
            place.stage = if state.books.is_over(ticket) { Stage::Nothing } else { Stage::Written(ticket) };
            Ok(())
        })
    }

    /// Whether what was handed over is over, one way or the other.
    pub(crate) fn is_over(&self, place: &mut Place) -> bool {
        let mut state = self.lock();
        let is_accepted = matches!(state.is_accepted(place), Some(Ok(())));
        is_accepted && place.stage.ticket().is_none_or(|ticket| state.books.is_over(ticket))
    }

    /// Its producer does not wait any more.
    pub(crate) fn leave(&self, place: &mut Place) {
        if place.waiting.is_some() {
            self.lock().leave(place);
        }
    }

    /// Its producer does not wait any more, and takes back what was not accepted.
    pub(crate) fn withdraw(&self, place: &mut Place) -> Option<Offer> {
        let Stage::InLine(turn) = place.stage else {
            self.leave(place);
            return None;
        };
        let mut state = self.lock();
        state.leave(place);
        let offer = state.line.leave(turn);
        match offer {
            Some(_) => place.stage = Stage::Nothing,
            None => drop(state.is_accepted(place)),
        }
        offer
    }

    /// The producer of a message that it has a copy of does not wait any more. Where that was given back, returns why: nobody
    /// else has it.
    pub(crate) fn abandon(&self, place: &mut Place) -> Option<Verdict> {
        // What was not accepted is not sent.
        drop(self.withdraw(place));
        let ticket = mem::take(&mut place.stage).ticket()?;
        let mut state = self.lock();
        let given_back = state.books.unclaim(ticket);
        if !state.books.is_over(ticket) {
            // The producer that is writing now may not be the one to go on.
            state.leave_to_driver();
        }
        given_back
    }

    /// Puts a message on the shelf of a sink, as `push` does. How many bytes are on it then; and `push` comes back where nothing is
    /// accepted any more. What it has of the program's it is to leave outside: it is called under a lock. For most messages there is
    /// a shorter way, [`Shelf::copy`].
    #[inline(never)]
    pub(crate) fn feed<F: FnOnce(&mut Output) -> Result<(), Error>>(
        &self,
        shelf: &Arc<Shelf>,
        push: F,
    ) -> Result<Result<usize, Error>, F> {
        let mut shelved = shelf.lock();
        if shelved.batch.messages > 0 {
            return Ok(shelved.push(push, || self.rules.now()));
        }
        drop(shelved);
        self.lock().feed_first(shelf, push)
    }

    /// Hands over what is on the shelf of a sink, to be accepted when there is room, and says where that is. `false` if something is
    /// on it and nothing more is accepted.
    pub(crate) fn hand_over(&self, shelf: &Arc<Shelf>, place: &mut Place) -> bool {
        self.lock().hand_over(shelf, place)
    }

    /// Accepts the last messages of a sink that goes, for the driver to write, while less than `max` bytes are held. The error
    /// is why not.
    pub(crate) fn part(&self, shelf: &Shelf, max: usize) -> Result<(), Verdict> {
        self.lock().part(shelf, max)
    }

    /// Where nothing lingers, writes what was handed over, as nobody else may come for it; what the transport does not take is left
    /// to the driver. Whether it was for this to do.
    pub(crate) fn write_full(&self) -> bool {
        if self.rules.linger.is_some() {
            return false;
        }
        let _ = self.write_until(|state| if state.has_more() { Err(Wait::Room) } else { Ok(()) });
        true
    }

    /// Leaves what is pending to the driver: its producer does not wait.
    pub(crate) fn leave_to_driver(&self) {
        self.lock().leave_to_driver();
    }

    /// Waits until less than `mark` bytes are pending, or nothing more is accepted.
    pub(crate) fn poll_room(&self, mark: usize, place: &mut Place, cx: &mut Context<'_>) -> Poll<()> {
        if place.waiting.is_none() && room(&self.peek(), mark).is_ok() {
            return Poll::Ready(());
        }
        self.poll_producer(place, cx, |state, _| room(state, mark))
    }

    /// Whether there is room now, if need be by writing. Nobody waits for it.
    pub(crate) fn try_room(&self, mark: usize) -> bool {
        room(&self.peek(), mark).is_ok() || self.write_until(|state| room(state, mark)).is_ok()
    }

    /// Waits, as a producer, until `look` finds what it looks for.
    fn poll_producer<T>(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
        mut look: impl FnMut(&mut Held<W>, &mut Place) -> Result<T, Wait>,
    ) -> Poll<T> {
        let found = self.write_until(|state| {
            let found = look(state, place)?;
            state.leave(place);
            Ok(found)
        });
        match found {
            Ok(found) => Poll::Ready(found),
            Err((mut state, wait)) => {
                state.wait(wait, place, cx.waker());
                Poll::Pending
            }
        }
    }

    /// Writes, batch by batch, until `look` finds what it looks for. The error is what it waits for where only somebody else can
    /// go on.
    pub(crate) fn write_until<T>(
        &self,
        mut look: impl FnMut(&mut Held<W>) -> Result<T, Wait>,
    ) -> Result<T, (State<'_, W>, Wait)> {
        let mut state = self.lock();
        let mut may_write = true;
        loop {
            match look(&mut state) {
                Ok(found) => {
                    state.pass_on();
                    return Ok(found);
                }
                Err(wait) if state.stalled || !may_write => return Err((state, wait)),
                Err(_) => {}
            }
            let step;
            // The socket need not wake anybody: when it is not ready, the driver asks it again.
            (state, step) = self.step(state, &mut Context::from_waker(Waker::noop()));
            may_write = step == Step::Wrote;
            if !may_write && step != Step::Busy {
                // Even if this producer has what it waited for, somebody must go on.
                state.stall();
            }
        }
    }

    // ---- the end

    /// Accepts nothing more. Returns what is held, if anything is.
    pub(crate) fn close(&self) -> Option<Rest> {
        let mut state = self.lock();
        state.close();
        (state.held() > 0).then(|| Rest { last: state.books.ticket(), given_back: state.books.given_back() })
    }

    /// Whether nothing more is accepted.
    pub(crate) fn is_closed(&self) -> bool {
        self.peek().is_closed()
    }

    /// Waits until nothing more is accepted.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> {
        self.attend(|place, cx| {
            let mut state = self.lock();
            if state.is_closed() {
                return Poll::Ready(());
            }
            state.wait(Wait::Closed, place, cx.waker());
            Poll::Pending
        })
    }

    /// Waits until nothing is held any more of what was accepted before the close. The error is why some was given back.
    pub(crate) fn delivered(&self, rest: Rest) -> impl Future<Output = Result<(), Arc<Error>>> {
        self.attend(move |place, cx| {
            self.poll_producer(place, cx, |state, _| match state.books.is_over(rest.last) {
                true => Ok(state.books.why_since(rest.given_back)),
                false => Err(Wait::Over(rest.last)),
            })
        })
    }

    pub(crate) fn books(&self) -> Totals {
        self.peek().books()
    }

    /// The same, with what is on the shelves of sinks, which is accepted as well.
    pub(crate) fn totals(&self) -> Totals {
        let state = self.peek();
        let (books, shelved) = (state.books(), state.shelved());
        Totals { accepted: books.accepted + shelved, held: books.held + shelved, ..books }
    }

    /// Gives the transport what it did not finish, or the next batch. The lock is not held while it writes.
    pub(crate) fn step<'a>(&'a self, mut state: State<'a, W>, cx: &mut Context<'_>) -> (State<'a, W>, Step) {
        let is_idle = matches!(state.transport, Transport::Idle(_));
        let has_expired = self.rules.ttl.is_some() && is_idle && state.expired() > 0;
        // A session has more to say than its messages.
        if has_expired && state.session.is_none() {
            return (state, Step::Full);
        }
        let mut writer = match state.transport.take() {
            Transport::Idle(writer) => writer,
            other => {
                let step = if matches!(other, Transport::Taken(..)) { Step::Busy } else { Step::Gone };
                state.transport = other;
                return (state, step);
            }
        };
        if writer.output().is_empty() && !state.begin_batch(&mut writer) {
            state.transport = Transport::Idle(writer);
            if has_expired {
                return (state, Step::Full);
            }
            state.stalled = false;
            return (state, Step::Idle);
        }
        // What a session has given away it counts itself: its controls are no messages.
        let load = if state.session.is_some() { Load::default() } else { Load::of(writer.output()) };
        state.transport = Transport::Taken(load, Then::Nothing);
        drop(state);

        // Also a batch that waits in the middle goes on only where somebody is left to take it.
        let is_dead = writer.io().is_some_and(self.rules.is_dead);
        let before = writer.output().len();
        // A panic in there would leave the transport taken for ever.
        let drained = if is_dead { Ok(Poll::Pending) } else { foreign::call(|| writer.poll_drain(cx)) };
        let drained = drained.unwrap_or_else(|_| Poll::Ready(Err(Error::Panicked { what: PanicSource::Task })));
        // After an error the frame that was cut counts as unwritten again.
        let taken_bytes = before.saturating_sub(writer.output().len());

        let mut state = self.lock();
        state.progress += taken_bytes as u64;
        if let Some(session) = &mut state.session {
            session.wrote(taken_bytes);
        }
        let mut broken = None;
        let step = match drained {
            _ if is_dead => Step::Gone,
            Poll::Ready(Ok(())) => Step::Wrote,
            Poll::Pending => Step::Full,
            Poll::Ready(Err(error)) => {
                broken = state.broken.replace(error);
                Step::Gone
            }
        };
        if step == Step::Wrote {
            state.batch_written();
        }
        let io = state.put_back(writer, step == Step::Gone);
        if io.is_some() || broken.is_some() {
            drop(state);
            // Neither is dropped under the lock.
            let _ = foreign::dispose((io, broken));
            state = self.lock();
        }
        (state, step)
    }

    /// What `poll` waits for; the future leaves its place when it is dropped.
    pub(crate) fn attend<T>(
        &self,
        mut poll: impl FnMut(&mut Place, &mut Context<'_>) -> Poll<T>,
    ) -> impl Future<Output = T> {
        let mut attendance = Attendance { outbox: self, place: Place::default() };
        poll_fn(move |cx| poll(&mut attendance.place, cx))
    }

    /// To look, and to change nothing. A session may not know yet what the program has taken last.
    pub(crate) fn peek(&self) -> MutexGuard<'_, Held<W>> {
        self.state.lock()
    }

    pub(crate) fn lock(&self) -> State<'_, W> {
        let mut state = self.state.hold(self.rules.panicked.as_ref());
        if let Some(session) = &mut state.session {
            session.settle_run(&self.settling.take());
        }
        state
    }
}

pub(crate) fn room<W: AsyncWrite + Unpin>(state: &Held<W>, mark: usize) -> Result<(), Wait> {
    if state.is_closed() || state.has_room(mark) { Ok(()) } else { Err(Wait::Room) }
}

/// Somebody's wait at a queue.
struct Attendance<'a, W: AsyncWrite + Unpin> {
    outbox: &'a Outbox<W>,
    place: Place,
}

impl<W: AsyncWrite + Unpin> Drop for Attendance<'_, W> {
    fn drop(&mut self) {
        self.outbox.leave(&mut self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::pin::Pin;
    use std::sync::{Mutex, OnceLock};

    use super::*;
    use crate::config::Config;
    use crate::sync::Calls;
    use crate::wire::Output;
    use futures::FutureExt;

    /// A transport that looks at the books while it is written to.
    #[derive(Clone, Default)]
    struct Looking(Arc<OnceLock<Arc<Outbox<Looking>>>>, Arc<Mutex<Vec<Totals>>>);

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

    fn pushed<W: AsyncWrite + Unpin>(outbox: &Outbox<W>, message: &'static [u8]) -> Place {
        let ticket = outbox.push(Bytes::from_static(message), usize::MAX).unwrap();
        Place { stage: Stage::Accepted(ticket), ..Place::default() }
    }

    /// Kept here because over sockets it takes another thread to look in that moment.
    #[test]
    fn the_books_count_what_somebody_is_writing() {
        let looking = Looking::default();
        let codec = Config::new().wire_format(crate::WireFormat::u32_be()).codec().unwrap();
        let outbox = Arc::new(Outbox::new(looking.clone(), codec, Arc::default()));
        assert!(looking.0.set(outbox.clone()).is_ok());
        let mut place = pushed(&outbox, b"message");
        assert!(outbox.poll_over(&mut place, &mut Context::from_waker(Waker::noop())).is_ready());
        let seen = looking.1.lock().unwrap()[0];
        assert_eq!((seen.accepted, seen.written, seen.held, seen.held_bytes), (1, 0, 1, 11));
        assert_eq!((outbox.books().held, outbox.books().held_bytes, outbox.books().bytes), (0, 0, 11));
    }

    /// Kept here because over sockets it takes a transport that breaks while a producer writes the last message.
    #[test]
    fn a_producer_calls_the_driver_that_has_nothing_to_do_whatever_it_was_called_for_before() {
        let outbox = Outbox::new(futures::io::sink(), Config::new().codec().unwrap(), Arc::default());
        let (calls, driver) = Calls::waker();
        let mut cx = Context::from_waker(&driver);
        outbox.lock().stall();
        assert!(outbox.lose().now_or_never().is_some());
        assert!(outbox.poll_wanted(&mut cx).is_pending());

        let mut place = pushed(&outbox, b"wanted");
        assert!(outbox.poll_over(&mut place, &mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(calls.count(), 1);
        assert_eq!(outbox.poll_wanted(&mut cx), Poll::Ready(true));
    }

    /// Kept here because over sockets another producer mostly goes on, or the queue is not full.
    #[test]
    fn a_producer_that_goes_leaves_to_the_driver_what_is_pending() {
        let codec = Config::new().codec().unwrap();
        for parts in [false, true] {
            let outbox = Outbox::new(futures::io::sink(), codec, Arc::default());
            let (calls, driver) = Calls::waker();
            outbox.set_driver(&driver);
            let go = || match parts {
                true => assert!(outbox.part(&Shelf::new(Output::new(codec)), 1).is_ok(), "nothing more is to be held"),
                false => outbox.leave_to_driver(),
            };
            go();
            assert_eq!(calls.count(), 0, "there is nothing to write");
            pushed(&outbox, b"pending");
            go();
            assert_eq!(calls.count(), 1);
        }
    }

    /// A transport that takes nothing.
    struct Full;

    impl AsyncWrite for Full {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Kept here because over sockets a driver that is called in vain, or once more, changes nothing that can be seen.
    #[test]
    fn who_stops_writing_calls_the_driver_for_a_batch_in_the_middle_and_not_for_nothing() {
        for is_left in [false, true] {
            let outbox = Outbox::new(Full, Config::new().codec().unwrap(), Arc::default());
            if is_left {
                pushed(&outbox, b"cut");
                // It is with the transport then, and nothing is pending.
                assert!(outbox.poll_drive(&mut Context::from_waker(Waker::noop())).is_pending());
            }
            let (calls, driver) = Calls::waker();
            outbox.set_driver(&driver);
            let mut state = outbox.lock();
            assert!(!state.stalled && state.pending.is_empty());
            state.driver_wants_room = true;
            state.pass_on();
            drop(state);
            assert_eq!((outbox.is_stalled(), calls.count()), (is_left, usize::from(is_left)));
        }
    }

    /// Kept here because over sockets the flush that follows writes as well.
    #[test]
    fn a_push_writes_at_once_only_where_so_much_is_pending() {
        let outbox = Outbox::new(futures::io::sink(), Config::new().codec().unwrap(), Arc::default());
        let mark = 2 * (b"message".len() + 3);
        for written in [0, mark] {
            outbox.push(Bytes::from_static(b"message"), mark).unwrap();
            assert_eq!(outbox.books().bytes, written as u64);
        }
    }

    /// Kept here because an empty shelf in the line changes nothing that can be seen, but the memory.
    #[test]
    fn a_sink_that_goes_leaves_the_line() {
        let codec = Config::new().max_message_size(1 << 20).codec().unwrap();
        for (max, handed_over) in [(1, false), (usize::MAX, true)] {
            let (outbox, shelf) = (Outbox::new(Full, codec, Arc::default()), Shelf::new(Output::new(codec)));
            pushed(&outbox, &[7; 1 << 16]);
            let fed = outbox.feed(&shelf, |output| output.push(Bytes::from_static(b"fed")));
            assert!(matches!(fed, Ok(Ok(_))));
            let mut place = Place::default();
            assert!(outbox.hand_over(&shelf, &mut place) && matches!(place.stage, Stage::InLine(_)));
            assert_eq!((outbox.books().accepted, outbox.totals().accepted), (1, 2));
            assert_eq!(outbox.part(&shelf, max).is_ok(), handed_over);
            assert!(outbox.lock().line.is_empty());
            // It is counted either way.
            let books = outbox.books();
            assert_eq!((books.accepted, books.given_back), (2, u64::from(!handed_over)));
        }
    }
}
