//! Servers of NATS, and what the tests have in common.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, stream};
use buffstreams::{Address, Bytes, Config, Connection, Listener, Tokio};
use futures::{SinkExt, StreamExt};
use socket2::{Domain, Socket, Type};

/// How long a test waits for anything. Machines are slow, and busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, alone or of a cluster. It is ended when this is dropped.
pub(crate) struct Server {
    arguments: Vec<String>,
    child: Child,
    port: Port,
    _folder: Folder,
}

/// Three servers, each of which knows the others.
pub(crate) struct Cluster(pub(crate) Vec<Server>);

/// Whether there is a server to be had. Without one a test is left out; with `CI` it fails.
pub(crate) fn is_installed() -> bool {
    let found = Command::new("nats-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        let how = "nats-server is not on the PATH: apt-get install nats-server";
        assert!(std::env::var_os("CI").is_none(), "{how}");
        println!("left out: {how}");
    }
    found
}

impl Server {
    pub(crate) fn start() -> Option<Self> {
        is_installed().then(|| Self::with("alone", &[]))
    }

    fn with(name: &str, more: &[String]) -> Self {
        let (folder, port) = (Folder::new(), Port::new());
        let mut arguments =
            ["-js", "-a", "127.0.0.1", "-p", &port.number(), "-n", name, "-sd"].map(str::to_owned).to_vec();
        arguments.push(folder.path().to_owned());
        arguments.extend_from_slice(more);
        Self { child: spawn(&arguments), arguments, port, _folder: folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.number())
    }

    /// As `kill -9`: nothing is said, and nothing is written that was not.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// With the same store, at the same port.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(&self.arguments);
    }

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        connect(std::slice::from_ref(self)).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have been ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    pub(crate) fn start() -> Option<Self> {
        if !is_installed() {
            return None;
        }
        let ports = [Port::new(), Port::new(), Port::new()];
        let url = |port: &Port| format!("nats://127.0.0.1:{}", port.number());
        let routes = ports.each_ref().map(url).join(",");
        let server = |at: usize| {
            let options = ["--cluster_name", "c", "--cluster", &url(&ports[at]), "--routes", &routes];
            Server::with(&format!("n{at}"), &options.map(str::to_owned))
        };
        Some(Self((0..3).map(server).collect()))
    }

    pub(crate) fn urls(&self) -> String {
        self.0.iter().map(Server::url).collect::<Vec<_>>().join(",")
    }

    pub(crate) async fn jetstream(&self) -> jetstream::Context {
        connect(&self.0).await
    }
}

fn spawn(arguments: &[String]) -> Child {
    let mut command = Command::new("nats-server");
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

async fn connect(servers: &[Server]) -> jetstream::Context {
    let urls: Vec<_> = servers.iter().map(Server::url).collect();
    connect_to(&urls).await
}

/// Whenever they begin to listen.
pub(crate) async fn connect_to(urls: &[String]) -> jetstream::Context {
    let servers: Vec<async_nats::ServerAddr> = urls.iter().map(|url| url.parse().unwrap()).collect();
    let client = until("a server", async || async_nats::connect(&servers[..]).await.ok()).await;
    let mut context = jetstream::new(client);
    // Acknowledgements that died with a server are given up soon.
    context.set_timeout(Duration::from_secs(2));
    context
}

/// Asks again and again, for what only the other process can tell.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("no {what}"))
}

/// What must come by itself.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no {what}"))
}

/// A stream of everything under its name, with so many replicas. A cluster has a leader after a while.
pub(crate) async fn stream(jetstream: &jetstream::Context, name: &str, replicas: usize) -> stream::Stream {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: vec![name.to_owned(), format!("{name}.>")],
        num_replicas: replicas,
        // More than the longest time after which any test sends a message again.
        duplicate_window: Duration::from_secs(600),
        ..Default::default()
    };
    until("stream", async || jetstream.create_stream(config.clone()).await.ok()).await
}

/// A durable pull consumer, of what there will be in the stream.
pub(crate) async fn consumer(stream: &stream::Stream) -> PullConsumer {
    impatient(stream, Duration::from_secs(3600)).await
}

/// The same, to which a message is sent again that it has not acknowledged in that time.
pub(crate) async fn impatient(stream: &stream::Stream, ack_wait: Duration) -> PullConsumer {
    let config = pull::Config {
        durable_name: Some("durable".to_owned()),
        ack_policy: AckPolicy::Explicit,
        ack_wait,
        ..Default::default()
    };
    stream.create_consumer(config).await.unwrap()
}

/// A message of a stream: subject, id and content.
type Stored = (String, String, Bytes);

/// All that is in a stream.
pub(crate) async fn everything(stream: &stream::Stream) -> Vec<Stored> {
    // A consumer that acknowledges nothing is not sent again what got lost with a server: then another one reads.
    for _ in 0..5 {
        if let Some(all) = read(stream).await {
            return all;
        }
    }
    panic!("the stream cannot be read")
}

async fn read(stream: &stream::Stream) -> Option<Vec<Stored>> {
    let messages = until("information", async || stream.get_info().await.ok()).await.state.messages;
    let config = pull::Config { ack_policy: AckPolicy::None, memory_storage: true, ..Default::default() };
    let consumer = until("consumer", async || stream.create_consumer(config.clone()).await.ok()).await;
    let mut all = Vec::new();
    let mut coming = consumer.stream().max_messages_per_batch(5000).messages().await.ok()?;
    while all.len() < messages as usize {
        let message = tokio::time::timeout(Duration::from_secs(15), coming.next()).await.ok()??.ok()?;
        let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id")).unwrap().to_string();
        all.push((message.subject.to_string(), id, message.payload.clone()));
    }
    Some(all)
}

pub(crate) fn config() -> Config {
    Config::new().runtime(Tokio::current())
}

pub(crate) async fn listen() -> Listener {
    Listener::bind("127.0.0.1:0", config()).await.unwrap()
}

/// A client sends its messages, and waits until its listener has read them.
pub(crate) async fn send(to: impl Into<Address>, messages: impl IntoIterator<Item = String>) {
    let mut connection = Connection::dial(to, config()).await.unwrap();
    for message in messages {
        connection.feed(message.into()).await.unwrap();
    }
    connection.close().await.unwrap();
    assert!(soon("end", connection.next()).await.is_none());
}

/// A port of the system's choice that no other test can have, whether somebody listens there or not.
pub(crate) struct Port(Socket);

impl Port {
    pub(crate) fn new() -> Self {
        Self(bind(SocketAddr::from(([127, 0, 0, 1], 0)), Socket::set_reuse_address))
    }

    /// One at which several listen, each of which says so.
    pub(crate) fn shared() -> Self {
        Self(bind(SocketAddr::from(([127, 0, 0, 1], 0)), Socket::set_reuse_port))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }

    fn number(&self) -> String {
        self.address().port().to_string()
    }
}

/// Who sets the same option may bind the same port.
pub(crate) fn bind(address: SocketAddr, option: fn(&Socket, bool) -> std::io::Result<()>) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    option(&socket, true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

/// Of one server or test, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("buffstreams-nats-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
