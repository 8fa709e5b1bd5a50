//! The writer when its transport breaks, or its futures are dropped: what was accepted was written, or comes back.

use std::error::Error as _;
use std::future::poll_fn;
use std::io::ErrorKind;
use std::pin::Pin;
use std::task::{Context, Poll};

use buffstreams::{Bytes, Error, WireFormat, Writer};
use futures::SinkExt;
use futures::sink::Sink;

use crate::samples::{bodies, body, config, decode, encode};
use crate::script::{Target, Write, drive, poll_times};

const MAX: usize = 1 << 17;

fn formats() -> [WireFormat; 4] {
    let counted = WireFormat::fixed(2).little_endian().offset(3).length_includes_header();
    [WireFormat::buffstreams(), WireFormat::varint(), WireFormat::u32_be(), counted.into()]
}

/// Feeds all messages, then flushes into a transport of this script, which breaks.
fn break_at(format: WireFormat, messages: &[Bytes], script: Vec<Write>) -> (Vec<u8>, Vec<Bytes>) {
    let target = Target::new(script);
    let mut writer = Writer::new(target.clone(), &config(format, MAX)).unwrap();
    for message in messages {
        drive(writer.feed(message.clone())).unwrap();
    }
    match drive(writer.flush()) {
        Err(Error::Write(error)) => assert_eq!(error.kind(), ErrorKind::BrokenPipe),
        other => panic!("{other:?}"),
    }
    let unsent = writer.into_unsent();
    (target.log().taken.clone(), unsent)
}

#[test]
fn after_a_break_at_any_byte_the_messages_not_taken_whole_come_back_in_order() {
    let broken = Write::Error(ErrorKind::BrokenPipe);
    for format in formats() {
        for lengths in [&[5, 0, 4096, 0, 1, 300][..], &[4200], &[4096, 4097, 0], &[0, 0, 90, 2], &[1, 4096]] {
            let messages = bodies(lengths);
            let wire = encode(format, MAX, &messages);
            for cut in 0..wire.len() {
                let scripts =
                    [vec![Write::Take(cut), broken], vec![Write::Take(cut / 2), Write::Take(cut - cut / 2), broken]];
                for script in scripts {
                    // Taking nothing is an error of its own.
                    let script: Vec<Write> = script.into_iter().filter(|step| *step != Write::Take(0)).collect();
                    let (taken, unsent) = break_at(format, &messages, script);
                    assert!(taken == wire[..cut]);
                    let (whole, _) = decode(format, MAX, &taken);
                    assert!(whole == messages[..whole.len()], "{format}, cut at {cut}");
                    assert!(unsent == messages[whole.len()..], "{format}, {lengths:?}, cut at {cut}: {}", unsent.len());
                }
            }
        }
    }
}

#[test]
fn a_chained_message_comes_back_without_a_copy() {
    let message = body(5000);
    let script = vec![Write::Take(3000), Write::Error(ErrorKind::BrokenPipe)];
    let (_, unsent) = break_at(WireFormat::u32_be(), std::slice::from_ref(&message), script);
    assert_eq!(unsent[0].as_ptr(), message.as_ptr());
}

#[test]
fn what_was_flushed_before_a_break_does_not_come_back() {
    let target = Target::new([Write::Take(usize::MAX), Write::Error(ErrorKind::BrokenPipe)]);
    let mut writer = Writer::new(target.clone(), &config(WireFormat::u8(), 200)).unwrap();
    drive(writer.send(body(3))).unwrap();
    drive(writer.send(body(4))).unwrap_err();
    assert_eq!(writer.into_unsent(), [body(4)]);
    assert_eq!(target.log().taken, encode(WireFormat::u8(), 200, &[body(3)]));
}

#[test]
fn without_a_break_what_is_not_written_comes_back_too() {
    let target = Target::new([Write::Take(5), Write::Pending]);
    let mut writer = Writer::new(target.clone(), &config(WireFormat::u8(), 200)).unwrap();
    for len in [3, 4, 5] {
        drive(writer.feed(body(len))).unwrap();
    }
    assert!(poll_times(writer.flush(), 1).is_none());
    assert_eq!(writer.into_unsent(), bodies(&[4, 5]), "the first was written whole");
}

#[test]
fn after_a_break_the_sink_is_closed_and_says_so() {
    let target = Target::new([Write::Take(2), Write::Error(ErrorKind::ConnectionReset)]);
    let mut writer = Writer::new(target.clone(), &config(WireFormat::u8(), 200)).unwrap();
    drive(writer.feed(body(3))).unwrap();
    let error = drive(writer.flush()).unwrap_err();
    assert!(matches!(&error, Error::Write(error) if error.kind() == ErrorKind::ConnectionReset), "{error:?}");
    let again = drive(writer.send(body(4))).unwrap_err();
    assert!(matches!(again, Error::Closed { .. }), "{again:?}");
    let closing = drive(writer.close()).unwrap_err();
    assert!(matches!(closing, Error::Closed { message: None, .. }), "it did not write everything: {closing:?}");
    assert_eq!(target.log().calls.len(), 2, "it wrote to a broken transport");
    assert_eq!(writer.into_unsent(), [body(3)]);
}

/// A sink that is full, on a transport that takes ten bytes and breaks.
fn full() -> (Writer<Target>, Vec<Bytes>) {
    let target = Target::new([Write::Take(10), Write::Pending, Write::Error(ErrorKind::ConnectionReset)]);
    let mut writer = Writer::new(target, &config(WireFormat::u32_be(), MAX)).unwrap();
    let held = vec![body(1000); 62];
    for message in &held {
        drive(writer.feed(message.clone())).unwrap();
    }
    (writer, held)
}

