//! What a hostile dialer can do to a listener of sessions that takes time, or an answer: the others are in `tests/it`.

use std::time::Duration;

use futures::{AsyncReadExt, FutureExt, SinkExt, StreamExt};

use super::acked_raw::{Raw, config, hello, listen, next, refused, sent, session};
use crate::error::HandshakeErrorKind;
use crate::observe::{Event, Reason};
use crate::session::{Control, ErrorCode, HANDSHAKE, Status};
use crate::sim::testing::{self, Sim};
use crate::{Address, Listener};

/// More than there may be unfinished handshakes.
const FLOOD: usize = 1100;

/// Rows 6 and 52: silence, and a HELLO byte by byte. Each byte that comes gives no more time.
#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    for every in [None, Some(Duration::from_millis(50)), Some(Duration::from_millis(500))] {
        Sim::default().run(async {
            let (_listener, address, mut events) = listen(session()).await;
            let mut raw = Raw::dial(&address).await;
            let bytes = hello(1, 1, None).encode();
            let limit = Duration::from_secs(10);
            let Some(every) = every else {
                raw.write(&bytes[..3]).await;
                assert_eq!(refused(&mut events).await, HandshakeErrorKind::Timeout { after: limit });
                assert_eq!(testing::elapsed(), limit);
                return raw.ends().await;
            };
            let slow = testing::spawn(async move {
                for byte in bytes {
                    testing::sleep(every).await;
                    if futures::AsyncWriteExt::write_all(&mut raw.0, &[byte]).await.is_err() {
                        return;
                    }
                }
                raw.read(88).await;
            });
            if every * 88 < limit {
                assert!(matches!(next(&mut events).await, Event::Connected { .. }));
            } else {
                assert_eq!(refused(&mut events).await, HandshakeErrorKind::Timeout { after: limit });
                assert_eq!(testing::elapsed(), limit);
            }
            slow.detach();
        });
    }
}

/// Row 37, and what else may be said of replies.
#[test]
fn an_acknowledgement_that_goes_back_ends_the_session() {
    let ack = Control::Ack;
    for (said, is_good) in [(vec![ack(3), ack(5)], true), (vec![ack(5), ack(4)], false), (vec![ack(6)], false)] {
        Sim::default().run(async {
            let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config(session())).await.unwrap().split();
            let (mut raw, _) = Raw::greet(&Address::from(incoming.local_addr()), hello(1, 1, None)).await;
            raw.send(b"answer me").await;
            let (peer, _) = incoming.next().await.unwrap();
            for _ in 0..5 {
                outgoing.feed((peer, "answer".into())).await.unwrap();
            }
            outgoing.flush().await.unwrap();
            raw.read(5 * (4 + 6)).await;
            for control in &said {
                raw.write(&control.encode()).await;
            }
            if is_good {
                raw.send(b"it goes on").await;
                assert_eq!(incoming.next().await.unwrap().1, "it goes on");
            } else {
                raw.hears(Control::Error(ErrorCode::Position)).await;
                raw.ends().await;
            }
        });
    }
}

