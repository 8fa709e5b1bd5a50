//! The listener as a stream of messages and a sink of replies, from bind to close.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};

use buffstreams::{Bytes, Connection, Error, Event, Listener, Reason};
use futures::stream::FusedStream;
use futures::{SinkExt, StreamExt};

use crate::net::{
    SOON, alone, config, connected, descriptors, disconnected, event, frame, get, next, number, numbered, put, raw,
    rest, run, start, until, within,
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
            assert_eq!(peer.addr().unwrap(), addrs[sender as usize]);
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
        let mut peer = raw(listener.local_addr().ip().unwrap());
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
        let addr = listener.local_addr().ip().unwrap();
        let reading = async_std::task::spawn(async move { while listener.next().await.is_some() {} });

        let closing = raw(addr);
        let local = closing.local_addr().unwrap();
        assert_eq!(connected(&mut events).await.addr().unwrap(), local);
        drop(closing);
        assert!(matches!(disconnected(&mut events, local).await, Reason::Closed));

        let mut cut = raw(addr);
        let local = cut.local_addr().unwrap();
        cut.write_all(&frame(b"whole")[..7]).unwrap();
        drop(cut);
        assert!(matches!(disconnected(&mut events, local).await, Reason::Truncated { got: 7, want: 9, .. }));

        let staying = raw(addr);
        let peer = connected(&mut events).await;
        assert_eq!(peer.addr().unwrap(), staying.local_addr().unwrap());
        reading.cancel().await;
        assert!(matches!(disconnected(&mut events, peer.addr().unwrap()).await, Reason::Stopped));
        assert!(next(&mut events).await.is_none(), "with the listener its events end");
    });
}

#[test]
fn it_listens_on_a_port_a_name_and_a_socket_address() {
    run(async {
        let all = Listener::bind(":0", config()).await.unwrap();
        assert!(all.local_addr().ip().unwrap().ip().is_unspecified());
        raw(SocketAddr::from(([127, 0, 0, 1], all.local_addr().port().unwrap())));

        let named = Listener::bind("localhost:0", config()).await.unwrap();
        assert!(named.local_addr().ip().unwrap().ip().is_loopback());
        raw(named.local_addr().ip().unwrap());

        let exact = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), config()).await.unwrap();
        assert_ne!(exact.local_addr().port().unwrap(), 0);
        raw(exact.local_addr().ip().unwrap());
    });
}

#[test]
fn what_cannot_be_bound_says_which_address_and_why() {
    run(async {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        match Listener::bind(addr, config()).await {
            Err(Error::Bind { address, source, .. }) => {
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
        let addr = listener.local_addr().ip().unwrap();
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
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
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
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
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
            Event::Undelivered { peer, messages, .. } => Some((peer, messages)),
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
        let addr = listener.local_addr().ip().unwrap();
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
        let (addr, closer, mut events) = (listener.local_addr().ip().unwrap(), listener.closer(), listener.events());
        let mut connections = listener.connections();
        let (mut a, mut b) = (raw(addr), raw(addr));
        put(&mut a, b"from a");
        put(&mut b, b"from b");
        connected(&mut events).await;
        connected(&mut events).await;
        for left in [1, 0] {
            let mut connection = next(&mut connections).await.unwrap();
            let local = connection.peer_addr().unwrap().ip().unwrap();
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

/// `connections` sinks, 32 at a time, each with `messages` messages and then closed; the listener is closed when the
/// last of them is, and read meanwhile or only then.
#[test]
fn its_counters_count() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
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
        let addr = listener.local_addr().ip().unwrap();
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
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
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
fn a_close_writes_the_replies_that_nobody_has_flushed() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
        let (mut incoming, mut outgoing) = listener.split();
        let mut client = raw(addr);
        put(&mut client, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        outgoing.feed((peer, Bytes::from_static(b"!"))).await.unwrap();
        let ending = async_std::task::spawn(async move { while incoming.next().await.is_some() {} });
        within(SOON, closer.close()).await.unwrap();
        assert_eq!(rest(&mut client), frame(b"!"));
        drop(client);
        within(SOON, ending).await;
        drop(outgoing);
    });
}

/// A server closes each connection, and the clients stay: what they have not closed counts.
#[test]
fn max_connections_bounds_descriptors_also_where_clients_stay() {
    alone("listener::max_connections_bounds_descriptors_also_where_clients_stay", "", || {
        const ALLOWED: usize = 20;
        run(async {
            let config = config().max_connections(ALLOWED).close_timeout(None);
            let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            let served = listener.connections().for_each(async |mut connection| {
                connection.close().await.unwrap();
            });
            let serving = async_std::task::spawn(served);
            let mut first = raw(addr);
            assert_eq!(rest(&mut first), b"");
            let before = descriptors();
            let mut clients = Vec::new();
            for n in 1..10 * ALLOWED {
                clients.push(raw(addr));
                // One after the other, each is served or refused.
                assert_eq!(rest(&mut clients[n - 1]), b"");
                let ours = descriptors() - before - n;
                assert!(ours < ALLOWED, "{ours} more descriptors after {n} clients");
            }
            let stats = closer.stats();
            assert_eq!((stats.accepted, stats.refused), (ALLOWED as u64, 9 * ALLOWED as u64));
            // Who leaves makes room.
            drop(first);
            until(SOON, || closer.stats().connections == ALLOWED - 1);
            let mut next = raw(addr);
            assert_eq!(rest(&mut next), b"");
            until(SOON, || closer.stats().accepted == ALLOWED as u64 + 1);
            drop((clients, next));
            until(SOON, || closer.stats().connections == 0);
            // What is closed is closed.
            until(SOON, || descriptors() < before);
            serving.cancel().await;
        });
    });
}

/// A peer's place is free when its task is gone, and not when it is told to go.
#[test]
fn a_place_is_free_when_its_peer_is_told_to_be_gone() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config().max_connections(1)).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        start(&mut listener);
        for _ in 0..200 {
            let mut peer = raw(addr);
            connected(&mut events).await;
            put(&mut peer, b"?");
            assert_eq!(next(&mut listener).await.unwrap().1, "?");
            let local = peer.local_addr().unwrap();
            drop(peer);
            assert!(matches!(disconnected(&mut events, local).await, Reason::Closed));
        }
        assert_eq!(listener.stats().refused, 0);
    });
}
