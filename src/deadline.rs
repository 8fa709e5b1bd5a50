//! A time limit that is started and stopped often.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::net;

/// A time limit that runs out rarely: it keeps one timer and looks at the clock when
/// that fires, instead of setting a new one each time.
#[derive(Default)]
pub(crate) struct Deadline {
    /// What is waited for, and how far it has come.
    waits_for: (&'static str, u64),
    since: Option<Instant>,
    timer: Option<Timer>,
}

/// It may be left over from an earlier start, with another limit.
struct Timer {
    fires: Instant,
    sleep: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Deadline {
    /// Stops it.
    pub(crate) fn clear(&mut self) {
        self.since = None;
    }

    /// Makes it one that was started then, for the limit of this name.
    pub(crate) fn start(&mut self, what: &'static str, since: Instant) {
        self.waits_for = (what, 0);
        self.since = Some(since);
    }

    /// Starts it if it is not running; ready with the error when it has run for `limit`. It starts over when there is
    /// another limit, by its name in the configuration, or progress since the last time.
    pub(crate) fn poll(
        &mut self,
        (what, limit): (&'static str, Option<Duration>),
        progress: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Error> {
        if mem::replace(&mut self.waits_for, (what, progress)) != (what, progress) {
            self.since = None;
        }
        let Some(limit) = limit else { return Poll::Pending };
        let since = *self.since.get_or_insert_with(net::now);
        // What is further away than the clock can tell never comes.
        let Some(due) = since.checked_add(limit) else { return Poll::Pending };
        // One that fires too early is looked at then; one that fires too late is of no use.
        self.timer.take_if(|timer| timer.fires > due);
        loop {
            let timer = self.timer.get_or_insert_with(|| Timer::until(due));
            ready!(timer.sleep.as_mut().poll(cx));
            self.timer = None;
            if net::now() >= due {
                self.since = None;
                return Poll::Ready(Error::Timeout { what, after: limit });
            }
        }
    }
}

impl Timer {
    fn until(due: Instant) -> Self {
        Self { fires: due, sleep: Box::pin(net::sleep(due.saturating_duration_since(net::now()))) }
    }
}
