//! The sending half of a connection without a session that lingers: a task writes what was fed and nobody has flushed.
//!
//! The program and the task use one half, in turn. Neither keeps a thread for the other: while the task writes, what is fed is put
//! behind what it writes, and who has to wait is called when the other has finished.

use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::sink::SinkExt;

use super::plain_write::Plain;
use super::socket::Shared;
use crate::error::Error;
use crate::foreign;
use crate::framed::HIGH_WATER;
use crate::runtime::{Alarm, Handle, Task};
use crate::sync::Lock;
use crate::wire::Output;

/// That of a connection without a session, which lingers.
pub(crate) struct Lingering {
    desk: Arc<Desk>,
    _task: Option<Task>,
    /// It was closed: nothing more is accepted.
    closed: bool,
    /// A close has begun, and the half has not been told that it has all its time.
    begins_close: bool,
    shared: Arc<Shared>,
}

/// What the program and the task share.
struct Desk {
    /// Locked by the one who uses it; `None` when the program has dropped it.
    half: Lock<Option<Plain>>,
    state: Lock<State>,
    linger: Duration,
    runtime: Handle,
}

struct State {
    /// What was fed while the task had the half.
    behind: Output,
    /// When the first of what may be pending was fed.
    since: Option<Instant>,
    /// When the task looks. It may find that all was flushed meanwhile: it is called once in that time, and not for each message.
    look: Option<Instant>,
    /// The task is in the middle of a write.
    writes: bool,
    /// The program has dropped its end.
    is_dropped: bool,
    parties: [Party; 2],
}

/// One of the two that use the half.
#[derive(Default)]
struct Party {
    waker: Option<Waker>,
    /// It wants the half, which the other had.
    wants: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    Program = 0,
    Task = 1,
}

impl Lingering {
    pub(super) fn new(shared: Arc<Shared>, linger: Duration) -> Self {
        let (runtime, behind) = (shared.config.runtime.clone(), Output::new(shared.codec));
        let state =
            State { behind, since: None, look: None, writes: false, is_dropped: false, parties: Default::default() };
        let half = Lock::new(Some(Plain::new(shared.clone())));
        let desk = Arc::new(Desk { half, state: Lock::new(state), linger, runtime });
        let writing = desk.clone().write_due();
        // The runtime may log that it starts a task.
        let task = foreign::call(|| desk.runtime.spawn(writing));
        Self { desk, _task: task.ok(), closed: false, begins_close: false, shared }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn take_unsent(&mut self) -> Vec<Bytes> {
        let unsent = match &mut *self.desk.half.lock() {
            Some(half) => {
                self.desk.take_in(half);
                half.take_unsent()
            }
            None => Vec::new(),
        };
        self.desk.leave(Who::Program, false);
        unsent
    }

    /// A close begins, and has all its time.
    pub(super) fn begin_close(&mut self) {
        self.begins_close = true;
    }

    pub(super) fn try_feed(&mut self, message: &[u8]) -> Result<bool, Error> {
        if self.must_wait() {
            return Ok(false);
        }
        if self.closed {
            return Err(Error::Closed { message: Some(Bytes::copy_from_slice(message).into()) });
        }
        self.feed(message, Plain::try_feed, |behind, message| behind.push_copy(message).map(|()| true))
    }

    pub(super) fn start_send(&mut self, mut message: Bytes) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed { message: Some(message.into()) });
        }
        // Where it is copied it is dropped here, and not under a lock.
        self.feed(&mut message, |half, message| half.push_with(|output| output.push_from(message)), Output::push_from)
    }

    /// Accepts the message that `push` puts behind the others.
    pub(super) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        // What encodes is code of the program, which is not called under a lock.
        let message = Output::new(self.shared.codec).message_of(push)?;
        self.start_send(message)
    }

    /// Whether only a poll can say what becomes of a message.
    pub(super) fn must_wait(&self) -> bool {
        let must_wait = self.desk.look_at(|half| half.as_ref().is_some_and(Plain::must_wait));
        must_wait.unwrap_or_else(|| self.desk.state.lock().behind.len() >= HIGH_WATER)
    }

    /// Accepts a message: with the half, or behind what the task writes with it.
    fn feed<M, T>(
        &mut self,
        message: M,
        feed: impl FnOnce(&mut Plain, M) -> Result<T, Error>,
        put: impl FnOnce(&mut Output, M) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let desk = &self.desk;
        let Some(mut guard) = desk.half.try_lock() else {
            let fed = put(&mut desk.state.lock().behind, message)?;
            desk.fed(false);
            return Ok(fed);
        };
        let Some(half) = &mut *guard else { return put(&mut Output::new(self.shared.codec), message) };
        desk.take_in(half);
        let is_first = half.is_empty();
        let fed = feed(half, message);
        if let Err(Error::NotSent { .. }) = &fed {
            desk.rest();
        }
        drop(guard);
        match &fed {
            Ok(_) => desk.fed(is_first),
            Err(_) => desk.leave(Who::Program, false),
        }
        fed
    }

    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if !self.must_wait() {
            return Poll::Ready(Ok(()));
        }
        Desk::poll(&self.desk, Who::Program, cx, |half, cx| self.desk.tell(half.poll_ready_unpin(cx)))
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Desk::poll(&self.desk, Who::Program, cx, |half, cx| self.desk.tell(half.poll_flush_unpin(cx)))
    }

    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let (begins, desk) = (&mut self.begins_close, &self.desk);
        let closed = Desk::poll(desk, Who::Program, cx, |half, cx| {
            if mem::take(begins) {
                half.closing().clear();
            }
            desk.tell(half.poll_close_unpin(cx))
        });
        self.closed |= matches!(closed, Poll::Ready(Ok(())));
        closed
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        // The socket closes with the half, and not when the task is dropped. If the task has the half, it may be waiting for code
        // of the program: then it is the task that drops it, when it leaves.
        self.desk.state.lock().is_dropped = true;
        self.desk.clear();
    }
}

