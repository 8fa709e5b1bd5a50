//! The vectors of the documentation, any split of them, and the bytes that nobody should send.

use proptest::prelude::*;

use super::super::handshake::{Answer, HANDSHAKE, Hello, MAGIC, Positions, SessionId, Status, Welcome};
use super::super::wire::{Control, ErrorCode, Frame, MAX_MESSAGE, Side, Violation, Why};
use super::{TERMS, hello, hex, id};

const M: &str = "f5 62 75 66 66 73 74 72 65 61 6d 73";
const I: &str = "a0 a1 a2 a3 a4 a5 a6 a7 a8 a9 aa ab ac ad ae af";
const REST: &str = "00 00 10 00 00 10 00 00 00 00 3a 98 00 01 d4 c0";
const Z8: &str = "00 00 00 00 00 00 00 00";

fn welcome() -> Welcome {
    let Hello { epoch, terms, positions, .. } = hello();
    let (id, _) = Hello::echo(&hello().encode());
    Welcome { status: Status::New, id, epoch, terms, incarnation: 0xdeca_de01, positions }
}

const DOCUMENTATION: &str = include_str!("../../../docs/session-protocol.md");

/// The bytes that the documentation has below this line, or behind it.
fn documented(title: &str) -> Vec<u8> {
    let (_, rest) = DOCUMENTATION.split_once(&format!("\n{title}")).unwrap_or_else(|| panic!("no {title}"));
    let (end, _) = rest.match_indices("\n").find(|(at, _)| *at > 0 && !rest[at + 1..].starts_with(is_hex)).unwrap();
    hex(&rest[..end])
}

fn is_hex(c: char) -> bool {
    c.is_ascii_hexdigit()
}

#[test]
fn the_handshakes_are_those_of_the_documentation() {
    let new = hex(&format!("{M} 01 00 00 00 {I} 00 00 00 01 {REST} 00 00 00 00 {Z8} {Z8} {Z8} {Z8}"));
    assert_eq!(hello().encode(), new[..]);
    assert_eq!(documented("HELLO, new"), new);
    assert_eq!(Hello::parse(&new), Ok(Some(hello())));

    let answer = hex(&format!("{M} 01 00 00 00 {I} 00 00 00 01 {REST} de ca de 01 {Z8} {Z8} {Z8} {Z8}"));
    assert_eq!(welcome().encode(), answer[..]);
    assert_eq!(documented("WELCOME, NEW"), answer);
    assert_eq!(Answer::parse(&answer, &hello()), Ok(Some(Answer::Welcome(welcome()))));

    let positions = Positions { acked: 1000, sent: 1600, received: 40, taken: 38 };
    let again = Hello { resume: true, epoch: 2, positions, ..hello() };
    let numbers = "00000000000003e8 0000000000000640 0000000000000028 0000000000000026";
    let bytes = hex(&format!("{M} 01 01 00 00 {I} 00 00 00 02 {REST} 00 00 00 00 {numbers}"));
    assert_eq!(again.encode(), bytes[..]);
    assert_eq!(documented("HELLO, RESUME: I hold from 1000, have sent 1600, received 40, taken 38"), bytes);
    assert_eq!(Hello::parse(&bytes), Ok(Some(again)));

    let positions = Positions { acked: 38, sent: 45, received: 1450, taken: 1200 };
    let resumed = Welcome { status: Status::Resumed, epoch: 2, positions, ..welcome() };
    let numbers = "0000000000000026 000000000000002d 00000000000005aa 00000000000004b0";
    let bytes = hex(&format!("{M} 01 01 00 00 {I} 00 00 00 02 {REST} de ca de 01 {numbers}"));
    assert_eq!(resumed.encode(), bytes[..]);
    assert_eq!(documented("WELCOME, RESUMED: I hold from 38, have sent 45, received 1450, taken 1200"), bytes);
    assert_eq!(Answer::parse(&bytes, &again), Ok(Some(Answer::Welcome(resumed))));
}

