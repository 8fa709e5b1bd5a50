//! The socket of one address of a manager, where whoever ends it reaches it: its task may not run for a while.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use crate::config::Config;
use crate::error::Error;
use crate::foreign;
use crate::identity::Identity;
use crate::peer::Address;
use crate::sync::Lock;
use crate::transport;

/// The socket, and the one that is to take its place.
#[derive(Default)]
pub(crate) struct LinkSocket(Lock<State>);

#[derive(Default)]
struct State {
    /// `None` while the connection is down.
    stream: Option<transport::Stream>,
    dial: Option<Dial>,
    /// There is to be no other.
    ended: bool,
}

/// A connection that is being made.
type Dial = Pin<Box<dyn Future<Output = Result<transport::Stream, Error>> + Send>>;

impl LinkSocket {
    pub(crate) fn new(stream: transport::Stream) -> Self {
        Self(Lock::new(State { stream: Some(stream), ..State::default() }))
    }

    /// Makes a new connection. It never comes to an end where that is given up by [`shut`](Self::shut).
    pub(crate) async fn dial(&self, address: Address, config: Config) -> Result<transport::Stream, Error> {
        let dial: Dial = Box::pin(async move { transport::dial(&address, &config).await });
        self.begin(dial);
        poll_fn(|cx| {
            // Without the lock: to resolve a name, a runtime may start a task and log that, and the logger is the program's.
            let Some(mut dial) = self.0.lock().dial.take() else { return Poll::Pending };
            let dialed = dial.as_mut().poll(cx);
            if dialed.is_pending() {
                self.begin(dial);
            }
            dialed
        })
        .await
    }

    /// Keeps it, unless that was given up.
    fn begin(&self, dial: Dial) {
        let mut state = self.0.lock();
        if !state.ended {
            state.dial = Some(dial);
        }
    }

    /// Goes on with a new connection; `false` if it has been shut meanwhile.
    pub(crate) fn keep(&self, stream: transport::Stream) -> bool {
        let mut state = self.0.lock();
        if !state.ended {
            state.stream = Some(stream);
            return true;
        }
        drop(state);
        stream.shut_down();
        false
    }

    /// Who the other end is, if there is one, and its transport has made sure.
    pub(crate) fn identity(&self) -> Option<Arc<Identity>> {
        let stream = self.0.lock().stream.clone()?;
        let identity = stream.identity();
        // It may be the last clone, and drop the waker that the socket has kept.
        let _ = foreign::dispose(stream);
        identity
    }

    /// Closes the connection.
    pub(crate) fn let_go(&self) {
        let mut state = self.0.lock();
        let (stream, dial) = (state.stream.take(), state.dial.take());
        drop(state);
        drop(dial);
        if let Some(stream) = stream {
            stream.shut_down();
        }
    }

    /// Closes the connection, or gives up the one that is being made, at once and for good.
    pub(crate) fn shut(&self) {
        self.0.lock().ended = true;
        self.let_go();
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.0.lock().ended
    }
}
