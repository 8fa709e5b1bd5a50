//! Acknowledged sessions that end: what was sent and not acknowledged is in doubt, and nothing else is.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join;
use futures::{FutureExt, SinkExt, StreamExt};

use super::number;
use crate::observe::{Events, ManagerEvent};
use crate::sim::testing::{self, Cut, Fault, Side, Sim};
use crate::{
    Address, Backoff, Bytes, Config, Connection, DeadLetters, Error, Limit, Listener, Loss, Manager, Outcome, Session,
};

const TTL: Duration = Duration::from_secs(20);
const LEN: usize = 4000;
/// More than the window has room for.
const MESSAGES: u32 = 40;
const WINDOW: usize = (64 << 10) + LEN + 4;

fn config() -> Config {
    Config::new().max_message_size(LEN).session(Session::new().ttl(TTL).window_bytes(WINDOW))
}

/// One that is dialed again for as long as it takes.
fn patient() -> Config {
    config().reconnect(Backoff::exponential(Duration::from_millis(50), Duration::from_millis(50)))
}

/// One that is given up before a session expires.
fn impatient() -> Config {
    let backoff = Backoff::exponential(Duration::from_millis(50), Duration::from_millis(50));
    config().reconnect(backoff.max_elapsed(TTL / 2))
}

fn message(n: u32) -> Bytes {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(LEN, 7);
    bytes.into()
}

/// How many messages a connection was given whole.
fn sent(connection: usize) -> u32 {
    testing::cables(|cables| {
        let cable = cables[connection].lock();
        let (mut bytes, mut messages) = (&cable.lane(Side::Dialer).0[88..], 0);
        while let Some((header, rest)) = bytes.split_first_chunk() {
            let header = u32::from_be_bytes(*header);
            let Some(rest) = rest.get((header & 0x7fff_ffff) as usize..) else { break };
            messages += u32::from(header < 1 << 31);
            bytes = rest;
        }
        messages
    })
}

async fn listen(at: impl Into<Address>) -> (Listener, SocketAddr) {
    let mut listener = Listener::bind(at, config()).await.unwrap();
    assert!(listener.next().now_or_never().is_none());
    let addr = listener.local_addr().ip().unwrap();
    (listener, addr)
}

/// A manager that has sent so many messages that the window is full. The first is acknowledged; the others are received, and not
/// taken.
struct Full {
    listener: Listener,
    addr: SocketAddr,
    manager: Manager,
    letters: DeadLetters,
    events: Events<ManagerEvent>,
    /// One past the last that was sent.
    sent: u32,
}

impl Full {
    async fn new(config: Config) -> Self {
        let (mut listener, addr) = listen("127.0.0.1:0").await;
        let manager = Manager::new(config);
        let (letters, events) = (manager.dead_letters(), manager.events());
        manager.dial(addr).await.unwrap();
        let take = async {
            listener.next().await.unwrap();
            // Asking for the next takes it.
            let _ = testing::within(Some(Duration::from_millis(1)), listener.next()).await;
        };
        join(manager.write(addr, message(0)).map(Result::unwrap), take).await;
        let mut sink = manager.sink();
        for n in 1..MESSAGES {
            sink.feed((addr.into(), message(n))).await.unwrap();
        }
        drop(sink);
        testing::sleep(Duration::from_secs(1)).await;
        let sent = sent(0);
        assert_eq!(sent as usize, 1 + WINDOW / (LEN + 4), "all that fits is sent");
        assert_eq!(manager.stats().total.acked, 1);
        Self { listener, addr, manager, letters, events, sent }
    }

    /// Those which were sent come back in doubt, and before them nothing.
    async fn in_doubt(&mut self, why: Loss) {
        for n in 1..self.sent {
            let letter = self.letter().await;
            assert_eq!((number(&letter.message), letter.outcome), (n, Outcome::InDoubt));
            let in_doubt = self.sent as usize - 1;
            let told = matches!(*letter.error, Error::SessionLost { in_doubt: n, why: w } if n == in_doubt && w == why);
            assert!(told, "{:?}", letter.error);
        }
        assert_eq!(self.manager.stats().total.in_doubt, u64::from(self.sent - 1));
    }

