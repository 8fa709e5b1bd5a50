//! Postcard.

use postcard::ser_flavors::Flavor;
use postcard::{Error, Result, serialize_with_flavor, take_from_bytes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, codec_of};
use crate::wire::Buffer;

codec_of! {
    /// The compact binary format of [`postcard`], of any type that serde can serialize. Feature `postcard`.
    ///
    /// What is left over behind a message is an error, `DeserializeBadEncoding`. There is no limit on how deep a message may be nested
    /// but its length: a type that contains itself, as a list or a tree does, lets a peer overflow the stack, where
    /// `max_message_size` allows more than a few thousand bytes.
    Postcard
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Postcard<T> {
    type Error = Error;

    #[inline]
    fn encode(&self, message: &T, into: &mut Buffer<'_>) -> Result<()> {
        serialize_with_flavor(message, Appended(into))
    }

    #[inline]
    fn decode(&self, message: &[u8]) -> Result<T> {
        match take_from_bytes(message)? {
            (message, []) => Ok(message),
            (_, _) => Err(Error::DeserializeBadEncoding),
        }
    }
}

/// A buffer, as postcard writes to it.
struct Appended<'a, 'b>(&'a mut Buffer<'b>);

impl Flavor for Appended<'_, '_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> Result<()> {
        self.try_extend(&[byte])
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.put(bytes).map_err(|_| Error::SerializeBufferFull)
    }

    fn finalize(self) -> Result<()> {
        Ok(())
    }
}
