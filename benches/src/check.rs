//! The receiver's check, the same for every system: all messages, whole, once each; and in order, where there is one
//! connection. Of many connections each system mixes the messages in another way, and to keep them apart would cost each
//! something else.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use hdrhistogram::Histogram;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::child::Waiting;
use crate::messages::{self, MARKER, Note};
use crate::plan::{Form, Scenario, Trial};
use crate::{Result, clock};

/// What was received. The tallies of several receivers can be added.
#[derive(Clone, Copy, Default, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    /// Of the messages' numbers. A message too few and another one too many change it,
    sum: u64,
    /// and two such pairs that leave the sum as it is change this.
    squares: u64,
    /// Messages of a wrong size, with a wrong content, or out of turn.
    faults: u64,
}

impl Tally {
    /// Checks one message and counts it.
    pub(crate) fn take(&mut self, check: &Check, message: &[u8]) {
        self.count(check, &check.decode(message));
    }

    /// Counts a message that was decoded, and checks its turn.
    fn count(&mut self, check: &Check, message: &Decoded) {
        let is_next = |number: &u64| check.mask.is_none_or(|mask| *number == self.messages & mask);
        match message.number.filter(is_next) {
            Some(number) => {
                self.sum = self.sum.wrapping_add(number);
                self.squares = self.squares.wrapping_add(number.wrapping_mul(number));
            }
            None => self.faults += 1,
        }
        self.messages += 1;
        self.bytes += message.bytes;
    }

    fn merge(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.sum = self.sum.wrapping_add(other.sum);
        self.squares = self.squares.wrapping_add(other.squares);
        self.faults += other.faults;
    }

    /// What must arrive if each of `senders` sends `share` messages.
    pub(crate) fn expected(size: usize, senders: u64, share: u64) -> Self {
        let count = messages::count(size);
        let (turns, rest) = (share / count, share % count);
        let sum = |power: u32| {
            let up_to = |end: u64| (0..end).map(|number| number.pow(power)).sum::<u64>();
            (up_to(count).wrapping_mul(turns) + up_to(rest)).wrapping_mul(senders)
        };
        let messages = senders * share;
        Self { messages, bytes: messages * size as u64, sum: sum(1), squares: sum(2), faults: 0 }
    }

    /// Bytes without frames: all that can be checked is how many there are.
    pub(crate) fn of_bytes(bytes: u64, size: usize) -> Self {
        Self { messages: bytes / size as u64, bytes, ..Self::default() }
    }

    pub(crate) fn verify(&self, expected: &Self) -> Result<()> {
        if self == expected {
            return Ok(());
        }
        Err(format!("what was received is not what was sent: {self:?} instead of {expected:?}").into())
    }
}

/// How a message is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    form: Form,
    size: usize,
    /// Of the numbers, which begin again after so many; where the messages must come in turn.
    mask: Option<u64>,
}

/// What there is to know of a message.
pub(crate) struct Decoded {
    /// If the message is whole.
    number: Option<u64>,
    bytes: u64,
    /// When it should have been sent, where messages say that.
    due: u64,
}

impl Check {
    pub(crate) fn of(trial: &Trial) -> Self {
        let mask = trial.is_in_turn().then(|| messages::count(trial.size) - 1);
        Self { form: trial.form(), size: trial.size, mask }
    }

    pub(crate) fn decode(&self, message: &[u8]) -> Decoded {
        let due = messages::due(message).unwrap_or(0);
        Decoded { number: self.number(message), bytes: message.len() as u64, due }
    }

    /// The message's number, if the message is whole.
    fn number(&self, message: &[u8]) -> Option<u64> {
        if message.len() != self.size {
            return None;
        }
        match self.form {
            Form::Numbered => {
                let number = u64::from_le_bytes(*message.first_chunk()?);
                (message.last() == Some(&MARKER)).then_some(number)
            }
            Form::Protobuf => Note::decode(message).ok().map(|note| note.number),
        }
    }
}

/// Looks at the messages of one task.
pub(crate) struct Inspector {
    check: Check,
    tally: Tally,
    share: u64,
    waiting: Waiting,
    /// In nanoseconds, where messages say when they should have been sent.
    latencies: Option<Histogram<u64>>,
}

/// A histogram of nanoseconds, precise to three digits, up to a minute.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("these bounds are valid")
}

impl Inspector {
    /// One of those who are `waiting`, for `share` messages.
    pub(crate) fn new(trial: &Trial, share: u64, waiting: &Waiting) -> Self {
        let latencies = (trial.scenario == Scenario::OpenLoop).then(histogram);
        Self { check: Check::of(trial), tally: Tally::default(), share, waiting: waiting.clone(), latencies }
    }

    pub(crate) fn take(&mut self, message: &[u8]) {
        self.count(&self.check.decode(message));
    }

    /// Takes a message that was decoded elsewhere.
    pub(crate) fn count(&mut self, message: &Decoded) {
        self.tally.count(&self.check, message);
        if let Some(latencies) = &mut self.latencies {
            latencies.saturating_record(clock::now().saturating_sub(message.due));
        }
        if self.tally.messages == self.share {
            self.waiting.arrived();
        }
    }

