//! Messages that are decoded in the tasks of their connections: each peer's in order, within the inbox, and what becomes of those
//! that do not decode.

use std::array::TryFromSliceError;
use std::collections::HashMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, ThreadId};

use buffstreams::typed::Decoded;
use buffstreams::{BoxError, Bytes, Connection, Event, Listener, PanicSource, Reason};
use futures::stream::FusedStream;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::counting::allocated;
use crate::net::{
    SOON, config, disconnected, event, frame, get, next, number, numbered, put, raw, rest, run, start, until,
};

fn word(message: &[u8]) -> Result<u64, TryFromSliceError> {
    message.try_into().map(u64::from_be_bytes)
}

async fn bind() -> (Listener, SocketAddr) {
    let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
    let addr = listener.local_addr().ip().unwrap();
    (listener, addr)
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(|word| frame(&word.to_be_bytes())).collect()
}

#[test]
fn each_peers_values_come_in_order_until_the_listener_has_closed() {
    run(async {
        let (listener, addr) = bind().await;
        let here = thread::current().id();
        let mut numbers = listener.decode(move |message| {
            assert_ne!(thread::current().id(), here, "it is decoded in the task of its peer");
            Ok::<_, BoxError>((number(message), message.len()))
        });
        let closer = numbers.closer();
        assert_eq!(numbers.local_addr().ip(), Some(addr));
        let sending = async {
            let sending = (0..4).map(|id| async move {
                let mut sender = Connection::dial(addr, config()).await.unwrap();
                for n in 0..2500 {
                    let mut message = numbered(id, n).to_vec();
                    // Some are larger than a read.
                    message.resize(if n % 500 == 0 { 200_000 } else { 16 + n as usize % 50 }, 0);
                    sender.feed(message.into()).await.unwrap();
                }
                sender.close().await.unwrap();
            });
            futures::future::join_all(sending).await;
            closer.close().await.unwrap();
        };
        let receiving = async {
            let (mut expected, mut peers) = ([0; 4], HashMap::new());
            while let Some((peer, ((sender, n), len))) = next(&mut numbers).await {
                assert_eq!(*peers.entry(sender).or_insert(peer), peer);
                assert_eq!(
                    (n, len),
                    (expected[sender as usize], if n % 500 == 0 { 200_000 } else { 16 + n as usize % 50 })
                );
                expected[sender as usize] += 1;
            }
            assert_eq!(expected, [2500; 4]);
        };
        futures::join!(sending, receiving);
        assert!(numbers.is_terminated() && next(&mut numbers).await.is_none());
        assert_eq!(numbers.stats().messages, 10_000);
        assert!(format!("{numbers:?}").starts_with("Decoded(Incoming"));
    });
}

const LIMIT: usize = 256 << 10;

/// Counts what was decoded of a peer that sends as fast as it can, while nobody takes any of it; then takes it.
fn held<T: Send + 'static>(message: Vec<u8>, messages: usize, value: fn(&[u8]) -> T, most: usize) {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(LIMIT)).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let decoded = Arc::new(AtomicUsize::new(0));
        let counter = decoded.clone();
        let mut values = listener.decode(move |message| {
            counter.fetch_add(1, Ordering::Relaxed);
            Ok::<_, BoxError>(value(message))
        });
        assert!(values.next().now_or_never().is_none());
        let sending = thread::spawn(move || {
            let (mut peer, wire) = (raw(addr), frame(&message));
            peer.write_all(&wire.repeat(messages)).unwrap();
        });
        until(SOON, || decoded.load(Ordering::Relaxed) > most / 2);
        for _ in 0..200 {
            async_std::task::yield_now().await;
            let decoded = decoded.load(Ordering::Relaxed);
            assert!(decoded <= most, "{decoded} values are held");
        }
        for taken in 0..messages {
            assert!(decoded.load(Ordering::Relaxed) <= taken + most);
            next(&mut values).await.unwrap();
        }
        sending.join().unwrap();
    });
}

#[test]
fn what_is_decoded_and_not_taken_is_within_the_inbox() {
    // As many as it holds of bytes, headers included.
    held(vec![0; 1020], 5000, <[u8]>::len, LIMIT / 1024);
}

/// A message of no bytes is a value of many: the default of its type, for Protocol Buffers.
#[test]
fn values_that_are_larger_than_their_messages_are_within_the_inbox_as_well() {
    held(Vec::new(), 50_000, |_| [0_u64; 128], LIMIT / 1024);
    held(Vec::new(), 50, |_| [0_u64; 10_000], LIMIT / 80_000);
}

#[test]
fn values_of_no_size_are_those_of_their_messages() {
    held(vec![0; 1020], 1000, |_| (), LIMIT / 1024);
}

