//! Frames that were given to a connection, kept until they are acknowledged: another connection may be given them again.

use std::collections::VecDeque;

use bytes::{Buf, Bytes};

use super::Codec;
use super::decoder::Decoder;
use super::encoder::Output;
use super::piece::{Piece, fitting, frames_in, start_of};

/// So many buffers are kept to be used again: those of a window.
const SPARES: usize = 16;

/// Frames, the oldest first. A batch of small ones is one buffer, which the connection shares while it writes it; so keeping
/// them costs no copy.
#[derive(Debug)]
pub(crate) struct Replay {
    codec: Codec,
    pieces: VecDeque<Piece>,
    messages: usize,
    /// The bytes of their frames, headers included.
    len: usize,
    spares: Vec<Vec<u8>>,
}

impl Replay {
    pub(crate) fn new(codec: Codec) -> Self {
        Self { codec, pieces: VecDeque::new(), messages: 0, len: 0, spares: Vec::new() }
    }

    /// How many messages are kept.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// How many bytes their frames have.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// A buffer to use again.
    fn spare(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    /// Lets go of buffers that the next burst may never need.
    pub(crate) fn release(&mut self) {
        self.spares = Vec::new();
    }

    fn push(&mut self, piece: Piece) {
        self.len += piece.len(self.codec);
        self.messages += piece.messages();
        self.pieces.push_back(piece);
    }

    /// The oldest `count` are acknowledged. Returns how many bytes their frames had. What is put into `dropped` may be memory of
    /// the program: to be dropped without a lock.
    pub(crate) fn forget(&mut self, count: usize, dropped: &mut Vec<Bytes>) -> usize {
        debug_assert!(count <= self.messages);
        let (before, mut left) = (self.len, count);
        while left > 0
            && let Some(front) = self.pieces.front_mut()
        {
            if let Piece::Frames { bytes, messages } = front
                && *messages > left
            {
                let end = start_of(self.codec, bytes, left);
                bytes.advance(end);
                *messages -= left;
                self.len -= end;
                break;
            }
            left -= front.messages();
            self.len -= front.len(self.codec);
            match self.pieces.pop_front() {
                Some(Piece::Frames { bytes, .. }) => self.recycle(bytes),
                Some(Piece::Long(message)) => dropped.push(message),
                None => {}
            }
        }
        self.messages -= count;
        before - self.len
    }

    /// Keeps the buffer of frames, unless a connection is writing it still.
    fn recycle(&mut self, mut bytes: Bytes) {
        if self.spares.len() < SPARES && bytes.is_unique() {
            bytes.clear();
            self.spares.push(bytes.into());
        }
    }

    /// Takes the oldest `count` messages.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Bytes> {
        let decoder = Decoder::with(self.codec);
        let mut taken = Vec::with_capacity(count.min(self.messages));
        while taken.len() < count
            && let Some(piece) = self.pieces.pop_front()
        {
            self.len -= piece.len(self.codec);
            let before = taken.len();
            match piece {
                Piece::Long(message) => taken.push(message),
                Piece::Frames { mut bytes, messages } => {
                    while taken.len() < count
                        && let Ok(Some(message)) = decoder.decode(&mut bytes)
                    {
                        taken.push(message);
                    }
                    let messages = messages - (taken.len() - before);
                    if messages > 0 {
                        self.len += bytes.len();
                        self.pieces.push_front(Piece::Frames { bytes, messages });
                    }
                }
            }
            self.messages -= taken.len() - before;
        }
        taken
    }

    /// How many bytes the frames of the oldest `count` messages have.
    pub(crate) fn bytes_of(&self, count: usize) -> usize {
        let (mut left, mut len) = (count, 0);
        for piece in &self.pieces {
            match piece {
                Piece::Frames { bytes, messages } if *messages > left => {
                    return len + start_of(self.codec, bytes, left);
                }
                _ if left == 0 => break,
                piece => {
                    left -= piece.messages();
                    len += piece.len(self.codec);
                }
            }
        }
        len
    }

    /// How many frames behind the first `skip` are whole in the first `len` bytes of those.
    pub(crate) fn whole_in(&self, skip: usize, len: usize) -> usize {
        let (mut whole, mut left) = (0, len);
        self.visit(skip, |piece| {
            let (messages, bytes) = match &piece {
                Piece::Frames { bytes, messages } if bytes.len() > left => {
                    frames_in(self.codec, bytes, *messages, left)
                }
                piece => (piece.messages(), piece.len(self.codec)),
            };
            let fits = bytes <= left && messages > 0;
            if fits {
                whole += messages;
                left -= bytes;
            }
            fits && messages == piece.messages()
        });
        whole
    }

