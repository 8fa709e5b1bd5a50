//! A dialer of acknowledged sessions, against a listener that is bytes: what it makes of an answer, and of what comes behind it.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::join;
use futures::{SinkExt, StreamExt};

use super::cuts::named;
use super::host::{Host, INCARNATION, SECOND, TTL, Told, config, frame, message, resumed, welcome};
use crate::error::HandshakeErrorKind::{self, Denied, Limits, NotASession, Version, Violation};
use crate::session::ErrorCode::{self, Evicted, Gone, Malformed, Position, Slow};
use crate::session::{Control, Hello, Positions, Status, Terms, Welcome};
use crate::sim::testing::{self, Sim};
use crate::{Backoff, Connection, Error, Loss, Outcome};

/// What a byte of an answer is instead.
type Change = Option<(usize, u8)>;
/// What a host answers.
type Answering = fn(&Hello) -> Welcome;

/// A manager that has sent one message, of two, to a host that has broken the connection then.
async fn broken(host: &Host) -> Told {
    broken_with(host, config()).await
}

async fn broken_with(host: &Host, config: crate::Config) -> Told {
    let begin = async {
        let (mut raw, _) = host.begin().await;
        raw.gets(0).await;
    };
    join(begin, Told::new(host.addr, config, 2)).await.1
}

/// The session goes on after all, and nothing was in doubt.
async fn goes_on(host: &Host, told: &mut Told) {
    let (mut raw, _) = host.resume(0, 0).await;
    for n in 0..2 {
        raw.gets(n).await;
        raw.say(Control::Ack(u64::from(n) + 1)).await;
    }
    testing::sleep(SECOND).await;
    let total = told.manager.stats().total;
    assert_eq!((total.acked, total.dead_lettered, total.sessions), (2, 0, 1));
    told.has_no_letter();
}

/// The first message is in doubt for this reason, and the second goes to a new session.
async fn begins_anew(host: &Host, told: &mut Told, why: Loss) {
    told.in_doubt(0, why).await;
    told.lost(why).await;
    let (mut raw, _) = host.begin().await;
    raw.gets(1).await;
    raw.say(Control::Ack(1)).await;
    testing::sleep(SECOND).await;
    let total = told.manager.stats().total;
    assert_eq!((total.acked, total.in_doubt, total.dead_lettered, total.sessions), (1, 1, 1, 2));
}

fn busy(hello: &Hello, ms: u32) -> Welcome {
    let busy = welcome(hello, Status::Busy);
    Welcome { terms: Terms { ttl: ms, ..busy.terms }, ..busy }
}

/// When that happens, and the session is lost before or not.
fn comes_again(ms: u32, after: Duration) {
    Sim::default().run(async {
        let host = Host::new().await;
        let mut told = broken(&host).await;
        let (mut raw, hello) = host.accept().await;
        assert!(hello.resume);
        raw.welcome(busy(&hello, ms)).await;
        let said = testing::elapsed();
        raw.ends().await;
        if after < TTL {
            goes_on(&host, &mut told).await;
        } else {
            begins_anew(&host, &mut told, Loss::Expired).await;
        }
        // It is the last second that a message takes to be over.
        let came = testing::elapsed() - SECOND - said;
        assert!(came >= after && came < after + SECOND / 4, "{ms}: {came:?}");
    });
}

#[test]
fn busy_says_when_to_come_again() {
    comes_again(0, Duration::ZERO);
    comes_again(3000, 3 * SECOND);
    // Longer than a session lives, and longer than anybody is kept away.
    comes_again(30_000, 30 * SECOND);
    comes_again(u32::MAX, 60 * SECOND);
}

/// A close cuts a delay short, but no time that the other end has set.
#[test]
fn who_closes_waits_for_busy_as_well() {
    Sim::default().run(async {
        let host = Host::new().await;
        let mut told = broken(&host).await;
        let (mut raw, hello) = host.accept().await;
        raw.welcome(busy(&hello, 3000)).await;
        raw.ends().await;
        let (manager, address) = (told.manager.clone(), told.address.clone());
        let closing = testing::spawn(async move { drop(manager.close(&address).await) });
        let before = testing::elapsed();
        goes_on(&host, &mut told).await;
        assert!(testing::elapsed() - before >= 3 * SECOND);
        drop(closing);
    });
}

