//! The two halves of a connection in an acknowledged session: producer and consumer of the session's task.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::Stream;

use super::inlet::{Batch, Came, Inlet};
use super::line::Line;
use super::returned::Returned;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::foreign::{self, PanicHook};
use crate::framed::{HIGH_WATER, Messages};
use crate::link::{First, Link, News, Owner};
use crate::observe::in_link_span;
use crate::peer::{Address, Peer};
use crate::queue::{Fate, Outbox, Place, Shelf, Stage, Unsettled, Verdict};
use crate::runtime::Task;
use crate::session::{Control, ErrorCode, Settled};
use crate::transport;
use crate::wire::{Codec, Decoder, Frames, Output};

/// What the halves have in common. The session ends with the last of them.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) address: Address,
    pub(super) peer: Option<Peer>,
    pub(super) line: Arc<dyn Line>,
    pub(super) inlet: Arc<Inlet>,
    pub(super) returned: Arc<Returned>,
    /// It was closed: the other end has taken everything.
    closed: AtomicBool,
    /// Of one that was dialed.
    task: Option<Task>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inlet.close();
        let line = self.line.clone();
        let closed = self.closed.load(Ordering::Acquire);
        let Some(mut task) = self.task.take() else {
            // Where the peer has closed as well, it ends the session.
            if !(closed && line.outbox().is_receiving_settled()) {
                say_gone(&*line);
                line.cut();
            }
            return;
        };
        let mut said = true;
        if !closed {
            said = say_gone(&*line);
            // Nothing is to be sent to the next connection, and there is to be none.
            line.outbox().end();
        }
        let (runtime, limit) = (self.config.runtime.clone(), self.config.close_timeout);
        let parting = async move {
            if closed {
                // What is left are the words with which two ends part.
                let _ = runtime.within(limit, task.join()).await;
                say_gone(&*line);
            } else {
                task.stop().await;
            }
            match line.stream() {
                Some(stream) if said => stream.part(&[], &runtime).await,
                // The task had not begun with it.
                Some(stream) => stream.part(&Control::Error(ErrorCode::Gone).encode(), &runtime).await,
                None => {}
            }
            line.cut();
        };
        let parting = foreign::call(|| self.config.runtime.spawn(parting));
        parting.into_iter().for_each(Task::detach);
    }
}

impl Shared {
    /// Where the sending half learns what became of its messages.
    fn fate(&self) -> Fate {
        match self.peer {
            None => self.returned.fate(),
            // Those that its listener cannot send are counted there.
            Some(_) => Fate::default(),
        }
    }
}

/// Tells the other end that the session is over, if it is not: where the socket takes that at once. `false` where the queue has no
/// socket.
fn say_gone(line: &dyn Line) -> bool {
    let outbox = line.outbox();
    if outbox.is_session_over() {
        return true;
    }
    outbox.say_error(ErrorCode::Gone);
    let driven = foreign::call(|| outbox.poll_drive(&mut Context::from_waker(Waker::noop())));
    !matches!(driven, Ok(Poll::Ready(Err(_))))
}

/// A connection, as its link knows it.
struct Dialer {
    inlet: Arc<Inlet>,
    returned: Arc<Returned>,
}

impl Owner for Dialer {
    fn report(&self, news: News) {
        match news {
            News::SessionLost { in_doubt, why } => self.inlet.fail(Error::SessionLost { in_doubt, why }),
            News::Opened
            | News::Broken(_)
            | News::DialFailed { .. }
            | News::Down(_)
            | News::Up
            | News::Resumed { .. } => {}
        }
    }

    fn take_back(&self, messages: Vec<Bytes>, verdict: Verdict) -> BoxFuture<'static, ()> {
        self.returned.put(messages, &verdict);
        std::future::ready(()).boxed()
    }

    fn receive(&self, frames: Frames, unsettled: Unsettled) {
        self.inlet.push(Batch { frames, unsettled });
    }

    fn panic_hook(&self) -> PanicHook {
        Arc::new(|_, _| {})
    }
}

/// Dials, and begins a session.
pub(super) async fn dial(address: Address, config: Config, codec: Codec, window: u32) -> Result<(Read, Write), Error> {
    let first = First::dial(&address, &config, codec, window).await?;
    let (inlet, returned) = (Arc::<Inlet>::default(), Arc::<Returned>::default());
    let owner = Arc::new(Dialer { inlet: inlet.clone(), returned: returned.clone() });
    let linger = config.linger.with_task();
    let (link, running) = Link::new(owner, config.clone(), linger, address.clone(), codec, first);
    let over = inlet.clone();
    // A task that ends without a word must not leave anybody waiting.
    let running = in_link_span(&address, foreign::run(running, drop).map(move |_| over.end()));
    let task = config.runtime.spawn(running);
    let shared = Shared {
        config,
        address,
        peer: None,
        line: link,
        inlet,
        returned,
        closed: AtomicBool::new(false),
        task: Some(task),
    };
    Ok(halves(shared, codec))
}

