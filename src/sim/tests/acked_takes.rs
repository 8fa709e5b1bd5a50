//! Acknowledged sessions: when a message counts as taken, in each way in which a program can take it.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::join;
use futures::{FutureExt, SinkExt, StreamExt};

use super::number;
use crate::error::BoxError;
use crate::observe::{Event, Events, Reason};
use crate::session::ErrorCode;
use crate::sim::testing::{self, Sim};
use crate::{Address, Bytes, Config, Connection, Error, Listener, Loss, Manager, Outcome, Peer, Session};

const LEN: usize = 4000;
const WINDOW: usize = (64 << 10) + LEN + 4;
const SECOND: Duration = Duration::from_secs(1);

fn config() -> Config {
    Config::new().max_message_size(LEN).session(Session::new().window_bytes(WINDOW))
}

fn message(n: u32, len: usize) -> Bytes {
    let mut bytes = n.to_be_bytes().to_vec();
    bytes.resize(len, 7);
    bytes.into()
}

async fn event(events: &mut Events<Event>) -> Event {
    testing::within(Some(100 * SECOND), events.next()).await.expect("in time").unwrap()
}

/// How a callback ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Refuses,
    Panics,
}

/// A callback that notes what it gets; every fourth one ends so.
struct Noting(Mutex<Vec<u32>>, End);

impl Noting {
    fn call(&self, message: &[u8]) -> Result<(), BoxError> {
        let n = number(message);
        self.0.lock().unwrap().push(n);
        match self.1 {
            _ if n % 4 != 3 => Ok(()),
            End::Refuses => Err("not this one".into()),
            End::Panics => panic!("not this one"),
        }
    }
}

/// Sends 12 messages of a manager to a callback. What comes back of them.
fn call(end: End, serve: impl Fn(Listener, Arc<Noting>)) {
    Sim::default().run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
        let noting = Arc::new(Noting(Mutex::default(), end));
        serve(listener, noting.clone());
        let manager = Manager::new(config());
        let mut letters = manager.dead_letters();
        manager.dial(&address).await.unwrap();
        let mut sink = manager.sink();
        for n in 0..12 {
            sink.feed((address.clone(), message(n, 10))).await.unwrap();
        }
        sink.flush().await.unwrap();
        for n in [3, 7, 11] {
            let letter = testing::within(Some(100 * SECOND), letters.next()).await.expect("in time").unwrap();
            let expected = if end == End::Refuses { Outcome::Refused } else { Outcome::InDoubt };
            assert_eq!((letter.message, letter.outcome), (message(n, 10), expected));
            match (end, &*letter.error) {
                (End::Refuses, Error::Refused { .. }) | (End::Panics, Error::InDoubt { why: None, .. }) => {}
                other => panic!("{:?}", other.1),
            }
        }
        manager.close(&address).await.unwrap();
        assert_eq!(*noting.0.lock().unwrap(), (0..12).collect::<Vec<_>>(), "each is met once, and in order");
        assert!(letters.next().now_or_never().is_none());
        let total = manager.stats().total;
        assert_eq!((total.acked, total.dead_lettered, total.held, total.sessions), (9, 3, 0, 1));
        assert_eq!(total.refused + total.in_doubt, 3);
        let mut told = Vec::new();
        while let Some(Some(event)) = events.next().now_or_never() {
            told.push(event);
        }
        let count = |is: fn(&Event) -> bool| told.iter().filter(|event| is(event)).count();
        let (failed, panicked) = if end == End::Refuses { (3, 0) } else { (0, 3) };
        assert_eq!(count(|event| matches!(event, Event::CallbackFailed { .. })), failed);
        assert_eq!(count(|event| matches!(event, Event::CallbackPanicked { .. })), panicked);
        let breaks = |event: &Event| matches!(event, Event::Detached { reason: Reason::CallbackPanicked, .. });
        // What it has received it goes on with in the meantime.
        assert_eq!(count(breaks) > 0, panicked > 0);
        let resumed = count(|event| matches!(event, Event::Resumed { .. }));
        // The last time there may be nothing to come back for.
        assert!((count(breaks).saturating_sub(1)..=count(breaks)).contains(&resumed), "{told:?}");
    });
}

fn serve(listener: Listener, noting: Arc<Noting>) {
    let callback = move |_: Peer, message: &[u8]| noting.call(message);
    testing::spawn(listener.serve(callback).map(drop)).detach();
}

