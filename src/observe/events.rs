//! What happens beside the messages, as the program is told, and what the log says of it.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::Level;

#[cfg(feature = "tracing")]
use super::facts::Facts;
use super::kind::Kind;
#[cfg(feature = "tracing")]
use super::kind::kind;
use super::lines::Report;
use crate::endpoint::Endpoint;
#[cfg(feature = "tls")]
use crate::error::TlsError;
use crate::error::{BoxError, Error, FrameError, HandshakeErrorKind, Limit, LooksLike, Loss, SessionErrorCode};
use crate::foreign::{Panic, PanicSource};
use crate::identity::Identity;
use crate::peer::{Address, Peer};

/// Something that happened at a listener, beside the messages.
///
/// A message and an event take different ways: a peer's `Disconnected` may be seen before its last messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer has connected. With [`Config::session`](crate::Config::session), a peer is a session, and this is its start.
    #[non_exhaustive]
    Connected {
        /// Who.
        peer: Peer,
        /// Who that is, as the transport has verified; `None` if it does not know, as over plain TCP.
        identity: Option<Arc<Identity>>,
    },
    /// A peer is gone: where it is a session, that is over. What can still come for it is [`Undelivered`](Self::Undelivered), and of
    /// messages that are in the inbox `DecodeFailed`, `CallbackFailed` and `CallbackPanicked`.
    #[non_exhaustive]
    Disconnected {
        /// Who.
        peer: Peer,
        /// Why.
        reason: Reason,
    },
    /// The session of a peer has lost its connection. It goes on with another, or ends with `Disconnected`.
    #[non_exhaustive]
    Detached {
        /// Who.
        peer: Peer,
        /// Why.
        reason: Reason,
    },
    /// The session of a peer goes on, with another connection.
    #[non_exhaustive]
    Resumed {
        /// Who.
        peer: Peer,
        /// The remote end of the socket.
        from: Endpoint,
        /// How many replies had not arrived, and are sent again.
        replayed: usize,
    },
    /// A peer sent a header that makes no sense, and is being disconnected.
    #[non_exhaustive]
    Rejected {
        /// Who.
        peer: Peer,
        /// What was wrong, with the figures.
        error: FrameError,
    },
    /// A connection was closed at once, because there are `max_connections` of them.
    #[non_exhaustive]
    Refused {
        /// The remote end of the socket.
        addr: Endpoint,
        /// The limit in force.
        max_connections: usize,
    },
    /// A client has connected, and the handshake of TLS has failed: the connection was closed. It was no peer yet.
    #[cfg(feature = "tls")]
    #[non_exhaustive]
    HandshakeFailed {
        /// The remote end of the socket.
        from: Endpoint,
        /// Why not.
        error: Arc<TlsError>,
    },
    /// A client has connected, and the handshake of a session has failed: the connection was closed. It was no peer, or
    /// not the connection of one.
    #[non_exhaustive]
    SessionRefused {
        /// The remote end of the socket.
        from: Endpoint,
        /// Why not.
        kind: HandshakeErrorKind,
    },

    /// A message did not decode, and was left out. The peer goes on, unless the stream is
    /// [`strict`](crate::typed::Decoded::strict).
    #[non_exhaustive]
    DecodeFailed {
        /// Whose message it was.
        peer: Peer,
        /// What the codec returned.
        error: Arc<BoxError>,
    },
    /// A callback returned an error. The peer goes on; in a session, it has the message back as refused.
    #[non_exhaustive]
    CallbackFailed {
        /// Whose message it was.
        peer: Peer,
        /// What the callback returned.
        error: Arc<BoxError>,
    },
    /// A callback panicked. Its peer is being disconnected, or loses its connection where it is a session; the others go on.
    #[non_exhaustive]
    CallbackPanicked {
        /// Whose message it was.
        peer: Peer,
        /// The message of the panic, if it was a text.
        message: String,
    },
    /// Something else panicked, and was caught. Where it belongs to a peer, that peer is being disconnected, and no
    /// other.
    #[non_exhaustive]
    Panicked {
        /// Whose task it was, if it was in one.
        peer: Option<Peer>,
        /// What panicked.
        source: PanicSource,
        /// The message of the panic, if it was a text.
        message: String,
    },
    /// Connections cannot be accepted, mostly because the process has no descriptor left. It is tried again.
    #[non_exhaustive]
    AcceptFailed {
        /// What the system said.
        error: Arc<io::Error>,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// Replies that were accepted could not be written, because their peer is gone.
    #[non_exhaustive]
    Undelivered {
        /// Who would have received them.
        peer: Peer,
        /// How many they were.
        messages: usize,
    },
    /// This subscriber was too slow: so many events were dropped here.
    #[non_exhaustive]
    Missed {
        /// How many.
        events: u64,
    },
}

