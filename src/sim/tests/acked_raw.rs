//! A listener of acknowledged sessions, against dialers that are bytes: who has a session, and who has to go.

use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, SinkExt, StreamExt};

use super::host::frame;
use crate::error::HandshakeErrorKind;
use crate::observe::{Event, Events, Reason};
use crate::session::{Answer, Control, ErrorCode, HANDSHAKE, Hello, Positions, SessionId, Status, Terms, Welcome};
use crate::sim::testing::{self, Sim, Stream};
use crate::{Address, Config, Listener, Session};

const TTL: Duration = Duration::from_secs(20);

pub(super) fn session() -> Session {
    Session::new().ttl(TTL)
}

pub(super) fn config(session: Session) -> Config {
    Config::new().max_message_size(4096).session(session)
}

/// A listener whose messages are asked for.
pub(super) async fn listen(session: Session) -> (Listener, Address, Events<Event>) {
    let mut listener = Listener::bind("127.0.0.1:0", config(session)).await.unwrap();
    assert!(listener.next().now_or_never().is_none());
    let (address, events) = (listener.local_addr().into(), listener.events());
    (listener, address, events)
}

/// A dialer's end.
pub(super) struct Raw(pub(super) Stream);

pub(super) fn hello(id: u8, epoch: u32, positions: Option<Positions>) -> Hello {
    let terms = Terms { max_message: 4096, window: 1 << 20, heartbeat: 0, ttl: TTL.as_millis() as u32 };
    let id = SessionId::new([id; 16]).unwrap();
    Hello { resume: positions.is_some(), id, epoch, terms, positions: positions.unwrap_or_default() }
}

impl Raw {
    pub(super) async fn dial(address: &Address) -> Self {
        Self(testing::dial(address, &Config::new()).await.unwrap())
    }

