//! Arbitrary messages into a transport that takes what it likes and breaks where it likes: what it took, decoded, and
//! what the writer gives back are together what was sent, once each and in order.

#![no_main]

mod common;
#[allow(dead_code)] // Half of it is for the other target.
#[path = "../../tests/it/script.rs"]
mod script;

use arbitrary::Arbitrary;
use std::io::ErrorKind;

use buffstreams::wire::Decoder;
use buffstreams::{Bytes, Config, Error, WireFormat, Writer};
use futures::SinkExt;
use libfuzzer_sys::fuzz_target;

use common::Format;
use script::{Target, Write, drive, poll_times};

#[derive(Debug, Arbitrary)]
struct Input {
    format: Format,
    max: u16,
    turns: Vec<Turn>,
    steps: Vec<Step>,
    breaks: bool,
}

/// What the program does with the sink.
#[derive(Debug, Arbitrary)]
enum Turn {
    Feed {
        first: u8,
        len: u16,
    },
    /// Feeds up to so many messages of the same few bytes.
    Burst {
        len: u8,
        times: u8,
    },
    Flush {
        polls: u8,
    },
}

/// What the transport does.
#[derive(Debug, Arbitrary)]
enum Step {
    Take(u16),
    Pending,
    Interrupted,
}

fuzz_target!(|input: Input| {
    let format = WireFormat::from(input.format);
    let max = usize::from(input.max);
    let config = Config::new().wire_format(format).max_message_size(max);
    let steps = input.steps.iter().map(|step| match step {
        // Taking nothing is a failure of its own.
        Step::Take(n) => Write::Take(usize::from(*n).max(1)),
        Step::Pending => Write::Pending,
        Step::Interrupted => Write::Error(ErrorKind::Interrupted),
    });
    let end = input.breaks.then_some(Write::Error(ErrorKind::BrokenPipe));
    let target = Target::new(steps.chain(end));
    let Ok(mut writer) = Writer::new(target.clone(), &config) else { return };

    let mut sent = Vec::new();
    for turn in input.turns.iter().take(64) {
        match turn {
            Turn::Feed { first, len } => send(&mut writer, &mut sent, message(*first, usize::from(*len))),
            Turn::Burst { len, times } => {
                for i in 0..*times {
                    send(&mut writer, &mut sent, message(i, usize::from(*len)));
                }
            }
            Turn::Flush { polls } => drop(poll_times(writer.flush(), usize::from(*polls))),
        }
    }
    let flushed = drive(writer.flush());
    let unsent = writer.into_unsent();
    assert!(flushed.is_err() || unsent.is_empty(), "a flush left something behind");
    assert!(flushed.is_ok() || input.breaks, "{flushed:?}");

    let decoder = Decoder::new(format, max).expect("the writer took this configuration");
    let mut taken = Bytes::copy_from_slice(&target.log().taken);
    let mut accounted = Vec::new();
    while let Some(message) = decoder.decode(&mut taken).expect("it wrote no frame") {
        accounted.push(message);
    }
    accounted.extend(unsent);
    assert!(accounted == sent, "{} messages of {}", accounted.len(), sent.len());
});

fn message(first: u8, len: usize) -> Bytes {
    (0..len).map(|i| first.wrapping_add(i as u8)).collect()
}

fn send(writer: &mut Writer<Target>, sent: &mut Vec<Bytes>, message: Bytes) {
    match drive(writer.feed(message.clone())) {
        Ok(()) => sent.push(message),
        // It is too large, or the transport broke: it was not accepted.
        Err(error @ (Error::MessageTooLarge { .. } | Error::NotWritten { .. } | Error::Closed { .. })) => {
            assert!(error.into_unsent() == Some(message), "another message came back");
        }
        Err(error) => panic!("{error:?}"),
    }
}
