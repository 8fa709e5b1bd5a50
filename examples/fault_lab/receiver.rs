//! A receiver in a process of its own, which is this program once more. It writes down each message before it asks for the
//! next one, and it closes, and lets its senders finish, when its input ends.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use async_std::task;
use buffstreams::{BoxError, Config, Error, Listener, Session};
use futures::StreamExt;
use futures::channel::mpsc;
use socket2::{Domain, Socket, Type};

use crate::fault_lab::books::Id;
use crate::fault_lab::messages::parse;
use crate::fault_lab::order::Order;

/// What tells a process to be a receiver, and at which port.
const PORT: &str = "BUFFSTREAMS_FAULT_LAB_PORT";
/// What the journal begins behind: a test program has said something before.
const BEGIN: &str = "journal\n";
/// An entry: the id of a message, the producer in 8 bytes.
const ENTRY: usize = 16;
const DAMAGED: [u8; ENTRY] = [0xfe; ENTRY];
const END: [u8; ENTRY] = [0xff; ENTRY];
/// How long it tries to get its port, which the one before may still have.
const PATIENCE: Duration = Duration::from_secs(5);
/// Small: so much may be in doubt for each sender when a receiver is killed.
const WINDOW: usize = 256 * 1024;

/// What both ends have set.
pub(crate) fn config() -> Config {
    Config::new()
        .session(Session::new().window_bytes(WINDOW))
        .dial_timeout(Duration::from_secs(1))
        .close_timeout(Duration::from_secs(10))
        .drain_timeout(Duration::from_secs(10))
}

/// The port, if this process was started to be a receiver.
pub(crate) fn asked() -> Option<u16> {
    std::env::var(PORT).ok()?.parse().ok()
}

/// Is the receiver, until its input ends and its senders are done.
pub(crate) async fn receive(port: u16) -> Result<(), BoxError> {
    let start = Instant::now();
    let mut listener = loop {
        match Listener::bind(("127.0.0.1", port), config()).await {
            Err(Error::Bind { .. }) if start.elapsed() < PATIENCE => task::sleep(Duration::from_millis(1)).await,
            bound => break bound?,
        }
    };
    let closer = listener.closer();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        task::block_on(closer.close())
    });
    // Each entry is with the kernel when it is written: no buffer of this process is between.
    let mut journal = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    write!(journal, "\n{BEGIN}")?;
    while let Some((_, message)) = listener.next().await {
        journal.write_all(&entry(parse(&message)))?;
    }
    journal.write_all(&END)?;
    Ok(())
}

fn entry(id: Option<Id>) -> [u8; ENTRY] {
    let Some(Id { producer, number }) = id else { return DAMAGED };
    ((u128::from(producer) << 64) | u128::from(number)).to_be_bytes()
}

fn id(entry: [u8; ENTRY]) -> Option<Id> {
    let entry = (entry != DAMAGED).then_some(u128::from_be_bytes(entry))?;
    Some(Id { producer: (entry >> 64) as u32, number: entry as u64 })
}

/// An address for one receiver after the other. Between two of them nobody else gets it.
pub(crate) struct Place {
    pub(crate) port: u16,
    _socket: Socket,
    /// What this program is to be started with, to be a receiver.
    args: &'static [&'static str],
    /// How many entries all of them have written.
    written: Arc<AtomicU64>,
}

/// A receiver, which is killed when this is dropped.
pub(crate) struct Receiver {
    child: Child,
    input: Option<ChildStdin>,
    journal: mpsc::UnboundedReceiver<Entry>,
}

/// What a receiver has written down.
pub(crate) enum Entry {
    /// It took this message; `None` if it was damaged.
    Taken(Option<Id>),
    /// It has closed, and all its senders are done.
    End,
}

impl Place {
    pub(crate) fn new(args: &'static [&'static str], written: Arc<AtomicU64>) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // It is bound, and does not listen. A sender that dials nobody there could else be given this port as its own, and
        // meet itself.
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        let port = socket.local_addr()?.as_socket().map_or(0, |addr| addr.port());
        Ok(Self { port, _socket: socket, args, written })
    }

    /// Starts a receiver. It listens a little later.
    pub(crate) fn start(&self) -> io::Result<Receiver> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(self.args)
            .env(PORT, self.port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (entries, journal) = mpsc::unbounded();
        let written = self.written.clone();
        thread::spawn(move || output.map(|output| read(output, &entries, &written)));
        Ok(Receiver { child, input, journal })
    }
}

/// Reads a journal to its end. Of a killed receiver too it has all that was written.
fn read(output: ChildStdout, entries: &mpsc::UnboundedSender<Entry>, written: &AtomicU64) -> io::Result<()> {
    let mut output = BufReader::with_capacity(64 * 1024, output);
    let mut line = Vec::new();
    while line != BEGIN.as_bytes() {
        line.clear();
        if output.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
    }
    let mut entry = [0; ENTRY];
    while entry != END {
        output.read_exact(&mut entry)?;
        let _ = entries.unbounded_send(if entry == END { Entry::End } else { Entry::Taken(id(entry)) });
        written.fetch_add(1, Ordering::Relaxed);
    }
    io::copy(&mut output, &mut io::sink()).map(drop)
}

impl Receiver {
    /// What it has written next. `None` if its output has ended.
    pub(crate) async fn next(&mut self) -> Option<Entry> {
        self.journal.next().await
    }

    /// Waits until it has taken so many more messages.
    pub(crate) async fn take(&mut self, journal: &mut Order, messages: u64) -> Result<(), BoxError> {
        for _ in 0..messages {
            match self.next().await {
                Some(Entry::Taken(id)) => journal.receive(id),
                Some(Entry::End) | None => return Err("a receiver ended by itself".into()),
            }
        }
        Ok(())
    }

    /// Waits until it is done, after it was closed. Whether it has come to its end.
    pub(crate) async fn finish(&mut self, journal: &mut Order) -> bool {
        loop {
            match self.next().await {
                Some(Entry::Taken(id)) => journal.receive(id),
                Some(Entry::End) => return true,
                None => return false,
            }
        }
    }

    /// Kills it, with SIGKILL.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// Has it close its listener, and end when all is taken.
    pub(crate) fn close(&mut self) {
        self.input = None;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
