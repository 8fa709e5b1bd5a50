//! Outages, in virtual time: what is too old while the connection breaks, what is dialed and when, and what a close does.

use std::io::ErrorKind;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::io::AsyncReadExt;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::observe::Events;
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Sim, elapsed};
use crate::{Address, Backoff, Config, Connection, Error, Limit, Manager, ManagerEvent, Outcome, WireFormat};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const ANYWHERE: &str = "127.0.0.1:0";

pub(super) fn config() -> Config {
    let config = Config::new().wire_format(WireFormat::u32_be()).max_message_size(1 << 20);
    config.dial_timeout(None).write_timeout(None).frame_timeout(None).close_timeout(10 * SECOND)
}

/// Tries again every second, or after what it is given, for ever.
pub(super) fn every(delay: Duration) -> Backoff {
    Backoff::from_fn(move || std::iter::repeat(delay))
}

/// A manager of one address, and the other end of its connection.
pub(super) async fn dialed(config: Config) -> (Manager, Address, Acceptor, testing::Stream) {
    let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
    let manager = Manager::new(config);
    manager.dial(addr).await.unwrap();
    let (far, _) = acceptor.accept(&self::config()).await.unwrap();
    (manager, addr.into(), acceptor, far)
}

fn failed_dials(events: &mut Events<ManagerEvent>) -> usize {
    let happened = std::iter::from_fn(|| events.next().now_or_never().flatten());
    happened.filter(|event| matches!(event, ManagerEvent::DialFailed { .. })).count()
}

/// What the program adds is not what the peer takes.
#[test]
fn a_connection_that_is_fed_while_its_peer_takes_nothing_is_ended_at_write_timeout() {
    let limit = 7 * SECOND;
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let mut connection = Connection::dial(addr, config().write_timeout(limit)).await.unwrap();
        let _far = acceptor.accept(&config()).await.unwrap();
        connection.feed(Bytes::from(vec![7; 2048])).await.unwrap();
        let error = loop {
            let beat = connection.send(Bytes::from_static(b"beat"));
            if let Some(sent) = testing::within(Some(5 * SECOND), beat).await {
                break sent.unwrap_err();
            }
        };
        assert!(matches!(error, Error::Timeout { what: Limit::WriteTimeout, .. }), "{error:?}");
        assert_eq!(elapsed(), limit);
    });
}

/// Its task goes on when the peer has read everything and closed: what is left of the batch is for the next connection.
#[test]
fn a_batch_that_waits_in_the_middle_goes_on_only_where_somebody_takes_it() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, acceptor, mut far) = dialed(config()).await;
        let mut sink = manager.sink();
        for n in 0..19 {
            sink.feed((address.clone(), Bytes::from(vec![n; 100]))).await.unwrap();
        }
        let mut flush = sink.flush();
        assert!((&mut flush).now_or_never().is_none());
        let mut frames = vec![0; 1024];
        far.read_exact(&mut frames).await.unwrap();
        drop(far);
        let config = config();
        let receiving = async {
            let (mut far, _) = acceptor.accept(&config).await.unwrap();
            let mut rest = vec![0; 10 * 104];
            far.read_exact(&mut rest).await.unwrap();
            (far, rest)
        };
        let receiving = testing::within(Some(SECOND), receiving);
        let (flushed, received) = futures::join!(flush, receiving);
        flushed.unwrap();
        let (_far, rest) = received.expect("what was not taken whole");
        // Nine frames were whole.
        let received = [&frames[..9 * 104], &rest[..]].concat();
        assert!(received.chunks(104).map(|frame| frame[4]).eq(0..19));
        assert_eq!((manager.stats().total.written, manager.stats().total.reconnects), (19, 1));
    });
}

/// Messages are too old, one in the middle of a write; in the moment in which the task could go on, the connection breaks, or
/// is closed.
fn too_old_in_the_moment_of_the_end(closes: bool) {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) =
            dialed(config().message_ttl(SECOND).reconnect(every(SECOND))).await;
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        sink.feed((address.clone(), Bytes::from(vec![7; 2000]))).await.unwrap();
        assert!(sink.flush().now_or_never().is_none());
        sink.feed((address.clone(), Bytes::from_static(b"behind it"))).await.unwrap();
        assert!(sink.flush().now_or_never().is_none());
        testing::sleep(3 * SECOND).await;
        // It takes a part, which makes room for the rest of the batch, and is gone: that is not given it any more.
        far.read_exact(&mut [0; 1024]).await.unwrap();
        let closing = closes.then(|| manager.close(&address));
        drop(far);
        if let Some(closing) = closing {
            closing.await.unwrap_err();
        }
        for message in [Bytes::from(vec![7; 2000]), Bytes::from_static(b"behind it")] {
            let letter = testing::within(Some(60 * SECOND), letters.next()).await.expect("a letter").unwrap();
            assert_eq!((letter.message, letter.outcome), (message, Outcome::Expired));
        }
        assert_eq!((manager.stats().total.written, manager.stats().total.dead_lettered), (0, 2));
    });
}

