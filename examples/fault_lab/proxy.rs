//! A TCP proxy that breaks what goes through it: at exact bytes, in ways that a plan chooses and a seed reproduces.
//!
//! Each connection is forwarded to one target through a small buffer for each direction. What is in the proxy or in its
//! sockets when a connection is cut is lost, as in a network.

use std::io;
use std::iter;
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_std::net::{TcpListener, TcpStream};
use async_std::task::{self, JoinHandle};
use fastrand::Rng;
use futures::channel::mpsc;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt, future};
use socket2::{Domain, SockRef, Socket, Type};

/// How much one direction of a connection holds.
const BUF: usize = 16 * 1024;
/// What the kernel receives ahead of the proxy. Small, so that a stall is felt soon and a cut loses little.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// The segments that clients send. The kernel lets a client write some tens of them ahead, and those of the loopback device
/// have 64 KiB: a cut would lose megabytes.
const SEGMENT: u32 = 4096;
/// How long a connection that was closed cleanly takes what still comes, and how much, before it is dropped: a socket that
/// is dropped with unread input resets, and one that takes everything would swallow all that a busy client writes before
/// it looks.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 * 1024;
/// How many connections the kernel keeps until they are accepted.
const BACKLOG: i32 = 128;
/// How long the proxy waits when it cannot accept, because it is away.
const RETRY: Duration = Duration::from_millis(1);

/// What is done to a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Closes both sides cleanly: the bytes before, then an end.
    Fin,
    /// Resets both sides. The bytes before were forwarded; what the kernel had not sent yet is lost.
    Rst,
    /// Forwards nothing in this direction for a time, then cuts.
    Stall { lasts: Duration, cleanly: bool },
    /// Forwards nothing in this direction for a time, then goes on.
    Delay { lasts: Duration },
    /// Forwards the next `bytes` in pieces, with a pause after each.
    Throttle { bytes: u64, piece: usize, pause: Duration },
    /// Forwards the next `bytes` one by one.
    Split { bytes: u64 },
    /// Takes nothing and answers nothing in both directions for a time, then resets.
    Black { lasts: Duration },
    /// Resets, and refuses all connections for a time.
    Away { lasts: Duration },
}

impl Fault {
    /// Their names, in the order of [`Done::faults`].
    pub(crate) const NAMES: [&str; 8] = ["fin", "rst", "stall", "delay", "throttle", "split", "black", "away"];

    fn kind(self) -> usize {
        match self {
            Self::Fin => 0,
            Self::Rst => 1,
            Self::Stall { .. } => 2,
            Self::Delay { .. } => 3,
            Self::Throttle { .. } => 4,
            Self::Split { .. } => 5,
            Self::Black { .. } => 6,
            Self::Away { .. } => 7,
        }
    }

    /// One of all, in a mix in which half of them cut at once. Its times are short: a thousand take some seconds.
    fn random(rng: &mut Rng) -> Self {
        let millis = |rng: &mut Rng, longest| Duration::from_millis(rng.u64(1..=longest));
        match rng.u32(0..20) {
            0..5 => Self::Fin,
            5..10 => Self::Rst,
            10..12 => Self::Stall { lasts: millis(rng, 100), cleanly: rng.bool() },
            12..14 => Self::Delay { lasts: millis(rng, 20) },
            14..16 => Self::Throttle { bytes: rng.u64(1..8192), piece: 1024, pause: Duration::from_millis(1) },
            16..18 => Self::Split { bytes: rng.u64(1..512) },
            18 => Self::Black { lasts: millis(rng, 100) },
            _ => Self::Away { lasts: millis(rng, 5) },
        }
    }
}

/// A fault, so many bytes after the one before it in its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) after: u64,
    pub(crate) fault: Fault,
}

type Steps = Box<dyn Iterator<Item = Step> + Send>;

/// What happens to one connection: on the way up, from the client to the target, and on the way down.
pub(crate) struct Plan {
    pub(crate) up: Steps,
    pub(crate) down: Steps,
}

