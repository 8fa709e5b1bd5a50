//! Acknowledged sessions that end at a listener in another way than by their task, and what the listener counts of them.

use std::time::Duration;

use futures::future::join;
use futures::stream::BoxStream;
use futures::{AsyncReadExt, FutureExt, StreamExt};

use super::acked_raw::{Raw, config, hello, listen, next, refused, sent, session};
use crate::error::HandshakeErrorKind;
use crate::observe::{Event, Events, Reason};
use crate::session::{Control, ErrorCode, Status, Why};
use crate::sim::testing::{self, Sim, plant};
use crate::typed::{Buffer, Codec};
use crate::{Address, BoxError, Listener, ListenerStats, Peer};

fn counts(stats: ListenerStats) -> (usize, usize, usize, u64) {
    (stats.connections, stats.sessions, stats.detached, stats.untaken)
}

async fn disconnected(events: &mut Events<Event>) -> Reason {
    loop {
        if let Event::Disconnected { reason, .. } = next(events).await {
            return reason;
        }
    }
}

/// Whoever comes back to the session is told at once that there is none.
async fn is_forgotten(address: &Address, events: &mut Events<Event>) {
    let began = testing::elapsed();
    let (raw, welcome) = Raw::greet(address, hello(1, 2, sent(2, 0))).await;
    assert_eq!((welcome.status, testing::elapsed()), (Status::Unknown, began));
    raw.ends().await;
    assert_eq!(refused(events).await, HandshakeErrorKind::Unknown);
}

#[test]
fn a_session_whose_task_panics_is_forgotten() {
    Sim::default().run(async {
        let (mut listener, address, mut events) = listen(session()).await;
        let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
        raw.send(b"one").await;
        assert_eq!(listener.next().await.unwrap().1, "one");
        assert_eq!(counts(listener.stats()), (1, 1, 0, 1));
        plant("read");
        raw.send(b"two").await;
        assert!(matches!(disconnected(&mut events).await, Reason::Panicked));
        assert_eq!(counts(listener.stats()), (0, 0, 0, 0));
        is_forgotten(&address, &mut events).await;
        // What it has left in the inbox is settled for nobody.
        assert!(listener.next().now_or_never().is_none());
    });
}

