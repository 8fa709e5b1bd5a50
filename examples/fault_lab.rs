//! Sends messages through a proxy that breaks connections on purpose, and checks that every message has one end.
//!
//! `fault_lab [--seed N] [--messages N] [--faults N] [--reconnect]`. The same seed makes the same choices; the time at which the system
//! does its part differs. It ends with status 1 if the books do not balance.
#![allow(clippy::print_stdout, clippy::print_stderr)] // To print is what it is for.

use std::io::IsTerminal;
use std::time::Instant;

use buffstreams::BoxError;

#[path = "fault_lab/books.rs"]
mod books;
#[path = "fault_lab/lab.rs"]
mod lab;
#[path = "fault_lab/proxy.rs"]
mod proxy;

/// The three name each other by this, here as in the tests.
mod fault_lab {
    pub(crate) use crate::{books, proxy};
}

const HELP: &str = "\
Sends messages through a proxy that cuts, resets, stalls and delays, and balances the books.

    fault_lab [--seed N] [--messages N] [--faults N] [--reconnect]

    --seed N       what happens where            [default: 1]
    --messages N   how many messages are sent    [default: 100000]
    --faults N     how many faults there are     [default: 100]
    --reconnect    dial again and again, so that no message comes back

It ends with status 0 if the books balance, and with 1 if they do not.";

/// `None` if it was asked for help.
fn settings() -> Result<Option<lab::Settings>, BoxError> {
    let mut settings = lab::Settings { seed: 1, messages: 100_000, faults: 100, reconnect: false };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let setting = match arg.as_str() {
            "--seed" => &mut settings.seed,
            "--messages" => &mut settings.messages,
            "--faults" => &mut settings.faults,
            "--reconnect" => {
                settings.reconnect = true;
                continue;
            }
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("{arg} is unknown; --help tells what there is").into()),
        };
        let number = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
        *setting = number.parse().map_err(|error| format!("{arg} {number}: {error}"))?;
    }
    Ok(Some(settings))
}

/// Draws one line over and over, for who looks at it.
fn progress(lab::Settings { messages, faults, .. }: lab::Settings) -> impl FnMut(u64, u64) + Send {
    let (shown, mut last) = (std::io::stderr().is_terminal(), Instant::now());
    move |accepted, happened| {
        if shown && (last.elapsed().as_millis() >= 100 || accepted == messages) {
            last = Instant::now();
            let done = (40 * accepted / messages.max(1)) as usize;
            eprint!("\r[{:40}] {accepted} of {messages} messages, {happened} of {faults} faults ", "#".repeat(done));
        }
    }
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    let Some(settings) = settings()? else {
        println!("{HELP}");
        return Ok(());
    };
    let books = lab::run(settings, progress(settings)).await?;
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    println!("{books}");
    let broken = books.broken_rules();
    if broken.is_empty() {
        println!("the books balance");
        return Ok(());
    }
    for rule in &broken {
        eprintln!("broken: {rule}");
    }
    let lab::Settings { seed, messages, faults, reconnect } = settings;
    let reconnect = if reconnect { " --reconnect" } else { "" };
    Err(format!("the books do not balance: --seed {seed} --messages {messages} --faults {faults}{reconnect}").into())
}
