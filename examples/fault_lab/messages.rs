//! The messages of a run: of many lengths, each with its id and a checksum.

use buffstreams::Bytes;
use fastrand::Rng;

use crate::fault_lab::books::Id;

/// The bytes before a message's body: its checksum, its producer, its number.
pub(crate) const HEAD: usize = 16;
/// The longest body is a little less than 4 KiB.
pub(crate) const MAX_MESSAGE: usize = 4096;
/// The mean length of a frame: the logarithm of a length is evenly spread, so that small messages are common.
pub(crate) const MEAN_FRAME: u64 = 740;

/// Bytes for so many more than one message.
pub(crate) fn noise(rng: &mut Rng, more: usize) -> Vec<u8> {
    std::iter::repeat_with(|| rng.u8(..)).take(MAX_MESSAGE + more).collect()
}

/// A message from 16 bytes to 4 KiB, with its id and a checksum.
pub(crate) fn message(id: Id, rng: &mut Rng, noise: &[u8]) -> Bytes {
    let len = (HEAD as f64 * (MAX_MESSAGE as f64 / HEAD as f64).powf(rng.f64())) as usize;
    let from = rng.usize(0..noise.len() - MAX_MESSAGE);
    with_body(id, &noise[from..from + len - HEAD])
}

/// A message with this behind its head.
pub(crate) fn with_body(id: Id, body: &[u8]) -> Bytes {
    let mut message = Vec::with_capacity(HEAD + body.len());
    message.extend_from_slice(&[0; 4]);
    message.extend_from_slice(&id.producer.to_be_bytes());
    message.extend_from_slice(&id.number.to_be_bytes());
    message.extend_from_slice(body);
    let checksum = checksum(&message[4..]);
    message[..4].copy_from_slice(&checksum.to_be_bytes());
    message.into()
}

/// The id of a message, if it is whole.
pub(crate) fn parse(message: &[u8]) -> Option<Id> {
    let (checked, rest) = message.split_first_chunk()?;
    let (producer, body) = rest.split_first_chunk()?;
    let number = body.first_chunk()?;
    let id = Id { producer: u32::from_be_bytes(*producer), number: u64::from_be_bytes(*number) };
    (u32::from_be_bytes(*checked) == checksum(rest)).then_some(id)
}

/// Sees every byte, its place and the length; eight bytes at a time, or it would be what the lab spends its time on.
fn checksum(bytes: &[u8]) -> u32 {
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let (words, rest) = bytes.as_chunks();
    let sum = words.iter().fold(bytes.len() as u64, |sum, word| mix(sum, u64::from_le_bytes(*word)));
    let sum = rest.iter().fold(sum, |sum, byte| mix(sum, u64::from(*byte)));
    (sum ^ (sum >> 32)) as u32
}
