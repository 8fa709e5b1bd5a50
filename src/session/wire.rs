//! The frames behind the handshake. Total: any bytes give a value, a wait for more, or a violation; never a panic, and nothing is
//! allocated.

use std::ops::Deref;

pub(crate) use crate::error::SessionErrorCode as ErrorCode;

/// The longest message that a header can announce: its top bit marks a control.
pub(crate) const MAX_MESSAGE: u32 = (1 << 31) - 1;
/// The header of a frame, in bytes.
pub(crate) const HEADER: usize = 4;

/// How many bytes the frame of a message of `len` bytes has.
pub(crate) const fn frame_len(len: usize) -> u64 {
    (HEADER + len) as u64
}

/// The longest control, header included.
const MAX_CONTROL: usize = HEADER + 17;
/// Which end says it. They differ in little: one dials and resumes, the other keeps the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Dialer,
    Listener,
}

/// What the other end did that no end may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("no session: byte {at} is none of a handshake")]
    Magic { at: usize },
    #[error("version {0} of the session protocol")]
    Version(u8),
    #[error("malformed")]
    Malformed,
    #[error("a limit that cannot be")]
    Limits,
    #[error("a position that cannot be")]
    Position,
    #[error("more than the window allows")]
    Window,
    #[error("a message of {len} bytes: at most {max} are allowed")]
    TooLarge { len: u32, max: u32 },
}

impl Violation {
    /// What the other end is told in an ERROR. A stranger is told nothing, and a WELCOME has a status for the rest.
    pub(crate) fn code(self) -> Option<ErrorCode> {
        match self {
            Self::Magic { .. } | Self::Version(_) | Self::Limits => None,
            Self::Malformed => Some(ErrorCode::Malformed),
            Self::Position => Some(ErrorCode::Position),
            Self::Window => Some(ErrorCode::Window),
            Self::TooLarge { .. } => Some(ErrorCode::TooLarge),
        }
    }
}

impl ErrorCode {
    const ALL: [Self; 7] = {
        use ErrorCode::*;
        [Gone, Malformed, Position, Window, TooLarge, Slow, Evicted]
    };
}

/// What was not taken, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The program said that it is not done.
    Refused,
    /// The program dropped it without a word: it may have been done.
    Dropped,
}

/// A frame that is no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// All below are taken, or were refused before.
    Ack(u64),
    Refuse {
        first: u64,
        count: u32,
        why: Why,
    },
    /// Where I am on this connection, and what I have seen acknowledged.
    Heartbeat {
        sent: u64,
        acked: u64,
    },
    /// My direction ends here.
    Close(u64),
    /// The listener closes: send no more, and come again after so many ms for the rest.
    Goaway {
        retry: u32,
    },
    /// The session is over.
    Error(ErrorCode),
}

/// The only code of a GOAWAY: the listener closes.
const CLOSING: u16 = 1;

impl Control {
    pub(crate) fn encode(self) -> Encoded {
        let mut out = Encoded { bytes: [0; MAX_CONTROL], len: HEADER };
        match self {
            Self::Ack(taken) => out.put(&[1]).put(&taken.to_be_bytes()),
            Self::Refuse { first, count, why } => {
                let why = u8::from(why == Why::Dropped);
                out.put(&[2]).put(&first.to_be_bytes()).put(&count.to_be_bytes()).put(&[why])
            }
            Self::Heartbeat { sent, acked } => out.put(&[3]).put(&sent.to_be_bytes()).put(&acked.to_be_bytes()),
            Self::Close(end) => out.put(&[4]).put(&end.to_be_bytes()),
            Self::Goaway { retry } => out.put(&[5]).put(&CLOSING.to_be_bytes()).put(&retry.to_be_bytes()),
            Self::Error(code) => out.put(&[6]).put(&(code as u16).to_be_bytes()),
        };
        let header = 0x8000_0000 | (out.len - HEADER) as u32;
        out.bytes[..HEADER].copy_from_slice(&header.to_be_bytes());
        out
    }

    /// Reads the body of a control; `None` if it is none. Its length has been held against its kind.
    fn read(body: &[u8]) -> Option<Self> {
        Some(match body[0] {
            1 => Self::Ack(read_u64(body, 1)),
            2 => {
                let why = match body[13] {
                    0 => Why::Refused,
                    1 => Why::Dropped,
                    _ => return None,
                };
                Self::Refuse { first: read_u64(body, 1), count: read_u32(body, 9), why }
            }
            3 => Self::Heartbeat { sent: read_u64(body, 1), acked: read_u64(body, 9) },
            4 => Self::Close(read_u64(body, 1)),
            5 if array(body, 1) == CLOSING.to_be_bytes() => Self::Goaway { retry: read_u32(body, 3) },
            6 => {
                let code = u16::from_be_bytes(array(body, 1));
                Self::Error(ErrorCode::ALL.into_iter().find(|known| *known as u16 == code)?)
            }
            _ => return None,
        })
    }
}

/// The bytes of a control.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoded {
    bytes: [u8; MAX_CONTROL],
    len: usize,
}

impl Encoded {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        self
    }
}

impl Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What comes behind the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A message of so many bytes, which come next.
    Data(u32),
    Control(Control),
}

impl Frame {
    /// Reads what is at the start of `input`, as the other end, `from`, has sent it, and how many bytes that took: a whole
    /// control, or the header of a message. `None` when more is needed. A message that is longer than `max`, and a control that
    /// cannot be, are told by their header.
    #[inline]
    pub(crate) fn parse(input: &[u8], max: u32, from: Side) -> Result<Option<(Self, usize)>, Violation> {
        let Some((header, rest)) = input.split_first_chunk::<HEADER>() else { return Ok(None) };
        let header = u32::from_be_bytes(*header);
        if header > MAX_MESSAGE {
            return Self::control((header & MAX_MESSAGE) as usize, rest, from);
        }
        if header > max {
            return Err(Violation::TooLarge { len: header, max });
        }
        Ok(Some((Self::Data(header), HEADER)))
    }

    /// How many bytes the frame at the start of `input` has, header included; of its header's, where that is not whole.
    pub(crate) fn len_of(input: &[u8]) -> usize {
        let header = input.first_chunk::<HEADER>().map(|header| u32::from_be_bytes(*header) & MAX_MESSAGE);
        header.map_or(HEADER, |len| HEADER.saturating_add(len as usize))
    }

    fn control(len: usize, rest: &[u8], from: Side) -> Result<Option<(Self, usize)>, Violation> {
        let Some(&kind) = rest.first() else {
            // No control has another length.
            return if matches!(len, 3 | 7 | 9 | 14 | 17) { Ok(None) } else { Err(Violation::Malformed) };
        };
        if !matches!((kind, len), (1 | 4, 9) | (2, 14) | (3, 17) | (5, 7) | (6, 3)) {
            return Err(Violation::Malformed);
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        match Control::read(body) {
            Some(Control::Goaway { .. }) if from == Side::Dialer => Err(Violation::Malformed),
            Some(control) => Ok(Some((Self::Control(control), HEADER + len))),
            None => Err(Violation::Malformed),
        }
    }
}

pub(super) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

pub(super) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(array(bytes, at))
}

/// The callers know that so many bytes are there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}
