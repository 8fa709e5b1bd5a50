//! The task of a link: it drives the queue where its producers do not, and keeps a connection under it.

use std::future::{Future, poll_fn};
use std::io;
use std::mem;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::OptionFuture;

use super::burials::Burials;
use super::handle::{Link, SessionCounters};
use super::health::{Health, Pulse};
use super::lingering::Lingering;
use super::opened::{First, Opened};
use super::session::Dialed;
use super::socket::LinkSocket;
use super::{Attached, Down, News, Owner, Retries};
use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::{Error, Loss};
use crate::peer::Address;
use crate::queue::{Outbox, Outcome, Rules, Ttl, Verdict};
use crate::runtime::Handle;
use crate::session::{Answer, Control, ErrorCode, Side};
use crate::transport;
use crate::wire::Codec;

/// How long it waits at least until it looks again for what is too old.
const TICK: Duration = Duration::from_millis(1);

impl Link {
    /// An address, with the connection that has been made or is still to come, and the task that keeps one under it. What is fed
    /// lingers for so long.
    pub(crate) fn new(
        owner: Arc<dyn Owner>,
        config: Config,
        linger: Option<Duration>,
        address: Address,
        codec: Codec,
        First { opened, session }: First,
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let runtime = config.runtime.clone();
        let is_session = session.is_some();
        let rules = Arc::new(Rules {
            is_dead: if is_session { |_| false } else { transport::Stream::is_closed_by_peer },
            room_while_down: config.room_while_down(),
            ttl: config.message_ttl.map(|after| Ttl { after, runtime: runtime.clone() }),
            linger,
            clock: Some(runtime.clone()),
            panicked: Some(owner.panic_hook()),
        });
        let stream = opened.as_ref().map(|opened| opened.stream().clone());
        let outbox = match (&session, &stream) {
            (Some(session), _) => Outbox::in_session(codec, rules, Side::Dialer, session.terms().window),
            (None, Some(stream)) => Outbox::new(stream.clone(), codec, rules),
            (None, None) => Outbox::down(codec, rules),
        };
        let retries = Retries::new(config.backoff(), Some(owner.panic_hook()), runtime.now(), runtime.random());
        let health = if opened.is_some() { Health::Up } else { Health::Away { since: runtime.now() } };
        let (socket, pulse) = (LinkSocket::new(stream), Pulse::new(health));
        let (reconnects, attempts) = (AtomicU64::new(0), AtomicU32::new(0));
        let counters = SessionCounters::default();
        let link = Arc::new(Self { address, outbox, reconnects, attempts, socket, pulse, counters });
        #[cfg(feature = "metrics")]
        crate::metrics::register(&link);
        let task = LinkTask {
            link: link.clone(),
            burials: Burials::new(link.clone(), owner.clone()),
            owner,
            stalled: Deadline::new(&runtime),
            lingering: Lingering::default(),
            config,
            session,
            up: Up::Down,
            opens: opened.is_none(),
            given_up: None,
        };
        (link, task.run(retries, opened))
    }
}

/// Drives the queue where its producers do not, notices when the peer closes, and opens the connection again.
pub(super) struct LinkTask {
    pub(super) link: Arc<Link>,
    pub(super) owner: Arc<dyn Owner>,
    pub(super) config: Config,
    /// What is known of the session, if it is one.
    pub(super) session: Option<Dialed>,
    pub(super) up: Up,
    pub(super) stalled: Deadline,
    pub(super) lingering: Lingering,
    /// There was no connection yet, and it is dialed although nothing is held.
    pub(super) opens: bool,
    /// It is dialed in the background, and what is accepted comes back at once with this.
    pub(super) given_up: Option<Verdict>,
    /// What is on its way to the one who takes it back.
    burials: Burials,
}

/// The connection, as the task has it.
pub(super) enum Up {
    Down,
    Plain { stream: transport::Stream, half_closed: bool },
    Session(Box<Attached>),
}

/// What ends a turn of serving a connection.
pub(super) enum Turn {
    /// There are messages that were too old to be sent.
    Expired,
    /// The peer closed the connection.
    Closed,
    /// The session is over in order: both ends have closed it, or the peer takes no more.
    Over,
    /// The session is over, and not in order.
    Lost(Loss),
    /// The same: the other end broke the rules, and was told.
    Violated(ErrorCode),
}

impl LinkTask {
    pub(super) fn runtime(&self) -> &Handle {
        &self.config.runtime
    }

