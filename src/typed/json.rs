//! JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Error;

use super::codec::{Codec, codec_of};
use crate::wire::Buffer;

codec_of! {
    /// JSON, by [`serde_json`], of any type that serde can serialize. Feature `json`.
    ///
    /// A message is one value, written without white space; one with white space around it is read as well.
    Json
}

impl<T: Serialize + DeserializeOwned> Codec<T> for Json<T> {
    type Error = Error;

    #[inline]
    fn encode(&self, message: &T, into: &mut Buffer<'_>) -> Result<(), Error> {
        serde_json::to_writer(into, message)
    }

    #[inline]
    fn decode(&self, message: &[u8]) -> Result<T, Error> {
        serde_json::from_slice(message)
    }
}
