//! How a newer connection gets to the task of its session.

use std::mem;
use std::time::Duration;

use super::place::Place;
use super::principal::Principal;
use crate::endpoint::Endpoint;
use crate::observe::Reason;
use crate::session::{Hello, Key};
use crate::sync::atomic::AtomicBool;
use crate::sync::{Lock, Signal};
use crate::transport::Stream;

/// What a session's member has beside what every peer has.
pub(crate) struct Seating {
    pub(crate) key: Key<Principal>,
    /// How long the session lives without a connection.
    pub(crate) ttl: Duration,
    /// That of the listener: see `SessionTable`.
    pub(crate) incarnation: u32,
    /// The program has panicked on a message outside of the task, which ends the connection.
    pub(crate) panicked: AtomicBool,
    slot: Lock<Slot>,
}

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// A newer connection of the session.
    Offered(Box<Offer>),
    /// The session has lost its place, for this reason.
    Over(Reason),
}

/// A connection whose other end comes back to a session.
pub(crate) struct Offer {
    pub(crate) place: Place,
    pub(crate) stream: Stream,
    pub(crate) from: Endpoint,
    pub(crate) hello: Hello,
    pub(crate) taken: Taken,
}

/// Tells the one who has offered a connection, when it is dropped, that the session's task has it, or that it is gone.
#[derive(Default)]
pub(crate) struct Taken(pub(crate) Signal<()>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.give(());
    }
}

/// What its task finds in a session's slot.
pub(crate) enum Called {
    Offer(Box<Offer>),
    Over(Reason),
}

impl Seating {
    pub(crate) fn new(key: Key<Principal>, ttl: Duration, incarnation: u32) -> Self {
        Self { key, ttl, incarnation, panicked: AtomicBool::new(false), slot: Lock::default() }
    }

    /// Offers its task a connection, in place of one that was offered before: that is returned, to be dropped without a lock.
    /// `Err` gives it back where the session is over.
    pub(crate) fn offer(&self, offer: Box<Offer>) -> Result<Option<Box<Offer>>, Box<Offer>> {
        let mut slot = self.slot.lock();
        match mem::take(&mut *slot) {
            Slot::Over(why) => {
                *slot = Slot::Over(why);
                Err(offer)
            }
            Slot::Offered(older) if older.hello.epoch > offer.hello.epoch => {
                *slot = Slot::Offered(older);
                Err(offer)
            }
            Slot::Offered(older) => {
                *slot = Slot::Offered(offer);
                Ok(Some(older))
            }
            Slot::Empty => {
                *slot = Slot::Offered(offer);
                Ok(None)
            }
        }
    }

    /// Takes an offer back that its task has not taken.
    pub(crate) fn withdraw(&self, epoch: u32) -> Option<Box<Offer>> {
        let mut slot = self.slot.lock();
        match mem::take(&mut *slot) {
            Slot::Offered(offer) if offer.hello.epoch == epoch => Some(offer),
            other => {
                *slot = other;
                None
            }
        }
    }

    /// The session has lost its place.
    pub(crate) fn end(&self, why: Reason) -> Option<Box<Offer>> {
        match mem::replace(&mut *self.slot.lock(), Slot::Over(why)) {
            Slot::Offered(offer) => Some(offer),
            Slot::Empty | Slot::Over(_) => None,
        }
    }

    /// As its task.
    pub(crate) fn take(&self) -> Option<Called> {
        let mut slot = self.slot.lock();
        match mem::take(&mut *slot) {
            Slot::Empty => None,
            Slot::Offered(offer) => Some(Called::Offer(offer)),
            Slot::Over(why) => {
                *slot = Slot::Over(why.clone());
                Some(Called::Over(why))
            }
        }
    }
}
