//! An error where one of the standard library is asked for.

use std::io::{self, ErrorKind};

#[cfg(feature = "tls")]
use super::TlsError;
use super::{Error, HandshakeErrorKind};

/// For functions that return `io::Result`. The error itself is inside, whole, with the message that was not sent where there is
/// one: see [`io::Error::get_ref`] and [`io::Error::downcast`].
///
/// The kind is that of the system's error, where it comes of one, be it inside [`Error::NotSent`]. Otherwise it is `InvalidInput` for
/// a setting that cannot work and a message that is too long, `TimedOut`, `UnexpectedEof` for what was cut short, `InvalidData`
/// for what makes no sense or cannot be encoded or decoded, `AlreadyExists`, `NotConnected`, `BrokenPipe` for what is closed,
/// `QuotaExceeded` for a queue that is full, `ConnectionAborted` where a session is lost or a message is in doubt,
/// `ConnectionRefused` for a message that was refused, `Unsupported` where there is no session, `PermissionDenied` where the other
/// end denies one, `ResourceBusy` where it takes none now, and `Other` for a panic.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(kind(&error), error)
    }
}

fn kind(error: &Error) -> ErrorKind {
    match error {
        Error::Config(_) | Error::MessageTooLarge { .. } => ErrorKind::InvalidInput,
        Error::Bind { source, .. }
        | Error::Dial { source, .. }
        | Error::Read(source)
        | Error::Write(source)
        | Error::NotWritten { source, .. } => source.kind(),
        Error::DialTimeout { .. } | Error::Timeout { .. } => ErrorKind::TimedOut,
        Error::AlreadyOpen { .. } => ErrorKind::AlreadyExists,
        Error::NotOpen { .. } => ErrorKind::NotConnected,
        #[cfg(feature = "tls")]
        Error::Tls { source, .. } => kind_of_tls(source),
        Error::Frame(_) | Error::Encode { .. } | Error::Decode { .. } => ErrorKind::InvalidData,
        Error::Truncated { .. } => ErrorKind::UnexpectedEof,
        Error::NotSent { source, .. } => kind(source),
        Error::QueueFull { .. } => ErrorKind::QuotaExceeded,
        Error::Panicked { .. } => ErrorKind::Other,
        Error::Closed { .. } => ErrorKind::BrokenPipe,
        Error::Handshake { kind, .. } => kind_of_handshake(kind),
        Error::SessionLost { .. } | Error::InDoubt { .. } => ErrorKind::ConnectionAborted,
        Error::Refused { .. } => ErrorKind::ConnectionRefused,
        Error::NoSession => ErrorKind::Unsupported,
    }
}

fn kind_of_handshake(kind: &HandshakeErrorKind) -> ErrorKind {
    match kind {
        HandshakeErrorKind::Io(kind) => *kind,
        HandshakeErrorKind::NoAnswer | HandshakeErrorKind::Truncated { .. } => ErrorKind::UnexpectedEof,
        HandshakeErrorKind::Timeout { .. } => ErrorKind::TimedOut,
        HandshakeErrorKind::Denied => ErrorKind::PermissionDenied,
        HandshakeErrorKind::Busy { .. } => ErrorKind::ResourceBusy,
        _ => ErrorKind::InvalidData,
    }
}