/// The inbox has room for two reads; each of these has had a part of it.
#[test]
fn peers_of_whom_nothing_comes_hold_no_part_of_the_inbox() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(150 << 10)).await.unwrap();
        let (mut events, addr) = (listener.events(), listener.local_addr().ip().unwrap());
        let mut values = listener.decode(word);
        let mut peers: Vec<_> = (0..20).map(|_| raw(addr)).collect();
        for peer in &mut peers {
            put(peer, b"no number");
        }
        assert!(values.next().now_or_never().is_none());
        for _ in 0..20 {
            event(&mut events, |event| matches!(event, Event::DecodeFailed { .. }).then_some(())).await;
        }
        for (n, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&words([n as u64])).unwrap();
            assert_eq!(next(&mut values).await.unwrap().1, n as u64);
        }
    });
}

/// Why this peer was disconnected, after one message of it, or before it was looked at.
async fn failed_and_gone(events: &mut buffstreams::Events<Event>, bad: SocketAddr) -> Reason {
    let (mut failed, mut gone) = (false, None);
    event(events, |event| {
        match event {
            Event::DecodeFailed { peer, error, .. } if peer.addr() == Some(bad) => {
                assert!(!failed && error.is::<TryFromSliceError>(), "{error:?}");
                failed = true;
            }
            Event::Disconnected { peer, reason, .. } if peer.addr() == Some(bad) => gone = Some(reason),
            _ => {}
        }
        if failed { gone.take() } else { None }
    })
    .await
}

/// Sends a message between others that does not decode, and takes what comes of that. Where it `ends` the peer, that does not end
/// by itself.
async fn with_one_bad(values: &mut Decoded<u64>, addr: SocketAddr, before: u64, ends: bool) -> (SocketAddr, Vec<u64>) {
    let (mut bad, mut good) = (raw(addr), raw(addr));
    bad.write_all(&[words(before..3), frame(b"no number"), words([3])].concat()).unwrap();
    if !ends {
        bad.shutdown(Shutdown::Write).unwrap();
    }
    let bad_addr = bad.local_addr().unwrap();
    let mut of_bad = Vec::new();
    for n in 0.. {
        // What it has brought is in front of what comes from now on.
        let is_gone = n > 2 && values.stats().connections == 1;
        good.write_all(&words([n])).unwrap();
        loop {
            let (peer, value) = next(values).await.unwrap();
            if peer.addr() != Some(bad_addr) {
                assert_eq!(value, n);
                break;
            }
            of_bad.push(value);
        }
        if is_gone {
            break;
        }
    }
    (bad_addr, of_bad)
}

#[test]
fn what_does_not_decode_is_an_event_and_the_peer_goes_on() {
    run(async {
        let (listener, addr) = bind().await;
        let (mut events, mut values) = (listener.events(), listener.decode(word));
        let (bad, of_bad) = with_one_bad(&mut values, addr, 0, false).await;
        assert_eq!(of_bad, [0, 1, 2, 3]);
        assert!(matches!(failed_and_gone(&mut events, bad).await, Reason::Closed));
    });
}

#[test]
fn a_strict_stream_ends_the_peer_behind_what_came_before() {
    run(async {
        let (listener, addr) = bind().await;
        let (mut events, mut values) = (listener.events(), listener.decode(word).strict());
        let (bad, of_bad) = with_one_bad(&mut values, addr, 0, true).await;
        assert_eq!(of_bad, [0, 1, 2]);
        assert!(matches!(failed_and_gone(&mut events, bad).await, Reason::DecodeFailed));
    });
}

fn panics(message: &[u8]) -> Result<u64, BoxError> {
    Ok(word(message).expect("a number"))
}

#[test]
fn a_decoder_that_panics_ends_the_peer_behind_what_came_before() {
    run(async {
        let (listener, addr) = bind().await;
        let (mut events, mut values) = (listener.events(), listener.decode(panics));
        let (bad, of_bad) = with_one_bad(&mut values, addr, 0, true).await;
        assert_eq!(of_bad, [0, 1, 2]);
        let message = event(&mut events, |event| match event {
            Event::CallbackPanicked { peer, message, .. } => (peer.addr() == Some(bad)).then_some(message),
            _ => None,
        });
        assert!(message.await.starts_with("a number"));
        assert!(matches!(disconnected(&mut events, bad).await, Reason::CallbackPanicked));
    });
}

/// Its peers fill the inbox with bytes then.
#[test]
fn a_listener_that_was_polled_before_decodes_in_its_stream() {
    run(async {
        for (strict, decode) in [(false, word as fn(&[u8]) -> _), (true, word)] {
            let (mut listener, addr) = bind().await;
            start(&mut listener);
            let mut events = listener.events();
            let values = listener.decode(decode);
            let mut values = if strict { values.strict() } else { values };
            let (bad, of_bad) = with_one_bad(&mut values, addr, 1, strict).await;
            assert_eq!(of_bad, if strict { &[1, 2][..] } else { &[1, 2, 3] });
            let reason = failed_and_gone(&mut events, bad).await;
            assert!(matches!((strict, reason), (false, Reason::Closed) | (true, Reason::DecodeFailed)));
        }
        let (mut listener, addr) = bind().await;
        start(&mut listener);
        let mut events = listener.events();
        let mut values = listener.decode(panics);
        let (bad, of_bad) = with_one_bad(&mut values, addr, 3, true).await;
        assert!(of_bad.is_empty());
        assert!(matches!(disconnected(&mut events, bad).await, Reason::CallbackPanicked));
    });
}

