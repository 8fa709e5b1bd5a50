//! What is measured: the scenarios, and the trials that each consists of.

use clap::ValueEnum;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use crate::systems::{self, WARM_UP};

/// A question that is answered by measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// One connection, one way, messages of several sizes.
    Throughput,
    /// Many connections into one listener.
    Connections,
    /// The Go library's own benchmark: 16 client processes, protobuf messages of 110 bytes, decoded by the server.
    GoBench,
    /// Request and reply on one connection: how long it takes.
    PingPong,
    /// 16 producers through one manager, against one connection's sink.
    Manager,
    /// The memory of a receiver that does not take its messages.
    SlowConsumer,
    /// The memory of a connection on which nothing happens.
    Idle,
    /// Latency at a fixed load, counted from when a message should have been sent.
    OpenLoop,
    /// How long it takes until a session whose connection was cut has everything that was in flight.
    Resume,
}

impl Scenario {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Connections => "connections",
            Self::GoBench => "go-bench",
            Self::PingPong => "ping-pong",
            Self::Manager => "manager",
            Self::SlowConsumer => "slow-consumer",
            Self::Idle => "idle",
            Self::OpenLoop => "open-loop",
            Self::Resume => "resume",
        }
    }
}

/// What a message consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Its number, filling, and a marker.
    Numbered,
    /// Protocol Buffers, with the number as a field.
    Protobuf,
}

/// One system in one case. Both ends are told it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trial {
    pub(crate) scenario: Scenario,
    pub(crate) system: String,
    /// What the tables call it.
    pub(crate) label: String,
    pub(crate) size: usize,
    /// All connections, of all client processes.
    pub(crate) connections: usize,
    pub(crate) processes: usize,
    /// Tasks that write to one manager.
    pub(crate) producers: usize,
    /// Listeners in the server's process.
    pub(crate) addresses: usize,
    /// With `reconnect` and `message_ttl`, which a manager's books then keep the time for.
    pub(crate) patient: bool,
    /// Processes that only spin meanwhile, and give way to all others.
    pub(crate) neighbours: usize,
    /// What the kernel keeps for each socket, each way; 0 for what the system gives.
    pub(crate) socket_buffers: usize,
    /// Messages a second that are offered, where that is fixed.
    pub(crate) rate: u64,
    /// How long one round should take, more or less.
    pub(crate) millis: u64,
    /// How many messages that is.
    pub(crate) messages: u64,
}

impl Trial {
    pub(crate) fn new(scenario: Scenario, system: &str, size: usize) -> Self {
        Self {
            scenario,
            system: system.into(),
            label: system.into(),
            size,
            connections: 1,
            processes: 1,
            producers: 1,
            addresses: 1,
            patient: false,
            neighbours: 0,
            socket_buffers: 0,
            rate: 0,
            millis: 500,
            messages: 0,
        }
    }

    pub(crate) fn form(&self) -> Form {
        if self.scenario == Scenario::GoBench { Form::Protobuf } else { Form::Numbered }
    }

    /// Whether all messages go one way, one after the other.
    pub(crate) fn is_in_turn(&self) -> bool {
        (self.connections, self.producers) == (1, 1)
    }

    /// How many send: each connection, or each producer of a manager.
    pub(crate) fn senders(&self) -> u64 {
        self.connections.max(self.producers) as u64
    }

    /// How many messages each sends.
    pub(crate) fn share(&self) -> u64 {
        self.messages / self.senders()
    }

    /// `messages`, rounded up so that every sender, and every address, gets as many as the others.
    pub(crate) fn set_messages(&mut self, messages: u64) {
        let unit = self.senders() * self.addresses as u64;
        self.messages = messages.div_ceil(unit).max(1) * unit;
    }

    fn set_neighbours(&mut self, count: usize) {
        self.neighbours = count;
        if count > 0 {
            self.label += &format!(", {count} neighbours");
        }
    }

    /// So many messages, where their number is free.
    fn fix_messages(&mut self, messages: u64) {
        match self.scenario {
            Scenario::SlowConsumer | Scenario::Idle | Scenario::Resume => {}
            Scenario::PingPong => self.set_messages(WARM_UP + messages),
            _ => self.set_messages(messages),
        }
    }

    /// Whether the number of messages is found by trying.
    pub(crate) fn is_calibrated(&self) -> bool {
        use Scenario::{Connections, GoBench, Manager, Throughput};
        self.messages == 0 && matches!(self.scenario, Throughput | Connections | GoBench | Manager)
    }
}

