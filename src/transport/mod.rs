//! Connections, whatever runtime they are on: an address becomes one by `dial`, or a listening socket by `bind`.

mod stream;
#[cfg(feature = "tls")]
mod tls;

use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};

use crate::config::Config;
use crate::endpoint::Endpoint;
use crate::error::{ConfigError, Error};
use crate::peer::{Address, Target};
use crate::runtime::{self, Handle, SocketOptions};
#[cfg(feature = "tls")]
use crate::{error::TlsError, tls::Tls, wire::Codec};

pub(crate) use stream::Stream;

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
    /// one instead would look like success to whoever binds, and like a listener that is missing to whoever dials.
    pub(crate) async fn bind(address: &Address, config: &Config) -> Result<(Self, SocketAddr), Error> {
        let runtime = runtime_of(config)?;
        #[cfg(feature = "tls")]
        config.tls.as_ref().map_or(Ok(()), Tls::check_server)?;
        let failed = |source| Error::Bind { address: address.clone(), source };
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "the name has no address");
        for addr in resolve(runtime, address, Purpose::Listen).await.map_err(failed)? {
            match runtime.listen(addr.into(), options(config)) {
                Ok(acceptor) => {
                    let local = stream::ip(acceptor.local()).map_err(failed)?;
                    return Ok((Self(acceptor), local));
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
    pub(crate) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (socket, remote) = poll_fn(|cx| self.0.poll_accept(cx)).await?;
        Ok((Stream::new(socket), stream::ip(Ok(remote))?))
    }
}

fn runtime_of(config: &Config) -> Result<&Handle, ConfigError> {
    if config.runtime.is_missing() { Err(ConfigError::NoRuntime) } else { Ok(&config.runtime) }
}

fn options(config: &Config) -> SocketOptions {
    SocketOptions { keepalive: config.keepalive, user_timeout: config.user_timeout }
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
    let runtime = runtime_of(config)?;
    let start = runtime.now();
    let timed_out = |after| Error::DialTimeout { address: address.clone(), after };
    let failed = |source| Error::Dial { address: address.clone(), source };
    let left = |addresses: usize| {
        let passed = runtime.now().saturating_duration_since(start);
        config.dial_timeout.map(|limit| (limit - passed.min(limit)) / addresses as u32)
    };

    let addrs = match runtime.within(left(1), resolve(runtime, address, Purpose::Dial)).await {
        Some(addrs) => addrs.map_err(failed)?,
        None => return Err(timed_out(config.dial_timeout.unwrap_or_default())),
    };
    let mut last = failed(io::Error::new(io::ErrorKind::InvalidInput, "the name has no address"));
    for (i, addr) in addrs.iter().enumerate() {
        let connecting = async {
            let stream = Stream::new(runtime.connect(Endpoint::from(*addr), options(config)).await.map_err(failed)?);
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
    let session = tls.dial(address.host())?;
    let secured = tls::secure(stream, session, config.codec()?).await;
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

async fn resolve(runtime: &Handle, address: &Address, purpose: Purpose) -> io::Result<Vec<SocketAddr>> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    Ok(match address.target().map_err(invalid)? {
        Target::Addr(addr) => vec![addr],
        Target::Name(host, port) => runtime.resolve(host, port).await?,
        Target::Port(port) => match purpose {
            // The first takes what comes over IPv4 as well.
            Purpose::Listen => vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()],
            Purpose::Dial => vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()],
        },
    })
}
