//! Runs the trials: starts the two ends of each, takes turns, and ends every process that it started.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, thread};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::check::{Received, Tally};
use crate::child::{Line, Order, PROCESSOR, Sent};
use crate::plan::{Group, Scenario, Trial};
use crate::{Result, memory};

/// A child that says nothing for so long is stuck: a message was lost, for example.
const PATIENCE: Duration = Duration::from_secs(20);

/// The figures of one round, by name.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

/// One trial's rounds. After an error there are no more of them.
pub(crate) struct Outcome {
    pub(crate) trial: Trial,
    pub(crate) rounds: Vec<std::result::Result<Figures, String>>,
}

impl Outcome {
    pub(crate) fn error(&self) -> Option<&str> {
        self.rounds.iter().find_map(|round| round.as_ref().err().map(String::as_str))
    }
}

/// A group, measured.
pub(crate) struct GroupResult {
    pub(crate) group: Group,
    pub(crate) outcomes: Vec<Outcome>,
}

/// A process that only spins. It is killed when this is dropped.
struct Neighbour(std::process::Child);

impl Neighbour {
    fn start() -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        // It ends with this pipe, which nobody writes to.
        Ok(Self(command.arg("neighbour").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?))
    }

    /// It spins until the end of the measurement, or there is no figure.
    fn check(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("a neighbour ended early: {status}").into()),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that plays one end. It is killed when this is dropped.
struct Child {
    /// What it is called in errors.
    end: &'static str,
    process: std::process::Child,
    orders: ChildStdin,
    lines: Receiver<Line>,
}

impl Child {
    fn start(trial: &Trial, ports: &[u16]) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg("child")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, output) = (process.stdin.take(), process.stdout.take());
        let (Some(orders), Some(output)) = (orders, output) else { return Err("a pipe is missing".into()) };
        let (sender, lines) = channel();
        // It ends with the child, whose output it reads.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Line::Failed { error: line });
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let end = if ports.is_empty() { "server" } else { "client" };
        let mut child = Self { end, process, orders, lines };
        let order = Order { trial: trial.clone(), ports: ports.to_vec() };
        child.tell(&serde_json::to_string(&order)?)?;
        Ok(child)
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.orders, "{line}")?)
    }

    fn line(&self, awaited: &str) -> Result<Line> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(Line::Failed { error }) => Err(format!("the {}: {error}", self.end).into()),
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => Err(format!("the {} has ended before {awaited}", self.end).into()),
            Err(RecvTimeoutError::Timeout) => {
                let seconds = PATIENCE.as_secs();
                Err(format!("the {} hangs, and was ended: {seconds} s without {awaited}", self.end).into())
            }
        }
    }

    fn ready(&self) -> Result<Vec<u16>> {
        match self.line("its ports")? {
            Line::Ready { ports } => Ok(ports),
            other => Err(unexpected(&other)),
        }
    }

    fn connected(&self) -> Result<()> {
        match self.line("its connections")? {
            Line::Connected => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn sent(&self) -> Result<Sent> {
        match self.line("having sent everything")? {
            Line::Sent(sent) => Ok(sent),
            other => Err(unexpected(&other)),
        }
    }

    /// When the last message was there.
    fn complete(&self) -> Result<u64> {
        match self.line("all messages")? {
            Line::Complete { end } => Ok(end),
            Line::Received(received) => Err(format!("the connections ended early: {:?} came", received.tally).into()),
            other => Err(unexpected(&other)),
        }
    }

    fn received(&self) -> Result<Received> {
        match self.line("the end of its connections")? {
            Line::Received(received) => Ok(received),
            other => Err(unexpected(&other)),
        }
    }

    /// The processor time that it has had until now, in nanoseconds.
    fn processor(&mut self) -> Result<f64> {
        self.tell(PROCESSOR)?;
        match self.line("its processor time")? {
            Line::Processor { time } => Ok(time as f64),
            other => Err(unexpected(&other)),
        }
    }

    /// Has it close its connections, and waits until it is gone.
    fn close(&mut self) -> Result<()> {
        self.tell("close")?;
        match self.lines.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err(format!("the {} does not end, and was ended", self.end).into()),
            Ok(Line::Failed { error }) => Err(format!("the {}: {error}", self.end).into()),
            Ok(line) => Err(unexpected(&line)),
        }
    }
}

