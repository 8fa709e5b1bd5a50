//! The commands, a file each, and the command line that they are called by.

mod bench;
mod docs;
mod inspect;
mod listen;
mod proxy;
mod record;
mod relay;
mod replay;
mod send;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::failure::{Code, Failure};
use crate::settings::{Settings, Side};
use crate::stop::{self, Stop};

/// Those of [`Code`], for the help.
const EXIT_CODES: &str = "Exit codes:
  0    everything that was asked for is done
  1    a file, or the input, cannot be read, or the output not be written; or anything else
  2    the command line, or the file of settings, makes no sense
  3    nobody can be reached, or nothing be listened on, or a connection broke
  4    the bytes are not in the format, or no format can be told
  5    not everything was delivered, or answered
  130  Ctrl-C came before the work was done; nothing is known to be lost";

/// Streams of length-prefixed messages over TCP, TLS and Unix sockets, from the command line.
#[derive(Parser, Debug)]
#[command(
    name = "buffstreams",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = EXIT_CODES
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Listen(listen::Listen),
    Send(send::Send),
    Inspect(inspect::Inspect),
    Relay(relay::Relay),
    Proxy(proxy::Proxy),
    Bench(bench::Bench),
    Record(record::Record),
    Replay(replay::Replay),
    Completions(docs::Completions),
    Man(docs::Manual),
}

/// What a stream is made of, and the file that may say it.
#[derive(Args, Clone, Debug)]
struct Common {
    /// A file in TOML with any of the settings, by their names: format = "u32_be". The command line goes before it
    #[arg(long, value_name = "FILE", help_heading = "Settings")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Common {
    fn settings(self) -> Result<Settings, Failure> {
        self.settings.with_file(self.config.as_deref())
    }
}

/// Does what the command line asks for.
pub(crate) fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Listen(listen) => smol::block_on(listen.run(stop()?)),
        Command::Send(send) => smol::block_on(send.run(stop()?)),
        Command::Inspect(inspect) => smol::block_on(inspect.run(stop()?)),
        Command::Relay(relay) => smol::block_on(relay.run(stop()?)),
        Command::Proxy(proxy) => smol::block_on(proxy.run(stop()?)),
        Command::Bench(bench) => smol::block_on(bench.run(stop()?)),
        Command::Record(record) => smol::block_on(record.run(stop()?)),
        Command::Replay(replay) => smol::block_on(replay.run(stop()?)),
        Command::Completions(completions) => completions.run(),
        Command::Man(manual) => manual.run(),
    }
}

/// An address of TCP as the sockets of the system take it: `:PORT` is every address of this machine, or this machine.
fn tcp_address(address: &str, side: Side) -> String {
    match (address.strip_prefix(':'), side) {
        (Some(port), Side::Listen) => format!("[::]:{port}"),
        (Some(port), Side::Dial) => format!("localhost:{port}"),
        (None, _) => address.to_owned(),
    }
}

fn stop() -> Result<Stop, Failure> {
    stop::on_signals().map_err(|error| Failure::new(Code::Failed, format!("cannot wait for signals: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    /// What clap looks at in a debug build alone.
    #[test]
    fn the_command_line_makes_sense() {
        Cli::command().debug_assert();
    }
}
