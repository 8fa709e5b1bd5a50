//! Who a message came from ([`Peer`]), and where a connection goes to ([`Address`]).

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
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

    /// The remote end of the socket, if that has an address: the end that dialed a Unix socket has none.
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
/// An IPv6 address is in brackets: `[::1]:5031`. It is text until the moment it is used. A name is resolved on each dial, except
/// when a session is resumed. A text that cannot be an address is an error at that moment, of the kind `InvalidInput`. A host left
/// out means every interface when listening, and this machine when dialing. A clone shares the text, so an address beside every
/// message of a [`ManagerSink`](crate::ManagerSink) costs a reference count, not a copy.
///
/// Whatever begins with `unix:` is a Unix socket (a host of that name is `unix.:5031`): `unix:/run/app.sock`, or a path
/// from where the process is, `unix:app.sock`. It has 107 bytes at the most, on some systems 103. `unix:@name` is a
/// name without a file, in the abstract namespace of Linux and Android, which any process may listen on or dial; a file
/// of such a name is `unix:./@name`. See [`Listener::bind`](crate::Listener::bind) for what becomes of the file.
///
/// To find out at once whether a text can be an address, as when settings are read, parse it: `text.parse::<Address>()`. From a
/// host and a port, `Address::from(("::1", 5031))` puts the brackets where they are needed.
///
/// ```
/// use buffstreams::{Address, ParseAddressError};
///
/// let address: Address = "db.example:5031".parse()?;
/// assert_eq!((address.host(), address.port()), (Some("db.example"), Some(5031)));
/// assert_eq!("db.example".parse::<Address>(), Err(ParseAddressError::NoPort));
/// // Nothing is said until it is used.
/// let invalid = Address::from("db.example");
/// assert_eq!((invalid.host(), invalid.port()), (None, None));
/// # Ok::<(), ParseAddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Arc<str>);

impl Address {
    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host that it names: a name, or an IP address without brackets. `None` where it names none, as `:port` and a Unix
    /// socket, and where it cannot be an address.
    pub fn host(&self) -> Option<&str> {
        match self.target() {
            Ok(Target::Addr(_) | Target::Name(..)) => {
                let (host, _) = self.0.rsplit_once(':')?;
                Some(host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host))
            }
            Ok(Target::Port(_) | Target::Unix(_)) | Err(_) => None,
        }
    }

    /// The port. `None` for a Unix socket, and where it cannot be an address.
    pub fn port(&self) -> Option<u16> {
        match self.target() {
            Ok(Target::Addr(addr)) => Some(addr.port()),
            Ok(Target::Name(_, port) | Target::Port(port)) => Some(port),
            Ok(Target::Unix(_)) | Err(_) => None,
        }
    }

    /// The path, if it is that of a Unix socket.
    pub fn path(&self) -> Option<&Path> {
        match self.target() {
            Ok(Target::Unix(path)) => Some(path),
            _ => None,
        }
    }

    /// What the other end must have a certificate for: the host; this machine where it names none.
    #[cfg(feature = "tls")]
    pub(crate) fn server_name(&self) -> String {
        match self.target() {
            Ok(Target::Addr(addr)) => addr.ip().to_string(),
            Ok(Target::Name(host, _)) => host.to_owned(),
            Ok(Target::Port(_) | Target::Unix(_)) | Err(_) => "localhost".to_owned(),
        }
    }

    /// What it says.
    pub(crate) fn target(&self) -> Result<Target<'_>, ParseAddressError> {
        if let Ok(addr) = self.0.parse() {
            return Ok(Target::Addr(addr));
        }
        if let Some(path) = self.0.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(ParseAddressError::NoPath),
                _ if path == "@" => Err(ParseAddressError::NoPath),
                _ if path.contains('\0') => Err(ParseAddressError::ZeroInPath),
                len if len > LONGEST_PATH => Err(ParseAddressError::PathTooLong { len, max: LONGEST_PATH }),
                _ => Ok(Target::Unix(Path::new(path))),
            };
        }
        if self.0.contains(char::is_whitespace) {
            return Err(ParseAddressError::WhiteSpace);
        }
        let (host, port) = self.0.rsplit_once(':').ok_or(ParseAddressError::NoPort)?;
        if host.starts_with('[') {
            let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let (ip, scope) = inner.map(|inner| inner.split_once('%').unwrap_or((inner, "0"))).unwrap_or_default();
            ip.parse::<Ipv6Addr>().map_err(|_| ParseAddressError::InBrackets)?;
            // As the standard library reads it, which takes no sign there.
            if !is_number(scope) || scope.parse::<u32>().is_err() {
                return Err(ParseAddressError::ScopeIsNoNumber);
            }
        } else if host.contains(':') {
            return Err(ParseAddressError::NoBrackets);
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
    /// No host: whether that is an error is for its use to say.
    Port(u16),
}