    async fn run(mut self, mut retries: Retries, first: Option<Opened>) {
        match first {
            // The queue has it already.
            Some(Opened::Plain(stream)) => self.up = Up::Plain { stream, half_closed: false },
            Some(greeted) => {
                if !self.take_up(greeted, &mut retries) {
                    return;
                }
            }
            None => {
                let why = Arc::new(Error::Write(io::ErrorKind::NotConnected.into()));
                if !self.open_again(&mut retries, why).await {
                    return;
                }
            }
        }
        let mut written = 0;
        loop {
            let ended = poll_fn(|cx| self.poll_up(cx)).await;
            if let Ok(Turn::Expired) = ended {
                self.bury_expired();
                continue;
            }
            self.up = Up::Down;
            match (&ended, self.link.socket.stream()) {
                (Ok(Turn::Violated(_)), Some(stream)) => {
                    self.link.socket.release();
                    stream.part_in_background(Vec::new(), (), self.runtime());
                }
                _ => self.link.socket.let_go(),
            }
            self.link.pulse.away(self.runtime().now());
            self.link.outbox.lose().await;
            if self.link.socket.is_shut() {
                return;
            }
            let error = match ended {
                Ok(Turn::Lost(why)) => {
                    self.lose_session(why);
                    None
                }
                Ok(Turn::Violated(code)) => {
                    self.lose_session(Loss::Violation(code));
                    None
                }
                Ok(Turn::Over) => {
                    self.end_session(Loss::Ended);
                    None
                }
                Ok(Turn::Closed | Turn::Expired) => None,
                Err(error) => Some(Arc::new(error)),
            };
            let books = self.link.outbox.books();
            let done = self.link.outbox.is_closed() && books.held == 0;
            if !done || error.is_some() {
                self.owner.report(News::Broken(error.clone()));
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
                // The letters that are not taken go on in the background: a close does not wait for them.
                return;
            }
        }
    }

    /// Goes on with a connection. `false` where there is to be none any more.
    pub(super) fn take_up(&mut self, opened: Opened, retries: &mut Retries) -> bool {
        let link = self.link.clone();
        let stream = opened.stream().clone();
        self.up = match (opened, &mut self.session) {
            (Opened::Greeted(greeted), Some(session)) => {
                let Answer::Welcome(welcome) = &greeted.answer else { return true };
                let resumed = link.outbox.resume_session(&welcome.positions, &welcome.terms);
                let Ok((positions, untaken)) = resumed else {
                    // What is unsent goes to a new session, on another connection.
                    link.socket.release();
                    let error = Control::Error(ErrorCode::Position).encode();
                    stream.part_in_background(error.to_vec(), (), self.runtime());
                    self.lose_session(Loss::Violation(ErrorCode::Position));
                    return true;
                };
                if greeted.hello.resume {
                    let replayed = positions.sent - welcome.positions.received;
                    link.counters.replayed.fetch_add(replayed, Ordering::Relaxed);
                    self.owner.report(News::Resumed { replayed });
                } else {
                    link.counters.sessions.fetch_add(1, Ordering::Relaxed);
                }
                let ours = session.terms();
                let attached =
                    Attached::new(stream.clone(), Side::Listener, session.codec(), &self.config, &ours, &welcome.terms);
                let letters = untaken.letters();
                letters.into_iter().for_each(|(messages, verdict)| self.bury(messages, verdict));
                Up::Session(Box::new(attached))
            }
            (opened, _) => Up::Plain { stream: opened.stream().clone(), half_closed: false },
        };
        retries.opened(self.runtime().now());
        link.attempts.store(0, Ordering::Relaxed);
        link.outbox.resume(stream)
    }

    /// The session is over, not in order, and the next one is another. Its owner is told, if the other end knew it.
    pub(super) fn lose_session(&mut self, why: Loss) {
        let was_there = self.session.as_ref().is_some_and(Dialed::is_established);
        let in_doubt = self.end_session(why);
        if was_there {
            self.owner.report(News::SessionLost { in_doubt, why });
        }
    }

    /// The session is over, and the next one is another. How many messages are in doubt.
    fn end_session(&mut self, why: Loss) -> usize {
        let Some(session) = &mut self.session else { return 0 };
        session.forget();
        let (in_doubt, letters) = self.link.lose_session(why);
        letters.into_iter().for_each(|(messages, verdict)| self.bury(messages, verdict));
        in_doubt
    }

