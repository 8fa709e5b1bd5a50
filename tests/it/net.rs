//! What the tests over sockets share: raw clients, deadlines, events, and processes of their own.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::panic::Location;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use buffstreams::{Bytes, Config, Endpoint, Event, Events, Listener, Peer, Reason, WireFormat};
use futures::stream::Stream;
use futures::{FutureExt, StreamExt};
use socket2::SockRef;
#[cfg(feature = "tokio")]
use tokio::runtime::{Builder, Handle, Runtime};

/// Much longer than anything here takes: a wait that is over has failed.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The defaults, on the runtime that the variable `BUFFSTREAMS_RUNTIME` names: `smol`, `tokio` with several threads, or
/// `tokio-current` with one; or on the default of the library. The tests themselves run on async-std.
pub(crate) fn defaults() -> Config {
    let config = Config::new();
    match std::env::var("BUFFSTREAMS_RUNTIME").as_deref() {
        Err(_) | Ok("async-std") => config,
        // One for each test, as callbacks may block.
        #[cfg(feature = "smol")]
        Ok("smol") => {
            thread_local!(static SMOL: buffstreams::Smol = buffstreams::Smol::new().unwrap());
            config.runtime(SMOL.with(Clone::clone))
        }
        #[cfg(feature = "tokio")]
        Ok("tokio") => {
            thread_local!(static MANY: Threads = Threads::new());
            config.runtime(buffstreams::Tokio::from(MANY.with(|threads| threads.handle())))
        }
        #[cfg(feature = "tokio")]
        Ok("tokio-current") => {
            thread_local!(static ONE: OneThread = OneThread::new());
            config.runtime(buffstreams::Tokio::from(ONE.with(|runtime| runtime.0.clone())))
        }
        Ok(other) => panic!("BUFFSTREAMS_RUNTIME={other}: it is not known, or its feature is off"),
    }
}

#[cfg(feature = "tokio")]
fn tokio_runtime(builder: &mut Builder) -> Runtime {
    builder.enable_all().build().unwrap()
}

/// A runtime of tokio with two threads. Callbacks that block them are not waited for.
#[cfg(feature = "tokio")]
struct Threads(Option<Runtime>);

#[cfg(feature = "tokio")]
impl Threads {
    fn new() -> Self {
        Self(Some(tokio_runtime(Builder::new_multi_thread().worker_threads(2))))
    }

    fn handle(&self) -> Handle {
        self.0.as_ref().unwrap().handle().clone()
    }
}

