//! Which addresses of a manager are open, and what becomes of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::OptionFuture;

use crate::error::Error;
use crate::link::{Common, Link, LinkStats};
use crate::net::{self, Task};
use crate::peer::Address;

/// What the clones of a manager and its sinks share.
pub(crate) struct Directory {
    pub(crate) common: Arc<Common>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    links: HashMap<Address, Slot>,
    /// The counters of addresses that are closed.
    retired: LinkStats,
    /// Nothing is opened any more.
    shut_down: bool,
}

enum Slot {
    Dialing,
    Open(Arc<Link>, Task),
    Closing(Arc<Link>),
}

impl Slot {
    fn close(&mut self, directory: &Arc<Directory>) -> Option<Closing> {
        let Self::Open(link, _) = self else { return None };
        let link = link.clone();
        let Self::Open(_, task) = mem::replace(self, Self::Closing(link.clone())) else { return None };
        Some(Closing { directory: directory.clone(), link, task: Some(task) })
    }
}

impl Directory {
    pub(crate) fn new(common: Common) -> Self {
        Self { common: Arc::new(common), state: Mutex::default() }
    }

    /// Takes the address for whoever opens it.
    pub(crate) fn reserve(&self, address: &Address) -> Result<Reserved<'_>, Error> {
        let mut state = self.state();
        if state.shut_down {
            return Err(Error::Closed { message: None });
        }
        match state.links.entry(address.clone()) {
            Entry::Occupied(_) => Err(Error::AlreadyOpen { address: address.clone() }),
            Entry::Vacant(vacant) => {
                vacant.insert(Slot::Dialing);
                Ok(Reserved { directory: self, address: address.clone() })
            }
        }
    }

    /// The address, while it is open.
    pub(crate) fn open(&self, address: &Address) -> Option<Arc<Link>> {
        match self.state().links.get(address)? {
            Slot::Open(link, _) => Some(link.clone()),
            Slot::Dialing | Slot::Closing(_) => None,
        }
    }

    /// Takes the address, if it is open, for whoever closes it.
    pub(crate) fn close(self: &Arc<Self>, address: &Address) -> Option<Closing> {
        self.state().links.get_mut(address)?.close(self)
    }

    /// Takes all addresses that are open, for whoever closes them, and opens no more.
    pub(crate) fn close_all(self: &Arc<Self>) -> Vec<Closing> {
        let mut state = self.state();
        state.shut_down = true;
        state.links.values_mut().filter_map(|slot| slot.close(self)).collect()
    }

    /// All addresses, sorted.
    pub(crate) fn addresses(&self) -> Vec<Address> {
        let mut addresses: Vec<_> = self.state().links.keys().cloned().collect();
        addresses.sort();
        addresses
    }

    /// The books of each address that is open or closing, and the sum of those that are closed.
    pub(crate) fn stats(&self) -> (Vec<(Address, LinkStats)>, LinkStats) {
        let state = self.state();
        let links = state.links.iter().filter_map(|(address, slot)| match slot {
            Slot::Open(link, _) | Slot::Closing(link) => Some((address.clone(), link.stats())),
            Slot::Dialing => None,
        });
        (links.collect(), state.retired)
    }

    /// Enters messages that a sink had accepted for an address and not handed over before that was closed.
    pub(crate) fn never_handed_over(&self, messages: usize) {
        let messages = messages as u64;
        let mut state = self.state();
        state.retired =
            state.retired + LinkStats { accepted: messages, dead_lettered: messages, ..LinkStats::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code of the program runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address that is being opened. Dropped, it is forgotten.
pub(crate) struct Reserved<'a> {
    directory: &'a Directory,
    address: Address,
}

impl Reserved<'_> {
    /// It is open, unless all is closed by now.
    pub(crate) fn keep(self, link: Arc<Link>, task: Task) -> Result<(), Error> {
        let mut state = self.directory.state();
        if state.shut_down {
            return Err(Error::Closed { message: None });
        }
        state.links.insert(self.address.clone(), Slot::Open(link, task));
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.directory.state();
        if let Some(Slot::Dialing) = state.links.get(&self.address) {
            state.links.remove(&self.address);
        }
    }
}

/// An address that is being closed. Dropped before its end, it ends in the background.
pub(crate) struct Closing {
    directory: Arc<Directory>,
    pub(crate) link: Arc<Link>,
    pub(crate) task: Option<Task>,
}

impl Closing {
    /// Ends it, in the background also when this is not waited for.
    pub(crate) fn end(&mut self) -> impl Future<Output = ()> + use<> {
        let ending = self.task.take().map(|task| net::finish(end(self.directory.clone(), self.link.clone(), task)));
        OptionFuture::from(ending).map(drop)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Ends a connection that is being closed, takes back what it holds, and forgets its address.
async fn end(directory: Arc<Directory>, link: Arc<Link>, task: Task) {
    task.stop().await;
    let given_back = link.give_back().await;
    {
        let mut state = directory.state();
        state.links.remove(&link.address);
        state.retired = state.retired + link.stats();
    }
    // A close does not wait for whoever takes the dead letters: they may be the one who closes.
    for (messages, verdict) in given_back {
        let burying = directory.common.clone().bury(link.address.clone(), messages, verdict);
        let _ = burying.now_or_never();
    }
}
