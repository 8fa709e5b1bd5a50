//! Many addresses: dials, keeps, re-uses and multiplexes connections.

mod addresses;
mod common;
mod dead_letters;
mod lane;
mod letters;
mod route;
mod route_queue;
mod route_sink;
mod router;
mod sink;

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::error::{Error, Limit};
use crate::foreign;
use crate::identity::Identity;
use crate::link::{First, Link};
pub use crate::link::{Health, LinkStats};
use crate::listener::{Closer, Listener};
use crate::observe::{Events, ManagerEvent, Reporter};
use crate::peer::Address;
use crate::queue::Place;
use crate::sync::Lock;
use crate::wire::Output;
use addresses::{Addresses, Alive, Closing, GRACE};
use bytes::Bytes;
use common::{Common, untaken};
use dead_letters::DeadLetterBox;
pub use dead_letters::DeadLetters;
use futures::FutureExt;
use futures::future::join_all;
pub use letters::DeadLetter;
pub use route::Route;
pub use route_sink::RouteSink;
pub use sink::ManagerSink;

/// Connections to many addresses, shared by many producers. Cheap to clone; safe to share between tasks and threads.
///
/// Each address has one connection and one queue in front of it. Producers put messages in, with [`write`](Self::write) or each
/// through a [`sink`](Self::sink); the messages of each producer keep their order. Addresses do not wait for each other: a dead one
/// holds up only those who write to it. Producers that wait for room in a queue are served in the order in which they came, so
/// sinks that always have something get equal shares.
///
/// A manager has no stream of replies: what a peer sends is read and thrown away. For replies, use a [`Connection`](crate::Connection).
///
/// # When a connection breaks
///
/// It is opened again: at once if messages are held or a session goes on, or else with the next message. A peer that closes is
/// noticed while nothing is sent, and looked for before each write. What was accepted and not handed whole to the kernel goes first,
/// in order, and a frame that was cut goes again from its start. A peer that ends its sending direction counts as closed.
///
/// With [`Config::reconnect`], or a session, it is tried again and again, as the backoff says; meanwhile `queue_bytes` are held,
/// and the sinks wait when that is full. When it gives up, every message held comes back, and the address is [down](Health::Down):
/// what is sent to it comes back at once, with the last error, while it is dialed in the background, until it is up or closed.
/// While dead letters of that address wait for room, because nobody takes them, what is sent to it is held: see [`DeadLetters`].
/// Without a backoff and without a session, the first attempt that fails is the last, and so is the third connection in a row that
/// breaks before it has taken one whole message (a peer that refuses a message does that); the next message tries again. Messages
/// of `write` come back in its error, those of sinks as [`dead_letters`](Self::dead_letters).
///
/// Order is that of one connection. What the kernel had taken of the old connection may still arrive beside the newer
/// messages of the next one: for example after a `write_timeout`, when a peer that had stopped reads on.
///
/// # The end
///
/// [`close`](Self::close) an address to have what was accepted delivered, or [`shutdown`](Self::shutdown) all of them. Dropping the
/// last clone, and the last sink that is not [weak](Self::weak_sink), ends all connections at once, without waiting, and so does the
/// end of the process: what is pending then is gone, and nobody is told. A listener belongs to the program, and stays.
#[derive(Clone)]
pub struct Manager {
    addresses: Arc<Addresses>,
    alive: Arc<Alive>,
    listeners: Arc<Lock<Vec<(Address, Closer)>>>,
}

/// What a manager has counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManagerStats {
    /// Each open address.
    pub addresses: BTreeMap<Address, LinkStats>,
    /// Their sum, and that of all addresses that were closed.
    pub total: LinkStats,
    /// How many dead letters nobody took: see [`ManagerEvent::Lost`].
    pub lost: u64,
}

/// How an address ended in a [`Manager::shutdown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ending {
    /// How many messages were handed whole to the kernel, since the address was dialed.
    pub written: u64,
    /// How many came back, since then: as dead letters, or in the error of a `write`.
    pub dead_lettered: u64,
    /// The deadline was over before the peer had closed its end: whether it read everything is not known.
    pub cut: bool,
}

impl Manager {
    /// A manager of no addresses. The configuration is checked when it is used.
    pub fn new(config: Config) -> Self {
        let reporter = Arc::new(Reporter::new(config.runtime.clone()));
        let dead_letters = Arc::new(DeadLetterBox::new(&config, reporter.clone()));
        let addresses = Arc::new(Addresses::new(Common { config, reporter, dead_letters }));
        Self { alive: Alive::new(addresses.clone()), addresses, listeners: Arc::default() }
    }

