//! What a message costs in instructions and in allocations, held against what was recorded: figures that do not depend on
//! how busy the machine is, as times do.
//!
//! ```text
//! cargo run --release -p buffstreams-bench --bin costs                  the table
//! cargo run --release -p buffstreams-bench --bin costs -- --check       the table; fails where a message costs more
//! cargo run --release -p buffstreams-bench --bin costs -- --update      the table, and records it
//! ```
//!
//! It ends with 1 where `--check` fails, and with 2 where it cannot count. To see which functions the instructions are
//! in, run a case by itself: `valgrind --tool=callgrind target/release/costs --run "Reader, 110 B" 60000`.

mod callgrind;
mod cases;
mod counting;
mod memory;
mod recorded;

use std::env;
use std::process::ExitCode;

use cases::CASES;
use recorded::{Comparison, Recorded};

type BoxError = Box<dyn std::error::Error>;

const USAGE: &str = "usage: costs [--check | --update | --run CASE MESSAGES]";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => count().map(|_| ExitCode::SUCCESS),
        ["--check"] => count().map(|(_, comparison)| verdict(comparison)),
        ["--update"] => count().and_then(|(now, _)| now.save()).map(|()| ExitCode::SUCCESS),
        ["--run", case, messages] => run(case, messages).map(|()| ExitCode::SUCCESS),
        _ => Err(USAGE.into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("costs: {error}");
        ExitCode::from(2)
    })
}

/// Passes messages through one case, and prints how often that allocated.
fn run(case: &str, messages: &str) -> Result<(), BoxError> {
    let case = CASES.iter().find(|known| known.name == case).ok_or_else(|| format!("no case is named {case:?}"))?;
    case.run(messages.parse()?)?;
    println!("{}", counting::allocations());
    Ok(())
}

/// Counts all cases and prints each beside what was recorded.
fn count() -> Result<(Recorded, Comparison), BoxError> {
    let before = Recorded::load()?;
    let mut now = Recorded::new()?;
    if before.rustc != now.rustc {
        println!("Recorded with {:?}, now it is {:?}. A compiler moves instructions, too.", before.rustc, now.rustc);
    }
    recorded::print_head();
    let mut worst = Comparison::Same;
    for case in CASES {
        let cost = callgrind::cost(case)?;
        worst = worst.max(recorded::print_row(case, before.cost(case), cost));
        now.add(case, cost);
    }
    Ok((now, worst))
}

fn verdict(comparison: Comparison) -> ExitCode {
    match comparison {
        Comparison::Same => ExitCode::SUCCESS,
        Comparison::Less => {
            println!("A message costs less than was recorded. Run `costs --update`, so that it stays so.");
            ExitCode::SUCCESS
        }
        Comparison::More => {
            println!("A message costs more than was recorded. If that is worth it, run `costs --update` and say why.");
            ExitCode::FAILURE
        }
    }
}
