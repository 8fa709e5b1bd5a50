//! Callbacks, for programs in the older style: drives a listener with a closure.

use std::collections::HashSet;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use crate::error::{BoxError, Error};
use crate::events::Reason;
use crate::hub::Delivery;
use crate::listener::{Closer, Incoming, Listener};
use crate::net::{self, Task};
use crate::peer::Peer;

impl Listener {
    /// Calls `callback` with each message, until the listener ends: after [`Closer::close`], when every peer has closed.
    ///
    /// The message is borrowed from the read buffer, without a copy. The callback runs in the connection's own task: one
    /// peer's messages come one after the other and in order, those of several peers in parallel. One that blocks for
    /// long keeps a thread of the runtime; see [`serve_async`](Self::serve_async). No inbox stands in between: a slow
    /// callback closes its peer's TCP window.
    ///
    /// An error that it returns goes to [`events`](Self::events), and the peer goes on. A panic is caught and goes to the
    /// events too; that peer is disconnected, the others go on. (With `panic = "abort"` nothing can be caught.)
    ///
    /// Where the listener has been polled as a stream before, its peers go on that way: the callback is called, in this
    /// future, with what the stream yields from here on.
    ///
    /// Dropping the future ends the listener and its tasks.
    pub fn serve<F>(self, callback: F) -> impl Future<Output = Result<(), Error>> + Send
    where
        F: Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        run(self, Delivery::Callback(Arc::new(callback))).map(Ok)
    }

    /// As [`serve`](Self::serve), with a callback that returns a future. It gets the message as `Bytes`, to keep if it
    /// likes. The next message of that peer waits for the future's end.
    pub fn serve_async<F, R>(self, callback: F) -> impl Future<Output = Result<(), Error>> + Send
    where
        F: Fn(Peer, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let callback = move |peer, message| callback(peer, message).boxed();
        run(self, Delivery::AsyncCallback(Arc::new(callback))).map(Ok)
    }

    /// As [`serve`](Self::serve), in the background, until the handle is closed or dropped.
    pub fn serve_in_background<F>(self, callback: F) -> Serving
    where
        F: Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let closer = self.closer();
        let task = net::spawn(run(self, Delivery::Callback(Arc::new(callback))));
        Serving { closer, task }
    }
}

/// A listener that is served in the background. Dropping it ends the listener at once.
#[derive(Debug)]
pub struct Serving {
    closer: Closer,
    task: Task,
}

impl Serving {
    /// A handle to the listener: its address, its counters, and its end.
    pub fn closer(&self) -> Closer {
        self.closer.clone()
    }

    /// Closes the listener, and waits until the callback has seen everything: what has been received, and what the
    /// peers send until they close or have been silent for `close_timeout`.
    ///
    /// The error is that of [`Listener::close`]. Dropping the future ends the listener at once.
    pub async fn close(mut self) -> Result<(), Error> {
        let closed = self.closer.close().await;
        self.task.join().await;
        closed
    }
}

/// Runs until the listener ends. The callback is in place before the future is polled.
fn run(listener: Listener, delivery: Delivery) -> impl Future<Output = ()> + Send {
    let incoming = listener.into_incoming();
    incoming.hub().choose(delivery.clone());
    call_all(incoming, delivery)
}

/// Waits for the end. The peers' tasks call the callback; if they were set to fill the inbox before, it is called here.
async fn call_all(mut incoming: Incoming, delivery: Delivery) {
    let hub = incoming.hub().clone();
    let mut expelled = HashSet::new();
    while let Some((peer, message)) = incoming.next().await {
        if expelled.contains(&peer) {
            continue;
        }
        let called = AssertUnwindSafe(call(&delivery, peer, message)).catch_unwind().await;
        match called {
            Ok(Ok(())) => {}
            Ok(Err(error)) => hub.call_failed(peer, error),
            Err(panic) => {
                hub.call_panicked(peer, &*panic);
                hub.expel(peer, Reason::CallbackPanicked);
                expelled.insert(peer);
            }
        }
    }
}

async fn call(delivery: &Delivery, peer: Peer, message: Bytes) -> Result<(), BoxError> {
    match delivery {
        Delivery::Callback(callback) => callback(peer, &message),
        Delivery::AsyncCallback(callback) => callback(peer, message).await,
        Delivery::Inbox | Delivery::Connections => Ok(()),
    }
}
