//! The messages of a listener into a stream.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::subject::Subject;
use buffstreams::{Delivery, Peer, chain};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use tokio::sync::mpsc;

use crate::arrival::Arrival;
use crate::error::Error;
use crate::publisher::{Job, Publisher};
use crate::room::{Place, Room};
use crate::store::{self, Attempts, Failed, Outbound, Store, Stored};

/// How many messages may be in flight, unless the program says otherwise.
const MESSAGES: usize = 4096;
/// How many bytes of them.
const BYTES: usize = 16 << 20;

/// Puts the messages of listeners into a JetStream stream. Cheap to clone: clones share the room, the counts, and who is told what
/// was not stored.
///
/// A message is received, then published, and stored when the stream has acknowledged it: with three replicas, when two of them
/// have it. It is published again, with the same id, until then: while the server is away, the stream has no leader or is full,
/// or no answer has come in time (the context's timeout, 5 s unless set otherwise). Delays between the attempts grow from 50 ms to
/// 2 s, and are jittered.
///
/// # When it waits
///
/// Thousands of messages are [in flight](Self::in_flight). While there is no room for another, the listener is not polled; so its
/// inbox fills, the TCP windows close, and the peers' sinks are pending.
///
/// # What is once, and what is in order
///
/// The stream knows the ids of the last while (`duplicate_window`, two minutes unless set otherwise) and takes none twice. Every
/// message has one: the [program's](Self::message_id), which covers what a client sends again as well, or one of the ingress, which
/// covers the ingress alone.
///
/// Messages are published in the order in which they were received. One that must be published again may come behind later
/// ones: to have the messages of a client in order whatever happens, see [`ordered`](Self::ordered).
#[derive(Clone)]
pub struct Ingress {
    store: Store,
    subject: ToSubject,
    id: ToId,
    ordered: bool,
    give_up: Option<Duration>,
    room: Room,
    shared: Arc<Shared>,
}

/// The program's function of a message, and of who sent it.
type TextOf = Arc<dyn Fn(Peer, &[u8]) -> String + Send + Sync>;

#[derive(Clone)]
enum ToSubject {
    Fixed(Result<Subject, String>),
    By(TextOf),
}

#[derive(Clone)]
enum ToId {
    /// This and a number.
    Own(Arc<str>),
    By(TextOf),
}

/// Where what was not stored goes to the program. It has no bound of its own: what is in it keeps its place in the room.
type Taker = mpsc::UnboundedSender<(Unstored, Place)>;

#[derive(Default)]
struct Shared {
    counts: Counts,
    /// The last number of an id.
    last: AtomicU64,
    taker: Mutex<Option<Taker>>,
}

#[derive(Default)]
struct Counts {
    received: AtomicU64,
    stored: AtomicU64,
    duplicates: AtomicU64,
    repeated: AtomicU64,
    unstored: AtomicU64,
}

/// What an ingress has counted so far, with all its clones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IngressStats {
    /// How many messages were received.
    pub received: u64,
    /// How many of them the stream has.
    pub stored: u64,
    /// How many of those it had already, by their ids: a client had sent them before, or an acknowledgement was lost.
    pub duplicates: u64,
    /// How often a message was published again.
    pub repeated: u64,
    /// How many were given up, and handed to the program.
    pub unstored: u64,
    /// How many are in flight now, those included that were given up and are not yet taken.
    pub in_flight: usize,
    /// How many bytes these are, without headers.
    pub in_flight_bytes: usize,
}

/// A message that was received, and that the stream has not acknowledged.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unstored {
    /// Who sent it.
    pub peer: Peer,
    /// The message.
    pub message: Bytes,
    /// What the last attempt met.
    pub error: Error,
    /// Whether the stream may have it all the same, now or later: an attempt had no answer.
    pub in_doubt: bool,
}

/// The messages of an [`Ingress`] that were not stored, as a `Stream`.
///
/// What is in it counts as in flight until it is taken: an ingress whose program takes none comes to a halt, and with it the
/// peers. It ends when all clones of the ingress are gone. Dropping a future of `next` loses nothing.
pub struct UnstoredMessages(mpsc::UnboundedReceiver<(Unstored, Place)>);

