//! The bytes of each format: what the Go library wrote, a known example of every preset, and there and back.

use buffstreams::wire::{Decoder, Encoder, Header};
use buffstreams::{Bytes, ConfigError, Error, Reader, WireFormat, Writer};
use futures::SinkExt;
use proptest::prelude::*;

use crate::samples::{bodies, body, config, decode, encode, formats, presets, read_all, read_clean};
use crate::script::{Source, Target, drive};

/// Captured from a socket that the Go library wrote to: `max_message_size`, message length, header.
const GO: &str = include_str!("../data/go-buffstreams-v2.csv");

fn go_headers() -> Vec<(usize, usize, Vec<u8>)> {
    let rows = GO.lines().filter(|line| !line.starts_with('#'));
    rows.map(|row| {
        let fields: Vec<&str> = row.split(',').collect();
        let digits = |at| u8::from_str_radix(&fields[2][at..at + 2], 16).unwrap();
        let header = (0..fields[2].len()).step_by(2).map(digits).collect();
        (fields[0].parse().unwrap(), fields[1].parse().unwrap(), header)
    })
    .collect()
}

#[test]
fn every_captured_go_header_is_written_to_the_byte() {
    let message = body(16 << 20);
    let rows = go_headers();
    assert_eq!(rows.len(), 278);
    for (max, len, header) in rows {
        let wire = encode(WireFormat::buffstreams(), max, &[message.slice(..len)]);
        assert_eq!(wire[..header.len()], header, "max {max}, length {len}");
        assert!(wire[header.len()..] == message[..len], "max {max}, length {len}: the body");
    }
}

#[test]
fn every_captured_go_header_is_read() {
    let message = body(16 << 20);
    for (max, len, header) in go_headers() {
        let decoder = Decoder::new(WireFormat::buffstreams(), max).unwrap();
        let told = decoder.header(&header).unwrap();
        assert_eq!(told, Some(Header { width: header.len(), payload: len }), "max {max}");
        let mut input = Bytes::from([&header[..], &message[..len]].concat());
        assert!(decoder.decode(&mut input).unwrap().unwrap() == message[..len], "max {max}, length {len}");
        assert!(input.is_empty());
    }
}

#[test]
fn reader_and_writer_speak_the_captured_go_wire() {
    for (max, len, header) in go_headers().into_iter().filter(|(_, len, _)| *len <= 1 << 17) {
        let config = config(WireFormat::buffstreams(), max);
        let wire = [&header[..], &body(len)].concat();
        assert_eq!(read_clean(Source::pieces(&wire, &[1, 2, 30_000]), &config), [body(len)]);

        let target = Target::default();
        drive(Writer::new(target.clone(), &config).unwrap().send(body(len))).unwrap();
        assert!(target.log().taken == wire, "max {max}, length {len}");
    }
}

