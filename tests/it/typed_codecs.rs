//! Codecs on a wire in memory: what they write and read is what bytes would be, whatever goes wrong leaves nothing behind, and
//! no bytes of a peer do harm.

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use buffstreams::typed::{Buffer, BufferFull, Codec, Json, Postcard, Prost};
use buffstreams::{Bytes, Error, Reader, WireFormat, Writer};
use bytes::BufMut;
use futures::{SinkExt, StreamExt};
use proptest::prelude::*;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::counting::{Count, allocations};
use crate::samples::{config, encode, formats};
use crate::script::{Source, Target, drive};

#[derive(Clone, PartialEq, Message, Serialize, Deserialize)]
pub(crate) struct Reading {
    #[prost(string, tag = "1")]
    pub(crate) sensor: String,
    #[prost(sint64, tag = "2")]
    pub(crate) value: i64,
    #[prost(uint32, repeated, tag = "3")]
    pub(crate) samples: Vec<u32>,
    #[prost(message, optional, boxed, tag = "4")]
    pub(crate) before: Option<Box<Reading>>,
}

/// Of no memory of its own.
#[derive(Clone, Copy, PartialEq, Message, Serialize, Deserialize)]
pub(crate) struct Point {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(double, tag = "2")]
    pub(crate) x: f64,
    #[prost(bool, tag = "3")]
    pub(crate) valid: bool,
}

/// What each codec makes of a message, by the functions of its own crate.
pub(crate) fn bytes_of<T: Message + Serialize>(codec: &str, message: &T) -> Bytes {
    match codec {
        "prost" => message.encode_to_vec().into(),
        "postcard" => postcard::to_extend(message, Vec::new()).unwrap().into(),
        _ => serde_json::to_vec(message).unwrap().into(),
    }
}

fn reading() -> impl Strategy<Value = Reading> {
    let len = prop_oneof![0..20usize, 60..70usize, 100..140usize, 16_300..16_500usize];
    (len, any::<i64>(), proptest::collection::vec(any::<u32>(), 0..40), any::<bool>()).prop_map(
        |(len, value, samples, nested)| {
            let before = nested.then(|| Box::new(Reading { value: 1, ..Reading::default() }));
            Reading { sensor: "ä".repeat(len / 2), value, samples, before }
        },
    )
}

