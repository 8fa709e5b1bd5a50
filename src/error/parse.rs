//! A text that is not what it should be.

/// A text that is no [`WireFormat`](crate::WireFormat).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseWireFormatError {
    /// It is no format's name.
    #[error(
        "{name:?} is no wire format: it is buffstreams, varint, u8, u16_be, u16_le, u24_be, u32_be, u32_le, u64_be or fixed(…)"
    )]
    #[non_exhaustive]
    UnknownName {
        /// The whole text.
        name: String,
    },
    /// What begins with `fixed(` does not end with a bracket.
    #[error("fixed(… is not closed: there is no ) at its end")]
    NotClosed,
    /// The first part of `fixed(…)` is no width of a length.
    #[error("{width:?} is no width of a length: the first part of fixed(…) is from 1 to 8, in bytes")]
    #[non_exhaustive]
    Width {
        /// What stands there.
        width: String,
    },
    /// The offset of `fixed(…)` cannot be one.
    #[error("{offset:?} is no offset of a length: it is from 0 to {max}, in bytes")]
    #[non_exhaustive]
    Offset {
        /// What stands there.
        offset: String,
        /// The largest offset there is.
        max: u8,
    },
    /// A part of `fixed(…)` that means nothing.
    #[error("{part:?} is no part of fixed(…): they are be, le, offset=2 and includes")]
    #[non_exhaustive]
    UnknownPart {
        /// The part.
        part: String,
    },
    /// `fixed(…)` says a thing twice, or both byte orders.
    #[error("{part:?} has been said before in fixed(…)")]
    #[non_exhaustive]
    Twice {
        /// The second of the two.
        part: String,
    },
}
