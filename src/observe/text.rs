//! What happened, as text for people to read.

use std::fmt;

use super::events::{Event, ManagerEvent, Reason};
use crate::chain::chain;

/// A sentence without a full stop, with the errors' own words and all that caused them.
///
/// The program's own error of a callback or a codec, and what a panic says, may hold a piece of the message that they are about, and so may the
/// figures of a header that makes no sense. The log of this crate has none of these.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { peer, .. } => write!(f, "{peer} connected"),
            Self::Disconnected { peer, reason } => write!(f, "{peer} is gone: {reason}"),
            Self::Detached { peer, reason } => write!(f, "the session of {peer} has no connection: {reason}"),
            Self::Resumed { peer, from, replayed } => {
                let replies = Count(*replayed as u64, "reply", "replies");
                write!(f, "the session of {peer} goes on from {from}, with {replies} sent again")
            }
            Self::SessionRefused { from, kind } => write!(f, "no session with {from}: {kind}"),
            Self::Rejected { peer, error } => write!(f, "{peer} is being disconnected: {}", chain(error)),
            Self::Refused { addr, max_connections } => {
                write!(f, "{addr} was refused: there are {max_connections} connections")
            }
            #[cfg(feature = "tls")]
            Self::HandshakeFailed { from, error } => write!(f, "no TLS session with {from}: {}", chain(&**error)),
            Self::DecodeFailed { peer, error } => {
                write!(f, "a message of {peer} did not decode: {}", chain(&***error))
            }
            Self::CallbackFailed { peer, error } => {
                write!(f, "the callback failed on a message of {peer}: {}", chain(&***error))
            }
            Self::CallbackPanicked { peer, message } => {
                write!(f, "the callback panicked on a message of {peer}{}", Said(message))
            }
            Self::Panicked { peer: Some(peer), source, message } => {
                write!(f, "{source} panicked, of {peer}{}", Said(message))
            }
            Self::Panicked { peer: None, source, message } => write!(f, "{source} panicked{}", Said(message)),
            Self::AcceptFailed { error, retry_in } => {
                write!(f, "cannot accept connections, and trying again in {retry_in:?}: {}", chain(&**error))
            }
            Self::Undelivered { peer, messages } => {
                write!(f, "{} to {peer} not written", Count(*messages as u64, "reply", "replies"))
            }
            Self::Missed { events } => write!(f, "{} missed", Count(*events, "event", "events")),
        }
    }
}

/// As the text of [`Event`].
impl fmt::Display for ManagerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened { address } => write!(f, "connected to {address}"),
            Self::Broken { address, error: None } => write!(f, "{address} closed the connection"),
            Self::Broken { address, error: Some(error) } => {
                write!(f, "the connection to {address} broke: {}", chain(&**error))
            }
            Self::DialFailed { address, error, .. } => {
                write!(f, "no new connection to {address}: {}", chain(&**error))
            }
            Self::Down { address, error } => write!(f, "{address} is down: {}", chain(&**error)),
            Self::Up { address } => write!(f, "{address} is up again"),
            Self::Resumed { address, replayed } => {
                let messages = Count(*replayed as u64, "message", "messages");
                write!(f, "the session with {address} goes on, with {messages} sent again")
            }
            Self::SessionLost { address, in_doubt, why } => {
                let messages = Count(*in_doubt as u64, "message", "messages");
                write!(f, "the session with {address} is lost, with {messages} in doubt: {why}")
            }
            Self::Lost { address, messages } => {
                write!(f, "{} to {address} lost", Count(*messages as u64, "message", "messages"))
            }
            Self::Panicked { address: Some(address), source, message } => {
                write!(f, "{source} panicked, of {address}{}", Said(message))
            }
            Self::Panicked { address: None, source, message } => write!(f, "{source} panicked{}", Said(message)),
            Self::Missed { events } => write!(f, "{} missed", Count(*events, "event", "events")),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it closed"),
            Self::Truncated { got, want, looks_like } => {
                write!(f, "its stream ended inside a frame: {got} of {want} bytes received")?;
                looks_like.map_or(Ok(()), |looks_like| write!(f, "; they look like {looks_like}"))
            }
            Self::Rejected => f.write_str("it sent a header that makes no sense"),
            Self::Failed(error) => write!(f, "reading or writing failed: {}", chain(&**error)),
            Self::Timeout { what, after } => write!(f, "{what} is over: {after:?}"),
            Self::DecodeFailed => f.write_str("one of its messages did not decode"),
            Self::CallbackPanicked => f.write_str("a callback panicked on one of its messages"),
            Self::Panicked => f.write_str("its task panicked"),
            Self::Stopped => f.write_str("this end closed"),
            Self::SessionExpired => f.write_str("its session was without a connection for too long"),
            Self::Fenced => f.write_str("its session has a newer connection"),
            Self::Session(code) => write!(f, "its session was ended: {code}"),
        }
    }
}

