//! A manager whose connections hold: dialing, writing, many producers, many addresses, closing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_std::task;
use buffstreams::{Address, Error, Limit, Listener, Manager, Outcome};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{BlackHole, Refusing, SOON, Site, balanced, config, dialed, number, numbered, numbers};
use crate::peers::{run, until, until_within, within};

#[test]
fn an_address_is_dialed_once() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config().close_timeout(Duration::from_millis(100)), &site).await;
        let address = Address::from(site.addr);
        let is_open = |error: Error| matches!(error, Error::AlreadyOpen { address: a, .. } if a == address);
        assert!(is_open(manager.dial(site.addr).await.expect_err("it is open")));
        assert_eq!(manager.addresses(), std::slice::from_ref(&address));
        manager.write(site.addr, "one".into()).await.unwrap();
        assert_eq!(far.message().await, b"one");
        // The peer does not close, so this waits.
        let mut closing = Box::pin(manager.close(site.addr));
        assert!((&mut closing).now_or_never().is_none());
        assert!(is_open(manager.dial(site.addr).await.expect_err("it is being closed")));
        let error = manager.write(site.addr, "two".into()).await.expect_err("it is being closed");
        assert!(matches!(error, Error::NotOpen { .. }), "{error:?}");
        let error = closing.await.expect_err("the peer keeps it open");
        assert!(matches!(error, Error::Timeout { what: Limit::CloseTimeout, .. }), "{error:?}");
        assert!(manager.addresses().is_empty());
        manager.dial(site.addr).await.expect("it was forgotten");
        let hole = BlackHole::new();
        let mut dialing = Box::pin(manager.dial(hole.addr));
        assert!((&mut dialing).now_or_never().is_none());
        let error = manager.dial(hole.addr).await.expect_err("it is being dialed");
        assert!(matches!(error, Error::AlreadyOpen { .. }), "{error:?}");
        drop(dialing);
        assert_eq!(manager.addresses(), [address], "an attempt that was given up is forgotten");
    });
}

#[test]
fn a_message_that_is_not_accepted_comes_back() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config().max_message_size(100), &site).await;
        let error = manager.write("127.0.0.1:1", numbered(1, 50)).await.expect_err("never dialed");
        assert!(matches!(&error, Error::NotOpen { address, .. } if address.as_str() == "127.0.0.1:1"), "{error:?}");
        assert_eq!(error.into_unsent(), Some(numbered(1, 50)));
        let error = manager.write(site.addr, numbered(2, 101)).await.expect_err("too large");
        assert!(matches!(error, Error::MessageTooLarge { len: 101, max: 100, .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(numbered(2, 101)));
        let mut sink = manager.sink();
        let error = sink.feed(("127.0.0.1:1".into(), numbered(3, 50))).await.expect_err("never dialed");
        assert!(matches!(error, Error::NotOpen { .. }), "{error:?}");
        assert_eq!(error.into_unsent(), Some(numbered(3, 50)));
        let error = sink.feed((site.addr.into(), numbered(4, 101))).await.expect_err("too large");
        assert_eq!(error.into_unsent(), Some(numbered(4, 101)));
        // The sink works on.
        sink.feed((site.addr.into(), numbered(5, 100))).await.unwrap();
        sink.close().await.unwrap();
        assert_eq!(far.message().await, numbered(5, 100));
        let error = sink.feed((site.addr.into(), numbered(6, 8))).await.expect_err("it is closed");
        assert!(matches!(error, Error::Closed { .. }), "{error:?}");
        manager.write(site.addr, numbered(7, 100)).await.expect("a sink closes itself, not the connection");
        let error = manager.close("127.0.0.1:1").await.expect_err("never dialed");
        assert!(matches!(error, Error::NotOpen { message: None, .. }), "{error:?}");
        assert_eq!(balanced(&manager).accepted, 2);
    });
}