fn serve_async(listener: Listener, noting: Arc<Noting>) {
    let callback = move |_: Peer, message: Bytes| {
        let noting = noting.clone();
        async move {
            testing::sleep(SECOND).await;
            noting.call(&message)
        }
    };
    testing::spawn(listener.serve_async(callback).map(drop)).detach();
}

#[test]
fn what_a_callback_refuses_comes_back_and_the_rest_goes_on() {
    call(End::Refuses, serve);
    call(End::Refuses, serve_async);
}

#[test]
fn what_a_callback_panics_on_is_in_doubt_and_the_rest_goes_on() {
    call(End::Panics, serve);
    call(End::Panics, serve_async);
}

#[test]
fn a_callback_has_taken_a_message_when_it_has_returned() {
    Sim::default().run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let address = Address::from(listener.local_addr());
        serve_async(listener, Arc::new(Noting(Mutex::default(), End::Refuses)));
        let manager = Manager::new(config());
        manager.dial(&address).await.unwrap();
        manager.write(&address, message(0, 10)).await.unwrap();
        assert_eq!(testing::elapsed(), SECOND);
    });
}

/// How many messages a manager can send while nothing of them is taken.
fn most(len: usize) -> u32 {
    (WINDOW / (len + 4)) as u32
}

#[test]
fn a_batch_is_taken_when_it_is_dropped_and_who_keeps_it_stalls_its_sender() {
    for len in [10, LEN] {
        Sim::default().run(async {
            let mut batches = Listener::bind("127.0.0.1:0", config()).await.unwrap().batches();
            let address = Address::from(batches.local_addr());
            let manager = Manager::new(config());
            manager.dial(&address).await.unwrap();
            let (mut sink, all) = (manager.sink(), most(len) + 100);
            for n in 0..all {
                sink.feed((address.clone(), message(n, len))).await.unwrap();
            }
            drop(sink);
            let (mut kept, mut came) = (Vec::new(), 0);
            while let Some(next) = testing::within(Some(10 * SECOND), batches.next()).await {
                let (_, batch) = next.unwrap();
                came += batch.iter().count() as u32;
                kept.push(batch);
            }
            assert_eq!(came, most(len), "as many as the window has room for");
            assert_eq!(manager.stats().total.acked, 0);
            let first = kept.remove(0);
            let some = first.iter().count() as u64;
            drop(first);
            testing::sleep(SECOND).await;
            assert_eq!(manager.stats().total.acked, some, "the others are not taken");
            if kept.len() > 1 {
                // The last, out of order, lets nothing go that is not taken before it.
                drop(kept.pop());
                testing::sleep(SECOND).await;
                assert_eq!(manager.stats().total.acked, some);
            }
            drop(kept);
            while came < all {
                came += batches.next().await.unwrap().1.iter().count() as u32;
            }
            testing::sleep(SECOND).await;
            assert_eq!((came, manager.stats().total.acked), (all, u64::from(all)));
        });
    }
}

/// At no moment is more in flight than the window, and at some it is full.
#[test]
fn a_sender_never_has_more_in_flight_than_the_window() {
    let manager = Manager::new(config());
    let (watched, is_full) = (manager.clone(), AtomicBool::new(false));
    let taken = AtomicU32::new(0);
    let watch = || {
        let total = watched.stats().total;
        assert_eq!(total.accepted, total.acked + total.dead_lettered + total.held);
        // Not more than one batch is being handed over.
        let in_flight = (total.written - total.acked) as usize * (LEN + 4);
        assert!(in_flight <= WINDOW, "{in_flight}");
        assert!(total.acked <= u64::from(taken.load(Ordering::Relaxed)), "acknowledged before it was taken");
        is_full.fetch_or(in_flight + LEN + 4 > WINDOW, Ordering::Relaxed);
    };
    Sim { seed: Some(7), capacity: 10_000, ..Sim::default() }.run_watched(
        async {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let address = Address::from(listener.local_addr());
            let take = async {
                for n in 0..200 {
                    taken.store(n, Ordering::Relaxed);
                    assert_eq!(number(&listener.next().await.unwrap().1), n);
                    testing::sleep(Duration::from_millis(10)).await;
                }
                taken.store(200, Ordering::Relaxed);
                assert!(testing::within(Some(SECOND), listener.next()).await.is_none());
            };
            let send = async {
                manager.dial(&address).await.unwrap();
                let mut sink = manager.sink();
                for n in 0..200 {
                    sink.feed((address.clone(), message(n, LEN))).await.unwrap();
                }
                sink.flush().await.unwrap();
            };
            join(take, send).await;
        },
        watch,
    );
    assert!(is_full.load(Ordering::Relaxed));
    assert_eq!(manager.stats().total.acked, 200);
}

