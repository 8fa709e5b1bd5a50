//! Sessions against bytes that no end of this library sends: each gets the answer that the protocol has for it, and ends alone.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use buffstreams::{
    Bytes, Config, Connection, Error, Event, Events, HandshakeErrorKind, Listener, LooksLike, Loss, Reason, Session,
    SessionErrorCode,
};
use futures::channel::mpsc;

use crate::net::{SOON, connected, defaults, disconnected, event, next, raw, rest, run, start};

const MAGIC: [u8; 12] = *b"\xf5buffstreams";
pub(crate) const MAX: u32 = 4096;
pub(crate) const WINDOW: usize = (64 << 10) + 4 + MAX as usize;

pub(crate) fn config() -> Config {
    defaults().max_message_size(MAX as usize).session(Session::new().window_bytes(WINDOW))
}

/// The HELLO of a session of this name, changed at some places.
pub(crate) fn hello(id: u8, changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = [&MAGIC[..], &[1, 0, 0, 0], &[id; 16]].concat();
    for field in [1, MAX, 1 << 20, 15_000, 120_000, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend([0; 32]);
    assert_eq!(bytes.len(), 88);
    for (at, change) in changes {
        bytes[*at..at + change.len()].copy_from_slice(change);
    }
    bytes
}

/// A listener that has a good session already, which must go on.
struct Site {
    listener: Listener,
    events: Events<Event>,
    addr: SocketAddr,
    other: TcpStream,
}

impl Site {
    async fn new(config: Config) -> Self {
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        start(&mut listener);
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let other = session(addr, 255).await;
        connected(&mut events).await;
        Self { listener, events, addr, other }
    }

    async fn goes_on(&mut self) {
        self.other.write_all(b"\0\0\0\x04good").unwrap();
        assert_eq!(next(&mut self.listener).await.unwrap().1, "good");
    }

    async fn refused(&mut self) -> HandshakeErrorKind {
        let pick = |event| match event {
            Event::SessionRefused { kind, .. } => Some(kind),
            Event::Connected { .. } | Event::Disconnected { .. } | Event::Detached { .. } => panic!("{event:?}"),
            _ => None,
        };
        event(&mut self.events, pick).await
    }
}

/// A new session, with its WELCOME read.
async fn session(addr: SocketAddr, id: u8) -> TcpStream {
    let mut stream = raw(addr);
    assert_eq!(greet(&mut stream, &hello(id, &[])), 0);
    stream
}

/// Says this HELLO. The status of the WELCOME.
pub(crate) fn greet(stream: &mut TcpStream, hello: &[u8]) -> u8 {
    stream.write_all(hello).unwrap();
    let mut welcome = [0; 88];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(welcome[..13], hello[..13]);
    welcome[13]
}

fn error(code: SessionErrorCode) -> Vec<u8> {
    [&[0x80, 0, 0, 3, 6][..], &(code as u16).to_be_bytes()].concat()
}

#[test]
fn a_handshake_that_ends_too_early_is_told_with_its_length() {
    run(async {
        let mut site = Site::new(config()).await;
        for got in 0..88 {
            let mut stream = raw(site.addr);
            stream.write_all(&hello(1, &[])[..got]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&mut stream), b"", "{got}");
            let told = site.refused().await;
            assert!(matches!(told, HandshakeErrorKind::Truncated { got: told, .. } if told == got), "{got}: {told:?}");
        }
        site.goes_on().await;
    });
}

#[test]
fn a_stranger_is_told_by_the_first_byte_that_cannot_be_and_hears_nothing() {
    run(async {
        let mut site = Site::new(config()).await;
        for at in 0..12 {
            let mut stream = raw(site.addr);
            let mut bytes = hello(1, &[]);
            bytes[at] ^= 0x10;
            stream.write_all(&bytes[..=at]).unwrap();
            assert_eq!(rest(&mut stream), b"", "{at}");
            match site.refused().await {
                HandshakeErrorKind::NotASession { .. } => {}
                other => panic!("{at}: {other:?}"),
            }
        }
        let strangers: [(&[u8], _); 4] = [
            (b"GET / HTTP/1.1\r\n\r\n", Some(LooksLike::Http)),
            (b"\x16\x03\x01\x02\0\x01\0", Some(LooksLike::Tls)),
            (b"\0", None),
            (b"\xf5BSA", None),
        ];
        for (bytes, expected) in strangers {
            let mut stream = raw(site.addr);
            stream.write_all(bytes).unwrap();
            assert_eq!(rest(&mut stream), b"", "{bytes:x?}");
            match site.refused().await {
                HandshakeErrorKind::NotASession { looks_like, .. } if expected.is_some() => {
                    assert_eq!(looks_like, expected, "{bytes:x?}");
                }
                HandshakeErrorKind::NotASession { .. } => {}
                other => panic!("{bytes:x?}: {other:?}"),
            }
        }
        site.goes_on().await;
    });
}

