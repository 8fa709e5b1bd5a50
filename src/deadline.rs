//! A time limit that is started and stopped often, and counts only the time in which somebody polls.

use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::error::{Error, Limit};
use crate::runtime::{Alarm, Handle};

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
pub(crate) struct Deadline {
    runtime: Handle,
    /// On the heap from the first start on: of many connections it never runs.
    state: Option<Box<State>>,
}

#[derive(Default)]
struct State {
    /// The limit, if it has a name, and how far has come what is waited for.
    waits_for: (Option<Limit>, u64),
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
    alarm: Alarm,
}

impl Deadline {
    /// One that is not running.
    pub(crate) fn new(runtime: &Handle) -> Self {
        Self { runtime: runtime.clone(), state: None }
    }

    /// Stops it.
    pub(crate) fn clear(&mut self) {
        if let Some(state) = &mut self.state {
            state.waited = None;
        }
    }

    /// Makes it one that was started then, for this limit. It goes on if it has been looked at since.
    pub(crate) fn start(&mut self, what: Option<Limit>, since: Instant) {
        let state = self.state.get_or_insert_default();
        state.waits_for = (what, 0);
        if state.waited.as_ref().is_none_or(|waited| waited.until <= since) {
            state.waited = Some(Waited { long: Duration::ZERO, until: since });
        }
    }

    /// Starts it if it is not running; ready with the error when somebody has waited for as long as the limit is. It starts
    /// over when there is another limit, or progress since the last time.
    pub(crate) fn poll(&mut self, what: Limit, config: &Config, progress: u64, cx: &mut Context<'_>) -> Poll<Error> {
        match config.limit(what) {
            Some(limit) => self.poll_limit(what, limit, progress, cx),
            None => {
                self.clear();
                Poll::Pending
            }
        }
    }

    /// The same for a limit that is this one, whatever the configuration says.
    pub(crate) fn poll_limit(
        &mut self,
        what: Limit,
        limit: Duration,
        progress: u64,
        cx: &mut Context<'_>,
    ) -> Poll<Error> {
        self.poll_over(Some(what), limit, progress, cx).map(|()| Error::Timeout { what, after: limit })
    }

    /// As [`poll`](Self::poll), for a peer from which something is to be read. Where only silence counts, and `has_unread` finds
    /// something at the end, it starts over: that came while the thread was busy, and would be lost with the socket.
    pub(crate) fn poll_peer(
        &mut self,
        what: Limit,
        config: &Config,
        progress: u64,
        has_unread: impl FnOnce() -> bool,
        cx: &mut Context<'_>,
    ) -> Poll<Error> {
        let error = ready!(self.poll(what, config, progress, cx));
        // A frame has its time as a whole.
        if what != Limit::FrameTimeout && has_unread() {
            // A reactor that has not told of it may never do: it is for the next read to ask the system.
            cx.waker().wake_by_ref();
            return self.poll(what, config, progress, cx);
        }
        Poll::Ready(error)
    }

    /// As [`poll`](Self::poll), for a limit that has no name.
    pub(crate) fn poll_for(&mut self, limit: Duration, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_over(None, limit, 0, cx)
    }