#[test]
fn a_failed_dial_can_be_tried_again() {
    run(async {
        let manager = Manager::new(config());
        let refusing = Refusing::new();
        for _ in 0..3 {
            let error = manager.dial(refusing.addr).await.expect_err("nobody listens");
            assert!(matches!(error, Error::Dial { .. }), "{error:?}");
            assert!(manager.addresses().is_empty());
        }
        let manager = Manager::new(config().queue_bytes(0));
        let error = manager.dial(refusing.addr).await.expect_err("no queue");
        assert!(matches!(error, Error::Config(_)), "{error:?}");
    });
}

/// The numbers of each producer, as a listener received them.
async fn by_producer(mut listener: Listener) -> HashMap<u64, Vec<u64>> {
    let mut received: HashMap<u64, Vec<u64>> = HashMap::new();
    while let Some((_, message)) = listener.next().await {
        let n = number(&message);
        received.entry(n >> 32).or_default().push(n & 0xffff_ffff);
    }
    received
}

#[test]
fn many_producers_keep_each_ones_order() {
    const PRODUCERS: u64 = 16;
    const MESSAGES: u64 = 2_000;
    run(async {
        let manager = Manager::new(config());
        let mut listeners = Vec::new();
        for _ in 0..2 {
            let listener = manager.listen("127.0.0.1:0").await.unwrap();
            manager.dial(listener.local_addr()).await.unwrap();
            listeners.push((listener.local_addr().ip().unwrap(), task::spawn(by_producer(listener))));
        }
        let addresses: Vec<_> = listeners.iter().map(|(address, _)| *address).collect();
        let threads: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let (mut sink, addresses) = (manager.sink(), addresses.clone());
                let produce = async move {
                    for n in 0..MESSAGES {
                        let message = numbered(producer << 32 | n, 8 + (n as usize * 7 + producer as usize) % 300);
                        let to = if n % 10 < 9 { addresses[0] } else { addresses[1] };
                        sink.feed((to.into(), message)).await.unwrap();
                        if n % 501 == 0 {
                            sink.flush().await.unwrap();
                        }
                    }
                    sink.close().await.unwrap();
                };
                // Tasks and threads of the program's own alike.
                if producer % 2 == 0 {
                    task::spawn(produce)
                } else {
                    task::spawn_blocking(move || futures::executor::block_on(produce))
                }
            })
            .collect();
        for thread in threads {
            within(SOON, "a producer", thread).await;
        }
        let total = balanced(&manager);
        assert_eq!((total.accepted, total.held), (PRODUCERS * MESSAGES, 0));
        for (i, (address, received)) in listeners.into_iter().enumerate() {
            manager.close(address).await.unwrap();
            manager.close_listener(address).await.unwrap();
            let received = within(SOON, "the listener's end", received).await;
            let expected: Vec<_> = (0..MESSAGES).filter(|n| (n % 10 < 9) == (i == 0)).collect();
            for producer in 0..PRODUCERS {
                assert!(received[&producer] == expected, "producer {producer}");
            }
        }
    });
}

#[test]
fn one_sink_serves_sixteen_addresses() {
    run(async {
        let manager = Manager::new(config());
        let mut sites = Vec::new();
        for _ in 0..16 {
            let site = Site::new();
            let addr = site.addr;
            let collected = site.collect();
            manager.dial(addr).await.unwrap();
            sites.push((addr, collected));
        }
        let mut sink = manager.sink();
        for n in 0..8_000_u64 {
            sink.feed((sites[n as usize % 16].0.into(), numbered(n, 200))).await.unwrap();
        }
        sink.close().await.unwrap();
        let mut addresses: Vec<_> = sites.iter().map(|(addr, _)| Address::from(*addr)).collect();
        addresses.sort();
        assert_eq!(manager.addresses(), addresses);
        let stats = manager.stats();
        assert!(stats.addresses.values().all(|link| link.accepted == 500 && link.bytes == 500 * 204));
        for (i, (addr, collected)) in sites.iter().enumerate() {
            manager.close(*addr).await.unwrap();
            until("all to arrive", || collected.len() >= 500 * 204).await;
            let expected: Vec<_> = (0..8_000_u64).filter(|n| *n as usize % 16 == i).collect();
            assert_eq!(collected.numbers(), expected);
        }
        // What is closed is still counted.
        let stats = manager.stats();
        assert!(stats.addresses.is_empty());
        assert_eq!((stats.total.accepted, stats.total.written, stats.total.bytes), (8_000, 8_000, 8_000 * 204));
    });
}