#[test]
fn a_connection_in_a_session_answers_and_its_peer_learns_when_it_goes() {
    Sim::default().run(async {
        let mut connections = Listener::bind("127.0.0.1:0", config()).await.unwrap().connections();
        let (address, mut events) = (Address::from(connections.closer().local_addr()), connections.events());
        let accept = async {
            let mut connection = connections.next().await.unwrap();
            assert_eq!(connection.next().await.unwrap().unwrap(), "question");
            connection.send("answer".into()).await.unwrap();
            connection.barrier().await.unwrap();
            assert_eq!(connection.next().await.unwrap().unwrap(), "taken");
            assert_eq!(connection.next().await.unwrap().unwrap(), "seen");
            testing::sleep(SECOND).await;
            drop(connection);
        };
        let dial = async {
            let mut connection = Connection::dial(&address, config()).await.unwrap();
            connection.send("question".into()).await.unwrap();
            assert_eq!(connection.next().await.unwrap().unwrap(), "answer");
            // An answer is taken when the next is asked for.
            assert!(testing::within(Some(SECOND), connection.next()).await.is_none());
            connection.send("taken".into()).await.unwrap();
            testing::sleep(SECOND / 2).await;
            connection.send("seen".into()).await.unwrap();
            match connection.next().await {
                Some(Err(Error::SessionLost { in_doubt: 1, why: Loss::Ended })) => {}
                other => panic!("{other:?}"),
            }
            assert_eq!(connection.take_in_doubt(), ["seen"]);
            assert!(connection.take_unsent().is_empty());
        };
        join(accept, dial).await;
        let mut told = vec![event(&mut events).await];
        while let Some(Some(event)) = events.next().now_or_never() {
            told.push(event);
        }
        assert!(matches!(told[0], Event::Connected { .. }), "{told:?}");
        assert!(matches!(told[1], Event::Disconnected { .. }), "{told:?}");
    });
}

/// Whoever drops a connection leaves nothing behind at the other end.
#[test]
fn a_connection_that_is_dropped_ends_its_session() {
    for closes in [false, true] {
        Sim::default().run(async {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (address, mut events) = (Address::from(listener.local_addr()), listener.events());
            let dial = async {
                let mut connection = Connection::dial(&address, config()).await.unwrap();
                connection.send("one".into()).await.unwrap();
                // There is nothing unread, or its last word would be cut off.
                connection.barrier().await.unwrap();
                if closes {
                    connection.close().await.unwrap();
                }
            };
            let take = async {
                assert_eq!(listener.next().await.unwrap().1, "one");
                assert!(testing::within(Some(SECOND), listener.next()).await.is_none());
            };
            join(dial, take).await;
            assert!(matches!(event(&mut events).await, Event::Connected { .. }));
            match (event(&mut events).await, closes) {
                (Event::Disconnected { reason: Reason::Closed, .. }, true) => {}
                (Event::Disconnected { reason: Reason::Session(ErrorCode::Gone), .. }, false) => {}
                other => panic!("{other:?}"),
            }
        });
    }
}

/// Nothing of it waits for a heartbeat.
#[test]
fn a_session_is_over_when_the_last_of_it_is_taken() {
    for (busy, echoes) in [(false, false), (true, false), (false, true), (true, true)] {
        Sim::default().run(async {
            let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config()).await.unwrap().split();
            let (address, mut events) = (Address::from(incoming.local_addr()), incoming.events());
            let pause = async || {
                if busy {
                    testing::sleep(Duration::from_millis(7)).await
                }
            };
            let take = async {
                while let Some((peer, message)) = incoming.next().await {
                    if echoes {
                        outgoing.send((peer, message)).await.unwrap();
                    }
                    pause().await;
                }
            };
            let talk = async {
                let (mut read, mut write) = Connection::dial(&address, config()).await.unwrap().split();
                for n in 0..3 {
                    write.send(message(n, 10)).await.unwrap();
                }
                let close = async { write.close().await.unwrap() };
                let receive = async {
                    while read.next().await.is_some() {
                        pause().await;
                    }
                };
                join(close, receive).await;
                while !matches!(event(&mut events).await, Event::Disconnected { reason: Reason::Closed, .. }) {}
            };
            futures::future::select(std::pin::pin!(take), std::pin::pin!(talk)).await;
            assert!(testing::elapsed() < SECOND, "{:?}", testing::elapsed());
        });
    }
}

