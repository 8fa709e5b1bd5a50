//! A scripted session: one end sends a few dozen messages of mixed sizes, whatever happens to the connection, and the
//! other receives them, and may answer. What came of it is for the audit.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};

use crate::observe::{Event, ManagerEvent, Reason};
use crate::sim::testing;
use crate::sim::testing::elapsed;
use crate::sim::testing::{Cut, plan};
use crate::{Address, Backoff, Config, Connection, Error, Listener, Manager, ReadHalf, WireFormat};

pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const FRAME_TIMEOUT: Duration = Duration::from_secs(7);
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(200);
/// When the listener is closed: after the timeouts of a broken session.
pub(super) const REST: Duration = Duration::from_secs(60);

/// After how many messages the sender flushes.
pub(super) const FLUSH_EVERY: usize = 3;

/// How the messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    /// Through a manager's sink.
    Sink,
    /// With a manager's `write`.
    Write,
    /// Through a connection that nobody reads.
    Connection,
    /// Through one half of a connection; the other reads the replies.
    Halves,
    /// The same, with `Config::reconnect`.
    Patient,
}

/// How they are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Server {
    /// As the listener's stream.
    Stream,
    /// And answered with themselves.
    Echo,
    /// From a connection for each peer.
    Connections,
}

/// What came of a session.
#[derive(Default)]
pub(super) struct Outcome {
    /// What was received from each peer.
    pub(super) received: BTreeMap<u64, Vec<Bytes>>,
    pub(super) replies: Vec<Bytes>,
    /// When each peer was disconnected, and why.
    pub(super) ends: BTreeMap<u64, (Duration, Reason)>,
    /// When the manager's connection broke, and why.
    pub(super) breaks: Vec<(Duration, Option<Arc<Error>>)>,
    /// The errors of the connection's sink.
    pub(super) errors: Vec<(Duration, Error)>,
    pub(super) closed: Option<Error>,
}

pub(super) fn config(format: WireFormat) -> Config {
    Config::new()
        .wire_format(format)
        .max_message_size(16 * 1024)
        .write_timeout(WRITE_TIMEOUT)
        .frame_timeout(FRAME_TIMEOUT)
        .close_timeout(CLOSE_TIMEOUT)
        .idle_timeout(IDLE_TIMEOUT)
}

/// The messages. Those that have room for it say which they are.
pub(super) fn messages() -> Vec<Bytes> {
    let sizes = [5, 0, 110, 1, 300, 0, 5, 4095, 1, 5, 1, 4097, 5, 0, 110, 0, 5, 1, 10_240, 0, 5, 300, 1, 5, 0, 1];
    let message = |(i, size): (usize, &usize)| (0..*size).map(|at| (i + at / 7) as u8).collect();
    sizes.iter().enumerate().map(message).collect()
}

/// Sends the messages, with the cut on the way.
pub(super) async fn run(
    manager: &Manager,
    (client, server): (Client, Server),
    format: WireFormat,
    messages: &[Bytes],
    cut: Cut,
) -> Outcome {
    let mut outcome = Outcome::default();
    plan(cut);
    let listener = Listener::bind("127.0.0.1:0", config(format)).await.unwrap();
    let (address, closer) = (Address::from(listener.local_addr()), listener.closer());
    let mut events = listener.events();
    let ends = Arc::new(Mutex::new(BTreeMap::new()));
    let seen = ends.clone();
    let mut watching = testing::spawn(async move {
        while let Some(event) = events.next().await {
            if let Event::Disconnected { peer, reason } = event {
                seen.lock().unwrap().insert(peer.id(), (elapsed(), reason));
            }
        }
    });
    let (received, ()) = futures::join!(receive(listener, server), async {
        match client {
            Client::Sink | Client::Write => send_managed(manager, &address, client, messages, &mut outcome).await,
            Client::Connection | Client::Halves | Client::Patient => {
                send_alone(&address, client, format, messages, &mut outcome).await;
            }
        }
        testing::sleep(REST).await;
        // It may take as long as it has.
        let _ = closer.close().await;
    });
    drop(closer);
    watching.join().await;
    outcome.ends = ends.lock().unwrap().clone();
    outcome.received = received;
    outcome
}

