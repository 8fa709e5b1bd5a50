//! Postcard.

use postcard::ser_flavors::Flavor;
use postcard::{Deserializer, Error, serialize_with_flavor};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, codec_of};
use super::nesting::Depth;
use crate::wire::Buffer;

/// How deep a message may be nested: about as deep as in JSON and in Protocol Buffers.
const MAX_DEPTH: usize = 128;

codec_of! {
    /// The compact binary format of [`postcard`], of any type that serde can serialize. Feature `postcard`.
    ///
    /// What is left over behind a message is an error. So is a message that is nested more than 128 levels deep, where each option,
    /// list, map, tuple, struct and enum is a level: a type that contains itself would let a peer overflow the stack.
    ///
    /// A list whose elements take no bytes, such as a `Vec<()>`, is as long as a peer says, which may take for ever: no type that is
    /// received should have one.
    Postcard
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard<T> {
    type Error = PostcardError;

    #[inline]
    fn encode(&self, message: &T, into: &mut Buffer<'_>) -> Result<(), PostcardError> {
        serialize_with_flavor(message, Appended(into)).map_err(PostcardError::Encode)
    }

    #[inline]
    fn decode(&self, message: &[u8]) -> Result<T, PostcardError> {
        let (depth, mut deserializer) = (Depth::new(MAX_DEPTH), Deserializer::from_bytes(message));
        let decoded = T::deserialize(depth.limit(&mut deserializer))
            .map_err(|error| if depth.is_exceeded() { PostcardError::TooDeep } else { PostcardError::Decode(error) })?;
        match deserializer.finalize() {
            Ok([]) => Ok(decoded),
            Ok(rest) => Err(PostcardError::LeftOver { bytes: rest.len() }),
            Err(error) => Err(PostcardError::Decode(error)),
        }
    }
}

/// What [`Postcard`] fails with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostcardError {
    /// The message cannot be encoded, or does not fit.
    #[error(transparent)]
    Encode(Error),
    /// It is no such message.
    #[error(transparent)]
    Decode(Error),
    /// It is nested too deep.
    #[error("it is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// The message ends before the bytes do.
    #[error("{bytes} bytes are left over behind it")]
    #[non_exhaustive]
    LeftOver {
        /// How many there are.
        bytes: usize,
    },
}

/// A buffer, as postcard writes to it.
struct Appended<'a, 'b>(&'a mut Buffer<'b>);

impl Flavor for Appended<'_, '_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> Result<(), Error> {
        self.try_extend(&[byte])
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.0.put(bytes).map_err(|_| Error::SerializeBufferFull)
    }

    fn finalize(self) -> Result<(), Error> {
        Ok(())
    }
}
