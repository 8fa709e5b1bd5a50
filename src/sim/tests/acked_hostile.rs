//! What a hostile dialer can do to a listener of sessions that takes time, or an answer: the others are in `tests/it`.

use std::time::Duration;

use futures::{SinkExt, StreamExt};

use super::acked_raw::{Raw, config, hello, listen, next, refused, sent, session};
use crate::error::HandshakeErrorKind;
use crate::observe::Event;
use crate::session::{Control, ErrorCode, Status};
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
