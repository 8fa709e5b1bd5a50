//! One end of a session while it has a connection: what comes is read and obeyed, what is due is written, and silence is noticed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::config::Config;
use crate::deadline::Deadline;
use crate::error::{Error, Limit};
use crate::framed::{self, Reader};
use crate::queue::{Obeyed, Outbox, Verdict};
use crate::runtime::{Alarm, Handle};
use crate::session::{ErrorCode, Side, Terms, Violation};
use crate::transport::Stream;
use crate::wire::{Codec, Decoder};

/// After so many of its intervals without a byte, the other end is taken for dead.
const INTERVALS: u32 = 3;
/// How many controls it obeys before it lets other tasks run.
const CONTROLS_IN_A_ROW: u32 = 16;

/// A session's connection, as the task of one end has it.
pub(crate) struct Attached {
    stream: Stream,
    reader: Box<Reader<Stream>>,
    config: Config,
    /// After how long without a word this end says something.
    says_every: Option<Duration>,
    /// After how much silence the other end is taken for dead.
    dead_after: Option<Duration>,
    /// How much had been written, and when that was seen.
    wrote: (u64, Instant),
    /// How much of a frame had come, and when that was seen.
    heard: (usize, Instant),
    slow: Deadline,
    /// Whether it tells of messages that are too old: not while its owner could not take them back.
    pub(crate) tells_expired: bool,
    alarm: Option<Alarm>,
    /// When it does, if it has not.
    fires_at: Option<Instant>,
}

/// What there is to do for the owner of a session.
pub(crate) enum Came {
    /// Whole frames: to be [taken](Attached::take), and counted.
    Frames,
    /// Messages that the other end's program did not take.
    Untaken(Vec<(Vec<Bytes>, Verdict)>),
    /// Messages that are too old to be sent.
    Expired,
    /// A control may have changed what is to be done.
    Control,
    /// The connection is at its end.
    Broke(Break),
}

/// How a session's connection ended.
#[derive(Debug)]
pub(crate) enum Break {
    /// The other end closed it, between two frames.
    Closed,
    /// The session may come back by another one.
    Error(Error),
    /// The other end says that the session is over.
    Over(ErrorCode),
    /// The other end broke the rules: the session is over.
    Violation(Violation),
}

impl Attached {
    /// `from` is the side of the other end, `ours` and `theirs` what the two have said.
    pub(crate) fn new(stream: Stream, from: Side, codec: Codec, config: &Config, ours: &Terms, theirs: &Terms) -> Self {
        let interval = |ms: u32| (ms > 0).then(|| Duration::from_millis(ms.into()));
        let now = config.runtime.now();
        Self {
            reader: Box::new(Reader::in_session(stream.clone(), Decoder::with(codec), from)),
            says_every: interval(ours.heartbeat),
            dead_after: interval(theirs.heartbeat).map(|every| every.saturating_mul(INTERVALS)),
            wrote: (0, now),
            heard: (0, now),
            slow: Deadline::new(&config.runtime),
            tells_expired: true,
            alarm: None,
            fires_at: None,
            stream,
            config: config.clone(),
        }
    }

    fn runtime(&self) -> &Handle {
        &self.config.runtime
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream.clone()
    }

    /// Takes the frames that came.
    pub(crate) fn take(&mut self) -> framed::Batch {
        self.reader.take()
    }