    /// Those which were not sent come back in another way, and then nothing.
    async fn unsent(&mut self, outcome: Outcome) {
        for n in self.sent..MESSAGES {
            let letter = self.letter().await;
            assert_eq!((number(&letter.message), letter.outcome), (n, outcome));
        }
        assert!(self.letters.next().now_or_never().flatten().is_none());
        let total = self.manager.stats().total;
        assert_eq!((total.acked, total.dead_lettered, total.held), (1, u64::from(MESSAGES) - 1, 0));
    }

    async fn letter(&mut self) -> crate::DeadLetter {
        testing::within(Some(2 * TTL), self.letters.next()).await.expect("in time").unwrap()
    }

    /// The loss is told once.
    async fn lost(&mut self) -> (usize, Loss) {
        loop {
            match self.events.next().await.unwrap() {
                ManagerEvent::SessionLost { in_doubt, why, .. } => return (in_doubt, why),
                ManagerEvent::Resumed { .. } => panic!("it is lost"),
                _ => {}
            }
        }
    }
}

/// The listener takes all, up to the last.
async fn take_to(listener: &mut Listener, last: u32) -> Vec<u32> {
    let mut taken = Vec::new();
    while taken.last() != Some(&last) {
        taken.push(number(&listener.next().await.unwrap().1));
    }
    assert!(testing::within(Some(Duration::from_secs(1)), listener.next()).await.is_none());
    taken
}

/// No connection from this one on, so many of them, carries anything.
fn stall(connections: std::ops::Range<usize>) {
    for connection in connections {
        testing::plan(Cut { connection, side: Side::Dialer, after: 0, fault: Fault::Stall });
    }
}

#[test]
fn what_was_sent_is_in_doubt_when_the_attempts_are_given_up() {
    Sim::default().run(async {
        let mut full = Full::new(impatient()).await;
        testing::black_hole(full.addr);
        testing::reset_newest();
        full.in_doubt(Loss::GaveUp).await;
        full.unsent(Outcome::GaveUp).await;
        assert_eq!(full.lost().await, (full.sent as usize - 1, Loss::GaveUp));
    });
}

#[test]
fn what_was_not_sent_goes_on_when_a_session_expires() {
    Sim::default().run(async {
        let mut full = Full::new(patient()).await;
        stall(1..3);
        testing::reset_newest();
        full.in_doubt(Loss::Expired).await;
        let over = testing::elapsed() - Duration::from_secs(1);
        assert!(over >= TTL && over < TTL + Duration::from_secs(1), "{over:?}");
        assert_eq!(full.lost().await, (full.sent as usize - 1, Loss::Expired));
        // What is in doubt may still be taken, in front of what follows.
        assert_eq!(take_to(&mut full.listener, MESSAGES - 1).await, (1..MESSAGES).collect::<Vec<_>>());
        let total = full.manager.stats().total;
        assert_eq!((total.sessions, total.held, total.acked), (2, 0, u64::from(1 + MESSAGES - full.sent)));
        assert!(full.letters.next().now_or_never().is_none());
    });
}

#[test]
fn a_listener_that_was_started_anew_has_forgotten_what_was_sent() {
    Sim::default().run(async {
        let mut full = Full::new(config()).await;
        drop(std::mem::replace(&mut full.listener, listen("127.0.0.1:0").await.0));
        full.listener = listen(full.addr).await.0;
        full.in_doubt(Loss::Restarted).await;
        assert_eq!(full.lost().await, (full.sent as usize - 1, Loss::Restarted));
        assert_eq!(take_to(&mut full.listener, MESSAGES - 1).await, (full.sent..MESSAGES).collect::<Vec<_>>());
        assert!(full.letters.next().now_or_never().is_none());
    });
}

