//! A time limit is one of waiting: it counts while somebody waits, and not while nobody polls.

use std::time::Duration;

use bytes::Bytes;
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::{Sink, SinkExt, StreamExt};

use crate::observe::{Event, Reason};
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Sim, block, elapsed};
use crate::{Address, Config, Connection, Error, Incoming, Limit, Listener, Manager, Outgoing, WireFormat};

/// An odd time, that nothing else comes to by chance.
const LIMIT: Duration = Duration::from_millis(7_013);
const BEFORE: Duration = Duration::from_millis(7_012);
const ANYWHERE: &str = "127.0.0.1:0";
/// How long nobody waits before the next attempt: less than a limit, and more.
const PAUSES: [Duration; 4] = [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(3_000), LONG];
const LONG: Duration = Duration::from_secs(3_600);

fn config() -> Config {
    // Every limit that is not looked at is off.
    let config = Config::new().wire_format(WireFormat::u32_be()).max_message_size(1 << 20).dial_timeout(None);
    config.write_timeout(None).frame_timeout(None).close_timeout(None)
}

fn small() -> Sim {
    Sim { capacity: 1024, ..Sim::default() }
}

fn four_kib() -> Bytes {
    Bytes::from_static(&[7; 4096])
}

/// A connection to somebody who only does what the test does.
async fn connected(config: Config) -> (Connection, testing::Stream) {
    let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
    let connection = Connection::dial(addr, config.clone()).await.unwrap();
    (connection, acceptor.accept(&config).await.unwrap().0)
}

/// A connection that a listener accepted, and its other end.
async fn accepted(config: Config) -> (Connection, testing::Stream) {
    let listener = Listener::bind(ANYWHERE, config.clone()).await.unwrap();
    let address = Address::from(listener.local_addr());
    let stream = testing::dial(&address, &config).await.unwrap();
    (listener.connections().next().await.unwrap(), stream)
}

#[track_caller]
fn assert_timeout(error: &Error, setting: Limit, expected: Duration) {
    assert!(matches!(error, Error::Timeout { what, after: LIMIT } if *what == setting), "{error:?}");
    assert_eq!(elapsed(), expected);
}

#[test]
fn a_close_that_was_dropped_takes_nothing_of_the_next_ones_time() {
    for pause in PAUSES {
        small().run(async {
            let (mut connection, _peer) = connected(config().close_timeout(LIMIT)).await;
            connection.feed(four_kib()).await.unwrap();
            for _ in 0..3 {
                assert!(testing::within(Some(BEFORE), connection.close()).await.is_none(), "after {pause:?}");
                testing::sleep(pause).await;
            }
            let began = elapsed();
            assert_timeout(&connection.close().await.unwrap_err(), Limit::CloseTimeout, began + LIMIT);
        });
        small().run(async {
            let (connection, mut peer) = connected(config().close_timeout(LIMIT)).await;
            let (_read, mut write) = connection.split();
            write.feed(four_kib()).await.unwrap();
            assert!(testing::within(Some(BEFORE), write.close()).await.is_none());
            testing::sleep(pause).await;
            let mut all = Vec::new();
            let (closed, read) = futures::join!(write.close(), async {
                testing::sleep(BEFORE).await;
                peer.read_to_end(&mut all).await
            });
            closed.unwrap();
            assert_eq!(read.unwrap(), 4100, "after {pause:?}");
        });
    }
}

/// A listener that was split and has a reply to send for which there is no room, and its peer.
async fn answered() -> (Incoming, Outgoing, Connection) {
    let listener = Listener::bind(ANYWHERE, config().close_timeout(LIMIT)).await.unwrap();
    let address = Address::from(listener.local_addr());
    let (mut incoming, mut outgoing) = listener.split();
    let mut peer = Connection::dial(&address, config()).await.unwrap();
    peer.send(Bytes::from_static(b"one")).await.unwrap();
    let (from, _) = incoming.next().await.unwrap();
    outgoing.feed((from, four_kib())).await.unwrap();
    (incoming, outgoing, peer)
}

