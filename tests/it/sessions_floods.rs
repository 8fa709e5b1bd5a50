//! Floods of connections at a listener of sessions: what it keeps of them, and whom they starve.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use buffstreams::{Listener, Session};
use futures::SinkExt;
use socket2::SockRef;

use crate::counting;
use crate::net::{SOON, alone, next, raw, run, start, unread, until};
use crate::sessions_hostile::{config, greet, hello};

/// The HELLO of session number `n`: an id of its own, which is none of a byte repeated.
fn numbered(n: u32) -> Vec<u8> {
    hello(100, &[(16, &n.to_be_bytes())])
}

/// Comes back to a session of which so many messages were sent.
fn resume(mut hello: Vec<u8>, epoch: u32, sent: u64) -> Vec<u8> {
    hello[13] = 1;
    hello[32..36].copy_from_slice(&epoch.to_be_bytes());
    hello[64..72].copy_from_slice(&sent.to_be_bytes());
    hello
}

fn message(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text].concat()
}

/// A number below `below`; the same ones for a seed.
fn draw(seed: &mut u64, below: usize) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as usize % below
}

/// Begins a handshake, goes on as far as is drawn, behind the WELCOME as well, and resets the connection.
fn break_off(addr: SocketAddr, n: u32, seed: &mut u64) {
    let mut stream = raw(addr);
    let (hello, behind) = (numbered(n), message(b"a message"));
    let len = draw(seed, hello.len() + behind.len() + 1);
    stream.write_all(&hello[..len.min(hello.len())]).unwrap();
    if len >= hello.len() && draw(seed, 4) > 0 {
        let read = draw(seed, 89).max(draw(seed, 89));
        // The listener may have no room for it, and says so in as many bytes.
        stream.read_exact(&mut [0; 88][..read]).unwrap();
        if read > 44 {
            // It may have been refused, and the connection be at its end.
            let _ = stream.write_all(&behind[..len - hello.len()]);
        }
    }
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn ten_thousand_handshakes_that_are_reset_leave_nothing() {
    alone("sessions_floods::ten_thousand_handshakes_that_are_reset_leave_nothing", "", || {
        run(async {
            let session = Session::new().ttl(Duration::from_millis(200));
            let mut listener = Listener::bind("127.0.0.1:0", config().session(session)).await.unwrap();
            start(&mut listener);
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            let mut good = raw(addr);
            assert_eq!(greet(&mut good, &hello(1, &[])), 0);
            let (mut seed, mut kept) = (1, None);
            for n in 0..10_000 {
                break_off(addr, n, &mut seed);
                if n % 100 == 99 {
                    good.write_all(&message(b"good")).unwrap();
                    while next(&mut listener).await.unwrap().1 != "good" {}
                }
                if n % 2_500 == 2_499 {
                    until(SOON, || closer.stats().sessions == 1 && closer.stats().connections == 1);
                    let now = counting::all().kept;
                    let before = *kept.get_or_insert(now);
                    // A few buffers of 64 KiB may be lent or not at that moment: 35 bytes for each that came since.
                    assert!(now - before < 256 << 10, "{} bytes more after {n}", now - before);
                }
            }
            assert_eq!(closer.stats().detached, 0);
        });
    });
}

#[test]
fn a_thousand_sessions_without_a_connection_stay_within_their_limits() {
    const SESSIONS: u32 = 1_000;
    const HELD: usize = 512 << 10;
    const REPLY: usize = 1020;
    alone("sessions_floods::a_thousand_sessions_without_a_connection_stay_within_their_limits", "", || {
        run(async {
            let session = Session::new().max_sessions(SESSIONS as usize).detached_bytes(HELD);
            let listener = Listener::bind("127.0.0.1:0", config().session(session)).await.unwrap();
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            let (mut incoming, mut outgoing) = listener.split();
            let mut peers = Vec::new();
            let before = counting::all().kept;
            for n in 1..=SESSIONS {
                let mut stream = raw(addr);
                assert_eq!(greet(&mut stream, &numbered(n)), 0);
                stream.write_all(&message(b"answer me")).unwrap();
                peers.push(next(&mut incoming).await.unwrap().0);
            }
            until(SOON, || closer.stats().detached == SESSIONS as usize);
            let idle = (counting::all().kept - before) / SESSIONS as isize;
            // Each has something, and none gives way.
            assert_eq!(greet(&mut raw(addr), &numbered(SESSIONS + 1)), 4, "BUSY");
            let before = counting::all().kept;
            for peer in peers {
                outgoing.feed((peer, vec![7; REPLY].into())).await.unwrap();
                // What is held for one without a connection is not flushed, but handed over.
                let _ = futures::poll!(outgoing.flush());
            }
            let most = HELD / REPLY;
            until(SOON, || closer.stats().sessions <= most);
            let stats = closer.stats();
            assert!(stats.sessions == stats.detached && stats.sessions > most / 2, "{stats:?}");
            let kept = counting::all().kept - before;
            assert!(kept < 2 * HELD as isize, "{kept} bytes for the replies to {stats:?}");
            assert!(idle < 8 << 10, "{idle} bytes for a session without a connection");
            // Who has waited longest has gone.
            assert_eq!(greet(&mut raw(addr), &resume(numbered(SESSIONS), 2, 1)), 1, "RESUMED");
            assert_eq!(greet(&mut raw(addr), &resume(numbered(1), 2, 1)), 2, "UNKNOWN");
            assert_eq!(greet(&mut raw(addr), &numbered(SESSIONS + 1)), 0, "NEW: there is room");
        });
    });
}

#[test]
fn a_million_empty_messages_wait_in_the_socket_while_the_consumer_stands_still() {
    const BYTES: usize = 4 * 1_000_000;
    alone("sessions_floods::a_million_empty_messages_wait_in_the_socket_while_the_consumer_stands_still", "", || {
        run(async {
            let config = config().inbox_bytes(256 << 10).session(Session::new().window_bytes(16 << 20));
            let mut listener = Listener::bind("127.0.0.1:0", config).await.unwrap();
            start(&mut listener);
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            let mut stream = raw(addr);
            SockRef::from(&stream).set_send_buffer_size(64 << 10).unwrap();
            assert_eq!(greet(&mut stream, &hello(1, &[])), 0);
            let before = counting::all().kept;
            let flat = |when| {
                let kept = counting::all().kept - before;
                assert!(kept < 1 << 20, "{kept} bytes {when}");
            };
            // Until nobody takes any more.
            stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
            let (zeros, mut written) = ([0; 4096], 0);
            let full = loop {
                match stream.write(&zeros[..zeros.len().min(BYTES - written)]) {
                    Ok(n) => written += n,
                    Err(error) => break error.kind(),
                }
                assert!(written < BYTES, "all of them are taken");
            };
            assert_eq!(full, ErrorKind::WouldBlock);
            assert!(unread(addr) > 0);
            let received = closer.stats().messages;
            assert!(received <= (256 << 10) / 4, "{received} are in the inbox");
            flat("while nobody takes any");
            let flooding = std::thread::spawn(move || {
                stream.set_write_timeout(Some(SOON)).unwrap();
                while written < BYTES {
                    written += stream.write(&zeros[..zeros.len().min(BYTES - written)]).unwrap();
                }
                stream
            });
            for n in 0..BYTES / 4 {
                assert!(next(&mut listener).await.unwrap().1.is_empty());
                if n % 100_000 == 0 {
                    flat("while they are taken");
                }
            }
            drop(flooding.join().unwrap());
        });
    });
}

#[test]
fn a_session_that_has_something_comes_back_while_strangers_flood_the_listener() {
    const SESSIONS: u32 = 5;
    alone("sessions_floods::a_session_that_has_something_comes_back_while_strangers_flood_the_listener", "", || {
        run(async {
            let session = Session::new().max_sessions(100);
            let mut listener = Listener::bind("127.0.0.1:0", config().session(session)).await.unwrap();
            start(&mut listener);
            let (addr, closer) = (listener.local_addr().ip().unwrap(), listener.closer());
            let over = Arc::new(AtomicBool::new(false));
            let floods: Vec<_> = (0..2)
                .map(|flood| {
                    let over = over.clone();
                    std::thread::spawn(move || {
                        let (mut seed, mut made) = (flood, 0);
                        while !over.load(Ordering::Relaxed) {
                            made += 1;
                            assert!(made < 1_000_000);
                            break_off(addr, (flood as u32) << 24 | made, &mut seed);
                        }
                        made
                    })
                })
                .collect();
            let name = |n: u32| numbered(u32::MAX - n);
            for round in 0..20 {
                for n in 0..SESSIONS {
                    let mut stream = raw(addr);
                    let status = match round {
                        0 => greet(&mut stream, &name(n)),
                        _ => greet(&mut stream, &resume(name(n), round + 1, round.into())),
                    };
                    assert_eq!(status, u8::from(round > 0), "{n} in round {round}");
                    let text = format!("{n} in round {round}");
                    stream.write_all(&message(text.as_bytes())).unwrap();
                    while next(&mut listener).await.unwrap().1 != text {}
                }
            }
            assert!(closer.stats().sessions <= 100);
            over.store(true, Ordering::Relaxed);
            let made: u32 = floods.into_iter().map(|flood| flood.join().unwrap()).sum();
            assert!(made > 1_000, "no flood: {made}");
        });
    });
}
