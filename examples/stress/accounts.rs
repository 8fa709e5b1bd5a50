//! The books of a manager, beside what its producers and takers know of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use buffstreams::{LinkStats, Manager, ManagerStats};

use super::books::violation;
use super::faults::{Kind, happened};

/// A manager, and what is known of its books.
pub(crate) struct Account {
    pub(crate) manager: Manager,
    pub(crate) id: u32,
    pub(crate) counters: Arc<Counters>,
}

#[derive(Default)]
pub(crate) struct Counters {
    /// How many messages it was offered, and how many it accepted for certain.
    offered: AtomicU64,
    accepted: AtomicU64,
    /// How many letters came, and how many messages `write` returned that had been accepted.
    taken: AtomicU64,
    returned: AtomicU64,
}

impl Counters {
    /// The manager may accept a message, from now on.
    pub(crate) fn offer(&self) {
        self.offered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn taken(&self) {
        self.taken.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn returned(&self) {
        happened(Kind::Returned);
        self.returned.fetch_add(1, Ordering::Relaxed);
    }
}

impl Account {
    /// The rule that holds at every moment.
    pub(crate) fn look(&self) -> ManagerStats {
        let stats = self.manager.stats();
        let LinkStats { accepted, written, dead_lettered, held, .. } = stats.total;
        if accepted != written + dead_lettered + held {
            violation(format!("manager {}: the books do not balance at one moment: {:?}", self.id, stats.total));
        }
        stats
    }

    /// The rules that hold at the end, when nobody sends any more, and no address is open. What goes on in the background
    /// has some time; `go_on` is called meanwhile.
    pub(crate) fn settle(&self, mut go_on: impl FnMut()) {
        let start = Instant::now();
        loop {
            go_on();
            let ManagerStats { total, lost, .. } = self.look();
            let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
            let Counters { offered, accepted, taken, returned } = &*self.counters;
            let (taken, returned) = (count(taken), count(returned));
            let rules = [
                ("held = 0", total.held == 0),
                ("letters taken + lost + returned = dead-lettered", taken + lost + returned == total.dead_lettered),
                ("accepted for certain <= accepted", count(accepted) <= total.accepted),
                ("accepted <= offered", total.accepted <= count(offered)),
            ];
            let mut broken = rules.iter().filter(|(_, holds)| !holds).map(|(rule, _)| *rule).peekable();
            if broken.peek().is_none() {
                return;
            }
            if start.elapsed() > Duration::from_secs(10) {
                let broken = broken.collect::<Vec<_>>().join(", ");
                let known = format!("taken {taken}, lost {lost}, returned {returned}, {total:?}");
                return violation(format!("manager {}: not true: {broken}: {known}", self.id));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
