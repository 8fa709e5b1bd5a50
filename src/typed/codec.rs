//! What turns messages into bytes and back.

use std::io;

use crate::error::{BoxError, Error};
use crate::wire::{Buffer, Output};

/// Turns messages of type `T` into bytes, and back. It knows nothing of headers, which are the [`Config`](crate::Config)'s.
///
/// One codec may serve many connections at once, so both methods take `&self`. They must not block: they run where the sink or
/// the stream is polled, or in the task of a connection.
///
/// ```
/// use buffstreams::typed::{Buffer, BufferFull, Codec};
///
/// /// Numbers, as eight bytes.
/// struct Numbers;
///
/// #[derive(Debug, thiserror::Error)]
/// enum NotANumber {
///     #[error("{0} bytes, and not 8")]
///     Length(usize),
///     #[error(transparent)]
///     Full(#[from] BufferFull),
/// }
///
/// impl Codec<u64> for Numbers {
///     type Error = NotANumber;
///
///     fn encode(&self, number: &u64, into: &mut Buffer<'_>) -> Result<(), NotANumber> {
///         Ok(into.put(&number.to_be_bytes())?)
///     }
///
///     fn decode(&self, message: &[u8]) -> Result<u64, NotANumber> {
///         let bytes = message.try_into().map_err(|_| NotANumber::Length(message.len()))?;
///         Ok(u64::from_be_bytes(bytes))
///     }
/// }
/// ```
pub trait Codec<T> {
    /// Why a message could not be encoded or decoded.
    type Error: Into<BoxError>;

    /// Writes the message behind those before it. After an error or a panic, nothing of it is sent.
    fn encode(&self, message: &T, into: &mut Buffer<'_>) -> Result<(), Self::Error>;

    /// Reads the message back: all of `message`, which may be anything that a peer has sent.
    fn decode(&self, message: &[u8]) -> Result<T, Self::Error>;
}

/// Puts a message behind the others. Where that fails, nothing else changes.
#[inline]
pub(crate) fn encode<T, C: Codec<T>>(codec: &C, message: &T, output: &mut Output) -> Result<(), Error> {
    let mut buffer = Buffer::new(output);
    let encoded = codec.encode(message, &mut buffer);
    match (encoded, buffer.is_full()) {
        (Ok(()), None) => {
            buffer.accept();
            Ok(())
        }
        (_, Some(full)) => Err(Error::Encode { source: full.into() }),
        (Err(error), None) => Err(Error::Encode { source: error.into() }),
    }
}

impl io::Write for Buffer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.put(bytes).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A codec of nothing but the type that it is for.
#[cfg(any(feature = "prost", feature = "postcard", feature = "json"))]
macro_rules! codec_of {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        pub struct $name<T>(std::marker::PhantomData<fn(T) -> T>);

        impl<T> $name<T> {
            /// The codec of messages of type `T`.
            pub const fn new() -> Self {
                Self(std::marker::PhantomData)
            }
        }

        impl<T> Clone for $name<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $name<T> {}

        impl<T> Default for $name<T> {
            fn default() -> Self {
                Self::new()
            }
        }

        impl<T> std::fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

#[cfg(any(feature = "prost", feature = "postcard", feature = "json"))]
pub(crate) use codec_of;
