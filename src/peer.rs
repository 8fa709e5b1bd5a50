//! Who a message came from ([`Peer`]), and where a connection goes to ([`Address`]).

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use crate::endpoint::Endpoint;

/// How many bytes the path of a Unix socket has at the most: there is room for a zero behind it.
const LONGEST_PATH: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };

/// The sender of a message: a small `Copy` value to answer to, to count by, or to print.
///
/// The id is unique within one listener and never used again, so a peer that reconnects from the same port is
/// another `Peer`. The address is the remote end of its socket; that of a Unix socket has none, and such a peer prints as
/// `unix#7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    id: u64,
    remote: Remote,
}

/// What tells the peers of two listeners apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Remote {
    Ip(SocketAddr),
    /// The number of its listener.
    Unix(u32),
}

impl Peer {
    /// The number is that of its listener among all.
    pub(crate) fn new(id: u64, remote: &Endpoint, listener: u32) -> Self {
        Self { id, remote: remote.ip().map_or(Remote::Unix(listener), Remote::Ip) }
    }

    /// The number of this connection within its listener, counted from 1.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The remote end of the socket, if that has an address: whoever dials a Unix socket has none.
    pub fn addr(&self) -> Option<SocketAddr> {
        match self.remote {
            Remote::Ip(addr) => Some(addr),
            Remote::Unix(_) => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remote {
            Remote::Ip(addr) => write!(f, "{addr}#{}", self.id),
            Remote::Unix(_) => write!(f, "unix#{}", self.id),
        }
    }
}

/// Where to dial or to listen: `host:port`, an IP address with a port, Go's `:port`, or `unix:` and the path of a socket.
///
/// An IPv6 address is in brackets: `[::1]:5031`. It is text until the moment it is used, so a name is resolved again on each
/// dial, and what cannot be an address is an error there, of the kind `InvalidInput`. A host left out means every
/// interface when listening, and this machine when dialing. A clone shares the text, so an address beside every
/// message of a [`ManagerSink`](crate::ManagerSink) costs a reference count, not a copy.
///
/// Whatever begins with `unix:` is a Unix socket (a host of that name is `unix.:5031`): `unix:/run/app.sock`, or a path from where
/// the process is, `unix:app.sock`. It has 107 bytes at the most, on some systems 103. `unix:@name` is a name without a file, in
/// the abstract namespace of Linux and Android, which anybody may listen on or dial; a file of such a name is `unix:./@name`.
/// See [`Listener::bind`](crate::Listener::bind) for what becomes of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

impl Address {
    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host that it names; this machine where it names none.
    #[cfg(feature = "tls")]
    pub(crate) fn host(&self) -> String {
        match self.target() {
            Ok(Target::Addr(addr)) => addr.ip().to_string(),
            Ok(Target::Name(host, _)) => host.to_owned(),
            Ok(Target::Port(_) | Target::Unix(_)) | Err(_) => "localhost".to_owned(),
        }
    }

    /// What it says.
    pub(crate) fn target(&self) -> Result<Target<'_>, InvalidAddress> {
        if let Ok(addr) = self.0.parse() {
            return Ok(Target::Addr(addr));
        }
        if let Some(path) = self.0.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(InvalidAddress::NoPath),
                _ if path == "@" => Err(InvalidAddress::NoPath),
                _ if path.contains('\0') => Err(InvalidAddress::ZeroInPath),
                len if len > LONGEST_PATH => Err(InvalidAddress::PathTooLong { len, max: LONGEST_PATH }),
                _ => Ok(Target::Unix(Path::new(path))),
            };
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
    Unix(&'a Path),
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
    #[error("there is no path: an address of a Unix socket is unix:/path, or unix:@name")]
    NoPath,
    #[error("there is a zero byte in the path")]
    ZeroInPath,
    #[error("a path of {len} bytes: that of a Unix socket has at most {max}")]
    PathTooLong { len: usize, max: usize },
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

impl From<Endpoint> for Address {
    fn from(endpoint: Endpoint) -> Self {
        Self::from(&endpoint)
    }
}

impl From<&Endpoint> for Address {
    fn from(endpoint: &Endpoint) -> Self {
        Self(endpoint.to_string().into())
    }
}

impl From<&Address> for Address {
    fn from(address: &Address) -> Self {
        address.clone()
    }
}

/// By the number of a peer.
pub(crate) type ById<T> = HashMap<u64, T, BuildHasherDefault<IdHasher>>;

/// The hash of a number that this crate has counted. Nobody outside chooses it, so it needs no secret; without one, to go through
/// all is the same in each run, which the simulator promises.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        // Knuth's multiplicative method, with 2^64 divided by the golden ratio: the table takes both the first and the last bits.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because a name that is resolved differs from one machine to the next.
    #[test]
    fn an_address_that_cannot_be_one_says_why() {
        use InvalidAddress::*;
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
            ("unix:", NoPath),
            ("unix:@", NoPath),
            ("unix:/run/a\0b", ZeroInPath),
            (&format!("unix:/{}", "x".repeat(LONGEST_PATH)), PathTooLong { len: LONGEST_PATH + 1, max: LONGEST_PATH }),
        ] {
            assert_eq!(Address::from(text).target(), Err(invalid), "{text:?}");
        }
        assert_eq!(Address::from(":0").target(), Ok(Target::Port(0)));
        assert_eq!(Address::from(":65535").target(), Ok(Target::Port(65_535)));
        assert_eq!(Address::from("localhost:80").target(), Ok(Target::Name("localhost", 80)));
        assert_eq!(Address::from("[::1]:80").target(), Ok(Target::Addr("[::1]:80".parse().unwrap())));
        for path in ["/run/app.sock", "app.sock", "@name", "5031", "with space", &"x".repeat(LONGEST_PATH)] {
            let address = Address::from(format!("unix:{path}"));
            assert_eq!(address.target(), Ok(Target::Unix(Path::new(path))));
            assert_eq!(Address::from(Endpoint::Unix(path.into())), address, "and back");
        }
    }

    /// One goes with each message.
    #[test]
    fn a_peer_is_small_and_those_of_two_listeners_differ() {
        assert!(size_of::<Peer>() <= 40, "{}", size_of::<Peer>());
        let (one, other) = (Endpoint::Unix("".into()), Endpoint::from(SocketAddr::from(([127, 0, 0, 1], 5031))));
        assert_ne!(Peer::new(7, &one, 1), Peer::new(7, &one, 2));
        assert_eq!(Peer::new(7, &one, 1).to_string(), "unix#7");
        assert_eq!((Peer::new(7, &one, 1).addr(), Peer::new(7, &other, 1).addr()), (None, other.ip()));
        assert_eq!(Peer::new(7, &other, 1).to_string(), "127.0.0.1:5031#7");
    }
}
