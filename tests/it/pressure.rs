//! Who is slow, and who is fast: what is held for whom, who waits for whom, and that nothing is lost on the way.

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Connection, Event, Limit, Listener, Peer, Reason};
use futures::{FutureExt, SinkExt, StreamExt, future};

use crate::net::{
    SOON, alone, config, connected, disconnected, event, frame, get, next, number, numbered, put, raw, resident, rest,
    run, start, until, within,
};

/// Message `n` of `sender`, `len` bytes of it.
fn sized(sender: u64, n: u64, len: usize) -> Bytes {
    let mut message = numbered(sender, n).to_vec();
    message.resize(len.max(16), 0);
    message.into()
}

#[test]
fn a_consumer_that_takes_nothing_costs_the_inbox_and_loses_nothing() {
    const SENDERS: u64 = 8;
    const MESSAGES: u64 = 4_000;
    const LIMIT: u64 = 256 << 10;
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(LIMIT as usize)).await.unwrap();
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
        start(&mut listener);
        let sending: Vec<_> = (0..SENDERS)
            .map(|sender| {
                async_std::task::spawn(async move {
                    let mut sink = Connection::dial(addr, config()).await.unwrap();
                    for n in 0..MESSAGES {
                        sink.feed(sized(sender, n, 4_000)).await.unwrap();
                    }
                    sink.close().await.unwrap();
                })
            })
            .collect();
        // It is full where there is no room for another read. What it holds has up to four times the memory of its messages, as a
        // read may have brought little.
        until(SOON, || closer.stats().bytes > LIMIT / 8);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            let received = closer.stats().bytes;
            assert!(received <= LIMIT, "{received} bytes are held for a consumer that takes nothing");
            async_std::task::yield_now().await;
        }
        let mut expected = [0; SENDERS as usize];
        for taken in 0..SENDERS * MESSAGES {
            let (sender, n) = number(&next(&mut listener).await.unwrap().1);
            assert_eq!(n, expected[sender as usize]);
            expected[sender as usize] += 1;
            assert!(closer.stats().bytes <= LIMIT + (taken + 1) * 4_004);
        }
        within(SOON, future::join_all(sending)).await;
    });
}

#[test]
fn each_quiet_peer_is_served_in_every_round_beside_a_firehose() {
    const QUIET: usize = 100;
    const INBOX: usize = 256 << 10;
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(INBOX)).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let mut firehose = raw(addr);
        let hose = firehose.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let wire = frame(&[0; 1020]).repeat(64);
        let spraying =
            std::thread::spawn(move || while !stopping.load(Ordering::Relaxed) && firehose.write_all(&wire).is_ok() {});
        let mut quiet: Vec<_> = (0..QUIET).map(|_| raw(addr)).collect();
        for round in 0..10 {
            for (i, peer) in quiet.iter_mut().enumerate() {
                put(peer, &numbered(i as u64, round));
            }
            let (mut served, mut between) = (vec![false; QUIET], 0);
            while served.iter().any(|served| !served) {
                let (peer, message) = next(&mut listener).await.unwrap();
                if peer.addr().unwrap() == hose {
                    between += 1;
                    continue;
                }
                let (i, n) = number(&message);
                assert_eq!(n, round);
                served[i as usize] = true;
            }
            // The inbox holds 256 of them.
            assert!(between <= 256 * 16, "{between} of the firehose in one round");
        }
        stop.store(true, Ordering::Relaxed);
        drop(listener);
        spraying.join().unwrap();
    });
}

#[test]
fn a_flood_of_empty_messages_costs_no_memory() {
    alone("pressure::a_flood_of_empty_messages_costs_no_memory", "", || {
        run(async {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            start(&mut listener);
            let flooding = std::thread::spawn(move || {
                let mut peer = raw(addr);
                let wire = frame(b"").repeat(100_000);
                for _ in 0..30 {
                    peer.write_all(&wire).unwrap();
                }
            });
            // Nobody takes any: each has its price, so they do not pile up.
            until(SOON, || closer.stats().messages > 50_000);
            for _ in 0..1_000_000 {
                assert!(next(&mut listener).await.unwrap().1.is_empty());
            }
            let before = resident();
            for _ in 0..2_000_000 {
                assert!(next(&mut listener).await.unwrap().1.is_empty());
            }
            let grown = resident().saturating_sub(before);
            assert!(grown < 2 << 20, "{grown} bytes for two million empty messages");
            flooding.join().unwrap();
        });
    });
}

