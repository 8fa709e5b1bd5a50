//! The reader: the same messages however the bytes arrive, an exact account of a wire that ends too soon.

use std::io::ErrorKind;

use buffstreams::{Bytes, Error, Reader, WireFormat};
use futures::stream::FusedStream;
use futures::{AsyncReadExt, StreamExt};

use crate::samples::{bodies, body, config, encode, formats, read_all, read_clean};
use crate::script::{Read, Source, drive, poll_times};

/// Small messages, an empty one, and a header of more than one varint byte.
const SAMPLE: [usize; 6] = [3, 0, 1, 70, 0, 9];

#[test]
fn a_wire_cut_at_any_byte_ends_clean_between_frames_and_is_truncated_inside_one() {
    for format in formats() {
        let messages = bodies(&SAMPLE);
        let wire = encode(format, 200, &messages);
        // Where each frame ends, and how wide its header is.
        let frames: Vec<(usize, usize)> = (0..messages.len())
            .map(|i| {
                let end = encode(format, 200, &messages[..=i]).len();
                (end, encode(format, 200, &messages[i..=i]).len() - messages[i].len())
            })
            .collect();
        for cut in 0..=wire.len() {
            let whole = frames.iter().take_while(|(end, _)| *end <= cut).count();
            let start = if whole == 0 { 0 } else { frames[whole - 1].0 };
            for pieces in [1, 1000] {
                let (read, error) = read_all(Source::pieces(&wire[..cut], &[pieces]), &config(format, 200));
                assert_eq!(read, messages[..whole], "{format}, cut at {cut}");
                match error {
                    None => assert_eq!(cut, start, "{format}: a clean end inside a frame"),
                    Some(Error::Truncated { got, want, .. }) => {
                        let (end, header) = frames[whole];
                        assert_eq!(got, cut - start, "{format}, cut at {cut}");
                        // Of a varint that is not whole nothing is known but that it goes on.
                        let least = if format == WireFormat::varint() { got + 1 } else { header };
                        assert_eq!(want, if got < header { least } else { end - start }, "{format}, cut at {cut}");
                        assert!(got > 0 && got < want);
                    }
                    Some(error) => panic!("{format}, cut at {cut}: {error:?}"),
                }
            }
        }
    }
}

