//! The runtime and its sockets: bind, dial, accept, spawn, sleep, socket options, half-close.
//!
//! The only file that names async-std, and async-io, which is its reactor. Another runtime, TLS or Unix sockets come in
//! here, behind the same few items.

use std::future::Future;
use std::io::{self, IoSlice, Read};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::{Duration, Instant};

use async_io::Async;
use async_std::net::ToSocketAddrs;
use async_std::task::JoinHandle;
use futures::FutureExt;
use futures::io::{AsyncRead, AsyncWrite};
#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(unix)]
use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::config::Config;
use crate::error::Error;
use crate::foreign;
use crate::peer::{Address, Target};
use crate::sync::Lock;

/// How many connections the kernel keeps until they are accepted. The system may have a lower limit.
const BACKLOG: i32 = 4096;
/// How often the kernel asks a silent host before it gives up.
const KEEPALIVE_PROBES: u32 = 3;
/// The longest silence that Linux accepts for keepalive.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// A TCP connection. A clone is the same socket, which closes with its last clone.
#[derive(Clone, Debug)]
pub(crate) struct Stream(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    io: Async<TcpStream>,
    reading: Arc<Forward>,
    /// Few wait to write.
    writing: OnceLock<Arc<Forward>>,
}

/// The waker that the reactor has of one direction, always the same, for whoever waits there.
///
/// The reactor keeps one waker, and wakes under its lock the one that another takes the place of. A waker of the program may
/// be the last owner of its task there, and with it of sockets, whose end takes the same lock.
#[derive(Debug, Default)]
struct Forward(Lock<Option<Waker>>);

impl Wake for Forward {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waiting = self.0.lock().take();
        let _ = waiting.map_or(Ok(()), foreign::wake);
    }
}

impl Forward {
    /// The waker to give to the reactor, which wakes `waker` from now on. Who waited before is woken, to look again.
    fn to(self: &Arc<Self>, waker: &Waker) -> Waker {
        let replaced = {
            let mut waiting = self.0.lock();
            match &*waiting {
                Some(waiting) if waiting.will_wake(waker) => None,
                _ => waiting.replace(waker.clone()),
            }
        };
        let _ = replaced.map_or(Ok(()), foreign::wake);
        self.clone().into()
    }
}

impl Stream {
    fn new(stream: Async<TcpStream>, config: &Config) -> Self {
        // An option that the system refuses costs some comfort, not the connection.
        let _ = set_options(stream.get_ref(), config);
        Self(Arc::new(Inner { io: stream, reading: Arc::default(), writing: OnceLock::new() }))
    }

    fn socket(&self) -> &TcpStream {
        self.0.io.get_ref()
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket().peer_addr().map(plain)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket().local_addr().map(plain)
    }

    /// Ends both directions for every clone; what has been received can still be read.
    pub(crate) fn shut_down(&self) {
        // Nobody is left to tell that there was nothing to end.
        let _ = self.socket().shutdown(Shutdown::Both);
    }

    /// Ends the sending direction for every clone.
    pub(crate) fn half_close(&self) -> io::Result<()> {
        match self.socket().shutdown(Shutdown::Write) {
            // The other end was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Why it broke, if the system knows and has not told it yet.
    pub(crate) fn take_error(&self) -> Option<io::Error> {
        self.socket().take_error().ok().flatten()
    }

    /// Whether the other end has closed, or has ended its sending direction, which looks the same. It takes nothing of
    /// what has been received.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        // A reset, and an end of both directions, are told without being asked for.
        let mut end = [PollFd::new(self.socket(), PollFlags::RDHUP)];
        poll(&mut end, Some(&Timespec::default())).is_ok_and(|ended| ended > 0)
    }

    /// The same, as far as the next byte tells: data that was not read yet hides it.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(crate) fn is_closed_by_peer(&self) -> bool {
        match self.socket().peek(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::Interrupted,
        }
    }
}

/// An IPv4 address that is mapped into IPv6, as a listener of both has it, is given as what it is.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

