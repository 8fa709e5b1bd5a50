//! Acknowledged sessions: what a listener sends, and how it finds that its peer sends no more.

use std::time::Duration;

use futures::future::join;
use futures::{FutureExt, SinkExt, StreamExt};

use super::acked_raw::{Raw, config, hello, next, session};
use crate::observe::{Event, Reason};
use crate::session::{Control, ErrorCode, Hello, Terms};
use crate::sim::testing::{self, Sim};
use crate::{Address, Bytes, Connection, Error, Listener, Loss, Manager, Session};

const SECOND: Duration = Duration::from_secs(1);

async fn soon<F: Future>(future: F) -> F::Output {
    testing::within(Some(10 * SECOND), future).await.expect("in time")
}

#[test]
fn the_stream_of_a_connection_ends_when_its_peer_has_closed() {
    Sim::default().run(async {
        let mut connections = Listener::bind("127.0.0.1:0", config(session())).await.unwrap().connections();
        let address = Address::from(connections.closer().local_addr());
        let serve = async {
            let mut connection = connections.next().await.unwrap();
            let mut taken = 0;
            while let Some(message) = connection.next().await {
                taken += message.unwrap().len();
            }
            connection.send("answer".into()).await.unwrap();
            connection.close().await.unwrap();
            taken
        };
        let dial = async {
            let mut connection = Connection::dial(&address, config(session())).await.unwrap();
            connection.feed("one".into()).await.unwrap();
            connection.feed("two".into()).await.unwrap();
            connection.close().await.unwrap();
            assert_eq!(connection.next().await.unwrap().unwrap(), "answer");
            assert!(connection.next().await.is_none());
        };
        assert_eq!(soon(join(serve, dial)).await.0, 6);
    });
}

/// Or a program would take what has come for all there is.
#[test]
fn the_stream_of_a_connection_tells_that_its_session_was_lost() {
    for expires in [false, true] {
        Sim::default().run(async {
            let mut connections = Listener::bind("127.0.0.1:0", config(session())).await.unwrap().connections();
            let address = Address::from(connections.closer().local_addr());
            let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
            raw.send(b"one").await;
            let mut connection = soon(connections.next()).await.unwrap();
            assert_eq!(soon(connection.next()).await.unwrap().unwrap(), "one");
            connection.send("reply".into()).await.unwrap();
            // Of one that goes with something unread, the last word is cut off.
            let raw = match expires {
                true => {
                    drop(raw);
                    None
                }
                false => {
                    raw.write(&Control::Error(ErrorCode::Gone).encode()).await;
                    Some(raw)
                }
            };
            let expected = if expires { Loss::Expired } else { Loss::Ended };
            match testing::within(Some(60 * SECOND), connection.next()).await.expect("in time") {
                Some(Err(Error::SessionLost { in_doubt: 1, why })) => assert_eq!(why, expected),
                other => panic!("{other:?}"),
            }
            assert!(connection.next().await.is_none());
            assert_eq!(connection.take_in_doubt(), ["reply"]);
            drop(raw);
        });
    }
}

/// A manager takes no messages, and says so when it begins.
#[test]
fn a_reply_to_a_manager_is_undelivered_at_once() {
    Sim::default().run(async {
        let listener = Listener::bind("127.0.0.1:0", config(session())).await.unwrap();
        let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
        let (mut incoming, mut outgoing) = listener.split();
        let manager = Manager::new(config(session()));
        let serve = async {
            let (peer, message) = incoming.next().await.unwrap();
            soon(outgoing.send((peer, message))).await.unwrap();
            assert!(matches!(next(&mut events).await, Event::Connected { .. }));
            assert!(matches!(next(&mut events).await, Event::Undelivered { messages: 1, .. }));
            assert!(incoming.next().now_or_never().is_none());
        };
        let ask = async {
            manager.dial(&address).await.unwrap();
            manager.write(&address, "question".into()).await.unwrap();
        };
        soon(join(serve, ask)).await;
        let close = async { manager.close(&address).await.unwrap() };
        assert!(testing::within(Some(SECOND), close).await.is_some(), "nothing is held for it");
    });
}

/// One that takes none of its replies must not hold up those to others for as long as its session lives.
#[test]
fn who_takes_no_replies_loses_its_session() {
    for (write_timeout, after) in [(None, 30 * SECOND), (Some(7 * SECOND), 7 * SECOND)] {
        for is_away in [false, true] {
            Sim::default().run(async {
                let config = config(Session::new().ttl(300 * SECOND)).queue_bytes(1000).write_timeout(write_timeout);
                let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
                let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
                let (mut incoming, mut outgoing) = listener.split();
                let of_long = |hello: Hello| Hello { terms: Terms { ttl: 300_000, ..hello.terms }, ..hello };
                let (mut raw, _) = Raw::greet(&address, of_long(hello(1, 1, None))).await;
                raw.send(b"one").await;
                let (peer, _) = soon(incoming.next()).await.unwrap();
                assert!(matches!(next(&mut events).await, Event::Connected { .. }));
                for _ in 0..2 {
                    soon(outgoing.feed((peer, Bytes::from_static(&[7; 500])))).await.unwrap();
                }
                let mut raw = Some(raw);
                if is_away {
                    raw = None;
                    assert!(matches!(next(&mut events).await, Event::Detached { .. }));
                }
                let began = testing::elapsed();
                let room = outgoing.feed((peer, "more".into()));
                testing::within(Some(60 * SECOND), room).await.expect("in time").unwrap();
                let took = testing::elapsed() - began;
                assert!((after..after + 2 * SECOND).contains(&took), "{took:?}");
                let reason = loop {
                    match next(&mut events).await {
                        Event::Disconnected { reason, .. } => break reason,
                        Event::Undelivered { .. } => {}
                        other => panic!("{other:?}"),
                    }
                };
                assert!(matches!(reason, Reason::Timeout { .. }), "{reason:?}");
                drop(raw);
            });
        }
    }
}
