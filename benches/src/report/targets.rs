//! Where the library stands against what it must reach, and against what it aims at.

use std::fmt::Write;

use super::{Summary, is_peer, median, outcomes, summary};
use crate::plan::{Scenario, Trial};
use crate::run::{GroupResult, Outcome};

/// The default of the configuration.
pub(super) const INBOX_BYTES: f64 = (1 << 20) as f64;

struct Target {
    name: &'static str,
    value: Option<Summary>,
    must: f64,
    aim: f64,
    unit: &'static str,
    less_is_better: bool,
}

/// What was measured in this run.
struct Run<'a>(&'a [GroupResult]);

impl<'a> Run<'a> {
    fn outcome(&self, scenario: Scenario, which: impl Fn(&Trial) -> bool) -> Option<&'a Outcome> {
        outcomes(self.0, scenario).find(|outcome| which(&outcome.trial))
    }

    fn throughput(&self, system: &str, size: usize) -> Option<&'a Outcome> {
        self.outcome(Scenario::Throughput, |trial| trial.system == system && trial.size == size)
    }

    fn of_raw(&self, system: &str, size: usize) -> Option<Summary> {
        ratio(self.throughput(system, size)?, self.throughput("raw", size)?, "bytes/s")
    }

    /// Of the best of other people's libraries. Without one of the two that are known to be fast, there is no telling.
    fn of_best_peer(&self) -> Option<Summary> {
        let peers = outcomes(self.0, Scenario::Throughput).filter(|outcome| outcome.trial.size == 110);
        let peers: Vec<_> = peers.filter(|outcome| is_peer(&outcome.trial)).collect();
        let is_there = |name: &&str| peers.iter().any(|peer| peer.trial.system == **name && peer.error().is_none());
        if !["tokio-util", "asynchronous-codec"].iter().all(is_there) {
            return None;
        }
        let rate = |peer: &Outcome| median(peer, "bytes/s").unwrap_or_default();
        let best = peers.iter().max_by(|one, other| rate(one).total_cmp(&rate(other)))?;
        ratio(self.throughput("buffstreams", 110)?, best, "bytes/s")
    }

    /// These are two cases, whose rounds do not take turns.
    fn many_of_one(&self) -> Option<Summary> {
        let rate = |connections| {
            let ours = |trial: &Trial| trial.system == "buffstreams" && trial.connections == connections;
            median(self.outcome(Scenario::Connections, ours)?, "bytes/s")
        };
        Some(Summary::single(rate(1000)? / rate(1)?))
    }

    fn of_tokio(&self, percentile: &str) -> Option<Summary> {
        let of = |system: &str| self.outcome(Scenario::PingPong, |trial| trial.system == system);
        ratio(of("buffstreams")?, of("tokio-util")?, percentile)
    }

    fn manager(&self) -> Option<Summary> {
        ratio(self.producers(16, false)?, self.producers(1, false)?, "bytes/s")
    }

    fn patient_manager(&self) -> Option<Summary> {
        ratio(self.producers(16, true)?, self.producers(16, false)?, "bytes/s")
    }

    /// The trial of so many producers and one address.
    fn producers(&self, producers: usize, patient: bool) -> Option<&'a Outcome> {
        self.outcome(Scenario::Manager, |trial| {
            (trial.producers, trial.addresses, trial.patient) == (producers, 1, patient)
        })
    }

    fn go_bench(&self, system: &str) -> Option<Summary> {
        let rate = summary(self.outcome(Scenario::GoBench, |trial| trial.system == system)?, "messages/s")?;
        Some(rate.scaled(1e-6))
    }

    fn idle(&self) -> Option<Summary> {
        summary(self.outcome(Scenario::Idle, |trial| trial.system == "buffstreams")?, "bytes/connection")
    }

    /// The worst of the numbers of connections.
    fn over_budget(&self) -> Option<Summary> {
        let ours = |outcome: &&Outcome| outcome.trial.system == "buffstreams" && !is_peer(&outcome.trial);
        let growth = outcomes(self.0, Scenario::SlowConsumer).filter(ours);
        let most = growth.map(|outcome| median(outcome, "receiver")).try_fold(0.0, |most, one| Some(one?.max(most)))?;
        (most > 0.0).then(|| Summary::single((most / INBOX_BYTES - 1.0).max(0.0) * 100.0))
    }
}

