//! The other end of a connection, in the hands of a test: plain sockets that read, stop reading, close and reset.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_std::net::{TcpListener, TcpStream};
use async_std::task;
use buffstreams::{Bytes, Config, Manager, WireFormat};
use futures::{AsyncReadExt, AsyncWriteExt};
use socket2::{Domain, SockRef, Socket, Type};

use crate::net::defaults;

/// Long enough for any step on a busy machine. No test waits this long unless it fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Runs a test's future to its end, with a deadline for all of it.
pub(crate) fn run<F: Future>(test: F) -> F::Output {
    task::block_on(within(Duration::from_secs(60), "the whole test", test))
}

/// Waits for `future`; that it takes longer than `limit` is a failure of the test.
pub(crate) async fn within<F: Future>(limit: Duration, what: &str, future: F) -> F::Output {
    match async_std::future::timeout(limit, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {limit:?}: {what}"),
    }
}

/// Waits until `condition` holds. For what no event announces.
pub(crate) async fn until(what: &str, condition: impl FnMut() -> bool) {
    until_within(SOON, what, condition).await;
}

/// Waits until `condition` holds, for `limit` at the most.
pub(crate) async fn until_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        task::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether the socket at this (IPv4) address has received the other end's FIN.
pub(crate) fn is_closed_by_peer(local: SocketAddr) -> bool {
    let port = format!(":{:04X}", local.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("/proc");
    // Number, own address, the other's, and the state: 08 is CLOSE_WAIT.
    let fields = table.lines().map(|line| line.split_whitespace().take(4).collect::<Vec<_>>());
    fields.into_iter().any(|fields| fields[1].ends_with(&port) && fields[3] == "08")
}

/// The configuration of these tests: a header that is easily taken apart by hand.
pub(crate) fn config() -> Config {
    defaults().wire_format(WireFormat::u32_be()).max_message_size(8 << 20)
}

/// A message of `len` bytes, 8 at least, that carries a number.
pub(crate) fn numbered(number: u64, len: usize) -> Bytes {
    let mut message = vec![number as u8; len.max(8)];
    message[..8].copy_from_slice(&number.to_be_bytes());
    message.into()
}

/// The number that a message carries.
pub(crate) fn number(message: &[u8]) -> u64 {
    u64::from_be_bytes(message[..8].try_into().expect("a numbered message has 8 bytes"))
}

/// The frame of a message, as [`config`] has it on the wire.
pub(crate) fn frame(message: &[u8]) -> Vec<u8> {
    let mut frame = (message.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    frame
}

/// Takes a received stream apart: the whole messages, and how many bytes are left over.
pub(crate) fn messages(mut wire: &[u8]) -> (Vec<Vec<u8>>, usize) {
    let mut messages = Vec::new();
    while wire.len() >= 4 {
        let len = u32::from_be_bytes(wire[..4].try_into().expect("four bytes")) as usize;
        if wire.len() < 4 + len {
            break;
        }
        messages.push(wire[4..4 + len].to_vec());
        wire = &wire[4 + len..];
    }
    (messages, wire.len())
}

/// The numbers of all whole messages in a received stream.
pub(crate) fn numbers(wire: &[u8]) -> Vec<u64> {
    messages(wire).0.iter().map(|message| number(message)).collect()
}

/// A listening socket of the test's own.
pub(crate) struct Site {
    listener: TcpListener,
    pub(crate) addr: SocketAddr,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), None)
    }

    /// One whose connections take little before they are full.
    pub(crate) fn small() -> Self {
        Self::at("127.0.0.1:0".parse().expect("an address"), Some(8 * 1024))
    }

    pub(crate) fn at(addr: SocketAddr, receive_buffer: Option<usize>) -> Self {
        let bound = |addr: SocketAddr| {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("a socket");
            socket.set_reuse_address(true).expect("reuse_address");
            if addr.is_ipv6() {
                socket.set_only_v6(true).expect("only_v6");
            }
            socket.bind(&addr.into()).expect("bind");
            socket
        };
        // A port that was asked for by its number stays bound while nobody listens; one that the system chose does not.
        let chosen = bound(addr);
        let addr = chosen.local_addr().expect("local_addr").as_socket().expect("an IP address");
        let socket = bound(addr);
        drop(chosen);
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes).expect("recv_buffer_size");
        }
        socket.listen(1024).expect("listen");
        socket.set_nonblocking(true).expect("nonblocking");
        let listener = TcpListener::from(std::net::TcpListener::from(socket));
        let addr = listener.local_addr().expect("local_addr");
        Self { listener, addr }
    }

    /// One at an address that another had. Somebody may hold it for a moment.
    pub(crate) async fn again(addr: SocketAddr) -> Self {
        for _ in 0..200 {
            let free = std::net::TcpListener::bind(addr);
            if free.map(drop).is_ok() {
                break;
            }
            task::sleep(Duration::from_millis(10)).await;
        }
        Self::at(addr, None)
    }

    /// From now on it refuses connections, and keeps its port. Those that wait to be accepted are reset.
    pub(crate) fn leave(&self) {
        SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both).expect("shutdown");
    }

    /// It listens again.
    pub(crate) fn come_back(&self) {
        SockRef::from(&self.listener).listen(1024).expect("listen");
    }

    pub(crate) async fn accept(&self) -> Far {
        let accepted = within(SOON, "a connection to arrive", self.listener.accept()).await;
        Far(accepted.expect("accept").0)
    }

    /// Takes every connection, and keeps what each of them receives until its end.
    pub(crate) fn collect(self) -> Collected {
        let collected = Collected::default();
        let into = collected.clone();
        task::spawn(async move {
            while let Ok((stream, _)) = self.listener.accept().await {
                let wire = Wire::default();
                into.0.lock().expect("wires").push(wire.clone());
                task::spawn(read_into(stream, wire));
            }
        });
        collected
    }
}

