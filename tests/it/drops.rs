//! Dropping anything at any moment: nothing is lost that was accepted, nothing is left behind, and nobody waits.

use std::io::Write;
use std::net::Shutdown;
use std::task::Poll;
use std::time::{Duration, Instant};

use buffstreams::{Backoff, Bytes, Connection, Listener, Manager};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{
    SOON, alone, config, connected, descriptors, frame, get, next, number, numbered, put, raw, rest, run, unread,
    until, within,
};

#[test]
fn a_thousand_listeners_and_their_connections_leave_nothing_behind() {
    alone("drops::a_thousand_listeners_and_their_connections_leave_nothing_behind", "", || {
        run(async {
            // What the runtime opens once for all.
            drop(Connection::dial(Listener::bind("127.0.0.1:0", config()).await.unwrap().local_addr(), config()).await);
            let before = descriptors();
            let (mut ends, mut sinks) = (Vec::new(), Vec::new());
            for n in 0..1_000 {
                let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
                let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
                let mut client = Connection::dial(addr, config()).await.unwrap();
                connected(&mut events).await;
                match n % 5 {
                    // Never used.
                    0 => drop(listener),
                    // Unread messages, one of them cut.
                    1 => {
                        client.send(numbered(0, 0)).await.unwrap();
                        raw(addr).write_all(&frame(b"cut")[..5]).unwrap();
                        drop(listener);
                    }
                    // A sink that stays, with replies that nobody took.
                    2 => {
                        client.send(numbered(0, 0)).await.unwrap();
                        let (mut incoming, mut outgoing) = listener.split();
                        let (peer, message) = next(&mut incoming).await.unwrap();
                        outgoing.feed((peer, message)).await.unwrap();
                        sinks.push((incoming.closer(), outgoing));
                    }
                    3 => drop(listener.serve_in_background(|_, _| Ok(()))),
                    _ => {
                        let mut connections = listener.connections();
                        let connection = next(&mut connections).await.unwrap();
                        drop(connections);
                        drop(connection);
                    }
                }
                ends.push(events);
            }
            // A descriptor may be held by a task that has been cancelled and not been run since.
            until(Duration::from_secs(1), || descriptors() <= before);
            drop(sinks);
            // The tasks hold what the events come from, so with their end it ends.
            for mut events in ends {
                within(Duration::from_secs(1), async { while events.next().await.is_some() {} }).await;
            }
        });
    });
}

/// How many threads this process has.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn a_thousand_managers_leave_nothing_behind() {
    alone("drops::a_thousand_managers_leave_nothing_behind", "", || {
        run(async {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let receiving = async_std::task::spawn(async move { while listener.next().await.is_some() {} });
            // One whose peer is gone: nobody listens there, and nobody else gets the port.
            let gone = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let away = gone.local_addr().ip().unwrap();
            let patient = config().reconnect(Backoff::from_fn(|| std::iter::repeat(Duration::from_millis(5))));
            // What the runtime opens once for all.
            let manager = Manager::new(config());
            manager.dial(addr).await.unwrap();
            manager.shutdown(SOON).await;
            let before = (descriptors(), threads());
            let (mut ends, mut sinks, mut letters) = (Vec::new(), Vec::new(), Vec::new());
            let mut managers = Vec::new();
            for n in 0..1_000 {
                let manager = Manager::new(patient.clone().close_timeout(Duration::from_millis(1)).queue_bytes(1_000));
                manager.dial(if n % 6 == 1 { away } else { addr }).await.unwrap();
                ends.push(manager.events());
                managers.push(manager);
            }
            drop(gone);
            for (n, manager) in managers.into_iter().enumerate() {
                let mut sink = manager.sink();
                let to = if n % 6 == 1 { away } else { addr };
                match n % 6 {
                    // Never used.
                    0 => drop(manager),
                    // Its task dials again and again, for what a sink has left behind.
                    1 => {
                        sink.feed((to.into(), numbered(0, 0))).await.unwrap();
                        drop(sink);
                        drop(manager);
                    }
                    // A sink outlives it.
                    2 => {
                        sink.send((to.into(), numbered(0, 0))).await.unwrap();
                        sinks.push(sink);
                    }
                    // Letters that nobody takes wait in the background.
                    3 => {
                        letters.push(manager.dead_letters());
                        for _ in 0..4 {
                            sink.feed((to.into(), vec![0; 10].into())).await.unwrap();
                        }
                        let _ = manager.close(to).now_or_never();
                        drop(sink);
                    }
                    4 => {
                        manager.write(to, numbered(0, 0)).await.unwrap();
                        let _ = manager.close(to).await;
                    }
                    _ => {
                        sink.feed((to.into(), numbered(0, 0))).await.unwrap();
                        manager.shutdown(Duration::ZERO).await;
                    }
                }
            }
            drop((sinks, letters));
            // The tasks hold what the events come from, so with their end it ends.
            for mut events in ends {
                within(SOON, async { while events.next().await.is_some() {} }).await;
            }
            // One of them listened where nobody does any more.
            until(Duration::from_secs(1), || descriptors() < before.0);
            assert!(threads() <= before.1, "{} threads, and {} before", threads(), before.1);
            receiving.cancel().await;
        });
    });
}