#[test]
fn who_is_busy_for_ever_is_given_up() {
    Sim::default().run(async {
        let host = Host::new().await;
        let every = Duration::from_millis(50);
        let backoff = Backoff::exponential(every, every).max_elapsed(5 * SECOND);
        let mut told = broken_with(&host, config().reconnect(backoff)).await;
        let answer = async move {
            loop {
                let (mut raw, hello) = host.accept().await;
                raw.welcome(busy(&hello, 250)).await;
            }
        };
        testing::spawn(answer).detach();
        told.in_doubt(0, Loss::GaveUp).await;
        let letter = told.letter().await;
        assert_eq!((letter.message, letter.outcome), (message(1), Outcome::GaveUp));
        told.lost(Loss::GaveUp).await;
        assert!(testing::elapsed() < 6 * SECOND);
    });
}

#[test]
fn goaway_ends_a_session_and_says_when_the_next_may_begin() {
    for breaks in [false, true] {
        Sim::default().run(async {
            let host = Host::new().await;
            let ((mut raw, first), mut told) = join(host.begin(), Told::new(host.addr, config(), 2)).await;
            raw.gets(0).await;
            let said = testing::elapsed();
            // A second one says nothing more.
            raw.say(Control::Goaway { retry: 3000 }).await;
            raw.say(Control::Goaway { retry: 9000 }).await;
            raw.hears(Control::Close(1)).await;
            if breaks {
                // It is still the same session, and goes on at once.
                drop(raw);
                raw = host.resume(0, 0).await.0;
                assert!(testing::elapsed() - said < SECOND);
                raw.gets(0).await;
                raw.hears(Control::Close(1)).await;
            }
            raw.say(Control::Ack(1)).await;
            raw.say(Control::Close(0)).await;
            raw.ends().await;
            let (mut raw, next) = host.begin().await;
            let came = testing::elapsed() - said;
            assert!(came >= 3 * SECOND && came < 3 * SECOND + SECOND / 4, "{came:?}");
            assert!(first.id != next.id);
            raw.gets(1).await;
            raw.say(Control::Ack(1)).await;
            testing::sleep(SECOND).await;
            let total = told.manager.stats().total;
            assert_eq!((total.acked, total.dead_lettered, total.sessions), (2, 0, 2));
            told.has_no_letter();
        });
    }
}

#[test]
fn who_is_let_in_no_more_has_lost_the_session() {
    let answers: [(Answering, HandshakeErrorKind); 4] = [
        (|hello| welcome(hello, Status::Version(9)), Version { ours: 1, theirs: 9 }),
        (|hello| welcome(hello, Status::Limits), Limits { ours: 4096, theirs: 4096 }),
        (|hello| welcome(hello, Status::Denied), Denied),
        (
            |hello| {
                let resumed = resumed(hello, 1, 0);
                Welcome { terms: Terms { max_message: 4095, ..resumed.terms }, ..resumed }
            },
            Limits { ours: 4096, theirs: 4095 },
        ),
    ];
    for (answer, kind) in answers {
        Sim::default().run(async {
            let host = Host::new().await;
            let mut told = broken(&host).await;
            let (mut raw, hello) = host.accept().await;
            raw.welcome(answer(&hello)).await;
            raw.ends().await;
            told.lost(Loss::Ended).await;
            assert_eq!(told.dial_failed().await, kind);
            told.in_doubt(0, Loss::Ended).await;
            // A new one is tried, and tried again.
            let (mut raw, hello) = host.accept().await;
            assert!(!hello.resume);
            raw.welcome(welcome(&hello, Status::Denied)).await;
            assert_eq!(told.dial_failed().await, Denied);
            host.begin().await.0.gets(1).await;
        });
    }
}

#[test]
fn who_is_not_known_or_has_been_overtaken_has_lost_the_session() {
    let answers: [(Answering, Loss); 3] = [
        (|hello| welcome(hello, Status::Unknown), Loss::Expired),
        (|hello| Welcome { incarnation: INCARNATION + 1, ..welcome(hello, Status::Unknown) }, Loss::Restarted),
        (|hello| welcome(hello, Status::Fenced), Loss::Fenced),
    ];
    for (answer, why) in answers {
        Sim::default().run(async {
            let host = Host::new().await;
            let mut told = broken(&host).await;
            let (mut raw, hello) = host.accept().await;
            raw.welcome(answer(&hello)).await;
            raw.ends().await;
            begins_anew(&host, &mut told, why).await;
        });
    }
}

