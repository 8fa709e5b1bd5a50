//! The writer while its transport works: how often it writes, what it copies, and the rules of the sink.

use std::io::ErrorKind;

use buffstreams::{Bytes, Error, Reader, WireFormat, Writer};
use futures::sink::Sink;
use futures::task::noop_waker_ref;
use futures::{SinkExt, StreamExt, stream};
use std::pin::Pin;
use std::task::Context;

use crate::samples::{bodies, body, config, encode, formats};
use crate::script::{Source, Target, Write, drive, poll_times};

fn writer(target: &Target) -> Writer<Target> {
    Writer::new(target.clone(), &config(WireFormat::buffstreams(), 1 << 20)).unwrap()
}

fn wire(messages: &[Bytes]) -> Vec<u8> {
    encode(WireFormat::buffstreams(), 1 << 20, messages)
}

#[test]
fn five_hundred_small_messages_are_one_write() {
    let target = Target::default();
    let mut writer = writer(&target);
    let messages = bodies(&[100; 500]);
    for message in &messages {
        drive(writer.feed(message.clone())).unwrap();
    }
    assert_eq!(target.log().calls.len(), 0, "a write before the flush");
    drive(writer.flush()).unwrap();
    assert_eq!(target.log().calls.len(), 1);
    assert_eq!(target.log().taken, wire(&messages));
    drive(writer.flush()).unwrap();
    assert_eq!(target.log().calls.len(), 1, "a flush with nothing to write");
}

#[test]
fn a_large_message_is_not_copied_and_goes_with_its_header_in_one_write() {
    for len in [4096, 4097, 100_000, 1 << 20] {
        let target = Target::default();
        let mut writer = writer(&target);
        let message = body(len);
        drive(writer.send(message.clone())).unwrap();
        let log = target.log();
        assert_eq!(log.calls.len(), 1);
        assert_eq!(log.calls[0].len(), 2, "its header, and itself");
        assert_eq!(log.calls[0][1], (message.as_ptr(), len), "its own memory");
        assert!(log.taken == wire(&[message]));
    }
}

#[test]
fn a_message_just_below_the_size_to_chain_is_copied_with_its_neighbours() {
    let target = Target::default();
    let mut writer = writer(&target);
    let messages = bodies(&[1, 4095, 2]);
    drive(writer.send_all(&mut stream::iter(messages.clone()).map(Ok))).unwrap();
    assert_eq!(target.log().calls.len(), 1);
    assert_eq!(target.log().calls[0].len(), 1, "one piece of memory");
    assert_eq!(target.log().taken, wire(&messages));
}

#[test]
fn small_and_large_messages_go_out_in_order_in_one_vectored_write() {
    let target = Target::default();
    let mut writer = writer(&target);
    let messages = bodies(&[10, 20, 5000, 0, 30, 6000, 7000, 1]);
    for message in &messages {
        drive(writer.feed(message.clone())).unwrap();
    }
    drive(writer.flush()).unwrap();
    assert_eq!(target.log().calls.len(), 1);
    assert_eq!(target.log().taken, wire(&messages));
}

#[test]
fn more_large_messages_than_one_write_takes_all_arrive() {
    let target = Target::default();
    let mut writer = writer(&target);
    let large = Bytes::from(vec![7; 4096]);
    // Kept below the mark by letting each be accepted in one poll: 15 are, and the next waits for a write.
    let messages = vec![large; 200];
    for message in &messages {
        drive(writer.feed(message.clone())).unwrap();
    }
    drive(writer.flush()).unwrap();
    assert!(target.log().taken == wire(&messages));
    assert!(target.log().calls.len() <= 20, "{} writes", target.log().calls.len());
}

#[test]
fn the_sink_waits_at_the_high_water_mark_and_not_below_it() {
    let target = Target::new([Write::Pending, Write::Pending, Write::Take(10), Write::Pending]);
    let mut writer = writer(&target);
    let mut cx = Context::from_waker(noop_waker_ref());
    let mut held = 0;
    // A frame of 1004 bytes, so the mark of 61,440 is passed by the 62nd.
    while Pin::new(&mut writer).poll_ready(&mut cx).is_ready() {
        Pin::new(&mut writer).start_send(body(1000)).unwrap();
        held += 1;
        assert!(held <= 62, "it does not wait");
    }
    assert_eq!(held, 62);
    assert!(target.log().taken.is_empty());
    drive(writer.feed(body(1))).unwrap();
    drive(writer.flush()).unwrap();
    assert_eq!(target.log().taken.len(), 62 * 1004 + 5);
}

#[test]
fn writes_that_are_taken_in_part_lose_nothing() {
    let messages = bodies(&[10, 0, 4096, 1, 300, 5000, 4500, 7, 0]);
    let wire = wire(&messages);
    for n in (1..40).chain([100, 4095, 4096, 4097, 4099, 5003, wire.len() - 1, wire.len()]) {
        let takes = wire.len() / n + 1;
        let target = Target::new((0..takes).flat_map(|_| [Write::Pending, Write::Take(n)]));
        let mut writer = writer(&target);
        for message in &messages {
            drive(writer.feed(message.clone())).unwrap();
        }
        drive(writer.flush()).unwrap();
        assert!(target.log().taken == wire, "{n} at a time");
    }
}