/// Trials that are compared with each other: they take turns.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) scenario: Scenario,
    pub(crate) title: String,
    pub(crate) rounds: u32,
    pub(crate) trials: Vec<Trial>,
    /// Who does not take part, and why.
    pub(crate) missing: Vec<(String, String)>,
}

impl Group {
    /// Who does not take part, all who have the same reason together, with the reason.
    pub(crate) fn left_out(&self) -> Vec<(String, &str)> {
        let mut reasons: Vec<(String, &str)> = Vec::new();
        for (system, reason) in &self.missing {
            match reasons.iter_mut().find(|(_, known)| known == reason) {
                Some((systems, _)) => *systems = format!("{systems}, {system}"),
                None => reasons.push((system.clone(), reason)),
            }
        }
        reasons
    }
}

/// What was asked for on the command line.
pub(crate) struct Choice {
    pub(crate) only: Vec<Scenario>,
    pub(crate) systems: Vec<String>,
    pub(crate) sizes: Vec<usize>,
    pub(crate) connections: Vec<usize>,
    pub(crate) rounds: u32,
    pub(crate) quick: bool,
    pub(crate) socket_buffers: usize,
    /// In a round, instead of as many as take the time that it should.
    pub(crate) messages: Option<u64>,
}

/// The systems of a quick look.
const QUICK: &[&str] = &[
    "raw",
    "manual",
    "tokio-util",
    "tokio-util-current",
    "buffstreams",
    "buffstreams-tokio",
    "buffstreams-smol",
    "buffstreams-connections",
    "buffstreams-callback",
    "buffstreams-batches",
    "buffstreams-decode",
    "buffstreams-manager",
    "buffstreams-session",
    "raw-tls",
    "buffstreams-tls",
];
/// A spinning neighbour for each processor of a small machine.
const NEIGHBOURS: usize = 2;

impl Choice {
    /// `asked`, or the scenario's own: all, or those of a quick look.
    fn pick<T: Copy>(&self, asked: &[T], all: &[T], quick: &[T]) -> Vec<T> {
        let own = if self.quick { quick } else { all };
        if asked.is_empty() { own.to_vec() } else { asked.to_vec() }
    }
}

pub(crate) fn groups(choice: &Choice) -> Vec<Group> {
    let all = Scenario::value_variants();
    let scenarios = all.iter().filter(|scenario| choice.only.is_empty() || choice.only.contains(scenario));
    scenarios.flat_map(|scenario| scenario_groups(*scenario, choice)).collect()
}

