//! What the wire tests have in common: every format, messages to send, and plain ways to encode and to read them.

use buffstreams::wire::{Decoder, Encoder};
use buffstreams::{Bytes, Config, Error, Reader, WireFormat};
use futures::{AsyncRead, StreamExt};

use crate::script::{Source, drive};

use crate::net::defaults;

/// A message of this length, whose byte `i` is `i % 251`: the pattern of the captured headers.
pub(crate) fn body(len: usize) -> Bytes {
    (0..=250).cycle().take(len).collect::<Vec<u8>>().into()
}

/// A message of each of these lengths.
pub(crate) fn bodies(lengths: &[usize]) -> Vec<Bytes> {
    lengths.iter().map(|len| body(*len)).collect()
}

/// The formats that have a name.
pub(crate) fn presets() -> Vec<WireFormat> {
    vec![
        WireFormat::buffstreams(),
        WireFormat::varint(),
        WireFormat::u8(),
        WireFormat::u16_be(),
        WireFormat::u16_le(),
        WireFormat::u24_be(),
        WireFormat::u32_be(),
        WireFormat::u32_le(),
        WireFormat::u64_be(),
    ]
}

/// The presets, and fixed headers of each width, in both orders, with and without an offset and the header counted.
pub(crate) fn formats() -> Vec<WireFormat> {
    let mut formats = presets();
    for width in 1..=8 {
        for offset in [0, 1, 8] {
            for little in [false, true] {
                for includes in [false, true] {
                    let mut fixed = WireFormat::fixed(width).offset(offset);
                    fixed = if little { fixed.little_endian() } else { fixed };
                    fixed = if includes { fixed.length_includes_header() } else { fixed };
                    formats.push(fixed.into());
                }
            }
        }
    }
    formats
}

pub(crate) fn config(format: impl Into<WireFormat>, max: usize) -> Config {
    defaults().wire_format(format).max_message_size(max)
}

/// The wire of these messages, as [`Encoder`] writes it.
pub(crate) fn encode(format: impl Into<WireFormat>, max: usize, messages: &[Bytes]) -> Vec<u8> {
    let encoder = Encoder::new(format, max).unwrap();
    let mut wire = Vec::new();
    for message in messages {
        encoder.encode(message, &mut wire).unwrap();
    }
    wire
}

/// The whole messages of a wire, as [`Decoder`] takes them, and what is left over.
pub(crate) fn decode(format: impl Into<WireFormat>, max: usize, wire: &[u8]) -> (Vec<Bytes>, usize) {
    let decoder = Decoder::new(format, max).unwrap();
    let mut input = Bytes::copy_from_slice(wire);
    let mut messages = Vec::new();
    while let Some(message) = decoder.decode(&mut input).unwrap() {
        messages.push(message);
    }
    (messages, input.len())
}

/// Reads to the end: the messages, and the error that ended them, if one did.
pub(crate) fn read_all<R: AsyncRead + Unpin>(source: R, config: &Config) -> (Vec<Bytes>, Option<Error>) {
    let mut reader = Reader::new(source, config).unwrap();
    let mut messages = Vec::new();
    let mut error = None;
    while let Some(item) = drive(reader.next()) {
        match item {
            Ok(message) => messages.push(message),
            Err(told) => assert!(error.replace(told).is_none(), "a second error"),
        }
    }
    assert!(drive(reader.next()).is_none(), "something behind the end");
    (messages, error)
}

/// Reads a whole wire that has no error in it.
pub(crate) fn read_clean(source: Source, config: &Config) -> Vec<Bytes> {
    let (messages, error) = read_all(source, config);
    assert!(error.is_none(), "{error:?}");
    messages
}