    /// Dials and greets; the answer to that.
    pub(super) async fn greet(address: &Address, hello: Hello) -> (Self, Welcome) {
        let mut raw = Self::dial(address).await;
        raw.write(&hello.encode()).await;
        let bytes = raw.read(HANDSHAKE).await;
        let Ok(Some(Answer::Welcome(welcome))) = Answer::parse(&bytes, &hello) else { panic!("{bytes:x?}") };
        (raw, welcome)
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    pub(super) async fn send(&mut self, message: &[u8]) {
        self.write(&frame(message)).await;
    }

    pub(super) async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).await.unwrap();
        bytes
    }

    pub(super) async fn hears(&mut self, control: Control) {
        let expected = control.encode();
        let heard = self.read(expected.len()).await;
        assert_eq!(heard, expected[..], "{control:?}");
    }

    /// That it is at its end, and nothing comes before.
    pub(super) async fn ends(mut self) {
        assert_eq!(self.0.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
}

pub(super) async fn next(events: &mut Events<Event>) -> Event {
    testing::within(Some(Duration::from_secs(60)), events.next()).await.expect("in time").unwrap()
}

pub(super) async fn refused(events: &mut Events<Event>) -> HandshakeErrorKind {
    match next(events).await {
        Event::SessionRefused { kind, .. } => kind,
        other => panic!("{other:?}"),
    }
}

pub(super) fn sent(sent: u64, acked: u64) -> Option<Positions> {
    Some(Positions { sent, acked, ..Positions::default() })
}

#[test]
fn the_highest_epoch_has_the_session() {
    Sim::default().run(async {
        let (mut listener, address, mut events) = listen(session()).await;
        let (mut first, welcome) = Raw::greet(&address, hello(1, 1, None)).await;
        assert_eq!((welcome.status, welcome.positions), (Status::New, Positions::default()));
        assert!(matches!(next(&mut events).await, Event::Connected { .. }));
        first.send(b"one").await;
        assert_eq!(listener.next().await.unwrap().1, "one");
        // Asking for the next takes the one before.
        assert!(listener.next().now_or_never().is_none());
        first.hears(Control::Ack(1)).await;
        first.send(b"two").await;
        assert_eq!(listener.next().await.unwrap().1, "two");

        // One that comes with the number that there is, or a lower one, or as if it was new: the session goes on.
        for (hello, status) in [
            (hello(1, 1, sent(2, 1)), Status::Fenced),
            (hello(1, 1, None), Status::Fenced),
            (hello(1, 2, None), Status::Unknown),
            (hello(2, 2, sent(0, 0)), Status::Unknown),
        ] {
            let (raw, welcome) = Raw::greet(&address, hello).await;
            assert_eq!((welcome.status, welcome.positions), (status, Positions::default()), "{hello:?}");
            raw.ends().await;
            let kind = if status == Status::Fenced { HandshakeErrorKind::Fenced } else { HandshakeErrorKind::Unknown };
            assert_eq!(refused(&mut events).await, kind);
        }
        assert!(listener.next().now_or_never().is_none());
        first.hears(Control::Ack(2)).await;

        // A higher one has it, and the connection before is at its end.
        let (mut second, welcome) = Raw::greet(&address, hello(1, 5, sent(3, 2))).await;
        assert_eq!(welcome.status, Status::Resumed);
        assert_eq!(welcome.positions, Positions { received: 2, taken: 2, ..Positions::default() });
        first.ends().await;
        match next(&mut events).await {
            Event::Resumed { replayed, .. } => assert_eq!(replayed, 0),
            other => panic!("{other:?}"),
        }
        second.send(b"three").await;
        assert_eq!(listener.next().await.unwrap().1, "three");
        let (_, welcome) = Raw::greet(&address, hello(1, 4, sent(3, 2))).await;
        assert_eq!(welcome.status, Status::Fenced);
        assert_eq!(refused(&mut events).await, HandshakeErrorKind::Fenced);
        assert!(listener.next().now_or_never().is_none());
        second.hears(Control::Ack(3)).await;
    });
}

#[test]
fn positions_that_do_not_fit_end_the_session_and_no_other() {
    // The session has 2 of the dialer's messages, one of which is taken, and has sent nothing.
    let cases = [
        Positions { acked: 0, sent: 1, ..Positions::default() },
        Positions { acked: 2, sent: 2, ..Positions::default() },
        Positions { acked: 0, sent: 2, received: 1, taken: 0 },
        Positions { acked: 0, sent: 2, received: 1, taken: 1 },
        Positions { acked: u64::MAX, sent: u64::MAX, received: u64::MAX, taken: u64::MAX },
    ];
    for positions in cases {
        Sim::default().run(async {
            let (mut listener, address, mut events) = listen(session()).await;
            let (mut other, _) = Raw::greet(&address, hello(2, 1, None)).await;
            let (mut first, _) = Raw::greet(&address, hello(1, 1, None)).await;
            for _ in 0..2 {
                assert!(matches!(next(&mut events).await, Event::Connected { .. }));
            }
            first.send(b"one").await;
            assert_eq!(listener.next().await.unwrap().1, "one");
            first.send(b"two").await;
            assert_eq!(listener.next().await.unwrap().1, "two");
            first.hears(Control::Ack(1)).await;

            let mut second = Raw::dial(&address).await;
            second.write(&hello(1, 2, Some(positions)).encode()).await;
            second.hears(Control::Error(ErrorCode::Position)).await;
            second.ends().await;
            first.ends().await;
            match next(&mut events).await {
                Event::Disconnected { reason: Reason::Session(ErrorCode::Position), .. } => {}
                event => panic!("{positions:?}: {event:?}"),
            }
            let (_, welcome) = Raw::greet(&address, hello(1, 3, sent(2, 1))).await;
            assert_eq!(welcome.status, Status::Unknown, "it is forgotten");
            other.send(b"goes on").await;
            assert_eq!(listener.next().await.unwrap().1, "goes on");
        });
    }
}

#[test]
fn a_newcomer_takes_the_place_of_a_session_that_never_began_and_of_no_other() {
    Sim::default().run(async {
        let session = self::session().max_sessions(2);
        let (mut listener, address, mut events) = listen(session).await;
        let (mut one, _) = Raw::greet(&address, hello(1, 1, None)).await;
        let (two, _) = Raw::greet(&address, hello(2, 1, None)).await;
        for _ in 0..2 {
            assert!(matches!(next(&mut events).await, Event::Connected { .. }));
        }
        one.send(b"one").await;
        assert_eq!(listener.next().await.unwrap().1, "one");
        let full = async |events: &mut Events<Event>| {
            let (raw, welcome) = Raw::greet(&address, hello(3, 1, None)).await;
            assert_eq!((welcome.status, welcome.terms.ttl), (Status::Busy, 250));
            raw.ends().await;
            assert_eq!(refused(events).await, HandshakeErrorKind::Busy { retry_in: Duration::from_millis(250) });
        };
        full(&mut events).await;
        // One that has a message is without a connection: it keeps its place.
        drop(one);
        assert!(matches!(next(&mut events).await, Event::Detached { reason: Reason::Closed, .. }));
        full(&mut events).await;
        drop(two);
        assert!(matches!(next(&mut events).await, Event::Detached { reason: Reason::Closed, .. }));
        let (_three, welcome) = Raw::greet(&address, hello(3, 1, None)).await;
        assert_eq!(welcome.status, Status::New);
        let both = [next(&mut events).await, next(&mut events).await];
        assert!(both.iter().any(|event| matches!(event, Event::Connected { .. })), "{both:?}");
        let evicted =
            |event: &Event| matches!(event, Event::Disconnected { reason: Reason::Session(ErrorCode::Evicted), .. });
        assert!(both.iter().any(evicted), "{both:?}");
        let (_, welcome) = Raw::greet(&address, hello(2, 2, sent(0, 0))).await;
        assert_eq!(welcome.status, Status::Unknown);
        let (_, welcome) = Raw::greet(&address, hello(1, 2, sent(1, 0))).await;
        assert_eq!(welcome.status, Status::Resumed);
    });
}

/// Whose limits do not fit takes nobody's place.
#[test]
fn who_cannot_be_let_in_costs_nobody_a_session() {
    Sim::default().run(async {
        let (_listener, address, mut events) = listen(session().max_sessions(1)).await;
        drop(Raw::greet(&address, hello(1, 1, None)).await);
        assert!(matches!(next(&mut events).await, Event::Connected { .. }));
        assert!(matches!(next(&mut events).await, Event::Detached { .. }));
        for max_message in [4095, 4097] {
            let mut wrong = hello(2, 1, None);
            wrong.terms.max_message = max_message;
            let (raw, welcome) = Raw::greet(&address, wrong).await;
            assert_eq!((welcome.status, welcome.terms.max_message), (Status::Limits, 4096));
            raw.ends().await;
            let kind = HandshakeErrorKind::Limits { ours: 4096, theirs: max_message as usize };
            assert_eq!(refused(&mut events).await, kind);
        }
        let (_, welcome) = Raw::greet(&address, hello(1, 2, sent(0, 0))).await;
        assert_eq!(welcome.status, Status::Resumed);
    });
}

#[test]
fn of_those_who_hold_too_much_without_a_connection_the_oldest_goes() {
    Sim::default().run(async {
        let session = self::session().detached_bytes(1000);
        let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config(session)).await.unwrap().split();
        let (address, mut events) = (Address::from(incoming.local_addr()), incoming.events());
        let mut peers = Vec::new();
        for id in [1, 2] {
            let (mut raw, _) = Raw::greet(&address, hello(id, 1, None)).await;
            assert!(matches!(next(&mut events).await, Event::Connected { .. }));
            raw.send(b"answer me").await;
            peers.push(incoming.next().await.unwrap().0);
            drop(raw);
            assert!(matches!(next(&mut events).await, Event::Detached { .. }));
        }
        outgoing.feed((peers[0], vec![7; 600].into())).await.unwrap();
        assert!(testing::within(Some(Duration::from_secs(1)), outgoing.flush()).await.is_none());
        assert!(events.next().now_or_never().is_none());
        outgoing.feed((peers[1], vec![7; 600].into())).await.unwrap();
        let _ = testing::within(Some(Duration::from_secs(1)), outgoing.flush()).await;
        match [next(&mut events).await, next(&mut events).await] {
            [
                Event::Undelivered { peer: one, messages: 1 },
                Event::Disconnected { peer: other, reason: Reason::Session(ErrorCode::Evicted) },
            ] => assert_eq!([one, other], [peers[0]; 2]),
            other => panic!("{other:?}"),
        }
        let (_, welcome) = Raw::greet(&address, hello(1, 2, sent(1, 0))).await;
        assert_eq!(welcome.status, Status::Unknown);
        let (mut raw, welcome) = Raw::greet(&address, hello(2, 2, sent(1, 0))).await;
        assert_eq!(welcome.status, Status::Resumed);
        // The ACK of the last message is in the WELCOME, or in front of the reply.
        let mut heard = raw.read(604).await;
        heard.extend(testing::within(Some(Duration::from_secs(1)), raw.read(13)).await.unwrap_or_default());
        assert!(heard.windows(604).any(|bytes| bytes[..4] == [0, 0, 2, 88] && bytes[4..] == [7; 600]));
    });
}

