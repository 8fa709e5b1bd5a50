//! One producer of a manager: a `Sink` of messages, each to the address that it names.

use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use futures::sink::{Sink, SinkExt};

use super::addresses::{Addresses, Alive};
use crate::error::Error;
use crate::framed::HIGH_WATER;
use crate::link::Link;
use crate::peer::Address;
use crate::queue::{Place, Shelf, Stage};
use crate::wire::Output;

/// From how many addresses on a sink forgets those that were closed. Never more often than they double.
const PRUNE_FROM: usize = 64;
/// After how many batches a sink lets other tasks run: one that writes all by itself, as long as the socket takes it, would
/// keep a thread for itself, and those that share it would have nothing of the connection.
const BATCHES_IN_A_ROW: u32 = 4;

/// A producer: a `Sink` of `(Address, Bytes)` into a [`Manager`](crate::Manager).
///
/// - `start_send` never waits. A message over the limit comes back in [`Error::MessageTooLarge`], one to an address that is
///   not open in [`Error::NotOpen`]; the sink works on.
/// - `poll_ready` waits, in turn, while the queue of the last address written to is full, and as much as a hand-over is collected
///   here; and now and then for a moment, so that a sink that never has to wait lets other tasks run.
///   It is full when 60 KiB are pending. With [`Config::reconnect`](crate::Config::reconnect) or a
///   [session](crate::Config::session), while the connection is down, it is full when `queue_bytes` are held instead. In a session
///   that counts while it is up as well.
/// - `poll_flush` waits for room in the same way, and is ready when the kernel has taken everything that came through
///   this sink. If messages that came through it since the last flush were not sent, it returns an error, one for each
///   address: [`Error::NotSent`]. They are dead letters.
/// - `poll_close` flushes and ends this sink, not the connections. With [`Config::session`](crate::Config::session) it waits
///   as [`barrier`](Self::barrier) does: where `forward` into this sink returns `Ok`, all was taken.
///
/// Small messages are put together here, under a lock that nobody else waits for, and handed over 60 KiB at a time, or with
/// `reconnect` or a session `queue_bytes` if that is less; a flush hands over what there is. What nobody flushes is handed over
/// by the task of its address, 5 ms after the first of it came: see [`Config::linger`](crate::Config::linger). A message is
/// accepted, and its [age](crate::Config::message_ttl) begins, when it is put in here. Closing its address delivers it. Dropping
/// a future loses nothing that was accepted.
///
/// Dropping the sink leaves what is pending to the background. It cannot wait: where `queue_bytes` are held already, what
/// was not handed over becomes dead letters, with [`Outcome::QueueFull`](crate::Outcome::QueueFull).
pub struct ManagerSink {
    addresses: Arc<Addresses>,
    /// It keeps the manager, unless it is weak.
    _alive: Option<Arc<Alive>>,
    /// How many bytes are collected for an address before they are handed over.
    batch: usize,
    producers: Vec<Producer>,
    /// Which of them an address has.
    by_address: HashMap<Address, usize>,
    /// The one that was written to last: mostly the next one, too. None of them where the sink is closed.
    last: usize,
    /// There was a whole hand-over for that one when its last message came.
    full: bool,
    /// How many batches it has written by itself.
    batches: u32,
    /// Where a message of the program's own types is encoded.
    encoded: Option<Box<Output>>,
    /// From so many producers on, those are forgotten that are of no use any more.
    prune_at: usize,
    closed: bool,
}

/// One sink's messages to one address.
struct Producer {
    link: Arc<Link>,
    /// Accepted, and not handed over, perhaps for the address's task to do that. Whether any are given back is in its fate, for the
    /// next flush to tell.
    shelf: Arc<Shelf>,
    /// What was handed over and not flushed.
    place: Place,
}

impl ManagerSink {
    pub(crate) fn new(addresses: Arc<Addresses>, alive: Option<Arc<Alive>>) -> Self {
        let batch = addresses.common.config.room_while_down().map_or(HIGH_WATER, |room| room.min(HIGH_WATER));
        let (producers, by_address) = (Vec::new(), HashMap::new());
        Self {
            addresses,
            _alive: alive,
            batch,
            producers,
            by_address,
            last: 0,
            full: false,
            batches: 0,
            encoded: None,
            prune_at: PRUNE_FROM,
            closed: false,
        }
    }

