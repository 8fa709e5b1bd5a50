//! Who the other end of a connection is, as far as its transport has made sure.

use std::sync::Arc;

/// Who the other end of a connection is, as its transport has verified: not what the other end says of itself.
///
/// Plain TCP knows nothing, and has no identity at all. The other end of a Unix socket has [`credentials`](Self::credentials), one
/// that has shown a certificate over TLS has [`certificates`](Self::certificates).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Identity {
    credentials: Option<Credentials>,
    certificates: Arc<[Vec<u8>]>,
}

impl Identity {
    /// The process at the other end of a Unix socket, as the kernel knows it. `None` over TCP, and on systems other than Linux and
    /// Android.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials
    }

    /// The certificate of the other end, which was verified, and behind it those that it sent with it, in DER (X.509, RFC 5280).
    /// None without TLS, and of a client that was not asked for one. All together they are at most 64 KiB.
    pub fn certificates(&self) -> &[Vec<u8>] {
        &self.certificates
    }

    /// The same end, which has shown these.
    #[cfg(feature = "tls")]
    pub(crate) fn with_certificates(self, certificates: Vec<Vec<u8>>) -> Self {
        Self { certificates: certificates.into(), ..self }
    }
}

impl From<Credentials> for Identity {
    /// That of the other end of a Unix socket: for the tests of a program that decides by it.
    fn from(credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..Self::default() }
    }
}

/// Whose process is at the other end of a Unix socket, as it was when that was dialed, or listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Credentials {
    /// Its number; `None` where this process cannot see it, because it is in another namespace. It may have ended since, and
    /// another may have its number.
    pub pid: Option<i32>,
    /// The number of its user.
    pub uid: u32,
    /// The number of its group.
    pub gid: u32,
}

impl Credentials {
    /// These.
    pub fn new(pid: Option<i32>, uid: u32, gid: u32) -> Self {
        Self { pid, uid, gid }
    }
}
