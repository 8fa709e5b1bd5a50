//! Code of the program that comes back to the listener while this calls it, or drops it: a waker that is the last owner of the
//! task which waits, a logger and a callback that ask for figures. None of it finds a lock taken. Each in a process of its own,
//! because a lock that is never released costs a thread of the runtime.

use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Wake};

use async_std::task;
use buffstreams::{Closer, Config, Event, Listener};
use futures::future::BoxFuture;
use futures::{FutureExt, SinkExt, StreamExt};

use crate::net::{SOON, alone, config, connected, get, next, put, raw, rest, run, until, within};

/// More than there are threads to lose.
const ROUNDS: usize = 16;

/// A task of an executor that has ended. It goes with its last waker.
struct Orphan(Mutex<BoxFuture<'static, ()>>);

impl Wake for Orphan {
    fn wake(self: Arc<Self>) {}
}

/// Lets this wait, with all that it holds, for something that only the library can tell it. It is over, then, if it did not wait.
fn abandon(waiting: impl Future<Output = ()> + Send + 'static) {
    let orphan = Arc::new(Orphan(Mutex::new(waiting.boxed())));
    let waker = orphan.clone().into();
    let _ = orphan.0.lock().unwrap().poll_unpin(&mut Context::from_waker(&waker));
}

/// A timer would keep the waker of whoever waits for it, and so itself.
fn without_limits() -> Config {
    config().close_timeout(None).write_timeout(None)
}

/// Tells when it is dropped.
struct Gone(Sender<()>);

impl Drop for Gone {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Runs this, some times; each time something that it abandons is dropped, and the runtime can still run tasks.
fn each_round<F: Future<Output = ()>>(round: impl Fn(Gone) -> F) {
    run(async {
        for _ in 0..ROUNDS {
            let (gone, is_gone) = mpsc::channel();
            round(Gone(gone)).await;
            is_gone.recv_timeout(SOON).expect("it is dropped");
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            put(&mut raw(listener.local_addr().ip().unwrap()), b"?");
            assert_eq!(next(&mut listener).await.unwrap().1, "?");
        }
    });
}

/// It answers, and from elsewhere: not the thread of the test waits for a lock.
fn answers(closer: Closer) {
    let (answer, answered) = mpsc::channel();
    std::thread::spawn(move || answer.send(closer.stats().connections));
    assert_eq!(answered.recv_timeout(SOON), Ok(0));
}

#[test]
fn whoever_waits_for_events_may_be_dropped_by_them_with_the_listener() {
    alone("orphans::whoever_waits_for_events_may_be_dropped_by_them_with_the_listener", "", || {
        each_round(async |gone| {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            assert!(listener.next().now_or_never().is_none());
            let (closer, mut events) = (listener.closer(), listener.events());
            abandon(async move {
                let _held = (listener, gone);
                events.next().await;
                unreachable!("nobody runs it");
            });
            assert_eq!(rest(&mut raw(closer.local_addr().ip().unwrap())), b"");
            answers(closer);
        });
    });
}

#[test]
fn whoever_waits_for_messages_may_be_dropped_by_them_with_the_listener() {
    alone("orphans::whoever_waits_for_messages_may_be_dropped_by_them_with_the_listener", "", || {
        for messages in 1..4 {
            each_round(async |gone| {
                let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
                let closer = listener.closer();
                let mut peer = raw(closer.local_addr().ip().unwrap());
                // From the second on the consumer reads by itself, and the socket has its waker.
                for _ in 0..messages {
                    put(&mut peer, b"?");
                    assert_eq!(next(&mut listener).await.unwrap().1, "?");
                }
                abandon(async move {
                    let _held = gone;
                    listener.next().await;
                    unreachable!("nobody runs it");
                });
                put(&mut peer, b"?");
                assert_eq!(rest(&mut peer), b"");
                answers(closer);
            });
        }
    });
}

#[test]
fn whoever_waits_for_a_close_may_be_dropped_by_it_with_the_listener() {
    alone("orphans::whoever_waits_for_a_close_may_be_dropped_by_it_with_the_listener", "", || {
        each_round(async |gone| {
            let mut listener = Listener::bind("127.0.0.1:0", without_limits()).await.unwrap();
            let closer = listener.closer();
            abandon(async move {
                let _held = gone;
                let _ = listener.close().await;
            });
            within(SOON, closer.close()).await.unwrap();
            answers(closer);
        });
    });
}

#[test]
fn whoever_waits_for_a_peer_in_a_close_may_be_dropped_by_it_with_the_listener() {
    alone("orphans::whoever_waits_for_a_peer_in_a_close_may_be_dropped_by_it_with_the_listener", "", || {
        for by_the_replies in [false, true] {
            each_round(async |gone| {
                let listener = Listener::bind("127.0.0.1:0", without_limits()).await.unwrap();
                let (closer, closing) = (listener.closer(), listener.closer());
                let (mut incoming, mut outgoing) = listener.split();
                let mut peer = raw(closer.local_addr().ip().unwrap());
                put(&mut peer, b"?");
                let (from, _) = next(&mut incoming).await.unwrap();
                for _ in 0..16 {
                    outgoing.start_send_unpin((from, vec![0; 1 << 20].into())).unwrap();
                }
                // Nobody is accepted any more, so that from here on it is the peer that a close waits for.
                assert!(closer.close().now_or_never().is_none());
                until(SOON, || std::net::TcpStream::connect(closer.local_addr().ip().unwrap()).is_err());
                abandon(async move {
                    let _held = (incoming, gone);
                    let _ = closing.close().await;
                });
                if by_the_replies {
                    drop(outgoing.close().now_or_never());
                }
                drop(peer);
                drop(outgoing);
                until(SOON, || closer.stats().connections == 0);
            });
        }
    });
}

#[test]
fn whoever_waits_for_replies_to_be_written_may_be_dropped_by_that_with_the_listener() {
    alone("orphans::whoever_waits_for_replies_to_be_written_may_be_dropped_by_that_with_the_listener", "", || {
        each_round(async |gone| {
            let listener = Listener::bind("127.0.0.1:0", without_limits()).await.unwrap();
            let closer = listener.closer();
            let (mut incoming, mut outgoing) = listener.split();
            let mut peer = raw(closer.local_addr().ip().unwrap());
            put(&mut peer, b"?");
            let (from, _) = next(&mut incoming).await.unwrap();
            for _ in 0..16 {
                outgoing.start_send_unpin((from, vec![0; 1 << 20].into())).unwrap();
            }
            abandon(async move {
                let _held = (incoming, gone);
                let _ = outgoing.flush().await;
            });
            // The peer's task goes on writing, and then nobody is there any more.
            assert_eq!(get(&mut peer).len(), 1 << 20);
            let _ = rest(&mut peer);
            until(SOON, || closer.stats().connections == 0);
        });
    });
}

/// Asks for figures, whatever it is told.
struct Curious(OnceLock<Closer>);

static CURIOUS: Curious = Curious(OnceLock::new());

impl log::Log for Curious {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        self.0.get().is_some_and(|closer| closer.stats().connections < 100)
    }

    fn log(&self, _: &log::Record<'_>) {
        self.0.get().map(Closer::stats);
    }

    fn flush(&self) {}
}

#[test]
fn a_logger_may_ask_the_listener() {
    alone("orphans::a_logger_may_ask_the_listener", "", || {
        run(async {
            log::set_logger(&CURIOUS).expect("the only logger of this process");
            log::set_max_level(log::LevelFilter::Trace);
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (closer, mut events) = (listener.closer(), listener.events());
            CURIOUS.0.set(closer.clone()).ok();
            for _ in 0..ROUNDS {
                let mut peer = raw(closer.local_addr().ip().unwrap());
                connected(&mut events).await;
                put(&mut peer, b"?");
                assert_eq!(next(&mut listener).await.unwrap().1, "?");
            }
            within(SOON, listener.close()).await.unwrap();
            drop(listener);
            answers(closer);
        });
    });
}

/// A callback that asks for figures when it is dropped.
struct Asks(Closer, #[allow(dead_code)] Gone);

impl Drop for Asks {
    fn drop(&mut self) {
        self.0.stats();
        let _ = self.0.close().now_or_never();
    }
}

#[test]
fn a_callback_is_dropped_with_the_listener_and_may_ask_it() {
    alone("orphans::a_callback_is_dropped_with_the_listener_and_may_ask_it", "", || {
        each_round(async |gone| {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (closer, mut events) = (listener.closer(), listener.events());
            let asks = Asks(closer.clone(), gone);
            let serving = task::spawn(listener.serve(move |_, _| {
                let _ = &asks;
                Ok(())
            }));
            let mut peer = raw(closer.local_addr().ip().unwrap());
            put(&mut peer, b"?");
            until(SOON, || closer.stats().messages == 1);
            drop(peer);
            within(SOON, closer.close()).await.unwrap();
            within(SOON, serving).await.unwrap();
            // Although there are handles to it.
            while let Some(event) = next(&mut events).await {
                assert!(!matches!(event, Event::Panicked { .. }), "{event:?}");
            }
            answers(closer);
        });
    });
}
