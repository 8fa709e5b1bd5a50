//! tokio: the runtime that the program has.

use std::future::Future;
use std::io::{self, Read};
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::thread::{Builder, sleep};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use pin_project_lite::pin_project;
use socket2::Socket as Os;
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::runtime::Handle;
use tokio::time::Sleep;

use super::forward::Forward;
use super::os::{self, Direction, Reactor, Source, attempt};
use super::{Acceptor, OwnedSocket, Socket, SocketOptions, Timer, sealed};
use crate::endpoint::Endpoint;
use crate::foreign;

/// The runtime tokio: one that the program has, with its reactor and its timer enabled (`enable_all`).
///
/// It is given as a handle, because a task may have to be started where no runtime is entered, as in a drop.
#[derive(Clone, Debug)]
pub struct Tokio(Handle);

impl Tokio {
    /// The one that this is called in.
    ///
    /// # Panics
    ///
    /// Outside of one, as [`Handle::current`] does. [`Tokio::from`] takes any handle.
    #[track_caller]
    pub fn current() -> Self {
        Self(Handle::current())
    }
}

impl From<Handle> for Tokio {
    fn from(handle: Handle) -> Self {
        Self(handle)
    }
}

impl sealed::Runtime for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        // Its handle detaches the task when it is dropped.
        drop(self.0.spawn(task));
    }

    fn random(&self, into: &mut [u8]) {
        super::random(into);
    }

    fn timer(&self, at: Instant) -> Pin<Box<dyn Timer>> {
        let _entered = self.0.enter();
        Box::pin(TokioTimer { sleep: tokio::time::sleep_until(at.into()), without: None })
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        // It panics where the system gives it no thread.
        let resolving =
            foreign::call(|| self.0.spawn_blocking(move || Ok((&*host, port).to_socket_addrs()?.collect())));
        async { resolving.map_err(|panic| io::Error::other(panic.message))?.await.map_err(io::Error::other)? }.boxed()
    }

    fn connect(&self, to: Endpoint, options: SocketOptions) -> BoxFuture<'static, io::Result<Arc<dyn Socket>>> {
        os::connect(self.clone(), to, options).boxed()
    }

    fn listen(&self, at: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        os::listen(self.clone(), &at, options)
    }

    fn adopt(&self, socket: OwnedSocket, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        os::adopt(self.clone(), socket, options)
    }
}

impl Reactor for Tokio {
    type Source = AsyncFd<Os>;

    fn register(&self, socket: Os) -> io::Result<AsyncFd<Os>> {
        let _entered = self.0.enter();
        // What is deprecated is that a type may lie about its descriptor. A socket does not; what takes the place of this is
        // unsafe, and new.
        #[allow(deprecated)]
        AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE)
    }
}

impl Source for AsyncFd<Os> {
    fn socket(&self) -> &Os {
        self.get_ref()
    }

    fn poll_io<T>(
        &self,
        direction: Direction,
        forward: &Arc<Forward>,
        cx: &mut Context<'_>,
        mut io: impl FnMut(&Os) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        // A socket is called ready to write when a third of its buffer is free; a peer that is slow gets less, and is not
        // stalled. And a close accepts what the system holds, which the reactor may not have had the time to find out.
        if !matches!(direction, Direction::Read)
            && let Poll::Ready(result) = attempt(self.get_ref(), &mut io)
        {
            return Poll::Ready(result);
        }
        loop {
            let mut ready = ready!(poll_ready(self, direction, forward, cx))?;
            if let Ok(result) = ready.try_io(|fd| io(fd.get_ref())) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_read(&self, forward: &Arc<Forward>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(poll_ready(self, Direction::Read, forward, cx))?;
            let Ok(result) = ready.try_io(|fd| fd.get_ref().read(buf)) else { continue };
            if result.as_ref().is_ok_and(|read| (1..buf.len()).contains(read)) {
                // Nothing is left. The selector tells each arrival once, so what comes from now on is told; and an end stays. Behind
                // urgent data, which this library never sends, something may be left: it is found when the peer's time is over.
                ready.clear_ready();
            }
            return Poll::Ready(result);
        }
    }
}

/// Waits for what the selector has told. The reactor is only given the waker of `forward`.
fn poll_ready<'a>(
    source: &'a AsyncFd<Os>,
    direction: Direction,
    forward: &Arc<Forward>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<AsyncFdReadyGuard<'a, Os>>> {
    let waker = Waker::from(forward.clone());
    let poll_ready = || {
        let cx = &mut Context::from_waker(&waker);
        match direction {
            Direction::Read | Direction::Accept => source.poll_read_ready(cx),
            Direction::Write => source.poll_write_ready(cx),
        }
    };
    if let Poll::Ready(ready) = poll_ready() {
        return Poll::Ready(ready);
    }
    forward.set(cx.waker());
    // It may have become ready before that.
    poll_ready()
}

pin_project! {
    struct TokioTimer {
        #[pin]
        sleep: Sleep,
        // The runtime has ended: for when a thread was started that wakes in its place.
        without: Option<Instant>,
    }
}

impl Future for TokioTimer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let at = this.sleep.deadline().into_std();
        if this.without.is_none() {
            // It panics where the runtime has ended. The program may still wait for the end of what ran on it, and has its time.
            match foreign::call(|| this.sleep.poll(cx)) {
                Ok(polled) => return polled,
                Err(panic) => drop(panic),
            }
        }
        if at <= Instant::now() {
            return Poll::Ready(());
        }
        if this.without.replace(at) != Some(at) && wake_at(at, cx.waker().clone()).is_err() {
            // The system gives no thread, so this one waits.
            sleep_until(at);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// Without a runtime: wakes it in a thread.
fn wake_at(at: Instant, waker: Waker) -> io::Result<()> {
    let thread = Builder::new().name("buffstreams timer".to_owned());
    let started = thread.spawn(move || {
        sleep_until(at);
        waker.wake();
    });
    started.map(drop)
}

fn sleep_until(at: Instant) {
    sleep(at.saturating_duration_since(Instant::now()));
}

impl Timer for TokioTimer {
    fn reset(self: Pin<&mut Self>, at: Instant) {
        self.project().sleep.reset(at.into());
    }
}
