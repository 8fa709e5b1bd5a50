//! The sockets of the system, TCP and Unix alike, for each runtime whose reactor can wait for a descriptor.

use std::fmt;
use std::io::{self, IoSlice, Read};
use std::net::{Ipv6Addr, Shutdown};
#[cfg(not(unix))]
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(unix)]
use rustix::net::{SendAncillaryBuffer, SendFlags};
use socket2::{Domain, Protocol, SockAddr, Socket as Os, TcpKeepalive, Type};

use super::forward::Forward;
#[cfg(unix)]
use super::unix;
use super::{Acceptor, OwnedSocket, Socket, SocketOptions};
use crate::endpoint::Endpoint;
#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::identity::Identity;
use unix::SocketFile;

/// How many connections the kernel keeps until they are accepted. The system may have a lower limit.
const BACKLOG: i32 = 4096;
/// How often the kernel asks a silent host before it gives up.
const KEEPALIVE_PROBES: u32 = 3;
/// The longest silence that Linux accepts for keepalive.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);

/// What waits until sockets are ready.
pub(super) trait Reactor: fmt::Debug + Send + Sync + Sized + 'static {
    /// Takes the socket, which does not block, in.
    fn register(&self, socket: Os) -> io::Result<Self::Source>;

    /// A socket that it watches.
    type Source: Source;
}

/// A socket that a reactor watches.
pub(super) trait Source: fmt::Debug + Send + Sync + 'static {
    fn socket(&self) -> &Os;

    /// Does `io`, or waits until it can be done. The reactor is only given wakers of `forward`.
    fn poll_io<T>(
        &self,
        direction: Direction,
        forward: &Arc<Forward>,
        cx: &mut Context<'_>,
        io: impl FnMut(&Os) -> io::Result<T>,
    ) -> Poll<io::Result<T>>;

    /// Reads, or waits until there is something. A reactor may know that a read which leaves room has left nothing.
    #[inline]
    fn poll_read(&self, forward: &Arc<Forward>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_io(Direction::Read, forward, cx, |mut socket| socket.read(buf))
    }
}

/// Does it where that is possible at once. Nobody is woken later.
#[inline]
pub(super) fn attempt<T>(socket: &Os, io: impl FnOnce(&Os) -> io::Result<T>) -> Poll<io::Result<T>> {
    match io(socket) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Direction {
    Read,
    Write,
    /// To read, from a listening socket.
    Accept,
}

/// Opens a connection.
pub(super) async fn connect<R: Reactor>(
    reactor: R,
    to: Endpoint,
    options: SocketOptions,
) -> io::Result<Arc<dyn Socket>> {
    let (domain, address) = address_of(&to)?;
    let socket = new(domain)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address) {
        Ok(()) => {}
        // The queue of a Unix socket is full: nothing goes on there, and the dial is to be tried again.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && to.path().is_some() => return Err(error),
        Err(error) if is_in_progress(&error) => {}
        Err(error) => return Err(error),
    }
    let socket = Stream::new(reactor.register(socket)?, options);
    // On the same host the answer is there already. Somebody who dials again and again must not keep a thread for themselves.
    super::yield_now().await;
    // It can be written when the connection is there, or has failed.
    std::future::poll_fn(|cx| {
        socket.poll_io(Direction::Write, cx, |socket| match socket.take_error()? {
            Some(error) => Err(error),
            None => match socket.peer_addr() {
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Err(io::ErrorKind::WouldBlock.into()),
                Err(error) => Err(error),
            },
        })
    })
    .await?;
    // Or the first write would wake it, perhaps under a lock.
    if let Some(dialing) = socket.writing.get() {
        dialing.forget();
    }
    Ok(Arc::new(socket))
}

/// Whether it goes on in the background.
fn is_in_progress(error: &io::Error) -> bool {
    #[cfg(unix)]
    if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) {
        return true;
    }
    error.kind() == io::ErrorKind::WouldBlock
}

/// Listens.
pub(super) fn listen<R: Reactor>(reactor: R, at: &Endpoint, options: SocketOptions) -> io::Result<Arc<dyn Acceptor>> {
    let (domain, address) = address_of(at)?;
    let socket = new(domain)?;
    socket.set_nonblocking(true)?;
    let file = match at {
        Endpoint::Ip(addr) => {
            // So that a restarted program gets its port back at once.
            #[cfg(unix)]
            socket.set_reuse_address(true)?;
            if addr.ip() == Ipv6Addr::UNSPECIFIED {
                socket.set_only_v6(false)?;
            }
            socket.bind(&address)?;
            socket.listen(BACKLOG)?;
            SocketFile::default()
        }
        Endpoint::Unix(path) => SocketFile::listen(&socket, path, &address, options.unix_mode, BACKLOG)?,
    };
    listening(reactor, socket, options, file, false)
}