    /// Connects to an address, as [`Connection::dial`](crate::Connection::dial) does, and keeps the connection.
    ///
    /// The errors are those of that `dial`, after which it can be dialed again, [`Error::AlreadyOpen`], [`Error::Closed`] after a
    /// [`shutdown`](Self::shutdown), and [`Error::Panicked`] if the logger does. Other addresses do not wait. Dropping the future
    /// gives the attempt up.
    pub async fn dial(&self, address: impl Into<Address>) -> Result<(), Error> {
        let (address, common) = (address.into(), &self.addresses.common);
        let codec = common.config.codec()?;
        let reserved = self.addresses.reserve(&address)?;
        // It takes no replies, in a session either.
        let first = First::dial(&address, &common.config, codec, 0).await?;
        reserved.keep(first, codec)?;
        common.reporter.report(ManagerEvent::Opened { address });
        Ok(())
    }

    /// Registers an address, and dials it in the background. It returns at once, and from then on the address is open: what is
    /// written to it is held until there is a connection, up to `queue_bytes` with `reconnect` or a session, and else up to 60 KiB.
    ///
    /// The errors are [`Error::Config`], [`Error::AlreadyOpen`], [`Error::Closed`] after a [`shutdown`](Self::shutdown), and
    /// [`Error::Panicked`] if the logger does; nothing is registered then. That the address cannot be reached is no error here:
    /// each attempt that fails is a [`ManagerEvent::DialFailed`], the first that does not a [`ManagerEvent::Opened`], and
    /// [`health`](Self::health) says how it is now. To know before going on, [`dial`](Self::dial).
    ///
    /// With [`Config::reconnect`], or a session, it is dialed as the backoff says, and when that gives up, as an address that is
    /// [down](Health::Down). Else there is one attempt: if it fails, what was sent comes back, and the next message dials again.
    ///
    /// ```
    /// # use buffstreams::{Backoff, Bytes, Config, Listener, Manager};
    /// # use futures::{SinkExt, StreamExt};
    /// # use std::time::Duration;
    /// # async_std::task::block_on(async {
    /// # let place = Listener::bind("127.0.0.1:0", Config::new()).await?;
    /// # let address = place.local_addr();
    /// # drop(place);
    /// let backoff = Backoff::exponential(Duration::from_millis(10), Duration::from_secs(1));
    /// let manager = Manager::new(Config::new().reconnect(backoff));
    /// manager.open(&address)?;
    /// let mut sink = manager.sink();
    /// sink.feed((address.clone().into(), Bytes::from_static(b"early"))).await?;
    ///
    /// let mut listener = Listener::bind(&address, Config::new()).await?; // The server comes later.
    /// sink.flush().await?;
    /// assert_eq!(listener.next().await.unwrap().1, "early");
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn open(&self, address: impl Into<Address>) -> Result<(), Error> {
        let (address, config) = (address.into(), &self.addresses.common.config);
        let codec = config.codec()?;
        self.addresses.reserve(&address)?.keep(First::later(config, codec, 0)?, codec)
    }

    /// Sends one message, and waits until the kernel has taken it; with [`Config::session`], until the program at the other end
    /// has.
    ///
    /// While 60 KiB are in the queue, or `queue_bytes` with `reconnect` while the connection is down, it waits, in
    /// turn, before the message is accepted. Many `write`s at once share system calls, but each waits for its message;
    /// for a stream of messages a [`sink`](Self::sink) is many times faster. To an address that is down, it also waits while
    /// dead letters of that address wait for room: see [`DeadLetters`].
    ///
    /// The errors give the message back: [`Error::NotOpen`] for an address that was never dialed or is closed,
    /// [`Error::MessageTooLarge`], and [`Error::NotSent`], whose source says why: the last error where the connection could not be
    /// opened again or the address is down, [`Error::Panicked`] where the backoff does, [`Error::Timeout`] for a message older than
    /// [`message_ttl`](Config::message_ttl), [`Error::Closed`] where the time of a close was over. In a session, [`Error::Refused`]
    /// and [`Error::InDoubt`] say what became of a message that was sent. If the future is dropped before the message was accepted,
    /// it is not sent; later, it is sent, or becomes a dead letter.
    pub async fn write(&self, address: impl Into<Address>, message: Bytes) -> Result<(), Error> {
        let address = address.into();
        let Some(link) = self.addresses.open(&address) else {
            return Err(Error::NotOpen { address, message: Some(message.into()) });
        };
        let mut claim = Claim { common: &self.addresses.common, link: &link, place: Place::default(), message: None };
        match link.outbox.offer(message.clone(), &mut claim.place) {
            Ok(()) => claim.message = Some(message),
            Err(Error::Closed { message }) => return Err(Error::NotOpen { address, message }),
            Err(error) => return Err(error),
        }
        let is_accepted = poll_fn(|cx| link.outbox.poll_accepted(&mut claim.place, cx)).await;
        let over = poll_fn(|cx| link.outbox.poll_over(&mut claim.place, cx)).await;
        let message = claim.message.take().map(Into::into);
        match over {
            _ if !is_accepted => Err(Error::NotOpen { address, message }),
            Ok(()) => Ok(()),
            Err(verdict) => Err(untaken(verdict, address, message)),
        }
    }

