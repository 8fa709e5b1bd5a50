//! Acknowledged sessions on several threads, in orders that shuttle draws: `.ci/interleavings` runs these. Each test names the
//! mistake in the code with which it was seen to fail. A wake-up that is lost shows in virtual time: nobody has to wait for a
//! heartbeat.

use std::future::{Future, poll_fn};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{join, join_all, join3};
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, SinkExt, StreamExt};

use super::acked_raw::{Raw, hello, listen, session};
use super::number;
use crate::queue::{self, ITEM};
use crate::session::{Positions, Status};
use crate::sim::scheduled::explore;
use crate::sim::testing::{self, Sim};
use crate::{Address, Backoff, Bytes, Config, Connection, Listener, Manager, Outcome, Session};

/// Less than any heartbeat, and more than all else that is waited for.
const SOON: Duration = Duration::from_secs(5);

fn message(n: u32) -> Bytes {
    Bytes::copy_from_slice(&n.to_be_bytes())
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    testing::within(Some(SOON), future).await.expect("it waits for a wake-up that was lost")
}

/// Runs it as a task, which another thread may poll.
fn beside<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> impl Future<Output = T> {
    let (done, output) = oneshot::channel();
    testing::spawn(future.map(|output| drop(done.send(output)))).detach();
    output.map(|output| output.expect("the task panicked"))
}

/// Sends those from `first` on, until all are sent or the connection is fenced.
async fn send_from(raw: &mut Raw, first: u64, end: u32) {
    for n in first as u32..end {
        let frame = [&4u32.to_be_bytes()[..], &message(n)].concat();
        if raw.0.write_all(&frame).await.is_err() || raw.0.flush().await.is_err() {
            return;
        }
    }
}

