//! Connections, whatever runtime they are on: an address becomes one by `dial`, or a listening socket by `bind`.

mod parting;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod unread;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::{ConfigError, Error};
use crate::peer::{Address, Target};
use crate::runtime::{self, Handle, OwnedSocket, SocketOptions};
#[cfg(feature = "tls")]
use crate::{error::TlsError, tls::Tls, wire::Codec};

pub(crate) use stream::Stream;

/// How long a Unix socket whose queue is full, or whose folder is locked, is left alone: the first time, and after many.
const RETRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// The address of a socket that was taken over, in an error: it may have none.
const TAKEN_OVER: &str = "a socket that was given";
/// How long a folder may be locked by somebody else. A listener locks it for much less.
const LOCKED: Duration = Duration::from_secs(5);

/// A listening socket. It ends listening when it is dropped.
#[derive(Debug)]
pub(crate) struct Acceptor(Arc<dyn runtime::Acceptor>);

/// Dropped, it ends the listening at once, although the task that accepts may go only a little later.
#[derive(Debug)]
pub(crate) struct Shutter(Weak<dyn runtime::Acceptor>);

impl Drop for Shutter {
    fn drop(&mut self) {
        if let Some(acceptor) = self.0.upgrade() {
            acceptor.stop();
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        // A child process that is just being started may hold the descriptor a little longer.
        self.0.stop();
    }
}

impl Acceptor {
    /// Listens on the first address of the name that the system has. It is an error if that is taken: to listen on another
    /// one instead would look like success to the end that binds, and like a missing listener to the end that dials.
    pub(crate) async fn bind(address: &Address, config: &Config) -> Result<(Self, Endpoint), Error> {
        let runtime = runtime_to_listen(config)?;
        let failed = |source| Error::Bind { address: address.clone(), source };
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for at in resolve(runtime, address, Purpose::Listen).await.map_err(failed)? {
            match listen(runtime, at, options(config)).await {
                Ok(acceptor) => return Self::named(acceptor).map_err(failed),
                Err(error) if is_missing(&error) => last = error,
                Err(error) => return Err(failed(error)),
            }
        }
        Err(failed(last))
    }

    /// Goes on with a socket that listens already.
    pub(crate) fn adopt(socket: OwnedSocket, config: &Config) -> Result<(Self, Endpoint), Error> {
        let adopted = runtime_to_listen(config)?.adopt(socket, options(config));
        adopted.and_then(Self::named).map_err(|source| Error::Bind { address: TAKEN_OVER.into(), source })
    }

    fn named(acceptor: Arc<dyn runtime::Acceptor>) -> io::Result<(Self, Endpoint)> {
        let acceptor = Self(acceptor);
        let local = acceptor.0.local()?;
        Ok((acceptor, local))
    }

    pub(crate) fn shutter(&self) -> Shutter {
        Shutter(Arc::downgrade(&self.0))
    }

    /// Waits for the next connection. Dropping the future loses none.
    pub(crate) async fn accept(&self) -> io::Result<(Stream, Endpoint)> {
        let (socket, remote) = poll_fn(|cx| self.0.poll_accept(cx)).await?;
        Ok((Stream::new(socket), remote))
    }
}

/// Listens, when nobody else is about to listen there.
async fn listen(runtime: &Handle, at: Endpoint, options: SocketOptions) -> io::Result<Arc<dyn runtime::Acceptor>> {
    let (start, mut pause) = (runtime.now(), RETRY.0);
    loop {
        match runtime.listen(at.clone(), options) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if runtime.now().saturating_duration_since(start) >= LOCKED {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "somebody else has locked its folder"));
                }
            }
            listened => return listened,
        }
        runtime.sleep(pause).await;
        pause = (2 * pause).min(RETRY.1);
    }
}

/// Connects, when there is room in the queue of the other end: a Unix socket does not wait for that by itself.
async fn connect(runtime: &Handle, to: Endpoint, options: SocketOptions) -> io::Result<Stream> {
    let mut pause = RETRY.0;
    loop {
        match runtime.connect(to.clone(), options).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && to.path().is_some() => {}
            connected => return connected.map(Stream::new),
        }
        runtime.sleep(pause).await;
        pause = (2 * pause).min(RETRY.1);
    }
}

fn runtime_of(config: &Config) -> Result<&Handle, ConfigError> {
    if config.runtime.is_missing() { Err(ConfigError::NoRuntime) } else { Ok(&config.runtime) }
}

/// The runtime, if the settings of TLS, where there are some, can work as well.
fn runtime_to_listen(config: &Config) -> Result<&Handle, ConfigError> {
    let runtime = runtime_of(config)?;
    #[cfg(feature = "tls")]
    config.tls.as_ref().map_or(Ok(()), Tls::check_server)?;
    Ok(runtime)
}

/// The same, for the other side.
pub(crate) fn runtime_to_dial(config: &Config) -> Result<&Handle, ConfigError> {
    let runtime = runtime_of(config)?;
    #[cfg(feature = "tls")]
    config.tls.as_ref().map_or(Ok(()), Tls::check_client)?;
    Ok(runtime)
}

