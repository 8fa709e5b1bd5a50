//! The socket of a link, where the one who ends it reaches it: its task may not run for a while.

use std::mem;
use std::sync::Arc;

use super::Dial;
use super::opened::Opened;
use crate::foreign;
use crate::identity::Identity;
use crate::sync::Lock;
use crate::transport;

/// The socket, or the one that is to take its place.
pub(crate) struct LinkSocket(Lock<State>);

enum State {
    Open(transport::Stream),
    Down,
    Dialing(Dial<Opened>),
    /// There is to be no other.
    Ended,
}

impl LinkSocket {
    pub(crate) fn new(stream: Option<transport::Stream>) -> Self {
        Self(Lock::new(stream.map_or(State::Down, State::Open)))
    }

    /// Another one is being made; that is given up if this has been shut meanwhile, or will be.
    pub(crate) fn await_dial(&self, dial: Dial<Opened>) {
        self.replace(State::Dialing(dial));
    }

    /// Goes on with a new connection; `false` if it has been shut meanwhile.
    pub(crate) fn keep(&self, stream: transport::Stream) -> bool {
        self.replace(State::Open(stream))
    }

    /// The connection, if there is one.
    pub(crate) fn stream(&self) -> Option<transport::Stream> {
        match &*self.0.lock() {
            State::Open(stream) => Some(stream.clone()),
            State::Down | State::Dialing(_) | State::Ended => None,
        }
    }

    /// Whether there is a connection.
    #[cfg(feature = "metrics")]
    pub(super) fn is_open(&self) -> bool {
        matches!(*self.0.lock(), State::Open(_))
    }

    /// Who the other end is, if there is one, and its transport has made sure.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        let stream = self.stream()?;
        let identity = stream.identity();
        // It may be the last clone, and drop the waker that the socket has kept.
        let _ = foreign::dispose(stream);
        identity
    }

    /// Closes the connection.
    pub(crate) fn let_go(&self) {
        self.replace(State::Down);
    }

    /// There is no connection any more: the one who has it ends it.
    pub(crate) fn release(&self) {
        let mut state = self.0.lock();
        let released = match &*state {
            State::Open(_) => Some(mem::replace(&mut *state, State::Down)),
            State::Down | State::Dialing(_) | State::Ended => None,
        };
        drop(state);
        let _ = foreign::dispose(released);
    }

    /// Closes the connection, or gives up the one that is being made, at once and for good.
    pub(crate) fn shut(&self) {
        self.replace(State::Ended);
    }

    pub(crate) fn is_shut(&self) -> bool {
        matches!(*self.0.lock(), State::Ended)
    }

    /// Ends what was there, or, if this has been shut, what was to come: `false`. Without the lock.
    fn replace(&self, new: State) -> bool {
        let mut state = self.0.lock();
        let ended = matches!(*state, State::Ended);
        let left = if ended { new } else { mem::replace(&mut *state, new) };
        drop(state);
        match left {
            State::Open(stream) => stream.shut_down(),
            State::Dialing(dial) => dial.give_up(),
            State::Down | State::Ended => {}
        }
        !ended
    }
}
