//! The receiver is killed again and again. What is acknowledged is in its journal; what was not sent is not; only what is in
//! doubt may be either.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use async_std::task;
use buffstreams::{Backoff, BoxError, Config};
use fastrand::Rng;

use crate::fault_lab::books::{Id, peak_memory};
use crate::fault_lab::order::{Order, STALL, broken, line, unless_it_stands};
use crate::fault_lab::receiver::{self, Entry, Place};
use crate::fault_lab::senders::{Fate, MANAGERS, Outcomes, Senders};

/// One receiver in so many is killed soon after its start, whatever it does then: within this time.
const SOON_EVERY: u32 = 6;
const SOON: Duration = Duration::from_millis(20);
/// How long after its last message that counts another one is killed, at the most.
const LATER: Duration = Duration::from_millis(2);
/// Before one in so many there is nobody for a time: for longer than the senders hold what they could not send.
const AWAY_EVERY: u64 = 6;
const AWAY: Duration = Duration::from_millis(300);
const GIVE_UP: Duration = Duration::from_millis(150);
/// What was not sent may get older than that only while nobody is there.
const MESSAGE_TTL: Duration = Duration::from_millis(100);
const QUEUE: usize = 1024 * 1024;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// About how many messages are taken.
    pub(crate) messages: u64,
    pub(crate) kills: u64,
    /// What this program is to be started with, to be a receiver.
    pub(crate) args: &'static [&'static str],
}

/// All figures of a run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) settings: Settings,
    pub(crate) outcomes: Outcomes,
    pub(crate) journal: Order,
    pub(crate) kills: u64,
    /// How many messages were acknowledged, and are not in the journal.
    pub(crate) unfounded: u64,
    /// How many were not sent, or refused, and are in the journal.
    pub(crate) denied: u64,
    /// How many of those in doubt are in the journal.
    pub(crate) doubted: u64,
    /// What else went wrong.
    pub(crate) violations: Vec<String>,
    pub(crate) took: Duration,
}

/// The senders give up after a time, so that some messages are never sent.
fn config() -> Config {
    let backoff = Backoff::exponential(Duration::from_millis(1), Duration::from_millis(10));
    let backoff = backoff.stable_after(Duration::from_millis(1)).max_elapsed(GIVE_UP);
    receiver::config().reconnect(backoff).message_ttl(MESSAGE_TTL).queue_bytes(QUEUE)
}

/// Runs to the end. `progress` is told now and then how many messages were taken, and how many receivers were killed.
pub(crate) async fn run(settings: Settings, progress: impl FnMut(u64, u64)) -> Result<Report, BoxError> {
    let written = Arc::new(AtomicU64::new(0));
    unless_it_stands(STALL, &written, work(settings, written.clone(), progress)).await
}

