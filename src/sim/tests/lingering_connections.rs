//! What a connection is fed and nobody flushes, where it lingers and where it does not.

use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use super::lingers::{LINGER, MS, byte, frames, in_session, listening};
use super::outages::{ANYWHERE, SECOND, config, every};
use crate::sim::testing::{self, Acceptor, Sim, elapsed};
use crate::{Config, Connection, Error, Listener, Session};

fn lingering() -> Config {
    config().linger(LINGER)
}

/// Both ends of one connection.
async fn connected(config: Config) -> (Connection, Acceptor, testing::Stream) {
    let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
    let connection = Connection::dial(addr, config).await.unwrap();
    let (far, _) = acceptor.accept(&lingering()).await.unwrap();
    (connection, acceptor, far)
}

#[test]
fn a_connection_lingers_where_it_is_said_and_not_before() {
    for linger in [Some(Duration::ZERO), Some(LINGER), Some(SECOND)] {
        Sim::default().run(async {
            let (mut connection, _acceptor, mut far) = connected(config().linger(linger)).await;
            for round in 0..3 {
                let began = elapsed();
                connection.feed(byte(3 * round)).await.unwrap();
                assert!(connection.try_feed(&[3 * round + 1]).unwrap());
                assert_eq!(frames(&mut far, 2).await, [3 * round, 3 * round + 1]);
                assert_eq!(elapsed() - began, linger.unwrap());
                connection.send(byte(3 * round + 2)).await.unwrap();
                assert_eq!(frames(&mut far, 1).await, [3 * round + 2]);
                assert_eq!(elapsed() - began, linger.unwrap(), "a flush does not wait");
                testing::sleep(SECOND).await;
            }
        });
    }
}

#[test]
fn a_connection_sends_nothing_before_a_flush_where_it_does_not_linger() {
    for config in [config(), config().linger(None)] {
        Sim::default().run(async {
            let (mut connection, _acceptor, mut far) = connected(config).await;
            connection.feed(byte(1)).await.unwrap();
            assert!(testing::within(Some(100 * SECOND), frames(&mut far, 1)).await.is_none());
            connection.flush().await.unwrap();
            assert_eq!(frames(&mut far, 1).await, [1]);
        });
    }
}

/// It is full, and goes when the next message asks for room.
#[test]
fn a_full_batch_is_sent_where_a_connection_does_not_linger() {
    const LONG: usize = 60 << 10;
    for session in [None, Some(Session::new())] {
        Sim::default().run(async {
            let config = config().max_message_size(64 << 10).linger(None).session(session);
            let mut listener = Listener::bind(ANYWHERE, config.clone()).await.unwrap();
            let mut connection = Connection::dial(listener.local_addr(), config).await.unwrap();
            for _ in 0..3 {
                let began = elapsed();
                assert!(connection.try_feed(&[7; LONG]).unwrap());
                connection.ready().await.unwrap();
                let came = testing::within(Some(SECOND), listener.next()).await.expect("it is sent");
                assert_eq!((came.unwrap().1.len(), elapsed()), (LONG, began));
            }
        });
    }
}

/// Half of the time is over when something is flushed: the next has all of it.
#[test]
fn what_a_connection_is_fed_after_a_flush_has_a_time_of_its_own() {
    Sim::default().run(async {
        let (mut connection, _acceptor, mut far) = connected(lingering()).await;
        connection.send(byte(1)).await.unwrap();
        testing::sleep(3 * MS).await;
        let began = elapsed();
        connection.feed(byte(2)).await.unwrap();
        assert_eq!(frames(&mut far, 2).await, [1, 2]);
        assert_eq!(elapsed() - began, LINGER);
    });
}

/// The task is in the middle of a write, and the peer takes nothing: what is fed goes behind, and whoever is called goes on.
#[test]
fn a_connection_is_fed_and_flushed_while_its_task_writes() {
    for flushes in [false, true] {
        Sim { capacity: 1024, ..Sim::default() }.run(async {
            let (mut connection, _acceptor, mut far) = connected(lingering()).await;
            let long = Bytes::from_static(&[9; 8000]);
            connection.feed(long.clone()).await.unwrap();
            testing::sleep(SECOND).await;
            connection.feed(byte(1)).await.unwrap();
            let reading = async {
                testing::sleep(SECOND).await;
                far.read_exact(&mut vec![0; long.len() + 4]).await.unwrap();
                assert_eq!(frames(&mut far, 1).await, [1]);
            };
            let flushing = async {
                if flushes {
                    connection.flush().await.unwrap();
                }
            };
            futures::join!(reading, flushing);
            // And again: the task has noticed what became of its write.
            let began = elapsed();
            connection.feed(byte(2)).await.unwrap();
            assert_eq!(frames(&mut far, 1).await, [2]);
            assert_eq!(elapsed() - began, LINGER);
        });
    }
}

/// A flush that was given up leaves nothing behind that keeps the task from going on.
#[test]
fn the_task_of_a_connection_goes_on_where_a_flush_was_given_up() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (mut connection, _acceptor, mut far) = connected(lingering()).await;
        connection.feed(Bytes::from_static(&[9; 8000])).await.unwrap();
        testing::sleep(SECOND).await;
        assert!(connection.flush().now_or_never().is_none());
        let read = testing::within(Some(SECOND), far.read_exact(&mut vec![0; 8004])).await;
        read.expect("nobody polls the connection").unwrap();
    });
}