/// So many of them.
struct Count(u64, &'static str, &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, one, many) = *self;
        write!(f, "{count} {}", if count == 1 { one } else { many })
    }
}

/// Prints `: …`, or nothing where a panic said nothing.
struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, ": {}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::endpoint::Endpoint;
    use crate::error::{Error, HandshakeErrorKind, Limit, LooksLike, Loss, SessionErrorCode};
    use crate::foreign::PanicSource;
    use crate::peer::Peer;

    fn check(cases: impl IntoIterator<Item = (impl fmt::Display, &'static str)>) {
        for (event, text) in cases {
            assert_eq!(event.to_string(), text);
        }
    }

    /// Kept here because nobody outside can make most of these.
    #[test]
    fn each_event_says_what_happened_to_whom_and_why() {
        let endpoint = Endpoint::from(std::net::SocketAddr::from(([127, 0, 0, 1], 5031)));
        let from = Endpoint::from(std::net::SocketAddr::from(([127, 0, 0, 1], 5032)));
        let peer = Peer::new(7, &endpoint, 0);
        let reset = || Arc::new(io::Error::new(io::ErrorKind::ConnectionReset, "reset"));
        let second = Duration::from_secs(1);
        let codec = crate::Config::new().codec().unwrap();
        let frame = crate::wire::Decoder::with(codec).header(&[1, 0, 0]).unwrap_err();
        let truncated = |looks_like| Reason::Truncated { got: 3, want: 9, looks_like };
        let source = PanicSource::Waker;
        check([
            (Event::Connected { peer, identity: None }, "127.0.0.1:5031#7 connected"),
            (Event::Disconnected { peer, reason: Reason::Closed }, "127.0.0.1:5031#7 is gone: it closed"),
            (
                Event::Rejected { peer, error: frame },
                "127.0.0.1:5031#7 is being disconnected: a length of -1 is announced (the bytes are 01 00 00)",
            ),
            (
                Event::Refused { addr: endpoint, max_connections: 9 },
                "127.0.0.1:5031 was refused: there are 9 connections",
            ),
            (
                Event::DecodeFailed { peer, error: Arc::new("not JSON".into()) },
                "a message of 127.0.0.1:5031#7 did not decode: not JSON",
            ),
            (
                Event::CallbackFailed { peer, error: Arc::new(Box::new(Error::Read(io::Error::other("x")))) },
                "the callback failed on a message of 127.0.0.1:5031#7: cannot read: x",
            ),
            (
                Event::CallbackPanicked { peer, message: "oh".into() },
                "the callback panicked on a message of 127.0.0.1:5031#7: oh",
            ),
            (
                Event::Panicked { peer: Some(peer), source, message: String::new() },
                "a waker panicked, of 127.0.0.1:5031#7",
            ),
            (Event::Panicked { peer: None, source, message: "oh".into() }, "a waker panicked: oh"),
            (
                Event::AcceptFailed { error: reset(), retry_in: second },
                "cannot accept connections, and trying again in 1s: reset",
            ),
            (Event::Undelivered { peer, messages: 1 }, "1 reply to 127.0.0.1:5031#7 not written"),
            (Event::Missed { events: 2 }, "2 events missed"),
            (
                Event::Detached { peer, reason: Reason::Closed },
                "the session of 127.0.0.1:5031#7 has no connection: it closed",
            ),
            (
                Event::Resumed { peer, from: from.clone(), replayed: 1 },
                "the session of 127.0.0.1:5031#7 goes on from 127.0.0.1:5032, with 1 reply sent again",
            ),
            (
                Event::SessionRefused { from, kind: HandshakeErrorKind::Fenced },
                "no session with 127.0.0.1:5032: the session has a newer connection",
            ),
        ]);
        check([
            (truncated(None), "its stream ended inside a frame: 3 of 9 bytes received"),
            (
                truncated(Some(LooksLike::Http)),
                "its stream ended inside a frame: 3 of 9 bytes received; they look like HTTP",
            ),
            (Reason::Rejected, "it sent a header that makes no sense"),
            (Reason::Failed(reset()), "reading or writing failed: reset"),
            (Reason::Timeout { what: Limit::IdleTimeout, after: second }, "idle_timeout is over: 1s"),
            (Reason::DecodeFailed, "one of its messages did not decode"),
            (Reason::CallbackPanicked, "a callback panicked on one of its messages"),
            (Reason::Panicked, "its task panicked"),
            (Reason::Stopped, "this end closed"),
            (Reason::SessionExpired, "its session was without a connection for too long"),
            (Reason::Fenced, "its session has a newer connection"),
            (Reason::Session(SessionErrorCode::Gone), "its session was ended: the session is forgotten"),
        ]);
        let address = || "host:5031".into();
        let refused = || Arc::new(Error::Dial { address: address(), source: io::Error::other("refused") });
        check([
            (ManagerEvent::Opened { address: address() }, "connected to host:5031"),
            (ManagerEvent::Broken { address: address(), error: None }, "host:5031 closed the connection"),
            (
                ManagerEvent::Broken { address: address(), error: Some(Arc::new(Error::Closed { message: None })) },
                "the connection to host:5031 broke: it is closed",
            ),
            (
                ManagerEvent::DialFailed { address: address(), error: refused(), attempts: 5 },
                "no new connection to host:5031: cannot connect to host:5031: refused",
            ),
            (
                ManagerEvent::Down { address: address(), error: refused() },
                "host:5031 is down: cannot connect to host:5031: refused",
            ),
            (ManagerEvent::Up { address: address() }, "host:5031 is up again"),
            (ManagerEvent::Lost { address: address(), messages: 2 }, "2 messages to host:5031 lost"),
            (
                ManagerEvent::Panicked { address: Some(address()), source, message: "oh".into() },
                "a waker panicked, of host:5031: oh",
            ),
            (ManagerEvent::Panicked { address: None, source, message: String::new() }, "a waker panicked"),
            (ManagerEvent::Missed { events: 1 }, "1 event missed"),
            (
                ManagerEvent::Resumed { address: address(), replayed: 2 },
                "the session with host:5031 goes on, with 2 messages sent again",
            ),
            (
                ManagerEvent::SessionLost { address: address(), in_doubt: 1, why: Loss::Restarted },
                "the session with host:5031 is lost, with 1 message in doubt: the other end was started anew",
            ),
        ]);
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_handshake_that_failed_says_why() {
        let error = Arc::new(crate::TlsError::Io(io::Error::other("reset")));
        let from = Endpoint::Unix("/run/app.sock".into());
        let text = "no TLS session with unix:/run/app.sock: the connection broke in the middle of the handshake: reset";
        check([(Event::HandshakeFailed { from, error }, text)]);
    }
}
