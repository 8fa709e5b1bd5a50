//! Code of the program that runs in tasks of this crate: callbacks, wakers, loggers, iterators, and whatever is dropped here.
//!
//! All of it may panic, and what it panics with may panic when it is dropped. So it is called through here, and never
//! while a lock is held: it may come back to this crate.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::FutureExt;
use pin_project_lite::pin_project;

/// A panic that was caught.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panic {
    /// What it said, if that was a text.
    pub(crate) message: String,
}

/// Where something panicked. The panic was caught: only what it belongs to has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PanicSource {
    /// The logger that the program has installed, or its subscriber of `tracing`.
    Logger,
    /// The waker of a task that waited. Mostly its executor is gone, and the task with it.
    Waker,
    /// The delays of a [`Backoff::from_fn`](crate::Backoff::from_fn), or the closure that makes them.
    Backoff,
    /// The key of a [`Route::by_key`](crate::Route::by_key), of a message that came back.
    Key,
    /// Something of the program, an error, a future or a closure, when it was dropped.
    Drop,
    /// A task of this crate: a defect of it.
    Task,
}

impl fmt::Display for PanicSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Logger => "the logger",
            Self::Waker => "a waker",
            Self::Backoff => "the delays of a backoff",
            Self::Key => "the key of a route",
            Self::Drop => "a drop",
            Self::Task => "a task of this library",
        })
    }
}

/// Who is told of a panic that nobody else can be told of.
pub(crate) type PanicHook = Arc<dyn Fn(PanicSource, Panic) + Send + Sync>;

impl Panic {
    /// Takes the text, and gets rid of the rest.
    fn new(payload: Box<dyn Any + Send>) -> Self {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        get_rid_of(payload);
        Self { message }
    }
}

/// Drops a payload. Each drop may panic with another payload, and the next with one more; in the end it is forgotten.
fn get_rid_of(mut payload: Box<dyn Any + Send>) {
    for _ in 0..PAYLOADS_IN_A_ROW {
        match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            Ok(()) => return,
            Err(another) => payload = another,
        }
    }
    mem::forget(payload);
}

/// How many payloads are dropped of which each is that of the panic in the drop before.
const PAYLOADS_IN_A_ROW: u32 = 4;

/// Calls it.
pub(crate) fn call<T>(call: impl FnOnce() -> T) -> Result<T, Panic> {
    catch_unwind(AssertUnwindSafe(call)).map_err(Panic::new)
}

/// Runs it to its end, and drops it there. If it panics when it is dropped before, `tell` is told.
pub(crate) fn run<F: Future, T: Fn(Panic)>(future: F, tell: T) -> impl Future<Output = Result<F::Output, Panic>> {
    Contained { future: Some(future), tell }
}

/// Wakes it. If that panics, its executor is gone: nobody waits any more.
pub(crate) fn wake(waker: Waker) -> Result<(), Panic> {
    call(|| waker.wake())
}

/// Drops it.
pub(crate) fn dispose<T>(value: T) -> Result<(), Panic> {
    call(|| drop(value))
}

/// A task that ends quietly whatever panics in it, when it runs or when it is dropped. To be told of that, one has to
/// catch it before this does.
pub(crate) fn contain<F: Future<Output = ()>>(future: F) -> impl Future<Output = ()> {
    run(future, drop).map(drop)
}

pin_project! {
    /// A future of which no panic gets out.
    struct Contained<F, T: Fn(Panic)> {
        #[pin]
        future: Option<F>,
        tell: T,
    }

    impl<F, T: Fn(Panic)> PinnedDrop for Contained<F, T> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            let mut future = this.future;
            if let Err(panic) = call(|| future.set(None)) {
                (this.tell)(panic);
            }
        }
    }
}

impl<F: Future, T: Fn(Panic)> Future for Contained<F, T> {
    type Output = Result<F::Output, Panic>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut future = self.project().future;
        let Some(running) = future.as_mut().as_pin_mut() else { return Poll::Pending };
        let ended = match call(|| running.poll(cx)) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(panic) => Err(panic),
        };
        let dropped = call(|| future.set(None));
        Poll::Ready(ended.and_then(|output| dropped.map(|()| output)))
    }
}

/// Something of the program that several hold. The last of them drops it, and a panic of that is told.
pub(crate) struct Told<T: ?Sized> {
    /// It is there until the drop.
    value: Option<Box<T>>,
    hook: PanicHook,
}

impl<T: ?Sized> Told<T> {
    pub(crate) fn new(value: Box<T>, hook: PanicHook) -> Self {
        Self { value: Some(value), hook }
    }

    pub(crate) fn get(&self) -> &T {
        self.value.as_deref().expect("it is there until the drop")
    }
}

impl<T: ?Sized> Drop for Told<T> {
    fn drop(&mut self) {
        if let Err(panic) = dispose(self.value.take()) {
            (self.hook)(PanicSource::Drop, panic);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Panics when it is dropped, with a payload that does the same.
    struct Bomb;

    impl Drop for Bomb {
        fn drop(&mut self) {
            std::panic::panic_any(Payload);
        }
    }

    struct Payload;

    impl Drop for Payload {
        fn drop(&mut self) {
            panic!("the payload");
        }
    }

    /// Kept here because a panic that is not caught ends the process, not a test.
    #[test]
    fn no_panic_gets_out_whatever_it_is_made_of() {
        assert_eq!(call(|| 1), Ok(1));
        assert_eq!(call(|| panic!("a {}", "text")), Err::<(), _>(Panic { message: "a text".into() }));
        assert_eq!(call(|| std::panic::panic_any(Payload)), Err::<(), _>(Panic { message: String::new() }));
        assert!(dispose(Bomb).is_err());

        let holding = async {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        };
        let mut contained = Box::pin(contain(holding));
        assert!(contained.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(contained);

        let panicked = run(async { drop(Bomb) }, drop).now_or_never();
        assert_eq!(panicked, Some(Err(Panic { message: String::new() })));

        let told = Arc::new(AtomicUsize::new(0));
        let telling = told.clone();
        let count = move || {
            telling.fetch_add(1, Ordering::Relaxed);
        };
        let counting = count.clone();
        let mut running = Box::pin(run(async { drop((Bomb, std::future::pending::<()>().await)) }, |_| count()));
        assert!(running.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        drop(running);
        drop(Told::new(Box::new(Bomb), Arc::new(move |_, _| counting())));
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }

    /// Panics when it is dropped, so many times more.
    struct Chain(u32, Arc<AtomicUsize>);

    impl Drop for Chain {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
            if let Some(more) = self.0.checked_sub(1) {
                std::panic::panic_any(Chain(more, self.1.clone()));
            }
        }
    }

    #[test]
    fn the_payload_of_a_payload_is_dropped_and_one_without_end_is_not() {
        let dropped = |length| {
            let dropped = Arc::new(AtomicUsize::new(0));
            assert!(call(|| std::panic::panic_any(Chain(length, dropped.clone()))).is_err());
            (dropped.load(Ordering::Relaxed), Arc::strong_count(&dropped))
        };
        // Each once, and nothing is left.
        assert_eq!(dropped(2), (3, 1));
        // The last is forgotten, with its share of the counter.
        assert_eq!(dropped(u32::MAX), (PAYLOADS_IN_A_ROW as usize, 2));
    }
}