#[test]
fn a_large_message_cut_anywhere_says_how_much_of_it_came() {
    let wire = encode(WireFormat::u32_be(), 1 << 20, &[body(5), body(1 << 20)]);
    for cut in [9 + 4, 9 + 5, 4096, 65_536, 65_537, 131_072, 700_000, wire.len() - 1] {
        let (read, error) = read_all(Source::pieces(&wire[..cut], &[50_000]), &config(WireFormat::u32_be(), 1 << 20));
        assert_eq!(read, [body(5)]);
        match error {
            Some(Error::Truncated { got, want, .. }) => assert_eq!((got, want), (cut - 9, (1 << 20) + 4)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_split_in_two_and_in_three_gives_the_same_messages() {
    for format in [
        WireFormat::buffstreams(),
        WireFormat::varint(),
        WireFormat::u32_be(),
        WireFormat::fixed(2).offset(3).length_includes_header().into(),
    ] {
        let messages = bodies(&SAMPLE);
        let config = config(format, 200);
        let wire = encode(format, 200, &messages);
        for first in 0..=wire.len() {
            for second in first..=wire.len() {
                assert_eq!(
                    read_clean(Source::split(&wire, &[first, second]), &config),
                    messages,
                    "{format}, cut at {first} and {second}"
                );
            }
        }
    }
}

#[test]
fn one_byte_at_a_time_gives_the_same_messages_in_every_format() {
    for format in formats() {
        let messages = bodies(&SAMPLE);
        let wire = encode(format, 200, &messages);
        assert_eq!(read_clean(Source::pieces(&wire, &[1]), &config(format, 200)), messages, "{format}");
    }
}

#[test]
fn large_messages_among_small_ones_come_back_from_any_pieces() {
    let config = config(WireFormat::buffstreams(), 2 << 20);
    let lengths = [10, 65_531, 65_532, 65_536, 3, 65_537, 0, 131_072, 16_384, 16_380, 7, 1 << 20, 1, 2 << 20, 4096, 0];
    let messages = bodies(&lengths);
    let wire = encode(WireFormat::buffstreams(), 2 << 20, &messages);
    for pieces in
        [&[usize::MAX / 2][..], &[65_536], &[65_535], &[65_537, 1], &[4096], &[1000, 1, 1], &[300_000, 5], &[4, 70_000]]
    {
        assert!(read_clean(Source::pieces(&wire, pieces), &config) == messages, "in pieces of {pieces:?}");
    }
}

#[test]
fn a_large_message_split_near_its_ends_comes_back() {
    let config = config(WireFormat::u32_be(), 1 << 17);
    let messages = bodies(&[20, 1 << 17, 20]);
    let wire = encode(WireFormat::u32_be(), 1 << 17, &messages);
    let edges = (0..60).chain(65_500..65_560).chain(wire.len() - 60..wire.len());
    for cut in edges {
        assert!(read_clean(Source::split(&wire, &[cut]), &config) == messages, "cut at {cut}");
    }
}

#[test]
fn messages_that_are_kept_do_not_change_when_more_is_read() {
    let lengths: Vec<usize> = (0..2000).map(|i| i % 300).chain([70_000, 5, 40_000, 40_000]).collect();
    let messages = bodies(&lengths);
    let wire = encode(WireFormat::u32_le(), 1 << 17, &messages);
    // All of them are alive at the end, in buffers that other messages could have been read over.
    assert!(read_clean(Source::pieces(&wire, &[9000, 1, 33]), &config(WireFormat::u32_le(), 1 << 17)) == messages);
}

#[test]
fn a_poll_takes_what_there_is_and_reading_without_end_yields_to_other_tasks() {
    let wire = encode(WireFormat::u32_be(), 4096, &[body(4000)]);
    // Never pending: after some reads the reader gives way by itself, and asks to be polled again.
    let source = Source::new(wire.iter().map(|byte| Read::Bytes(vec![*byte])));
    let mut reader = Reader::new(source, &config(WireFormat::u32_be(), 4096)).unwrap();
    assert!(poll_times(reader.next(), 1).is_none(), "4004 reads in one poll");
    assert_eq!(drive(reader.next()).unwrap().unwrap(), body(4000));
}

#[test]
fn an_interrupted_read_is_tried_again() {
    let wire = encode(WireFormat::u8(), 255, &bodies(&[3, 4]));
    let script = wire.iter().flat_map(|byte| [Read::Error(ErrorKind::Interrupted), Read::Bytes(vec![*byte])]);
    assert_eq!(read_clean(Source::new(script), &config(WireFormat::u8(), 255)), bodies(&[3, 4]));
}

#[test]
fn a_failed_read_is_told_once_after_the_messages_in_front_of_it() {
    let wire = encode(WireFormat::u8(), 255, &bodies(&[3, 4, 5]));
    for cut in [0, 4, 9, 10, wire.len()] {
        let script =
            [Read::Bytes(wire[..cut].to_vec()), Read::Error(ErrorKind::ConnectionReset), Read::Bytes(wire.clone())];
        let (messages, error) = read_all(Source::new(script), &config(WireFormat::u8(), 255));
        assert_eq!(
            messages,
            bodies(&[3, 4, 5])[..[0, 1, 2, 2, 3][[0, 4, 9, 10, 15].iter().position(|c| *c == cut).unwrap()]]
        );
        match error {
            Some(Error::Read(error)) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_stream_knows_when_it_has_ended() {
    let wire = encode(WireFormat::u8(), 255, &bodies(&[1, 2]));
    let mut reader = Reader::new(Source::whole(&wire), &config(WireFormat::u8(), 255)).unwrap();
    assert!(!reader.is_terminated());
    assert_eq!(drive(reader.next()).unwrap().unwrap(), body(1));
    assert_eq!(drive(reader.next()).unwrap().unwrap(), body(2));
    assert!(!reader.is_terminated(), "the end has not been seen");
    assert!(drive(reader.next()).is_none());
    assert!(reader.is_terminated());
    assert!(drive(reader.next()).is_none());
}

#[test]
fn a_dropped_next_loses_nothing_and_doubles_nothing() {
    let messages = bodies(&[30, 0, 5, 70_000, 1, 9000]);
    let wire = encode(WireFormat::buffstreams(), 1 << 17, &messages);
    for polls in 0..=40 {
        // Every byte of the small frames arrives alone, so the future is dropped at each state of a frame.
        let (small, large) = wire.split_at(60);
        let script = small.iter().map(|byte| vec![*byte]).chain(large.chunks(1111).map(<[u8]>::to_vec));
        let script = script.flat_map(|piece| [Read::Pending, Read::Bytes(piece)]);
        let mut reader = Reader::new(Source::new(script), &config(WireFormat::buffstreams(), 1 << 17)).unwrap();
        let mut read: Vec<Bytes> = Vec::new();
        let mut dropped = 0;
        loop {
            match poll_times(reader.next(), polls) {
                Some(Some(message)) => read.push(message.unwrap()),
                Some(None) => break,
                None if polls > 0 => dropped += 1,
                // A future that is never polled gets nowhere: one step between the drops.
                None => match poll_times(reader.next(), 1) {
                    Some(Some(message)) => read.push(message.unwrap()),
                    Some(None) => break,
                    None => dropped += 1,
                },
            }
        }
        assert!(read == messages, "dropped after {polls} polls");
        assert!(dropped > 0, "nothing was dropped after {polls} polls");
    }
}

#[test]
fn a_reader_that_is_taken_apart_gives_back_all_that_it_has_not_yielded() {
    let messages = bodies(&[30, 0, 5, 70_000, 1, 9000]);
    let wire = encode(WireFormat::buffstreams(), 1 << 17, &messages);
    for pieces in [vec![1, 70], vec![33, 2], vec![70_100], vec![1 << 20]] {
        for yielded in 0..=messages.len() {
            // One that was polled once more has perhaps begun the next frame.
            for more in [0, 1] {
                let source = Source::pieces(&wire, &pieces);
                let mut reader = Reader::new(source, &config(WireFormat::buffstreams(), 1 << 17)).unwrap();
                let mut rest = &wire[..];
                for message in &messages[..yielded] {
                    assert!(drive(reader.next()).unwrap().unwrap() == message);
                    rest = &rest[4 + message.len()..];
                }
                match poll_times(reader.next(), more) {
                    None => {}
                    Some(Some(message)) => rest = &rest[4 + message.unwrap().len()..],
                    Some(None) => {
                        let (io, bytes) = reader.into_parts();
                        assert!(io.is_none() && bytes.is_empty() && rest.is_empty(), "the end was seen");
                        continue;
                    }
                }
                let (io, bytes) = reader.into_parts();
                let mut given_back = bytes.to_vec();
                drive(io.unwrap().read_to_end(&mut given_back)).unwrap();
                assert!(given_back == rest, "{pieces:?}, {yielded} yielded, polled {more} times more");
            }
        }
    }
}

/// Buffers are used again, also for frames of which one is a fraction of another, and by whoever comes next.
#[test]
fn large_messages_of_many_sizes_use_each_others_buffers() {
    const KIB: usize = 1024;
    let max = 4096 * KIB;
    let config = config(WireFormat::u32_be(), max);
    let odd = [65_533, 262_364, 65_596, 65_596];
    for sizes in [
        &odd[..],
        &[256 * KIB, 64 * KIB],
        &[1024 * KIB, 256 * KIB, 64 * KIB],
        &[512 * KIB, 512 * KIB, 128 * KIB, 128 * KIB],
    ] {
        let messages: Vec<_> = (0..24).map(|i| body(sizes[i % sizes.len()])).collect();
        let wire = encode(WireFormat::u32_be(), max, &messages);
        for kept in [0, 1, 3, 8] {
            // One frame at a time, so that nothing comes behind it, and as much at a time as there is room for.
            for source in [Source::pieces(&wire, &[sizes[0] + 4]), Source::whole(&wire)] {
                let mut reader = Reader::new(source, &config).unwrap();
                let mut window = std::collections::VecDeque::new();
                for (i, message) in messages.iter().enumerate() {
                    window.push_back((i, drive(reader.next()).unwrap().unwrap()));
                    assert_eq!(window.back().unwrap().1, message, "{sizes:?}, message {i}");
                    if window.len() > kept {
                        let (i, message) = window.pop_front().unwrap();
                        assert_eq!(message, messages[i], "{sizes:?}: it has changed since");
                    }
                }
            }
        }
    }
}