fn scenario_groups(scenario: Scenario, choice: &Choice) -> Vec<Group> {
    let group = |title: String, size: usize, adapt: &dyn Fn(&mut Trial)| {
        let mut group = Group { scenario, title, rounds: choice.rounds, trials: Vec::new(), missing: Vec::new() };
        let asked = |name: &&str| {
            let list: Vec<_> = choice.systems.iter().map(String::as_str).collect();
            if list.is_empty() { !choice.quick || QUICK.contains(name) } else { list.contains(name) }
        };
        for name in systems::TABLE.iter().map(|entry| entry.name).filter(asked) {
            let mut trial = Trial::new(scenario, name, size);
            trial.millis = if choice.quick { 150 } else { 500 };
            trial.socket_buffers = choice.socket_buffers;
            adapt(&mut trial);
            if let Some(messages) = choice.messages {
                trial.fix_messages(messages);
            }
            match missing(&trial) {
                Some(reason) => group.missing.push((trial.system, reason)),
                None => group.trials.push(trial),
            }
        }
        group
    };
    match scenario {
        Scenario::Throughput => {
            let sizes = choice.pick(&choice.sizes, &[16, 110, 1024, 65_536], &[16, 110]);
            sizes
                .into_iter()
                .map(|size| group(format!("messages of {size} bytes, one connection"), size, &|_| ()))
                .collect()
        }
        Scenario::Connections => {
            let counts = choice.pick(&choice.connections, &[1, 16, 1000, 5000], &[16, 1000]);
            let one = |count: usize| {
                let title =
                    format!("{count} connection{} into one listener, 110 bytes", if count == 1 { "" } else { "s" });
                group(title, 110, &|trial| trial.connections = count)
            };
            counts.into_iter().map(one).collect()
        }
        Scenario::GoBench => {
            let clients = |trial: &mut Trial| (trial.connections, trial.processes) = (16, 16);
            vec![group("16 client processes, protobuf messages of 110 bytes, decoded".into(), 110, &clients)]
        }
        Scenario::PingPong => {
            // As many as leave 20 above the 99.9th percentile of each round.
            let timed = if choice.quick { 2_000 } else { 20_000 };
            let one = |neighbours: usize| {
                let title = format!(
                    "request and reply, 110 bytes, one connection, {timed} times a round, {}",
                    of_neighbours(neighbours)
                );
                group(title, 110, &|trial| {
                    trial.set_messages(WARM_UP + timed);
                    trial.set_neighbours(neighbours);
                })
            };
            [0, NEIGHBOURS].map(one).into()
        }
        Scenario::Manager => vec![manager(group("16 producers, 110 bytes".into(), 110, &|_| ()))],
        Scenario::SlowConsumer => {
            let counts = choice.pick(&choice.connections, &[1, 64], &[1, 64]);
            let one = |count: usize| {
                let title = format!(
                    "{count} sending connection{}, 1024 bytes, nobody takes",
                    if count == 1 { "" } else { "s" }
                );
                let millis = if choice.quick { 500 } else { 1500 };
                few(group(title, 1024, &|trial| (trial.connections, trial.millis) = (count, millis)), choice)
            };
            counts.into_iter().map(one).collect()
        }
        Scenario::Idle => {
            let counts = choice.pick(&choice.connections, &[1000, 10_000], &[1000]);
            let one = |count: usize| {
                few(group(format!("{count} idle connections"), 110, &|trial| trial.connections = count), choice)
            };
            counts.into_iter().map(one).collect()
        }
        Scenario::OpenLoop => {
            let one = |rate: u64, neighbours: usize| {
                let title = format!(
                    "{rate} messages a second offered, 110 bytes, one connection, {}",
                    of_neighbours(neighbours)
                );
                group(title, 110, &|trial| {
                    trial.rate = rate;
                    trial.set_messages(rate * trial.millis / 1000);
                    trial.set_neighbours(neighbours);
                })
            };
            let rates = choice.pick(&[], &[50_000, 100_000, 200_000, 400_000, 800_000], &[200_000]);
            let idle = rates.into_iter().map(|rate| one(rate, 0));
            idle.chain([one(200_000, NEIGHBOURS)]).collect()
        }
        Scenario::Resume => {
            vec![group("1 MiB in flight when the connection is cut, messages of 110 bytes".into(), 110, &|trial| {
                trial.set_messages(in_flight(trial.size));
            })]
        }
    }
}

fn of_neighbours(count: usize) -> String {
    if count == 0 { "nothing else runs".into() } else { format!("{count} spinning neighbours") }
}

/// How many messages make 1 MiB in flight: with their headers, a session's window has no room for one more.
pub(crate) fn in_flight(size: usize) -> u64 {
    ((1 << 20) / (size + 4)) as u64
}

/// Memory hardly changes from round to round, and those rounds take long.
fn few(mut group: Group, choice: &Choice) -> Group {
    group.rounds = group.rounds.min(if choice.quick { 1 } else { 2 });
    group
}

/// One plain sink, and the manager's cases.
fn manager(mut group: Group) -> Group {
    let mut trials = Vec::new();
    for trial in group.trials {
        if trial.system != "buffstreams-manager" {
            trials.push(Trial { label: "buffstreams, one sink".into(), ..trial });
            continue;
        }
        for (addresses, patient, what) in
            [(1, false, "1 address"), (1, true, "1 address, reconnect and message_ttl"), (16, false, "16 addresses")]
        {
            let label = format!("manager, 16 producers, {what}");
            let mut trial = Trial { label, producers: 16, addresses, patient, ..trial.clone() };
            if trial.messages > 0 {
                trial.set_messages(trial.messages);
            }
            trials.push(trial);
        }
    }
    group.trials = trials;
    group
}