fn set_options(stream: &TcpStream, config: &Config) -> io::Result<()> {
    let socket = SockRef::from(stream);
    // What `send` asks for elsewhere.
    #[cfg(target_vendor = "apple")]
    socket.set_nosigpipe(true)?;
    // Small messages are put together here, so the kernel should not wait for more.
    socket.set_tcp_nodelay(true)?;
    if let Some(after) = config.keepalive {
        let after = after.clamp(Duration::from_secs(1), LONGEST_KEEPALIVE);
        let interval = (after / 6).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(after);
        #[cfg(not(target_os = "openbsd"))]
        let keepalive = keepalive.with_interval(interval).with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(config.user_timeout)?;
    Ok(())
}

/// Gives the kernel what it takes of `bufs`. Where the peer is gone that is an error on every system, and nothing else: a
/// vectored write of the standard library is `writev`, which also raises SIGPIPE, and where a program has restored the default
/// action of that, it ends the process.
#[cfg(unix)]
fn send(socket: &TcpStream, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    #[cfg(not(target_vendor = "apple"))]
    const QUIETLY: SendFlags = SendFlags::NOSIGNAL;
    /// There is no such flag; the socket has the option.
    #[cfg(target_vendor = "apple")]
    const QUIETLY: SendFlags = SendFlags::empty();
    Ok(match bufs {
        [one] => rustix::net::send(socket, one, QUIETLY)?,
        many => rustix::net::sendmsg(socket, many, &mut SendAncillaryBuffer::default(), QUIETLY)?,
    })
}

/// Gives the kernel what it takes of `bufs`.
#[cfg(not(unix))]
fn send(socket: &TcpStream, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    SockRef::from(socket).send_vectored(bufs)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        let Inner { io, reading, .. } = &*self.0;
        loop {
            match io.get_ref().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            let waker = reading.to(cx.waker());
            ready!(io.poll_readable(&mut Context::from_waker(&waker)))?;
        }
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
        loop {
            match send(self.socket(), bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
            // The reactor keeps one waker for each direction. One that wakes nobody must not take the place of another's.
            if cx.waker().will_wake(Waker::noop()) {
                return Poll::Pending;
            }
            let waker = self.0.writing.get_or_init(Arc::default).to(cx.waker());
            ready!(self.0.io.poll_writable(&mut Context::from_waker(&waker)))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is with the kernel already.
        Poll::Ready(Ok(()))
    }

    /// Half-closes. (async-io's own `poll_close` only flushes.)
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.half_close())
    }
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Acceptor(Arc<Async<TcpListener>>);

/// Dropped, it ends the listening at once, although the task that accepts may go only a little later.
#[derive(Debug)]
pub(crate) struct Shutter(Weak<Async<TcpListener>>);

impl Drop for Shutter {
    fn drop(&mut self) {
        if let Some(listener) = self.0.upgrade() {
            end_listening(&listener);
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // A child process that is just being started may hold the descriptor a little longer.
        end_listening(&self.0);
    }
}

fn end_listening(listener: &Async<TcpListener>) {
    // Where the system cannot do this, the port is free when the descriptor is closed.
    let _ = SockRef::from(listener.get_ref()).shutdown(Shutdown::Read);
}

impl Acceptor {
    /// Listens on the first address of the name that the system has. It is an error if that is taken: to listen on another
    /// one instead would look like success to whoever binds, and like a listener that is missing to whoever dials.
    pub(crate) async fn bind(address: &Address) -> Result<(Self, SocketAddr), Error> {
        let failed = |source| Error::Bind { address: address.clone(), source };
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for addr in resolve(address, Purpose::Listen).await.map_err(failed)? {
            match listen(addr) {
                Ok(socket) => {
                    let local = socket.get_ref().local_addr().map(plain).map_err(failed)?;
                    return Ok((Self(Arc::new(socket)), local));
                }
                Err(error) if is_missing(&error) => last = error,
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(last))
    }

    pub(crate) fn shutter(&self) -> Shutter {
        Shutter(Arc::downgrade(&self.0))
    }

    /// Waits for the next connection. Dropping the future loses none.
    pub(crate) async fn accept(&self, config: &Config) -> io::Result<(Stream, SocketAddr)> {
        let (stream, addr) = self.0.accept().await?;
        Ok((Stream::new(stream, config), plain(addr)))
    }
}

/// Whether the system has no such address: it may be without IPv6, or without this interface.
fn is_missing(error: &io::Error) -> bool {
    #[cfg(unix)]
    const NO_FAMILY: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    #[cfg(not(unix))]
    const NO_FAMILY: i32 = 10_047;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(NO_FAMILY)
}

fn listen(addr: SocketAddr) -> io::Result<Async<TcpListener>> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // So that a restarted program gets its port back at once.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if addr.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Async::new(socket.into())
}

/// Connects to the first address of the name that answers. Each gets an equal share of the time that is left.
pub(crate) async fn dial(address: &Address, config: &Config) -> Result<Stream, Error> {
    let start = Instant::now();
    let timed_out = |after| Error::DialTimeout { address: address.clone(), after };
    let failed = |source| Error::Dial { address: address.clone(), source };
    let left =
        |addresses: usize| config.dial_timeout.map(|limit| (limit - start.elapsed().min(limit)) / addresses as u32);

    let addrs = match within(left(1), resolve(address, Purpose::Dial)).await {
        Some(addrs) => addrs.map_err(failed)?,
        None => return Err(timed_out(config.dial_timeout.unwrap_or_default())),
    };
    let mut last = failed(io::Error::new(io::ErrorKind::InvalidInput, "the name has no address"));
    for (i, addr) in addrs.iter().enumerate() {
        match within(left(addrs.len() - i), Async::<TcpStream>::connect(*addr)).await {
            // Where nobody listens on a port that the system also chooses for those who dial, it may be our own.
            Some(Ok(stream)) if is_itself(stream.get_ref()) => last = failed(io::ErrorKind::ConnectionRefused.into()),
            Some(Ok(stream)) => return Ok(Stream::new(stream, config)),
            Some(Err(error)) => last = failed(error),
            None => last = timed_out(config.dial_timeout.unwrap_or_default()),
        }
    }
    Err(last)
}

/// Whether both ends are the same socket.
fn is_itself(stream: &TcpStream) -> bool {
    stream.local_addr().is_ok_and(|local| stream.peer_addr().is_ok_and(|peer| local == peer))
}

/// What an address that names no host means.
enum Purpose {
    Listen,
    Dial,
}

async fn resolve(address: &Address, purpose: Purpose) -> io::Result<Vec<SocketAddr>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    Ok(match address.target().map_err(invalid)? {
        Target::Addr(addr) => vec![addr],
        Target::Name(host, port) => (host, port).to_socket_addrs().await?.collect(),
        Target::Port(port) => match purpose {
            // The first takes what comes over IPv4 as well.
            Purpose::Listen => vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()],
            Purpose::Dial => vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()],
        },
    })
}