#[test]
fn a_message_that_is_too_old_when_the_connection_breaks_is_a_letter() {
    too_old_in_the_moment_of_the_end(false);
}

#[test]
fn a_message_that_is_too_old_when_its_address_is_closed_is_a_letter() {
    too_old_in_the_moment_of_the_end(true);
}

#[test]
fn when_everything_has_grown_too_old_nothing_is_dialed() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) =
            dialed(config().message_ttl(SECOND * 3 / 2).reconnect(every(SECOND))).await;
        let (mut letters, mut events) = (manager.dead_letters(), manager.events());
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        assert!(manager.sink().send((address, Bytes::from_static(b"x"))).now_or_never().is_none());
        assert_eq!(letters.next().await.unwrap().outcome, Outcome::Expired);
        assert_eq!(failed_dials(&mut events), 2);
        testing::sleep(1_000 * SECOND).await;
        assert_eq!(failed_dials(&mut events), 0);
    });
}

/// Its connection was not stable, and the outage is over before it breaks: with nothing to give back.
#[test]
fn an_outage_that_is_over_while_nothing_is_held_costs_no_message() {
    Sim::default().run(async {
        let backoff = every(SECOND / 10).max_elapsed(SECOND);
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
        drop(far);
        let write = |text: &'static str| manager.write(&address, Bytes::from_static(text.as_bytes()));
        let config = config();
        let (written, accepted) = futures::join!(write("one"), acceptor.accept(&config));
        written.unwrap();
        testing::sleep(4 * SECOND).await;
        drop(accepted);
        testing::sleep(SECOND / 100).await;
        let (written, accepted) = futures::join!(write("two"), acceptor.accept(&config));
        written.unwrap();
        drop(accepted);
    });
}

/// Each connection takes its message, and breaks before it is stable.
#[test]
fn a_backoff_without_delays_makes_its_one_attempt_after_each_connection_that_was_of_use() {
    for limit in [None, Some(Duration::ZERO)] {
        Sim::default().run(async {
            let backoff = match limit {
                None => Backoff::from_fn(|| []),
                Some(limit) => every(SECOND).max_elapsed(limit),
            };
            let (manager, address, acceptor, mut far) = dialed(config().reconnect(backoff)).await;
            let (config, mut letters) = (config(), manager.dead_letters());
            for _ in 0..5 {
                drop(far);
                testing::sleep(SECOND / 100).await;
                let write = manager.write(&address, Bytes::from_static(b"one"));
                let (written, accepted) = futures::join!(write, acceptor.accept(&config));
                written.unwrap();
                far = accepted.unwrap().0;
            }
            // Now it is away, and the one attempt is the last.
            drop((far, acceptor));
            testing::sleep(SECOND).await;
            manager.sink().send((address, Bytes::from_static(b"two"))).await.unwrap_err();
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.outcome, letter.attempts), (Outcome::GaveUp, 1));
        });
    }
}

/// It closes each time before it has taken a whole message.
#[test]
fn a_message_that_its_peer_refuses_comes_back_with_the_number_of_attempts() {
    let backoffs = [(None, Outcome::NotSent, 2), (Some(Backoff::from_fn(|| [SECOND; 3])), Outcome::GaveUp, 4)];
    for (backoff, outcome, attempts) in backoffs {
        Sim { capacity: 1024, ..Sim::default() }.run(async {
            let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
            let mut letters = manager.dead_letters();
            let _refusing = testing::spawn(async move {
                let mut far = Some(far);
                loop {
                    far.take().unwrap().read_exact(&mut [0; 100]).await.unwrap();
                    far = Some(acceptor.accept(&config()).await.unwrap().0);
                }
            });
            manager.sink().send((address, Bytes::from(vec![7; 5000]))).await.unwrap_err();
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.outcome, letter.attempts), (outcome, attempts));
            assert_eq!(manager.stats().total.reconnects, u64::from(attempts));
        });
    }
}

