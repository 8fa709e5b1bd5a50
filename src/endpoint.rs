//! Where a socket is: what the system calls its address.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// One end of a socket, as the system knows it: an IP address with a port, or the path of a Unix socket.
///
/// It can be dialed as it is, and what it prints is an [`Address`](crate::Address) too, as long as its path is UTF-8. It compares
/// with a `SocketAddr`.
///
/// ```
/// use std::net::SocketAddr;
/// use std::path::Path;
/// use buffstreams::{Address, Endpoint};
///
/// let tcp = Endpoint::from(SocketAddr::from(([127, 0, 0, 1], 5031)));
/// assert_eq!((tcp.port(), tcp.to_string().as_str()), (Some(5031), "127.0.0.1:5031"));
/// let unix = Endpoint::from(Path::new("/run/app.sock"));
/// assert_eq!((unix.ip(), Address::from(&unix)), (None, "unix:/run/app.sock".into()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP socket.
    Ip(SocketAddr),
    /// A Unix socket. The path is empty where the socket has none, as at the end that dialed. One that begins with `@`
    /// is a name without a file, which Linux and Android have: the abstract namespace.
    Unix(PathBuf),
}

impl Endpoint {
    /// The IP address with the port, if it has one.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Unix(_) => None,
        }
    }

    /// The port, if it has one.
    pub fn port(&self) -> Option<u16> {
        self.ip().map(|addr| addr.port())
    }

    /// The path, if it is a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Ip(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

impl From<SocketAddr> for Endpoint {
    /// An IPv4 address that is mapped into IPv6, as a listener of both yields it, is given as what it is.
    fn from(addr: SocketAddr) -> Self {
        match addr.ip().to_canonical() {
            IpAddr::V4(ip) => Self::Ip((ip, addr.port()).into()),
            // With its scope, without which a link-local address is none.
            IpAddr::V6(_) => Self::Ip(addr),
        }
    }
}

impl From<PathBuf> for Endpoint {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl From<&Path> for Endpoint {
    fn from(path: &Path) -> Self {
        Self::Unix(path.into())
    }
}

impl PartialEq<SocketAddr> for Endpoint {
    fn eq(&self, addr: &SocketAddr) -> bool {
        matches!(self, Self::Ip(own) if own == addr)
    }
}

impl PartialEq<Endpoint> for SocketAddr {
    fn eq(&self, endpoint: &Endpoint) -> bool {
        endpoint == self
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_what_it_is_and_keeps_its_scope() {
        for (given, is) in [
            ("[::ffff:10.0.0.1]:5031", "10.0.0.1:5031"),
            ("[fe80::1%2]:5031", "[fe80::1%2]:5031"),
            ("[::1]:1", "[::1]:1"),
        ] {
            let given: SocketAddr = given.parse().unwrap();
            assert_eq!(Endpoint::from(given).to_string(), is);
        }
    }
}
