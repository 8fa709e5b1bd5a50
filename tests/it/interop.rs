//! Other people's implementations read what this one writes, and the other way round.

use buffstreams::wire::Decoder;
use buffstreams::{Bytes, FixedFormat, WireFormat};
use bytes::BytesMut;
use prost::Message;
use tokio_util::codec::length_delimited::Builder;
use tokio_util::codec::{Decoder as _, Encoder as _, LengthDelimitedCodec};

use crate::samples::{bodies, config, decode, encode, read_clean};
use crate::script::Source;

const LENGTHS: [usize; 8] = [0, 1, 2, 127, 128, 300, 5000, 65_000];

fn meets(codec: &mut Builder, ours: impl Into<WireFormat>) {
    let ours = ours.into();
    let max = 1 << 16;
    codec.max_frame_length(max);
    let messages = bodies(&LENGTHS);
    let wire = encode(ours, max, &messages);

    let mut theirs = codec.new_codec();
    let mut input = BytesMut::from(&wire[..]);
    let mut read = Vec::new();
    while let Some(message) = theirs.decode(&mut input).unwrap() {
        read.push(message.freeze());
    }
    assert!(read == messages && input.is_empty(), "{ours}: they read ours");

    let mut output = BytesMut::new();
    for message in &messages {
        theirs.encode(message.clone(), &mut output).unwrap();
    }
    assert!(output == wire, "{ours}: they write the same bytes");
    assert!(decode(ours, max, &output) == (messages.clone(), 0), "{ours}: the decoder reads theirs");
    assert!(read_clean(Source::pieces(&output, &[1000, 1]), &config(ours, max)) == messages, "{ours}: the reader does");
}

#[test]
fn the_default_of_tokio_util_is_u32_be() {
    meets(&mut LengthDelimitedCodec::builder(), WireFormat::u32_be());
}

#[test]
fn fixed_widths_and_orders_meet_tokio_util() {
    meets(LengthDelimitedCodec::builder().length_field_length(2).little_endian(), WireFormat::u16_le());
    meets(LengthDelimitedCodec::builder().length_field_length(2), WireFormat::u16_be());
    meets(LengthDelimitedCodec::builder().length_field_length(3), WireFormat::u24_be());
    meets(LengthDelimitedCodec::builder().length_field_length(4).little_endian(), WireFormat::u32_le());
    meets(LengthDelimitedCodec::builder().length_field_length(8), WireFormat::u64_be());
}

#[test]
fn a_length_that_includes_the_header_meets_tokio_util() {
    for (width, ours) in [(4, WireFormat::fixed(4)), (3, WireFormat::fixed(3)), (8, WireFormat::fixed(8))] {
        meets(
            LengthDelimitedCodec::builder().length_field_length(width).length_adjustment(-(width as isize)),
            ours.length_includes_header(),
        );
    }
}

/// tokio-util skips an offset when it reads and writes none, so only its reading side can be met.
fn reads_ours(codec: &mut Builder, ours: FixedFormat) {
    let messages = bodies(&LENGTHS);
    let mut input = BytesMut::from(&encode(ours, 1 << 16, &messages)[..]);
    let mut theirs = codec.max_frame_length(1 << 16).new_codec();
    let mut read: Vec<Bytes> = Vec::new();
    while let Some(message) = theirs.decode(&mut input).unwrap() {
        read.push(message.freeze());
    }
    assert!(read == messages && input.is_empty(), "{}", WireFormat::from(ours));
}

#[test]
fn an_offset_meets_tokio_util() {
    reads_ours(
        LengthDelimitedCodec::builder().length_field_offset(2).length_field_length(3).num_skip(5),
        WireFormat::fixed(3).offset(2),
    );
    reads_ours(
        LengthDelimitedCodec::builder()
            .length_field_offset(5)
            .length_field_length(4)
            .little_endian()
            .length_adjustment(-9)
            .num_skip(9),
        WireFormat::fixed(4).offset(5).little_endian().length_includes_header(),
    );
}

/// The rows of the table in docs/wire-formats.md that are not above.
mod rows_of_the_table {
    use super::*;

    fn builder() -> Builder {
        LengthDelimitedCodec::builder()
    }

    /// What their codec reads from this, and what it leaves.
    fn theirs(codec: &mut Builder, wire: &[u8]) -> (Vec<Bytes>, usize) {
        let (mut codec, mut input) = (codec.new_codec(), BytesMut::from(wire));
        let mut read = Vec::new();
        while let Some(message) = codec.decode(&mut input).unwrap() {
            read.push(message.freeze());
        }
        (read, input.len())
    }

    fn written(codec: &mut Builder, message: &'static [u8]) -> Vec<u8> {
        let mut output = BytesMut::new();
        codec.new_codec().encode(Bytes::from_static(message), &mut output).unwrap();
        output.to_vec()
    }

