//! One address of a manager: the queue of its messages, and the task that keeps a connection under it.

use std::future::poll_fn;
use std::io;
use std::iter::Sum;
use std::mem;
use std::ops::Add;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::io::AsyncRead;

use crate::config::Config;
use crate::dead_letters::{DeadLetter, DeadLetterBox, Outcome};
use crate::error::Error;
use crate::events::{ManagerEvent, Reporter};
use crate::net::{self, Deadline, Task};
use crate::outbox::Outbox;
use crate::peer::Address;
use crate::wire::Codec;

/// How often one poll reads replies that nobody wants before it lets other tasks run.
const READS_PER_POLL: usize = 16;

/// How many connections in a row may break without having taken a whole message, before the messages come back.
const BREAKS_IN_VAIN: u32 = 3;

/// One address: the way from its producers to its task.
pub(crate) struct Link {
    pub(crate) address: Address,
    pub(crate) outbox: Outbox<net::Stream>,
    pub(crate) reconnects: AtomicU64,
}

/// What was counted of one address: `accepted = written + given_back + held`, at every moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// How many messages were put into the queue.
    pub accepted: u64,
    /// How many were handed whole to the kernel.
    pub written: u64,
    /// How many came back: in an error of `write`, or as dead letters.
    pub given_back: u64,
    /// How many are in the queue.
    pub held: u64,
    /// How many bytes they have on the wire, headers included.
    pub held_bytes: usize,
    /// How many bytes the kernel has taken, headers included.
    pub bytes: u64,
    /// How often the connection was opened again.
    pub reconnects: u64,
}

/// What the links of one manager have in common.
pub(crate) struct Common {
    pub(crate) config: Config,
    pub(crate) reporter: Reporter<ManagerEvent>,
    pub(crate) dead_letters: Arc<DeadLetterBox>,
}

impl Link {
    /// Starts on a connection that has been made.
    pub(crate) fn start(common: Arc<Common>, address: Address, stream: net::Stream, codec: Codec) -> (Arc<Self>, Task) {
        let outbox = Outbox::new(stream.clone(), codec);
        let link = Arc::new(Self { address, outbox, reconnects: AtomicU64::new(0) });
        let task = LinkTask { link: link.clone(), common, stream, half_closed: false, stalled: Deadline::default() };
        (link, net::spawn(task.run()))
    }

    /// Its books.
    pub(crate) fn stats(&self) -> LinkStats {
        let books = self.outbox.books();
        LinkStats {
            accepted: books.accepted,
            written: books.written,
            given_back: books.given_back,
            held: books.held,
            held_bytes: books.held_bytes,
            bytes: books.bytes,
            reconnects: self.reconnects.load(Ordering::Relaxed),
        }
    }

    /// Takes back all that is held, when its task has ended.
    pub(crate) async fn give_back(&self, error: Arc<Error>) -> Vec<Bytes> {
        poll_fn(|cx| self.outbox.poll_lose(cx)).await;
        self.outbox.give_back(error)
    }
}

impl Common {
    /// Hands the messages to whoever has asked for dead letters, as fast as those are taken; without anybody, when they
    /// are gone, or when too many are on their way already, says how many were lost. When this is dropped, it goes on in
    /// the background.
    pub(crate) async fn bury(
        self: Arc<Self>,
        address: Address,
        messages: Vec<Bytes>,
        outcome: Outcome,
        error: Arc<Error>,
    ) {
        let Some(place) = self.dead_letters.place(&messages) else {
            return self.reporter.report(ManagerEvent::Lost { address, messages: messages.len() });
        };
        let mut burying = Box::pin(async move {
            let _place = place;
            let mut lost = 0;
            for message in messages {
                let letter = DeadLetter { address: address.clone(), message, outcome, error: error.clone() };
                if self.dead_letters.send(letter).await.is_err() {
                    lost += 1;
                }
            }
            if lost > 0 {
                self.reporter.report(ManagerEvent::Lost { address, messages: lost });
            }
        });
        // Mostly there is room, and no task is needed.
        if futures::poll!(&mut burying).is_pending() {
            net::finish(burying).await;
        }
    }
}

