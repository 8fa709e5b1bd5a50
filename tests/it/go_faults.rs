//! What the Go library gets wrong on the receiving side, one test each.

use std::fs::File;
use std::future::pending;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use buffstreams::{Bytes, Event, FrameErrorKind, Listener, Peer, Reason};

use crate::net::{
    SOON, alone, connected, defaults, descriptors, disconnected, event, next, raw, resident, rest, run, until, within,
};

/// In the Go library's format.
fn put(stream: &mut std::net::TcpStream, message: &[u8]) {
    let mut wire = Vec::new();
    let encoder = buffstreams::wire::Encoder::new(buffstreams::WireFormat::buffstreams(), 4096).unwrap();
    encoder.encode(message, &mut wire).unwrap();
    stream.write_all(&wire).unwrap();
}

/// Go: a slice of the announced length is made unchecked, and the panic ends the process.
#[test]
fn three_bytes_do_not_kill_the_process() {
    let cases = [
        ([0x82, 0x40, 0x00], FrameErrorKind::TooLarge { len: 4097, max: 4096 }),
        ([0x01, 0x00, 0x00], FrameErrorKind::Negative { len: -1 }),
        ([0x81, 0x40, 0x00], FrameErrorKind::Negative { len: -4097 }),
    ];
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let mut good = raw(addr);
        for (bytes, expected) in cases {
            put(&mut good, b"before");
            assert_eq!(next(&mut listener).await.unwrap().1, "before");
            let mut bad = raw(addr);
            bad.write_all(&bytes).unwrap();
            let rejected = |event| match event {
                Event::Rejected { error, .. } => Some(error.kind),
                _ => None,
            };
            assert_eq!(event(&mut events, rejected).await, expected);
            assert_eq!(rest(&mut bad), b"");
            put(&mut good, b"after");
            assert_eq!(next(&mut listener).await.unwrap().1, "after");
        }
    });
}

/// Go: what Accept returns beside an error is used all the same.
#[test]
fn an_accept_error_is_no_crash() {
    alone("go_faults::an_accept_error_is_no_crash", "ulimit -n 48", || {
        run(async {
            let mut listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
            let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
            // The clock of this test needs descriptors as well, when it is first asked.
            assert!(async_std::future::timeout(Duration::from_millis(1), pending::<()>()).await.is_err());
            for _ in 0..3 {
                let mut taken: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
                taken.pop();
                let mut client = raw(addr);
                event(&mut events, |event| matches!(event, Event::AcceptFailed { .. }).then_some(())).await;
                drop(taken);
                put(&mut client, b"after all");
                assert_eq!(next(&mut listener).await.unwrap().1, "after all");
            }
        });
    });
}

/// Go: Close marks the listener as closed, and the socket stays open until the next connection, if ever.
#[test]
fn a_close_does_not_leave_the_port_bound() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        for _ in 0..20 {
            within(SOON, listener.close()).await.unwrap();
            listener = Listener::bind(addr, defaults()).await.expect("the port is free at once");
            raw(addr);
        }
    });
}

/// Go: a channel is closed twice, which panics.
#[test]
fn a_second_close_does_not_panic() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        let (first, second) = (listener.closer(), listener.closer());
        let (a, b) = futures::join!(first.close(), second.close());
        assert!(a.is_ok() && b.is_ok());
        within(SOON, listener.close()).await.unwrap();
        assert!(next(&mut listener).await.is_none());
        within(SOON, listener.close()).await.unwrap();
        drop(listener);
        within(SOON, first.close()).await.unwrap();
    });
}

/// Go: a goroutine for each connection waits for ever.
#[test]
fn a_connection_that_is_over_leaves_no_task_behind() {
    alone("go_faults::a_connection_that_is_over_leaves_no_task_behind", "", || {
        run(async {
            let mut listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
            let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
            let mut before = None;
            for n in 0..4_000 {
                let mut client = raw(addr);
                put(&mut client, b"and gone");
                let local = client.local_addr().unwrap();
                assert_eq!(next(&mut listener).await.unwrap().1, "and gone");
                drop(client);
                assert!(matches!(disconnected(&mut events, local).await, Reason::Closed));
                if n == 1_000 {
                    before = Some((resident(), descriptors()));
                }
            }
            let (resident_then, descriptors_then) = before.unwrap();
            assert_eq!(listener.stats().connections, 0);
            until(SOON, || descriptors() <= descriptors_then);
            // Each task holds more than a kilobyte, so 3,000 that stayed would show.
            let grown = resident().saturating_sub(resident_then);
            assert!(grown < 1 << 20, "{grown} bytes for 3,000 connections that are over");
        });
    });
}

/// Go: the callback cannot tell who sent the message, which is overwritten by the next one.
#[test]
fn a_callback_gets_the_peer_and_a_message_that_stays() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        let (addr, kept) = (listener.local_addr().ip().unwrap(), Arc::<Mutex<Vec<(Peer, Bytes)>>>::default());
        let keeping = kept.clone();
        let serving = async_std::task::spawn(listener.serve_async(move |peer, message| {
            keeping.lock().unwrap().push((peer, message));
            async { Ok(()) }
        }));
        let mut clients = [raw(addr), raw(addr), raw(addr)];
        for n in 0..500_u32 {
            for client in &mut clients {
                put(client, format!("{n} of {}", client.local_addr().unwrap()).as_bytes());
            }
        }
        until(SOON, || kept.lock().unwrap().len() == 1500);
        for client in &clients {
            let local = client.local_addr().unwrap();
            let kept = kept.lock().unwrap();
            let of_client: Vec<_> = kept.iter().filter(|(peer, _)| peer.addr().unwrap() == local).collect();
            assert_eq!(of_client.len(), 500);
            for (n, (_, message)) in of_client.into_iter().enumerate() {
                assert_eq!(message, &format!("{n} of {local}"));
            }
        }
        serving.cancel().await;
    });
}

/// Go: a panic in the callback is nobody's, and ends the process.
#[test]
fn a_panic_in_a_callback_does_not_end_the_process() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", defaults()).await.unwrap();
        let (addr, mut events, closer) = (listener.local_addr().ip().unwrap(), listener.events(), listener.closer());
        let serving = listener.serve_in_background(|_, message| {
            assert_ne!(message, b"panic");
            Ok(())
        });
        for _ in 0..10 {
            let mut client = raw(addr);
            let peer = connected(&mut events).await;
            put(&mut client, b"panic");
            assert!(matches!(disconnected(&mut events, peer.addr().unwrap()).await, Reason::CallbackPanicked));
            assert_eq!(rest(&mut client), b"");
        }
        put(&mut raw(addr), b"fine");
        within(Duration::from_secs(5), serving.close()).await.unwrap();
        assert_eq!(closer.stats().accepted, 11);
    });
}
