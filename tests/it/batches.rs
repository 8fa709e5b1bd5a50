//! Messages a read at a time: the same ones, in order, within the inbox, and replied to, as one by one.

use std::io::{ErrorKind, Write};
use std::net::Shutdown;

use buffstreams::{Batch, Batches, Bytes, Connection, Error, Listener, Messages, Reader, WireFormat};
use futures::stream::FusedStream;
use futures::{FutureExt, SinkExt, StreamExt};
use proptest::prelude::*;

use crate::counting::allocations;
use crate::net::{SOON, config, frame, get, next, number, numbered, put, raw, rest, run, until};
use crate::samples::{bodies, config as format_config, encode, formats, read_clean};
use crate::script::{Read, Source, drive};

/// The messages in each of the ways in which they can be taken, which are the same.
fn taken(messages: &Messages) -> Vec<Bytes> {
    let bytes: Vec<Bytes> = messages.bytes().collect();
    let slices: Vec<&[u8]> = messages.iter().collect();
    assert_eq!(bytes, slices);
    assert_eq!(messages.into_iter().map(|message| messages.slice_ref(message)).collect::<Vec<_>>(), bytes);
    assert!(!bytes.is_empty(), "a batch has a message");
    bytes
}

#[test]
fn each_peers_messages_come_in_order_until_the_listener_has_closed() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer) = (listener.local_addr(), listener.closer());
        let mut batches = listener.batches();
        assert_eq!(batches.local_addr(), addr);
        let sending = async {
            let sending = (0..4).map(|id| {
                let addr = addr.clone();
                async move {
                    let mut sender = Connection::dial(addr, config()).await.unwrap();
                    for n in 0..2500 {
                        sender.feed(numbered(id, n)).await.unwrap();
                    }
                    sender.close().await.unwrap();
                }
            });
            futures::future::join_all(sending).await;
            closer.close().await.unwrap();
        };
        let receiving = async {
            let mut expected = [0; 4];
            while let Some((peer, batch)) = next(&mut batches).await {
                assert_eq!(batch.peer(), peer);
                for message in taken(&batch) {
                    let (sender, n) = number(&message);
                    assert_eq!(n, expected[sender as usize]);
                    expected[sender as usize] += 1;
                }
            }
            assert_eq!(expected, [2500; 4]);
        };
        futures::join!(sending, receiving);
        assert!(batches.is_terminated() && next(&mut batches).await.is_none());
        assert_eq!(batches.stats().messages, 10_000);
    });
}

#[test]
fn what_the_stream_has_left_of_a_read_comes_first() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut peer = raw(listener.local_addr().ip().unwrap());
        peer.write_all(&[frame(b"one"), frame(b"two"), frame(b"three")].concat()).unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "one");
        let mut batches = listener.batches();
        let mut rest = Vec::new();
        while rest.len() < 2 {
            rest.extend(next(&mut batches).await.unwrap().1.bytes());
        }
        assert_eq!(rest, ["two", "three"]);
        put(&mut peer, b"four");
        let (_, four) = next(&mut batches).await.unwrap();
        assert_eq!(format!("{four:?}"), format!("Batch {{ peer: {:?}, messages: Messages(1), .. }}", four.peer()));
        // It outlives the listener.
        drop(batches);
        assert!(super::net::rest(&mut peer).is_empty());
        assert_eq!(taken(&four), ["four"]);
    });
}

/// Takes batches, and keeps them, until none comes for want of room.
fn take_all(batches: &mut Batches, held: &mut Vec<Batch>) {
    let full = |held: &Vec<Batch>| held.iter().flat_map(|batch| batch.iter()).map(<[u8]>::len).sum::<usize>();
    let before = full(held);
    until(SOON, || {
        while let Some(Some((_, batch))) = batches.next().now_or_never() {
            held.push(batch);
        }
        full(held) > before
    });
}

#[test]
fn a_batch_that_is_held_keeps_its_part_of_the_inbox() {
    const LIMIT: usize = 256 << 10;
    const MESSAGES: u64 = 1000;
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(LIMIT)).await.unwrap();
        let addr = listener.local_addr();
        let mut batches = listener.batches();
        let sending = async_std::task::spawn(async move {
            let mut sender = Connection::dial(addr, config()).await.unwrap();
            for n in 0..MESSAGES {
                let mut message = numbered(0, n).to_vec();
                message.resize(4000, 0);
                sender.feed(message.into()).await.unwrap();
            }
            sender.close().await.unwrap();
        });
        let mut held = Vec::new();
        until(SOON, || {
            while let Some(Some((_, batch))) = batches.next().now_or_never() {
                held.push(batch);
            }
            batches.stats().bytes as usize > LIMIT / 2
        });
        for _ in 0..100 {
            async_std::task::yield_now().await;
            while let Some(Some((_, batch))) = batches.next().now_or_never() {
                held.push(batch);
            }
            assert!(batches.stats().bytes as usize <= LIMIT, "{} bytes are held", batches.stats().bytes);
        }
        // Messages that are kept by themselves take no part of it.
        let kept: Vec<Bytes> = held.iter().flat_map(|batch| batch.bytes()).collect();
        held.clear();
        take_all(&mut batches, &mut held);
        let mut all: Vec<Bytes> = kept.into_iter().chain(held.drain(..).flat_map(|batch| batch.bytes())).collect();
        while (all.len() as u64) < MESSAGES {
            all.extend(next(&mut batches).await.unwrap().1.bytes());
        }
        assert!(all.iter().zip(0..).all(|(message, n)| number(message) == (0, n)));
        sending.await;
    });
}

