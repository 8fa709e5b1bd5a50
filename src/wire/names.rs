//! The first bytes of what else is sent to a port.
//!
//! Each is long and odd enough that frames, of any format and with any content, start with it in fewer than one of a thousand
//! connections. Where it is written down is said beside it.

use std::iter;

use crate::error::LooksLike;

/// How many bytes of a longer word are enough: it may come in pieces.
const ENOUGH: usize = 5;
/// How far into the connection text is looked for, in bytes.
pub(super) const TEXT: usize = 1024;
/// The shortest first line of a text, in bytes: a protobuf message starts with a newline where its first field is a text.
const LINE: usize = 4;

/// Whether bytes are the start of a connection in one protocol.
type Test = fn(&[u8]) -> bool;

const WORDS: [(&[u8], LooksLike); 12] = [
    // https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, 2.1 and 2.2
    (b"PROXY TCP", LooksLike::ProxyV1),
    (b"PROXY UNKNOWN", LooksLike::ProxyV1),
    (b"\r\n\r\n\0\r\nQUIT\n", LooksLike::ProxyV2),
    // RFC 9113, 3.4
    (b"PRI * HTTP/2.0", LooksLike::Http2),
    // RFC 9112, 4
    (b"HTTP/1.", LooksLike::Http),
    // RFC 4253, 4.2
    (b"SSH-", LooksLike::Ssh),
    // RFC 5321, 4.1.1.1
    (b"EHLO ", LooksLike::Smtp),
    (b"HELO ", LooksLike::Smtp),
    // AMQP 0-9-1, 4.2.2; AMQP 1.0, 2.2: behind the name comes 0, or 2 for TLS, or 3 for SASL
    (b"AMQP\0", LooksLike::Amqp),
    (b"AMQP\x02", LooksLike::Amqp),
    (b"AMQP\x03", LooksLike::Amqp),
    // docs/session-protocol.md
    (b"\xf5buffstreams", LooksLike::Session),
];

/// https://www.iana.org/assignments/http-methods, without HTTP/2's PRI, and QUERY, which is on its way there
const METHODS: &str = "ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE \
    MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PROPFIND PROPPATCH PUT QUERY \
    REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE UPDATEREDIRECTREF VERSION-CONTROL";

/// The protocol that a connection starts in, by its first bytes; `all` says that they are all that was received.
pub(super) fn protocol(start: &[u8], all: bool) -> Option<LooksLike> {
    if let Some((_, name)) = WORDS.iter().find(|(word, _)| begins(start, word)) {
        return Some(*name);
    }
    let tests: [(Test, LooksLike); 9] = [
        (is_request, LooksLike::Http),
        (is_settings, LooksLike::Http2),
        (is_tls, LooksLike::Tls),
        (is_redis, LooksLike::Redis),
        (is_smtp, LooksLike::Smtp),
        (is_zmtp, LooksLike::Zmtp),
        (is_mqtt, LooksLike::Mqtt),
        (is_postgres, LooksLike::Postgres),
        (is_kafka, LooksLike::Kafka),
    ];
    let found = tests.iter().find(|(test, _)| test(start)).map(|(_, name)| *name);
    found.or_else(|| (all && is_socks(start)).then_some(LooksLike::Socks5))
}

/// The kind of text that a connection starts in, if it does.
pub(super) fn text(start: &[u8]) -> Option<LooksLike> {
    if is_json(start) {
        Some(LooksLike::Json)
    } else if is_text(start) {
        Some(LooksLike::Text)
    } else {
        None
    }
}

/// Whether the bytes begin with the word, or the word with the bytes.
fn begins(bytes: &[u8], word: &[u8]) -> bool {
    let len = bytes.len().min(word.len());
    len >= ENOUGH.min(word.len()) && bytes[..len] == word[..len]
}

/// RFC 9112, 3: a method, and a space.
fn is_request(bytes: &[u8]) -> bool {
    let method = bytes.iter().position(|byte| *byte == b' ').map(|end| &bytes[..end]);
    method.is_some_and(|method| METHODS.split(' ').any(|name| name.as_bytes() == method))
}

/// RFC 9113, 4.1 and 6.5: with these, six bytes each, a server starts.
fn is_settings(bytes: &[u8]) -> bool {
    matches!(bytes, [0, 0, 6..=60, 4, 0, 0, 0, 0, 0, 0, 1..=9, ..] if bytes[2].is_multiple_of(6))
}

/// RFC 8446, 4, 5.1 and 6: a record with a hello, of up to 64 KiB, or one with the alert that a server answers to a stranger.
fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 3, 1..=3, 0..=0x40, _, 1 | 2, 0, ..] | [0x15, 3, 1..=3, 0, 2, 1 | 2, ..])
}

