//! Futures that are dropped after any number of polls: nothing accepted is lost, nothing is sent twice, the order stays.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use async_std::task;
use buffstreams::{Connection, Error, Manager, Outcome};
use futures::future::poll_fn;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{SOON, Site, balanced, config, dialed, frame, number, numbered, numbers, run, until, within};

/// Polls a future so often, each time when it asks to be polled; `None` if it was dropped unfinished.
async fn polled<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// What was sent for certain, and what may have been.
#[derive(Default)]
struct Sent {
    surely: BTreeSet<u64>,
    perhaps: BTreeSet<u64>,
}

impl Sent {
    fn check(&self, received: &[u64], what: &str) {
        assert!(received.is_sorted_by(|a, b| a < b), "{what}: twice, or out of order: {received:?}");
        let received: BTreeSet<_> = received.iter().copied().collect();
        let lost: Vec<_> = self.surely.difference(&received).collect();
        assert!(lost.is_empty(), "{what}: lost {lost:?}");
        let unknown: Vec<_> = received.difference(&self.surely).filter(|n| !self.perhaps.contains(n)).collect();
        assert!(unknown.is_empty(), "{what}: never sent {unknown:?}");
    }
}

/// A mixture of lengths: copied, chained, larger than the high-water mark.
fn len(number: u64) -> usize {
    [8, 700, 5000, 40_000, 90_000][number as usize % 5]
}

#[test]
fn a_connections_futures_can_be_dropped_anywhere() {
    run(async {
        for polls in 0..40 {
            let site = Site::small();
            let (made, mut far) = futures::join!(Connection::dial(site.addr, config()), site.accept());
            let mut connection = made.unwrap();
            // It reads all the time, so every wait ends.
            let reading = task::spawn(async move { far.rest().await });
            let mut sent = Sent::default();
            for n in 0..60 {
                match n % 3 {
                    0 => {
                        if let Some(fed) = polled(connection.feed(numbered(n, len(n))), polls).await {
                            fed.unwrap();
                            sent.surely.insert(n);
                        }
                    }
                    1 => match polled(connection.send(numbered(n, len(n))), polls).await {
                        Some(done) => {
                            done.unwrap();
                            sent.surely.insert(n);
                        }
                        None => {
                            sent.perhaps.insert(n);
                        }
                    },
                    _ => drop(polled(connection.flush(), polls).await.map(Result::unwrap)),
                }
            }
            // A close that is dropped can be taken up again.
            while polled(connection.close(), polls + 1).await.map(Result::unwrap).is_none() {}
            sent.check(&numbers(&within(SOON, "the end", reading).await), &format!("{polls} polls"));
        }
    });
}

#[test]
fn a_wait_for_the_next_reply_can_be_dropped_anywhere() {
    run(async {
        for polls in 0..40 {
            let site = Site::new();
            let (made, mut far) = futures::join!(Connection::dial(site.addr, config()), site.accept());
            let mut connection = made.unwrap();
            let writing = task::spawn(async move {
                let wire: Vec<u8> = (0..30).flat_map(|n| frame(&numbered(n, len(n)))).collect();
                for part in wire.chunks(7777) {
                    far.write(part).await;
                    task::yield_now().await;
                }
            });
            let mut received = Vec::new();
            loop {
                match polled(connection.next(), polls).await {
                    Some(Some(message)) => received.push(message.unwrap()),
                    Some(None) => break,
                    None if polls < 2 => {
                        // Nothing can come of it, so it is waited for in between.
                        match connection.next().await {
                            Some(message) => received.push(message.unwrap()),
                            None => break,
                        }
                    }
                    None => {}
                }
            }
            writing.await;
            let expected: Vec<_> = (0..30).map(|n| numbered(n, len(n))).collect();
            assert!(received == expected, "{polls} polls");
        }
    });
}

#[test]
fn a_dial_can_be_dropped_anywhere() {
    run(async {
        let site = Site::new();
        let manager = Manager::new(config());
        for polls in 0..40 {
            if let Some(dialed) = polled(manager.dial(site.addr), polls).await {
                dialed.unwrap();
                break;
            }
            assert!(manager.addresses().is_empty(), "an attempt that was given up is forgotten");
            if let Some(made) = polled(Connection::dial(site.addr, config()), polls).await {
                made.unwrap();
            }
        }
        manager.close(site.addr).now_or_never();
        until("it can be dialed again", || manager.addresses().is_empty()).await;
        manager.dial(site.addr).await.unwrap();
    });
}

/// Each write is accepted or not, and it has the same fate at the receiver.
#[test]
fn a_managers_writes_can_be_dropped_anywhere() {
    run(async {
        for polls in 0..40 {
            let site = Site::small();
            let (manager, mut far) = dialed(config(), &site).await;
            let reading = task::spawn(async move { far.rest().await });
            let mut sent = Sent::default();
            for n in 0..40 {
                let before = balanced(&manager).accepted;
                let written = polled(manager.write(site.addr, numbered(n, len(n))), polls).await;
                let accepted = balanced(&manager).accepted > before;
                if let Some(written) = written {
                    written.unwrap();
                    assert!(accepted, "what was written was accepted before");
                }
                if accepted {
                    sent.surely.insert(n);
                }
            }
            // Nobody asks for them any more: they are sent nevertheless.
            until("what was accepted is written", || balanced(&manager).held == 0).await;
            manager.close(site.addr).await.unwrap();
            sent.check(&numbers(&within(SOON, "the end", reading).await), &format!("{polls} polls"));
        }
    });
}