#[test]
fn a_session_comes_back_before_it_expires() {
    Sim::default().run(async {
        let mut full = Full::new(patient()).await;
        stall(1..2);
        testing::reset_newest();
        assert_eq!(take_to(&mut full.listener, MESSAGES - 1).await, (1..MESSAGES).collect::<Vec<_>>());
        let total = full.manager.stats().total;
        assert_eq!((total.sessions, total.acked, total.dead_lettered), (1, u64::from(MESSAGES), 0));
    });
}

/// An address is closed while some is sent and some is not.
fn close<F: Future>(close: impl Fn(Manager, Address) -> F, check: impl Fn(&Full, F::Output)) {
    Sim::default().run(async {
        let mut full = Full::new(config()).await;
        let closed = close(full.manager.clone(), full.addr.into()).await;
        assert_eq!(testing::elapsed().as_secs(), 6);
        full.in_doubt(Loss::Ended).await;
        full.unsent(Outcome::Closed).await;
        check(&full, closed);
    });
}

#[test]
fn what_is_not_acknowledged_within_the_limit_of_a_close_is_in_doubt() {
    close(
        async |manager, address| manager.close(address).await,
        |_, closed| match closed {
            Err(Error::Timeout { what: Limit::CloseTimeout, .. }) => {}
            other => panic!("{other:?}"),
        },
    );
    close(
        async |manager, _| manager.shutdown(Duration::from_secs(5)).await,
        |full, mut endings| {
            let ending = endings.remove(&full.addr.into()).unwrap();
            assert_eq!((ending.dead_lettered, ending.cut), (u64::from(MESSAGES - 1), true));
        },
    );
}

#[test]
fn a_close_waits_for_what_is_not_acknowledged() {
    Sim::default().run(async {
        let mut full = Full::new(config()).await;
        let take = async {
            testing::sleep(Duration::from_secs(4)).await;
            take_to(&mut full.listener, MESSAGES - 1).await
        };
        let (closed, taken) = join(full.manager.close(full.addr), take).await;
        closed.unwrap();
        assert_eq!(taken, (1..MESSAGES).collect::<Vec<_>>());
        let total = full.manager.stats().total;
        assert_eq!((total.acked, total.dead_lettered, total.held), (u64::from(MESSAGES), 0, 0));
        assert!(full.letters.next().now_or_never().is_none());
    });
}

#[test]
fn a_listener_that_closes_leaves_nothing_in_doubt() {
    Sim::default().run(async {
        let mut full = Full::new(config()).await;
        let closer = full.listener.closer();
        let Full { listener, addr, manager, .. } = &mut full;
        let drain = async {
            let mut taken = Vec::new();
            while let Some((_, message)) = listener.next().await {
                taken.push(number(&message));
            }
            taken
        };
        let replace = async {
            closer.close().await.unwrap();
            let mut other = listen(*addr).await.0;
            take_to(&mut other, MESSAGES - 1).await
        };
        let (before, after) = join(drain, replace).await;
        assert_eq!([before, after].concat(), (1..MESSAGES).collect::<Vec<_>>());
        let total = manager.stats().total;
        assert_eq!((total.sessions, total.acked, total.dead_lettered), (2, u64::from(MESSAGES), 0));
        while let Some(Some(event)) = full.events.next().now_or_never() {
            assert!(!matches!(event, ManagerEvent::SessionLost { .. }), "{event:?}");
        }
    });
}

/// A connection that has sent so many messages that the window is full, the first of which is acknowledged.
async fn connect(config: Config) -> (Listener, SocketAddr, Connection) {
    let (mut listener, addr) = listen("127.0.0.1:0").await;
    let mut connection = Connection::dial(addr, config).await.unwrap();
    connection.send(message(0)).await.unwrap();
    listener.next().await.unwrap();
    let barrier = join(connection.barrier(), testing::within(Some(Duration::from_millis(1)), listener.next()));
    barrier.await.0.unwrap();
    for n in 1..MESSAGES {
        connection.feed(message(n)).await.unwrap();
    }
    assert!(testing::within(Some(Duration::from_secs(1)), connection.barrier()).await.is_none());
    (listener, addr, connection)
}

