//! What bytes that are no header look like: the guess in the error, and no guess from noise.

use buffstreams::wire::Decoder;
use buffstreams::{Bytes, LooksLike, WireFormat};

use crate::samples::encode;

/// A message of letters, as most are: bytes of zero could be the rest of a wider header.
fn text(len: usize) -> Bytes {
    vec![b'x'; len].into()
}

fn guess(format: impl Into<WireFormat>, max: usize, wire: &[u8]) -> Option<LooksLike> {
    Decoder::new(format, max).unwrap().header(wire).expect_err("it reads as a header").looks_like
}

#[test]
fn a_web_browser_is_recognised() {
    for start in [
        "GET / HTTP/1.1\r\n",
        "POST /x",
        "PUT /x",
        "HEAD /",
        "HTTP/1.1 200 OK",
        "DELETE /",
        "OPTIONS *",
        "PRI * HTTP/2.0",
    ] {
        assert_eq!(guess(WireFormat::buffstreams(), 4096, start.as_bytes()), Some(LooksLike::Http), "{start}");
        assert_eq!(guess(WireFormat::u32_be(), 4096, start.as_bytes()), Some(LooksLike::Http), "{start}");
    }
}

#[test]
fn a_tls_client_is_recognised() {
    let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];
    assert_eq!(guess(WireFormat::buffstreams(), 4096, &hello), Some(LooksLike::Tls));
    assert_eq!(guess(WireFormat::u32_le(), 4096, &hello), Some(LooksLike::Tls));
}

#[test]
fn an_ssh_peer_is_recognised() {
    assert_eq!(guess(WireFormat::buffstreams(), 4096, b"SSH-2.0-OpenSSH_9.2"), Some(LooksLike::Ssh));
    assert_eq!(guess(WireFormat::u16_be(), 4096, b"SSH-2.0-OpenSSH_9.2"), Some(LooksLike::Ssh));
}

#[test]
fn the_other_byte_order_is_recognised() {
    for (big, little) in [
        (WireFormat::u16_be(), WireFormat::u16_le()),
        (WireFormat::u32_be(), WireFormat::u32_le()),
        (WireFormat::fixed(3).offset(2).into(), WireFormat::fixed(3).offset(2).little_endian().into()),
    ] {
        let messages = [text(110), text(3), text(0)];
        assert_eq!(guess(big, 4096, &encode(little, 4096, &messages)), Some(LooksLike::OtherByteOrder), "{big}");
        assert_eq!(guess(little, 4096, &encode(big, 4096, &messages)), Some(LooksLike::OtherByteOrder), "{little}");
    }
}

#[test]
fn the_other_end_has_255_where_this_one_has_256() {
    let wire = encode(WireFormat::buffstreams(), 255, &[text(110), text(20)]);
    assert_eq!(guess(WireFormat::buffstreams(), 256, &wire), Some(LooksLike::BuffstreamsWidth { width: 2 }));
}

#[test]
fn a_narrower_buffstreams_header_of_any_width_is_recognised() {
    for (theirs, width) in [(1, 2), (255, 2), (256, 3), (65_535, 3), (65_536, 4)] {
        let len = theirs.min(200);
        let wire = encode(WireFormat::buffstreams(), theirs, &[text(len), text(len)]);
        assert_eq!(guess(WireFormat::buffstreams(), 16 << 20, &wire), Some(LooksLike::BuffstreamsWidth { width }));
    }
}

#[test]
fn fixed_lengths_at_a_buffstreams_end_are_recognised() {
    let buffstreams = WireFormat::buffstreams();
    let cases = [
        (WireFormat::u32_be(), 300, LooksLike::FixedBigEndian { width: 4 }),
        (WireFormat::u16_be(), 110, LooksLike::FixedBigEndian { width: 2 }),
        (WireFormat::u24_be(), 300, LooksLike::FixedBigEndian { width: 3 }),
        // An odd length reads as a negative one, an even one as half of it.
        (WireFormat::u32_le(), 111, LooksLike::FixedLittleEndian { width: 4 }),
        (WireFormat::u16_le(), 111, LooksLike::FixedLittleEndian { width: 2 }),
        (WireFormat::fixed(8).little_endian().into(), 111, LooksLike::FixedLittleEndian { width: 8 }),
    ];
    for (theirs, len, looks_like) in cases {
        let wire = encode(theirs, 4096, &[text(len), text(len)]);
        assert_eq!(guess(buffstreams, 4096, &wire), Some(looks_like), "{theirs}");
    }
}

#[test]
fn a_varint_is_recognised() {
    let wire = encode(WireFormat::varint(), 4096, &[text(10), text(300)]);
    assert_eq!(guess(WireFormat::u32_be(), 4096, &wire), Some(LooksLike::Varint));
}

#[test]
fn noise_is_not_given_a_name() {
    let counted = WireFormat::fixed(4).length_includes_header();
    assert_eq!(guess(counted, 4096, &[0; 64]), None, "a run of zeros fits every format");
    assert_eq!(guess(WireFormat::buffstreams(), 4096, &[0xff; 64]), None);
    assert_eq!(guess(WireFormat::u32_be(), 4096, &[0xa5; 64]), None);
    // The header alone tells nothing: any format could have written it.
    assert_eq!(guess(WireFormat::u32_be(), 4096, &[0x0a, 0, 0, 0]), None);
}

#[test]
fn a_guess_is_in_the_text() {
    let error = Decoder::new(WireFormat::u32_be(), 4096).unwrap().header(b"GET / HTTP/1.1").unwrap_err();
    assert_eq!(
        error.to_string(),
        "a message of 1195725856 bytes is announced: at most 4096 are allowed (the bytes are 47 45 54 20; they look like \
         HTTP)"
    );
    for (guess, text) in [
        (LooksLike::Tls, "the start of a TLS session"),
        (LooksLike::Ssh, "the greeting of an SSH peer"),
        (LooksLike::OtherByteOrder, "the other byte order"),
        (
            LooksLike::BuffstreamsWidth { width: 2 },
            "a buffstreams header of 2 bytes: is max_message_size the same at both ends?",
        ),
        (LooksLike::FixedBigEndian { width: 4 }, "a big-endian length of 4 bytes"),
        (LooksLike::FixedLittleEndian { width: 8 }, "a little-endian length of 8 bytes"),
        (LooksLike::Varint, "protobuf's varint delimiter"),
    ] {
        assert_eq!(guess.to_string(), text);
    }
}
