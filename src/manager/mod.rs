//! Many addresses: dials, keeps, re-uses and multiplexes connections.

mod addresses;
mod dead_letters;
mod link;
mod link_socket;
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
use crate::listener::{Closer, Listener};
use crate::observe::{Events, ManagerEvent, Reporter};
use crate::peer::Address;
use crate::queue::Place;
use crate::sync::Lock;
use crate::transport;
use addresses::{Addresses, Closing};
use bytes::Bytes;
use dead_letters::DeadLetterBox;
pub use dead_letters::{DeadLetter, DeadLetters};
use futures::FutureExt;
use futures::future::join_all;
pub use link::LinkStats;
use link::{Common, Link};
pub use sink::ManagerSink;

/// Connections to many addresses, shared by many producers. Cheap to clone; safe to share between tasks and threads.
///
/// Each address has one connection and one queue in front of it. Producers put messages in, with [`write`](Self::write)
/// or through a [`sink`](Self::sink) of their own; each one's messages keep their order. Addresses do not wait for each
/// other: a dead one holds up only those who write to it. Who waits for room in a queue is served in the order in which they
/// came, so sinks that always have something get equal shares.
///
/// A manager has no stream of replies: what a peer sends is read and thrown away. To have replies, use a
/// [`Connection`](crate::Connection).
///
/// # When a connection breaks
///
/// It is opened again, at once if messages are held, or else with the next message. A peer that closes is noticed while
/// nothing is sent, and looked for before each write. What was accepted and not handed whole to the kernel goes first, in
/// order, a frame that was cut from its start. A peer that ends its sending direction counts as closed.
///
/// With [`Config::reconnect`] it is tried again and again, as the backoff says; meanwhile `queue_bytes` are held, and the
/// sinks wait when that is full. When it gives up, every message held comes back. Without it, the first attempt that fails
/// is the last, and so are three connections in a row that break before they have taken one whole message (a peer
/// that refuses a message does that). Messages of `write` come back in its error, those of sinks as
/// [`dead_letters`](Self::dead_letters). The next message tries again.
///
/// Order is that of one connection. What the kernel had taken of the old one may still arrive beside the newer messages of the
/// next: after a `write_timeout`, say, when a peer that had stopped reads on.
///
/// # The end
///
/// [`close`](Self::close) an address to have what was accepted delivered, or [`shutdown`](Self::shutdown) all of them.
/// Dropping the last clone, and the last sink, ends all connections at once, without waiting, and so does the end of the
/// process: what is pending then is gone, and nobody is told. Listeners belong to whoever has them.
#[derive(Clone)]
pub struct Manager {
    addresses: Arc<Addresses>,
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
        let addresses = Addresses::new(Common { config, reporter, dead_letters });
        Self { addresses: Arc::new(addresses), listeners: Arc::default() }
    }

    /// Connects to an address, as [`Connection::dial`](crate::Connection::dial) does, and keeps the connection.
    ///
    /// The errors are those of `dial`, after which it can be dialed again, and [`Error::AlreadyOpen`]. Other addresses do
    /// not wait. Dropping the future gives the attempt up.
    pub async fn dial(&self, address: impl Into<Address>) -> Result<(), Error> {
        let (address, common) = (address.into(), &self.addresses.common);
        let codec = common.config.codec()?;
        let reserved = self.addresses.reserve(&address)?;
        let stream = transport::dial(&address, &common.config).await?;
        reserved.keep(stream, codec)?;
        common.reporter.report(ManagerEvent::Opened { address });
        Ok(())
    }

    /// Sends one message, and waits until the kernel has taken it.
    ///
    /// While 60 KiB are in the queue, or `queue_bytes` with `reconnect` while the connection is down, it waits, in turn, before
    /// the message is accepted. Many `write`s at once share system calls, but
    /// each waits for its own; for a stream of messages a [`sink`](Self::sink) is many times faster.
    ///
    /// The errors give the message back: [`Error::NotOpen`] for an address that was never dialed or is closed,
    /// [`Error::MessageTooLarge`], and [`Error::NotSent`] when the connection broke and could not be opened again. If the
    /// future is dropped before the message was accepted, it is not sent; later, it is sent, or becomes a dead letter.
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
        let written = poll_fn(|cx| link.outbox.poll_over(&mut claim.place, cx)).await;
        let message = claim.message.take().map(Into::into);
        match written {
            _ if !is_accepted => Err(Error::NotOpen { address, message }),
            Ok(()) => Ok(()),
            Err(source) => Err(Error::NotSent { address, message, source }),
        }
    }

    /// A sink into this manager, one for each producer.
    pub fn sink(&self) -> ManagerSink {
        ManagerSink::new(self.addresses.clone())
    }

    /// Listens, as [`Listener::bind`] does. The manager knows the listener by its address, to close it.
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

    /// Closes a connection: accepts no more messages for it, delivers what was accepted, ends the sending direction, waits
    /// for the peer to close, and forgets the address, which can then be dialed again.
    ///
    /// It takes `close_timeout` at the most, and a tenth of a second more where callbacks keep all threads of the runtime. What
    /// could not be delivered becomes dead letters; then the error is [`Error::Timeout`], or [`Error::NotSent`].
    /// [`Error::NotOpen`] is for an address that is not open. Dropping the future ends the connection at once.
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
    /// says how each of them ended. From the moment of the call nothing more is accepted and nothing can be dialed.
    ///
    /// What could not be delivered becomes dead letters. Listeners go on: see [`close_listener`](Self::close_listener).
    /// An address that another task is closing has its report there. Dropping the future ends all connections at once.
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
        let endings = self.addresses.close_all().into_iter().map(|closing| async move {
            let link = closing.link.clone();
            let cut = end(closing, Some(deadline)).await.is_none();
            let LinkStats { written, dead_lettered, .. } = link.stats();
            (link.address.clone(), Ending { written, dead_lettered, cut })
        });
        join_all(endings).await.into_iter().collect()
    }

    /// Closes a listener that [`listen`](Self::listen) made, as [`Listener::close`] does: by the address that it was given,
    /// or by the one that it listens on. [`Error::NotOpen`] is for an address that none of them has.
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

    /// Who is at the other end of an address, as the transport has made sure: see [`Identity`]. `None` if it knows nothing, as over
    /// plain TCP, or the address is not open, or its connection is down.
    pub fn identity(&self, address: impl Into<Address>) -> Option<Arc<Identity>> {
        self.addresses.open(&address.into())?.socket.identity()
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

    /// The messages, from now on, that were accepted and could not be sent, for the program's own failover. There is one
    /// such stream: a second takes the place of the first, which ends when what is in it was taken, and gets what waits for
    /// room there. Without one they are lost, with a [`ManagerEvent::Lost`].
    ///
    /// ```no_run
    /// use buffstreams::{Config, Manager};
    /// use futures::{StreamExt, future};
    ///
    /// # async fn failover() -> Result<(), buffstreams::Error> {
    /// const SPARE: &str = "127.0.0.1:5032";
    /// let manager = Manager::new(Config::new());
    /// manager.dial("127.0.0.1:5031").await?;
    /// manager.dial(SPARE).await?;
    /// // Its own letters would come back to it again and again.
    /// let dead = manager.dead_letters().filter(|letter| future::ready(letter.address.as_str() != SPARE));
    /// dead.map(|letter| Ok((SPARE.into(), letter.message))).forward(manager.sink()).await
    /// # }
    /// ```
    pub fn dead_letters(&self) -> DeadLetters {
        self.addresses.common.dead_letters.subscribe()
    }
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