#[test]
fn a_session_without_a_connection_ends_after_the_smaller_ttl() {
    for (ours, theirs, ttl) in [(20_000, 5_000, 5), (5_000, 20_000, 5)] {
        Sim::default().run(async {
            let (_listener, address, mut events) = listen(session().ttl(Duration::from_millis(ours))).await;
            let mut first = hello(1, 1, None);
            first.terms.ttl = theirs;
            drop(Raw::greet(&address, first).await);
            assert!(matches!(next(&mut events).await, Event::Connected { .. }));
            assert!(matches!(next(&mut events).await, Event::Detached { .. }));
            match next(&mut events).await {
                Event::Disconnected { reason: Reason::SessionExpired, .. } => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(testing::elapsed(), Duration::from_secs(ttl));
            let (_, welcome) = Raw::greet(&address, hello(1, 2, sent(0, 0))).await;
            assert_eq!(welcome.status, Status::Unknown);
        });
    }
}

/// It does not come for its turn: all who wait behind it would wait for as long as it is remembered.
#[test]
fn a_session_whose_connection_breaks_while_it_waits_for_the_inbox_holds_nobody_up() {
    Sim::default().run(async {
        let narrow = config(session()).inbox_bytes(64 << 10);
        let mut listener = Listener::bind("127.0.0.1:0", narrow).await.unwrap();
        assert!(listener.next().now_or_never().is_none());
        let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
        let (mut first, _) = Raw::greet(&address, hello(1, 1, None)).await;
        // As long as this is not taken, there is no room for a whole read: both wait for that, one behind the other.
        first.send(&[1; 4000]).await;
        testing::sleep(Duration::from_secs(1)).await;
        let (mut second, _) = Raw::greet(&address, hello(2, 1, None)).await;
        second.send(b"behind").await;
        testing::sleep(Duration::from_secs(1)).await;
        drop(first);
        while !matches!(events.next().await.unwrap(), Event::Detached { .. }) {}
        let mut next = async || testing::within(Some(Duration::from_secs(1)), listener.next()).await.flatten();
        assert_eq!(next().await.unwrap().1, [1; 4000][..]);
        assert_eq!(next().await.expect("nobody stands in the way").1, "behind");
    });
}
