//! How often a connection that broke was dialed again, and whether and when it is dialed once more.

use std::iter;
use std::mem;
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Delays};
use crate::net;

/// The shortest delay: without one, a peer that refuses would keep a core busy.
const SHORTEST: Duration = Duration::from_millis(1);

/// Without a backoff: how many connections in a row may break without having taken a whole message, before the messages
/// come back.
const BREAKS_IN_VAIN: u32 = 3;

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
    /// The connection that the last attempt made was of use, and has broken.
    was_of_use: bool,
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

    /// As [`broke`](Self::broke), where it is known whether the connection had taken a whole message, or had none to take. If
    /// so, the outage goes on as well, but does not come to its end with this break.
    pub(crate) fn broke_after_use(&mut self) {
        self.broke();
        if let Some(outage) = &mut self.outage {
            outage.was_of_use = true;
        }
    }

    /// It had not: a peer that refuses a message does that. Without a backoff, a few more attempts are made at once.
    pub(crate) fn broke_in_vain(&mut self) {
        match &mut self.outage {
            Some(outage) if self.backoff.is_none() => {
                if outage.attempts < BREAKS_IN_VAIN - 1 {
                    outage.delays = Box::new(iter::once(Duration::ZERO));
                }
            }
            _ => self.broke(),
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
        let limit = self.backoff.as_ref().and_then(|backoff| backoff.max_elapsed);
        if let Some(outage) = &mut self.outage {
            let was_of_use = mem::take(&mut outage.was_of_use);
            let delay = outage.delays.next().map(|delay| delay.max(SHORTEST));
            let over = |delay| limit.is_some_and(|limit| (now - outage.began).saturating_add(delay) > limit);
            match delay {
                Some(delay) if !over(delay) => {
                    outage.attempts = outage.attempts.saturating_add(1);
                    return Some(delay);
                }
                // Nobody has tried since it was there.
                _ if was_of_use => {}
                _ => return None,
            }
        }
        let delays = self.backoff.as_ref().map_or_else(|| Box::new(iter::empty()) as Delays, Backoff::delays);
        self.outage = Some(Outage { began: now, delays, attempts: 1, was_of_use: false });
        Some(Duration::ZERO)
    }
}
