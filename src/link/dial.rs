//! A connection that is being made. The one who ends all that it is for reaches it: the task that waits for it may not run for a
//! while.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::config::Config;
use crate::error::Error;
use crate::peer::Address;
use crate::sync::Lock;
use crate::transport::{self, Stream};

/// A connection that is being made, up to the end of its TLS handshake, or, in a session, of that. Its clones are of the same one.
pub(crate) struct Dial<T = Stream>(Arc<Lock<State<T>>>);

enum State<T> {
    Dialing(Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>),
    /// It is being polled, without the lock, or has come to its end.
    Taken,
    GivenUp,
}

impl<T> Clone for Dial<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Dial {
    pub(crate) fn new(address: Address, config: Config) -> Self {
        Self::of(async move { transport::dial(&address, &config).await })
    }
}

impl<T> Dial<T> {
    pub(crate) fn of(dialing: impl Future<Output = Result<T, Error>> + Send + 'static) -> Self {
        Self(Arc::new(Lock::new(State::Dialing(Box::pin(dialing)))))
    }

    /// It never comes to an end where it was given up.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<T, Error>> {
        // Without the lock: to resolve a name, a runtime may start a task and log that, and the logger is the program's.
        let before = mem::replace(&mut *self.0.lock(), State::Taken);
        let State::Dialing(mut dialing) = before else { return Poll::Pending };
        let dialed = dialing.as_mut().poll(cx);
        if dialed.is_pending() {
            let mut state = self.0.lock();
            if let State::Taken = *state {
                *state = State::Dialing(dialing);
            }
        }
        dialed
    }

    /// Drops what there is of it, at once.
    pub(crate) fn give_up(&self) {
        let given_up = mem::replace(&mut *self.0.lock(), State::GivenUp);
        drop(given_up);
    }
}
