//! Measures buffstreams against what else there is: every scenario, every system, in one command.

mod check;
mod child;
mod clock;
mod memory;
mod messages;
mod plan;
mod report;
mod run;
mod systems;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use plan::Scenario;

/// Any error, to be shown.
pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// What can fail in any way.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Measures buffstreams against what else there is. All on this machine, over loopback.
#[derive(Parser, Debug)]
#[command(name = "buffstreams-bench")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Only these scenarios.
    #[arg(long, value_delimiter = ',', value_name = "SCENARIO")]
    only: Vec<Scenario>,
    /// Only these systems.
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    system: Vec<String>,
    /// Only messages of these sizes, 16 at the least, where a scenario has several.
    #[arg(long, value_delimiter = ',', value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(16..=4 << 20))]
    size: Vec<u32>,
    /// Only these numbers of connections, where a scenario has several.
    #[arg(long, value_delimiter = ',', value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=19_000))]
    connections: Vec<u32>,
    /// How often each is measured; `idle` and `slow-consumer` twice at the most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Fewer cases, two rounds, each shorter: a look, not a result.
    #[arg(long)]
    quick: bool,
    /// Where the results go.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Lists the scenarios and the systems, and measures nothing.
    #[arg(long)]
    list: bool,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// One end of a measurement, started by the program itself.
    #[command(hide = true)]
    Child,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if matches!(args.command, Some(Command::Child)) {
        return child::main();
    }
    for name in &args.system {
        systems::NAMES.contains(&name.as_str()).then_some(()).ok_or_else(|| format!("no system is called {name}"))?;
    }
    let choice = plan::Choice {
        only: args.only,
        systems: args.system,
        sizes: args.size.into_iter().map(|size| size as usize).collect(),
        connections: args.connections.into_iter().map(|count| count as usize).collect(),
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 5 }),
        quick: args.quick,
    };
    let groups = plan::groups(&choice);
    if args.list {
        report::list(&groups);
        return Ok(());
    }
    let header = report::Header::of_this_machine();
    let results = run::run_all(groups)?;
    let failed = results.iter().flat_map(|group| &group.outcomes).any(|outcome| outcome.error().is_some());
    report::write(&args.out, &header, &results)?;
    if failed {
        // Lost or changed messages are no result: scripts must notice.
        std::process::exit(1);
    }
    Ok(())
}
