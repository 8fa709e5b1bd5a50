//! Headers that make no sense: each is refused from its own bytes, with its own name and its figures.

use std::error::Error as _;

use buffstreams::wire::{Decoder, Encoder};
use buffstreams::{Bytes, Error, FrameError, FrameErrorKind, WireFormat};

use crate::samples::{body, config, encode, formats, presets, read_all};
use crate::script::Source;

/// What the decoder says to these bytes, held against what a reader says to them, byte by byte.
fn refuse(format: impl Into<WireFormat>, max: usize, wire: &[u8]) -> FrameErrorKind {
    refuse_in_full(format.into(), max, wire).kind
}

fn refuse_in_full(format: WireFormat, max: usize, wire: &[u8]) -> FrameError {
    let mut input = Bytes::copy_from_slice(wire);
    let error = Decoder::new(format, max).unwrap().decode(&mut input).expect_err("it was not refused");
    let (messages, read) = read_all(Source::pieces(wire, &[1]), &config(format, max));
    assert_eq!(messages, [] as [Bytes; 0]);
    match read {
        Some(Error::Frame(read)) => assert_eq!(read.kind, error.kind, "{format}: the reader disagrees"),
        other => panic!("{format}: {other:?}"),
    }
    error
}

/// Zig-zag, as the buffstreams format writes a length, and padded with zeros.
fn zigzag(len: i64, width: usize) -> Vec<u8> {
    let mut header = varint(((len << 1) ^ (len >> 63)) as u64);
    assert!(header.len() <= width, "it cannot be written");
    header.resize(width, 0);
    header
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value > 0x7f {
        out.push(value as u8 & 0x7f | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

#[test]
fn the_limit_itself_is_accepted_and_one_more_is_not() {
    for format in presets() {
        for max in [1, 100, 200] {
            for len in [max - 1, max] {
                let wire = encode(format, max, &[body(len)]);
                let header = Decoder::new(format, max).unwrap().header(&wire).unwrap().unwrap();
                assert_eq!(header.payload, len, "{format}");
            }
            // Written by an end with a larger limit; of the same header width in the buffstreams format.
            let wire = encode(format, 255, &[body(max + 1)]);
            assert_eq!(refuse(format, max, &wire), FrameErrorKind::TooLarge { len: max as u64 + 1, max: max as u64 });
        }
    }
}

#[test]
fn lengths_far_over_the_limit_are_refused_with_the_figure() {
    for len in [(1u64 << 31) - 1, 1 << 31, (1 << 32) - 1] {
        let max = 16 << 20;
        let told = FrameErrorKind::TooLarge { len, max: max as u64 };
        let (big, little) = (len.to_be_bytes(), len.to_le_bytes());
        assert_eq!(refuse(WireFormat::u32_be(), max, &big[4..]), told);
        assert_eq!(refuse(WireFormat::u32_le(), max, &little[..4]), told);
        assert_eq!(refuse(WireFormat::u64_be(), max, &big), told);
        assert_eq!(refuse(WireFormat::fixed(5).little_endian().offset(1), max, &[&[9], &little[..5]].concat()), told);
        assert_eq!(refuse(WireFormat::varint(), max, &varint(len)), told);
        // A limit of 16 MiB has a header of 5 bytes, which can say up to 2^34.
        assert_eq!(refuse(WireFormat::buffstreams(), max, &zigzag(len as i64, 5)), told);
        let counted = (len + 8).to_be_bytes();
        assert_eq!(refuse(WireFormat::fixed(8).length_includes_header(), max, &counted), told);
    }
}

#[test]
fn lengths_of_63_and_64_bits_are_refused_with_the_figure() {
    for len in [i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX] {
        let told = FrameErrorKind::TooLarge { len, max: 4096 };
        assert_eq!(refuse(WireFormat::u64_be(), 4096, &len.to_be_bytes()), told);
        assert_eq!(refuse(WireFormat::fixed(8).little_endian(), 4096, &len.to_le_bytes()), told);
        assert_eq!(refuse(WireFormat::varint(), 4096, &varint(len)), told);
    }
}

#[test]
fn without_a_limit_the_largest_lengths_wait_and_do_not_overflow() {
    for (format, header) in [
        (WireFormat::u64_be(), vec![0xff; 8]),
        (WireFormat::varint(), varint(u64::MAX)),
        (WireFormat::fixed(8).length_includes_header().into(), vec![0xff; 8]),
    ] {
        let wire = [header, vec![1; 100_000]].concat();
        let (messages, error) = read_all(Source::pieces(&wire, &[7, 1, 20_000]), &config(format, usize::MAX));
        assert_eq!(messages, [] as [Bytes; 0]);
        match error {
            Some(Error::Truncated { got, want, .. }) => assert!(got == wire.len() && want > usize::MAX - 20, "{want}"),
            other => panic!("{format}: {other:?}"),
        }
    }
}

#[test]
fn the_three_bytes_that_kill_a_go_process_are_an_error() {
    // 4097 at a limit of 4096: the Go library slices past the end of its buffer.
    let told = refuse(WireFormat::buffstreams(), 4096, &[0x82, 0x40, 0x00]);
    assert_eq!(told, FrameErrorKind::TooLarge { len: 4097, max: 4096 });
}

#[test]
fn a_negative_length_is_an_error() {
    for len in [-1, -2, -64, -65, -4096, -8192] {
        assert_eq!(refuse(WireFormat::buffstreams(), 4096, &zigzag(len, 3)), FrameErrorKind::Negative { len });
    }
    let lowest = -(1 << 33);
    assert_eq!(
        refuse(WireFormat::buffstreams(), 16 << 20, &zigzag(lowest, 5)),
        FrameErrorKind::Negative { len: lowest }
    );
}

#[test]
fn a_buffstreams_varint_longer_than_its_value_needs_is_an_error() {
    let told = refuse(WireFormat::buffstreams(), 4096, &[0x82, 0x00, 0x00]);
    assert_eq!(told, FrameErrorKind::Overlong { bytes: 2 });
    let told = refuse(WireFormat::buffstreams(), 4096, &[0x80, 0x80, 0x00]);
    assert_eq!(told, FrameErrorKind::Overlong { bytes: 3 });
}

#[test]
fn a_varint_that_does_not_end_is_an_error() {
    let told = refuse(WireFormat::buffstreams(), 4096, &[0xff, 0xff, 0xff]);
    assert_eq!(told, FrameErrorKind::Unterminated { width: 3 });
    let told = refuse(WireFormat::buffstreams(), 255, &[0x80, 0x80]);
    assert_eq!(told, FrameErrorKind::Unterminated { width: 2 });
    let told = refuse(WireFormat::varint(), 4096, &[0x80; 10]);
    assert_eq!(told, FrameErrorKind::Unterminated { width: 10 });
}

#[test]
fn a_varint_of_more_than_64_bits_is_an_error() {
    let mut wire = [0xff; 10];
    wire[9] = 0x02;
    assert_eq!(refuse(WireFormat::varint(), 4096, &wire), FrameErrorKind::Overflow);
    assert_eq!(refuse(WireFormat::varint(), 4096, &[0xff; 10]), FrameErrorKind::Overflow);
    // One bit less is 64 bits, and only too large.
    wire[9] = 0x01;
    assert_eq!(refuse(WireFormat::varint(), 4096, &wire), FrameErrorKind::TooLarge { len: u64::MAX, max: 4096 });
}

#[test]
fn padding_other_than_zero_is_an_error_wherever_it_is() {
    let told = refuse(WireFormat::buffstreams(), 4096, &[0x02, 0x01, 0x00]);
    assert_eq!(told, FrameErrorKind::Padding { offset: 1, byte: 1 });
    let told = refuse(WireFormat::buffstreams(), 4096, &[0x02, 0x00, 0xff]);
    assert_eq!(told, FrameErrorKind::Padding { offset: 2, byte: 0xff });
    let told = refuse(WireFormat::buffstreams(), 4096, &[0xdc, 0x01, 0x80]);
    assert_eq!(told, FrameErrorKind::Padding { offset: 2, byte: 0x80 });
}

#[test]
fn a_length_below_the_header_that_it_includes_is_an_error() {
    let format = WireFormat::fixed(2).offset(3).length_includes_header();
    for len in 0..5u8 {
        let told = refuse(format, 4096, &[0, 0, 0, 0, len]);
        assert_eq!(told, FrameErrorKind::BelowHeader { len: len.into(), header: 5 });
    }
    let empty = Decoder::new(format, 4096).unwrap().header(&[0, 0, 0, 0, 5]).unwrap().unwrap();
    assert_eq!((empty.width, empty.payload, empty.frame()), (5, 0, 5));
}

#[test]
fn the_messages_in_front_of_a_bad_header_are_delivered_and_nothing_behind_it() {
    let good = encode(WireFormat::u16_be(), 100, &[body(3), body(0), body(100)]);
    let wire = [&good[..], &[0xff, 0xff], &good[..]].concat();
    for piece in [1, 2, 50, wire.len()] {
        let (messages, error) = read_all(Source::pieces(&wire, &[piece]), &config(WireFormat::u16_be(), 100));
        assert_eq!(messages, [body(3), body(0), body(100)]);
        match error {
            Some(Error::Frame(error)) => {
                assert_eq!(error.kind, FrameErrorKind::TooLarge { len: 0xffff, max: 100 });
                assert_eq!(error.header()[..2], [0xff, 0xff]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_error_keeps_the_first_bytes_and_no_more_than_sixteen() {
    let short = refuse_in_full(WireFormat::u16_be(), 100, &[0xff, 0xfe]);
    assert_eq!(short.header(), [0xff, 0xfe]);
    let long = refuse_in_full(WireFormat::fixed(8).offset(8).into(), 100, &[0xff; 40]);
    assert_eq!(long.header(), [0xff; 16]);
}

/// Whatever is wrong, and whatever the peer speaks: a header has its width, and what is behind it is not kept.
#[test]
fn an_error_keeps_as_much_as_a_header_of_the_format_has_and_nothing_behind_it() {
    let mut refused = 0;
    for format in formats() {
        let width = |len| encode(format, 100, &[body(len)]).len() - len;
        let (decoder, widest) =
            (Decoder::new(format, 100).unwrap(), if format == WireFormat::varint() { 10 } else { width(0) });
        let others = formats().into_iter().map(|other| encode(other, 255, &[vec![b'#'; 120].into()]));
        let texts = ["################################", "GET /################################", "\x7f#############"];
        let endless = [&[0xff; 20][..], &[0x80; 20]].map(<[u8]>::to_vec);
        for wire in others.chain(texts.map(|text| text.as_bytes().to_vec())).chain(endless) {
            let Err(error) = decoder.header(&wire) else { continue };
            refused += 1;
            assert_eq!(error.header(), &wire[..error.header().len()], "{format}");
            if format == WireFormat::varint() {
                // A varint ends at its first byte below 0x80, or at its longest.
                let end = wire.iter().take(9).position(|byte| *byte < 0x80).map_or(10, |last| last + 1);
                assert_eq!(error.header().len(), end);
            } else {
                assert_eq!(error.header().len(), widest, "{format}");
            }
        }
        // A header that is valid, of a message over the limit: all of it, and nothing of the message.
        let wire = encode(format, 255, &[vec![b'#'; 120].into()]);
        let error = Decoder::new(format, 60).unwrap().header(&wire).unwrap_err();
        assert_eq!(error.header(), &wire[..wire.len() - 120], "{format}");
    }
    assert!(refused > 1000, "{refused}");
}

/// An error may be logged. `Debug`, which a log line of an event is, has no bytes; `Display` has those of a length.
#[test]
fn an_error_prints_no_more_than_a_length() {
    let format = WireFormat::fixed(2).offset(8).into();
    let secret = refuse_in_full(format, 4096, b"password=hunter2 and more");
    assert_eq!(secret.header(), b"password=h");
    let told = secret.to_string();
    assert!(told.contains("(the bytes are 3d 68)"), "{told}");
    let debug = format!("{secret:?} {:?}", Error::from(secret.clone()));
    assert!(debug.contains("header: 10 bytes"), "{debug}");
    for byte in b"password" {
        assert!(!debug.contains(&format!("{byte}, ")) && !told.contains(&format!("{byte:x} ")), "{debug} {told}");
    }
}

#[test]
fn each_error_says_its_figures_in_lower_case() {
    let texts = [
        (
            FrameErrorKind::TooLarge { len: 4097, max: 4096 },
            "a message of 4097 bytes is announced: at most 4096 are allowed",
        ),
        (FrameErrorKind::Negative { len: -7 }, "a length of -7 is announced"),
        (FrameErrorKind::Overlong { bytes: 3 }, "the length is a varint of 3 bytes, longer than its value needs"),
        (FrameErrorKind::Unterminated { width: 10 }, "the length is a varint that does not end within 10 bytes"),
        (FrameErrorKind::Overflow, "the length is a varint of more than 64 bits"),
        (
            FrameErrorKind::Padding { offset: 2, byte: 0x80 },
            "byte 2 of the header is padding and should be zero: it is 0x80",
        ),
        (
            FrameErrorKind::BelowHeader { len: 3, header: 5 },
            "a length of 3 is announced, which should include the header's 5 bytes",
        ),
    ];
    for (kind, text) in texts {
        assert_eq!(kind.to_string(), text);
    }
    let frame = refuse_in_full(WireFormat::buffstreams(), 4096, &[0x82, 0x40, 0x00]);
    let text = "a message of 4097 bytes is announced: at most 4096 are allowed (the bytes are 82 40 00)";
    assert_eq!(frame.to_string(), text);

    let error = Error::from(frame);
    assert_eq!(error.to_string(), text, "who prints the error alone sees the figures");
    assert!(error.source().is_none(), "and who prints its sources as well does not see them twice");
    let wire = encode(WireFormat::u16_be(), 4096, &[body(11)]);
    let truncated = read_all(Source::whole(&wire[..2]), &config(WireFormat::u16_be(), 4096)).1.unwrap();
    assert_eq!(truncated.to_string(), "the stream ended inside a frame: 2 of 13 bytes received");
    let large = Encoder::new(WireFormat::u16_be(), 10).unwrap().encode(&body(11), &mut Vec::new()).unwrap_err();
    assert_eq!(large.to_string(), "a message of 11 bytes: at most 10 are allowed");
    assert_eq!(format!("{large:?}"), "MessageTooLarge { len: 11, max: 10, message: Unsent(11 bytes) }");
}
