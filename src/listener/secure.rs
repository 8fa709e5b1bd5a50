//! The TLS handshake of somebody who has connected, in a task: who does not come to its end is no peer.

use std::future::{Future, pending};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{Either, select};

use super::handshakes::Handshake;
use super::peers::{Running, Seat};
use crate::endpoint::Endpoint;
use crate::error::TlsError;
use crate::foreign::{self, PanicSource};
use crate::observe::Event;
use crate::tls::Tls;
use crate::transport::{self, Stream};

/// Does the handshake of a new connection in a task; `then` takes the session.
pub(crate) fn begin(
    running: &Running,
    tls: &Tls,
    seat: Seat,
    stream: Stream,
    from: Endpoint,
    then: impl FnOnce(&Running, Seat, Stream) + Send + 'static,
) {
    let most = tls.handshakes();
    let Some((number, oldest)) = running.handshakes.begin(Handshake::new(stream.clone()), most) else { return };
    if let Some(oldest) = oldest {
        oldest.give_way();
    }
    let unfinished = Unfinished { running: running.clone(), number, from, most };
    let panicked = running.clone();
    // What the program has given to `Tls::from_rustls` may panic.
    let shake = foreign::run(shake(unfinished, tls.clone(), seat, stream, then), drop).map(move |ended| {
        if let Err(panic) = ended {
            panicked.panicked(None, PanicSource::Task, panic);
        }
    });
    // Without the lock: the runtime logs that it starts a task, and the logger is the program's.
    match foreign::call(|| running.config.runtime.spawn(shake)) {
        Ok(task) => running.handshakes.started(number, task),
        Err(panic) => running.panicked(None, PanicSource::Logger, panic),
    }
}

/// Finishes the handshake of this number, whatever becomes of its task.
struct Unfinished {
    running: Running,
    number: u64,
    from: Endpoint,
    /// How many there may be.
    most: usize,
}

impl Unfinished {
    /// `None` if it had to give way, or was cut.
    fn finish(&self) -> Option<Handshake> {
        self.running.handshakes.finish(self.number)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(handshake) = self.finish() {
            handshake.cut();
        }
    }
}

async fn shake(
    unfinished: Unfinished,
    tls: Tls,
    seat: Seat,
    stream: Stream,
    then: impl FnOnce(&Running, Seat, Stream),
) {
    let running = unfinished.running.clone();
    let secured = transport::secure_accepted(stream, &tls, running.codec);
    let secured = in_time(&running, secured).await;
    let error = match (unfinished.finish(), secured) {
        (Some(handshake), Ok(stream)) => {
            handshake.let_go();
            return then(&running, seat, stream);
        }
        (Some(handshake), Err(error)) => {
            handshake.cut();
            error
        }
        (None, _) if running.handshakes.have_ended() => return,
        (None, _) => TlsError::GaveWay { max_handshakes: unfinished.most },
    };
    // Whoever hears of it finds room.
    drop(seat);
    running.reporter.report(Event::HandshakeFailed { from: unfinished.from.clone(), error: Arc::new(error) });
}

/// A handshake has `dial_timeout`. When the listener closes it has `close_timeout` at the most, as has a peer who is silent.
async fn in_time(
    running: &Running,
    secured: impl Future<Output = Result<Stream, TlsError>>,
) -> Result<Stream, TlsError> {
    let config = &running.config;
    let closes = async {
        running.closing.wait().await;
        match config.close_timeout {
            Some(after) => config.runtime.sleep(after).await,
            None => pending().await,
        }
    };
    let secured = config.runtime.within(config.dial_timeout, secured);
    let late = |limit: Option<Duration>| Err(TlsError::Timeout { after: limit.unwrap_or_default() });
    match select(pin!(secured), pin!(closes)).await {
        Either::Left((Some(secured), _)) => secured,
        Either::Left((None, _)) => late(config.dial_timeout),
        Either::Right(_) => late(config.close_timeout),
    }
}
