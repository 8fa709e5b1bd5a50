//! The listener as a stream of messages and a sink of replies, from bind to close.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Connection, Error, Event, Listener, Reason};
use futures::stream::FusedStream;
use futures::{SinkExt, StreamExt, stream};

use crate::net::{
    SOON, config, connected, disconnected, event, frame, get, next, number, numbered, put, raw, rest, run, until,
    within,
};

#[test]
fn each_peers_messages_come_in_order_with_its_address() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut senders = Vec::new();
        for _ in 0..4 {
            senders.push(Connection::dial(listener.local_addr(), config()).await.unwrap());
        }
        let addrs: Vec<_> = senders.iter().map(|sender| sender.local_addr().unwrap()).collect();
        for n in 0..250 {
            for (id, sender) in senders.iter_mut().enumerate() {
                sender.feed(numbered(id as u64, n)).await.unwrap();
            }
        }
        for sender in &mut senders {
            sender.close().await.unwrap();
        }
        let mut expected = [0; 4];
        for _ in 0..1000 {
            let (peer, message) = next(&mut listener).await.unwrap();
            let (sender, n) = number(&message);
            assert_eq!(peer.addr(), addrs[sender as usize]);
            assert_eq!(n, expected[sender as usize]);
            expected[sender as usize] += 1;
        }
        assert_eq!(expected, [250; 4]);
    });
}

#[test]
fn the_stream_ends_after_a_close_and_stays_ended() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut peer = raw(listener.local_addr());
        put(&mut peer, b"last");
        drop(peer);
        assert!(!listener.is_terminated());
        listener.close().await.unwrap();
        assert_eq!(next(&mut listener).await.unwrap().1, "last");
        assert!(!listener.is_terminated());
        for _ in 0..3 {
            assert!(next(&mut listener).await.is_none());
            assert!(listener.is_terminated());
        }
    });
}

#[test]
fn events_tell_who_came_and_how_each_went() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut events = listener.events();
        let addr = listener.local_addr();
        let reading = async_std::task::spawn(async move { while listener.next().await.is_some() {} });

        let closing = raw(addr);
        let local = closing.local_addr().unwrap();
        assert_eq!(connected(&mut events).await.addr(), local);
        drop(closing);
        assert!(matches!(disconnected(&mut events, local).await, Reason::Closed));

        let mut cut = raw(addr);
        let local = cut.local_addr().unwrap();
        cut.write_all(&frame(b"whole")[..7]).unwrap();
        drop(cut);
        assert!(matches!(disconnected(&mut events, local).await, Reason::Truncated { got: 7, want: 9 }));

        let staying = raw(addr);
        let peer = connected(&mut events).await;
        assert_eq!(peer.addr(), staying.local_addr().unwrap());
        reading.cancel().await;
        assert!(matches!(disconnected(&mut events, peer.addr()).await, Reason::Stopped));
        assert!(next(&mut events).await.is_none(), "with the listener its events end");
    });
}

#[test]
fn it_listens_on_a_port_a_name_and_a_socket_address() {
    run(async {
        let all = Listener::bind(":0", config()).await.unwrap();
        assert!(all.local_addr().ip().is_unspecified());
        raw(SocketAddr::from(([127, 0, 0, 1], all.local_addr().port())));

        let named = Listener::bind("localhost:0", config()).await.unwrap();
        assert!(named.local_addr().ip().is_loopback());
        raw(named.local_addr());

        let exact = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), config()).await.unwrap();
        assert_ne!(exact.local_addr().port(), 0);
        raw(exact.local_addr());
    });
}

#[test]
fn what_cannot_be_bound_says_which_address_and_why() {
    run(async {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        match Listener::bind(addr, config()).await {
            Err(Error::Bind { address, source }) => {
                assert_eq!(address.as_str(), addr.to_string());
                assert_eq!(source.kind(), ErrorKind::AddrInUse);
            }
            other => panic!("{other:?}"),
        }
        for bad in ["127.0.0.1:65536", ":port", "", "nowhere.invalid:1", "127.0.0.1"] {
            match within(SOON, Listener::bind(bad, config())).await {
                Err(Error::Bind { address, .. }) => assert_eq!(address.as_str(), bad),
                other => panic!("{bad}: {other:?}"),
            }
        }
        let refused = Listener::bind("127.0.0.1:0", config().inbox_bytes(0)).await;
        assert!(matches!(refused, Err(Error::Config(_))), "{refused:?}");
    });
}

#[test]
fn an_echo_answers_all_of_a_peer_that_has_half_closed() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr();
        let (incoming, outgoing) = listener.split();
        let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
        let mut peer = raw(addr);
        let mut sending = peer.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            for n in 0..2000_u64 {
                // Some are chained, most are copied.
                let mut message = numbered(1, n).to_vec();
                message.resize(if n % 100 == 0 { 50_000 } else { 16 + n as usize % 200 }, 7);
                put(&mut sending, &message);
            }
            sending.shutdown(Shutdown::Write).unwrap();
        });
        for n in 0..2000_u64 {
            assert_eq!(number(&get(&mut peer)), (1, n));
        }
        assert_eq!(rest(&mut peer), b"", "and then it closes");
        sender.join().unwrap();
        echo.cancel().await;
    });
}

