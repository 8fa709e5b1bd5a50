//! Who waits at a queue: that they are served in turn, that nobody else is woken, and that nothing of them stays.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use futures::io::{AsyncReadExt, AsyncWriteExt};
use futures::task::waker;
use futures::{FutureExt, SinkExt, StreamExt};

use super::outages::{ANYWHERE, SECOND, config, dialed, every};
use crate::sim::testing::Sim;
use crate::sim::testing::{self, Acceptor};
use crate::sync::Calls;
use crate::{Address, Error, Listener, Manager};

const SINKS: usize = 8;
/// How many messages of one kilobyte a sink hands over at once.
const BATCH: usize = 62;

pub(super) fn one_kb(first: u8) -> Bytes {
    let mut message = vec![0; 1000];
    message[0] = first;
    message.into()
}

/// Reads one message of a kilobyte, and returns its first byte.
async fn read_one(far: &mut testing::Stream) -> u8 {
    let mut frame = [0; 1004];
    far.read_exact(&mut frame).await.unwrap();
    frame[4]
}

/// What came from each of the sinks, and how much came while one `write` waited, at the longest.
fn shares(seed: Option<u64>) -> ([usize; SINKS], usize) {
    Sim { seed, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let feed = |n: usize| {
            let (mut sink, address) = (manager.sink(), address.clone());
            testing::spawn(async move { while sink.feed((address.clone(), one_kb(n as u8))).await.is_ok() {} })
        };
        let _feeding: Vec<_> = (0..SINKS).map(feed).collect();
        let come = Arc::new(AtomicUsize::new(0));
        let (longest, seen) = (Arc::new(AtomicUsize::new(0)), come.clone());
        let (writer, to, waits) = (manager.clone(), address.clone(), longest.clone());
        let _writing = testing::spawn(async move {
            loop {
                let before = seen.load(Relaxed);
                writer.write(&to, one_kb(SINKS as u8)).await.unwrap();
                waits.fetch_max(seen.load(Relaxed) - before, Relaxed);
            }
        });
        let mut counts = [0; SINKS];
        for _ in 0..400 * SINKS * BATCH {
            let from = read_one(&mut far).await as usize;
            come.fetch_add(1, Relaxed);
            if from < SINKS {
                counts[from] += 1;
            }
        }
        (counts, longest.load(Relaxed))
    })
}

#[test]
fn sinks_that_always_have_something_get_equal_shares_and_a_write_beside_them_its_turn() {
    for seed in [None, Some(1), Some(2), Some(3)] {
        let (counts, longest) = shares(seed);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most * 10 <= least * 11, "seed {seed:?}: {counts:?}");
        // A batch of each sink, as much that is pending before them or on its way, and as much that is read meanwhile.
        assert!(longest <= 2 * (SINKS + 1) * BATCH, "seed {seed:?}: {longest} messages came before that of a write");
    }
}

/// The socket takes everything at once, so that no sink ever has to wait for another.
#[test]
fn a_sink_that_can_always_write_lets_the_others_run() {
    const EACH: usize = 4 * 16 * BATCH;
    Sim { capacity: 1 << 27, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let feed = |n: usize| {
            let (mut sink, address) = (manager.sink(), address.clone());
            testing::spawn(async move { while sink.feed((address.clone(), one_kb(n as u8))).await.is_ok() {} })
        };
        let _feeding: Vec<_> = (0..SINKS).map(feed).collect();
        let mut counts = [0; SINKS];
        for _ in 0..SINKS * EACH {
            counts[read_one(&mut far).await as usize] += 1;
        }
        assert!(counts.iter().all(|count| (EACH * 3 / 4..=EACH * 5 / 4).contains(count)), "{counts:?}");
    });
}

/// A future with a waker of its own, which is polled when that is called.
pub(super) struct Waiting<'a, T> {
    future: BoxFuture<'a, T>,
    calls: Arc<Calls>,
    polled: usize,
}

impl<'a, T> Waiting<'a, T> {
    /// It has been polled once, and waits.
    #[track_caller]
    pub(super) fn new(future: impl Future<Output = T> + Send + 'a) -> Self {
        let mut waiting = Self { future: future.boxed(), calls: Arc::default(), polled: 0 };
        assert!(waiting.poll().is_pending());
        waiting
    }