/// What was said last waits for a peer that stays, or goes on to send, for a second and no longer. It keeps its place so long.
#[test]
fn a_peer_that_stays_when_its_session_is_over_is_ended_after_a_second() {
    let good = hello(1, 1, None).encode().to_vec();
    let unknown = hello(1, 2, sent(0, 0)).encode().to_vec();
    let ends = [
        ("a frame", [&good[..], &[0xff; 4]].concat(), 1, 88 + 7),
        ("a HELLO", [&good[..32], &[0; 56]].concat(), 0, 7),
        ("another version", [&good[..12], &[9]].concat(), 0, 88),
        ("no such session", unknown, 0, 88),
    ];
    for (what, bytes, sessions, answer) in ends {
        for trickles in [false, true] {
            Sim::default().run(async {
                let config = config(session()).max_connections(1);
                let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
                let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
                assert!(listener.next().now_or_never().is_none());
                let mut raw = Raw::dial(&address).await;
                let (first, behind) = bytes.split_at(bytes.len().min(88));
                raw.write(first).await;
                if sessions > 0 {
                    raw.read(88).await;
                    raw.write(behind).await;
                    raw.hears(Control::Error(ErrorCode::Malformed)).await;
                    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
                } else {
                    raw.read(answer).await;
                }
                assert_eq!(raw.0.read(&mut [0; 1]).await.unwrap(), 0, "{what}: nothing more comes");
                match next(&mut events).await {
                    Event::Disconnected { .. } | Event::SessionRefused { .. } => {}
                    other => panic!("{what}: {other:?}"),
                }
                Raw::dial(&address).await.ends().await;
                assert!(matches!(next(&mut events).await, Event::Refused { .. }), "{what}: it has its place");
                assert_eq!(testing::elapsed(), Duration::ZERO, "{what}");
                let tick = Duration::from_millis(100);
                while trickles && testing::elapsed() < Duration::from_secs(1) - tick {
                    raw.write(b"more").await;
                    testing::sleep(tick).await;
                }
                testing::sleep(Duration::from_secs(1) + tick - testing::elapsed()).await;
                let (mut other, welcome) = Raw::greet(&address, hello(2, 1, None)).await;
                assert_eq!(welcome.status, Status::New, "{what}");
                other.send(b"there is room").await;
                assert_eq!(listener.next().await.unwrap().1, "there is room");
            });
        }
    }
}

