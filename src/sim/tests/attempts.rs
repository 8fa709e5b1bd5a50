//! How often and when a peer is dialed that does not stay, in virtual time.

use std::iter;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use futures::StreamExt;
use futures::io::AsyncReadExt;

use super::outages::{ANYWHERE, SECOND, config, dialed};
use crate::sim::testing::{self, Acceptor};
use crate::sim::testing::{Sim, elapsed};
use crate::{Backoff, Connection, Error, Outcome};

/// Delays that double, without an end and without jitter.
fn doubling(first: Duration) -> Backoff {
    Backoff::from_fn(move || iter::successors(Some(first), |delay| Some(*delay * 2)))
}

/// Takes one frame of `len` bytes from each connection, and resets it. Says when it was dialed.
fn dying(acceptor: Acceptor, far: testing::Stream, len: usize) -> (testing::Task, Arc<Mutex<Vec<Duration>>>) {
    let dialed = Arc::new(Mutex::new(Vec::new()));
    let times = dialed.clone();
    let task = testing::spawn(async move {
        let mut far = far;
        loop {
            far.read_exact(&mut vec![0; len]).await.unwrap();
            testing::reset_newest();
            far = acceptor.accept(&config()).await.unwrap().0;
            times.lock().unwrap().push(elapsed());
        }
    });
    (task, dialed)
}

#[track_caller]
fn assert_they_double(dialed: &Mutex<Vec<Duration>>, first: Duration) {
    let dialed = dialed.lock().unwrap();
    let gaps: Vec<_> = dialed.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let doubled: Vec<_> = iter::successors(Some(first), |delay| Some(*delay * 2)).take(gaps.len()).collect();
    assert_eq!(gaps, doubled);
    assert!(gaps.len() > 5, "{gaps:?}");
}

/// There is always more to send.
#[test]
fn a_peer_that_dies_of_each_message_is_dialed_ever_more_rarely_and_given_up_at_max_elapsed() {
    const MESSAGES: u64 = 50;
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let backoff = doubling(SECOND / 10).max_elapsed(30 * SECOND);
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
        let (_dying, dialed) = dying(acceptor, far, 2004);
        let (mut letters, mut sink) = (manager.dead_letters(), manager.sink());
        for _ in 0..MESSAGES {
            sink.feed((address.clone(), Bytes::from_static(&[7; 2000]))).await.unwrap();
        }
        let flushed = testing::within(Some(60 * SECOND), sink.flush()).await.expect("it gives up");
        assert!(matches!(flushed, Err(Error::NotSent { .. })), "{flushed:?}");
        // The next attempt would have been too late.
        assert!((15 * SECOND..=30 * SECOND).contains(&elapsed()), "{:?}", elapsed());
        assert_they_double(&dialed, SECOND / 10);
        let total = manager.stats().total;
        assert_eq!((total.written + total.dead_lettered, total.held), (MESSAGES, 0));
        assert_eq!(total.written, total.reconnects + 1);
        for _ in 0..total.dead_lettered {
            let letter = letters.next().await.unwrap();
            assert_eq!((letter.outcome, u64::from(letter.attempts)), (Outcome::GaveUp, total.reconnects));
        }
    });
}

/// Each message is given when the one before it has been taken: nothing is held when the connection breaks.
#[test]
fn a_peer_that_dies_of_each_message_is_given_up_though_they_come_one_by_one() {
    Sim::default().run(async {
        let backoff = doubling(SECOND / 10).max_elapsed(30 * SECOND);
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
        let (_dying, dialed) = dying(acceptor, far, 8);
        let writing = async {
            loop {
                if let Err(error) = manager.write(&address, Bytes::from_static(b"dies")).await {
                    return error;
                }
                testing::sleep(SECOND / 1000).await;
            }
        };
        let error = testing::within(Some(60 * SECOND), writing).await.expect("it gives up");
        assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
        assert!((15 * SECOND..=30 * SECOND).contains(&elapsed()), "{:?}", elapsed());
        let late = dialed.lock().unwrap().windows(2).filter(|pair| pair[1] - pair[0] >= SECOND).count();
        assert!((3..=6).contains(&late), "{dialed:?}");
        assert!(dialed.lock().unwrap().len() < 15, "{dialed:?}");
    });
}