#[test]
fn the_controls_are_those_of_the_documentation() {
    let refuse = Control::Refuse { first: 1201, count: 1, why: Why::Refused };
    for (title, bytes, control) in [
        ("ACK 1200", "80 00 00 09 01 00 00 00 00 00 00 04 b0", Control::Ack(1200)),
        ("REFUSE 1201, one, refused", "80 00 00 0e 02 00 00 00 00 00 00 04 b1 00 00 00 01 00", refuse),
        (
            "HEARTBEAT at 1600, 1200",
            "80 00 00 11 03 00 00 00 00 00 00 06 40 00 00 00 00 00 00 04 b0",
            Control::Heartbeat { sent: 1600, acked: 1200 },
        ),
        ("CLOSE at 1600", "80 00 00 09 04 00 00 00 00 00 00 06 40", Control::Close(1600)),
        ("GOAWAY, after 250 ms", "80 00 00 07 05 00 01 00 00 00 fa", Control::Goaway { retry: 250 }),
        ("ERROR POSITION", "80 00 00 03 06 00 03", Control::Error(ErrorCode::Position)),
    ] {
        let bytes = hex(bytes);
        assert_eq!(control.encode()[..], bytes);
        let line = DOCUMENTATION.lines().find_map(|line| line.strip_prefix(title));
        assert_eq!(hex(line.expect(title)), bytes);
        for len in 0..bytes.len() {
            assert_eq!(Frame::parse(&bytes[..len], 4096, Side::Listener), Ok(None), "{control:?}, {len} bytes");
        }
        let whole = Frame::parse(&bytes, 4096, Side::Listener);
        assert_eq!(whole, Ok(Some((Frame::Control(control), bytes.len()))));
    }
    for (bytes, len) in [("00 00 00 05 68 65 6c 6c 6f", 5), ("00 00 00 00", 0), ("00 00 00 6e", 110)] {
        assert_eq!(Frame::parse(&hex(bytes), 4096, Side::Dialer), Ok(Some((Frame::Data(len), 4))));
    }
}

