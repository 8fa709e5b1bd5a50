//! Does everything to the library at once that a program may do, and much that none should, and checks that it holds.
//!
//! `stress [--seed N] [--seconds S] [--soak] [--without TEXT]...`. The same seed makes the same choices; the threads differ in when they come to
//! them. It ends with status 1 if a rule is broken, and with 2 if something hangs.
#![allow(clippy::print_stdout, clippy::print_stderr)] // To print is what it is for.

use std::process::ExitCode;

#[path = "stress/mod.rs"]
mod stress;

use stress::Settings;

const HELP: &str = "\
Panics, drops, closes and dials at once, on several executors, while messages go in all directions.

    stress [--seed N] [--seconds S] [--soak] [--without TEXT]...

    --seed N       what happens where               [default: 1]
    --seconds S    for how long                     [default: 5]
    --soak         compare memory, descriptors and threads at the end with those after the first minute; in less
                   than four minutes, descriptors and threads with those after the first quarter
    --without TEXT plant nothing whose name has this in it: to find out what does the harm

It ends with status 0 if everything holds, with 1 if a rule is broken, and with 2 if something hangs.";

/// `None` if it was asked for help.
fn settings() -> Result<Option<Settings>, String> {
    let mut settings = Settings { seed: 1, seconds: 5, soak: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let setting = match arg.as_str() {
            "--seed" => &mut settings.seed,
            "--seconds" => &mut settings.seconds,
            "--soak" => {
                settings.soak = true;
                continue;
            }
            "--without" => {
                let what = args.next().ok_or("--without needs a part of a name")?;
                stress::leave_out(&what);
                continue;
            }
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("{arg} is unknown; --help tells what there is")),
        };
        let number = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
        *setting = number.parse().map_err(|error| format!("{arg} {number}: {error}"))?;
    }
    Ok(Some(settings))
}

fn main() -> ExitCode {
    let settings = match settings() {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let report = stress::run(settings);
    print!("{report}");
    if report.broken.is_empty() {
        println!("everything holds");
        return ExitCode::SUCCESS;
    }
    for rule in &report.broken {
        eprintln!("broken: {rule}");
    }
    eprintln!("it does not hold: {settings}");
    ExitCode::FAILURE
}
