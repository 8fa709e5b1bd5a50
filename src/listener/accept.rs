//! The accept loop: takes connections until the listener closes, whatever the system says meanwhile.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;

use super::greeting;
use super::peer_task::rest;
use super::peers::Guest;
use super::peers::Running;
use super::received::Arrival;
use super::shared::Shared;
use crate::endpoint::Endpoint;
use crate::foreign::{self, PanicSource};
use crate::observe::Event;
use crate::queue::Sender;
use crate::transport::{self, Acceptor};

/// How long accepting waits after the first failure, and after many: without descriptors it costs next to nothing, and
/// within a second of getting one back it accepts again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Tells, however it ends, that nobody is accepted any more.
struct Closed(Arc<Shared>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.give(());
    }
}

/// Accepts until the listener is closed, and then what is waiting in the system's queue. Then it sees to it that the close
/// does not take for ever.
pub(crate) async fn accept_all(running: Running, acceptor: Acceptor, inbox: Sender<Arrival>) {
    let shared = running.shared().clone();
    let closed = Closed(shared.clone());
    let mut accepting = Accepting { running, acceptor, inbox, retry: RETRY.0 };
    // A defect in here is no reason to accept nobody any more.
    while let Err(panic) = foreign::run(accepting.until_closed(), drop).await {
        shared.panicked(None, PanicSource::Task, panic);
        accepting.pause().await;
    }
    let begun = shared.config.runtime.now();
    if let Err(panic) = foreign::run(accepting.accept_waiting(), drop).await {
        shared.panicked(None, PanicSource::Task, panic);
    }
    // The inbox, and the events, do not end before those who hold a part in them.
    drop(accepting);
    // All peers are told, whether or not anybody still waits for the close.
    shared.call_all();
    drop(closed);
    if let Some(limit) = shared.config.drain_timeout {
        let passed = shared.config.runtime.now() - begun;
        shared.config.runtime.sleep(limit.saturating_sub(passed)).await;
        shared.give_up();
    }
}

struct Accepting {
    running: Running,
    acceptor: Acceptor,
    inbox: Sender<Arrival>,
    /// How long the next wait is, after a failure.
    retry: Duration,
}

impl Accepting {
    async fn until_closed(&mut self) {
        let mut in_a_row = 0;
        loop {
            let accepted = self.unless_closing(self.acceptor.accept()).await;
            match accepted {
                Some(Ok((stream, remote))) => {
                    self.retry = RETRY.0;
                    self.admit(stream, remote);
                    // Those who connect one after the other must not keep a thread for themselves.
                    in_a_row = rest(in_a_row).await;
                }
                Some(Err(error)) if is_of_the_peer(&error) => {}
                // The listener was dropped, and its socket with it.
                Some(Err(_)) if self.running.is_stopped() => return,
                Some(Err(error)) => {
                    let event = Event::AcceptFailed { error: Arc::new(error), retry_in: self.retry };
                    self.running.reporter.report(event);
                    self.pause().await;
                }
                None => return,
            }
        }
    }

    /// What the system holds already, and not for ever; a connection that ended there is none.
    async fn accept_waiting(&self) {
        let mut in_a_row = 0;
        for _ in 0..self.running.config.max_connections {
            match self.acceptor.accept().now_or_never() {
                Some(Ok((stream, remote))) => self.admit(stream, remote),
                Some(Err(error)) if is_of_the_peer(&error) => {}
                Some(Err(_)) | None => return,
            }
            in_a_row = rest(in_a_row).await;
        }
    }

    fn admit(&self, stream: transport::Stream, remote: Endpoint) {
        let Some(place) = self.running.take_place(&remote) else { return };
        greeting::begin(&self.running, Guest { place, stream, from: remote }, self.inbox.clone());
    }

    /// Waits before the next attempt.
    async fn pause(&mut self) {
        self.unless_closing(self.running.config.runtime.sleep(self.retry)).await;
        self.retry = (self.retry * 2).min(RETRY.1);
    }

    /// `future`, unless the listener is closed before.
    async fn unless_closing<F: Future>(&self, future: F) -> Option<F::Output> {
        let (mut future, mut closing) = (pin!(future), self.running.closing.wait());
        poll_fn(|cx| match closing.poll_unpin(cx) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => future.as_mut().poll(cx).map(Some),
        })
        .await
    }
}

/// The connection ended before it was accepted: the next one may be well.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}
