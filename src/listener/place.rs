//! A place among `max_connections`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The places of a listener, as many as it may have connections.
pub(crate) struct Places {
    max: usize,
    taken: Arc<AtomicUsize>,
}

/// One of them. It goes with the socket, and is dropped later than that.
pub(crate) struct Place(Arc<AtomicUsize>);

impl Places {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, taken: Arc::default() }
    }

    /// Only the accept loop takes places, so there is room still when one is taken.
    pub(crate) fn take(&self) -> Option<Place> {
        let room = self.taken.load(Ordering::Acquire) < self.max;
        room.then(|| {
            self.taken.fetch_add(1, Ordering::AcqRel);
            Place(self.taken.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