impl Ingress {
    /// An ingress to a subject. It is checked when it is used: each message comes back with [`Error::Subject`] if it is none.
    ///
    /// The stream that has the subject is the program's. So is the context, whose timeout is how long an acknowledgement is waited
    /// for.
    pub fn new(context: jetstream::Context, subject: impl Into<String>) -> Self {
        Self::with(context, ToSubject::Fixed(store::subject(subject)))
    }

    /// An ingress to a subject for each message, by who sent it and what it says. It must be cheap: it is called in the task that
    /// [`run`](Self::run)s. A message for which it panics comes back with [`Error::Panicked`].
    pub fn by(context: jetstream::Context, subject: impl Fn(Peer, &[u8]) -> String + Send + Sync + 'static) -> Self {
        Self::with(context, ToSubject::By(Arc::new(subject)))
    }

    fn with(context: jetstream::Context, subject: ToSubject) -> Self {
        let store = Store::new(context);
        let id = ToId::Own(store.unique().into());
        let room = Room::new(MESSAGES, BYTES);
        Self { store, subject, id, ordered: false, give_up: None, room, shared: Arc::default() }
    }

    /// The program's own id of a message, its `Nats-Msg-Id`: an order's number, say, or the client's name and a count. A client that
    /// sends a message again, because it cannot know whether it arrived, has it in the stream once. Default: an id that the ingress
    /// makes up.
    ///
    /// It is called for each message once, as the function of [`by`](Self::by) is.
    #[must_use]
    pub fn message_id(mut self, id: impl Fn(Peer, &[u8]) -> String + Send + Sync + 'static) -> Self {
        self.id = ToId::By(Arc::new(id));
        self
    }

    /// Keeps the messages of each client in order: one of each is published at a time, and the next when it is stored, or given
    /// up. So a client has as many messages a second as there are round trips to the stream.
    ///
    /// A client is a connection. What it sends on another one, after a break, does not wait for the first.
    #[must_use]
    pub fn ordered(mut self) -> Self {
        self.ordered = true;
        self
    }

    /// How many messages may be in flight, and how many bytes of them; it may be one message more. Default: 4,096, and 16 MiB. It
    /// takes up to four times these bytes, where small messages keep what was read together with them.
    ///
    /// The client of NATS holds as many answers as its `subscription_capacity` says, 65,536 unless set otherwise. What is over that is
    /// published again.
    ///
    /// # Panics
    ///
    /// If one of them is zero.
    #[must_use]
    pub fn in_flight(mut self, messages: usize, bytes: usize) -> Self {
        self.room = Room::new(messages, bytes);
        self
    }

    /// Hands a message to [`unstored`](Self::unstored) when no further attempt fits into this time. An attempt that is being made is
    /// waited for. Default: none; what can be stored one day is tried until then.
    #[must_use]
    pub fn give_up(mut self, after: impl Into<Option<Duration>>) -> Self {
        self.give_up = after.into();
        self
    }

    /// What is not stored, from now on: what was [given up](Self::give_up), and what no attempt can store, because it is too long for
    /// the server, or its subject or id is none. There is one such stream; a second takes the place of the first.
    ///
    /// Ask for it before [`run`](Self::run): what nobody takes is gone, with a line in the log, and counted.
    pub fn unstored(&self) -> UnstoredMessages {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.taker() = Some(sender);
        UnstoredMessages(receiver)
    }

    /// What it has counted so far.
    pub fn stats(&self) -> IngressStats {
        let Counts { received, stored, duplicates, repeated, unstored } = &self.shared.counts;
        IngressStats {
            received: received.load(Relaxed),
            stored: stored.load(Relaxed),
            duplicates: duplicates.load(Relaxed),
            repeated: repeated.load(Relaxed),
            unstored: unstored.load(Relaxed),
            in_flight: self.room.messages(),
            in_flight_bytes: self.room.bytes(),
        }
    }

