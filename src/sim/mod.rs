//! The network, the runtime and the clock of the unit tests: what the real file of this name has, in memory, on one
//! thread, in virtual time. So the whole library runs unchanged, and the same way each time.
//!
//! Not part of the library: it is compiled for its own unit tests only.

mod cable;
mod network;
mod tests;
pub(crate) mod world;

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite};

use crate::config::Config;
use crate::error::Error;
use crate::foreign;
use crate::peer::Address;
use cable::{Bug, Cable, Side};
use network::Backlog;
use world::{Sleep, does, trace, with};

pub(crate) use world::now;

/// A TCP connection. A clone is the same socket, which closes with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct Stream(Arc<Socket>);

#[derive(Debug)]
struct Socket {
    cable: Arc<Mutex<Cable>>,
    side: Side,
    local: SocketAddr,
    peer: SocketAddr,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.cable.lock().unwrap().close(self.side);
    }
}

impl Stream {
    fn new(cable: Arc<Mutex<Cable>>, side: Side, local: SocketAddr, peer: SocketAddr) -> Self {
        Self(Arc::new(Socket { cable, side, local, peer }))
    }

    fn cable(&self) -> (MutexGuard<'_, Cable>, Side) {
        (self.0.cable.lock().unwrap(), self.0.side)
    }

    fn reset(&self) {
        self.cable().0.reset();
    }

    fn panic_if_planted(&self, bug: Bug) {
        let (cable, side) = self.cable();
        let planted = cable.has(side, bug);
        drop(cable);
        assert!(!planted, "a defect was planted here");
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        let (cable, side) = self.cable();
        if cable.is_reset(side) { Err(io::ErrorKind::NotConnected.into()) } else { Ok(self.0.peer) }
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local)
    }

    pub(crate) fn shut_down(&self) {
        let (mut cable, side) = self.cable();
        cable.shut_down(side);
    }

    pub(crate) fn half_close(&self) -> io::Result<()> {
        let (mut cable, side) = self.cable();
        cable.half_close(side);
        Ok(())
    }

    pub(crate) fn take_error(&self) -> Option<io::Error> {
        let (cable, side) = self.cable();
        cable.is_reset(side).then(|| io::ErrorKind::ConnectionReset.into())
    }

    pub(crate) fn is_closed_by_peer(&self) -> bool {
        let (cable, side) = self.cable();
        cable.is_closed_by_peer(side)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.panic_if_planted(Bug::Read);
        does("read");
        let (mut cable, side) = self.cable();
        let polled = cable.poll_read(side, cx, buf);
        trace(|| format!("{} reads {polled:?}", self.0.local));
        polled
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.panic_if_planted(Bug::Write);
        does("write");
        let (mut cable, side) = self.cable();
        let polled = cable.poll_write(side, cx, bufs);
        trace(|| format!("{} writes {polled:?}", self.0.local));
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.half_close())
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Acceptor(Arc<Mutex<Backlog>>);

/// Dropped, it ends the listening at once, although the task that accepts may go only a little later.
#[derive(Debug)]
pub(crate) struct Shutter(Weak<Mutex<Backlog>>);

impl Drop for Shutter {
    fn drop(&mut self) {
        if let Some(backlog) = self.0.upgrade() {
            end_listening(&backlog);
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        end_listening(&self.0);
    }
}

fn end_listening(backlog: &Arc<Mutex<Backlog>>) {
    with(|world| world.network.forget(backlog));
    backlog.lock().unwrap().end();
}

impl Acceptor {
    pub(crate) async fn bind(address: &Address) -> Result<(Self, SocketAddr), Error> {
        let bound = resolve(address).and_then(|addr| with(|world| world.network.listen(addr)).expect("a world"));
        let (backlog, addr) = bound.map_err(|source| Error::Bind { address: address.clone(), source })?;
        Ok((Self(backlog), addr))
    }

    pub(crate) fn shutter(&self) -> Shutter {
        Shutter(Arc::downgrade(&self.0))
    }

    pub(crate) async fn accept(&self, _: &Config) -> io::Result<(Stream, SocketAddr)> {
        does("accept");
        poll_fn(|cx| self.0.lock().unwrap().poll_accept(cx)).await
    }
}

pub(crate) async fn dial(address: &Address, config: &Config) -> Result<Stream, Error> {
    let connecting = async {
        // As over a network, the answer is not there at once.
        yield_now().await;
        let connected = with(|world| Ok(world.network.connect(resolve(address)?))).expect("a world");
        match connected.transpose() {
            Some(connected) => connected.and_then(|connected| connected),
            None => std::future::pending().await,
        }
    };
    match within(config.dial_timeout, connecting).await {
        Some(connected) => connected.map_err(|source| Error::Dial { address: address.clone(), source }),
        None => Err(Error::DialTimeout { address: address.clone(), after: config.dial_timeout.unwrap_or_default() }),
    }
}

/// There are no names here.
fn resolve(address: &Address) -> io::Result<SocketAddr> {
    let text = address.as_str();
    let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
    match text.strip_prefix(':') {
        Some(port) => Ok((Ipv4Addr::LOCALHOST, port.parse().map_err(|_| invalid())?).into()),
        None => text.parse().map_err(|_| invalid()),
    }
}

/// A background task that ends when its handle is dropped.
#[derive(Debug)]
pub(crate) struct Task(Option<u64>);

pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(Some(world::start(Box::pin(foreign::contain(future)))))
}

impl Task {
    pub(crate) fn detach(mut self) {
        self.0 = None;
    }

    pub(crate) async fn join(&mut self) {
        if let Some(task) = self.0 {
            poll_fn(|cx| world::poll_joined(task, cx)).await;
            self.0 = None;
        }
    }

    pub(crate) async fn stop(mut self) {
        if let Some(task) = self.0.take() {
            world::cancel(task);
            poll_fn(|cx| world::poll_joined(task, cx)).await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            world::cancel(task);
        }
    }
}

/// Runs it to its end, also when the future that waits for that is dropped.
pub(crate) fn finish(future: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send {
    let task = world::start(Box::pin(foreign::contain(future)));
    poll_fn(move |cx| world::poll_joined(task, cx))
}

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

pub(crate) fn sleep(duration: Duration) -> impl Future<Output = ()> + Send + Sync {
    Sleep::new(duration)
}

/// Waits for `future`, at most for `limit`: `None` if that is over.
pub(crate) async fn within<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    let Some(limit) = limit else { return Some(future.await) };
    let (mut future, mut timer) = (pin!(future), pin!(sleep(limit)));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
    })
    .await
}