#[test]
fn an_echo_ends_when_its_listener_is_closed() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer) = (listener.local_addr(), listener.closer());
        let (incoming, outgoing) = listener.split();
        let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
        let mut peer = raw(addr);
        put(&mut peer, b"to be answered");
        assert_eq!(get(&mut peer), b"to be answered");
        within(SOON, closer.close()).await.unwrap();
        assert_eq!(rest(&mut peer), b"");
        drop(peer);
        within(SOON, echo).await.unwrap();
    });
}

#[test]
fn replies_to_a_peer_that_is_gone_are_told_and_the_sink_goes_on() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr(), listener.events());
        let (mut incoming, mut outgoing) = listener.split();
        let mut leaving = raw(addr);
        let local = leaving.local_addr().unwrap();
        put(&mut leaving, b"and gone");
        let (gone, _) = next(&mut incoming).await.unwrap();
        drop(leaving);
        let mut staying = raw(addr);
        put(&mut staying, b"here");
        let (here, _) = next(&mut incoming).await.unwrap();
        assert!(matches!(disconnected(&mut events, local).await, Reason::Closed));
        for _ in 0..3 {
            within(SOON, outgoing.send((gone, Bytes::from_static(b"too late")))).await.unwrap();
        }
        within(SOON, outgoing.send((here, Bytes::from_static(b"in time")))).await.unwrap();
        let undelivered = |event| match event {
            Event::Undelivered { peer, messages } => Some((peer, messages)),
            _ => None,
        };
        for _ in 0..3 {
            assert_eq!(event(&mut events, undelivered).await, (gone, 1));
        }
        assert_eq!(get(&mut staying), b"in time");
    });
}

#[test]
fn an_oversized_reply_comes_back_and_the_sink_works_on() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config().max_message_size(100)).await.unwrap();
        let addr = listener.local_addr();
        let (mut incoming, mut outgoing) = listener.split();
        let mut client = raw(addr);
        put(&mut client, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        let large = Bytes::from(vec![9; 101]);
        match within(SOON, outgoing.send((peer, large.clone()))).await {
            Err(error @ Error::MessageTooLarge { len: 101, max: 100, .. }) => {
                assert_eq!(error.into_unsent().unwrap(), large);
            }
            other => panic!("{other:?}"),
        }
        within(SOON, outgoing.send((peer, large.slice(..100)))).await.unwrap();
        assert_eq!(get(&mut client), large.slice(..100));
    });
}

#[test]
fn connections_are_handed_out_one_by_one() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer, mut events) = (listener.local_addr(), listener.closer(), listener.events());
        let mut connections = listener.connections();
        let (mut a, mut b) = (raw(addr), raw(addr));
        put(&mut a, b"from a");
        put(&mut b, b"from b");
        connected(&mut events).await;
        connected(&mut events).await;
        for left in [1, 0] {
            let mut connection = next(&mut connections).await.unwrap();
            let local = connection.peer_addr().unwrap();
            let (client, sent) = if local == a.local_addr().unwrap() { (&mut a, "from a") } else { (&mut b, "from b") };
            assert_eq!(next(&mut connection).await.unwrap().unwrap(), sent);
            within(SOON, connection.send(Bytes::from_static(b"to you"))).await.unwrap();
            assert_eq!(get(client), b"to you");
            drop(connection);
            assert_eq!(rest(client), b"");
            assert!(matches!(disconnected(&mut events, local).await, Reason::Stopped));
            assert_eq!(closer.stats().connections, left);
        }
        let mut late = raw(addr);
        let mut kept = next(&mut connections).await.unwrap();
        within(SOON, closer.close()).await.unwrap();
        assert!(next(&mut connections).await.is_none());
        assert!(connections.is_terminated());
        drop(connections);
        put(&mut late, b"it outlives its listener");
        assert_eq!(next(&mut kept).await.unwrap().unwrap(), "it outlives its listener");
    });
}

#[test]
fn a_close_frees_the_port_drains_and_can_be_repeated() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr(), listener.events());
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

