//! A stream into the addresses of a manager.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer};
use async_nats::jetstream::{AckKind, Message};
use async_nats::{HeaderMap, header};
use buffstreams::{Address, Manager, Outcome, Route, chain};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::watch;

use crate::error::Error;
use crate::ingress::call;
use crate::letters;
use crate::pull;
use crate::room::Room;
use crate::store::{self, Outbound, Store};
use crate::undelivered::{OnFailure, Undelivered, may_move};
use crate::write::Writer;

/// How many messages may be in flight, unless the program says otherwise. A consumer has `max_ack_pending`, 1,000, at the most.
const MESSAGES: usize = 1000;
/// How many bytes of them.
const BYTES: usize = 16 << 20;
/// When a message that was not delivered is tried again, unless the program says otherwise.
const AGAIN: Duration = Duration::from_secs(1);

/// Writes the messages of a durable pull consumer to the addresses of a [`Manager`].
///
/// A message is acknowledged when it is *written*, as [`Manager::write`] tells:
///
/// - In an [acknowledged session](buffstreams::Config::session), when the receiver's program has taken it. So every message is
///   taken at least once, whether egresses or receivers die; twice where one died in between.
/// - Else, when the kernel of this machine has all of it. So it is delivered at least once as far as that goes; what a receiver had
///   not read when it ended is lost, as with any TCP.
///
/// One that could not be written, or was not taken, comes again, is given up, or goes into another stream, as
/// [`on_failure`](Self::on_failure) says.
///
/// An address that is not open is dialed. What a manager does about a connection that breaks, [`Config::reconnect`] for one, it
/// does here too; meanwhile JetStream is told that the message is still worked on.
///
/// Messages to one address are written in the order in which the consumer has them, as far as none has to be tried again, or goes
/// to another address of a [`routed`](Self::routed) egress.
///
/// [`Config::reconnect`]: buffstreams::Config::reconnect
pub struct Egress {
    consumer: PullConsumer,
    writer: Writer,
    to: To,
    payload: PayloadOf,
    on_failure: Arc<dyn Fn(&Undelivered<'_>) -> OnFailure + Send + Sync>,
    handle: EgressHandle,
}

/// The program's function of a message.
type AddressOf = Box<dyn Fn(&[u8]) -> Address + Send + Sync>;
/// The program's function of what is written of a message.
type PayloadOf = Box<dyn Fn(&Message) -> Bytes + Send + Sync>;

/// Where a message goes.
enum To {
    Fixed(Address),
    By(AddressOf),
    /// To one of several, or all of them. It counts the messages.
    Route(Route, AtomicUsize),
    /// Where its headers say, as those of a letter.
    Headers,
}

/// Stops an [`Egress`], and tells what it has counted. Cheap to clone.
#[derive(Clone)]
pub struct EgressHandle {
    room: Room,
    counts: Arc<Counts>,
    stop: watch::Sender<bool>,
}

#[derive(Default)]
struct Counts {
    pulled: AtomicU64,
    written: AtomicU64,
    again: AtomicU64,
    terminated: AtomicU64,
    moved: AtomicU64,
}

/// What an egress has counted so far. A message that is tried again is pulled again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EgressStats {
    /// How many messages were pulled.
    pub pulled: u64,
    /// How many were written, with a session taken, and acknowledged.
    pub written: u64,
    /// How many were not, and come again: `nak`.
    pub again: u64,
    /// How many were not, and are given up: `term`.
    pub terminated: u64,
    /// How many were not, and are in another stream: `term` as well.
    pub moved: u64,
    /// How many are in flight now.
    pub in_flight: usize,
    /// How many bytes these are, with subjects and headers.
    pub in_flight_bytes: usize,
}

impl Egress {
    /// An egress to one address.
    ///
    /// The consumer is the program's. It must have a `durable_name`, and the `ack_policy` `Explicit`, or [`run`](Self::run) fails. Its
    /// `ack_wait` is how soon another egress takes over what this one had in flight when it died.
    pub fn new(consumer: PullConsumer, manager: Manager, address: impl Into<Address>) -> Self {
        Self::with(consumer, manager, To::Fixed(address.into()))
    }

    /// An egress to an address for each message. The function must be cheap: it is called in the task that [`run`](Self::run)s. A
    /// message for which it panics is [`Undelivered`].
    pub fn by(
        consumer: PullConsumer,
        manager: Manager,
        address: impl Fn(&[u8]) -> Address + Send + Sync + 'static,
    ) -> Self {
        Self::with(consumer, manager, To::By(Box::new(address)))
    }

