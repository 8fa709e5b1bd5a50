//! The results for people: a table for each case, and the targets.

use std::fmt::Write;

use super::{Header, digits, is_peer, median, summary, targets};
use crate::plan::{Group, Scenario};
use crate::run::{GroupResult, Outcome};

/// A figure as the tables show it.
struct Column {
    title: &'static str,
    figure: &'static str,
    scale: f64,
}

const fn column(title: &'static str, figure: &'static str, scale: f64) -> Column {
    Column { title, figure, scale }
}

const RATES: &[Column] = &[column("M messages/s", "messages/s", 1e-6), column("GB/s", "bytes/s", 1e-9)];
const LATENCIES: &[Column] =
    &[column("p50, us", "p50", 1.0), column("p99, us", "p99", 1.0), column("p99.9, us", "p99.9", 1.0)];
const LOADED: &[Column] = &[
    column("p50, us", "p50", 1.0),
    column("p99, us", "p99", 1.0),
    column("p99.9, us", "p99.9", 1.0),
    column("M messages/s", "messages/s", 1e-6),
];
const MEMORY: &[Column] =
    &[column("receiver grew, KiB", "receiver", 1.0 / 1024.0), column("sender grew, KiB", "sender", 1.0 / 1024.0)];
const IDLE: &[Column] = &[column("bytes for a connection", "bytes/connection", 1.0)];

fn columns(scenario: Scenario) -> &'static [Column] {
    match scenario {
        Scenario::Throughput | Scenario::Connections | Scenario::GoBench | Scenario::Manager => RATES,
        Scenario::PingPong => LATENCIES,
        Scenario::OpenLoop => LOADED,
        Scenario::SlowConsumer => MEMORY,
        Scenario::Idle => IDLE,
    }
}

pub(super) fn render(header: &Header, results: &[GroupResult]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut out, header, results);
    out
}

fn write_all(out: &mut String, header: &Header, results: &[GroupResult]) -> std::fmt::Result {
    writeln!(out, "# Benchmarks\n")?;
    writeln!(out, "- {} ({} cores), {}, {}", header.machine, header.cores, header.kernel, header.rustc)?;
    writeln!(out, "- commit {}, {}, `{}`", header.commit, header.date, header.command)?;
    writeln!(
        out,
        "- Loopback, each end in its own process. Medians of interleaved rounds, with the least and the most."
    )?;
    writeln!(out, "- Figures of other machines, or of another run, do not compare: the ratios do, within a run.")?;
    let mut scenario = None;
    for result in results {
        if scenario != Some(result.group.scenario) {
            scenario = Some(result.group.scenario);
            writeln!(out, "\n## {}", result.group.scenario.name())?;
        }
        table(out, result)?;
    }
    targets::write(out, results)
}

/// The best of other people's libraries in a case.
fn best_peer<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>, figure: &str, less: bool) -> Option<f64> {
    let peers = outcomes.into_iter().filter(|outcome| is_peer(&outcome.trial));
    let values = peers.filter_map(|outcome| median(outcome, figure));
    if less { values.reduce(f64::min) } else { values.reduce(f64::max) }
}

fn table(out: &mut String, GroupResult { group, outcomes }: &GroupResult) -> std::fmt::Result {
    writeln!(out, "\n### {}\n", group.title)?;
    if outcomes.is_empty() {
        writeln!(out, "Not measured.")?;
        return left_out(out, group);
    }
    let (columns, scenario) = (columns(group.scenario), group.scenario);
    let first = columns[0].figure;
    // What the first column is compared with.
    let mut bases = Vec::new();
    if scenario == Scenario::Manager {
        let sink = outcomes.iter().find(|outcome| outcome.trial.system == "buffstreams");
        bases.push(("of one sink", sink.and_then(|outcome| median(outcome, first))));
    } else if scenario == Scenario::SlowConsumer {
        bases.push(("of buffstreams' 1 MiB", Some(targets::INBOX_BYTES)));
    } else {
        let raw = outcomes.iter().find(|outcome| outcome.trial.system == "raw");
        bases.push(("of raw", raw.and_then(|outcome| median(outcome, first))));
        let less = matches!(scenario, Scenario::PingPong | Scenario::OpenLoop | Scenario::Idle);
        bases.push(("of the best peer", best_peer(outcomes, first, less)));
    }
    bases.retain(|(_, base)| base.is_some_and(|base| base > 0.0));

    let titles = columns.iter().flat_map(|column| [column.title, "least - most"]);
    let titles: Vec<_> = titles.chain(bases.iter().map(|(title, _)| *title)).collect();
    writeln!(out, "| system | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(titles.len()))?;
    for outcome in outcomes {
        write!(out, "| {} |", outcome.trial.label)?;
        if let Some(error) = outcome.error() {
            writeln!(out, " no result: {} {}", error.replace('|', "/"), "|".repeat(titles.len()))?;
            continue;
        }
        for Column { figure, scale, .. } in columns {
            match summary(outcome, figure) {
                Some(summary) => {
                    let [median, min, max] =
                        [summary.median, summary.min, summary.max].map(|value| digits(value * scale));
                    write!(out, " {median} | {min} - {max} |")?;
                }
                None => write!(out, " - | - |")?,
            }
        }
        for (_, base) in &bases {
            match (median(outcome, first), base) {
                (Some(value), Some(base)) => write!(out, " {:.2} |", value / base)?,
                _ => write!(out, " - |")?,
            }
        }
        writeln!(out)?;
    }
    left_out(out, group)
}

fn left_out(out: &mut String, group: &Group) -> std::fmt::Result {
    for (systems, reason) in group.left_out() {
        writeln!(out, "\nWithout {systems}: {reason}.")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{header, outcome, results};

    #[test]
    fn the_table_has_medians_and_ratios() {
        let results = results(vec![
            outcome("raw", 110, &[20e6, 40e6, 30e6], None),
            outcome("buffstreams", 110, &[12e6, 12e6, 24e6], None),
            outcome("tokio-util", 110, &[6e6, 6e6, 6e6], None),
            outcome("asynchronous-codec", 110, &[5e6, 4e6, 3e6], None),
            outcome("message-io", 110, &[1e6], Some("what was received is not what was sent")),
        ]);
        let text = super::render(&header(), &results);
        assert!(text.contains("| raw | 30.0 | 20.0 - 40.0 | 3.30 | 2.20 - 4.40 | 1.00 | 5.00 |"), "{text}");
        assert!(text.contains("| buffstreams | 12.0 | 12.0 - 24.0 | 1.32 | 1.32 - 2.64 | 0.40 | 2.00 |"), "{text}");
        assert!(text.contains("| message-io | no result: what was received is not what was sent |"), "{text}");
        assert!(text.contains("Without zmq: not built in."), "{text}");
        assert!(text.contains("| buffstreams of raw, 110 bytes | 0.60 | 0.30 - 0.80 |"), "{text}");
        assert!(text.contains("| buffstreams of the best peer, 110 bytes | 2.00 | 2.00 - 4.00 |"), "{text}");
    }
}
