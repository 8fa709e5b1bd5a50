//! Acknowledged sessions over connections that break at random, five times in a row at the most: nothing is lost, nothing comes
//! twice, and nothing is in doubt.

use std::collections::BTreeMap;
use std::env;
use std::time::Duration;

use futures::future::join;
use futures::{FutureExt, SinkExt, StreamExt};

use super::cuts::named;
use crate::sim::testing::{self, Cut, Fault, Side, Sim};
use crate::{Address, Backoff, Bytes, Config, Connection, Incoming, Listener, Manager, Outgoing, Session};

/// So many in a row may break, of both clients together.
const FAULTS: usize = 5;
const LONGEST: usize = 20 << 10;
/// The smallest that there can be is 64 KiB and one message: so that it fills.
const WINDOW: usize = (64 << 10) + LONGEST + 4;
/// Who begins with this is answered.
const ANSWER_ME: &[u8] = b"answer me";
/// Each so many messages of theirs are answered by one.
const ANSWERED: usize = 4;

fn config() -> Config {
    Config::new()
        .max_message_size(LONGEST)
        .reconnect(Backoff::exponential(Duration::from_millis(10), Duration::from_millis(100)))
        .session(Session::new().window_bytes(WINDOW))
}

/// What one seed comes to, and draws on the way.
#[derive(Clone)]
struct Draw(fastrand::Rng);

impl Draw {
    fn message(&mut self) -> Bytes {
        let most = [0, 4, 200, LONGEST][self.0.usize(..4)];
        let (len, first) = (self.0.usize(..=most), self.0.u8(..));
        (0..len).map(|at| first.wrapping_add((at % 251) as u8)).collect()
    }

    fn messages(&mut self, begin: &'static [u8]) -> Vec<Bytes> {
        let more = self.0.usize(1..40);
        [Bytes::from_static(begin)].into_iter().chain((0..more).map(|_| self.message())).collect()
    }

    fn cut(&mut self, connection: usize) -> Cut {
        let side = if self.0.bool() { Side::Dialer } else { Side::Acceptor };
        let fault = [Fault::Fin, Fault::Rst, Fault::Stall][self.0.usize(..3)];
        // In the handshake, soon after it, or somewhere.
        let most = [88, 600, 150_000][self.0.usize(..3)];
        Cut { connection, side, after: self.0.usize(..=most), fault }
    }

    /// Now and then the program is busy with something else.
    async fn dawdle(&mut self) {
        if self.0.u8(..8) == 0 {
            testing::sleep(Duration::from_millis(self.0.u64(..300))).await;
        }
    }
}

/// Takes the messages of each peer, and answers some of them.
async fn serve(mut incoming: Incoming, mut outgoing: Outgoing, mut draw: Draw) -> BTreeMap<u64, Vec<Bytes>> {
    let mut taken = BTreeMap::<u64, Vec<Bytes>>::new();
    while let Some((peer, message)) = incoming.next().await {
        let of_peer = taken.entry(peer.id()).or_default();
        of_peer.push(message.clone());
        if of_peer[0] == ANSWER_ME && of_peer.len().is_multiple_of(ANSWERED) {
            outgoing.send((peer, message)).await.unwrap();
        }
        draw.dawdle().await;
    }
    taken
}

/// Sends them through a manager, and sees that all of them are acknowledged.
async fn manage(manager: &Manager, address: &Address, messages: &[Bytes], mut draw: Draw) {
    while manager.dial(address).await.is_err() {
        testing::sleep(Duration::from_millis(5)).await;
    }
    let (last, others) = messages.split_last().unwrap();
    let mut sink = manager.sink();
    for message in others {
        sink.feed((address.clone(), message.clone())).await.unwrap();
        draw.dawdle().await;
    }
    sink.flush().await.unwrap();
    manager.write(address, last.clone()).await.unwrap();
    // Nothing is held: at the most the last words are cut off.
    let _ = manager.close(address).await;
}

