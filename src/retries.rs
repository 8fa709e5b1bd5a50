//! How often a connection that broke was dialed again, and whether and when it is dialed once more.

use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Delays};
use crate::net;

/// The shortest delay: without one, a peer that refuses would keep a core busy.
const SHORTEST: Duration = Duration::from_millis(1);

/// How far the attempts to open one connection again have come.
pub(crate) struct Retries {
    /// Without one, each outage has one attempt.
    backoff: Option<Backoff>,
    /// The outage that goes on, or has hardly ended.
    outage: Option<Outage>,
    /// When the connection was opened.
    opened: Instant,
}

struct Outage {
    began: Instant,
    delays: Delays,
    attempts: u32,
}

impl Retries {
    /// Of a connection that is open.
    pub(crate) fn new(backoff: Option<Backoff>) -> Self {
        Self { backoff, outage: None, opened: net::now() }
    }

    /// The connection was opened again.
    pub(crate) fn opened(&mut self) {
        self.opened = net::now();
    }

    /// The connection broke. If it was stable, that is a new outage; if not, the outage goes on from where it was, without
    /// the time that the connection was open.
    pub(crate) fn broke(&mut self) {
        let stable_after = self.backoff.as_ref().map_or(Duration::ZERO, |backoff| backoff.stable_after);
        let open = net::now().saturating_duration_since(self.opened);
        match &mut self.outage {
            Some(outage) if open < stable_after => outage.began += open,
            _ => self.outage = None,
        }
    }

    /// For so long there was nothing to dial for: it is no part of the outage.
    pub(crate) fn rested(&mut self, time: Duration) {
        if let Some(outage) = &mut self.outage {
            outage.began += time;
        }
    }

    /// All was given up; the next attempt is the first of a new outage.
    pub(crate) fn start_over(&mut self) {
        self.outage = None;
    }

    /// All attempts were in vain, and one more is made all the same.
    pub(crate) fn once_more(&mut self) {
        if let Some(outage) = &mut self.outage {
            outage.attempts = outage.attempts.saturating_add(1);
        }
    }

    /// How many attempts the outage has had.
    pub(crate) fn attempts(&self) -> u32 {
        self.outage.as_ref().map_or(0, |outage| outage.attempts)
    }

    /// How long to wait before the next attempt; `None` to give up.
    pub(crate) fn next(&mut self) -> Option<Duration> {
        let now = net::now();
        let Some(outage) = &mut self.outage else {
            let delays = self.backoff.as_ref().map_or_else(|| Box::new(std::iter::empty()) as Delays, Backoff::delays);
            self.outage = Some(Outage { began: now, delays, attempts: 1 });
            return Some(Duration::ZERO);
        };
        let delay = outage.delays.next()?.max(SHORTEST);
        let limit = self.backoff.as_ref().and_then(|backoff| backoff.max_elapsed);
        if limit.is_some_and(|limit| (now - outage.began).saturating_add(delay) > limit) {
            return None;
        }
        outage.attempts = outage.attempts.saturating_add(1);
        Some(delay)
    }
}