/// What a listener makes of a HELLO, by the numbers of the documentation's table.
#[test]
fn hostile_bytes_of_a_dialer_before_the_welcome() {
    let head = format!("{M} 01 00 0000 {I} 00000001");
    let numbers = format!("{Z8} {Z8} {Z8} {Z8}");
    let with = |head: &str, terms: &str, numbers: &str| format!("{head} {terms} {numbers}");
    let good = format!("{REST} 00000000");
    let rows = [
        (1, "00".into(), Violation::Magic { at: 0 }),
        (2, "47 45 54 20".into(), Violation::Magic { at: 0 }),
        (3, "16 03 01".into(), Violation::Magic { at: 0 }),
        (4, "f5 42 53 41".into(), Violation::Magic { at: 1 }),
        (5, "dc 01 00".into(), Violation::Magic { at: 0 }),
        (8, format!("{M} 00"), Violation::Version(0)),
        (9, format!("{M} 02"), Violation::Version(2)),
        (9, format!("{M} ff"), Violation::Version(255)),
        (10, with(&head.replace("01 00 0000", "01 02 0000"), &good, &numbers), Violation::Malformed),
        (11, with(&head.replace("01 00 0000", "01 00 0001"), &good, &numbers), Violation::Malformed),
        (12, with(&head.replace(I, &format!("{Z8} {Z8}")), &good, &numbers), Violation::Malformed),
        (13, with(&head.replace("00000001", "00000000"), &good, &numbers), Violation::Malformed),
        (14, with(&head, "00000000 00100000 00003a98 0001d4c0 00000000", &numbers), Violation::Limits),
        (15, with(&head, "80000000 00100000 00003a98 0001d4c0 00000000", &numbers), Violation::Limits),
        (16, with(&head, "00001000 00100000 00000001 0001d4c0 00000000", &numbers), Violation::Limits),
        (17, with(&head, &format!("{REST} 00000001"), &numbers), Violation::Malformed),
        (18, with(&head, &good, &format!("0000000000000001 0000000000000001 {Z8} {Z8}")), Violation::Position),
        (19, with(&head, &good, &format!("{Z8} {Z8} 0000000000000001 {Z8}")), Violation::Position),
        (
            20,
            with(
                &head.replace("01 00 0000", "01 01 0000"),
                &good,
                &format!("0000000000000002 0000000000000001 {Z8} {Z8}"),
            ),
            Violation::Position,
        ),
        (
            21,
            with(
                &head.replace("01 00 0000", "01 01 0000"),
                &good,
                &format!("{Z8} {Z8} 0000000000000001 0000000000000002"),
            ),
            Violation::Position,
        ),
    ];
    for (row, bytes, violation) in rows {
        let bytes = hex(&bytes);
        assert_eq!(Hello::parse(&bytes), Err(violation), "row {row}");
        // It is told by the byte that cannot be, or else by the last one.
        let early = matches!(violation, Violation::Magic { .. } | Violation::Version(_));
        let needs = match violation {
            Violation::Magic { at } => at + 1,
            Violation::Version(_) => 13,
            _ => HANDSHAKE,
        };
        assert_eq!(Hello::parse(&bytes[..needs - 1]), Ok(None), "row {row}");
        assert!(early || bytes.len() == HANDSHAKE, "row {row}");
    }
    // 29: a byte behind it. What cannot be is told as before, and what is not whole is waited for.
    let mut behind = hello().encode().to_vec();
    assert_eq!(Hello::parse_all(&behind), Ok(Some(hello())));
    assert_eq!(Hello::parse_all(&behind[..HANDSHAKE - 1]), Ok(None));
    behind.extend(hex("00000001 61"));
    for len in HANDSHAKE + 1..behind.len() {
        assert_eq!(Hello::parse_all(&behind[..len]), Err(Violation::Malformed), "29: {len}");
    }
    behind[12] = 2;
    assert_eq!(Hello::parse_all(&behind), Err(Violation::Version(2)));
    // 6 and 7: no violation yet.
    assert_eq!(Hello::parse(&hex("f5 62 75")), Ok(None));
    assert_eq!(Hello::parse(&hex(&format!("{M} 01"))), Ok(None));
    // 28: possible as such. The session says no.
    let all = Positions { acked: u64::MAX, sent: u64::MAX, received: u64::MAX, taken: u64::MAX };
    let all = Hello { resume: true, positions: all, ..hello() };
    assert_eq!(Hello::parse(&all.encode()), Ok(Some(all)));
}

/// What either end makes of frames that are none, by the numbers of the documentation's table.
#[test]
fn hostile_frames() {
    let eight = "ff ff ff ff ff ff ff ff";
    for (row, bytes, violation, needs) in [
        (30, M.to_string(), Violation::Malformed, 4),
        (31, "80000000".into(), Violation::Malformed, 4),
        (32, format!("80000021 {}", "00".repeat(33)), Violation::Malformed, 4),
        (33, "ffffffff".into(), Violation::Malformed, 4),
        (34, format!("80000009 07 {Z8}"), Violation::Malformed, 5),
        (35, "80000008 01 00000000000000".into(), Violation::Malformed, 4),
        (40, format!("8000000e 02 {Z8} 00000001 02"), Violation::Malformed, 18),
        (46, "80000007 05 0001 000000fa".into(), Violation::Malformed, 11),
        (47, "00001001".into(), Violation::TooLarge { len: 4097, max: 4096 }, 4),
        (48, "7fffffff".into(), Violation::TooLarge { len: MAX_MESSAGE, max: 4096 }, 4),
    ] {
        let bytes = hex(&bytes);
        assert_eq!(Frame::parse(&bytes[..needs], 4096, Side::Dialer), Err(violation), "row {row}");
        assert_eq!(Frame::parse(&bytes[..needs - 1], 4096, Side::Dialer), Ok(None), "row {row}");
    }
    // 36, 38 and 39 are possible as such: the sender has to say no.
    for (bytes, control) in [
        (format!("80000009 01 {eight}"), Control::Ack(u64::MAX)),
        (format!("8000000e 02 {Z8} 00000000 00"), Control::Refuse { first: 0, count: 0, why: Why::Refused }),
        (
            format!("8000000e 02 {eight} ffffffff 00"),
            Control::Refuse { first: u64::MAX, count: u32::MAX, why: Why::Refused },
        ),
    ] {
        let bytes = hex(&bytes);
        assert_eq!(Frame::parse(&bytes, 0, Side::Dialer), Ok(Some((Frame::Control(control), bytes.len()))));
    }
    for (bytes, why) in [
        ("80000007 05 0002 000000fa", "another code of a GOAWAY"),
        ("80000003 06 0000", "no code of an ERROR"),
        ("80000003 06 0008", "no code of an ERROR"),
    ] {
        assert_eq!(Frame::parse(&hex(bytes), 4096, Side::Listener), Err(Violation::Malformed), "{why}");
    }
    // 54: nothing is answered to it.
    let gone = Frame::Control(Control::Error(ErrorCode::Gone));
    assert_eq!(Frame::parse(&hex("80000003 06 0001"), 4096, Side::Dialer), Ok(Some((gone, 7))));
}

