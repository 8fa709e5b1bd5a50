//! Acknowledged sessions and time: signs of life, silence, what grows too old, and what comes late.

use std::time::Duration;

use futures::future::join;
use futures::{FutureExt, SinkExt, StreamExt};

use super::cuts::named;
use super::host::{Host, Raw, SECOND, TTL, Told, config, message, resumed, welcome};
use crate::session::{Control, Hello, Status, Terms, Welcome};
use crate::sim::testing::{self, Sim};
use crate::{Address, Connection, Listener, Loss, Manager, Outcome, Session};

/// How long a dialer waits for an answer.
const DIAL: Duration = Duration::from_secs(10);

/// The next connection, which is let in by one who says something each so many ms.
async fn begin(host: &Host, heartbeat: u32) -> (Raw, Hello) {
    let (mut raw, hello) = host.accept().await;
    let answer = if hello.resume { resumed(&hello, 1, 0) } else { welcome(&hello, Status::New) };
    raw.welcome(Welcome { terms: Terms { heartbeat, ..answer.terms }, ..answer }).await;
    (raw, hello)
}

#[test]
fn a_dialer_says_something_as_often_as_it_has_said() {
    Sim::default().run(async {
        let host = Host::new().await;
        let config = config().session(Session::new().heartbeat(2 * SECOND));
        let ((mut raw, hello), told) = join(host.begin(), Told::new(host.addr, config, 0)).await;
        assert_eq!(hello.terms.heartbeat, 2000);
        for n in 1..4 {
            raw.hears(Control::Heartbeat { sent: 0, acked: 0 }).await;
            assert_eq!(testing::elapsed(), n * 2 * SECOND);
        }
        // What it sends is a sign of life.
        testing::sleep(SECOND).await;
        told.send(0).await;
        raw.gets(0).await;
        raw.hears(Control::Heartbeat { sent: 1, acked: 0 }).await;
        assert_eq!(testing::elapsed(), 9 * SECOND);
    });
}

#[test]
fn a_dialer_gives_up_a_connection_that_is_silent_for_three_intervals() {
    Sim::default().run(async {
        let host = Host::new().await;
        let (begun, mut told) = join(begin(&host, 1000), Told::new(host.addr, config(), 1)).await;
        let (mut raw, _) = begun;
        raw.gets(0).await;
        // A part of a frame is a byte as well.
        testing::sleep(2 * SECOND).await;
        raw.write(&[0x80]).await;
        raw.ends().await;
        assert_eq!(testing::elapsed(), 5 * SECOND);
        let (mut raw, hello) = begin(&host, 1000).await;
        assert!(hello.resume && hello.positions.sent == 1);
        raw.say(Control::Ack(1)).await;
        for _ in 0..5 {
            testing::sleep(2 * SECOND).await;
            raw.say(Control::Heartbeat { sent: 0, acked: 0 }).await;
        }
        let total = told.manager.stats().total;
        assert_eq!((total.acked, total.sessions, total.reconnects), (1, 1, 1));
        told.has_no_letter();
    });
}

/// It is over when it is, whatever a dial does.
#[test]
fn a_session_that_nobody_answers_for_is_over_at_its_ttl() {
    for (theirs, ttl) in [(13_000, 13), (60_000, 20)] {
        Sim::default().run(async {
            let host = Host::new().await;
            let begin = async {
                let (mut raw, hello) = host.accept().await;
                let answer = welcome(&hello, Status::New);
                raw.welcome(Welcome { terms: Terms { ttl: theirs, ..answer.terms }, ..answer }).await;
                raw.gets(0).await;
                testing::black_hole(host.addr);
            };
            let ((), mut told) = join(begin, Told::new(host.addr, config(), 2)).await;
            told.in_doubt(0, Loss::Expired).await;
            assert_eq!(testing::elapsed(), ttl * SECOND);
            told.lost(Loss::Expired).await;
            testing::heal(host.addr);
            let (mut raw, _) = host.begin().await;
            raw.gets(1).await;
        });
    }
}

/// The oldest that were never sent come back when they are too old: while the connection is up and the window full, and while
/// nobody answers. What was sent once does not.
#[test]
fn what_was_never_sent_grows_too_old_and_nothing_else() {
    let ttl = Duration::from_millis(2300);
    for hangs in [false, true] {
        Sim::default().run(async {
            let host = Host::new().await;
            let ((mut raw, _), mut told) = join(host.begin(), Told::new(host.addr, config().message_ttl(ttl), 2)).await;
            raw.gets(0).await;
            if hangs {
                testing::black_hole(host.addr);
                drop(raw);
                testing::sleep(SECOND).await;
            } else {
                testing::sleep(SECOND).await;
                told.send(2).await;
                testing::sleep(SECOND).await;
                raw.say(Control::Ack(0)).await;
            }
            if hangs {
                told.send(2).await;
            }
            for (n, at) in [(1, ttl), (2, ttl + SECOND)] {
                let letter = told.letter().await;
                assert_eq!((letter.message, letter.outcome), (message(n), Outcome::Expired));
                let late = testing::elapsed() - at;
                assert!(late < Duration::from_millis(50), "{n}: {late:?}");
            }
            testing::sleep(DIAL).await;
            told.has_no_letter();
            let total = told.manager.stats().total;
            assert_eq!((total.held, total.in_doubt, total.dead_lettered), (1, 0, 2));
        });
    }
}