/// Why a peer is gone, or its session has no connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// It closed, between two frames.
    Closed,
    /// The stream ended inside a frame.
    #[non_exhaustive]
    Truncated {
        /// How many bytes of the frame were received, header included.
        got: usize,
        /// How many bytes the frame has, header included; just the header's if that was not whole.
        want: usize,
        /// What the bytes look like instead, if that can be told.
        looks_like: Option<LooksLike>,
    },
    /// It sent a header that makes no sense: see [`Event::Rejected`].
    Rejected,
    /// Reading or writing failed.
    Failed(Arc<io::Error>),
    /// It took longer than a limit allows.
    #[non_exhaustive]
    Timeout {
        /// The setting that ran out.
        what: Limit,
        /// Its value.
        after: Duration,
    },
    /// One of its messages did not decode: see [`Event::DecodeFailed`].
    DecodeFailed,
    /// A callback panicked on one of its messages.
    CallbackPanicked,
    /// Its task panicked: see [`Event::Panicked`].
    Panicked,
    /// This end closed: the listener, or the connection that it had handed out.
    Stopped,
    /// Its session was without a connection for longer than its [`ttl`](crate::Session::ttl).
    SessionExpired,
    /// Its session goes on with a newer connection.
    Fenced,
    /// Its session was ended with this code, by either end.
    Session(SessionErrorCode),
}

impl Reason {
    /// Why a connection ended that met this error.
    pub(crate) fn of(error: &Error) -> Self {
        match error {
            Error::Truncated { got, want, looks_like } => {
                Self::Truncated { got: *got, want: *want, looks_like: *looks_like }
            }
            Error::Frame(_) => Self::Rejected,
            Error::Read(source) | Error::Write(source) => Self::Failed(Arc::new(same(source))),
            Error::Timeout { what, after } => Self::Timeout { what: *what, after: *after },
            // None of these is of a peer: this end had no use for the connection any more.
            Error::Config(_)
            | Error::Bind { .. }
            | Error::Dial { .. }
            | Error::DialTimeout { .. }
            | Error::AlreadyOpen { .. }
            | Error::NotOpen { .. }
            | Error::MessageTooLarge { .. }
            | Error::NotWritten { .. }
            | Error::NotSent { .. }
            | Error::QueueFull { .. }
            | Error::Panicked { .. }
            | Error::Handshake { .. }
            | Error::SessionLost { .. }
            | Error::Refused { .. }
            | Error::InDoubt { .. }
            | Error::NoSession
            | Error::Encode { .. }
            | Error::Decode { .. }
            | Error::Closed { .. } => Self::Stopped,
            #[cfg(feature = "tls")]
            Error::Tls { .. } => Self::Stopped,
        }
    }
}

/// An error to keep beside the original, which is not `Clone`.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Something that happened at a manager, beside the messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ManagerEvent {
    /// A connection was opened, or opened again.
    #[non_exhaustive]
    Opened {
        /// Where to.
        address: Address,
    },
    /// A connection broke. It is opened again when there is something to write, and at once in a session.
    #[non_exhaustive]
    Broken {
        /// Where to.
        address: Address,
        /// Why; `None` if the peer closed it.
        error: Option<Arc<Error>>,
    },
    /// A dial failed: after a break, in the background, or the first of [`Manager::open`](crate::Manager::open).
    #[non_exhaustive]
    DialFailed {
        /// Where to.
        address: Address,
        /// Why.
        error: Arc<Error>,
        /// How often it has been dialed in this outage, this time included.
        attempts: u32,
    },
    /// An address was dialed in vain, and given up: what was held for it comes back. With
    /// [`Config::reconnect`](crate::Config::reconnect), or a session, so does, at once, what is sent from now on, and it is dialed in
    /// the background, until it is [`Up`](Self::Up) or closed; without either, the next message dials.
    #[non_exhaustive]
    Down {
        /// Where to.
        address: Address,
        /// Why the last attempt failed.
        error: Arc<Error>,
    },
    /// An address that was [`Down`](Self::Down) is open again.
    #[non_exhaustive]
    Up {
        /// Where to.
        address: Address,
    },
    /// The session of an address goes on, with another connection.
    #[non_exhaustive]
    Resumed {
        /// Where to.
        address: Address,
        /// How many messages had not arrived, and are sent again.
        replayed: usize,
    },
    /// The session of an address is lost. What was not sent goes on in the next one.
    #[non_exhaustive]
    SessionLost {
        /// Where to.
        address: Address,
        /// How many messages were sent and not acknowledged: they come back, with
        /// [`Outcome::InDoubt`](crate::Outcome::InDoubt).
        in_doubt: usize,
        /// Why.
        why: Loss,
    },
    /// Accepted messages came back, and are gone: the dead letters were not asked for, or there was no room for them.
    #[non_exhaustive]
    Lost {
        /// Where to.
        address: Address,
        /// How many.
        messages: usize,
    },
    /// Something panicked, and was caught. If it is the task or the backoff of an address, all that is held for it comes back.
    #[non_exhaustive]
    Panicked {
        /// Whose task it was, if it was in one.
        address: Option<Address>,
        /// What panicked.
        source: PanicSource,
        /// The message of the panic, if it was a text.
        message: String,
    },
    /// This subscriber was too slow: so many events were dropped here.
    #[non_exhaustive]
    Missed {
        /// How many.
        events: u64,
    },
}

