//! A connection that breaks: what is held, what is sent again, and what is noticed in time.

use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_std::task;
use buffstreams::{Backoff, Connection, Error, Limit};
use futures::future::poll_fn;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{
    BlackHole, Far, SOON, Site, config, frame, is_closed_by_peer, messages, number, numbered, numbers, run, until,
    within,
};

async fn connected(site: &Site) -> (Connection, Far) {
    let (made, far) = futures::join!(Connection::dial(site.addr, config()), site.accept());
    (made.expect("dial"), far)
}

/// How many messages the connection holds that were not handed whole to the kernel, as it prints itself.
fn held(connection: &Connection) -> u64 {
    let text = format!("{connection:?}");
    let (_, held) = text.split_once("held: ").expect("a connection prints what it holds");
    held.split(|c: char| !c.is_ascii_digit()).next().expect("a figure").parse().expect("a number")
}

/// Numbered messages of `len` bytes until the sink waits; returns how many were accepted.
fn fill(connection: &mut Connection, len: usize) -> u64 {
    let mut next = 0;
    while connection.feed(numbered(next, len)).now_or_never().is_some_and(|fed| fed.is_ok()) {
        next += 1;
    }
    next
}

#[test]
fn a_cut_frame_is_sent_again_whole_and_nothing_twice() {
    run(async {
        // Copied together, copied one by one, chained, and larger than any buffer.
        for len in [100, 4092, 4096, 70_000] {
            let site = Site::small();
            let (mut connection, mut far) = connected(&site).await;
            let accepted = fill(&mut connection, len);
            // The peer takes all that was handed over whole, so that nothing is lost in the kernel.
            let whole = accepted - held(&connection);
            for n in 0..whole {
                assert_eq!(far.message().await, numbered(n, len));
            }
            far.reset();
            let error = within(SOON, "the break", connection.flush()).await.expect_err("a reset");
            assert!(matches!(error, Error::Write(_)), "{len}: {error:?}");
            // The next write opens it again, and what was held goes first.
            let resending = async {
                connection.send(numbered(accepted, len)).await.expect("it is opened again");
                connection.close().await.unwrap();
            };
            let ((), wire) = futures::join!(resending, async { site.accept().await.rest().await });
            let (received, left) = messages(&wire);
            assert_eq!(left, 0);
            let expected: Vec<_> = (whole..=accepted).map(|n| numbered(n, len)).collect();
            assert!(received == expected, "{len}: {:?} instead of {whole}..={accepted}", numbers(&wire));
        }
    });
}

/// Resets at any byte: each connection has its part of the order, none has what another had whole, and after the last
/// break nothing is missing.
#[test]
fn resets_again_and_again_keep_the_order() {
    const BREAKS: usize = 60;
    run(async {
        let site = Site::small();
        let addr = site.addr;
        let earlier = Arc::new(Mutex::new(Vec::new()));
        let last_is_open = Arc::new(AtomicBool::new(false));
        let (into, is_open) = (earlier.clone(), last_is_open.clone());
        let far = task::spawn(async move {
            for round in 0..BREAKS {
                let mut far = site.accept().await;
                let wire = far.read(1 + round * 1009).await;
                into.lock().unwrap().extend(numbers(&wire));
                far.reset();
            }
            let mut last = site.accept().await;
            is_open.store(true, Ordering::Release);
            last.rest().await
        });
        let mut connection = Connection::dial(addr, config()).await.unwrap();
        let mut accepted = 0;
        while !last_is_open.load(Ordering::Acquire) {
            let message = numbered(accepted, 50 + accepted as usize * 37 % 6000);
            match connection.feed(message.clone()).await {
                Ok(()) => accepted += 1,
                Err(Error::NotSent { source, message: unsent, .. }) => {
                    // A reset may come so soon that it fails the dial.
                    assert!(matches!(*source, Error::Write(_) | Error::Dial { .. }), "{source:?}");
                    assert_eq!(unsent.unwrap().into_inner(), message);
                }
                Err(error) => panic!("{error:?}"),
            }
        }
        // What is accepted from here on, and what is held, has a connection that does not break.
        let first = accepted - held(&connection);
        for _ in 0..100 {
            connection.feed(numbered(accepted, 100)).await.unwrap();
            accepted += 1;
        }
        connection.close().await.unwrap();
        let last = numbers(&within(SOON, "the last connection", far).await);
        let all: Vec<_> = earlier.lock().unwrap().iter().chain(&last).copied().collect();
        assert!(all.is_sorted_by(|a, b| a < b), "twice, or out of order: {all:?}");
        assert_eq!(last, (last[0]..accepted).collect::<Vec<_>>());
        assert!(last[0] <= first, "{first} was held, and {} is the first that came", last[0]);
    });
}

