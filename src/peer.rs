//! Who a message came from ([`Peer`]), and where a connection goes to ([`Address`]).

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The sender of a message: a small `Copy` value to answer to, to count by, or to print.
///
/// The id is unique within one listener and never used again, so a peer that reconnects from the same port is
/// another `Peer`. The address is the remote end of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    id: u64,
    addr: SocketAddr,
}

impl Peer {
    pub(crate) fn new(id: u64, addr: SocketAddr) -> Self {
        Self { id, addr }
    }

    /// The number of this connection within its listener, counted from 1.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The remote end of the socket.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.addr, self.id)
    }
}

/// Where to dial or to listen: `host:port`, an IP address with a port, or Go's `:port`.
///
/// It is text until the moment it is used, so a name is resolved again on each dial. A host left out means every
/// interface when listening, and this machine when dialing. A clone shares the text, so an address beside every
/// message of a [`ManagerSink`](crate::ManagerSink) costs a reference count, not a copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

impl Address {
    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Address {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&String> for Address {
    fn from(text: &String) -> Self {
        Self(text.as_str().into())
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self(addr.to_string().into())
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}
