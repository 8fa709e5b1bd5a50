//! Frames that are kept together, and where among them one ends.

use bytes::Bytes;

use super::{Codec, MAX_HEADER};

/// What is kept together.
#[derive(Debug)]
pub(super) enum Piece {
    /// Whole frames, in one buffer.
    Frames { bytes: Bytes, messages: usize },
    /// The message of one frame.
    Long(Bytes),
}

impl Piece {
    pub(super) fn messages(&self) -> usize {
        match self {
            Self::Frames { messages, .. } => *messages,
            Self::Long(_) => 1,
        }
    }

    pub(super) fn len(&self, codec: Codec) -> usize {
        match self {
            Self::Frames { bytes, .. } => bytes.len(),
            Self::Long(message) => frame_len(codec, message.len()),
        }
    }
}

/// How many bytes the header of a message of this length has.
pub(super) fn header_len(codec: Codec, len: usize) -> usize {
    codec.write(len, &mut [0; MAX_HEADER])
}

/// How many bytes the frame of a message of this length has.
fn frame_len(codec: Codec, len: usize) -> usize {
    header_len(codec, len) + len
}

/// How many messages of a piece, and how many bytes, fit into `room`; at least one where it may be `alone`.
pub(super) fn fitting(codec: Codec, piece: &Piece, room: usize, alone: bool) -> (usize, usize) {
    let all = (piece.messages(), piece.len(codec));
    if all.1 <= room {
        return all;
    }
    match piece {
        Piece::Long(_) => {
            if alone {
                all
            } else {
                (0, 0)
            }
        }
        Piece::Frames { bytes, messages } => match frames_in(codec, bytes, *messages, room) {
            (0, _) if alone => (1, start_of(codec, bytes, 1)),
            fitting => fitting,
        },
    }
}

/// Where the frame behind the first `count` starts.
pub(super) fn start_of(codec: Codec, frames: &[u8], count: usize) -> usize {
    frames_in(codec, frames, count, usize::MAX).1
}

/// How many of the first `count` frames end within `room` bytes, and where the last of those ends.
pub(super) fn frames_in(codec: Codec, frames: &[u8], count: usize, room: usize) -> (usize, usize) {
    let (mut whole, mut end) = (0, 0);
    while whole < count
        && let Ok(Some(header)) = codec.read(&frames[end..])
        && header.frame() <= room - end
        && header.frame() <= frames.len() - end
    {
        whole += 1;
        end += header.frame();
    }
    (whole, end)
}
