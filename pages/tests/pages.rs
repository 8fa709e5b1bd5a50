//! The programs of the pages as processes, each to its end, in a folder that has the files which they read.

#![cfg(unix)] // Two of them meet at a Unix socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, io, process, thread};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

const SOON: Duration = Duration::from_secs(60);

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = env::temp_dir().join(format!("buffstreams-pages-{name}-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// The certificates of a server and of a client, and of the authority that has signed them.
    fn certified(self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(self.0.join("authority.pem"), authority.pem()).unwrap();
        for (name, host) in [("server", "localhost"), ("client", "client")] {
            let key = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new([host.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
            fs::write(self.0.join(format!("{name}.pem")), certificate.pem()).unwrap();
            fs::write(self.0.join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        self
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A program that ends with the test, if that fails before.
struct Program(Option<Child>);

impl Program {
    fn start(program: &str, folder: &Path) -> Self {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(Some(command.spawn().unwrap()))
    }

    /// What it has printed, when it has ended well. Its input ends here.
    fn printed(mut self) -> String {
        let mut child = self.0.take().unwrap();
        drop(child.stdin.take());
        let (id, (told, ended)) = (child.id(), std::sync::mpsc::channel());
        thread::spawn(move || told.send(child.wait_with_output()));
        let Ok(output) = ended.recv_timeout(SOON) else {
            let _ = Command::new("kill").arg(id.to_string()).status();
            panic!("it does not end");
        };
        let Output { status, stdout, stderr } = output.unwrap();
        assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
        assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn the_program_for_tls_of_the_readme() {
    let folder = Folder::new("tls").certified();
    assert_eq!(Program::start(env!("CARGO_BIN_EXE_tls"), &folder.0).printed(), "");
}

#[test]
fn the_program_of_the_page_on_tls() {
    let folder = Folder::new("mutual-tls").certified();
    let printed = Program::start(env!("CARGO_BIN_EXE_mutual_tls"), &folder.0).printed();
    assert!(printed.ends_with(" has 1 certificates\n"), "{printed}");
}

/// The sender has two receivers, and all that it sends is for the first.
#[test]
fn the_two_programs_of_the_page_on_delivery() {
    let folder = Folder::new("delivery");
    let [first, second] = ["first", "second"].map(|name| {
        let folder = folder.0.join(name);
        fs::create_dir(&folder).unwrap();
        let receiver = Program::start(env!("CARGO_BIN_EXE_receiver"), &folder);
        listening(&folder.join("receiver.sock"));
        receiver
    });
    let printed = Program::start(env!("CARGO_BIN_EXE_sender"), &folder.0).printed();
    let mut lines: Vec<_> = printed.lines().collect();
    lines.sort_unstable();
    let ended = ["first", "second"].map(|name| format!("unix:{name}/receiver.sock: 0 came back, in time: true"));
    assert_eq!(lines, ended);
    assert_eq!((first.printed(), second.printed()), (String::new(), String::new()));
    let journal = io::read_to_string(fs::File::open(folder.0.join("first/journal")).unwrap()).unwrap();
    let mut numbers = journal.lines();
    assert!(
        (0..1_000_000).all(|number| numbers.next() == Some(&format!("number {number}"))),
        "each once, and in order"
    );
    assert_eq!(numbers.next(), None);
    assert_eq!(fs::read(folder.0.join("second/journal")).unwrap(), b"");
}

/// Waits until somebody listens there, which only the system can tell.
fn listening(path: &Path) {
    let began = Instant::now();
    while UnixStream::connect(path).is_err() {
        assert!(began.elapsed() < SOON, "nobody listens at {}", path.display());
        thread::yield_now();
    }
}
