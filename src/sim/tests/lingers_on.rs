//! What is left on the shelf of a sink: that it costs nothing while it waits, and that a sink which is only tried is let in again.

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt};

use super::lingers::{LINGER, byte, frames, in_session, listening};
use super::outages::{ANYWHERE, SECOND, config, dialed, every};
use crate::sim::testing::{self, Acceptor, Sim, elapsed};
use crate::{Connection, Error, Manager};

/// The polls of all tasks while the program does nothing for ten seconds.
const FEW: usize = 2000;

/// A message that is older than `message_ttl`, fed and not flushed, is nothing to do for the task of its session.
#[test]
fn a_session_rests_while_something_old_is_not_flushed() {
    let mut polls = 0;
    let program = async {
        let config = in_session().message_ttl(SECOND).linger(None);
        let (mut listener, address) = listening(config.clone()).await;
        let manager = Manager::new(config);
        manager.dial(&address).await.unwrap();
        let receiving = testing::spawn(async move { while listener.next().await.is_some() {} });
        let mut sink = manager.sink();
        sink.feed((address.clone(), byte(1))).await.unwrap();
        testing::sleep(10 * SECOND).await;
        drop(receiving);
    };
    Sim::default().run_watched(program, || {
        polls += 1;
        assert!(polls < FEW, "a task spins");
    });
}

/// The same while a connection is opened again.
#[test]
fn an_outage_rests_while_something_old_is_not_flushed() {
    let mut polls = 0;
    let program = async {
        let config = config().message_ttl(SECOND).linger(None).reconnect(every(100 * SECOND));
        let manager = Manager::new(config);
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        drop(acceptor);
        manager.open(addr).unwrap();
        let mut sink = manager.sink();
        sink.feed((addr.into(), byte(1))).await.unwrap();
        testing::sleep(10 * SECOND).await;
        // It comes back all the same as soon as it is handed over.
        let began = elapsed();
        assert!(matches!(sink.flush().await, Err(Error::NotSent { .. })));
        assert!(elapsed() - began <= SECOND / 64);
    };
    Sim::default().run_watched(program, || polls += 1);
    assert!(polls < FEW, "{polls} polls");
}

/// `try_feed` says that `feed` would wait, and there is nothing to wait for any more.
#[test]
fn a_sink_that_is_only_tried_is_let_in_when_its_batch_has_gone() {
    for flushes in [false, true] {
        Sim::default().run(async {
            let (manager, address, _acceptor, mut far) = dialed(config()).await;
            let receiving = testing::spawn(async move {
                let mut wire = [0; 4096];
                while futures::AsyncReadExt::read(&mut far, &mut wire).await.unwrap_or(0) > 0 {}
            });
            let mut sink = manager.sink();
            sink.feed((address.clone(), Bytes::from_static(&[7; 60 << 10]))).await.unwrap();
            assert!(!sink.try_feed(&address, &[1]).unwrap());
            if flushes {
                sink.flush().await.unwrap();
            } else {
                testing::sleep(SECOND).await;
            }
            assert_eq!(manager.stats().total.held, 0);
            assert!(sink.try_feed(&address, &[1]).unwrap(), "flushes: {flushes}");
            drop(receiving);
        });
    }
}

#[test]
fn a_connection_in_a_session_that_is_only_tried_is_let_in_when_its_batch_has_gone() {
    Sim::default().run(async {
        let config = in_session().linger(LINGER);
        let (mut listener, address) = listening(config.clone()).await;
        let receiving = testing::spawn(async move { while listener.next().await.is_some() {} });
        let mut connection = Connection::dial(address, config).await.unwrap();
        while connection.try_feed(&[7; 4000]).unwrap() {}
        testing::sleep(SECOND).await;
        let began = elapsed();
        assert!(connection.try_feed(&[1]).unwrap());
        connection.barrier().now_or_never();
        assert_eq!(elapsed(), began);
        drop(receiving);
    });
}

/// What an accepted connection of a session is fed while its peer is away is sent when it is back.
#[test]
fn what_lingers_in_a_session_without_a_connection_goes_to_the_next() {
    Sim::default().run(async {
        let config = in_session().linger(LINGER);
        let (listener, address) = listening(config.clone()).await;
        let mut connections = listener.connections();
        let mut dialed = Connection::dial(address, config).await.unwrap();
        let mut accepted = connections.next().await.unwrap();
        for round in 0..3 {
            testing::reset_newest();
            accepted.feed(byte(round)).await.unwrap();
            let came = testing::within(Some(10 * SECOND), dialed.next()).await;
            assert_eq!(came.expect("it is sent").unwrap().unwrap(), byte(round));
            testing::reset_newest();
            dialed.feed(byte(round)).await.unwrap();
            let came = testing::within(Some(10 * SECOND), accepted.next()).await;
            assert_eq!(came.expect("it is sent").unwrap().unwrap(), byte(round));
        }
    });
}

/// The connection is up and idle: what nobody flushes is sent before it is too old, however long it may linger.
#[test]
fn what_lingers_is_sent_before_it_is_too_old() {
    for ttl in [LINGER / 2, LINGER, 2 * LINGER] {
        Sim::default().run(async {
            let (manager, address, _acceptor, mut far) = dialed(config().message_ttl(ttl)).await;
            let mut sink = manager.sink();
            sink.feed((address, byte(1))).await.unwrap();
            let sent = testing::within(Some(SECOND), frames(&mut far, 1)).await;
            assert_eq!((sent, manager.stats().total.dead_lettered), (Some(vec![1]), 0), "{ttl:?}");
        });
    }
}