/// What a program may do between a write that was taken and the next, while its peer closes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Nothing,
    IsReadyForNothing,
    IsRefusedAMessage,
    HasFedOne,
}

fn closes_while_idle(meanwhile: Meanwhile) {
    run(async {
        let site = Site::new();
        for round in 0..200_u64 {
            let (mut connection, mut far) = connected(&site).await;
            connection.send(numbered(0, 8)).await.unwrap();
            far.message().await;
            match meanwhile {
                Meanwhile::Nothing => {}
                // As an adaptor may do that has no message yet.
                Meanwhile::IsReadyForNothing => poll_fn(|cx| connection.poll_ready_unpin(cx)).await.unwrap(),
                Meanwhile::IsRefusedAMessage => {
                    connection.send(vec![0; (8 << 20) + 1].into()).await.expect_err("it is too large");
                }
                Meanwhile::HasFedOne => connection.feed(numbered(round, 16)).await.unwrap(),
            }
            drop(far);
            assert!(connection.next().await.is_none(), "the end has arrived");
            let sending = async {
                if meanwhile != Meanwhile::HasFedOne {
                    connection.feed(numbered(round, 16)).await.unwrap();
                }
                connection.flush().await.unwrap();
            };
            let receiving = async { site.accept().await.message().await };
            let both = async { futures::join!(sending, receiving).1 };
            let what = format!("message {round} to arrive on a new connection ({meanwhile:?})");
            assert_eq!(within(Duration::from_secs(3), &what, both).await, numbered(round, 16));
        }
    });
}

#[test]
fn a_peer_that_closes_while_idle_costs_no_message() {
    closes_while_idle(Meanwhile::Nothing);
}

#[test]
fn a_peer_that_closes_behind_a_poll_ready_costs_no_message() {
    closes_while_idle(Meanwhile::IsReadyForNothing);
}

#[test]
fn a_peer_that_closes_behind_a_refused_message_costs_no_message() {
    closes_while_idle(Meanwhile::IsRefusedAMessage);
}

#[test]
fn a_peer_that_closes_behind_a_fed_message_costs_no_message() {
    closes_while_idle(Meanwhile::HasFedOne);
}

/// Nobody reads here: the sending half itself looks whether the peer is still there.
#[test]
fn a_peer_that_closes_is_noticed_without_a_reader() {
    run(async {
        let site = Site::new();
        for round in 0..50 {
            let (connection, mut far) = connected(&site).await;
            let local = connection.local_addr().unwrap().ip().unwrap();
            let (read, mut write) = connection.split();
            write.send(numbered(0, 8)).await.unwrap();
            far.message().await;
            drop(far);
            until("the end to arrive", || is_closed_by_peer(local)).await;
            let (sent, mut far) = futures::join!(write.send(numbered(round, 8)), site.accept());
            sent.unwrap();
            assert_eq!(far.message().await, numbered(round, 8));
            drop(read);
        }
    });
}

/// Replies that nobody has read lie before the end. It is seen behind them, and they can still be read.
#[test]
fn replies_that_were_not_read_do_not_hide_a_peer_that_closes() {
    run(async {
        let site = Site::new();
        for only_half in [false, true] {
            for _ in 0..25 {
                let (connection, mut far) = connected(&site).await;
                let local = connection.local_addr().unwrap().ip().unwrap();
                let (mut read, mut write) = connection.split();
                write.send(numbered(0, 8)).await.unwrap();
                far.message().await;
                far.write(&[frame(&numbered(1, 8)), frame(&numbered(2, 5000))].concat()).await;
                // A peer that ends its sending direction counts as one that has closed.
                far.0.shutdown(Shutdown::Write).unwrap();
                let far = only_half.then_some(far);
                until("the end to arrive", || is_closed_by_peer(local)).await;
                let both = async { futures::join!(write.send(numbered(3, 8)), site.accept()) };
                let (sent, mut again) = within(Duration::from_secs(3), "a new connection", both).await;
                sent.unwrap();
                assert_eq!(again.message().await, numbered(3, 8));
                if let Some(mut far) = far {
                    assert!(far.rest().await.is_empty(), "nothing was written to it in vain");
                }
                again.write(&frame(&numbered(4, 8))).await;
                for n in [1, 2, 4] {
                    assert_eq!(number(&read.next().await.unwrap().unwrap()), n);
                }
            }
        }
    });
}

