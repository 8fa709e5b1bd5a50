//! Sends messages through a proxy that breaks connections on purpose, and checks that every message has one end.
//!
//! - `fault_lab [--seed N] [--messages N] [--faults N] [--reconnect]`: plain connections. The books must balance.
//! - `fault_lab --acked [--seed N] [--messages N] [--faults N]`: acknowledged sessions. Every message is received once and
//!   in order, and none is in doubt.
//! - `fault_lab --acked --kill N [--seed N] [--messages N]`: the receiver is a process that is killed N times, and that
//!   journals each message before it asks for the next. What is acknowledged is in the journal, and what was not sent is not.
//! - `fault_lab --acked --rolling [--restarts N] [--seed N] [--messages N]`: the receiver is restarted gracefully. Nothing is
//!   lost or in doubt.
//!
//! The same seed makes the same choices; the time at which the system does its part differs. It ends with status 1 if a rule
//! is broken, or if nothing is received for 20 s.
#![allow(clippy::print_stdout, clippy::print_stderr)] // To print is what it is for.

use std::fmt;
use std::io::IsTerminal;
use std::time::Instant;

use buffstreams::BoxError;

#[path = "fault_lab/acked.rs"]
mod acked;
#[path = "fault_lab/books.rs"]
mod books;
#[path = "fault_lab/kill.rs"]
mod kill;
#[path = "fault_lab/lab.rs"]
mod lab;
#[path = "fault_lab/messages.rs"]
mod messages;
#[path = "fault_lab/order.rs"]
mod order;
#[path = "fault_lab/proxy.rs"]
mod proxy;
#[path = "fault_lab/receiver.rs"]
mod receiver;
#[path = "fault_lab/rolling.rs"]
mod rolling;
#[path = "fault_lab/senders.rs"]
mod senders;

/// They name each other by this, here as in the tests.
mod fault_lab {
    pub(crate) use crate::{books, messages, order, proxy, receiver, senders};
}

const HELP: &str = "\
Sends messages through a proxy that cuts, resets, stalls and delays, and balances the books.

    fault_lab [--seed N] [--messages N] [--faults N] [--reconnect]
    fault_lab --acked [--seed N] [--messages N] [--faults N]
    fault_lab --acked --kill N [--seed N] [--messages N]
    fault_lab --acked --rolling [--restarts N] [--seed N] [--messages N]

    --seed N       what happens where            [default: 1]
    --messages N   how many messages are sent    [default: 100000]
    --faults N     how many faults there are     [default: 100]
    --reconnect    dial again and again, so that no message comes back
    --acked        with acknowledged sessions: each message is received once, and in order
    --kill N       no proxy: the receiver is killed so often, and started again
    --rolling      no proxy: the receiver is restarted, and lets its senders finish
    --restarts N   how often                     [default: 100]

It ends with status 0 if all rules hold, and with 1 if they do not.";

/// What to run.
enum Form {
    Plain(lab::Settings),
    Acked(acked::Settings),
    Kill(kill::Settings),
    Rolling(rolling::Settings),
}

/// `None` if it was asked for help.
fn form() -> Result<Option<Form>, BoxError> {
    let (mut seed, mut messages, mut faults, mut kills, mut restarts) = (1, 100_000, 100, 0, 100);
    let (mut reconnect, mut acked, mut rolling) = (false, false, false);
    let mut given = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        given.push(arg.clone());
        let setting = match arg.as_str() {
            "--seed" => &mut seed,
            "--messages" => &mut messages,
            "--faults" => &mut faults,
            "--kill" => &mut kills,
            "--restarts" => &mut restarts,
            "--reconnect" | "--acked" | "--rolling" => {
                *match arg.as_str() {
                    "--reconnect" => &mut reconnect,
                    "--acked" => &mut acked,
                    _ => &mut rolling,
                } = true;
                continue;
            }
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("{arg} is unknown; --help tells what there is").into()),
        };
        let number = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
        *setting = number.parse().map_err(|error| format!("{arg} {number}: {error}"))?;
    }
    let kill = given.iter().any(|arg| arg == "--kill");
    // What a form does not have would be a run of another one than was asked for.
    let foreign: &[&str] = match (acked, kill, rolling) {
        (false, ..) => &["--kill", "--rolling", "--restarts"],
        (true, false, false) => &["--reconnect", "--restarts"],
        (true, true, _) => &["--reconnect", "--faults", "--rolling", "--restarts"],
        (true, false, true) => &["--reconnect", "--faults"],
    };
    if let Some(arg) = given.iter().find(|arg| foreign.contains(&arg.as_str())) {
        return Err(format!("{arg} does not go with the rest; --help tells what there is").into());
    }
    Ok(Some(match (acked, kill, rolling) {
        (false, ..) => Form::Plain(lab::Settings { seed, messages, faults, reconnect }),
        (true, false, false) => Form::Acked(acked::Settings { seed, messages, faults }),
        (true, true, _) => Form::Kill(kill::Settings { seed, messages, kills, args: &[] }),
        (true, false, true) => Form::Rolling(rolling::Settings { seed, messages, restarts, args: &[] }),
    }))
}

/// Draws one line over and over, for who looks at it.
fn progress(messages: u64, events: u64, what: &'static str) -> impl FnMut(u64, u64) + Send {
    let (shown, mut last) = (std::io::stderr().is_terminal(), Instant::now());
    move |accepted, happened| {
        if shown && (last.elapsed().as_millis() >= 100 || accepted == messages) {
            last = Instant::now();
            let done = (40 * accepted / messages.max(1)).min(40) as usize;
            eprint!("\r[{:40}] {accepted} of {messages} messages, {happened} of {events} {what} ", "#".repeat(done));
        }
    }
}

/// Prints what a run has come to.
fn tell(report: impl fmt::Display, broken: &[String], well: &str) -> Result<(), BoxError> {
    if std::io::stderr().is_terminal() {
        eprintln!();
    }
    println!("{report}");
    if broken.is_empty() {
        println!("{well}");
        return Ok(());
    }
    for rule in broken {
        eprintln!("broken: {rule}");
    }
    Err("rules are broken".into())
}

async fn run(form: Form) -> Result<(), BoxError> {
    match form {
        Form::Plain(settings) => {
            let books = lab::run(settings, progress(settings.messages, settings.faults, "faults")).await?;
            tell(&books, &books.broken_rules(), "the books balance")
        }
        Form::Acked(settings) => {
            let report = acked::run(settings, progress(settings.messages, settings.faults, "faults")).await?;
            tell(&report, &report.broken_rules(), "every message was taken once and in order, and none is in doubt")
        }
        Form::Kill(settings) => {
            let report = kill::run(settings, progress(settings.messages, settings.kills, "kills")).await?;
            tell(&report, &report.broken_rules(), "what is acked is journaled, and what was not sent is not")
        }
        Form::Rolling(settings) => {
            let report = rolling::run(settings, progress(settings.messages, settings.restarts, "restarts")).await?;
            tell(&report, &report.broken_rules(), "every message was taken once and in order, and none is in doubt")
        }
    }
}

#[async_std::main]
async fn main() -> Result<(), BoxError> {
    if let Some(port) = receiver::asked() {
        return receiver::receive(port).await;
    }
    let Some(form) = form()? else {
        println!("{HELP}");
        return Ok(());
    };
    let args = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    run(form).await.map_err(|error| format!("{error}: fault_lab {args}").into())
}
