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

    /// Whether the number of messages is found by trying.
    pub(crate) fn is_calibrated(&self) -> bool {
        use Scenario::{Connections, GoBench, Manager, Throughput};
        matches!(self.scenario, Throughput | Connections | GoBench | Manager)
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
}

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
        let asked = |name: &&&str| choice.systems.is_empty() || choice.systems.iter().any(|asked| asked == **name);
        for name in systems::NAMES.iter().filter(asked) {
            let mut trial = Trial::new(scenario, name, size);
            trial.millis = if choice.quick { 150 } else { 500 };
            adapt(&mut trial);
            match missing(&trial) {
                Some(reason) => group.missing.push((trial.label, reason)),
                None => group.trials.push(trial),
            }
        }
        group
    };
    match scenario {
        Scenario::Throughput => {
            let sizes = choice.pick(&choice.sizes, &[16, 110, 1024, 4096, 65_536, 1_048_576], &[110, 65_536]);
            sizes
                .into_iter()
                .map(|size| group(format!("messages of {size} bytes, one connection"), size, &|_| ()))
                .collect()
        }
        Scenario::Connections => {
            let counts = choice.pick(&choice.connections, &[1, 16, 100, 1000, 5000], &[1, 1000]);
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
            let title = format!("request and reply, 110 bytes, one connection, {timed} times a round");
            vec![group(title, 110, &|trial| trial.set_messages(WARM_UP + timed))]
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
            let counts = choice.pick(&choice.connections, &[10_000], &[1000]);
            let one = |count: usize| {
                few(group(format!("{count} idle connections"), 110, &|trial| trial.connections = count), choice)
            };
            counts.into_iter().map(one).collect()
        }
        Scenario::OpenLoop => {
            let rates: &[u64] = &[50_000, 100_000, 200_000, 400_000, 800_000];
            let one = |rate: u64| {
                let title = format!("{rate} messages a second offered, 110 bytes, one connection");
                group(title, 110, &|trial| {
                    trial.rate = rate;
                    trial.set_messages(rate * trial.millis / 1000);
                })
            };
            choice.pick(&[], rates, &[100_000]).into_iter().map(one).collect()
        }
    }
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
            trials.push(Trial { label, producers: 16, addresses, patient, ..trial.clone() });
        }
    }
    group.trials = trials;
    group
}

/// Why a system does not take part.
fn missing(trial: &Trial) -> Option<String> {
    use Scenario::{Connections, GoBench, Idle, Manager, PingPong, SlowConsumer, Throughput};
    let many = trial.connections > 1;
    let reason = match (trial.system.as_str(), trial.scenario) {
        ("zmq", _) if !cfg!(feature = "zmq") => "not built in: it needs `--features zmq` and a C++ compiler",
        ("raw-tls", scenario) if scenario != Throughput => "it is one connection, and has no messages",
        ("raw", GoBench) => "it has no messages that could be decoded",
        ("raw", SlowConsumer | Idle) => "it has no memory but the kernel's, and this benchmark's own buffers",
        ("buffstreams" | "buffstreams-manager", Manager) => return descriptors(trial),
        (_, Manager) => "the comparison is between a manager and a sink of the same library",
        ("buffstreams-manager", Connections | SlowConsumer | Idle) if many => {
            "a manager has one connection to an address"
        }
        ("buffstreams-manager", PingPong) => "a manager only sends",
        ("buffstreams-callback", PingPong) => "a listener that calls back has no sink for replies",
        // Measured: 88 ms for a request and its reply.
        ("message-io", PingPong) => {
            "it writes a message in two pieces with Nagle's algorithm on, so that each waits 40 ms for an acknowledgement"
        }
        _ => return descriptors(trial),
    };
    Some(reason.into())
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
        let choice =
            Choice { only: vec![], systems: vec![], sizes: vec![], connections: vec![], rounds: 5, quick: false };
        for group in groups(&choice) {
            for system in systems::NAMES {
                let takes_part = group.trials.iter().any(|trial| trial.system == *system);
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
        let choice =
            Choice { only: vec![], systems: vec![], sizes: vec![], connections: vec![], rounds: 2, quick: true };
        let groups = groups(&choice);
        for scenario in Scenario::value_variants() {
            assert!(groups.iter().any(|group| group.scenario == *scenario && !group.trials.is_empty()));
        }
    }
}
