//! An event as `tracing` is told of it, in fields.

use std::time::Duration;

use tracing::field;

use crate::endpoint::Endpoint;
use crate::peer::{Address, Peer};

/// What may be told of an event: nothing that may hold a message, or a part of one. What it has nothing of is no field of it.
#[derive(Default)]
pub(crate) struct Facts<'a> {
    /// The name of the event.
    pub(crate) name: &'static str,
    pub(crate) peer: Option<Peer>,
    pub(crate) address: Option<&'a Address>,
    /// The remote end of a socket.
    pub(crate) from: Option<&'a Endpoint>,
    pub(crate) reason: Option<String>,
    pub(crate) attempts: Option<u32>,
    pub(crate) messages: Option<usize>,
    pub(crate) max_connections: Option<usize>,
    pub(crate) retry_in: Option<Duration>,
}

/// An event at a level that is a constant, as `tracing` needs it.
macro_rules! event {
    ($level:ident, $facts:expr) => {{
        let Facts { name, peer, address, from, reason, attempts, messages, max_connections, retry_in } = $facts;
        tracing::event!(
            target: "buffstreams",
            tracing::Level::$level,
            peer = peer.map(field::display),
            address = address.map(field::display),
            from = from.map(field::display),
            reason,
            attempts,
            messages,
            max_connections,
            retry_in = retry_in.map(field::debug),
            "{name}"
        )
    }};
}

impl Facts<'_> {
    pub(super) fn warn(self) {
        event!(WARN, self);
    }

    pub(super) fn debug(self) {
        event!(DEBUG, self);
    }
}

#[cfg(test)]
#[allow(dead_code)] // The tests in the folder `tests` use all of it.
#[path = "../../tests/it/subscriber.rs"]
mod subscriber;

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::Arc;

    use super::subscriber::Collector;
    use super::*;
    use crate::error::{Error, HandshakeErrorKind, Limit, Loss};
    use crate::foreign::PanicSource;
    use crate::observe::lines;
    use crate::observe::{Event, ManagerEvent, Reason};

    /// Kept here because nobody outside can make most of these.
    #[test]
    fn each_event_is_told_in_fields_that_hold_no_byte_of_a_message() {
        let endpoint = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], 5031)));
        let (from, peer) = (endpoint.clone(), Peer::new(7, &endpoint, 0));
        let (address, source) = (|| Address::from("host:5031"), PanicSource::Waker);
        let message = || String::from("secret");
        let io = || io::Error::from(io::ErrorKind::ConnectionReset);
        let retry_in = Duration::from_millis(10);
        let frame = || {
            let codec = crate::Config::new().codec().unwrap();
            crate::wire::Decoder::with(codec).header(b"\x01se").unwrap_err()
        };
        let truncated = || Error::Truncated { got: 3, want: 7_562_617, looks_like: None };
        let secret = || Arc::new(crate::BoxError::from("secret"));
        let cases = [
            (Event::Connected { peer, identity: None }, "DEBUG Connected peer=127.0.0.1:5031#7"),
            (
                Event::Disconnected { peer, reason: Reason::of(&truncated()) },
                "DEBUG Disconnected peer=127.0.0.1:5031#7 reason=Truncated",
            ),
            (
                Event::Detached { peer, reason: Reason::Timeout { what: Limit::IdleTimeout, after: retry_in } },
                "DEBUG Detached peer=127.0.0.1:5031#7 reason=Timeout { what: idle_timeout, after: 10ms }",
            ),
            (
                Event::Resumed { peer, from: from.clone(), replayed: 5 },
                "DEBUG Resumed peer=127.0.0.1:5031#7 from=127.0.0.1:5031 messages=5",
            ),
            (
                Event::Rejected { peer, error: frame() },
                "WARN Rejected peer=127.0.0.1:5031#7 reason=Padding, looks like: None",
            ),
            (
                Event::Refused { addr: from.clone(), max_connections: 9 },
                "WARN Refused from=127.0.0.1:5031 max_connections=9",
            ),
            (
                Event::SessionRefused { from: from.clone(), kind: HandshakeErrorKind::Fenced },
                "WARN SessionRefused from=127.0.0.1:5031 reason=Fenced",
            ),
            #[cfg(feature = "tls")]
            (
                Event::HandshakeFailed { from, error: Arc::new(crate::TlsError::GaveWay { max_handshakes: 3 }) },
                "WARN HandshakeFailed from=127.0.0.1:5031 reason=GaveWay { max_handshakes: 3 }",
            ),
            (Event::DecodeFailed { peer, error: secret() }, "WARN DecodeFailed peer=127.0.0.1:5031#7"),
            (Event::CallbackFailed { peer, error: secret() }, "WARN CallbackFailed peer=127.0.0.1:5031#7"),
            (Event::CallbackPanicked { peer, message: message() }, "WARN CallbackPanicked peer=127.0.0.1:5031#7"),
            (
                Event::Panicked { peer: Some(peer), source, message: message() },
                "WARN Panicked peer=127.0.0.1:5031#7 reason=Waker",
            ),
            (Event::Panicked { peer: None, source, message: message() }, "WARN Panicked reason=Waker"),
            (
                Event::AcceptFailed { error: Arc::new(io()), retry_in },
                "WARN AcceptFailed reason=Kind(ConnectionReset) retry_in=10ms",
            ),
            (Event::Undelivered { peer, messages: 5 }, "WARN Undelivered peer=127.0.0.1:5031#7 messages=5"),
        ];
        check(cases);
        let error = || Arc::new(Error::Read(io()));
        let cases = [
            (ManagerEvent::Opened { address: address() }, "DEBUG Opened address=host:5031"),
            (ManagerEvent::Broken { address: address(), error: None }, "WARN Broken address=host:5031"),
            (
                ManagerEvent::Broken { address: address(), error: Some(Arc::new(frame().into())) },
                "WARN Broken address=host:5031 reason=Padding, looks like: None",
            ),
            (
                ManagerEvent::DialFailed { address: address(), error: error(), attempts: 3 },
                "WARN DialFailed address=host:5031 reason=Read(Kind(ConnectionReset)) attempts=3",
            ),
            (ManagerEvent::Resumed { address: address(), replayed: 5 }, "DEBUG Resumed address=host:5031 messages=5"),
            (
                ManagerEvent::SessionLost { address: address(), in_doubt: 5, why: Loss::Restarted },
                "WARN SessionLost address=host:5031 reason=Restarted messages=5",
            ),
            (ManagerEvent::Lost { address: address(), messages: 5 }, "WARN Lost address=host:5031 messages=5"),
            (
                ManagerEvent::Panicked { address: Some(address()), source, message: message() },
                "WARN Panicked address=host:5031 reason=Waker",
            ),
            (ManagerEvent::Panicked { address: None, source, message: message() }, "WARN Panicked reason=Waker"),
        ];
        check(cases);
    }

    fn check<E: lines::Report>(cases: impl IntoIterator<Item = (E, &'static str)>) {
        let collector = Collector::default();
        tracing::subscriber::with_default(collector.clone(), || {
            for (event, text) in cases {
                assert!(lines::are_taken(event.level()), "{text}");
                lines::write(&event);
                // The order of the fields is that of the macro.
                let mut told: Vec<_> = collector.of("").into_iter().map(|told| told.text).collect();
                assert_eq!(told.pop().as_deref(), Some(text));
            }
        });
    }
}
