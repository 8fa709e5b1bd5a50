//! A header that makes no sense, and what the bytes look like instead.

use std::fmt;

/// A header that makes no sense: the stream has lost its place, and nothing after it can be trusted.
///
/// It is never skipped over. Its peer is disconnected, and no other. Where that can be told, it says what the bytes
/// look like: mostly the two ends disagree on a setting.
///
/// It can be logged. As text it has the bytes that were read as a length, 10 at the most, and in `Debug` none; never what is
/// behind a header. Where the peer speaks another format, the bytes in that place may be of a message.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} (the bytes are {}{})", Hex(self.length()), Hint(&self.looks_like))]
pub struct FrameError {
    /// What is wrong with the header.
    pub kind: FrameErrorKind,
    /// What the bytes look like instead, if that can be told.
    pub looks_like: Option<LooksLike>,
    header: Vec<u8>,
    /// Where in the header the length is.
    offset: usize,
}

impl FrameError {
    pub(crate) fn new(kind: FrameErrorKind, looks_like: Option<LooksLike>, header: &[u8], offset: usize) -> Self {
        Self { kind, looks_like, header: header.to_vec(), offset }
    }

    /// The bytes at which the stream lost its place: as many as a header of the configured format has, from 1 to 16,
    /// and nothing of what is behind it.
    ///
    /// They are a header only if the peer speaks this format. If it does not, they are whatever it sent there, which may be
    /// of a message: think before you log them.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Those of them that were read as a length.
    fn length(&self) -> &[u8] {
        self.header.get(self.offset..).unwrap_or_default()
    }
}

impl fmt::Debug for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = format_args!("{} bytes", self.header.len());
        f.debug_struct("FrameError")
            .field("kind", &self.kind)
            .field("looks_like", &self.looks_like)
            .field("header", &header)
            .finish()
    }
}

/// What is wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameErrorKind {
    /// The announced length is over `max_message_size`.
    #[error("a message of {len} bytes is announced: at most {max} are allowed")]
    TooLarge {
        /// The announced length, in bytes.
        len: u64,
        /// The limit in force, in bytes.
        max: u64,
    },
    /// The announced length is below zero. (Only the buffstreams format has a sign.)
    #[error("a length of {len} is announced")]
    Negative {
        /// The announced length.
        len: i64,
    },
    /// The varint has more bytes than its value needs; no Go writer makes one.
    #[error("the length is a varint of {bytes} bytes, longer than its value needs")]
    Overlong {
        /// How many bytes it has.
        bytes: usize,
    },
    /// The varint does not end inside the header.
    #[error("the length is a varint that does not end within {width} bytes")]
    Unterminated {
        /// The longest that it may be, in bytes.
        width: usize,
    },
    /// The varint does not fit in 64 bits.
    #[error("the length is a varint of more than 64 bits")]
    Overflow,
    /// A byte of padding is not zero.
    #[error("byte {offset} of the header is padding and should be zero: it is {byte:#04x}")]
    Padding {
        /// Where in the header, counted from 0.
        offset: usize,
        /// What it is.
        byte: u8,
    },
    /// The length is said to include the header, and is smaller than the header.
    #[error("a length of {len} is announced, which should include the header's {header} bytes")]
    BelowHeader {
        /// The announced length, in bytes.
        len: u64,
        /// The header's own length, in bytes.
        header: usize,
    },
}

