//! Callbacks: where their errors and panics go, and when serving ends.

use std::collections::HashMap;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use buffstreams::{BoxError, Event, Events, Listener, Peer, Reason};
use futures::StreamExt;

use crate::net::{SOON, config, disconnected, event, frame, number, numbered, put, raw, rest, run, until, within};

/// What each peer sent, as the callbacks saw it.
type Seen = Arc<Mutex<HashMap<u64, Vec<u64>>>>;

fn note(seen: &Seen, message: &[u8]) {
    let (sender, n) = number(message);
    seen.lock().unwrap().entry(sender).or_default().push(n);
}

fn has(seen: &Seen, sender: u64, messages: usize) -> bool {
    seen.lock().unwrap().get(&sender).is_some_and(|seen| seen.len() == messages)
}

fn put_numbered(peer: &mut TcpStream, sender: u64, numbers: impl IntoIterator<Item = u64>) {
    // In one write, as it may be disconnected in the middle.
    let wire: Vec<u8> = numbers.into_iter().flat_map(|n| frame(&numbered(sender, n))).collect();
    peer.write_all(&wire).unwrap();
}

#[test]
fn serve_calls_with_each_message_in_order_and_ends_with_the_listener() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer, seen) = (listener.local_addr().ip().unwrap(), listener.closer(), Seen::default());
        let noting = seen.clone();
        let serving = async_std::task::spawn(listener.serve(move |_, message: &[u8]| {
            note(&noting, message);
            Ok(())
        }));
        for sender in 0..3 {
            put_numbered(&mut raw(addr), sender, 0..500);
        }
        // All of it is with the system already, although nobody may have been accepted yet.
        within(SOON, closer.close()).await.unwrap();
        within(SOON, serving).await.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        assert!(seen.values().all(|numbers| numbers.iter().copied().eq(0..500)));
        assert_eq!(closer.stats().messages, 1500);
    });
}

#[test]
fn serve_async_awaits_each_message_of_a_peer_before_the_next() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer, seen) = (listener.local_addr().ip().unwrap(), listener.closer(), Seen::default());
        let noting = seen.clone();
        let serving = async_std::task::spawn(listener.serve_async(move |_, message| {
            let noting = noting.clone();
            async move {
                // The earlier a message, the longer it takes.
                for _ in 0..3_u64.saturating_sub(number(&message).1 % 4) {
                    async_std::task::yield_now().await;
                }
                note(&noting, &message);
                Ok(())
            }
        }));
        for sender in 0..3 {
            put_numbered(&mut raw(addr), sender, 0..200);
        }
        within(SOON, closer.close()).await.unwrap();
        within(SOON, serving).await.unwrap();
        let seen = seen.lock().unwrap();
        assert_eq!(seen.len(), 3);
        assert!(seen.values().all(|numbers| numbers.iter().copied().eq(0..200)));
    });
}

#[test]
fn a_background_close_waits_until_the_callback_has_seen_everything() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, seen) = (listener.local_addr().ip().unwrap(), Seen::default());
        let noting = seen.clone();
        let serving = listener.serve_in_background(move |_, message| {
            note(&noting, message);
            Ok(())
        });
        assert_eq!(serving.closer().local_addr(), addr);
        let mut late = raw(addr);
        put_numbered(&mut late, 0, 0..1);
        until(SOON, || has(&seen, 0, 1));
        let client = std::thread::spawn(move || {
            // It learns of the close, and has something left to say.
            assert_eq!(rest(&mut late), b"");
            put_numbered(&mut late, 0, 1..1000);
        });
        within(SOON, serving.close()).await.unwrap();
        client.join().unwrap();
        assert!(seen.lock().unwrap()[&0].iter().copied().eq(0..1000));
    });
}

#[test]
fn dropping_the_serving_handle_ends_everything_at_once() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let addr = listener.local_addr().ip().unwrap();
        let mut events = listener.events();
        let serving = listener.serve_in_background(|_, _| Ok(()));
        let mut client = raw(addr);
        put(&mut client, b"?");
        event(&mut events, |event| matches!(event, Event::Connected { .. }).then_some(())).await;
        drop(serving);
        assert_eq!(rest(&mut client), b"");
        assert!(matches!(disconnected(&mut events, client.local_addr().unwrap()).await, Reason::Stopped));
        let refused = || TcpStream::connect(addr).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
        until(SOON, refused);
    });
}

#[test]
fn dropping_the_serve_future_ends_everything_at_once() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events) = (listener.local_addr().ip().unwrap(), listener.events());
        let mut serving = Box::pin(listener.serve(|_, _| Ok(())));
        let mut client = raw(addr);
        let came = event(&mut events, |event| matches!(event, Event::Connected { .. }).then_some(()));
        futures::future::select(&mut serving, Box::pin(came)).await;
        drop(serving);
        assert_eq!(rest(&mut client), b"");
        Listener::bind(addr, config()).await.expect("the port is free at once");
    });
}

#[test]
fn an_error_of_the_callback_is_told_and_the_peer_goes_on() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events, seen) = (listener.local_addr().ip().unwrap(), listener.events(), Seen::default());
        let noting = seen.clone();
        let _serving = listener.serve_in_background(move |_, message| {
            note(&noting, message);
            if number(message).1.is_multiple_of(2) {
                Ok(())
            } else {
                Err(format!("{} is odd", number(message).1).into())
            }
        });
        let mut client = raw(addr);
        put_numbered(&mut client, 0, 0..6);
        for odd in [1, 3, 5] {
            let failed = |event| match event {
                Event::CallbackFailed { peer, error, .. } => Some((peer, error.to_string())),
                _ => None,
            };
            let (peer, error) = event(&mut events, failed).await;
            assert_eq!(peer.addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(error, format!("{odd} is odd"));
        }
        assert!(has(&seen, 0, 6));
        drop(client);
    });
}

