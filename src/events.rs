//! What happens beside the messages: a stream for the program, log lines for whoever runs it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures::stream::Stream;
use log::Level;

use crate::error::{BoxError, Error, FrameError, LooksLike};
use crate::foreign::{self, Panic, PanicHook, PanicSource};
use crate::peer::{Address, Peer};
use crate::sync::Lock;

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
    /// Something else panicked, and was caught. Where it belongs to a peer, that is being disconnected; nobody else is.
    Panicked {
        /// Whose task it was, if it was in one.
        peer: Option<Peer>,
        /// What panicked.
        source: PanicSource,
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
    #[non_exhaustive]
    Truncated {
        /// How many bytes of the frame were received, header included.
        got: usize,
        /// How many bytes the frame has, header included; just the header's if that was not whole.
        want: usize,
        /// What the bytes look like instead, if that can be told.
        looks_like: Option<LooksLike>,
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
    /// Its task panicked: see [`Event::Panicked`].
    Panicked,
    /// This end closed: the listener, or the connection that it had handed out.
    Stopped,
}

impl From<&Error> for Reason {
    fn from(error: &Error) -> Self {
        match error {
            Error::Truncated { got, want, looks_like } => {
                Self::Truncated { got: *got, want: *want, looks_like: *looks_like }
            }
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
        /// Why; `None` if the peer closed it.
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
    /// Something panicked, and was caught. Where it belongs to an address, all that is held for that comes back.
    Panicked {
        /// Whose task it was, if it was in one.
        address: Option<Address>,
        /// What panicked.
        source: PanicSource,
        /// The message of the panic, if it was a text.
        message: String,
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
    /// Something panicked that belongs to no peer or address.
    fn panicked(source: PanicSource, panic: Panic) -> Self;
    /// How much it matters to whoever reads the log.
    fn level(&self) -> Level;
    /// What is logged of it: nothing that may hold a message, or a part of one.
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// An event, as it is logged.
struct Described<'a, E>(&'a E);

impl<E: Report> fmt::Display for Described<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe(f)
    }
}

impl Report for Event {
    fn missed(events: u64) -> Self {
        Self::Missed { events }
    }

    fn panicked(source: PanicSource, Panic { message }: Panic) -> Self {
        Self::Panicked { peer: None, source, message }
    }

    fn level(&self) -> Level {
        match self {
            Self::Connected { .. } | Self::Disconnected { .. } | Self::Missed { .. } => Level::Debug,
            _ => Level::Warn,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The program's own error, and what a panic says, may hold the message that they are about.
            Self::CallbackFailed { peer, .. } => write!(f, "CallbackFailed {{ peer: {peer} }}"),
            Self::CallbackPanicked { peer, .. } => write!(f, "CallbackPanicked {{ peer: {peer} }}"),
            Self::Panicked { peer, source, .. } => write!(f, "Panicked {{ peer: {peer:?}, source: {source:?} }}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Report for ManagerEvent {
    fn missed(events: u64) -> Self {
        Self::Missed { events }
    }

    fn panicked(source: PanicSource, Panic { message }: Panic) -> Self {
        Self::Panicked { address: None, source, message }
    }

    fn level(&self) -> Level {
        match self {
            Self::Opened { .. } | Self::Missed { .. } => Level::Debug,
            _ => Level::Warn,
        }
    }

    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked { address, source, .. } => {
                write!(f, "Panicked {{ address: {address:?}, source: {source:?} }}")
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A subscription to what happens: an endless `Stream` that ends when its source is gone.
///
/// It sees what happens from the moment it was made. It never holds anything up: when 1,024 events wait in it, the
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
    pub(crate) fn new() -> Self {
        let log = LogLimit { since: None, lines: 0, suppressed: 0 };
        Self { state: Lock::new(ReporterState { subscribers: Vec::new(), ended: false, log }) }
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
        let logged = foreign::call(|| log::log_enabled!(target: "buffstreams", event.level()));
        let line = match &logged {
            Ok(true) => self.state.lock().log.next(),
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
            Self::After { suppressed } => log::warn!(target: "buffstreams", "{suppressed} more lines were suppressed"),
        }
        log::log!(target: "buffstreams", event.level(), "{}", Described(event));
    }
}

impl LogLimit {
    fn next(&mut self) -> Line {
        let now = Instant::now();
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
