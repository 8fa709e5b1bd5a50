//! The TLS handshake of somebody who has connected, in a task: who does not come to its end is no peer.

use std::sync::Arc;

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
    let Some((number, oldest)) = running.handshakes.begin(Handshake::new(from, stream.clone()), most) else { return };
    if let Some(oldest) = oldest {
        let from = oldest.from.clone();
        oldest.cut();
        failed(running, from, TlsError::GaveWay { max_handshakes: most });
    }
    let unfinished = Unfinished { running: running.clone(), number };
    let shake = shake(unfinished, tls.clone(), seat, stream, then);
    // Without the lock: the runtime logs that it starts a task, and the logger is the program's.
    match foreign::call(|| running.config.runtime.spawn(shake)) {
        Ok(task) => running.handshakes.started(number, task),
        Err(panic) => running.panicked(None, PanicSource::Logger, panic),
    }
}

fn failed(running: &Running, from: Endpoint, error: TlsError) {
    running.reporter.report(Event::HandshakeFailed { from, error: Arc::new(error) });
}

/// Finishes the handshake of this number, whatever becomes of its task.
struct Unfinished {
    running: Running,
    number: u64,
}

impl Unfinished {
    /// `None` if it had to give way.
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
    let limit = running.config.dial_timeout;
    let secured = transport::secure_accepted(stream, &tls, running.codec);
    let secured = running.config.runtime.within(limit, secured).await;
    let Some(handshake) = unfinished.finish() else { return };
    let error = match secured {
        Some(Ok(stream)) => {
            handshake.let_go();
            return then(&running, seat, stream);
        }
        Some(Err(error)) => error,
        None => TlsError::Timeout { after: limit.unwrap_or_default() },
    };
    let from = handshake.from.clone();
    // Whoever hears of it finds room.
    handshake.cut();
    drop(seat);
    failed(&running, from, error);
}
