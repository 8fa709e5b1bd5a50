//! An address that is opened before anybody listens there.

use std::net::SocketAddr;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{ANYWHERE, SECOND, config, every};
use crate::sim::testing::{self, Acceptor, Sim, elapsed};
use crate::{Address, Config, ConfigError, Error, Health, Listener, Manager, ManagerEvent, Outcome, Session};

const LATER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 5031);

fn address() -> Address {
    LATER.into()
}

fn line(n: u8) -> (Address, Bytes) {
    (address(), Bytes::from(vec![n; 100]))
}

async fn lines(far: &mut testing::Stream, lines: usize) -> Vec<u8> {
    let mut frames = vec![0; lines * 104];
    far.read_exact(&mut frames).await.unwrap();
    frames.chunks(104).map(|frame| frame[4]).collect()
}

#[test]
fn what_is_sent_before_anybody_listens_arrives_in_order() {
    Sim::default().run(async {
        let manager = Manager::new(config().reconnect(every(SECOND)));
        let mut events = manager.events();
        manager.open(LATER).unwrap();
        assert!(matches!(manager.health(LATER), Some(Health::Away { .. })));
        let mut sink = manager.sink();
        for n in 0..50 {
            sink.feed(line(n)).await.unwrap();
        }
        assert!(sink.flush().now_or_never().is_none());
        testing::sleep(10 * SECOND + SECOND / 2).await;
        assert!(matches!(events.next().await, Some(ManagerEvent::DialFailed { .. })));
        let (acceptor, _) = Acceptor::bind(&address()).await.unwrap();
        let (mut far, _) = acceptor.accept(&config()).await.unwrap();
        assert_eq!(elapsed(), 11 * SECOND, "it is dialed each second");
        assert!(lines(&mut far, 50).await.into_iter().eq(0..50));
        sink.flush().await.unwrap();
        assert!(matches!(manager.health(LATER), Some(Health::Up)));
        let stats = manager.stats().total;
        assert_eq!((stats.written, stats.reconnects), (50, 0), "the first connection is no other");
        while !matches!(events.next().await, Some(ManagerEvent::Opened { .. })) {}
    });
}

#[test]
fn it_is_dialed_although_nothing_is_sent() {
    Sim::default().run(async {
        for config in [config(), config().reconnect(every(SECOND))] {
            let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
            let manager = Manager::new(config.clone());
            manager.open(addr).unwrap();
            let _far = testing::within(Some(SECOND), acceptor.accept(&config)).await.expect("it is dialed").unwrap();
        }
    });
}

#[test]
fn an_address_is_opened_once_and_not_after_a_shutdown_or_with_settings_that_cannot_work() {
    Sim::default().run(async {
        let manager = Manager::new(config());
        manager.open(LATER).unwrap();
        assert!(matches!(manager.open(LATER), Err(Error::AlreadyOpen { .. })));
        assert!(matches!(manager.dial(LATER).await, Err(Error::AlreadyOpen { .. })));
        assert_eq!(manager.addresses(), [address()]);
        manager.close(LATER).await.unwrap();
        manager.open(LATER).expect("it is forgotten");
        manager.shutdown(SECOND).await;
        assert!(matches!(manager.open(LATER), Err(Error::Closed { .. })));
        let manager = Manager::new(Config::new().unix_mode(0o1000));
        assert!(matches!(manager.open(LATER), Err(Error::Config(ConfigError::UnixMode { .. }))));
        assert_eq!(manager.addresses(), []);
    });
}

#[test]
fn without_reconnect_there_is_one_attempt_and_the_next_message_dials_again() {
    Sim::default().run(async {
        let manager = Manager::new(config());
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        manager.open(LATER).unwrap();
        let mut sink = manager.sink();
        sink.feed(line(1)).await.unwrap();
        let flushed = sink.flush().await;
        let Err(Error::NotSent { source, .. }) = flushed else { panic!("{flushed:?}") };
        assert!(matches!(*source, Error::Dial { .. }), "{source:?}");
        let letter = letters.next().await.unwrap();
        assert_eq!((letter.outcome, letter.attempts), (Outcome::NotSent, 1));
        assert!(matches!(events.next().await, Some(ManagerEvent::DialFailed { .. })));
        assert!(matches!(events.next().await, Some(ManagerEvent::Down { .. })));
        assert!(matches!(manager.health(LATER), Some(Health::Down { next_attempt: None, .. })));
        testing::sleep(100 * SECOND).await;
        assert!(events.next().now_or_never().is_none(), "nobody dials");
        let (acceptor, _) = Acceptor::bind(&address()).await.unwrap();
        let config = config();
        let (sent, accepted) = futures::join!(sink.send(line(2)), acceptor.accept(&config));
        sent.unwrap();
        assert_eq!(lines(&mut accepted.unwrap().0, 1).await, [2]);
        assert!(matches!(events.next().await, Some(ManagerEvent::Opened { .. })));
        assert!(matches!(events.next().await, Some(ManagerEvent::Up { .. })));
    });
}

#[test]
fn queue_bytes_are_held_before_the_first_connection_and_then_producers_wait() {
    Sim::default().run(async {
        let manager = Manager::new(config().reconnect(every(SECOND)).queue_bytes(10 * 104));
        manager.open(LATER).unwrap();
        let mut sinks: Vec<_> = (0..20).map(|_| manager.sink()).collect();
        for (n, sink) in sinks.iter_mut().enumerate() {
            assert!(sink.send(line(n as u8)).now_or_never().is_none());
        }
        assert_eq!(manager.stats().total.held_bytes, 10 * 104);
    });
}

/// Nobody answers, and `dial_timeout` is not set.
#[test]
fn a_close_does_not_wait_for_a_dial_that_nothing_is_held_for() {
    Sim::default().run(async {
        testing::black_hole(LATER);
        for config in
            [config(), config().reconnect(every(SECOND)), config().max_message_size(4096).session(Session::new())]
        {
            let manager = Manager::new(config);
            manager.open(LATER).unwrap();
            testing::sleep(SECOND).await;
            let began = elapsed();
            manager.close(LATER).await.unwrap();
            assert_eq!(elapsed(), began);
        }
    });
}

#[test]
fn a_manager_that_is_dropped_dials_no_more() {
    Sim::default().run(async {
        let manager = Manager::new(config().reconnect(every(SECOND)));
        manager.open(LATER).unwrap();
        testing::sleep(3 * SECOND).await;
        drop(manager);
        let (acceptor, _) = Acceptor::bind(&address()).await.unwrap();
        assert!(testing::within(Some(100 * SECOND), acceptor.accept(&config())).await.is_none());
    });
}

#[test]
fn an_address_of_sessions_may_be_opened_before_anybody_listens() {
    Sim::default().run(async {
        let manager = Manager::new(config().max_message_size(4096).session(Session::new()));
        manager.open(LATER).unwrap();
        let mut sink = manager.sink();
        let send = sink.send((address(), Bytes::from_static(b"early")));
        let listening = async {
            testing::sleep(3 * SECOND).await;
            let mut listener =
                Listener::bind(LATER, config().max_message_size(4096).session(Session::new())).await.unwrap();
            (listener.next().await.unwrap().1, listener)
        };
        let (written, (message, _listener)) = futures::join!(send, listening);
        written.unwrap();
        assert_eq!(message, "early");
        assert_eq!((manager.stats().total.sessions, manager.stats().total.reconnects), (1, 0));
    });
}
