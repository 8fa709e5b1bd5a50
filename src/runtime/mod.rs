//! What the library needs of a runtime: tasks, a clock, timers, names and sockets.
//!
//! A runtime is a value, which the configuration holds. Each has a file of its own, the only one that names its crate.

#[cfg(any(feature = "async-std", feature = "smol"))]
mod async_io;
#[cfg(feature = "async-std")]
mod async_std;
#[cfg(any(feature = "async-std", feature = "smol", all(feature = "tokio", unix)))]
mod os;
#[cfg(feature = "smol")]
mod smol;
#[cfg(all(feature = "tokio", unix))]
mod tokio;
#[cfg(all(unix, any(feature = "async-std", feature = "smol", feature = "tokio")))]
mod unix;

mod forward;
#[cfg(any(test, not(feature = "async-std")))]
mod missing;
mod task;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use crate::endpoint::Endpoint;
use crate::identity::Identity;

#[cfg(feature = "async-std")]
pub use self::async_std::AsyncStd;
#[cfg(feature = "smol")]
pub use self::smol::Smol;
#[cfg(all(feature = "tokio", unix))]
pub use self::tokio::Tokio;
pub(crate) use forward::Forward;
pub(crate) use task::Task;

/// A runtime: see [`Config::runtime`](crate::Config::runtime). It is sealed; this crate has those that there are.
pub trait Runtime: sealed::Runtime {}

impl<R: sealed::Runtime> Runtime for R {}

pub(crate) mod sealed {
    use super::*;

    /// What a runtime does.
    pub trait Runtime: fmt::Debug + Send + Sync + 'static {
        /// Runs it to its end. To stop it or to join it there is a [`Task`].
        fn spawn(&self, task: BoxFuture<'static, ()>);

        /// What time it is.
        fn now(&self) -> Instant {
            Instant::now()
        }

        /// Fills `into` with what nobody can foretell.
        fn random(&self, into: &mut [u8]);

        /// Fires at that time.
        fn timer(&self, at: Instant) -> Pin<Box<dyn Timer>>;

        /// The addresses of a host, with this port.
        fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

        /// Opens a connection.
        fn connect(&self, to: Endpoint, options: SocketOptions) -> BoxFuture<'static, io::Result<Arc<dyn Socket>>>;

        /// Listens. `WouldBlock` is for now: somebody else is about to listen there.
        fn listen(&self, at: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>>;

        /// Goes on with a socket that listens already.
        fn adopt(&self, socket: OwnedSocket, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
            let _ = (socket, options);
            Err(io::Error::new(io::ErrorKind::Unsupported, "this runtime takes no sockets of the system"))
        }
    }
}

/// A socket of the system.
#[cfg(unix)]
pub(crate) use std::os::fd::OwnedFd as OwnedSocket;
#[cfg(windows)]
pub(crate) use std::os::windows::io::OwnedSocket;

/// A timer that can be set anew.
pub trait Timer: Future<Output = ()> + Send + Sync {
    /// From now on it fires at that time.
    fn reset(self: Pin<&mut Self>, at: Instant);
}

/// A connection. One task waits in each direction; a later waker replaces the earlier.
pub trait Socket: fmt::Debug + Send + Sync + 'static {
    /// Reads what there is; 0 bytes are the end.
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Writes what there is room for. It never raises SIGPIPE.
    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>>;

    /// Ready when what was written is with the kernel.
    fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the sending direction.
    fn poll_half_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends both directions for everybody who has it; what has been received can still be read.
    fn shut_down(&self);

    /// Why it broke, if the system knows and has not told it yet.
    fn take_error(&self) -> Option<io::Error>;

    /// Whether the other end has closed, or has ended its sending direction, which looks the same. It takes nothing of what
    /// has been received.
    fn is_closed_by_peer(&self) -> bool;

    /// After a read that waits: whether there is something by now, or the end, of which the runtime may not have heard yet. It
    /// takes nothing of what has been received, nor, where the system can tell without it, the error of a reset.
    fn has_unread(&self) -> bool;

    /// This end.
    fn local(&self) -> io::Result<Endpoint>;

    /// The other end.
    fn remote(&self) -> io::Result<Endpoint>;

    /// Who the other end is, if the transport has made sure.
    fn identity(&self) -> Option<Arc<Identity>> {
        None
    }
}

/// A listening socket.
pub trait Acceptor: fmt::Debug + Send + Sync + 'static {
    /// The next connection, and where it comes from.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Arc<dyn Socket>, Endpoint)>>;

    /// Where it listens.
    fn local(&self) -> io::Result<Endpoint>;

    /// Ends the listening at once, although others may hold it a little longer.
    fn stop(&self);
}

/// What a socket is set to when it is made. Where a system does not have an option, that costs some comfort, not the
/// connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketOptions {
    /// After how much silence the kernel asks whether the other host is there.
    pub keepalive: Option<Duration>,
    /// How long written data may stay unacknowledged.
    pub user_timeout: Option<Duration>,
    /// The permissions of the file of a listening Unix socket.
    pub unix_mode: Option<u32>,
}

/// A runtime, shared: a clone is the same.
#[derive(Clone, Default)]
pub(crate) struct Handle(
    /// `None` for the one that is used where none is given: async-std, where its feature is on.
    Option<Arc<dyn Runtime>>,
);