/// Sends each by this codec, and reads them back, and holds the wire against that of bytes. Those over the limit are refused.
fn as_bytes<C: Codec<Reading> + Unpin>(
    (name, codec): (&str, impl Fn() -> C),
    format: WireFormat,
    messages: &[(Reading, bool)],
) {
    let config = config(format, 20_000);
    let max = buffstreams::wire::Encoder::new(format, 20_000).unwrap().max_message_size();
    let target = Target::default();
    let mut writer = Writer::new(target.clone(), &config).unwrap().typed(codec());
    let mut sent = Vec::new();
    for (message, in_place) in messages {
        let sending = if *in_place {
            drive(async {
                while !writer.try_feed(message)? {
                    writer.ready().await?;
                }
                Ok(())
            })
        } else {
            drive(writer.feed(message.clone()))
        };
        let len = bytes_of(name, message).len();
        match sending {
            Ok(()) => sent.push(message.clone()),
            Err(Error::Encode { source, .. }) => {
                assert_eq!(source.downcast_ref::<BufferFull>().map(|full| full.max), Some(max), "{source:?}");
                assert!(len > max, "{name}: {len} bytes fit");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    drive(writer.close()).unwrap();
    let bodies: Vec<Bytes> = sent.iter().map(|message| bytes_of(name, message)).collect();
    let wire = target.log().taken.clone();
    assert!(wire == encode(format, 20_000, &bodies), "{name}, {format}");
    let mut reader = Reader::new(Source::pieces(&wire, &[1000, 3]), &config).unwrap().typed(codec());
    for message in sent {
        assert!(drive(reader.next()).unwrap().unwrap() == message, "{name}, {format}");
    }
    assert!(drive(reader.next()).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn typed_messages_are_on_the_wire_as_their_bytes(
        messages in proptest::collection::vec((reading(), any::<bool>()), 0..12),
        format in proptest::sample::select(formats()),
    ) {
        as_bytes(("prost", Prost::<Reading>::new), format, &messages);
        as_bytes(("postcard", Postcard::<Reading>::new), format, &messages);
        as_bytes(("json", Json::<Reading>::new), format, &messages);
    }

    /// Bytes of anybody, and messages of which something is changed.
    #[test]
    fn no_bytes_do_harm(
        mut bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            reading().prop_map(|message| bytes_of("prost", &message).to_vec()),
            reading().prop_map(|message| bytes_of("postcard", &message).to_vec()),
            reading().prop_map(|message| bytes_of("json", &message).to_vec()),
        ],
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        if !bytes.is_empty() {
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len() - cut.index(bytes.len()));
        }
        harmless(&bytes);
    }
}

/// Each codec reads it, or says why not, with memory in proportion to what it has.
fn harmless(bytes: &[u8]) {
    fn decoded<C: Codec<Reading>>(codec: C, bytes: &[u8]) -> Count {
        allocations(|| drop(codec.decode(bytes).map_err(Into::into))).1
    }
    let most = 64 * bytes.len() + (8 << 10);
    for count in [decoded(Prost::new(), bytes), decoded(Postcard::new(), bytes), decoded(Json::new(), bytes)] {
        assert!(count.allocated <= most && count.kept == 0, "{count:?} for {} bytes", bytes.len());
    }
}

#[test]
fn what_announces_much_gets_nothing_for_it() {
    let long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];
    // The length of a string, of packed numbers, and of a message in a message.
    for tag in [0x0a, 0x1a, 0x22] {
        harmless(&[&[tag][..], &long].concat());
        harmless(&[&[tag][..], &[0xff, 0xff, 0xff, 0x07]].concat());
    }
    harmless(&long);
    harmless(&[&[0, 0][..], &long].concat());
    harmless(&[&[0, 0][..], &[0xff, 0xff, 0xff, 0x07]].concat());
    harmless(&b"[".repeat(100_000));
    harmless(&br#"{"before":"#.repeat(10_000));
    // Messages in messages, each of which fills the one around it.
    let mut nested = Vec::new();
    for _ in 0..2000 {
        nested = Reading { before: None, ..Reading::default() }.encode_to_vec().into_iter().chain(nested).collect();
        let mut outer = vec![0x22];
        prost::encoding::encode_varint(nested.len() as u64, &mut outer);
        nested = outer.into_iter().chain(nested).collect();
    }
    assert!(Codec::<Reading>::decode(&Prost::new(), &nested).is_err());
    harmless(&nested);
}

#[test]
fn what_is_left_over_behind_a_message_is_an_error() {
    let one = Reading { value: 7, ..Reading::default() };
    let with_more = |name| [&bytes_of(name, &one)[..], &[0]].concat();
    assert!(Codec::<Reading>::decode(&Postcard::new(), &with_more("postcard")).is_err());
    assert!(Codec::<Reading>::decode(&Json::new(), &with_more("json")).is_err());
    assert!(Codec::<Reading>::decode(&Prost::new(), &with_more("prost")).is_err());
}

/// What goes wrong while a message is encoded, and how much is written before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Wrong {
    Fails(usize),
    Panics(usize),
    /// It writes on until it is stopped.
    Endless,
    /// It writes on, and does not notice that it is stopped.
    Deaf,
    /// It does not ask how much room there is.
    Overruns,
    /// It asks for more room than there is, and goes on without.
    Reserves,
    Nothing(usize),
}

pub(crate) struct Faulty;

#[derive(Debug, thiserror::Error)]
#[error("it fails")]
pub(crate) struct Fails;

impl Codec<Wrong> for Faulty {
    type Error = Fails;

    fn encode(&self, wrong: &Wrong, into: &mut Buffer<'_>) -> Result<(), Fails> {
        match *wrong {
            Wrong::Fails(len) => into.put(&vec![1; len]).map_err(|_| Fails).and(Err(Fails)),
            Wrong::Panics(len) => {
                into.put(&vec![2; len]).unwrap();
                panic!("it panics");
            }
            Wrong::Endless => loop {
                into.write_all(&[3; 1000]).map_err(|_| Fails)?;
            },
            Wrong::Deaf => {
                for n in 0..100_000_u32 {
                    let _ = into.put(&n.to_be_bytes());
                }
                Ok(())
            }
            Wrong::Overruns => {
                let mut buf = into.as_buf_mut();
                loop {
                    buf.put_u64(4);
                }
            }
            Wrong::Reserves => {
                assert!(into.reserve(into.remaining()).is_ok() && into.reserve(into.remaining() + 1).is_err());
                Ok(())
            }
            Wrong::Nothing(len) => {
                assert!(into.is_empty());
                into.as_buf_mut().put_bytes(5, len);
                assert_eq!((into.len(), into.write(&[]).unwrap()), (len, 0));
                into.flush().map_err(|_| Fails)
            }
        }
    }

    fn decode(&self, message: &[u8]) -> Result<Wrong, Fails> {
        match message {
            [2, ..] => panic!("it panics"),
            [5, ..] => Ok(Wrong::Nothing(message.len())),
            _ => Err(Fails),
        }
    }
}

pub(crate) const WRONGS: [Wrong; 8] = [
    Wrong::Fails(0),
    Wrong::Fails(10_000),
    Wrong::Panics(0),
    Wrong::Panics(10_000),
    Wrong::Endless,
    Wrong::Deaf,
    Wrong::Overruns,
    Wrong::Reserves,
];

#[test]
fn what_is_not_encoded_leaves_the_batch_as_it_was() {
    for format in formats() {
        let target = Target::default();
        let mut writer = Writer::new(target.clone(), &config(format, 100_000)).unwrap().typed(Faulty);
        let max = buffstreams::wire::Encoder::new(format, 100_000).unwrap().max_message_size();
        let mut sent = Vec::new();
        for (round, wrong) in WRONGS.iter().cycle().take(40).enumerate() {
            let tried = catch_unwind(AssertUnwindSafe(|| drive(writer.feed(*wrong))));
            match (wrong, tried) {
                (Wrong::Panics(_) | Wrong::Overruns, tried) => assert!(tried.is_err(), "{wrong:?}"),
                (Wrong::Fails(len), Ok(Err(Error::Encode { source, .. }))) if *len <= max => {
                    assert!(source.is::<Fails>(), "{source:?}");
                }
                (_, Ok(Err(Error::Encode { source, .. }))) => assert!(source.is::<BufferFull>(), "{source:?}"),
                (_, other) => panic!("{format}, {wrong:?}: {other:?}"),
            }
            // Between them, messages go.
            let len = (round * 997).min(max);
            drive(writer.feed(Wrong::Nothing(len))).unwrap();
            sent.push(Bytes::from(vec![5; len]));
        }
        drive(writer.close()).unwrap();
        assert!(target.log().taken == encode(format, 100_000, &sent), "{format}");
    }
}

#[test]
fn a_sink_that_is_closed_gives_back_the_bytes_of_a_message() {
    let script = [crate::script::Write::Error(std::io::ErrorKind::ConnectionReset)];
    let mut writer =
        Writer::new(Target::new(script), &config(WireFormat::u32_be(), 1000)).unwrap().typed(Prost::<Reading>::new());
    let message = Reading { value: 7, ..Reading::default() };
    drive(writer.send(message.clone())).unwrap_err();
    let error = writer.try_feed(&message).unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");
    assert_eq!(error.into_unsent(), Some(bytes_of("prost", &message)));
    assert_eq!(writer.into_inner().into_unsent(), [bytes_of("prost", &message)]);
}

/// The stream goes on behind what is not decoded.
#[test]
fn what_does_not_decode_is_an_item_and_the_next_comes() {
    let bodies: Vec<Bytes> = [&[5, 5][..], &[1], &[2], &[5]].iter().map(|body| Bytes::from_static(body)).collect();
    let wire = encode(WireFormat::u32_be(), 100, &bodies);
    let mut reader = Reader::new(&wire[..], &config(WireFormat::u32_be(), 100)).unwrap().typed(Faulty);
    assert!(matches!(drive(reader.next()), Some(Ok(Wrong::Nothing(2)))));
    let error = drive(reader.next()).unwrap().unwrap_err();
    assert!(matches!(&error, Error::Decode { source, .. } if source.is::<Fails>()), "{error:?}");
    assert!(catch_unwind(AssertUnwindSafe(|| drive(reader.next()))).is_err());
    assert!(matches!(drive(reader.next()), Some(Ok(Wrong::Nothing(1)))));
    assert!(drive(reader.next()).is_none());
}

/// What a message of no memory of its own allocates, sent and received, with this codec.
fn allocated<C: Codec<Point> + Unpin>(codec: impl Fn() -> C) -> (usize, usize) {
    let config = config(WireFormat::buffstreams(), 4096);
    let point = |id| Point { id, x: 0.5, valid: true };
    let mut io = futures::io::sink();
    let mut writer = Writer::new(&mut io, &config).unwrap().typed(codec());
    let mut send = || {
        for id in 0..10_000 {
            drive(writer.feed(point(id))).unwrap();
        }
    };
    send();
    let ((), sending) = allocations(send);
    let mut wire = Vec::new();
    let mut writer = Writer::new(&mut wire, &config).unwrap().typed(codec());
    for id in 0..10_000 {
        drive(writer.feed(point(id))).unwrap();
    }
    drive(writer.close()).unwrap();
    drop(writer);
    // The pool of buffers is the process's: another test may hold them all in one attempt.
    let receiving = (0..20).map(|_| {
        let mut reader = Reader::new(&wire[..], &config).unwrap().typed(codec());
        let mut receive = |ids: std::ops::Range<u64>| {
            for id in ids {
                assert_eq!(drive(reader.next()).unwrap().unwrap(), point(id));
            }
        };
        allocations(|| receive(0..10_000)).1.allocated
    });
    (sending.allocated, receiving.min().unwrap())
}

#[test]
fn a_message_without_memory_of_its_own_allocates_nothing() {
    // `drive` makes a waker each time, which is a few bytes.
    let (((), waker), calls) = (allocations(|| drive(async {})), 10_000);
    for (name, (sending, receiving)) in [
        ("prost", allocated(Prost::<Point>::new)),
        ("postcard", allocated(Postcard::<Point>::new)),
        ("json", allocated(Json::<Point>::new)),
    ] {
        assert_eq!((sending, receiving), (calls * waker.allocated, calls * waker.allocated), "{name}");
    }
}

#[test]
fn a_message_that_was_too_long_keeps_no_memory() {
    for wrong in [Wrong::Endless, Wrong::Nothing(8 << 20)] {
        let mut io = futures::io::sink();
        let (writer, count) = allocations(|| {
            let mut writer = Writer::new(&mut io, &config(WireFormat::u32_be(), 8 << 20)).unwrap().typed(Faulty);
            let sent = drive(writer.send(wrong));
            assert_eq!(sent.is_ok(), matches!(wrong, Wrong::Nothing(_)));
            writer
        });
        assert!(count.kept <= 256 << 10, "{wrong:?}: {count:?}");
        drop(writer);
    }
}
