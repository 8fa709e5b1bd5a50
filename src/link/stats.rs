//! What is counted of a link.

use std::iter::Sum;
use std::ops::Add;

/// What was counted of one address: `accepted = written + dead_lettered + held`, at every moment. With
/// [`Config::session`](crate::Config::session) it is `accepted = acked + dead_lettered + held`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// How many messages were accepted: by a `feed` of a [`ManagerSink`](crate::ManagerSink) when it returned, by a `write` when
    /// there was room for it, and by a [`RouteSink`](crate::RouteSink) when it has handed them over to this address.
    pub accepted: u64,
    /// How many were handed whole to the kernel, without those of a session that came back. Whether the peer took them is another
    /// matter: of one that takes 1,000 of 5,000 and quits, all 5,000 may be written.
    pub written: u64,
    /// How many came back: as dead letters, to a `write` that waited, in its error, or to a
    /// [`RouteSink`](crate::RouteSink), which may have given them to another address.
    pub dead_lettered: u64,
    /// How many are in the queue, or fed and not handed over yet; in a session, also those that were sent and are not acknowledged.
    pub held: u64,
    /// How many bytes those have on the wire, headers included, that are in the queue: what
    /// [`Config::queue_bytes`](crate::Config::queue_bytes) bounds. What a sink was fed and has not handed over, up to 60 KiB for each
    /// sink, does not count here.
    pub held_bytes: usize,
    /// How many bytes the kernel has taken, with headers, without what TLS adds.
    pub bytes: u64,
    /// How often the connection was opened again.
    pub reconnects: u64,
    /// How many the program at the other end has taken. This and what follows is 0 without sessions.
    pub acked: u64,
    /// How many of `dead_lettered` are in doubt: [`Outcome::InDoubt`](crate::Outcome::InDoubt).
    pub in_doubt: u64,
    /// How many of `dead_lettered` were refused: [`Outcome::Refused`](crate::Outcome::Refused).
    pub refused: u64,
    /// How many were sent again, after a break, to an end that had not received them.
    pub replayed: u64,
    /// How many sessions were begun.
    pub sessions: u64,
}

impl Add for LinkStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            accepted: self.accepted + other.accepted,
            written: self.written + other.written,
            dead_lettered: self.dead_lettered + other.dead_lettered,
            held: self.held + other.held,
            held_bytes: self.held_bytes + other.held_bytes,
            bytes: self.bytes + other.bytes,
            reconnects: self.reconnects + other.reconnects,
            acked: self.acked + other.acked,
            in_doubt: self.in_doubt + other.in_doubt,
            refused: self.refused + other.refused,
            replayed: self.replayed + other.replayed,
            sessions: self.sessions + other.sessions,
        }
    }
}

impl Sum for LinkStats {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), Add::add)
    }
}