/// Both directions are full, and each end reads on for the acknowledgements of its own.
#[test]
fn two_ends_that_wait_for_their_programs_do_not_wait_for_ever() {
    for capacity in [300, 5_000, 64 << 10] {
        Sim { capacity, ..Sim::default() }.run(async {
            let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config()).await.unwrap().split();
            let address = Address::from(incoming.local_addr());
            let echo = async {
                for _ in 0..100 {
                    let (peer, message) = incoming.next().await.unwrap();
                    outgoing.feed((peer, message)).await.unwrap();
                }
                outgoing.flush().await.unwrap();
                let _ = testing::within(Some(60 * SECOND), incoming.next()).await;
            };
            let talk = async {
                let (mut read, mut write) = Connection::dial(&address, config()).await.unwrap().split();
                let send = async {
                    for n in 0..100 {
                        write.feed(message(n, LEN)).await.unwrap();
                    }
                    write.barrier().await.unwrap();
                };
                let receive = async {
                    for n in 0..100 {
                        assert_eq!(number(&read.next().await.unwrap().unwrap()), n);
                        testing::sleep(Duration::from_millis(50)).await;
                    }
                };
                join(send, receive).await;
            };
            join(echo, talk).await;
        });
    }
}

/// A reply that nobody has taken does not keep the acknowledgements from being read.
#[test]
fn sixty_kilobytes_of_replies_do_not_stop_the_reading_of_acknowledgements() {
    for capacity in [300, 64 << 10] {
        Sim { capacity, ..Sim::default() }.run(async {
            let (mut incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config()).await.unwrap().split();
            let address = Address::from(incoming.local_addr());
            let echo = async {
                for _ in 0..15 {
                    let (peer, message) = incoming.next().await.unwrap();
                    outgoing.send((peer, message)).await.unwrap();
                }
                let _ = testing::within(Some(60 * SECOND), incoming.next()).await;
            };
            let talk = async {
                let mut connection = Connection::dial(&address, config()).await.unwrap();
                for n in 0..15 {
                    connection.feed(message(n, LEN)).await.unwrap();
                }
                // All replies are on their way, and none is taken.
                connection.barrier().await.unwrap();
                for n in 0..15 {
                    assert_eq!(number(&connection.next().await.unwrap().unwrap()), n);
                }
            };
            join(echo, talk).await;
        });
    }
}

/// One was refused before another was sent: until that is over as well, nobody can say what became of all.
#[test]
fn a_barrier_tells_what_came_back_when_all_is_over() {
    Sim::default().run(async {
        let mut deliveries = Listener::bind("127.0.0.1:0", config()).await.unwrap().deliveries();
        let address = Address::from(deliveries.local_addr());
        let take = async {
            deliveries.next().await.unwrap().refuse();
            let second = deliveries.next().await.unwrap();
            testing::sleep(SECOND).await;
            second.ack();
            let third = deliveries.next().await.unwrap();
            third.refuse();
            let fourth = deliveries.next().await.unwrap();
            testing::sleep(SECOND).await;
            fourth.ack();
            deliveries.next().await
        };
        let send = async {
            let manager = Manager::new(config());
            let mut letters = manager.dead_letters();
            manager.dial(&address).await.unwrap();
            let mut sink = manager.sink();
            sink.send((address.clone(), message(0, 8))).await.unwrap();
            assert_eq!(number(&letters.next().await.unwrap().message), 0);
            sink.feed((address.clone(), message(1, 8))).await.unwrap();
            let refused = sink.barrier().await.unwrap_err();
            assert!(matches!(refused, Error::NotSent { .. }), "{refused:?}");
            assert_eq!(manager.stats().total.acked, 1);
            // The same of a connection.
            let mut connection = Connection::dial(&address, config()).await.unwrap();
            connection.send(message(2, 8)).await.unwrap();
            while connection.take_in_doubt().is_empty() {
                testing::sleep(SECOND / 100).await;
            }
            let start = testing::now();
            connection.feed(message(3, 8)).await.unwrap();
            let refused = connection.barrier().await.unwrap_err();
            assert!(matches!(refused, Error::NotSent { .. }), "{refused:?}");
            assert!(testing::now() - start >= SECOND, "the other is not over yet");
            drop((manager, connection));
        };
        let both = testing::within(Some(100 * SECOND), futures::future::select(take.boxed_local(), send.boxed_local()));
        assert!(both.await.is_some());
    });
}