/// The byte of a WELCOME that says what became of the HELLO.
enum Said {
    Status(u8),
    Error(SessionErrorCode),
}

#[test]
fn a_hello_that_cannot_be_gets_the_answer_that_the_protocol_has_for_it() {
    use Said::Status;
    use SessionErrorCode::{Malformed, Position};
    // Only the library makes such a kind: it is compared as `Debug` has it.
    let malformed = || (Said::Error(Malformed), Some("Violation(Malformed)".to_owned()));
    let position = || (Said::Error(Position), Some("Violation(Position)".to_owned()));
    let version = |theirs: u8| (Status(5), Some(format!("Version {{ ours: 1, theirs: {theirs} }}")));
    let limits = |theirs: u16| (Status(6), Some(format!("Limits {{ ours: {MAX}, theirs: {theirs} }}")));
    let one: &[u8] = &[1];
    let most: &[u8] = &[0xff; 32];
    /// Bytes, each with where they take the place of good ones.
    type Changed<'a> = &'a [(usize, &'a [u8])];
    let cases: &[(Changed<'_>, _)] = &[
        (&[(12, &[0])], version(0)),
        (&[(12, &[2])], version(2)),
        (&[(12, &[255])], version(255)),
        (&[(13, &[2])], malformed()),
        (&[(13, &[0x80])], malformed()),
        (&[(15, one)], malformed()),
        (&[(16, &[0; 16])], malformed()),
        (&[(32, &[0; 4])], malformed()),
        (&[(55, one)], malformed()),
        (&[(36, &[0; 4])], (Status(6), None)),
        (&[(36, &[0x80, 0, 0, 0])], (Status(6), None)),
        (&[(44, &[0, 0, 0, 1])], (Status(6), None)),
        (&[(44, &[0, 0, 0, 99])], (Status(6), None)),
        (&[(36, &[0, 0, 0x10, 1])], limits(4097)),
        (&[(36, &[0, 0, 0x0f, 0xff])], limits(4095)),
        // New, and with positions.
        (&[(63, one)], position()),
        (&[(71, one)], position()),
        (&[(79, one)], position()),
        // To be resumed, with positions that cannot be whatever the session is.
        (&[(13, one), (63, &[2]), (71, one)], position()),
        (&[(13, one), (79, one), (87, &[2])], position()),
        // One that there is not.
        (&[(13, one)], (Status(2), Some("Unknown".to_owned()))),
        (&[(13, one), (56, most)], (Status(2), Some("Unknown".to_owned()))),
    ];
    run(async {
        let mut site = Site::new(config()).await;
        for (changes, (said, kind)) in cases {
            let mut stream = raw(site.addr);
            let bytes = hello(1, changes);
            stream.write_all(&bytes).unwrap();
            let answer = rest(&mut stream);
            match said {
                Said::Error(code) => assert_eq!(answer, error(*code), "{changes:x?}"),
                Said::Status(status) => {
                    assert_eq!((answer.len(), answer[12], answer[13]), (88, 1, *status), "{changes:x?}");
                    assert_eq!(answer[16..36], bytes[16..36], "{changes:x?}: name and epoch are repeated");
                    assert_eq!(answer[56..], [0; 32], "{changes:x?}");
                }
            }
            let told = format!("{:?}", site.refused().await);
            assert!(kind.as_ref().is_none_or(|kind| *kind == told), "{changes:x?}: {told}");
        }
        site.goes_on().await;
    });
}

#[test]
fn a_frame_that_cannot_be_ends_its_session_with_the_code_that_the_protocol_has_for_it() {
    use SessionErrorCode::{Gone, Malformed, Position, TooLarge};
    let control = |kind: u8, parts: &[&[u8]]| {
        let body = [&[kind], &parts.concat()[..]].concat();
        [&(0x8000_0000 | body.len() as u32).to_be_bytes()[..], &body].concat()
    };
    let (zero, one, most) = (0u64.to_be_bytes(), 1u64.to_be_bytes(), [0xff; 8]);
    let cases = [
        (vec![0x80, 0, 0, 0], Malformed),
        ([&[0x80, 0, 0, 33][..], &[0; 33]].concat(), Malformed),
        (vec![0xff; 4], Malformed),
        (hello(1, &[]), Malformed),
        (control(0, &[&zero]), Malformed),
        (control(7, &[&zero]), Malformed),
        (control(1, &[&[0; 7]]), Malformed),
        (control(1, &[&one]), Position),
        (control(1, &[&most]), Position),
        (control(2, &[&zero, &[0; 4], &[0]]), Position),
        (control(2, &[&zero, &[0, 0, 0, 1], &[0]]), Position),
        (control(2, &[&most, &[0xff; 4], &[0]]), Position),
        (control(2, &[&zero, &[0, 0, 0, 1], &[2]]), Malformed),
        (control(3, &[&one, &zero]), Position),
        (control(3, &[&zero, &one]), Position),
        (control(4, &[&one]), Position),
        ([control(4, &[&zero]), vec![0; 4]].concat(), Position),
        ([control(4, &[&zero]), control(4, &[&zero])].concat(), Position),
        (control(5, &[&[0, 1], &[0; 4]]), Malformed),
        (control(6, &[&[0, 0]]), Malformed),
        (control(6, &[&[0, 8]]), Malformed),
        (control(6, &[&[0, 1]]), Gone),
        (control(6, &[&[0, 7]]), SessionErrorCode::Evicted),
        ((MAX + 1).to_be_bytes().to_vec(), TooLarge),
        (vec![0x7f, 0xff, 0xff, 0xff], TooLarge),
    ];
    run(async {
        let mut site = Site::new(config()).await;
        for (id, (bytes, code)) in cases.into_iter().enumerate() {
            let mut stream = session(site.addr, id as u8 + 1).await;
            let local = stream.local_addr().unwrap();
            stream.write_all(&bytes).unwrap();
            let answer = rest(&mut stream);
            if bytes[4..].starts_with(&[6]) && code != Malformed {
                assert_eq!(answer, b"", "nothing is said to an ERROR");
            } else {
                assert!(answer.ends_with(&error(code)), "{bytes:x?}: {answer:x?}");
            }
            match disconnected(&mut site.events, local).await {
                Reason::Session(told) => assert_eq!(told, code, "{bytes:x?}"),
                other => panic!("{bytes:x?}: {other:?}"),
            }
            let mut back = raw(site.addr);
            back.write_all(&hello(id as u8 + 1, &[(13, &[1]), (35, &[2])])).unwrap();
            assert_eq!(rest(&mut back)[13], 2, "{bytes:x?}: it is forgotten");
            site.goes_on().await;
        }
    });
}

/// All that the other end says until it ends the connection, which it does not reset.
fn last_words(stream: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).expect("it ends, and is not reset");
    heard
}

/// Bytes that nobody reads any more do not take the last words from a peer.
#[test]
fn whoever_has_sent_a_lot_behind_the_last_straw_hears_why_it_was_the_last() {
    // As much as the system takes at once.
    let much = vec![0x55; 128 << 10];
    let window = [&MAX.to_be_bytes()[..], &[7; MAX as usize]].concat().repeat(2 * WINDOW / MAX as usize);
    let (resume, version) = (hello(100, &[(13, &[1])]), [&hello(100, &[])[..12], &[9]].concat());
    run(async {
        let mut site = Site::new(config()).await;
        let frames = [
            (vec![0xff; 4], SessionErrorCode::Malformed),
            ([&[0x80, 0, 0, 9, 1][..], &[0xff; 8]].concat(), SessionErrorCode::Position),
            ((MAX + 1).to_be_bytes().to_vec(), SessionErrorCode::TooLarge),
            (window, SessionErrorCode::Window),
        ];
        for (id, (bytes, code)) in frames.into_iter().enumerate() {
            let mut stream = session(site.addr, id as u8 + 1).await;
            stream.write_all(&[&bytes, &much[..]].concat()).unwrap();
            assert!(last_words(&mut stream).ends_with(&error(code)), "{code}");
            match disconnected(&mut site.events, stream.local_addr().unwrap()).await {
                Reason::Session(told) => assert_eq!(told, code),
                other => panic!("{code}: {other:?}"),
            }
        }
        let hellos = [
            (hello(100, &[(32, &[0; 4])]), 7, SessionErrorCode::Malformed as u8),
            (hello(100, &[]), 7, SessionErrorCode::Malformed as u8),
            (hello(100, &[(36, &[0; 4])]), 88, 6),
            (resume, 88, 2),
            (version, 88, 5),
        ];
        for (n, (mut bytes, len, said)) in hellos.into_iter().enumerate() {
            let mut stream = raw(site.addr);
            if len == 88 {
                // Not before the answer: a byte behind a HELLO is another violation.
                stream.write_all(&bytes).unwrap();
                stream.peek(&mut [0]).unwrap();
                bytes.clear();
            }
            stream.write_all(&[&bytes, &much[..]].concat()).unwrap();
            let answer = last_words(&mut stream);
            assert_eq!((answer.len(), answer[if len == 88 { 13 } else { 6 }]), (len, said), "{n}");
            site.refused().await;
        }
    });
}

/// What is thrown away is bounded.
#[test]
fn whoever_sends_for_ever_when_its_session_is_over_is_ended() {
    run(async {
        let site = Site::new(config()).await;
        let mut stream = session(site.addr, 1).await;
        stream.write_all(&[0xff; 4]).unwrap();
        assert_eq!(last_words(&mut stream), error(SessionErrorCode::Malformed));
        let (more, mut sent) = ([0x55; 64 << 10], 0);
        while let Ok(n) = stream.write(&more) {
            sent += n;
            // 4 MiB, and what the system holds at both ends.
            assert!(sent < 32 << 20, "{sent} bytes are taken");
        }
    });
}

/// A callback that notes what it gets, and panics on poison.
fn noting(listener: Listener, is_async: bool) -> (Box<dyn std::any::Any>, mpsc::UnboundedReceiver<Bytes>) {
    let (noted, notes) = mpsc::unbounded();
    let note = move |message: &[u8]| {
        assert_ne!(message, b"poison");
        noted.unbounded_send(Bytes::copy_from_slice(message))?;
        Ok(())
    };
    let serving: Box<dyn std::any::Any> = match is_async {
        false => Box::new(listener.serve_in_background(move |_, message| note(message))),
        true => {
            let note = Arc::new(note);
            Box::new(async_std::task::spawn(listener.serve_async(move |_, message| {
                let note = note.clone();
                async move { note(&message) }
            })))
        }
    };
    (serving, notes)
}

/// The connection ends, and the session goes on behind that message; so do the others, and whoever comes.
#[test]
fn a_callback_that_panics_ends_one_connection_of_one_session() {
    for is_async in [false, true] {
        run(async {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
            // The first message is there before anybody asks for one.
            let (mut one, mut other) = (session(addr, 1).await, session(addr, 2).await);
            one.write_all(b"\0\0\0\x06poison").unwrap();
            let (_serving, mut notes) = noting(listener, is_async);
            rest(&mut one);
            let reason = |event| match event {
                Event::Detached { reason, .. } => Some(reason),
                Event::Disconnected { .. } => panic!("{event:?}"),
                _ => None,
            };
            assert!(matches!(event(&mut events, reason).await, Reason::CallbackPanicked));
            let mut back = raw(addr);
            assert_eq!(greet(&mut back, &hello(1, &[(13, &[1]), (35, &[2]), (71, &[1])])), 1, "RESUMED");
            for stream in [&mut other, &mut back, &mut session(addr, 3).await] {
                stream.write_all(b"\0\0\0\x04good").unwrap();
                assert_eq!(next(&mut notes).await.unwrap(), "good");
            }
        });
    }
}

/// What is received and not taken is bounded, however small it is.
#[test]
fn whoever_sends_more_than_the_window_is_ended() {
    for len in [0, 1, MAX as usize] {
        run(async {
            let mut site = Site::new(config()).await;
            let mut stream = session(site.addr, 1).await;
            let local = stream.local_addr().unwrap();
            let frame = [&(len as u32).to_be_bytes()[..], &vec![7; len]].concat();
            // The listener takes none of them, and may end it before all are written.
            let _ = stream.write_all(&frame.repeat(2 * WINDOW / frame.len()));
            match disconnected(&mut site.events, local).await {
                Reason::Session(SessionErrorCode::Window) => {}
                other => panic!("{other:?}"),
            }
        });
    }
}

/// What an end that listens answers to the HELLO.
type Answering = fn(&[u8]) -> Vec<u8>;

/// What a dialer makes of an answer.
async fn dialed(answer: Answering) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        let mut hello = [0; 88];
        stream.read_exact(&mut hello).unwrap();
        stream.write_all(&answer(&hello)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest(&mut stream);
    });
    let error = Connection::dial(addr, config()).await.unwrap_err();
    thread.join().unwrap();
    error
}

