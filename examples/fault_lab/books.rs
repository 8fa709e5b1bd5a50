//! The books of a run: what was sent, what became of it, and the rules that must hold between the figures.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

use crate::fault_lab::proxy::{Done, Fault, Passed};

/// How many violations are kept; one is enough to fail.
const KEEP: usize = 20;

/// Who sent a message, and which one of theirs it is, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) producer: u32,
    pub(crate) number: u64,
}

/// What a manager says of its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) accepted: u64,
    pub(crate) written: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) held: u64,
    pub(crate) reconnects: u64,
}

impl Tally {
    pub(crate) fn balances(&self) -> bool {
        self.accepted == self.written + self.dead_lettered + self.held
    }
}

/// How the receiver's connections ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ends {
    pub(crate) closed: u64,
    pub(crate) truncated: u64,
    pub(crate) failed: u64,
    pub(crate) timed_out: u64,
    pub(crate) rejected: u64,
    /// Events that came too fast to be seen.
    pub(crate) missed: u64,
}

/// What was received. A connection brings each producer's messages without a gap, so a range for each is all there is to
/// keep: memory does not grow with the messages.
#[derive(Debug, Default)]
pub(crate) struct Receipts {
    /// By the producer, and by the connection, counted from 1 in the order in which they were made.
    ranges: BTreeMap<(u32, u64), Range<u64>>,
    pub(crate) received: u64,
    pub(crate) violations: Vec<String>,
}

impl Receipts {
    pub(crate) fn receive(&mut self, connection: u64, id: Option<Id>) {
        self.received += 1;
        let Some(Id { producer, number }) = id else {
            return self.violation(format!("connection {connection} brought a damaged message"));
        };
        let range = self.ranges.entry((producer, connection)).or_insert(number..number);
        if number == range.end {
            range.end += 1;
        } else {
            let range = range.clone();
            self.violation(format!("connection {connection}, producer {producer}: {number} came after {range:?}"));
        }
    }

    fn violation(&mut self, what: String) {
        if self.violations.len() < KEEP {
            self.violations.push(what);
        }
    }

    /// Looks for the messages that were not received: `accepted` says how many each producer had sent, `dead` which of them
    /// came back, `connections` what the proxy did. Every other message must be here, once and in order.
    pub(crate) fn settle(&mut self, accepted: &[u64], mut dead: Vec<Id>, connections: &[Passed]) -> Losses {
        let mut losses = Losses::default();
        let total = dead.len();
        dead.sort_unstable();
        dead.dedup();
        if dead.len() < total {
            self.violation(format!("{} dead letters came twice", total - dead.len()));
        }
        let dead_in = |producer, numbers: &Range<u64>| {
            let at = |number| dead.partition_point(|id| *id < Id { producer, number });
            (at(numbers.end) - at(numbers.start)) as u64
        };
        // What was lost behind one connection.
        let mut behind = BTreeMap::<u64, u64>::new();
        for (producer, &accepted) in (0..).zip(accepted) {
            let last = (u64::MAX, accepted..accepted);
            let ranges = self.ranges.range((producer, 0)..=(producer, u64::MAX));
            let ranges: Vec<_> =
                ranges.map(|((_, connection), range)| (*connection, range.clone())).chain([last]).collect();
            let (mut next, mut since) = (0, 1);
            for (connection, range) in ranges {
                if range.start < next {
                    self.violation(format!(
                        "producer {producer}: {range:?} of connection {connection} came again, or too late: {next} was next"
                    ));
                }
                let came_back = dead_in(producer, &range);
                if came_back > 0 {
                    self.violation(format!(
                        "producer {producer}: {came_back} of {range:?} were received, and came back"
                    ));
                }
                let gap = next..range.start.max(next);
                let lost = (gap.end - gap.start).saturating_sub(dead_in(producer, &gap));
                let between = (since..connection).map_while(|at| connections.get(at as usize - 1));
                let may = between.into_iter().any(|passed| passed.cut);
                if lost > 0 && !may {
                    self.violation(format!(
                        "producer {producer}: {lost} of {gap:?} are missing, and none of the connections since {since} was cut"
                    ));
                }
                losses.messages += lost;
                if lost > 0 {
                    *behind.entry(since).or_default() += lost;
                }
                (next, since) = (range.end.max(next), connection);
            }
        }
        losses.places = behind.len() as u64;
        losses.largest = behind.into_values().max().unwrap_or(0);
        losses
    }
}