/// A text that cannot be an [`Address`], whatever the network knows. Where the address is used without being parsed before, it is
/// inside the `io::Error` of [`Error::Bind`](crate::Error::Bind) or [`Error::Dial`](crate::Error::Dial).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseAddressError {
    /// There is no port.
    #[error("there is no port: an address is host:port, or :port")]
    NoPort,
    /// The port is no number. Names of services are not looked up.
    #[error("the port is no number")]
    PortIsNoNumber,
    /// The port is over 65535.
    #[error("the port is out of range: it is 65535 at the most")]
    PortOutOfRange,
    /// An IPv6 address without brackets: its port cannot be told from the rest.
    #[error("an IPv6 address needs brackets: [::1]:5031")]
    NoBrackets,
    /// What is in brackets is no IPv6 address.
    #[error("what is in brackets is no IPv6 address")]
    InBrackets,
    /// What is behind the `%` of an IPv6 address is no number. Names of interfaces are not looked up.
    #[error("the scope of an IPv6 address is no number: it is as in [fe80::1%2]:5031")]
    ScopeIsNoNumber,
    /// There is white space in it.
    #[error("there is white space in it")]
    WhiteSpace,
    /// There is nothing behind `unix:` or `unix:@`.
    #[error("there is no path: an address of a Unix socket is unix:/path, or unix:@name")]
    NoPath,
    /// There is a zero byte in the path.
    #[error("there is a zero byte in the path")]
    ZeroInPath,
    /// The path is longer than the system has room for.
    #[error("a path of {len} bytes: that of a Unix socket has at most {max}")]
    #[non_exhaustive]
    PathTooLong {
        /// How long it is, in bytes.
        len: usize,
        /// The longest, in bytes.
        max: usize,
    },
}

fn port_of(text: &str) -> Result<u16, ParseAddressError> {
    if text.is_empty() {
        return Err(ParseAddressError::NoPort);
    }
    if !is_number(text) {
        return Err(ParseAddressError::PortIsNoNumber);
    }
    text.parse().map_err(|_| ParseAddressError::PortOutOfRange)
}

/// Whether it is all digits: `parse` would take a sign.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Takes only what can be an address: a host or none, and a port, or the path of a Unix socket. Names are not resolved.
impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, ParseAddressError> {
        let address = Self::from(text);
        address.target()?;
        Ok(address)
    }
}

/// Whatever it is; what cannot be an address is an error when it is used.
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

/// A host, be it a name or an IP address with brackets or without, and a port. What cannot be a host is an error when it is used.
impl From<(&str, u16)> for Address {
    fn from((host, port): (&str, u16)) -> Self {
        // Alone it would begin the path of a Unix socket.
        let dot = if host == "unix" { "." } else { "" };
        let text = if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}{dot}:{port}")
        };
        Self(text.into())
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
        use ParseAddressError::*;
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
            ("[]:80", InBrackets),
            ("[fe80::1%eth0]:80", ScopeIsNoNumber),
            ("[fe80::1%]:80", ScopeIsNoNumber),
            ("[fe80::1%+2]:80", ScopeIsNoNumber),
            ("[fe80::1%4294967296]:80", ScopeIsNoNumber),
            ("[fe80::1%2]:65536", PortOutOfRange),
            ("[::1:80", InBrackets),
            (" :80", WhiteSpace),
            ("host :80", WhiteSpace),
            ("127.0.0.1:80 ", WhiteSpace),
            ("unix:", NoPath),
            ("unix:@", NoPath),
            ("unix:/run/a\0b", ZeroInPath),
            (&format!("unix:/{}", "x".repeat(LONGEST_PATH)), PathTooLong { len: LONGEST_PATH + 1, max: LONGEST_PATH }),
        ] {
            let address = Address::from(text);
            assert_eq!((address.host(), address.port(), address.path()), (None, None, None), "{text:?}");
            assert_eq!(address.target(), Err(invalid.clone()), "{text:?}");
            assert_eq!(text.parse::<Address>(), Err(invalid));
        }
        assert_eq!(Address::from(":0").target(), Ok(Target::Port(0)));
        assert_eq!(Address::from(":65535").target(), Ok(Target::Port(65_535)));
        assert_eq!(Address::from("localhost:80").target(), Ok(Target::Name("localhost", 80)));
        assert_eq!(Address::from("[::1]:80").target(), Ok(Target::Addr("[::1]:80".parse().unwrap())));
        for path in ["/run/app.sock", "app.sock", "@name", "5031", "with space", &"x".repeat(LONGEST_PATH)] {
            let address = Address::from(format!("unix:{path}"));
            assert_eq!(address.target(), Ok(Target::Unix(Path::new(path))));
            assert_eq!(Address::from(Endpoint::Unix(path.into())), address, "and back");
            assert_eq!((address.host(), address.port(), address.path()), (None, None, Some(Path::new(path))));
        }
    }

    #[test]
    fn an_address_has_a_host_and_a_port_and_is_made_of_them() {
        for (text, host, port) in [
            ("db.example:80", "db.example", 80),
            ("127.0.0.1:0", "127.0.0.1", 0),
            ("[::1]:65535", "::1", 65_535),
            ("[fe80::1%2]:80", "fe80::1%2", 80),
            ("unix.:5031", "unix.", 5031),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (Some(host), Some(port)), "{text}");
            assert_eq!(Address::from((host, port)), address);
        }
        let any = Address::from(("", 5031));
        assert_eq!((any.as_str(), any.host(), any.port()), (":5031", None, Some(5031)));
        assert_eq!(Address::from(("[::1]", 80)).as_str(), "[::1]:80");
        assert_eq!(Address::from(("unix", 80)).target(), Ok(Target::Name("unix.", 80)));
        for host in ["unix:/run/app.sock", "host:80", "with space"] {
            let address = Address::from((host, 80));
            assert!(address.target().is_err(), "{address} is an error where it is used");
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
