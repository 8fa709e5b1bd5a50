//! Where the library stands against what it must reach.

use std::fmt::Write;

use super::{Summary, best, is_tokio_util, median, outcomes, ratio, summary};
use crate::plan::{Scenario, Trial};
use crate::run::{GroupResult, Outcome};

/// The default of the configuration.
const INBOX_BYTES: f64 = (1 << 20) as f64;
/// The merged stream, on each runtime.
const STREAMS: &[&str] = &["buffstreams", "buffstreams-tokio", "buffstreams-tokio-current", "buffstreams-smol"];
const BATCHES: &[&str] = &["buffstreams-batches", "buffstreams-batches-tokio"];
const DECODE: &[&str] = &["buffstreams-decode", "buffstreams-decode-tokio"];
const CONNECTIONS: &[&str] = &["buffstreams-connections", "buffstreams-connections-tokio"];

struct Target {
    name: String,
    value: Option<Summary>,
    must: f64,
    unit: &'static str,
    is_most: bool,
}

impl Target {
    /// A figure that has to be so much at least.
    fn least(name: impl Into<String>, value: Option<Summary>, must: f64) -> Self {
        Self { name: name.into(), value, must, unit: "", is_most: false }
    }

    /// A figure that may be so much at most.
    fn most(name: impl Into<String>, value: Option<Summary>, must: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, must, unit, is_most: true }
    }

    fn is_met(&self) -> Option<bool> {
        let value = self.value?.median;
        Some(if self.is_most { value <= self.must } else { value >= self.must })
    }
}

/// The trials of one case.
struct Case<'a>(Vec<&'a Outcome>);

impl<'a> Case<'a> {
    fn of(results: &'a [GroupResult], scenario: Scenario, which: impl Fn(&Trial) -> bool) -> Self {
        Self(outcomes(results, scenario).filter(|outcome| which(&outcome.trial)).collect())
    }

    fn system(&self, name: &str) -> Option<&'a Outcome> {
        self.0.iter().find(|outcome| outcome.trial.system == name).copied()
    }

    /// The best of several systems.
    fn best_of(&self, names: &[&str], figure: &str) -> Option<&'a Outcome> {
        best(names.iter().filter_map(|name| self.system(name)), figure)
    }

    fn best_of_tokio_util(&self, figure: &str) -> Option<&'a Outcome> {
        best(self.0.iter().copied().filter(|outcome| is_tokio_util(outcome)), figure)
    }

    fn best_of_ours(&self, figure: &str) -> Option<&'a Outcome> {
        best(self.0.iter().copied().filter(|outcome| outcome.trial.system.starts_with("buffstreams")), figure)
    }

    fn ratio(&self, ours: &str, theirs: &str, figure: &str) -> Option<Summary> {
        ratio(self.system(ours)?, self.system(theirs)?, figure)
    }
}

/// What was taken as the best, behind what it was taken for.
fn named(what: &str, outcome: Option<&Outcome>) -> String {
    outcome.map_or_else(|| what.to_string(), |outcome| format!("{what} ({})", outcome.trial.system))
}

fn against(ours: Option<&Outcome>, theirs: Option<&Outcome>, figure: &str) -> Option<Summary> {
    ratio(ours?, theirs?, figure)
}

