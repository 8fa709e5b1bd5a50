//! Frames that were given to a connection, kept until they are acknowledged: another connection may be given them again.

use std::collections::VecDeque;
use std::mem;

use bytes::{Buf, Bytes};

use super::Codec;
use super::decoder::Decoder;
use super::encoder::{KEEP_IDLE, Output, SEAL_FROM};
use super::piece::{Piece, fitting, frames_in, start_of};

/// So many buffers are kept to be used again: those of a window.
const SPARES: usize = 16;

/// Frames, the oldest first. A long batch is one buffer, which the connection shares while it writes it; so keeping it costs no
/// copy. Short ones are copied behind each other, which costs less than a buffer for each.
#[derive(Debug)]
pub(crate) struct Replay {
    codec: Codec,
    pieces: VecDeque<Piece>,
    tail: Tail,
    messages: usize,
    /// The bytes of their frames, headers included.
    len: usize,
    spares: Vec<Vec<u8>>,
}

impl Replay {
    pub(crate) fn new(codec: Codec) -> Self {
        Self { codec, pieces: VecDeque::new(), tail: Tail::default(), messages: 0, len: 0, spares: Vec::new() }
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

    /// Lets go of buffers that the next burst may never need, but for so many.
    pub(crate) fn release(&mut self, but: usize) {
        if but == 0 {
            self.spares = Vec::new();
        }
        self.spares.truncate(but);
        if self.tail.messages == 0 && self.tail.bytes.capacity() > KEEP_IDLE {
            self.tail = Tail::default();
        }
    }

    /// Keeps a copy of frames.
    fn copy(&mut self, frames: &[u8], messages: usize) {
        if self.tail.bytes.len() >= SEAL_FROM {
            self.seal();
        }
        if self.tail.bytes.capacity() == 0 {
            self.tail.bytes = self.spare();
        }
        self.tail.bytes.extend_from_slice(frames);
        self.tail.messages += messages;
        self.len += frames.len();
        self.messages += messages;
    }

    /// Ends the tail: it is a piece like the others.
    fn seal(&mut self) {
        let Tail { bytes, from, messages } = mem::take(&mut self.tail);
        if messages > 0 {
            let mut bytes = Bytes::from(bytes);
            bytes.advance(from);
            self.pieces.push_back(Piece::Frames { bytes, messages });
        }
    }

    fn push(&mut self, piece: Piece) {
        self.seal();
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
        if left > 0 && self.pieces.is_empty() {
            self.len -= self.tail.forget(left, self.codec);
        }
        self.messages -= count;
        before - self.len
    }

    /// Keeps the buffer of frames, unless a connection is writing it still.
    fn recycle(&mut self, bytes: Bytes) {
        if self.spares.len() < SPARES
            && let Ok(mut buffer) = bytes.try_into_mut()
        {
            buffer.clear();
            self.spares.push(buffer.into());
        }
    }

    /// Takes the oldest `count` messages.
    pub(crate) fn take(&mut self, count: usize) -> Vec<Bytes> {
        self.seal();
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
    pub(crate) fn bytes_of(&mut self, count: usize) -> usize {
        self.seal();
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
    pub(crate) fn whole_in(&mut self, skip: usize, len: usize) -> usize {
        self.seal();
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
    pub(crate) fn repeat(&mut self, skip: usize, room: usize, alone: bool, output: &mut Output) -> (usize, usize) {
        self.seal();
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
        if let Some((frames, messages)) = pending.few()
            && frames.len() <= room
        {
            to.put(frames);
            self.copy(frames, messages);
            let taken = (messages, frames.len());
            pending.forget_few();
            return taken;
        }
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
        self.seal();
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

    /// Shows what comes behind the first `skip` messages, in pieces, while `visit` goes on. The tail is none of them.
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

/// The newest frames, copied together.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    /// What is before is forgotten.
    from: usize,
    messages: usize,
}

impl Tail {
    /// The oldest `count` are acknowledged. Returns how many bytes their frames had.
    fn forget(&mut self, count: usize, codec: Codec) -> usize {
        let frames = &self.bytes[self.from..];
        if count < self.messages {
            let end = start_of(codec, frames, count);
            self.from += end;
            self.messages -= count;
            return end;
        }
        let end = frames.len();
        self.bytes.clear();
        (self.from, self.messages) = (0, 0);
        end
    }
}