#[test]
fn writes_from_many_threads_all_arrive() {
    run(async {
        let site = Site::new();
        let addr = site.addr;
        let collected = site.collect();
        let manager = Manager::new(config());
        manager.dial(addr).await.unwrap();
        let threads: Vec<_> = (0..8_u64)
            .map(|thread| {
                let manager = manager.clone();
                std::thread::spawn(move || {
                    futures::executor::block_on(async {
                        for n in 0..300 {
                            manager.write(addr, numbered(thread << 32 | n, 100)).await.unwrap();
                        }
                    })
                })
            })
            .collect();
        until("the threads", || threads.iter().all(|thread| thread.is_finished())).await;
        for thread in threads {
            thread.join().unwrap();
        }
        until("all to arrive", || collected.len() == 2_400 * 104).await;
        let numbers = collected.numbers();
        for thread in 0..8 {
            let own: Vec<_> = numbers.iter().filter(|n| *n >> 32 == thread).map(|n| n & 0xffff_ffff).collect();
            assert_eq!(own, (0..300).collect::<Vec<_>>(), "thread {thread}");
        }
    });
}

/// A peer that stops reading, and one that answers no dial: the others do not notice.
#[test]
fn one_dead_address_delays_no_other() {
    run(async {
        let (stuck, well) = (Site::small(), Site::new());
        let (manager, _far) = dialed(config(), &stuck).await;
        let addr = well.addr;
        let collected = well.collect();
        manager.dial(addr).await.unwrap();
        let hole = BlackHole::new();
        let mut dialing = Box::pin(manager.dial(hole.addr));
        assert!((&mut dialing).now_or_never().is_none());
        let mut writing = Box::pin(manager.write(stuck.addr, numbered(0, 8 << 20)));
        assert!((&mut writing).now_or_never().is_none());
        let mut sink = manager.sink();
        sink.feed((stuck.addr.into(), numbered(1, 8))).await.unwrap();
        assert!(sink.flush().now_or_never().is_none());
        let start = Instant::now();
        for n in 0..1_000 {
            within(SOON, "a write to the other address", manager.write(addr, numbered(n, 100))).await.unwrap();
        }
        let mut other = manager.sink();
        for n in 1_000..5_000 {
            other.feed((addr.into(), numbered(n, 100))).await.unwrap();
        }
        within(SOON, "a flush to the other address", other.close()).await.unwrap();
        until("all to arrive", || collected.len() == 5_000 * 104).await;
        assert_eq!(collected.numbers(), (0..5_000).collect::<Vec<_>>());
        assert!(start.elapsed() < Duration::from_secs(9), "the dead ones are still waited for");
        assert!((&mut dialing).now_or_never().is_none());
        assert!((&mut writing).now_or_never().is_none());
        manager.close(addr).await.expect("the others can be closed");
    });
}

#[test]
fn close_delivers_what_was_accepted() {
    run(async {
        for round in 0..10 {
            let site = Site::small();
            let (manager, mut far) = dialed(config(), &site).await;
            let mut sink = manager.sink();
            let mut accepted = 0;
            while sink.feed((site.addr.into(), numbered(accepted, 9_000))).now_or_never().is_some() {
                accepted += 1;
            }
            // What the sink itself still has is handed over when it is dropped.
            drop(sink);
            let (closed, wire) = futures::join!(manager.close(site.addr), async {
                let wire = far.rest().await;
                drop(far);
                wire
            });
            closed.unwrap();
            assert_eq!(numbers(&wire), (0..accepted).collect::<Vec<_>>(), "round {round}");
            let total = balanced(&manager);
            assert_eq!((total.written, total.held), (accepted, 0));
            let (made, mut far) = futures::join!(manager.dial(site.addr), site.accept());
            made.expect("it was forgotten");
            manager.write(site.addr, "again".into()).await.unwrap();
            assert_eq!(far.message().await, b"again");
        }
    });
}