    /// An egress to the addresses of a [`Route`], each of which is dialed when it is needed.
    ///
    /// - Of [`failover`](Route::failover), [`round_robin`](Route::round_robin) and [`by_key`](Route::by_key), a message is offered
    ///   to one address after the other, in that [order](Route::order), until one has taken it. It moves on only if it was not
    ///   sent: one that is in doubt, was refused, is too old or too large is [`Undelivered`] at once, with this address; one that
    ///   nobody took, with the address that was asked last. An address that is full is waited for.
    /// - A [`broadcast`](Route::broadcast) is acknowledged when all have it. Where some do not, the message is [`Undelivered`] with
    ///   the first of these; when it comes again, it goes to all once more.
    ///
    /// An address that is [down](buffstreams::Health::Down) and dialed in the background is asked last. One that only a message
    /// dials, as without [`Config::reconnect`], is asked last for a second after it gave a message back. So messages go to it again
    /// soon after it is there again.
    ///
    /// A message for which the function of the key panics is [`Undelivered`], without an address.
    ///
    /// [`Config::reconnect`]: buffstreams::Config::reconnect
    ///
    /// # Panics
    ///
    /// If the route has no address.
    pub fn routed(consumer: PullConsumer, manager: Manager, route: Route) -> Self {
        assert!(!route.addresses().is_empty(), "an egress needs an address");
        Self::with(consumer, manager, To::Route(route, AtomicUsize::new(0)))
    }

    pub(crate) fn of_letters(consumer: PullConsumer, manager: Manager) -> Self {
        Self::with(consumer, manager, To::Headers)
    }

