//! A `Sink` of messages, each to the address that its route says.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::sink::{Sink, SinkExt};

use super::addresses::{Addresses, Alive};
use super::route::Route;
use super::route_queue::{Fed, RouteQueue};
use super::router::Router;
use crate::error::{ConfigError, Error};
use crate::foreign::{self, PanicSource};
use crate::framed::HIGH_WATER;
use crate::runtime::Handle;
use crate::wire::{Codec, Output};

/// A `Sink` of `Bytes` to the addresses of a [`Route`], of [`Manager::sink_to`](crate::Manager::sink_to).
///
/// - `start_send` never waits, and loses nothing: a message over the limit comes back in [`Error::MessageTooLarge`], and any
///   message in [`Error::Closed`] when the manager was shut down, or this sink closed, or the route has no address.
/// - `poll_ready` waits while 60 KiB are collected here, or `queue_bytes` if that is less. They are handed on as soon as there is
///   room. The rule says which address must have it: see [`Route`].
/// - `poll_flush` is ready when each message that came through here is written, or is a dead letter. It returns an error, once, if no
///   address could take some of the messages: [`Error::NotSent`] with the last address and its error, where each open address has
///   given them back, or [`Error::NotOpen`] where none was open. As long as one address takes messages there is no error, so an
///   address that fails does not end a `forward`.
/// - `poll_close` flushes and ends this sink, not the connections. In a session it does not wait for acknowledgements either.
///
/// A message goes to another address only if it was not sent: its address was given up or closed before the kernel had taken it
/// whole. Each address has it once at the most. One that was sent in a session and is in doubt, that was refused,
/// or that is too old goes nowhere else: it becomes a dead letter with its [`outcome`](crate::DeadLetter::outcome), as does one
/// that every address gave back. [`tried`](crate::DeadLetter::tried) says which addresses had it. Its
/// [age](crate::Config::message_ttl) begins when it is fed here, and goes on from one address to the next; at an address it is looked
/// at when that has room for it.
///
/// What one address is given keeps its order. A message that comes from another address stands behind what this one was
/// given before, and in front of what comes through here later. There is no order between two addresses.
///
/// What is held is bounded: here, in the queue of each address, and `queue_bytes` of dead letters that are not taken. When there are
/// that many, the sink waits. So the task that takes the letters should not wait for the route that they come from.
///
/// Dropping a future loses nothing that was accepted, and neither does dropping the sink: the rest goes on in the background, as
/// long as the manager.
pub struct RouteSink {
    queue: Arc<RouteQueue>,
    route: Route,
    /// Checks the size of messages; nothing is put into it. Or why the configuration cannot work.
    output: Result<Output, ConfigError>,
    mark: usize,
    /// Tells when a message comes, where messages have an age.
    clock: Option<Handle>,
    closed: bool,
    _alive: Arc<Alive>,
}

impl RouteSink {
    pub(super) fn new(addresses: &Arc<Addresses>, alive: Arc<Alive>, route: Route) -> Self {
        let config = &addresses.common.config;
        let (queue, mark) = (Arc::<RouteQueue>::default(), config.queue_bytes.min(HIGH_WATER));
        let codec = config.codec();
        let starts = |codec: &Codec| !route.addresses().is_empty() && start(addresses, &route, *codec, mark, &queue);
        if !codec.as_ref().is_ok_and(starts) {
            queue.over();
        }
        let output = codec.map(Output::new);
        let clock = config.message_ttl.map(|_| config.runtime.clone());
        Self { queue, route, output, mark, clock, closed: false, _alive: alive }
    }

    /// Accepts the message that `push` makes. It has memory of its own, as it may go to one address after another.
    pub(crate) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        let output = self.output.as_ref().map_err(Clone::clone)?;
        let message = output.another().message_of(push)?;
        self.start_send_unpin(message)
    }
}

/// Starts the task of a route. `false` if there is none.
fn start(addresses: &Arc<Addresses>, route: &Route, codec: Codec, mark: usize, queue: &Arc<RouteQueue>) -> bool {
    let router = Router::new(addresses, route.clone(), codec, mark, queue.clone());
    let over = Over { queue: queue.clone(), addresses: Arc::downgrade(addresses) };
    let (common, address) = (addresses.common.clone(), route.addresses()[0].clone());
    let running = async move {
        let _over = over;
        if let Err(panic) = foreign::run(router.run(), drop).await {
            common.panicked(&address, PanicSource::Task, panic);
        }
    };
    match foreign::call(|| addresses.common.config.runtime.spawn(running)) {
        Ok(task) => addresses.keep_router(queue.clone(), task),
        Err(panic) => {
            addresses.common.panicked(&route.addresses()[0], PanicSource::Logger, panic);
            false
        }
    }
}

/// Tells that the task has ended, also where its runtime has.
struct Over {
    queue: Arc<RouteQueue>,
    addresses: Weak<Addresses>,
}

impl Drop for Over {
    fn drop(&mut self) {
        self.queue.over();
        if let Some(addresses) = self.addresses.upgrade() {
            addresses.look();
        }
    }
}

impl Sink<Bytes> for RouteSink {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.queue.poll_room(self.mark, cx).map(Ok)
    }

    fn start_send(self: Pin<&mut Self>, message: Bytes) -> Result<(), Error> {
        let message = match &self.output {
            Ok(output) if !self.closed => output.check(message)?,
            _ => return Err(Error::Closed { message: Some(message.into()) }),
        };
        let key = self.route.key(&message);
        let since = self.clock.as_ref().map(Handle::now);
        self.queue.push(Fed { message, key, since }).map_err(|message| Error::Closed { message: Some(message.into()) })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.queue.poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.as_mut().poll_flush(cx))?;
        self.closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for RouteSink {
    fn drop(&mut self) {
        self.queue.leave();
    }
}

impl fmt::Debug for RouteSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteSink").field("route", &self.route).field("pending", &self.queue.pending()).finish()
    }
}
