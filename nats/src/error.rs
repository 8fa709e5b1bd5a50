//! Why a message is not stored, or not delivered.

use buffstreams::BoxError;

/// What can go wrong with a message, or with a consumer.
///
/// It says what happened at one layer, and has the rest as its source: [`buffstreams::chain`] prints all of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What should be a subject is none to publish to: it is empty, has white space, an empty part or a wildcard in it.
    #[error("{subject:?} is no subject to publish to")]
    #[non_exhaustive]
    Subject {
        /// What it was.
        subject: String,
    },
    /// An id, or an address, that cannot be a header: there is an end of line in it.
    #[error("{value:?} cannot be a header: there is an end of line in it")]
    #[non_exhaustive]
    Header {
        /// What it was.
        value: String,
    },
    /// The message and its headers are longer than the server takes, its `max_payload`, or the stream, its `max_message_size`.
    #[error("a message of {len} bytes is too long, with its headers, for the server or the stream")]
    #[non_exhaustive]
    TooLarge {
        /// The message's length, in bytes.
        len: usize,
        /// What the client, or the server, said.
        source: BoxError,
    },
    /// There is no connection to a server.
    #[error("there is no connection to a server")]
    Disconnected,
    /// No stream has the subject; or the one that has it has no leader at the moment.
    #[error("no stream answers for the subject {subject:?}")]
    #[non_exhaustive]
    NoStream {
        /// The subject.
        subject: String,
    },
    /// The stream has not said in time that it has the message. It may have it.
    #[error("the stream has not acknowledged the message")]
    Unacknowledged,
    /// The stream has not taken the message: it is full, for one.
    #[error("the stream has not taken the message")]
    #[non_exhaustive]
    Refused {
        /// What the server said.
        source: BoxError,
    },
    /// The message could not be written to the address.
    #[error("cannot write to a peer")]
    Write(#[from] buffstreams::Error),
    /// The message was to open a connection, together with others, and that failed.
    #[error("cannot dial a peer")]
    Dial(#[source] std::sync::Arc<buffstreams::Error>),
    /// A letter has no header that says where it was to go.
    #[error("there is no address in the headers of the letter")]
    NoAddress,
    /// A function of the program panicked, and it was caught.
    #[error("{what} panicked")]
    #[non_exhaustive]
    Panicked {
        /// What it was for.
        what: &'static str,
    },
    /// The consumer is not one to deliver by.
    #[error("the consumer {name:?} {problem}")]
    #[non_exhaustive]
    Consumer {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Error {
    /// Whether it will be the same another time.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Subject { .. } | Self::Header { .. } | Self::TooLarge { .. } | Self::Panicked { .. })
    }
}
