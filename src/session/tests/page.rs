//! The vectors of the documentation, as the page has them: each is read there, so that none can be wrong, or new, unnoticed.

use super::super::end::End;
use super::super::gaps::Settled;
use super::super::handshake::{Answer, HANDSHAKE, Hello, MAGIC, Positions, Status, Terms, Welcome};
use super::super::wire::{Control, ErrorCode, Frame, Side, Violation, Why};
use super::{TERMS, hello, hex};

const PAGE: &str = include_str!("../../../docs/session-protocol.md");

fn vectors() -> &'static str {
    PAGE.split_once("\n## Test vectors\n").expect("the page has them").1
}

/// The lines of what is fenced.
fn fenced() -> impl Iterator<Item = &'static str> {
    vectors().split("```").skip(1).step_by(2).flat_map(|block| block.lines().skip(1))
}

fn numbers(title: &str) -> Vec<u64> {
    title.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn positions(title: &str) -> Positions {
    let [acked, sent, received, taken] = numbers(title)[..] else { panic!("{title}") };
    Positions { acked, sent, received, taken }
}

#[test]
fn the_handshakes_of_the_page() {
    let mut lines = fenced().peekable();
    let (mut resume, mut seen) = (hello(), 0);
    while let Some(title) = lines.next() {
        if !title.starts_with("HELLO,") && !title.starts_with("WELCOME,") {
            continue;
        }
        let mut bytes = Vec::new();
        while let Some(line) = lines.next_if(|line| line.get(2..3) == Some(" ")) {
            bytes.extend(hex(line));
        }
        assert_eq!(bytes.len(), HANDSHAKE, "{title}");
        seen += 1;
        if title.starts_with("HELLO,") {
            let hello = match title {
                "HELLO, new" => hello(),
                _ => Hello { resume: true, epoch: 2, positions: positions(title), ..hello() },
            };
            assert_eq!(hello.encode(), bytes[..], "{title}");
            assert_eq!(Hello::parse(&bytes), Ok(Some(hello)), "{title}");
            resume = hello;
            continue;
        }
        let (id, _) = Hello::echo(&hello().encode());
        let to = |hello: Hello, status| {
            let (epoch, positions) = (hello.epoch, Positions::default());
            (hello, Welcome { status, id, epoch, terms: TERMS, incarnation: 0xdeca_de01, positions })
        };
        let (to, welcome) = match title.split([',', ':']).nth(1).map(str::trim) {
            Some("NEW") => to(hello(), Status::New),
            Some("RESUMED") => {
                let (to, welcome) = to(resume, Status::Resumed);
                (to, Welcome { positions: positions(title), ..welcome })
            }
            Some("BUSY") => {
                let (to, welcome) = to(hello(), Status::Busy);
                (to, Welcome { terms: Terms { ttl: numbers(title)[0] as u32, ..TERMS }, ..welcome })
            }
            Some("UNKNOWN") => to(resume, Status::Unknown),
            _ => panic!("{title}: this test does not know it"),
        };
        assert_eq!(welcome.encode(), bytes[..], "{title}");
        assert_eq!(Answer::parse(&bytes, &to), Ok(Some(Answer::Welcome(welcome))), "{title}");
    }
    assert_eq!(seen, 6);
}

#[test]
fn the_frames_of_the_page() {
    let mut seen = 0;
    for line in fenced() {
        let Some((title, bytes)) = line.split_once("  ").filter(|(title, _)| title.starts_with(char::is_alphabetic))
        else {
            continue;
        };
        let Ok(bytes) = std::panic::catch_unwind(|| hex(bytes)) else { continue };
        if bytes.len() == 16 {
            continue; // A line of a handshake.
        }
        seen += 1;
        let numbers = numbers(title);
        let refuse = |count, why| Control::Refuse { first: numbers[0], count, why };
        let control = match title {
            "message \"hello\"" | "message, empty" => {
                let text: &[u8] = if title.ends_with("empty") { b"" } else { b"hello" };
                let data = Frame::Data(text.len() as u32);
                assert_eq!(Frame::parse(&bytes, 4096, Side::Dialer), Ok(Some((data, 4))), "{title}");
                assert_eq!(bytes[4..], *text, "{title}");
                continue;
            }
            _ if title.starts_with("ACK") => Control::Ack(numbers[0]),
            _ if title.ends_with("one, refused") => refuse(1, Why::Refused),
            _ if title.ends_with("three, dropped") => refuse(3, Why::Dropped),
            _ if title.starts_with("HEARTBEAT") => Control::Heartbeat { sent: numbers[0], acked: numbers[1] },
            _ if title.starts_with("CLOSE") => Control::Close(numbers[0]),
            _ if title.starts_with("GOAWAY") => Control::Goaway { retry: numbers[0] as u32 },
            "ERROR POSITION" => Control::Error(ErrorCode::Position),
            _ => panic!("{title}: this test does not know it"),
        };
        assert_eq!(control.encode()[..], bytes, "{title}");
        let parsed = Frame::parse(&bytes, 4096, Side::Listener);
        assert_eq!(parsed, Ok(Some((Frame::Control(control), bytes.len()))), "{title}");
    }
    assert_eq!(seen, 9);
}

/// Both ends say what the page has, and take it of each other.
#[test]
fn the_session_of_the_page() {
    let mut lines = fenced().skip_while(|line| !line.starts_with(">  the HELLO"));
    assert_eq!(lines.next(), Some(">  the HELLO, new"));
    assert_eq!(lines.next(), Some("<  the WELCOME, NEW"));
    let (mut dialer, mut listener) = (End::new(Side::Dialer, TERMS.window), End::new(Side::Listener, TERMS.window));
    for end in [&mut dialer, &mut listener] {
        end.resume(&Positions::default(), &TERMS).unwrap();
        end.sender.rewound(0);
    }
    for (line, position) in lines.by_ref().take(2).zip(0..) {
        let bytes = hex(line.split("  ").nth(1).unwrap());
        let Ok(Some((Frame::Data(len), 4))) = Frame::parse(&bytes, 4096, Side::Dialer) else { panic!("{line}") };
        assert_eq!(bytes.len(), 4 + len as usize, "{line}");
        assert!(dialer.sender.may_send(bytes.len() as u64));
        dialer.sender.offer(1, bytes.len() as u64);
        dialer.sender.handed();
        assert_eq!(listener.receiver.frames(1, bytes.len() as u64), Ok(position));
        let how = if position == 0 { Settled::Taken } else { Settled::Refused };
        assert!(listener.receiver.settle(position, 1, bytes.len() as u64, how));
    }
    dialer.sender.finish();
    let mut said = 0;
    for line in lines {
        let Some(text) = line.get(3..).filter(|text| text.starts_with("80")) else {
            assert_eq!(
                line,
                ">  FIN                                                               the listener remembers the positions until ttl"
            );
            continue;
        };
        said += 1;
        let bytes = hex(text.split("  ").next().unwrap());
        let (from, to, side) = match &line[..1] {
            ">" => (&mut dialer, &mut listener, Side::Dialer),
            _ => (&mut listener, &mut dialer, Side::Listener),
        };
        let Ok(Some((Frame::Control(control), _))) = Frame::parse(&bytes, 4096, side) else { panic!("{line}") };
        assert_eq!(from.next(0, false), Some(control), "{line}");
        match control {
            Control::Ack(taken) => drop(to.sender.ack(taken).unwrap()),
            Control::Refuse { first, count, .. } => to.sender.refuse(first, count, |_| {}).unwrap(),
            Control::Heartbeat { sent, acked } => to.receiver.heartbeat(sent, acked).unwrap(),
            Control::Close(end) => {
                to.receiver.close(end).unwrap();
                to.sender.finish();
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(said, 5);
    assert!(dialer.is_over() && listener.is_over());
}

/// The rows of the table of what must be rejected that are bytes alone. The others are in words: they have tests of their own.
#[test]
fn the_bytes_that_the_page_rejects() {
    let mut others = 0;
    for row in vectors().lines().filter(|line| line.starts_with('|')).skip(2) {
        let [_, cell, outcome, _] = row.split('|').collect::<Vec<_>>()[..] else { panic!("{row}") };
        let codes: Vec<_> = cell.split('`').skip(1).step_by(2).collect();
        let outcome = outcome.trim();
        let in_words = !outcome.ends_with("at the header")
            && !["a stranger", "VERSION 1", "MALFORMED at the type"].iter().any(|known| outcome.starts_with(known));
        if in_words {
            others += 1;
            continue;
        }
        assert!(!codes.is_empty(), "{row}");
        for code in codes {
            let bytes = hex(code.trim_start_matches('M'));
            let with_magic = if code.starts_with('M') { [&MAGIC, &bytes[..]].concat() } else { bytes };
            let (all, less) = (&with_magic[..], &with_magic[..with_magic.len() - 1]);
            let frame = |bytes| Frame::parse(bytes, 4096, Side::Listener).map(drop);
            match outcome {
                _ if outcome.starts_with("a stranger") => {
                    // All of it is there at once, and the first that differs tells.
                    let Err(Violation::Magic { at }) = Hello::parse(all) else { panic!("{code}") };
                    assert!(Hello::parse(&all[..at]) == Ok(None), "{code}");
                }
                "VERSION 1, without waiting for more" => {
                    assert_eq!(Hello::parse(all), Err(Violation::Version(all[12])), "{code}");
                    assert_eq!(Hello::parse(less), Ok(None), "{code}");
                }
                "MALFORMED at the header" | "MALFORMED at the type" => {
                    assert_eq!(
                        (frame(all), Frame::parse(less, 4096, Side::Listener)),
                        (Err(Violation::Malformed), Ok(None))
                    );
                }
                "TOO_LARGE at the header" => {
                    assert!(matches!(frame(all), Err(Violation::TooLarge { .. })), "{code}");
                    assert_eq!(Frame::parse(less, 4096, Side::Listener), Ok(None), "{code}");
                }
                _ => panic!("{row}: this test does not know it"),
            }
        }
    }
    assert_eq!(others, 11, "rows in words");
}