#[test]
fn after_reopening_the_stream_yields_the_new_replies() {
    run(async {
        let site = Site::new();
        let (mut connection, mut far) = connected(&site).await;
        for round in 0..5_u64 {
            far.write(&frame(&numbered(round, 100))).await;
            assert_eq!(number(&connection.next().await.unwrap().unwrap()), round);
            drop(far);
            assert!(connection.next().await.is_none());
            assert!(connection.next().await.is_none(), "nobody has opened it again");
            let (sent, again) = futures::join!(connection.send(numbered(round, 8)), site.accept());
            sent.unwrap();
            far = again;
            assert_eq!(number(&far.message().await), round);
        }
        // The halves as well, and what the old socket had received comes first.
        let (mut read, mut write) = connection.split();
        far.write(&[frame(&numbered(50, 8)), frame(&numbered(51, 8))].concat()).await;
        drop(far);
        assert_eq!(number(&read.next().await.unwrap().unwrap()), 50);
        assert_eq!(number(&read.next().await.unwrap().unwrap()), 51);
        assert!(read.next().await.is_none());
        let (sent, mut far) = futures::join!(write.send(numbered(60, 8)), site.accept());
        sent.unwrap();
        far.write(&frame(&numbered(61, 8))).await;
        assert_eq!(number(&read.next().await.unwrap().unwrap()), 61);
        assert_eq!(number(&far.message().await), 60);
    });
}

#[test]
fn what_cannot_be_sent_is_held_until_it_can() {
    run(async {
        let site = Site::new();
        let addr = site.addr;
        let (mut connection, far) = connected(&site).await;
        for n in 0..3 {
            connection.feed(numbered(n, 8)).await.unwrap();
        }
        drop((site, far));
        assert!(connection.next().await.is_none());
        for _ in 0..3 {
            let error = connection.flush().await.expect_err("nobody listens");
            assert!(matches!(error, Error::Dial { .. }), "{error:?}");
            assert_eq!(held(&connection), 3);
        }
        let site = Site::again(addr).await;
        let (sent, mut far) = futures::join!(connection.send(numbered(3, 8)), site.accept());
        sent.unwrap();
        for n in 0..4 {
            assert_eq!(number(&far.message().await), n);
        }
    });
}

/// A `send` is a `poll_ready` first, which has no message that it could give back.
#[test]
fn what_is_sent_while_it_is_down_is_held_behind_what_is_held_already() {
    run(async {
        let once = Backoff::from_fn(Vec::new);
        for config in [config(), config().reconnect(once)] {
            let site = Site::new();
            let (made, far) = futures::join!(Connection::dial(site.addr, config), site.accept());
            let (mut read, mut write) = made.unwrap().split();
            site.leave();
            drop(far);
            assert!(read.next().await.is_none());
            for round in 0..3 {
                let error = write.send(numbered(round, 8)).await.expect_err("nobody listens");
                assert!(matches!(error, Error::Dial { .. }), "{error:?}");
                assert_eq!(error.into_unsent(), None, "it is held");
                // As large as it may be: what is held has room for one more as long as it is below the mark.
                write.feed(numbered(100 + round, 5000)).await.expect("it waits for the next flush");
                let error = write.close().await.expect_err("nobody listens");
                assert!(matches!(error, Error::Dial { .. }), "{error:?}");
            }
            let unsent: Vec<_> = write.take_unsent().iter().map(|message| number(message)).collect();
            assert_eq!(unsent, [0, 100, 1, 101, 2, 102]);
            // What is not taken goes first when somebody listens again.
            write.send(numbered(3, 8)).await.expect_err("nobody listens");
            site.come_back();
            let (sent, mut far) = futures::join!(write.send(numbered(4, 8)), site.accept());
            sent.unwrap();
            assert_eq!([number(&far.message().await), number(&far.message().await)], [3, 4]);
        }
    });
}

