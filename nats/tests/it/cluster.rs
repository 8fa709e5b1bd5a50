//! Clients, ingress nodes and servers, each a process of its own, some of which are killed.
//!
//! `BUFFSTREAMS_NATS_MESSAGES` is how many messages there are in all: 50,000 unless it is set.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use buffstreams::{Backoff, Bytes, Config, Listener, Manager};
use buffstreams_nats::{Ingress, async_nats};
use futures::SinkExt;
use socket2::Socket;

use crate::server::{Cluster, Port, bind, config, connect_to, everything, stream, until};

const CLIENTS: u64 = 16;
/// How long a message is.
const LEN: usize = 110;
/// How often a client sends a part of its messages.
const TICK: Duration = Duration::from_millis(50);

/// This program once more, as one of the other parts.
struct Part(Child);

impl Part {
    fn start(part: &str, settings: &[(&str, &dyn Display)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "cluster::part", "--ignored", "--nocapture"]).env("PART", part);
        for (name, value) in settings {
            command.env(name, value.to_string());
        }
        // It ends when its input does: so it outlives no test.
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Lets it come to its end, and returns the figures that it tells.
    async fn end(mut self, wait_for_input: bool) -> BTreeMap<String, u64> {
        let stdin = self.0.stdin.take();
        let waiting = tokio::task::spawn_blocking(move || {
            let kept = wait_for_input.then_some(stdin);
            let mut output = String::new();
            self.0.stdout.take().unwrap().read_to_string(&mut output).unwrap();
            assert!(self.0.wait().unwrap().success(), "{output}");
            drop(kept);
            output
        });
        let output = tokio::time::timeout(Duration::from_secs(600), waiting).await.expect("no end").unwrap();
        let figures = output.split_once("FIGURES ").unwrap().1.lines().next().unwrap();
        let figure = |text: &str| text.split_once('=').map(|(name, value)| (name.to_owned(), value.parse().unwrap()));
        figures.split(' ').filter_map(figure).collect()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has ended, unless a test has failed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: what the other processes do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it is started by the tests of this file"]
async fn part() {
    match std::env::var("PART").as_deref() {
        Ok("node") => node().await,
        Ok("client") => client().await,
        _ => {}
    }
}

fn setting(name: &str) -> String {
    std::env::var(name).unwrap()
}

async fn node() {
    let urls: Vec<_> = setting("SERVERS").split(',').map(str::to_owned).collect();
    let address: SocketAddr = setting("ADDRESS").parse().unwrap();
    let socket = bind(address, Socket::set_reuse_port);
    socket.listen(128).unwrap();
    let listener = Listener::from_std(TcpListener::from(socket), config()).unwrap();
    let ingress = Ingress::new(connect_to(&urls).await, "orders")
        .message_id(|_peer, message| String::from_utf8_lossy(message).trim_end().to_owned());
    let closer = listener.closer();
    let closing = async {
        tokio::task::spawn_blocking(|| io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        closer.close().await.unwrap();
    };
    futures::join!(ingress.run(listener), closing);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let stats = ingress.stats();
    println!(
        "FIGURES received={} stored={} duplicates={} repeated={} peak={peak}",
        stats.received, stats.stored, stats.duplicates, stats.repeated
    );
}

async fn client() {
    let (address, name, count) = (setting("ADDRESS"), setting("NAME"), setting("COUNT").parse::<u64>().unwrap());
    let ticks: u64 = setting("TICKS").parse().unwrap();
    let backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_millis(500));
    let manager = Manager::new(Config::new().runtime(buffstreams::Tokio::current()).reconnect(backoff));
    until("connection", async || manager.dial(&address).await.ok()).await;
    let mut sink = manager.sink();
    let mut interval = tokio::time::interval(TICK);
    for tick in 0..ticks {
        interval.tick().await;
        for number in count * tick / ticks..count * (tick + 1) / ticks {
            let message = Bytes::from(format!("{:LEN$}", format!("{name}.{number}")));
            sink.feed((address.as_str().into(), message)).await.unwrap();
        }
        sink.flush().await.unwrap();
    }
    let ending = manager.shutdown(Duration::from_secs(60)).await[&address.as_str().into()];
    println!("FIGURES written={} dead={}", ending.written, ending.dead_lettered);
}

/// Who is killed beside a server of the cluster, which always is, and always comes back.
#[derive(Clone, Copy, PartialEq)]
enum Killed {
    NobodyElse,
    AnIngressAndAClient,
}

/// Returns how many messages of the clients that lived are lost.
async fn run(killed: Killed) -> Option<u64> {
    let mut cluster = Cluster::start()?;
    let total = std::env::var("BUFFSTREAMS_NATS_MESSAGES").map_or(50_000, |count| count.parse().unwrap());
    // Ten seconds at least, and no more than 20,000 messages a second.
    let ticks = 200.max(total / 1000);
    let jetstream = cluster.jetstream().await;
    let orders = stream(&jetstream, "orders", 3).await;

    // One address for both, as a load balancer would give them.
    let port = Port::shared();
    let (servers, address, count) = (cluster.urls(), port.address(), total / CLIENTS);
    let new_node = || Part::start("node", &[("SERVERS", &servers), ("ADDRESS", &address)]);
    let mut nodes = vec![new_node(), new_node()];
    let new_client = |number: u64| {
        let name = format!("client{number}");
        Part::start("client", &[("ADDRESS", &address), ("NAME", &name), ("COUNT", &count), ("TICKS", &ticks)])
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(new_client).collect();

    let part_of = |percent: u64| count * CLIENTS * percent / 100;
    let mut dead = BTreeSet::new();
    if killed == Killed::AnIngressAndAClient {
        reached(&orders, part_of(20)).await;
        nodes[0].kill();
        println!("an ingress is killed");
        reached(&orders, part_of(35)).await;
        nodes[0] = new_node();
        clients.pop().unwrap().kill();
        dead.insert(CLIENTS - 1);
        println!("there is a new one, and a client is killed");
    }
    reached(&orders, part_of(50)).await;
    let leader = until("leader", async || orders.get_info().await.ok()?.cluster?.leader).await;
    let (at, killed_at) = (leader.trim_start_matches('n').parse::<usize>().unwrap(), Instant::now());
    cluster.0[at].kill();
    println!("the leader of the stream, {leader}, is killed");
    // The others go on without it.
    reached(&orders, part_of(60)).await;
    println!("the stream goes on, {:.1} s later", killed_at.elapsed().as_secs_f64());
    cluster.0[at].restart();

    for client in clients {
        let figures = client.end(true).await;
        assert_eq!((figures["written"], figures["dead"]), (count, 0));
    }
    let mut stored_by_living = 0;
    for node in nodes {
        let figures = node.end(false).await;
        println!("a node: {figures:?}");
        assert_eq!(figures["received"], figures["stored"]);
        assert!(figures["peak"] < 256 << 10, "its memory, in KiB");
        stored_by_living += figures["stored"] - figures["duplicates"];
    }
    let all = everything(&orders).await;
    let ids: BTreeSet<_> = all.iter().map(|(_, id, _)| id.clone()).collect();
    assert_eq!(ids.len(), all.len(), "no id is twice in the stream");
    let by_the_dead = ids.iter().filter(|id| dead.iter().any(|dead| id.starts_with(&format!("client{dead}."))));
    let by_the_living = all.len() as u64 - by_the_dead.count() as u64;
    assert!(all.len() as u64 >= stored_by_living);
    let sent = count * (CLIENTS - dead.len() as u64);
    println!("{sent} written by the clients that lived, {by_the_living} of them in the stream");
    Some(sent - by_the_living)
}

async fn reached(orders: &async_nats::jetstream::stream::Stream, count: u64) {
    let looking = async {
        loop {
            let messages = until("information", async || orders.get_info().await.ok()).await.state.messages;
            if messages >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(300), looking).await.unwrap_or_else(|_| panic!("no {count} messages"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_a_server_of_the_cluster_is_killed() {
    if let Some(lost) = run(Killed::NobodyElse).await {
        assert_eq!(lost, 0);
    }
}

/// What an ingress had received, or its sockets held, and that was not stored when it died, is lost: there are no sessions.
#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_twice_when_an_ingress_and_a_client_are_killed_as_well() {
    if let Some(lost) = run(Killed::AnIngressAndAClient).await {
        println!("{lost} messages are lost with the ingress");
    }
}