    /// Reads, where it `reads`, writes, and keeps the time, until there is something to do for the session's owner. The owner is
    /// the outbox's driver, and has registered before it looked at anything: what changes after a look must call it again.
    pub(crate) fn poll(&mut self, outbox: &Outbox<Stream>, reads: bool, cx: &mut Context<'_>) -> Poll<Came> {
        for _ in 0..CONTROLS_IN_A_ROW {
            let lingers = outbox.hand_over_due();
            let driven = outbox.poll_drive(cx);
            if let Poll::Ready(Err(error)) = driven {
                return Poll::Ready(Came::Broke(Break::Error(error)));
            }
            if self.tells_expired && driven.is_pending() && outbox.has_expired() {
                return Poll::Ready(Came::Expired);
            }
            if reads && let Poll::Ready(came) = self.poll_read(outbox, cx) {
                match came {
                    Some(came) => return Poll::Ready(came),
                    None => continue,
                }
            }
            match self.poll_time(outbox, driven.is_ready(), reads, lingers, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Came::Broke(Break::Error(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Ready without anything where a control was obeyed.
    fn poll_read(&mut self, outbox: &Outbox<Stream>, cx: &mut Context<'_>) -> Poll<Option<Came>> {
        let filled = match self.reader.poll_fill(cx) {
            Poll::Ready(filled) => filled,
            Poll::Pending => return Poll::Pending,
        };
        self.heard = (0, self.runtime().now());
        self.slow.clear();
        let control = match filled {
            Ok(true) => self.reader.take_control(),
            Ok(false) => return Poll::Ready(Some(Came::Broke(Break::Closed))),
            Err(error) => return Poll::Ready(Some(Came::Broke(Break::Error(error)))),
        };
        let obeyed = match control {
            None => return Poll::Ready(Some(Came::Frames)),
            Some(control) => control.and_then(|control| outbox.obey(control)),
        };
        Poll::Ready(match obeyed {
            Ok((Obeyed::Over(code), _)) => Some(Came::Broke(Break::Over(code))),
            Ok((obeyed, untaken)) => {
                let letters = untaken.letters();
                match obeyed {
                    _ if !letters.is_empty() => Some(Came::Untaken(letters)),
                    Obeyed::Changed => Some(Came::Control),
                    Obeyed::Nothing | Obeyed::Over(_) => None,
                }
            }
            Err(violation) => Some(Came::Broke(Break::Violation(violation))),
        })
    }

    /// Waits until something is due, as what `lingers` then. Ready when there is something to write.
    fn poll_time(
        &mut self,
        outbox: &Outbox<Stream>,
        may_write: bool,
        reads: bool,
        lingers: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let now = self.runtime().now();
        let written = outbox.progress();
        if written != self.wrote.0 {
            self.wrote = (written, now);
        }
        // Only who reads can tell that nothing comes.
        let got = self.reader.received();
        if !reads || got != self.heard.0 {
            self.heard = (got, now);
        }
        if reads && self.reader.is_mid_frame() && self.reader.waits_for_peer() {
            if let Poll::Ready(error) = self.slow.poll(Limit::FrameTimeout, &self.config, 0, cx) {
                return Poll::Ready(Err(error));
            }
        } else {
            self.slow.clear();
        }
        let mut next: Option<Instant> = None;
        let mut until = |at: Option<Instant>| {
            let Some(at) = at else { return false };
            next = Some(next.map_or(at, |next| next.min(at)));
            at <= now
        };
        if until(self.dead_after.and_then(|after| self.heard.1.checked_add(after))) {
            let silent = format!("no sign of life for {:?}", self.dead_after.unwrap_or_default());
            return Poll::Ready(Err(Error::Read(io::Error::new(io::ErrorKind::TimedOut, silent))));
        }
        if until(self.says_every.and_then(|every| self.wrote.1.checked_add(every))) {
            outbox.say_heartbeat();
            // Said once in that time, whether or not the socket takes it.
            self.wrote.1 = now;
            return Poll::Ready(Ok(()));
        }
        if until(lingers) {
            return Poll::Ready(Ok(()));
        }
        if may_write && until(outbox.ack_due()) {
            return Poll::Ready(Ok(()));
        }
        // Nobody writes while the window is full.
        if self.tells_expired && until(outbox.next_expiry()) {
            return Poll::Ready(Ok(()));
        }
        let Some(next) = next else { return Poll::Pending };
        // One for as long as the connection stands: to set it again takes no memory.
        if self.fires_at.is_none_or(|at| at > next) {
            match &mut self.alarm {
                Some(alarm) => alarm.reset(next),
                none => *none = Some(self.config.runtime.timer(next)),
            }
            self.fires_at = Some(next);
        }
        let Some(alarm) = &mut self.alarm else { return Poll::Pending };
        ready!(Pin::new(alarm).poll(cx));
        self.fires_at = None;
        Poll::Ready(Ok(()))
    }
}
