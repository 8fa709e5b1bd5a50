//! Measures buffstreams against what else there is: every scenario, every system, in one command.

mod check;
mod child;
mod clock;
mod memory;
mod messages;
mod neighbour;
mod plan;
mod report;
mod run;
mod sockets;
mod systems;

use std::path::PathBuf;
use std::process::ExitCode;

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
    /// What the ratios are of. Default: the best of tokio-util's, in each case.
    #[arg(long, value_name = "NAME")]
    base: Option<String>,
    /// What the kernel is to keep for each socket, each way. Default: what the system gives.
    #[arg(long, value_name = "BYTES")]
    #[arg(value_parser = clap::value_parser!(u32).range(4096..=1 << 30))]
    socket_buffers: Option<u32>,
    /// How many messages a round has. Default: as many as take half a second.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    messages: Option<u64>,
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
    /// A neighbour of a measurement, started by the program itself.
    #[command(hide = true)]
    Neighbour,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Some(Command::Child) => child::main().map(|()| true),
        Some(Command::Neighbour) => neighbour::main().map(|()| true),
        None => measure(args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        // The tables say what: lost or changed messages are no result, and scripts must notice.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("buffstreams-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was asked for has a result.
fn measure(args: Args) -> Result<bool> {
    for name in args.system.iter().chain(&args.base) {
        systems::find(name).ok_or_else(|| format!("no system is called {name}"))?;
    }
    let choice = plan::Choice {
        only: args.only,
        systems: args.system,
        sizes: args.size.into_iter().map(|size| size as usize).collect(),
        connections: args.connections.into_iter().map(|count| count as usize).collect(),
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 5 }),
        quick: args.quick,
        socket_buffers: args.socket_buffers.unwrap_or(0) as usize,
        messages: args.messages,
    };
    let groups = plan::groups(&choice);
    if args.list {
        report::list(&groups);
        return Ok(true);
    }
    if groups.iter().all(|group| group.trials.is_empty()) {
        let mut text = String::from("nothing is left to be measured:");
        for group in &groups {
            for (systems, reason) in group.left_out() {
                text += &format!("\n  {}, {systems}: {reason}", group.scenario.name());
            }
        }
        return Err(text.into());
    }
    let header = report::Header::of_this_machine();
    let results = run::run_all(groups)?;
    report::write(&args.out, &header, &results, args.base.as_deref())?;
    Ok(results.iter().flat_map(|group| &group.outcomes).all(|outcome| outcome.error().is_none()))
}
