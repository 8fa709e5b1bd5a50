//! A time limit that is started and stopped often, and counts only the time in which somebody polls.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::net;

/// How often it is looked at until it is over, while somebody waits. Its timer is set for the next look, not for the end:
/// who does not come then is gone, or has something else to do.
const LOOKS: u32 = 8;
/// The shortest time until the next look. It is looked at late as well, where the system is busy.
const SHORTEST: Duration = Duration::from_millis(30);

/// A time limit that runs out rarely: it keeps one timer and looks at the clock when that fires, instead of setting a new
/// one each time.
///
/// A future that is dropped says nothing, and so does a program that has no time. What tells is that a timer fires and
/// nobody comes. So the time from one poll to the next counts if the second came at about the time of the timer at the
/// latest; if not, nobody waited, and it does not count. A limit runs out only for somebody who waited all that time.
#[derive(Default)]
pub(crate) struct Deadline {
    /// What is waited for, and how far it has come.
    waits_for: (&'static str, u64),
    waited: Option<Waited>,
    timer: Option<Timer>,
}

/// How long somebody had waited, and when that was.
struct Waited {
    long: Duration,
    until: Instant,
}

/// It may be left over from an earlier start, with another limit.
struct Timer {
    fires: Instant,
    sleep: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Deadline {
    /// Stops it.
    pub(crate) fn clear(&mut self) {
        self.waited = None;
    }

    /// Makes it one that was started then, for the limit of this name. It goes on if it has been looked at since.
    pub(crate) fn start(&mut self, what: &'static str, since: Instant) {
        self.waits_for = (what, 0);
        if self.waited.as_ref().is_none_or(|waited| waited.until <= since) {
            self.waited = Some(Waited { long: Duration::ZERO, until: since });
        }
    }

    /// Starts it if it is not running; ready with the error when somebody has waited for `limit`. It starts over when there
    /// is another limit, by its name in the configuration, or progress since the last time.
    pub(crate) fn poll(
        &mut self,
        (what, limit): (&'static str, Option<Duration>),
        progress: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Error> {
        if mem::replace(&mut self.waits_for, (what, progress)) != (what, progress) {
            self.waited = None;
        }
        let Some(limit) = limit else { return Poll::Pending };
        let look = (limit / LOOKS).max(SHORTEST);
        loop {
            let now = net::now();
            let waited = self.waited.get_or_insert(Waited { long: Duration::ZERO, until: now });
            let since = now.saturating_duration_since(waited.until);
            if since <= 2 * look {
                waited.long += since;
            }
            waited.until = now;
            let left = limit.saturating_sub(waited.long);
            if left.is_zero() {
                self.waited = None;
                return Poll::Ready(Error::Timeout { what, after: limit });
            }
            // What is further away than the clock can tell never comes.
            let Some(next) = now.checked_add(left.min(look)) else { return Poll::Pending };
            // One that fires too early is looked at then; one that fires too late is of no use.
            self.timer.take_if(|timer| timer.fires > next);
            let timer = self.timer.get_or_insert_with(|| Timer::until(next));
            ready!(timer.sleep.as_mut().poll(cx));
            self.timer = None;
        }
    }
}

impl Timer {
    fn until(fires: Instant) -> Self {
        Self { fires, sleep: Box::pin(net::sleep(fires.saturating_duration_since(net::now()))) }
    }
}
