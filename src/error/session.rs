//! What can go wrong with an acknowledged session.

use std::fmt;
use std::time::Duration;

use super::frame::{Hint, LooksLike};

/// Why the handshake of a session failed. It made no session, and no message was sent after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeErrorKind {
    /// What came is no handshake of a session. A listener without [`Config::session`](crate::Config::session) may send such
    /// bytes; so may any other service.
    #[error("the bytes that came are no handshake{}: is the other end a plain listener?", Hint(looks_like))]
    #[non_exhaustive]
    NotASession {
        /// What the bytes look like instead, if that can be told.
        looks_like: Option<LooksLike>,
    },
    /// The other end closed before the handshake was over, or did not answer within `dial_timeout`. A plain listener
    /// does one or the other, depending on its format and its limit.
    #[error("it closed, or did not answer in time: is the other end a plain listener?")]
    NoAnswer,
    /// The two ends speak no common version of the protocol. No older one is tried.
    #[error("the highest version of the protocol is {ours} here and {theirs} there")]
    #[non_exhaustive]
    Version {
        /// The highest that this end speaks.
        ours: u8,
        /// The highest that the other end speaks.
        theirs: u8,
    },
    /// One end may send longer messages than the other takes.
    #[error("a message has at most {ours} bytes here and {theirs} there: is max_message_size the same at both ends?")]
    #[non_exhaustive]
    Limits {
        /// The longest that this end sends and takes, in bytes.
        ours: usize,
        /// The longest that the other end sends and takes, in bytes.
        theirs: usize,
    },
    /// Its handshake ended before it was whole.
    #[error("the connection ended after {got} bytes of a handshake")]
    #[non_exhaustive]
    Truncated {
        /// How many bytes had come.
        got: usize,
    },
    /// Its handshake took longer than it may: see [`Config::dial_timeout`](crate::Config::dial_timeout).
    #[error("the handshake took longer than {after:?}")]
    #[non_exhaustive]
    Timeout {
        /// The limit in force.
        after: Duration,
    },
    /// There were too many unfinished handshakes, and this was the oldest.
    #[error("it had to give way: there are {max_handshakes} unfinished handshakes")]
    #[non_exhaustive]
    GaveWay {
        /// How many there may be.
        max_handshakes: usize,
    },
    /// It came back to a session that is not there: it is over, or was never.
    #[error("there is no such session, or none any more")]
    Unknown,
    /// It came back to a session that has a newer connection.
    #[error("the session has a newer connection")]
    Fenced,
    /// The connection broke in the middle of the handshake.
    #[error("the connection broke: {0}")]
    Io(std::io::ErrorKind),
    /// The other end denies it.
    #[error("the other end denies it")]
    Denied,
    /// The other end takes no new session for now: it has as many as it may, or is being closed.
    #[error("the other end takes none now, and asks to be dialed again in {retry_in:?}")]
    #[non_exhaustive]
    Busy {
        /// When it asks to be dialed again.
        retry_in: Duration,
    },
    /// One of the two ends broke the rules of the protocol: the other end, as this one sees it, or the reverse.
    #[error("{0}")]
    Violation(SessionErrorCode),
}

/// Why a session is lost. It cannot be resumed: the next one starts anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The listener at the other end is not the one that had it: its process, or the listener in it, was started anew.
    #[error("the other end was started anew")]
    Restarted,
    /// It was without a connection for longer than its [`ttl`](crate::Session::ttl), the smaller one of the two ends.
    #[error("it was without a connection for too long")]
    Expired,
    /// All attempts of [`Config::reconnect`](crate::Config::reconnect) were in vain.
    #[error("the attempts to open a connection were given up")]
    GaveUp,
    /// Another process has gone on with it, which has the same id: a copy of this process, such as a fork or a machine
    /// that was restored.
    #[error("somebody else goes on with it")]
    Fenced,
    /// It was ended with this code, by either end.
    #[error("{0}")]
    Violation(SessionErrorCode),
    /// The other end ended it: it did not wait for the rest to be taken, or does not let this one in again. Then the error of
    /// the dial says why.
    #[error("the other end ended it")]
    Ended,
}