/// It is away until it is dialed for the fourth time, stays for so long, and goes for good, with a message half taken.
/// Returns when that comes back, and how often it was dialed for it.
fn a_connection_that_is_open_for(open: Duration) -> (Duration, u32) {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let backoff = doubling(SECOND).max_elapsed(10 * SECOND).stable_after(5 * SECOND);
        let (manager, address, acceptor, far) = dialed(config().reconnect(backoff)).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        drop((far, acceptor));
        let mut letters = manager.dead_letters();
        let mut sink = manager.sink();
        let coming_back = async {
            testing::sleep(5 * SECOND).await;
            let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
            let far = acceptor.accept(&config()).await.unwrap();
            assert_eq!(elapsed(), 7 * SECOND);
            testing::sleep(open).await;
            drop((far, acceptor));
        };
        let sent = sink.send((address, Bytes::from(vec![7; 5000])));
        let (sent, ()) = futures::join!(sent, coming_back);
        sent.unwrap_err();
        let letter = letters.next().await.unwrap();
        assert_eq!(letter.outcome, Outcome::GaveUp);
        (elapsed(), letter.attempts)
    })
}

#[test]
fn an_outage_ends_with_a_connection_that_was_stable_and_with_no_other() {
    // At 12 s, and 1, 2 and 4 s after that; the next would be 8 s later.
    assert_eq!(a_connection_that_is_open_for(5 * SECOND), (19 * SECOND, 4));
    // It began with the start; at 0, 1, 3, and 7 s.
    assert_eq!(a_connection_that_is_open_for(4 * SECOND), (11 * SECOND, 4));
}

/// All of it is older than `message_ttl` when the outage is over: that leaves nothing to give up.
#[test]
fn what_comes_after_an_outage_that_is_over_is_dialed_for_at_once() {
    Sim::default().run(async {
        let backoff = doubling(SECOND).max_elapsed(10 * SECOND);
        let (manager, address, acceptor, far) = dialed(config().message_ttl(SECOND / 2).reconnect(backoff)).await;
        let addr = address.as_str().parse::<std::net::SocketAddr>().unwrap();
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        manager.write(&address, Bytes::from_static(b"too old")).await.unwrap_err();
        testing::sleep(20 * SECOND).await;
        let (acceptor, _) = Acceptor::bind(&addr.into()).await.unwrap();
        let began = elapsed();
        let config = config();
        let (written, _far) =
            futures::join!(manager.write(&address, Bytes::from_static(b"new")), acceptor.accept(&config));
        written.unwrap();
        assert_eq!(elapsed(), began);
    });
}

/// The same for a connection. That it was open for long before is of no account.
#[test]
fn a_connection_whose_peer_dies_of_each_message_dials_it_ever_more_rarely() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let backoff = doubling(SECOND / 10).max_elapsed(30 * SECOND);
        let (acceptor, addr) = Acceptor::bind(&ANYWHERE.into()).await.unwrap();
        let mut connection = Connection::dial(addr, config().reconnect(backoff)).await.unwrap();
        let (far, _) = acceptor.accept(&config()).await.unwrap();
        testing::sleep(3_600 * SECOND).await;
        let (_dying, dialed) = dying(acceptor, far, 2004);
        for _ in 0..50 {
            connection.feed(Bytes::from_static(&[7; 2000])).await.unwrap();
        }
        testing::within(Some(60 * SECOND), connection.flush()).await.expect("it gives up").unwrap_err();
        assert_they_double(&dialed, SECOND / 10);
    });
}
