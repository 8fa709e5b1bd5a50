//! Sets of positions, as the ranges that they consist of.

use std::ops::Range;

/// Ascending, apart from each other, and none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many ranges there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds these positions. Those that were not in it go to `each`.
    pub(super) fn insert(&mut self, new: Range<u64>, mut each: impl FnMut(Range<u64>)) {
        // All that touch the new one become one with it.
        let from = self.0.partition_point(|range| range.end < new.start);
        let to = self.0.partition_point(|range| range.start <= new.end);
        let mut at = new.start;
        for range in &self.0[from..to] {
            if at < range.start {
                each(at..range.start);
            }
            at = at.max(range.end);
        }
        if at < new.end {
            each(at..new.end);
        }
        let touched = &self.0[from..to];
        let start = touched.first().map_or(new.start, |first| first.start.min(new.start));
        let end = touched.last().map_or(new.end, |last| last.end.max(new.end));
        self.0.splice(from..to, Some(start..end));
    }

    /// Takes out all below. Whether there were any.
    pub(super) fn trim(&mut self, below: u64) -> bool {
        let gone = self.0.partition_point(|range| range.end <= below);
        self.0.drain(..gone);
        let part = self.0.first_mut().filter(|first| first.start < below);
        let any = gone > 0 || part.is_some();
        if let Some(first) = part {
            first.start = below;
        }
        any
    }

    /// What of this range is not in it.
    #[cfg(any(test, fuzzing))]
    pub(super) fn gaps(&self, all: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let Range { start, end } = all;
        let starts = std::iter::once(start).chain(self.0.iter().map(|range| range.end));
        let ends = self.0.iter().map(|range| range.start).chain([end]);
        starts.zip(ends).map(move |(from, to)| from.max(start)..to.min(end)).filter(|gap| gap.start < gap.end)
    }
}