    fn poll(&mut self) -> Poll<T> {
        self.polled = self.calls.count();
        let waker = waker(self.calls.clone());
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    pub(super) fn poll_if_called(&mut self) -> Poll<T> {
        if self.calls.count() > self.polled { self.poll() } else { Poll::Pending }
    }

    /// Given up, it leaves no waker behind.
    #[track_caller]
    fn give_up(self) {
        assert!(Arc::strong_count(&self.calls) > 1, "it waits with its waker");
        drop(self.future);
        assert_eq!(Arc::strong_count(&self.calls), 1, "its waker has stayed");
    }
}

/// Fills the queue of a peer that takes nothing.
async fn fill(manager: &Manager, address: &Address) {
    for _ in 0..4 {
        let mut sink = manager.sink();
        for _ in 0..BATCH {
            sink.feed((address.clone(), one_kb(0))).await.unwrap();
        }
        // Nobody waits for it.
        assert!(sink.flush().now_or_never().is_none());
        testing::yield_now().await;
    }
}

#[test]
fn a_wait_that_is_given_up_leaves_nothing_behind() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, _far) = dialed(config()).await;
        let mut first = Waiting::new(manager.write(&address, Bytes::from(vec![7; 2000])));
        for round in 0..6 {
            // In the first half they wait to be written, in the other for room.
            if round == 3 {
                fill(&manager, &address).await;
            }
            let accepted = manager.stats().total.accepted;
            Waiting::new(manager.write(&address, one_kb(1))).give_up();
            assert_eq!(manager.stats().total.accepted > accepted, round < 3);
            let (mut sink, to) = (manager.sink(), address.clone());
            Waiting::new(async move { sink.send((to, one_kb(1))).await }).give_up();
        }
        assert!(first.poll().is_pending());
        let mut closing = Waiting::new(manager.close(&address));
        assert!(closing.poll().is_pending());
        closing.give_up();
    });
}

#[test]
fn a_close_of_a_listener_that_is_given_up_leaves_nothing_behind() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (mut incoming, mut outgoing) = Listener::bind(ANYWHERE, config()).await.unwrap().split();
        let closer = incoming.closer();
        let mut far = testing::dial(&closer.local_addr().into(), &config()).await.unwrap();
        far.write_all(&[0, 0, 0, 1, 7]).await.unwrap();
        let (peer, _) = incoming.next().await.unwrap();
        // It takes no replies, so the close waits for it.
        outgoing.feed((peer, Bytes::from(vec![7; 2000]))).await.unwrap();
        assert!(outgoing.flush().now_or_never().is_none());
        let _closing = Waiting::new(closer.close());
        testing::sleep(SECOND).await;
        for _ in 0..3 {
            let mut closing = Waiting::new(closer.close());
            assert!(closing.poll().is_pending());
            closing.give_up();
        }
        let mut flushing = Waiting::new(async move { outgoing.flush().await });
        assert!(flushing.poll().is_pending());
        flushing.give_up();
    });
}

/// A write is called when it is let in and when it is over, and not for what becomes of the thousand beside it.
#[test]
fn nobody_is_woken_for_what_others_wait_for() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let _first = Waiting::new(manager.write(&address, Bytes::from(vec![7; 2000])));
        let mut writes: Vec<_> = (0..1_000).map(|_| Waiting::new(manager.write(&address, one_kb(1)))).collect();
        let reading = testing::spawn(async move {
            far.read_exact(&mut [0; 2004]).await.unwrap();
            for _ in 0..1_000 {
                read_one(&mut far).await;
            }
        });
        while !writes.is_empty() {
            testing::yield_now().await;
            writes.retain_mut(|write| write.poll_if_called().map(Result::unwrap).is_pending());
            assert!(writes.iter().all(|write| write.calls.count() <= 2));
        }
        drop(reading);
    });
}

/// Their futures live, and nobody polls them: those behind them go on.
#[test]
fn who_does_not_come_for_their_turn_keeps_no_other_waiting() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, mut far) = dialed(config()).await;
        let _writing = Waiting::new(manager.write(&address, Bytes::from(vec![7; 2000])));
        let _written = Waiting::new(manager.write(&address, one_kb(1)));
        fill(&manager, &address).await;
        let _for_room = Waiting::new(manager.write(&address, one_kb(1)));
        let mut sink = manager.sink();
        assert!(sink.send((address.clone(), one_kb(1))).now_or_never().is_none());
        let reading = testing::spawn(async move {
            far.read_exact(&mut [0; 2004]).await.unwrap();
            loop {
                read_one(&mut far).await;
            }
        });
        for _ in 0..10 {
            testing::within(Some(SECOND), manager.write(&address, one_kb(2)))
                .await
                .expect("it waits for nobody")
                .unwrap();
        }
        assert_eq!(manager.stats().total.held, 0);
        drop(reading);
    });
}

/// What its transport had not taken whole is as much as may be held while it is away, and less than when it is back.
#[test]
fn who_waits_while_it_is_away_is_let_in_when_it_is_back() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let config = config().reconnect(every(SECOND)).queue_bytes(4096);
        let (manager, address, acceptor, far) = dialed(config.clone()).await;
        let mut first = Waiting::new(manager.write(&address, vec![7; 8192].into()));
        drop((far, acceptor));
        testing::sleep(SECOND / 2).await;
        let mut second = Waiting::new(manager.write(&address, one_kb(2)));
        assert_eq!(manager.stats().total.accepted, 1);
        let (acceptor, _) = Acceptor::bind(&address).await.unwrap();
        let (mut far, _) = acceptor.accept(&config).await.unwrap();
        far.read_exact(&mut [0; 8196]).await.unwrap();
        assert_eq!(testing::within(Some(SECOND), read_one(&mut far)).await, Some(2));
        testing::yield_now().await;
        assert!(first.poll_if_called().is_ready() && second.poll_if_called().is_ready());
    });
}

