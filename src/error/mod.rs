//! What can go wrong, a layer at a time, with the figures.
//!
//! [`ConfigError`] is a setting that cannot work, [`FrameError`] is a header that makes no sense, and [`Error`] is
//! what an operation of this crate returns. A clean end is never an error: it is the end of a stream.

mod frame;
mod into_io;
mod limit;
mod parse;
mod session;
#[cfg(feature = "tls")]
mod tls;

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::Bytes;

use crate::foreign::PanicSource;
use crate::peer::Address;

use frame::Hint;
pub use frame::{FrameError, FrameErrorKind, LooksLike};
pub use limit::Limit;
pub use parse::ParseWireFormatError;
use session::Doubt;
pub use session::{HandshakeErrorKind, Loss, SessionErrorCode};
#[cfg(feature = "tls")]
pub use tls::TlsError;

/// An error of a callback: any error of the program.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A setting that cannot work. Returned when the configuration is used: by `bind`, `dial`, `open`, and the `wire` types. What is not
/// PEM, and no name of a server, is an error of the methods of `Tls` themselves.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The length field of a fixed header has from 1 to 8 bytes.
    #[error("a length field of {width} bytes: it has from 1 to 8")]
    #[non_exhaustive]
    LengthWidth {
        /// The width asked for, in bytes.
        width: u8,
    },
    /// The length field of a fixed header starts at most 8 bytes into it.
    #[error("a length field at offset {offset}: at most {max}")]
    #[non_exhaustive]
    LengthOffset {
        /// The offset asked for, in bytes.
        offset: u8,
        /// The largest offset there is.
        max: u8,
    },
    /// No runtime was given, and the feature `async-std`, which is the default, is off.
    #[error("no runtime: give one to Config::runtime, or turn the feature async-std on")]
    NoRuntime,
    /// Permissions that a file cannot have.
    #[error("unix_mode is {given:#o}: it is at most 0o777")]
    #[non_exhaustive]
    UnixMode {
        /// The permissions asked for.
        given: u32,
    },
    /// TLS was asked for, and there is no certificate to listen with: see [`Tls::server`](crate::Tls::server).
    #[cfg(feature = "tls")]
    #[error("no certificate to listen with: give one to Tls::server")]
    NoTlsServer,
    /// TLS was asked for, and not for what is dialed: see [`Tls::client`](crate::Tls::client). `roots`, `identity` and
    /// `server_name` ask for that as well.
    #[cfg(feature = "tls")]
    #[error("nothing to verify who is dialed with: call Tls::client or Tls::roots")]
    NoTlsClient,
    /// Nothing that does the cryptography of TLS was compiled in.
    #[cfg(feature = "tls")]
    #[error("no cryptography for TLS: turn the feature tls-ring or tls-aws-lc-rs on")]
    NoTlsProvider,
    /// What should be certificates, or a private key, in the PEM format cannot be read.
    #[cfg(feature = "tls")]
    #[error("no {what} in PEM: {problem}")]
    #[non_exhaustive]
    Pem {
        /// What was expected: `certificate`, `authority` or `private key`.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A file with certificates or a key cannot be read.
    #[cfg(feature = "tls")]
    #[error("cannot read {path}: {kind}")]
    #[non_exhaustive]
    TlsFile {
        /// The file.
        path: String,
        /// Why not.
        kind: io::ErrorKind,
    },
    /// A certificate is named without its private key, or the key without its certificate.
    #[cfg(feature = "tls")]
    #[error("tls.client names its {given}, and not its {missing}")]
    #[non_exhaustive]
    TlsPair {
        /// What is there.
        given: &'static str,
        /// What is missing.
        missing: &'static str,
    },
    /// The private key is not that of the certificate.
    #[cfg(feature = "tls")]
    #[error("the private key is not that of the certificate")]
    TlsKey,
    /// What should be the name of a server is no host name and no IP address.
    #[cfg(feature = "tls")]
    #[error("{name:?} is no name of a server: that is a host name or an IP address")]
    #[non_exhaustive]
    TlsServerName {
        /// The name.
        name: String,
    },
    /// The settings of TLS cannot work for another reason.
    #[cfg(feature = "tls")]
    #[error("TLS cannot be set up: {problem}")]
    #[non_exhaustive]
    Tls {
        /// What is wrong.
        problem: String,
    },
    /// A limit of zero would let nothing through.
    #[error("{name} is zero: it must be at least 1")]
    #[non_exhaustive]
    Zero {
        /// The setting.
        name: &'static str,
    },
    /// A time that cannot be a limit.
    #[error("{name} is {given:?}: it is from {least:?} to {most:?}, or None for no limit")]
    #[non_exhaustive]
    Time {
        /// The setting.
        name: &'static str,
        /// The time asked for.
        given: Duration,
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// A window of a session that has no room for what may have to wait in it together, or none that can be.
    #[error(
        "window_bytes is {given}: it is from {least}, which is 64 KiB and a frame of max_message_size, {max_message_size}, to {most}"
    )]
    #[non_exhaustive]
    Window {
        /// The window asked for, in bytes.
        given: usize,
        /// The smallest, in bytes.
        least: usize,
        /// The largest, in bytes.
        most: usize,
        /// The longest message that a session of this configuration has, in bytes.
        max_message_size: usize,
    },
    /// A time that a session cannot have.
    #[error("{name} of a session is {given:?}: it is at {} {bound:?}", if given < bound { "least" } else { "most" })]
    #[non_exhaustive]
    SessionTime {
        /// The setting.
        name: &'static str,
        /// The time asked for.
        given: Duration,
        /// The shortest, or the longest, that there may be.
        bound: Duration,
    },
    /// Peers with and without sessions cannot be told apart: see [`Session::or_plain`](crate::Session::or_plain).
    #[error(
        "or_plain: in this format ({wire_format}), a frame of up to {max_message_size} bytes may begin with {byte:#04x}, as a session does"
    )]
    #[non_exhaustive]
    Ambiguous {
        /// What prints the format that was asked for.
        wire_format: String,
        /// The longest message that is sent or received in this format, in bytes.
        max_message_size: usize,
        /// The byte.
        byte: u8,
    },
    /// The wire format cannot write a length this large.
    #[error("max_message_size is {asked} bytes: this wire format holds at most {max}")]
    #[non_exhaustive]
    MessageSize {
        /// The limit asked for, in bytes.
        asked: usize,
        /// The largest limit for this format, in bytes.
        max: u64,
    },
}

