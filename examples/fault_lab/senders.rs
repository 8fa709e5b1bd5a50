//! Who sends to receivers that come and go: managers with two producers each, and what became of each of their messages.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_std::task::{self, JoinHandle};
use buffstreams::{Address, BoxError, Config, Error, LinkStats, Manager, Outcome};
use fastrand::Rng;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, SinkExt, StreamExt, future, poll};

use crate::fault_lab::books::Id;
use crate::fault_lab::messages::{MAX_MESSAGE, message, noise, parse};

/// Each has a session.
pub(crate) const MANAGERS: u32 = 2;
/// The first feeds a sink, the second awaits writes.
const PRODUCERS: u32 = 2;
/// After how many messages, on the average, a sink is flushed.
const FLUSH_EVERY: u64 = 64;
/// How many writes wait at once.
const WRITES: usize = 64;
/// How long a producer waits whose messages came back, so that an outage is not spent on them.
const PAUSE: Duration = Duration::from_millis(2);
/// How often the first dial may fail: the receiver starts, or is killed, or the connection is cut.
const DIALS: u32 = 5_000;

/// What became of a message that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    NotSent,
    Refused,
    InDoubt,
}

impl From<Outcome> for Fate {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::InDoubt => Self::InDoubt,
            Outcome::Refused => Self::Refused,
            _ => Self::NotSent,
        }
    }
}

/// The managers, while they send.
pub(crate) struct Senders {
    over: Arc<AtomicBool>,
    senders: Vec<Sender>,
}

struct Sender {
    manager: Manager,
    address: Address,
    letters: JoinHandle<Vec<(Option<Id>, Outcome)>>,
    producers: Vec<JoinHandle<Sent>>,
}

/// What a producer has sent.
#[derive(Default)]
struct Sent {
    accepted: u64,
    /// What a `write` has told. What became of the rest, the manager says.
    acked: u64,
    back: Vec<(Id, Fate)>,
    error: Option<String>,
}

/// What became of everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcomes {
    /// How many messages each producer had accepted.
    pub(crate) accepted: Vec<u64>,
    /// Those that came back. All others are acknowledged.
    pub(crate) back: BTreeMap<Id, Fate>,
    pub(crate) stats: Stats,
    pub(crate) violations: Vec<String>,
}

/// The sum of what the managers say.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) accepted: u64,
    pub(crate) acked: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) in_doubt: u64,
    pub(crate) refused: u64,
    pub(crate) held: u64,
    pub(crate) sessions: u64,
}

impl Senders {
    /// Begins to send to a receiver that listens soon.
    pub(crate) async fn start(port: u16, config: &Config, seed: u64) -> Result<Self, BoxError> {
        let over = Arc::new(AtomicBool::new(false));
        let start = (0..MANAGERS).map(|at| Sender::start(port, config, seed, at, &over));
        Ok(Self { senders: future::try_join_all(start).await?, over })
    }

    /// Ends the producers, and waits until each message has its end.
    pub(crate) async fn finish(self) -> Outcomes {
        self.over.store(true, Ordering::Release);
        let mut outcomes = Outcomes::default();
        for sender in self.senders {
            sender.finish(&mut outcomes).await;
        }
        outcomes
    }
}

/// Dials until it succeeds.
pub(crate) async fn dial<T>(dial: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let mut dials = 1;
    loop {
        match dial().await {
            Err(Error::Dial { .. } | Error::DialTimeout { .. } | Error::Handshake { .. }) if dials < DIALS => {
                dials += 1
            }
            dialed => return dialed,
        }
        task::sleep(Duration::from_millis(1)).await;
    }
}

impl Sender {
    async fn start(port: u16, config: &Config, seed: u64, at: u32, over: &Arc<AtomicBool>) -> Result<Self, BoxError> {
        let (manager, address) = (Manager::new(config.clone()), Address::from(format!("127.0.0.1:{port}")));
        let letters = manager.dead_letters().map(|letter| (parse(&letter.message), letter.outcome)).collect();
        let letters = task::spawn(letters);
        dial(async || manager.dial(&address).await).await?;
        let new = |producer| Producer {
            manager: manager.clone(),
            address: address.clone(),
            seed,
            producer,
            over: over.clone(),
        };
        let producers =
            vec![task::spawn(new(PRODUCERS * at).feed_all()), task::spawn(new(PRODUCERS * at + 1).write_all())];
        Ok(Self { manager, address, letters, producers })
    }

    async fn finish(self, outcomes: &mut Outcomes) {
        let Self { manager, address, letters, producers } = self;
        let mut acked = 0;
        for producer in producers {
            let (name, sent) = (outcomes.accepted.len(), producer.await);
            // Of those of a sink, what did not come back is acknowledged, or the sum is wrong.
            let written = name as u32 % PRODUCERS == 1;
            if written && sent.acked + sent.back.len() as u64 != sent.accepted {
                outcomes.violations.push(format!("producer {name}: some writes have no end"));
            }
            acked += sent.acked;
            outcomes.accepted.push(sent.accepted);
            outcomes.violations.extend(sent.error);
            for (id, fate) in sent.back {
                outcomes.came_back(Some(id), fate);
            }
        }
        // What could not be delivered came back as dead letters, and the books must say so.
        match manager.close(&address).await {
            Ok(()) | Err(Error::NotSent { .. }) => {}
            Err(error) => outcomes.violations.push(format!("the close: {error:?}")),
        }
        let stats = manager.stats();
        if stats.lost > 0 {
            outcomes.violations.push(format!("{} dead letters were lost", stats.lost));
        }
        if stats.total.acked < acked {
            outcomes.violations.push(format!("{acked} writes were acknowledged, and {} messages", stats.total.acked));
        }
        drop(manager); // The dead letters end.
        for (id, outcome) in letters.await {
            outcomes.came_back(id, outcome.into());
        }
        outcomes.stats.add(&stats.total);
    }
}