/// Goes on with a socket that listens already. Its file, if it has one, is somebody else's.
pub(super) fn adopt<R: Reactor>(
    reactor: R,
    socket: OwnedSocket,
    options: SocketOptions,
) -> io::Result<Arc<dyn Acceptor>> {
    let socket = Os::from(socket);
    let address = socket.local_addr()?;
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
    let listens = socket.is_listener()?;
    #[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
    let listens = true;
    let is_stream = socket.r#type()? == Type::STREAM;
    if !(address.is_ipv4() || address.is_ipv6() || address.is_unix()) || !is_stream || !listens {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no stream socket that listens"));
    }
    socket.set_nonblocking(true)?;
    listening(reactor, socket, options, SocketFile::default(), true)
}

fn listening<R: Reactor>(
    reactor: R,
    socket: Os,
    options: SocketOptions,
    file: SocketFile,
    is_adopted: bool,
) -> io::Result<Arc<dyn Acceptor>> {
    let source = match reactor.register(socket) {
        Ok(source) => source,
        Err(error) => {
            file.remove();
            return Err(error);
        }
    };
    let (waiting, is_stopped) = Default::default();
    Ok(Arc::new(Listening { reactor, source, waiting, options, file, is_adopted, is_stopped }))
}

fn new(domain: Domain) -> io::Result<Os> {
    let protocol = if domain == Domain::UNIX { None } else { Some(Protocol::TCP) };
    Os::new(domain, Type::STREAM, protocol)
}

fn address_of(endpoint: &Endpoint) -> io::Result<(Domain, SockAddr)> {
    Ok(match endpoint {
        Endpoint::Ip(addr) => (Domain::for_address(*addr), (*addr).into()),
        Endpoint::Unix(path) => (Domain::UNIX, unix::address(path)?),
    })
}

fn endpoint_of(address: &SockAddr) -> Endpoint {
    match address.as_socket() {
        Some(addr) => Endpoint::from(addr),
        None => Endpoint::Unix(unix::path(address)),
    }
}

/// There are none.
#[cfg(not(unix))]
mod unix {
    use super::*;

    #[derive(Debug, Default)]
    pub(super) struct SocketFile;

    impl SocketFile {
        pub(super) fn listen(_: &Os, _: &Path, _: &SockAddr, _: Option<u32>, _: i32) -> io::Result<Self> {
            Ok(Self)
        }

        pub(super) fn remove(&self) {}
    }

    pub(super) fn address(_: &Path) -> io::Result<SockAddr> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "there are no Unix sockets on this system"))
    }

    pub(super) fn path(_: &SockAddr) -> PathBuf {
        PathBuf::new()
    }
}

/// A connection.
#[derive(Debug)]
struct Stream<S> {
    source: S,
    reading: Arc<Forward>,
    /// Few wait to write.
    writing: OnceLock<Arc<Forward>>,
    /// There is something to read, of which the reactor may not have told.
    is_unread: AtomicBool,
    #[cfg(any(target_os = "linux", target_os = "android"))]
    is_unix: bool,
}

impl<S: Source> Stream<S> {
    fn new(source: S, options: SocketOptions) -> Self {
        let is_unix = source.socket().local_addr().is_ok_and(|address| address.is_unix());
        // An option that the system refuses costs some comfort, not the connection.
        let _ = set_options(source.socket(), is_unix, options);
        Self {
            source,
            reading: Arc::default(),
            writing: OnceLock::new(),
            is_unread: AtomicBool::new(false),
            #[cfg(any(target_os = "linux", target_os = "android"))]
            is_unix,
        }
    }

    fn poll_io<T>(
        &self,
        direction: Direction,
        cx: &mut Context<'_>,
        io: impl FnMut(&Os) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let forward = match direction {
            Direction::Read | Direction::Accept => &self.reading,
            // One waker is kept for each direction. One that wakes nobody must not take the place of another's.
            Direction::Write if cx.waker().will_wake(Waker::noop()) => return attempt(self.source.socket(), io),
            Direction::Write => self.writing.get_or_init(Arc::default),
        };
        self.source.poll_io(direction, forward, cx, io)
    }
}

