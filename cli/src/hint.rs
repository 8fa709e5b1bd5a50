//! What to do about an error: which option to change.

use std::io::ErrorKind;

use buffstreams::{ConfigError, Error, FrameErrorKind, HandshakeErrorKind, Limit, LooksLike, TlsError};

use crate::format::{Fixed, Format};
use crate::settings::Settings;

/// What to do about an error of the library.
pub(crate) fn of(error: &Error, settings: &Settings) -> Option<String> {
    match error {
        Error::Config(error) => of_config(error),
        Error::Frame(error) => of_header(&error.kind, error.looks_like, settings),
        Error::Truncated { looks_like, .. } => looks_like.and_then(|looks_like| of_look(looks_like, settings)),
        Error::MessageTooLarge { len, .. } => Some(format!("allow longer messages, at both ends: --max {len}")),
        Error::Bind { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            Some("another program listens there: choose another port, or 0 to have the system choose".into())
        }
        Error::Bind { source, .. } | Error::Dial { source, .. } if source.kind() == ErrorKind::InvalidInput => {
            Some("an address is HOST:PORT, :PORT or unix:PATH".into())
        }
        Error::Dial { source, .. } if source.kind() == ErrorKind::ConnectionRefused => {
            Some("nobody listens there: `buffstreams listen` does".into())
        }
        Error::DialTimeout { .. } => Some("allow more time: --dial-timeout TIME".into()),
        Error::Timeout { what, .. } => of_limit(*what),
        Error::NotSent { source, .. } => of(source, settings),
        Error::Tls { source, .. } => of_tls(source, settings),
        Error::Handshake { kind, .. } => of_handshake(kind, settings),
        Error::Read(_) | Error::Write(_) => Some("have broken connections opened again: --reconnect 100ms..10s".into()),
        _ => None,
    }
}

/// What to do about a setting that cannot work.
pub(crate) fn of_config(error: &ConfigError) -> Option<String> {
    let option = match error {
        ConfigError::Zero { name, .. } | ConfigError::Time { name, .. } => match *name {
            "max_message_size" => "--max".to_owned(),
            name => format!("--{}", name.replace('_', "-")),
        },
        ConfigError::MessageSize { max, .. } => return Some(format!("lower the limit: --max {max}")),
        ConfigError::TlsKey => "--tls-key".into(),
        ConfigError::TlsServerName { .. } => "--tls-name".into(),
        ConfigError::Pem { what, .. } => match *what {
            "authority" => "--tls-ca".into(),
            "private key" => "--tls-key".into(),
            _ => "--tls-cert".into(),
        },
        _ => return None,
    };
    Some(format!("change {option}"))
}

/// What to do about a limit in time that ran out.
pub(crate) fn of_limit(limit: Limit) -> Option<String> {
    Some(format!("allow more time: --{} TIME, or none", limit.to_string().replace('_', "-")))
}

/// What to do about a header that makes no sense.
pub(crate) fn of_header(kind: &FrameErrorKind, looks_like: Option<LooksLike>, settings: &Settings) -> Option<String> {
    match (looks_like.and_then(|looks_like| of_look(looks_like, settings)), kind) {
        (Some(hint), _) => Some(hint),
        // Of a format with a long length, nearly anything is a large number.
        (None, FrameErrorKind::TooLarge { len, .. }) if *len <= 1 << 30 => {
            Some(format!("allow longer messages, --max {len}; or see what it is: buffstreams inspect --guess"))
        }
        _ => Some("see what it is: buffstreams inspect --guess".into()),
    }
}

/// What to do where there is no session.
pub(crate) fn of_handshake(kind: &HandshakeErrorKind, settings: &Settings) -> Option<String> {
    match kind {
        HandshakeErrorKind::NotASession { looks_like: Some(looks_like), .. } => of_look(*looks_like, settings),
        HandshakeErrorKind::NotASession { .. } | HandshakeErrorKind::NoAnswer => {
            Some("the other end may have no sessions: give it --session, or try without".into())
        }
        HandshakeErrorKind::Limits { theirs, .. } => Some(format!("have the same limit at both ends: --max {theirs}")),
        _ => None,
    }
}

/// What to do about a handshake that failed.
pub(crate) fn of_tls(error: &TlsError, settings: &Settings) -> Option<String> {
    match error {
        TlsError::NotTls { looks_like: Some(looks_like), .. } => of_look(*looks_like, settings),
        TlsError::NotTls { .. } | TlsError::Ended { .. } => {
            Some("the other end may have no TLS: try --tls=false".into())
        }
        TlsError::UnknownIssuer => Some("name the authority that signed it: --tls-ca FILE".into()),
        TlsError::WrongName { presented, .. } => {
            let name = presented.first().map_or("NAME", String::as_str);
            Some(format!("name the one that it is for: --tls-name {name}"))
        }
        TlsError::NoCertificate => Some("show a certificate: --tls-cert FILE --tls-key FILE".into()),
        TlsError::Timeout { .. } => Some("allow more time: --dial-timeout TIME".into()),
        _ => None,
    }
}

/// What to do about bytes that look like something else.
pub(crate) fn of_look(looks_like: LooksLike, settings: &Settings) -> Option<String> {
    let configured = settings.format();
    let format = match (looks_like, configured) {
        (LooksLike::FixedBigEndian { width }, _) => Format::Fixed(Fixed::new(width as u8, false)),
        (LooksLike::FixedLittleEndian { width }, _) => Format::Fixed(Fixed::new(width as u8, true)),
        (LooksLike::OtherByteOrder, Format::Fixed(fixed)) => {
            Format::Fixed(Fixed { little_endian: !fixed.little_endian, ..fixed })
        }
        (LooksLike::LengthIncludesHeader, Format::Fixed(fixed)) => {
            Format::Fixed(Fixed { includes_header: true, ..fixed })
        }
        (LooksLike::LengthExcludesHeader, Format::Fixed(fixed)) => {
            Format::Fixed(Fixed { includes_header: false, ..fixed })
        }
        (LooksLike::GrpcPrefix, _) => Format::Fixed(Fixed { offset: 1, ..Fixed::new(4, false) }),
        (LooksLike::Varint, _) => Format::Varint,
        (LooksLike::BuffstreamsWidth { width }, _) => {
            let format = if configured == Format::Buffstreams { "" } else { "--format buffstreams " };
            let max = largest_of_width(width);
            return Some(format!(
                "looks like buffstreams with a header of {width} bytes: try {format}--max {max}, or what the other end has"
            ));
        }
        (LooksLike::Tls, _) => {
            return Some("looks like TLS: try --tls, and to listen --tls-cert FILE --tls-key FILE".into());
        }
        (LooksLike::Session, _) => return Some("looks like a session: try --session".into()),
        (LooksLike::WithoutTls, _) => return Some("looks like this format without TLS: try --tls=false".into()),
        (LooksLike::Json | LooksLike::Text, _) => {
            return Some("looks like text without lengths: `buffstreams send` frames lines".into());
        }
        (other, _) => return Some(format!("looks like {other}: the other end is another program")),
    };
    Some(format!("looks like {format}: try --format {format}"))
}

/// The largest `max_message_size` with a header of so many bytes in the format buffstreams.
pub(crate) fn largest_of_width(width: usize) -> u64 {
    (1_u64 << (8 * width.saturating_sub(1)).clamp(8, 55)) - 1
}
