//! The messages that are sent: built before the clock starts, and the same for every system.

use bytes::Bytes;
use prost::Message;

use crate::plan::{Form, Trial};

/// The last byte of each message: a message that was cut, or put together from two, ends with another.
pub(crate) const MARKER: u8 = 0xa5;
/// How many bytes of different messages there are, at the most: they should not fall out of every cache.
const TOTAL: usize = 4 << 20;

/// What the Go library's benchmark sends: 110 bytes of Protocol Buffers.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Note {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(fixed64, tag = "2")]
    pub(crate) number: u64,
    #[prost(int32, tag = "3")]
    kind: i32,
    #[prost(string, tag = "4")]
    text: String,
}

impl Note {
    fn of_size(number: u64, size: usize) -> Vec<u8> {
        let mut note = Self { name: "TestMessage".into(), number, kind: 3, text: String::new() };
        // The text's own tag and length are two bytes, as long as it is shorter than 128.
        note.text = "x".repeat(size - note.encoded_len() - 2);
        note.encode_to_vec()
    }
}

/// A row of numbered messages, which a sender goes through again and again.
#[derive(Clone, Copy)]
pub(crate) struct Messages {
    row: &'static [u8],
    size: usize,
    mask: u64,
}

impl Messages {
    pub(crate) fn of(trial: &Trial) -> Self {
        let count = count(trial.size);
        let mut row = Vec::with_capacity(trial.size * count as usize);
        for number in 0..count {
            match trial.form() {
                Form::Numbered => {
                    let mut message = vec![b'.'; trial.size];
                    message[..8].copy_from_slice(&number.to_le_bytes());
                    message[trial.size - 1] = MARKER;
                    row.extend_from_slice(&message);
                }
                Form::Protobuf => row.extend_from_slice(&Note::of_size(number, trial.size)),
            }
        }
        // Leaked, so that `Bytes` are made of it without counting references: nothing but the library is measured.
        Self { row: row.leak(), size: trial.size, mask: count - 1 }
    }

    pub(crate) fn slice(&self, number: u64) -> &'static [u8] {
        &self.row[(number & self.mask) as usize * self.size..][..self.size]
    }

    pub(crate) fn bytes(&self, number: u64) -> Bytes {
        Bytes::from_static(self.slice(number))
    }
}

/// How many different messages of this size there are: a power of two, so that the next one is found with a mask.
pub(crate) fn count(size: usize) -> u64 {
    let count = (TOTAL / size).clamp(8, 1024);
    1 << count.ilog2()
}

/// A message that says when it should have been sent.
pub(crate) fn stamp(message: &mut [u8], number: u64, due: u64) {
    let number = number & (count(message.len()) - 1);
    message[..8].copy_from_slice(&number.to_le_bytes());
    message[8..16].copy_from_slice(&due.to_le_bytes());
    if let Some(last) = message.last_mut() {
        *last = MARKER;
    }
}

/// When a stamped message should have been sent.
pub(crate) fn due(message: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*message.get(8..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_the_size_of_the_go_benchmark() {
        for number in [0, 1, u64::MAX] {
            let note = Note::of_size(number, 110);
            assert_eq!(note.len(), 110);
            assert_eq!(Note::decode(&note[..]).unwrap().number, number);
        }
    }
}
