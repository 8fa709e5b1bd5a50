//! What this library counts, for the recorder of the [`metrics`](https://docs.rs/metrics) facade that the program has installed.
//!
//! Nothing is published by itself: [`publish`] does it, for all listeners and all connections of the process at once. A
//! program calls it whenever its figures are asked for, or about once a second. Between two calls the recorder is not called,
//! and nothing in this library waits for it.
//!
//! The metrics, their units and labels are in `docs/operating.md`, and the example `metrics` serves them to Prometheus.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ::metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::foreign;
use crate::peer::Address;
use crate::sync::Lock;

/// How many durations are kept until they are published; the oldest go first.
const KEEP_DURATIONS: usize = 1024;

/// One metric.
#[derive(Debug)]
pub(crate) struct Metric {
    kind: Kind,
    name: &'static str,
    unit: Unit,
    help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! metrics {
    ($($id:ident: $kind:ident, $name:literal, $unit:ident, $help:literal;)*) => {
        $(pub(crate) static $id: Metric =
            Metric { kind: Kind::$kind, name: $name, unit: Unit::$unit, help: $help };)*
        static ALL: &[&Metric] = &[$(&$id),*];
    };
}

metrics! {
    CONSUMED_MESSAGES: Counter, "messaging.client.consumed.messages", Count, "Messages received by a listener.";
    RECEIVED_BYTES: Counter, "buffstreams.listener.received.bytes", Bytes,
        "Bytes of the messages received, with headers.";
    CONNECTIONS: Gauge, "buffstreams.listener.connections", Count, "Open connections of a listener.";
    ACCEPTED: Counter, "buffstreams.listener.accepted", Count, "Peers that have been accepted.";
    REFUSED: Counter, "buffstreams.listener.refused", Count, "Connections closed at once, because of max_connections.";
    INBOX_BYTES: Gauge, "buffstreams.listener.inbox.bytes", Bytes, "Memory of the inbox that is in use.";
    CALLBACK_ERRORS: Counter, "buffstreams.listener.callback.errors", Count,
        "Callbacks that returned an error or panicked.";
    SESSIONS: Gauge, "buffstreams.listener.sessions", Count, "Sessions, with and without a connection.";
    DETACHED: Gauge, "buffstreams.listener.sessions.detached", Count, "Sessions without a connection.";
    UNTAKEN_MESSAGES: Gauge, "buffstreams.listener.untaken.messages", Count,
        "Messages received in sessions and not yet taken.";

    DIALS: Counter, "buffstreams.dials", Count, "Dials that have ended, well or not.";
    DIAL_FAILURES: Counter, "buffstreams.dials.failed", Count, "Dials that have failed.";
    DIAL_DURATION: Histogram, "buffstreams.dial.duration", Seconds, "How long dials took that did not fail.";

    SENT_MESSAGES: Counter, "messaging.client.sent.messages", Count, "Messages handed whole to the kernel.";
    SENT_BYTES: Counter, "buffstreams.link.sent.bytes", Bytes, "Bytes handed to the kernel, with headers.";
    LINKS: Gauge, "buffstreams.link.connections", Count, "Open connections to an address.";
    HELD_MESSAGES: Gauge, "buffstreams.link.held.messages", Count, "Messages in the queue, or not yet acknowledged.";
    HELD_BYTES: Gauge, "buffstreams.link.held.bytes", Bytes, "Bytes of the messages held, with headers.";
    RECONNECTS: Counter, "buffstreams.link.reconnects", Count, "Connections that were opened again.";
    RECONNECT_DURATION: Histogram, "buffstreams.link.reconnect.duration", Seconds,
        "How long it took to open a connection again.";
    DEAD_LETTERS: Counter, "buffstreams.link.dead_letters", Count, "Messages that became dead letters.";
    LOST_LETTERS: Counter, "buffstreams.link.dead_letters.lost", Count, "Dead letters that nobody took.";
    LINK_SESSIONS: Counter, "buffstreams.link.sessions", Count, "Sessions begun.";
    ACKED_MESSAGES: Counter, "buffstreams.link.acked.messages", Count,
        "Messages taken by the program at the other end.";
    REPLAYED_MESSAGES: Counter, "buffstreams.link.replayed.messages", Count, "Messages sent again after a break.";
    IN_DOUBT_MESSAGES: Counter, "buffstreams.link.in_doubt.messages", Count, "Messages sent, and perhaps not taken.";
    REFUSED_MESSAGES: Counter, "buffstreams.link.refused.messages", Count,
        "Messages refused by the program at the other end.";
}

/// A metric of one listener or one address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    kind: Kind,
    name: &'static str,
    /// Which listener, or which address.
    of: (&'static str, String),
    outcome: Option<&'static str>,
}

impl Series {
    fn labels(&self) -> Vec<Label> {
        let (name, value) = &self.of;
        let outcome = self.outcome.map(|outcome| Label::from_static_parts("outcome", outcome));
        [Label::new(*name, value.clone())].into_iter().chain(outcome).collect()
    }
}

/// Figures of listeners and connections. Those of the same address are one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(BTreeMap<Series, u64>);

impl Sample {
    /// Adds what one of them has counted. `of` is the name of the label, and its value.
    pub(crate) fn add(&mut self, of: (&'static str, String), figures: &[(&'static Metric, u64)]) {
        for (Metric { kind, name, .. }, value) in figures {
            *self.0.entry(Series { kind: *kind, name, of: of.clone(), outcome: None }).or_default() += value;
        }
    }
}