#[test]
fn each_preset_writes_a_known_example() {
    let examples: [(WireFormat, usize, &[u8]); 20] = [
        (WireFormat::buffstreams(), 110, &[0xdc, 0x01, 0x00]),
        (WireFormat::buffstreams(), 0, &[0, 0, 0]),
        (WireFormat::buffstreams(), 63, &[0x7e, 0, 0]),
        (WireFormat::buffstreams(), 64, &[0x80, 0x01, 0]),
        (WireFormat::buffstreams(), 4096, &[0x80, 0x40, 0]),
        (WireFormat::varint(), 0, &[0]),
        (WireFormat::varint(), 127, &[0x7f]),
        (WireFormat::varint(), 300, &[0xac, 0x02]),
        (WireFormat::u8(), 200, &[0xc8]),
        (WireFormat::u16_be(), 0x123, &[0x01, 0x23]),
        (WireFormat::u16_le(), 0x123, &[0x23, 0x01]),
        (WireFormat::u24_be(), 0x123, &[0, 0x01, 0x23]),
        (WireFormat::u32_be(), 0x123, &[0, 0, 0x01, 0x23]),
        (WireFormat::u32_le(), 0x123, &[0x23, 0x01, 0, 0]),
        (WireFormat::u64_be(), 0x123, &[0, 0, 0, 0, 0, 0, 0x01, 0x23]),
        (WireFormat::fixed(3).little_endian().into(), 0x123, &[0x23, 0x01, 0]),
        (WireFormat::fixed(2).offset(3).into(), 0x123, &[0, 0, 0, 0x01, 0x23]),
        (WireFormat::fixed(2).length_includes_header().into(), 0x123, &[0x01, 0x25]),
        (WireFormat::fixed(3).little_endian().offset(2).length_includes_header().into(), 0x123, &[0, 0, 0x28, 0x01, 0]),
        (WireFormat::fixed(8).offset(8).little_endian().into(), 1, &[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (format, len, header) in examples {
        let wire = encode(format, 4096, &[body(len)]);
        assert_eq!(wire[..wire.len() - len], *header, "{format}, length {len}");
        assert_eq!(wire[header.len()..], body(len), "{format}, length {len}");
        assert_eq!(decode(format, 4096, &wire), (vec![body(len)], 0), "{format}, length {len}");
    }
}

#[test]
fn each_fixed_header_is_the_length_in_its_place_and_order() {
    for width in 1..=8u8 {
        for offset in [0u8, 1, 5, 8] {
            for counted in [false, true] {
                let fixed = WireFormat::fixed(width).offset(offset);
                let fixed = if counted { fixed.length_includes_header() } else { fixed };
                let header = usize::from(width + offset);
                let len = 77;
                let written = if counted { len + header } else { len };
                let mut expected = vec![0; header];
                expected[header - 1] = written as u8;
                assert_eq!(encode(fixed, 1000, &[body(len)])[..header], expected, "{}", WireFormat::from(fixed));
                expected[header - 1] = 0;
                expected[usize::from(offset)] = written as u8;
                assert_eq!(encode(fixed.little_endian(), 1000, &[body(len)])[..header], expected);
            }
        }
    }
}

#[test]
fn the_bytes_in_front_of_the_length_are_not_looked_at() {
    let format = WireFormat::fixed(2).offset(3);
    assert_eq!(decode(format, 4096, b"xyz\x00\x02hi"), (vec![Bytes::from("hi")], 0));
}

#[test]
fn every_format_brings_its_messages_back() {
    for format in formats() {
        let messages = bodies(&[0, 1, 0, 0, 63, 64, 127, 128, 200, 2]);
        let wire = encode(format, 4096, &messages);
        assert_eq!(decode(format, 4096, &wire), (messages.clone(), 0), "{format}");
        assert_eq!(read_clean(Source::whole(&wire), &config(format, 4096)), messages, "{format}");
    }
}

#[test]
fn a_varint_with_spare_bytes_is_accepted_from_protobuf_writers() {
    assert_eq!(decode(WireFormat::varint(), 100, &[0x82, 0x80, 0x00, 7, 8]), (vec![Bytes::from_static(&[7, 8])], 0));
}

#[test]
fn a_decoded_message_shares_the_memory_it_came_in() {
    let mut input = Bytes::from(encode(WireFormat::u32_be(), 4096, &bodies(&[10, 20])));
    let start = input.as_ptr();
    let decoder = Decoder::new(WireFormat::u32_be(), 4096).unwrap();
    let first = decoder.decode(&mut input).unwrap().unwrap();
    let second = decoder.decode(&mut input).unwrap().unwrap();
    assert_eq!(first.as_ptr().addr(), start.addr() + 4);
    assert_eq!(second.as_ptr().addr(), start.addr() + 18);
}

#[test]
fn a_frame_that_is_not_whole_is_left_in_the_input() {
    for format in formats() {
        let wire = encode(format, 200, &[body(150)]);
        let decoder = Decoder::new(format, 200).unwrap();
        for end in 0..wire.len() {
            let mut input = Bytes::copy_from_slice(&wire[..end]);
            assert_eq!(decoder.decode(&mut input).unwrap(), None, "{format}, {end} bytes");
            assert_eq!(input, wire[..end], "{format}");
        }
    }
}

#[test]
fn a_message_over_the_limit_is_refused_and_nothing_is_written() {
    for format in presets() {
        let encoder = Encoder::new(format, 200).unwrap();
        let mut out = vec![9];
        match encoder.encode(&body(201), &mut out) {
            Err(Error::MessageTooLarge { len: 201, max: 200, message, .. }) => {
                assert_eq!(message.into_inner(), body(201))
            }
            other => panic!("{format}: {other:?}"),
        }
        assert_eq!(out, [9], "{format}");
        encoder.encode(&body(200), &mut out).unwrap();
        assert_eq!(decode(format, 200, &out[1..]), (vec![body(200)], 0), "{format}");
    }
}

#[test]
fn a_format_lowers_the_limit_to_what_it_can_write() {
    let cases: [(WireFormat, usize); 6] = [
        (WireFormat::u8(), 255),
        (WireFormat::u16_be(), 65_535),
        (WireFormat::u24_be(), (1 << 24) - 1),
        (WireFormat::fixed(1).length_includes_header().into(), 254),
        (WireFormat::fixed(1).offset(8).length_includes_header().into(), 246),
        (WireFormat::u32_be(), 1 << 30),
    ];
    for (format, max) in cases {
        assert_eq!(Encoder::new(format, 1 << 30).unwrap().max_message_size(), max, "{format}");
        assert_eq!(Decoder::new(format, 1 << 30).unwrap().max_message_size(), max, "{format}");
    }
    let full = encode(WireFormat::u8(), 4096, &[body(255)]);
    assert_eq!(full[0], 255);
    let error = Encoder::new(WireFormat::u8(), 4096).unwrap().encode(&body(256), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::MessageTooLarge { len: 256, max: 255, .. }), "{error:?}");
}

#[test]
fn a_setting_that_cannot_work_is_named_with_its_figures() {
    let refused = |format: WireFormat, max| {
        let decoder = Decoder::new(format, max).unwrap_err();
        assert_eq!(Encoder::new(format, max).unwrap_err(), decoder);
        assert_eq!(Reader::new(Source::whole(b""), &config(format, max)).unwrap_err(), decoder);
        assert_eq!(Writer::new(Target::default(), &config(format, max)).unwrap_err(), decoder);
        decoder
    };
    let width = refused(WireFormat::fixed(0).into(), 100);
    assert!(matches!(width, ConfigError::LengthWidth { width: 0, .. }));
    let wide = refused(WireFormat::fixed(9).into(), 100);
    assert!(matches!(wide, ConfigError::LengthWidth { width: 9, .. }), "{wide:?}");
    let widest = refused(WireFormat::fixed(255).offset(255).into(), 100);
    assert!(matches!(widest, ConfigError::LengthWidth { width: 255, .. }), "{widest:?}");
    let offset = refused(WireFormat::fixed(4).offset(9).into(), 100);
    assert!(matches!(offset, ConfigError::LengthOffset { offset: 9, max: 8, .. }));
    for format in presets() {
        assert_eq!(refused(format, 0).to_string(), "max_message_size is zero: it must be at least 1");
    }
    // At 2^55 a buffstreams header has no room for the varint of its own limit.
    let size = refused(WireFormat::buffstreams(), 1 << 55);
    let ConfigError::MessageSize { asked, max, .. } = size else { panic!("{size:?}") };
    assert_eq!((asked, max), (1 << 55, (1 << 55) - 1));
    assert_eq!(Decoder::new(WireFormat::buffstreams(), (1 << 55) - 1).unwrap().max_message_size(), (1 << 55) - 1);

    let config = config(WireFormat::u8(), 10);
    for (name, config) in [
        ("inbox_bytes", config.clone().inbox_bytes(0)),
        ("queue_bytes", config.clone().queue_bytes(0)),
        ("max_connections", config.clone().max_connections(0)),
    ] {
        let zero = Reader::new(Source::whole(b""), &config).unwrap_err();
        assert_eq!(zero.to_string(), format!("{name} is zero: it must be at least 1"));
    }

    assert_eq!(width.to_string(), "a length field of 0 bytes: it has from 1 to 8");
    assert_eq!(offset.to_string(), "a length field at offset 9: at most 8");
    let text = "max_message_size is 36028797018963968 bytes: this wire format holds at most 36028797018963967";
    assert_eq!(size.to_string(), text);
}

#[test]
fn a_format_prints_what_it_is_and_is_read_again() {
    let full = WireFormat::fixed(3).little_endian().offset(2).length_includes_header();
    let texts = ["buffstreams", "varint", "u8", "u16_be", "u16_le", "u24_be", "u32_be", "u32_le", "u64_be"];
    let presets = presets().into_iter().zip(texts);
    let others = [
        (full.into(), "fixed(3,le,offset=2,includes)"),
        (WireFormat::fixed(1).little_endian().into(), "fixed(1,le)"),
        (WireFormat::fixed(8).offset(8).into(), "fixed(8,be,offset=8)"),
    ];
    for (format, text) in presets.chain(others) {
        assert_eq!(format.to_string(), text);
        assert_eq!(text.parse(), Ok(format));
    }
    for (text, is) in [
        ("fixed(4)", WireFormat::u32_be()),
        ("fixed(4, offset=0)", WireFormat::u32_be()),
        ("fixed( 3 ,includes, offset=2 , le )", full.into()),
    ] {
        assert_eq!(text.parse(), Ok(is), "{text}");
    }
}

#[test]
fn what_is_no_format_says_what_is_wrong_with_it() {
    for (text, error) in [
        ("", "\"\" is no wire format: it is"),
        ("u32", "\"u32\" is no wire format: it is"),
        ("U8", "\"U8\" is no wire format: it is"),
        (" u8", "\" u8\" is no wire format: it is"),
        ("fixed", "\"fixed\" is no wire format: it is"),
        ("fixed(3", "fixed(… is not closed"),
        ("fixed(3)x", "fixed(… is not closed"),
        ("fixed()", "\"\" is no width"),
        ("fixed(0)", "\"0\" is no width"),
        ("fixed(9)", "\"9\" is no width"),
        ("fixed(+3)", "\"+3\" is no width"),
        ("fixed(le,3)", "\"le\" is no width"),
        ("fixed(3,offset=9)", "\"9\" is no offset of a length: it is from 0 to 8"),
        ("fixed(3,offset=)", "\"\" is no offset"),
        ("fixed(3,offset=257)", "\"257\" is no offset"),
        ("fixed(3,offset=-1)", "\"-1\" is no offset"),
        ("fixed(3,)", "\"\" is no part"),
        ("fixed(3,little)", "\"little\" is no part"),
        ("fixed(3,be,le)", "\"le\" has been said before"),
        ("fixed(3,includes,includes)", "\"includes\" has been said before"),
        ("fixed(3,offset=1,offset=2)", "\"offset=2\" has been said before"),
    ] {
        let told = text.parse::<WireFormat>().unwrap_err().to_string();
        assert!(told.starts_with(error), "{text}: {told}");
    }
}

/// Some format, some messages that it can carry, and piece lengths.
fn traffic() -> impl Strategy<Value = (WireFormat, Vec<Bytes>, Vec<usize>)> {
    let small = prop::collection::vec(any::<u8>(), 0..240).prop_map(Bytes::from);
    let large = (4000..9000usize).prop_map(body);
    (
        prop::sample::select(formats()),
        prop::collection::vec(prop_oneof![9 => small, 1 => large], 0..12),
        prop::collection::vec(prop_oneof![1..20usize, 1..5000usize], 1..8),
    )
        .prop_map(|(format, mut messages, pieces)| {
            let max = Encoder::new(format, 10_000).unwrap().max_message_size();
            messages.retain(|message| message.len() <= max);
            (format, messages, pieces)
        })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_format_is_read_from_what_it_prints(
        (width, offset) in (1..=8u8, 0..=8u8), (little, includes) in any::<(bool, bool)>(),
    ) {
        let fixed = WireFormat::fixed(width).offset(offset);
        let fixed = if little { fixed.little_endian() } else { fixed };
        let format = WireFormat::from(if includes { fixed.length_includes_header() } else { fixed });
        prop_assert_eq!(format.to_string().parse(), Ok(format));
    }

    #[test]
    fn no_text_is_a_format_that_prints_another(text in "(fixed\\()?[a-z0-9_=, ]{0,12}\\)?") {
        if let Ok(format) = text.parse::<WireFormat>() {
            prop_assert_eq!(format.to_string().parse(), Ok(format));
            prop_assert!(Encoder::new(format, 1).is_ok());
        }
    }

    #[test]
    fn any_messages_come_back_whatever_the_format_and_the_split((format, messages, pieces) in traffic()) {
        let config = config(format, 10_000);
        let target = Target::new(pieces.iter().flat_map(|n| [crate::script::Write::Take(*n), crate::script::Write::Pending]));
        let mut writer = Writer::new(target.clone(), &config).unwrap();
        for message in &messages {
            drive(writer.feed(message.clone())).unwrap();
        }
        drive(writer.close()).unwrap();
        let wire = target.log().taken.clone();
        prop_assert_eq!(&wire, &encode(format, 10_000, &messages));
        prop_assert_eq!(read_clean(Source::pieces(&wire, &pieces), &config), messages);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_always_end(
        format in prop::sample::select(formats()),
        max in prop_oneof![1..300usize, 1..100_000usize, Just(usize::MAX)],
        wire in prop::collection::vec(prop_oneof![3 => 0..4u8, 1 => any::<u8>()], 0..400),
        pieces in prop::collection::vec(1..40usize, 1..5),
    ) {
        let Ok(decoder) = Decoder::new(format, max) else { return Ok(()) };
        let mut input = Bytes::from(wire.clone());
        let mut messages = Vec::new();
        let failed = loop {
            match decoder.decode(&mut input) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        let left = input.len();
        let (read, error) = read_all(Source::pieces(&wire, &pieces), &config(format, max));
        prop_assert_eq!(read, messages);
        match (error, failed) {
            (Some(Error::Frame(told)), Some(failed)) => prop_assert_eq!(told.kind, failed.kind),
            (Some(Error::Truncated { got, want, .. }), None) => prop_assert!(got == left && want > got),
            (None, None) => prop_assert_eq!(left, 0),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
