//! Acknowledged sessions over sockets of the system, and who meets whom.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use buffstreams::{
    Address, Bytes, Config, Connection, Error, Event, HandshakeErrorKind, Listener, LooksLike, Manager, Reason,
    Session, WireFormat,
};
use futures::future::{join, join_all};
use futures::{SinkExt, StreamExt};

use crate::net::{SOON, defaults, event, next, run, start, within};

/// How many go on at once, where connections are cut.
const SESSIONS: usize = 6;

fn config() -> Config {
    defaults().session(Session::new())
}

fn message(n: u32) -> Bytes {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(4 + (n as usize * 37) % 3000, 7);
    bytes.into()
}

/// Sends so many messages, and has each of them back, in order and once.
async fn talk(address: &Address, messages: u32) {
    let (mut read, mut write) = Connection::dial(address, config()).await.unwrap().split();
    let send = async {
        for n in 0..messages {
            write.feed(message(n)).await.unwrap();
        }
        write.close().await.unwrap();
    };
    let receive = async {
        for n in 0..messages {
            assert_eq!(next(&mut read).await.unwrap().unwrap(), message(n));
        }
        assert!(next(&mut read).await.is_none());
    };
    join(send, receive).await;
    assert!(write.take_in_doubt().is_empty() && write.take_unsent().is_empty());
}

/// A listener that answers everything with itself, and where it is.
async fn echo(at: &str) -> (Address, buffstreams::Events<Event>) {
    let listener = Listener::bind(at, config()).await.unwrap();
    let (address, events) = (listener.local_addr().to_string().into(), listener.events());
    let (incoming, outgoing) = listener.split();
    async_std::task::spawn(incoming.map(Ok).forward(outgoing));
    (address, events)
}

/// Copies at most so many bytes, and then ends both in both directions.
fn copy(mut from: TcpStream, mut to: TcpStream, mut left: usize) {
    let mut buf = [0; 8192];
    while left > 0
        && let Ok(n @ 1..) = from.read(&mut buf[..left.min(8192)])
        && to.write_all(&buf[..n]).is_ok()
    {
        left -= n;
    }
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Carries connections to `to`; the first few of them end after so many bytes of the dialer's, or of the answers.
fn relay(to: SocketAddr, cuts: &'static [[usize; 2]]) -> SocketAddr {
    let relay = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = relay.local_addr().unwrap();
    thread::spawn(move || {
        let cuts = cuts.iter().copied().chain(std::iter::repeat([usize::MAX; 2]));
        for ([there, back], dialed) in cuts.zip(relay.incoming()) {
            let (dialed, carried) = (dialed.unwrap(), TcpStream::connect(to).unwrap());
            let (one, other) = (dialed.try_clone().unwrap(), carried.try_clone().unwrap());
            thread::spawn(move || copy(dialed, carried, there));
            thread::spawn(move || copy(other, one, back));
        }
    });
    addr
}

#[test]
fn a_session_goes_on_over_connections_that_are_cut() {
    run(async {
        let (address, mut events) = echo("127.0.0.1:0").await;
        let cuts = &[[usize::MAX, 5000], [100, usize::MAX], [300_000, usize::MAX], [usize::MAX, 88], [90_000, 90_001]];
        let to = address.as_str().parse().unwrap();
        // Several at once: it matters who finds a break first, the end's task or whoever writes.
        join_all((0..SESSIONS).map(async |_| talk(&relay(to, cuts).into(), 1000).await)).await;
        let (mut resumed, mut sessions, mut ended) = (0, 0, 0);
        let all_ended = event(&mut events, |event| {
            match event {
                Event::Resumed { .. } => resumed += 1,
                Event::Connected { .. } => sessions += 1,
                Event::Disconnected { reason, .. } => {
                    assert!(matches!(reason, Reason::Closed), "{reason:?}");
                    ended += 1;
                }
                _ => {}
            }
            (ended == SESSIONS).then_some(())
        });
        all_ended.await;
        assert_eq!(sessions, SESSIONS);
        assert!(resumed >= 4 * SESSIONS, "{resumed}");
    });
}

#[test]
fn a_session_over_a_unix_socket_knows_its_user() {
    run(async {
        let folder = std::env::temp_dir().join(format!("buffstreams-sessions-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let (address, mut events) = echo(&format!("unix:{}/socket", folder.display())).await;
        talk(&address, 1000).await;
        let identity = event(&mut events, |event| match event {
            Event::Connected { identity, .. } => Some(identity),
            _ => None,
        });
        let identity = identity.await.expect("the system tells it");
        assert!(identity.credentials().is_some());
        std::fs::remove_dir_all(&folder).unwrap();
    });
}

#[test]
fn a_plain_dialer_at_a_listener_of_sessions_is_told_apart() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        start(&mut listener);
        let mut events = listener.events();
        let mut connection = Connection::dial(listener.local_addr(), defaults()).await.unwrap();
        connection.send(Bytes::from_static(b"plain")).await.unwrap();
        let kind = event(&mut events, |event| match event {
            Event::SessionRefused { kind, .. } => Some(kind),
            _ => None,
        });
        match kind.await {
            HandshakeErrorKind::NotASession { .. } => {}
            other => panic!("{other:?}"),
        }
        assert!(!matches!(next(&mut connection).await, Some(Ok(_))));
    });
}

#[test]
fn a_dialer_of_sessions_at_a_plain_listener_is_told_what_to_look_at() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        start(&mut listener);
        let mut events = listener.events();
        let error = within(SOON, Connection::dial(listener.local_addr(), config())).await.unwrap_err();
        assert!(matches!(error, Error::Handshake { kind: HandshakeErrorKind::NoAnswer, .. }), "{error:?}");
        assert!(error.to_string().contains("is the other end a plain listener?"), "{error}");
        let error = event(&mut events, |event| match event {
            Event::Rejected { error, .. } => Some(error),
            _ => None,
        });
        assert_eq!(error.await.looks_like, Some(LooksLike::Session));
        let manager = Manager::new(config());
        match within(SOON, manager.dial(listener.local_addr())).await {
            Err(Error::Handshake { kind: HandshakeErrorKind::NoAnswer, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(manager.addresses().is_empty());
    });
}

#[test]
fn a_listener_that_takes_both_tells_them_apart_by_the_first_byte() {
    // In the first one the lengths are where those of a session are, in the others they are not.
    for format in [WireFormat::u32_be(), WireFormat::buffstreams(), WireFormat::u16_be(), WireFormat::u64_be()] {
        run(async move {
            let format = || defaults().wire_format(format);
            let both = format().session(Session::new().or_plain());
            let listener = Listener::bind("127.0.0.1:0", both).await.unwrap();
            let address = Address::from(listener.local_addr().to_string());
            let (incoming, outgoing) = listener.split();
            async_std::task::spawn(incoming.map(Ok).forward(outgoing));
            talk(&address, 100).await;
            let mut plain = Connection::dial(&address, format()).await.unwrap();
            for n in 0..100 {
                plain.send(message(n)).await.unwrap();
                assert_eq!(next(&mut plain).await.unwrap().unwrap(), message(n));
            }
            assert!(matches!(plain.barrier().await, Err(Error::NoSession)));
        });
    }
}