/// One trial against another of the same case, round by round: what else the machine did met both.
fn ratio(ours: &Outcome, theirs: &Outcome, figure: &str) -> Option<Summary> {
    if ours.error().or(theirs.error()).is_some() {
        return None;
    }
    let rounds = ours.rounds.iter().flatten().zip(theirs.rounds.iter().flatten());
    Summary::of(rounds.filter_map(|(ours, theirs)| Some(ours.get(figure)? / theirs.get(figure)?)).collect())
}

fn targets(results: &[GroupResult]) -> Vec<Target> {
    let run = Run(results);
    let more = |name, value, must, aim| Target { name, value, must, aim, unit: "", less_is_better: false };
    let less = |name, value, must, aim, unit| Target { name, value, must, aim, unit, less_is_better: true };
    vec![
        more("buffstreams of raw, 110 bytes", run.of_raw("buffstreams", 110), 0.60, 0.80),
        more("buffstreams of the best peer, 110 bytes", run.of_best_peer(), 1.6, 2.0),
        more("callback of raw, 110 bytes", run.of_raw("buffstreams-callback", 110), 0.70, 0.90),
        more("buffstreams of raw, 64 KiB", run.of_raw("buffstreams", 65_536), 0.90, 0.97),
        more("buffstreams of raw, 1 MiB", run.of_raw("buffstreams", 1 << 20), 0.90, 0.97),
        more("1,000 connections of 1", run.many_of_one(), 0.6, 0.9),
        // The Go library's server is a callback.
        Target { unit: " M/s", ..more("the Go benchmark, callback", run.go_bench("buffstreams-callback"), 5.5, 11.0) },
        Target { unit: " M/s", ..more("the Go benchmark, stream", run.go_bench("buffstreams"), 5.5, 11.0) },
        less("ping-pong p50 of tokio-util", run.of_tokio("p50"), 1.3, 0.9, ""),
        less("ping-pong p99 of tokio-util", run.of_tokio("p99"), 1.3, 0.9, ""),
        more("16 producers through a manager, of one sink", run.manager(), 0.5, 0.8),
        more("the same with reconnect and message_ttl, of without", run.patient_manager(), 0.97, 1.0),
        less("an idle connection", run.idle(), 4096.0, 1024.0, " bytes"),
        less("slow consumer above its budget", run.over_budget(), 10.0, 0.0, " %"),
    ]
}

pub(super) fn write(out: &mut String, results: &[GroupResult]) -> std::fmt::Result {
    writeln!(out, "\n## Targets\n\nRatios are the medians of the ratios of each round.\n")?;
    writeln!(out, "| | this run | least - most | must | aim |\n|---|---:|---:|---:|---:|")?;
    for Target { name, value, must, aim, unit, less_is_better } in targets(results) {
        // Figures of bytes need no fractions.
        let show = |value: f64| if must > 100.0 { format!("{value:.0}{unit}") } else { format!("{value:.2}{unit}") };
        let (value, range) = value.map_or(("not measured".into(), "-".into()), |value| {
            (show(value.median), format!("{} - {}", show(value.min), show(value.max)))
        });
        let sign = if less_is_better { "at most " } else { "" };
        writeln!(out, "| {name} | {value} | {range} | {sign}{} | {sign}{} |", show(must), show(aim))?;
    }
    writeln!(out, "\nAllocations a message are counted by `costs`, and recorded in `benches/costs.json`.")?;
    Ok(())
}