/// Nobody dials while there is nothing to send.
#[test]
fn an_outage_that_is_over_while_the_connection_is_down_and_nothing_is_held_costs_no_message() {
    Sim::default().run(async {
        let backoff = every(SECOND / 10).max_elapsed(SECOND);
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
        let config = config();
        drop(far);
        let write = |text: &'static str| manager.write(&address, Bytes::from_static(text.as_bytes()));
        let (written, accepted) = futures::join!(write("one"), acceptor.accept(&config));
        written.unwrap();
        drop(accepted);
        testing::sleep(60 * SECOND).await;
        let (written, accepted) = futures::join!(write("two"), acceptor.accept(&config));
        written.unwrap();
        drop(accepted);
    });
}

/// A producer that waits for the room of a connection that is up finds that of one that is down.
#[test]
fn who_waits_for_room_finds_more_of_it_when_the_connection_goes_down() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(3_600 * SECOND))).await;
        let to = address.clone();
        let producer = manager.clone();
        let mut producing = testing::spawn(async move {
            let mut sink = producer.sink();
            for _ in 0..1_000 {
                sink.feed((to.clone(), Bytes::from_static(&[7; 1000]))).await.unwrap();
            }
        });
        testing::sleep(SECOND).await;
        assert!(manager.stats().total.accepted < 200);
        drop(acceptor);
        assert!(matches!(far.poll_half_close(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))));
        testing::within(Some(60 * SECOND), producing.join()).await.expect("there is room for all of it");
        assert!(manager.stats().total.held > 900);
    });
}

/// One address is closed while a sink has messages for it; its next message is for another.
#[test]
fn an_address_that_is_closed_costs_no_message_to_another() {
    Sim::default().run(async {
        let (manager, first, one, far) = dialed(config()).await;
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        manager.dial(addr).await.unwrap();
        let (mut other, _) = acceptor.accept(&config()).await.unwrap();
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        for _ in 0..70 {
            sink.start_send_unpin((first.clone(), Bytes::from_static(&[7; 1000]))).unwrap();
        }
        drop((far, one));
        assert!(matches!(manager.close(&first).await, Err(Error::NotSent { .. })));
        sink.feed((addr.into(), Bytes::from_static(b"for another"))).await.unwrap();
        assert!(matches!(sink.flush().await, Err(Error::NotSent { address, .. }) if address == first));
        sink.flush().await.unwrap();
        other.read_exact(&mut [0; 15]).await.unwrap();
        for _ in 0..70 {
            assert_eq!(letters.next().await.unwrap().outcome, Outcome::NotSent);
        }
    });
}

#[test]
fn a_shutdown_tries_once_more_though_the_backoff_waits() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(60 * SECOND))).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        assert!(manager.sink().send((address.clone(), Bytes::from_static(b"x"))).now_or_never().is_none());
        testing::sleep(SECOND).await;
        let (back, _) = Acceptor::bind(&addr.into()).await.unwrap();
        let receiving = async {
            let (mut far, _) = back.accept(&config()).await.unwrap();
            far.read_exact(&mut [0; 5]).await.unwrap();
        };
        let (report, ()) = futures::join!(manager.shutdown(3 * SECOND), receiving);
        assert_eq!((report[&address].written, report[&address].cut), (1, false));
        assert_eq!(elapsed(), 2 * SECOND);
    });
}

/// Messages that live no time at all, and nothing else to wait for: it must not go in circles.
#[test]
fn the_shortest_message_ttl_does_not_spin() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) =
            dialed(config().message_ttl(Duration::ZERO).reconnect(every(SECOND))).await;
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        manager.write(&address, Bytes::from_static(b"x")).await.unwrap_err();
        testing::sleep(10 * SECOND).await;
    });
}

/// Four addresses give up together, and together they have more than `queue_bytes`. Whoever takes the letters is slow.
#[test]
fn letters_of_many_addresses_wait_for_whoever_takes_them() {
    Sim::default().run(async {
        const EACH: usize = 100;
        let manager = Manager::new(config().queue_bytes(64 << 10).linger(None));
        let mut letters = manager.dead_letters();
        let mut sinks = Vec::new();
        for _ in 0..4 {
            let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
            manager.dial(addr).await.unwrap();
            let far = acceptor.accept(&config()).await.unwrap();
            drop((far, acceptor));
            testing::sleep(SECOND).await;
            let mut sink = manager.sink();
            for _ in 0..EACH {
                sink.feed((addr.into(), Bytes::from_static(&[7; 500]))).await.unwrap();
            }
            sinks.push(sink);
        }
        for sink in &mut sinks {
            assert!(sink.flush().now_or_never().is_none());
        }
        for _ in 0..4 * EACH {
            testing::sleep(SECOND / 100).await;
            letters.next().await.unwrap();
        }
        assert_eq!((manager.stats().lost, manager.stats().total.dead_lettered), (0, 4 * EACH as u64));
    });
}