    /// Stores what a [`Listener`](buffstreams::Listener), or its [`Incoming`](buffstreams::Incoming), yields, until that ends
    /// and everything in flight is stored or given up: after the `close` of the listener, for one.
    ///
    /// It runs on tokio, and so should the listener. Dropping the future leaves what is in flight: it may be stored, and nobody
    /// is told.
    pub async fn run(&self, listener: impl Stream<Item = (Peer, Bytes)> + Unpin) {
        self.take_all(listener).await;
    }

    /// As [`run`](Self::run), of a listener of acknowledged sessions: a message is acknowledged to its sender when the stream has it,
    /// by a quorum of its replicas, and never before.
    ///
    /// Unless the program gives an id, it is that of the [`Delivery`](buffstreams::Delivery), which stays the same whatever becomes of
    /// this process's connections. What is [`Unstored`] comes back to its sender as refused, where it is certain that the stream does
    /// not have it, as with one that is too long. Where an attempt had no answer, it comes back as in doubt, as does what is in flight
    /// when this process dies: where the sender sends it again under an id of the program's own, the stream takes it once.
    pub async fn run_acked(&self, deliveries: impl Stream<Item = Delivery> + Unpin) {
        self.take_all(deliveries).await;
    }

    pub(crate) async fn take_all<A: Arrival>(&self, mut arrivals: impl Stream<Item = A> + Unpin) {
        let (mut lanes, mut is_open) = (Lanes::default(), true);
        let mut storing = Storing { publisher: Publisher::new(&self.store).await, again: FuturesUnordered::new() };
        while is_open || !storing.publisher.is_empty() || !storing.again.is_empty() {
            let mut settled = tokio::select! {
                (job, result) = storing.publisher.next(), if !storing.publisher.is_empty() => {
                    self.attempted(job, result, &mut storing)
                }
                Some(job) = storing.again.next() => self.publish(job, &mut storing).await,
                arrival = self.room.for_next(arrivals.next()), if is_open => {
                    let Some(arrival) = arrival else {
                        is_open = false;
                        continue;
                    };
                    self.shared.counts.received.fetch_add(1, Relaxed);
                    let place = self.room.take(arrival.message().len());
                    match if self.ordered { lanes.enter(arrival, place) } else { Some((arrival, place)) } {
                        Some((arrival, place)) => self.begin(arrival, place, &mut storing).await,
                        None => None,
                    }
                }
            };
            while self.ordered
                && let Some(peer) = settled.take()
                && let Some((arrival, place)) = lanes.next_of(peer)
            {
                settled = self.begin(arrival, place, &mut storing).await;
            }
        }
    }

    /// The first attempt. Returns the peer if its message is settled by that.
    async fn begin<A: Arrival>(&self, arrival: A, place: Place, storing: &mut Storing<A>) -> Option<Peer> {
        match self.outbound(&arrival) {
            Ok(outbound) => {
                let attempts = Attempts::new();
                self.publish(Job { arrival, place, outbound, attempts }, storing).await
            }
            Err(error) => Some(self.settle(arrival, place, Err(error.into()))),
        }
    }

    fn outbound<A: Arrival>(&self, arrival: &A) -> Result<Outbound, Error> {
        let (peer, message) = (arrival.peer(), arrival.message());
        let subject = match &self.subject {
            ToSubject::Fixed(subject) => subject.clone(),
            ToSubject::By(f) => store::subject(call("the function of the subject", || f(peer, message))?),
        };
        let subject = subject.map_err(|subject| Error::Subject { subject })?;
        let id = match &self.id {
            ToId::Own(prefix) => {
                let own = || format!("{prefix}.{}", self.shared.last.fetch_add(1, Relaxed));
                arrival.id().unwrap_or_else(own)
            }
            ToId::By(f) => call("the function of the id", || f(peer, message))?,
        };
        Outbound::new(subject, &id, message.clone())
    }

