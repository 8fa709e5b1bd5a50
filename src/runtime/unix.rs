//! What only Unix sockets have: a file, which has to be made, replaced and removed, and the credentials of the other end.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use socket2::{Domain, SockAddr, Socket as Os, Type};

#[cfg(any(target_os = "linux", target_os = "android"))]
use crate::identity::Credentials;
use crate::sync::Lock;

/// The file of a listening socket, if it has one that is its own: a name without a file begins with `@`, and that of a socket
/// that was taken over is somebody else's.
#[derive(Debug, Default)]
pub(super) struct SocketFile(Lock<Option<Own>>);

#[derive(Debug)]
struct Own {
    /// From the root: the process may go elsewhere.
    path: PathBuf,
    /// Tells it from another at this path.
    number: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, in the place of a dead socket if there is one.
    ///
    /// A socket is dead when nobody answers there. Between that question and the new socket's first answer the folder is locked, so
    /// of all who listen by this function none takes the place of another that lives. A program that listens by other means is
    /// only safe from the moment it answers: between its `bind` and its `listen` it looks dead.
    pub(super) fn listen(
        socket: &Os,
        path: &Path,
        address: &SockAddr,
        mode: Option<u32>,
        backlog: i32,
    ) -> io::Result<Self> {
        if is_name(path) {
            if mode.is_some() {
                let error = "a name without a file has no permissions that could be set";
                return Err(io::Error::new(io::ErrorKind::Unsupported, error));
            }
            socket.bind(address)?;
            socket.listen(backlog)?;
            return Ok(Self::default());
        }
        let path = std::path::absolute(path)?;
        let _locked = lock(path.parent().unwrap_or(&path))?;
        match socket.bind(address) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                replace(&path, address)?;
                socket.bind(address)?;
            }
            bound => bound?,
        }
        let file = Self(Lock::new(Some(Own { number: number(&path)?, path: path.clone() })));
        // Nobody can dial before it listens.
        let permitted = mode.map_or(Ok(()), |mode| fs::set_permissions(&path, Permissions::from_mode(mode)));
        if let Err(error) = permitted.and_then(|()| socket.listen(backlog)) {
            file.remove();
            return Err(error);
        }
        Ok(file)
    }

    /// Removes it, unless another has its place. While the socket still answers, nobody can take that between the two.
    pub(super) fn remove(&self) {
        let own = self.0.lock().take();
        if let Some(Own { path, number: own }) = own
            && number(&path).is_ok_and(|number| number == own)
        {
            // Nobody is left to tell. Who listens there next replaces it.
            let _ = fs::remove_file(path);
        }
    }
}

/// A lock of the folder, until it is dropped. It leaves nothing behind. `WouldBlock`: somebody else has it.
fn lock(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

/// Removes the file of a dead socket, and nothing else.
fn replace(path: &Path, address: &SockAddr) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
    }
    let question = Os::new(Domain::UNIX, Type::STREAM, None)?;
    question.set_nonblocking(true)?;
    match question.connect(address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Whether it answered, is busy, or may not be asked: it may be alive.
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

fn number(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// Whether it is a name without a file.
fn is_name(path: &Path) -> bool {
    path.as_os_str().as_bytes().starts_with(b"@")
}

/// The address of a path, as the system takes it.
pub(super) fn address(path: &Path) -> io::Result<SockAddr> {
    if !is_name(path) {
        return SockAddr::unix(path);
    }
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        let error = "names without a file are of Linux and Android: a file is unix:./@name";
        return Err(io::Error::new(io::ErrorKind::Unsupported, error));
    }
    let mut name = path.as_os_str().as_bytes().to_vec();
    name[0] = 0;
    SockAddr::unix(OsStr::from_bytes(&name))
}

/// The path of an address; an empty one where it has none.
pub(super) fn path(address: &SockAddr) -> PathBuf {
    match address.as_abstract_namespace() {
        Some(name) => OsStr::from_bytes(&[b"@", name].concat()).into(),
        None => address.as_pathname().map(PathBuf::from).unwrap_or_default(),
    }
}

/// Whose process the other end is.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn credentials(socket: &Os) -> Option<Credentials> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    // 0 stands for one that cannot be seen from here.
    let pid = Some(peer.pid.as_raw_nonzero().get()).filter(|pid| *pid > 0);
    Some(Credentials::new(pid, peer.uid.as_raw(), peer.gid.as_raw()))
}
