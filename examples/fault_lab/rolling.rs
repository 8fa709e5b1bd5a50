//! The receiver is restarted again and again, gracefully: one closes, and the next one takes its place while it lets its
//! senders finish. Nothing is lost, and nothing is in doubt.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use buffstreams::{Backoff, BoxError, Config};
use fastrand::Rng;

use crate::fault_lab::books::peak_memory;
use crate::fault_lab::order::{Order, STALL, broken, line, unless_it_stands};
use crate::fault_lab::receiver::{self, Place, Receiver};
use crate::fault_lab::senders::{MANAGERS, Outcomes, Senders};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// About how many messages are taken.
    pub(crate) messages: u64,
    pub(crate) restarts: u64,
    /// What this program is to be started with, to be a receiver.
    pub(crate) args: &'static [&'static str],
}

/// All figures of a run.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) settings: Settings,
    pub(crate) outcomes: Outcomes,
    pub(crate) journal: Order,
    pub(crate) lost: u64,
    pub(crate) restarts: u64,
    pub(crate) took: Duration,
}

/// The senders dial until somebody is there.
fn config() -> Config {
    receiver::config().reconnect(Backoff::exponential(Duration::from_millis(1), Duration::from_millis(10)))
}

/// Runs to the end. `progress` is told now and then how many messages were taken, and how many restarts there were.
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
    let Settings { seed, messages, restarts, args } = settings;
    let mut rng = Rng::with_seed(seed);
    let share = messages / (restarts + 1);
    let place = Place::new(args, written)?;
    let mut receiver = place.start()?;
    let senders = Senders::start(place.port, &config(), seed).await?;
    let (mut journal, mut restarted) = (Order::default(), 0);
    while restarted < restarts {
        // Some are closed as soon as they have taken something.
        receiver.take(&mut journal, rng.u64(1..=(2 * share).max(1))).await?;
        receiver.close();
        let next = place.start()?;
        finish(&mut receiver, &mut journal).await?;
        receiver = next;
        restarted += 1;
        progress(journal.received, restarted);
    }
    let outcomes = senders.finish().await;
    receiver.close();
    finish(&mut receiver, &mut journal).await?;
    let lost = (0..).zip(&outcomes.accepted).map(|(producer, sent)| journal.missing(producer, *sent).count() as u64);
    let lost = lost.sum();
    Ok(Report { settings, outcomes, journal, lost, restarts: restarted, took: start.elapsed() })
}

/// Waits until a receiver that closes is done.
async fn finish(receiver: &mut Receiver, journal: &mut Order) -> Result<(), BoxError> {
    match receiver.finish(journal).await {
        true => Ok(()),
        false => Err("a receiver that closed did not come to its end".into()),
    }
}

impl Report {
    /// The rules that are broken; none, if all is well.
    pub(crate) fn broken_rules(&self) -> Vec<String> {
        let Self { settings, outcomes, journal, .. } = self;
        let stats = outcomes.stats;
        let rules = [
            ("there were as many restarts as asked for", self.restarts == settings.restarts),
            ("sent = accepted", outcomes.sent() == stats.accepted),
            ("accepted = acked", stats.accepted == stats.acked),
            ("in doubt = 0", stats.in_doubt == 0),
            ("nothing came back", stats.dead_lettered == 0 && outcomes.back.is_empty()),
            ("held = 0", stats.held == 0),
            ("lost = 0", self.lost == 0),
            ("journaled = accepted", journal.received == stats.accepted),
            ("nothing was taken twice or out of order, or is damaged", {
                journal.twice + journal.out_of_order + journal.damaged == 0
            }),
            ("sessions were begun anew", settings.restarts == 0 || stats.sessions > u64::from(MANAGERS)),
        ];
        broken(&rules, &outcomes.violations)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { settings: Settings { seed, messages, .. }, outcomes, journal, .. } = self;
        let stats = outcomes.stats;
        writeln!(f, "rolling: seed {seed}, about {messages} messages, {} restarts", self.restarts)?;
        line(f, "accepted", stats.accepted, &format!("({MANAGERS} managers, {} sessions)", stats.sessions))?;
        line(f, "acked", stats.acked, "")?;
        line(f, "in doubt", stats.in_doubt, "")?;
        line(f, "came back", stats.dead_lettered, "")?;
        line(f, "held", stats.held, "")?;
        line(f, "lost", self.lost, "")?;
        let bad =
            format!("(twice {}, out of order {}, damaged {})", journal.twice, journal.out_of_order, journal.damaged);
        line(f, "journaled", journal.received, &bad)?;
        if let Some(kib) = peak_memory() {
            line(f, "peak memory", kib, "KiB, of the senders")?;
        }
        write!(f, "  time           {:>9.1} s", self.took.as_secs_f64())
    }
}
