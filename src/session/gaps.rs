//! What was settled out of order, a bit a message.

use std::collections::VecDeque;

/// What the program said of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Taken,
    /// It is not done.
    Refused,
    /// Nothing: it may have been done.
    Dropped,
}

/// The settled ones at and above the lowest that is not. As large as they reach, and the second half only where any was not
/// taken.
#[derive(Debug, Default)]
pub(super) struct Gaps {
    /// Of the first word, in words.
    base: u64,
    /// Taken or refused.
    one: VecDeque<u64>,
    /// Refused or dropped.
    two: VecDeque<u64>,
    /// How many there are.
    settled: u64,
}

impl Gaps {
    pub(super) fn is_empty(&self) -> bool {
        self.settled == 0
    }

    pub(super) fn get(&self, position: u64) -> Option<Settled> {
        let bit = |words: &VecDeque<u64>| self.word(words, position) >> (position % 64) & 1 == 1;
        match (bit(&self.one), bit(&self.two)) {
            (false, false) => None,
            (true, false) => Some(Settled::Taken),
            (true, true) => Some(Settled::Refused),
            (false, true) => Some(Settled::Dropped),
        }
    }

    fn word(&self, words: &VecDeque<u64>, position: u64) -> u64 {
        let at = (position / 64).checked_sub(self.base);
        at.and_then(|at| words.get(usize::try_from(at).ok()?)).copied().unwrap_or(0)
    }

    /// One that is not settled yet. None below `lowest` is asked for again.
    pub(super) fn set(&mut self, lowest: u64, position: u64, how: Settled) {
        debug_assert!(lowest <= position && self.get(position).is_none());
        if self.settled == 0 {
            self.one.clear();
            self.two.clear();
            self.base = lowest / 64;
        }
        let at = (position / 64 - self.base) as usize;
        for (words, wanted) in [(&mut self.one, how != Settled::Dropped), (&mut self.two, how != Settled::Taken)] {
            if wanted {
                words.resize(words.len().max(at + 1), 0);
                words[at] |= 1 << (position % 64);
            }
        }
        self.settled += 1;
    }

    /// How many from here on are taken, up to the end of the word: they are over.
    pub(super) fn pass_taken(&mut self, from: u64) -> u64 {
        let taken = self.word(&self.one, from) & !self.word(&self.two, from);
        let run = (taken >> (from % 64)).trailing_ones().into();
        self.pass(from, run)
    }

    /// So many from here on, all settled, are over.
    pub(super) fn pass(&mut self, from: u64, run: u64) -> u64 {
        self.settled -= run;
        while self.base < (from + run) / 64 && self.settled > 0 {
            self.one.pop_front();
            self.two.pop_front();
            self.base += 1;
        }
        run
    }

    /// The words that are in use.
    #[cfg(test)]
    pub(super) fn words(&self) -> usize {
        if self.settled == 0 { 0 } else { self.one.len() + self.two.len() }
    }
}