    /// Accepts a message that stays with the program, without waiting: it is copied behind the others to `address`, where `feed`
    /// needs a [`Bytes`] for each. `Ok(false)` where `feed` would wait, whatever address it waits for: then it was not
    /// accepted, and [`ready`](Self::ready) waits.
    ///
    /// Nothing is allocated for a message of less than 64 KiB, as the buffers are used again. The errors are those of `feed`,
    /// with a copy of the message.
    pub fn try_feed(&mut self, address: &Address, message: &[u8]) -> Result<bool, Error> {
        if self.closed {
            return Err(Error::Closed { message: Some(Bytes::copy_from_slice(message).into()) });
        }
        if self.must_wait() {
            return Ok(false);
        }
        if self.copy(address, message) {
            return Ok(true);
        }
        match self.feed_to(address, |output| output.push_copy(message)) {
            Ok(fed) => fed.map(|()| true),
            Err(_) => {
                let message = Some(Bytes::copy_from_slice(message).into());
                Err(Error::NotOpen { address: address.clone(), message })
            }
        }
    }

    /// Waits as `feed` does, until [`try_feed`](Self::try_feed) accepts a message, or has an error to return. Dropping
    /// the future loses nothing.
    pub fn ready(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        poll_fn(|cx| self.poll_ready_unpin(cx))
    }

    /// Flushes, and waits until the programs at the other ends have taken all that came through this sink, with
    /// [`Config::session`](crate::Config::session).
    ///
    /// If some came back, it returns an error, one for each address: [`Error::NotSent`], whose source says why. What became of each message is in the [dead letters](crate::Manager::dead_letters). Without
    /// a session the error is [`Error::NoSession`]. It waits as long as the other ends do. Dropping the future loses
    /// nothing.
    pub fn barrier(&mut self) -> impl Future<Output = Result<(), Error>> + Send + Unpin {
        poll_fn(|cx| match self.has_session() {
            true => self.poll_each(cx, Producer::poll_barrier),
            false => Poll::Ready(Err(Error::NoSession)),
        })
    }

    fn has_session(&self) -> bool {
        self.addresses.common.config.session.is_some()
    }

    /// Polls each address's producer.
    fn poll_each(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl Fn(&mut Producer, &mut Context<'_>) -> Poll<Result<(), Error>>,
    ) -> Poll<Result<(), Error>> {
        let mut polled = Poll::Ready(Ok(()));
        for producer in &mut self.producers {
            match poll(producer, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => polled = Poll::Pending,
            }
        }
        polled
    }

    /// Whether only a poll can say what becomes of a message.
    pub(crate) fn must_wait(&self) -> bool {
        // No address but the last can have collected a whole hand-over: it was the last when its last message came. Its task may
        // have handed that over since, or a flush.
        self.full && self.producers.get(self.last).is_some_and(|last| last.shelf.held().1 >= self.batch)
    }

    /// Accepts the message that `push` puts behind the others.
    pub(crate) fn push_with(
        &mut self,
        address: &Address,
        push: impl FnOnce(&mut Output) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // What encodes is code of the program, which is not called under a lock.
        let mut encoded = match self.encoded.take() {
            Some(encoded) => encoded,
            None => Box::new(Output::new(self.addresses.common.config.codec()?)),
        };
        let mut pushed = push(&mut encoded);
        if pushed.is_ok() {
            pushed = match self.closed {
                true => Err(Error::Closed { message: encoded.take_messages().pop().map(Into::into) }),
                false => {
                    let behind = |output: &mut Output| {
                        output.append(&mut encoded);
                        Ok(())
                    };
                    match self.feed_to(address, behind) {
                        Ok(fed) => fed,
                        Err(_) => Err(Error::NotOpen { address: address.clone(), message: None }),
                    }
                }
            };
        }
        if let Err(Error::NotOpen { message, .. }) = &mut pushed {
            *message = encoded.take_messages().pop().map(Into::into);
        }
        self.encoded = Some(encoded);
        pushed
    }

    /// Copies a short message behind others to the same address, as most are; `false` where it is not so simple.
    #[inline(always)]
    fn copy(&mut self, address: &Address, message: &[u8]) -> bool {
        // There is no last one where it is closed.
        let last = self.producers.get(self.last).filter(|last| last.link.address == *address);
        match last.and_then(|last| last.shelf.copy(message)) {
            Some(bytes) => {
                self.full = bytes >= self.batch;
                true
            }
            None => false,
        }
    }

    /// Accepts the message that `push` puts on the shelf for the address. It comes back where that is not open.
    #[inline(never)]
    fn feed_to<F: FnOnce(&mut Output) -> Result<(), Error>>(
        &mut self,
        address: &Address,
        push: F,
    ) -> Result<Result<(), Error>, F> {
        if self.producers.get(self.last).is_none_or(|last| last.link.address != *address) {
            match self.find(address) {
                Some(at) => self.last = at,
                None => return Err(push),
            }
        }
        let producer = &mut self.producers[self.last];
        let fed = match producer.link.outbox.feed(&producer.shelf, push) {
            Ok(fed) => fed,
            Err(push) => producer.feed_elsewhere(&self.addresses, push)?,
        };
        Ok(fed.map(|bytes| self.full = bytes >= self.batch))
    }

    /// Accepts a message that is not one of most.
    #[inline(never)]
    fn start_send_first(&mut self, address: Address, mut message: Bytes) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        // Where it is copied it is dropped here, and not under the lock.
        match self.feed_to(&address, |output| output.push_from(&mut message)) {
            Ok(fed) => fed,
            Err(_) => Err(Error::NotOpen { address, message: Some(message.into()) }),
        }
    }