impl Report for Event {
    fn missed(events: u64) -> Self {
        Self::Missed { events }
    }

    fn panicked(source: PanicSource, Panic { message }: Panic) -> Self {
        Self::Panicked { peer: None, source, message }
    }

    fn level(&self) -> Level {
        match self {
            Self::Connected { .. }
            | Self::Disconnected { .. }
            | Self::Detached { .. }
            | Self::Resumed { .. }
            | Self::Missed { .. } => Level::Debug,
            _ => Level::Warn,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disconnected { peer, reason } => {
                write!(f, "Disconnected {{ peer: {peer}, reason: {} }}", Kind(reason))
            }
            Self::Detached { peer, reason } => write!(f, "Detached {{ peer: {peer}, reason: {} }}", Kind(reason)),
            Self::Rejected { peer, error } => write!(f, "Rejected {{ peer: {peer}, error: {} }}", Kind(error)),
            // The program's own error, and what a panic says, may hold the message that they are about.
            Self::DecodeFailed { peer, .. } => write!(f, "DecodeFailed {{ peer: {peer} }}"),
            Self::CallbackFailed { peer, .. } => write!(f, "CallbackFailed {{ peer: {peer} }}"),
            Self::CallbackPanicked { peer, .. } => write!(f, "CallbackPanicked {{ peer: {peer} }}"),
            Self::Panicked { peer, source, .. } => write!(f, "Panicked {{ peer: {peer:?}, source: {source:?} }}"),
            other => write!(f, "{other:?}"),
        }
    }

    #[cfg(feature = "tracing")]
    fn facts(&self) -> Facts<'_> {
        let of = |name, peer: &Peer| Facts { name, peer: Some(*peer), ..Facts::default() };
        let from = |name, from| Facts { name, from: Some(from), ..Facts::default() };
        let because = |reason: &dyn fmt::Debug| Some(format!("{reason:?}"));
        match self {
            Self::Connected { peer, .. } => of("Connected", peer),
            Self::Disconnected { peer, reason } => Facts { reason: kind(reason), ..of("Disconnected", peer) },
            Self::Detached { peer, reason } => Facts { reason: kind(reason), ..of("Detached", peer) },
            Self::Resumed { peer, from, replayed } => {
                Facts { from: Some(from), messages: Some(*replayed), ..of("Resumed", peer) }
            }
            Self::Rejected { peer, error } => Facts { reason: kind(error), ..of("Rejected", peer) },
            Self::Refused { addr, max_connections } => {
                Facts { max_connections: Some(*max_connections), ..from("Refused", addr) }
            }
            #[cfg(feature = "tls")]
            Self::HandshakeFailed { from: at, error } => {
                Facts { reason: because(error), ..from("HandshakeFailed", at) }
            }
            Self::SessionRefused { from: at, kind } => Facts { reason: because(kind), ..from("SessionRefused", at) },
            Self::DecodeFailed { peer, .. } => of("DecodeFailed", peer),
            Self::CallbackFailed { peer, .. } => of("CallbackFailed", peer),
            Self::CallbackPanicked { peer, .. } => of("CallbackPanicked", peer),
            Self::Panicked { peer, source, .. } => {
                Facts { name: "Panicked", peer: *peer, reason: because(source), ..Facts::default() }
            }
            Self::AcceptFailed { error, retry_in } => {
                let reason = because(error);
                Facts { name: "AcceptFailed", reason, retry_in: Some(*retry_in), ..Facts::default() }
            }
            Self::Undelivered { peer, messages } => Facts { messages: Some(*messages), ..of("Undelivered", peer) },
            // Subscribers alone are told.
            Self::Missed { .. } => Facts { name: "Missed", ..Facts::default() },
        }
    }
}

