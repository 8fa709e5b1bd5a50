//! Where the library stands against what it must reach, and against what it aims at.

use std::fmt::Write;

use super::markdown::best_peer;
use super::{is_peer, median, outcomes};
use crate::plan::{Scenario, Trial};
use crate::run::{GroupResult, Outcome};

/// The default of the configuration.
pub(super) const INBOX_BYTES: f64 = (1 << 20) as f64;

struct Target {
    name: &'static str,
    value: Option<f64>,
    must: f64,
    aim: f64,
    unit: &'static str,
    less_is_better: bool,
}

/// A median of this run.
struct Run<'a>(&'a [GroupResult]);

impl Run<'_> {
    fn figure(&self, scenario: Scenario, figure: &str, which: impl Fn(&Trial) -> bool) -> Option<f64> {
        median(outcomes(self.0, scenario).find(|outcome| which(&outcome.trial))?, figure)
    }

    fn throughput(&self, system: &str, size: usize) -> Option<f64> {
        self.figure(Scenario::Throughput, "bytes/s", |trial| trial.system == system && trial.size == size)
    }

    fn of_raw(&self, system: &str, size: usize) -> Option<f64> {
        Some(self.throughput(system, size)? / self.throughput("raw", size)?)
    }

    fn of_best_peer(&self) -> Option<f64> {
        let case = outcomes(self.0, Scenario::Throughput).filter(|outcome| outcome.trial.size == 110);
        Some(self.throughput("buffstreams", 110)? / best_peer(case, "bytes/s", false)?)
    }

    fn connections(&self, connections: usize) -> Option<f64> {
        self.figure(Scenario::Connections, "bytes/s", |trial| {
            trial.system == "buffstreams" && trial.connections == connections
        })
    }

    fn of_tokio(&self, percentile: &str) -> Option<f64> {
        let of = |system: &str| self.figure(Scenario::PingPong, percentile, |trial| trial.system == system);
        Some(of("buffstreams")? / of("tokio-util")?)
    }

    fn manager(&self) -> Option<f64> {
        let of = |producers, addresses| {
            self.figure(Scenario::Manager, "bytes/s", |trial| {
                trial.producers == producers && trial.addresses == addresses
            })
        };
        Some(of(16, 1)? / of(1, 1)?)
    }

    /// The worst of the numbers of connections.
    fn over_budget(&self) -> Option<f64> {
        let ours = |outcome: &&Outcome| outcome.trial.system == "buffstreams" && !is_peer(&outcome.trial);
        let growth = outcomes(self.0, Scenario::SlowConsumer).filter(ours);
        let most = growth.map(|outcome| median(outcome, "receiver")).try_fold(0.0, |most, one| Some(one?.max(most)))?;
        (most > 0.0).then(|| (most / INBOX_BYTES - 1.0).max(0.0) * 100.0)
    }
}

fn targets(results: &[GroupResult]) -> Vec<Target> {
    let run = Run(results);
    let more = |name, value, must, aim| Target { name, value, must, aim, unit: "", less_is_better: false };
    let less = |name, value, must, aim, unit| Target { name, value, must, aim, unit, less_is_better: true };
    let go_bench = run.figure(Scenario::GoBench, "messages/s", |trial| trial.system == "buffstreams");
    let idle = run.figure(Scenario::Idle, "bytes/connection", |trial| trial.system == "buffstreams");
    let many = run.connections(1000).zip(run.connections(1)).map(|(many, one)| many / one);
    vec![
        more("buffstreams of raw, 110 bytes", run.of_raw("buffstreams", 110), 0.60, 0.80),
        more("buffstreams of the best peer, 110 bytes", run.of_best_peer(), 1.6, 2.0),
        more("callback of raw, 110 bytes", run.of_raw("buffstreams-callback", 110), 0.70, 0.90),
        more("buffstreams of raw, 64 KiB", run.of_raw("buffstreams", 65_536), 0.90, 0.97),
        more("buffstreams of raw, 1 MiB", run.of_raw("buffstreams", 1 << 20), 0.90, 0.97),
        more("1,000 connections of 1", many, 0.6, 0.9),
        Target { unit: " M/s", ..more("the Go benchmark", go_bench.map(|rate| rate / 1e6), 5.5, 11.0) },
        less("ping-pong p50 of tokio-util", run.of_tokio("p50"), 1.3, 0.9, ""),
        less("ping-pong p99 of tokio-util", run.of_tokio("p99"), 1.3, 0.9, ""),
        more("16 producers through a manager, of one sink", run.manager(), 0.5, 0.8),
        less("an idle connection", idle, 4096.0, 1024.0, " bytes"),
        less("slow consumer above its budget", run.over_budget(), 10.0, 0.0, " %"),
    ]
}

pub(super) fn write(out: &mut String, results: &[GroupResult]) -> std::fmt::Result {
    writeln!(out, "\n## Targets\n\n| | this run | must | aim |\n|---|---:|---:|---:|")?;
    for Target { name, value, must, aim, unit, less_is_better } in targets(results) {
        // Figures of bytes need no fractions.
        let show = |value: f64| if must > 100.0 { format!("{value:.0}{unit}") } else { format!("{value:.2}{unit}") };
        let value = value.map_or("not measured".into(), show);
        let sign = if less_is_better { "at most " } else { "" };
        writeln!(out, "| {name} | {value} | {sign}{} | {sign}{} |", show(must), show(aim))?;
    }
    Ok(())
}