/// Letters that nobody takes hold up no acknowledgement and no heartbeat.
#[test]
fn a_session_goes_on_while_what_is_too_old_waits_for_the_letters_before() {
    Sim::default().run(async {
        let host = Host::new().await;
        let session = Session::new().ttl(TTL).heartbeat(3 * SECOND);
        // As much as one letter.
        let config = config().session(session).message_ttl(SECOND).queue_bytes(5000).max_message_size(4096);
        let ((mut raw, _), mut told) = join(host.begin(), Told::new(host.addr, config, 1)).await;
        raw.gets(0).await;
        let large = (0..6).map(|n| vec![n; 4000]);
        for message in large {
            let (mut sink, address) = (told.manager.sink(), told.address.clone());
            testing::spawn(async move { drop(sink.send((address, message.into())).await) }).detach();
        }
        for sent in [1, 1, 1] {
            raw.hears(Control::Heartbeat { sent, acked: 0 }).await;
        }
        raw.say(Control::Ack(1)).await;
        testing::sleep(SECOND).await;
        let total = told.manager.stats().total;
        assert!(total.acked == 1 && total.held > 0, "{total:?}");
        for _ in 0..4 {
            assert_eq!(told.letter().await.outcome, Outcome::Expired);
        }
    });
}

/// A connection is parted for so long, while another may be made, and then brings what was on its way.
fn late_tail(heals: Duration, seed: u64) {
    Sim { seed: Some(seed), ..Sim::default() }.run(async {
        let config = config().session(Session::new());
        let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap().split();
        let address = Address::from(incoming.local_addr());
        let serve = async {
            let mut taken = Vec::new();
            while taken.len() < 20 {
                let (peer, message) = incoming.next().await.unwrap();
                outgoing.send((peer, message.clone())).await.unwrap();
                taken.push(message);
            }
            assert!(testing::within(Some(200 * SECOND), incoming.next()).await.is_none());
            taken
        };
        let talk = async {
            let mut connection = Connection::dial(&address, config).await.unwrap();
            let mut answers = Vec::new();
            for n in 0..10 {
                connection.feed(message(n)).await.unwrap();
                connection.flush().await.unwrap();
                if n == 5 {
                    // What has come that far comes; the answers, and their acknowledgements, may not.
                    testing::sleep(Duration::from_millis(seed % 3)).await;
                    testing::part(0, true);
                }
            }
            let healing = testing::spawn(async move {
                testing::sleep(heals).await;
                testing::part(0, false);
            });
            while answers.len() < 10 {
                answers.push(connection.next().await.unwrap().unwrap());
            }
            for n in 10..20 {
                connection.send(message(n)).await.unwrap();
                answers.push(connection.next().await.unwrap().unwrap());
            }
            assert!(testing::within(Some(150 * SECOND), connection.next()).await.is_none());
            drop(healing);
            (answers, connection)
        };
        let (taken, (answers, mut connection)) = join(serve, talk).await;
        let all: Vec<_> = (0..20).map(message).collect();
        assert_eq!((&taken, &answers), (&all, &all));
        assert!(connection.take_in_doubt().is_empty());
        let broke = testing::cables(<[_]>::len) > 1;
        // 45 s without a sign of life.
        assert_eq!(broke, heals >= 45 * SECOND, "{heals:?}");
    });
}

#[test]
fn what_comes_late_on_a_connection_that_has_been_replaced_is_not_met_again() {
    for heals in [20, 46, 50, 100] {
        for seed in 0..6 {
            named(format_args!("after {heals} s, seed {seed}"), || late_tail(heals * SECOND, seed));
        }
    }
}

/// The network as a whole stands still: the connection that is made afterwards meets the one that was there before.
#[test]
fn a_network_that_stands_still_for_46_seconds_loses_nothing() {
    for stands in [30, 46] {
        Sim::default().run(async {
            let config = config().session(Session::new());
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
            assert!(listener.next().now_or_never().is_none());
            let addr = listener.local_addr().ip().unwrap();
            let manager = Manager::new(config);
            manager.dial(addr).await.unwrap();
            let mut sink = manager.sink();
            for n in 0..10 {
                sink.feed((addr.into(), message(n))).await.unwrap();
            }
            testing::part_all(addr);
            sink.flush().await.unwrap();
            testing::sleep(stands * SECOND).await;
            testing::heal(addr);
            for n in 0..10 {
                assert_eq!(listener.next().await.unwrap().1, message(n));
            }
            assert!(testing::within(Some(SECOND), listener.next()).await.is_none());
            let total = manager.stats().total;
            assert_eq!((total.acked, total.sessions, total.dead_lettered), (10, 1, 0));
            assert_eq!(total.reconnects, u64::from(stands > 45));
        });
    }
}
