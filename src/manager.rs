//! Many addresses: dials, keeps, re-uses and multiplexes connections.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::iter::Sum;
use std::mem;
use std::net::SocketAddr;
use std::ops::Add;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::sink::Sink;

use crate::config::Config;
use crate::dead_letters::{DeadLetterBox, DeadLetters, Outcome};
use crate::error::Error;
use crate::events::{Events, ManagerEvent, Reporter};
use crate::link::{Common, Link};
use crate::listener::{Closer, Listener};
use crate::net::{self, Task};
use crate::outbox::{Outbox, Ticket};
use crate::peer::Address;
use crate::wire::Output;
use crate::writer::HIGH_WATER;

/// Connections to many addresses, shared by many producers. Cheap to clone; safe to share between tasks and threads.
///
/// Each address has one connection and one queue in front of it. Producers put messages in, with [`write`](Self::write)
/// or through a [`sink`](Self::sink) of their own; each one's messages keep their order. Addresses do not wait for each
/// other: a dead one holds up only those who write to it.
///
/// # When a connection breaks
///
/// It is opened again, at once if messages are held, or else with the next message; a peer that closes is noticed while
/// nothing is sent. What was accepted and not handed whole to the kernel goes first, in order, a frame that was cut from
/// its start. A peer that ends its sending direction counts as closed.
///
/// If it cannot be opened, every message held for it comes back: those of `write` in its error, those of sinks as
/// [`dead_letters`](Self::dead_letters). The next message tries again.
///
/// # The end
///
/// [`close`](Self::close) an address to have what was accepted delivered. Dropping the last clone, and the last sink, ends
/// all connections at once, without waiting. Listeners belong to whoever has them.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

/// A producer: a `Sink` of `(Address, Bytes)` into a [`Manager`].
///
/// - `start_send` never waits. A message over the limit comes back in [`Error::MessageTooLarge`], one to an address that is
///   not open in [`Error::NotOpen`]; the sink works on.
/// - `poll_ready` waits while 64 KiB are pending here and as much in the queue of the last address written to.
/// - `poll_flush` is ready when the kernel has taken everything that came through this sink. [`Error::NotSent`] tells,
///   once for each address, that messages were not sent: they are dead letters.
/// - `poll_close` flushes and ends this sink, not the connections.
///
/// Small messages are put together here, without a lock, and handed over 64 KiB at a time; a flush hands over what there
/// is. Dropping a future loses nothing that was accepted; dropping the sink leaves what is pending to the background.
pub struct ManagerSink {
    inner: Arc<Inner>,
    producers: HashMap<Address, Producer>,
    /// The address that was written to last.
    last: Option<Address>,
    closed: bool,
}

/// What a manager has counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManagerStats {
    /// Each open address.
    pub addresses: BTreeMap<Address, LinkStats>,
    /// Their sum, and that of all addresses that were closed.
    pub total: LinkStats,
}

/// What was counted of one address: `accepted = written + given_back + held`, at every moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// How many messages were put into the queue.
    pub accepted: u64,
    /// How many were handed whole to the kernel.
    pub written: u64,
    /// How many came back: in an error of `write`, or as dead letters.
    pub given_back: u64,
    /// How many are in the queue.
    pub held: u64,
    /// How many bytes they have on the wire, headers included.
    pub held_bytes: usize,
    /// How many bytes the kernel has taken, headers included.
    pub bytes: u64,
    /// How often the connection was opened again.
    pub reconnects: u64,
}

struct Inner {
    common: Arc<Common>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    links: HashMap<Address, Slot>,
    listeners: HashMap<SocketAddr, Closer>,
    /// The counters of addresses that are closed.
    retired: LinkStats,
}

enum Slot {
    Dialing,
    Open(Arc<Link>, Task),
    Closing(Arc<Link>),
}

/// One sink's messages to one address.
struct Producer {
    link: Arc<Link>,
    /// Accepted, and not handed over.
    local: Output,
    messages: usize,
    /// The last that was handed over and not flushed.
    ticket: Option<Ticket>,
}