    fn poll_over(&mut self, what: Option<Limit>, limit: Duration, progress: u64, cx: &mut Context<'_>) -> Poll<()> {
        let Self { runtime, state } = self;
        let State { waits_for, waited: running, timer } = &mut **state.get_or_insert_default();
        if mem::replace(waits_for, (what, progress)) != (what, progress) {
            *running = None;
        }
        let look = (limit / LOOKS).max(SHORTEST);
        loop {
            let now = runtime.now();
            let waited = running.get_or_insert(Waited { long: Duration::ZERO, until: now });
            let since = now.saturating_duration_since(waited.until);
            if since <= 2 * look {
                waited.long += since;
            }
            waited.until = now;
            let left = limit.saturating_sub(waited.long);
            if left.is_zero() {
                *running = None;
                return Poll::Ready(());
            }
            // What is further away than the clock can tell never comes.
            let Some(next) = now.checked_add(left.min(look)) else { return Poll::Pending };
            // One that fires too early is looked at then; one that fires too late is of no use.
            timer.take_if(|timer| timer.fires > next);
            let set = timer.get_or_insert_with(|| Timer { fires: next, alarm: runtime.timer(next) });
            ready!(Pin::new(&mut set.alarm).poll(cx));
            *timer = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::sim::testing::{self, Sim, block, elapsed};

    const LIMIT: Duration = Duration::from_secs(80);
    const LOOK: Duration = Duration::from_secs(10);
    const MOMENT: Duration = Duration::from_millis(1);

    /// Limits of any name will do.
    fn config() -> Config {
        Config::new().frame_timeout(LIMIT).idle_timeout(LIMIT)
    }

    fn new() -> Deadline {
        Deadline::new(&Handle::default())
    }

    /// Waits until it is over, for `long` at the most; whether it is.
    async fn is_over(deadline: &mut Deadline, long: Duration) -> bool {
        testing::within(Some(long), poll_fn(|cx| deadline.poll(Limit::FrameTimeout, &config(), 0, cx))).await.is_some()
    }

    #[test]
    fn a_pause_counts_while_it_looks_like_a_wait() {
        for (pause, left) in [(2 * LOOK, 5 * LOOK), (2 * LOOK + MOMENT, 7 * LOOK)] {
            Sim::default().run(async {
                let mut deadline = new();
                assert!(!is_over(&mut deadline, LOOK).await);
                testing::sleep(pause).await;
                assert!(!is_over(&mut deadline, left - MOMENT).await);
                assert!(is_over(&mut deadline, MOMENT).await);
                assert_eq!(elapsed(), LOOK + pause + left);
                // When it was told, it starts over.
                assert!(!is_over(&mut deadline, LIMIT - MOMENT).await);
                assert!(is_over(&mut deadline, MOMENT).await);
            });
        }
    }

    /// The one who waits is called at the time of the timer, and comes somewhat later.
    #[test]
    fn where_all_are_busy_a_wait_is_a_wait() {
        Sim::default().run(async {
            let _busy = testing::spawn(async {
                loop {
                    // In its turn before the one that waits, whose timer fires meanwhile.
                    testing::sleep(LOOK).await;
                    block(LOOK / 2);
                }
            });
            testing::sleep(MOMENT).await;
            assert!(is_over(&mut new(), LIMIT + LOOK).await);
            assert!(elapsed() <= LIMIT + LOOK, "{:?}", elapsed());
        });
    }

    #[test]
    fn it_may_be_started_at_a_time_that_is_over() {
        Sim::default().run(async {
            let (mut deadline, since) = (new(), testing::now());
            testing::sleep(LOOK).await;
            // Said again and again, it goes on.
            for look in 1..=7 {
                deadline.start(Some(Limit::FrameTimeout), since);
                assert_eq!(is_over(&mut deadline, LOOK).await, look == 7);
            }
            assert_eq!(elapsed(), LIMIT);
            // Something came in the moment of the last look.
            assert!(!is_over(&mut deadline, 7 * LOOK).await);
            deadline.start(Some(Limit::FrameTimeout), testing::now());
            assert!(!is_over(&mut deadline, LIMIT - MOMENT).await);
            assert!(is_over(&mut deadline, MOMENT).await);
        });
    }

    #[test]
    fn progress_and_another_limit_start_it_over() {
        Sim::default().run(async {
            let mut deadline = new();
            for (what, progress) in
                [(Limit::FrameTimeout, 1), (Limit::FrameTimeout, 2), (Limit::IdleTimeout, 2), (Limit::FrameTimeout, 0)]
            {
                let waiting = poll_fn(|cx| deadline.poll(what, &config(), progress, cx));
                assert!(testing::within(Some(LIMIT - MOMENT), waiting).await.is_none());
            }
            assert!(is_over(&mut deadline, MOMENT).await);
            // A timer that is left over from a long limit is not waited for.
            assert!(!is_over(&mut deadline, MOMENT).await);
            let began = elapsed();
            poll_fn(|cx| deadline.poll_for(LOOK / 2, cx)).await;
            assert_eq!(elapsed(), began + LOOK / 2);
        });
    }
}
