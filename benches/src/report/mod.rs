//! What comes out: tables and lines of JSON, plots, and where the library stands against its targets.

mod json;
mod markdown;
mod plots;
mod targets;

use std::path::Path;
use std::process::Command;
use std::{env, fs, thread};

use serde::Serialize;

use crate::Result;
use crate::plan::{Group, Scenario};
use crate::run::{GroupResult, Outcome};

/// Where and how the figures came about.
#[derive(Serialize)]
pub(crate) struct Header {
    machine: String,
    cores: usize,
    kernel: String,
    rustc: String,
    date: String,
    commit: String,
    command: String,
}

impl Header {
    pub(crate) fn of_this_machine() -> Self {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            machine: model.map_or("unknown", |(_, name)| name).into(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("{} {}", env::consts::OS, kernel.trim()),
            rustc: output("rustc", &["--version"]),
            date: output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            commit: output("git", &["describe", "--always", "--dirty", "--exclude=*"]),
            command: env::args().skip(1).fold("buffstreams-bench".into(), |line, argument| line + " " + &argument),
        }
    }
}

/// What a program prints, or that it is not there: a missing figure should not cost the others.
fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    output.map_or("unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().into())
}

/// The middle of several rounds, and how far they are apart.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    median: f64,
    min: f64,
    max: f64,
    /// The first and the third quartile: between them is the middle half of the rounds.
    quartiles: (f64, f64),
}

impl Summary {
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        // Between two rounds, the part of the way.
        let at = |part: f64| {
            let place = (values.len() - 1) as f64 * part;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Self { median: at(0.5), min, max, quartiles: (at(0.25), at(0.75)) })
    }

    /// A figure that there is only one of.
    fn single(value: f64) -> Self {
        Self { median: value, min: value, max: value, quartiles: (value, value) }
    }
}

/// One figure of one trial over its rounds. A trial that failed once has none: what lost a message is no result.
fn summary(outcome: &Outcome, figure: &str) -> Option<Summary> {
    if outcome.error().is_some() {
        return None;
    }
    Summary::of(outcome.rounds.iter().flatten().filter_map(|figures| figures.get(figure).copied()).collect())
}

fn median(outcome: &Outcome, figure: &str) -> Option<f64> {
    Some(summary(outcome, figure)?.median)
}

/// All of one scenario's trials.
fn outcomes(results: &[GroupResult], scenario: Scenario) -> impl Iterator<Item = &Outcome> {
    results.iter().filter(move |result| result.group.scenario == scenario).flat_map(|result| &result.outcomes)
}

/// One trial against another of the same case, round by round: what else the machine did met both.
fn ratio(ours: &Outcome, theirs: &Outcome, figure: &str) -> Option<Summary> {
    if ours.error().or(theirs.error()).is_some() {
        return None;
    }
    let rounds = ours.rounds.iter().flatten().zip(theirs.rounds.iter().flatten());
    let ratios = rounds.filter_map(|(ours, theirs)| Some(ours.get(figure)? / theirs.get(figure)?));
    Summary::of(ratios.filter(|ratio| ratio.is_finite()).collect())
}

/// The best by the median of a figure.
fn best<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, figure: &str) -> Option<&'a Outcome> {
    let measured = outcomes.into_iter().filter_map(|outcome| Some((median(outcome, figure)?, outcome)));
    let order = |one: &(f64, _), other: &(f64, _)| one.0.total_cmp(&other.0);
    let best = if less_is_better(figure) { measured.min_by(order) } else { measured.max_by(order) };
    Some(best?.1)
}

fn less_is_better(figure: &str) -> bool {
    !figure.ends_with("/s")
}

fn is_tokio_util(outcome: &Outcome) -> bool {
    outcome.trial.system.starts_with("tokio-util")
}

/// A number with three digits that matter.
fn digits(value: f64) -> String {
    let places = if value == 0.0 { 0.0 } else { 2.0 - value.abs().log10().floor() };
    format!("{value:.*}", places.clamp(0.0, 6.0) as usize)
}

/// Prints the scenarios, and the systems in each.
pub(crate) fn list(groups: &[Group]) {
    for group in groups {
        let systems: Vec<_> = group.trials.iter().map(|trial| trial.label.as_str()).collect();
        println!("{}: {}\n    {}", group.scenario.name(), group.title, systems.join(", "));
        for (systems, reason) in group.left_out() {
            println!("    without {systems}: {reason}");
        }
    }
}

/// Writes all files, and the tables to standard output as well.
pub(crate) fn write(directory: &Path, header: &Header, results: &[GroupResult], base: Option<&str>) -> Result<()> {
    fs::create_dir_all(directory)?;
    // A plot of an earlier run would stand beside the tables of this one.
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            fs::remove_file(path)?;
        }
    }
    let tables = markdown::render(header, results, base);
    print!("{tables}");
    fs::write(directory.join("results.md"), tables)?;
    fs::write(directory.join("results.jsonl"), json::render(header, results)?)?;
    plots::draw(directory, header, results)?;
    eprintln!("written to {}", directory.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Trial;
    use crate::run::Figures;

    /// A throughput trial whose rounds had these figures; the last one fails if `error` is given.
    pub(super) fn outcome(system: &str, size: usize, rates: &[f64], error: Option<&str>) -> Outcome {
        let rounds = rates.iter().map(|rate| {
            let processor = ("processor", 1e9 / rate);
            Ok(Figures::from([("messages/s", *rate), ("bytes/s", rate * size as f64), processor]))
        });
        let rounds = rounds.chain(error.map(|error| Err(error.into()))).collect();
        Outcome { trial: Trial::new(Scenario::Throughput, system, size), rounds }
    }

    pub(super) fn header() -> Header {
        Header {
            machine: "a machine".into(),
            cores: 2,
            kernel: "linux".into(),
            rustc: "rustc".into(),
            date: "today".into(),
            commit: "c0ffee".into(),
            command: "buffstreams-bench".into(),
        }
    }

    pub(super) fn results(outcomes: Vec<Outcome>) -> Vec<GroupResult> {
        let trials = outcomes.iter().map(|outcome| outcome.trial.clone()).collect();
        let missing = vec![("zmq".to_string(), "not built in".to_string())];
        let group = Group { scenario: Scenario::Throughput, title: "some messages".into(), rounds: 3, trials, missing };
        vec![GroupResult { group, outcomes }]
    }

    #[test]
    fn the_median_is_the_middle() {
        let of = |values: &[f64]| Summary::of(values.to_vec());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[3.0]), Some(Summary::single(3.0)));
        let three = Summary { median: 2.0, min: 1.0, max: 9.0, quartiles: (1.5, 5.5) };
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some(three));
        let four = Summary { median: 3.0, min: 1.0, max: 9.0, quartiles: (1.75, 5.25) };
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]), Some(four));
    }

    #[test]
    fn a_round_that_failed_leaves_no_figure() {
        assert_eq!(median(&outcome("raw", 110, &[1.0, 2.0, 3.0], None), "messages/s"), Some(2.0));
        assert_eq!(median(&outcome("raw", 110, &[1.0, 2.0], Some("lost")), "messages/s"), None);
        assert_eq!(median(&outcome("raw", 110, &[1.0], None), "p50"), None);
    }

    #[test]
    fn three_digits_matter() {
        let shown: Vec<_> = [1234.5, 123.45, 12.345, 1.2345, 0.0012345, 0.0].map(digits).into();
        assert_eq!(shown, ["1234", "123", "12.3", "1.23", "0.00123", "0"]);
    }
}