/// Mutants 4 and 22: the position in a WELCOME is that of a reader whose turn is over, and what it has counted is delivered.
///
/// Fails where a greeting reads the position when it offers the connection (messages come twice), and where a session's task looks
/// for a newer connection between `Outbox::received` and `SessionDelivery::put` (messages are lost). Also where a greeting calls the
/// session's task before it offers the connection.
#[test]
fn who_comes_back_in_the_middle_of_a_delivery_sends_on_from_what_was_delivered() {
    const MESSAGES: u32 = 12;
    explore(Sim::default(), || async {
        let config = Config::new().max_message_size(4096).session(session());
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let address = Address::from(listener.local_addr());
        let send = beside(async move {
            let (mut raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
            let mut received = 0;
            let mut older = Vec::new();
            for epoch in 2..=4 {
                // Some are on their way when the next one comes, and then it is silent: nothing else calls the session's task.
                older.push(beside(async move {
                    send_from(&mut raw, received, MESSAGES.min(received as u32 + 3)).await;
                    raw
                }));
                let all = Positions { sent: MESSAGES.into(), ..Positions::default() };
                let (newer, welcome) = Raw::greet(&address, hello(1, epoch, Some(all))).await;
                assert_eq!(welcome.status, Status::Resumed);
                (raw, received) = (newer, welcome.positions.received);
            }
            send_from(&mut raw, received, MESSAGES).await;
            (raw, join_all(older).await)
        });
        let take = async {
            for n in 0..MESSAGES {
                assert_eq!(number(&listener.next().await.unwrap().1), n);
            }
        };
        soon(join(take, send)).await;
    });
}

/// Fails where `Session::waits_for_acks` asks whether one more byte fits in the window, as it once did.
#[test]
fn a_listener_with_a_full_inbox_reads_the_acks_that_its_program_waits_for() {
    const LEN: usize = 30_000;
    const MESSAGES: u32 = 8;
    explore(Sim::default(), || async {
        let config = || Config::new().max_message_size(LEN).inbox_bytes(64 << 10).queue_bytes(64 << 10);
        let (mut incoming, mut outgoing) =
            Listener::bind("127.0.0.1:0", config().session(Session::new())).await.unwrap().split();
        let address = Address::from(incoming.local_addr());
        // Three replies, and some room that is too small for another.
        let narrow = config().session(Session::new().window_bytes((64 << 10) + LEN + 4));
        let talk = beside(async move {
            let (mut read, mut write) = Connection::dial(&address, narrow).await.unwrap().split();
            let send = async {
                for _ in 0..MESSAGES {
                    write.feed(vec![7; LEN].into()).await.unwrap();
                }
                write.barrier().await.unwrap();
            };
            let receive = async {
                for _ in 0..MESSAGES {
                    read.next().await.unwrap().unwrap();
                    testing::sleep(Duration::from_millis(10)).await;
                }
            };
            join(send, receive).await;
        });
        let echo = async {
            for _ in 0..MESSAGES {
                let (peer, message) = incoming.next().await.unwrap();
                outgoing.feed((peer, message)).await.unwrap();
            }
            outgoing.flush().await.unwrap();
            // Asking for the next takes the last.
            assert!(incoming.next().now_or_never().is_none());
        };
        soon(join(echo, talk)).await;
    });
}

/// Fails where `Outbox::settle` does not write an ACK that is due, and leaves it to whoever writes next.
#[test]
fn whoever_acknowledges_while_another_thread_writes_is_heard() {
    explore(Sim::default(), || async {
        let config = || Config::new().session(Session::new());
        let (incoming, mut outgoing) = Listener::bind("127.0.0.1:0", config()).await.unwrap().split();
        let address = Address::from(incoming.local_addr());
        let mut deliveries = incoming.deliveries();
        let talk = beside(async move {
            let mut connection = Connection::dial(&address, config()).await.unwrap();
            connection.send(message(0)).await.unwrap();
            // Nothing else brings the ACK on its way: the reply is not taken.
            connection.barrier().await.unwrap();
            assert_eq!(number(&connection.next().await.unwrap().unwrap()), 1);
        });
        let delivery = soon(deliveries.next()).await.unwrap();
        let reply = (delivery.peer(), message(1));
        let acks = beside(async move { delivery.ack() });
        let replies = beside(async move { outgoing.send(reply).await.unwrap() });
        soon(join3(acks, replies, talk)).await;
    });
}

/// Fails where `Outbox::lock` leaves what was put together where it is, and where it is put together though no ACK is waited for.
#[test]
fn what_is_acknowledged_one_by_one_is_told_by_whichever_thread_comes_next() {
    const MESSAGES: u32 = 8;
    explore(Sim::default(), || async {
        let config = || Config::new().session(Session::new());
        let mut deliveries = Listener::bind("127.0.0.1:0", config()).await.unwrap().deliveries();
        let address = Address::from(deliveries.local_addr());
        let send = beside(async move {
            let mut connection = Connection::dial(&address, config()).await.unwrap();
            for n in 0..MESSAGES {
                connection.feed(message(n)).await.unwrap();
                if n % 3 == 0 {
                    connection.flush().await.unwrap();
                }
            }
            connection.barrier().await.unwrap();
        });
        let take = beside(async move {
            for n in 0..MESSAGES {
                let delivery = deliveries.next().await.unwrap();
                assert_eq!(number(delivery.message()), n);
                delivery.ack();
            }
            deliveries
        });
        let (deliveries, ()) = soon(join(take, send)).await;
        assert_eq!(deliveries.stats().untaken, 0);
    });
}

/// Fails where `Outbox::settle` does nothing while there is no connection, and where a refusal is not said again on the next.
#[test]
fn what_is_settled_while_the_connection_is_replaced_is_told_once() {
    const MESSAGES: u32 = 9;
    explore(Sim::default(), || async {
        let reconnect = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(1));
        let config = Config::new().session(Session::new()).reconnect(reconnect);
        let mut deliveries = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap().deliveries();
        let address = Address::from(deliveries.local_addr());
        let manager = Manager::new(config);
        let mut letters = manager.dead_letters();
        let send = {
            let (manager, address) = (manager.clone(), address.clone());
            beside(async move {
                manager.dial(&address).await.unwrap();
                let mut sink = manager.sink();
                for n in 0..MESSAGES {
                    sink.feed((address.clone(), message(n))).await.unwrap();
                }
                let breaks = beside(async { testing::reset_newest() });
                // Some of them are refused.
                let _ = sink.flush().await;
                breaks.await;
            })
        };
        let take = async {
            let mut settled = Vec::new();
            for n in 0..MESSAGES {
                let delivery = deliveries.next().await.unwrap();
                assert_eq!(number(delivery.message()), n);
                settled.push(beside(async move {
                    match n % 3 {
                        0 => delivery.ack(),
                        1 => delivery.refuse(),
                        _ => drop(delivery),
                    }
                }));
            }
            join_all(settled).await;
        };
        let come_back = async {
            for n in (0..MESSAGES).filter(|n| n % 3 != 0) {
                let letter = letters.next().await.unwrap();
                let outcome = if n % 3 == 1 { Outcome::Refused } else { Outcome::InDoubt };
                assert_eq!((number(&letter.message), letter.outcome), (n, outcome));
            }
        };
        soon(join3(take, send, come_back)).await;
        soon(async {
            while manager.stats().total.held > 0 {
                testing::sleep(Duration::from_millis(1)).await
            }
        })
        .await;
        assert_eq!(manager.stats().total.acked, u64::from(MESSAGES / 3));
    });
}

