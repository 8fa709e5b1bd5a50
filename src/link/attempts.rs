//! How often a connection that broke was dialed again, and whether and when it is dialed once more.

use std::mem;
use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Delays};
use crate::error::Error;
use crate::foreign::{self, Panic, PanicHook, PanicSource};

/// The shortest delay: without one, a peer that refuses would keep a core busy.
const SHORTEST: Duration = Duration::from_millis(1);

/// After how long one that was given up is dialed again, where the backoff has no delay at all.
const PROBES: Duration = Duration::from_secs(1);

/// Without a backoff: how many connections in a row may break without having taken a whole message, before the messages
/// come back.
const BREAKS_IN_VAIN: u32 = 3;

/// How far the attempts to open one connection again have come.
pub(crate) struct Retries {
    /// Without one, each outage has one attempt.
    backoff: Option<Backoff>,
    /// Told of what panics in the backoff.
    hook: Option<PanicHook>,
    /// The outage that goes on, or has hardly ended.
    outage: Option<Outage>,
    /// When the connection was opened.
    opened: Instant,
    /// Decides what the delays draw.
    rng: fastrand::Rng,
}

/// It ends with a connection that was stable, or when all is given up.
struct Outage {
    /// When the first attempt was made: at the first break, or when there was something to send after it.
    began: Instant,
    /// Made when the first attempt has failed.
    delays: Option<Delays>,
    /// The longest of them so far.
    longest: Option<Duration>,
    attempts: u32,
    /// The peer refused a message, and without a backoff it is tried again at once.
    once_more: bool,
    /// Since the last attempt there was a time in which nothing was held.
    idle: bool,
}

impl Retries {
    /// Of a connection that is open since `now`. What the delays draw comes from `seed`.
    pub(crate) fn new(backoff: Option<Backoff>, hook: Option<PanicHook>, now: Instant, seed: u64) -> Self {
        Self { backoff, hook, outage: None, opened: now, rng: fastrand::Rng::with_seed(seed) }
    }

    /// The connection was opened again.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.opened = now;
    }

    /// The connection broke. If it was stable, the next attempt is the first of a new outage; if not, the outage goes on,
    /// whether or not it took messages, or a peer that dies of each would be dialed without a pause.
    pub(crate) fn broke(&mut self, now: Instant) {
        let stable_after = self.backoff.as_ref().map_or(Duration::ZERO, |backoff| backoff.stable_after);
        if now.saturating_duration_since(self.opened) >= stable_after {
            self.start_over();
        }
    }

    /// As [`broke`](Self::broke), where the connection had taken no whole message, and had one to take: a peer that refuses
    /// a message does that. Without a backoff, a few more attempts are made at once.
    pub(crate) fn broke_in_vain(&mut self, now: Instant) {
        match &mut self.outage {
            Some(outage) if self.backoff.is_none() => outage.once_more = outage.attempts < BREAKS_IN_VAIN - 1,
            _ => self.broke(now),
        }
    }

    /// Nothing is held, and so nothing dialed for. Where the outage comes to its end meanwhile, there is nothing to give
    /// back, and the next message begins another.
    pub(crate) fn rests(&mut self) {
        if let Some(outage) = &mut self.outage {
            outage.idle = true;
        }
    }

    /// All was given up; the next attempt is the first of a new outage.
    pub(crate) fn start_over(&mut self) {
        if let Some(outage) = self.outage.take() {
            self.drop_delays(outage.delays);
        }
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

    /// How long to wait before the next attempt; `None` to give up. So does the error: the backoff panicked.
    pub(crate) fn next(&mut self, now: Instant) -> Result<Option<Duration>, Error> {
        if let Some(outage) = &mut self.outage {
            let elapsed = now.saturating_duration_since(outage.began);
            let limit = self.backoff.as_ref().and_then(|backoff| backoff.max_elapsed);
            let idle = mem::take(&mut outage.idle);
            if !idle || limit.is_none_or(|limit| elapsed <= limit) {
                match self.delay()? {
                    Some(delay) if limit.is_none_or(|limit| elapsed.saturating_add(delay) <= limit) => {
                        self.once_more();
                        return Ok(Some(delay));
                    }
                    // It was over when nothing was held.
                    None if idle => {}
                    _ => return Ok(None),
                }
            }
        }
        self.start_over();
        self.outage =
            Some(Outage { began: now, delays: None, longest: None, attempts: 1, once_more: false, idle: false });
        Ok(Some(Duration::ZERO))
    }

    /// All was given up, and another attempt is made all the same, after this delay: the next one of the backoff, or where it
    /// has no more, the longest that it had.
    pub(crate) fn probe(&mut self) -> Duration {
        let next = self.delay().unwrap_or_default();
        self.once_more();
        let longest = self.outage.as_ref().and_then(|outage| outage.longest);
        next.or(longest).unwrap_or(PROBES)
    }

    /// The next delay of the outage that goes on.
    fn delay(&mut self) -> Result<Option<Duration>, Error> {
        let Some(outage) = &mut self.outage else { return Ok(None) };
        let Some(backoff) = &self.backoff else {
            return Ok(mem::take(&mut outage.once_more).then_some(SHORTEST));
        };
        let next = match &mut outage.delays {
            Some(delays) => foreign::call(|| delays.next()),
            none => foreign::call(|| none.insert(backoff.delays(self.rng.u64(..))).next()),
        };
        let panic = match next {
            Ok(delay) => {
                let delay = delay.map(|delay| delay.max(SHORTEST));
                outage.longest = outage.longest.max(delay);
                return Ok(delay);
            }
            Err(panic) => panic,
        };
        // It is not asked again.
        let delays = outage.delays.replace(Backoff::none());
        self.drop_delays(delays);
        self.tell(PanicSource::Backoff, panic);
        Err(Error::Panicked { what: PanicSource::Backoff })
    }

    fn drop_delays(&self, delays: Option<Delays>) {
        if let Err(panic) = foreign::dispose(delays) {
            self.tell(PanicSource::Drop, panic);
        }
    }

    fn tell(&self, source: PanicSource, panic: Panic) {
        if let Some(hook) = &self.hook {
            hook(source, panic);
        }
    }
}

impl Drop for Retries {
    fn drop(&mut self) {
        self.start_over();
    }
}