fn changed(hello: &[u8], at: usize, change: &[u8]) -> Vec<u8> {
    let mut welcome = hello.to_vec();
    welcome[at..at + change.len()].copy_from_slice(change);
    welcome
}

#[test]
fn a_dialer_says_what_is_wrong_with_an_answer() {
    // Only the library makes such a kind: it is compared as `Debug` has it.
    let cases: [(&str, Answering, &str); 18] = [
        ("nothing", |_| Vec::new(), "NoAnswer"),
        ("a part", |hello| hello[..87].to_vec(), "NoAnswer"),
        ("another id", |hello| changed(hello, 16, &[0; 16]), "Violation(Malformed)"),
        ("another epoch", |hello| changed(hello, 35, &[2]), "Violation(Malformed)"),
        ("RESUMED", |hello| changed(hello, 13, &[1]), "Violation(Malformed)"),
        ("no status", |hello| changed(hello, 13, &[8]), "Violation(Malformed)"),
        ("reserved", |hello| changed(hello, 15, &[1]), "Violation(Malformed)"),
        ("a message first", |_| vec![0x80, 0, 0, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0], "Violation(Malformed)"),
        ("sent", |hello| changed(hello, 71, &[1]), "Violation(Position)"),
        ("received", |hello| changed(hello, 79, &[1]), "Violation(Position)"),
        ("acked", |hello| changed(hello, 63, &[1]), "Violation(Position)"),
        ("too short", |hello| changed(hello, 36, &[0, 0, 0, 9]), "Limits { ours: 4096, theirs: 9 }"),
        ("LIMITS", |hello| changed(hello, 13, &[6]), "Limits { ours: 4096, theirs: 4096 }"),
        ("DENIED", |hello| changed(hello, 13, &[7]), "Denied"),
        ("UNKNOWN", |hello| changed(hello, 13, &[2]), "Unknown"),
        ("VERSION", |hello| changed(hello, 12, &[9, 5]), "Version { ours: 1, theirs: 9 }"),
        ("another version", |hello| changed(hello, 12, &[9]), "Violation(Malformed)"),
        ("BUSY", |hello| changed(&changed(hello, 13, &[4]), 48, &[0, 0, 0, 250]), "Busy { retry_in: 250ms }"),
    ];
    run(async {
        for (name, answer, expected) in cases {
            match dialed(answer).await {
                Error::Handshake { kind, .. } => assert_eq!(format!("{kind:?}"), expected, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
        match dialed(|_| b"HTTP/1.1 400 Bad Request\r\n".to_vec()).await {
            Error::Handshake { kind: HandshakeErrorKind::NotASession { looks_like, .. }, .. } => {
                assert_eq!(looks_like, Some(LooksLike::Http));
            }
            other => panic!("{other:?}"),
        }
        match dialed(|_| b"\0\0\0\x01a".to_vec()).await {
            Error::Handshake { kind: HandshakeErrorKind::NotASession { .. }, .. } => {}
            other => panic!("a message before the WELCOME: {other:?}"),
        }
        let over: [(Answering, _); 2] = [
            (|hello| changed(hello, 13, &[3]), Loss::Fenced),
            (|_| error(SessionErrorCode::Malformed), Loss::Violation(SessionErrorCode::Malformed)),
        ];
        for (answer, expected) in over {
            match dialed(answer).await {
                Error::SessionLost { in_doubt: 0, why, .. } => assert_eq!(why, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    });
}