impl Report for ManagerEvent {
    fn missed(events: u64) -> Self {
        Self::Missed { events }
    }

    fn panicked(source: PanicSource, Panic { message }: Panic) -> Self {
        Self::Panicked { address: None, source, message }
    }

    fn level(&self) -> Level {
        match self {
            Self::Opened { .. } | Self::Up { .. } | Self::Resumed { .. } | Self::Missed { .. } => Level::Debug,
            _ => Level::Warn,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { address, error: Some(error) } => {
                write!(f, "Broken {{ address: {address}, error: {} }}", Kind(&**error))
            }
            Self::Down { address, error } => write!(f, "Down {{ address: {address}, error: {} }}", Kind(&**error)),
            Self::Panicked { address, source, .. } => {
                write!(f, "Panicked {{ address: {address:?}, source: {source:?} }}")
            }
            Self::DialFailed { address, error, .. } => {
                write!(f, "DialFailed {{ address: {address}, error: {} }}", Kind(&**error))
            }
            other => write!(f, "{other:?}"),
        }
    }

    #[cfg(feature = "tracing")]
    fn facts(&self) -> Facts<'_> {
        let of = |name, address| Facts { name, address: Some(address), ..Facts::default() };
        match self {
            Self::Opened { address } => of("Opened", address),
            Self::Broken { address, error } => {
                Facts { reason: error.as_deref().and_then(kind), ..of("Broken", address) }
            }
            Self::DialFailed { address, error, attempts } => {
                Facts { reason: kind(&**error), attempts: Some(*attempts), ..of("DialFailed", address) }
            }
            Self::Down { address, error } => Facts { reason: kind(&**error), ..of("Down", address) },
            Self::Up { address } => of("Up", address),
            Self::Resumed { address, replayed } => Facts { messages: Some(*replayed), ..of("Resumed", address) },
            Self::SessionLost { address, in_doubt, why } => {
                Facts { messages: Some(*in_doubt), reason: Some(format!("{why:?}")), ..of("SessionLost", address) }
            }
            Self::Lost { address, messages } => Facts { messages: Some(*messages), ..of("Lost", address) },
            Self::Panicked { address, source, .. } => {
                let reason = Some(format!("{source:?}"));
                Facts { name: "Panicked", address: address.as_ref(), reason, ..Facts::default() }
            }
            // Subscribers alone are told.
            Self::Missed { .. } => Facts { name: "Missed", ..Facts::default() },
        }
    }
}

