//! What became of messages that came back, and why.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, Limit};
use crate::foreign;

/// What became of a message that came back. Where it was sent, that is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The connection broke and could not be opened again, and [`Config::reconnect`](crate::Config::reconnect) is off.
    NotSent,
    /// It was older than [`Config::message_ttl`](crate::Config::message_ttl) before it could be sent.
    Expired,
    /// The connection broke, and all attempts of [`Config::reconnect`](crate::Config::reconnect) were in vain.
    GaveUp,
    /// The address was closed before it could be sent.
    Closed,
    /// Its sink was dropped while [`Config::queue_bytes`](crate::Config::queue_bytes) were held: there was no room for it.
    QueueFull,
    /// It was sent in a session and not acknowledged, and it will not be known any more whether the program at the other end has
    /// taken it: that process has died, the session is over, or the program dropped the message without a word. If it is sent
    /// again, it may be taken twice.
    InDoubt,
    /// It was sent in a session, and the program at the other end refused it: it says that it has not taken the message.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSent => "the connection broke and could not be opened again",
            Self::Expired => "it was too old before it could be sent",
            Self::GaveUp => "all attempts to open the connection again were in vain",
            Self::Closed => "its address was closed before it could be sent",
            Self::QueueFull => "there was no room for it when its sink was dropped",
            Self::InDoubt => "it was sent and not acknowledged, and may or may not have been taken",
            Self::Refused => "the program at the other end refused it",
        })
    }
}

/// Why messages were given back.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) outcome: Outcome,
    /// How often the address was dialed for them.
    pub(crate) attempts: u32,
    pub(crate) error: Arc<Error>,
}

impl Verdict {
    /// The queue was closed.
    pub(crate) fn closed() -> Self {
        Self { outcome: Outcome::Closed, attempts: 0, error: Arc::new(Error::Closed { message: None }) }
    }

    /// They were older than `ttl`; the address had been dialed so often in the meantime.
    pub(crate) fn expired(ttl: Duration, attempts: u32) -> Self {
        let error = Arc::new(Error::Timeout { what: Limit::MessageTtl, after: ttl });
        Self { outcome: Outcome::Expired, attempts, error }
    }

    /// The queue holds `max` bytes or more, and its producer cannot wait.
    pub(crate) fn queue_full(max: usize) -> Self {
        Self { outcome: Outcome::QueueFull, attempts: 0, error: Arc::new(Error::QueueFull { max }) }
    }
}

/// What comes back of what was acknowledged.
#[derive(Default)]
#[must_use]
pub(crate) struct Untaken {
    /// What was not taken.
    pub(crate) letters: Vec<(Vec<Bytes>, Verdict)>,
    /// May be memory of the program: to be dropped without the lock.
    pub(crate) dropped: Vec<Bytes>,
}

impl Untaken {
    /// Drops what may be memory of the program, and returns what comes back.
    pub(crate) fn letters(self) -> Vec<(Vec<Bytes>, Verdict)> {
        for message in self.dropped {
            let _ = foreign::dispose(message);
        }
        self.letters
    }
}
