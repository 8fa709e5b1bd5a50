//! Code of the program that panics in a listener's tasks: what panicked is told, the peer that it belongs to ends in order, and
//! nobody else notices. Each of them in a process of its own: a panic that gets out mostly ends that.

use std::fmt;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::panic::panic_any;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use async_std::task;
use buffstreams::{Bytes, Closer, Event, Events, Listener, PanicSource, Peer, Reason, Serving};
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{SOON, alone, config, disconnected, event, next, put, raw, rest, run, runs_on, until, within};

/// What is panicked with.
#[derive(Clone, Copy, Debug)]
enum Payload {
    Text,
    /// Something that panics again when it is dropped.
    Bomb,
}

const PAYLOADS: [Payload; 2] = [Payload::Text, Payload::Bomb];

impl Payload {
    fn throw(self) -> ! {
        match self {
            Self::Text => panic!("planted"),
            Self::Bomb => panic_any(Bomb(Self::Text)),
        }
    }

    /// What is told of it.
    fn text(self) -> &'static str {
        match self {
            Self::Text => "planted",
            Self::Bomb => "",
        }
    }
}

/// Panics when it is dropped.
struct Bomb(Payload);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.throw();
    }
}

/// Panics at the next line with this in it.
struct Logger(Mutex<Option<(&'static str, Payload)>>);

static LOGGER: Logger = Logger(Mutex::new(None));

impl Logger {
    fn install() {
        log::set_logger(&LOGGER).expect("the only logger of this process");
        log::set_max_level(log::LevelFilter::Trace);
    }

    fn plant(line: &'static str, payload: Payload) {
        *LOGGER.0.lock().unwrap() = Some((line, payload));
    }

    fn has_gone_off() -> bool {
        LOGGER.0.lock().unwrap().is_none()
    }
}

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}", record.target(), record.args());
        let planted = self.0.lock().unwrap().take_if(|(planted, _)| line.contains(*planted));
        if let Some((_, payload)) = planted {
            payload.throw();
        }
    }

    fn flush(&self) {}
}

/// Runs the test in a process of its own, which says nothing of what was planted.
#[track_caller]
fn alone_with_panics<F: Future<Output = ()>>(name: &str, test: impl FnOnce() -> F) {
    alone(&format!("panics::{name}"), "", || {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Bomb>() && info.payload().downcast_ref() != Some(&"planted") {
                hook(info);
            }
        }));
        run(test());
    });
}

/// A panic of this is told.
#[track_caller]
fn panicked(events: &mut Events<Event>, from: PanicSource, payload: Payload) -> impl Future<Output = Option<Peer>> {
    event(events, move |event| match event {
        Event::Panicked { peer, source, message, .. } => {
            assert_eq!((source, message.as_str()), (from, payload.text()));
            Some(peer)
        }
        _ => None,
    })
}

#[track_caller]
fn call_panicked(events: &mut Events<Event>, payload: Payload) -> impl Future<Output = ()> {
    event(events, move |event| match event {
        Event::CallbackPanicked { message, .. } => {
            assert_eq!(message, payload.text());
            Some(())
        }
        _ => None,
    })
}

/// A peer that has nothing to do with it, before and after.
struct Other {
    addr: SocketAddr,
    stream: TcpStream,
    closer: Closer,
}

impl Other {
    fn new(closer: Closer) -> Self {
        let addr = closer.local_addr().ip().unwrap();
        Self { addr, stream: raw(addr), closer }
    }

    /// It is served, and so is who comes.
    #[track_caller]
    fn is_well(&mut self) {
        for stream in [&mut self.stream, &mut raw(self.addr)] {
            let before = self.closer.stats().messages;
            put(stream, b"a message");
            until(SOON, || self.closer.stats().messages > before);
        }
        // Nobody else has a place.
        until(SOON, || self.closer.stats().connections == 1);
    }
}

/// What async-std logs when it is about to start a task. The other runtimes log nothing.
const SPAWN: &str = "async_std::task::builder spawn";

fn is_logged(line: &str) -> bool {
    line != SPAWN || runs_on("async-std")
}

/// The line at which the logger panics, what a peer sends that leads to it, and how that peer ends.
type Case = (&'static str, &'static [u8], fn(&Reason) -> bool);