#[test]
fn a_connection_tells_what_a_write_failed_with_that_lingered_and_holds_the_message() {
    Sim::default().run(async {
        let (mut connection, acceptor, far) = connected(lingering()).await;
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        connection.feed(byte(1)).await.unwrap();
        testing::sleep(SECOND).await;
        let flushed = connection.flush().await;
        assert!(matches!(flushed, Err(Error::Dial { .. })), "{flushed:?}");
        assert_eq!(connection.take_unsent(), [byte(1)]);
        connection.flush().await.expect("it is told once, and nothing is held");
        // Or with the message that comes next.
        connection.feed(byte(2)).await.unwrap();
        testing::sleep(SECOND).await;
        let error = connection.feed(byte(3)).await.unwrap_err();
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
        assert_eq!((error.into_unsent(), connection.take_unsent()), (Some(byte(3)), vec![byte(2)]));
    });
}

/// The program decides what becomes of what is held: it may have been told that nothing was sent, and send it elsewhere.
#[test]
fn a_connection_that_lingers_is_not_opened_again_where_a_failure_was_told_before_the_next_feed() {
    let limited = || lingering().linger(5 * SECOND).write_timeout(SECOND).close_timeout(SECOND);
    for closes in [false, true] {
        Sim { capacity: 1024, ..Sim::default() }.run(async move {
            let (mut connection, acceptor, _far) = connected(limited()).await;
            connection.feed(Bytes::from_static(&[9; 8000])).await.unwrap();
            let told = if closes { connection.close().await } else { connection.flush().await };
            assert!(matches!(told, Err(Error::Timeout { .. })), "{told:?}");
            let opened = testing::within(Some(60 * SECOND), acceptor.accept(&lingering())).await;
            assert!(opened.is_none(), "the task has opened it");
            connection.feed(byte(1)).await.unwrap();
            let opened = testing::within(Some(60 * SECOND), acceptor.accept(&lingering())).await;
            opened.expect("what was fed then lingers for ever").unwrap();
        });
    }
}

/// The same where it is a message to be fed that is told of the failure.
#[test]
fn a_connection_that_lingers_is_not_opened_again_where_a_feed_was_refused() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (mut connection, acceptor, _far) = connected(lingering().linger(5 * SECOND).write_timeout(SECOND)).await;
        let mut fed = 0;
        let error = loop {
            match connection.feed(Bytes::from_static(&[9; 8000])).await {
                Ok(()) => fed += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
        let opened = testing::within(Some(60 * SECOND), acceptor.accept(&lingering())).await;
        assert!(opened.is_none(), "the task has opened it");
        assert_eq!(connection.take_unsent().len(), fed, "one was sent in part");
    });
}

#[test]
fn a_connection_that_lingers_is_opened_again() {
    for config in [lingering(), lingering().reconnect(every(SECOND))] {
        Sim::default().run(async {
            let (mut connection, acceptor, far) = connected(config).await;
            drop(far);
            testing::sleep(SECOND).await;
            connection.feed(byte(1)).await.unwrap();
            let (mut far, _) = acceptor.accept(&lingering()).await.unwrap();
            assert_eq!(frames(&mut far, 1).await, [1]);
            connection.flush().await.unwrap();
        });
    }
}

#[test]
fn a_connection_that_lingers_closes_in_order_and_is_dropped_at_once() {
    for closes in [false, true] {
        Sim::default().run(async {
            let (mut connection, _acceptor, mut far) = connected(lingering()).await;
            connection.feed(byte(1)).await.unwrap();
            let began = elapsed();
            if closes {
                connection.close().await.unwrap();
                let refused = connection.feed(byte(2)).await;
                assert!(matches!(refused, Err(Error::Closed { message: Some(_) })), "{refused:?}");
                assert!(matches!(connection.try_feed(&[2]), Err(Error::Closed { message: Some(_) })));
            } else {
                drop(connection);
            }
            let mut wire = Vec::new();
            far.read_to_end(&mut wire).await.unwrap();
            assert_eq!(wire, if closes { &[0, 0, 0, 1, 1][..] } else { &[] });
            assert_eq!(elapsed(), began);
        });
    }
}

/// Also with what the listener is set to.
#[test]
fn a_connection_that_was_accepted_lingers() {
    Sim::default().run(async {
        let (listener, address) = listening(lingering()).await;
        let mut connections = listener.connections();
        let mut dialed = Connection::dial(address, config()).await.unwrap();
        let mut accepted = connections.next().await.unwrap();
        let began = elapsed();
        accepted.feed(byte(1)).await.unwrap();
        assert_eq!(dialed.next().await.unwrap().unwrap(), byte(1));
        assert_eq!(elapsed() - began, LINGER);
    });
}

#[test]
fn a_connection_in_a_session_lingers_unless_that_is_off() {
    const UNSET: Duration = Duration::from_millis(5);
    let configs: [(Config, Option<Duration>); 3] =
        [(in_session(), Some(UNSET)), (in_session().linger(LINGER), Some(LINGER)), (in_session().linger(None), None)];
    for (config, linger) in configs {
        Sim::default().run(async {
            let config = || config.clone();
            let (listener, address) = listening(config()).await;
            let mut connections = listener.connections();
            let mut dialed = Connection::dial(address, config()).await.unwrap();
            let mut accepted = connections.next().await.unwrap();
            let began = elapsed();
            for (near, far) in [(true, b"from"), (false, b"back")] {
                let (from, to) = if near { (&mut dialed, &mut accepted) } else { (&mut accepted, &mut dialed) };
                from.feed(Bytes::from_static(far)).await.unwrap();
                let came = testing::within(Some(SECOND), to.next()).await;
                assert_eq!(came.map(|came| came.unwrap().unwrap()), linger.map(|_| Bytes::from_static(far)));
            }
            assert_eq!(elapsed() - began, linger.map_or(2 * SECOND, |linger| 2 * linger));
        });
    }
}