/// What is no answer at all ends no session: the next connection may be to one that is.
#[test]
fn an_answer_that_cannot_be_is_a_dial_that_failed() {
    let malformed = Violation(Malformed);
    let stranger = NotASession { looks_like: None };
    let answers: [(&str, Answering, Change, HandshakeErrorKind); 7] = [
        ("magic", |hello| resumed(hello, 1, 0), Some((11, b'S')), stranger),
        ("id", |hello| resumed(hello, 1, 0), Some((16, 0)), malformed),
        ("epoch", |hello| resumed(hello, 1, 0), Some((35, 1)), malformed),
        ("status", |hello| resumed(hello, 1, 0), Some((13, 8)), malformed),
        ("NEW", |hello| welcome(hello, Status::New), None, malformed),
        ("taken above received", |hello| resumed(hello, 0, 1), None, Violation(Position)),
        (
            "positions of UNKNOWN",
            |hello| Welcome { status: Status::Unknown, ..resumed(hello, 1, 0) },
            None,
            Violation(Position),
        ),
    ];
    for (name, answer, change, kind) in answers {
        named(name, || {
            Sim::default().run(async {
                let host = Host::new().await;
                let mut told = broken(&host).await;
                let (mut raw, first) = host.accept().await;
                let mut bytes = answer(&first).encode();
                if let Some((at, byte)) = change {
                    bytes[at] = byte;
                }
                raw.write(&bytes).await;
                raw.ends().await;
                assert_eq!(told.dial_failed().await, kind);
                goes_on(&host, &mut told).await;
            });
        });
    }
    Sim::default().run(async {
        let host = Host::new().await;
        let mut told = broken(&host).await;
        let (mut raw, _) = host.accept().await;
        raw.send(b"a message before the WELCOME").await;
        raw.ends().await;
        assert!(matches!(told.dial_failed().await, NotASession { .. }));
        goes_on(&host, &mut told).await;
    });
}

/// The other end is told, and the socket is closed.
#[test]
fn positions_that_do_not_fit_end_the_session() {
    let cases = [
        // The first message was sent, and no more; none is acknowledged; none has come.
        ("received", Positions { received: 2, ..Positions::default() }),
        ("taken", Positions { received: 2, taken: 2, ..Positions::default() }),
        ("all", Positions { acked: u64::MAX, sent: u64::MAX, received: u64::MAX, taken: u64::MAX }),
        ("acked", Positions { acked: 1, sent: 1, received: 1, taken: 1 }),
    ];
    for (name, positions) in cases {
        named(name, || {
            Sim::default().run(async {
                let host = Host::new().await;
                let mut told = broken(&host).await;
                let (mut raw, hello) = host.accept().await;
                raw.welcome(Welcome { positions, ..resumed(&hello, 0, 0) }).await;
                raw.hears(Control::Error(Position)).await;
                raw.ends().await;
                begins_anew(&host, &mut told, Loss::Violation(Position)).await;
            });
        });
    }
    // And one where something was acknowledged and has come.
    for positions in [
        Positions { sent: 1, received: 1, taken: 0, ..Positions::default() },
        Positions { sent: 0, received: 1, taken: 1, ..Positions::default() },
    ] {
        Sim::default().run(async {
            let host = Host::new().await;
            let talk = async {
                let mut connection = Connection::dial(host.addr, config()).await.unwrap();
                connection.send(message(0)).await.unwrap();
                connection.barrier().await.unwrap();
                connection
            };
            let begin = async {
                let (mut raw, _) = host.begin().await;
                raw.gets(0).await;
                raw.send(b"answer").await;
                raw.say(Control::Ack(1)).await;
                raw
            };
            let (_connection, raw) = join(talk, begin).await;
            testing::sleep(SECOND).await;
            drop(raw);
            let (mut raw, hello) = host.accept().await;
            assert_eq!(hello.positions, Positions { acked: 1, sent: 1, received: 1, taken: 0 });
            raw.welcome(Welcome { positions, ..resumed(&hello, 0, 0) }).await;
            raw.hears(Control::Error(Position)).await;
            raw.ends().await;
        });
    }
}