fn options(config: &Config) -> SocketOptions {
    SocketOptions { keepalive: config.keepalive, user_timeout: config.user_timeout, unix_mode: config.unix_mode }
}

/// Whether the system has no such address: it may be without IPv6, or without this interface.
fn is_missing(error: &io::Error) -> bool {
    #[cfg(unix)]
    const NO_FAMILY: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    #[cfg(not(unix))]
    const NO_FAMILY: i32 = 10_047;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(NO_FAMILY)
}

/// Connects to the first address of the name that answers. Each gets an equal share of the time that is left.
pub(crate) async fn dial(address: &Address, config: &Config) -> Result<Stream, Error> {
    dial_at(address, None, config).await
}

/// The same; where there is an endpoint, only to that, whatever else the name has.
pub(crate) async fn dial_at(address: &Address, only: Option<Endpoint>, config: &Config) -> Result<Stream, Error> {
    let runtime = runtime_to_dial(config)?;
    let start = runtime.now();
    let dialed = dial_from(address, only, config, runtime, start).await;
    #[cfg(feature = "metrics")]
    crate::metrics::dialed(address, runtime.now().saturating_duration_since(start), dialed.is_err());
    dialed
}

async fn dial_from(
    address: &Address,
    only: Option<Endpoint>,
    config: &Config,
    runtime: &Handle,
    start: Instant,
) -> Result<Stream, Error> {
    let timed_out = |after| Error::DialTimeout { address: address.clone(), after };
    let failed = |source| Error::Dial { address: address.clone(), source };
    let left = |addresses: usize| {
        let passed = runtime.now().saturating_duration_since(start);
        config.dial_timeout.map(|limit| (limit - passed.min(limit)) / addresses as u32)
    };

    let resolving = async {
        match only {
            Some(only) => Ok(vec![only]),
            None => resolve(runtime, address, Purpose::Dial).await,
        }
    };
    let addrs = match runtime.within(left(1), resolving).await {
        Some(addrs) => addrs.map_err(failed)?,
        None => return Err(timed_out(config.dial_timeout.unwrap_or_default())),
    };
    let mut last = failed(io::Error::new(io::ErrorKind::InvalidInput, "the name has no address"));
    for (i, addr) in addrs.iter().enumerate() {
        let connecting = async {
            let stream = connect(runtime, addr.clone(), options(config)).await.map_err(failed)?;
            // Where nobody listens on a port that the system also chooses for those who dial, it may be our own.
            if is_itself(&stream) {
                return Err(failed(io::ErrorKind::ConnectionRefused.into()));
            }
            secure_dialed(stream, address, config).await
        };
        match runtime.within(left(addrs.len() - i), connecting).await {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => last = error,
            None => last = timed_out(config.dial_timeout.unwrap_or_default()),
        }
    }
    Err(last)
}

/// Speaks TLS inside it, if that is what is asked for.
#[cfg(feature = "tls")]
async fn secure_dialed(stream: Stream, address: &Address, config: &Config) -> Result<Stream, Error> {
    let Some(tls) = &config.tls else { return Ok(stream) };
    let session = tls.dial(&address.server_name())?;
    // In a box: a session is large, and all dials would be.
    let secured = Box::pin(tls::secure(stream, session, config.codec()?)).await;
    secured.map_err(|source| Error::Tls { address: address.clone(), source })
}

#[cfg(not(feature = "tls"))]
async fn secure_dialed(stream: Stream, _: &Address, _: &Config) -> Result<Stream, Error> {
    Ok(stream)
}

/// Speaks TLS inside a connection that was accepted. The error is a setting that cannot work any more.
#[cfg(feature = "tls")]
pub(crate) async fn secure_accepted(stream: Stream, tls: &Tls, codec: Codec) -> Result<Stream, TlsError> {
    let session = tls.accept().map_err(|error| TlsError::Io(io::Error::other(error)))?;
    tls::secure(stream, session, codec).await
}

/// Whether both ends are the same socket.
fn is_itself(stream: &Stream) -> bool {
    stream.local_addr().is_ok_and(|local| stream.peer_addr().is_ok_and(|peer| local == peer))
}

/// What an address that names no host means.
enum Purpose {
    Listen,
    Dial,
}

async fn resolve(runtime: &Handle, address: &Address, purpose: Purpose) -> io::Result<Vec<Endpoint>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let both = |ips: [IpAddr; 2], port| ips.map(|ip| SocketAddr::new(ip, port).into()).to_vec();
    Ok(match address.target().map_err(invalid)? {
        Target::Addr(addr) => vec![addr.into()],
        Target::Unix(path) => vec![Endpoint::Unix(path.into())],
        Target::Name(host, port) => runtime.resolve(host, port).await?.into_iter().map(Endpoint::from).collect(),
        Target::Port(port) => match purpose {
            // The first takes what comes over IPv4 as well.
            Purpose::Listen => both([Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()], port),
            Purpose::Dial => both([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], port),
        },
    })
}