/// Drives the queue where its producers do not, notices when the peer closes, and opens the connection again.
struct LinkTask {
    link: Arc<Link>,
    common: Arc<Common>,
    stream: net::Stream,
    half_closed: bool,
    stalled: Deadline,
}

impl LinkTask {
    async fn run(mut self) {
        let (mut written, mut in_vain) = (0, 0);
        loop {
            let broken = poll_fn(|cx| self.poll_up(cx)).await;
            self.stream.shut_down();
            poll_fn(|cx| self.link.outbox.poll_lose(cx)).await;
            let books = self.link.outbox.books();
            let done = self.link.outbox.is_closed() && books.held == 0;
            let error = broken.err().map(Arc::new);
            if !done || error.is_some() {
                self.common.reporter.report(ManagerEvent::Broken { address: self.address(), error: error.clone() });
            }
            in_vain = if books.held > 0 && books.written == written { in_vain + 1 } else { 0 };
            written = books.written;
            if in_vain == BREAKS_IN_VAIN {
                // A peer that refuses a message would be sent it again for ever, and nothing behind it.
                in_vain = 0;
                let closed = || Arc::new(Error::Write(io::ErrorKind::ConnectionAborted.into()));
                let error = error.unwrap_or_else(closed);
                let messages = self.link.outbox.give_back(error.clone());
                self.common.clone().bury(self.address(), messages, Outcome::NotSent, error).await;
            }
            if !self.open_again().await {
                return;
            }
        }
    }

    /// Opens the connection when there is something to write. `false` when there will be nothing more.
    async fn open_again(&mut self) -> bool {
        loop {
            if !poll_fn(|cx| self.link.outbox.poll_wanted(cx)).await {
                return false;
            }
            match net::dial(&self.link.address, &self.common.config).await {
                Ok(stream) => {
                    self.stream = stream.clone();
                    self.half_closed = false;
                    self.link.outbox.resume(stream);
                    self.link.reconnects.fetch_add(1, Ordering::Relaxed);
                    self.common.reporter.report(ManagerEvent::Opened { address: self.address() });
                    return true;
                }
                Err(error) => {
                    let error = Arc::new(error);
                    let failed = ManagerEvent::DialFailed { address: self.address(), error: error.clone() };
                    self.common.reporter.report(failed);
                    let messages = self.link.outbox.give_back(error.clone());
                    self.common.clone().bury(self.address(), messages, Outcome::NotSent, error).await;
                }
            }
        }
    }

    fn address(&self) -> Address {
        self.link.address.clone()
    }

    /// Serves the connection until it ends: with an error, or because the peer closed it.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let outbox = &self.link.outbox;
        outbox.set_driver(cx.waker());
        // Asked once: of what is accepted until then, all must be written before the half-close.
        let closed = outbox.is_closed();
        let driven = if outbox.is_stalled() || closed { outbox.poll_drive(cx)? } else { Poll::Ready(()) };
        match driven {
            Poll::Ready(()) => self.stalled.clear(),
            Poll::Pending => {
                let limit = ("write_timeout", self.common.config.write_timeout);
                if let Poll::Ready(error) = self.stalled.poll(limit, outbox.progress(), cx) {
                    return Poll::Ready(Err(error));
                }
            }
        }
        if driven.is_ready() && closed && !mem::replace(&mut self.half_closed, true) {
            self.stream.half_close().map_err(Error::Write)?;
        }
        self.poll_end(cx)
    }

    /// Waits for the peer to close. A manager has no stream of replies: what comes is read and forgotten, or it would
    /// hide the end.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        for _ in 0..READS_PER_POLL {
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut [0; 1024])) {
                Ok(0) => return Poll::Ready(Ok(())),
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
            given_back: self.given_back + other.given_back,
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
