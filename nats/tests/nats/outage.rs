//! A server that ends and comes back while messages flow.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use buffstreams::{Bytes, Connection, Endpoint, Listener};
use buffstreams_nats::Ingress;
use futures::{SinkExt, StreamExt};
use tokio::task::JoinSet;

use crate::server::{Server, config, everything, listen, soon, stream, until};

/// Clients that send as much as they can until they are told to stop.
struct Flood {
    is_over: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    clients: JoinSet<()>,
}

impl Flood {
    fn start(to: &Endpoint, clients: usize, len: usize) -> Self {
        let mut flood = Self { is_over: Arc::default(), sent: Arc::default(), clients: JoinSet::new() };
        for client in 0..clients {
            let (is_over, sent, to) = (flood.is_over.clone(), flood.sent.clone(), to.clone());
            flood.clients.spawn(async move {
                let mut connection = Connection::dial(to, config().write_timeout(None)).await.unwrap();
                for number in 0.. {
                    if is_over.load(Relaxed) {
                        break;
                    }
                    let message = Bytes::from(format!("{:len$}", format!("{client} {number}")));
                    connection.send(message).await.unwrap();
                    sent.fetch_add(1, Relaxed);
                }
                connection.close().await.unwrap();
                assert!(connection.next().await.is_none());
            });
        }
        flood
    }

    /// Tells them, and waits until all they have sent is read.
    async fn stop(self) -> usize {
        self.is_over.store(true, Relaxed);
        soon("end of the clients", self.clients.join_all()).await;
        self.sent.load(Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_received_is_lost_when_the_server_is_killed_and_comes_back() {
    let Some(server) = Server::start() else { return };
    through_outages(server, |ingress| ingress).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_messages_of_each_client_are_in_order_when_the_server_is_killed_and_comes_back() {
    let Some(server) = Server::start() else { return };
    let mut next = HashMap::new();
    for message in through_outages(server, Ingress::ordered).await {
        let (client, number) = message.trim_end().split_once(' ').unwrap();
        let next = next.entry(client.to_owned()).or_insert(0);
        assert_eq!(number.parse(), Ok(*next), "client {client}");
        *next += 1;
    }
}

/// Kills the server and starts it again, twice, while messages flow; returns what is in the stream then, which is every message
/// once.
async fn through_outages(mut server: Server, set: impl FnOnce(Ingress) -> Ingress) -> Vec<String> {
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress = set(Ingress::new(jetstream, "orders").in_flight(100, 1 << 20));
    let listener = listen().await;
    let (address, closer) = (listener.local_addr(), listener.closer());
    let running = tokio::spawn({
        let ingress = ingress.clone();
        async move { ingress.run(listener).await }
    });
    // Large ones, as what waits in the sockets is stored in the end as well.
    let flood = Flood::start(&address, 4, 4000);

    for _ in 0..2 {
        let stored = ingress.stats().stored;
        until("progress", async || (ingress.stats().stored > stored + 1000).then_some(())).await;
        server.kill();
        // What was on its way to the server is not acknowledged, and takes all the room.
        until("halt", async || (ingress.stats().in_flight >= 100).then_some(())).await;
        server.restart();
        let stored = ingress.stats().stored;
        until("progress", async || (ingress.stats().stored > stored + 1000).then_some(())).await;
    }
    let sent = flood.stop().await;
    closer.close().await.unwrap();
    soon("end", running).await.unwrap();

    let stats = ingress.stats();
    assert_eq!((stats.received, stats.stored, stats.unstored), (sent as u64, sent as u64, 0));
    let all = everything(&orders).await;
    let all: Vec<_> = all.iter().map(|(.., message)| String::from_utf8_lossy(message).into_owned()).collect();
    let different: BTreeSet<_> = all.iter().collect();
    println!("{sent} received, {} published again, {} duplicates kept out", stats.repeated, stats.duplicates);
    assert_eq!((all.len(), different.len()), (sent, sent), "every message once");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_room_stalls_the_peers_and_no_memory_grows() {
    const LEN: usize = 4000;
    const ROOM: usize = 256 << 10;
    let Some(mut server) = Server::start() else { return };
    let jetstream = server.jetstream().await;
    let orders = stream(&jetstream, "orders", 1).await;
    let ingress = Ingress::new(jetstream, "orders").in_flight(100_000, ROOM);
    let listener = Listener::bind("127.0.0.1:0", config().inbox_bytes(64 << 10)).await.unwrap();
    let (address, closer) = (listener.local_addr(), listener.closer());
    let running = tokio::spawn({
        let ingress = ingress.clone();
        async move { ingress.run(listener).await }
    });
    let flood = Flood::start(&address, 4, LEN);
    until("progress", async || (ingress.stats().stored > 100).then_some(())).await;
    server.kill();

    let stalled = until("stall", async || {
        let (sent, received) = (flood.sent.load(Relaxed), ingress.stats().received);
        tokio::time::sleep(Duration::from_millis(500)).await;
        (flood.sent.load(Relaxed) == sent && ingress.stats().received == received).then_some(sent)
    });
    let stalled = stalled.await;
    let stats = ingress.stats();
    assert!(stats.in_flight_bytes >= ROOM && stats.in_flight_bytes < ROOM + LEN, "{stats:?}");
    // What the peers have sent and nobody has taken is in the inbox, and in the sockets.
    let waiting = (stalled as u64 - stats.received) * LEN as u64;
    println!("{} bytes in flight, {waiting} in the inbox and the sockets", stats.in_flight_bytes);
    assert!(waiting < 4 * (16 << 20), "{waiting}");

    server.restart();
    until("progress", async || (flood.sent.load(Relaxed) > stalled).then_some(())).await;
    let sent = flood.stop().await;
    closer.close().await.unwrap();
    soon("end", running).await.unwrap();
    assert_eq!(everything(&orders).await.len(), sent);
}