impl fmt::Debug for Lingering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.desk.look_at(|half| half.as_ref().map(|half| half.fmt(f)));
        let other = || f.debug_struct("WriteHalf").field("state", &"lingering").finish_non_exhaustive();
        shown.flatten().unwrap_or_else(other)
    }
}

impl Desk {
    /// Uses the half, with all that was fed; where the other party has it, this one is called when that has finished. The half
    /// knows one waker, which calls those who wait.
    fn poll<T>(
        desk: &Arc<Self>,
        who: Who,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Plain, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        desk.wait(who, cx.waker());
        let half = desk.half.try_lock().or_else(|| {
            desk.state.lock().parties[who as usize].wants = true;
            // Or the other has finished before it could see that.
            desk.half.try_lock()
        });
        let Some(mut guard) = half else { return Poll::Pending };
        let Some(half) = &mut *guard else { return Poll::Pending };
        desk.take_in(half);
        let polled = poll(half, &mut Context::from_waker(&Waker::from(desk.clone())));
        desk.take_in(half);
        drop(guard);
        desk.leave(who, polled.is_ready());
        polled
    }

    /// As the program, which does not wait: looks at the half, unless the task has it.
    fn look_at<T>(&self, look: impl FnOnce(&Option<Plain>) -> T) -> Option<T> {
        let seen = look(&*self.half.try_lock()?);
        self.leave(Who::Program, false);
        Some(seen)
    }

    /// The half is free: who has come for it meanwhile is called, or it is dropped, where the program has dropped its end.
    fn leave(&self, who: Who, is_done: bool) {
        let mut state = self.state.lock();
        if state.is_dropped {
            drop(state);
            return self.clear();
        }
        let [mine, other] = match who {
            Who::Program => [Who::Program, Who::Task],
            Who::Task => [Who::Task, Who::Program],
        };
        let done = if is_done { state.parties[mine as usize].waker.take() } else { None };
        // The program has written what the task was writing.
        let is_for_task = who == Who::Program && is_done && state.writes;
        let other = &mut state.parties[other as usize];
        let called = if mem::take(&mut other.wants) || is_for_task { other.waker.take() } else { None };
        drop(state);
        let _ = foreign::dispose(done);
        let _ = called.map(foreign::wake);
    }

