//! What can go wrong with a TLS session.

use std::io;
use std::time::{Duration, SystemTime};

use super::frame::{Hint, LooksLike};

/// Why there is no TLS session with the other end, or none any more: what was expected, and what came.
///
/// No message has been received before the handshake is over. Where it failed at the end that dials, that has sent none
/// either. Where it failed at the end that was dialed, it may already have been over at the other end: see
/// [`Tls`](crate::Tls).
///
/// The error of a session that ended later is inside [`Error::Read`](crate::Error::Read): `error.get_ref()` of the
/// `io::Error` can be downcast to it. In a [`Reason::Failed`](crate::Reason::Failed) it is text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// What the other end sent is no TLS.
    #[error("the other end does not speak TLS{}", Hint(.looks_like))]
    #[non_exhaustive]
    NotTls {
        /// What its bytes look like instead, if that can be told.
        looks_like: Option<LooksLike>,
    },

    /// The other end closed the connection before the handshake was over. One that does not expect TLS does that.
    #[error("the other end closed in the middle of the handshake, after {received} bytes: does it speak TLS?")]
    #[non_exhaustive]
    Ended {
        /// How many bytes it had sent.
        received: u64,
    },

    /// The handshake of a client that has connected took longer than `dial_timeout` allows; or, while the listener
    /// closes, `close_timeout`.
    #[error("the handshake is not over after {after:?}")]
    #[non_exhaustive]
    Timeout {
        /// The limit.
        after: Duration,
    },

    /// There were too many unfinished handshakes, and this was the oldest: it gave way to a newer one.
    #[error("{max_handshakes} others were in the middle of their handshakes, and this was the oldest")]
    #[non_exhaustive]
    GaveWay {
        /// The limit in force: see [`Tls::max_handshakes`](crate::Tls::max_handshakes).
        max_handshakes: usize,
    },

    /// The other end refused, as its alert says: it knows why.
    #[error("the other end refused: {alert}")]
    #[non_exhaustive]
    Refused {
        /// The name of the alert: see RFC 8446, 6.2.
        alert: String,
    },

    /// The certificate of the other end has expired.
    #[error("the certificate has expired, at {not_after:?}")]
    #[non_exhaustive]
    Expired {
        /// When, by what it says.
        not_after: SystemTime,
    },

    /// The certificate of the other end is not valid yet. The clock of this machine may be wrong.
    #[error("the certificate is not valid before {not_before:?}")]
    #[non_exhaustive]
    NotValidYet {
        /// From when on it is.
        not_before: SystemTime,
    },

    /// The certificate is for other names than the one that was dialed.
    #[error("the certificate is not for {expected}, but for {presented:?}")]
    #[non_exhaustive]
    WrongName {
        /// The name that was asked for: that of the host dialed, or [`Tls::server_name`](crate::Tls::server_name).
        expected: String,
        /// The names that the certificate has.
        presented: Vec<String>,
    },

    /// The certificate was not signed by an authority that is trusted here.
    #[error("the certificate was signed by an authority that is not known here")]
    UnknownIssuer,

    /// A certificate is required, and the other end has shown none.
    #[error("the other end has shown no certificate")]
    NoCertificate,

    /// The certificate of the other end cannot be accepted, for another reason.
    #[error("the certificate cannot be accepted: {reason}")]
    #[non_exhaustive]
    BadCertificate {
        /// What is wrong with it.
        reason: String,
    },

    /// The two ends have no version of TLS, no cipher or no application protocol in common.
    #[error("the two ends have nothing in common: {what}")]
    #[non_exhaustive]
    Incompatible {
        /// What they cannot agree on.
        what: String,
    },

    /// The other end broke the rules of TLS.
    #[error("the other end broke the rules of TLS: {what}")]
    #[non_exhaustive]
    Violation {
        /// Which, and how.
        what: String,
    },

    /// The connection broke.
    #[error("the connection broke in the middle of the handshake")]
    Io(#[source] io::Error),
}
