//! What bytes that are no header look like: the guess in the error, and no guess from noise.

use std::io::Write;

use buffstreams::wire::Decoder;
use buffstreams::{Bytes, Error, Listener, LooksLike, Reason, WireFormat};
use futures::StreamExt;

use crate::net::{defaults, disconnected, raw, run};
use crate::samples::{config, encode, formats, presets, read_all};
use crate::script::{Read, Source};

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
        "PATCH /x",
        "TRACE /",
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

/// What a reader of this format says of these bytes, all received at once; `None` where they are frames to it.
fn told(format: WireFormat, max: usize, source: Source) -> Option<Option<LooksLike>> {
    match read_all(source, &config(format, max)).1? {
        Error::Frame(error) => Some(error.looks_like),
        Error::Truncated { looks_like, .. } => Some(looks_like),
        error => panic!("{error:?}"),
    }
}

/// The first bytes of a request to Kafka: https://kafka.apache.org/protocol
fn kafka(api: u8, version: u8, client: &str, rest: &[u8]) -> Vec<u8> {
    let request = [&[0, api, 0, version, 0, 0, 0, 1, 0, client.len() as u8], client.as_bytes(), rest].concat();
    [&(request.len() as u32).to_be_bytes()[..], &request].concat()
}

/// What peers of other protocols send first.
fn strangers() -> Vec<(LooksLike, Vec<Vec<u8>>)> {
    use LooksLike::*;
    let text = |lines: &[&str]| lines.iter().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>();
    let methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PROPFIND", "MKCOL"];
    let methods = methods.map(|method| format!("{method} /path HTTP/1.1\r\nHost: example.com\r\n\r\n").into_bytes());
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &[0x5a; 506][..]].concat();
    let server_hello = [&[0x16, 3, 3, 0, 0x7a, 2, 0, 0, 0x76, 3, 3], &[0x5a; 116][..]].concat();
    let signature = b"\r\n\r\n\0\r\nQUIT\n";
    let connect = |name: &[u8], version: u8| {
        let flags = [version, 2, 0, 60, 0, 6];
        let body = [&[0, name.len() as u8], name, &flags, b"sensor"].concat();
        [&[0x10, body.len() as u8][..], &body].concat()
    };
    let mut greeting = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL".to_vec();
    greeting.resize(64, 0);
    // The handshake of a session: its magic, version 1, and as much of the rest as was received.
    let handshake = |len: usize| [&b"\xf5buffstreams\x01\0\0\0"[..], &[0xa5; 16], &[0; 56]].concat()[..len].to_vec();
    let startup = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0".to_vec();
    vec![
        (Http, [&methods[..], &text(&["HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"])].concat()),
        (
            Http2,
            vec![
                [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat(),
                [&[0, 0, 12, 4, 0, 0, 0, 0, 0][..], &[0, 3, 0, 0, 0, 0x64, 0, 4, 0, 0, 0xff, 0xff]].concat(),
            ],
        ),
        (Tls, vec![hello, server_hello, vec![0x15, 3, 3, 0, 2, 2, 0x28]]),
        (Ssh, text(&["SSH-2.0-OpenSSH_9.6\r\n", "SSH-1.99-Cisco-1.25\n"])),
        (
            ProxyV1,
            text(&[
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
                "PROXY TCP6 ::1 ::1 56324 443\r\nGET / HTTP/1.1\r\n",
                "PROXY UNKNOWN\r\n",
            ]),
        ),
        (
            ProxyV2,
            vec![
                [&signature[..], &[0x21, 0x11, 0, 12], &[192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 4, 1, 0xbb]].concat(),
                [&signature[..], &[0x20, 0, 0, 0]].concat(),
            ],
        ),
        (
            Redis,
            text(&[
                "*1\r\n$4\r\nPING\r\n",
                "*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n",
                "*12\r\n$3\r\nDEL\r\n",
                "+PONG\r\n",
                "-NOAUTH Authentication required.\r\n",
                "-ERR unknown command 'x', with args beginning with: \r\n",
                "-DENIED Redis is running in protected mode because protected mode is enabled\r\n",
            ]),
        ),
        (Smtp, text(&["220 mx.example.com ESMTP Postfix\r\n", "EHLO client.example.com\r\n", "HELO client\r\n"])),
        (Amqp, vec![b"AMQP\0\0\x09\x01".to_vec(), b"AMQP\0\x01\0\0".to_vec(), b"AMQP\x03\x01\0\0".to_vec()]),
        (Zmtp, vec![greeting.clone(), greeting[..10].to_vec()]),
        (Mqtt, vec![connect(b"MQTT", 4), connect(b"MQTT", 5), connect(b"MQIsdp", 3)]),
        (Socks5, vec![vec![5, 1, 0], vec![5, 2, 0, 2], vec![5, 3, 0, 1, 2]]),
        (
            Postgres,
            vec![
                startup,
                vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f],
                vec![0, 0, 0, 8, 4, 0xd2, 0x16, 0x30],
                vec![0, 0, 0, 16, 4, 0xd2, 0x16, 0x2e, 0, 0, 1, 2, 3, 4, 5, 6],
            ],
        ),
        (Kafka, vec![kafka(18, 3, "rdkafka", b"\0\x0blibrdkafka\x062.3.0\0"), kafka(3, 9, "producer-1", &[1, 0, 0])]),
        (Session, vec![handshake(88), handshake(13)]),
        (GrpcPrefix, vec![b"\0\0\0\0\x07\x0a\x05hello\0\0\0\0\x07\x0a\x05world".to_vec()]),
        (
            Json,
            text(&[
                "{\"jsonrpc\":\"2.0\",\"method\":\"subtract\",\"params\":[42,23],\"id\":1}\n",
                "{ \"level\" : \"info\", \"text\" : \"started\" }\n{ \"level\" : \"info\" }\n",
            ]),
        ),
        (
            Text,
            text(&[
                "hello there\r\n",
                "220 ftp.example.com FTP server ready.\r\n",
                "<34>Oct 11 22:14:15 host su: failed\n",
            ]),
        ),
    ]
}