#[cfg(feature = "tokio")]
impl Drop for Threads {
    fn drop(&mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

/// A runtime of tokio that runs on one thread, until this is dropped.
#[cfg(feature = "tokio")]
struct OneThread(Handle, #[allow(dead_code)] futures::channel::oneshot::Sender<()>);

#[cfg(feature = "tokio")]
impl OneThread {
    fn new() -> Self {
        let runtime = tokio_runtime(&mut Builder::new_current_thread());
        let (handle, (stop, stopped)) = (runtime.handle().clone(), futures::channel::oneshot::channel::<()>());
        std::thread::spawn(move || runtime.block_on(stopped).is_err());
        Self(handle, stop)
    }
}

/// Whether the library runs on this one.
pub(crate) fn runs_on(runtime: &str) -> bool {
    std::env::var("BUFFSTREAMS_RUNTIME").map_or(runtime == "async-std", |name| name == runtime)
}

/// Whether the reactor and the timers go on while callbacks keep threads of the runtime. Those of tokio are driven by its
/// threads, which a program must not block, as its documentation says.
pub(crate) fn callbacks_may_block() -> bool {
    !runs_on("tokio") && !runs_on("tokio-current")
}

/// How many threads the library's runtime has in a test that runs [`alone`] with `FEW_THREADS`.
pub(crate) fn threads() -> usize {
    if runs_on("smol") || runs_on("tokio-current") { 1 } else { 2 }
}

/// A set-up for [`alone`]: so few threads that callbacks can keep them all.
pub(crate) const FEW_THREADS: &str = "export ASYNC_STD_THREAD_COUNT=2";

/// The format of most tests: four bytes of length, at most 1 MiB.
pub(crate) fn config() -> Config {
    defaults().wire_format(WireFormat::u32_be()).max_message_size(1 << 20)
}

/// Waits for `future`, and panics where it was called if that takes longer than `limit`.
#[track_caller]
pub(crate) fn within<F: Future>(limit: Duration, future: F) -> impl Future<Output = F::Output> {
    let caller = Location::caller();
    async move {
        match async_std::future::timeout(limit, future).await {
            Ok(output) => output,
            Err(_) => panic!("{caller}: it did not come within {limit:?}"),
        }
    }
}

/// Runs the future of a whole test, which no hang outlasts.
#[track_caller]
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    async_std::task::block_on(within(3 * SOON, test))
}

/// The next message, soon.
#[track_caller]
pub(crate) fn next<S: Stream + Unpin>(stream: &mut S) -> impl Future<Output = Option<S::Item>> {
    within(SOON, stream.next())
}

/// Waits until `holds`, looking again and again.
#[track_caller]
pub(crate) fn until(limit: Duration, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "it did not come to hold within {limit:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sets the listener to reading what its peers send, as its first poll does.
pub(crate) fn start(listener: &mut Listener) {
    assert!(listener.next().now_or_never().is_none(), "nobody has sent anything yet");
}

// ---- events

/// The first event, soon, of which `pick` makes something.
#[track_caller]
pub(crate) fn event<T>(
    events: &mut Events<Event>,
    mut pick: impl FnMut(Event) -> Option<T>,
) -> impl Future<Output = T> {
    within(SOON, async move {
        loop {
            let event = events.next().await.expect("the events should not end");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    })
}

/// The next peer that connects.
#[track_caller]
pub(crate) fn connected(events: &mut Events<Event>) -> impl Future<Output = Peer> {
    event(events, |event| match event {
        Event::Connected { peer, .. } => Some(peer),
        _ => None,
    })
}

/// Who is refused next, and the limit in force.
#[track_caller]
pub(crate) fn refused(events: &mut Events<Event>) -> impl Future<Output = (Endpoint, usize)> {
    event(events, |event| match event {
        Event::Refused { addr, max_connections, .. } => Some((addr, max_connections)),
        _ => None,
    })
}

/// Why the peer with this address was disconnected.
#[track_caller]
pub(crate) fn disconnected(events: &mut Events<Event>, addr: SocketAddr) -> impl Future<Output = Reason> {
    event(events, move |event| match event {
        Event::Disconnected { peer, reason, .. } if peer.addr().unwrap() == addr => Some(reason),
        _ => None,
    })
}

// ---- raw clients

/// A plain blocking socket, which fails a test rather than wait for ever.
pub(crate) fn raw(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("the listener accepts");
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.set_write_timeout(Some(SOON)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The message behind its header, in the format of [`config`].
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let mut wire = (message.len() as u32).to_be_bytes().to_vec();
    wire.extend_from_slice(message);
    wire
}

/// Sends one message.
pub(crate) fn put(stream: &mut TcpStream, message: &[u8]) {
    stream.write_all(&frame(message)).expect("the listener reads");
}

/// Receives one message.
pub(crate) fn get(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).expect("a reply comes");
    let mut message = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut message).expect("a whole reply comes");
    message
}

/// Waits until the other end is gone, and says what came before that.
#[track_caller]
pub(crate) fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the other end stays: {error}"),
    }
    received
}

/// Shows the socket of this process that goes from `local` to `peer`. The library lends its own to nobody.
#[allow(unsafe_code)]
#[track_caller]
pub(crate) fn with_socket<T>(local: SocketAddr, peer: SocketAddr, visit: impl FnOnce(SockRef<'_>) -> T) -> T {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name());
    for descriptor in descriptors.collect::<Vec<_>>() {
        let number = descriptor.to_str().unwrap().parse().unwrap();
        // SAFETY: it is asked for its name, which one that was closed in between has none of; the one looked for is open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let socket = SockRef::from(&descriptor);
        let ends = [socket.local_addr(), socket.peer_addr()].map(|addr| addr.ok().and_then(|addr| addr.as_socket()));
        if ends == [Some(local), Some(peer)] {
            return visit(socket);
        }
    }
    panic!("no socket goes from {local} to {peer}");
}

// ---- numbered messages

/// Message `number` of sender `sender`.
pub(crate) fn numbered(sender: u64, number: u64) -> Bytes {
    [sender.to_be_bytes(), number.to_be_bytes()].concat().into()
}

/// What [`numbered`] made: the sender and the number. More may follow.
pub(crate) fn number(message: &[u8]) -> (u64, u64) {
    let word = |at: usize| u64::from_be_bytes(message[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

// ---- processes

const ALONE: &str = "BUFFSTREAMS_TEST_ALONE";

/// Whether this is the process that [`alone`] has started.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Runs the rest of the test `name` in a process of its own, which `setup`, a piece of shell, may limit: where open
/// descriptors, memory or processor time are counted, other tests would count too.
#[track_caller]
pub(crate) fn alone(name: &str, setup: &str, test: impl FnOnce()) {
    if is_alone() {
        // What the tests themselves run on takes its descriptors first: a test may leave none.
        let nothing = async_std::future::timeout(Duration::ZERO, std::future::pending::<()>());
        assert!(async_std::task::block_on(nothing).is_err());
        return test();
    }
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", &format!("{setup}\nexec \"$0\" \"$@\"")])
        .arg(program)
        .args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"])
        .env(ALONE, "1")
        .output()
        .expect("sh starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{name}, alone:\n{out}\n{err}");
}

/// How much memory of its own this process has in use, in bytes: not the pages of the program, which are read in when it
/// first runs them, and which are megabytes. It is counted page by page: the figure in `status` is one of each
/// processor's own, which may be hundreds of KiB behind.
pub(crate) fn resident() -> usize {
    memory("smaps_rollup", "Anonymous:")
}

/// How much memory this process has asked for, in bytes, whether or not it uses it.
pub(crate) fn data() -> usize {
    memory("status", "VmData:")
}

fn memory(file: &str, what: &str) -> usize {
    let figures = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = figures.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// How many bytes the connections of the listener on this (IPv4) address have received and not read.
pub(crate) fn unread(addr: SocketAddr) -> usize {
    let port = format!(":{:04X}", addr.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let of_line = |line: &str| {
        // Number, own address, the other's, state, and the two queues.
        let fields: Vec<&str> = line.split_whitespace().take(5).collect();
        let received = fields[4].split_once(':').unwrap().1;
        let ours = fields[1].ends_with(&port) && fields[3] != "0A";
        if ours { usize::from_str_radix(received, 16).unwrap() } else { 0 }
    };
    table.lines().skip(1).map(of_line).sum()
}

/// How many descriptors this process has open.
pub(crate) fn descriptors() -> usize {
    // One of them reads the directory.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// How much processor time this process uses; it can be asked where no descriptor is left to open anything.
pub(crate) struct ProcessorTime(File);

impl ProcessorTime {
    pub(crate) fn new() -> Self {
        Self(File::open("/proc/self/stat").unwrap())
    }

    pub(crate) fn used(&self) -> Duration {
        let mut stat = [0; 1024];
        let len = self.0.read_at(&mut stat, 0).unwrap();
        // The name, in parentheses, may hold anything; user and system time are fields 14 and 15, in hundredths.
        let stat = String::from_utf8_lossy(&stat[..len]);
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        Duration::from_millis(10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()))
    }
}

/// An example, as a process of its own. Cargo builds them beside the tests.
pub(crate) fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    let built = tests.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(built.exists(), "{}: cargo test builds the examples, `--test it` alone does not", built.display());
    Command::new(built)
}

/// Sends the process a signal.
pub(crate) fn signal(child: &Child, name: &str) {
    let kill = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}