    /// Gives `output` the frames behind the first `skip`, while those have `room` bytes in all; the first also if it is longer,
    /// where it may be `alone`. Returns how many they are, and their bytes.
    pub(crate) fn repeat(&self, skip: usize, room: usize, alone: bool, output: &mut Output) -> (usize, usize) {
        let (mut count, mut len) = (0, 0);
        self.visit(skip, |piece| {
            let (messages, bytes) = fitting(self.codec, &piece, room - len.min(room), alone && count == 0);
            if messages == 0 {
                return false;
            }
            count += messages;
            len += bytes;
            let all = messages == piece.messages();
            match piece {
                Piece::Frames { bytes: frames, .. } => output.put_raw(frames.slice(..bytes)),
                Piece::Long(message) => output.put_long(message),
            }
            all
        });
        (count, len)
    }

    /// Takes the oldest frames of `pending`, of which nothing has been written, and gives them to `to` as well, while they have
    /// `room` bytes in all; the first also if it is longer, where it may be `alone`. Returns how many they are, and their bytes.
    pub(crate) fn take_from(
        &mut self,
        pending: &mut Output,
        room: usize,
        alone: bool,
        to: &mut Output,
    ) -> (usize, usize) {
        let (mut count, mut len) = (0, 0);
        pending.seal();
        while let Some(piece) = pending.first_piece() {
            let (messages, bytes) = fitting(self.codec, &piece, room - len.min(room), alone && count == 0);
            count += messages;
            len += bytes;
            let (goes, stays) = match piece {
                Piece::Long(_) if messages == 0 => (None, Some(piece)),
                Piece::Long(message) => {
                    to.put_long(message.clone());
                    (Some(Piece::Long(message)), None)
                }
                Piece::Frames { bytes: mut frames, messages: all } => {
                    let goes = frames.split_to(bytes);
                    let stays = (all > messages).then_some(Piece::Frames { bytes: frames, messages: all - messages });
                    if messages > 0 {
                        to.put_raw(goes.clone());
                    }
                    ((messages > 0).then_some(Piece::Frames { bytes: goes, messages }), stays)
                }
            };
            if let Some(piece) = goes {
                self.push(piece);
            }
            if let Some(piece) = stays {
                pending.put_first(piece);
                break;
            }
        }
        pending.len -= len;
        if pending.tail.capacity() == 0 {
            pending.tail = self.spare();
        }
        (count, len)
    }

    /// Moves the frames behind the first `count` to the front of `pending`: they were not sent.
    pub(crate) fn give_back_behind(&mut self, count: usize, pending: &mut Output) {
        let mut unsent = VecDeque::new();
        self.visit(count, |piece| {
            unsent.push_back(piece);
            true
        });
        // Short again, without the part of a piece that goes.
        let (mut left, mut kept) = (count, VecDeque::new());
        while left > 0
            && let Some(piece) = self.pieces.pop_front()
        {
            match piece {
                Piece::Frames { mut bytes, messages } if messages > left => {
                    bytes.truncate(start_of(self.codec, &bytes, left));
                    kept.push_back(Piece::Frames { bytes, messages: left });
                    left = 0;
                }
                piece => {
                    left -= piece.messages();
                    kept.push_back(piece);
                }
            }
        }
        self.pieces = kept;
        self.messages = count;
        self.len = self.pieces.iter().map(|piece| piece.len(self.codec)).sum();
        pending.prepend(unsent);
    }

    /// Shows what comes behind the first `skip` messages, in pieces, while `visit` goes on.
    fn visit(&self, skip: usize, mut visit: impl FnMut(Piece) -> bool) {
        let mut skip = skip;
        for piece in &self.pieces {
            if skip >= piece.messages() {
                skip -= piece.messages();
                continue;
            }
            let shown = match piece {
                Piece::Long(message) => Piece::Long(message.clone()),
                Piece::Frames { bytes, messages } => {
                    let start = start_of(self.codec, bytes, skip);
                    Piece::Frames { bytes: bytes.slice(start..), messages: messages - skip }
                }
            };
            skip = 0;
            if !visit(shown) {
                return;
            }
        }
    }
}