/// Those of a session that was accepted.
pub(super) fn accepted(
    line: Arc<dyn Line>,
    inlet: Arc<Inlet>,
    returned: Arc<Returned>,
    config: Config,
    codec: Codec,
    peer: Peer,
) -> (Read, Write) {
    let address = match peer.addr() {
        Some(addr) => addr.into(),
        None => peer.to_string().into(),
    };
    let closed = AtomicBool::new(false);
    halves(Shared { config, address, peer: Some(peer), line, inlet, returned, closed, task: None }, codec)
}

fn halves(shared: Shared, codec: Codec) -> (Read, Write) {
    let shared = Arc::new(shared);
    let (shelf, encoded) = (Shelf::that_keeps(Output::new(codec), shared.fate()), Output::new(codec));
    let closing = Deadline::new(&shared.config.runtime);
    let read =
        Read { shared: shared.clone(), frames: Frames::new(Decoder::with(codec), Bytes::new()), unsettled: None };
    (read, Write { shared, shelf, full: false, encoded, place: Place::default(), closing, closed: false })
}

/// The receiving half.
pub(crate) struct Read {
    shared: Arc<Shared>,
    frames: Frames,
    /// What the program has been given since it asked last, or is being given.
    unsettled: Option<Unsettled>,
}

impl Read {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Read {
    pub(super) fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// Waits for more frames; `false` at the end. Those that came before are taken: the program asks for what is behind them.
    pub(super) fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        if let Some(unsettled) = self.unsettled.take() {
            unsettled.settle(self.shared.line.outbox(), Settled::Taken);
        }
        Poll::Ready(match ready!(self.shared.inlet.poll(cx)) {
            Some(Came::Batch(Batch { frames, unsettled })) => {
                self.frames = frames;
                self.unsettled = Some(unsettled);
                Ok(true)
            }
            Some(Came::Error(error)) => Err(error),
            None => Ok(false),
        })
    }

    /// The last message that was taken out of the frames is refused.
    #[cold]
    pub(super) fn refuse_last(&mut self) {
        if let Some(unsettled) = &mut self.unsettled {
            let passed = unsettled.passed(&self.frames);
            unsettled.except(passed - 1, Settled::Refused);
        }
    }

    pub(super) fn poll_next_batch(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Messages, Error>>> {
        if self.frames.is_empty() && !ready!(self.poll_frames(cx))? {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Messages::new(self.frames.take_rest()))))
    }
}

impl Stream for Read {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(len) = this.frames.find() {
                return Poll::Ready(Some(Ok(this.frames.cut(len))));
            }
            if !ready!(this.poll_frames(cx))? {
                return Poll::Ready(None);
            }
        }
    }
}

/// The sending half.
pub(crate) struct Write {
    shared: Arc<Shared>,
    /// Accepted, and not handed over, perhaps for the session's task to do that.
    shelf: Arc<Shelf>,
    /// There was a whole hand-over on it when the last message came.
    full: bool,
    /// Where a message of the program's own types is encoded.
    encoded: Output,
    /// What was handed over and not flushed.
    place: Place,
    closing: Deadline,
    closed: bool,
}

impl Write {
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn closing(&mut self) -> &mut Deadline {
        &mut self.closing
    }

    /// How many messages are held here.
    pub(super) fn held(&self) -> usize {
        self.shelf.held().0
    }

    fn outbox(&self) -> &Outbox<transport::Stream> {
        self.shared.line.outbox()
    }

    /// Hands over what there is, and waits until it is accepted; `false` where nothing is any more.
    fn poll_hand_over(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let outbox = self.shared.line.outbox();
        while matches!(self.place.stage, Stage::InLine(_)) || !self.shelf.is_idle() {
            if !outbox.hand_over(&self.shelf, &mut self.place) {
                return Poll::Ready(false);
            }
            if let Stage::InLine(_) = self.place.stage {
                ready!(outbox.poll_accepted(&mut self.place, cx));
            }
        }
        self.full = false;
        Poll::Ready(true)
    }