#[test]
fn dropping_a_listener_full_of_work_does_not_block() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let (mut incoming, mut outgoing) = listener.split();
        let mut peers: Vec<_> = (0..50).map(|_| raw(addr)).collect();
        for peer in &mut peers {
            put(peer, &[0; 30_000]);
            connected(&mut events).await;
        }
        for _ in 0..50 {
            let (peer, _) = next(&mut incoming).await.unwrap();
            // None of them reads.
            let _ = outgoing.feed((peer, vec![0; 1 << 20].into())).now_or_never();
        }
        let begun = Instant::now();
        drop(incoming);
        drop(outgoing);
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        for peer in &mut peers {
            rest(peer);
        }
        within(SOON, async { while events.next().await.is_some() {} }).await;
    });
}

#[test]
fn a_future_of_next_can_be_dropped_after_any_number_of_polls() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        for polls in 0..=40_u64 {
            let sending = async_std::task::spawn(async move {
                let mut sink = Connection::dial(addr, config()).await.unwrap();
                for n in 0..20 {
                    sink.send(numbered(polls, n)).await.unwrap();
                    async_std::task::yield_now().await;
                }
                sink.close().await.unwrap();
            });
            let mut expected = 0;
            while expected < 20 {
                let mut received = None;
                let mut future = listener.next();
                for _ in 0..polls {
                    if let Poll::Ready(ready) = futures::poll!(&mut future) {
                        received = ready;
                        break;
                    }
                    async_std::task::yield_now().await;
                }
                // It is dropped here; where it was never polled, or never often enough, one is awaited as well.
                let (_, message) = match received {
                    Some(received) => received,
                    None => next(&mut listener).await.unwrap(),
                };
                assert_eq!(number(&message), (polls, expected));
                expected += 1;
            }
            within(SOON, sending).await;
        }
    });
}

#[test]
fn a_flush_of_replies_can_be_dropped_after_any_number_of_polls() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config().queue_bytes(64 << 20)).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let (mut incoming, mut outgoing) = listener.split();
        let mut client = raw(addr);
        put(&mut client, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        // More than the kernel takes until the client reads.
        let reply = |polls: u64| Bytes::from([&numbered(polls, 0)[..], &vec![0; 500_000]].concat());
        for polls in 0..=40 {
            outgoing.feed((peer, reply(polls))).await.unwrap();
            let mut flush = outgoing.flush();
            for _ in 0..polls {
                let _ = futures::poll!(&mut flush);
                async_std::task::yield_now().await;
            }
        }
        let reading = std::thread::spawn(move || {
            for polls in 0..=40 {
                assert!(get(&mut client) == reply(polls), "{polls}");
            }
            client
        });
        within(SOON, outgoing.flush()).await.unwrap();
        drop((outgoing, incoming));
        assert_eq!(rest(&mut reading.join().unwrap()), b"", "nothing was sent twice");
    });
}

#[test]
fn a_future_of_close_can_be_dropped_and_the_close_goes_on() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let mut client = raw(addr);
        put(&mut client, b"one");
        // Its task waits for more when the close begins.
        assert_eq!(next(&mut listener).await.unwrap().1, "one");
        until(SOON, || unread(addr) == 0);
        let _ = listener.close().now_or_never();
        assert_eq!(rest(&mut client), b"", "it is told");
        put(&mut client, b"two");
        drop(client);
        let messages = within(SOON, listener.map(|(_, message)| message).collect::<Vec<_>>()).await;
        assert_eq!(messages, ["two"]);
    });
}

#[test]
fn the_stream_goes_on_without_its_sink_of_replies() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let (mut incoming, outgoing) = listener.split();
        let mut waiting = raw(addr);
        put(&mut waiting, b"held");
        waiting.shutdown(Shutdown::Write).unwrap();
        assert_eq!(next(&mut incoming).await.unwrap().1, "held");
        drop(outgoing);
        assert_eq!(rest(&mut waiting), b"", "no reply can come any more");
        let mut client = raw(addr);
        for n in 0..100 {
            put(&mut client, &numbered(0, n));
            assert_eq!(number(&next(&mut incoming).await.unwrap().1), (0, n));
        }
    });
}

#[test]
fn connections_that_nobody_took_end_with_their_listener() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let connections = listener.connections();
        let mut clients: Vec<_> = (0..20).map(|_| raw(addr)).collect();
        for _ in &clients {
            connected(&mut events).await;
        }
        drop(connections);
        for client in &mut clients {
            assert_eq!(rest(client), b"");
        }
        within(SOON, async { while events.next().await.is_some() {} }).await;
    });
}
