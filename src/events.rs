//! What happens beside the messages: a stream for the program, log lines for whoever runs it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::stream::Stream;
use log::Level;

use crate::error::{BoxError, Error, FrameError};
use crate::peer::{Address, Peer};

/// How many events wait for a subscriber that does not take them; the oldest go first.
const KEEP_EVENTS: usize = 1024;
/// How many lines one listener or manager logs in a second at the most.
const LINES_PER_SECOND: u32 = 20;

/// Something that happened at a listener, beside the messages.
///
/// A message and an event take different ways: a peer's `Disconnected` may be seen before its last messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A peer has connected.
    Connected {
        /// Who.
        peer: Peer,
    },
    /// A peer is gone. Of this peer, only [`Undelivered`](Self::Undelivered) replies can still be told.
    Disconnected {
        /// Who.
        peer: Peer,
        /// Why.
        reason: Reason,
    },
    /// A peer sent a header that makes no sense, and is being disconnected.
    Rejected {
        /// Who.
        peer: Peer,
        /// What was wrong, with the figures.
        error: FrameError,
    },
    /// A connection was closed at once, because there are `max_connections` of them.
    Refused {
        /// The remote end of the socket.
        addr: SocketAddr,
        /// The limit in force.
        max_connections: usize,
    },
    /// A callback returned an error. The peer goes on.
    CallbackFailed {
        /// Whose message it was.
        peer: Peer,
        /// What the callback returned.
        error: Arc<BoxError>,
    },
    /// A callback panicked. The peer is being disconnected; the others go on.
    CallbackPanicked {
        /// Whose message it was.
        peer: Peer,
        /// The message of the panic, if it was a text.
        message: String,
    },
    /// Connections cannot be accepted, mostly because the process has no descriptor left. It is tried again.
    AcceptFailed {
        /// What the system said.
        error: Arc<io::Error>,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// Replies that were accepted could not be written, because their peer is gone.
    Undelivered {
        /// Who would have received them.
        peer: Peer,
        /// How many they were.
        messages: usize,
    },
    /// This subscriber was too slow: so many events were dropped here.
    Missed {
        /// How many.
        events: u64,
    },
}

/// Why a peer is gone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Reason {
    /// It closed, between two frames.
    Closed,
    /// The stream ended inside a frame.
    Truncated {
        /// How many bytes of the frame were received, header included.
        got: usize,
        /// How many bytes the frame has, header included; just the header's if that was not whole.
        want: usize,
    },
    /// It sent a header that makes no sense: see [`Event::Rejected`].
    Rejected,
    /// Reading or writing failed.
    Failed(Arc<io::Error>),
    /// It took longer than a limit allows.
    Timeout {
        /// The setting that ran out, by its name in [`Config`](crate::Config).
        what: &'static str,
        /// Its value.
        after: Duration,
    },
    /// A callback panicked on one of its messages.
    CallbackPanicked,
    /// This end closed: the listener, or the connection that it had handed out.
    Stopped,
}

impl From<&Error> for Reason {
    fn from(error: &Error) -> Self {
        match error {
            Error::Truncated { got, want } => Self::Truncated { got: *got, want: *want },
            Error::Frame(_) => Self::Rejected,
            Error::Read(source) | Error::Write(source) => Self::Failed(Arc::new(same(source))),
            Error::Timeout { what, after } => Self::Timeout { what, after: *after },
            _ => Self::Stopped,
        }
    }
}

/// An error to keep beside the original, which is not `Clone`.
fn same(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::new(error.kind(), error.to_string()),
    }
}

/// Something that happened at a manager, beside the messages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ManagerEvent {
    /// A connection was opened, or opened again.
    Opened {
        /// Where to.
        address: Address,
    },
    /// A connection broke. It is opened again when there is something to write.
    Broken {
        /// Where to.
        address: Address,
        /// Why; `None` if the peer closed it between two messages.
        error: Option<Arc<Error>>,
    },
    /// A connection could not be opened again.
    DialFailed {
        /// Where to.
        address: Address,
        /// Why.
        error: Arc<Error>,
    },
    /// Accepted messages were not sent, and nobody took the dead letters, or there was no room for them: they are gone.
    Lost {
        /// Where to.
        address: Address,
        /// How many.
        messages: usize,
    },
    /// This subscriber was too slow: so many events were dropped here.
    Missed {
        /// How many.
        events: u64,
    },
}

