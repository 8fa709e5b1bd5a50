//! How a listener ends: nothing is lost on the way, the port is free, and nobody is waited for longer than agreed.

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Connection, Error, Event, Limit, Listener, Reason};
use futures::{SinkExt, StreamExt, stream};

use crate::net::{
    SOON, alone, config, connected, event, frame, next, number, numbered, put, raw, rest, run, start, until, within,
};

#[test]
fn a_close_frees_the_port_drains_and_can_be_repeated() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let mut peer = raw(addr);
        put(&mut peer, b"before");
        connected(&mut events).await;
        within(SOON, listener.close()).await.unwrap();
        let again = Listener::bind(addr, config()).await.expect("the port is free");
        within(SOON, listener.close()).await.unwrap();
        assert_eq!(rest(&mut peer), b"", "it is told");
        put(&mut peer, b"after");
        put(&mut peer, b"and more");
        drop(peer);
        for expected in ["before", "after", "and more"] {
            assert_eq!(next(&mut listener).await.unwrap().1, expected);
        }
        assert!(next(&mut listener).await.is_none());
        within(SOON, listener.close()).await.unwrap();
        drop((listener, again));
        Listener::bind(addr, config()).await.expect("a drop frees it too");
    });
}

fn nothing_is_lost(connections: u64, messages: u64) {
    run(async move {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
        let sent = stream::iter(0..connections).for_each_concurrent(32, move |sender| async move {
            let mut sink = Connection::dial(addr, config()).await.unwrap();
            for n in 0..messages {
                sink.feed(numbered(sender, n)).await.unwrap();
            }
            sink.close().await.unwrap();
        });
        let sending = async_std::task::spawn(async move {
            sent.await;
            closer.close().await
        });
        let mut expected = vec![0; connections as usize];
        while let Some((_, message)) = next(&mut listener).await {
            let (sender, n) = number(&message);
            assert_eq!(n, expected[sender as usize], "of sender {sender}");
            expected[sender as usize] += 1;
        }
        within(SOON, sending).await.unwrap();
        assert!(expected.iter().all(|received| *received == messages), "{expected:?}");
        let stats = listener.stats();
        assert_eq!((stats.accepted, stats.messages), (connections, connections * messages));
    });
}

#[test]
fn nothing_is_lost_or_reordered_between_1_closed_sink_and_the_end() {
    nothing_is_lost(1, 20_000);
}

#[test]
fn nothing_is_lost_or_reordered_between_100_closed_sinks_and_the_end() {
    nothing_is_lost(100, 500);
}

#[test]
fn nothing_is_lost_or_reordered_between_2000_closed_sinks_and_the_end() {
    nothing_is_lost(2_000, 20);
}

#[test]
fn nothing_is_lost_when_it_is_read_only_after_the_close() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        for sender in 0..50 {
            let mut sink = Connection::dial(listener.local_addr(), config()).await.unwrap();
            for n in 0..50 {
                sink.feed(numbered(sender, n)).await.unwrap();
            }
            sink.close().await.unwrap();
        }
        within(SOON, listener.close()).await.unwrap();
        let mut expected = [0; 50];
        while let Some((_, message)) = next(&mut listener).await {
            let (sender, n) = number(&message);
            assert_eq!(n, expected[sender as usize]);
            expected[sender as usize] += 1;
        }
        assert_eq!(expected, [50; 50]);
    });
}

#[test]
fn a_close_is_not_held_up_by_large_messages_that_nobody_takes() {
    alone("closing::a_close_is_not_held_up_by_large_messages_that_nobody_takes", "", || {
        // Alone, because a buffer that another test has used may be larger.
        run(async {
            // Room for one of the messages, and for reading a second one that then waits.
            let config = config().inbox_bytes(300_000);
            let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
            start(&mut listener);
            let mut sinks = Vec::new();
            for sender in 0..4 {
                let mut sink = Connection::dial(listener.local_addr(), config.clone()).await.unwrap();
                let large = [numbered(sender, 0).to_vec(), vec![0; 200_000]].concat();
                sink.send(large.into()).await.unwrap();
                sinks.push(sink);
            }
            until(SOON, || listener.stats().messages >= 2);
            within(SOON, listener.close()).await.expect("it only tells the peers");
            for sink in &mut sinks {
                sink.close().await.unwrap();
            }
            drop(sinks);
            assert_eq!(within(SOON, listener.count()).await, 4);
        });
    });
}