#[test]
fn a_close_of_the_replies_that_was_dropped_takes_nothing_of_the_next_ones_time() {
    for pause in PAUSES {
        small().run(async {
            let (_incoming, mut outgoing, _peer) = answered().await;
            for _ in 0..3 {
                assert!(testing::within(Some(BEFORE), outgoing.close()).await.is_none(), "after {pause:?}");
                testing::sleep(pause).await;
            }
            let began = elapsed();
            assert_timeout(&outgoing.close().await.unwrap_err(), Limit::CloseTimeout, began + LIMIT);
        });
    }
}

/// What is pending then is left to the peer's task, and the end comes behind it.
#[test]
fn a_close_of_the_replies_that_ran_out_of_time_cuts_none_of_them() {
    small().run(async {
        let (_incoming, mut outgoing, mut peer) = answered().await;
        assert_timeout(&outgoing.close().await.unwrap_err(), Limit::CloseTimeout, elapsed());
        assert_eq!(peer.next().await.unwrap().unwrap(), four_kib());
        assert!(peer.next().await.is_none());
    });
}

/// Whoever polls the sink cannot tell it that another close begins. But the time in between is nobody's wait.
#[test]
fn a_close_that_nobody_polls_does_not_run_out() {
    fn close(sink: &mut (impl Sink<Bytes, Error = Error> + Unpin)) -> impl Future<Output = Result<(), Error>> {
        sink.close()
    }
    small().run(async {
        let (mut connection, _peer) = connected(config().close_timeout(LIMIT)).await;
        connection.feed(four_kib()).await.unwrap();
        for _ in 0..3 {
            assert!(testing::within(Some(LIMIT / 4), close(&mut connection)).await.is_none());
            testing::sleep(LONG).await;
        }
        let began = elapsed();
        assert_timeout(
            &close(&mut connection).await.unwrap_err(),
            Limit::CloseTimeout,
            began + LIMIT - 3 * (LIMIT / 4),
        );
    });
}

#[test]
fn a_peer_that_sends_steadily_is_not_ended_because_nobody_polls() {
    for dialed in [true, false] {
        Sim::default().run(async {
            let config = config().frame_timeout(LIMIT);
            let (mut connection, mut peer) = if dialed { connected(config).await } else { accepted(config).await };
            let frame = [&(256_u32 << 10).to_be_bytes()[..], &vec![7; 256 << 10]].concat();
            let _sending = testing::spawn(async move {
                for piece in frame.chunks(16 << 10) {
                    peer.write_all(piece).await.unwrap();
                    testing::sleep(LIMIT / 16).await;
                }
                std::future::pending::<()>().await;
            });
            testing::yield_now().await;
            for pause in [Duration::ZERO, LONG, LONG] {
                testing::sleep(pause).await;
                // The first time it finds the start of the frame, then as much as fits into the socket.
                assert!(futures::poll!(connection.next()).is_pending());
            }
            testing::sleep(LIMIT / 2).await;
            assert_eq!(connection.next().await.unwrap().unwrap().len(), 256 << 10);
        });
    }
}

#[test]
fn a_peer_that_drips_is_ended_when_it_was_waited_for_so_long_in_all() {
    Sim::default().run(async {
        let (mut connection, mut peer) = connected(config().frame_timeout(LIMIT)).await;
        peer.write_all(&[0, 0, 1, 0]).await.unwrap();
        let _dripping = testing::spawn(async move {
            while peer.write_all(&[7]).await.is_ok() {
                testing::sleep(Duration::from_secs(200)).await;
            }
        });
        for _ in 0..3 {
            assert!(testing::within(Some(LIMIT / 4), connection.next()).await.is_none());
            testing::sleep(LONG).await;
        }
        let error = connection.next().await.unwrap().unwrap_err();
        assert_timeout(&error, Limit::FrameTimeout, 3 * LONG + LIMIT);
    });
}