/// What the two kinds of event have in common.
pub(crate) trait Report: Clone + fmt::Debug {
    fn missed(events: u64) -> Self;
    /// What to log of it, if anybody should read it.
    fn level(&self) -> Level;
}

impl Report for Event {
    fn missed(events: u64) -> Self {
        Self::Missed { events }
    }

    fn level(&self) -> Level {
        match self {
            Self::Connected { .. } | Self::Disconnected { .. } | Self::Missed { .. } => Level::Debug,
            _ => Level::Warn,
        }
    }
}

impl Report for ManagerEvent {
    fn missed(events: u64) -> Self {
        Self::Missed { events }
    }

    fn level(&self) -> Level {
        match self {
            Self::Opened { .. } | Self::Missed { .. } => Level::Debug,
            _ => Level::Warn,
        }
    }
}

/// A subscription to what happens: an endless `Stream` that ends when its source is gone.
///
/// It sees what happens from the moment it was made. It never holds anything up: when 1,024 events wait in it, the
/// oldest are dropped, and a `Missed` says how many. Dropping a future that waits for the next event loses nothing.
pub struct Events<E> {
    queue: Arc<Mutex<Queue<E>>>,
}

struct Queue<E> {
    events: VecDeque<E>,
    missed: u64,
    waker: Option<Waker>,
    ended: bool,
}

/// The source of the events of one listener or manager.
pub(crate) struct Reporter<E> {
    state: Mutex<ReporterState<E>>,
}

struct ReporterState<E> {
    subscribers: Vec<Weak<Mutex<Queue<E>>>>,
    log: LogLimit,
}

/// How much has been logged in the current second.
struct LogLimit {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl<E: Report> Reporter<E> {
    pub(crate) fn new() -> Self {
        let log = LogLimit { since: None, lines: 0, suppressed: 0 };
        Self { state: Mutex::new(ReporterState { subscribers: Vec::new(), log }) }
    }

    pub(crate) fn subscribe(&self) -> Events<E> {
        let queue = Queue { events: VecDeque::new(), missed: 0, waker: None, ended: false };
        let queue = Arc::new(Mutex::new(queue));
        self.lock().subscribers.push(Arc::downgrade(&queue));
        Events { queue }
    }

    pub(crate) fn report(&self, event: E) {
        let level = event.level();
        let logged = log::log_enabled!(target: "buffstreams", level);
        let line = {
            let mut state = self.lock();
            state.subscribers.retain(|subscriber| {
                let Some(queue) = subscriber.upgrade() else { return false };
                lock(&queue).push(event.clone());
                true
            });
            if logged { state.log.next() } else { Line::Suppressed }
        };
        // A logger is code of the program: it may well come back here.
        match line {
            Line::Suppressed => {}
            Line::Free => log::log!(target: "buffstreams", level, "{event:?}"),
            Line::After { suppressed } => {
                log::warn!(target: "buffstreams", "{suppressed} more lines were suppressed");
                log::log!(target: "buffstreams", level, "{event:?}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, ReporterState<E>> {
        lock(&self.state)
    }
}

impl<E> Drop for Reporter<E> {
    fn drop(&mut self) {
        for queue in lock(&self.state).subscribers.iter().filter_map(Weak::upgrade) {
            let mut queue = lock(&queue);
            queue.ended = true;
            queue.wake();
        }
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

impl LogLimit {
    fn next(&mut self) -> Line {
        let now = Instant::now();
        if self.since.is_none_or(|since| now - since >= Duration::from_secs(1)) {
            let suppressed = self.suppressed;
            *self = Self { since: Some(now), lines: 1, suppressed: 0 };
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

impl<E> Queue<E> {
    fn push(&mut self, event: E) {
        if self.events.len() == KEEP_EVENTS {
            self.events.pop_front();
            self.missed += 1;
        }
        self.events.push_back(event);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[allow(private_bounds)]
impl<E: Report> Stream for Events<E> {
    type Item = E;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<E>> {
        let mut queue = lock(&self.queue);
        if queue.missed > 0 {
            return Poll::Ready(Some(E::missed(std::mem::take(&mut queue.missed))));
        }
        match queue.events.pop_front() {
            Some(event) => Poll::Ready(Some(event)),
            None if queue.ended => Poll::Ready(None),
            None => {
                queue.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<E> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("waiting", &lock(&self.queue).events.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