#[test]
fn what_was_received_before_a_close_is_decoded_and_nothing_is_lost() {
    run(async {
        let (listener, addr) = bind().await;
        let mut peer = raw(addr);
        peer.write_all(&words(0..1000)).unwrap();
        drop(peer);
        let mut values = listener.decode(word);
        values.closer().close().await.unwrap();
        for n in 0..1000 {
            assert_eq!(next(&mut values).await.unwrap().1, n);
        }
        assert!(next(&mut values).await.is_none() && values.is_terminated());
    });
}

/// A peer that has closed its sending direction may be answered until its last value has been taken.
#[test]
fn replies_reach_a_peer_that_waits_for_them() {
    run(async {
        let (listener, addr) = bind().await;
        let (incoming, mut outgoing) = listener.split();
        let mut values = incoming.decode(word);
        let mut peer = raw(addr);
        peer.write_all(&words(0..1000)).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        for n in 0..1000 {
            let (from, value) = next(&mut values).await.unwrap();
            assert_eq!(value, n);
            outgoing.send((from, Bytes::copy_from_slice(&value.to_be_bytes()))).await.unwrap();
        }
        for n in 0..1000_u64 {
            assert_eq!(get(&mut peer), n.to_be_bytes());
        }
        assert!(values.next().now_or_never().is_none());
        assert!(rest(&mut peer).is_empty());
    });
}

/// A listener that was split has chosen a stream of bytes; it can be decoded after all.
#[test]
fn a_listener_that_was_split_decodes_in_the_tasks_of_its_peers() {
    run(async {
        let (listener, addr) = bind().await;
        let (incoming, _outgoing) = listener.split();
        let mut threads = incoming.decode(|_| Ok::<_, BoxError>(thread::current().id()));
        assert!(threads.next().now_or_never().is_none());
        let mut peer = raw(addr);
        for _ in 0..10 {
            put(&mut peer, b"one");
            assert_ne!(next(&mut threads).await.unwrap().1, thread::current().id());
        }
    });
}

struct Bomb(#[allow(dead_code)] u64);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("it is dropped");
    }
}

#[test]
fn a_value_that_panics_when_nobody_takes_it_is_told() {
    run(async {
        let (listener, addr) = bind().await;
        let mut events = listener.events();
        let ((called, calls), (go_on, wait)) = (mpsc::channel(), mpsc::channel::<()>());
        let wait = Mutex::new(wait);
        let mut values = listener.decode(move |message| {
            called.send(()).unwrap();
            wait.lock().unwrap().recv().unwrap();
            word(message).map(Bomb)
        });
        assert!(values.next().now_or_never().is_none());
        let mut peer = raw(addr);
        peer.write_all(&words([1])).unwrap();
        calls.recv_timeout(SOON).unwrap();
        drop(values);
        go_on.send(()).unwrap();
        let message = event(&mut events, |event| match event {
            Event::Panicked { source: PanicSource::Drop, message, .. } => Some(message),
            _ => None,
        });
        assert_eq!(message.await, "it is dropped");
        assert!(rest(&mut peer).is_empty());
    });
}

/// Counts what a thread of the runtime has allocated from one message to a later one, when it decoded all in between, and what the
/// consumer has.
#[test]
fn a_value_without_memory_of_its_own_allocates_nothing() {
    const STEP: u64 = 20_000;
    run(async {
        let (listener, addr) = bind().await;
        let steps: Arc<Mutex<Vec<(ThreadId, usize)>>> = Arc::default();
        steps.lock().unwrap().reserve(1000);
        let seen = steps.clone();
        let mut values = listener.decode(move |message| {
            let n = word(message)?;
            if n % STEP == 0 {
                seen.lock().unwrap().push((thread::current().id(), allocated()));
            }
            Ok::<_, TryFromSliceError>((n, [n; 4]))
        });
        let sending = thread::spawn(move || raw(addr).write_all(&words(0..50 * STEP)).unwrap());
        let mut least = usize::MAX;
        for _ in 0..50 {
            let before = allocated();
            for _ in 0..STEP {
                let (_, (n, copies)) = values.next().await.unwrap();
                assert_eq!(copies, [n; 4]);
            }
            least = least.min(allocated() - before);
        }
        sending.join().unwrap();
        let steps = steps.lock().unwrap();
        let same_thread = steps.windows(2).filter(|steps| steps[0].0 == steps[1].0);
        let decoding = same_thread.map(|steps| steps[1].1 - steps[0].1).min();
        assert_eq!((decoding, least), (Some(0), 0));
    });
}
