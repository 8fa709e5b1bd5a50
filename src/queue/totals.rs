//! What a queue has counted.

use super::session::UntakenCounts;

/// What the books of a queue say, in messages.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) accepted: u64,
    /// Of those, in a session, some may come back all the same.
    pub(crate) written: u64,
    /// In a session.
    pub(crate) acked: u64,
    pub(crate) given_back: u64,
    /// Of those, what was sent in a session.
    pub(crate) untaken: UntakenCounts,
    pub(crate) held: u64,
    pub(crate) held_bytes: usize,
    /// How many bytes transports have taken.
    pub(crate) bytes: u64,
}
