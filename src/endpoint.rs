//! Where a socket is: what the system calls its address.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// One end of a socket, as the system knows it: an IP address with a port, or the path of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP socket.
    Ip(SocketAddr),
    /// A Unix socket. The path is empty where it has none: that of whoever dials.
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
        Self::Ip(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
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