#[test]
fn a_logger_that_panics_ends_nothing_but_the_peer_whose_task_it_is() {
    alone_with_panics("a_logger_that_panics_ends_nothing_but_the_peer_whose_task_it_is", || async {
        Logger::install();
        let cases: [Case; 6] = [
            // Of the accept task.
            ("Connected", b"\0\0\0\x01a", |reason| matches!(reason, Reason::Closed)),
            // The runtime's own line: it is about to start the task of the peer.
            (SPAWN, b"", |reason| matches!(reason, Reason::Panicked)),
            // Of the peer's task.
            ("CallbackFailed", b"\0\0\0\x08an error", |reason| matches!(reason, Reason::Closed)),
            ("CallbackPanicked", b"\0\0\0\x07a panic", |reason| matches!(reason, Reason::CallbackPanicked)),
            ("Rejected", b"\xff\xff\xff\xff", |reason| matches!(reason, Reason::Rejected)),
            ("Disconnected", b"\0\0", |reason| matches!(reason, Reason::Truncated { .. })),
        ];
        for payload in PAYLOADS {
            for (line, wire, is_expected) in cases.into_iter().filter(|(line, ..)| is_logged(line)) {
                // Each has few lines in a second.
                let (serving, mut events, mut other) = served(payload).await;
                Logger::plant(line, payload);
                let mut peer = raw(other.addr);
                let local = peer.local_addr().unwrap();
                let _ = peer.write_all(wire);
                if line != "Disconnected" {
                    panicked(&mut events, PanicSource::Logger, payload).await;
                }
                drop(peer);
                let reason = disconnected(&mut events, local).await;
                assert!(is_expected(&reason), "{line}: {reason:?}");
                if line == "Disconnected" {
                    panicked(&mut events, PanicSource::Logger, payload).await;
                }
                other.is_well();
                Logger::plant("Disconnected", payload);
                drop(other);
                within(SOON, serving.close()).await.unwrap();
                assert!(Logger::has_gone_off());
            }
            let (_serving, mut events, mut other) = served(payload).await;
            Logger::plant("Refused", payload);
            let mut many = [(); 8].map(|()| raw(other.addr));
            panicked(&mut events, PanicSource::Logger, payload).await;
            assert_eq!(rest(&mut many[7]), b"");
            drop(many);
            until(SOON, || other.closer.stats().connections == 1);
            other.is_well();
        }
    });
}

/// A listener with a callback, and somebody who is connected.
async fn served(payload: Payload) -> (Serving, Events<Event>, Other) {
    let listener = Listener::bind("127.0.0.1:0", config().max_connections(8)).await.unwrap();
    let (events, closer) = (listener.events(), listener.closer());
    let serving = listener.serve_in_background(move |_, message| match message {
        b"an error" => Err("an error".into()),
        b"a panic" => payload.throw(),
        _ => Ok(()),
    });
    let mut other = Other::new(closer.clone());
    put(&mut other.stream, b"a message");
    until(SOON, || closer.stats().messages == 1);
    (serving, events, other)
}

#[test]
fn a_logger_that_panics_while_something_is_dropped_is_told_and_nothing_more() {
    alone_with_panics("a_logger_that_panics_while_something_is_dropped_is_told_and_nothing_more", || async {
        Logger::install();
        for payload in PAYLOADS {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (mut events, closer) = (listener.events(), listener.closer());
            let mut peer = raw(closer.local_addr().ip().unwrap());
            until(SOON, || closer.stats().connections == 1);
            Logger::plant("Disconnected", payload);
            drop(listener);
            panicked(&mut events, PanicSource::Logger, payload).await;
            assert_eq!(rest(&mut peer), b"");

            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (mut events, closer) = (listener.events(), listener.closer());
            let mut connections = listener.connections();
            for line in ["Disconnected", SPAWN].into_iter().filter(|line| is_logged(line)) {
                let mut peer = raw(closer.local_addr().ip().unwrap());
                let mut connection = next(&mut connections).await.unwrap();
                connection.close().await.unwrap();
                // What still comes is read in the background, in a task that is started here.
                Logger::plant(line, payload);
                drop(connection);
                assert_eq!(rest(&mut peer), b"");
                drop(peer);
                event(&mut events, |event| matches!(event, Event::Disconnected { .. }).then_some(())).await;
                until(SOON, Logger::has_gone_off);
                assert_eq!(closer.stats().connections, 0);
            }
        }
    });
}

/// An error that panics whatever is done with it.
#[derive(Clone)]
struct Malicious(Payload);

impl fmt::Debug for Malicious {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.throw()
    }
}

impl fmt::Display for Malicious {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.throw()
    }
}

impl std::error::Error for Malicious {}

impl Drop for Malicious {
    fn drop(&mut self) {
        self.0.throw();
    }
}

/// Is ready, or not, and panics when it is polled or when it is dropped.
struct Call {
    polls: Option<Payload>,
    ends: bool,
    _held: Option<Bomb>,
}