/// What a dialer makes of an answer, by the numbers of the documentation's table.
#[test]
fn hostile_answers_of_a_listener() {
    let mine = Hello { resume: true, epoch: 7, ..hello() };
    let good = Welcome { status: Status::Resumed, epoch: 7, ..welcome() };
    assert_eq!(Answer::parse(&good.encode(), &mine), Ok(Some(Answer::Welcome(good))));
    let with = |at: usize, byte: u8| {
        let mut bytes = good.encode();
        bytes[at] = byte;
        Answer::parse(&bytes, &mine)
    };
    assert_eq!(with(11, b'x'), Err(Violation::Magic { at: 11 }), "55");
    assert_eq!(with(16, 0xff), Err(Violation::Malformed), "56");
    assert_eq!(with(35, 8), Err(Violation::Malformed), "57");
    assert_eq!(with(13, 8), Err(Violation::Malformed), "58");
    assert_eq!(with(13, 0), Err(Violation::Malformed), "59");
    assert_eq!(with(12, 2), Err(Violation::Malformed), "it speaks this version or says so");
    assert_eq!(with(14, 1), Err(Violation::Malformed));
    assert_eq!(with(46, 0), Ok(Some(Answer::Welcome(Welcome { terms: terms(152), ..good }))));
    assert_eq!(with(36, 0x80), Err(Violation::Limits));
    let positions = Positions { sent: 1, ..Positions::default() };
    let new = Welcome { status: Status::New, epoch: 1, positions, ..good };
    assert_eq!(Answer::parse(&new.encode(), &hello()), Err(Violation::Position), "60");
    let lost = Welcome { status: Status::Resumed, epoch: 1, positions, ..good };
    assert_eq!(Answer::parse(&lost.encode(), &hello()), Err(Violation::Malformed), "none was asked for");
    let unknown = Welcome { status: Status::Unknown, ..good };
    assert_eq!(Answer::parse(&unknown.encode(), &mine), Ok(Some(Answer::Welcome(unknown))));
    // 64 and others: nothing but ERROR comes in place of a WELCOME.
    assert_eq!(Answer::parse(&hex("00000001 61"), &mine), Err(Violation::Magic { at: 0 }));
    assert_eq!(Answer::parse(&Control::Ack(0).encode(), &mine), Err(Violation::Malformed));
    assert_eq!(Answer::parse(&Control::Goaway { retry: 1 }.encode(), &mine), Err(Violation::Malformed));
    let error = Control::Error(ErrorCode::Position).encode();
    assert_eq!(Answer::parse(&error, &mine), Ok(Some(Answer::Error(ErrorCode::Position))));
    assert_eq!(Answer::parse(&error[..6], &mine), Ok(None));
    // Another version says so in 14 bytes, and the rest is its own affair.
    let other = Welcome { status: Status::Version(9), id: [0; 16], ..good };
    let mut bytes = other.encode();
    bytes[14..].fill(0xff);
    let Ok(Some(Answer::Welcome(read))) = Answer::parse(&bytes, &mine) else { panic!("{other:?}") };
    assert_eq!(read.status, Status::Version(9));
}