/// Why a system does not take part.
fn missing(trial: &Trial) -> Option<String> {
    use Scenario::{Connections, GoBench, Idle, Manager, OpenLoop, PingPong, Resume, SlowConsumer, Throughput};
    let many = trial.connections > 1;
    let name = trial.system.as_str();
    let is = |part: &str| name.starts_with("buffstreams") && name.contains(part);
    let reason = match trial.scenario {
        _ if name == "zmq" && !cfg!(feature = "zmq") => "not built in: it needs `--features zmq` and a C++ compiler",
        Manager if name == "buffstreams" || name == "buffstreams-manager" => return descriptors(trial),
        Manager => "the comparison is between a manager and a sink of the same library",
        Resume if !is("session") => "it has no sessions that outlive a connection",
        Resume if is("256k") => "its window has no room for so much",
        scenario if name == "raw-tls" && scenario != Throughput => "it is one connection, and has no messages",
        GoBench if name == "raw" => "it has no messages that could be decoded",
        SlowConsumer | Idle if name == "raw" => "it has no memory but the kernel's, and this benchmark's own buffers",
        Connections | SlowConsumer | Idle if name == "buffstreams-manager" && many => {
            "a manager has one connection to an address"
        }
        PingPong if name == "buffstreams-manager" => "a manager only sends",
        PingPong if is("callback") => "a listener that calls back has no sink for replies",
        PingPong | SlowConsumer | Idle if is("batches") || is("decode") || is("deliveries") => {
            "beside the way to take messages, it is the system without it"
        }
        OpenLoop | PingPong | SlowConsumer | Idle if is("256k") || is("4m") => {
            "the window does not matter to so little"
        }
        SlowConsumer if name.ends_with("-current") => "the thread that would read is the one that does not take",
        // Measured: 88 ms for a request and its reply.
        PingPong if name == "message-io" => {
            "it writes a message in two pieces with Nagle's algorithm on, so that each waits 40 ms for an acknowledgement"
        }
        _ if is("session") && trial.size + SESSION_READ > window(name) => "its window has no room for the message",
        _ => return descriptors(trial),
    };
    Some(reason.into())
}

/// What a window has room for beside a message: a read, and a header.
const SESSION_READ: usize = (64 << 10) + 4;

/// The window of a system with sessions.
fn window(name: &str) -> usize {
    match name {
        "buffstreams-session-256k" => 256 << 10,
        "buffstreams-session-4m" => 4 << 20,
        _ => 1 << 20,
    }
}

/// Why this machine does not let a process have the connections.
fn descriptors(trial: &Trial) -> Option<String> {
    // What a process has besides: its pipes, its listeners, and what its runtime waits with.
    let needed = trial.connections as u64 + 100;
    let most = getrlimit(Resource::Nofile).maximum.filter(|most| *most < needed)?;
    Some(format!("it takes {needed} descriptors, and a process may have {most} here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(quick: bool) -> Choice {
        let (systems, sizes, connections) = Default::default();
        Choice { only: vec![], systems, sizes, connections, rounds: 2, quick, socket_buffers: 0, messages: None }
    }

    #[test]
    fn a_quick_look_has_systems_that_there_are() {
        for name in QUICK {
            assert!(systems::find(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_sender_and_every_address_gets_as_much() {
        let mut trial =
            Trial { producers: 16, addresses: 16, ..Trial::new(Scenario::Manager, "buffstreams-manager", 110) };
        trial.set_messages(1000);
        assert_eq!(trial.messages, 1024);
        assert_eq!(trial.share() % trial.addresses as u64, 0);
    }

    #[test]
    fn every_system_takes_part_or_has_a_reason() {
        let choice = everything(false);
        for group in groups(&choice) {
            for system in systems::TABLE.iter().map(|entry| entry.name) {
                let takes_part = group.trials.iter().any(|trial| trial.system == system);
                let is_left_out = group.missing.iter().any(|(missing, reason)| missing == system && !reason.is_empty());
                assert!(takes_part != is_left_out, "{system}, {}", group.title);
            }
        }
    }

    #[test]
    fn more_connections_than_a_process_may_have_are_left_out() {
        let trial = |connections| Trial { connections, ..Trial::new(Scenario::Connections, "raw", 110) };
        assert_eq!(descriptors(&trial(1)), None);
        let most = getrlimit(Resource::Nofile).maximum;
        assert_eq!(descriptors(&trial(usize::MAX >> 1)).is_some(), most.is_some());
    }

    #[test]
    fn every_scenario_has_trials() {
        // Those of a quick look need no more descriptors than most machines allow.
        let choice = everything(true);
        let groups = groups(&choice);
        for scenario in Scenario::value_variants() {
            assert!(groups.iter().any(|group| group.scenario == *scenario && !group.trials.is_empty()));
        }
    }
}