    /// Waits while as much is collected as is handed over at once.
    #[inline(never)]
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let producer = &mut self.producers[self.last];
        let mut has_written = ready!(producer.poll_hand_over(cx));
        has_written |= producer.link.outbox.write_full();
        self.full = false;
        if has_written {
            self.batches = self.batches.wrapping_add(1);
            if self.batches.is_multiple_of(BATCHES_IN_A_ROW) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Where the address's producer is.
    #[inline(never)]
    fn find(&mut self, address: &Address) -> Option<usize> {
        match self.by_address.get(address) {
            Some(at) => Some(*at),
            None => self.add(address),
        }
    }

    fn add(&mut self, address: &Address) -> Option<usize> {
        let link = self.addresses.open(address)?;
        let shelf = Shelf::new(Output::new(self.addresses.common.config.codec().ok()?));
        if self.producers.len() >= self.prune_at {
            self.producers.retain_mut(|producer| !producer.is_over());
            let kept = self.producers.iter().enumerate();
            self.by_address = kept.map(|(at, producer)| (producer.link.address.clone(), at)).collect();
            self.prune_at = PRUNE_FROM.max(2 * self.producers.len());
        }
        let at = self.producers.len();
        self.by_address.insert(address.clone(), at);
        self.producers.push(Producer { link, shelf, place: Place::default() });
        Some(at)
    }
}

impl Producer {
    /// The address was closed. If it has been dialed again since, the message is accepted there.
    #[cold]
    fn feed_elsewhere<F: FnOnce(&mut Output) -> Result<(), Error>>(
        &mut self,
        addresses: &Addresses,
        push: F,
    ) -> Result<Result<usize, Error>, F> {
        match addresses.open(&self.link.address).filter(|link| !Arc::ptr_eq(link, &self.link)) {
            Some(link) => {
                // Everything is over that went through the link before, and written down in the fate.
                self.link = link;
                self.place = Place::default();
                self.shelf.follow();
                self.link.outbox.feed(&self.shelf, push)
            }
            None => Err(push),
        }
    }

    /// Hands over what there is, and waits until it is accepted. `true` where there was room only because this has written.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut has_written = false;
        let outbox = &self.link.outbox;
        // The task may have done so, and then it is to be asked what became of it.
        while matches!(self.place.stage, Stage::InLine(_)) || !self.shelf.is_idle() {
            outbox.hand_over(&self.shelf, &mut self.place);
            if let Stage::InLine(_) = self.place.stage {
                ready!(outbox.poll_accepted(&mut self.place, cx));
                has_written = true;
            }
        }
        Poll::Ready(has_written)
    }