    /// The bytes of the message that `push` makes.
    pub(crate) fn message_of(&self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<Bytes, Error> {
        Output::new(self.addresses.common.config.codec()?).message_of(push)
    }

    /// A sink into this manager, one for each producer.
    pub fn sink(&self) -> ManagerSink {
        ManagerSink::new(self.addresses.clone(), Some(self.alive.clone()))
    }

    /// As [`sink`](Self::sink), and it does not keep the manager alive: for a task that sends the
    /// [`dead_letters`](Self::dead_letters) elsewhere. With another sink, the manager would last as long as that task, and the task
    /// as long as the manager. When the manager has ended, each address is [`Error::NotOpen`] to it.
    pub fn weak_sink(&self) -> ManagerSink {
        ManagerSink::new(self.addresses.clone(), None)
    }

    /// A sink whose messages go to the addresses of a route, as its rule says: see [`Route`]. [Open](Self::open) or
    /// [dial](Self::dial) the addresses; one that is not open is left out until it is. It keeps the manager, as a `sink` does.
    pub fn sink_to(&self, route: Route) -> RouteSink {
        RouteSink::new(&self.addresses, self.alive.clone(), route)
    }

    /// Listens, as [`Listener::bind`] does, with the same errors, also after a [`shutdown`](Self::shutdown). The manager knows the
    /// listener by its address, to close it. The listener does not end with the manager.
    pub async fn listen(&self, address: impl Into<Address>) -> Result<Listener, Error> {
        let address = address.into();
        let listener = Listener::bind(&address, self.addresses.common.config.clone()).await?;
        let mut listeners = self.listeners.lock();
        let known = mem::take(&mut *listeners);
        let (stopped, open): (Vec<_>, _) = known.into_iter().partition(|(_, closer)| closer.is_stopped());
        *listeners = open;
        listeners.push((address, listener.closer()));
        drop(listeners);
        // It may be the last of a listener, and of what the program gave it.
        let _ = foreign::dispose(stopped);
        Ok(listener)
    }

    /// Closes a connection: accepts no more messages for it, delivers what was accepted, also what was fed and not flushed, ends the
    /// sending direction, waits for the peer to close, and forgets the address, which can then be dialed again.
    ///
    /// It takes `close_timeout` at the most, and a tenth of a second more where callbacks keep all threads of the runtime. What could
    /// not be delivered becomes dead letters, and the error is [`Error::Timeout`] or [`Error::NotSent`]. It is [`Error::NotOpen`] for
    /// an address that is not open. Dropping the future ends the connection at once.
    pub async fn close(&self, address: impl Into<Address>) -> Result<(), Error> {
        let address = address.into();
        let Some(closing) = self.addresses.close(&address) else {
            return Err(Error::NotOpen { address, message: None });
        };
        let config = &self.addresses.common.config;
        match end(closing, config.close_timeout).await {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(Error::NotSent { address, message: None, source }),
            None => Err(config.ran_out(Limit::CloseTimeout)),
        }
    }

    /// Ends the manager: closes all connections, as [`close`](Self::close) does, side by side and within `deadline`, and
    /// says how each of them ended. From the first poll on nothing can be opened or dialed, and no [`RouteSink`] accepts anything.
    ///
    /// What a sink was fed before the call is delivered as well, whether or not it was flushed; what a `RouteSink` has accepted is
    /// first handed over to its addresses, within half of the deadline, and until then they accept messages. What could not be
    /// delivered becomes dead letters, and when this has finished, their [stream](Self::dead_letters) ends behind the last. An address
    /// that another task is closing has its report there. Listeners go on: see [`close_listener`](Self::close_listener). Dropping the
    /// future ends all connections at once.
    ///
    /// ```
    /// # use buffstreams::{Bytes, Config, Manager};
    /// # use futures::StreamExt;
    /// # async_std::task::block_on(async {
    /// let manager = Manager::new(Config::new());
    /// let mut listener = manager.listen("127.0.0.1:0").await?;
    /// manager.dial(listener.local_addr()).await?;
    /// manager.write(listener.local_addr(), Bytes::from_static(b"last")).await?;
    /// listener.close().await?;
    ///
    /// let report = manager.shutdown(std::time::Duration::from_secs(5)).await;
    /// let ending = report[&listener.local_addr().into()];
    /// assert_eq!((ending.written, ending.dead_lettered, ending.cut), (1, 0, false));
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub async fn shutdown(&self, deadline: Duration) -> BTreeMap<Address, Ending> {
        let begun = self.addresses.shut_down();
        let routers = self.addresses.routers();
        routers.iter().for_each(|router| router.refuse());
        let deadline = deadline.saturating_sub(self.hand_over(deadline / 2).await);
        let endings = begun.close_all().into_iter().map(|closing| ending(closing, deadline));
        let endings = join_all(endings).await.into_iter().collect();
        // They need nobody for that but the runtime, which callbacks may keep.
        let settled = join_all(routers.iter().map(|router| router.settled()));
        self.addresses.common.config.runtime.within(Some(GRACE), settled).await;
        self.addresses.over();
        endings
    }

    /// Waits until the routes have handed over what they accepted, `limit` at the most. How long that took.
    async fn hand_over(&self, limit: Duration) -> Duration {
        let (runtime, routers) = (&self.addresses.common.config.runtime, self.addresses.routers());
        let began = runtime.now();
        runtime.within(Some(limit), join_all(routers.iter().map(|router| router.handed_over()))).await;
        runtime.now().saturating_duration_since(began)
    }

    /// As [`shutdown`](Self::shutdown), where some addresses are the spares of others. First it closes the addresses that are named,
    /// one after the other in this order, and then all others. Between two of them it waits until the returned messages are dealt
    /// with: a [`RouteSink`] has given them to another address, and the task that takes the dead letters has taken all of them and
    /// asks for the next. So a task that sends each letter to a spare, and waits for that before it takes the next, loses none; its
    /// sink is a [`weak_sink`](Self::weak_sink), and its stream of letters ends after the last address is closed.
    ///
    /// The deadline is divided into equal shares: one for each address named, and one for all the others together. An address may use
    /// half of its share to deliver. The rest of the share is for waiting until the returned messages are dealt with. An address that
    /// is not open is left out, and time that is not used is for the others. Until the last address named is closed, the others
    /// accept messages. Dropping the future ends the connections that it was closing; the rest go on, until these are closed.
    pub async fn shutdown_in_order<A: Into<Address>>(
        &self,
        first: impl IntoIterator<Item = A>,
        deadline: Duration,
    ) -> BTreeMap<Address, Ending> {
        let common = &self.addresses.common;
        let (runtime, mut endings) = (&common.config.runtime, BTreeMap::new());
        let first: Vec<_> = first.into_iter().map(Into::into).collect();
        let share = deadline / (first.len() as u32 + 1);
        let mut left = deadline.saturating_sub(self.hand_over(share / 2).await);
        for address in first {
            let Some(closing) = self.addresses.close(&address) else { continue };
            let began = runtime.now();
            let passed = || runtime.now().saturating_duration_since(began);
            endings.extend([ending(closing, share / 2).await]);
            let settling = async {
                join_all(self.addresses.routers().iter().map(|router| router.settled())).await;
                common.dead_letters.taken().await;
                // The program may have given them to a route.
                join_all(self.addresses.routers().iter().map(|router| router.settled())).await;
            };
            runtime.within(Some(share.saturating_sub(passed())), settling).await;
            left = left.saturating_sub(passed());
        }
        endings.extend(self.shutdown(left).await);
        endings
    }

    /// Closes a listener that [`listen`](Self::listen) made, as [`Listener::close`] does: by the address that it was given, or by the
    /// one that it listens on. The errors are [`Error::NotOpen`] where no listener has the address, and [`Error::Timeout`]. The manager
    /// forgets the listener at once: a second call is `NotOpen`. Dropping the future does not take the close back.
    pub async fn close_listener(&self, address: impl Into<Address>) -> Result<(), Error> {
        let address = address.into();
        let known = {
            let mut listeners = self.listeners.lock();
            let is_it = |(given, closer): &(Address, Closer)| {
                !closer.is_stopped() && (*given == address || Address::from(closer.local_addr()) == address)
            };
            listeners.iter().position(is_it).map(|at| listeners.swap_remove(at).1)
        };
        match known {
            Some(closer) => closer.close().await,
            None => Err(Error::NotOpen { address, message: None }),
        }
    }

    /// The addresses that are open, or being opened or closed, sorted.
    pub fn addresses(&self) -> Vec<Address> {
        self.addresses.addresses()
    }

    /// Who is at the other end of an address, as the transport has verified: see [`Identity`]. `None` if it does not know, as over
    /// plain TCP, or the address is not open, or its connection is down.
    pub fn identity(&self, address: impl Into<Address>) -> Option<Arc<Identity>> {
        self.addresses.open(&address.into())?.socket.identity()
    }

    /// How an address does; `None` if it is not open, or being closed. It does not wait: [`events`](Self::events) tell of changes.
    pub fn health(&self, address: impl Into<Address>) -> Option<Health> {
        Some(self.addresses.open(&address.into())?.pulse.get())
    }

    /// What it has counted so far.
    pub fn stats(&self) -> ManagerStats {
        let (links, retired) = self.addresses.stats();
        let total = links.iter().map(|(_, stats)| *stats).chain([retired]).sum();
        let lost = self.addresses.common.dead_letters.lost();
        ManagerStats { addresses: links.into_iter().collect(), total, lost }
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<ManagerEvent> {
        self.addresses.common.reporter.subscribe()
    }

    /// The messages, from now on, that were accepted and could not be sent, for failover by the program. There is one such stream.
    /// A second takes the place of the first, and gets what waits for room in it; the first ends when what is in it was taken.
    /// Without a stream the messages are lost, with a [`ManagerEvent::Lost`].
    ///
    /// Where [`Config::session`] is set, some of them were sent: look at the [`outcome`](DeadLetter::outcome) before one goes to
    /// another address, or it may be taken twice.
    ///
    /// ```
    /// use buffstreams::{Address, Config, Manager, Outcome};
    /// use futures::{SinkExt, StreamExt};
    ///
    /// # async_std::task::block_on(async {
    /// let manager = Manager::new(Config::new());
    /// let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
    /// let mut listener = manager.listen("127.0.0.1:0").await?;
    /// let spare = Address::from(listener.local_addr());
    /// manager.dial(&spare).await?;
    /// # let gone = Address::from(manager.listen("127.0.0.1:0").await?.local_addr());
    /// manager.open(&gone)?; // Nobody listens there.
    /// assert!(sink.send((gone, "hello".into())).await.is_err());
    ///
    /// let letter = letters.next().await.unwrap(); // Mostly in a loop, in another task than that of the producer.
    /// match letter.outcome {
    ///     // Nobody has it. The spare's own letters would come back to it again and again.
    ///     Outcome::NotSent | Outcome::GaveUp if letter.address != spare => sink.send((spare, letter.message)).await?,
    ///     outcome => eprintln!("{}: {outcome}", letter.address),
    /// }
    /// assert_eq!(listener.next().await.unwrap().1, "hello");
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn dead_letters(&self) -> DeadLetters {
        self.addresses.common.dead_letters.subscribe()
    }
}

/// Closes a connection, and says how that ended.
async fn ending(closing: Closing, limit: Duration) -> (Address, Ending) {
    let link = closing.link.clone();
    let cut = end(closing, Some(limit)).await.is_none();
    let LinkStats { written, dead_lettered, .. } = link.stats();
    (link.address.clone(), Ending { written, dead_lettered, cut })
}

/// Delivers what a connection that is being closed has accepted, half-closes it, waits for the peer to close, and ends it.
/// `None` if that takes longer than `limit`; the error is why messages were not sent.
async fn end(mut closing: Closing, limit: Option<Duration>) -> Option<Result<(), Arc<Error>>> {
    let link = closing.link.clone();
    let rest = link.outbox.close();
    link.outbox.call_driver();
    let runtime = closing.runtime();
    let delivered = runtime.within(limit, async {
        let written = match rest {
            Some(rest) => link.outbox.delivered(rest).await,
            None => Ok(()),
        };
        if let Some(task) = &mut closing.task {
            task.join().await;
        }
        written
    });
    let delivered = delivered.await;
    closing.end(None).await;
    delivered
}

/// A `write` that waits to return its message itself, if it is not sent.
struct Claim<'a> {
    common: &'a Arc<Common>,
    link: &'a Link,
    place: Place,
    message: Option<Bytes>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let given_back = self.link.outbox.abandon(&mut self.place);
        if let (Some(verdict), Some(message)) = (given_back, self.message.take()) {
            let burying = self.common.clone().bury(self.link.address.clone(), vec![message], verdict);
            let _ = burying.now_or_never();
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}