/// Sends them through a connection, and returns the answers.
async fn converse(address: &Address, messages: &[Bytes], mut draw: Draw) -> Vec<Bytes> {
    let connection = loop {
        match Connection::dial(address, config()).await {
            Ok(connection) => break connection,
            Err(_) => testing::sleep(Duration::from_millis(5)).await,
        }
    };
    let (mut read, mut write) = connection.split();
    let mut reading = draw.clone();
    let send = async {
        for message in messages {
            write.feed(message.clone()).await.unwrap();
            draw.dawdle().await;
        }
        write.barrier().await.unwrap();
        while write.close().await.is_err() {}
    };
    let receive = async {
        let mut answers = Vec::new();
        while let Some(answer) = read.next().await {
            answers.push(answer.unwrap());
            reading.dawdle().await;
        }
        answers
    };
    let ((), answers) = join(send, receive).await;
    assert!(write.take_in_doubt().is_empty() && write.take_unsent().is_empty());
    answers
}

/// Of those who were answered, and of the others; a peer without messages had its first connection cut.
fn check(taken: BTreeMap<u64, Vec<Bytes>>, [managed, connected]: [&[Bytes]; 2], answers: &[Bytes]) {
    let (talkers, others): (Vec<_>, Vec<_>) = taken.into_values().partition(|messages| messages[0] == ANSWER_ME);
    let answered: Vec<_> = connected.iter().skip(ANSWERED - 1).step_by(ANSWERED).cloned().collect();
    let came = [talkers.concat(), others.concat(), answers.to_vec()];
    let (peers, went) = ([talkers.len(), others.len()], [connected, managed, &answered]);
    for (came, went) in came.iter().zip(went) {
        let lens = |messages: &[Bytes]| messages.iter().map(Bytes::len).collect::<Vec<_>>();
        assert!(came == went, "{peers:?}: {:?} came of {:?}", lens(came), lens(went));
    }
    assert_eq!(peers, [1, 1], "no session begins twice");
}

async fn session(manager: &Manager, mut draw: Draw) {
    for connection in 0..draw.0.usize(..=FAULTS) {
        testing::plan(draw.cut(connection));
    }
    let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
    let (address, closer) = (Address::from(listener.local_addr()), listener.closer());
    let (incoming, outgoing) = listener.split();
    let (managed, connected) = (draw.messages(b"no answer"), draw.messages(ANSWER_ME));
    let (mut letters, mut fork) = (manager.dead_letters(), || Draw(draw.0.fork()));
    let [serving, managing, conversing] = [fork(), fork(), fork()];
    let clients = async {
        let clients = join(manage(manager, &address, &managed, managing), converse(&address, &connected, conversing));
        let ((), answers) = clients.await;
        // Of a first dial that was cut there may be a session that has never begun: it has nothing to lose.
        let _ = closer.close().await;
        answers
    };
    let (taken, answers) = join(serve(incoming, outgoing, serving), clients).await;
    check(taken, [&managed, &connected], &answers);
    assert!(letters.next().now_or_never().is_none(), "nothing comes back");
    let total = manager.stats().total;
    assert_eq!((total.accepted, total.acked, total.in_doubt), (managed.len() as u64, managed.len() as u64, 0));
}

/// Every seed of these: `BUFFSTREAMS_SEEDS` says how many, 256 if it is not set.
#[test]
fn no_seed_loses_a_message_or_takes_one_twice_or_leaves_one_in_doubt() {
    let seeds = env::var("BUFFSTREAMS_SEEDS").map_or(256, |seeds| seeds.parse().unwrap());
    let mut broke = 0;
    for seed in 0..seeds {
        named(format_args!("seed {seed}"), || {
            let mut draw = Draw(fastrand::Rng::with_seed(seed));
            let manager = Manager::new(config());
            let watched = manager.clone();
            let balances = || {
                let total = watched.stats().total;
                assert_eq!(total.accepted, total.acked + total.dead_lettered + total.held, "{total:?}");
            };
            let capacity = if draw.0.bool() { draw.0.usize(10..500) } else { draw.0.usize(500..64 << 10) };
            let sim = Sim { capacity, seed: Some(seed), ..Sim::default() };
            sim.run_watched(
                async {
                    session(&manager, draw).await;
                    broke += testing::cables(<[_]>::len) - 2;
                },
                balances,
            );
        });
    }
    assert!(
        seeds < 50 || broke as u64 > seeds,
        "{broke} of {seeds} broke: the faults come where there is something to break"
    );
}