#[test]
fn strangers_are_named_at_every_preset() {
    let mut times = 0;
    for (name, wires) in strangers() {
        for wire in wires {
            for format in presets() {
                for max in [255, 4096, 65_536, 16 << 20] {
                    // Some bytes are frames to some formats.
                    let Some(looks_like) = told(format, max, Source::whole(&wire)) else { continue };
                    assert_eq!(looks_like, Some(name), "{format}, {max}: {}", wire.escape_ascii());
                    times += 1;
                }
            }
        }
    }
    assert!(times > 1500, "{times}");
}

#[test]
fn text_of_any_length_is_not_taken_for_a_varint() {
    let mut rng = fastrand::Rng::with_seed(1);
    for len in (1..2000).step_by(7) {
        let letters: Vec<u8> = (0..len).map(|_| rng.alphabetic() as u8).collect();
        let words: Vec<u8> = (0..len).map(|_| b"etaoin shrdlu,.  "[rng.usize(..17)]).collect();
        for text in [letters, words] {
            for format in presets() {
                let looks_like = told(format, 4096, Source::whole(&text)).flatten();
                assert_eq!(looks_like, None, "{format}: {}", text.escape_ascii());
                let bare = Decoder::new(format, 4096).unwrap().header(&text).err().and_then(|error| error.looks_like);
                assert_eq!(bare, None, "{format}: {}", text.escape_ascii());
            }
        }
    }
}

/// A client that sends a request and waits shows no more than one frame.
#[test]
fn a_narrower_buffstreams_header_is_named_by_one_short_message() {
    let buffstreams = WireFormat::buffstreams();
    for (theirs, width, ours) in [(100, 2, 4096), (255, 2, 16 << 20), (4096, 3, 65_536), (65_536, 4, 16 << 20)] {
        for len in [5, 20, 99] {
            let wire = encode(buffstreams, theirs, &[text(len)]);
            let expected = LooksLike::BuffstreamsWidth { width };
            assert_eq!(told(buffstreams, ours, Source::whole(&wire)), Some(Some(expected)), "{theirs}, {ours}, {len}");
        }
    }
}

/// The usual mistake, the way in which the place is lost only behind the first frame.
#[test]
fn a_wider_buffstreams_header_is_named_by_its_width() {
    let mut rng = fastrand::Rng::with_seed(1);
    let buffstreams = WireFormat::buffstreams();
    for (theirs, width, ours) in [(65_536, 4, 4096), (16 << 20, 5, 4096), (256, 3, 255), (16 << 20, 5, 65_536)] {
        let mut named = [0; 3];
        for _ in 0..200 {
            let lengths: Vec<usize> = (0..4).map(|_| rng.usize(1..200)).collect();
            let messages: Vec<Bytes> =
                lengths.iter().map(|len| (0..*len).map(|_| rng.u8(..)).collect::<Vec<u8>>().into()).collect();
            let wire = encode(buffstreams, theirs, &messages);
            let second = width + lengths[0];
            let expected = Some(LooksLike::BuffstreamsWidth { width });
            named[0] += u32::from(told(buffstreams, ours, Source::whole(&wire)).flatten() == expected);
            named[1] += u32::from(told(buffstreams, ours, Source::split(&wire, &[second])).flatten() == expected);
            // A decoder keeps nothing, but mostly it is the second frame that it looks for, and how far off is always the same.
            let (decoder, mut input) = (Decoder::new(buffstreams, ours).unwrap(), Bytes::from(wire));
            let error = loop {
                match decoder.decode(&mut input) {
                    Ok(Some(_)) => {}
                    Ok(None) => break None,
                    Err(error) => break error.looks_like,
                }
            };
            named[2] += u32::from(error == expected);
        }
        let [whole, apart, bare] = named;
        assert!(whole > 196 && apart > 196 && bare > 140, "{theirs} there and {ours} here: {named:?} of 200");
    }
}