#[test]
fn a_managers_sinks_futures_can_be_dropped_anywhere() {
    run(async {
        for polls in 0..40 {
            let site = Site::small();
            let (manager, mut far) = dialed(config(), &site).await;
            let reading = task::spawn(async move { far.rest().await });
            let mut sink = manager.sink();
            let mut sent = Sent::default();
            for n in 0..60 {
                let item = (site.addr.into(), numbered(n, len(n)));
                match n % 3 {
                    0 => {
                        if let Some(fed) = polled(sink.feed(item), polls).await {
                            fed.unwrap();
                            sent.surely.insert(n);
                        }
                    }
                    1 => match polled(sink.send(item), polls).await {
                        Some(done) => {
                            done.unwrap();
                            sent.surely.insert(n);
                        }
                        None => {
                            sent.perhaps.insert(n);
                        }
                    },
                    _ => drop(polled(sink.flush(), polls).await.map(Result::unwrap)),
                }
            }
            // The sink itself may be dropped, too.
            drop(sink);
            until("what was accepted is written", || balanced(&manager).held == 0).await;
            manager.close(site.addr).await.unwrap();
            sent.check(&numbers(&within(SOON, "the end", reading).await), &format!("{polls} polls"));
        }
    });
}

/// While one writes a large message, another puts a small one behind it and gives up: the small one was accepted, and
/// must not wait for somebody else to come along.
#[test]
fn a_write_that_is_given_up_behind_another_is_written() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config(), &site).await;
        let addr = site.addr;
        let reading = task::spawn(async move { far.rest().await });
        for round in 0..200 {
            let before = balanced(&manager).accepted;
            let other = manager.clone();
            let large = std::thread::spawn(move || task::block_on(other.write(addr, numbered(2 * round, 300_000))));
            while balanced(&manager).accepted == before {
                std::thread::yield_now();
            }
            if let Some(written) = manager.write(addr, numbered(2 * round + 1, 8)).now_or_never() {
                written.unwrap();
            }
            large.join().unwrap().unwrap();
            until("what was accepted is written, with nobody to ask for it", || balanced(&manager).held == 0).await;
        }
        manager.close(addr).await.unwrap();
        let numbers = numbers(&within(SOON, "the end", reading).await);
        assert!(numbers.is_sorted_by(|a, b| a < b), "twice, or out of order: {numbers:?}");
        assert_eq!(numbers.len() as u64, balanced(&manager).accepted);
    });
}

/// The message of a write that failed is returned by it; if nobody waits for that any more, it is a dead letter.
#[test]
fn a_write_that_is_dropped_after_it_failed_is_a_dead_letter() {
    run(async {
        let site = Site::small();
        let (manager, far) = dialed(config(), &site).await;
        let mut dead = manager.dead_letters();
        // So much that the kernel does not take it.
        let mut write = Box::pin(manager.write(site.addr, numbered(7, 8 << 20)));
        assert!((&mut write).now_or_never().is_none());
        drop(site);
        far.reset();
        until("it is given back", || balanced(&manager).dead_lettered == 1).await;
        drop(write);
        let letter = within(SOON, "the dead letter", dead.next()).await.unwrap();
        assert_eq!(number(&letter.message), 7);
        assert!(matches!(&*letter.error, Error::Dial { .. }), "{letter:?}");
    });
}

/// A write that nobody polls for a while still learns that its message was not sent.
#[test]
fn a_write_that_is_polled_late_learns_that_it_failed() {
    run(async {
        let site = Site::small();
        let (manager, far) = dialed(config(), &site).await;
        let mut late = Box::pin(manager.write(site.addr, numbered(7, 8 << 20)));
        assert!((&mut late).now_or_never().is_none());
        let addr = site.addr;
        drop(site);
        far.reset();
        until("it is given back", || balanced(&manager).dead_lettered == 1).await;
        for n in 0..100 {
            let error = manager.write(addr, numbered(n, 8)).await.expect_err("nobody listens");
            assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
        }
        let error = within(SOON, "the late write", late).await.expect_err("it was not sent");
        assert_eq!(number(&error.into_unsent().expect("the message")), 7);
    });
}

/// A close that is dropped ends the connection at once; those who wait for their messages are told.
#[test]
fn a_close_that_is_dropped_leaves_nobody_waiting() {
    run(async {
        for polls in 0..4 {
            let site = Site::small();
            let (manager, _far) = dialed(config().close_timeout(Duration::from_millis(100)), &site).await;
            let mut dead = manager.dead_letters();
            // So much that the kernel does not take it.
            let mut write = Box::pin(manager.write(site.addr, numbered(99, 8 << 20)));
            assert!((&mut write).now_or_never().is_none());
            let mut sink = manager.sink();
            for n in 0..3 {
                sink.feed((site.addr.into(), numbered(n, 8))).await.unwrap();
            }
            let mut flush = Box::pin(sink.flush());
            assert!((&mut flush).now_or_never().is_none());
            // The last polls are behind the deadline.
            if let Some(closed) = polled(manager.close(site.addr), polls + 1).await {
                assert!(matches!(closed, Err(Error::Timeout { .. })), "nobody reads: {closed:?}");
            }
            let error = within(SOON, "the write to be told", write).await.expect_err("it was cut off");
            assert_eq!(number(&error.into_unsent().expect("the message")), 99);
            let error = within(SOON, "the sink to be told", flush).await.expect_err("it was cut off");
            assert!(matches!(error, Error::NotSent { .. }), "{error:?}");
            until("it is forgotten", || manager.addresses().is_empty()).await;
            let total = balanced(&manager);
            assert_eq!(total.held, 0, "{total:?}");
            // The write has its message back, the others are dead letters.
            for n in 0..3 {
                let letter = within(SOON, "a dead letter", dead.next()).await.unwrap();
                assert_eq!((number(&letter.message), letter.outcome), (n, Outcome::Closed));
            }
        }
    });
}
