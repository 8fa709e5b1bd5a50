//! Arbitrary bytes, in an arbitrary format: never a panic, and the same messages and the same end however the bytes are
//! split.

#![no_main]

mod common;
#[allow(dead_code)] // Half of it is for the other target.
#[path = "../../tests/it/script.rs"]
mod script;

use arbitrary::Arbitrary;
use buffstreams::wire::Decoder;
use buffstreams::{Bytes, Config, Error, Reader, WireFormat};
use futures::StreamExt;
use libfuzzer_sys::fuzz_target;

use common::Format;
use script::{Source, drive};

#[derive(Debug, Arbitrary)]
struct Input {
    format: Format,
    max: Max,
    pieces: Vec<u16>,
    /// Repeats the wire, so that few bytes become frames of more than one read.
    repeat: u8,
    wire: Vec<u8>,
}

#[derive(Debug, Arbitrary)]
enum Max {
    Small(u16),
    Any(usize),
    None,
}

/// How a wire ends: what the decoder and the reader must agree on.
#[derive(Debug, PartialEq)]
enum End {
    Clean,
    Inside { got: usize },
    Invalid(buffstreams::FrameErrorKind),
}

fuzz_target!(|input: Input| {
    let format = WireFormat::from(input.format);
    let max = match input.max {
        Max::Small(max) => max.into(),
        Max::Any(max) => max,
        Max::None => usize::MAX,
    };
    let wire = input.wire.repeat(1 + usize::from(input.repeat));
    let Ok(decoder) = Decoder::new(format, max) else { return };
    let config = Config::new().wire_format(format).max_message_size(max);

    let whole = decode(decoder, &wire);
    assert!(whole.0.iter().all(|message| message.len() <= decoder.max_message_size()));
    assert!(read(Source::whole(&wire), &config) == whole, "in one piece");
    let pieces: Vec<usize> = input.pieces.iter().map(|n| usize::from(*n)).collect();
    // A megabyte in single bytes takes long and shows nothing that a few kilobytes do not.
    let polls = wire.len() * pieces.len() / pieces.iter().sum::<usize>().max(1);
    if !pieces.is_empty() && polls < 20_000 {
        assert!(read(Source::pieces(&wire, &pieces), &config) == whole, "in pieces of {pieces:?}");
    }
});

fn decode(decoder: Decoder, wire: &[u8]) -> (Vec<Bytes>, End) {
    let mut input = Bytes::copy_from_slice(wire);
    let mut messages = Vec::new();
    loop {
        match decoder.decode(&mut input) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) if input.is_empty() => return (messages, End::Clean),
            Ok(None) => return (messages, End::Inside { got: input.len() }),
            Err(error) => {
                // Its text is made for every error there can be.
                assert!(!error.to_string().is_empty() && error.header().len() <= 16);
                return (messages, End::Invalid(error.kind));
            }
        }
    }
}

fn read(source: Source, config: &Config) -> (Vec<Bytes>, End) {
    let mut reader = Reader::new(source, config).expect("the decoder took this configuration");
    let mut messages = Vec::new();
    let mut end = End::Clean;
    while let Some(item) = drive(reader.next()) {
        match item {
            Ok(message) => messages.push(message),
            Err(Error::Frame(error)) => end = End::Invalid(error.kind),
            Err(Error::Truncated { got, want, .. }) => {
                assert!(want > got, "{got} of {want}");
                end = End::Inside { got };
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    (messages, end)
}