impl Future for Call {
    type Output = Result<(), buffstreams::BoxError>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(payload) = self.polls {
            payload.throw();
        }
        if self.ends { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}

#[test]
fn callbacks_that_panic_end_nothing_but_their_peers() {
    alone_with_panics("callbacks_that_panic_end_nothing_but_their_peers", || async {
        for payload in PAYLOADS {
            for polled_before in [false, true] {
                let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
                if polled_before {
                    assert!(listener.next().now_or_never().is_none());
                }
                let (mut events, closer) = (listener.events(), listener.closer());
                let serving = listener.serve_in_background(move |_, message| match message {
                    b"a panic" => payload.throw(),
                    _ => Ok(()),
                });
                let mut other = Other::new(closer.clone());
                let mut peer = raw(closer.local_addr().ip().unwrap());
                put(&mut peer, b"a panic");
                call_panicked(&mut events, payload).await;
                let reason = disconnected(&mut events, peer.local_addr().unwrap()).await;
                assert!(matches!(reason, Reason::CallbackPanicked), "{reason:?}");
                assert_eq!(rest(&mut peer), b"");
                other.is_well();
                drop(other);
                within(SOON, serving.close()).await.unwrap();
            }
        }
    });
}

#[test]
fn futures_of_callbacks_that_panic_end_nothing_but_their_peers() {
    alone_with_panics("futures_of_callbacks_that_panic_end_nothing_but_their_peers", || async {
        for payload in PAYLOADS {
            for polled_before in [false, true] {
                let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
                if polled_before {
                    assert!(listener.next().now_or_never().is_none());
                }
                let (mut events, closer) = (listener.events(), listener.closer());
                let called = Arc::new(AtomicUsize::new(0));
                let calling = called.clone();
                let serving = task::spawn(listener.serve_async(move |_, message: Bytes| {
                    let call = Call { polls: None, ends: true, _held: None };
                    match &message[..] {
                        b"call" => payload.throw(),
                        b"poll" => Call { polls: Some(payload), ..call },
                        b"end" => Call { _held: Some(Bomb(payload)), ..call },
                        b"stay" => {
                            calling.fetch_add(1, Ordering::Relaxed);
                            Call { ends: false, _held: Some(Bomb(payload)), ..call }
                        }
                        _ => call,
                    }
                }));
                let mut other = Other::new(closer.clone());
                for message in ["call", "poll", "end"] {
                    let mut peer = raw(closer.local_addr().ip().unwrap());
                    put(&mut peer, message.as_bytes());
                    call_panicked(&mut events, payload).await;
                    let reason = disconnected(&mut events, peer.local_addr().unwrap()).await;
                    assert!(matches!(reason, Reason::CallbackPanicked), "{message}: {reason:?}");
                    assert_eq!(rest(&mut peer), b"");
                    other.is_well();
                }
                // Two that are awaited when the listener ends: their tasks are dropped.
                let peers = [(); 2].map(|()| {
                    let mut peer = raw(closer.local_addr().ip().unwrap());
                    put(&mut peer, b"stay");
                    peer
                });
                // In the consumer's own task one waits for the other.
                let at_once = if polled_before { 1 } else { 2 };
                until(SOON, || called.load(Ordering::Relaxed) == at_once);
                serving.cancel().await;
                for _ in 0..at_once {
                    call_panicked(&mut events, payload).await;
                }
                for mut peer in peers {
                    assert_eq!(rest(&mut peer), b"");
                }
            }
        }
    });
}

/// Whoever is the last to hold it drops the callback, and what it holds.
#[test]
fn a_callback_that_panics_when_it_is_dropped_is_told_of() {
    alone_with_panics("a_callback_that_panics_when_it_is_dropped_is_told_of", || async {
        for payload in PAYLOADS {
            for last in ["the future", "a peer's task"] {
                let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
                let (mut events, closer) = (listener.events(), listener.closer());
                let (enter, entered) = std::sync::mpsc::channel();
                let (leave, left) = std::sync::mpsc::channel::<()>();
                let (left, bomb) = (Mutex::new(left), Bomb(payload));
                let serving: Serving = listener.serve_in_background(move |_, _| {
                    let _ = &bomb;
                    enter.send(()).unwrap();
                    let _ = left.lock().unwrap().recv();
                    Ok(())
                });
                let mut peer = raw(closer.local_addr().ip().unwrap());
                if last == "a peer's task" {
                    put(&mut peer, b"?");
                    task::spawn_blocking(move || entered.recv().unwrap()).await;
                }
                drop(serving);
                drop(leave);
                assert_eq!(panicked(&mut events, PanicSource::Drop, payload).await, None, "{last}");
                assert_eq!(rest(&mut peer), b"");
            }
        }
    });
}

/// Its executor is gone.
struct Woken(Payload, AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.throw();
    }
}