#[test]
fn who_waits_for_room_has_the_message_back_when_the_address_is_closed() {
    Sim { capacity: 1024, ..Sim::default() }.run(async {
        let (manager, address, _acceptor, _far) = dialed(config()).await;
        fill(&manager, &address).await;
        let mut write = Waiting::new(manager.write(&address, one_kb(2)));
        let mut sink = manager.sink();
        sink.feed((address.clone(), one_kb(3))).await.unwrap();
        let mut flush = Waiting::new(async move { sink.flush().await });
        let _closing = Waiting::new(manager.close(&address));
        let Poll::Ready(Err(Error::NotOpen { message, .. })) = write.poll_if_called() else { panic!("it is told") };
        assert_eq!(message.unwrap().into_inner(), one_kb(2));
        assert!(flush.poll_if_called().is_pending(), "it was accepted when it was fed, and the close delivers it");
    });
}

/// A sink is fed, and does not wait.
#[test]
fn what_is_accepted_while_it_is_away_opens_the_connection() {
    Sim::default().run(async {
        let (manager, address, acceptor, far) = dialed(config().reconnect(every(SECOND))).await;
        drop((far, acceptor));
        testing::sleep(SECOND).await;
        let mut sink = manager.sink();
        for _ in 0..BATCH + 1 {
            sink.feed((address.clone(), one_kb(1))).await.unwrap();
        }
        let (acceptor, _) = Acceptor::bind(&address).await.unwrap();
        let (mut far, _) =
            testing::within(Some(2 * SECOND), acceptor.accept(&config())).await.expect("a dial").unwrap();
        assert_eq!(testing::within(Some(SECOND), read_one(&mut far)).await, Some(1));
    });
}

/// Gives a future up when it is polled for the last of so many times.
async fn at_most<T>(polls: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        let Some(rest) = left.checked_sub(1) else { return Poll::Ready(None) };
        left = rest;
        let polled = future.as_mut().poll(cx).map(Some);
        if polled.is_pending() && left == 0 { Poll::Ready(None) } else { polled }
    })
    .await
}

/// Writers and sinks, of which some give up at their first, second or third poll, and a peer that is slow and may go away.
fn crowd(seed: u64, goes_away: bool) {
    Sim { capacity: 1500, seed: Some(seed), ..Sim::default() }.run(async {
        let config = config().reconnect(every(SECOND)).message_ttl(1_000 * SECOND);
        let (manager, address, acceptor, mut far) = dialed(config.clone()).await;
        let returned = Arc::new(AtomicUsize::new(0));
        let reading = testing::spawn(async move {
            let mut read = vec![0; 700 + (seed as usize * 7919) % 5_000];
            let mut round = 0;
            loop {
                round += 1;
                let is_there = far.read(&mut read).await.is_ok_and(|n| n > 0);
                if !is_there || (goes_away && round % 100 == 0) {
                    drop(far);
                    far = acceptor.accept(&config).await.unwrap().0;
                }
                if round % 4 == 0 {
                    testing::sleep(SECOND / 100).await;
                }
            }
        });
        let produce = |n: u64| {
            let (manager, address, returned) = (manager.clone(), address.clone(), returned.clone());
            async move {
                let mut sink = manager.sink();
                for round in 0..30 {
                    let polls = match (n + round + seed) % 4 {
                        0 => u64::MAX,
                        polls => polls,
                    };
                    let message = Bytes::from(vec![7; [10, 1_000, 5_000, 40_000][((n + round) % 4) as usize]]);
                    if n.is_multiple_of(2) {
                        match at_most(polls, manager.write(&address, message)).await {
                            Some(Err(error)) => panic!("{error}"),
                            Some(Ok(())) => _ = returned.fetch_add(1, Relaxed),
                            None => {}
                        }
                    } else if let Some(sent) = at_most(polls, sink.send((address.clone(), message))).await {
                        sent.unwrap();
                    }
                    testing::yield_now().await;
                }
                sink.close().await.unwrap();
            }
        };
        join_all((0..8).map(produce)).await;
        // What was left behind is written as well, though nobody waits for it.
        while manager.stats().total.held > 0 {
            testing::sleep(SECOND).await;
        }
        let total = manager.stats().total;
        assert_eq!((total.accepted, total.dead_lettered), (total.written, 0));
        assert!(returned.load(Relaxed) > 0);
        drop(reading);
    });
}

#[test]
fn no_wait_is_in_vain_whatever_the_order_and_whoever_leaves() {
    for seed in 0..200 {
        crowd(seed, false);
        crowd(seed, true);
    }
}
