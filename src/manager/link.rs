//! One address of a manager: the queue of its messages, and the task that keeps a connection under it.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::iter::Sum;
use std::ops::Add;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{Either, OptionFuture, select};
use futures::io::AsyncRead;

use super::dead_letters::DeadLetterBox;
use super::link_socket::LinkSocket;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::foreign::{self, Panic, PanicHook, PanicSource};
use crate::link::{Down, Progress, Retries};
use crate::observe::{ManagerEvent, Reporter};
use crate::peer::Address;
use crate::queue::{Outbox, Outcome, Rules, Ttl, Verdict};
use crate::runtime::Handle;
use crate::transport;
use crate::wire::Codec;

/// How often one poll reads replies that nobody wants before it lets other tasks run.
const READS_PER_POLL: usize = 16;

/// How long it waits at least until it looks again for what is too old.
const TICK: Duration = Duration::from_millis(1);

/// How long it waits until it dials once more, where messages are to come back and earlier letters are in their way.
const BETWEEN: Duration = Duration::from_secs(1);

/// One address: the way from its producers to its task.
pub(crate) struct Link {
    pub(crate) address: Address,
    pub(crate) outbox: Outbox<transport::Stream>,
    pub(crate) reconnects: AtomicU64,
    /// How often the address has been dialed in the outage that goes on; 0 while there is none.
    attempts: AtomicU32,
    pub(crate) socket: LinkSocket,
}

/// What was counted of one address: `accepted = written + dead_lettered + held`, at every moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// How many messages were put into the queue. What a [`ManagerSink`](crate::ManagerSink) has collected and not handed
    /// over is not counted yet.
    pub accepted: u64,
    /// How many were handed whole to the kernel. Whether the peer took them is another matter: of one that takes 1,000 of 5,000
    /// and quits, all 5,000 may be written.
    pub written: u64,
    /// How many came back: as dead letters, or to a `write` that waited, in its error.
    pub dead_lettered: u64,
    /// How many are in the queue.
    pub held: u64,
    /// How many bytes they have on the wire, headers included.
    pub held_bytes: usize,
    /// How many bytes the kernel has taken, headers included, and what TLS adds to them not.
    pub bytes: u64,
    /// How often the connection was opened again.
    pub reconnects: u64,
}

/// What the links of one manager have in common.
pub(crate) struct Common {
    pub(crate) config: Config,
    pub(crate) reporter: Arc<Reporter<ManagerEvent>>,
    pub(crate) dead_letters: Arc<DeadLetterBox>,
}

impl Link {
    /// An address whose connection has been made, and the task that keeps one under it.
    pub(crate) fn new(
        common: Arc<Common>,
        address: Address,
        stream: transport::Stream,
        codec: Codec,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let rules = Rules {
            is_dead: transport::Stream::is_closed_by_peer,
            room_while_down: common.config.room_while_down(),
            ttl: common.config.message_ttl.map(|after| Ttl { after, runtime: common.config.runtime.clone() }),
            panicked: Some(common.hook(&address)),
        };
        let outbox = Outbox::new(stream.clone(), codec, Arc::new(rules));
        let runtime = &common.config.runtime;
        let retries =
            Retries::new(common.config.reconnect.clone(), Some(common.hook(&address)), runtime.now(), runtime.random());
        let socket = LinkSocket::new(stream.clone());
        let (reconnects, attempts) = (AtomicU64::new(0), AtomicU32::new(0));
        let link = Arc::new(Self { address, outbox, reconnects, attempts, socket });
        let stalled = Deadline::new(&common.config.runtime);
        let task = LinkTask { link: link.clone(), common, stream, half_closed: false, stalled, burying: None };
        (link, task.run(retries))
    }

    /// Its books.
    pub(crate) fn stats(&self) -> LinkStats {
        let books = self.outbox.books();
        LinkStats {
            accepted: books.accepted,
            written: books.written,
            dead_lettered: books.given_back,
            held: books.held,
            held_bytes: books.held_bytes,
            bytes: books.bytes,
            reconnects: self.reconnects.load(Ordering::Relaxed),
        }
    }

    /// Ends it, and takes back all that is held: what is too old, and what was closed, or why else that is.
    pub(crate) async fn end(&self, why: Option<Arc<Error>>) -> [(Vec<Bytes>, Verdict); 2] {
        // Also, the queue is to get no other connection while what it holds is taken back.
        self.outbox.end();
        self.socket.shut();
        self.outbox.lose().await;
        let attempts = self.attempts.load(Ordering::Relaxed);
        let expired = self.outbox.take_expired(attempts);
        let closed = Verdict { attempts, ..Verdict::closed() };
        let closed = Verdict { error: why.unwrap_or(closed.error), ..closed };
        [expired, (self.outbox.give_back(&closed), closed)]
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Two messages that panic when they are dropped would end the process, if that was in one go. Nobody is left to be told.
        let _ = foreign::call(|| self.outbox.lose().now_or_never());
        for message in self.outbox.give_back(&Verdict::closed()) {
            let _ = foreign::dispose(message);
        }
    }
}

