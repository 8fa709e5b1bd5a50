//! The accept loop: takes connections until the listener closes, whatever the system says meanwhile.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::channel::oneshot;

use crate::events::Event;
use crate::hub::{Arrival, Hub, Signal};
use crate::inbox::Sender;
use crate::net::{self, Acceptor};
use crate::serve;

/// How long accepting waits after the first failure, and after many: without descriptors it costs next to nothing, and
/// within a second of getting one back it accepts again.
const RETRY: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Accepts until the listener is closed, and then what is waiting in the system's queue.
pub(crate) async fn accept_all(hub: Arc<Hub>, acceptor: Acceptor, inbox: Sender<Arrival>, ended: oneshot::Sender<()>) {
    let mut closing = hub.closing();
    let admit = |stream, addr| {
        hub.enter(stream, addr, |member, stream| net::spawn(serve::run(hub.clone(), member, stream, inbox.clone())));
    };
    let mut retry = RETRY.0;
    loop {
        let Some(accepted) = unless(&mut closing, acceptor.accept(&hub.config)).await else { break };
        match accepted {
            Ok((stream, addr)) => {
                retry = RETRY.0;
                admit(stream, addr);
            }
            Err(error) if is_of_the_peer(&error) => {}
            // The listener was dropped, and its socket with it.
            Err(_) if hub.is_stopped() => return,
            Err(error) => {
                hub.reporter.report(Event::AcceptFailed { error: Arc::new(error), retry_in: retry });
                if unless(&mut closing, net::sleep(retry)).await.is_none() {
                    break;
                }
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
    // What the system holds already, and not for ever; a connection that ended there is none.
    for _ in 0..hub.config.max_connections {
        match acceptor.accept(&hub.config).now_or_never() {
            Some(Ok((stream, addr))) => admit(stream, addr),
            Some(Err(error)) if is_of_the_peer(&error) => {}
            Some(Err(_)) | None => break,
        }
    }
    drop(acceptor);
    drop(inbox);
    // All peers are told, whether or not anybody still waits for the close.
    hub.members().iter().for_each(|member| member.outbox.call_driver());
    // Nobody may wait for it.
    let _ = ended.send(());
}

/// The connection ended before it was accepted: the next one may be well.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// `future`, unless the signal comes first.
async fn unless<F: Future>(signal: &mut Signal<()>, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if signal.poll_unpin(cx).is_ready() {
            return Poll::Ready(None);
        }
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