    async fn publish<A: Arrival>(&self, job: Job<A>, storing: &mut Storing<A>) -> Option<Peer> {
        let is_repeated = job.attempts.published;
        match storing.publisher.publish(job).await {
            Ok(()) => {
                self.shared.counts.repeated.fetch_add(is_repeated.into(), Relaxed);
                None
            }
            Err((job, error)) => self.attempted(job, Err(error), storing),
        }
    }

    /// What an attempt has come to: another one, or the end.
    fn attempted<A: Arrival>(
        &self,
        mut job: Job<A>,
        result: Result<Stored, Error>,
        storing: &mut Storing<A>,
    ) -> Option<Peer> {
        let result = match result.map_err(|error| job.attempts.failed(error, self.give_up)) {
            Ok(stored) => Ok(stored),
            Err(Err(failed)) => Err(failed),
            Err(Ok(delay)) => {
                storing.again.push(Box::pin(async move {
                    tokio::time::sleep(delay).await;
                    job
                }));
                return None;
            }
        };
        Some(self.settle(job.arrival, job.place, result))
    }

    /// It is stored, or handed to the program. Tells its sender, if that waits for it.
    fn settle<A: Arrival>(&self, arrival: A, place: Place, result: Result<Stored, Failed>) -> Peer {
        let (peer, counts) = (arrival.peer(), &self.shared.counts);
        match result {
            Ok(stored) => {
                counts.stored.fetch_add(1, Relaxed);
                counts.duplicates.fetch_add(stored.duplicate.into(), Relaxed);
                arrival.stored();
            }
            Err(Failed { error, in_doubt }) => {
                let message = arrival.message().clone();
                arrival.unstored(in_doubt);
                counts.unstored.fetch_add(1, Relaxed);
                self.hand_over(Unstored { peer, message, error, in_doubt }, place);
            }
        }
        peer
    }

    fn hand_over(&self, unstored: Unstored, place: Place) {
        let taker = self.taker().clone();
        let untaken = match taker {
            Some(taker) => taker.send((unstored, place)).err().map(|refused| refused.0.0),
            None => Some(unstored),
        };
        if let Some(Unstored { peer, message, error, .. }) = untaken {
            let error = chain(&error);
            log::error!(target: "buffstreams", "a message of {} bytes from {peer} is lost: {error}", message.len());
        }
    }

    fn taker(&self) -> MutexGuard<'_, Option<Taker>> {
        // Nothing of the program is called while it is held.
        self.shared.taker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls a function of the program.
pub(crate) fn call<T>(what: &'static str, f: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|_| Error::Panicked { what })
}

/// What is on its way into the stream, and what waits for another attempt.
struct Storing<A> {
    publisher: Publisher<A>,
    again: FuturesUnordered<BoxFuture<'static, Job<A>>>,
}

/// Who has one in flight, and what waits behind it.
struct Lanes<A>(HashMap<Peer, VecDeque<(A, Place)>>);

impl<A> Default for Lanes<A> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<A: Arrival> Lanes<A> {
    /// The same again if nothing of its peer is in flight; or else it waits.
    fn enter(&mut self, arrival: A, place: Place) -> Option<(A, Place)> {
        match self.0.get_mut(&arrival.peer()) {
            Some(waiting) => {
                waiting.push_back((arrival, place));
                None
            }
            None => {
                self.0.insert(arrival.peer(), VecDeque::new());
                Some((arrival, place))
            }
        }
    }

    /// What this peer has next, now that the one in flight is settled.
    fn next_of(&mut self, peer: Peer) -> Option<(A, Place)> {
        let next = self.0.get_mut(&peer)?.pop_front();
        if next.is_none() {
            self.0.remove(&peer);
        }
        next
    }
}

impl Stream for UnstoredMessages {
    type Item = Unstored;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Unstored>> {
        self.0.poll_recv(cx).map(|taken| taken.map(|(unstored, _place)| unstored))
    }
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ingress").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl fmt::Debug for UnstoredMessages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnstoredMessages").finish_non_exhaustive()
    }
}