    /// Waits until what came through here is written.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_hand_over(cx));
        // Its fate says how it ended, and those before it.
        ready!(self.link.outbox.poll_written(&mut self.place, cx));
        Poll::Ready(self.tell())
    }

    /// Waits until what came through here is over: in a session, taken.
    fn poll_barrier(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_hand_over(cx));
        ready!(self.link.outbox.poll_written(&mut self.place, cx));
        // Where some came back, its fate says so: told when all are over, as until then others may follow.
        let _ = ready!(self.link.outbox.poll_over(&mut self.place, cx));
        Poll::Ready(self.tell())
    }

    /// Tells what was not told yet of messages that came back.
    fn tell(&mut self) -> Result<(), Error> {
        match self.shelf.tell() {
            Some(source) => Err(Error::NotSent { address: self.link.address.clone(), message: None, source }),
            None => Ok(()),
        }
    }

    /// The address was closed, and there is nothing left to tell of it.
    fn is_over(&mut self) -> bool {
        let outbox = &self.link.outbox;
        // What was fed before is accepted then.
        outbox.is_closed()
            && outbox.hand_over(&self.shelf, &mut self.place)
            && outbox.is_over(&mut self.place)
            && self.shelf.is_clear()
    }

    /// Its sink is gone.
    fn part(&mut self, addresses: &Addresses, max: usize) {
        self.link.outbox.leave(&mut self.place);
        let Err(verdict) = self.link.outbox.part(&self.shelf, max) else { return };
        let messages = self.shelf.take();
        let (common, address) = (addresses.common.clone(), self.link.address.clone());
        // Where the letters wait for room, they go on in the background.
        let _ = common.bury(address, messages, verdict).now_or_never();
    }
}

impl Sink<(Address, Bytes)> for ManagerSink {
    type Error = Error;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // When it is closed, `start_send` gives the message back.
        if self.full { self.get_mut().poll_room(cx) } else { Poll::Ready(Ok(())) }
    }

    fn start_send(self: Pin<&mut Self>, (address, message): (Address, Bytes)) -> Result<(), Error> {
        let this = self.get_mut();
        if this.copy(&address, &message) {
            return Ok(());
        }
        this.start_send_first(address, message)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.get_mut().poll_each(cx, Producer::poll_flush)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let poll = if self.has_session() { Producer::poll_barrier } else { Producer::poll_flush };
        ready!(self.poll_each(cx, poll))?;
        (self.closed, self.full, self.last) = (true, false, usize::MAX);
        Poll::Ready(Ok(()))
    }
}

impl Drop for ManagerSink {
    fn drop(&mut self) {
        let max = self.addresses.common.config.queue_bytes;
        self.producers.iter_mut().for_each(|producer| producer.part(&self.addresses, max));
    }
}

impl fmt::Debug for ManagerSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending: usize = self.producers.iter().map(|producer| producer.shelf.held().1).sum();
        f.debug_struct("ManagerSink").field("pending", &pending).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::testing::Acceptor;
    use crate::sim::testing::Sim;
    use crate::{Config, Manager};
    use futures::SinkExt;

    /// Kept here because only the memory of a sink that outlives its addresses shows it.
    #[test]
    fn a_sink_forgets_addresses_that_were_closed() {
        Sim::default().run(async {
            let manager = Manager::new(Config::new());
            let mut sink = manager.sink();
            for _ in 0..10 * PRUNE_FROM {
                let (acceptor, addr) = Acceptor::bind(&"127.0.0.1:0".into()).await.unwrap();
                manager.dial(addr).await.unwrap();
                sink.send((addr.into(), Bytes::from_static(b"one"))).await.unwrap();
                drop(acceptor.accept(&Config::new()).await);
                manager.close(addr).await.unwrap();
            }
            assert!(sink.producers.len() <= PRUNE_FROM, "{}", sink.producers.len());
            assert!(sink.by_address.iter().all(|(address, at)| sink.producers[*at].link.address == *address));
        });
    }
}