#[test]
fn small_batches_that_nobody_takes_are_charged_what_they_cost() {
    alone("pressure::small_batches_that_nobody_takes_are_charged_what_they_cost", "", || {
        run(async {
            const LIMIT: usize = 1 << 20;
            let mut listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(LIMIT)).await.unwrap();
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            start(&mut listener);
            let before = resident();
            let mut peer = raw(addr);
            peer.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
            let mut sent = 0;
            // Each in a segment of its own, read as soon as it comes.
            while sent < 20_000 && peer.write_all(&frame(b"")).is_ok() {
                sent += 1;
                let begun = Instant::now();
                while closer.stats().messages < sent && begun.elapsed() < Duration::from_millis(20) {
                    std::thread::yield_now();
                }
                if closer.stats().messages < sent {
                    break;
                }
            }
            assert!((1_000..20_000).contains(&sent), "the inbox is full after {sent}");
            let grown = resident().saturating_sub(before);
            assert!(grown < LIMIT, "{grown} bytes are held for {sent} empty messages");
        });
    });
}

fn asks(addr: SocketAddr, wire: &[u8]) -> std::net::TcpStream {
    let mut deaf = raw(addr);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let begun = Instant::now();
    loop {
        match deaf.write_all(wire) {
            Ok(()) => assert!(begun.elapsed() < SOON, "its requests are taken for ever"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return deaf,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_peer_that_takes_no_replies_keeps_no_other_waiting() {
    for len in [20, 1_000, 20_000, 200_000] {
        run(async {
            let config = config().write_timeout(4 * SOON);
            let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            let addr = listener.local_addr().ip().unwrap();
            let (incoming, outgoing) = listener.split();
            let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
            let wire = frame(&vec![1; len]).repeat(1 + 100_000 / len);
            let asking = std::thread::spawn(move || asks(addr, &wire));
            let mut other = raw(addr);
            let mut n = 0;
            while !asking.is_finished() || n < 100 {
                put(&mut other, &numbered(0, n));
                assert_eq!(number(&get(&mut other)), (0, n));
                n += 1;
            }
            let deaf = asking.join().unwrap();
            for n in 0..100 {
                put(&mut other, &numbered(1, n));
                assert_eq!(number(&get(&mut other)), (1, n));
            }
            drop(deaf);
            echo.cancel().await;
        });
    }
}

#[test]
fn a_slow_echo_waits_for_no_peer_that_takes_no_replies() {
    run(async {
        let config = config().write_timeout(4 * SOON);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let (incoming, outgoing) = listener.split();
        // So slow that the inbox is full of that peer's messages at all times.
        let echo = incoming.map(|item: (Peer, Bytes)| {
            std::thread::sleep(Duration::from_micros(200));
            Ok(item)
        });
        let echo = async_std::task::spawn(echo.forward(outgoing));
        let wire = frame(&[1; 8_000]).repeat(50);
        let deaf = asks(addr, &wire);
        let mut other = raw(addr);
        for n in 0..10 {
            put(&mut other, &numbered(1, n));
            assert_eq!(number(&get(&mut other)), (1, n));
        }
        drop(deaf);
        echo.cancel().await;
    });
}

#[test]
fn a_peer_that_takes_no_replies_costs_queue_bytes_and_is_ended_at_write_timeout() {
    run(async {
        let limit = Duration::from_millis(400);
        const QUEUE: usize = 24 << 20;
        // What the kernel takes on its own, at both ends.
        const KERNEL: usize = 16 << 20;
        let config = config().write_timeout(limit).queue_bytes(QUEUE);
        let listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let (mut incoming, mut outgoing) = listener.split();
        let mut deaf = raw(addr);
        put(&mut deaf, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        let reply = Bytes::from(vec![7; 100_000]);
        let mut accepted = 0;
        while outgoing.feed((peer, reply.clone())).now_or_never().is_some() {
            accepted += reply.len();
            assert!(accepted <= QUEUE + KERNEL, "{accepted} bytes are held for a peer that takes nothing");
        }
        assert!(accepted >= QUEUE);
        let messages = event(&mut events, |event| match event {
            Event::Undelivered { peer: whose, messages, .. } if whose == peer => Some(messages),
            _ => None,
        });
        let messages = messages.await;
        // It may have taken more since then.
        assert!(((QUEUE - KERNEL) / 100_000..=accepted / 100_000).contains(&messages), "{messages}");
        let reason = disconnected(&mut events, peer.addr().unwrap()).await;
        assert!(
            matches!(reason, Reason::Timeout { what: Limit::WriteTimeout, after, .. } if after == limit),
            "{reason:?}"
        );
        // The sink waits no longer, and serves the next.
        let mut good = raw(addr);
        put(&mut good, b"?");
        let (peer, _) = next(&mut incoming).await.unwrap();
        within(SOON, outgoing.send((peer, Bytes::from_static(b"!")))).await.unwrap();
        assert_eq!(get(&mut good), b"!");
    });
}

/// A small generator of numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// An echo with these limits, many peers that want all their replies, and others that break off anywhere.
fn an_echo_in_disorder(inbox_bytes: usize, queue_bytes: usize, longest: u64) {
    run(async move {
        let config = config().inbox_bytes(inbox_bytes).queue_bytes(queue_bytes);
        let listener = Listener::bind("127.0.0.1:0", config.clone()).await.unwrap();
        let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
        let (incoming, outgoing) = listener.split();
        let echo = async_std::task::spawn(incoming.map(Ok).forward(outgoing));
        let good = (0..40).map(|sender| {
            let config = config.clone();
            async_std::task::spawn(async move {
                let mut dice = Dice(sender + 1);
                let (mut replies, mut sink) = Connection::dial(addr, config).await.unwrap().split();
                let lens: Vec<_> = (0..60).map(|_| 16 + dice.below(longest) as usize).collect();
                let expected = lens.clone();
                let sending = async move {
                    for (n, len) in lens.into_iter().enumerate() {
                        sink.feed(sized(sender, n as u64, len)).await.unwrap();
                        if dice.below(4) == 0 {
                            sink.flush().await.unwrap();
                        }
                    }
                    sink.close().await.unwrap();
                };
                let receiving = async move {
                    for (n, len) in expected.into_iter().enumerate() {
                        let reply = replies.next().await.expect("all replies come").unwrap();
                        assert_eq!((number(&reply), reply.len()), ((sender, n as u64), len));
                    }
                    assert!(replies.next().await.is_none());
                };
                future::join(sending, receiving).await;
            })
        });
        let bad = (0..20).map(|sender| {
            let config = config.clone();
            async_std::task::spawn(async move {
                let mut dice = Dice(1_000 + sender);
                for _ in 0..5 {
                    let mut connection = Connection::dial(addr, config.clone()).await.unwrap();
                    for n in 0..dice.below(20) {
                        // It may be gone half sent, and its replies unread.
                        let len = 16 + dice.below(longest) as usize;
                        let sent = connection.feed(sized(sender, n, len)).now_or_never();
                        if sent.is_none() || dice.below(8) == 0 {
                            break;
                        }
                        let _ = connection.flush().now_or_never();
                    }
                }
            })
        });
        let tasks: Vec<_> = good.chain(bad).collect();
        within(2 * SOON, future::join_all(tasks)).await;
        within(SOON, closer.close()).await.unwrap();
        within(SOON, echo).await.unwrap();
        assert_eq!(closer.stats().connections, 0);
    });
}

#[test]
fn all_replies_come_through_the_narrowest_queues() {
    an_echo_in_disorder(1, 1, 2_000);
}

#[test]
fn all_replies_come_through_queues_smaller_than_a_message() {
    an_echo_in_disorder(70_000, 10_000, 100_000);
}

#[test]
fn all_replies_come_through_wide_queues() {
    an_echo_in_disorder(1 << 20, 1 << 20, 20_000);
}

#[test]
#[ignore = "ten thousand connections, in two processes: some seconds, and 10,100 descriptors each"]
fn ten_thousand_connections_are_served_at_once() {
    const CONNECTIONS: usize = 10_000;
    const NAME: &str = "pressure::ten_thousand_connections_are_served_at_once";
    const SERVER: &str = "BUFFSTREAMS_TEST_SERVER";
    if let Ok(server) = std::env::var(SERVER) {
        let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| raw(server.parse().unwrap())).collect();
        peers.iter_mut().enumerate().for_each(|(i, peer)| put(peer, &numbered(i as u64, 0)));
        peers.iter_mut().for_each(|peer| assert_eq!(rest(peer), b""));
        return;
    }
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let clients = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--include-ignored"])
            .env(SERVER, addr.to_string())
            .spawn();
        let mut clients = clients.unwrap();
        connected(&mut events).await;
        let mut seen = vec![false; CONNECTIONS];
        for _ in 0..CONNECTIONS {
            let (i, _) = number(&next(&mut listener).await.unwrap().1);
            assert!(!std::mem::replace(&mut seen[i as usize], true));
        }
        assert_eq!(listener.stats().connections, CONNECTIONS);
        within(SOON, listener.close()).await.unwrap();
        assert!(next(&mut listener).await.is_none());
        assert!(clients.wait().unwrap().success());
    });
}
