//! Clients, ingress nodes and servers, each a process of its own, some of which are killed.
//!
//! `BUFFSTREAMS_NATS_MESSAGES` is how many messages there are in all: 50,000 unless it is set. In order it is a fifth of that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use buffstreams_nats::async_nats;

use crate::parts::Part;
use crate::server::{Cluster, Folder, Port, everything, stream, until};

const CLIENTS: u64 = 16;

/// How the clients and the nodes are set.
#[derive(Clone, Copy, PartialEq)]
struct Form {
    sessions: bool,
    ordered: bool,
}

/// Who is killed beside a server of the cluster, which always is, and always comes back.
#[derive(Clone, Copy, PartialEq)]
enum Killed {
    NobodyElse,
    AnIngressAndAClient,
}

/// What has become of the messages. Those of a client that was killed are only looked at where it says so.
#[derive(Debug)]
#[allow(dead_code)] // Some of it is only printed.
struct Report {
    /// Given to their managers by the clients that lived.
    accepted: usize,
    /// Acknowledged to the clients, to the killed one as well.
    acked: usize,
    /// In the stream, those of the killed one as well.
    stored: usize,
    /// As often an id is in the stream that was there before.
    stored_twice: usize,
    /// Accepted, and not in the stream.
    lost: usize,
    /// Acknowledged, and not in the stream; of the killed one as well.
    acked_and_lost: usize,
    /// Sent again, as they came back in doubt.
    in_doubt_sent_again: u64,
    /// From the first time that one of these was sent to the last, in ms.
    longest_retry: u64,
    /// Stored behind one that came later by the same connection, or in the same session.
    out_of_order: usize,
    /// The same of messages that cannot have been published again, and how many these are.
    out_of_order_unrepeated: usize,
    unrepeated: usize,
}

/// What a client has written down.
#[derive(Default)]
struct Journal {
    accepted: BTreeSet<String>,
    acked: BTreeSet<String>,
}

impl Journal {
    fn read(folder: &Folder, client: u64) -> Self {
        let (mut journal, name) = (Self::default(), name(client));
        let text = fs::read_to_string(journal_of(folder, client)).unwrap();
        // Without what the kill has cut off.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let (sign, number) = line.split_at(1);
            let of = if sign == "+" { &mut journal.accepted } else { &mut journal.acked };
            of.insert(format!("{name}.{number}"));
        }
        journal
    }
}

fn journal_of(folder: &Folder, client: u64) -> String {
    format!("{}/{client}", folder.path())
}

fn name(client: u64) -> String {
    format!("client{client}")
}

/// Where the stream was when a node had not published anything again: what is stored by then came with the first attempt.
#[derive(Default)]
struct Unrepeated(HashMap<String, usize>);

impl Unrepeated {
    fn add(&mut self, node: &str, upto: usize, repeated: u64) {
        if repeated == 0 {
            self.0.insert(node.to_owned(), upto);
        }
    }
}

/// A node, and what it is called.
struct Node(String, Part);

impl Node {
    /// How far the stream is, and then whether the node has repeated anything.
    async fn look(&mut self, orders: &Stream, unrepeated: &mut Unrepeated) {
        let upto = until("information", async || orders.get_info().await.ok()).await.state.last_sequence;
        let figures = self.1.ask().await;
        unrepeated.add(&self.0, upto as usize, figures["repeated"]);
    }
}

