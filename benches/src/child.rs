//! One end of a trial, in a process of its own.
//!
//! It talks with its parent in lines of JSON: an order comes in on standard input, then "go"; out on standard output go
//! `Line`s. It ends when standard input does.

use std::io::{BufRead, Write};
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::check::{Latency, Received, Tally};
use crate::plan::{Scenario, Trial};
use crate::{Result, clock, systems};

/// A child that nobody ended by then ends itself.
const LIFETIME: Duration = Duration::from_secs(60);

/// What a child is to do.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) trial: Trial,
    /// Of the listeners. A child without any is the server.
    pub(crate) ports: Vec<u16>,
}

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line {
    /// The server listens.
    Ready { ports: Vec<u16> },
    /// The client has its connections, and waits for "go".
    Connected,
    /// The client has sent everything, or has all its replies.
    Sent(Sent),
    /// The server has everything.
    Received(Received),
    /// Something went wrong.
    Failed { error: String },
}

/// A client's report.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// When "go" came.
    pub(crate) start: u64,
    /// Of the replies, with how many requests there were.
    pub(crate) replies: Option<(Tally, u64)>,
    pub(crate) latency: Option<Latency>,
}

/// The process that started this one.
pub(crate) struct Parent;

impl Parent {
    fn tell(&self, line: &Line) {
        let mut out = std::io::stdout().lock();
        let text = serde_json::to_string(line).expect("a line has no maps with odd keys");
        // A parent that is gone has closed standard input as well: that ends this process.
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    pub(crate) fn ready(&self, ports: &[u16]) {
        self.tell(&Line::Ready { ports: ports.to_vec() });
    }

    /// Waits for "go", and returns when it came.
    pub(crate) fn go(&self) -> u64 {
        self.tell(&Line::Connected);
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).unwrap_or(0) == 0 {
            std::process::exit(0);
        }
        clock::now()
    }

    /// Reports, and keeps what there is as it is until the parent has no more use for it.
    pub(crate) fn sent(&self, sent: Sent) {
        self.tell(&Line::Sent(sent));
        self.dismissed();
    }

    pub(crate) fn received(&self, received: Received) {
        self.tell(&Line::Received(received));
        self.dismissed();
    }

    /// Waits until the parent has no more use for this process.
    pub(crate) fn dismissed(&self) {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
    }
}

pub(crate) fn main() -> Result<()> {
    thread::spawn(|| {
        thread::sleep(LIFETIME);
        std::process::exit(3);
    });
    raise_descriptors();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let order: Order = serde_json::from_str(&line)?;
    if let Err(error) = play(&order) {
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        let error = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        Parent.tell(&Line::Failed { error });
    }
    Ok(())
}

/// Lets this process have as many descriptors as it may: the usual limit of 1,024 is for programs that use `select`.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where this is refused, it shows in the cases that need more.
    let _ = setrlimit(Resource::Nofile, limit);
}

fn play(Order { trial, ports }: &Order) -> Result<()> {
    let system = systems::find(&trial.system).ok_or("this system is not built in")?;
    let server = ports.is_empty();
    match trial.scenario {
        Scenario::PingPong if server => system.echo(trial, &Parent),
        Scenario::PingPong => system.ping(trial, ports, &Parent),
        Scenario::SlowConsumer if server => system.stall(trial, &Parent),
        Scenario::Idle if server => system.hold(trial, &Parent),
        Scenario::Idle => system.dial(trial, ports, &Parent),
        Scenario::OpenLoop if !server => system.pace(trial, ports, &Parent),
        _ if server => system.receive(trial, &Parent),
        _ => system.send(trial, ports, &Parent),
    }
}