impl Handle {
    pub(crate) fn new(runtime: impl Runtime) -> Self {
        Self(Some(Arc::new(runtime)))
    }

    /// The one that was given.
    pub(crate) fn get(&self) -> Option<&dyn Runtime> {
        self.0.as_deref()
    }

    /// Whether there is none at all.
    pub(crate) fn is_missing(&self) -> bool {
        self.0.is_none() && !default::EXISTS
    }

    fn with<T>(&self, visit: impl FnOnce(&dyn sealed::Runtime) -> T) -> T {
        match &self.0 {
            Some(runtime) => visit(&**runtime),
            None => default::with(visit),
        }
    }

    fn start(&self, task: BoxFuture<'static, ()>) {
        self.with(|runtime| runtime.spawn(task));
    }

    pub(crate) fn now(&self) -> Instant {
        self.with(|runtime| runtime.now())
    }

    /// Fires at that time.
    pub(crate) fn timer(&self, at: Instant) -> Alarm {
        Alarm { timer: self.with(|runtime| runtime.timer(at)), waiting: Arc::default() }
    }

    /// A number that nobody can foretell.
    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_ne_bytes(bytes)
    }

    /// Bytes that nobody can foretell.
    pub(crate) fn fill_random(&self, into: &mut [u8]) {
        self.with(|runtime| runtime.random(into));
    }

    /// From now on; not from the first poll.
    pub(crate) fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + Sync + use<> {
        // What is further away than the clock can tell never comes.
        let timer = self.now().checked_add(duration).map(|at| self.timer(at));
        async move {
            match timer {
                Some(timer) => timer.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Waits for `future`, at most for `limit`: `None` if that is over.
    pub(crate) async fn within<F: Future>(&self, limit: Option<Duration>, future: F) -> Option<F::Output> {
        let Some(limit) = limit else { return Some(future.await) };
        let (mut future, mut over) = (pin!(future), pin!(self.sleep(limit)));
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => over.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let mut resolving = self.with(|runtime| runtime.resolve(host.to_owned(), port));
        // The task of it wakes the one that waits, and where the waker of the program panics there, that ends the process.
        let waiting = Arc::new(Forward::default());
        poll_fn(|cx| {
            waiting.set(cx.waker());
            resolving.as_mut().poll(&mut Context::from_waker(&waiting.clone().into()))
        })
        .await
    }

    pub(crate) async fn connect(&self, to: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Socket>> {
        self.with(|runtime| runtime.connect(to, options)).await
    }

    pub(crate) fn listen(&self, at: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        self.with(|runtime| runtime.listen(at, options))
    }

    pub(crate) fn adopt(&self, socket: OwnedSocket, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        self.with(|runtime| runtime.adopt(socket, options))
    }
}

/// The same runtime.
impl PartialEq for Handle {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            // Without what they say of their types, which may differ for one and the same.
            (Some(one), Some(other)) => std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other)),
            (None, None) => true,
            _ => false,
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with(|runtime| runtime.fmt(f))
    }
}

/// A timer.
pub(crate) struct Alarm {
    timer: Pin<Box<dyn Timer>>,
    waiting: Arc<Forward>,
}

impl Alarm {
    /// From now on it fires at that time, also where it has fired.
    pub(crate) fn reset(&mut self, at: Instant) {
        self.timer.as_mut().reset(at);
    }
}

impl Future for Alarm {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.waiting.set(cx.waker());
        let waker = Waker::from(self.waiting.clone());
        self.timer.as_mut().poll(&mut Context::from_waker(&waker))
    }
}

/// Lets other tasks run.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Fills `into` with what nobody can foretell.
#[cfg(any(feature = "async-std", feature = "smol", all(feature = "tokio", unix)))]
fn random(into: &mut [u8]) {
    // The system has always some, but where it is broken.
    getrandom::fill(into).expect("the system has random numbers");
}

#[cfg(all(feature = "async-std", not(test)))]
mod default {
    pub(super) const EXISTS: bool = true;

    pub(super) fn with<T>(visit: impl FnOnce(&dyn super::sealed::Runtime) -> T) -> T {
        visit(&super::AsyncStd::new())
    }
}

#[cfg(all(not(feature = "async-std"), not(test)))]
mod default {
    pub(super) const EXISTS: bool = false;

    pub(super) fn with<T>(visit: impl FnOnce(&dyn super::sealed::Runtime) -> T) -> T {
        visit(&super::missing::Missing)
    }
}

/// In a unit test, the runtime of the test that runs on this thread.
#[cfg(test)]
pub(crate) mod default {
    use std::cell::RefCell;
    use std::sync::Arc;

    use super::sealed::Runtime;

    pub(super) const EXISTS: bool = true;

    thread_local! {
        static RUNTIME: RefCell<Option<Arc<dyn Runtime>>> = const { RefCell::new(None) };
    }

    pub(super) fn with<T>(visit: impl FnOnce(&dyn Runtime) -> T) -> T {
        match RUNTIME.try_with(|runtime| runtime.borrow().clone()).ok().flatten() {
            Some(runtime) => visit(&*runtime),
            // It has ended.
            None => visit(&super::missing::Missing),
        }
    }

    /// Returns the one before.
    pub(crate) fn set(runtime: Option<Arc<dyn Runtime>>) -> Option<Arc<dyn Runtime>> {
        RUNTIME.replace(runtime)
    }
}