impl Manager {
    /// A manager of no addresses. The configuration is checked when it is used.
    pub fn new(config: Config) -> Self {
        let dead_letters = DeadLetterBox::new(config.queue_bytes);
        let common = Common { config, reporter: Reporter::new(), dead_letters };
        Self { inner: Arc::new(Inner { common: Arc::new(common), state: Mutex::default() }) }
    }

    /// Connects to an address, as [`Connection::dial`](crate::Connection::dial) does, and keeps the connection.
    ///
    /// The errors are those of `dial`, after which it can be dialed again, and [`Error::AlreadyOpen`]. Other addresses do
    /// not wait. Dropping the future gives the attempt up.
    pub async fn dial(&self, address: impl Into<Address>) -> Result<(), Error> {
        let (address, common) = (address.into(), &self.inner.common);
        let codec = common.config.codec()?;
        match self.inner.state().links.entry(address.clone()) {
            Entry::Occupied(_) => return Err(Error::AlreadyOpen { address }),
            Entry::Vacant(vacant) => vacant.insert(Slot::Dialing),
        };
        let dialing = Reserved { inner: &self.inner, address: &address };
        let stream = net::dial(&address, &common.config).await?;
        let (link, task) = Link::start(common.clone(), address.clone(), stream, codec);
        dialing.keep(Slot::Open(link, task));
        common.reporter.report(ManagerEvent::Opened { address });
        Ok(())
    }

    /// Sends one message, and waits until the kernel has taken it.
    ///
    /// While 64 KiB are in the queue it waits before the message is accepted. Many `write`s at once share system calls, but
    /// each waits for its own; for a stream of messages a [`sink`](Self::sink) is many times faster.
    ///
    /// The errors give the message back: [`Error::NotOpen`] for an address that was never dialed or is closed,
    /// [`Error::MessageTooLarge`], and [`Error::NotSent`] when the connection broke and could not be opened again. If the
    /// future is dropped before the message was accepted, it is not sent; later, it is sent, or becomes a dead letter.
    pub async fn write(&self, address: impl Into<Address>, message: Bytes) -> Result<(), Error> {
        let address = address.into();
        let Some(link) = self.inner.link(&address) else {
            return Err(Error::NotOpen { address, message: Some(message.into()) });
        };
        poll_fn(|cx| link.outbox.poll_room(HIGH_WATER, cx)).await;
        let ticket = match link.outbox.push_claimed(message.clone()) {
            Ok(ticket) => ticket,
            Err(Error::Closed { message }) => return Err(Error::NotOpen { address, message }),
            Err(error) => return Err(error),
        };
        let claim = Claim { outbox: &link.outbox, ticket };
        let written = poll_fn(|cx| link.outbox.poll_written(claim.ticket, cx)).await;
        written.map_err(|source| Error::NotSent { address, message: Some(message.into()), source })
    }

    /// A sink into this manager, one for each producer.
    pub fn sink(&self) -> ManagerSink {
        ManagerSink { inner: self.inner.clone(), producers: HashMap::new(), last: None, closed: false }
    }

    /// Listens, as [`Listener::bind`] does. The manager knows the listener by its address, to close it.
    pub async fn listen(&self, address: impl Into<Address>) -> Result<Listener, Error> {
        let listener = Listener::bind(address, self.inner.common.config.clone()).await?;
        let mut state = self.inner.state();
        state.listeners.retain(|_, closer| !closer.is_stopped());
        state.listeners.insert(listener.local_addr(), listener.closer());
        Ok(listener)
    }

