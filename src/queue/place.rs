//! Where a producer is with what it has handed over to a queue, and what it waits for.

use super::batch::Batch;
use super::books::Ticket;
use crate::sync::Key;

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn(u64);

impl Turn {
    pub(crate) fn new(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const FIRST: Self = Self(0);
    pub(crate) const LAST: Self = Self(u64::MAX);
}

/// What somebody waits for at a queue. The first of them need somebody who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Wait {
    /// The message of this ticket is written, or given back.
    Written(Ticket),
    /// The message of this ticket is over.
    Over(Ticket),
    /// What waits in the line is accepted.
    Accepted(Turn),
    /// There is room.
    Room,
    /// Nobody writes.
    PutBack,
    /// Nothing more is accepted.
    Closed,
}

/// Where a producer is with what it has handed over, and where it waits.
#[derive(Default)]
pub(crate) struct Place {
    pub(crate) stage: Stage,
    pub(crate) waiting: Option<Key<Wait>>,
    /// What went through the line last, and is empty now.
    pub(crate) spare: Option<Box<Batch>>,
}

/// How far the messages that were handed over last have come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Stage {
    /// There are none, or they are over.
    #[default]
    Nothing,
    /// They wait for room.
    InLine(Turn),
    Accepted(Ticket),
    /// They are written, and not over.
    Written(Ticket),
}

impl Stage {
    /// That of the last message, where it is accepted.
    pub(crate) fn ticket(self) -> Option<Ticket> {
        match self {
            Self::Accepted(ticket) | Self::Written(ticket) => Some(ticket),
            Self::Nothing | Self::InLine(_) => None,
        }
    }
}