    /// Opens the connection when there is something to write, or a session to go on with; `why` is how it broke. `false` when
    /// there will be nothing more.
    pub(super) async fn open_again(&mut self, retries: &mut Retries, why: Arc<Error>) -> bool {
        let (link, mut down) = (self.link.clone(), Down::new(why));
        loop {
            if link.outbox.books().held == 0 {
                retries.rests();
            }
            if !(self.dials_unasked() || self.resumes() || poll_fn(|cx| self.poll_wanted(cx)).await) {
                return false;
            }
            #[cfg(feature = "metrics")]
            let began = self.runtime().now();
            if let Some(opened) = self.redial(retries, &mut down).await {
                let is_new = !matches!(&opened, Opened::Greeted(greeted) if greeted.hello.resume);
                if !link.socket.keep(opened.stream().clone()) || !self.take_up(opened, retries) {
                    return false;
                }
                if let Up::Down = self.up {
                    continue;
                }
                if !mem::take(&mut self.opens) {
                    link.reconnects.fetch_add(1, Ordering::Relaxed);
                    #[cfg(feature = "metrics")]
                    crate::metrics::reconnected(&link.address, self.runtime().now().saturating_duration_since(began));
                }
                if self.given_up.take().is_some() {
                    retries.start_over();
                }
                let was_down = link.pulse.up();
                if is_new {
                    self.owner.report(News::Opened);
                }
                if was_down {
                    self.owner.report(News::Up);
                }
                return true;
            }
        }
    }

    /// Waits for `future`, and meanwhile gives back what grows too old, or all that is accepted where it was given up.
    pub(super) async fn expiring<T>(&mut self, future: impl Future<Output = T>) -> T {
        let (mut future, runtime) = (pin!(future), self.runtime().clone());
        loop {
            let at = self.link.outbox.next_expiry();
            let left = at.map(|at| at.saturating_duration_since(runtime.now()).max(TICK));
            let mut due = pin!(OptionFuture::from(left.map(|left| runtime.sleep(left))));
            let output = poll_fn(|cx| {
                if let Poll::Ready(output) = future.as_mut().poll(cx) {
                    return Poll::Ready(Some(output));
                }
                ready!(self.poll_buried(cx));
                self.poll_lingering(cx);
                if self.given_up.is_some() && self.link.outbox.poll_wanted(cx) == Poll::Ready(true) {
                    return Poll::Ready(None);
                }
                // What another address had before is older than the time at which it comes.
                if at.zip(self.link.outbox.next_expiry()).is_some_and(|(at, now)| now < at) {
                    return Poll::Ready(None);
                }
                match due.as_mut().poll(cx) {
                    Poll::Ready(Some(())) => Poll::Ready(None),
                    Poll::Ready(None) | Poll::Pending => Poll::Pending,
                }
            });
            match output.await {
                Some(output) => return output,
                None => match self.given_up.clone() {
                    Some(verdict) => self.give_back(verdict),
                    None => self.bury_expired(),
                },
            }
        }
    }

    /// Hands letters over, where some are on their way; ready when those are taken.
    pub(super) fn poll_buried(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.burials.poll(cx)
    }

    /// Whether nothing is on its way to the taker of the letters, `limit` from now at the latest.
    pub(super) async fn is_free(&mut self, limit: Duration) -> bool {
        let runtime = self.runtime().clone();
        runtime.within(Some(limit), poll_fn(|cx| self.poll_buried(cx))).await.is_some()
    }

    pub(super) fn bury(&mut self, messages: Vec<Bytes>, verdict: Verdict) {
        self.burials.add(messages, verdict);
    }

    pub(super) fn bury_expired(&mut self) {
        let (messages, verdict) = self.link.outbox.take_expired(self.link.attempts.load(Ordering::Relaxed));
        self.bury(messages, verdict);
    }

    /// All that is held comes back.
    pub(super) fn give_up(&mut self, retries: &mut Retries, error: Arc<Error>) {
        let outcome =
            if self.config.reconnect.is_some() || self.session.is_some() { Outcome::GaveUp } else { Outcome::NotSent };
        let verdict = Verdict { outcome, attempts: retries.attempts(), error };
        self.link.attempts.store(0, Ordering::Relaxed);
        self.give_back(verdict.clone());
        if self.owner.probes() {
            self.given_up = Some(verdict);
        } else {
            retries.start_over();
        }
    }

    pub(super) fn give_back(&mut self, verdict: Verdict) {
        let messages = self.link.outbox.give_back(&verdict);
        self.bury(messages, verdict);
    }

    pub(super) fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let _ = self.poll_buried(cx);
        self.poll_lingering(cx);
        self.link.outbox.poll_wanted(cx)
    }

    /// Hands over what lingers, when that is due.
    pub(super) fn poll_lingering(&mut self, cx: &mut Context<'_>) {
        // First, so that it is called for what is fed from now on.
        self.link.outbox.set_driver(cx.waker());
        self.lingering.poll(&self.link.outbox, &self.config.runtime, cx);
    }
}