type Wire = Arc<Mutex<Vec<u8>>>;

async fn read_into(mut stream: TcpStream, wire: Wire) {
    let mut buf = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = stream.read(&mut buf).await {
        wire.lock().expect("a wire").extend_from_slice(&buf[..n]);
    }
}

/// What the connections of a site have received, the oldest connection first.
#[derive(Clone, Default)]
pub(crate) struct Collected(Arc<Mutex<Vec<Wire>>>);

impl Collected {
    /// The numbers of all whole messages, connection after connection.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        let wires = self.0.lock().expect("wires").clone();
        wires.iter().flat_map(|wire| numbers(&wire.lock().expect("a wire"))).collect()
    }

    /// How many bytes they are.
    pub(crate) fn len(&self) -> usize {
        let wires = self.0.lock().expect("wires").clone();
        wires.iter().map(|wire| wire.lock().expect("a wire").len()).sum()
    }
}

/// The far end of one connection.
pub(crate) struct Far(pub(crate) TcpStream);

impl Far {
    /// Exactly so many bytes.
    pub(crate) async fn read(&mut self, bytes: usize) -> Vec<u8> {
        let mut buf = vec![0; bytes];
        within(SOON, "bytes to arrive", self.0.read_exact(&mut buf)).await.expect("read");
        buf
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Vec<u8> {
        let header = self.read(4).await;
        let len = u32::from_be_bytes(header[..].try_into().expect("four bytes"));
        self.read(len as usize).await
    }

    /// Everything up to the end, or up to a reset.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let (mut wire, mut buf) = (Vec::new(), vec![0; 64 * 1024]);
        while let Ok(n @ 1..) = within(SOON, "the end of a connection", self.0.read(&mut buf)).await {
            wire.extend_from_slice(&buf[..n]);
        }
        wire
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        within(SOON, "bytes to be taken", self.0.write_all(bytes)).await.expect("write");
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.0).set_linger(Some(Duration::ZERO)).expect("linger");
    }
}

/// An address at which nobody listens: it refuses. The socket is bound, so that nobody else can get the port.
pub(crate) struct Refusing {
    _socket: Socket,
    pub(crate) addr: SocketAddr,
}

impl Refusing {
    pub(crate) fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        socket.bind(&any.into()).expect("bind");
        let addr = socket.local_addr().expect("local_addr").as_socket().expect("an IP address");
        Self { _socket: socket, addr }
    }
}

/// A listener that answers until its queue of connections is full, and then nothing.
pub(crate) struct BlackHole {
    listener: Socket,
    fill: Vec<Socket>,
    pub(crate) addr: SocketAddr,
}

impl BlackHole {
    /// One that answers nothing.
    pub(crate) fn new() -> Self {
        let mut hole = Self::opening();
        hole.fill();
        hole
    }

    /// One that still answers.
    pub(crate) fn opening() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        listener.bind(&any.into()).expect("bind");
        listener.listen(1).expect("listen");
        let addr = listener.local_addr().expect("local_addr").as_socket().expect("an IP address");
        Self { listener, fill: Vec::new(), addr }
    }

    /// The connection that has been made.
    pub(crate) fn accept(&self) -> Far {
        let (socket, _) = self.listener.accept().expect("accept");
        Far(std::net::TcpStream::from(socket).into())
    }

    /// From now on it answers nothing.
    pub(crate) fn fill(&mut self) {
        // It is full when a connection is not made at once.
        for _ in 0..16 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let connected = socket.connect_timeout(&self.addr.into(), Duration::from_millis(100));
            self.fill.push(socket);
            if connected.is_err() {
                return;
            }
        }
        panic!("the queue of a listener did not fill up");
    }
}

/// A manager with one address dialed, and the far end of its connection.
pub(crate) async fn dialed(config: Config, site: &Site) -> (Manager, Far) {
    let manager = Manager::new(config);
    let (made, far) = futures::join!(manager.dial(site.addr), site.accept());
    made.expect("dial");
    (manager, far)
}

/// The books of a manager, which must balance whenever one looks.
pub(crate) fn balanced(manager: &Manager) -> buffstreams::LinkStats {
    let total = manager.stats().total;
    assert_eq!(total.accepted, total.written + total.dead_lettered + total.held, "the books do not balance: {total:?}");
    total
}