/// Against tokio-util, a program by hand, and the stream of messages, one way.
fn one_way(results: &[GroupResult], out: &mut Vec<Target>) {
    const RATE: &str = "messages/s";
    let throughput = |size| Case::of(results, Scenario::Throughput, move |trial| trial.size == size);
    let (small, middle) = (throughput(16), throughput(110));
    let peer = middle.best_of_tokio_util(RATE);
    let stream = |system| against(middle.system(system), peer, RATE);
    out.push(Target::least("110 bytes, stream, of the best of tokio-util", stream("buffstreams"), 1.5));
    out.push(Target::least("the same on tokio", stream("buffstreams-tokio"), 1.5));
    let batches = middle.best_of(BATCHES, RATE);
    for (system, must) in [("manual", 1.1), ("raw", 0.65)] {
        let name = named(&format!("110 bytes, batches and try_feed, of {system}"), batches);
        out.push(Target::least(name, against(batches, middle.system(system), RATE), must));
    }
    let batches = small.best_of(BATCHES, RATE);
    let name = named("16 bytes, batches and try_feed, of manual", batches);
    out.push(Target::least(name, against(batches, small.system("manual"), RATE), 0.8));
    for (case, size, must) in [(&middle, 110, 1.4), (&small, 16, 1.5)] {
        let of_stream = case.ratio("buffstreams-batches", "buffstreams", RATE);
        out.push(Target::least(format!("{size} bytes, batches and try_feed, of the stream"), of_stream, must));
    }

    let decoded = Case::of(results, Scenario::GoBench, |_| true);
    let (ours, peer) = (decoded.best_of_ours(RATE), decoded.best_of_tokio_util(RATE));
    let manual = against(ours, decoded.system("manual"), RATE);
    out.push(Target::least(named("16 processes, decoded, best of ours, of manual", ours), manual, 0.95));
    let name = named("16 processes, decoded, best of ours, of tokio-util", ours);
    out.push(Target::least(name, against(ours, peer, RATE), 1.15));
    for (what, systems, must) in [("decode", DECODE, 1.0), ("connections", CONNECTIONS, 1.05)] {
        let ours = decoded.best_of(systems, RATE);
        let name = named(&format!("16 processes, decoded, {what}, of tokio-util"), ours);
        out.push(Target::least(name, against(ours, peer, RATE), must));
    }

    for count in [16, 1000, 5000] {
        let case = Case::of(results, Scenario::Connections, |trial| trial.connections == count);
        let (ours, peer) = (case.best_of(STREAMS, "processor"), case.best_of_tokio_util("processor"));
        let name = named(&format!("{count} connections, processor time, of tokio-util"), ours);
        out.push(Target::most(name, against(ours, peer, "processor"), 0.9, ""));
    }
}

/// Against tokio-util, how long it takes.
fn latency(results: &[GroupResult], out: &mut Vec<Target>) {
    let pings = Case::of(results, Scenario::PingPong, |trial| trial.neighbours > 0);
    for (system, must) in [("buffstreams-tokio", 1.05), ("buffstreams-smol", 1.4), ("buffstreams", 2.3)] {
        for figure in ["p50", "p99"] {
            let name = format!("ping-pong beside neighbours, {system}, {figure}, of tokio-util");
            out.push(Target::most(name, pings.ratio(system, "tokio-util", figure), must, ""));
        }
    }
    let processor = pings.ratio("buffstreams-tokio", "tokio-util", "processor");
    out.push(Target::most("processor time of a round trip, tokio, of tokio-util", processor, 1.0, ""));
    for (what, are_there) in [("", false), (" beside neighbours", true)] {
        let case = |trial: &Trial| trial.rate == 200_000 && (trial.neighbours > 0) == are_there;
        let p50 = Case::of(results, Scenario::OpenLoop, case).ratio("buffstreams-tokio", "tokio-util", "p50");
        out.push(Target::most(format!("200,000 messages/s{what}, tokio, p50, of tokio-util"), p50, 1.05, ""));
    }
}

fn sessions(results: &[GroupResult], out: &mut Vec<Target>) {
    const RATE: &str = "messages/s";
    let throughput = |size| Case::of(results, Scenario::Throughput, move |trial| trial.size == size);
    let many = Case::of(results, Scenario::Connections, |trial| trial.connections == 1000);
    let pings = Case::of(results, Scenario::PingPong, |trial| trial.neighbours > 0);
    let (middle, large) = (throughput(110), throughput(65_536));
    for (session, plain, on) in
        [("buffstreams-session", "buffstreams", ""), ("buffstreams-session-tokio", "buffstreams-tokio", ", tokio")]
    {
        let of_plain = |case: &Case<'_>| case.ratio(session, plain, RATE);
        out.push(Target::least(format!("session, 110 bytes{on}, of plain"), of_plain(&middle), 0.9));
        out.push(Target::least(format!("session, 64 KiB{on}, of plain"), of_plain(&large), 0.97));
        out.push(Target::least(format!("session, 1000 connections{on}, of plain"), of_plain(&many), 0.85));
        let ping = pings.ratio(session, plain, "p50");
        out.push(Target::most(format!("session, ping-pong beside neighbours{on}, p50, of plain"), ping, 1.1, ""));
    }
    let deliveries = middle.ratio("buffstreams-session-deliveries", "buffstreams", RATE);
    out.push(Target::least("session, deliveries, 110 bytes, of plain", deliveries, 0.6));
    let resume = Case::of(results, Scenario::Resume, |_| true).system("buffstreams-session");
    let resume = resume.and_then(|outcome| summary(outcome, "resume"));
    out.push(Target::most("session, 1 MiB in flight resumed after", resume, 10_000.0, " us"));
}