/// What an end says of a session that it ends, and does not resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
#[repr(u16)]
pub enum SessionErrorCode {
    /// It forgets the session, and does not go on with it.
    #[error("the session is forgotten")]
    Gone = 1,
    /// What came is nothing that the protocol has.
    #[error("what came is malformed")]
    Malformed = 2,
    /// What came does not fit what came before: the two ends do not agree on how far they are.
    #[error("a position does not fit what came before")]
    Position = 3,
    /// More came than the window has room for.
    #[error("more came than the window has room for")]
    Window = 4,
    /// A message came that is over `max_message_size`.
    #[error("a message came that is too large")]
    TooLarge = 5,
    /// The replies to this peer have filled `queue_bytes`, and it acknowledged none in time.
    #[error("the replies were not taken in time")]
    Slow = 6,
    /// There was no room for it any more: see [`Session::detached_bytes`](crate::Session::detached_bytes).
    #[error("there was no more room for the session")]
    Evicted = 7,
}

/// Prints why it is not known what became of a message.
pub(super) struct Doubt<'a>(pub(super) &'a Option<Loss>);

impl fmt::Display for Doubt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(loss) => write!(f, "its session is lost: {loss}"),
            None => f.write_str("the program at the other end dropped it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Error;
    use super::*;

    #[test]
    fn each_way_to_have_no_session_says_what_to_look_at() {
        use HandshakeErrorKind::*;
        let cases = [
            (
                NotASession { looks_like: None },
                "the bytes that came are no handshake: is the other end a plain listener?",
            ),
            (
                NotASession { looks_like: Some(LooksLike::Http) },
                "the bytes that came are no handshake; they look like HTTP: is the other end a plain listener?",
            ),
            (NoAnswer, "it closed, or did not answer in time: is the other end a plain listener?"),
            (Version { ours: 1, theirs: 2 }, "the highest version of the protocol is 1 here and 2 there"),
            (
                Limits { ours: 9, theirs: 8 },
                "a message has at most 9 bytes here and 8 there: is max_message_size the same at both ends?",
            ),
            (Denied, "the other end denies it"),
            (
                Busy { retry_in: Duration::from_millis(250) },
                "the other end takes none now, and asks to be dialed again in 250ms",
            ),
            (Violation(SessionErrorCode::Malformed), "what came is malformed"),
        ];
        for (kind, text) in cases {
            let error = Error::Handshake { address: "host:5031".into(), kind };
            assert_eq!(error.to_string(), format!("no session with host:5031: {text}"));
        }
    }

    #[test]
    fn each_loss_of_a_session_says_why() {
        let cases = [
            (Loss::Restarted, "the other end was started anew"),
            (Loss::Expired, "it was without a connection for too long"),
            (Loss::GaveUp, "the attempts to open a connection were given up"),
            (Loss::Fenced, "somebody else goes on with it"),
            (Loss::Ended, "the other end ended it"),
            (Loss::Violation(SessionErrorCode::Gone), "the session is forgotten"),
            (Loss::Violation(SessionErrorCode::Malformed), "what came is malformed"),
            (Loss::Violation(SessionErrorCode::Position), "a position does not fit what came before"),
            (Loss::Violation(SessionErrorCode::Window), "more came than the window has room for"),
            (Loss::Violation(SessionErrorCode::TooLarge), "a message came that is too large"),
            (Loss::Violation(SessionErrorCode::Slow), "the replies were not taken in time"),
            (Loss::Violation(SessionErrorCode::Evicted), "there was no more room for the session"),
        ];
        for (why, text) in cases {
            let lost = Error::SessionLost { in_doubt: 3, why };
            assert_eq!(lost.to_string(), format!("the session is lost, with 3 in doubt: {text}"));
            let doubt = Error::InDoubt { message: None, why: Some(why) };
            assert_eq!(doubt.to_string(), format!("it may or may not have been taken: its session is lost: {text}"));
        }
        let dropped = Error::InDoubt { message: None, why: None };
        let text = "it may or may not have been taken: the program at the other end dropped it";
        assert_eq!(dropped.to_string(), text);
    }

    /// A program that sends again what was not sent must not send twice what was.
    #[test]
    fn what_was_sent_is_not_taken_for_unsent() {
        let message = || Some(bytes::Bytes::from_static(b"secret").into());
        let sent =
            || [Error::InDoubt { message: message(), why: Some(Loss::Ended) }, Error::Refused { message: message() }];
        for error in sent() {
            assert!(!format!("{error:?} {error}").contains("secret"), "{error:?}");
            assert!(error.into_unsent().is_none());
        }
        assert_eq!(sent()[1].to_string(), "the program at the other end refused it");
        assert_eq!(Error::NoSession.to_string(), "it has no session: what it sends is not acknowledged");
    }
}
