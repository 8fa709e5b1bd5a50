//! Acknowledged sessions: what survives the connections. `docs/session-protocol.md` has the wire, `model/` a model of it.
//!
//! Everything here is pure. It names no socket, no clock and no runtime: time is a number of milliseconds that is handed in, and
//! so is what has to be random.

mod end;
mod gaps;
mod handshake;
mod ranges;
mod receiver;
mod sender;
mod table;
mod wire;

#[cfg(test)]
mod tests;