/// What has figures. When it is dropped it is [retired](retire).
pub(crate) trait Source: Send + Sync + 'static {
    fn sample(&self, into: &mut Sample);
}

struct Registry {
    sources: Vec<Weak<dyn Source>>,
    /// What is counted here, and what is left of sources that are gone.
    counted: BTreeMap<Series, u64>,
    /// What was published last of the gauges.
    gauges: BTreeMap<Series, u64>,
    durations: VecDeque<(Series, Duration)>,
}

static REGISTRY: Lock<Registry> = Lock::new(Registry {
    sources: Vec::new(),
    counted: BTreeMap::new(),
    gauges: BTreeMap::new(),
    durations: VecDeque::new(),
});

/// Publishes what all listeners and all connections of this process have counted, to the recorder of the `metrics` facade.
///
/// Counters are published as they are, not as what was added, and so nothing is lost by publishing late or seldom, or before
/// there is a recorder. Durations are published once, and the last 1,024 of them are kept until then. It does not wait.
///
/// An address that was dialed once keeps its counters as long as the process runs.
///
/// # Panics
///
/// If the recorder does, which is the program's.
pub fn publish() {
    let sources: Vec<_> = {
        let mut registry = REGISTRY.lock();
        registry.sources.retain(|source| source.strong_count() > 0);
        registry.sources.iter().filter_map(Weak::upgrade).collect()
    };
    let mut sample = Sample::default();
    for source in &sources {
        source.sample(&mut sample);
    }
    let (counters, gauges, durations) = {
        let mut registry = REGISTRY.lock();
        let (mut counters, mut gauges) = (registry.counted.clone(), BTreeMap::new());
        for (series, value) in sample.0 {
            match series.kind {
                Kind::Counter => *counters.entry(series).or_default() += value,
                Kind::Gauge | Kind::Histogram => *gauges.entry(series).or_default() += value,
            }
        }
        let mut published = std::mem::replace(&mut registry.gauges, gauges.clone());
        // What is not there any more is told once more, as nothing.
        published.retain(|series, _| !gauges.contains_key(series));
        gauges.extend(published.into_keys().map(|series| (series, 0)));
        (counters, gauges, std::mem::take(&mut registry.durations))
    };
    // Not before: one that went in between would be counted twice. Each may be the last of what the program gave it.
    sources.into_iter().for_each(|source| drop(foreign::dispose(source)));
    describe();
    for (series, value) in &counters {
        counter!(series.name, series.labels()).absolute(*value);
    }
    for (series, value) in &gauges {
        gauge!(series.name, series.labels()).set(*value as f64);
    }
    for (series, duration) in &durations {
        histogram!(series.name, series.labels()).record(duration.as_secs_f64());
    }
}

