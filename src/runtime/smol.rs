//! smol: an executor of the library's own, on the reactor that smol and async-std share.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use async_executor::Executor;
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;

use super::async_io::{AsyncIo, AsyncIoTimer};
use super::{Acceptor, OwnedSocket, Socket, SocketOptions, Timer, os, sealed};
use crate::endpoint::Endpoint;

/// The runtime smol: an executor that belongs to this value, with one thread by default.
///
/// A clone is the same executor. Its threads end with the last clone; what still runs there is dropped.
#[derive(Clone)]
pub struct Smol(Arc<Threads>);

struct Threads {
    executor: Arc<Executor<'static>>,
    /// Dropped, these end the threads.
    _stop: Vec<oneshot::Sender<()>>,
}

impl Smol {
    /// With one thread: each message's tasks then share a core, which is the fastest way of requests and replies.
    pub fn new() -> io::Result<Self> {
        Self::with_threads(1)
    }

    /// With so many threads, one at least. The error is that the system starts no more threads.
    pub fn with_threads(threads: usize) -> io::Result<Self> {
        let executor = Arc::new(Executor::new());
        let start = |_| {
            let (stop, stopped) = oneshot::channel::<()>();
            let executor = executor.clone();
            thread::Builder::new().name("buffstreams".into()).spawn(move || {
                async_io::block_on(executor.run(stopped)).ok();
            })?;
            Ok(stop)
        };
        let _stop = (0..threads.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Threads { executor, _stop })))
    }
}

impl fmt::Debug for Smol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smol").field("threads", &self.0._stop.len()).finish()
    }
}

impl sealed::Runtime for Smol {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.executor.spawn(task).detach();
    }

    fn random(&self, into: &mut [u8]) {
        super::random(into);
    }

    fn timer(&self, at: Instant) -> Pin<Box<dyn Timer>> {
        Box::pin(AsyncIoTimer::at(at))
    }

    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        blocking::unblock(move || Ok((&*host, port).to_socket_addrs()?.collect())).boxed()
    }

    fn connect(&self, to: Endpoint, options: SocketOptions) -> BoxFuture<'static, io::Result<Arc<dyn Socket>>> {
        os::connect(AsyncIo, to, options).boxed()
    }

    fn listen(&self, at: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        os::listen(AsyncIo, &at, options)
    }

    fn adopt(&self, socket: OwnedSocket, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
        os::adopt(AsyncIo, socket, options)
    }
}
