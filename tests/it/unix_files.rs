//! The files of Unix sockets: who replaces and removes which, and with what permissions.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use buffstreams::{Bytes, ConfigError, Connection, Error, Listener, Manager};
use futures::{FutureExt, SinkExt};

use crate::net::{SOON, alone, config, next, run, within};

/// A folder of a test's own, with a short path, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let name = format!("bs-{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("s")
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.path().display())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn bind(folder: &Folder) -> Result<Listener, Error> {
    Listener::bind(folder.address(), config()).await
}

/// Of which kind the error is.
fn refused(bound: Result<Listener, Error>) -> ErrorKind {
    match bound {
        Err(Error::Bind { source, .. }) => source.kind(),
        other => panic!("{other:?}"),
    }
}

/// What tells a file from another at the same path.
fn number(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Messages to there come to this listener.
async fn is_reached(folder: &Folder, listener: &mut Listener) {
    let mut connection = Connection::dial(folder.address(), config()).await.unwrap();
    connection.send(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(next(listener).await.unwrap().1, "hello");
}

#[test]
fn a_socket_that_a_dead_process_left_is_replaced() {
    run(async {
        let folder = Folder::new();
        drop(UnixListener::bind(folder.path()).unwrap());
        let error = Connection::dial(folder.address(), config()).await.unwrap_err();
        assert!(matches!(error, Error::Dial { source, .. } if source.kind() == ErrorKind::ConnectionRefused));
        let mut listener = bind(&folder).await.unwrap();
        is_reached(&folder, &mut listener).await;
    });
}

#[test]
fn a_socket_that_lives_is_not_replaced() {
    run(async {
        let folder = Folder::new();
        let living = UnixListener::bind(folder.path()).unwrap();
        let its_own = number(&folder.path());
        assert_eq!(refused(bind(&folder).await), ErrorKind::AddrInUse);
        assert_eq!(number(&folder.path()), its_own);
        drop(living);

        let mut listener = bind(&folder).await.unwrap();
        let its_own = number(&folder.path());
        assert_eq!(refused(bind(&folder).await), ErrorKind::AddrInUse);
        assert_eq!(number(&folder.path()), its_own);
        is_reached(&folder, &mut listener).await;
    });
}

/// It answers, but not now: its queue is full.
#[test]
fn a_socket_that_is_busy_is_not_replaced() {
    run(async {
        let folder = Folder::new();
        let _busy = crate::unix::Busy::new(&folder);
        assert_eq!(refused(bind(&folder).await), ErrorKind::AddrInUse);
        assert!(folder.path().exists());
    });
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    run(async {
        let folder = Folder::new();
        let dead = folder.0.join("dead");
        drop(UnixListener::bind(&dead).unwrap());
        fs::write(folder.path(), "precious").unwrap();
        assert_eq!(refused(bind(&folder).await), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(folder.path()).unwrap(), "precious");

        fs::remove_file(folder.path()).unwrap();
        fs::create_dir(folder.path()).unwrap();
        assert_eq!(refused(bind(&folder).await), ErrorKind::AlreadyExists);
        fs::remove_dir(folder.path()).unwrap();

        symlink(&dead, folder.path()).unwrap();
        assert_eq!(refused(bind(&folder).await), ErrorKind::AlreadyExists);
        assert!(folder.path().is_symlink() && dead.exists());
    });
}

#[test]
fn the_file_is_removed_when_the_listener_closes_or_is_dropped() {
    run(async {
        let folder = Folder::new();
        let mut listener = bind(&folder).await.unwrap();
        listener.close().await.unwrap();
        assert!(!folder.path().exists(), "it is closed");

        let listener = bind(&folder).await.unwrap();
        let closer = listener.closer();
        drop(listener);
        assert!(!folder.path().exists(), "it is dropped");
        drop(closer);

        let serving = bind(&folder).await.unwrap().serve_in_background(|_, _| Ok(()));
        serving.close().await.unwrap();
        assert!(!folder.path().exists(), "it is served no more");

        let manager = Manager::new(config());
        let _listener = manager.listen(folder.address()).await.unwrap();
        manager.close_listener(folder.address()).await.unwrap();
        assert!(!folder.path().exists(), "the manager has closed it");
    });
}

#[test]
fn the_file_of_another_is_not_removed() {
    run(async {
        let folder = Folder::new();
        let listener = bind(&folder).await.unwrap();
        fs::remove_file(folder.path()).unwrap();
        let other = UnixListener::bind(folder.path()).unwrap();
        drop(listener);
        assert!(UnixStream::connect(folder.path()).is_ok());
        drop(other);

        let mut listener = bind(&folder).await.unwrap();
        fs::remove_file(folder.path()).unwrap();
        fs::write(folder.path(), "precious").unwrap();
        listener.close().await.unwrap();
        assert_eq!(fs::read_to_string(folder.path()).unwrap(), "precious");
    });
}

#[test]
fn the_file_has_the_permissions_that_were_asked_for() {
    run(async {
        let folder = Folder::new();
        let mode = || fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777;
        for asked in [0o600, 0o660, 0o666, 0o777, 0o000] {
            let listener = Listener::bind(folder.address(), config().unix_mode(asked)).await.unwrap();
            assert_eq!(mode(), asked);
            drop(listener);
        }
        let file = folder.0.join("file");
        fs::write(&file, "").unwrap();
        let left_by_umask = fs::metadata(file).unwrap().permissions().mode() & 0o666;
        let _listener = bind(&folder).await.unwrap();
        assert_eq!(mode() & 0o666, left_by_umask, "without one it is the umask's");

        let error = Listener::bind("127.0.0.1:0", config().unix_mode(0o1777)).await.unwrap_err();
        assert!(matches!(error, Error::Config(ConfigError::UnixMode { given: 0o1777, .. })), "{error:?}");
    });
}

/// They race for the place of a dead one, again and again.
#[test]
fn of_those_who_begin_at_once_one_has_the_place_and_keeps_it() {
    const ROUNDS: usize = 200;
    const BINDERS: usize = 3;
    let (folder, config) = (Folder::new(), config());
    let dead = folder.0.join("dead");
    drop(UnixListener::bind(&dead).unwrap());
    for _ in 0..ROUNDS {
        fs::hard_link(&dead, folder.path()).unwrap();
        let start = Barrier::new(BINDERS);
        let bound = std::thread::scope(|threads| {
            let begin = || {
                start.wait();
                run(Listener::bind(folder.address(), config.clone()))
            };
            let binders = [(); BINDERS].map(|()| threads.spawn(begin));
            binders.map(|binder| binder.join().unwrap())
        });
        let (mut owners, others): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
        assert_eq!(owners.len(), 1, "one has it");
        run(is_reached(&folder, owners[0].as_mut().unwrap()));
        others.into_iter().for_each(|other| assert_eq!(refused(other), ErrorKind::AddrInUse));
    }
}

/// Between the question whether anybody lives there and the answer of the new one, nobody else may ask.
#[test]
fn who_begins_waits_while_another_has_locked_the_folder() {
    run(async {
        let folder = Folder::new();
        let lock = fs::File::open(&folder.0).unwrap();
        #[allow(unsafe_code)]
        // SAFETY: the descriptor is open.
        let locked = unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) };
        assert_eq!(locked, 0);
        let mut binding = Box::pin(bind(&folder));
        assert!((&mut binding).now_or_never().is_none());
        assert!(!folder.path().exists());
        drop(lock);
        is_reached(&folder, &mut within(SOON, binding).await.unwrap()).await;
    });
}

#[test]
fn a_path_may_be_relative_and_the_process_may_go_elsewhere() {
    let folder = Folder::new();
    let setup = format!("cd '{}'", folder.0.display());
    alone("unix_files::a_path_may_be_relative_and_the_process_may_go_elsewhere", &setup, || {
        run(async {
            let mut listener = Listener::bind("unix:app.sock", config()).await.unwrap();
            let mut connection = Connection::dial(listener.local_addr(), config()).await.unwrap();
            connection.send(Bytes::from_static(b"hello")).await.unwrap();
            assert_eq!(next(&mut listener).await.unwrap().1, "hello");
            let file = std::path::absolute("app.sock").unwrap();
            std::env::set_current_dir("/").unwrap();
            drop(listener);
            assert!(!file.exists());
        });
    });
}