fn fails_at_the_third_of_sender_1(message: &[u8]) -> Result<(), BoxError> {
    assert!(number(message) != (1, 3), "the third of 1");
    Ok(())
}

/// Peer A's third message makes the callback panic; B is served to its end, and so is who comes afterwards.
async fn a_panic_ends_only_its_peer(addr: std::net::SocketAddr, mut events: Events<Event>, seen: Seen) {
    let (mut a, mut b) = (raw(addr), raw(addr));
    put_numbered(&mut b, 2, 1..100);
    put_numbered(&mut a, 1, 1..6);
    let local = a.local_addr().unwrap();
    let panicked = |event| match event {
        Event::CallbackPanicked { peer, message, .. } => Some((peer, message)),
        _ => None,
    };
    let (peer, message): (Peer, _) = event(&mut events, panicked).await;
    assert_eq!((peer.addr().unwrap(), message.as_str()), (local, "the third of 1"));
    assert!(matches!(disconnected(&mut events, local).await, Reason::CallbackPanicked));
    assert_eq!(rest(&mut a), b"");
    put_numbered(&mut b, 2, 100..200);
    let mut c = raw(addr);
    put_numbered(&mut c, 3, 1..2);
    until(SOON, || has(&seen, 2, 199) && has(&seen, 3, 1));
    let seen = seen.lock().unwrap();
    assert_eq!(seen[&1], [1, 2]);
    assert!(seen[&2].iter().copied().eq(1..200));
}

#[test]
fn a_panic_in_a_callback_ends_only_its_peer() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, events, seen) = (listener.local_addr().ip().unwrap(), listener.events(), Seen::default());
        let noting = seen.clone();
        let _serving = listener.serve_in_background(move |_, message| {
            fails_at_the_third_of_sender_1(message)?;
            note(&noting, message);
            Ok(())
        });
        a_panic_ends_only_its_peer(addr, events, seen).await;
    });
}

#[test]
fn a_panic_in_an_async_callback_ends_only_its_peer() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, events, seen) = (listener.local_addr().ip().unwrap(), listener.events(), Seen::default());
        let noting = seen.clone();
        let serving = async_std::task::spawn(listener.serve_async(move |_, message| {
            let noting = noting.clone();
            async move {
                async_std::task::yield_now().await;
                fails_at_the_third_of_sender_1(&message)?;
                note(&noting, &message);
                Ok(())
            }
        }));
        a_panic_ends_only_its_peer(addr, events, seen).await;
        serving.cancel().await;
    });
}

#[test]
fn a_slow_callback_holds_up_its_own_peer_only() {
    run(async {
        let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, seen) = (listener.local_addr().ip().unwrap(), Seen::default());
        let (release, released) = futures::channel::oneshot::channel::<()>();
        let released = futures::FutureExt::shared(released);
        let noting = seen.clone();
        let serving = async_std::task::spawn(listener.serve_async(move |_, message| {
            let (noting, released) = (noting.clone(), released.clone());
            async move {
                if number(&message).0 == 1 {
                    let _ = released.await;
                }
                note(&noting, &message);
                Ok(())
            }
        }));
        let (mut slow, mut quick) = (raw(addr), raw(addr));
        put_numbered(&mut slow, 1, 0..10);
        put_numbered(&mut quick, 2, 0..1000);
        until(SOON, || has(&seen, 2, 1000));
        assert!(!seen.lock().unwrap().contains_key(&1));
        release.send(()).unwrap();
        until(SOON, || has(&seen, 1, 10));
        serving.cancel().await;
    });
}

#[test]
fn what_the_stream_has_not_taken_goes_to_a_callback_that_comes_later() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, closer, seen) = (listener.local_addr().ip().unwrap(), listener.closer(), Seen::default());
        put_numbered(&mut raw(addr), 0, 0..10);
        assert!(within(SOON, listener.next()).await.is_some());
        let noting = seen.clone();
        let serving = async_std::task::spawn(listener.serve(move |_, message: &[u8]| {
            note(&noting, message);
            Ok(())
        }));
        put_numbered(&mut raw(addr), 1, 0..10);
        within(SOON, closer.close()).await.unwrap();
        within(SOON, serving).await.unwrap();
        let seen = seen.lock().unwrap();
        assert!(seen[&0].iter().copied().eq(1..10));
        assert!(seen[&1].iter().copied().eq(0..10));
    });
}

#[test]
fn a_panic_ends_only_its_peer_also_where_the_stream_was_polled_before() {
    run(async {
        let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
        let (addr, mut events, seen) = (listener.local_addr().ip().unwrap(), listener.events(), Seen::default());
        let (mut a, mut b) = (raw(addr), raw(addr));
        put_numbered(&mut a, 1, 0..6);
        assert!(within(SOON, listener.next()).await.is_some());
        let noting = seen.clone();
        let _serving = listener.serve_in_background(move |_, message| {
            fails_at_the_third_of_sender_1(message)?;
            note(&noting, message);
            Ok(())
        });
        assert!(matches!(disconnected(&mut events, a.local_addr().unwrap()).await, Reason::CallbackPanicked));
        assert_eq!(rest(&mut a), b"");
        put_numbered(&mut b, 2, 0..100);
        until(SOON, || has(&seen, 2, 100));
        assert_eq!(seen.lock().unwrap()[&1], [1, 2]);
    });
}