/// A background task that ends when its handle is dropped. (async-std's own handle would detach it.)
#[derive(Debug)]
pub(crate) struct Task(Option<JoinHandle<()>>);

pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
    Task(Some(async_std::task::spawn(foreign::contain(future))))
}

impl Task {
    /// Lets the task end by itself.
    pub(crate) fn detach(mut self) {
        self.0 = None;
    }

    /// Waits for its end.
    pub(crate) async fn join(&mut self) {
        if let Some(handle) = &mut self.0 {
            handle.await;
            self.0 = None;
        }
    }

    /// Ends it, and waits until it is gone.
    pub(crate) async fn stop(mut self) {
        if let Some(handle) = self.0.take() {
            handle.cancel().await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            // The first poll marks it as cancelled; that its future is gone is not waited for.
            let _ = handle.cancel().now_or_never();
        }
    }
}

/// Runs it to its end, also when the future that waits for that is dropped.
pub(crate) fn finish(future: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send {
    // async-std's own handle, which detaches the task when it is dropped: here it is what is wanted.
    async_std::task::spawn(foreign::contain(future))
}

/// Lets other tasks run.
pub(crate) async fn yield_now() {
    async_std::task::yield_now().await;
}

/// What time it is.
pub(crate) fn now() -> Instant {
    Instant::now()
}

pub(crate) async fn sleep(duration: Duration) {
    async_std::task::sleep(duration).await;
}

/// Waits for `future`, at most for `limit`: `None` if that is over.
pub(crate) async fn within<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    match limit {
        None => Some(future.await),
        Some(limit) => async_std::future::timeout(limit, future).await.ok(),
    }
}