/// One whose program dropped its listener is no session any more, whatever is still held of it.
#[test]
fn the_sessions_of_a_listener_that_is_dropped_are_forgotten() {
    Sim::default().run(async {
        let (listener, address, mut events) = listen(session()).await;
        let closer = listener.closer();
        let (raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
        assert!(matches!(next(&mut events).await, Event::Connected { .. }));
        assert_eq!(counts(closer.stats()), (1, 1, 0, 0));
        drop(listener);
        raw.ends().await;
        assert!(matches!(disconnected(&mut events).await, Reason::Stopped));
        assert_eq!(counts(closer.stats()), (0, 0, 0, 0));
    });
}

/// Lengths of messages.
#[derive(Default)]
struct Lengths;

impl Codec<usize> for Lengths {
    type Error = BoxError;

    fn encode(&self, _: &usize, _: &mut Buffer<'_>) -> Result<(), BoxError> {
        Err("not needed".into())
    }

    fn decode(&self, message: &[u8]) -> Result<usize, BoxError> {
        if message == b"bad" { Err("bad".into()) } else { Ok(message.len()) }
    }
}

/// A peer of a listener of lengths that ends who sends "bad": typed or decoded, and polled as bytes before, with that peer, or not.
async fn lengths(typed: bool, polled: bool) -> (BoxStream<'static, (Peer, usize)>, Raw, Address, Events<Event>) {
    let mut listener = Listener::bind("127.0.0.1:0", config(session())).await.unwrap();
    let (address, events) = (Address::from(listener.local_addr()), listener.events());
    let mut raw = None;
    if polled {
        assert!(listener.next().now_or_never().is_none());
        raw = Some(Raw::greet(&address, hello(1, 1, None)).await.0);
        testing::sleep(Duration::from_millis(1)).await;
    }
    let mut lengths = match typed {
        true => listener.typed(Lengths).strict().boxed(),
        false => listener.decode(|message| Lengths.decode(message)).strict().boxed(),
    };
    assert!(lengths.next().now_or_never().is_none());
    let raw = match raw {
        Some(raw) => raw,
        None => Raw::greet(&address, hello(1, 1, None)).await.0,
    };
    (lengths, raw, address, events)
}

/// The consumer ends it where it decodes the messages: as they are yielded, or in the task, if that was chosen before the peer
/// came. What comes in front is its own before that, and is taken when it asks for more.
#[test]
fn a_session_that_does_not_decode_is_told_its_end_and_forgotten() {
    for (typed, polled) in [(true, true), (false, true), (false, false)] {
        // The bad one comes behind others in one read, or by itself.
        for pause in [0, 1] {
            Sim::default().run(async {
                let (mut lengths, mut raw, address, mut events) = lengths(typed, polled).await;
                raw.write(b"\0\0\0\x04good\0\0\0\x06better").await;
                testing::sleep(Duration::from_millis(pause)).await;
                raw.write(b"\0\0\0\x03bad\0\0\0\x03bad").await;
                for len in [4, 6] {
                    assert_eq!(lengths.next().await.unwrap().1, len);
                    let heard = testing::within(Some(Duration::from_secs(1)), raw.read(1)).await;
                    assert!(heard.is_none(), "{typed} {polled} {pause}: {heard:x?} before the program has taken it");
                }
                let (began, mut heard) = (testing::elapsed(), Vec::new());
                let hearing = async {
                    raw.0.read_to_end(&mut heard).await.unwrap();
                    testing::elapsed() - began
                };
                let more = testing::within(Some(Duration::from_secs(1)), lengths.next());
                let (more, took) = join(more, hearing).await;
                assert!(more.is_none() && took < Duration::from_millis(10), "{typed} {polled} {pause}: {took:?}");
                // Of those in front it may hear before, or with the others.
                let refused = Control::Refuse { first: 2, count: 1, why: Why::Refused };
                let last = [refused, Control::Ack(3), Control::Error(ErrorCode::Gone)]
                    .map(|control| control.encode().to_vec());
                let in_front = heard.strip_suffix(&*last.concat()).expect("the last words");
                assert!(
                    in_front.is_empty() || *in_front == *Control::Ack(2).encode(),
                    "{typed} {polled} {pause}: {heard:x?}"
                );
                assert!(matches!(disconnected(&mut events).await, Reason::DecodeFailed));
                is_forgotten(&address, &mut events).await;
                assert!(lengths.next().now_or_never().is_none());
            });
        }
    }
}

/// Its connection is gone before the program has taken what came in front.
#[test]
fn a_session_that_does_not_decode_and_is_without_a_connection_is_forgotten_when_that_is_taken() {
    Sim::default().run(async {
        let (mut lengths, mut raw, address, mut events) = lengths(false, false).await;
        raw.write(b"\0\0\0\x04good\0\0\0\x03bad\0\0\0\x03bad").await;
        assert_eq!(lengths.next().await.unwrap().1, 4);
        drop(raw);
        while !matches!(next(&mut events).await, Event::Detached { .. }) {}
        assert!(testing::within(Some(Duration::from_secs(1)), events.next()).await.is_none());
        assert!(lengths.next().now_or_never().is_none());
        let gone = testing::within(Some(Duration::from_millis(10)), disconnected(&mut events)).await;
        assert!(matches!(gone, Some(Reason::DecodeFailed)), "{gone:?}");
        is_forgotten(&address, &mut events).await;
    });
}

#[test]
fn a_listener_counts_its_sessions_those_without_a_connection_and_what_is_not_taken() {
    Sim::default().run(async {
        let (mut listener, address, mut events) = listen(session()).await;
        assert_eq!(counts(listener.stats()), (0, 0, 0, 0));
        let (mut one, _) = Raw::greet(&address, hello(1, 1, None)).await;
        let (mut two, _) = Raw::greet(&address, hello(2, 1, None)).await;
        assert_eq!(counts(listener.stats()), (2, 2, 0, 0));
        one.send(b"one").await;
        two.send(b"two").await;
        testing::sleep(Duration::from_millis(1)).await;
        assert_eq!(counts(listener.stats()), (2, 2, 0, 2), "whether or not the program has seen it");
        drop(two);
        while !matches!(next(&mut events).await, Event::Detached { .. }) {}
        assert_eq!(counts(listener.stats()), (2, 2, 1, 2));
        for _ in 0..2 {
            assert!(listener.next().await.is_some());
        }
        assert_eq!(counts(listener.stats()), (2, 2, 1, 1));
        assert!(listener.next().now_or_never().is_none());
        assert_eq!(counts(listener.stats()), (2, 2, 1, 0));

        // One that is over in order is none, though its end is remembered.
        one.hears(Control::Ack(1)).await;
        one.write(&Control::Close(1).encode()).await;
        one.hears(Control::Close(0)).await;
        drop(one);
        assert!(matches!(disconnected(&mut events).await, Reason::Closed));
        assert_eq!(counts(listener.stats()), (1, 1, 1, 0));
        let (_one, welcome) = Raw::greet(&address, hello(1, 2, sent(1, 1))).await;
        assert_eq!(welcome.status, Status::Resumed);
    });
}