#[test]
fn a_peer_is_not_silent_because_nobody_polls() {
    Sim::default().run(async {
        let (mut connection, _peer) = accepted(config().idle_timeout(LIMIT)).await;
        assert!(futures::poll!(connection.next()).is_pending());
        testing::sleep(LONG).await;
        assert_timeout(&connection.next().await.unwrap().unwrap_err(), Limit::IdleTimeout, LONG + LIMIT);
    });
}

#[test]
fn a_peer_does_not_take_nothing_because_nobody_polls() {
    small().run(async {
        let (mut connection, _peer) = connected(config().write_timeout(LIMIT)).await;
        connection.feed(four_kib()).await.unwrap();
        assert!(futures::poll!(connection.flush()).is_pending());
        testing::sleep(LONG).await;
        assert_timeout(&connection.flush().await.unwrap_err(), Limit::WriteTimeout, LONG + LIMIT);
    });
}

/// The program may block every thread that the library's tasks run on.
#[test]
fn a_peer_of_a_listener_is_not_ended_because_no_task_could_run() {
    Sim::default().run(async {
        let listener = Listener::bind(ANYWHERE, config().frame_timeout(LIMIT)).await.unwrap();
        let (mut events, address) = (listener.events(), Address::from(listener.local_addr()));
        let mut listener = listener;
        let mut peer = testing::dial(&address, &config()).await.unwrap();
        assert!(futures::poll!(listener.next()).is_pending());
        peer.write_all(&[0, 0, 1, 0]).await.unwrap();
        testing::sleep(LIMIT / 2).await;
        peer.write_all(&[7; 100]).await.unwrap();
        block(LONG);
        testing::sleep(LIMIT / 4).await;
        peer.write_all(&[7; 156]).await.unwrap();
        assert_eq!(listener.next().await.unwrap().1.len(), 256);
        // It does not get more time than that, either.
        peer.write_all(&[0, 0, 1, 0]).await.unwrap();
        let began = elapsed();
        while let Some(event) = events.next().await {
            if let Event::Disconnected { reason, .. } = event {
                assert!(matches!(reason, Reason::Timeout { what: Limit::FrameTimeout, after: LIMIT }), "{reason:?}");
                assert_eq!(elapsed(), began + LIMIT);
                return;
            }
        }
    });
}

#[test]
fn a_peer_of_a_manager_is_not_given_up_because_no_task_could_run() {
    small().run(async {
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let manager = Manager::new(config().write_timeout(LIMIT));
        manager.dial(addr).await.unwrap();
        let (mut peer, _) = acceptor.accept(&config()).await.unwrap();
        let (written, read) = futures::join!(manager.write(addr, four_kib()), async {
            testing::sleep(LIMIT / 2).await;
            block(LONG);
            testing::sleep(LIMIT / 4).await;
            let mut frame = vec![0; 4100];
            peer.read_exact(&mut frame).await.map(|_| frame)
        });
        written.unwrap();
        assert_eq!(read.unwrap()[4..], four_kib());
    });
}

/// What tells that the close was given up is the flush, where it is not the call that begins one.
#[test]
fn a_flush_after_a_close_that_was_dropped_gives_the_next_all_its_time() {
    fn close(sink: &mut (impl Sink<Bytes, Error = Error> + Unpin)) -> impl Future<Output = Result<(), Error>> {
        sink.close()
    }
    small().run(async {
        let (mut connection, _peer) = connected(config().close_timeout(LIMIT)).await;
        connection.feed(four_kib()).await.unwrap();
        assert!(testing::within(Some(BEFORE), close(&mut connection)).await.is_none());
        assert!(futures::poll!(connection.flush()).is_pending());
        assert_timeout(&close(&mut connection).await.unwrap_err(), Limit::CloseTimeout, BEFORE + LIMIT);
    });
}
