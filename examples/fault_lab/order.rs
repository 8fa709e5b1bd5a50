//! What came of each producer's messages, held against the order in which they were sent; and a limit for a run that stands.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_std::task;
use buffstreams::BoxError;
use futures::future::{self, Either};

use crate::fault_lab::books::Id;

/// How long a run may be without a message that is received. The longest fault takes less than a second.
pub(crate) const STALL: Duration = Duration::from_secs(20);

/// What was received. Of messages that came without a gap, a number for each producer is all there is to keep: memory does not
/// grow with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Order {
    producers: BTreeMap<u32, Seen>,
    pub(crate) received: u64,
    pub(crate) twice: u64,
    /// They came, but later ones had come before.
    pub(crate) out_of_order: u64,
    pub(crate) damaged: u64,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    /// Behind the highest number that came.
    next: u64,
    /// What did not come before it: from a number to the one behind the last.
    missing: BTreeMap<u64, u64>,
}

impl Order {
    /// One came; `None` if it is damaged.
    pub(crate) fn receive(&mut self, id: Option<Id>) {
        self.received += 1;
        let Some(Id { producer, number }) = id else {
            self.damaged += 1;
            return;
        };
        let seen = self.producers.entry(producer).or_default();
        if number >= seen.next {
            if number > seen.next {
                seen.missing.insert(seen.next, number);
            }
            seen.next = number + 1;
        } else if seen.find(number) {
            self.out_of_order += 1;
        } else {
            self.twice += 1;
        }
    }

    /// Whether it came.
    pub(crate) fn has(&self, Id { producer, number }: Id) -> bool {
        self.producers.get(&producer).is_some_and(|seen| number < seen.next && seen.gap(number).is_none())
    }

    /// Which of the first `sent` of this producer did not come.
    pub(crate) fn missing(&self, producer: u32, sent: u64) -> impl Iterator<Item = u64> {
        let seen = self.producers.get(&producer);
        let gaps = seen.into_iter().flat_map(|seen| seen.missing.iter().flat_map(|(from, to)| *from..*to));
        gaps.chain(seen.map_or(0, |seen| seen.next)..sent)
    }
}

impl Seen {
    fn gap(&self, number: u64) -> Option<Range<u64>> {
        let (from, to) = self.missing.range(..=number).next_back()?;
        (number < *to).then_some(*from..*to)
    }

    /// Takes it out of what is missing, if it is.
    fn find(&mut self, number: u64) -> bool {
        let Some(gap) = self.gap(number) else { return false };
        self.missing.remove(&gap.start);
        for rest in [gap.start..number, number + 1..gap.end] {
            if !rest.is_empty() {
                self.missing.insert(rest.start, rest.end);
            }
        }
        true
    }
}

/// Rules that hold or do not: the names of those that do not.
pub(crate) fn broken(rules: &[(&str, bool)], violations: &[String]) -> Vec<String> {
    let broken = rules.iter().filter(|(_, holds)| !holds).map(|(rule, _)| (*rule).to_owned());
    broken.chain(violations.iter().cloned()).collect()
}

/// A figure of a report, on a line of its own.
pub(crate) fn line(f: &mut fmt::Formatter<'_>, what: &str, figure: u64, more: &str) -> fmt::Result {
    let space = if more.is_empty() { "" } else { "  " };
    writeln!(f, "  {what:<14} {figure:>9}{space}{more}")
}

/// Runs `work` to its end. It is given up, with an error, when `progress` has been the same for so long.
pub(crate) async fn unless_it_stands<T>(
    limit: Duration,
    progress: &AtomicU64,
    work: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    let stands = async {
        loop {
            let before = progress.load(Ordering::Relaxed);
            task::sleep(limit).await;
            if progress.load(Ordering::Relaxed) == before {
                return before;
            }
        }
    };
    let (work, stands) = (Box::pin(work), Box::pin(stands));
    match future::select(work, stands).await {
        Either::Left((done, _)) => done,
        Either::Right((received, _)) => Err(format!("no message was received for {limit:?}, after {received}").into()),
    }
}