/// The bound is that of a connection that is open: 60 KiB, and one message.
#[test]
fn what_is_fed_while_it_is_down_has_a_bound() {
    run(async {
        let site = Site::new();
        let (mut connection, far) = connected(&site).await;
        site.leave();
        drop(far);
        assert!(connection.next().await.is_none());
        connection.send(numbered(0, 1000)).await.expect_err("nobody listens");
        let mut accepted = 1;
        while (accepted * 1004) < 60 * 1024 {
            connection.feed(numbered(accepted, 1000)).await.expect("there is room");
            accepted += 1;
        }
        for _ in 0..3 {
            let error = connection.feed(numbered(accepted, 1000)).await.expect_err("it is full, and nobody listens");
            let Error::NotSent { source, message, .. } = error else { panic!("{error:?}") };
            assert!(matches!(*source, Error::Dial { .. }), "{source:?}");
            assert_eq!(message.unwrap().into_inner(), numbered(accepted, 1000));
            assert_eq!(held(&connection), accepted);
        }
        site.come_back();
        let feeding = async {
            connection.feed(numbered(accepted, 1000)).await.expect("it is opened again");
            connection.close().await.unwrap();
        };
        let ((), wire) = futures::join!(feeding, async { site.accept().await.rest().await });
        assert_eq!(numbers(&wire), (0..=accepted).collect::<Vec<_>>());
    });
}

/// Somebody gave up waiting for the dial. It goes on with the next flush, and not where there is nothing to write.
#[test]
fn a_dial_that_nobody_waits_for_takes_messages_and_holds_nobody_up() {
    run(async {
        let mut hole = BlackHole::opening();
        let mut connection = Connection::dial(hole.addr, config().dial_timeout(None)).await.unwrap();
        drop(hole.accept());
        hole.fill();
        assert!(connection.next().await.is_none());
        assert!(connection.send(numbered(0, 8)).now_or_never().is_none(), "nothing answers");
        connection.feed(numbered(1, 100_000)).now_or_never().expect("there is room").unwrap();
        assert!(connection.feed(numbered(2, 8)).now_or_never().is_none(), "it is full");
        assert!(connection.flush().now_or_never().is_none(), "nothing answers");
        assert_eq!(connection.take_unsent(), [numbered(0, 8), numbered(1, 100_000)]);
        connection.flush().now_or_never().expect("there is nothing to write").unwrap();
        connection.close().now_or_never().expect("there is nothing to write").unwrap();
        let error = connection.send(numbered(3, 8)).await.expect_err("it is closed");
        assert_eq!(error.into_unsent(), Some(numbered(3, 8)));
    });
}

/// Somebody gave up waiting for the dial; it succeeds in the kernel, and by the next flush the peer has closed again.
#[test]
fn a_peer_that_closes_while_nobody_waits_for_the_dial_costs_no_message() {
    run(async {
        let site = Site::new();
        let often = Backoff::from_fn(|| std::iter::repeat(Duration::from_millis(1)));
        for (config, patient) in [(config(), false), (config().reconnect(often), true)] {
            let (made, far) = futures::join!(Connection::dial(site.addr, config), site.accept());
            let mut connection = made.unwrap();
            let local = connection.local_addr().unwrap().ip().unwrap();
            drop(far);
            until("the end to arrive", || is_closed_by_peer(local)).await;
            assert!(connection.send(numbered(0, 8)).now_or_never().is_none(), "it is dialing");
            let far = within(SOON, "the connection", site.accept()).await;
            let local = far.0.peer_addr().unwrap();
            drop(far);
            until("the end to arrive", || is_closed_by_peer(local)).await;
            if !patient {
                let error = within(SOON, "an error", connection.flush()).await.expect_err("it was closed already");
                assert!(matches!(error, Error::Write(_)), "{error:?}");
                assert_eq!(held(&connection), 1);
            }
            let both = async { futures::join!(connection.flush(), async { site.accept().await.message().await }) };
            let (flushed, message) = within(SOON, "the message on a new connection", both).await;
            flushed.unwrap();
            assert_eq!(message, numbered(0, 8));
        }
    });
}