/// What was written and never received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Losses {
    pub(crate) messages: u64,
    /// Behind how many connections.
    pub(crate) places: u64,
    /// The most behind one connection.
    pub(crate) largest: u64,
}

/// All figures of a run.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) seed: u64,
    /// How many messages and faults were asked for.
    pub(crate) messages: u64,
    pub(crate) faults: u64,
    /// Whether the manager was to dial again and again.
    pub(crate) reconnect: bool,
    /// How many messages the producers' sinks took.
    pub(crate) sent: u64,
    /// How many dead letters came.
    pub(crate) letters: u64,
    /// What the manager said at the end.
    pub(crate) tally: Tally,
    /// How often it was asked before.
    pub(crate) samples: u64,
    pub(crate) receipts: Receipts,
    pub(crate) losses: Losses,
    pub(crate) ends: Ends,
    /// How many connections the manager gave up, because nothing was taken for so long.
    pub(crate) given_up: u64,
    pub(crate) proxy: Done,
    /// What else went wrong.
    pub(crate) violations: Vec<String>,
    pub(crate) took: Duration,
}

impl Books {
    /// The rules that are broken; none, if all is well.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        let Tally { accepted, written, dead_lettered, held, .. } = self.tally;
        let (received, lost) = (self.receipts.received, self.losses.messages);
        let rules = [
            ("all messages were sent", self.sent == self.messages),
            ("sent = accepted", self.sent == accepted),
            ("accepted = written + dead-lettered + held", self.tally.balances()),
            ("held = 0", held == 0),
            ("written = received + lost", written == received + lost),
            ("dead-lettered = dead letters that came", dead_lettered == self.letters),
            ("no header made no sense", self.ends.rejected == 0),
            // They are planned by the bytes that are expected to go through, and what is lost does not.
            ("there were about as many faults as asked for", self.proxy.total() * 10 >= self.faults * 8),
        ];
        let broken = rules.into_iter().filter(|(_, holds)| !holds).map(|(rule, _)| rule.to_owned());
        broken.chain(self.receipts.violations.iter().cloned()).chain(self.violations.iter().cloned()).collect()
    }
}

impl fmt::Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, ends, proxy, losses, receipts, .. } = self;
        let reconnect = if self.reconnect { ", reconnect" } else { "" };
        writeln!(f, "seed {}, {} messages, {} faults{reconnect}", self.seed, self.messages, self.faults)?;
        writeln!(f, "  accepted       {:>9}  (the books were looked at {} times)", tally.accepted, self.samples)?;
        writeln!(f, "  written        {:>9}", tally.written)?;
        writeln!(f, "  dead-lettered  {:>9}", tally.dead_lettered)?;
        writeln!(f, "  held           {:>9}", tally.held)?;
        writeln!(
            f,
            "  received       {:>9}  (twice, out of order or damaged: {})",
            receipts.received,
            receipts.violations.len()
        )?;
        writeln!(
            f,
            "  lost           {:>9}  (written, and in flight at one of {} cuts; at most {} at one)",
            losses.messages, losses.places, losses.largest
        )?;
        writeln!(f, "  reconnects     {:>9}  ({} because of write_timeout)", tally.reconnects, self.given_up)?;
        let cuts = proxy.connections.iter().filter(|passed| passed.cut).count();
        let up: u64 = proxy.connections.iter().map(|passed| passed.up).sum();
        writeln!(f, "  connections    {:>9}  ({cuts} cut; {up} bytes went through)", proxy.connections.len())?;
        let kinds = Fault::NAMES.iter().zip(proxy.faults).map(|(name, n)| format!("{name} {n}"));
        writeln!(f, "  faults         {:>9}  ({})", proxy.total(), kinds.collect::<Vec<_>>().join(", "))?;
        let Ends { closed, truncated, failed, timed_out, rejected, missed } = ends;
        writeln!(
            f,
            "  receiver's end {:>9}  (truncated {truncated}, closed {closed}, failed {failed}, timed out {timed_out}, \
             rejected {rejected}, not seen {missed})",
            closed + truncated + failed + timed_out + rejected
        )?;
        match peak_memory() {
            Some(kib) => writeln!(f, "  peak memory    {kib:>9} KiB")?,
            None => writeln!(f, "  peak memory      unknown")?,
        }
        write!(f, "  time           {:>9.1} s", self.took.as_secs_f64())
    }
}

/// The most memory that this process had at once, in KiB, where the system tells.
pub(crate) fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
}
