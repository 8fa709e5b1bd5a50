//! Which addresses of a manager are open, and what becomes of them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Error;
use crate::link::{Common, Link, LinkStats};
use crate::net::Task;
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
}

enum Slot {
    Dialing,
    Open(Arc<Link>, Task),
    Closing(Arc<Link>),
}

impl Directory {
    pub(crate) fn new(common: Common) -> Self {
        Self { common: Arc::new(common), state: Mutex::default() }
    }

    /// Takes the address for whoever opens it.
    pub(crate) fn reserve(&self, address: &Address) -> Result<Reserved<'_>, Error> {
        match self.state().links.entry(address.clone()) {
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
    pub(crate) fn close(&self, address: &Address) -> Option<(Arc<Link>, Task, Reserved<'_>)> {
        let mut state = self.state();
        let slot = state.links.get_mut(address)?;
        let Slot::Open(link, _) = slot else { return None };
        let link = link.clone();
        let Slot::Open(_, task) = mem::replace(slot, Slot::Closing(link.clone())) else { return None };
        Some((link, task, Reserved { directory: self, address: address.clone() }))
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

    fn state(&self) -> MutexGuard<'_, State> {
        // No code of the program runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An address that is being opened or closed. Dropped, it is forgotten.
pub(crate) struct Reserved<'a> {
    directory: &'a Directory,
    address: Address,
}

impl Reserved<'_> {
    /// It is open.
    pub(crate) fn keep(self, link: Arc<Link>, task: Task) {
        self.directory.state().links.insert(self.address.clone(), Slot::Open(link, task));
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut state = self.directory.state();
        match state.links.remove(&self.address) {
            Some(Slot::Closing(link)) => state.retired = state.retired + link.stats(),
            // It was kept.
            Some(open @ Slot::Open(..)) => drop(state.links.insert(self.address.clone(), open)),
            Some(Slot::Dialing) | None => {}
        }
    }
}
