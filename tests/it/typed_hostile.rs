//! Bytes that are no message, into each codec: each is an error that says why, the stack and the memory hold, and the stream
//! goes on.

use std::collections::BTreeMap;
use std::thread;

use buffstreams::typed::{Codec, Json, Postcard, PostcardError, Prost};
use buffstreams::{BoxError, Bytes, Error, Event, Listener, Reader, WireFormat};
use futures::StreamExt;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::net::{self, event, next, put, raw, run};
use crate::samples::{config, encode};
use crate::script::{Source, drive};
use crate::typed_codecs::{Reading, bytes_of};

fn good(value: i64) -> Reading {
    let before = Some(Box::new(Reading { value: 1, ..Reading::default() }));
    Reading { sensor: "roof".into(), value, samples: vec![1, 2, 3], before }
}

/// Readings in readings, of which none but the outermost can be made with a stack of usual size if they are followed.
fn nested(codec: &str, levels: usize) -> Vec<u8> {
    match codec {
        "postcard" => [0, 0, 0, 1].repeat(levels),
        "json" => br#"{"sensor":"","value":0,"samples":[],"before":"#.repeat(levels),
        _ => {
            // From the inside out, each the field of the next; written backwards, as a length comes before what it is of.
            let (mut reversed, mut length) = (Vec::new(), Vec::new());
            for _ in 0..levels {
                length.clear();
                prost::encoding::encode_varint(reversed.len() as u64, &mut length);
                reversed.extend(length.iter().rev().chain(&[0x22]));
            }
            reversed.reverse();
            reversed
        }
    }
}

/// What is wrong, and a word that its error has.
fn hostile(codec: &str) -> Vec<(Vec<u8>, &'static str)> {
    let whole = bytes_of(codec, &good(7)).to_vec();
    let left_over = [&whole[..], &[0]].concat();
    let random: Vec<u8> = (0..500_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect();
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    let cut = whole[..whole.len() - 1].to_vec();
    let deep = nested(codec, 200_000);
    match codec {
        "prost" => vec![
            (random, "varint"),
            (cut, "buffer underflow"),
            (left_over, "invalid tag"),
            ([&[0x0a][..], &huge].concat(), "buffer underflow"),
            ([&[0x1a][..], &huge].concat(), "buffer underflow"),
            (b"\x0a\x02\xff\xfe".to_vec(), "UTF-8"),
            (b"\x08\x01".to_vec(), "wire type"),
            (deep, "recursion limit"),
        ],
        "postcard" => vec![
            (random, "varint"),
            (Vec::new(), "end of buffer"),
            (cut, "end of buffer"),
            (left_over, "1 bytes are left over"),
            (huge.to_vec(), "end of buffer"),
            ([&[0, 0][..], &huge].concat(), "end of buffer"),
            (b"\x02\xff\xfe\0\0\0".to_vec(), "Utf8"),
            (b"\0\0\0\x02".to_vec(), "Option"),
            (deep, "more than 128 levels"),
        ],
        _ => vec![
            (random, "expected value"),
            (Vec::new(), "EOF"),
            (cut, "EOF"),
            (left_over, "trailing characters"),
            (b"{\"sensor\":\"\xff\"}".to_vec(), "unicode"),
            (b"{}".to_vec(), "missing field"),
            (b"{\"sensor\":1}".to_vec(), "expected a string"),
            (b"[".repeat(200_000), "invalid"),
            (deep, "recursion limit"),
        ],
    }
}

/// A message between each two that are none.
fn bodies(codec: &str) -> Vec<Bytes> {
    let hostile = hostile(codec).into_iter().zip(0..);
    hostile.flat_map(|((bytes, _), n)| [Bytes::from(bytes), bytes_of(codec, &good(n))]).collect()
}

fn in_a_reader<C: Codec<Reading> + Unpin>(codec: C, name: &str) {
    let format = WireFormat::u32_be();
    let wire = encode(format, 16 << 20, &bodies(name));
    let mut reader = Reader::new(Source::whole(&wire), &config(format, 16 << 20)).unwrap().typed(codec);
    for ((_, why), n) in hostile(name).into_iter().zip(0..) {
        match drive(reader.next()).unwrap() {
            Err(Error::Decode { source, .. }) => {
                let text = format!("{source} {source:?}");
                assert!(text.to_lowercase().contains(&why.to_lowercase()), "{name}: {text} does not say {why:?}");
            }
            other => panic!("{name}, {why}: {:?}", other.map(|_| ())),
        }
        assert!(drive(reader.next()).unwrap().unwrap() == good(n), "{name}, behind {why}");
    }
    assert!(drive(reader.next()).is_none());
}

#[test]
fn a_reader_says_what_is_wrong_and_goes_on() {
    in_a_reader(Prost::<Reading>::new(), "prost");
    in_a_reader(Postcard::<Reading>::new(), "postcard");
    in_a_reader(Json::<Reading>::new(), "json");
}

/// In the task of the connection, whose stack is that of a thread of the runtime.
async fn in_a_listener<C: Codec<Reading> + Send + Sync + 'static>(codec: C, name: &'static str) {
    let listener = Listener::bind("127.0.0.1:0", net::config()).await.unwrap();
    let (mut events, addr) = (listener.events(), listener.local_addr().ip().unwrap());
    let mut readings = listener.decode(move |message| codec.decode(message).map_err(Into::<BoxError>::into));
    let bodies: Vec<Bytes> = bodies(name).into_iter().filter(|body| body.len() < 1 << 20).collect();
    let (good_ones, bad_ones) = (hostile(name).len(), bodies.len() - hostile(name).len());
    let sending = thread::spawn(move || {
        let mut peer = raw(addr);
        bodies.iter().for_each(|body| put(&mut peer, body));
        peer
    });
    for n in 0..good_ones as i64 {
        assert!(next(&mut readings).await.unwrap().1 == good(n), "{name}");
    }
    for _ in 0..bad_ones {
        event(&mut events, |event| matches!(event, Event::DecodeFailed { .. }).then_some(())).await;
    }
    assert_eq!(readings.stats().connections, 1);
    sending.join().unwrap();
}

