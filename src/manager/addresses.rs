//! Which addresses of a manager are open, and what becomes of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;

use super::common::{Common, Owned};
use super::route_queue::RouteQueue;
use crate::error::Error;
use crate::foreign::{self, PanicSource};
use crate::link::{First, Link, LinkStats};
use crate::observe::in_link_span;
use crate::peer::Address;
use crate::runtime::{Handle, Task};
use crate::sync::{Lock, Signal};
use crate::wire::Codec;

/// How long a close whose time is over waits for the task to go: not for one that cannot run, because callbacks keep all
/// threads of the runtime.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

/// The clones of a manager, and the sinks that keep it: with the last of them it ends.
pub(crate) struct Alive(Arc<Addresses>);

impl Alive {
    pub(crate) fn new(addresses: Arc<Addresses>) -> Arc<Self> {
        Arc::new(Self(addresses))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What the clones of a manager and its sinks share.
pub(crate) struct Addresses {
    pub(crate) common: Arc<Common>,
    state: Lock<State>,
}

#[derive(Default)]
struct State {
    links: HashMap<Address, Slot>,
    /// The counters of addresses that are closed.
    retired: LinkStats,
    /// Nothing is opened any more.
    shut_down: bool,
    /// When the last address is closed, no more letters come.
    over: bool,
    /// And no more events: nobody has the manager any more.
    ended: bool,
    routers: Vec<(Arc<RouteQueue>, Task)>,
}

enum Slot {
    Dialing,
    Open(Arc<Link>, Task),
    Closing(Arc<Link>),
}

impl Slot {
    fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Open(link, _) | Self::Closing(link) => Some(link),
            Self::Dialing => None,
        }
    }

    fn close(&mut self, addresses: &Arc<Addresses>) -> Option<Closing> {
        let Self::Open(link, _) = self else { return None };
        let link = link.clone();
        let Self::Open(_, task) = mem::replace(self, Self::Closing(link.clone())) else { return None };
        Some(Closing { addresses: addresses.clone(), link, task: Some(task), ended: false })
    }
}

impl Addresses {
    pub(crate) fn new(common: Common) -> Self {
        Self { common: Arc::new(common), state: Lock::default() }
    }

