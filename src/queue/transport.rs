//! Where the messages of a queue go: a transport, or what is left of one.

use std::mem;

use futures::io::AsyncWrite;

use crate::framed::Writer;
use crate::wire::Output;

/// Where the messages go.
pub(crate) enum Transport<W> {
    Idle(Writer<W>),
    /// Somebody is writing. What is with them, and what comes then.
    Taken(Load, Then),
    /// It broke, or was dropped. What it did not take whole, from the start of the oldest frame.
    Gone(Output),
}

/// What follows when a transport is put back. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Then {
    Nothing,
    /// The driver is called: it wanted to write.
    CallDriver,
    /// The transport is dropped.
    Lose,
}

/// How much a transport was given to write.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Load {
    pub(crate) fn of(output: &Output) -> Self {
        Self { messages: output.held(), bytes: output.len() }
    }
}

impl<W: AsyncWrite + Unpin> Transport<W> {
    /// In somebody's hands, while it is looked at or written to.
    pub(crate) fn take(&mut self) -> Self {
        mem::replace(self, Self::Taken(Load::default(), Then::Nothing))
    }

    pub(crate) fn load(&self) -> Load {
        match self {
            Self::Idle(writer) => Load::of(writer.output()),
            Self::Taken(load, _) => *load,
            Self::Gone(output) => Load::of(output),
        }
    }
}
