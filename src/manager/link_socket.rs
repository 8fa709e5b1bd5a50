//! The socket of one address of a manager, where whoever ends it reaches it: its task may not run for a while.

use std::mem;
use std::sync::Arc;

use crate::foreign;
use crate::identity::Identity;
use crate::link::Dial;
use crate::sync::Lock;
use crate::transport;

/// The socket, or the one that is to take its place.
pub(crate) struct LinkSocket(Lock<State>);

enum State {
    Open(transport::Stream),
    Down,
    Dialing(Dial),
    /// There is to be no other.
    Ended,
}

impl LinkSocket {
    pub(crate) fn new(stream: transport::Stream) -> Self {
        Self(Lock::new(State::Open(stream)))
    }

    /// Another one is being made; that is given up if this has been shut meanwhile, or will be.
    pub(crate) fn await_dial(&self, dial: Dial) {
        self.replace(State::Dialing(dial));
    }

    /// Goes on with a new connection; `false` if it has been shut meanwhile.
    pub(crate) fn keep(&self, stream: transport::Stream) -> bool {
        self.replace(State::Open(stream))
    }

    /// Who the other end is, if there is one, and its transport has made sure.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        let stream = match &*self.0.lock() {
            State::Open(stream) => stream.clone(),
            State::Down | State::Dialing(_) | State::Ended => return None,
        };
        let identity = stream.identity();
        // It may be the last clone, and drop the waker that the socket has kept.
        let _ = foreign::dispose(stream);
        identity
    }

    /// Closes the connection.
    pub(crate) fn let_go(&self) {
        self.replace(State::Down);
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