/// The message before it was taken, and it is refused all the same each time.
#[test]
fn a_message_that_its_peer_refuses_comes_back_though_another_was_taken() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, acceptor, mut far) = dialed(config()).await;
        let mut letters = manager.dead_letters();
        manager.write(&address, Bytes::from_static(b"one")).await.unwrap();
        far.read_exact(&mut [0; 7]).await.unwrap();
        let _refusing = testing::spawn(async move {
            let mut far = Some(far);
            loop {
                far.take().unwrap().read_exact(&mut [0; 100]).await.unwrap();
                far = Some(acceptor.accept(&config()).await.unwrap().0);
            }
        });
        let mut sink = manager.sink();
        let sent = testing::within(Some(60 * SECOND), sink.send((address, Bytes::from(vec![7; 5000])))).await;
        sent.expect("it comes back").unwrap_err();
        assert_eq!(letters.next().await.unwrap().attempts, 2);
    });
}

#[test]
fn a_letter_says_nothing_of_an_outage_that_is_over() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(SECOND))).await;
        let (config, mut letters) = (config(), manager.dead_letters());
        drop(far);
        testing::sleep(SECOND).await;
        let write = manager.write(&address, Bytes::from_static(b"one"));
        let (written, _far) = futures::join!(write, acceptor.accept(&config));
        written.unwrap();
        // It takes no more.
        let send = manager.sink().send((address.clone(), Bytes::from(vec![7; 5000]))).now_or_never();
        assert!(send.is_none());
        manager.close(&address).await.unwrap_err();
        let letter = letters.next().await.unwrap();
        assert_eq!((letter.outcome, letter.attempts), (Outcome::Closed, 0));
    });
}

/// They are let in when what was before them comes back, and come back at once: the address is down.
#[test]
fn who_waits_for_room_while_all_is_given_up_is_not_dialed_for() {
    Sim::default().run(async {
        let backoff = Backoff::from_fn(|| [SECOND; 2]);
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff).queue_bytes(4 << 10)).await;
        let mut events = manager.events();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let writes = (0..6).map(|_| manager.write(&address, Bytes::from_static(&[7; 2000])));
        let written = futures::future::join_all(writes).await;
        assert!(written.iter().all(Result::is_err));
        assert_eq!(failed_dials(&mut events), 3);
    });
}

/// As that of a manager; but nobody notices the break before there is something to send.
#[test]
fn an_outage_of_a_connection_that_is_over_while_nothing_is_held_costs_no_message() {
    Sim::default().run(async {
        let backoff = every(SECOND / 10).max_elapsed(SECOND);
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let mut connection = Connection::dial(addr, config().reconnect(backoff)).await.unwrap();
        drop(acceptor.accept(&config()).await.unwrap());
        for _ in 0..3 {
            testing::sleep(SECOND / 100).await;
            let config = config();
            let (sent, far) = futures::join!(connection.send(Bytes::from_static(b"one")), acceptor.accept(&config));
            sent.unwrap();
            testing::sleep(4 * SECOND).await;
            drop(far);
        }
    });
}

/// The peer closes while a part of what is held has been written, and no write waits. There is no other attempt.
#[test]
fn a_connection_that_cannot_be_opened_again_says_how_it_broke() {
    Sim { capacity: 16 * 1024, ..Sim::default() }.run(async {
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let backoff = Backoff::from_fn(std::iter::empty);
        let mut connection = Connection::dial(addr, config().reconnect(backoff)).await.unwrap();
        drop(acceptor.accept(&config()).await.unwrap());
        let config = config();
        let (sent, far) = futures::join!(connection.send(Bytes::from_static(b"one")), acceptor.accept(&config));
        sent.unwrap();
        for _ in 0..16 {
            connection.feed(Bytes::from(vec![7; 4092])).await.unwrap();
        }
        drop(far);
        let error = connection.flush().await.unwrap_err();
        assert!(matches!(&error, Error::Write(error) if error.kind() == ErrorKind::BrokenPipe), "{error:?}");
        assert!(connection.take_unsent().len() > 1);
    });
}
