//! Puts a message into a stream, again and again until the stream has it.

use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::{HeaderMap, HeaderValue, Subject, header};
use buffstreams::BoxError;
use bytes::Bytes;

use crate::error::Error;

/// The delay behind the first attempt that failed. Each is twice the one before, jittered down to its half.
const FIRST: Duration = Duration::from_millis(50);
/// The longest delay: how late an outage's end may be noticed.
const LONGEST: Duration = Duration::from_secs(2);

/// A stream, by the subjects that it has.
#[derive(Clone, Debug)]
pub(crate) struct Store(Context);

/// A message for a stream.
pub(crate) struct Outbound {
    subject: Subject,
    /// The same for each attempt, so that the stream has it once.
    id: HeaderValue,
    /// Others than the id. Most messages have none.
    pub(crate) headers: HeaderMap,
    message: Bytes,
}

/// The stream has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// It had it before, or another with this id.
    pub(crate) duplicate: bool,
}

impl Outbound {
    pub(crate) fn new(subject: Subject, id: &str, message: Bytes) -> Result<Self, Error> {
        Ok(Self { subject, id: header_value(id)?, headers: HeaderMap::new(), message })
    }
}

/// A subject to publish to, or the text back if it is none. Wildcards are for those who subscribe; the server would take them as
/// they are.
pub(crate) fn subject(text: impl Into<String>) -> Result<Subject, String> {
    let subject = Subject::from(text.into());
    let is_wildcard = |part| part == "*" || part == ">";
    let is_good = subject.is_valid() && !subject.split('.').any(is_wildcard);
    if is_good { Ok(subject) } else { Err(subject.into_string()) }
}

pub(crate) fn header_value(value: &str) -> Result<HeaderValue, Error> {
    value.parse().map_err(|_| Error::Header { value: value.to_owned() })
}

impl Store {
    pub(crate) fn new(context: Context) -> Self {
        Self(context)
    }

    /// A text that no other has, anywhere, as far as random numbers go.
    pub(crate) fn unique(&self) -> String {
        let inbox = self.0.client().new_inbox();
        inbox.rsplit('.').next().unwrap_or(&inbox).to_owned()
    }

    /// Publishes it until the stream has it. The error is one that stays the same however often it is tried, or what the last attempt
    /// met when no other fits into `give_up`. `repeated` is called before each attempt but the first.
    pub(crate) async fn store(
        &self,
        outbound: &Outbound,
        give_up: Option<Duration>,
        repeated: impl Fn(),
    ) -> Result<Stored, Error> {
        let (started, mut longest, mut attempts) = (Instant::now(), FIRST, 0);
        loop {
            // What is published without a connection stays in the client until there is one, every attempt of it, and what it
            // remembers of an answer that does not come stays for good.
            let result = if self.is_connected() {
                if attempts > 0 {
                    repeated();
                }
                attempts += 1;
                self.publish(outbound).await
            } else {
                Err(Error::Disconnected)
            };
            let error = match result {
                Ok(stored) => return Ok(stored),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => error,
            };
            let delay = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
            if give_up.is_some_and(|limit| started.elapsed() + delay > limit) {
                return Err(error);
            }
            tokio::time::sleep(delay).await;
            longest = (longest * 2).min(LONGEST);
        }
    }

    fn is_connected(&self) -> bool {
        self.0.client().connection_state() == State::Connected
    }

    async fn publish(&self, outbound: &Outbound) -> Result<Stored, Error> {
        let Outbound { subject, id, headers, message } = outbound;
        let publish = PublishMessage::build().payload(message.clone()).headers(headers.clone());
        let publish = publish.header(header::NATS_MESSAGE_ID, id.clone());
        let answer = async { self.0.send_publish(subject.clone(), publish).await?.await };
        let source = match answer.await {
            // One with this id is on its way through the cluster. Whether it arrives is not known yet.
            Ok(ack) if ack.duplicate && ack.sequence == 0 => return Err(Error::Unacknowledged),
            Ok(ack) => return Ok(Stored { duplicate: ack.duplicate }),
            Err(source) => source,
        };
        Err(match source.kind() {
            PublishErrorKind::StreamNotFound => Error::NoStream { subject: subject.to_string() },
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => Error::Unacknowledged,
            PublishErrorKind::MaxPayloadExceeded => {
                Error::TooLarge { len: message.len(), source: BoxError::from(source) }
            }
            _ => Error::Refused { source: BoxError::from(source) },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_has_no_wildcards_and_no_empty_parts() {
        for text in ["orders", "orders.eu.7", "a*b.c>"] {
            assert_eq!(subject(text).unwrap().as_str(), text);
        }
        for text in ["", "a b", "a.", ".a", "a..b", "a\r\nPUB b 0", "a.*", "a.>", ">"] {
            assert_eq!(subject(text), Err(text.to_owned()));
        }
    }

    #[test]
    fn an_id_is_one_line() {
        let outbound = |id| Outbound::new("orders".into(), id, Bytes::new());
        assert_eq!(outbound("7").unwrap().id.as_str(), "7");
        assert!(matches!(outbound("7\r\nX: y"), Err(Error::Header { value }) if value == "7\r\nX: y"));
    }
}