fn numbers(messages: Vec<Bytes>) -> Vec<u32> {
    messages.iter().map(|message| number(message)).collect()
}

#[test]
fn a_connection_says_what_is_in_doubt_and_what_was_never_sent() {
    Sim::default().run(async {
        let (_listener, addr, mut connection) = connect(impatient()).await;
        let sent = sent(0);
        testing::black_hole(addr);
        testing::reset_newest();
        let in_doubt = sent as usize - 1;
        match connection.barrier().await {
            Err(Error::NotSent { source, .. }) => match *source {
                Error::SessionLost { in_doubt: n, why: Loss::GaveUp } => assert_eq!(n, in_doubt),
                ref other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
        match connection.next().await {
            Some(Err(Error::SessionLost { in_doubt: n, why: Loss::GaveUp })) => assert_eq!(n, in_doubt),
            other => panic!("{other:?}"),
        }
        assert_eq!(numbers(connection.take_in_doubt()), (1..sent).collect::<Vec<_>>());
        assert_eq!(numbers(connection.take_unsent()), (sent..MESSAGES).collect::<Vec<_>>());
        assert!(connection.take_in_doubt().is_empty() && connection.take_unsent().is_empty());
        // It has none that would be new.
        connection.barrier().await.unwrap();
    });
}

#[test]
fn a_connection_goes_on_in_another_session() {
    Sim::default().run(async {
        let (listener, addr, mut connection) = connect(config()).await;
        let sent = sent(0);
        drop(listener);
        let (mut listener, _) = listen(addr).await;
        let taking = async {
            let mut taken = Vec::new();
            while taken.last() != Some(&MESSAGES) {
                taken.push(number(&listener.next().await.unwrap().1));
            }
            assert!(testing::within(Some(Duration::from_secs(1)), listener.next()).await.is_none());
            taken
        };
        let more = async {
            assert!(matches!(connection.barrier().await, Err(Error::NotSent { .. })));
            connection.send(message(MESSAGES)).await.unwrap();
            connection.barrier().await.unwrap();
        };
        let (taken, ()) = join(taking, more).await;
        assert_eq!(taken, (sent..=MESSAGES).collect::<Vec<_>>());
        assert_eq!(numbers(connection.take_in_doubt()), (1..sent).collect::<Vec<_>>());
        assert!(connection.take_unsent().is_empty());
    });
}

#[test]
fn a_connection_is_closed_when_all_is_taken() {
    Sim::default().run(async {
        let (mut listener, _, mut connection) = connect(config()).await;
        match connection.close().await {
            Err(Error::Timeout { what: Limit::CloseTimeout, .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(testing::elapsed().as_secs(), 6);
        let (closed, taken) = join(connection.close(), take_to(&mut listener, MESSAGES - 1)).await;
        closed.unwrap();
        assert_eq!(taken, (1..MESSAGES).collect::<Vec<_>>());
        assert!(connection.take_in_doubt().is_empty() && connection.take_unsent().is_empty());
        match connection.send(message(0)).await {
            Err(Error::Closed { message: Some(_) }) => {}
            other => panic!("{other:?}"),
        }
        assert!(connection.next().await.is_none());
    });
}

#[test]
fn without_a_session_there_is_nothing_to_wait_for() {
    Sim::default().run(async {
        let listener = Listener::bind("127.0.0.1:0", Config::new()).await.unwrap();
        let mut connection = Connection::dial(listener.local_addr(), Config::new()).await.unwrap();
        assert!(matches!(connection.barrier().await, Err(Error::NoSession)));
        assert!(connection.take_in_doubt().is_empty());
    });
}