    #[inline]
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.full { self.poll_room(cx) } else { Poll::Ready(Ok(())) }
    }

    /// What it fails with is told by `start_send`, which has the message.
    #[inline(never)]
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if !self.closed {
            let _ = ready!(self.poll_hand_over(cx));
            self.outbox().write_full();
        }
        Poll::Ready(Ok(()))
    }

    #[inline]
    pub(super) fn start_send(&mut self, message: Bytes) -> Result<(), Error> {
        if self.copy(&message) { Ok(()) } else { self.start_send_first(message) }
    }

    #[inline(never)]
    fn start_send_first(&mut self, mut message: Bytes) -> Result<(), Error> {
        // Where it is copied it is dropped here, and not under the lock.
        let fed = self.feed(|output| output.push_from(&mut message));
        fed.unwrap_or_else(|| Err(Error::Closed { message: Some(message.into()) }))
    }

    /// Copies a short message behind others, as most are; `false` where it is not so simple. The others are handed over with it, or
    /// are unsent with it, so there is no need to ask whether the queue is closed.
    #[inline(always)]
    pub(super) fn copy(&mut self, message: &[u8]) -> bool {
        // Behind a whole hand-over it is asked.
        let copied = if self.full { None } else { self.shelf.copy(message) };
        copied.inspect(|bytes| self.full = *bytes >= HIGH_WATER).is_some()
    }

    /// Whether only a poll can say what becomes of a message: not where the session's task has handed over what was here.
    pub(super) fn must_wait(&self) -> bool {
        self.full && self.shelf.held().1 >= HIGH_WATER && !self.is_closed()
    }

    fn is_closed(&self) -> bool {
        self.closed || self.outbox().is_closed()
    }

    /// Accepts the message that `push` puts behind the others; `None` where nothing is accepted any more.
    fn feed(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Option<Result<(), Error>> {
        if self.is_closed() {
            return None;
        }
        let fed = self.shared.line.outbox().feed(&self.shelf, push).ok()?;
        Some(fed.map(|bytes| self.full = bytes >= HIGH_WATER))
    }

    /// Accepts the message that `push` puts behind the others.
    pub(super) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        // What encodes is code of the program, which is not called under a lock.
        let none = self.encoded.another();
        let mut encoded = mem::replace(&mut self.encoded, none);
        let fed = push(&mut encoded).and_then(|()| {
            let fed = self.feed(|output| {
                output.append(&mut encoded);
                Ok(())
            });
            fed.unwrap_or_else(|| Err(Error::Closed { message: encoded.take_messages().pop().map(Into::into) }))
        });
        self.encoded = encoded;
        fed
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_written(cx))?;
        Poll::Ready(self.fate())
    }

    /// Waits until what came through here is written, or has come back.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if !ready!(self.poll_hand_over(cx)) {
            return Poll::Ready(Err(Error::Closed { message: None }));
        }
        self.shared.line.outbox().poll_written(&mut self.place, cx).map(Ok)
    }

    /// Whether what came through here was sent, since that was asked last.
    fn fate(&mut self) -> Result<(), Error> {
        let Some(source) = self.shelf.tell() else { return Ok(()) };
        // Who gives messages back has the lock until all of them are there.
        drop(self.outbox().peek());
        Err(Error::NotSent { address: self.shared.address.clone(), message: None, source })
    }

    /// Waits until all that came through here is acknowledged.
    pub(super) fn poll_barrier(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        ready!(self.poll_written(cx))?;
        // Told when all are over, as until then others may come back.
        let _ = ready!(self.shared.line.outbox().poll_over(&mut self.place, cx));
        Poll::Ready(self.fate())
    }

    /// Waits until all is acknowledged, and this direction has ended.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        let closed = match self.poll_barrier(cx) {
            Poll::Ready(Ok(())) => {
                let outbox = self.shared.line.outbox();
                outbox.close();
                outbox.call_driver();
                Poll::Ready(Ok(()))
            }
            other => other,
        };
        if closed.is_pending() {
            let error = ready!(self.closing.poll(Limit::CloseTimeout, &self.shared.config, 0, cx));
            return Poll::Ready(Err(error));
        }
        self.closing.clear();
        if let Poll::Ready(Ok(())) = closed {
            self.closed = true;
            self.shared.closed.store(true, Ordering::Release);
        }
        closed
    }

    /// What is not a mere [`copy`](Self::copy), unless it has to wait.
    pub(super) fn try_feed(&mut self, message: &[u8]) -> Result<bool, Error> {
        if self.must_wait() {
            return Ok(false);
        }
        let fed = self.feed(|output| output.push_copy(message));
        let closed = || Err(Error::Closed { message: Some(Bytes::copy_from_slice(message).into()) });
        fed.unwrap_or_else(closed).map(|()| true)
    }

    pub(super) fn take_in_doubt(&mut self) -> Vec<Bytes> {
        self.shared.returned.take_in_doubt()
    }

    /// What came back, and what was not handed over.
    pub(super) fn take_unsent(&mut self) -> Vec<Bytes> {
        let mut unsent = self.shared.returned.take_unsent();
        if self.outbox().is_closed() {
            unsent.append(&mut self.shelf.take());
        }
        unsent
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        self.shared.line.outbox().leave(&mut self.place);
        let outbox = self.shared.line.outbox();
        // The reader may go on: this direction ends when what was accepted is sent.
        let _ = outbox.part(&self.shelf, self.shared.config.queue_bytes);
        outbox.close();
        outbox.call_driver();
    }
}
