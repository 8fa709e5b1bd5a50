//! Who a message came from ([`Peer`]), and where a connection goes to ([`Address`]).

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::{Ipv6Addr, SocketAddr};
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
/// An IPv6 address is in brackets: `[::1]:5031`. It is text until the moment it is used, so a name is resolved again on each
/// dial, and what cannot be an address is an error there, of the kind `InvalidInput`. A host left out means every
/// interface when listening, and this machine when dialing. A clone shares the text, so an address beside every
/// message of a [`ManagerSink`](crate::ManagerSink) costs a reference count, not a copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

impl Address {
    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host that it names, as far as it is an address; without one, this machine.
    #[cfg(feature = "tls")]
    pub(crate) fn host(&self) -> &str {
        match self.0.rsplit_once(':') {
            Some((host, _)) if !host.is_empty() => host.trim_start_matches('[').trim_end_matches(']'),
            _ => "localhost",
        }
    }

    /// What it says.
    pub(crate) fn target(&self) -> Result<Target<'_>, InvalidAddress> {
        if let Ok(addr) = self.0.parse() {
            return Ok(Target::Addr(addr));
        }
        if self.0.contains(char::is_whitespace) {
            return Err(InvalidAddress::WhiteSpace);
        }
        let (host, port) = self.0.rsplit_once(':').ok_or(InvalidAddress::NoPort)?;
        if host.starts_with('[') {
            let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            inner.and_then(|inner| inner.parse::<Ipv6Addr>().ok()).ok_or(InvalidAddress::InBrackets)?;
        } else if host.contains(':') {
            return Err(InvalidAddress::NoBrackets);
        }
        let port = port_of(port)?;
        // In brackets it is an address with a port that is none, or it would have been read above.
        Ok(if host.is_empty() { Target::Port(port) } else { Target::Name(host, port) })
    }
}

/// What an [`Address`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    Addr(SocketAddr),
    Name(&'a str, u16),
    /// No host: that is for whoever uses it to say.
    Port(u16),
}

/// An address that cannot be one, whatever the network knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidAddress {
    #[error("there is no port: an address is host:port, or :port")]
    NoPort,
    #[error("the port is no number")]
    PortIsNoNumber,
    #[error("the port is out of range: it is 65535 at the most")]
    PortOutOfRange,
    #[error("an IPv6 address needs brackets: [::1]:5031")]
    NoBrackets,
    #[error("what is in brackets is no IPv6 address")]
    InBrackets,
    #[error("there is white space in it")]
    WhiteSpace,
}

fn port_of(text: &str) -> Result<u16, InvalidAddress> {
    if text.is_empty() {
        return Err(InvalidAddress::NoPort);
    }
    // `parse` would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidAddress::PortIsNoNumber);
    }
    text.parse().map_err(|_| InvalidAddress::PortOutOfRange)
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

/// By the number of a peer. Nobody outside chooses those, so the hash needs no secret; without one, to go through all is the
/// same in each run, which the simulator promises.
pub(crate) type ById<T> = HashMap<u64, T, BuildHasherDefault<DefaultHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because a name that is resolved differs from one machine to the next.
    #[test]
    fn an_address_that_cannot_be_one_says_why() {
        use InvalidAddress::{InBrackets, NoBrackets, NoPort, PortIsNoNumber, PortOutOfRange, WhiteSpace};
        for (text, invalid) in [
            ("", NoPort),
            (":", NoPort),
            ("host", NoPort),
            ("host:", NoPort),
            ("[::1]:", NoPort),
            ("[::1]", InBrackets),
            (":http", PortIsNoNumber),
            (":+80", PortIsNoNumber),
            (":-1", PortIsNoNumber),
            ("[::1]:x", PortIsNoNumber),
            ("127.0.0.1:0x50", PortIsNoNumber),
            (":99999", PortOutOfRange),
            ("host:65536", PortOutOfRange),
            ("[::1]:65536", PortOutOfRange),
            ("::1:5031", NoBrackets),
            ("fe80::1:5031", NoBrackets),
            ("[host]:80", InBrackets),
            ("[::1:80", InBrackets),
            (" :80", WhiteSpace),
            ("host :80", WhiteSpace),
            ("127.0.0.1:80 ", WhiteSpace),
        ] {
            assert_eq!(Address::from(text).target(), Err(invalid), "{text:?}");
        }
        assert_eq!(Address::from(":0").target(), Ok(Target::Port(0)));
        assert_eq!(Address::from(":65535").target(), Ok(Target::Port(65_535)));
        assert_eq!(Address::from("localhost:80").target(), Ok(Target::Name("localhost", 80)));
        assert_eq!(Address::from("[::1]:80").target(), Ok(Target::Addr("[::1]:80".parse().unwrap())));
    }
}