    fn with(consumer: PullConsumer, manager: Manager, to: To) -> Self {
        let (room, counts, stop) = (Room::new(MESSAGES, BYTES), Arc::default(), watch::Sender::new(false));
        let on_failure = Arc::new(|undelivered: &Undelivered<'_>| match undelivered.outcome() {
            Outcome::Refused => OnFailure::Terminate,
            _ => OnFailure::Again(AGAIN),
        });
        let (writer, payload) = (Writer::new(manager), Box::new(|message: &Message| message.payload.clone()));
        Self { consumer, writer, to, payload, on_failure, handle: EgressHandle { room, counts, stop } }
    }

    /// What is written of a message. Default: its payload. With its id in front of that, for one, a receiver knows what it has
    /// twice: the id is the `Nats-Msg-Id` of the headers, where who published it gave one, or its place in the stream.
    ///
    /// It must be cheap, as the function of [`by`](Self::by). A message for which it panics is [`Undelivered`].
    ///
    /// ```
    /// # use buffstreams_nats::Egress;
    /// # fn configure(egress: Egress) -> Egress {
    /// egress.payload(|message| {
    ///     let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
    ///     let id = id.map_or("", |id| id.as_str());
    ///     [id.as_bytes(), b" ", &message.payload].concat().into()
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn payload(mut self, f: impl Fn(&Message) -> Bytes + Send + Sync + 'static) -> Self {
        self.payload = Box::new(f);
        self
    }

    /// How many messages may be in flight, and how many bytes of them; a message that is larger is in flight alone. Default: 1,000,
    /// and 16 MiB.
    ///
    /// The consumer has a limit of its own, `max_ack_pending`, which is 1,000 unless set otherwise.
    ///
    /// # Panics
    ///
    /// If one of them is zero.
    #[must_use]
    pub fn in_flight(mut self, messages: usize, bytes: usize) -> Self {
        self.handle.room = Room::new(messages, bytes);
        self
    }

    /// What becomes of a message that could not be written, or was not taken. Default: what the receiver refused is terminated, and
    /// all else comes again after a second, what is in doubt as well. So a receiver has every message that it does not refuse, and
    /// some perhaps twice.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use buffstreams::Outcome;
    /// # use buffstreams_nats::{Egress, Error, OnFailure};
    /// # fn configure(egress: Egress) -> Egress {
    /// egress.on_failure(|undelivered| match (undelivered.outcome(), undelivered.error) {
    ///     // Never twice: somebody looks whether the receiver has it.
    ///     (Outcome::InDoubt, _) => OnFailure::Move("doubtful".to_owned()),
    ///     (Outcome::Refused, _) => OnFailure::Terminate,
    ///     // It would be too large the next time as well.
    ///     (_, Error::Write(buffstreams::Error::MessageTooLarge { .. })) => OnFailure::Terminate,
    ///     _ => OnFailure::Again(Duration::from_secs(undelivered.deliveries.min(30))),
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn on_failure(mut self, f: impl Fn(&Undelivered<'_>) -> OnFailure + Send + Sync + 'static) -> Self {
        self.on_failure = Arc::new(f);
        self
    }

    /// Stops it from elsewhere, and tells what it has counted.
    pub fn handle(&self) -> EgressHandle {
        self.handle.clone()
    }

    /// Delivers until [`stop`](EgressHandle::stop). While the server cannot be reached, or the consumer is not there, it asks again
    /// and again.
    ///
    /// It runs on tokio, and so should the manager. [`Error::Consumer`] comes before anything is pulled. Dropping the future leaves
    /// what is in flight: it comes again when the consumer's `ack_wait` is over.
    pub async fn run(self) -> Result<(), Error> {
        let info = self.consumer.cached_info();
        let config = &info.config;
        let wrong = |problem| Err(Error::Consumer { name: info.name.clone(), problem });
        if config.ack_policy != AckPolicy::Explicit {
            return wrong("does not have each message acknowledged: its ack_policy must be Explicit");
        }
        if config.durable_name.is_none() {
            return wrong("is forgotten when nobody pulls: it needs a durable_name");
        }
        // Long before the server would have it come again.
        let lease = config.ack_wait / 3;
        let stopped = self.handle.stop.subscribe();
        let mut messages = std::pin::pin!(pull::messages(&self.consumer, &self.handle.room, stopped));
        let (mut delivering, mut client, mut is_open) = (FuturesUnordered::new(), None, true);
        while is_open || !delivering.is_empty() {
            tokio::select! {
                Some(()) = delivering.next() => {}
                next = messages.next(), if is_open => match next {
                    Some((message, place)) => {
                        self.handle.counts.pulled.fetch_add(1, Relaxed);
                        client.get_or_insert_with(|| message.context.client());
                        let mut delivery = Box::pin(async {
                            self.deliver(message, lease).await;
                            drop(place);
                        });
                        // At once, so that it has its place in the queue of the address before the next.
                        if futures::poll!(&mut delivery).is_pending() {
                            delivering.push(delivery);
                        }
                    }
                    None => is_open = false,
                },
            }
        }
        // Or the process may end before the last acknowledgements have left it.
        if let Some(client) = client
            && let Err(error) = client.flush().await
        {
            log::warn!(target: "buffstreams", "some messages may come again: {}", chain(&error));
        }
        Ok(())
    }

    /// Writes one, and tells JetStream.
    async fn deliver(&self, message: Message, lease: Duration) {
        let counts = &self.handle.counts;
        let (count, ack) = match self.write(&message, lease).await {
            Ok(()) => (&counts.written, AckKind::Ack),
            Err((address, error)) => self.failed(&message, lease, address.as_ref(), &error).await,
        };
        match message.ack_with(ack).await {
            Ok(()) => {
                count.fetch_add(1, Relaxed);
            }
            // The client is gone.
            Err(error) => log::warn!(target: "buffstreams", "a message may come again: {error}"),
        }
    }

    /// Writes one. The error comes with the address that has not taken it, if that could be told.
    async fn write(&self, message: &Message, lease: Duration) -> Result<(), (Option<Address>, Error)> {
        let addresses = self.addresses(message).map_err(|error| (None, error))?;
        let payload = call("the function of what is written", || (self.payload)(message))
            .map_err(|error| (addresses.first().cloned(), error))?;
        let written = async {
            match &self.to {
                To::Route(route, _) if route.is_broadcast() => self.write_to_all(&addresses, payload).await,
                _ => self.write_to_one(addresses, payload).await,
            }
        };
        keep(message, lease, written).await.map_err(|(address, error)| (Some(address), error))
    }

    /// Where it goes, the first choice first.
    fn addresses(&self, message: &Message) -> Result<Vec<Address>, Error> {
        match &self.to {
            To::Fixed(address) => Ok(vec![address.clone()]),
            To::By(f) => call("the function of the address", || vec![f(&message.payload)]),
            To::Route(route, turn) => {
                let turn = turn.fetch_add(1, Relaxed);
                let mut order = call("the function of the key", || route.order(&message.payload, turn))?;
                // Stable: the others stay in their order.
                order.sort_by_cached_key(|address| self.writer.is_last(address));
                Ok(order)
            }
            To::Headers => letters::address(message.headers.as_ref()).map(|address| vec![address]),
        }
    }

    /// Offers it to one address after the other, as long as it was not sent.
    async fn write_to_one(&self, addresses: Vec<Address>, payload: Bytes) -> Result<(), (Address, Error)> {
        let mut failed = None;
        for address in addresses {
            match self.writer.write(&address, payload.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    if !may_move(&error) {
                        return Err((address, error));
                    }
                    self.writer.gave_back(&address);
                    failed = Some((address, error));
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn write_to_all(&self, addresses: &[Address], payload: Bytes) -> Result<(), (Address, Error)> {
        let write = |address: &Address| {
            let (address, payload) = (address.clone(), payload.clone());
            async move { self.writer.write(&address, payload).await.map_err(|error| (address, error)) }
        };
        join_all(addresses.iter().map(write)).await.into_iter().collect()
    }

    /// Asks the program what becomes of it, and says what is told to JetStream.
    async fn failed(
        &self,
        message: &Message,
        lease: Duration,
        address: Option<&Address>,
        error: &Error,
    ) -> (&AtomicU64, AckKind) {
        let (info, counts) = (message.info().ok(), &self.handle.counts);
        let deliveries = info.as_ref().map_or(1, |info| info.delivered.unsigned_abs());
        let undelivered = Undelivered { address, message: &message.payload, error, deliveries };
        let decision = call("the function of failures", || (self.on_failure)(&undelivered));
        let what = || {
            let sequence = info.as_ref().map_or(0, |info| info.stream_sequence);
            format!("message {sequence} of {}", message.subject)
        };
        match decision.unwrap_or(OnFailure::Again(AGAIN)) {
            OnFailure::Again(delay) => (&counts.again, AckKind::Nak(Some(delay))),
            OnFailure::Terminate => {
                log::warn!(target: "buffstreams", "{} is given up: {}", what(), chain(error));
                (&counts.terminated, AckKind::Term)
            }
            OnFailure::Move(subject) => {
                match keep(message, lease, moved(message, lease, subject, &undelivered)).await {
                    Ok(()) => (&counts.moved, AckKind::Term),
                    Err(error) => {
                        log::warn!(target: "buffstreams", "{} cannot be moved: {}", what(), chain(&error));
                        (&counts.again, AckKind::Nak(Some(AGAIN)))
                    }
                }
            }
        }
    }
}

/// Stores it under another subject.
async fn moved(message: &Message, lease: Duration, to: String, why: &Undelivered<'_>) -> Result<(), Error> {
    let subject = store::subject(to).map_err(|subject| Error::Subject { subject })?;
    let place = message.info().map(|info| format!("{}.{}", info.stream, info.stream_sequence));
    let place = place.map_err(|source| Error::Refused { source })?;
    let mut outbound = Outbound::new(subject, &place, message.payload.clone())?;
    let headers = message.headers.as_ref();
    for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
        let is_servers = name.to_string().starts_with("Nats-");
        values.iter().filter(|_| !is_servers).for_each(|value| outbound.headers.append(name.clone(), value.clone()));
    }
    let id = headers.and_then(|headers| headers.get(letters::ID).or(headers.get(header::NATS_MESSAGE_ID)));
    outbound.headers.insert(letters::ID, id.cloned().unwrap_or(store::header_value(&place)?));
    letters::address_to(&mut outbound.headers, why.address, why.outcome(), why.error)?;
    let stored = Store::new(message.context.clone()).store(&outbound, Some(lease)).await;
    stored.map(drop).map_err(|failed| failed.error)
}

/// Tells JetStream, as long as this takes, that the message is worked on.
async fn keep<T>(message: &Message, lease: Duration, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(lease, work.as_mut()).await {
            Ok(done) => return done,
            Err(_) => {
                // It comes again, at the worst. It must not hold up the work.
                let _ = message.ack_with(AckKind::Progress).now_or_never();
            }
        }
    }
}

impl EgressHandle {
    /// Pulls no more. [`Egress::run`] ends when everything is settled that was pulled or asked for, which may take a second, and
    /// longer as long as a peer takes nothing.
    pub fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// What it has counted so far.
    pub fn stats(&self) -> EgressStats {
        let Counts { pulled, written, again, terminated, moved } = &*self.counts;
        EgressStats {
            pulled: pulled.load(Relaxed),
            written: written.load(Relaxed),
            again: again.load(Relaxed),
            terminated: terminated.load(Relaxed),
            moved: moved.load(Relaxed),
            in_flight: self.room.messages(),
            in_flight_bytes: self.room.bytes(),
        }
    }
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Egress").field("stats", &self.handle.stats()).finish_non_exhaustive()
    }
}

impl fmt::Debug for EgressHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EgressHandle").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
