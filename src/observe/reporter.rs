//! How events are told: to those who subscribe, and to the log.
//!
//! Subscribers, their wakers and loggers are the program's: all of it may panic, and may come back here.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::lines::{self, Report};
use crate::foreign::{self, PanicHook, PanicSource};
use crate::runtime::Handle;
use crate::sync::Lock;
use futures::stream::Stream;

/// How many events wait for a subscriber that does not take them; the oldest go first.
const KEEP_EVENTS: usize = 1024;
/// How many lines one listener or manager logs in a second at the most.
const LINES_PER_SECOND: u32 = 20;

/// A `Stream` of events. It ends when the listener or manager is gone.
///
/// It has what happens from the moment it was made. It never holds anything up: when 1,024 events wait in it, the
/// oldest are dropped, and a `Missed` says how many. Dropping a future that waits for the next event loses nothing.
pub struct Events<E> {
    queue: Arc<Lock<Queue<E>>>,
}

struct Queue<E> {
    events: VecDeque<E>,
    missed: u64,
    waker: Option<Waker>,
    ended: bool,
}

/// The source of the events of one listener or manager.
pub(crate) struct Reporter<E> {
    runtime: Handle,
    state: Lock<ReporterState<E>>,
}

struct ReporterState<E> {
    subscribers: Vec<Weak<Lock<Queue<E>>>>,
    ended: bool,
    log: LogLimit,
}

/// How much has been logged in the current second.
struct LogLimit {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl<E: Report> Reporter<E> {
    /// The runtime says what time it is, for the log.
    pub(crate) fn new(runtime: Handle) -> Self {
        let log = LogLimit { since: None, lines: 0, suppressed: 0 };
        Self { runtime, state: Lock::new(ReporterState { subscribers: Vec::new(), ended: false, log }) }
    }

    pub(crate) fn subscribe(&self) -> Events<E> {
        let mut state = self.state.lock();
        let queue = Queue { events: VecDeque::new(), missed: 0, waker: None, ended: state.ended };
        let queue = Arc::new(Lock::new(queue));
        if !state.ended {
            state.subscribers.push(Arc::downgrade(&queue));
        }
        Events { queue }
    }

    /// Tells subscribers and the log. Whatever of that panics is told to the subscribers as well.
    pub(crate) fn report(&self, event: E) {
        let logged = foreign::call(|| lines::are_taken(event.level()));
        let line = match &logged {
            Ok(true) => self.state.lock().log.next(self.runtime.now()),
            Ok(false) | Err(_) => Line::Suppressed,
        };
        let written = logged.and_then(|_| foreign::call(|| line.write(&event)));
        self.tell(event);
        if let Err(panic) = written {
            // Without the log, or it would panic again.
            self.tell(E::panicked(PanicSource::Logger, panic));
        }
    }

    fn tell(&self, event: E) {
        let mut telling = VecDeque::from([event]);
        while let Some(event) = telling.pop_front() {
            let mut queues = Vec::new();
            self.state.lock().subscribers.retain(|subscriber| {
                let queue = subscriber.upgrade();
                let alive = queue.is_some();
                queues.extend(queue);
                alive
            });
            for queue in queues {
                let (oldest, waker) = queue.lock().push(event.clone());
                if let Err(panic) = waker.map_or(Ok(()), foreign::wake) {
                    telling.push_back(E::panicked(PanicSource::Waker, panic));
                }
                if let Err(panic) = foreign::dispose(oldest) {
                    telling.push_back(E::panicked(PanicSource::Drop, panic));
                }
                // It may be the last owner.
                let _ = foreign::dispose(queue);
            }
            if let Err(panic) = foreign::dispose(event) {
                telling.push_back(E::panicked(PanicSource::Drop, panic));
            }
        }
    }
}

impl<E: Report + Send + 'static> Reporter<E> {
    /// Tells of panics that belong to no peer or address, as long as there is a reporter.
    pub(crate) fn panic_hook(self: &Arc<Self>) -> PanicHook {
        let reporter = Arc::downgrade(self);
        Arc::new(move |source, panic| {
            if let Some(reporter) = reporter.upgrade() {
                reporter.report(E::panicked(source, panic));
            }
        })
    }
}

impl<E> Reporter<E> {
    /// Nothing more happens: the subscriptions end when what they hold has been taken.
    pub(crate) fn end(&self) {
        let subscribers = {
            let mut state = self.state.lock();
            state.ended = true;
            mem::take(&mut state.subscribers)
        };
        for queue in subscribers.iter().filter_map(Weak::upgrade) {
            let waker = {
                let mut queue = queue.lock();
                queue.ended = true;
                queue.waker.take()
            };
            // Nobody is left to be told that nobody waits there.
            let _ = waker.map_or(Ok(()), foreign::wake);
            let _ = foreign::dispose(queue);
        }
    }
}

impl<E> Drop for Reporter<E> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What may be logged.
enum Line {
    Suppressed,
    Free,
    /// The first after a second in which some were suppressed.
    After {
        suppressed: u64,
    },
}

impl Line {
    fn write<E: Report>(&self, event: &E) {
        match self {
            Self::Suppressed => return,
            Self::Free => {}
            Self::After { suppressed } => lines::write_suppressed(*suppressed),
        }
        lines::write(event);
    }
}

impl LogLimit {
    fn next(&mut self, now: Instant) -> Line {
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            let suppressed = self.suppressed;
            // The line that tells of the others is one, too.
            *self = Self { since: Some(now), lines: 1 + u32::from(suppressed > 0), suppressed: 0 };
            return if suppressed > 0 { Line::After { suppressed } } else { Line::Free };
        }
        if self.lines < LINES_PER_SECOND {
            self.lines += 1;
            return Line::Free;
        }
        self.suppressed += 1;
        Line::Suppressed
    }
}

impl<E> Drop for Queue<E> {
    fn drop(&mut self) {
        // One by one: of two that panic at once nobody could catch the second.
        for event in mem::take(&mut self.events) {
            let _ = foreign::dispose(event);
        }
        let _ = foreign::dispose(self.waker.take());
    }
}

impl<E> Queue<E> {
    /// Returns the event that has no place any more, to be dropped, and who waits, to be woken, both without the lock.
    #[must_use]
    fn push(&mut self, event: E) -> (Option<E>, Option<Waker>) {
        let oldest = if self.events.len() == KEEP_EVENTS { self.events.pop_front() } else { None };
        self.missed += u64::from(oldest.is_some());
        self.events.push_back(event);
        (oldest, self.waker.take())
    }
}

#[allow(private_bounds)]
impl<E: Report> Stream for Events<E> {
    type Item = E;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<E>> {
        let mut queue = self.queue.lock();
        if queue.missed > 0 {
            return Poll::Ready(Some(E::missed(mem::take(&mut queue.missed))));
        }
        match queue.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if queue.ended => Poll::Ready(None),
            None => {
                let replaced = queue.waker.replace(cx.waker().clone());
                drop(queue);
                let _ = foreign::dispose(replaced);
                Poll::Pending
            }
        }
    }
}

impl<E> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("waiting", &self.queue.lock().events.len()).finish_non_exhaustive()
    }
}
