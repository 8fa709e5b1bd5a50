//! Who the other end of a connection is, as far as its transport has made sure.

/// Who the other end of a connection is, as its transport has made sure: not what the other end says of itself.
///
/// Plain TCP knows nothing, and has no identity at all. The other end of a Unix socket has [`credentials`](Self::credentials).
/// Other transports may know other things, so each is asked for on its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Identity {
    credentials: Option<Credentials>,
}

impl Identity {
    /// The process at the other end of a Unix socket, as the kernel knows it.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials
    }
}

impl From<Credentials> for Identity {
    /// That of the other end of a Unix socket: for the tests of a program that decides by it.
    fn from(credentials: Credentials) -> Self {
        Self { credentials: Some(credentials) }
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