/// Fails where the messages of a connection come back behind the error that tells of them, as they once did.
#[test]
fn a_listener_closes_while_a_dialer_comes_back() {
    const MESSAGES: u32 = 6;
    explore(Sim::default(), || async {
        // Then the dialer gives up to come back; the listener waits for nothing.
        let config = || Config::new().session(Session::new().ttl(SOON / 2));
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (address, closer) = (Address::from(listener.local_addr()), listener.closer());
        let send = beside(async move {
            let mut connection = Connection::dial(&address, config()).await.unwrap();
            for n in 0..MESSAGES {
                connection.feed(message(n)).await.unwrap();
            }
            let closes = beside(async move {
                closer.close().await.unwrap();
                testing::elapsed()
            });
            let breaks = beside(async { testing::reset_newest() });
            let (mut in_doubt, mut unsent) = (Vec::new(), Vec::new());
            // Each error says that some have come back.
            while connection.barrier().await.is_err() {
                in_doubt.extend(connection.take_in_doubt().iter().map(|message| number(message)));
                unsent.extend(connection.take_unsent().iter().map(|message| number(message)));
            }
            drop(connection);
            let (closed, ()) = join(closes, breaks).await;
            assert!(closed < SOON / 4, "{closed:?}");
            (in_doubt, unsent)
        });
        let take = async {
            let mut taken = Vec::new();
            while let Some((_, message)) = listener.next().await {
                taken.push(number(&message));
            }
            taken
        };
        let (taken, (in_doubt, unsent)) = soon(join(take, send)).await;
        assert_eq!(taken, (0..taken.len() as u32).collect::<Vec<_>>());
        let is_acked = |n: &u32| !in_doubt.contains(n) && !unsent.contains(n);
        assert!((0..MESSAGES).filter(is_acked).all(|n| taken.contains(&n)), "{taken:?}, {in_doubt:?}, {unsent:?}");
        assert!(unsent.iter().all(|n| !taken.contains(n)), "{taken:?}, {unsent:?}");
    });
}

/// Fails where `SessionTask::finish` leaves the slot of its session open, and where an `Offer` that is dropped tells nobody, as it once
/// did.
#[test]
fn who_comes_back_to_a_session_that_ends_is_answered_at_once() {
    explore(Sim::default(), || async {
        let (mut listener, address, _) = listen(session()).await;
        let (raw, _) = Raw::greet(&address, hello(1, 1, None)).await;
        let closer = listener.closer();
        let closes = beside(async move { closer.close().await.unwrap() });
        let breaks = beside(async move { drop(raw) });
        let comes_back = beside(async move {
            let Ok(mut stream) = testing::dial(&address, &Config::new()).await else { return };
            let _ = stream.write_all(&hello(1, 2, Some(Positions::default())).encode()).await;
            let _ = stream.flush().await;
            // The beginning of a WELCOME, or the end.
            let _ = stream.read(&mut [0; 1]).await;
        });
        let end = async { assert!(listener.next().await.is_none()) };
        let all = join(join3(closes, breaks, end), comes_back);
        assert!(testing::within(Some(SOON / 5), all).await.is_some(), "a connection is not answered");
    });
}

/// Fails where a reader that leaves the queue in front of the inbox does not call the next.
#[test]
fn readers_in_front_of_a_full_inbox_take_turns() {
    const READERS: usize = 3;
    const TURNS: usize = 3;
    explore(Sim::default(), || async {
        let (sender, mut receiver) = queue::inbox(3 * ITEM, None);
        let readers = (0..READERS).map(|reader| {
            let mut sender = sender.clone();
            beside(async move {
                for _ in 0..TURNS {
                    // More than it needs, as who reads does not know what comes.
                    let mut share = poll_fn(|cx| sender.poll_reserve(2 * ITEM, cx)).await;
                    share.shrink(ITEM);
                    assert!(sender.send(reader, share).is_ok());
                }
            })
        });
        let mut leaves = sender.clone();
        let left = beside(async move {
            let _ = poll_fn(|cx| leaves.poll_reserve(3 * ITEM, cx)).now_or_never();
        });
        let (readers, mut came) = (join_all(readers), [0; READERS]);
        drop(sender);
        let take = async {
            while let Some(parcel) = receiver.next().await {
                came[parcel.item] += 1;
            }
            came
        };
        let (came, ..) = soon(join3(take, readers, left)).await;
        assert_eq!(came, [TURNS; READERS]);
    });
}