fn terms(heartbeat: u32) -> super::Terms {
    super::Terms { heartbeat, ..TERMS }
}

/// 63: each end holds what it may send against what the other accepts.
#[test]
fn an_end_that_may_send_what_the_other_refuses_does_not_fit() {
    let small = super::Terms { max_message: 100, ..TERMS };
    assert!(small.can_send_to(TERMS) && TERMS.can_send_to(TERMS));
    assert!(!TERMS.can_send_to(small));
    assert!(TERMS.can_send_to(super::Terms { window: 0, ..small }), "it takes none at all");
}

#[test]
fn an_id_is_a_secret() {
    assert_eq!(SessionId::new([0; 16]), None);
    assert_eq!(format!("{:?}", id()), "a0a1a2a3…");
}

#[test]
fn each_violation_has_its_error_or_its_status() {
    let codes = [
        (Violation::Magic { at: 0 }, None),
        (Violation::Version(2), None),
        (Violation::Limits, None),
        (Violation::Malformed, Some(ErrorCode::Malformed)),
        (Violation::Position, Some(ErrorCode::Position)),
        (Violation::Window, Some(ErrorCode::Window)),
        (Violation::TooLarge { len: 2, max: 1 }, Some(ErrorCode::TooLarge)),
    ];
    for (violation, code) in codes {
        assert_eq!(violation.code(), code);
        assert!(!violation.to_string().is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Any bytes, and any bytes behind the start of something: no panic, and no answer that a longer input takes back.
    #[test]
    fn any_bytes_are_judged_once(start in 0..4, tail in proptest::collection::vec(any::<u8>(), 0..120)) {
        let mut bytes = match start {
            0 => Vec::new(),
            1 => MAGIC.to_vec(),
            2 => hello().encode()[..40].to_vec(),
            _ => vec![0x80, 0, 0],
        };
        bytes.extend(&tail);
        judged_once(&bytes, Hello::parse);
        judged_once(&bytes, |input| Answer::parse(input, &hello()));
        judged_once(&bytes, |input| Frame::parse(input, 4096, Side::Dialer));
    }

    #[test]
    fn a_handshake_reads_as_it_was_written(
        resume: bool, epoch in 1u32.., random in any::<[u8; 16]>(), acked: u32, more: u32, taken: u32, untaken: u32,
    ) {
        let Some(id) = SessionId::new(random) else { return Ok(()) };
        let (acked, taken) = (u64::from(acked), u64::from(taken));
        let sent = acked + u64::from(more);
        let positions = Positions { acked, sent, received: taken + u64::from(untaken), taken };
        let positions = if resume { positions } else { Positions::default() };
        let hello = Hello { resume, id, epoch, terms: TERMS, positions };
        prop_assert_eq!(Hello::parse(&hello.encode()), Ok(Some(hello)));
        let status = if resume { Status::Resumed } else { Status::New };
        let welcome = Welcome { status, id: random, epoch, terms: TERMS, incarnation: more, positions };
        prop_assert_eq!(Answer::parse(&welcome.encode(), &hello), Ok(Some(Answer::Welcome(welcome))));
    }
}

/// The answer to the bytes so far is `None` up to one length, and from there on what it is for the whole.
fn judged_once<T: PartialEq + std::fmt::Debug>(bytes: &[u8], parse: impl Fn(&[u8]) -> Result<Option<T>, Violation>) {
    let whole = parse(bytes);
    let mut done = false;
    for len in 0..=bytes.len() {
        let part = parse(&bytes[..len]);
        done |= part != Ok(None);
        assert!(if done { part == whole } else { part == Ok(None) }, "{len} bytes: {part:?}, all: {whole:?}");
    }
}
