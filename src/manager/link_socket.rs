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

    /// Another one is being made. It is given up if this has been shut meanwhile, or will be.
    pub(crate) fn await_dial(&self, dial: Dial) {
        if let Err(State::Dialing(dial)) = self.replace(State::Dialing(dial)) {
            dial.give_up();
        }
    }

    /// Goes on with a new connection; `false` if it has been shut meanwhile.
    pub(crate) fn keep(&self, stream: transport::Stream) -> bool {
        let kept = self.replace(State::Open(stream));
        if let Err(State::Open(stream)) = &kept {
            stream.shut_down();
        }
        kept.is_ok()
    }

    /// Returns the state before, to be dropped without the lock, or the new one if this has been shut.
    fn replace(&self, new: State) -> Result<State, State> {
        let mut state = self.0.lock();
        match *state {
            State::Ended => Err(new),
            _ => Ok(mem::replace(&mut *state, new)),
        }
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
        if let Ok(before) = self.replace(State::Down) {
            before.end();
        }
    }

    /// Closes the connection, or gives up the one that is being made, at once and for good.
    pub(crate) fn shut(&self) {
        let before = mem::replace(&mut *self.0.lock(), State::Ended);
        before.end();
    }

    pub(crate) fn is_shut(&self) -> bool {
        matches!(*self.0.lock(), State::Ended)
    }
}

impl State {
    fn end(self) {
        match self {
            Self::Open(stream) => stream.shut_down(),
            Self::Dialing(dial) => dial.give_up(),
            Self::Down | Self::Ended => {}
        }
    }
}