#[test]
fn a_silent_peer_ends_at_close_timeout_when_the_others_have_been_received() {
    run(async {
        let limit = Duration::from_millis(300);
        // Longer limits that run already must not stand in its way.
        let config = config().close_timeout(limit).idle_timeout(4 * SOON).frame_timeout(4 * SOON);
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let (silent, mut halfway, mut last) = (raw(addr), raw(addr), raw(addr));
        halfway.write_all(&[0, 0]).unwrap();
        put(&mut last, b"one");
        assert_eq!(next(&mut listener).await.unwrap().1, "one");
        let start = Instant::now();
        within(SOON, listener.close()).await.unwrap();
        put(&mut last, b"two");
        last.shutdown(Shutdown::Write).unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "two");
        assert!(next(&mut listener).await.is_none());
        assert!(start.elapsed() >= limit, "{:?}", start.elapsed());
        for _ in 0..2 {
            let late = |event| match event {
                Event::Disconnected { peer, reason: Reason::Timeout { what, after, .. }, .. } => {
                    Some((peer.addr().unwrap(), what, after))
                }
                _ => None,
            };
            let (addr, what, after) = event(&mut events, late).await;
            assert!([&silent, &halfway].iter().any(|peer| peer.local_addr().unwrap() == addr));
            assert_eq!((what, after), (Limit::CloseTimeout, limit));
        }
    });
}

#[test]
fn one_peer_that_takes_no_replies_does_not_keep_a_close_from_the_others() {
    run(async {
        let limit = Duration::from_millis(500);
        let config = config().close_timeout(limit).write_timeout(2 * limit).queue_bytes(64 << 20);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
        let (mut incoming, mut outgoing) = listener.split();
        let mut deaf = raw(addr);
        put(&mut deaf, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        let others: Vec<_> = (0..16).map(|_| raw(addr)).collect();
        until(SOON, || closer.stats().connections == 17);
        let reply = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..32 {
            outgoing.feed((peer, reply.clone())).await.unwrap();
        }
        let flushing = async_std::task::spawn(async move { (outgoing.flush().await, outgoing) });
        let ending = async_std::task::spawn(async move { while incoming.next().await.is_some() {} });
        assert!(matches!(within(SOON, closer.close()).await, Err(Error::Timeout { what: Limit::CloseTimeout, .. })));
        for mut other in others {
            assert_eq!(rest(&mut other), b"", "it is told");
        }
        within(SOON, ending).await;
        within(SOON, flushing).await.0.unwrap();
    });
}

#[test]
fn a_listener_that_was_never_polled_can_be_closed() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut peer = raw(listener.local_addr().ip().unwrap());
        put(&mut peer, b"kept");
        within(SOON, listener.close()).await.unwrap();
        assert_eq!(rest(&mut peer), b"");
        drop(peer);
        assert_eq!(within(SOON, listener.map(|(_, message)| message).collect::<Vec<_>>()).await, ["kept"]);
    });
}

#[test]
fn a_close_is_over_when_its_listener_is_dropped_meanwhile() {
    run(async {
        let config = config().close_timeout(None).write_timeout(None);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
        let (mut incoming, mut outgoing) = listener.split();
        let mut deaf = raw(addr);
        put(&mut deaf, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        for _ in 0..20 {
            outgoing.start_send_unpin((peer, vec![1; 1 << 20].into())).unwrap();
        }
        let mut closing = Box::pin(closer.close());
        assert!(async_std::future::timeout(Duration::from_millis(50), &mut closing).await.is_err());
        drop(incoming);
        within(SOON, closing).await.unwrap();
    });
}

#[test]
fn a_close_receives_a_large_message_that_comes_slowly_and_whole() {
    const LIMIT: Duration = Duration::from_secs(2);
    run(async {
        let listener =
            Listener::bind("127.0.0.1:0", config().max_message_size(4 << 20).close_timeout(LIMIT)).await.unwrap();
        let (closer, bytes) = (listener.closer(), Arc::new(AtomicUsize::new(0)));
        let counting = bytes.clone();
        let serving = listener.serve_in_background(move |_, message| {
            counting.fetch_add(message.len(), Ordering::Relaxed);
            Ok(())
        });
        let mut peer = raw(closer.local_addr().ip().unwrap());
        until(SOON, || closer.stats().connections == 1);
        let sending = std::thread::spawn(move || {
            for piece in frame(&vec![7; 2_500_000]).chunks(64 << 10) {
                // Much shorter than the limit, and all of them together are much longer.
                peer.write_all(piece).unwrap();
                std::thread::sleep(LIMIT / 20);
            }
        });
        let start = Instant::now();
        within(SOON, serving.close()).await.unwrap();
        assert!(start.elapsed() > LIMIT * 3 / 2, "{:?}", start.elapsed());
        sending.join().unwrap();
        assert_eq!(bytes.load(Ordering::Relaxed), 2_500_000);
    });
}