/// A peer that has closed its sending direction may be answered until its last batch is gone.
#[test]
fn a_batch_that_is_held_keeps_the_connection_for_replies() {
    run(async {
        let (incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config()).await.unwrap().split();
        let mut peer = raw(incoming.local_addr().ip().unwrap());
        put(&mut peer, b"question");
        peer.shutdown(Shutdown::Write).unwrap();
        let mut batches = incoming.batches();
        let (from, batch) = next(&mut batches).await.unwrap();
        // Its end is noticed meanwhile.
        for _ in 0..100 {
            assert!(batches.next().now_or_never().is_none());
            async_std::task::yield_now().await;
        }
        outgoing.send((from, "answer".into())).await.unwrap();
        assert_eq!(get(&mut peer), b"answer");
        assert_eq!(batches.stats().connections, 1);
        drop(batch);
        assert!(rest(&mut peer).is_empty(), "it ends now");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn a_reader_brings_the_same_messages_a_read_at_a_time(
        lengths in proptest::collection::vec(prop_oneof![0..300usize, 0..70_000usize], 0..12),
        format in proptest::sample::select(formats()),
        pieces in proptest::collection::vec(1..70_000usize, 1..5),
        singly in proptest::collection::vec(any::<bool>(), 1..7),
    ) {
        let config = format_config(format, 1 << 20);
        let fits = |len: &usize| !encode_fails(format, *len);
        let lengths: Vec<usize> = lengths.into_iter().filter(fits).collect();
        let wire = encode(format, 1 << 20, &bodies(&lengths));
        let mut reader = Reader::new(Source::pieces(&wire, &pieces), &config).unwrap();
        let mut received = Vec::new();
        for singly in singly.into_iter().cycle() {
            let more = if singly {
                drive(reader.next()).map(|message| received.push(message.unwrap()))
            } else {
                drive(reader.next_batch()).map(|messages| received.extend(taken(&messages.unwrap())))
            };
            if more.is_none() {
                break;
            }
        }
        prop_assert!(received == read_clean(Source::whole(&wire), &config));
        prop_assert_eq!(received.len(), lengths.len());
    }
}

fn encode_fails(format: WireFormat, len: usize) -> bool {
    buffstreams::wire::Encoder::new(format, 1 << 20).unwrap().max_message_size() < len
}

#[test]
fn an_error_comes_behind_the_batches_before_it_and_is_the_end() {
    let wire = [frame(b"one"), frame(b"two")].concat();
    let script = [Read::Bytes(wire), Read::Error(ErrorKind::ConnectionReset)];
    let mut reader = Reader::new(Source::new(script), &format_config(WireFormat::u32_be(), 100)).unwrap();
    assert_eq!(taken(&drive(reader.next_batch()).unwrap().unwrap()), ["one", "two"]);
    assert!(matches!(drive(reader.next_batch()), Some(Err(Error::Read(_)))));
    assert!(drive(reader.next_batch()).is_none() && drive(reader.next()).is_none());
}

#[test]
fn a_connection_brings_its_replies_a_read_at_a_time() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut peer = raw(listener.local_addr().ip().unwrap());
        let mut connections = listener.connections();
        let mut connection = next(&mut connections).await.unwrap();
        put(&mut peer, b"one");
        assert_eq!(taken(&connection.next_batch().await.unwrap().unwrap()), ["one"]);
        put(&mut peer, b"two");
        drop(peer);
        let (mut reading, _writing) = connection.split();
        assert_eq!(taken(&reading.next_batch().await.unwrap().unwrap()), ["two"]);
        assert!(reading.next_batch().await.is_none());
    });
}

#[test]
fn to_look_at_messages_where_they_lie_allocates_nothing() {
    let wire = encode(WireFormat::buffstreams(), 4096, &bodies(&[110; 500]));
    let mut reader = Reader::new(&wire[..], &format_config(WireFormat::buffstreams(), 4096)).unwrap();
    let batch = drive(reader.next_batch()).unwrap().unwrap();
    let (bytes, count) = allocations(|| batch.iter().map(<[u8]>::len).sum::<usize>());
    assert_eq!((bytes, count.allocated), (110 * 500, 0));
}

#[test]
#[should_panic(expected = "subset")]
fn a_slice_of_something_else_is_no_message() {
    let wire = frame(b"one");
    let mut reader = Reader::new(&wire[..], &format_config(WireFormat::u32_be(), 100)).unwrap();
    drive(reader.next_batch()).unwrap().unwrap().slice_ref(&[1, 2, 3]);
}