/// It has no room, and is neither accepted nor lost.
#[test]
fn a_message_that_waited_for_room_when_it_broke_comes_back_with_the_cause() {
    for sends in [false, true] {
        let (mut writer, held) = full();
        let given = if sends { drive(writer.send(body(7))) } else { drive(writer.feed(body(7))) };
        let error = given.unwrap_err();
        let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
        assert_eq!(cause.map(std::io::Error::kind), Some(ErrorKind::ConnectionReset), "{error:?}");
        assert_eq!(error.into_unsent(), Some(body(7)));
        // It is told once.
        let error = drive(writer.feed(body(8))).unwrap_err();
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(body(8)));
        let closing = drive(writer.close()).unwrap_err();
        assert!(matches!(closing, Error::Closed { message: None, .. }), "{closing:?}");
        assert_eq!(writer.into_unsent(), held);
    }
}

/// A wait for room has no message to give back, so it does not fail; if none comes, the flush or the close tells.
#[test]
fn a_break_that_nobody_had_a_message_for_is_told_by_the_flush() {
    for closes in [false, true] {
        let (mut writer, held) = full();
        drive(poll_fn(|cx| writer.poll_ready_unpin(cx))).unwrap();
        drive(poll_fn(|cx| writer.poll_ready_unpin(cx))).unwrap();
        let error = if closes { drive(writer.close()) } else { drive(writer.flush()) }.unwrap_err();
        assert!(matches!(&error, Error::Write(error) if error.kind() == ErrorKind::ConnectionReset), "{error:?}");
        let again = drive(writer.flush()).unwrap_err();
        assert!(matches!(again, Error::Closed { message: None, .. }), "{again:?}");
        assert_eq!(writer.into_unsent(), held);
    }
}

#[test]
fn a_transport_that_takes_nothing_is_broken() {
    for wait in [vec![], vec![Write::Take(1), Write::Pending]] {
        let target = Target::new(wait.into_iter().chain([Write::Zero, Write::Zero]));
        let mut writer = Writer::new(target.clone(), &config(WireFormat::u8(), 200)).unwrap();
        let error = drive(writer.send(body(3))).unwrap_err();
        assert!(matches!(&error, Error::Write(error) if error.kind() == ErrorKind::WriteZero), "{error:?}");
        assert_eq!(writer.into_unsent(), [body(3)]);
    }
}

#[test]
fn a_failed_flush_of_the_transport_is_told_and_everything_was_taken() {
    let target = Target::new([Write::FlushError(ErrorKind::BrokenPipe)]);
    let mut writer = Writer::new(target.clone(), &config(WireFormat::u8(), 200)).unwrap();
    let error = drive(writer.send(body(3))).unwrap_err();
    assert!(matches!(error, Error::Write(_)), "{error:?}");
    assert_eq!(target.log().taken, encode(WireFormat::u8(), 200, &[body(3)]));
    assert!(writer.into_unsent().is_empty());
}

/// Notes what the sink behind it accepted: only that must arrive, and a dropped future says nothing about it.
struct Accepted<S> {
    sink: S,
    messages: Vec<Bytes>,
}

impl<S: Sink<Bytes> + Unpin> Sink<Bytes> for Accepted<S> {
    type Error = S::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Pin::new(&mut self.sink).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Bytes) -> Result<(), S::Error> {
        Pin::new(&mut self.sink).start_send(message.clone())?;
        self.messages.push(message);
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Pin::new(&mut self.sink).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Pin::new(&mut self.sink).poll_close(cx)
    }
}

#[test]
fn dropped_sends_feeds_flushes_and_closes_lose_nothing_and_double_nothing() {
    for broken in [false, true] {
        for polls in 0..=40 {
            // Slow enough that a future is dropped in the middle of frames, headers and pieces.
            let slow = (0..300).flat_map(|i| [Write::Pending, Write::Take([1, 2, 700, 3, 4096, 5][i % 6])]);
            let end = broken.then_some(Write::Error(ErrorKind::BrokenPipe));
            let target = Target::new(slow.chain(end));
            let sink = Writer::new(target.clone(), &config(WireFormat::buffstreams(), MAX)).unwrap();
            let mut writer = Accepted { sink, messages: Vec::new() };
            let mut dropped = 0;
            for round in 0..120 {
                // The length tells the messages apart.
                let message = body([10, 4200, 0, 100_000, 333][round % 5] + round);
                let done = match round % 4 {
                    0 | 3 => poll_times(writer.feed(message), polls),
                    1 => poll_times(writer.send(message), polls),
                    _ => poll_times(writer.flush(), polls),
                };
                dropped += usize::from(done.is_none());
            }
            if polls == 40 && !broken {
                assert!(poll_times(writer.close(), 1).is_none() || dropped > 0);
            }
            let closed = drive(writer.close());
            assert!(closed.is_ok() || broken);
            assert!(dropped > 0, "nothing was dropped after {polls} polls");
            let Accepted { sink, messages } = writer;
            let (arrived, _) = decode(WireFormat::buffstreams(), MAX, &target.log().taken);
            let accounted: Vec<Bytes> = arrived.into_iter().chain(sink.into_unsent()).collect();
            assert!(accounted == messages, "dropped after {polls} polls, broken: {broken}");
            assert!(polls == 0 || !messages.is_empty());
        }
    }
}
