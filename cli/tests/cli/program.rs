//! Runs the program.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};

/// Where it runs.
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");

/// The program with these arguments, in the folder of the tests.
pub(crate) fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_buffstreams"));
    command.args(args).current_dir(DATA);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the program to its end, which must come within a minute.
pub(crate) fn run(args: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.arg("60").arg(env!("CARGO_BIN_EXE_buffstreams")).args(args).current_dir(DATA).stdin(Stdio::null());
    command.output().unwrap()
}

/// Starts the program with a pipe as its standard input. A signal to it goes through, and it ends within a minute.
pub(crate) fn piped(args: &[&str]) -> Child {
    let mut command = Command::new("timeout");
    command
        .args(["--foreground", "--signal=KILL", "60", env!("CARGO_BIN_EXE_buffstreams")])
        .args(args)
        .current_dir(DATA);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Sends a signal to it, and waits for its end.
pub(crate) fn interrupt(child: Child) -> Output {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", "INT", &id]).status().unwrap().success());
    child.wait_with_output().unwrap()
}

/// Runs the program to its end, with this on its standard input.
pub(crate) fn run_with(args: &[&str], input: &[u8]) -> Output {
    with_input(&mut program(args), input)
}

/// Runs a command to its end, with this on its standard input.
pub(crate) fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let write = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    write.join().unwrap();
    output
}

/// Runs the program to its end, which must be a good one.
pub(crate) fn ok(args: &[&str]) -> Output {
    good(run(args), args)
}

pub(crate) fn good(output: Output, args: &[&str]) -> Output {
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, text(&output.stderr));
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program as it runs, and listens.
pub(crate) struct Running {
    child: Child,
    stderr: BufReader<ChildStderr>,
    /// What it has said before it listened.
    pub(crate) before: Vec<String>,
    pub(crate) address: String,
}

impl Running {
    /// Starts it, and reads where it listens.
    pub(crate) fn start(args: &[&str]) -> Self {
        let running = Self::warned(args);
        assert!(running.before.is_empty(), "{args:?}: {:?}", running.before);
        running
    }

    /// Starts it, and reads what it says, up to where it listens.
    pub(crate) fn warned(args: &[&str]) -> Self {
        Self::command(&mut program(args))
    }

    /// Starts it, for a minute at the most. A test waits for what kills it, SIGKILL, and not for that.
    pub(crate) fn dying(args: &[&str]) -> Self {
        let mut command = Command::new("timeout");
        Self::command(command.arg("60").arg(env!("CARGO_BIN_EXE_buffstreams")).args(args).current_dir(DATA))
    }

    /// The same of a command that becomes the program.
    pub(crate) fn command(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let (mut before, mut line) = (Vec::new(), String::new());
        while !line.starts_with("listening on ") {
            before.extend((!line.is_empty()).then(|| std::mem::take(&mut line)));
            assert!(stderr.read_line(&mut line).unwrap() > 0, "{command:?}: {before:?}");
        }
        let address = line.trim_end().trim_start_matches("listening on ").to_owned();
        Self { address, child, stderr, before }
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    /// The next line on standard error.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The next bytes that it prints.
    pub(crate) fn printed(&mut self, bytes: usize) -> Vec<u8> {
        let mut printed = vec![0; bytes];
        self.child.stdout.as_mut().unwrap().read_exact(&mut printed).unwrap();
        printed
    }

    /// Stops reading what it prints.
    pub(crate) fn close_stdout(&mut self) {
        drop(self.child.stdout.take());
    }

    /// Waits for its end, by itself.
    pub(crate) fn end(mut self) -> Output {
        let mut stderr = Vec::new();
        let stdout = self.child.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                stdout.read_to_end(&mut bytes).unwrap();
                bytes
            })
        });
        self.stderr.read_to_end(&mut stderr).unwrap();
        let stdout = stdout.map_or_else(Vec::new, |stdout| stdout.join().unwrap());
        Output { status: self.child.wait().unwrap(), stdout, stderr }
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop(self) -> Output {
        self.signal("INT");
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, unless a test has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends so many messages in a session, and the listener ends before it has acknowledged one.
pub(crate) fn takes_none(address: &str, messages: &str) {
    let output = run(&["send", address, "--session-ttl", "1s", "-m", &"x".repeat(60), "--repeat", messages]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.starts_with("0 messages taken, "), "{said}");
}

/// A port of the system's choice that no other test can have, although nobody listens there yet, or any more.
pub(crate) struct Port {
    _held: Socket,
    pub(crate) address: String,
}

impl Port {
    pub(crate) fn new() -> Self {
        let held = Self::bind(SocketAddr::from(([127, 0, 0, 1], 0)));
        let address = held.local_addr().unwrap().as_socket().unwrap().to_string();
        Self { _held: held, address }
    }

    fn bind(address: SocketAddr) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket
    }

    pub(crate) fn listen(&self) -> TcpListener {
        let socket = Self::bind(self.address.parse().unwrap());
        socket.listen(16).unwrap();
        socket.into()
    }
}

/// A folder of one test, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("buffstreams-cli-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// A file with this in it.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A checksum: FNV-1a, 64 bits.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
