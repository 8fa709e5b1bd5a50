//! The whole library in the network of memory: what must hold wherever a connection is cut, and when exactly.

mod acked;
mod acked_calls;
mod acked_dialer;
mod acked_ends;
mod acked_hostile;
mod acked_one_by_one;
mod acked_over;
mod acked_pressure;
mod acked_raw;
mod acked_replies;
mod acked_seeds;
mod acked_takes;
mod acked_times;
mod attempts;
mod attention;
mod audit;
mod closing;
mod cuts;
mod defects;
mod defects_of_peers;
mod down;
mod ends;
mod fairness;
mod foreign;
mod host;
mod inbox;
#[cfg(buffstreams_shuttle)]
mod interleavings;
mod letters;
mod letters_left;
mod lingering_connections;
mod lingers;
mod lingers_on;
mod loans;
mod open;
mod outages;
mod producers;
mod repeat;
mod routes;
mod routes_ages;
mod routes_back;
mod routes_hang;
mod routes_seeds;
mod session;
mod shutdown;
mod times;
mod turns;
mod waits;
mod wakers;
mod wakeups;

/// The number that a message begins with.
fn number(message: &[u8]) -> u32 {
    u32::from_be_bytes(message[..4].try_into().unwrap())
}
