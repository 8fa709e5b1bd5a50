//! What hostile or mistaken ends do, by table: each ends alone, with an error that names what came, and no message of theirs
//! reaches the program. A good connection goes on through all of it, and a new one is taken afterwards.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use buffstreams::{Config, Connection, Error, Event, Listener, LooksLike, Reason, Tls, TlsError};
use futures::SinkExt;
use rustls::ClientConfig;

use super::certificates::{Authority, Pair};
use super::net::{SOON, config, connected, event, frame, next, raw, rest, run};
use super::raw::{PROTOCOL, RawTls, client, hello, old_hello, record, reset, server};

/// Long enough for every handshake that is to succeed, and short enough to wait for.
const STALL: Duration = Duration::from_millis(1500);
const TLS12: [u8; 2] = [3, 3];
const TLS10: [u8; 2] = [3, 1];

/// What the hostile end has to work with.
struct Kit {
    authority: Authority,
    stranger: Authority,
    client: Pair,
    good: Arc<ClientConfig>,
}

impl Kit {
    fn new() -> Self {
        let (authority, stranger) = (Authority::new("the authority"), Authority::new("a stranger"));
        let client = authority.issue("a-client");
        let good = self::client(&authority.pem(), Some(&client), &[PROTOCOL]);
        Self { authority, stranger, client, good }
    }

    /// A session of a client with this certificate, as far as it comes.
    fn shake(&self, own: Option<&Pair>, tcp: TcpStream) -> RawTls {
        let mut raw = RawTls::client(client(&self.authority.pem(), own, &[PROTOCOL]), tcp);
        // In TLS 1.3 a client has finished before it hears what the server says of its certificate.
        let _ = raw.shake();
        let message = raw.message(b"of a hostile end");
        raw.put(&message);
        raw
    }

    /// A session that both ends have agreed to.
    fn session(&self, tcp: TcpStream) -> RawTls {
        let mut raw = RawTls::client(self.good.clone(), tcp);
        raw.shake().expect("the listener agrees");
        raw
    }
}

/// Holds the socket until the other end is gone.
fn stay(mut tcp: TcpStream) {
    rest(&mut tcp);
}

fn say(mut tcp: TcpStream, bytes: &[u8]) {
    // The other end may have gone in the middle of it.
    let _ = tcp.write_all(bytes);
    stay(tcp);
}

fn say_and_end(mut tcp: TcpStream, bytes: &[u8]) {
    tcp.write_all(bytes).unwrap();
    tcp.shutdown(Shutdown::Write).unwrap();
    stay(tcp);
}

fn say_and_reset(mut tcp: TcpStream, bytes: &[u8]) {
    tcp.write_all(bytes).unwrap();
    reset(tcp);
}

fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| random.u8(..)).collect()
}

// ---- a listener, and who connects to it

