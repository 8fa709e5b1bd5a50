//! The tests of the core, by what they are about.

mod page;
mod receiver;
mod sender;
mod table;
mod trial;
mod wire;

use super::handshake::{Hello, Positions, SessionId, Terms};

/// Bytes as the documentation writes them: pairs of hexadecimal digits, with spaces where they help.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

const TERMS: Terms = Terms { max_message: 4096, window: 1 << 20, heartbeat: 15_000, ttl: 120_000 };

fn id() -> SessionId {
    SessionId::new(std::array::from_fn(|i| 0xa0 + i as u8)).unwrap()
}

/// The HELLO of the documentation.
fn hello() -> Hello {
    Hello { resume: false, id: id(), epoch: 1, terms: TERMS, positions: Positions::default() }
}
