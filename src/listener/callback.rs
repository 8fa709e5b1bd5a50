//! Callbacks, for programs in the older style: drives a listener with a closure.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};

use super::peers::Running;
use super::shared::{AsyncCallback, Callback, Handling};
use super::{Closer, Incoming, Listener};
use crate::error::{BoxError, Error, Limit};
use crate::foreign::{self, PanicHook, PanicSource, Told};
use crate::peer::Peer;
use crate::runtime::Task;
use crate::session::Settled;

/// How much longer than `drain_timeout` a close waits for tasks to end in order, before they are taken for stuck.
const GRACE: Duration = Duration::from_millis(250);

impl Listener {
    /// Calls `callback` with each message, until the listener ends: after [`Closer::close`], when every peer has closed.
    ///
    /// The message is borrowed from the read buffer, without a copy. The callback runs in the connection's own task: one
    /// peer's messages come one after the other and in order, those of several peers in parallel. No inbox stands in
    /// between: a slow callback closes its peer's TCP window.
    ///
    /// A callback that blocks keeps a thread of the runtime meanwhile, and there are as many as processors. When all of them
    /// are kept, nothing moves in the whole process that runs there: no other peer, listener, connection or manager, and none of
    /// the program's own tasks. For long work, or work that waits, take [`serve_async`](Self::serve_async).
    ///
    /// An error that it returns goes to [`events`](Self::events), and the peer goes on. A panic is caught and goes to the
    /// events too; that peer is disconnected, the others go on. (With `panic = "abort"` nothing can be caught.)
    ///
    /// In a [session](crate::Config::session), an error refuses the message, and the peer has it back. After a panic the message is
    /// in doubt: the connection ends, with an [`Event::Detached`](crate::Event::Detached), and the session goes on behind it.
    ///
    /// The error is [`Error::Timeout`], when the listener was closed and something was lost: see [`Serving::close`].
    ///
    /// Where the listener has been polled as a stream before, its peers go on that way: the callback is called, in this
    /// future, with what the stream yields from here on.
    ///
    /// Dropping the future ends the listener and its tasks.
    ///
    /// A closure that is in a variable first has to name the types of what it is called with. Without them the compiler takes it for
    /// one that borrows all its messages from the same place, and says that it is "not general enough".
    ///
    /// ```
    /// use buffstreams::{Bytes, Config, Connection, Listener, Peer};
    /// use futures::SinkExt;
    ///
    /// # async_std::task::block_on(async {
    /// let listener = Listener::bind("127.0.0.1:0", Config::new()).await?;
    /// let (address, closer) = (listener.local_addr(), listener.closer());
    /// let callback = |peer: Peer, message: &[u8]| {
    ///     println!("{peer} sent {} bytes", message.len());
    ///     Ok(())
    /// };
    /// let serving = async_std::task::spawn(listener.serve(callback));
    ///
    /// let mut connection = Connection::dial(address, Config::new()).await?;
    /// connection.send(Bytes::from_static(b"hello")).await?;
    /// connection.close().await?;
    /// closer.close().await?; // When the callback has seen everything.
    /// assert_eq!(closer.stats().messages, 1);
    /// serving.await
    /// # }).unwrap();
    /// ```
    pub fn serve<F>(self, callback: F) -> impl Future<Output = Result<(), Error>> + Send
    where
        F: Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        run(self, |hook| of_callback(callback, hook))
    }

    /// As [`serve`](Self::serve), with a callback that returns a future. It gets the message as `Bytes`, to keep if it
    /// likes. The next message of that peer waits for the future's end. A future that blocks, instead of being pending, keeps
    /// a thread as well.
    pub fn serve_async<F, R>(self, callback: F) -> impl Future<Output = Result<(), Error>> + Send
    where
        F: Fn(Peer, Bytes) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let callback = move |peer, message| callback(peer, message).boxed();
        let callback: Box<AsyncCallback> = Box::new(callback);
        run(self, |hook| Handling::AsyncCallback(Arc::new(Told::new(callback, hook))))
    }

    /// As [`serve`](Self::serve), in the background, until the handle is closed or dropped.
    pub fn serve_in_background<F>(self, callback: F) -> Serving
    where
        F: Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        let (closer, running) = (self.closer(), self.shared().clone());
        let serving = foreign::run(run(self, |hook| of_callback(callback, hook)), drop);
        // The result is for the one who closes.
        let runtime = running.config.runtime.clone();
        let task = runtime.spawn(serving.map(move |ended| {
            if let Err(panic) = ended {
                running.panicked(None, PanicSource::Task, panic);
            }
        }));
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
    /// The error is that of [`Listener::close`], or [`Error::Timeout`] where something was lost: a peer was silent in the
    /// middle of a message for `close_timeout`, or went on for `drain_timeout`, or the callback did. What has not ended by then
    /// is ended as if this was dropped: a callback that blocks is not waited for. Dropping the future ends the listener at
    /// once.
    pub async fn close(mut self) -> Result<(), Error> {
        let Self { closer, task } = &mut self;
        let config = &closer.shared().config;
        let ended = async {
            let closed = closer.close().await;
            task.join().await;
            closed.and_then(|()| closer.shared().result())
        };
        let ended = config.runtime.within(config.drain_timeout.map(|limit| limit.saturating_add(GRACE)), ended).await;
        ended.unwrap_or_else(|| Err(config.ran_out(Limit::DrainTimeout)))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Here, because the task may have no thread to run on.
        Running::new(self.closer.shared().clone()).stop();
    }
}

fn of_callback<F>(callback: F, hook: PanicHook) -> Handling
where
    F: Fn(Peer, &[u8]) -> Result<(), BoxError> + Send + Sync + 'static,
{
    let callback: Box<Callback> = Box::new(callback);
    Handling::Callback(Arc::new(Told::new(callback, hook)))
}

/// Runs until the listener ends. The callback is in place before the future is polled.
fn run(
    listener: Listener,
    delivery: impl FnOnce(PanicHook) -> Handling,
) -> impl Future<Output = Result<(), Error>> + Send {
    let incoming = listener.into_incoming();
    let shared = incoming.shared().shared();
    let delivery = delivery(shared.panic_hook.clone());
    shared.choose(delivery.clone());
    call_all(incoming, delivery)
}

/// Waits for the end. The peers' tasks call the callback; if they were set to fill the inbox before, it is called here.
async fn call_all(mut incoming: Incoming, delivery: Handling) -> Result<(), Error> {
    let running = incoming.shared().clone();
    let mut expelled = HashSet::new();
    while let Some((peer, message)) = incoming.next().await {
        if expelled.contains(&peer) {
            continue;
        }
        let called = foreign::run(call(&delivery, peer, message), |panic| running.call_panicked(peer, panic)).await;
        match called {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                incoming.except_last(Settled::Refused);
                running.call_failed(peer, error);
            }
            Err(panic) => {
                incoming.except_last(Settled::Dropped);
                if running.call_panicked_at(peer, panic) {
                    expelled.insert(peer);
                }
            }
        }
    }
    running.result()
}

async fn call(delivery: &Handling, peer: Peer, message: Bytes) -> Result<(), BoxError> {
    match delivery {
        Handling::Callback(callback) => callback.get()(peer, &message),
        Handling::AsyncCallback(callback) => callback.get()(peer, message).await,
        Handling::Inbox | Handling::Decoded(_) | Handling::Connections => Ok(()),
    }
}
