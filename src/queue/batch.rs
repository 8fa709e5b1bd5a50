//! What one producer has put together.

use super::ages::Ages;
use super::books::Fate;
use crate::error::Error;
use crate::wire::Output;

/// Messages that one producer has put together, and where it may learn their fate.
pub(crate) struct Batch {
    pub(crate) output: Output,
    pub(crate) messages: usize,
    pub(crate) fate: Fate,
    /// Where they have an age from before they are accepted by a queue.
    pub(crate) ages: Option<Ages>,
}

impl Batch {
    /// An empty one. Its producer is told the fate of what is put into it.
    pub(crate) fn new(output: Output, fate: Fate) -> Self {
        Self { output, messages: 0, fate, ages: None }
    }

    /// Accepts the message that `push` puts behind the others.
    #[inline(always)]
    pub(crate) fn push_with(&mut self, push: impl FnOnce(&mut Output) -> Result<(), Error>) -> Result<(), Error> {
        push(&mut self.output)?;
        self.messages += 1;
        Ok(())
    }
}