impl Common {
    /// Makes dead letters of the messages: see [`DeadLetterBox::bury`].
    pub(crate) async fn bury(self: Arc<Self>, address: Address, messages: Vec<Bytes>, verdict: Verdict) {
        self.dead_letters.clone().bury(address, messages, verdict).await;
    }

    /// Tells of a panic that was caught.
    pub(crate) fn panicked(&self, address: &Address, source: PanicSource, Panic { message }: Panic) {
        self.reporter.report(ManagerEvent::Panicked { address: Some(address.clone()), source, message });
    }

    fn hook(self: &Arc<Self>, address: &Address) -> PanicHook {
        let (common, address) = (self.clone(), address.clone());
        Arc::new(move |source, panic| common.panicked(&address, source, panic))
    }
}

/// Drives the queue where its producers do not, notices when the peer closes, and opens the connection again.
struct LinkTask {
    link: Arc<Link>,
    common: Arc<Common>,
    stream: transport::Stream,
    half_closed: bool,
    stalled: Deadline,
    /// Letters on their way to whoever takes them. Others of this address wait until these are taken; the connection does
    /// not, or who takes them could not wait for it.
    burying: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// What ends a turn of serving a connection.
enum Turn {
    /// There are messages that were too old to be sent.
    Expired,
    /// The peer closed the connection.
    Closed,
}

impl LinkTask {
    fn runtime(&self) -> &Handle {
        &self.common.config.runtime
    }

    async fn run(mut self, mut retries: Retries) {
        let mut written = 0;
        loop {
            let error = match poll_fn(|cx| self.poll_up(cx)).await {
                Ok(Turn::Expired) => {
                    self.bury_expired();
                    continue;
                }
                Ok(Turn::Closed) => None,
                Err(error) => Some(Arc::new(error)),
            };
            self.link.socket.let_go();
            self.link.outbox.lose().await;
            if self.link.socket.is_shut() {
                return;
            }
            let books = self.link.outbox.books();
            let done = self.link.outbox.is_closed() && books.held == 0;
            if !done || error.is_some() {
                self.common.reporter.report(ManagerEvent::Broken { address: self.address(), error: error.clone() });
            }
            let why = error.unwrap_or_else(|| Arc::new(Error::Write(io::ErrorKind::ConnectionAborted.into())));
            if books.held > 0 && books.written == written {
                // A peer that refuses a message would be sent it again for ever, and nothing behind it.
                retries.broke_in_vain(self.runtime().now());
            } else {
                retries.broke(self.runtime().now());
            }
            written = books.written;
            if !self.open_again(&mut retries, why).await {
                // Until its end is waited for no longer: then they go on in the background.
                return poll_fn(|cx| self.poll_buried(cx)).await;
            }
        }
    }

    /// Opens the connection when there is something to write; `why` is how it broke. `false` when there will be nothing
    /// more.
    async fn open_again(&mut self, retries: &mut Retries, why: Arc<Error>) -> bool {
        let (link, common, mut down) = (self.link.clone(), self.common.clone(), Down::new(why));
        loop {
            if link.outbox.books().held == 0 {
                retries.rests();
            }
            if !poll_fn(|cx| self.poll_wanted(cx)).await {
                return false;
            }
            if let Some(stream) = self.redial(retries, &mut down).await {
                self.stream = stream.clone();
                self.half_closed = false;
                retries.opened(self.runtime().now());
                link.attempts.store(0, Ordering::Relaxed);
                if !link.outbox.resume(stream.clone()) || !link.socket.keep(stream) {
                    return false;
                }
                link.reconnects.fetch_add(1, Ordering::Relaxed);
                common.reporter.report(ManagerEvent::Opened { address: self.address() });
                return true;
            }
        }
    }

    /// Dials until the connection is open; `None` when nothing is left to dial for: it has grown too old, or was given up.
    async fn redial(&mut self, retries: &mut Retries, down: &mut Down<Arc<Error>>) -> Option<transport::Stream> {
        let (link, common) = (self.link.clone(), self.common.clone());
        loop {
            let progress = poll_fn(|cx| down.poll_progress(retries, &link.address, &common.config, cx));
            // A close cannot wait for the end of a long delay: it cuts the one short that it meets.
            let was_closed = link.outbox.is_closed();
            let closing = async { if was_closed { pending().await } else { link.outbox.closed().await } };
            let Either::Left((progress, _)) = self.expiring(select(progress, pin!(closing))).await else {
                down.hurry();
                continue;
            };
            match progress {
                Progress::Due(dial) => {
                    if self.is_free(Duration::ZERO).await {
                        // Some may have been with a connection until it broke.
                        self.bury_expired();
                    }
                    if link.outbox.books().held == 0 {
                        down.stop();
                        return None;
                    }
                    link.attempts.store(retries.attempts(), Ordering::Relaxed);
                    link.socket.await_dial(dial);
                }
                Progress::Opened(stream) => return Some(stream),
                Progress::Failed => common
                    .reporter
                    .report(ManagerEvent::DialFailed { address: self.address(), error: down.why.clone() }),
                Progress::GaveUp if self.is_free(Duration::ZERO).await => {
                    self.give_up(retries, down.why.clone());
                    return None;
                }
                Progress::GaveUp => {
                    // Nothing can come back before the letters are taken that came back last.
                    retries.once_more();
                    down.wait(BETWEEN, &common.config.runtime);
                }
            }
        }
    }

