//! What is fed and not flushed is sent all the same: with real timers and threads. When exactly, the simulator's tests say.

use std::time::Duration;

use async_std::task;
use buffstreams::{Address, Connection, Listener, Manager, Session};
use futures::{SinkExt, StreamExt};

use crate::peers::{SOON, Site, balanced, config, dialed, number, numbered, run, until, within};

/// So short that what is fed goes out in many pieces, in the middle of what is being fed.
const LINGER: Duration = Duration::from_micros(100);
const MESSAGES: u64 = 20_000;

#[test]
fn a_message_that_nobody_flushes_arrives() {
    run(async {
        for config in [config(), config().max_message_size(4096).session(Session::new())] {
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
            let manager = Manager::new(config.clone());
            manager.dial(listener.local_addr()).await.unwrap();
            let mut sink = manager.sink();
            let mut connection =
                Connection::dial(listener.local_addr(), config.linger(Duration::from_millis(1))).await.unwrap();
            for n in 0..10 {
                sink.feed((listener.local_addr().into(), numbered(2 * n, 8))).await.unwrap();
                let (_, message) = within(SOON, "the message of the sink", listener.next()).await.unwrap();
                assert_eq!(number(&message), 2 * n);
                connection.feed(numbered(2 * n + 1, 8)).await.unwrap();
                let (_, message) = within(SOON, "the message of the connection", listener.next()).await.unwrap();
                assert_eq!(number(&message), 2 * n + 1);
            }
        }
    });
}

/// Those of each producer, in order, until all of `producers` are complete.
async fn all_in_order(mut listener: Listener, producers: u64) {
    let mut next = vec![0; producers as usize];
    while next.iter().any(|next| *next < MESSAGES) {
        let (_, message) = within(SOON, "a message", listener.next()).await.unwrap();
        let n = number(&message);
        assert_eq!(n & 0xffff_ffff, next[(n >> 32) as usize]);
        next[(n >> 32) as usize] += 1;
    }
}

/// Threads feed while the task of the address hands over what they have fed.
#[test]
fn sinks_that_nobody_flushes_keep_their_order() {
    const SINKS: u64 = 4;
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let address = Address::from(listener.local_addr());
        let manager = Manager::new(config().linger(LINGER));
        manager.dial(&address).await.unwrap();
        let producers: Vec<_> = (0..SINKS)
            .map(|producer| {
                let (mut sink, address) = (manager.sink(), address.clone());
                task::spawn(async move {
                    for n in 0..MESSAGES {
                        sink.feed((address.clone(), numbered(producer << 32 | n, 8))).await.unwrap();
                    }
                    sink
                })
            })
            .collect();
        all_in_order(listener, SINKS).await;
        until("all is written", || balanced(&manager).held == 0).await;
        assert_eq!(balanced(&manager).written, SINKS * MESSAGES);
        for producer in producers {
            producer.await.flush().await.unwrap();
        }
    });
}

/// It is fed while its task writes.
#[test]
fn a_connection_that_nobody_flushes_keeps_its_order() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut connection = Connection::dial(listener.local_addr(), config().linger(LINGER)).await.unwrap();
        let producing = task::spawn(async move {
            for n in 0..MESSAGES {
                match n % 3 {
                    0 => connection.feed(numbered(n, 8)).await.unwrap(),
                    1 => {
                        while !connection.try_feed(&numbered(n, 8)).unwrap() {
                            connection.ready().await.unwrap();
                        }
                    }
                    _ => connection.feed(numbered(n, 5000)).await.unwrap(),
                }
                if n % 1000 == 0 {
                    connection.flush().await.unwrap();
                }
            }
            connection
        });
        all_in_order(listener, 1).await;
        let mut connection = producing.await;
        within(SOON, "the flush", connection.flush()).await.unwrap();
        assert!(connection.take_unsent().is_empty());
    });
}

#[test]
fn what_lingers_is_delivered_by_a_close() {
    run(async {
        let site = Site::new();
        let (manager, mut far) = dialed(config().linger(SOON), &site).await;
        let mut sink = manager.sink();
        sink.feed((site.addr.into(), numbered(7, 8))).await.unwrap();
        let reading = task::spawn(async move { far.message().await });
        within(SOON / 2, "the close", manager.close(site.addr)).await.unwrap();
        assert_eq!(number(&reading.await), 7);
        sink.flush().await.unwrap();
    });
}
