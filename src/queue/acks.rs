//! A queue in an acknowledged session, as its task sees it, and the program that settles what came.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use bytes::Bytes;
use futures::io::AsyncWrite;

use super::held::{Held, Then, Transport};
use super::ordinal::Ordinal;
use super::outbox::{Outbox, Step};
use super::rules::Rules;
use super::session::{Obeyed, Session};
use super::unsettled::Unsettled;
use super::verdict::{Outcome, Untaken, Verdict};
use crate::error::{Error, Loss};
use crate::session::{Control, End, ErrorCode, Positions, Settled, Side, Terms, Violation, Why};
use crate::wire::Codec;

impl<W: AsyncWrite + Unpin> Outbox<W> {
    /// That of a session, without a connection. `window` is what it accepts, in bytes.
    pub(crate) fn in_session(codec: Codec, rules: Arc<Rules<W>>, side: Side, window: u32) -> Self {
        let mut held = Held::down(codec, rules.clone());
        held.session = Some(Box::new(Session::new(side, window, codec, rules.clock())));
        Self::with(held, rules)
    }

    /// Looks at the session, or changes it.
    fn with_session<T>(&self, visit: impl FnOnce(&mut Session) -> T) -> Option<T> {
        self.lock().session.as_mut().map(|session| visit(session))
    }

    // ---- a connection comes and goes

    /// What a HELLO says.
    pub(crate) fn positions(&self) -> Positions {
        self.with_session(|session| session.positions()).unwrap_or_default()
    }

    /// The handshake of the other end has come. What a WELCOME says, and what comes back. A violation ends the session.
    pub(crate) fn resume_session(&self, theirs: &Positions, terms: &Terms) -> Result<(Positions, Untaken), Violation> {
        let mut state = self.lock();
        let Some(session) = &mut state.session else { return Err(Violation::Position) };
        let settlement = session.resume(theirs, terms)?;
        let positions = session.positions();
        Ok((positions, state.settle(settlement, untaken)))
    }

    /// The connection did not come about.
    pub(crate) fn unresume_session(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if let Some(session) = &mut state.session {
            session.broke(&mut state.pending);
        }
    }