    /// Waits for `future`, and meanwhile gives back what grows too old.
    async fn expiring<T>(&mut self, future: impl Future<Output = T>) -> T {
        let (mut future, common) = (pin!(future), self.common.clone());
        loop {
            let due = self.link.outbox.next_expiry();
            let left = due.map(|due| due.saturating_duration_since(common.config.runtime.now()).max(TICK));
            let mut due = pin!(OptionFuture::from(left.map(|left| common.config.runtime.sleep(left))));
            let output = poll_fn(|cx| {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(Some(output));
                }
                ready!(self.poll_buried(cx));
                match due.as_mut().poll(cx) {
                    Poll::Ready(Some(())) => Poll::Ready(None),
                    Poll::Ready(None) | Poll::Pending => Poll::Pending,
                }
            });
            match output.await {
                Some(output) => return output,
                None => self.bury_expired(),
            }
        }
    }

    /// Hands letters over, where some are on their way; ready when those are taken.
    fn poll_buried(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(burying) = &mut self.burying {
            ready!(burying.as_mut().poll(cx));
            self.burying = None;
        }
        Poll::Ready(())
    }

    /// Whether nothing is on its way to whoever takes the letters, `limit` from now at the latest.
    async fn is_free(&mut self, limit: Duration) -> bool {
        let common = self.common.clone();
        common.config.runtime.within(Some(limit), poll_fn(|cx| self.poll_buried(cx))).await.is_some()
    }

    fn bury(&mut self, messages: Vec<Bytes>, verdict: Verdict) {
        if !messages.is_empty() {
            let letters = self.common.dead_letters.clone();
            self.burying = Some(Box::pin(letters.bury_in_turn(self.address(), messages, verdict)));
        }
    }

    fn bury_expired(&mut self) {
        let (messages, verdict) = self.link.outbox.take_expired(self.link.attempts.load(Ordering::Relaxed));
        self.bury(messages, verdict);
    }

    /// All that is held comes back.
    fn give_up(&mut self, retries: &mut Retries, error: Arc<Error>) {
        let outcome = if self.common.config.reconnect.is_some() { Outcome::GaveUp } else { Outcome::NotSent };
        let verdict = Verdict { outcome, attempts: retries.attempts(), error };
        retries.start_over();
        self.link.attempts.store(0, Ordering::Relaxed);
        let messages = self.link.outbox.give_back(&verdict);
        self.bury(messages, verdict);
    }

    fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let _ = self.poll_buried(cx);
        self.link.outbox.poll_wanted(cx)
    }

    fn address(&self) -> Address {
        self.link.address.clone()
    }

    /// Serves the connection until there is something else to do.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, Error>> {
        let is_free = self.poll_buried(cx).is_ready();
        let outbox = &self.link.outbox;
        outbox.set_driver(cx.waker());
        // Asked once: of what is accepted until then, all must be written before the half-close.
        let closed = outbox.is_closed();
        let driven = match outbox.is_stalled() || closed {
            true => outbox.poll_drive(cx),
            false => Poll::Ready(Ok(())),
        };
        match driven {
            // It was found closed before it was given anything; reading tells how.
            Poll::Ready(Err(Error::Closed { .. })) => return self.poll_end(cx),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => self.stalled.clear(),
            Poll::Pending if outbox.has_expired() => {
                // If not, it is not for the peer that it waits.
                if is_free {
                    return Poll::Ready(Ok(Turn::Expired));
                }
            }
            Poll::Pending => {
                let config = &self.common.config;
                if let Poll::Ready(error) = self.stalled.poll(Limit::WriteTimeout, config, outbox.progress(), cx) {
                    return Poll::Ready(Err(error));
                }
            }
        }
        if driven.is_ready()
            && closed
            && !self.half_closed
            && let Poll::Ready(told) = self.stream.poll_half_close(cx)
        {
            told.map_err(Error::Write)?;
            self.half_closed = true;
        }
        self.poll_end(cx)
    }

    /// Waits for the peer to close. A manager has no stream of replies: what comes is read and forgotten, or the end might
    /// have no room to arrive.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<Turn, Error>> {
        for _ in 0..READS_PER_POLL {
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut [0; 1024])) {
                Ok(0) => return Poll::Ready(Ok(Turn::Closed)),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(Error::Read(error))),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Add for LinkStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            written: self.written + other.written,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            held: self.held + other.held,
            held_bytes: self.held_bytes + other.held_bytes,
            bytes: self.bytes + other.bytes,
            reconnects: self.reconnects + other.reconnects,
        }
    }
}

impl Sum for LinkStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), Add::add)
    }
}