    #[cfg_attr(not(feature = "zmq"), expect(dead_code, reason = "only ZeroMQ's receiver has no end"))]
    pub(crate) fn messages(&self) -> u64 {
        self.tally.messages
    }

    /// The report of several tasks together.
    pub(crate) fn report(parts: impl IntoIterator<Item = Self>) -> Received {
        let (mut received, mut all) = (Received::default(), histogram());
        for part in parts {
            received.tally.merge(&part.tally);
            if let Some(latencies) = part.latencies {
                all += latencies;
            }
        }
        received.latency = (!all.is_empty()).then(|| Latency::of(&all));
        received
    }
}

/// A receiver's report.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Received {
    pub(crate) tally: Tally,
    pub(crate) latency: Option<Latency>,
}

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999) }
    }
}

/// The counters of one peer, for a callback that several threads call, though never two for the same peer: they are
/// loaded and stored, which costs less than adding atomically.
#[derive(Default)]
#[repr(align(128))] // No two of them in one line of a cache.
pub(crate) struct PeerTally {
    messages: AtomicU64,
    bytes: AtomicU64,
    sum: AtomicU64,
    squares: AtomicU64,
    faults: AtomicU64,
}

impl PeerTally {
    /// Counts a message and returns how many there are.
    pub(crate) fn take(&self, check: &Check, message: &[u8]) -> u64 {
        let mut tally = self.load();
        tally.take(check, message);
        self.messages.store(tally.messages, Relaxed);
        self.bytes.store(tally.bytes, Relaxed);
        self.sum.store(tally.sum, Relaxed);
        self.squares.store(tally.squares, Relaxed);
        self.faults.store(tally.faults, Relaxed);
        tally.messages
    }

    fn load(&self) -> Tally {
        Tally {
            messages: self.messages.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            sum: self.sum.load(Relaxed),
            squares: self.squares.load(Relaxed),
            faults: self.faults.load(Relaxed),
        }
    }

    pub(crate) fn report<'a>(peers: impl IntoIterator<Item = &'a Self>) -> Received {
        let mut tally = Tally::default();
        peers.into_iter().for_each(|peer| tally.merge(&peer.load()));
        Received { tally, latency: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Messages;

    /// A check that minds the order, one that does not, and one that does not and decodes.
    fn trials() -> [Trial; 3] {
        let of = |scenario, connections| Trial { connections, ..Trial::new(scenario, "raw", 110) };
        [of(Scenario::Throughput, 1), of(Scenario::Connections, 2), of(Scenario::GoBench, 16)]
    }

    /// Receives what `change` makes of the right messages.
    fn received(trial: &Trial, change: impl Fn(&mut Vec<Vec<u8>>)) -> Result<()> {
        let messages = Messages::of(trial);
        let mut sent: Vec<Vec<u8>> = (0..3000).map(|number| messages.slice(number).to_vec()).collect();
        change(&mut sent);
        let (mut inspector, peer) = (Inspector::new(trial, 3000, &Waiting::of(2)), PeerTally::default());
        for message in &sent {
            inspector.take(message);
            peer.take(&Check::of(trial), message);
        }
        let report = Inspector::report([inspector]);
        assert_eq!(PeerTally::report([&peer]).tally, report.tally);
        report.tally.verify(&Tally::expected(110, 1, 3000))
    }

    #[test]
    fn the_order_matters_on_one_connection() {
        for trial in trials() {
            received(&trial, |_| ()).unwrap();
            assert_eq!(received(&trial, |messages| messages.reverse()).is_err(), trial.connections == 1);
            assert_eq!(received(&trial, |messages| messages.swap(7, 8)).is_err(), trial.connections == 1);
        }
    }

    #[test]
    fn what_is_wrong_is_noticed() {
        type Change = fn(&mut Vec<Vec<u8>>);
        let changes: [(&str, Change); 9] = [
            ("lost", |messages| drop(messages.remove(7))),
            ("the last one lost", |messages| drop(messages.pop())),
            ("the last one doubled", |messages| messages.extend(messages.last().cloned())),
            ("doubled", |messages| messages.insert(7, messages[7].clone())),
            ("one lost, one doubled", |messages| messages[8] = messages[7].clone()),
            ("two lost, two doubled, with the same sum", |messages| {
                (messages[4], messages[6]) = (messages[5].clone(), messages[5].clone());
            }),
            ("too short", |messages| messages[7].truncate(109)),
            ("too long", |messages| messages[7].push(0)),
            ("two in one", |messages| {
                let next = messages.remove(8);
                messages[7].extend_from_slice(&next);
            }),
        ];
        for (what, change) in changes {
            for trial in trials() {
                assert!(received(&trial, change).is_err(), "{what}, {:?}", trial.scenario);
            }
        }
        let no_end: Change = |messages| messages[7][109] = 0;
        assert!(received(&trials()[1], no_end).is_err());
    }

    #[test]
    fn several_senders_are_expected_together() {
        let mut sum = Tally::default();
        (0..4).for_each(|_| sum.merge(&Tally::expected(110, 1, 1500)));
        assert_eq!(sum, Tally::expected(110, 4, 1500));
    }
}