#[test]
fn a_close_that_cannot_deliver_has_a_deadline_and_dead_letters() {
    run(async {
        let site = Site::small();
        let limit = Duration::from_millis(200);
        let (manager, mut far) = dialed(config().close_timeout(limit).queue_bytes(64 << 20), &site).await;
        let mut dead = manager.dead_letters();
        let mut sink = manager.sink();
        let mut accepted = 0;
        while sink.feed((site.addr.into(), numbered(accepted, 90_000))).now_or_never().is_some() {
            accepted += 1;
        }
        drop(sink);
        let error = within(SOON, "the close", manager.close(site.addr)).await.expect_err("nobody reads");
        assert!(
            matches!(error, Error::Timeout { what: Limit::CloseTimeout, after, .. } if after == limit),
            "{error:?}"
        );
        let total = balanced(&manager);
        assert_eq!((total.accepted, total.held), (accepted, 0));
        let mut letters = Vec::new();
        for _ in 0..total.dead_lettered {
            let letter = within(SOON, "a dead letter", dead.next()).await.unwrap();
            assert_eq!((letter.address.to_string(), letter.outcome), (site.addr.to_string(), Outcome::Closed));
            letters.push(number(&letter.message));
        }
        let received = numbers(&far.rest().await);
        assert_eq!(received.into_iter().chain(letters).collect::<Vec<_>>(), (0..accepted).collect::<Vec<_>>());
    });
}

#[test]
fn a_sink_that_is_dropped_leaves_its_messages_to_the_manager() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config(), &site).await;
        for round in 0..100 {
            let mut sink = manager.sink();
            for n in 0..10 {
                sink.feed((site.addr.into(), numbered(round * 10 + n, 8))).await.unwrap();
            }
            drop(sink);
            for n in 0..10 {
                assert_eq!(number(&far.message().await), round * 10 + n);
            }
        }
    });
}

#[test]
fn a_listener_is_known_by_its_address() {
    run(async {
        let manager = Manager::new(config());
        let listener = manager.listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().ip().unwrap();
        let received = task::spawn(listener.map(|(_, message)| number(&message)).collect::<Vec<_>>());
        manager.dial(address).await.unwrap();
        manager.write(address, numbered(1, 8)).await.unwrap();
        manager.close(address).await.unwrap();
        manager.close_listener(address).await.unwrap();
        assert_eq!(within(SOON, "the listener's end", received).await, [1]);
        let error = manager.close_listener(address).await.expect_err("it is closed");
        assert!(matches!(error, Error::NotOpen { .. }), "{error:?}");
        // The port is free.
        manager.listen(address).await.expect("the same port again");
    });
}

/// How many sockets the process has.
fn sockets() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").expect("the descriptors").flatten();
    let links = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

/// Beside other tests the number of descriptors goes up and down; what leaks here would not go away.
#[test]
fn a_dropped_manager_leaves_no_descriptor() {
    run(async {
        let before = sockets();
        for _ in 0..300 {
            let site = Site::new();
            let (manager, far) = dialed(config(), &site).await;
            let mut sink = manager.sink();
            sink.feed((site.addr.into(), numbered(1, 8))).await.unwrap();
            manager.write(site.addr, numbered(2, 8)).await.unwrap();
            drop(manager);
            // The sink keeps it open, and nothing else does.
            sink.flush().await.unwrap();
            drop(sink);
            let mut far = far;
            within(Duration::from_secs(1), "the end of the connection", far.rest()).await;
        }
        until_within(SOON, "the descriptors to go", || sockets() < before + 150).await;
    });
}