/// Row 29: with the HELLO in one read, and in the next, when the session's task is about to answer.
#[test]
fn whoever_goes_on_before_the_answer_ends_the_session() {
    for (capacity, resumes) in [(64 << 10, false), (HANDSHAKE, false), (HANDSHAKE, true)] {
        Sim { capacity, ..Sim::default() }.run(async {
            let (mut listener, address, mut events) = listen(session()).await;
            let mut early = hello(1, 1, None);
            if resumes {
                drop(Raw::greet(&address, early).await);
                assert!(matches!(next(&mut events).await, Event::Connected { .. }));
                assert!(matches!(next(&mut events).await, Event::Detached { .. }));
                early = hello(1, 2, sent(0, 0));
            }
            let mut raw = Raw::dial(&address).await;
            raw.write(&[&early.encode()[..], &[0, 0, 0, 1, 97]].concat()).await;
            raw.hears(Control::Error(ErrorCode::Malformed)).await;
            raw.ends().await;
            if capacity > HANDSHAKE {
                assert_eq!(refused(&mut events).await, HandshakeErrorKind::Violation(ErrorCode::Malformed));
            } else {
                if !resumes {
                    assert!(matches!(next(&mut events).await, Event::Connected { .. }));
                }
                match next(&mut events).await {
                    Event::Disconnected { reason: Reason::Session(ErrorCode::Malformed), .. } => {}
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(listener.stats().sessions, 0);
            assert!(listener.next().now_or_never().is_none(), "nothing of it is delivered");
        });
    }
}

/// A peer that has missed the end of its session says what cannot be: it is told, and the end is forgotten.
#[test]
fn what_is_left_of_a_session_is_forgotten_after_a_violation() {
    let violations: [(_, &[u8], _); 3] = [
        (sent(0, 0), b"", ErrorCode::Position),
        (sent(1, 1), b"\0\0\0\x01a", ErrorCode::Position),
        (sent(1, 1), &[0xff; 4], ErrorCode::Malformed),
    ];
    for (positions, behind, code) in violations {
        Sim::default().run(async {
            let (mut listener, address, mut events) = listen(session()).await;
            let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
            raw.send(b"all").await;
            raw.write(&Control::Close(1).encode()).await;
            assert_eq!(listener.next().await.unwrap().1, "all");
            assert!(listener.next().now_or_never().is_none());
            raw.hears(Control::Ack(1)).await;
            raw.hears(Control::Close(0)).await;
            drop(raw);
            while !matches!(next(&mut events).await, Event::Disconnected { reason: Reason::Closed, .. }) {}

            let mut raw = Raw::dial(&address).await;
            raw.write(&hello(1, 2, positions).encode()).await;
            if !behind.is_empty() {
                assert_eq!(raw.read(HANDSHAKE).await[13], 1, "RESUMED");
                raw.write(behind).await;
                raw.hears(Control::Close(0)).await;
            }
            raw.hears(Control::Error(code)).await;
            raw.ends().await;
            let (_, welcome) = Raw::greet(&address, hello(1, 3, sent(1, 1))).await;
            assert_eq!(welcome.status, Status::Unknown);
        });
    }
}

/// It is no peer, and nobody waits for it: neither who closes the listener, nor who drops it.
#[test]
fn who_comes_back_to_a_session_that_is_over_and_stays_does_not_keep_the_listener() {
    for closes in [false, true] {
        Sim::default().run(async move {
            let config = config(session()).dial_timeout(None).drain_timeout(Duration::from_secs(5));
            let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
            let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
            raw.write(&Control::Close(0).encode()).await;
            assert!(listener.next().now_or_never().is_none());
            raw.hears(Control::Close(0)).await;
            drop(raw);
            while !matches!(next(&mut events).await, Event::Disconnected { reason: Reason::Closed, .. }) {}
            let (mut raw, _) = Raw::greet(&address, hello(1, 2, sent(0, 0))).await;
            raw.hears(Control::Close(0)).await;
            let began = testing::elapsed();
            if closes {
                listener.close().await.unwrap();
                let ended = testing::within(Some(Duration::from_secs(6)), listener.next()).await;
                assert!(ended.expect("it waits for the one that stays").is_none());
            }
            drop(listener);
            let all = async { while events.next().await.is_some() {} };
            testing::within(Some(Duration::from_secs(1)), all).await.expect("it is kept by the one that stays");
            raw.ends().await;
            assert!(testing::elapsed() - began <= Duration::from_secs(7));
        });
    }
}

/// Silent ones, and ones that begin a session and go: no session that has something loses its place, or cannot come back.
#[test]
fn a_flood_of_strangers_starves_no_session_that_has_anything() {
    for greets in [false, true] {
        Sim::default().run(async {
            let session = session().max_sessions(100);
            let config = config(session).max_connections(2 * FLOOD);
            let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let address = Address::from(listener.local_addr());
            let mut old = Vec::new();
            for id in 1..=10 {
                let (mut raw, _) = Raw::greet(&address, hello(id, 1, None)).await;
                raw.send(b"one").await;
                assert_eq!(listener.next().await.unwrap().1, "one");
                old.push(raw);
            }
            old.truncate(5);
            let mut flood = Vec::new();
            for n in 0..FLOOD {
                let mut raw = Raw::dial(&address).await;
                if greets {
                    // Names that are not those of the others.
                    let mut hello = hello(100, 1, None).encode();
                    hello[20..28].copy_from_slice(&(n as u64).to_be_bytes());
                    raw.write(&hello).await;
                    raw.read(88).await;
                } else {
                    flood.push(raw);
                }
            }
            for (n, raw) in old.iter_mut().enumerate() {
                raw.send(b"two").await;
                assert_eq!(listener.next().await.unwrap().1, "two", "{n}");
            }
            for id in 6..=10 {
                let (mut raw, welcome) = Raw::greet(&address, hello(id, 2, sent(1, 0))).await;
                assert_eq!(welcome.status, Status::Resumed, "{id}");
                raw.send(b"two").await;
                assert_eq!(listener.next().await.unwrap().1, "two", "{id}");
            }
            assert!(listener.stats().sessions <= 100);
        });
    }
}