fn unexpected(line: &Line) -> crate::Error {
    format!("a process said, out of turn: {line:?}").into()
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Plays one round and returns its figures.
fn round(trial: &Trial) -> Result<Figures> {
    let mut neighbours = (0..trial.neighbours).map(|_| Neighbour::start()).collect::<Result<Vec<_>>>()?;
    let figures = play(trial)?;
    neighbours.iter_mut().try_for_each(Neighbour::check)?;
    Ok(figures)
}

fn play(trial: &Trial) -> Result<Figures> {
    let mut server = Child::start(trial, &[])?;
    let ports = server.ready()?;
    let memory_before = if trial.scenario == Scenario::Idle { memory::settled(server.process.id())? } else { 0 };
    let clients = (0..trial.processes).map(|_| Child::start(trial, &ports));
    let mut clients = clients.collect::<Result<Vec<_>>>()?;
    clients.iter().try_for_each(Child::connected)?;
    match trial.scenario {
        Scenario::Idle => idle(trial, &server, memory_before),
        Scenario::SlowConsumer => slow_consumer(trial, &server, &mut clients[0]),
        _ => {
            // What is connected may still have to be accepted.
            thread::sleep(Duration::from_micros(10_000 + 50 * trial.connections as u64));
            exchange(trial, &mut server, &mut clients)
        }
    }
}

/// The processor time of both ends until now, in nanoseconds.
#[derive(Clone, Copy)]
struct Processor {
    receiver: f64,
    sender: f64,
}

impl Processor {
    fn of(server: &mut Child, clients: &mut [Child]) -> Result<Self> {
        let sender = clients.iter_mut().map(Child::processor).sum::<Result<f64>>()?;
        Ok(Self { receiver: server.processor()?, sender })
    }

    /// What a message has cost since `before`.
    fn add_since(self, before: Self, messages: u64, figures: &mut Figures) {
        let receiver = (self.receiver - before.receiver) / messages as f64;
        let sender = (self.sender - before.sender) / messages as f64;
        figures.extend([
            ("processor", receiver + sender),
            ("processor of the receiver", receiver),
            ("processor of the sender", sender),
        ]);
    }
}

/// Everything is sent and received; the clocks stand still before the connections are closed, and what comes until they
/// are is looked at all the same.
fn exchange(trial: &Trial, server: &mut Child, clients: &mut [Child]) -> Result<Figures> {
    let before = Processor::of(server, clients)?;
    clients.iter_mut().try_for_each(|client| client.tell("go"))?;
    let replies = trial.scenario == Scenario::PingPong;
    let end = if replies { 0 } else { server.complete()? };
    let sent = clients.iter().map(Child::sent).collect::<Result<Vec<_>>>()?;
    let after = Processor::of(server, clients)?;
    clients.iter_mut().try_for_each(Child::close)?;
    server.tell("close")?;
    let received = server.received()?;

    let expected = Tally::expected(trial.size, trial.senders(), trial.share());
    let mut figures = Figures::new();
    after.add_since(before, trial.messages, &mut figures);
    if replies {
        sent[0].replies.ok_or("no replies were counted")?.verify(&expected)?;
        figures.append(&mut latency(sent[0].latency)?);
        return Ok(figures);
    }
    if trial.system.starts_with("raw") && trial.scenario != Scenario::OpenLoop {
        received.tally.verify(&Tally::of_bytes(expected.bytes, trial.size))?;
    } else {
        received.tally.verify(&expected)?;
    }
    if trial.scenario == Scenario::Resume {
        let resumed = sent[0].resumed.ok_or("no session was resumed")?;
        figures.insert("resume", end.saturating_sub(resumed) as f64 / 1e3);
        return Ok(figures);
    }
    let start = sent.iter().map(|sent| sent.start).min().ok_or("no client")?;
    let seconds = end.saturating_sub(start) as f64 / 1e9;
    if trial.scenario == Scenario::OpenLoop {
        figures.append(&mut latency(received.latency)?);
    }
    figures.insert("seconds", seconds);
    figures.insert("messages/s", received.tally.messages as f64 / seconds);
    figures.insert("bytes/s", received.tally.bytes as f64 / seconds);
    Ok(figures)
}

fn latency(latency: Option<crate::check::Latency>) -> Result<Figures> {
    let latency = latency.ok_or("no latency was recorded")?;
    Ok(Figures::from([("p50", latency.p50), ("p99", latency.p99), ("p99.9", latency.p999)]))
}

fn idle(trial: &Trial, server: &Child, before: u64) -> Result<Figures> {
    server.received()?;
    let after = memory::settled(server.process.id())?;
    let bytes = after.saturating_sub(before) as f64 / trial.connections as f64;
    Ok(Figures::from([("bytes/connection", bytes)]))
}

/// The memory of both ends while nobody takes: the most that is seen, over what there was before the first message.
fn slow_consumer(trial: &Trial, server: &Child, client: &mut Child) -> Result<Figures> {
    let (receiver, sender) = (server.process.id(), client.process.id());
    let before = (memory::settled(receiver)?, memory::settled(sender)?);
    let (start, mut most) = (Instant::now(), before);
    client.tell("go")?;
    while start.elapsed() < Duration::from_millis(trial.millis) {
        thread::sleep(Duration::from_millis(20));
        most.0 = most.0.max(memory::anonymous(receiver)?);
        most.1 = most.1.max(memory::anonymous(sender)?);
    }
    server.received()?; // It has taken a message, so there were some.
    Ok(Figures::from([("receiver", (most.0 - before.0) as f64), ("sender", (most.1 - before.1) as f64)]))
}

/// Rounds that are not counted, to find out how many messages take the time that a round should have.
fn calibrate(trial: &mut Trial) -> Result<()> {
    let target = trial.millis as f64 / 1000.0;
    trial.set_messages((4_000_000 / trial.size as u64).clamp(64, 40_000));
    for _ in 0..5 {
        let seconds = round(trial)?.get("seconds").copied().unwrap_or(target).max(1e-4);
        // A short round is mostly its beginning: it says how far to go, not where it ends.
        let scale = (target / seconds).min(30.0);
        trial.set_messages((trial.messages as f64 * scale) as u64);
        if scale < 1.5 {
            break;
        }
    }
    Ok(())
}

pub(crate) fn run_all(groups: Vec<Group>) -> Result<Vec<GroupResult>> {
    let steps: u64 = groups.iter().map(|group| group.trials.len() as u64 * u64::from(group.rounds + 1)).sum();
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {elapsed}, {eta} left  {msg}")?);
    let results = groups.into_iter().map(|group| run(group, &bar)).collect();
    bar.finish_and_clear();
    Ok(results)
}

/// Measures a group: in each round every trial has its turn, and another one is the first.
fn run(group: Group, bar: &ProgressBar) -> GroupResult {
    let mut outcomes: Vec<_> =
        group.trials.iter().map(|trial| Outcome { trial: trial.clone(), rounds: Vec::new() }).collect();
    if bar.is_hidden() {
        eprintln!("{}: {}", group.scenario.name(), group.title);
    }
    for outcome in &mut outcomes {
        bar.set_message(format!("{}: {}", group.scenario.name(), outcome.trial.label));
        if group.scenario == Scenario::SlowConsumer {
            // More than both ends' buffers hold; it has an end all the same.
            outcome.trial.set_messages(1 << 20);
        }
        if outcome.trial.is_calibrated()
            && let Err(error) = calibrate(&mut outcome.trial)
        {
            outcome.rounds.push(Err(error.to_string()));
        }
        bar.inc(1);
    }
    for number in 0..group.rounds as usize {
        for turn in 0..outcomes.len() {
            let count = outcomes.len();
            let outcome = &mut outcomes[(number + turn) % count];
            bar.set_message(format!("{}: {}", group.scenario.name(), outcome.trial.label));
            if outcome.error().is_none() {
                outcome.rounds.push(round(&outcome.trial).map_err(|error| error.to_string()));
            }
            bar.inc(1);
        }
    }
    GroupResult { group, outcomes }
}