/// `connections` sinks, 32 at a time, each with `messages` messages and then closed; the listener is closed when the
/// last of them is, and read meanwhile or only then.
fn nothing_is_lost(connections: u64, messages: u64) {
    run(async move {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer) = (listener.local_addr(), listener.closer());
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
    run(async {
        // Each is larger than the share of the inbox that is reserved before a read.
        let config = config().inbox_bytes(1 << 16);
        let mut listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
        let mut sinks = Vec::new();
        for sender in 0..4 {
            let mut sink = Connection::dial(listener.local_addr(), config.clone()).await.unwrap();
            let large = [numbered(sender, 0).to_vec(), vec![0; 200_000]].concat();
            sink.send(large.into()).await.unwrap();
            sinks.push(sink);
        }
        assert!(next(&mut listener).await.is_some());
        within(SOON, listener.close()).await.expect("it only tells the peers");
        for sink in &mut sinks {
            sink.close().await.unwrap();
        }
        drop(sinks);
        assert_eq!(within(SOON, listener.count()).await, 3);
    });
}

#[test]
fn a_silent_peer_ends_at_close_timeout_when_the_others_have_been_received() {
    run(async {
        let limit = Duration::from_millis(300);
        // Longer limits that run already must not stand in its way.
        let config = config().close_timeout(limit).idle_timeout(4 * SOON).frame_timeout(4 * SOON);
        let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, mut events) = (listener.local_addr(), listener.events());
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
                Event::Disconnected { peer, reason: Reason::Timeout { what, after } } => {
                    Some((peer.addr(), what, after))
                }
                _ => None,
            };
            let (addr, what, after) = event(&mut events, late).await;
            assert!([&silent, &halfway].iter().any(|peer| peer.local_addr().unwrap() == addr));
            assert_eq!((what, after), ("close_timeout", limit));
        }
    });
}

#[test]
fn one_peer_that_takes_no_replies_does_not_keep_a_close_from_the_others() {
    run(async {
        let limit = Duration::from_millis(500);
        let config = config().close_timeout(limit).write_timeout(2 * limit).queue_bytes(64 << 20);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, closer) = (listener.local_addr(), listener.closer());
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
        let flushing = async_std::task::spawn(async move { outgoing.flush().await });
        let ending = async_std::task::spawn(async move { while incoming.next().await.is_some() {} });
        assert!(matches!(within(SOON, closer.close()).await, Err(Error::Timeout { what: "close_timeout", .. })));
        for mut other in others {
            assert_eq!(rest(&mut other), b"", "it is told");
        }
        within(SOON, ending).await;
        within(SOON, flushing).await.unwrap();
    });
}

#[test]
fn a_listener_that_was_never_polled_can_be_closed() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let mut peer = raw(listener.local_addr());
        put(&mut peer, b"kept");
        within(SOON, listener.close()).await.unwrap();
        assert_eq!(rest(&mut peer), b"");
        drop(peer);
        assert_eq!(within(SOON, listener.map(|(_, message)| message).collect::<Vec<_>>()).await, ["kept"]);
    });
}

#[test]
fn its_counters_count() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr();
        let mut peers = [raw(addr), raw(addr), raw(addr)];
        for peer in &mut peers {
            put(peer, b"four");
            put(peer, b"");
        }
        for _ in 0..6 {
            next(&mut listener).await.unwrap();
        }
        let stats = listener.stats();
        assert_eq!((stats.connections, stats.accepted, stats.refused), (3, 3, 0));
        assert_eq!((stats.messages, stats.bytes), (6, 3 * (8 + 4)));
        let mut events = listener.events();
        let local = peers[0].local_addr().unwrap();
        let [leaving, ..] = peers;
        drop(leaving);
        disconnected(&mut events, local).await;
        let stats = listener.stats();
        assert_eq!((stats.connections, stats.accepted), (2, 3));
    });
}

#[test]
fn a_dropped_sink_of_replies_leaves_what_is_pending_to_the_background() {
    run(async {
        let config = config().max_message_size(32 << 20);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let addr = listener.local_addr();
        let (mut incoming, mut outgoing) = listener.split();
        let mut client = raw(addr);
        put(&mut client, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        // More than the kernel takes while nobody reads.
        let large = Bytes::from(vec![5; 32 << 20]);
        within(SOON, outgoing.feed((peer, large.clone()))).await.unwrap();
        drop(outgoing);
        assert!(get(&mut client) == large);
    });
}

#[test]
fn a_sink_of_replies_outlives_its_listener_and_waits_for_nobody() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr(), listener.events());
        let (mut incoming, mut outgoing) = listener.split();
        let (mut client, mut deaf) = (raw(addr), raw(addr));
        put(&mut client, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        put(&mut deaf, b"?");
        let (deaf_peer, _) = next(&mut incoming).await.unwrap();
        for _ in 0..20 {
            outgoing.start_send_unpin((deaf_peer, vec![1; 1 << 20].into())).unwrap();
        }
        outgoing.start_send_unpin((peer, Bytes::from_static(b"?"))).unwrap();
        drop(incoming);
        within(SOON, outgoing.send((peer, Bytes::from_static(b"too late")))).await.unwrap();
        let mut undelivered = 0;
        while undelivered < 4 {
            undelivered += event(&mut events, |event| match event {
                Event::Undelivered { messages, .. } => Some(messages),
                _ => None,
            })
            .await;
        }
        within(SOON, outgoing.close()).await.unwrap();
    });
}

#[test]
fn a_close_is_over_when_its_listener_is_dropped_meanwhile() {
    run(async {
        let config = config().close_timeout(None).write_timeout(None);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, closer) = (listener.local_addr(), listener.closer());
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
