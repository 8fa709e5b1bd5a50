//! A message that an egress could not deliver, and what becomes of it.

use std::time::Duration;

use buffstreams::{Address, Limit, Outcome};
use bytes::Bytes;

use crate::error::Error;

/// A message that could not be written, or that its receiver has not taken.
#[derive(Debug)]
#[non_exhaustive]
pub struct Undelivered<'a> {
    /// Where it should have gone, if that could be told.
    pub address: Option<&'a Address>,
    /// The message.
    pub message: &'a Bytes,
    /// Why not.
    pub error: &'a Error,
    /// How often it was pulled, by the count of the server: 1 for the first time.
    pub deliveries: u64,
}

/// What becomes of a message that could not be written, or was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFailure {
    /// It comes again after this time, a `nak`; until the consumer's `max_deliver` is over, if it has one.
    Again(Duration),
    /// It does not come again, a `term`; a stream that is a work queue forgets it. The reason is in the log.
    Terminate,
    /// It goes into the stream that has this subject, and does not come again: a `term`, as soon as that stream has it.
    ///
    /// There it is a letter as those of [`DurableLetters`](crate::DurableLetters), with the headers that it had and one more, [`ID`]:
    /// its id in this stream, by which it can be told whether it was taken after all. Its `Nats-Msg-Id` there is that of the
    /// place from which it comes, so it is there once. Where it cannot be stored within a third of the consumer's `ack_wait`, it
    /// comes again after a second.
    ///
    /// [`ID`]: crate::ID
    Move(String),
}

impl Undelivered<'_> {
    /// What became of it. With [`Outcome::InDoubt`] the receiver may have taken it, and with [`Outcome::Refused`] it has not, and
    /// never will. With all others it was not sent.
    pub fn outcome(&self) -> Outcome {
        outcome(self.error)
    }
}

fn outcome(error: &Error) -> Outcome {
    use buffstreams::Error as E;
    let Error::Write(error) = error else { return Outcome::NotSent };
    match error {
        E::Refused { .. } => Outcome::Refused,
        E::InDoubt { .. } => Outcome::InDoubt,
        E::NotSent { source, .. } if matches!(**source, E::Timeout { what: Limit::MessageTtl, .. }) => Outcome::Expired,
        _ => Outcome::NotSent,
    }
}

/// Whether another address may have a message that came back with this error: it was not sent, and not for its age.
pub(crate) fn may_move(error: &Error) -> bool {
    use buffstreams::Error as E;
    let is_for_address =
        matches!(error, Error::Dial(_) | Error::Write(E::NotOpen { .. } | E::Closed { .. } | E::NotSent { .. }));
    is_for_address && outcome(error) == Outcome::NotSent
}
