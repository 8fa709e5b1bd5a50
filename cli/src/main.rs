//! The program `buffstreams`: streams of length-prefixed messages from the command line.
//!
//! Each command is a file in `commands/`. They share the settings, which have the names of the library's
//! `Config`, the ways to read and to print messages, and the way to fail: with a code, and the option to change.

mod commands;
mod failure;
mod format;
mod guess;
mod hint;
mod inlet;
mod input;
mod outlet;
mod plot;
mod print;
mod progress;
mod proto;
mod recording;
mod settings;
mod stop;
mod terminal;
mod units;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = commands::Cli::parse();
    match commands::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::say(&failure);
            failure.exit_code()
        }
    }
}