#[test]
fn a_listener_tells_of_each_and_goes_on() {
    run(async {
        in_a_listener(Prost::<Reading>::new(), "prost").await;
        in_a_listener(Postcard::<Reading>::new(), "postcard").await;
        in_a_listener(Json::<Reading>::new(), "json").await;
    });
}

/// Of each kind that there is, as what limits how deep a message goes has to let them all through.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Unit,
    Marker(Marker),
    Numbers((bool, i8, i16, i32, i64, i128), (u8, u16, u32, u64, u128), (f32, f64, char)),
    Text { map: BTreeMap<String, Vec<Option<u16>>>, unit: (), array: [Tuple; 2] },
    List(List),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Marker;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Tuple(u8, u8);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct List(Option<Box<List>>);

impl List {
    fn of(len: usize) -> Self {
        (0..len).fold(Self::default(), |list, _| Self(Some(Box::new(list))))
    }
}

#[test]
fn postcard_takes_every_kind_of_type() {
    let map = BTreeMap::from([("a".to_owned(), vec![Some(1), None]), ("b".to_owned(), Vec::new())]);
    let kinds = vec![
        Kind::Unit,
        Kind::Marker(Marker),
        Kind::Numbers((true, -1, -2, -3, -4, i128::MIN), (1, 2, 3, 4, u128::MAX), (0.5, 0.25, 'ß')),
        Kind::Text { map, unit: (), array: [Tuple(1, 2), Tuple(3, 4)] },
        Kind::List(List::of(10)),
    ];
    let bytes = postcard::to_extend(&kinds, Vec::new()).unwrap();
    assert_eq!(Codec::<Vec<Kind>>::decode(&Postcard::new(), &bytes), Ok(kinds));
    assert!(matches!(Codec::<Kind>::decode(&Postcard::new(), &[9]), Err(PostcardError::Decode(_))));
}

#[test]
fn postcard_goes_down_as_far_as_it_says() {
    let bytes = |len| postcard::to_extend(&List::of(len), Vec::new()).unwrap();
    // A newtype and an option for each, and for the last.
    assert_eq!(Codec::<List>::decode(&Postcard::new(), &bytes(63)), Ok(List::of(63)));
    assert_eq!(Codec::<List>::decode(&Postcard::new(), &bytes(64)), Err(PostcardError::TooDeep));
    // What lies beside each other is no deeper.
    let wide = vec![List::of(60); 1000];
    let bytes = postcard::to_extend(&wide, Vec::new()).unwrap();
    assert_eq!(Codec::<Vec<List>>::decode(&Postcard::new(), &bytes), Ok(wide));
}

#[test]
fn a_message_of_protocol_buffers_may_be_as_deep_as_its_crate_allows() {
    let deep = |levels| {
        (0..levels).fold(Reading::default(), |inner, _| Reading { before: Some(Box::new(inner)), ..Reading::default() })
    };
    let decode = |message: &Reading| Codec::<Reading>::decode(&Prost::new(), &message.encode_to_vec());
    assert!(decode(&deep(90)).is_ok());
    assert!(decode(&deep(110)).unwrap_err().to_string().contains("recursion limit"));
}