impl Plan {
    /// The plan of a connection, by its number: the same for the same seed. The faults are `spacing` bytes apart on the
    /// average; one in eight comes within the first frames.
    pub(crate) fn seeded(seed: u64, connection: u64, spacing: u64) -> Self {
        let steps = |way: u64| -> Steps {
            let mut rng = Rng::with_seed(seed);
            // One generator for each connection and direction, so that neither depends on what the others did.
            let mut rng = Rng::with_seed(rng.u64(..) ^ (2 * connection + way).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            Box::new(iter::repeat_with(move || {
                let farthest = if rng.u32(0..8) == 0 { 64 } else { 2 * spacing };
                Step { after: rng.u64(0..=farthest), fault: Fault::random(&mut rng) }
            }))
        };
        Self { up: steps(0), down: steps(1) }
    }
}

/// What a proxy has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// In the order in which they were made to the target.
    pub(crate) connections: Vec<Passed>,
    /// By their kind: see [`Fault::NAMES`].
    pub(crate) faults: [u64; Fault::NAMES.len()],
}

/// What one connection has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// How many bytes were forwarded to the target.
    pub(crate) up: u64,
    /// How many bytes were forwarded to the client.
    pub(crate) down: u64,
    /// Whether the proxy cut it.
    pub(crate) cut: bool,
}

impl Done {
    pub(crate) fn enter(&mut self, fault: Fault) {
        self.faults[fault.kind()] += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.faults.iter().sum()
    }
}

/// A running proxy. Dropped, it accepts no more; its connections go on to their end.
pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
    /// Ends with the last connection.
    all_gone: mpsc::Receiver<()>,
}

struct Shared {
    listener: TcpListener,
    /// How many faults there are at the most.
    limit: u64,
    done: Mutex<Done>,
}

impl Shared {
    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Listens on a port of the system's choice. `plan` is asked for each connection, by its number from 0 on; there are
    /// at most `limit` faults.
    pub(crate) fn start(
        target: SocketAddr,
        limit: u64,
        plan: impl Fn(u64) -> Plan + Send + 'static,
    ) -> io::Result<Self> {
        let socket = listen()?;
        let listener = TcpListener::from(std::net::TcpListener::from(socket));
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared { listener, limit, done: Mutex::default() });
        let (alive, all_gone) = mpsc::channel(0);
        let accepting = Some(task::spawn(accept_all(shared.clone(), target, plan, alive)));
        Ok(Self { addr, shared, accepting, all_gone })
    }

    pub(crate) fn done(&self) -> Done {
        self.shared.done().clone()
    }

    /// How many faults there were.
    pub(crate) fn faults(&self) -> u64 {
        self.shared.done().total()
    }

    /// Accepts no more, and waits until every connection is gone.
    pub(crate) async fn finish(mut self) -> Done {
        if let Some(accepting) = self.accepting.take() {
            accepting.cancel().await;
        }
        self.all_gone.next().await;
        self.done()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            // The first poll marks it as cancelled.
            let _ = accepting.cancel().now_or_never();
        }
    }
}

/// A listening socket on a port of the system's choice.
fn listen() -> io::Result<Socket> {
    let bound = |port| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
        io::Result::Ok(socket)
    };
    // A port that was asked for by its number stays with the socket when it stops listening. The first socket keeps it
    // from others until the second has it.
    let chosen = bound(0)?;
    let port = chosen.local_addr()?.as_socket().map_or(0, |addr| addr.port());
    let socket = bound(port)?;
    // Connections inherit these.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_tcp_mss(SEGMENT)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

async fn accept_all(
    shared: Arc<Shared>,
    target: SocketAddr,
    plan: impl Fn(u64) -> Plan + Send,
    alive: mpsc::Sender<()>,
) {
    for number in 0.. {
        // One after the other, so that the target sees the connections in their order.
        let (client, server) = loop {
            match shared.listener.accept().await {
                Ok((client, _)) => match TcpStream::connect(target).await {
                    Ok(server) => break (client, server),
                    Err(_) => reset([client]),
                },
                Err(_) => task::sleep(RETRY).await,
            }
        };
        shared.done().connections.push(Passed::default());
        let (plan, shared, alive) = (plan(number), shared.clone(), alive.clone());
        task::spawn(async move {
            forward_all([client, server], plan, number as usize, &shared).await;
            drop(alive);
        });
    }
}