fn tls_and_runtimes(results: &[GroupResult], out: &mut Vec<Target>) {
    const RATE: &str = "messages/s";
    let middle = Case::of(results, Scenario::Throughput, |trial| trial.size == 110);
    let some = Case::of(results, Scenario::Connections, |trial| trial.connections == 16);
    let many = Case::of(results, Scenario::Connections, |trial| trial.connections == 1000);
    let tls = middle.ratio("buffstreams-tls", "raw-tls", "bytes/s");
    out.push(Target::least("TLS, 110 bytes, of raw-tls", tls, 0.9));
    for (what, case) in [("110 bytes", &middle), ("16 connections", &some), ("1000 connections", &many)] {
        let tokio = case.ratio("buffstreams-tokio", "buffstreams", RATE);
        out.push(Target::least(format!("stream, {what}, tokio of async-std"), tokio, 0.95));
    }
}

fn manager_and_memory(results: &[GroupResult], out: &mut Vec<Target>) {
    let manager = Case::of(results, Scenario::Manager, |trial| trial.addresses == 1);
    let of = |producers, patient| {
        let which = |outcome: &&&Outcome| (outcome.trial.producers, outcome.trial.patient) == (producers, patient);
        manager.0.iter().find(which).copied()
    };
    let shared = against(of(16, false), of(1, false), "messages/s");
    out.push(Target::least("16 producers through a manager, of one sink", shared, 0.5));
    let patient = against(of(16, true), of(16, false), "messages/s");
    out.push(Target::least("the same with reconnect and message_ttl, of without", patient, 0.97));

    let idle = Case::of(results, Scenario::Idle, |trial| trial.system == "buffstreams").0;
    let idle = idle.into_iter().max_by_key(|outcome| outcome.trial.connections);
    let idle = idle.and_then(|outcome| summary(outcome, "bytes/connection"));
    out.push(Target::most("an idle connection", idle, 2000.0, " bytes"));

    // The worst of the numbers of connections.
    let slow = Case::of(results, Scenario::SlowConsumer, |trial| trial.system == "buffstreams").0;
    let mut grown = slow.iter().map(|outcome| median(outcome, "receiver"));
    let most = grown.try_fold(0.0, |most, one| Some(f64::max(most, one?))).filter(|most| *most > 0.0);
    let above = most.map(|most| Summary::single((most / INBOX_BYTES - 1.0).max(0.0) * 100.0));
    out.push(Target::most("slow consumer above its budget of 1 MiB", above, 10.0, " %"));
}

fn targets(results: &[GroupResult]) -> Vec<Target> {
    let mut out = Vec::new();
    one_way(results, &mut out);
    latency(results, &mut out);
    sessions(results, &mut out);
    tls_and_runtimes(results, &mut out);
    manager_and_memory(results, &mut out);
    out
}

pub(super) fn write(out: &mut String, results: &[GroupResult]) -> std::fmt::Result {
    writeln!(out, "\n## Targets\n\nRatios are the medians of the ratios of each round.\n")?;
    writeln!(out, "| | this run | quartiles | target | |\n|---|---:|---:|---:|---|")?;
    for target in targets(results) {
        // Figures of bytes and microseconds need no fractions.
        let places = if target.must > 100.0 { 0 } else { 2 };
        let show = |value: f64| format!("{value:.places$}{}", target.unit);
        let (value, range) = target.value.map_or(("-".into(), "-".into()), |value| {
            (show(value.median), format!("{} - {}", show(value.quartiles.0), show(value.quartiles.1)))
        });
        let verdict = target.is_met().map_or("not measured", |is_met| if is_met { "met" } else { "not met" });
        let sign = if target.is_most { "at most " } else { "" };
        writeln!(out, "| {} | {value} | {range} | {sign}{} | {verdict} |", target.name, show(target.must))?;
    }
    writeln!(out, "\nAllocations a message are counted by `costs`, and recorded in `benches/costs.json`.")?;
    Ok(())
}
