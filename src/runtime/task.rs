//! A background task that can be stopped and joined, on a runtime that only runs tasks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;

use super::Handle;
use crate::foreign::{self, Panic};
use crate::sync::{Key, Lock, Waiters};

/// A background task that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Task(Option<Arc<Shared>>);

type Shared = Lock<State>;

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    ended: bool,
    /// That of the task, while it waits.
    waker: Option<Waker>,
    joining: Waiters,
}

impl Handle {
    /// Runs it in the background, until the task is dropped.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> Task {
        let shared = Arc::new(Shared::default());
        let future = Some(foreign::contain(future));
        self.start(Box::pin(Running { shared: shared.clone(), future }));
        Task(Some(shared))
    }

    /// Runs it to its end, also when the future that waits for that is dropped. The error is that the logger panicked, which
    /// a runtime may tell that it starts a task; then it was dropped.
    pub(crate) fn finish(&self, future: impl Future<Output = ()> + Send + 'static) -> Result<Joining, Panic> {
        let mut task = foreign::call(|| self.spawn(future))?;
        Ok(Joining { shared: task.0.take(), place: None })
    }
}

impl Task {
    /// Lets the task end by itself.
    pub(crate) fn detach(mut self) {
        self.0 = None;
    }

    /// Waits for its end. Dropping the future leaves it as it is.
    pub(crate) async fn join(&mut self) {
        Joining { shared: self.0.clone(), place: None }.await;
    }

    /// Ends it, and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        let shared = self.0.take();
        shared.iter().for_each(|shared| stop(shared));
        Joining { shared, place: None }.await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            stop(shared);
        }
    }
}

/// The task drops its future when it is polled next.
fn stop(shared: &Shared) {
    let waker = {
        let mut state = shared.lock();
        state.stopped = true;
        state.waker.take()
    };
    // A runtime that has ended has dropped the future.
    let _ = waker.map_or(Ok(()), foreign::wake);
}

/// Waits for the end of a task.
pub(crate) struct Joining {
    shared: Option<Arc<Shared>>,
    place: Option<Key>,
}

impl Future for Joining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { shared, place } = &mut *self;
        let Some(shared) = shared else { return Poll::Ready(()) };
        let mut state = shared.lock();
        if state.ended {
            return Poll::Ready(());
        }
        let replaced = state.joining.wait(place, cx.waker());
        drop(state);
        let _ = foreign::dispose(replaced);
        Poll::Pending
    }
}

impl Drop for Joining {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            let left = shared.lock().joining.leave(&mut self.place);
            let _ = foreign::dispose(left);
        }
    }
}

pin_project! {
    /// The task, as the runtime has it.
    struct Running<F> {
        shared: Arc<Shared>,
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Running<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            this.future.set(None);
            end(this.shared);
        }
    }
}

fn end(shared: &Shared) {
    let (waker, joining) = {
        let mut state = shared.lock();
        state.ended = true;
        (state.waker.take(), state.joining.take_all())
    };
    let _ = foreign::dispose(waker);
    for waker in joining {
        let _ = foreign::wake(waker);
    }
}

impl<F: Future<Output = ()>> Future for Running<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        {
            let mut state = this.shared.lock();
            if !state.stopped {
                match &mut state.waker {
                    // It is the runtime's own, which is no code of the program.
                    Some(waker) => waker.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                drop(state);
                let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Ready(()) };
                if future.poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }
        this.future.set(None);
        end(this.shared);
        Poll::Ready(())
    }
}