    /// Takes the address, to open it.
    pub(crate) fn reserve(self: &Arc<Self>, address: &Address) -> Result<Reserved<'_>, Error> {
        let mut state = self.state.lock();
        if state.shut_down {
            return Err(Error::Closed { message: None });
        }
        match state.links.entry(address.clone()) {
            Entry::Occupied(_) => Err(Error::AlreadyOpen { address: address.clone() }),
            Entry::Vacant(vacant) => {
                vacant.insert(Slot::Dialing);
                Ok(Reserved { addresses: self, address: address.clone(), is_open: false })
            }
        }
    }

    /// The address, while it is open.
    pub(crate) fn open(&self, address: &Address) -> Option<Arc<Link>> {
        match self.state.lock().links.get(address)? {
            Slot::Open(link, _) => Some(link.clone()),
            Slot::Dialing | Slot::Closing(_) => None,
        }
    }

    /// Takes the address, if it is open, to close it.
    pub(crate) fn close(self: &Arc<Self>, address: &Address) -> Option<Closing> {
        self.state.lock().links.get_mut(address)?.close(self)
    }

    /// Opens nothing more.
    pub(crate) fn shut_down(self: &Arc<Self>) -> ShutDown {
        self.state.lock().shut_down = true;
        ShutDown(Some(self.clone()))
    }

    /// Takes all addresses that are open, to close them.
    fn close_all(self: &Arc<Self>) -> Vec<Closing> {
        let mut state = self.state.lock();
        let mut closing: Vec<_> = state.links.values_mut().filter_map(|slot| slot.close(self)).collect();
        drop(state);
        // The same in each run, which the simulator promises.
        closing.sort_by(|one, other| one.link.address.cmp(&other.link.address));
        closing
    }

    /// All addresses, sorted.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<_> = self.state.lock().links.keys().cloned().collect();
        addresses.sort();
        addresses
    }

    /// The books of each address that is open or closing, and the sum of those that are closed.
    pub(crate) fn stats(&self) -> (Vec<(Address, LinkStats)>, LinkStats) {
        let state = self.state.lock();
        let links = state.links.iter().filter_map(|(address, slot)| Some((address.clone(), slot.link()?.stats())));
        (links.collect(), state.retired)
    }

    /// Enters messages that the sink of a route had accepted and that no queue of an address has.
    pub(crate) fn never_handed_over(&self, messages: usize) {
        let messages = messages as u64;
        let mut state = self.state.lock();
        state.retired =
            state.retired + LinkStats { accepted: messages, dead_lettered: messages, ..LinkStats::default() };
    }

    /// Takes this link, if it is open, to close it.
    fn close_link(self: &Arc<Self>, link: &Arc<Link>) -> Option<Closing> {
        let mut state = self.state.lock();
        let slot =
            state.links.get_mut(&link.address).filter(|slot| slot.link().is_some_and(|it| Arc::ptr_eq(it, link)))?;
        slot.close(self)
    }

    /// Forgets an address that is closed, but for its counters.
    fn forget(&self, link: &Link) {
        let mut state = self.state.lock();
        let closed = state.links.remove(&link.address);
        state.retired = state.retired + link.stats();
        drop(state);
        self.dispose(link, closed);
        self.look();
    }

    /// After a shutdown: what comes back from now on has nobody to go to.
    pub(crate) fn over(&self) {
        self.state.lock().over = true;
        self.look();
    }

    /// If the last address is closed, there may be no more letters, or events.
    pub(crate) fn look(&self) {
        let state = self.state.lock();
        // What is still being dialed is not opened any more.
        let none_is_left = state.links.values().all(|slot| slot.link().is_none());
        let (over, ended) = (state.over && none_is_left, state.ended && none_is_left);
        drop(state);
        // What an address gave back to a route becomes letters in the route's task.
        if over && self.routers().iter().all(|router| router.is_settled()) {
            self.common.dead_letters.end();
        }
        if ended {
            self.common.reporter.end();
        }
    }

    /// The task of a route, until the manager ends or it does. `false` where nothing is opened any more.
    pub(crate) fn keep_router(&self, queue: Arc<RouteQueue>, task: Task) -> bool {
        let mut state = self.state.lock();
        let known = mem::take(&mut state.routers);
        let (over, mut goes_on): (Vec<_>, _) = known.into_iter().partition(|(queue, _)| queue.is_over());
        let is_kept = !state.shut_down;
        if is_kept {
            goes_on.push((queue, task));
        }
        state.routers = goes_on;
        drop(state);
        for (_, task) in over {
            task.detach();
        }
        is_kept
    }

    /// Those of routes that have not come to their end.
    pub(crate) fn routers(&self) -> Vec<Arc<RouteQueue>> {
        self.state.lock().routers.iter().map(|(queue, _)| queue.clone()).collect()
    }

    /// An address is open, or is up after it was down: a route may wait for another although this one comes first.
    fn call_routers(&self) {
        self.routers().iter().for_each(|router| router.call());
    }

    /// Ends all at once. What others are closing is theirs.
    fn end(&self) {
        let mut state = self.state.lock();
        (state.shut_down, state.over, state.ended) = (true, true, true);
        let routers = mem::take(&mut state.routers);
        let links = mem::take(&mut state.links).into_iter();
        let (closing, mut slots): (HashMap<_, _>, Vec<_>) =
            links.fold(Default::default(), |(mut closing, mut open), (address, slot)| {
                match slot {
                    Slot::Closing(_) => drop(closing.insert(address, slot)),
                    Slot::Open(..) | Slot::Dialing => open.push((address, slot)),
                }
                (closing, open)
            });
        state.links = closing;
        drop(state);
        slots.sort_by(|(one, _), (other, _)| one.cmp(other));
        // At once: the tasks may not run for a while.
        slots.iter().filter_map(|(_, slot)| slot.link()).for_each(|link| link.socket.shut());
        for (address, slot) in slots {
            let link = slot.link().cloned();
            if let Err(panic) = foreign::dispose(slot) {
                self.common.panicked(&address, PanicSource::Drop, panic);
            }
            // A weak sink may have it still.
            if let Some(link) = link {
                link.abandon();
            }
        }
        let _ = foreign::dispose(routers);
        self.look();
    }

    /// What is dropped here may be the last of a message, and what the program made it of.
    fn dispose(&self, link: &Link, last: Option<Slot>) {
        if let Err(panic) = foreign::dispose(last) {
            self.common.panicked(&link.address, PanicSource::Drop, panic);
        }
    }
}

/// An address that is being opened. Dropped, it is forgotten.
pub(crate) struct Reserved<'a> {
    addresses: &'a Arc<Addresses>,
    address: Address,
    /// It is somebody else's to forget.
    is_open: bool,
}