    /// Drops the half, unless somebody is using it.
    fn clear(&self) {
        let half = self.half.try_lock().and_then(|mut half| half.take());
        drop(half);
    }

    fn wait(&self, who: Who, waker: &Waker) {
        let mut state = self.state.lock();
        let waiting = &mut state.parties[who as usize].waker;
        let replaced = match waiting {
            Some(waiting) if waiting.will_wake(waker) => None,
            waiting => waiting.replace(waker.clone()),
        };
        drop(state);
        let _ = foreign::dispose(replaced);
    }

    /// Puts what was fed while the task had it behind what it has.
    fn take_in(&self, half: &mut Plain) {
        let mut state = self.state.lock();
        if !state.behind.is_empty() {
            half.append(&mut state.behind);
        }
    }

    /// Something was fed, and is the first that is pending. The task comes in time; and at once, if it has come for the half while
    /// the program had that.
    fn fed(&self, is_first: bool) {
        let mut state = self.state.lock();
        if is_first || state.since.is_none() {
            state.since = Some(self.runtime.now());
        }
        let wants = mem::take(&mut state.parties[Who::Task as usize].wants);
        if state.look.is_none() || wants {
            // What is further away than the clock can tell never comes.
            state.look = state.look.or_else(|| state.since.and_then(|since| since.checked_add(self.linger)));
            let task = state.parties[Who::Task as usize].waker.take();
            drop(state);
            let _ = task.map(foreign::wake);
        }
    }

    /// What the program is told. After a failure the task rests.
    fn tell(&self, told: Poll<Result<(), Error>>) -> Poll<Result<(), Error>> {
        if let Poll::Ready(Err(_)) = &told {
            self.rest();
        }
        told
    }

    /// The program was told that it failed, and decides what becomes of what is held: the task opens nothing before the next feed.
    fn rest(&self) {
        let mut state = self.state.lock();
        (state.since, state.look, state.writes) = (None, None, false);
    }