async fn send_managed(manager: &Manager, address: &Address, client: Client, messages: &[Bytes], outcome: &mut Outcome) {
    let mut events = manager.events();
    let breaks = Arc::new(Mutex::new(Vec::new()));
    let seen = breaks.clone();
    let watching = testing::spawn(async move {
        while let Some(event) = events.next().await {
            if let ManagerEvent::Broken { error, .. } = event {
                seen.lock().unwrap().push((elapsed(), error));
            }
        }
    });
    manager.dial(address).await.unwrap();
    if client == Client::Sink {
        let mut sink = manager.sink();
        for (i, message) in messages.iter().enumerate() {
            sink.feed((address.clone(), message.clone())).await.unwrap();
            if (i + 1).is_multiple_of(FLUSH_EVERY) {
                sink.flush().await.unwrap();
            }
        }
        sink.close().await.unwrap();
    } else {
        for message in messages {
            manager.write(address, message.clone()).await.unwrap();
        }
    }
    outcome.closed = manager.close(address).await.err();
    testing::yield_now().await;
    watching.stop().await;
    outcome.breaks = breaks.lock().unwrap().drain(..).collect();
}

async fn send_alone(address: &Address, client: Client, format: WireFormat, messages: &[Bytes], outcome: &mut Outcome) {
    let patience = (client == Client::Patient).then(|| Backoff::from_fn(|| [Duration::from_millis(1); 9]));
    let connection = Connection::dial(address, config(format).reconnect(patience)).await.unwrap();
    let (read, mut write) = connection.split();
    let done = AtomicBool::new(false);
    let errors = &mut outcome.errors;
    let sending = async {
        for (i, message) in messages.iter().enumerate() {
            // Broken or not, it has room for all of them.
            write.feed(message.clone()).await.unwrap();
            if (i + 1).is_multiple_of(FLUSH_EVERY) {
                while let Err(error) = write.flush().await {
                    errors.push((elapsed(), error));
                }
            }
        }
        while let Err(error) = write.close().await {
            errors.push((elapsed(), error));
        }
        done.store(true, Ordering::Relaxed);
    };
    if client != Client::Connection {
        ((), outcome.replies) = futures::join!(sending, read_replies(read, &done));
    } else {
        sending.await;
    }
}

/// Reads until the end of the connection that the sender ended, or until nothing comes any more.
async fn read_replies(mut read: ReadHalf, done: &AtomicBool) -> Vec<Bytes> {
    let mut replies = Vec::new();
    loop {
        let done = done.load(Ordering::Relaxed);
        match testing::within(Some(REST), read.next()).await {
            Some(Some(Ok(reply))) => replies.push(reply),
            Some(Some(Err(_))) => {}
            Some(None) if done => return replies,
            // The sender opens it again.
            Some(None) => testing::sleep(Duration::from_millis(100)).await,
            None => return replies,
        }
    }
}

async fn receive(mut listener: Listener, server: Server) -> BTreeMap<u64, Vec<Bytes>> {
    let mut received = BTreeMap::<u64, Vec<Bytes>>::new();
    match server {
        Server::Stream => {
            while let Some((peer, message)) = listener.next().await {
                received.entry(peer.id()).or_default().push(message);
            }
        }
        Server::Echo => {
            let (mut incoming, mut outgoing) = listener.split();
            while let Some((peer, message)) = incoming.next().await {
                received.entry(peer.id()).or_default().push(message.clone());
                outgoing.feed((peer, message)).await.unwrap();
                // Of several in a batch, some go together.
                if received[&peer.id()].len().is_multiple_of(2) {
                    let _ = testing::within(Some(Duration::ZERO), outgoing.flush()).await;
                }
            }
        }
        Server::Connections => {
            let each = listener.connections().map(|mut connection| async move {
                let mut messages = Vec::new();
                while let Some(Ok(message)) = connection.next().await {
                    messages.push(message);
                }
                (connection.peer().unwrap().id(), messages)
            });
            received = each.buffer_unordered(16).collect().await;
        }
    }
    received
}
