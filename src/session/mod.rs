//! Acknowledged sessions: what survives the connections. `docs/session-protocol.md` has the wire, `model/` a model of it.
//!
//! Everything here is pure. It names no socket, no clock and no runtime: time is a number of milliseconds that is handed in, and
//! so is what has to be random. Only the settings, which are the program's, have times as such.

mod end;
mod gaps;
mod handshake;
mod ranges;
mod receiver;
mod sender;
mod settings;
mod table;
#[cfg(any(test, fuzzing))]
mod testing;
mod wire;

pub(crate) use handshake::MAGIC;
pub use settings::Session;
pub(crate) use wire::MAX_MESSAGE;

#[cfg(test)]
mod tests;

pub(crate) use end::{End, next_epoch};
pub(crate) use gaps::Settled;
pub(crate) use handshake::{Answer, HANDSHAKE, Hello, Positions, SessionId, Status, Terms, VERSION, Welcome};
pub(crate) use table::{Evicted, Key, Sessions, Verdict};
pub(crate) use wire::{Control, ErrorCode, Frame, Side, Violation, Why, frame_len};

/// What the fuzzer reaches of this: see `fuzz/`.
#[cfg(fuzzing)]
pub(crate) mod fuzz {
    use super::handshake::{Answer, Hello, Positions, SessionId, Terms};
    use super::testing;
    use super::wire::{Frame, Side, Violation};

    /// Any bytes as each thing that they can be. What is read is written as the same bytes; a longer input takes no answer back.
    pub(crate) fn wire(input: &[u8]) {
        once(input, |bytes| {
            let hello = Hello::parse(bytes)?;
            assert!(hello.is_none_or(|hello| bytes.starts_with(&hello.encode())));
            Ok(hello)
        });
        let id = SessionId::new(*b"a session's name").expect("not 0");
        let terms = Terms { max_message: 1, window: 1, heartbeat: 0, ttl: 0 };
        for resume in [false, true] {
            let hello = Hello { resume, id, epoch: 0x3131_3131, terms, positions: Positions::default() };
            once(input, |bytes| Answer::parse(bytes, &hello));
        }
        for from in [Side::Dialer, Side::Listener] {
            once(input, |bytes| {
                let frame = Frame::parse(bytes, 4096, from)?;
                if let Some((Frame::Control(control), len)) = frame {
                    assert_eq!(control.encode()[..], bytes[..len]);
                }
                Ok(frame)
            });
        }
    }

    fn once<T: PartialEq + std::fmt::Debug>(input: &[u8], parse: impl Fn(&[u8]) -> Result<Option<T>, Violation>) {
        let whole = parse(input);
        let mut done = false;
        for len in 0..=input.len().min(100) {
            let part = parse(&input[..len]);
            done |= part != Ok(None);
            assert!(if done { part == whole } else { part == Ok(None) }, "{len} bytes: {part:?}, all: {whole:?}");
        }
    }

    /// Two ends over connections that break, as the bytes say.
    pub(crate) fn ops(input: &[u8]) {
        testing::run(input);
    }
}
