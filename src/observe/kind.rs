//! What a line says of an error.

use std::fmt;

use crate::error::{Error, FrameError};

/// What may be logged of an error or a reason. The figures of a header are left out: where the stream has lost its place,
/// they are a piece of a message.
pub(super) struct Kind<'a, T>(pub(super) &'a T);

impl fmt::Display for Kind<'_, FrameError> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = format!("{:?}", self.0.kind);
        let name = kind.split(' ').next().unwrap_or_default();
        write!(f, "{name}, looks like: {:?}", self.0.looks_like)
    }
}

impl fmt::Display for Kind<'_, Error> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Error::Frame(error) => Kind(error).fmt(f),
            Error::Truncated { .. } => f.write_str("Truncated"),
            Error::Encode { .. } => f.write_str("Encode"),
            Error::Decode { .. } => f.write_str("Decode"),
            Error::NotSent { source, .. } => write!(f, "NotSent {{ source: {} }}", Kind(&**source)),
            other => write!(f, "{other:?}"),
        }
    }
}

/// The same as it is logged.
#[cfg(feature = "tracing")]
pub(super) fn kind<'a, T>(of: &'a T) -> Option<String>
where
    Kind<'a, T>: fmt::Display,
{
    Some(Kind(of).to_string())
}