#[test]
fn what_cannot_be_sent_can_be_taken_back() {
    run(async {
        let site = Site::new();
        let (mut connection, far) = connected(&site).await;
        for n in 0..3 {
            connection.feed(numbered(n, 8 + n as usize * 5000)).await.unwrap();
        }
        assert!(connection.take_unsent().is_empty(), "it is open");
        drop((site, far));
        assert!(connection.next().await.is_none());
        connection.flush().await.expect_err("nobody listens");
        let expected: Vec<_> = (0..3).map(|n| numbered(n, 8 + n as usize * 5000)).collect();
        assert_eq!(connection.take_unsent(), expected);
        assert!(connection.take_unsent().is_empty());
        connection.flush().await.expect("there is nothing to write");
    });
}

/// Whatever `send` and `feed` are given is with the connection afterwards, or in their error, and within a bound.
#[test]
fn a_message_given_to_a_connection_that_is_down_is_held_or_comes_back() {
    run(async {
        let site = Site::small();
        let (mut connection, far) = connected(&site).await;
        let mut given: Vec<_> = (0..fill(&mut connection, 4000)).collect();
        let written = given.len() - held(&connection) as usize;
        let mut next = given.len() as u64;
        far.reset();
        drop(site);
        let mut came_back = Vec::new();
        for attempt in 0..3 {
            given.push(next);
            let error =
                within(SOON, "an error", connection.send(numbered(next, 4000))).await.expect_err("nobody listens");
            let Error::NotSent { message, source, .. } = error else { panic!("{error:?}") };
            // The break itself is met while one waits for room.
            let expected = if attempt == 0 { "Write" } else { "Dial" };
            assert!(format!("{source:?}").starts_with(expected), "{source:?}");
            came_back.push(number(&message.unwrap().into_inner()));
            next += 1;
        }
        let mut kept: Vec<_> = connection.take_unsent().iter().map(|message| number(message)).collect();
        // With room again they are held, and the error is that of the flush.
        let room = 60 * 1024 / 4000;
        for _ in 0..room {
            given.push(next);
            let error = connection.send(numbered(next, 4000)).await.expect_err("nobody listens");
            assert!(matches!(error, Error::Dial { .. }), "{error:?}");
            next += 1;
        }
        for _ in 0..10 {
            given.push(next);
            match connection.feed(numbered(next, 4000)).await {
                Ok(()) => {}
                Err(error) => came_back.push(number(&error.into_unsent().expect("it comes back"))),
            }
            next += 1;
        }
        let second: Vec<_> = connection.take_unsent().iter().map(|message| number(message)).collect();
        assert!((room..=room + 1).contains(&second.len()), "{} are held", second.len());
        kept.extend(second);
        kept.extend(came_back);
        kept.sort_unstable();
        assert_eq!(kept, given[written..]);
    });
}

/// A flush tells what a wait for room has failed with, if nothing was sent after it.
#[test]
fn a_break_that_a_poll_ready_met_is_told_once() {
    run(async {
        let site = Site::small();
        let (mut connection, far) = connected(&site).await;
        fill(&mut connection, 4000);
        far.reset();
        within(SOON, "the break", poll_fn(|cx| connection.poll_ready_unpin(cx)))
            .await
            .expect("it is told with a message");
        poll_fn(|cx| connection.poll_ready_unpin(cx)).await.expect("it was not told yet");
        let error = connection.flush().await.expect_err("it broke");
        assert!(matches!(error, Error::Write(_)), "{error:?}");
        let (flushed, wire) = futures::join!(connection.close(), async { site.accept().await.rest().await });
        flushed.unwrap();
        assert_eq!(messages(&wire).1, 0);
    });
}

#[test]
fn a_close_that_cannot_dial_in_time_keeps_the_messages() {
    run(async {
        let mut hole = BlackHole::opening();
        let limit = Duration::from_millis(100);
        let mut connection = Connection::dial(hole.addr, config().close_timeout(limit)).await.unwrap();
        drop(hole.accept());
        hole.fill();
        for n in 0..3 {
            connection.feed(numbered(n, 8)).await.unwrap();
        }
        assert!(connection.next().await.is_none());
        let error = within(SOON, "the close timeout", connection.close()).await.expect_err("nothing answers");
        assert!(matches!(error, Error::Timeout { what: Limit::CloseTimeout, .. }), "{error:?}");
        let unsent: Vec<_> = connection.take_unsent().iter().map(|message| number(message)).collect();
        assert_eq!(unsent, [0, 1, 2]);
    });
}