#[test]
fn the_first_write_may_end_at_any_byte() {
    for format in formats() {
        let messages = bodies(&[5, 0, 130, 1]);
        let wire = encode(format, 200, &messages);
        for n in 1..=wire.len() {
            let target = Target::new([Write::Take(n), Write::Pending]);
            let mut writer = Writer::new(target.clone(), &config(format, 200)).unwrap();
            for message in &messages {
                drive(writer.feed(message.clone())).unwrap();
            }
            drive(writer.close()).unwrap();
            assert_eq!(target.log().taken, wire, "{format}, the first {n}");
        }
    }
}

#[test]
fn messages_accepted_between_partial_writes_stay_in_order() {
    let messages = bodies(&[100, 4100, 3, 0, 5000, 17, 200, 4096, 1]);
    for n in [1, 2, 50, 103, 104, 4000, 4105] {
        let target = Target::new((0..20_000).flat_map(|_| [Write::Take(n), Write::Pending]));
        let mut writer = writer(&target);
        let mut pending = 0;
        for message in &messages {
            drive(writer.feed(message.clone())).unwrap();
            // One part of what is pending goes out, and the rest stays.
            pending += usize::from(poll_times(writer.flush(), 1).is_none());
        }
        assert!(pending > 0, "everything went at once, {n} at a time");
        drive(writer.flush()).unwrap();
        assert!(target.log().taken == wire(&messages), "{n} at a time");
    }
}

#[test]
fn an_oversize_message_comes_back_and_the_sink_works_on() {
    let target = Target::default();
    let mut writer = Writer::new(target.clone(), &config(WireFormat::u16_be(), 5000)).unwrap();
    drive(writer.feed(body(10))).unwrap();
    for len in [5001, 70_000] {
        let error = drive(writer.send(body(len))).unwrap_err();
        match &error {
            Error::MessageTooLarge { len: told, max, .. } => assert_eq!((*told, *max), (len, 5000)),
            other => panic!("{other:?}"),
        }
        assert_eq!(error.into_unsent(), Some(body(len)));
    }
    drive(writer.send(body(5000))).unwrap();
    drive(writer.close()).unwrap();
    assert_eq!(target.log().taken, encode(WireFormat::u16_be(), 5000, &bodies(&[10, 5000])));
}

#[test]
fn close_flushes_and_closes_the_transport_once() {
    let target = Target::new([Write::Pending, Write::Take(3), Write::Pending]);
    let mut writer = writer(&target);
    drive(writer.feed(body(10))).unwrap();
    drive(writer.close()).unwrap();
    assert_eq!(target.log().taken, wire(&[body(10)]));
    assert!(target.log().flushes > 0);
    drive(writer.close()).unwrap();
    assert_eq!(target.log().closes, 1);
}

#[test]
fn a_closed_sink_gives_the_message_back() {
    let target = Target::default();
    let mut writer = writer(&target);
    drive(writer.close()).unwrap();
    let error = drive(writer.send(body(9))).unwrap_err();
    assert!(matches!(error, Error::Closed { message: Some(_), .. }), "{error:?}");
    assert_eq!(error.into_unsent(), Some(body(9)));
    assert!(target.log().taken.is_empty());
}

#[test]
fn an_interrupted_write_is_tried_again() {
    let interrupted = Write::Error(ErrorKind::Interrupted);
    let target = Target::new([interrupted, interrupted, Write::Take(2), interrupted, Write::Take(1), interrupted]);
    let mut writer = writer(&target);
    drive(writer.send(body(10))).unwrap();
    assert_eq!(target.log().taken, wire(&[body(10)]));
}

#[test]
fn what_a_writer_writes_a_reader_forwards() {
    let config = config(WireFormat::varint(), 1 << 17);
    let wire = encode(WireFormat::varint(), 1 << 17, &bodies(&[1, 70_000, 0, 4096, 12]));
    let target = Target::new((0..200).flat_map(|i| [Write::Take(i * 31 + 1), Write::Pending]));
    let reader = Reader::new(Source::pieces(&wire, &[5000, 3]), &config).unwrap();
    drive(reader.forward(Writer::new(target.clone(), &config).unwrap())).unwrap();
    assert!(target.log().taken == wire);
    assert_eq!(target.log().closes, 1);
}

#[test]
fn a_writer_that_is_taken_apart_gives_back_all_that_was_not_written() {
    let messages = bodies(&[10, 5000, 0, 4096, 12]);
    let wire = wire(&messages);
    for taken in [0, 1, 4, 13, 14, 17, 18, 5017, 5021, 5025, wire.len() - 1, wire.len()] {
        let target = Target::new([Write::Take(taken), Write::Pending].into_iter().skip(usize::from(taken == 0)));
        let mut writer = writer(&target);
        for message in &messages {
            drive(writer.feed(message.clone())).unwrap();
        }
        let flushed = poll_times(writer.flush(), 1);
        assert_eq!(flushed.is_some(), taken == wire.len());
        let (io, unwritten) = writer.into_parts();
        assert!(io.is_some());
        assert!(target.log().taken[..] == wire[..taken] && unwritten == wire[taken..], "{taken}");
    }
    // After an error there is no transport, and the bytes are those behind what it took.
    let target = Target::new([Write::Take(5), Write::Error(ErrorKind::BrokenPipe)]);
    let mut writer = writer(&target);
    drive(writer.send(body(10))).unwrap_err();
    let (io, unwritten) = writer.into_parts();
    assert!(io.is_none());
    assert_eq!(unwritten, wire[5..14]);
}