fn set_options(socket: &Os, is_unix: bool, options: SocketOptions) -> io::Result<()> {
    // What `send` asks for elsewhere.
    #[cfg(target_vendor = "apple")]
    socket.set_nosigpipe(true)?;
    if is_unix {
        return Ok(());
    }
    // Small messages are put together here, so the kernel should not wait for more.
    socket.set_tcp_nodelay(true)?;
    if let Some(after) = options.keepalive {
        let after = after.clamp(Duration::from_secs(1), LONGEST_KEEPALIVE);
        let interval = (after / 6).max(Duration::from_secs(1));
        let keepalive = TcpKeepalive::new().with_time(after);
        #[cfg(not(target_os = "openbsd"))]
        let keepalive = keepalive.with_interval(interval).with_retries(KEEPALIVE_PROBES);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket.set_tcp_user_timeout(options.user_timeout)?;
    Ok(())
}

/// Gives the kernel what it takes of `bufs`. Where the peer is gone that is an error on every system, and nothing else: a
/// vectored write of the standard library is `writev`, which also raises SIGPIPE, and where a program has restored the default
/// action of that, it ends the process.
#[cfg(unix)]
fn send(socket: &Os, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
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
fn send(socket: &Os, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
    socket.send_vectored(bufs)
}

/// Whether it is ready for one of these at this moment. A reset, and an end of both directions, are told without being asked for.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn is_ready(socket: &Os, flags: PollFlags) -> bool {
    poll(&mut [PollFd::new(socket, flags)], Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// What a read of a byte would come to at this moment; `None` if it would wait.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn peek(socket: &Os) -> Option<io::Result<usize>> {
    use io::ErrorKind::{Interrupted, WouldBlock};
    let peeked = socket.peek(&mut [std::mem::MaybeUninit::uninit(); 1]);
    Some(peeked).filter(|peeked| !peeked.as_ref().is_err_and(|error| matches!(error.kind(), WouldBlock | Interrupted)))
}

impl<S: Source> Socket for Stream<S> {
    fn poll_read(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.is_unread.load(Ordering::Relaxed) {
            self.is_unread.store(false, Ordering::Relaxed);
            if let Poll::Ready(result) = attempt(self.source.socket(), |mut socket| socket.read(buf)) {
                return Poll::Ready(result);
            }
        }
        self.source.poll_read(&self.reading, cx, buf)
    }

    fn poll_write(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_io(Direction::Write, cx, |socket| send(socket, bufs))
    }

    fn poll_flush(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is with the kernel already.
        Poll::Ready(Ok(()))
    }

    fn poll_half_close(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(match self.source.socket().shutdown(Shutdown::Write) {
            // The other end was quicker.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }

    fn shut_down(&self) {
        // Nobody is left to tell that there was nothing to end.
        let _ = self.source.socket().shutdown(Shutdown::Both);
    }

    fn take_error(&self) -> Option<io::Error> {
        self.source.socket().take_error().ok().flatten()
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn is_closed_by_peer(&self) -> bool {
        is_ready(self.source.socket(), PollFlags::RDHUP)
    }

    /// As far as the next byte tells: data that was not read yet hides it.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn is_closed_by_peer(&self) -> bool {
        peek(self.source.socket()).is_some_and(|peeked| !matches!(peeked, Ok(1..)))
    }

    fn has_unread(&self) -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        let is_unread = is_ready(self.source.socket(), PollFlags::IN);
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        let is_unread = peek(self.source.socket()).is_some();
        self.is_unread.store(is_unread, Ordering::Relaxed);
        is_unread
    }

    fn local(&self) -> io::Result<Endpoint> {
        self.source.socket().local_addr().map(|address| endpoint_of(&address))
    }

    fn remote(&self) -> io::Result<Endpoint> {
        self.source.socket().peer_addr().map(|address| endpoint_of(&address))
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn identity(&self) -> Option<Arc<Identity>> {
        let credentials = if self.is_unix { unix::credentials(self.source.socket()) } else { None };
        credentials.map(|credentials| Arc::new(credentials.into()))
    }
}

/// A listening socket.
#[derive(Debug)]
struct Listening<R: Reactor> {
    reactor: R,
    source: R::Source,
    waiting: Arc<Forward>,
    options: SocketOptions,
    file: SocketFile,
    /// It was given: others may have the same socket, and listen at it when this has stopped.
    is_adopted: bool,
    is_stopped: AtomicBool,
}

impl<R: Reactor> Listening<R> {
    /// Nothing more is accepted.
    fn stopped<T>(&self) -> Poll<io::Result<T>> {
        match self.is_stopped.load(Ordering::Acquire) {
            true => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            false => Poll::Pending,
        }
    }
}

impl<R: Reactor> Acceptor for Listening<R> {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Arc<dyn Socket>, Endpoint)>> {
        if let Poll::Ready(stopped) = self.stopped() {
            return Poll::Ready(stopped);
        }
        let accepted = self.source.poll_io(Direction::Accept, &self.waiting, cx, |listening| {
            let (socket, address) = listening.accept()?;
            socket.set_nonblocking(true)?;
            let stream = Stream::new(self.reactor.register(socket)?, self.options);
            Ok((Arc::new(stream) as Arc<dyn Socket>, endpoint_of(&address)))
        });
        // It may have been stopped before it could be woken.
        if accepted.is_pending() { self.stopped() } else { accepted }
    }

    fn local(&self) -> io::Result<Endpoint> {
        self.source.socket().local_addr().map(|address| endpoint_of(&address))
    }

    fn stop(&self) {
        // While it still answers, nobody else takes its place.
        self.file.remove();
        self.is_stopped.store(true, Ordering::Release);
        if self.is_adopted {
            return self.waiting.wake_by_ref();
        }
        // Where the system cannot do this, the port is free when the descriptor is closed.
        let _ = self.source.socket().shutdown(Shutdown::Read);
    }
}
