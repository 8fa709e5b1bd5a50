//! Puts a message into a stream, again and again until the stream has it.

use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::context::traits::TimeoutProvider;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, HeaderMap, HeaderValue, Message, Request, RequestErrorKind, StatusCode, Subject, header};
use buffstreams::BoxError;
use bytes::Bytes;
use tokio::time::Instant;

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

/// The attempts to store a message.
#[derive(Debug)]
pub(crate) struct Attempts {
    started: Instant,
    longest: Duration,
    /// One of them has reached the client of NATS.
    pub(crate) published: bool,
    /// One of them had no answer.
    in_doubt: bool,
}

/// The stream has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    /// It had it before, or another with this id.
    pub(crate) duplicate: bool,
}

/// It is not known that the stream has it.
#[derive(Debug)]
pub(crate) struct Failed {
    /// Of the last attempt.
    pub(crate) error: Error,
    /// An attempt had no answer, so the stream may have it.
    pub(crate) in_doubt: bool,
}

impl From<Error> for Failed {
    /// Of what was never published.
    fn from(error: Error) -> Self {
        Self { error, in_doubt: false }
    }
}

impl Outbound {
    pub(crate) fn new(subject: Subject, id: &str, message: Bytes) -> Result<Self, Error> {
        Ok(Self { subject, id: header_value(id)?, headers: HeaderMap::new(), message })
    }

    /// What is published.
    pub(crate) fn parts(&self) -> (Subject, HeaderMap, Bytes) {
        let mut headers = self.headers.clone();
        headers.insert(header::NATS_MESSAGE_ID, self.id.clone());
        (self.subject.clone(), headers, self.message.clone())
    }

    /// What the stream says, or the server in its place.
    pub(crate) fn stored(&self, answer: &Message) -> Result<Stored, Error> {
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(self.no_stream());
        }
        match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
            // One with this id is on its way through the cluster. Whether it arrives is not known yet.
            Ok(Response::Ok(ack)) if ack.duplicate && ack.sequence == 0 => Err(Error::Unacknowledged),
            Ok(Response::Ok(ack)) => Ok(Stored { duplicate: ack.duplicate }),
            Ok(Response::Err { error }) => Err(match error.error_code() {
                ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
                    self.too_large(error)
                }
                _ => Error::Refused { source: error.into() },
            }),
            // Not of a stream.
            Err(_) => Err(Error::Unacknowledged),
        }
    }

    pub(crate) fn too_large(&self, source: impl Into<BoxError>) -> Error {
        Error::TooLarge { len: self.message.len(), source: source.into() }
    }

    fn no_stream(&self) -> Error {
        Error::NoStream { subject: self.subject.to_string() }
    }
}

impl Attempts {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), longest: FIRST, published: false, in_doubt: false }
    }

    /// After how long another is made; or what it comes to, with an error that will be the same another time, or when no other fits
    /// into `give_up`.
    pub(crate) fn failed(&mut self, error: Error, give_up: Option<Duration>) -> Result<Duration, Failed> {
        self.in_doubt |= matches!(error, Error::Unacknowledged);
        let delay = self.longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        if error.is_final() || give_up.is_some_and(|limit| self.started.elapsed() + delay > limit) {
            return Err(Failed { error, in_doubt: self.in_doubt });
        }
        self.longest = (self.longest * 2).min(LONGEST);
        Ok(delay)
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

    pub(crate) fn client(&self) -> Client {
        self.0.client()
    }

    /// How long an answer is waited for.
    pub(crate) fn timeout(&self) -> Duration {
        TimeoutProvider::timeout(&self.0)
    }

    /// Publishes it until the stream has it. It fails with an error that stays the same however often it is tried, or with what the
    /// last attempt met when no other fits into `give_up`.
    pub(crate) async fn store(&self, outbound: &Outbound, give_up: Option<Duration>) -> Result<Stored, Failed> {
        let mut attempts = Attempts::new();
        loop {
            match self.publish(outbound).await {
                Ok(stored) => return Ok(stored),
                Err(error) => tokio::time::sleep(attempts.failed(error, give_up)?).await,
            }
        }
    }

    async fn publish(&self, outbound: &Outbound) -> Result<Stored, Error> {
        let (client, timeout) = (self.client(), self.timeout());
        if !is_connected(&client) {
            return Err(Error::Disconnected);
        }
        let (subject, headers, message) = outbound.parts();
        let request = Request::new().payload(message).headers(headers).timeout(None);
        match tokio::time::timeout(timeout, client.send_request(subject, request)).await {
            Ok(Ok(answer)) => outbound.stored(&answer),
            Ok(Err(source)) if source.kind() == RequestErrorKind::NoResponders => Err(outbound.no_stream()),
            Ok(Err(source)) if source.kind() == RequestErrorKind::MaxPayloadExceeded => Err(outbound.too_large(source)),
            Ok(Err(_)) | Err(_) => Err(Error::Unacknowledged),
        }
    }
}

/// What is published without a connection stays in the client until there is one, every attempt of it.
pub(crate) fn is_connected(client: &Client) -> bool {
    client.connection_state() == State::Connected
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