impl Reserved<'_> {
    /// It is open, on this connection, unless all is closed by now.
    pub(crate) fn keep(mut self, first: First, codec: Codec) -> Result<(), Error> {
        let common = &self.addresses.common;
        let addresses = Arc::downgrade(self.addresses);
        let is_up = Box::new(move || addresses.upgrade().iter().for_each(|addresses| addresses.call_routers()));
        let owner = Arc::new(Owned { common: common.clone(), address: self.address.clone(), is_up });
        let (config, linger) = (common.config.clone(), common.config.linger.with_task());
        let (link, running) = Link::new(owner, config, linger, self.address.clone(), codec, first);
        let watched = watch(running, link.clone(), Arc::downgrade(self.addresses));
        let watched = in_link_span(&self.address, watched);
        // So that the task finds itself there, however soon it ends.
        let known = Signal::default();
        let start = known.wait().then(|()| watched);
        // Without the lock: the runtime logs that it starts a task, and the logger is the program's.
        let task = foreign::call(|| common.config.runtime.spawn(start)).map_err(|panic| {
            common.panicked(&self.address, PanicSource::Logger, panic);
            Error::Panicked { what: PanicSource::Logger }
        })?;
        let mut state = self.addresses.state.lock();
        if state.shut_down {
            drop(state);
            link.socket.shut();
            return Err(Error::Closed { message: None });
        }
        let dialing = state.links.insert(self.address.clone(), Slot::Open(link, task));
        self.is_open = true;
        drop(state);
        drop(dialing);
        known.give(());
        self.addresses.call_routers();
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        // Once open, it may have been closed and taken by another meanwhile.
        if self.is_open {
            return;
        }
        let mut state = self.addresses.state.lock();
        if let Some(Slot::Dialing) = state.links.get(&self.address) {
            state.links.remove(&self.address);
        }
    }
}

/// Runs the task of a link. A panic that ends it is a defect of this crate: then the address is closed in order.
async fn watch(running: impl Future<Output = ()>, link: Arc<Link>, addresses: Weak<Addresses>) {
    // Dropped before its end, it has been taken to close the address.
    let Err(panic) = foreign::run(running, drop).await else { return };
    let Some(addresses) = addresses.upgrade() else { return };
    addresses.common.panicked(&link.address, PanicSource::Task, panic);
    let why = Error::Panicked { what: PanicSource::Task };
    match addresses.close_link(&link) {
        Some(mut closing) => {
            // It is this one.
            if let Some(task) = closing.task.take() {
                task.detach();
            }
            closing.end(Some(why)).await;
        }
        // The close that goes on already has it come back now, and forgets it.
        None => give_back(&addresses, &link, Some(why)).await,
    }
}

/// A shutdown that has begun. Dropped before it has taken the addresses to close them, it ends them at once.
pub(crate) struct ShutDown(Option<Arc<Addresses>>);

impl ShutDown {
    /// Takes all addresses that are open, to close them.
    pub(crate) fn close_all(mut self) -> Vec<Closing> {
        self.0.take().map(|addresses| addresses.close_all()).unwrap_or_default()
    }
}

impl Drop for ShutDown {
    fn drop(&mut self) {
        drop(self.0.take().map(|addresses| addresses.close_all()));
    }
}

/// An address that is being closed. Dropped before its end, it ends at once, and what it holds comes back in the background.
pub(crate) struct Closing {
    addresses: Arc<Addresses>,
    pub(crate) link: Arc<Link>,
    pub(crate) task: Option<Task>,
    ended: bool,
}

impl Closing {
    pub(crate) fn runtime(&self) -> Handle {
        self.addresses.common.config.runtime.clone()
    }

    /// Ends the connection, takes back what it holds, and forgets its address. An error says why, if that is no close.
    pub(crate) async fn end(mut self, why: Option<Error>) {
        self.link.socket.shut();
        if let Some(task) = self.task.take() {
            self.addresses.common.config.runtime.within(Some(GRACE), task.stop()).await;
        }
        give_back(&self.addresses, &self.link, why).await;
        self.addresses.forget(&self.link);
        self.ended = true;
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.link.socket.shut();
        let (addresses, link, task) = (self.addresses.clone(), self.link.clone(), self.task.take());
        let runtime = addresses.common.config.runtime.clone();
        let (here, of) = (addresses.clone(), link.clone());
        let ending = runtime.finish(async move { Self { addresses, link, task, ended: false }.end(None).await });
        if let Err(panic) = ending {
            here.common.panicked(&of.address, PanicSource::Logger, panic);
            // Its task was dropped, and nobody else will do it.
            let _ = give_back(&here, &of, None).now_or_never();
            here.forget(&of);
        }
    }
}

/// Ends a link, and makes dead letters of what it holds.
async fn give_back(addresses: &Addresses, link: &Link, why: Option<Error>) {
    for (messages, verdict) in link.end(why.map(Arc::new)).await {
        // A close does not wait for the taker of dead letters, who may be the one who closes.
        let _ = addresses.common.clone().bury(link.address.clone(), messages, verdict).now_or_never();
    }
}
