//! The results for people: a table for each case, and the targets.

use std::fmt::Write;

use super::{Header, Summary, best, digits, is_tokio_util, ratio, summary, targets};
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

const PROCESSOR: Column = column("processor, ns a message", "processor", 1.0);
const RATES: &[Column] = &[column("M messages/s", "messages/s", 1e-6), column("GB/s", "bytes/s", 1e-9), PROCESSOR];
const LATENCIES: &[Column] = &[
    column("p50, us", "p50", 1.0),
    column("p99, us", "p99", 1.0),
    column("p99.9, us", "p99.9", 1.0),
    column("processor, us a round trip", "processor", 1e-3),
];
const LOADED: &[Column] = &[
    column("p50, us", "p50", 1.0),
    column("p99, us", "p99", 1.0),
    column("p99.9, us", "p99.9", 1.0),
    column("M messages/s", "messages/s", 1e-6),
    PROCESSOR,
];
const MEMORY: &[Column] =
    &[column("receiver grew, KiB", "receiver", 1.0 / 1024.0), column("sender grew, KiB", "sender", 1.0 / 1024.0)];
const IDLE: &[Column] = &[column("bytes for a connection", "bytes/connection", 1.0)];
const RESUME: &[Column] = &[column("resumed after, us", "resume", 1.0), PROCESSOR];

fn columns(scenario: Scenario) -> &'static [Column] {
    match scenario {
        Scenario::Throughput | Scenario::Connections | Scenario::GoBench | Scenario::Manager => RATES,
        Scenario::PingPong => LATENCIES,
        Scenario::OpenLoop => LOADED,
        Scenario::SlowConsumer => MEMORY,
        Scenario::Idle => IDLE,
        Scenario::Resume => RESUME,
    }
}

/// With ratios of the system called `base`, or of the best of tokio-util's.
pub(super) fn render(header: &Header, results: &[GroupResult], base: Option<&str>) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_all(&mut out, header, results, base);
    out
}

fn write_all(out: &mut String, header: &Header, results: &[GroupResult], base: Option<&str>) -> std::fmt::Result {
    writeln!(out, "# Benchmarks\n")?;
    writeln!(out, "- {} ({} cores), {}, {}", header.machine, header.cores, header.kernel, header.rustc)?;
    writeln!(out, "- commit {}, {}, `{}`", header.commit, header.date, header.command)?;
    writeln!(
        out,
        "- Loopback, each end in its own process. Medians of interleaved rounds, with the least and the most."
    )?;
    writeln!(out, "- Processor time is that of both ends together, in the program and in the kernel.")?;
    writeln!(
        out,
        "- A ratio is the median of the ratios of each round, with the quartiles. That of processor time is better below 1."
    )?;
    writeln!(out, "- Figures of other machines, or of another run, do not compare: the ratios do, within a run.")?;
    let mut scenario = None;
    for result in results {
        if scenario != Some(result.group.scenario) {
            scenario = Some(result.group.scenario);
            writeln!(out, "\n## {}", result.group.scenario.name())?;
        }
        table(out, result, base)?;
    }
    targets::write(out, results)
}

/// A figure that is compared with another system's.
struct Comparison<'a> {
    title: String,
    figure: &'static str,
    base: &'a Outcome,
}

/// With which figures the systems of a case are compared: the first of the table, and processor time.
fn comparisons<'a>(outcomes: &'a [Outcome], scenario: Scenario, base: Option<&str>) -> Vec<Comparison<'a>> {
    let named = |name: &str| outcomes.iter().find(|outcome| outcome.trial.system == name);
    let of_base = |figure| match (base, scenario) {
        (_, Scenario::Manager) => named("buffstreams"),
        (Some(name), _) => named(name),
        (None, _) => best(outcomes.iter().filter(|outcome| is_tokio_util(outcome)), figure),
    };
    let figures = columns(scenario).iter().enumerate();
    let compared = figures.filter(|(place, column)| *place == 0 || column.figure == PROCESSOR.figure);
    compared
        .filter_map(|(place, Column { figure, .. })| {
            let base = of_base(figure)?;
            let what = if place == 0 { "" } else { "processor " };
            Some(Comparison { title: format!("{what}of {}", base.trial.label), figure, base })
        })
        .collect()
}

fn table(out: &mut String, GroupResult { group, outcomes }: &GroupResult, base: Option<&str>) -> std::fmt::Result {
    writeln!(out, "\n### {}\n", group.title)?;
    if outcomes.is_empty() {
        writeln!(out, "Not measured.")?;
        return left_out(out, group);
    }
    let columns = columns(group.scenario);
    let comparisons = comparisons(outcomes, group.scenario, base);
    let figures = columns.iter().flat_map(|column| [column.title, "least - most"]);
    let ratios = comparisons.iter().flat_map(|comparison| [comparison.title.as_str(), "quartiles"]);
    let titles: Vec<_> = figures.chain(ratios).collect();
    writeln!(out, "| system | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(titles.len()))?;
    for outcome in outcomes {
        write!(out, "| {} |", outcome.trial.label)?;
        if let Some(error) = outcome.error() {
            writeln!(out, " no result: {} {}", error.replace('|', "/"), "|".repeat(titles.len()))?;
            continue;
        }
        for Column { figure, scale, .. } in columns {
            let show = |value: f64| digits(value * scale);
            write_pair(out, summary(outcome, figure), show, |summary| (summary.min, summary.max))?;
        }
        for Comparison { figure, base, .. } in &comparisons {
            let show = |value: f64| format!("{value:.2}");
            write_pair(out, ratio(outcome, base, figure), show, |summary| summary.quartiles)?;
        }
        writeln!(out)?;
    }
    left_out(out, group)
}

/// A median, and how far the rounds are apart.
fn write_pair(
    out: &mut String,
    summary: Option<Summary>,
    show: impl Fn(f64) -> String,
    spread: impl Fn(&Summary) -> (f64, f64),
) -> std::fmt::Result {
    let Some(summary) = summary else { return write!(out, " - | - |") };
    let (from, to) = spread(&summary);
    write!(out, " {} | {} - {} |", show(summary.median), show(from), show(to))
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
        let text = super::render(&header(), &results, None);
        let raw = "| raw | 30.0 | 20.0 - 40.0 | 3.30 | 2.20 - 4.40 | 33.3 | 25.0 - 50.0 | 5.00 | 4.17 - 5.83 | 0.20 |";
        assert!(text.contains(raw), "{text}");
        assert!(text.contains("| of tokio-util | quartiles | processor of tokio-util | quartiles |"), "{text}");
        assert!(text.contains("| message-io | no result: what was received is not what was sent |"), "{text}");
        assert!(text.contains("Without zmq: not built in."), "{text}");
        assert!(
            text.contains("| 110 bytes, stream, of the best of tokio-util | 2.00 | 2.00 - 3.00 | 1.50 | met |"),
            "{text}"
        );

        let text = super::render(&header(), &results, Some("raw"));
        assert!(text.contains("| of raw | quartiles |"), "{text}");
        assert!(text.contains("| 0.60 | 0.45 - 0.70 |"), "{text}");
    }
}