    /// The session is over, and another takes its place. All that was sent is in doubt, for this reason, unless it was refused;
    /// what was not sent goes to the other. Its connection is gone. Returns how many are in doubt, and what comes back.
    pub(crate) fn lose_session(&self, why: Loss) -> (usize, Untaken) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(session) = &mut state.session else { return (0, Untaken::default()) };
        let settlement = session.lose();
        let in_doubt =
            |(_, messages, why): &(u64, Vec<Bytes>, Why)| if *why == Why::Dropped { messages.len() } else { 0 };
        let in_doubt = settlement.untaken.iter().map(in_doubt).sum();
        **session = session.another(state.pending.codec(), self.rules.clock());
        let lost = |reason| match reason {
            Why::Dropped => Verdict {
                outcome: Outcome::InDoubt,
                attempts: 0,
                error: Arc::new(Error::SessionLost { in_doubt, why }),
            },
            Why::Refused => untaken(reason),
        };
        (in_doubt, state.settle(settlement, lost))
    }

    /// That of a session that is over, as far as it is remembered.
    pub(crate) fn tombstone(codec: Codec, rules: Arc<Rules<W>>, positions: &Positions) -> Self {
        let outbox = Self::in_session(codec, rules, Side::Listener, 0);
        outbox.with_session(|session| *session.end_mut() = End::tombstone(positions));
        outbox
    }

    // ---- what comes

    /// So many frames came, of so many bytes in all. `None` where the connection is gone, as a producer may find before the task:
    /// they do not count, and come again.
    pub(crate) fn received(&self, frames: usize, bytes: usize) -> Result<Option<Unsettled>, Violation> {
        let (frames, bytes) = (frames as u64, bytes as u64);
        let came = self.with_session(|session| {
            if !session.end().is_up() {
                return Ok(None);
            }
            let first = session.frames(frames, bytes)?;
            Ok(Some(Unsettled::new(session.ordinal(), first, frames, bytes)))
        });
        came.unwrap_or(Err(Violation::Position))
    }

    /// The program has settled what came in this session. It tells the other end, where that is due. Of a session in whose place is
    /// another, nobody waits for that.
    #[inline]
    pub(crate) fn settle(&self, session: Ordinal, first: u64, count: u64, bytes: u64, how: Settled) {
        if how != Settled::Taken || !self.settling.put(session, first, count, bytes) {
            self.settle_now(session, first, count, bytes, how, false);
        }
    }

    /// The same in the session's task, where a callback has returned.
    pub(crate) fn settle_in_task(&self, session: Ordinal, first: u64, count: u64, bytes: u64, how: Settled) {
        self.settle_now(session, first, count, bytes, how, true);
    }

    fn settle_now(&self, ordinal: Ordinal, first: u64, count: u64, bytes: u64, how: Settled, in_task: bool) {
        let mut state = self.lock();
        let Some(session) = state.session.as_mut().filter(|session| session.ordinal() == ordinal) else { return };
        match session.settle_received(first, count, bytes, how, in_task, || self.rules.clock()) {
            None => {}
            Some(false) => state.call_driver(),
            Some(true) => {
                let step;
                (state, step) = self.step(state, &mut Context::from_waker(Waker::noop()));
                match step {
                    Step::Busy => {
                        if let Transport::Taken(_, then) = &mut state.transport {
                            *then = Then::CallDriver.max(*then);
                        }
                    }
                    Step::Full => state.stall(),
                    // Others may have come meanwhile.
                    Step::Wrote => state.pass_on(),
                    Step::Idle | Step::Gone => {}
                }
            }
        }
        if state.session.as_ref().is_some_and(|session| session.end().receiver.is_settled()) {
            // It was the last: the task may have been waiting for that to end this direction, or the session.
            state.call_driver();
        }
        if let Some(run) = state.session.as_ref().and_then(|session| session.puts_together()) {
            self.settling.begin(run);
        }
    }

    /// A control came. What it was about, and what comes back.
    pub(crate) fn obey(&self, control: Control) -> Result<(Obeyed, Untaken), Violation> {
        let mut state = self.lock();
        let Some(session) = &mut state.session else { return Err(Violation::Malformed) };
        if !session.end().is_up() && !matches!(control, Control::Error(_)) {
            // As with a message: it is said again on the next connection.
            return Ok((Obeyed::Nothing, Untaken::default()));
        }
        let (obeyed, settlement) = session.obey(control)?;
        Ok((obeyed, state.settle(settlement, untaken)))
    }

    /// The ms that the next session is to wait, once, where GOAWAY has come.
    pub(crate) fn take_retry(&self) -> Option<u32> {
        self.with_session(Session::take_retry)?
    }

    /// As the task, which waits for that: when an ACK is due.
    pub(crate) fn ack_due(&self) -> Option<Instant> {
        self.with_session(Session::ack_due)?
    }

    /// Whether this end may only go on when an ACK comes: what comes is to be read, whatever else waits.
    pub(crate) fn waits_for_acks(&self) -> bool {
        self.with_session(|session| session.waits_for_acks()).unwrap_or(false)
    }

    /// The connection, where nobody is writing to it.
    pub(crate) fn stream(&self) -> Option<W>
    where
        W: Clone,
    {
        match &self.peek().transport {
            Transport::Idle(writer) => writer.io().cloned(),
            Transport::Taken(..) | Transport::Gone(_) => None,
        }
    }

    // ---- what is said

    pub(crate) fn say_heartbeat(&self) {
        self.with_session(Session::say_heartbeat);
    }

    pub(crate) fn say_goaway(&self, retry_ms: u32) {
        self.with_session(|session| session.say_goaway(retry_ms));
    }

    /// The session is over: this is the last that is said.
    pub(crate) fn say_error(&self, code: ErrorCode) {
        self.with_session(|session| session.say_error(code));
    }

    // ---- its end

    /// The program sends no more: when all is sent, the other end is told.
    pub(crate) fn finish_session(&self) {
        self.with_session(|session| session.end_mut().sender.finish());
    }

    /// Whether both directions are closed and all is acknowledged: a dialer then ends the connection.
    pub(crate) fn is_session_over(&self) -> bool {
        self.with_session(|session| session.end().is_over()).unwrap_or(false)
    }

    /// Whether the other end sends no more.
    pub(crate) fn is_receiving_closed(&self) -> bool {
        self.with_session(|session| session.end().receiver.is_closed()).unwrap_or(false)
    }

    /// Whether the other end sends no more, and all of it is settled.
    pub(crate) fn is_receiving_settled(&self) -> bool {
        self.with_session(|session| session.end().receiver.is_settled()).unwrap_or(false)
    }

    /// Whether the other end sends no more, and all of it is settled and told.
    pub(crate) fn is_receiving_over(&self) -> bool {
        self.with_session(|session| session.end().receiver.is_told()).unwrap_or(false)
    }

    /// Messages and bytes, headers included, that came and that the program has not settled.
    pub(crate) fn untaken(&self) -> (u64, u64) {
        self.with_session(|session| session.end().receiver.untaken()).unwrap_or_default()
    }

    /// The session is over, and what the program settles now reaches nobody.
    pub(crate) fn end_session(&self) {
        self.with_session(|session| session.end_mut().receiver.end());
    }
}

/// What becomes of a message that the other end's program did not take.
fn untaken(why: Why) -> Verdict {
    let (outcome, error) = match why {
        Why::Refused => (Outcome::Refused, Error::Refused { message: None }),
        Why::Dropped => (Outcome::InDoubt, Error::InDoubt { message: None, why: None }),
    };
    Verdict { outcome, attempts: 0, error: Arc::new(error) }
}