/// Why forwarding ends before its time.
enum End {
    /// The plan says so.
    Fault(Fault),
    /// The client or the target did it.
    Broken,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

async fn forward_all(sockets: [TcpStream; 2], plan: Plan, number: usize, shared: &Shared) {
    let [client, server] = &sockets;
    // So that what is written in pieces travels in pieces.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let up = Way { from: client, to: server, buf: vec![0; BUF], count: |passed, n| passed.up += n, number, shared };
    let down = Way { from: server, to: client, buf: vec![0; BUF], count: |passed, n| passed.down += n, number, shared };
    let Err(End::Fault(fault)) = future::try_join(up.follow(plan.up), down.follow(plan.down)).await else { return };
    shared.done().connections[number].cut = true;
    match fault {
        Fault::Fin | Fault::Stall { cleanly: true, .. } => {
            let _ = (client.shutdown(Shutdown::Write), server.shutdown(Shutdown::Write));
            let _ = async_std::future::timeout(LINGER, future::join(discard(client), discard(server))).await;
        }
        Fault::Black { lasts } => {
            task::sleep(lasts).await;
            reset(sockets);
        }
        Fault::Away { lasts } => {
            // It keeps its port; on Linux it can begin to listen again.
            let listener = SockRef::from(&shared.listener);
            let _ = listener.shutdown(Shutdown::Read);
            reset(sockets);
            task::sleep(lasts).await;
            let _ = listener.listen(BACKLOG);
        }
        _ => reset(sockets),
    }
}

/// Closes sockets with a reset.
fn reset<const N: usize>(sockets: [TcpStream; N]) {
    for socket in sockets {
        let _ = SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
}

/// Reads to the end, as far as a closed connection does.
async fn discard(socket: &TcpStream) {
    let _ = futures::io::copy(socket.take(LINGER_BYTES), &mut futures::io::sink()).await;
}

/// One direction of a connection.
struct Way<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    buf: Vec<u8>,
    count: fn(&mut Passed, u64),
    /// The connection's.
    number: usize,
    shared: &'a Shared,
}

impl Way<'_> {
    /// Forwards to the end of the stream, with the faults that are planned.
    async fn follow(mut self, steps: Steps) -> Result<(), End> {
        let forwarded = self.follow_steps(steps).await;
        if forwarded.is_ok() {
            let _ = self.to.shutdown(Shutdown::Write);
        }
        forwarded
    }

    async fn follow_steps(&mut self, mut steps: Steps) -> Result<(), End> {
        loop {
            let step = steps.next();
            let whole = (BUF, Duration::ZERO);
            if !self.forward(step.map_or(u64::MAX, |step| step.after), whole).await? {
                return Ok(());
            }
            let Some(Step { fault, .. }) = step else { continue };
            if !self.may_do(fault) {
                steps = Box::new(iter::empty());
                continue;
            }
            let (bytes, pieces) = match fault {
                Fault::Delay { lasts } => {
                    task::sleep(lasts).await;
                    continue;
                }
                Fault::Stall { lasts, .. } => {
                    task::sleep(lasts).await;
                    return Err(End::Fault(fault));
                }
                Fault::Throttle { bytes, piece, pause } => (bytes, (piece, pause)),
                Fault::Split { bytes } => (bytes, (1, Duration::ZERO)),
                Fault::Fin | Fault::Rst | Fault::Black { .. } | Fault::Away { .. } => return Err(End::Fault(fault)),
            };
            if !self.forward(bytes, pieces).await? {
                return Ok(());
            }
        }
    }

    /// Enters a fault, unless there were enough.
    fn may_do(&self, fault: Fault) -> bool {
        let mut done = self.shared.done();
        let may = done.total() < self.shared.limit;
        if may {
            done.enter(fault);
        }
        may
    }

    /// Forwards exactly so many bytes, in pieces of this size at the most, with a pause after each. `false` if the stream
    /// ends before.
    async fn forward(&mut self, mut bytes: u64, (piece, pause): (usize, Duration)) -> io::Result<bool> {
        while bytes > 0 {
            let room = bytes.min(BUF as u64) as usize;
            let n = self.from.read(&mut self.buf[..room]).await?;
            if n == 0 {
                return Ok(false);
            }
            for piece in self.buf[..n].chunks(piece) {
                self.to.write_all(piece).await?;
                (self.count)(&mut self.shared.done().connections[self.number], piece.len() as u64);
                match pause {
                    Duration::ZERO => task::yield_now().await,
                    pause => task::sleep(pause).await,
                }
            }
            bytes -= n as u64;
        }
        Ok(true)
    }
}
