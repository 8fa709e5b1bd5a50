//! What was received in a session, and has not been settled by the program.

use futures::io::AsyncWrite;

use super::ordinal::Ordinal;
use super::outbox::Outbox;
use crate::session::Settled;
use crate::wire::Frames;

/// Messages that were received one behind the other, until all of them are settled together.
pub(crate) struct Unsettled {
    /// The session that they came in: another may have taken its place.
    session: Ordinal,
    first: u64,
    messages: u64,
    /// Those of their frames.
    bytes: u64,
    /// Most have none.
    exceptions: Option<Box<Exceptions>>,
}

#[derive(Default)]
struct Exceptions {
    /// What is known to be not taken, in order: how many of the messages come before it, and what became of it.
    known: Vec<(u64, Settled)>,
    /// How many were passed when that was asked last, and the frames that were left then: so each is counted once.
    passed: Option<(u64, Frames)>,
}

impl Unsettled {
    /// So many messages of this session, from this position on, and the bytes of their frames.
    pub(super) fn new(session: Ordinal, first: u64, messages: u64, bytes: u64) -> Self {
        Self { session, first, messages, bytes, exceptions: None }
    }

    /// Settles all of them: in this way, where nothing else is known.
    pub(crate) fn settle<W: AsyncWrite + Unpin>(self, outbox: &Outbox<W>, how: Settled) {
        let Some(exceptions) = self.exceptions else {
            return outbox.settle(self.session, self.first, self.messages, self.bytes, how);
        };
        let mut bytes = self.bytes;
        let mut run = |first: u64, end: u64, how| {
            if first < end {
                outbox.settle(self.session, self.first + first, end - first, std::mem::take(&mut bytes), how);
            }
        };
        let mut at = 0;
        for (index, how_else) in exceptions.known {
            run(at, index, how);
            run(index, index + 1, how_else);
            at = index + 1;
        }
        run(at, self.messages, how);
    }

    /// Settles all of them in this way, in the session's task. Nothing is known of any of them.
    pub(crate) fn settle_in_task<W: AsyncWrite + Unpin>(self, outbox: &Outbox<W>, how: Settled) {
        debug_assert!(self.exceptions.is_none());
        outbox.settle_in_task(self.session, self.first, self.messages, self.bytes, how);
    }

    /// How many of them come before what is left.
    pub(crate) fn passed(&mut self, left: &Frames) -> u64 {
        let last = &mut self.exceptions.get_or_insert_default().passed;
        let passed = match &*last {
            Some((passed, frames)) => passed + frames.messages_before(left),
            None => self.messages - left.slices().count() as u64,
        };
        *last = Some((passed, left.clone()));
        passed
    }

    /// The one that has so many in front of it is not taken, whatever becomes of the others. These are told in order.
    pub(crate) fn except(&mut self, index: u64, how: Settled) {
        self.exceptions.get_or_insert_default().known.push((index, how));
    }

    /// The session that they came in.
    pub(crate) fn session(&self) -> Ordinal {
        self.session
    }

    /// Takes out the first, whose frame has so many bytes, and returns its position. Nothing is known of any of them.
    #[inline]
    pub(crate) fn pass(&mut self, bytes: u64) -> u64 {
        debug_assert!(self.exceptions.as_ref().is_none_or(|exceptions| exceptions.known.is_empty()));
        let first = self.first;
        self.advance(1, bytes);
        first
    }

    #[inline]
    fn advance(&mut self, messages: u64, bytes: u64) {
        self.first += messages;
        self.messages -= messages;
        self.bytes -= bytes;
    }

    /// Takes out the first of them: so many, and the bytes of their frames. What is known of them goes along.
    pub(crate) fn split_to(&mut self, messages: u64, bytes: u64) -> Self {
        let mut first = Self::new(self.session, self.first, messages, bytes);
        self.advance(messages, bytes);
        if let Some(exceptions) = &mut self.exceptions
            && !exceptions.known.is_empty()
        {
            let behind = exceptions.known.partition_point(|(index, _)| *index < messages);
            let mut rest = exceptions.known.split_off(behind);
            rest.iter_mut().for_each(|(index, _)| *index -= messages);
            let known = std::mem::replace(&mut exceptions.known, rest);
            first.exceptions = Some(Box::new(Exceptions { known, passed: None }));
        }
        if let Some(exceptions) = &mut self.exceptions {
            exceptions.passed = None;
        }
        first
    }

    /// Takes out those that come before what is left.
    pub(crate) fn split_passed(&mut self, left: &Frames) -> Self {
        let passed = if left.len() as u64 == self.bytes { 0 } else { self.passed(left) };
        self.split_to(passed, self.bytes - left.len() as u64)
    }
}