impl Outcomes {
    fn came_back(&mut self, id: Option<Id>, fate: Fate) {
        let Some(id) = id else {
            return self.violations.push("a dead letter is damaged".to_owned());
        };
        match self.back.entry(id) {
            Entry::Vacant(place) => drop(place.insert(fate)),
            Entry::Occupied(other) => {
                self.violations.push(format!("{id:?} came back twice: as {:?}, and as {fate:?}", other.get()));
            }
        }
    }

    /// How many came back with this fate.
    pub(crate) fn count(&self, fate: Fate) -> u64 {
        self.back.values().filter(|other| **other == fate).count() as u64
    }

    pub(crate) fn sent(&self) -> u64 {
        self.accepted.iter().sum()
    }

    /// How many are acknowledged, as the messages themselves tell.
    pub(crate) fn acked(&self) -> u64 {
        self.sent() - self.back.len() as u64
    }
}

impl Stats {
    fn add(&mut self, stats: &LinkStats) {
        self.accepted += stats.accepted;
        self.acked += stats.acked;
        self.dead_lettered += stats.dead_lettered;
        self.in_doubt += stats.in_doubt;
        self.refused += stats.refused;
        self.held += stats.held;
        self.sessions += stats.sessions;
    }
}

/// Sends until it is over.
struct Producer {
    manager: Manager,
    address: Address,
    seed: u64,
    producer: u32,
    over: Arc<AtomicBool>,
}

impl Producer {
    fn rng(&self) -> Rng {
        Rng::with_seed(self.seed ^ (u64::from(self.producer) + 1) << 32)
    }

    async fn feed_all(self) -> Sent {
        let mut rng = self.rng();
        let noise = noise(&mut rng, MAX_MESSAGE);
        let (mut sent, mut sink) = (Sent::default(), self.manager.sink());
        loop {
            let is_over = self.over.load(Ordering::Acquire);
            let done = if is_over {
                sink.close().await
            } else if rng.u64(0..FLUSH_EVERY) == 0 {
                sink.flush().await
            } else {
                let id = Id { producer: self.producer, number: sent.accepted };
                let fed = sink.feed((self.address.clone(), message(id, &mut rng, &noise))).await;
                sent.accepted += u64::from(fed.is_ok());
                fed
            };
            match done {
                Ok(()) if is_over => return sent,
                Ok(()) => {}
                Err(Error::NotSent { message: None, .. }) => task::sleep(PAUSE).await,
                Err(error) => {
                    sent.error = Some(format!("producer {}, after {}: {error:?}", self.producer, sent.accepted));
                    return sent;
                }
            }
        }
    }

    async fn write_all(self) -> Sent {
        let mut rng = self.rng();
        let noise = noise(&mut rng, MAX_MESSAGE);
        let (mut sent, mut writes) = (Sent::default(), FuturesUnordered::new());
        loop {
            let is_over = self.over.load(Ordering::Acquire);
            if !is_over && writes.len() < WRITES {
                let id = Id { producer: self.producer, number: sent.accepted };
                let write = self.manager.write(&self.address, message(id, &mut rng, &noise));
                let mut write = Box::pin(write.map(move |written| (id, written)));
                sent.accepted += 1;
                // The first poll offers it: so they are accepted in their order.
                match poll!(&mut write) {
                    std::task::Poll::Ready(written) => sent.settle(written),
                    std::task::Poll::Pending => writes.push(write),
                }
                continue;
            }
            let Some((id, written)) = writes.next().await else { return sent };
            let came_back = written.is_err();
            sent.settle((id, written));
            if came_back {
                task::sleep(PAUSE).await;
            }
        }
    }
}

impl Sent {
    /// What a write has told of its message.
    fn settle(&mut self, (id, written): (Id, Result<(), Error>)) {
        let (fate, message) = match written {
            Ok(()) => {
                self.acked += 1;
                return;
            }
            Err(Error::NotSent { message, .. }) => (Fate::NotSent, message),
            Err(Error::Refused { message, .. }) => (Fate::Refused, message),
            Err(Error::InDoubt { message, .. }) => (Fate::InDoubt, message),
            Err(error) => return self.error = Some(format!("{id:?}, a write: {error:?}")),
        };
        if message.and_then(|message| parse(&message.into_inner())) == Some(id) {
            self.back.push((id, fate));
        } else {
            self.error = Some(format!("{id:?}, a write: another message came back, as {fate:?}"));
        }
    }
}