/// What ends a session that is up.
#[test]
fn a_session_that_the_other_end_ends_leaves_in_doubt_what_was_sent() {
    let error = Control::Error;
    let cases: [(&[Control], Option<ErrorCode>, Loss); 8] = [
        (&[error(Gone)], None, Loss::Ended),
        (&[error(Slow)], None, Loss::Violation(Slow)),
        (&[error(Evicted)], None, Loss::Violation(Evicted)),
        (&[Control::Ack(2)], Some(Position), Loss::Violation(Position)),
        (&[Control::Heartbeat { sent: 1, acked: 0 }], Some(Position), Loss::Violation(Position)),
        (&[Control::Heartbeat { sent: 0, acked: 1 }], Some(Position), Loss::Violation(Position)),
        (&[Control::Close(1)], Some(Position), Loss::Violation(Position)),
        (&[Control::Close(0), Control::Close(0)], Some(Position), Loss::Violation(Position)),
    ];
    for (says, told_code, why) in cases {
        named(format_args!("{says:?}"), || {
            Sim { capacity: 1 << 18, ..Sim::default() }.run(async {
                let host = Host::new().await;
                let ((mut raw, _), mut told) = join(host.begin(), Told::new(host.addr, config(), 2)).await;
                raw.gets(0).await;
                for control in says {
                    raw.say(*control).await;
                }
                if let Some(code) = told_code {
                    // More than it reads does not cut off what it says.
                    raw.write(&[0; 200_000]).await;
                    raw.hears(Control::Error(code)).await;
                }
                raw.ends().await;
                begins_anew(&host, &mut told, why).await;
            });
        });
    }
}

#[test]
fn a_session_goes_on_where_it_was_made_and_the_next_begins_where_the_name_leads() {
    Sim::default().run(async {
        let (here, there) = (Host::at("127.0.0.1:5031").await, Host::at("127.0.0.2:5031").await);
        testing::name("host.example", Ipv4Addr::new(127, 0, 0, 1).into());
        let begin = async {
            let (mut raw, _) = here.begin().await;
            raw.gets(0).await;
        };
        let ((), mut told) = join(begin, Told::new("host.example:5031", config(), 2)).await;
        testing::name("host.example", Ipv4Addr::new(127, 0, 0, 2).into());
        // The connection may break more than once.
        drop(here.resume(0, 0).await);
        let (mut raw, hello) = here.accept().await;
        assert!(hello.resume);
        raw.welcome(welcome(&hello, Status::Unknown)).await;
        begins_anew(&there, &mut told, Loss::Expired).await;
    });
}

/// Bytes that are not read do not reset the connection, and with it what was said last.
#[test]
fn who_drops_a_connection_says_so_whatever_has_come() {
    for unread in [0, 1, 100] {
        Sim::default().run(async {
            let host = Host::new().await;
            let ((mut raw, _), connection) = join(host.begin(), Connection::dial(host.addr, config())).await;
            for _ in 0..unread {
                raw.send(&[7; 400]).await;
            }
            drop(connection.unwrap());
            raw.hears(Control::Error(Gone)).await;
            raw.ends().await;
            assert!(testing::elapsed() < SECOND);
        });
    }
    // One that neither reads nor closes holds up nobody.
    Sim::default().run(async {
        let host = Host::new().await;
        let ((raw, _), connection) = join(host.begin(), Connection::dial(host.addr, config())).await;
        drop(connection.unwrap());
        testing::sleep(2 * SECOND).await;
        raw.ends_deaf().await;
    });
}

/// The positions of each session begin anew: what the program takes of one must not be told in the one that is in its place.
#[test]
fn what_came_in_a_session_that_is_lost_is_not_taken_in_the_next() {
    let frames = |messages: std::ops::Range<u8>| messages.flat_map(|n| frame(&message(n))).collect::<Vec<u8>>();
    Sim::default().run(async {
        let host = Host::new().await;
        let ((mut raw, _), connection) = join(host.begin(), Connection::dial(host.addr, config())).await;
        let mut connection = connection.unwrap();
        raw.write(&frames(0..3)).await;
        for n in 0..3 {
            // It does not ask for a fourth, so the third is not taken, nor are those that came with it.
            assert_eq!(connection.next().await.unwrap().unwrap(), message(n));
        }
        drop(raw);
        let (mut raw, hello) = host.accept().await;
        raw.welcome(welcome(&hello, Status::Unknown)).await;
        raw.ends().await;
        let ((mut raw, _), sent) = join(host.begin(), connection.send(message(9))).await;
        sent.unwrap();
        raw.gets(9).await;
        raw.say(Control::Ack(1)).await;
        raw.write(&frames(10..15)).await;
        testing::sleep(SECOND).await;
        // What came before is not what is told now.
        let lost = connection.next().await.unwrap().unwrap_err();
        assert!(matches!(lost, Error::SessionLost { in_doubt: 0, why: Loss::Expired }), "{lost:?}");
        testing::sleep(SECOND).await;
        for n in 10..15 {
            assert_eq!(connection.next().await.unwrap().unwrap(), message(n));
        }
        assert!(testing::within(Some(SECOND), connection.next()).await.is_none(), "that was all");
        raw.hears(Control::Ack(5)).await;
    });
}