#[cfg(feature = "tls")]
fn kind_of_tls(error: &TlsError) -> ErrorKind {
    match error {
        TlsError::Io(source) => source.kind(),
        TlsError::Ended { .. } => ErrorKind::UnexpectedEof,
        TlsError::Timeout { .. } => ErrorKind::TimedOut,
        _ => ErrorKind::InvalidData,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::error::{ConfigError, Limit, Loss};
    use crate::foreign::PanicSource;

    /// Kept here because nobody outside can make each of them.
    #[test]
    fn an_io_error_has_the_kind_and_the_error() {
        let (address, after) = (|| "host:5031".into(), Duration::from_secs(1));
        let refused = || io::Error::from(ErrorKind::ConnectionRefused);
        let message = || bytes::Bytes::from_static(b"one").into();
        let frame = crate::Config::new().codec().map(crate::wire::Decoder::with).unwrap().header(&[1, 0, 0]);
        let no_session = |kind| Error::Handshake { address: address(), kind };
        let not_sent = |source| Error::NotSent { address: address(), message: None, source: Arc::new(source) };
        for (error, kind) in [
            (ConfigError::NoRuntime.into(), ErrorKind::InvalidInput),
            (Error::MessageTooLarge { len: 3, max: 2, message: message() }, ErrorKind::InvalidInput),
            (Error::Bind { address: address(), source: refused() }, ErrorKind::ConnectionRefused),
            (Error::Dial { address: address(), source: refused() }, ErrorKind::ConnectionRefused),
            (Error::Read(refused()), ErrorKind::ConnectionRefused),
            (Error::Write(refused()), ErrorKind::ConnectionRefused),
            (Error::NotWritten { message: message(), source: refused() }, ErrorKind::ConnectionRefused),
            (Error::DialTimeout { address: address(), after }, ErrorKind::TimedOut),
            (Error::Timeout { what: Limit::WriteTimeout, after }, ErrorKind::TimedOut),
            (Error::AlreadyOpen { address: address() }, ErrorKind::AlreadyExists),
            (Error::NotOpen { address: address(), message: None }, ErrorKind::NotConnected),
            (frame.unwrap_err().into(), ErrorKind::InvalidData),
            (Error::Truncated { got: 1, want: 2, looks_like: None }, ErrorKind::UnexpectedEof),
            (not_sent(Error::Write(refused())), ErrorKind::ConnectionRefused),
            (Error::Encode { source: "no".into() }, ErrorKind::InvalidData),
            (Error::Decode { source: "no".into() }, ErrorKind::InvalidData),
            (Error::QueueFull { max: 1 }, ErrorKind::QuotaExceeded),
            (Error::Panicked { what: PanicSource::Task }, ErrorKind::Other),
            (Error::Closed { message: None }, ErrorKind::BrokenPipe),
            (Error::SessionLost { in_doubt: 1, why: Loss::Expired }, ErrorKind::ConnectionAborted),
            (Error::InDoubt { message: None, why: None }, ErrorKind::ConnectionAborted),
            (Error::Refused { message: None }, ErrorKind::ConnectionRefused),
            (Error::NoSession, ErrorKind::Unsupported),
            (no_session(HandshakeErrorKind::Io(ErrorKind::ConnectionReset)), ErrorKind::ConnectionReset),
            (no_session(HandshakeErrorKind::NoAnswer), ErrorKind::UnexpectedEof),
            (no_session(HandshakeErrorKind::Timeout { after }), ErrorKind::TimedOut),
            (no_session(HandshakeErrorKind::Denied), ErrorKind::PermissionDenied),
            (no_session(HandshakeErrorKind::Busy { retry_in: after }), ErrorKind::ResourceBusy),
            (no_session(HandshakeErrorKind::Fenced), ErrorKind::InvalidData),
        ] {
            let text = error.to_string();
            let error = io::Error::from(error);
            assert_eq!((error.kind(), error.to_string()), (kind, text));
        }
        let error = io::Error::from(Error::Closed { message: Some(message()) });
        let unsent = error.downcast::<Error>().ok().and_then(Error::into_unsent);
        assert_eq!(unsent.as_deref(), Some(&b"one"[..]));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn an_io_error_has_the_kind_of_a_failed_handshake() {
        for (source, kind) in [
            (TlsError::Io(ErrorKind::ConnectionReset.into()), ErrorKind::ConnectionReset),
            (TlsError::Ended { received: 0 }, ErrorKind::UnexpectedEof),
            (TlsError::Timeout { after: Duration::ZERO }, ErrorKind::TimedOut),
            (TlsError::UnknownIssuer, ErrorKind::InvalidData),
        ] {
            assert_eq!(io::Error::from(Error::Tls { address: "host:5031".into(), source }).kind(), kind);
        }
    }
}
