//! What the Go library buffstreams v2.0.0 gets wrong on its sending side: one test for each, named after the fault.

use std::time::{Duration, Instant};

use buffstreams::{Connection, Error, Manager};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::peers::{BlackHole, SOON, Site, config, dialed, frame, number, numbered, numbers, run, until, within};

use crate::net::defaults;

/// There, a message of any size was written, and its receiver lost its place.
#[test]
fn no_size_check_on_send() {
    run(async {
        let site = Site::new();
        // As the Go library has it on the wire.
        let manager = Manager::new(defaults());
        let (made, mut far) = futures::join!(manager.dial(site.addr), site.accept());
        made.unwrap();
        let error = manager.write(site.addr, vec![1; 4097].into()).await.expect_err("over 4096 bytes");
        assert!(matches!(error, Error::MessageTooLarge { len: 4097, max: 4096, .. }), "{error:?}");
        manager.write(site.addr, vec![2; 4096].into()).await.unwrap();
        let (made, mut second) = futures::join!(Connection::dial(site.addr, defaults()), site.accept());
        let mut connection = made.unwrap();
        connection.send(vec![1; 4097].into()).await.expect_err("over 4096 bytes");
        connection.send(vec![2; 4096].into()).await.unwrap();
        // The first bytes on the wire are those of the message that is allowed.
        for far in [&mut far, &mut second] {
            assert_eq!(far.read(3).await, [0x80, 0x40, 0]);
            assert_eq!(far.read(4096).await, [2; 4096]);
        }
    });
}

/// There, a broken connection was closed twice and never dialed again.
#[test]
fn reconnect_never_works() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config(), &site).await;
        for n in 0..20 {
            let reconnects = manager.stats().total.reconnects;
            assert_eq!(reconnects, n);
            // It closes, or it resets.
            if n % 2 == 0 {
                drop(far)
            } else {
                far.reset()
            }
            let arrived = async {
                let mut far = site.accept().await;
                (number(&far.message().await), far)
            };
            // The reset may be noticed by the first write, which is lost then; the next one opens it again.
            let writing = async {
                while manager.stats().total.reconnects == reconnects {
                    manager.write(site.addr, numbered(n, 8)).await.unwrap();
                }
            };
            let ((got, again), ()) = futures::join!(arrived, writing);
            assert_eq!(got, n);
            far = again;
        }
    });
}

/// There, an address whose connection had broken could neither be written to nor dialed nor closed.
#[test]
fn a_broken_address_is_bricked_for_good() {
    run(async {
        let site = Site::new();
        let addr = site.addr;
        let (manager, far) = dialed(config(), &site).await;
        drop((site, far));
        until("the break is noticed", || manager.write(addr, "x".into()).now_or_never().is_none_or(|w| w.is_err()))
            .await;
        manager.write(addr, "y".into()).await.expect_err("nobody listens");
        let site = Site::again(addr).await;
        let (written, mut far) = futures::join!(manager.write(addr, "z".into()), site.accept());
        written.expect("the peer is back");
        while far.message().await != b"z" {}
        drop(far);
        manager.close(addr).await.expect("it can be closed");
        let (made, _far) = futures::join!(manager.dial(addr), site.accept());
        made.expect("it can be dialed");
    });
}

/// There, the message whose write had failed was gone.
#[test]
fn the_failed_message_is_lost() {
    run(async {
        let site = Site::small();
        let (manager, mut far) = dialed(config(), &site).await;
        // A part of it is written, then the connection breaks: it is sent again whole.
        let message = numbered(1, 8 << 20);
        let mut write = Box::pin(manager.write(site.addr, message.clone()));
        assert!((&mut write).now_or_never().is_none());
        assert_eq!(far.read(1_000).await, frame(&message)[..1_000]);
        far.reset();
        let receiving = async {
            let mut far = site.accept().await;
            (far.message().await, far)
        };
        let (written, (received, far)) = futures::join!(write, receiving);
        written.expect("it was sent in the end");
        assert!(received == message);
        // Where that is not possible, it comes back.
        let mut dead = manager.dead_letters();
        let mut sink = manager.sink();
        sink.feed((site.addr.into(), numbered(2, 8 << 20))).await.unwrap();
        sink.flush().now_or_never();
        let mut write = Box::pin(manager.write(site.addr, numbered(3, 8)));
        // It waits behind the large one.
        assert!((&mut write).now_or_never().is_none());
        drop(site);
        far.reset();
        let error = within(SOON, "the write", write).await.expect_err("nobody listens");
        assert_eq!(number(&error.into_unsent().expect("the message")), 3);
        assert_eq!(number(&within(SOON, "the dead letter", dead.next()).await.unwrap().message), 2);
    });
}

/// There, two that wrote at once put their headers and messages into the same buffer.
#[test]
fn two_writers_race_on_one_buffer() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config(), &site).await;
        let addr = site.addr;
        let reading = async_std::task::spawn(async move { far.rest().await });
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let manager = manager.clone();
                std::thread::spawn(move || {
                    futures::executor::block_on(async {
                        for n in 0..500_u64 {
                            let number = thread << 32 | n;
                            manager.write(addr, numbered(number, 8 + (n * 13 % 5_000) as usize)).await.unwrap();
                        }
                    })
                })
            })
            .collect();
        until("the threads", || threads.iter().all(|thread| thread.is_finished())).await;
        manager.close(addr).await.unwrap();
        let wire = within(SOON, "the end", reading).await;
        let (messages, left) = crate::peers::messages(&wire);
        assert_eq!((messages.len(), left), (2_000, 0));
        for message in messages {
            let number = number(&message);
            assert!(message == numbered(number, 8 + ((number & 0xffff_ffff) * 13 % 5_000) as usize), "{number:#x}");
        }
        assert_eq!(numbers(&wire).len(), 2_000);
    });
}

/// There, a lock was held while one address was dialed, and every other address waited for it.
#[test]
fn one_black_holed_dial_blocks_every_address() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config().dial_timeout(Duration::from_secs(15)), &site).await;
        let hole = BlackHole::new();
        let mut dialing = Box::pin(manager.dial(hole.addr));
        assert!((&mut dialing).now_or_never().is_none());
        let start = Instant::now();
        for n in 0..100 {
            manager.write(site.addr, numbered(n, 8)).await.unwrap();
            assert_eq!(number(&far.message().await), n);
        }
        let other = Site::new();
        let (made, _other_far) = futures::join!(manager.dial(other.addr), other.accept());
        made.unwrap();
        drop(far);
        manager.close(site.addr).await.unwrap();
        assert_eq!(manager.addresses().len(), 2);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        assert!((&mut dialing).now_or_never().is_none(), "it is still being dialed");
    });
}
