//! Who waits at a manager's queue: those who give up cost nothing, and those who do not are served, whatever runs them.

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use buffstreams::{Backoff, ManagerEvent};
use futures::executor::block_on;
use futures::task::{ArcWake, waker};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::counting::allocations;
use crate::peers::{SOON, Site, balanced, config, dialed, number, numbered, run, until, within};

struct Ignored;

impl ArcWake for Ignored {
    fn wake_by_ref(_: &Arc<Self>) {}
}

/// The peer is away, and as much is held as there is room for. A thousand wait at a time, each with a waker of its own.
#[test]
fn a_hundred_thousand_writes_that_are_given_up_cost_no_memory() {
    run(async {
        let patient = config().reconnect(Backoff::from_fn(|| std::iter::repeat(Duration::from_millis(5))));
        let site = Site::new();
        let (manager, far) = dialed(patient.queue_bytes(1 << 16), &site).await;
        let mut events = manager.events();
        site.leave();
        drop(far);
        while !matches!(within(SOON, "the break", events.next()).await, Some(ManagerEvent::Broken { .. })) {}
        let mut sink = manager.sink();
        while sink.feed((site.addr.into(), numbered(0, 1_000))).now_or_never().is_some() {}
        let round = || {
            let wait = |_| {
                let mut write = Box::pin(manager.write(site.addr, numbered(1, 110)));
                let waker = waker(Arc::new(Ignored));
                assert!(matches!(write.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending));
                write
            };
            drop((0..1_000).map(wait).collect::<Vec<_>>());
        };
        round();
        let (_, count) = allocations(|| (0..100).for_each(|_| round()));
        assert!(count.kept < 16 << 10, "{count:?}");
        // They were not accepted, and are not sent.
        assert!(balanced(&manager).accepted < 200, "{:?}", balanced(&manager));
    });
}

const PRODUCERS: u64 = 8;
const MESSAGES: u64 = 2_000;

/// Each on a thread of its own, beside the runtime, towards a peer with a small window. Some give up now and then.
#[test]
fn producers_on_threads_of_their_own_are_all_served() {
    run(async {
        let site = Site::small();
        let addr = site.addr;
        let (manager, mut far) = dialed(config(), &site).await;
        let reading = async_std::task::spawn(async move {
            let mut received = vec![Vec::new(); PRODUCERS as usize];
            let mut left = PRODUCERS * MESSAGES;
            while left > 0 {
                let number = number(&far.message().await);
                received[(number >> 32) as usize].push(number & 0xffff_ffff);
                left -= 1;
            }
            received
        });
        let producing: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let manager = manager.clone();
                let produce = async move {
                    let mut sink = manager.sink();
                    for n in 0..MESSAGES {
                        let message = numbered(producer << 32 | n, [8, 100, 1_000, 5_000][(n % 4) as usize]);
                        if producer.is_multiple_of(2) {
                            manager.write(addr, message).await.unwrap();
                            continue;
                        }
                        sink.feed((addr.into(), message)).await.unwrap();
                        match n % 7 {
                            0 => drop(sink.flush().now_or_never()),
                            3 => sink.flush().await.unwrap(),
                            _ => {}
                        }
                    }
                    sink.close().await.unwrap();
                };
                thread::spawn(move || block_on(produce))
            })
            .collect();
        until("all producers to end", || producing.iter().all(thread::JoinHandle::is_finished)).await;
        producing.into_iter().for_each(|producing| producing.join().unwrap());
        for received in within(SOON, "all messages", reading).await {
            assert!(received.into_iter().eq(0..MESSAGES), "each producer's come in order");
        }
        let total = balanced(&manager);
        assert_eq!((total.written, total.held), (PRODUCERS * MESSAGES, 0));
    });
}