    /// Closes a connection: accepts no more messages for it, delivers what was accepted, ends the sending direction, waits
    /// for the peer to close, and forgets the address, which can then be dialed again.
    ///
    /// It takes `close_timeout` at the most. What could not be delivered becomes dead letters; then the error is
    /// [`Error::Timeout`], or [`Error::NotSent`]. [`Error::NotOpen`] is for an address that is not open. Dropping the
    /// future ends the connection at once.
    pub async fn close(&self, address: impl Into<Address>) -> Result<(), Error> {
        let address = address.into();
        let common = &self.inner.common;
        let (link, mut task) = {
            let mut state = self.inner.state();
            match state.links.remove(&address) {
                Some(Slot::Open(link, task)) => {
                    state.links.insert(address.clone(), Slot::Closing(link.clone()));
                    (link, task)
                }
                other => {
                    state.links.extend(other.map(|slot| (address.clone(), slot)));
                    return Err(Error::NotOpen { address, message: None });
                }
            }
        };
        let closing = Reserved { inner: &self.inner, address: &address };
        let last = link.outbox.close();
        link.outbox.call_driver();
        let limit = common.config.close_timeout;
        let delivered = net::within(limit, async {
            let written = poll_fn(|cx| link.outbox.poll_written(last, cx)).await;
            task.join().await;
            written
        });
        let delivered = delivered.await;
        task.stop().await;
        link.bury(common, Outcome::Closed, Arc::new(Error::Closed { message: None })).await;
        drop(closing);
        match delivered {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(Error::NotSent { address, message: None, source }),
            None => Err(Error::Timeout { what: "close_timeout", after: limit.unwrap_or_default() }),
        }
    }

    /// Closes a listener that [`listen`](Self::listen) made, as [`Listener::close`] does. [`Error::NotOpen`] is for an
    /// address that none of them listens on.
    pub async fn close_listener(&self, address: SocketAddr) -> Result<(), Error> {
        let closer = self.inner.state().listeners.remove(&address);
        match closer {
            Some(closer) => closer.close().await,
            None => Err(Error::NotOpen { address: address.into(), message: None }),
        }
    }

    /// The addresses that are open, or being opened or closed, sorted.
    pub fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<_> = self.inner.state().links.keys().cloned().collect();
        addresses.sort();
        addresses
    }

    /// What it has counted so far.
    pub fn stats(&self) -> ManagerStats {
        let state = self.inner.state();
        let links = state.links.iter().filter_map(|(address, slot)| Some((address.clone(), slot.link()?.stats())));
        let addresses: BTreeMap<_, _> = links.collect();
        let total = addresses.values().copied().chain([state.retired]).sum();
        ManagerStats { addresses, total }
    }

    /// What happens from now on, beside the messages. See [`Events`].
    pub fn events(&self) -> Events<ManagerEvent> {
        self.inner.common.reporter.subscribe()
    }

    /// The messages, from now on, that were accepted and could not be sent, for the program's own failover. There is one
    /// such stream: a second takes the place of the first. Without one they are lost, with a [`ManagerEvent::Lost`].
    ///
    /// ```no_run
    /// use buffstreams::{Config, Manager};
    /// use futures::StreamExt;
    ///
    /// # async fn failover() -> Result<(), buffstreams::Error> {
    /// let manager = Manager::new(Config::new());
    /// manager.dial("127.0.0.1:5032").await?;
    /// let dead = manager.dead_letters();
    /// dead.map(|letter| Ok(("127.0.0.1:5032".into(), letter.message))).forward(manager.sink()).await
    /// # }
    /// ```
    pub fn dead_letters(&self) -> DeadLetters {
        self.inner.common.dead_letters.subscribe()
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code of the program runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address, while it is open.
    fn link(&self, address: &Address) -> Option<Arc<Link>> {
        match self.state().links.get(address)? {
            Slot::Open(link, _) => Some(link.clone()),
            Slot::Dialing | Slot::Closing(_) => None,
        }
    }
}

impl Slot {
    fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Slot::Open(link, _) | Slot::Closing(link) => Some(link),
            Slot::Dialing => None,
        }
    }
}

/// An address that is being opened or closed. Dropped, it is forgotten.
struct Reserved<'a> {
    inner: &'a Inner,
    address: &'a Address,
}

impl Reserved<'_> {
    fn keep(self, slot: Slot) {
        self.inner.state().links.insert(self.address.clone(), slot);
        mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        if let Some(Slot::Closing(link)) = state.links.remove(self.address) {
            state.retired = state.retired + link.stats();
        }
    }
}

/// A `write` that waits to return its message itself, if it is not sent.
struct Claim<'a> {
    outbox: &'a Outbox<net::Stream>,
    ticket: Ticket,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.outbox.unclaim(self.ticket);
    }
}

