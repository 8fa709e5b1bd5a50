//! How an address does, as the task of its link knows it.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Error;
use crate::sync::Lock;

/// How an address of a [`Manager`](crate::Manager) does: see [`Manager::health`](crate::Manager::health).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Health {
    /// It has a connection.
    Up,
    /// It has none: it is being dialed, or will be for the next message. What is sent is held meanwhile.
    #[non_exhaustive]
    Away {
        /// Since when.
        since: Instant,
    },
    /// It was dialed in vain, and given up. With [`Config::reconnect`](crate::Config::reconnect), or a session, what is sent comes
    /// back at once, and the address is dialed in the background; without either, the next message dials. While
    /// dead letters of the address wait for room, what is sent is held: see [`DeadLetters`](crate::DeadLetters).
    #[non_exhaustive]
    Down {
        /// Since when.
        since: Instant,
        /// Why the last attempt failed.
        error: Arc<Error>,
        /// When it is dialed next; `None` where that is when there is a message for it.
        next_attempt: Option<Instant>,
    },
}

impl Health {
    /// Whether it was given up.
    pub fn is_down(&self) -> bool {
        matches!(self, Self::Down { .. })
    }
}

/// The health of one address. Its task writes it.
pub(crate) struct Pulse(Lock<Health>);

impl Pulse {
    pub(super) fn new(health: Health) -> Self {
        Self(Lock::new(health))
    }

    pub(crate) fn get(&self) -> Health {
        self.0.lock().clone()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.0.lock().is_down()
    }

    /// It has a connection. Whether it was down.
    pub(super) fn up(&self) -> bool {
        self.replace(Health::Up).is_down()
    }

    /// The connection broke.
    pub(super) fn away(&self, now: Instant) {
        self.replace(Health::Away { since: now });
    }

    /// It was dialed in vain. Whether it had not been down.
    pub(super) fn down(&self, now: Instant, error: &Arc<Error>, next_attempt: Option<Instant>) -> bool {
        let mut health = self.0.lock();
        let (since, is_new) = match &*health {
            Health::Down { since, .. } => (*since, false),
            Health::Up | Health::Away { .. } => (now, true),
        };
        let before = std::mem::replace(&mut *health, Health::Down { since, error: error.clone(), next_attempt });
        drop(health);
        drop(before);
        is_new
    }

    fn replace(&self, health: Health) -> Health {
        std::mem::replace(&mut *self.0.lock(), health)
    }
}