    #[test]
    fn length_field_length() {
        for width in 3..=8 {
            meets(builder().length_field_length(width.into()), WireFormat::fixed(width));
            meets(
                builder().length_field_length(width.into()).little_endian(),
                WireFormat::fixed(width).little_endian(),
            );
        }
        let wire = written(builder().length_field_length(1), b"hello");
        assert_eq!((&wire[..], decode(WireFormat::u8(), 4096, &wire).1), (&b"\x05hello"[..], 0));
    }

    #[test]
    fn length_field_type() {
        meets(builder().length_field_type::<u16>(), WireFormat::u16_be());
        meets(builder().length_field_type::<u32>(), WireFormat::u32_be());
        meets(builder().length_field_type::<u64>(), WireFormat::u64_be());
    }

    #[test]
    fn native_endian() {
        let little = cfg!(target_endian = "little");
        meets(builder().native_endian(), if little { WireFormat::u32_le() } else { WireFormat::u32_be() });
    }

    #[test]
    fn length_field_offset_is_not_written_there() {
        let mut codec = builder();
        codec.length_field_offset(2).length_field_length(3);
        assert_eq!(written(&mut codec, b"hello"), b"\0\0\x05hello");
        assert_eq!(encode(WireFormat::fixed(3).offset(2), 4096, &[Bytes::from("hello")]), b"\0\0\0\0\x05hello");
        assert!(theirs(&mut codec, b"\0\0\x05hello").0.is_empty(), "nor is it read back");
    }

    #[test]
    fn num_skip_of_less_keeps_the_header_there() {
        let wire = encode(WireFormat::u32_be(), 4096, &[Bytes::from("hello")]);
        let read = theirs(builder().num_skip(0).length_adjustment(4), &wire);
        assert_eq!(read, (vec![Bytes::from("\0\0\0\x05hello")], 0));
        assert_eq!(decode(WireFormat::u32_be(), 4096, &wire), (vec![Bytes::from("hello")], 0));
    }

    #[test]
    fn num_skip_of_more_leaves_a_field_out_there() {
        let wire = b"\0\x07XYhello"; // The length counts the two bytes behind it.
        let read = theirs(builder().length_field_length(2).num_skip(4).length_adjustment(-2), wire);
        assert_eq!(read, (vec![Bytes::from("hello")], 0));
        assert_eq!(decode(WireFormat::u16_be(), 4096, wire), (vec![Bytes::from("XYhello")], 0));
    }

    #[test]
    fn max_frame_length_is_that_of_a_message_here_and_of_the_field_there() {
        let (ours, message) = (WireFormat::fixed(4).length_includes_header(), [7; 100]);
        let mut codec = builder();
        codec.length_adjustment(-4).max_frame_length(100);
        let mut wire = BytesMut::new();
        codec.new_codec().encode(&message[..], &mut wire).unwrap();
        assert!(codec.new_codec().decode(&mut wire.clone()).is_err());
        assert_eq!(decode(ours, 100, &wire), (vec![Bytes::copy_from_slice(&message)], 0));
        let refused = |max| Decoder::new(ours, max).unwrap().decode(&mut Bytes::from(wire.to_vec())).is_err();
        assert!(refused(99) && !refused(100));
    }
}

#[derive(Clone, PartialEq, Message)]
struct Note {
    #[prost(string, tag = "1")]
    from: String,
    #[prost(bytes = "bytes", tag = "2")]
    content: Bytes,
    #[prost(sint64, tag = "15")]
    at: i64,
}

fn notes() -> Vec<Note> {
    let notes = bodies(&LENGTHS).into_iter().enumerate();
    let notes = notes.map(|(i, content)| Note { from: format!("peer {i}"), content, at: -(i as i64) << 40 });
    // The default of every field is not written, so this message has no bytes at all.
    notes.chain([Note::default()]).collect()
}

#[test]
fn the_delimited_messages_of_prost_are_read_as_varint_frames() {
    let mut wire = Vec::new();
    for note in notes() {
        note.encode_length_delimited(&mut wire).unwrap();
    }
    let messages = read_clean(Source::pieces(&wire, &[7, 4000]), &config(WireFormat::varint(), 1 << 17));
    let read: Vec<Note> = messages.into_iter().map(|message| Note::decode(message).unwrap()).collect();
    assert_eq!(read, notes());
}

#[test]
fn varint_frames_are_read_by_prost_as_delimited_messages() {
    let messages: Vec<Bytes> = notes().iter().map(|note| note.encode_to_vec().into()).collect();
    let mut wire = Bytes::from(encode(WireFormat::varint(), 1 << 17, &messages));
    let read: Vec<Note> = notes().iter().map(|_| Note::decode_length_delimited(&mut wire).unwrap()).collect();
    assert_eq!(read, notes());
    assert!(wire.is_empty());
}
