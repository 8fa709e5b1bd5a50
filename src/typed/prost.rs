//! Protocol Buffers.

use ::prost::{DecodeError, EncodeError, Message};

use super::codec::{Codec, codec_of};
use crate::wire::Buffer;

codec_of! {
    /// Messages of Protocol Buffers, as [`prost`](::prost) derives or generates them. Feature `prost`.
    Prost
}

impl<T: Message + Default> Codec<T> for Prost<T> {
    type Error = ProstError;

    #[inline]
    fn encode(&self, message: &T, into: &mut Buffer<'_>) -> Result<(), ProstError> {
        let encoded = message.encode(&mut into.as_buf_mut());
        if let Err(error) = &encoded {
            // It has asked how much room there is, and written nothing.
            let _ = into.reserve(error.required_capacity());
        }
        encoded.map_err(ProstError::Encode)
    }

    #[inline]
    fn decode(&self, message: &[u8]) -> Result<T, ProstError> {
        T::decode(message).map_err(ProstError::Decode)
    }
}

/// What [`Prost`] fails with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProstError {
    /// The message does not fit.
    #[error(transparent)]
    Encode(EncodeError),
    /// It is no such message.
    #[error(transparent)]
    Decode(DecodeError),
}