impl Woken {
    fn new(payload: Payload) -> (Arc<Self>, Waker) {
        let woken = Arc::new(Self(payload, AtomicUsize::new(0)));
        (woken.clone(), woken.into())
    }
}

#[test]
fn wakers_that_panic_end_nothing() {
    alone_with_panics("wakers_that_panic_end_nothing", || async {
        for payload in PAYLOADS {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (mut events, mut doomed, closer) = (listener.events(), listener.events(), listener.closer());
            assert!(listener.next().now_or_never().is_none());
            // Of a subscriber, which the accept task wakes.
            let (woken, waker) = Woken::new(payload);
            assert!(doomed.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
            let mut peer = raw(closer.local_addr().ip().unwrap());
            put(&mut peer, b"one");
            assert_eq!(panicked(&mut events, PanicSource::Waker, payload).await, None);
            assert_eq!(woken.1.load(Ordering::Relaxed), 1);
            assert_eq!(next(&mut listener).await.unwrap().1, "one");
            // Of a subscriber, which the peer's task wakes.
            while doomed.next().now_or_never().is_some() {}
            assert!(doomed.poll_next_unpin(&mut Context::from_waker(&waker)).is_pending());
            drop(peer);
            assert!(listener.next().now_or_never().is_none());
            panicked(&mut events, PanicSource::Waker, payload).await;
            until(SOON, || closer.stats().connections == 0);
            // Of who waits for a close.
            let mut peer = raw(closer.local_addr().ip().unwrap());
            put(&mut peer, b"two");
            assert_eq!(next(&mut listener).await.unwrap().1, "two");
            let (woken, waker) = Woken::new(payload);
            let mut closing = Box::pin(closer.close());
            if closing.poll_unpin(&mut Context::from_waker(&waker)).is_pending() {
                until(SOON, || woken.1.load(Ordering::Relaxed) > 0);
            }
            within(SOON, closer.close()).await.unwrap();
            drop(peer);
            assert!(next(&mut listener).await.is_none());
        }
    });
}

/// A message whose memory is the program's.
struct Owned(Payload);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &[7; 8192]
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.throw();
    }
}

#[test]
fn replies_that_panic_when_they_come_back_are_told_of() {
    alone_with_panics("replies_that_panic_when_they_come_back_are_told_of", || async {
        for payload in PAYLOADS {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (mut events, closer) = (listener.events(), listener.closer());
            let (mut incoming, mut outgoing) = listener.split();
            let mut deaf = raw(closer.local_addr().ip().unwrap());
            put(&mut deaf, b"?");
            let (peer, _) = next(&mut incoming).await.unwrap();
            // So much that the last two stay here.
            for _ in 0..16 {
                outgoing.start_send_unpin((peer, vec![0; 1 << 20].into())).unwrap();
            }
            for _ in 0..2 {
                outgoing.start_send_unpin((peer, Bytes::from_owner(Owned(payload)))).unwrap();
            }
            drop(incoming);
            for _ in 0..2 {
                assert_eq!(panicked(&mut events, PanicSource::Drop, payload).await, Some(peer));
            }
            assert!(matches!(disconnected(&mut events, peer.addr().unwrap()).await, Reason::Stopped));
        }
    });
}

#[test]
fn errors_of_callbacks_that_panic_whatever_is_done_with_them_end_nothing() {
    alone_with_panics("errors_of_callbacks_that_panic_whatever_is_done_with_them_end_nothing", || async {
        Logger::install();
        for payload in PAYLOADS {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let closer = listener.closer();
            let (full, dropped) = (listener.events(), listener.events());
            let serving = listener.serve_in_background(move |_, message| match message {
                b"an error" => Err(Box::new(Malicious(payload))),
                _ => Ok(()),
            });
            let mut other = Other::new(closer.clone());
            let mut peer = raw(closer.local_addr().ip().unwrap());
            for _ in 0..2_000 {
                put(&mut peer, b"an error");
            }
            until(SOON, || closer.stats().messages == 2_000);
            // It has some of them, and is the last to have them.
            drop(dropped);
            // That the others could not be dropped quietly is told instead of them.
            let told = full.take(1_024).map(|event| match event {
                Event::CallbackFailed { error, .. } => std::mem::forget(error),
                Event::Panicked { source, .. } => assert_eq!(source, PanicSource::Drop),
                event => assert!(matches!(event, Event::Missed { .. }), "{event:?}"),
            });
            assert_eq!(within(SOON, told.count()).await, 1_024);
            drop(peer);
            other.is_well();
            drop(other);
            within(SOON, serving.close()).await.unwrap();
        }
    });
}