/// What bytes look like that the configured format cannot read.
///
/// Mostly that cannot be told, and then nothing is said: a wrong name costs more time than none. Of 1,000 names at most
/// one is wrong, and far fewer of those of a foreign protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LooksLike {
    /// A request or an answer of HTTP/1.
    Http,
    /// HTTP/2 without TLS, which is what gRPC mostly is.
    Http2,
    /// The start of a TLS session, or the alert that ends one.
    Tls,
    /// The greeting of an SSH peer.
    Ssh,
    /// A header of the PROXY protocol, version 1, as a load balancer puts it in front of what it passes on.
    ProxyV1,
    /// A header of the PROXY protocol, version 2.
    ProxyV2,
    /// Redis: a command, or an error of a server.
    Redis,
    /// The greeting of a mail server, or of its client.
    Smtp,
    /// AMQP.
    Amqp,
    /// ZMTP, the protocol of ZeroMQ.
    Zmtp,
    /// An MQTT client.
    Mqtt,
    /// A client of a SOCKS5 proxy.
    Socks5,
    /// A client of PostgreSQL.
    Postgres,
    /// A request to Kafka.
    Kafka,
    /// The five bytes in front of a message of gRPC: 0 or 1, and a big-endian length of four.
    GrpcPrefix,
    /// JSON, with no length in front.
    Json,
    /// Lines of text, with no length in front.
    Text,
    /// The same fixed header in the other byte order.
    OtherByteOrder,
    /// The same fixed header, with a length that includes it: the configured one does not.
    LengthIncludesHeader,
    /// The same fixed header, with a length that does not include it: the configured one does.
    LengthExcludesHeader,
    /// The buffstreams format with another header width: the two ends were given different values of
    /// `max_message_size`.
    BuffstreamsWidth {
        /// The width that would fit, in bytes.
        width: usize,
    },
    /// A fixed length field, big endian.
    FixedBigEndian {
        /// The width that would fit, in bytes.
        width: usize,
    },
    /// A fixed length field, little endian.
    FixedLittleEndian {
        /// The width that would fit, in bytes.
        width: usize,
    },
    /// Protobuf's own varint delimiter.
    Varint,
    /// The handshake of an acknowledged session: the other end has [`Config::session`](crate::Config::session), and
    /// this one has not.
    Session,
    /// Frames of the configured format, where a TLS session should begin.
    #[cfg(feature = "tls")]
    WithoutTls,
}

impl fmt::Display for LooksLike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "HTTP",
            Self::Http2 => "HTTP/2",
            Self::Tls => "the start of a TLS session",
            Self::Ssh => "the greeting of an SSH peer",
            Self::ProxyV1 => "a header of the PROXY protocol, version 1",
            Self::ProxyV2 => "a header of the PROXY protocol, version 2",
            Self::Redis => "Redis",
            Self::Smtp => "SMTP",
            Self::Amqp => "AMQP",
            Self::Zmtp => "ZMTP, the protocol of ZeroMQ",
            Self::Mqtt => "an MQTT client",
            Self::Socks5 => "a client of a SOCKS5 proxy",
            Self::Postgres => "a client of PostgreSQL",
            Self::Kafka => "a request to Kafka",
            Self::GrpcPrefix => "the five bytes in front of a message of gRPC",
            Self::Json => "JSON with no length in front",
            Self::Text => "lines of text with no length in front",
            Self::OtherByteOrder => "the other byte order",
            Self::LengthIncludesHeader => "a length that includes the header",
            Self::LengthExcludesHeader => "a length that does not include the header",
            Self::Varint => "protobuf's varint delimiter",
            Self::Session => "the handshake of an acknowledged session: is Config::session set at both ends?",
            #[cfg(feature = "tls")]
            Self::WithoutTls => "frames of this format without TLS",
            Self::BuffstreamsWidth { width } => {
                return write!(f, "a buffstreams header of {width} bytes: is max_message_size the same at both ends?");
            }
            Self::FixedBigEndian { width } => return write!(f, "a big-endian length of {width} bytes"),
            Self::FixedLittleEndian { width } => return write!(f, "a little-endian length of {width} bytes"),
        })
    }
}

/// Prints bytes as `16 03 01`.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")?;
        }
        Ok(())
    }
}

/// Prints `; they look like …`, or nothing.
pub(super) struct Hint<'a>(pub(super) &'a Option<LooksLike>);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(looks_like) => write!(f, "; they look like {looks_like}"),
            None => Ok(()),
        }
    }
}