impl fmt::Display for Kind<'_, Reason> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Reason::Truncated { .. } => f.write_str("Truncated"),
            other => write!(f, "{other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::lines::Described;

    /// Kept here because the log of a process is one, and limited in lines.
    #[test]
    fn the_log_gets_what_happened_and_to_whom_and_no_byte_of_a_message() {
        let secret = b"\xffsecret\0".to_vec();
        let text = String::from_utf8(secret.clone()).unwrap_err();
        let held = format!("{:?}", secret);
        assert!(format!("{text:?}").contains(held.trim_matches(['[', ']'])), "the program's error has it");
        let length = u64::from_be_bytes(secret[..8].try_into().unwrap());
        let codec = crate::Config::new().wire_format(crate::WireFormat::u64_be()).codec().unwrap();
        let frame = || crate::wire::Decoder::with(codec).header(&secret).unwrap_err();
        assert!(format!("{:?}", frame()).contains(&length.to_string()), "and the header");
        let truncated = || Error::Truncated { got: 3, want: length as usize, looks_like: None };
        let panicked = || Panic { message: "secret".into() };
        let peer = Peer::new(7, &Endpoint::from(std::net::SocketAddr::from(([127, 0, 0, 1], 5031))), 0);
        let (address, after) = (Address::from("host:5031"), Duration::from_secs(7));
        let io = || io::Error::from(io::ErrorKind::ConnectionReset);
        let gone = |reason| Event::Disconnected { peer, reason };
        let sent = |source: Error| Error::NotSent { address: "a:1".into(), message: None, source: Arc::new(source) };
        let cases = [
            (Event::Connected { peer, identity: None }, "Connected"),
            (gone(Reason::Closed), "Closed"),
            (gone(Reason::of(&truncated())), "Truncated"),
            (gone(Reason::Rejected), "Rejected"),
            (gone(Reason::of(&Error::Read(io()))), "ConnectionReset"),
            (gone(Reason::Timeout { what: Limit::IdleTimeout, after }), "idle_timeout"),
            (gone(Reason::CallbackPanicked), "CallbackPanicked"),
            (gone(Reason::Panicked), "Panicked"),
            (gone(Reason::Stopped), "Stopped"),
            (gone(Reason::SessionExpired), "SessionExpired"),
            (gone(Reason::Session(SessionErrorCode::Slow)), "Slow"),
            (Event::Detached { peer, reason: Reason::of(&truncated()) }, "reason: Truncated"),
            (Event::Detached { peer, reason: Reason::Fenced }, "Fenced"),
            (Event::Resumed { peer, from: peer.addr().unwrap().into(), replayed: 5 }, "replayed: 5"),
            (Event::Rejected { peer, error: frame() }, "TooLarge"),
            (Event::DecodeFailed { peer, error: Arc::new(text.clone().into()) }, "DecodeFailed"),
            (Event::CallbackFailed { peer, error: Arc::new(text.clone().into()) }, "CallbackFailed"),
            (Event::CallbackPanicked { peer, message: "secret".into() }, "CallbackPanicked"),
            (Event::Panicked { peer: Some(peer), source: PanicSource::Drop, message: "secret".into() }, "Drop"),
            (Event::Undelivered { peer, messages: 5 }, "messages: 5"),
        ];
        let mut lines: Vec<_> =
            cases.iter().map(|(event, has)| (Described(event).to_string(), *has, "127.0.0.1:5031")).collect();
        let cases = [
            (Event::Refused { addr: peer.addr().unwrap().into(), max_connections: 9 }, "max_connections: 9"),
            (Event::panicked(PanicSource::Logger, panicked()), "Logger"),
            (Event::AcceptFailed { error: Arc::new(io()), retry_in: after }, "ConnectionReset"),
            (Event::Missed { events: 6 }, "events: 6"),
        ];
        lines.extend(cases.iter().map(|(event, has)| (Described(event).to_string(), *has, "")));
        let broken =
            |error: Option<Error>| ManagerEvent::Broken { address: address.clone(), error: error.map(Arc::new) };
        let cases = [
            (ManagerEvent::Opened { address: address.clone() }, "Opened"),
            (broken(None), "None"),
            (broken(Some(frame().into())), "TooLarge"),
            (broken(Some(truncated())), "Truncated"),
            (broken(Some(Error::Encode { source: text.clone().into() })), "Encode"),
            (broken(Some(Error::Decode { source: text.into() })), "Decode"),
            (broken(Some(sent(frame().into()))), "TooLarge"),
            (broken(Some(sent(Error::Write(io())))), "ConnectionReset"),
            (
                ManagerEvent::DialFailed { address: address.clone(), error: Arc::new(sent(truncated())), attempts: 5 },
                "Truncated",
            ),
            (ManagerEvent::Down { address: address.clone(), error: Arc::new(sent(truncated())) }, "Truncated"),
            (ManagerEvent::Up { address: address.clone() }, "Up"),
            (ManagerEvent::Lost { address: address.clone(), messages: 5 }, "messages: 5"),
            (ManagerEvent::Resumed { address: address.clone(), replayed: 5 }, "replayed: 5"),
            (
                ManagerEvent::SessionLost { address: address.clone(), in_doubt: 5, why: Loss::Restarted },
                "in_doubt: 5, why: Restarted",
            ),
            (
                ManagerEvent::Panicked {
                    address: Some(address.clone()),
                    source: PanicSource::Backoff,
                    message: "secret".into(),
                },
                "Backoff",
            ),
        ];
        lines.extend(cases.iter().map(|(event, has)| (Described(event).to_string(), *has, "host:5031")));
        let cases =
            [(ManagerEvent::panicked(PanicSource::Waker, panicked()), "Waker"), (ManagerEvent::missed(6), "events: 6")];
        lines.extend(cases.iter().map(|(event, has)| (Described(event).to_string(), *has, "")));
        for (line, what, whom) in lines {
            assert!(
                line.contains(what) && line.contains(whom),
                "{line} says what happened, and to whom: {what}, {whom}"
            );
            for piece in ["secret", "115, 101, 99", "73 65 63", &length.to_string(), &format!("{length:x}")] {
                assert!(!line.contains(piece), "{line} has a piece of a message: {piece}");
            }
        }
    }
}