#[test]
fn a_length_that_includes_the_header_is_recognised_and_one_that_does_not() {
    for plain in [WireFormat::fixed(2), WireFormat::fixed(4), WireFormat::fixed(4).little_endian().offset(2)] {
        let counted = plain.length_includes_header();
        let messages = [text(110), text(31), text(40)];
        let wire = encode(counted, 4096, &messages);
        let looks_like = told(plain.into(), 4096, Source::whole(&wire)).unwrap();
        assert_eq!(looks_like, Some(LooksLike::LengthIncludesHeader), "{}", WireFormat::from(plain));
        let wire = encode(plain, 4096, &messages);
        let looks_like = told(counted.into(), 4096, Source::whole(&wire)).unwrap();
        assert_eq!(looks_like, Some(LooksLike::LengthExcludesHeader), "{}", WireFormat::from(counted));
    }
}

/// What it says reads as the header of a long message, and then nothing more comes.
#[test]
fn a_peer_that_closes_inside_a_frame_is_named() {
    let request = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n";
    for max in [usize::MAX, 2 << 30] {
        let (messages, error) = read_all(Source::pieces(request, &[1]), &config(WireFormat::u32_be(), max));
        assert_eq!(messages, [] as [Bytes; 0]);
        let error = error.unwrap();
        assert!(matches!(error, Error::Truncated { got: 37, looks_like: Some(LooksLike::Http), .. }), "{error:?}");
        assert_eq!(
            error.to_string(),
            "the stream ended inside a frame: 37 of 1195725860 bytes received; they look like HTTP"
        );
    }
    // The other byte order, within the limit.
    let wire = encode(WireFormat::u16_le(), 4096, &[text(110), text(20)]);
    let looks_like = told(WireFormat::u16_be(), 65_535, Source::whole(&wire)).unwrap();
    assert_eq!(looks_like, Some(LooksLike::OtherByteOrder));
}

#[test]
fn the_reason_of_a_peer_that_is_gone_names_it_as_well() {
    run(async {
        let config = defaults().wire_format(WireFormat::u32_be()).max_message_size(usize::MAX);
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let reading = async_std::task::spawn(async move { while listener.next().await.is_some() {} });
        let mut browser = raw(addr);
        let local = browser.local_addr().unwrap();
        browser.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        drop(browser);
        let reason = disconnected(&mut events, local).await;
        assert!(matches!(reason, Reason::Truncated { got: 18, looks_like: Some(LooksLike::Http), .. }), "{reason:?}");
        reading.cancel().await;
    });
}

#[test]
fn a_stream_of_the_configured_format_that_is_cut_is_not_given_a_name() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut letters = |len: usize| -> Bytes { (0..len).map(|_| rng.alphabetic() as u8).collect::<Vec<u8>>().into() };
    for format in formats() {
        let wire = encode(format, 200, &[3, 70, 0, 9, 120].map(&mut letters));
        for cut in 0..wire.len() {
            for source in [Source::whole(&wire[..cut]), Source::pieces(&wire[..cut], &[10])] {
                assert_eq!(told(format, 200, source).flatten(), None, "{format}, cut at {cut}");
            }
        }
        // And a message over the limit is just that.
        assert_eq!(told(format, 100, Source::whole(&wire)).flatten(), None, "{format}");
    }
}

#[test]
fn the_start_of_the_connection_is_remembered_while_its_first_frames_pass() {
    // To a format with a length of one byte any bytes are frames: two of them pass, one after the other, before it ends.
    let request =
        b"GET /index.html HTTP/1.1\r\nHost: example.com\r\nAccept: text/html\r\nUser-Agent: curl/8.5.0\r\n\r\n";
    assert_eq!(told(WireFormat::u8(), 255, Source::pieces(request, &[1])), Some(Some(LooksLike::Http)));
    assert_eq!(told(WireFormat::varint(), 4096, Source::pieces(request, &[30])), Some(Some(LooksLike::Http)));
    // A header whose bytes pass as frames, one at a time.
    let startup = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    assert_eq!(
        told(WireFormat::buffstreams(), 4096, Source::pieces(startup, &[3])),
        Some(None),
        "8 bytes are not enough"
    );
    assert_eq!(told(WireFormat::u16_be(), 65_535, Source::pieces(startup, &[1])), Some(Some(LooksLike::Postgres)));
}

#[test]
fn a_connection_that_was_in_order_for_some_time_is_not_given_a_name() {
    // A message of 71 bytes that starts as a request does behind its `G`, then others, one in each read, then half of one.
    let first = [&b"GET / HTTP/1.1\r\nHost: "[..], &[b'x'; 49]].concat();
    for (batches, expected) in [(3, Some(LooksLike::Http)), (40, None)] {
        let others = (0..batches).map(|_| vec![2, 7, 7]);
        let reads = [first.clone()].into_iter().chain(others).chain([vec![9, 9]]);
        let script = reads.flat_map(|bytes| [Read::Bytes(bytes), Read::Pending]);
        assert_eq!(told(WireFormat::u8(), 255, Source::new(script)), Some(expected), "{batches} batches");
    }
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