async fn run(form: Form, killed: Killed) -> Option<Report> {
    let mut cluster = Cluster::start()?;
    let total: u64 = std::env::var("BUFFSTREAMS_NATS_MESSAGES").map_or(50_000, |count| count.parse().unwrap());
    // Each client has one in flight then.
    let total = if form.ordered { total / 5 } else { total };
    // Five seconds at least, and no more than 20,000 messages a second.
    let millis = 5_000.max(total / 20);
    let jetstream = cluster.jetstream().await;
    let orders = stream(&jetstream, "orders", 3).await;
    let window = until("information", async || orders.get_info().await.ok()).await.config.duplicate_window;

    // One address for both, as a load balancer would give them.
    let (port, folder) = (Port::shared(), Folder::new());
    let (servers, address, count) = (cluster.urls(), port.address(), total / CLIENTS);
    let new_node = |name: &str| {
        let settings: [(_, &dyn std::fmt::Display); 5] = [
            ("SERVERS", &servers),
            ("ADDRESS", &address),
            ("NAME", &name),
            ("SESSIONS", &form.sessions),
            ("ORDERED", &form.ordered),
        ];
        Node(name.to_owned(), Part::start("node", &settings))
    };
    let mut nodes = vec![new_node("node0"), new_node("node1")];
    let new_client = |client: u64| {
        let settings: [(_, &dyn std::fmt::Display); 6] = [
            ("ADDRESS", &address),
            ("NAME", &name(client)),
            ("COUNT", &count),
            ("MILLIS", &millis),
            ("JOURNAL", &journal_of(&folder, client)),
            ("SESSIONS", &form.sessions),
        ];
        Part::start("client", &settings)
    };
    let mut clients: Vec<_> = (0..CLIENTS).map(new_client).collect();

    let part_of = |percent: u64| count * CLIENTS * percent / 100;
    let mut unrepeated = Unrepeated::default();
    if killed == Killed::AnIngressAndAClient {
        reached(&orders, part_of(20)).await;
        nodes[0].look(&orders, &mut unrepeated).await;
        nodes[0].1.kill();
        println!("an ingress is killed");
        reached(&orders, part_of(35)).await;
        nodes[0] = new_node("node2");
        clients.pop().unwrap().kill();
        println!("there is a new one, and a client is killed");
    }
    reached(&orders, part_of(50)).await;
    for node in &mut nodes {
        node.look(&orders, &mut unrepeated).await;
    }
    let leader = until("leader", async || orders.get_info().await.ok()?.cluster?.leader).await;
    let (at, killed_at) = (leader.trim_start_matches('n').parse::<usize>().unwrap(), Instant::now());
    cluster.0[at].kill();
    println!("the leader of the stream, {leader}, is killed");
    // The others go on without it.
    reached(&orders, part_of(60)).await;
    println!("the stream goes on, {:.1} s later", killed_at.elapsed().as_secs_f64());
    cluster.0[at].restart();

    let living = clients.len() as u64;
    let (mut in_doubt_sent_again, mut longest_retry) = (0, 0);
    for client in clients {
        let figures = client.end().await;
        // What came back in doubt is not among them before it is taken.
        assert_eq!((figures["written"], figures["cut"]), (count, 0));
        in_doubt_sent_again += figures["resent"];
        longest_retry = longest_retry.max(figures["longest"]);
    }
    assert!(Duration::from_millis(longest_retry) < window, "the ids are known for {window:?}");
    let mut stored_by_living = 0;
    for Node(name, node) in nodes {
        let figures = node.close().await;
        println!("{name}: {figures:?}");
        assert_eq!(figures["received"], figures["stored"]);
        assert!(figures["peak"] < 256 << 10, "its memory, in KiB");
        stored_by_living += figures["stored"] - figures["duplicates"];
    }
    let stored = everything(&orders).await;
    assert!(stored.len() as u64 >= stored_by_living);

    let ids: BTreeSet<_> = stored.iter().map(|(_, id, _)| id).collect();
    let mut report = Report {
        accepted: 0,
        acked: 0,
        stored: stored.len(),
        stored_twice: stored.len() - ids.len(),
        lost: 0,
        acked_and_lost: 0,
        in_doubt_sent_again,
        longest_retry,
        out_of_order: 0,
        out_of_order_unrepeated: 0,
        unrepeated: 0,
    };
    for client in 0..CLIENTS {
        let Journal { accepted, acked } = Journal::read(&folder, client);
        let missing = |of: &BTreeSet<String>| of.iter().filter(|id| !ids.contains(id)).count();
        if client < living {
            assert_eq!(accepted.len() as u64, count);
            report.accepted += accepted.len();
            report.lost += missing(&accepted);
        }
        report.acked += acked.len();
        report.acked_and_lost += missing(&acked);
        if form.sessions {
            assert!(client >= living || accepted == acked, "a client ends when all is acknowledged");
        }
    }
    // The last of each connection, by the number that the client gave it when it sent it.
    let mut last = BTreeMap::new();
    for (at, (subject, _id, message)) in stored.iter().enumerate() {
        let text = String::from_utf8_lossy(message);
        let sends: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        let node = subject.split('.').nth(1).unwrap();
        let is_unrepeated = unrepeated.0.get(node).is_some_and(|upto| at < *upto);
        let last = last.entry(subject).or_insert(0);
        let is_late = sends < *last;
        report.out_of_order += usize::from(is_late);
        report.unrepeated += usize::from(is_unrepeated);
        report.out_of_order_unrepeated += usize::from(is_late && is_unrepeated);
        *last = sends.max(*last);
    }
    println!("{report:#?}");
    assert_eq!((report.stored_twice, report.out_of_order_unrepeated), (0, 0));
    Some(report)
}

async fn reached(orders: &Stream, count: u64) {
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
    let form = Form { sessions: false, ordered: false };
    if let Some(report) = run(form, Killed::NobodyElse).await {
        assert_eq!(report.lost, 0);
    }
}

/// What an ingress had received, or its sockets held, and that was not stored when it died, is lost: there are no sessions.
#[tokio::test(flavor = "multi_thread")]
async fn without_sessions_no_message_is_twice_when_an_ingress_and_a_client_are_killed_as_well() {
    let form = Form { sessions: false, ordered: false };
    if let Some(report) = run(form, Killed::AnIngressAndAClient).await {
        println!("{} messages are lost with the ingress", report.lost);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_sessions_every_message_is_stored_once_whoever_is_killed() {
    let form = Form { sessions: true, ordered: false };
    if let Some(report) = run(form, Killed::AnIngressAndAClient).await {
        assert_eq!((report.lost, report.acked_and_lost), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_sessions_and_ordered_every_message_is_stored_once_in_the_order_of_its_session() {
    let form = Form { sessions: true, ordered: true };
    if let Some(report) = run(form, Killed::AnIngressAndAClient).await {
        assert_eq!((report.lost, report.acked_and_lost, report.out_of_order), (0, 0, 0));
    }
}