impl ManagerSink {
    fn producer(&mut self, address: &Address) -> Option<&mut Producer> {
        if !self.producers.contains_key(address) {
            let link = self.inner.link(address)?;
            let codec = self.inner.common.config.codec().ok()?;
            let producer = Producer { link, local: Output::new(codec), messages: 0, ticket: None };
            self.producers.insert(address.clone(), producer);
        }
        self.producers.get_mut(address)
    }

    /// The address was closed under this sink: what it had accepted is a dead letter.
    fn forget(&mut self, address: &Address) -> Error {
        if let Some(mut producer) = self.producers.remove(address) {
            let (common, address) = (self.inner.common.clone(), address.clone());
            let messages = producer.local.take_messages();
            net::spawn(async move {
                let closed = Arc::new(Error::Closed { message: None });
                common.bury(&address, messages, Outcome::Closed, &closed).await;
            })
            .detach();
        }
        Error::NotOpen { address: address.clone(), message: None }
    }
}

impl Producer {
    fn hand_over(&mut self) -> Result<(), Error> {
        if self.messages > 0 {
            self.ticket = Some(self.link.outbox.append(&mut self.local, self.messages)?);
            self.messages = 0;
        }
        Ok(())
    }
}

impl Sink<(Address, Bytes)> for ManagerSink {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        if this.closed {
            return Poll::Ready(Err(Error::Closed { message: None }));
        }
        let Some(last) = &this.last else { return Poll::Ready(Ok(())) };
        let Some(producer) = this.producers.get_mut(last) else { return Poll::Ready(Ok(())) };
        if producer.local.len() < HIGH_WATER {
            return Poll::Ready(Ok(()));
        }
        ready!(producer.link.outbox.poll_room(HIGH_WATER, cx));
        if producer.hand_over().is_err() {
            let last = last.clone();
            return Poll::Ready(Err(this.forget(&last)));
        }
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, (address, message): (Address, Bytes)) -> Result<(), Error> {
        let this = self.get_mut();
        if this.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        let Some(producer) = this.producer(&address) else {
            return Err(Error::NotOpen { address, message: Some(message.into()) });
        };
        producer.local.push(message)?;
        producer.messages += 1;
        this.last = Some(address);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let this = self.get_mut();
        let mut pending = false;
        let mut failed = None;
        for (address, producer) in &mut this.producers {
            if producer.hand_over().is_err() {
                failed = Some((address.clone(), None));
                break;
            }
            let Some(ticket) = producer.ticket else { continue };
            match producer.link.outbox.poll_written(ticket, cx) {
                Poll::Pending => pending = true,
                Poll::Ready(written) => {
                    producer.ticket = None;
                    if let Err(source) = written {
                        failed = Some((address.clone(), Some(source)));
                        break;
                    }
                }
            }
        }
        match failed {
            Some((address, Some(source))) => Poll::Ready(Err(Error::NotSent { address, message: None, source })),
            Some((address, None)) => Poll::Ready(Err(this.forget(&address))),
            None if pending => Poll::Pending,
            None => Poll::Ready(Ok(())),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for ManagerSink {
    fn drop(&mut self) {
        let addresses: Vec<_> = self.producers.keys().cloned().collect();
        for address in addresses {
            if let Some(producer) = self.producers.get_mut(&address) {
                match producer.hand_over() {
                    Ok(()) => producer.link.outbox.leave_to_driver(),
                    Err(_) => drop(self.forget(&address)),
                }
            }
        }
    }
}

impl Add for LinkStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            written: self.written + other.written,
            given_back: self.given_back + other.given_back,
            held: self.held + other.held,
            held_bytes: self.held_bytes + other.held_bytes,
            bytes: self.bytes + other.bytes,
            reconnects: self.reconnects + other.reconnects,
        }
    }
}

impl Sum for LinkStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), Add::add)
    }
}

impl Link {
    fn stats(&self) -> LinkStats {
        let books = self.outbox.books();
        LinkStats {
            accepted: books.accepted,
            written: books.written,
            given_back: books.given_back,
            held: books.held,
            held_bytes: books.held_bytes,
            bytes: books.bytes,
            reconnects: self.reconnects.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

impl fmt::Debug for ManagerSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pending: usize = self.producers.values().map(|producer| producer.local.len()).sum();
        f.debug_struct("ManagerSink").field("pending", &pending).finish_non_exhaustive()
    }
}