    /// Writes what has lingered long enough, as long as there is a half.
    async fn write_due(self: Arc<Self>) {
        let mut alarm: Option<(Instant, Alarm)> = None;
        poll_fn(|cx| {
            loop {
                self.wait(Who::Task, cx.waker());
                let (look, writes) = {
                    let state = self.state.lock();
                    (state.look, state.writes)
                };
                let Some(at) = look else { return Poll::<()>::Pending };
                if !writes {
                    let (_, alarm) = match &mut alarm {
                        Some(armed) if armed.0 <= at => armed,
                        late => late.insert((at, self.runtime.timer(at))),
                    };
                    if Pin::new(alarm).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                alarm = None;
                self.state.lock().writes = true;
                let written = Self::poll(&self, Who::Task, cx, |half, cx| self.poll_due(half, cx));
                if written.is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// Writes what is due. Ready when it is known when to look again.
    fn poll_due(&self, half: &mut Plain, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.runtime.now();
        let next = self.state.lock().since.and_then(|since| since.checked_add(self.linger));
        let written = match next {
            Some(at) if at > now && !half.is_empty() => Some(at),
            _ => None,
        };
        if written.is_none() && half.poll_linger(cx).is_pending() {
            return Poll::Pending;
        }
        let mut state = self.state.lock();
        (state.look, state.writes) = (written, false);
        if written.is_none() {
            state.since = None;
        }
        if written.is_none() && !state.behind.is_empty() {
            // It was fed while this was writing.
            state.since = Some(now);
            state.look = now.checked_add(self.linger);
        }
        Poll::Ready(())
    }
}

/// Calls those who wait for the half to go on.
impl Wake for Desk {
    fn wake(self: Arc<Self>) {
        let mut state = self.state.lock();
        let wakers = [Who::Program, Who::Task].map(|who| match who {
            Who::Task if !state.writes => None,
            who => state.parties[who as usize].waker.take(),
        });
        drop(state);
        for waker in wakers.into_iter().flatten() {
            let _ = foreign::wake(waker);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use async_std::task;
    use futures::StreamExt;

    use super::*;
    use crate::{AsyncStd, Backoff, Config, Connection, Listener, WireFormat};

    const LINGER: Duration = Duration::from_millis(5);
    /// Longer than anything here takes, where it does not wait for ever.
    const LONG: Duration = Duration::from_secs(5);

    fn config() -> Config {
        Config::new().runtime(AsyncStd::default()).wire_format(WireFormat::u32_be()).linger(LINGER)
    }

    /// A message whose memory takes its time when it is let go.
    struct Slow;

    impl AsRef<[u8]> for Slow {
        fn as_ref(&self) -> &[u8] {
            b"slow"
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(20 * LINGER);
        }
    }

    /// With real threads: the task comes while the program is in the middle of a `feed`.
    #[test]
    fn what_was_fed_is_sent_where_the_task_came_in_the_middle_of_a_feed() {
        task::block_on(async {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let mut connection = Connection::dial(listener.local_addr(), config()).await.unwrap();
            connection.feed(Bytes::from_static(b"first")).await.unwrap();
            connection.feed(Bytes::from_owner(Slow)).await.unwrap();
            let came = async_std::future::timeout(LONG, listener.next()).await;
            assert_eq!(came.expect("nobody called the task").unwrap().1, "first");
        });
    }

    /// Where it takes its time to write.
    struct Paper;

    impl fmt::Write for Paper {
        fn write_str(&mut self, _: &str) -> fmt::Result {
            thread::sleep(20 * LINGER);
            Ok(())
        }
    }

    /// The same where the program only looks, and that takes long.
    #[test]
    fn what_was_fed_is_sent_where_the_task_came_while_the_program_had_the_half() {
        task::block_on(async {
            let mut listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let connection = Connection::dial(listener.local_addr(), config()).await.unwrap();
            let (_read, mut write) = connection.split();
            write.feed(Bytes::from_static(b"first")).await.unwrap();
            fmt::Write::write_fmt(&mut Paper, format_args!("{write:?}")).unwrap();
            let came = async_std::future::timeout(LONG, listener.next()).await;
            assert_eq!(came.expect("nobody called the task").unwrap().1, "first");
        });
    }

    /// The delays are code of the program, which may take its time.
    #[test]
    fn a_drop_does_not_wait_until_the_program_has_said_when_to_dial_again() {
        let ((asks, asked), (answers, answered)) = (channel(), channel::<()>());
        let answered = Lock::new(answered);
        let backoff = Backoff::from_fn(move || {
            let _ = asks.send(());
            let _ = answered.lock().recv_timeout(LONG);
            std::iter::repeat(LONG)
        });
        task::block_on(async {
            let listener = Listener::bind("127.0.0.1:0", config()).await.unwrap();
            let mut connection = Connection::dial(listener.local_addr(), config().reconnect(backoff)).await.unwrap();
            drop(listener);
            let began = Instant::now();
            // Until it has found that nobody listens.
            while asked.recv_timeout(LINGER).is_err() {
                assert!(began.elapsed() < LONG, "nobody has asked");
                connection.try_feed(b"lost").unwrap();
            }
            let (done, is_done) = channel();
            let dropping = thread::spawn(move || {
                drop(connection);
                let _ = done.send(());
            });
            let dropped = is_done.recv_timeout(LONG / 5);
            let _ = answers.send(());
            dropping.join().unwrap();
            dropped.expect("it waits for code of the program");
        });
    }
}