/// A request is an array of strings, and a stranger gets an error: https://redis.io/docs/latest/develop/reference/protocol-spec/
fn is_redis(bytes: &[u8]) -> bool {
    let replies: [&[u8]; 4] = [b"+PONG\r\n", b"-ERR unknown ", b"-NOAUTH ", b"-DENIED Redis"];
    match bytes {
        [b'*', b'1'..=b'9', b'\r', b'\n', b'$', ..] => true,
        [b'*', b'1'..=b'9', b'0'..=b'9', b'\r', b'\n', b'$', ..] => true,
        _ => replies.iter().any(|reply| bytes.starts_with(reply)),
    }
}

/// RFC 5321, 4.2: what a server says first. FTP starts with the same number, so that alone does not do.
fn is_smtp(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    (line.starts_with(b"220 ") || line.starts_with(b"220-")) && line.windows(4).any(|word| word == b"SMTP")
}

/// ZMTP 3.1 (https://rfc.zeromq.org/spec/37), 2.2: a signature of ten bytes, in which older peers find a length.
fn is_zmtp(bytes: &[u8]) -> bool {
    matches!(bytes, [0xff, 0, 0, 0, 0, 0, 0, 0, 0 | 1, 0x7f, ..])
}

/// MQTT 5.0 and 3.1.1, 3.1.2.1; MQTT 3.1: CONNECT, a varint of up to four bytes, and the protocol's name.
fn is_mqtt(bytes: &[u8]) -> bool {
    let Some((0x10, rest)) = bytes.split_first() else { return false };
    let Some(end) = rest.iter().take(4).position(|byte| *byte < 0x80) else { return false };
    rest[end + 1..].starts_with(b"\0\x04MQTT") || rest[end + 1..].starts_with(b"\0\x06MQIsdp")
}

/// The messages without a type at https://www.postgresql.org/docs/current/protocol-message-formats.html: a length, and a
/// version or the code of a request.
fn is_postgres(bytes: &[u8]) -> bool {
    match bytes {
        [0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f | 0x30, ..] | [0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, ..] => true,
        // Version 3, and the name of a parameter.
        [0, 0, high @ 0..=0x27, low, 0, 3, _, _, b'a'..=b'z' | b'_', ..] => [*high, *low] > [0, 8],
        _ => false,
    }
}

/// https://kafka.apache.org/protocol#protocol_messages: a size, what is asked for, its version, any number, and the client's
/// name with its length.
fn is_kafka(bytes: &[u8]) -> bool {
    match bytes {
        [0, 0, high, low, 0, 0..=100, 0, 0..=30, _, _, _, _, 0, len, name @ ..] => {
            let name = &name[..name.len().min(usize::from(*len))];
            let size = usize::from(u16::from_be_bytes([*high, *low]));
            *len > 0 && size >= 10 + usize::from(*len) && !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
        }
        _ => false,
    }
}

/// RFC 1928, 3: how many methods, the methods, and then the client waits.
fn is_socks(bytes: &[u8]) -> bool {
    matches!(bytes, [5, 1, 0 | 2] | [5, 2, 0, 1 | 2] | [5, 3, 0, 1, 2])
}

/// RFC 8259: an object, as far as its first name and the colon.
fn is_json(bytes: &[u8]) -> bool {
    let Some((b'{', rest)) = bytes.split_first() else { return false };
    let Some((b'"', rest)) = rest.trim_ascii_start().split_first() else { return false };
    let Some(end) = rest.iter().position(|byte| *byte == b'"') else { return false };
    let (name, behind) = (&rest[..end], &rest[end + 1..]);
    name.iter().all(|byte| *byte >= b' ') && behind.trim_ascii_start().first() == Some(&b':')
}

/// Lines of ASCII, and no frames of text.
fn is_text(bytes: &[u8]) -> bool {
    let is_printed = |byte: &u8| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n');
    let Some(line) = bytes.iter().position(|byte| *byte == b'\n') else { return false };
    if line < LINE || !bytes.iter().all(is_printed) {
        return false;
    }
    // A short length is a letter as well. Then each newline may be one, or the lines end where the frames do.
    let lengths = || iter::successors(Some(0), |at| Some(at + 1 + usize::from(*bytes.get(*at)?)));
    let is_length = |place: usize| lengths().take_while(|at| *at <= place).any(|at| at == place);
    let are_lengths = (line..bytes.len()).all(|at| bytes[at] != b'\n' || is_length(at));
    let ends_a_frame = lengths().nth(1).is_some_and(|second| bytes.get(second - 1) == Some(&b'\n'));
    !are_lengths && !ends_a_frame && !is_json(&bytes[1..]) && !is_json(&bytes[2..])
}