/// What an operation of this crate can fail with.
///
/// It says what happened at one layer, and has the rest as its source: [`chain`](crate::chain) prints all of it. It converts into an
/// `io::Error` of the kind that fits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),

    /// The address could not be listened on.
    #[error("cannot listen on {address}")]
    #[non_exhaustive]
    Bind {
        /// The address, as it was given.
        address: Address,
        /// What the system said.
        source: io::Error,
    },

    /// The name could not be resolved, or none of its addresses accepted the connection.
    #[error("cannot connect to {address}")]
    #[non_exhaustive]
    Dial {
        /// The address, as it was given.
        address: Address,
        /// What the system said of the last address tried.
        source: io::Error,
    },

    /// No address of the name had accepted the connection in time.
    #[error("no connection to {address} within {after:?}")]
    #[non_exhaustive]
    DialTimeout {
        /// The address, as it was given.
        address: Address,
        /// The `dial_timeout` in force.
        after: Duration,
    },

    /// The manager has, or is making or closing, a connection to this address.
    #[error("{address} is open already")]
    #[non_exhaustive]
    AlreadyOpen {
        /// The address, as it was given.
        address: Address,
    },

    /// The manager has no connection or listener of this address: it was never dialed, or has been closed.
    #[error("{address} is not open")]
    #[non_exhaustive]
    NotOpen {
        /// The address, as it was given.
        address: Address,
        /// The message that was not sent, where the operation had one.
        message: Option<Unsent>,
    },

    /// The message is over `max_message_size`. It was not sent; the sink works on.
    #[error("a message of {len} bytes: at most {max} are allowed")]
    #[non_exhaustive]
    MessageTooLarge {
        /// The message's length, in bytes.
        len: usize,
        /// The limit in force, in bytes.
        max: usize,
        /// The message that was not sent.
        message: Unsent,
    },

    /// The handshake of TLS with the end that was dialed failed. That the handshake takes too long is a
    /// [`DialTimeout`](Self::DialTimeout).
    #[cfg(feature = "tls")]
    #[error("no TLS session with {address}")]
    #[non_exhaustive]
    Tls {
        /// The address, as it was given.
        address: Address,
        /// Why not.
        source: TlsError,
    },

    /// The handshake of an acknowledged session with the end that was dialed failed. That of TLS, where there is one,
    /// was done before.
    #[error("no session with {address}: {kind}")]
    #[non_exhaustive]
    Handshake {
        /// The address, as it was given.
        address: Address,
        /// Why not.
        kind: HandshakeErrorKind,
    },

    /// A session is lost, and cannot be resumed. The next one starts anew, with what was not sent.
    #[error("the session is lost, with {in_doubt} in doubt: {why}")]
    #[non_exhaustive]
    SessionLost {
        /// How many messages were sent in it and not acknowledged. Each of them may or may not have been taken, and none is
        /// sent again.
        in_doubt: usize,
        /// Why.
        why: Loss,
    },

    /// The message was sent, and the program at the other end refused it. Its session goes on.
    #[error("the program at the other end refused it")]
    #[non_exhaustive]
    Refused {
        /// The message that was refused, where the operation had one.
        message: Option<Unsent>,
    },

    /// The message was sent, and it is no longer known whether the program at the other end has taken it. It is not
    /// sent again: if it was taken, that would be twice.
    #[error("it may or may not have been taken: {}", Doubt(why))]
    #[non_exhaustive]
    InDoubt {
        /// The message that is in doubt, where the operation had one.
        message: Option<Unsent>,
        /// Why its session was lost; `None` where it goes on, and the other end's program has dropped the message.
        why: Option<Loss>,
    },

    /// There is no session to wait for acknowledgements in: [`Config::session`](crate::Config::session) is not set.
    #[error("it has no session: what it sends is not acknowledged")]
    NoSession,

    /// A typed message could not be encoded, and was not sent; the sink works on. The source is the codec's error, or
    /// [`BufferFull`](crate::typed::BufferFull) where the message is over `max_message_size`.
    #[error("cannot encode a message")]
    #[non_exhaustive]
    Encode {
        /// Why not.
        source: BoxError,
    },

    /// A message could not be decoded, and was left out; the stream goes on with the next.
    #[error("cannot decode a message")]
    #[non_exhaustive]
    Decode {
        /// What the codec said.
        source: BoxError,
    },

    /// The peer sent a header that makes no sense.
    #[error(transparent)]
    Frame(#[from] FrameError),

    /// The stream ended inside a frame; or, over TLS, without the message `close_notify` that ends a session, and then
    /// `got` may be 0: an attacker may have cut it short.
    #[error("the stream ended inside a frame: {got} of {want} bytes received{}", Hint(looks_like))]
    #[non_exhaustive]
    Truncated {
        /// How many bytes of the frame were received, header included.
        got: usize,
        /// How many bytes the frame has, header included; just the header's if that was not whole.
        want: usize,
        /// What the bytes look like instead, if that can be told: what a peer of another protocol says first may well read as
        /// the header of a long message.
        looks_like: Option<LooksLike>,
    },

    /// Reading from the peer failed. Over TLS, where the peer refused the session afterwards, or broke its rules, there is a
    /// `TlsError` inside: `error.get_ref()`, which can be downcast.
    #[error("cannot read")]
    Read(#[source] io::Error),

    /// Writing to the peer failed. What was accepted and not yet handed whole to the kernel is still held.
    #[error("cannot write")]
    Write(#[source] io::Error),

    /// Writing failed while the message waited for room in a [`Writer`](crate::Writer), which did not accept it: it comes
    /// back. What was accepted before is in [`Writer::into_unsent`](crate::Writer::into_unsent).
    #[error("cannot write")]
    #[non_exhaustive]
    NotWritten {
        /// The message that was not written.
        message: Unsent,
        /// What the transport said.
        source: io::Error,
    },

    /// A connection broke while the message waited for room in it; or a manager's, and it could not be opened again, or
    /// broke again and again. Or the message was too old, or its address was closed before it was sent: the source says why. The
    /// message comes back; messages of a [`ManagerSink`](crate::ManagerSink) become dead letters.
    #[error("not sent to {address}")]
    #[non_exhaustive]
    NotSent {
        /// The address, as it was given.
        address: Address,
        /// The message that was not sent, where the operation had one.
        message: Option<Unsent>,
        /// Why not.
        source: std::sync::Arc<Error>,
    },

    /// A peer took longer than a limit allows.
    #[error("{what} is over: {after:?}")]
    #[non_exhaustive]
    Timeout {
        /// The limit that ran out.
        what: Limit,
        /// Its value.
        after: Duration,
    },

    /// A queue holds as much as it may, and a sink that was dropped could not wait for room: why its messages became
    /// dead letters.
    #[error("the queue is full: {max} bytes or more are held")]
    #[non_exhaustive]
    QueueFull {
        /// The `queue_bytes` in force.
        max: usize,
    },

    /// Something panicked, and was caught: why a manager's messages came back, or its connection broke or could not be kept. A
    /// [`ManagerEvent::Panicked`](crate::ManagerEvent::Panicked) has what it said.
    #[error("{what} panicked")]
    #[non_exhaustive]
    Panicked {
        /// What panicked.
        what: PanicSource,
    },

    /// The sink, the connection or the listener was closed. A message given to it comes back.
    #[error("it is closed")]
    #[non_exhaustive]
    Closed {
        /// The message that was not sent, where the operation had one.
        message: Option<Unsent>,
    },
}

impl Error {
    /// Takes the message that was not sent out of the error, where it holds one. One that was sent, and was
    /// [refused](Self::Refused) or is [in doubt](Self::InDoubt), stays where it is: if it were sent again, it might be
    /// taken twice.
    pub fn into_unsent(self) -> Option<Bytes> {
        match self {
            Self::MessageTooLarge { message, .. } | Self::NotWritten { message, .. } => Some(message.into_inner()),
            Self::NotOpen { message, .. } | Self::NotSent { message, .. } | Self::Closed { message } => {
                message.map(Unsent::into_inner)
            }
            _ => None,
        }
    }
}

/// A message given back inside an error: it was not sent, or its error says what else became of it. It prints its length, never its content, so an error can
/// be logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Unsent(Bytes);

impl Unsent {
    /// The message itself.
    pub fn into_inner(self) -> Bytes {
        self.0
    }
}

impl From<Bytes> for Unsent {
    fn from(message: Bytes) -> Self {
        Self(message)
    }
}

impl fmt::Debug for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unsent({} bytes)", self.0.len())
    }
}