async fn work(
    settings: Settings,
    written: Arc<AtomicU64>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Report, BoxError> {
    let start = Instant::now();
    let Settings { seed, messages, kills, args } = settings;
    let mut rng = Rng::with_seed(seed);
    let up_to = |rng: &mut Rng, longest: Duration| Duration::from_micros(rng.u64(0..=longest.as_micros() as u64));
    let share = messages / (kills + 1);
    let place = Place::new(args, written)?;
    let mut receiver = place.start()?;
    let senders = Senders::start(place.port, &config(), seed).await?;
    let (mut journal, mut killed) = (Order::default(), 0);
    while killed < kills {
        let takes = rng.u64(1..=(2 * share).max(1));
        let pause = if rng.u32(0..SOON_EVERY) == 0 {
            up_to(&mut rng, SOON)
        } else {
            receiver.take(&mut journal, takes).await?;
            up_to(&mut rng, LATER)
        };
        task::sleep(pause).await;
        receiver.kill()?;
        // What it has written is all there.
        while let Some(Entry::Taken(id)) = receiver.next().await {
            journal.receive(id);
        }
        killed += 1;
        progress(journal.received, killed);
        if killed % AWAY_EVERY == 2 {
            task::sleep(AWAY).await;
        }
        receiver = place.start()?;
    }
    // The last one goes on to the end.
    receiver.take(&mut journal, share.max(1)).await?;
    let outcomes = senders.finish().await;
    receiver.close();
    let mut violations = Vec::new();
    if !receiver.finish(&mut journal).await {
        violations.push("the last receiver did not come to its end".to_owned());
    }
    let missing = (0..)
        .zip(&outcomes.accepted)
        .flat_map(|(producer, sent)| journal.missing(producer, *sent).map(move |number| Id { producer, number }));
    let unfounded = missing.filter(|id| !outcomes.back.contains_key(id)).count() as u64;
    let taken = |fate| outcomes.back.iter().filter(|(id, of)| **of == fate && journal.has(**id)).count() as u64;
    let (denied, doubted) = (taken(Fate::NotSent) + taken(Fate::Refused), taken(Fate::InDoubt));
    let took = start.elapsed();
    Ok(Report { settings, outcomes, journal, kills: killed, unfounded, denied, doubted, violations, took })
}

impl Report {
    /// How many messages came back with this fate.
    pub(crate) fn count(&self, fate: Fate) -> u64 {
        self.outcomes.count(fate)
    }

    /// The rules that are broken; none, if all is well.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        let Self { settings, outcomes, journal, .. } = self;
        let stats = outcomes.stats;
        let rules = [
            ("as many receivers were killed as asked for", self.kills == settings.kills),
            ("acked and not journaled = 0", self.unfounded == 0),
            ("not sent or refused, and journaled = 0", self.denied == 0),
            ("acked, as the messages tell = acked, as the managers tell", outcomes.acked() == stats.acked),
            ("sent = accepted", outcomes.sent() == stats.accepted),
            ("accepted = acked + dead-lettered", stats.accepted == stats.acked + stats.dead_lettered),
            ("dead-lettered = what came back", stats.dead_lettered == outcomes.back.len() as u64),
            (
                "in doubt, as the messages tell = in doubt, as the managers tell",
                self.count(Fate::InDoubt) == stats.in_doubt,
            ),
            ("refused = 0", stats.refused + self.count(Fate::Refused) == 0),
            ("held = 0", stats.held == 0),
            ("nothing was taken twice or out of order, or is damaged", {
                journal.twice + journal.out_of_order + journal.damaged == 0
            }),
            // Each killed receiver that anybody had met ends their sessions.
            ("sessions were lost, and begun anew", settings.kills == 0 || stats.sessions > u64::from(MANAGERS)),
        ];
        let violations: Vec<_> = self.violations.iter().chain(&outcomes.violations).cloned().collect();
        broken(&rules, &violations)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings: Settings { seed, messages, .. }, outcomes, journal, .. } = self;
        let stats = outcomes.stats;
        writeln!(f, "killed: seed {seed}, about {messages} messages, {} kills", self.kills)?;
        line(f, "accepted", stats.accepted, &format!("({MANAGERS} managers, {} sessions)", stats.sessions))?;
        line(f, "acked", stats.acked, &format!("({} of them not journaled)", self.unfounded))?;
        line(f, "in doubt", stats.in_doubt, &format!("({} of them journaled)", self.doubted))?;
        line(f, "not sent", self.count(Fate::NotSent), &format!("({} of them journaled)", self.denied))?;
        line(f, "refused", stats.refused, "")?;
        line(f, "held", stats.held, "")?;
        let bad =
            format!("(twice {}, out of order {}, damaged {})", journal.twice, journal.out_of_order, journal.damaged);
        line(f, "journaled", journal.received, &bad)?;
        if let Some(kib) = peak_memory() {
            line(f, "peak memory", kib, "KiB, of the senders")?;
        }
        write!(f, "  time           {:>9.1} s", self.took.as_secs_f64())
    }
}
