//! Which of the sessions of a queue something belongs to.

use std::num::NonZeroU32;

/// Sessions follow each other at a queue, and the positions of each begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ordinal(NonZeroU32);

impl Ordinal {
    pub(super) const FIRST: Self = Self(NonZeroU32::MIN);

    pub(super) fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}
