//! Whoever waits for a task or a name, with a waker that panics: its executor is gone. Where a runtime wakes it, that ends the
//! process. Each in a process of its own, where the runtime has one thread, and nobody else runs its tasks: it must come back.

use std::any::Any;
use std::future::Future;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake};

use buffstreams::{Connection, Listener, Manager};
use futures::executor::block_on;

use crate::net::{SOON, alone, config, next, put, raw, rest, until, within};

const ONE_THREAD: &str = "export ASYNC_STD_THREAD_COUNT=1";

/// Its executor is gone.
#[derive(Default)]
struct Gone(AtomicUsize);

impl Wake for Gone {
    fn wake(self: Arc<Self>) {
        let _unwound = Unwound(&self.0);
        panic!("planted");
    }
}

/// Counts a panic when that has been told, which takes its time.
struct Unwound<'a>(&'a AtomicUsize);

impl Drop for Unwound<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for this until `happens` is to have ended it, in vain, and then the runtime is as it was.
async fn wakes_in_vain(waiting: impl Future, happens: impl FnOnce()) {
    let gone = Arc::new(Gone::default());
    let mut waiting = pin!(waiting);
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&gone.clone().into())).is_pending());
    happens();
    until(SOON, || gone.0.load(Ordering::Relaxed) > 0);
    let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
    put(&mut raw(listener.local_addr().ip().unwrap()), b"?");
    assert_eq!(next(&mut listener).await.unwrap().1, "?");
}

#[test]
fn a_waker_that_panics_may_wait_for_the_end_of_a_served_listener() {
    alone("joins::a_waker_that_panics_may_wait_for_the_end_of_a_served_listener", ONE_THREAD, || {
        block_on(async {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let (closer, mut peer) = (listener.closer(), raw(listener.local_addr().ip().unwrap()));
            let serving = listener.serve_in_background(|_, _| Ok(()));
            until(SOON, || closer.stats().connections == 1);
            // From here on it is the task of the listener that a close waits for.
            within(SOON, closer.close()).await.unwrap();
            wakes_in_vain(serving.close(), || {
                assert_eq!(rest(&mut peer), b"");
                drop(peer);
            })
            .await;
        });
    });
}

#[test]
fn a_waker_that_panics_may_wait_for_the_end_of_an_address() {
    alone("joins::a_waker_that_panics_may_wait_for_the_end_of_an_address", ONE_THREAD, || {
        block_on(async {
            let manager = Manager::new(config());
            let far = TcpListener::bind("127.0.0.1:0").unwrap();
            for all in [false, true] {
                manager.dial(far.local_addr().unwrap()).await.unwrap();
                let (mut peer, _) = far.accept().unwrap();
                let happens = || {
                    assert_eq!(rest(&mut peer), b"");
                    drop(peer);
                };
                match all {
                    false => wakes_in_vain(manager.close(far.local_addr().unwrap()), happens).await,
                    true => wakes_in_vain(manager.shutdown(SOON), happens).await,
                }
                until(SOON, || manager.addresses().is_empty());
            }
        });
    });
}

#[test]
fn a_waker_that_panics_may_wait_for_a_name() {
    alone("joins::a_waker_that_panics_may_wait_for_a_name", ONE_THREAD, || {
        // A name that is found while the dial is polled is waited for by nobody: the dial goes on, and calls the waker here.
        let is_planted = |panic: &Box<dyn Any + Send>| panic.downcast_ref() == Some(&"planted");
        for _ in 0..100 {
            let waits = || block_on(wakes_in_vain(Connection::dial("localhost:1", config()), || {}));
            match catch_unwind(AssertUnwindSafe(waits)) {
                Err(panic) if is_planted(&panic) => {}
                Err(panic) => resume_unwind(panic),
                Ok(()) => return,
            }
        }
        panic!("the name was found at once each time");
    });
}