/// Each time, as there may be a recorder by now.
fn describe() {
    for Metric { kind, name, unit, help } in ALL {
        match kind {
            Kind::Counter => describe_counter!(*name, *unit, *help),
            Kind::Gauge => describe_gauge!(*name, *unit, *help),
            Kind::Histogram => describe_histogram!(*name, *unit, *help),
        }
    }
}

/// From now on it is published.
pub(crate) fn register(source: &Arc<impl Source>) {
    let source: Weak<dyn Source> = Arc::downgrade(source) as _;
    let mut registry = REGISTRY.lock();
    // Where nobody publishes, what is gone is forgotten here.
    if registry.sources.len() == registry.sources.capacity() {
        registry.sources.retain(|source| source.strong_count() > 0);
    }
    registry.sources.push(source);
}

/// As the source, which is being dropped: what it has counted is kept.
pub(crate) fn retire(source: &impl Source) {
    let mut last = Sample::default();
    source.sample(&mut last);
    let mut registry = REGISTRY.lock();
    for (series, value) in last.0 {
        if series.kind == Kind::Counter {
            *registry.counted.entry(series).or_default() += value;
        }
    }
}

/// A dial has ended after so long.
pub(crate) fn dialed(address: &Address, took: Duration, failed: bool) {
    count(&DIALS, address, None, 1);
    count(&DIAL_FAILURES, address, None, u64::from(failed));
    if !failed {
        record(&DIAL_DURATION, address, took);
    }
}

/// A connection is open again, so long after it was dialed for the first time.
pub(crate) fn reconnected(address: &Address, took: Duration) {
    record(&RECONNECT_DURATION, address, took);
}

/// So many messages became dead letters.
pub(crate) fn buried(address: &Address, outcome: &'static str, messages: usize) {
    if messages > 0 {
        count(&DEAD_LETTERS, address, Some(outcome), messages as u64);
    }
}

/// So many dead letters are lost.
pub(crate) fn lost(address: &Address, messages: usize) {
    count(&LOST_LETTERS, address, None, messages as u64);
}

fn series(metric: &'static Metric, address: &Address, outcome: Option<&'static str>) -> Series {
    Series { kind: metric.kind, name: metric.name, of: ("address", address.to_string()), outcome }
}

fn count(metric: &'static Metric, address: &Address, outcome: Option<&'static str>, by: u64) {
    let series = series(metric, address, outcome);
    *REGISTRY.lock().counted.entry(series).or_default() += by;
}

fn record(metric: &'static Metric, address: &Address, took: Duration) {
    let series = series(metric, address, None);
    let mut registry = REGISTRY.lock();
    if registry.durations.len() == KEEP_DURATIONS {
        registry.durations.pop_front();
    }
    registry.durations.push_back((series, took));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because the bound is on what nobody sees.
    #[test]
    fn durations_that_nobody_publishes_are_kept_within_a_bound() {
        let address = Address::from("host:5031");
        for second in 0..2 * KEEP_DURATIONS as u64 {
            dialed(&address, Duration::from_secs(second), false);
        }
        let kept = {
            let registry = REGISTRY.lock();
            assert!(registry.durations.len() <= KEEP_DURATIONS);
            registry.durations.iter().filter(|(series, _)| series.of.1 == "host:5031").map(|(_, took)| *took).max()
        };
        assert_eq!(kept, Some(Duration::from_secs(2 * KEEP_DURATIONS as u64 - 1)), "the newest are kept");
    }
}