/// A row of the table: what it is called, what whoever has connected does, and whether that is the error.
type Handshake = (&'static str, fn(&Kit, TcpStream), fn(&TlsError) -> bool);

fn is_foreign(error: &TlsError, as_what: Option<LooksLike>) -> bool {
    matches!(error, TlsError::NotTls { looks_like, .. } if *looks_like == as_what)
}

fn is_violation(error: &TlsError) -> bool {
    matches!(error, TlsError::Violation { what, .. } if !what.is_empty())
}

fn is_incompatible(error: &TlsError, with: &str) -> bool {
    matches!(error, TlsError::Incompatible { what, .. } if what.contains(with))
}

fn has_ended(error: &TlsError, after: usize) -> bool {
    matches!(error, TlsError::Ended { received, .. } if *received == after as u64)
}

fn is_reset(error: &TlsError) -> bool {
    // A reset may overtake what came before it.
    matches!(error, TlsError::Io(error) if error.kind() == std::io::ErrorKind::ConnectionReset)
}

/// Who comes to no session.
const NO_SESSION: &[Handshake] = &[
    (
        "frames of our own format",
        |_, tcp| say(tcp, &[frame(b"one"), frame(b"two"), frame(&[0; 100])].concat()),
        |error| is_foreign(error, Some(LooksLike::WithoutTls)),
    ),
    (
        "HTTP",
        |_, tcp| say(tcp, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        |error| is_foreign(error, Some(LooksLike::Http)),
    ),
    ("SSH", |_, tcp| say(tcp, b"SSH-2.0-OpenSSH_9.6\r\n"), |error| is_foreign(error, Some(LooksLike::Ssh))),
    (
        "SSH in single bytes",
        |_, mut tcp| {
            let _ = b"SSH-2.0-OpenSSH_9.6\r\n".chunks(1).try_for_each(|byte| tcp.write_all(byte));
            stay(tcp);
        },
        // It may be refused from the first, and there is no telling what that is.
        |error| matches!(error, TlsError::NotTls { looks_like: None | Some(LooksLike::Ssh), .. }),
    ),
    (
        "Redis",
        |_, tcp| say(tcp, b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n"),
        |error| is_foreign(error, Some(LooksLike::Redis)),
    ),
    (
        "HTTP/2",
        |_, tcp| say(tcp, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"),
        |error| is_foreign(error, Some(LooksLike::Http2)),
    ),
    (
        "the PROXY protocol in front of a session",
        |kit, tcp| say(tcp, &[b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n".to_vec(), hello(&kit.good)].concat()),
        |error| is_foreign(error, Some(LooksLike::ProxyV1)),
    ),
    ("zero bytes", |_, tcp| say(tcp, &[0; 64]), |error| matches!(error, TlsError::NotTls { .. })),
    ("the bytes 0xff", |_, tcp| say(tcp, &[0xff; 64]), |error| is_foreign(error, None)),
    (
        "nothing, and silence",
        |_, tcp| stay(tcp),
        |error| matches!(error, TlsError::Timeout { after, .. } if *after == STALL),
    ),
    (
        "one byte, and silence",
        |kit, tcp| say(tcp, &hello(&kit.good)[..1]),
        |error| matches!(error, TlsError::Timeout { after, .. } if *after == STALL),
    ),
    (
        "all of a hello but its last byte, and silence",
        |kit, tcp| {
            let hello = hello(&kit.good);
            say(tcp, &hello[..hello.len() - 1]);
        },
        |error| matches!(error, TlsError::Timeout { after, .. } if *after == STALL),
    ),
    (
        "a hello, and nothing behind it",
        |kit, mut tcp| {
            // Its answer is read, and not answered.
            tcp.write_all(&hello(&kit.good)).unwrap();
            stay(tcp);
        },
        |error| matches!(error, TlsError::Timeout { after, .. } if *after == STALL),
    ),
    ("the end", |_, tcp| say_and_end(tcp, b""), |error| has_ended(error, 0)),
    ("a reset", |_, tcp| say_and_reset(tcp, b""), is_reset),
    (
        "a byte of a hello, and the end",
        |kit, tcp| say_and_end(tcp, &hello(&kit.good)[..1]),
        |error| has_ended(error, 1),
    ),
    (
        "a header of a hello, and the end",
        |kit, tcp| say_and_end(tcp, &hello(&kit.good)[..5]),
        |error| has_ended(error, 5),
    ),
    (
        "a part of a hello, and the end",
        |kit, tcp| say_and_end(tcp, &hello(&kit.good)[..77]),
        |error| has_ended(error, 77),
    ),
    (
        "a whole hello, and the end",
        |kit, tcp| say_and_end(tcp, &hello(&kit.good)),
        |error| matches!(error, TlsError::Ended { received, .. } if *received > 100),
    ),
    ("a byte of a hello, and a reset", |kit, tcp| say_and_reset(tcp, &hello(&kit.good)[..1]), is_reset),
    ("a header of a hello, and a reset", |kit, tcp| say_and_reset(tcp, &hello(&kit.good)[..5]), is_reset),
    ("a part of a hello, and a reset", |kit, tcp| say_and_reset(tcp, &hello(&kit.good)[..77]), is_reset),
    (
        "a hello of TLS 1.2",
        |_, tcp| say(tcp, &old_hello(TLS10, TLS12, &[0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 4, 0, 2, 4, 3])),
        |error| is_incompatible(error, ""),
    ),
    (
        "a hello of TLS 1.0",
        |_, tcp| say(tcp, &old_hello(TLS10, TLS10, &[])),
        |error| is_incompatible(error, "") || is_violation(error),
    ),
    (
        "a hello of SSL 2",
        |_, tcp| say(tcp, &[&[0x80, 46, 1, 0, 2, 0, 21, 0, 0, 0, 16][..], &[7; 37]].concat()),
        |error| is_foreign(error, None),
    ),
    ("a hello with garbage for extensions", |_, tcp| say(tcp, &old_hello(TLS10, TLS12, &random(1, 200))), is_violation),
    (
        "a hello that is longer than its record says",
        |kit, tcp| {
            let mut hello = hello(&kit.good);
            hello[8] = hello[8].wrapping_add(9);
            say_and_end(tcp, &hello);
        },
        |error| is_violation(error) || matches!(error, TlsError::Ended { .. }),
    ),
    ("an empty hello", |_, tcp| say(tcp, &record(0x16, TLS12, &[1, 0, 0, 0])), is_violation),
    (
        "a record that is too long",
        |_, tcp| say(tcp, &[&[0x16, 3, 1][..], &(16_384_u16 + 257).to_be_bytes(), &[1; 20_000]].concat()),
        is_violation,
    ),
    ("many empty records", |_, tcp| say(tcp, &record(0x16, TLS12, &[]).repeat(1000)), is_violation),
    (
        "application data first",
        |_, tcp| say(tcp, &record(0x17, TLS12, &frame(b"data"))),
        |error| is_foreign(error, None),
    ),
    (
        "an alert first",
        |_, tcp| say(tcp, &record(0x15, TLS12, &[2, 40])),
        |error| matches!(error, TlsError::Refused { alert, .. } if alert == "HandshakeFailure"),
    ),
    (
        "many warnings first",
        |_, tcp| say(tcp, &record(0x15, TLS12, &[1, 90]).repeat(1000)),
        |error| is_violation(error) || matches!(error, TlsError::Refused { .. }),
    ),
    (
        "many ChangeCipherSpecs",
        |_, tcp| say(tcp, &record(0x14, TLS12, &[1]).repeat(1000)),
        |error| is_foreign(error, None),
    ),
    (
        "a hello, and many ChangeCipherSpecs",
        |kit, tcp| say(tcp, &[hello(&kit.good), record(0x14, TLS12, &[1]).repeat(1000)].concat()),
        is_violation,
    ),
    (
        "a handshake message of 16 MiB",
        |_, tcp| say(tcp, &record(0x16, TLS12, &[1, 0xff, 0xff, 0xff, 3, 3])),
        is_violation,
    ),
    (
        "a message of a handshake that does not come first",
        |_, tcp| say(tcp, &record(0x16, TLS12, &[20, 0, 0, 4, 1, 2, 3, 4])),
        is_violation,
    ),
    ("a hello twice", |kit, tcp| say(tcp, &hello(&kit.good).repeat(2)), is_violation),
    (
        "another protocol by ALPN",
        |kit, tcp| {
            let config = client(&kit.authority.pem(), Some(&kit.client), &[b"h2", b"http/1.1"]);
            say(tcp, &hello(&config));
        },
        |error| is_incompatible(error, "application protocol"),
    ),
    ("no certificate", |kit, tcp| stay(kit.shake(None, tcp).tcp), |error| matches!(error, TlsError::NoCertificate)),
    (
        "a certificate that has expired",
        |kit, tcp| stay(kit.shake(Some(&kit.authority.expired("a-client")), tcp).tcp),
        |error| matches!(error, TlsError::Expired { not_after, .. } if *not_after == year(2020)),
    ),
    (
        "a certificate that is not valid yet",
        |kit, tcp| stay(kit.shake(Some(&kit.authority.not_valid_yet("a-client")), tcp).tcp),
        |error| matches!(error, TlsError::NotValidYet { not_before, .. } if *not_before == year(2999)),
    ),
    (
        "a certificate of another authority",
        |kit, tcp| stay(kit.shake(Some(&kit.stranger.issue("a-client")), tcp).tcp),
        |error| matches!(error, TlsError::UnknownIssuer),
    ),
    (
        "a certificate of its own",
        |kit, tcp| stay(kit.shake(Some(&Pair::self_signed("a-client")), tcp).tcp),
        |error| matches!(error, TlsError::UnknownIssuer),
    ),
    (
        "a certificate that is for servers",
        |kit, tcp| stay(kit.shake(Some(&kit.authority.for_servers_only("a-client")), tcp).tcp),
        |error| matches!(error, TlsError::BadCertificate { .. }),
    ),
    (
        "a certificate of somebody else, without its key",
        |kit, tcp| {
            let key = kit.authority.issue("a-client").key;
            stay(kit.shake(Some(&Pair { key, ..kit.client.clone() }), tcp).tcp);
        },
        |error| matches!(error, TlsError::BadCertificate { .. }),
    ),
    ("random bytes 0", |_, tcp| say_and_end(tcp, &random(100, 300)), is_garbage),
    ("random bytes 1", |_, tcp| say_and_end(tcp, &random(101, 300)), is_garbage),
    ("random bytes 2", |_, tcp| say_and_end(tcp, &random(102, 300)), is_garbage),
    ("random bytes 3", |_, tcp| say_and_end(tcp, &random(103, 300)), is_garbage),
    ("random bytes 4", |_, tcp| say_and_end(tcp, &random(104, 300)), is_garbage),
    ("random bytes in a record 5", |_, tcp| say(tcp, &record(0x16, TLS12, &random(105, 300))), is_violation),
    ("random bytes in a record 6", |_, tcp| say(tcp, &record(0x16, TLS12, &random(106, 300))), is_violation),
    ("random bytes in a hello 7", |_, tcp| say(tcp, &in_a_hello(107)), is_violation),
    ("random bytes in a hello 8", |_, tcp| say(tcp, &in_a_hello(108)), is_violation),
    (
        "random bytes behind a hello 9",
        |kit, tcp| say(tcp, &[hello(&kit.good), record(0x17, TLS12, &random(109, 300))].concat()),
        is_violation,
    ),
];

fn is_garbage(error: &TlsError) -> bool {
    matches!(error, TlsError::NotTls { .. })
}

fn in_a_hello(seed: u64) -> Vec<u8> {
    let mut content = random(seed, 300);
    content[..4].copy_from_slice(&[1, 0, 1, 40]);
    record(0x16, TLS12, &content)
}

fn year(year: u64) -> std::time::SystemTime {
    // Since 1970, with the days of 29 February.
    let leaps = |until: u64| (until - 1) / 4 - (until - 1) / 100 + (until - 1) / 400;
    let days = (year - 1970) * 365 + leaps(year) - leaps(1970);
    std::time::UNIX_EPOCH + Duration::from_secs(days * 86_400)
}

/// A row of the other table: what whoever has a session does with it, and whether that is why it is disconnected.
type Session = (&'static str, fn(RawTls), fn(&Reason) -> bool);

fn has_broken(reason: &Reason) -> bool {
    matches!(reason, Reason::Failed(error) if error.kind() == std::io::ErrorKind::InvalidData && error.to_string().contains("rules of TLS"))
}

/// Who has a session, and does something else than to send messages and end it.
const NO_END: &[Session] = &[
    (
        "a hello in the midst of a session",
        |mut raw| {
            let hello = old_hello(TLS12, TLS12, &[]);
            raw.put(&hello);
            stay(raw.tcp);
        },
        has_broken,
    ),
    (
        "garbage",
        |mut raw| {
            raw.put(&random(1, 300));
            stay(raw.tcp)
        },
        has_broken,
    ),
    (
        "a record of garbage",
        |mut raw| {
            raw.put(&record(0x17, TLS12, &random(2, 300)));
            stay(raw.tcp)
        },
        has_broken,
    ),
    (
        "frames without TLS behind the handshake",
        |mut raw| {
            raw.put(&frame(b"in the clear"));
            stay(raw.tcp)
        },
        has_broken,
    ),
    (
        "a record with one bit changed",
        |mut raw| {
            let mut record = raw.message(b"changed on the way");
            record[10] ^= 1;
            raw.put(&record);
            stay(raw.tcp);
        },
        has_broken,
    ),
    (
        "a record twice",
        |mut raw| {
            let record = raw.seal(b"");
            let half = raw.seal(&frame(b"twice")[..5]);
            raw.put(&[record, half.clone(), half].concat());
            stay(raw.tcp);
        },
        has_broken,
    ),
    (
        "a record that is missing",
        |mut raw| {
            raw.message(b"kept back");
            let record = raw.message(b"behind it");
            raw.put(&record);
            stay(raw.tcp);
        },
        has_broken,
    ),
    (
        "many new keys",
        |mut raw| {
            for _ in 0..1000 {
                raw.tls.refresh_traffic_keys().unwrap();
                let records = raw.records();
                raw.put(&records);
            }
            stay(raw.tcp);
        },
        has_broken,
    ),
    (
        "an alert",
        |mut raw| {
            raw.put(&record(0x15, TLS12, &[2, 40]));
            stay(raw.tcp)
        },
        |reason| matches!(reason, Reason::Failed(error) if error.kind() == std::io::ErrorKind::InvalidData),
    ),
    (
        "a close_notify, and more behind it",
        |mut raw| {
            let end = raw.close_notify();
            raw.put(&[&end[..], &record(0x17, TLS12, &random(5, 100)), &frame(b"in the clear")].concat());
            stay(raw.tcp);
        },
        |reason| matches!(reason, Reason::Closed),
    ),
    (
        "the end between two frames",
        |raw| {
            raw.fin();
            stay(raw.tcp)
        },
        |reason| matches!(reason, Reason::Truncated { got: 0, want: 4, .. }),
    ),
    (
        "the end inside a frame",
        |mut raw| {
            let part = raw.seal(&frame(&[7; 100])[..50]);
            raw.put(&part);
            raw.fin();
            stay(raw.tcp);
        },
        |reason| matches!(reason, Reason::Truncated { got: 50, want: 104, .. }),
    ),
    (
        "the end inside a record",
        |mut raw| {
            let part = raw.message(&[7; 100]);
            raw.put(&part[..50]);
            raw.fin();
            stay(raw.tcp);
        },
        |reason| matches!(reason, Reason::Truncated { got: 0, want: 4, .. }),
    ),
    (
        "a close_notify inside a frame",
        |mut raw| {
            let part = raw.seal(&frame(&[7; 100])[..50]);
            let end = raw.close_notify();
            raw.put(&[part, end].concat());
            raw.fin();
            stay(raw.tcp);
        },
        |reason| matches!(reason, Reason::Truncated { got: 50, want: 104, .. }),
    ),
    (
        "a reset",
        |raw| reset(raw.tcp),
        |reason| matches!(reason, Reason::Failed(error) if error.kind() == std::io::ErrorKind::ConnectionReset),
    ),
    (
        "a header that makes no sense",
        |mut raw| {
            let wire = raw.seal(&[0xff; 64]);
            raw.put(&wire);
            stay(raw.tcp);
        },
        |reason| matches!(reason, Reason::Rejected),
    ),
];

/// The listener, and the good connection that is held through all.
struct Good {
    listener: Listener,
    connection: Connection,
    client: Tls,
    sent: u32,
}

impl Good {
    async fn new(kit: &Kit) -> Self {
        let own = kit.authority.issue("localhost");
        let tls = Tls::new().server(own.cert, own.key).unwrap().client_auth(kit.authority.pem()).unwrap();
        let listener = Listener::bind("127.0.0.1:0", config().tls(tls).dial_timeout(STALL)).await.unwrap();
        let Pair { cert, key } = kit.client.clone();
        let client = Tls::new().roots(kit.authority.pem()).unwrap().identity(cert, key).unwrap();
        let client = client.server_name("localhost").unwrap();
        let connection =
            Connection::dial(listener.local_addr().ip().unwrap(), config().tls(client.clone())).await.unwrap();
        let mut good = Self { listener, connection, client, sent: 0 };
        good.goes_on("before all").await;
        good
    }

    /// Whatever happened, the next message that the program gets is this one.
    async fn goes_on(&mut self, after: &str) {
        self.sent += 1;
        let message = format!("message {}", self.sent);
        self.connection.send(message.clone().into()).await.unwrap();
        assert_eq!(next(&mut self.listener).await.unwrap().1, message, "{after}");
    }

    async fn takes_another(&mut self, after: &str) {
        let config = config().tls(self.client.clone());
        let mut another = Connection::dial(self.listener.local_addr().ip().unwrap(), config).await.unwrap();
        another.send(b"of another"[..].into()).await.unwrap();
        assert_eq!(next(&mut self.listener).await.unwrap().1, "of another", "{after}");
        another.close().await.unwrap();
    }
}

#[test]
fn who_comes_to_no_session_is_told_of_and_hurts_nobody() {
    run(async {
        let kit = Arc::new(Kit::new());
        let mut good = Good::new(&kit).await;
        let (addr, mut events) = (good.listener.local_addr().ip().unwrap(), good.listener.events());
        let mut wrong = Vec::new();
        for (name, hostile, is_it) in NO_SESSION {
            let (tcp, kit) = (raw(addr), kit.clone());
            let local = tcp.local_addr().unwrap();
            let end = std::thread::spawn(move || hostile(&kit, tcp));
            good.goes_on(name).await;
            let error = event(&mut events, |event| match event {
                Event::HandshakeFailed { from, error, .. } if from == local => Some(error),
                Event::Connected { peer, .. } if peer.addr() == Some(local) => panic!("{name}: it is a peer"),
                _ => None,
            })
            .await;
            if !is_it(&error) {
                wrong.push(format!("{name}: {error:?}"));
            }
            good.goes_on(name).await;
            end.join().unwrap_or_else(|_| panic!("{name}"));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        good.takes_another("all of them").await;
        assert!(good.listener.stats().connections <= 2);
    });
}

#[test]
fn who_breaks_a_session_is_disconnected_and_hurts_nobody() {
    run(async {
        let kit = Kit::new();
        let mut good = Good::new(&kit).await;
        let (addr, mut events) = (good.listener.local_addr().ip().unwrap(), good.listener.events());
        let mut wrong = Vec::new();
        for (name, hostile, is_it) in NO_END {
            let tcp = raw(addr);
            let local = tcp.local_addr().unwrap();
            let session = kit.session(tcp);
            while connected(&mut events).await.addr() != Some(local) {}
            let end = std::thread::spawn(move || hostile(session));
            let reason = event(&mut events, |event| match event {
                Event::Disconnected { peer, reason, .. } if peer.addr() == Some(local) => Some(reason),
                _ => None,
            })
            .await;
            if !is_it(&reason) {
                wrong.push(format!("{name}: {reason:?}"));
            }
            good.goes_on(name).await;
            end.join().unwrap_or_else(|_| panic!("{name}"));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        good.takes_another("all of them").await;
    });
}

#[test]
fn an_end_that_names_no_protocol_is_taken() {
    run(async {
        let kit = Kit::new();
        let mut good = Good::new(&kit).await;
        let config = client(&kit.authority.pem(), Some(&kit.client), &[]);
        let mut session = RawTls::client(config, raw(good.listener.local_addr().ip().unwrap()));
        session.shake().unwrap();
        let message = session.message(b"without ALPN");
        session.put(&message);
        assert_eq!(next(&mut good.listener).await.unwrap().1, "without ALPN");
    });
}

/// Whatever was whole before a session broke is received, as it is without TLS; also what came with the end of the handshake.
#[test]
fn what_came_before_garbage_is_received() {
    run(async {
        let kit = Kit::new();
        let mut good = Good::new(&kit).await;
        for with_the_handshake in [false, true] {
            let config = client(&kit.authority.pem(), Some(&kit.client), &[PROTOCOL]);
            let mut session = RawTls::client(config, raw(good.listener.local_addr().ip().unwrap()));
            session.shake_but_for_the_last().unwrap();
            let mut last = session.records();
            if !with_the_handshake {
                session.put(&std::mem::take(&mut last));
                let zeroth = session.message(b"zeroth");
                session.put(&zeroth);
                assert_eq!(next(&mut good.listener).await.unwrap().1, "zeroth");
            }
            let (first, second) = (session.message(b"first"), session.message(b"second"));
            // In one segment.
            session.put(&[last, first, second, record(0x17, TLS12, &random(3, 100))].concat());
            assert_eq!(next(&mut good.listener).await.unwrap().1, "first");
            assert_eq!(next(&mut good.listener).await.unwrap().1, "second");
            good.goes_on("garbage").await;
        }
    });
}

// ---- whoever is dialed

/// A row: what it is called, what whoever is dialed does, and whether that is the error.
type Dialed = (&'static str, fn(&Kit, TcpStream), fn(&Error) -> bool);

fn tls(error: &Error) -> Option<&TlsError> {
    match error {
        Error::Tls { source, .. } => Some(source),
        _ => None,
    }
}

fn serve(own: &Pair, clients: Option<&str>, protocols: &[&[u8]], tcp: TcpStream) -> RawTls {
    let mut raw = RawTls::server(server(own, clients, protocols), tcp);
    // What it comes to is for the dialer to say.
    let _ = raw.shake();
    raw
}

fn answer(mut tcp: TcpStream, bytes: &[u8]) {
    let mut hello = [0; 5];
    tcp.read_exact(&mut hello).unwrap();
    say(tcp, bytes);
}

const NO_SERVER: &[Dialed] = &[
    (
        "an SSH server",
        |_, tcp| say(tcp, b"SSH-2.0-OpenSSH_9.6\r\n"),
        |error| tls(error).is_some_and(|error| is_foreign(error, Some(LooksLike::Ssh))),
    ),
    (
        "a mail server",
        |_, tcp| say(tcp, b"220 mail.example.com ESMTP Postfix\r\n"),
        |error| tls(error).is_some_and(|error| is_foreign(error, Some(LooksLike::Smtp))),
    ),
    (
        "an HTTP server",
        |_, tcp| answer(tcp, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        |error| tls(error).is_some_and(|error| is_foreign(error, Some(LooksLike::Http))),
    ),
    (
        "frames of our own format",
        |_, tcp| say(tcp, &[frame(b"one"), frame(b"two"), frame(&[0; 100])].concat()),
        |error| tls(error).is_some_and(|error| is_foreign(error, Some(LooksLike::WithoutTls))),
    ),
    (
        "a certificate for another name",
        |kit, tcp| stay(serve(&kit.authority.issue("example.com"), None, &[PROTOCOL], tcp).tcp),
        |error| {
            matches!(tls(error), Some(TlsError::WrongName { expected, presented, .. })
            if expected == "localhost" && presented == &["example.com"])
        },
    ),
    (
        "a certificate for an address",
        |kit, tcp| stay(serve(&kit.authority.issue("10.0.0.1"), None, &[PROTOCOL], tcp).tcp),
        |error| {
            matches!(tls(error), Some(TlsError::WrongName { expected, presented, .. })
            if expected == "localhost" && presented == &["10.0.0.1"])
        },
    ),
    (
        "a certificate that has expired",
        |kit, tcp| stay(serve(&kit.authority.expired("localhost"), None, &[PROTOCOL], tcp).tcp),
        |error| matches!(tls(error), Some(TlsError::Expired { not_after, .. }) if *not_after == year(2020)),
    ),
    (
        "a certificate that is not valid yet",
        |kit, tcp| stay(serve(&kit.authority.not_valid_yet("localhost"), None, &[PROTOCOL], tcp).tcp),
        |error| matches!(tls(error), Some(TlsError::NotValidYet { not_before, .. }) if *not_before == year(2999)),
    ),
    (
        "a certificate of another authority",
        |kit, tcp| stay(serve(&kit.stranger.issue("localhost"), None, &[PROTOCOL], tcp).tcp),
        |error| matches!(tls(error), Some(TlsError::UnknownIssuer)),
    ),
    (
        "a certificate of its own",
        |_, tcp| stay(serve(&Pair::self_signed("localhost"), None, &[PROTOCOL], tcp).tcp),
        |error| matches!(tls(error), Some(TlsError::UnknownIssuer)),
    ),
    (
        "a certificate that is for clients",
        |kit, tcp| stay(serve(&kit.authority.for_clients_only("localhost"), None, &[PROTOCOL], tcp).tcp),
        |error| matches!(tls(error), Some(TlsError::BadCertificate { .. })),
    ),
    (
        "a certificate of somebody else, without its key",
        |kit, tcp| {
            let pair = Pair { key: kit.authority.issue("localhost").key, ..kit.authority.issue("localhost") };
            stay(serve(&pair, None, &[PROTOCOL], tcp).tcp);
        },
        |error| matches!(tls(error), Some(TlsError::BadCertificate { .. })),
    ),
    (
        "the end before anything",
        |_, tcp| say_and_end(tcp, b""),
        |error| tls(error).is_some_and(|error| has_ended(error, 0)),
    ),
    (
        "the end behind the hello",
        |_, mut tcp| {
            tcp.read_exact(&mut [0; 100]).unwrap();
            tcp.shutdown(Shutdown::Write).unwrap();
            stay(tcp);
        },
        |error| tls(error).is_some_and(|error| has_ended(error, 0)),
    ),
    ("silence", |_, tcp| stay(tcp), |error| matches!(error, Error::DialTimeout { after, .. } if *after == STALL)),
    (
        "an alert",
        |_, tcp| answer(tcp, &record(0x15, TLS12, &[2, 40])),
        |error| matches!(tls(error), Some(TlsError::Refused { alert, .. }) if alert == "HandshakeFailure"),
    ),
    (
        "a server of TLS 1.2, which refuses",
        |_, tcp| answer(tcp, &record(0x15, TLS12, &[2, 70])),
        |error| matches!(tls(error), Some(TlsError::Refused { alert, .. }) if alert == "ProtocolVersion"),
    ),
    (
        "a server of TLS 1.2, which does not know better",
        |_, tcp| {
            let body = [&TLS12[..], &[9; 32], &[0, 0xc0, 0x2f, 0]].concat();
            let message = [&[2, 0, 0, body.len() as u8][..], &body].concat();
            answer(tcp, &record(0x16, TLS12, &message));
        },
        |error| matches!(tls(error), Some(TlsError::Incompatible { .. } | TlsError::Violation { .. })),
    ),
    (
        "a reset",
        |_, mut tcp| {
            tcp.read_exact(&mut [0; 5]).unwrap();
            reset(tcp)
        },
        |error| tls(error).is_some_and(is_reset),
    ),
    (
        "garbage",
        |_, tcp| answer(tcp, &record(0x16, TLS12, &random(4, 100))),
        |error| tls(error).is_some_and(is_violation),
    ),
    (
        "its own hello, as in a mirror",
        |_, mut tcp| {
            let mut hello = [0; 4096];
            let read = tcp.read(&mut hello).unwrap();
            say(tcp, &hello[..read]);
        },
        |error| tls(error).is_some_and(is_violation),
    ),
    (
        "another protocol by ALPN",
        |kit, tcp| stay(serve(&kit.authority.issue("localhost"), None, &[b"h2"], tcp).tcp),
        |error| matches!(tls(error), Some(TlsError::Refused { alert, .. }) if alert == "NoApplicationProtocol"),
    ),
];

fn dialer(kit: &Kit) -> Config {
    let tls = Tls::new().roots(kit.authority.pem()).unwrap().server_name("localhost").unwrap();
    config().tls(tls).dial_timeout(STALL)
}

/// Somebody to be dialed, once.
fn dialed(answers: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let end = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        tcp.set_read_timeout(Some(SOON)).unwrap();
        tcp.set_write_timeout(Some(SOON)).unwrap();
        answers(tcp);
    });
    (addr, end)
}

#[test]
fn whoever_is_dialed_and_comes_to_no_session_is_an_error_that_says_why() {
    run(async {
        let kit = Arc::new(Kit::new());
        let mut wrong = Vec::new();
        for (name, hostile, is_it) in NO_SERVER {
            let (addr, end) = dialed({
                let kit = kit.clone();
                move |tcp| hostile(&kit, tcp)
            });
            let error = Connection::dial(addr, dialer(&kit)).await.expect_err(name);
            if !is_it(&error) {
                wrong.push(format!("{name}: {error:?}"));
            }
            end.join().unwrap_or_else(|_| panic!("{name}"));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

/// In TLS 1.3 a dial has succeeded before the other end has seen the certificate of this one. So it is the first read that
/// fails, and says why.
#[test]
fn a_server_that_asks_for_a_certificate_says_so_to_the_first_read() {
    run(async {
        let kit = Kit::new();
        let pems = (kit.authority.issue("localhost"), kit.authority.pem());
        let (addr, end) = dialed(move |tcp| stay(serve(&pems.0, Some(&pems.1), &[PROTOCOL], tcp).tcp));
        let mut connection = Connection::dial(addr, dialer(&kit)).await.unwrap();
        let Some(Err(Error::Read(error))) = next(&mut connection).await else { panic!("it reads") };
        let why = error.get_ref().and_then(|error| error.downcast_ref::<TlsError>());
        assert!(matches!(why, Some(TlsError::Refused { alert, .. }) if alert == "CertificateRequired"), "{error:?}");
        drop(connection);
        end.join().unwrap();
    });
}

#[test]
fn plaintext_and_tls_ends_of_ours_tell_what_the_other_one_is() {
    run(async {
        let kit = Kit::new();
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let (_incoming, _outgoing) = listener.split();
        let error = Connection::dial(addr, dialer(&kit)).await.expect_err("there is no TLS");
        // It closes at what is no header, and what it has not read then makes that a reset.
        assert!(tls(&error).is_some_and(|error| has_ended(error, 0) || is_reset(error)), "{error:?}");
        let looks_like = event(&mut events, |event| match event {
            Event::Rejected { error, .. } => Some(error.looks_like),
            _ => None,
        });
        assert_eq!(looks_like.await, Some(LooksLike::Tls));
        // And the other way round, in the default format, whose headers may begin as a record of TLS does.
        let own = kit.authority.issue("localhost");
        let tls = Tls::new().server(own.cert, own.key).unwrap();
        let listener = Listener::bind("127.0.0.1:0", Config::new().tls(tls)).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        for len in [1, 10, 11, 12, 100] {
            let mut connection = Connection::dial(addr, Config::new()).await.unwrap();
            for _ in 0..8 {
                connection.feed(vec![b'a'; len].into()).await.unwrap();
            }
            // The other end may be quicker to close than this one to write.
            let _ = connection.flush().await;
            let error = event(&mut events, |event| match event {
                Event::HandshakeFailed { error, .. } => Some(error),
                _ => None,
            });
            let error = error.await;
            assert!(is_foreign(&error, Some(LooksLike::WithoutTls)), "{len}: {error:?}");
        }
    });
}

#[test]
fn there_are_as_many_cases_as_there_should_be() {
    assert!(NO_SESSION.len() + NO_END.len() + NO_SERVER.len() >= 60);
}
