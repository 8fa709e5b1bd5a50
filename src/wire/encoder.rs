//! Messages -> pending output. Small ones are copied together, large ones are chained, so that one system call takes
//! many small messages, and no large message is copied.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

use super::decoder::{Decoder, Rest};
use super::header::{put_header, put_short_header};
use super::piece::{Piece, header_len};
use super::{Codec, MAX_HEADER, WireFormat};
use crate::error::{ConfigError, Error};
use crate::foreign;

/// From this length, in bytes, a message is chained instead of copied: about where a copy costs more than an entry
/// in a vectored write.
const CHAIN_FROM: usize = 4096;
/// From this length, in bytes, copied messages go on in another buffer: a buffer goes when all of it has been written,
/// and one that is always added to never would.
pub(super) const SEAL_FROM: usize = 64 * 1024;
/// How large a buffer of copied messages may be to be used again, in bytes.
pub(super) const KEEP_COPIED: usize = 4 * SEAL_FROM;
/// How large a buffer of copied messages an idle output keeps, in bytes.
pub(super) const KEEP_IDLE: usize = 4096;

/// Puts messages into bytes. It keeps nothing between calls, so it can be copied freely.
#[derive(Clone, Copy, Debug)]
pub struct Encoder {
    codec: Codec,
}

impl Encoder {
    /// An encoder of this format that refuses messages over `max_message_size` bytes.
    pub fn new(format: impl Into<WireFormat>, max_message_size: usize) -> Result<Self, ConfigError> {
        Codec::new(format.into(), max_message_size).map(|codec| Self { codec })
    }

    /// The limit in force, in bytes: `max_message_size`, or what the format can hold if that is less.
    pub fn max_message_size(&self) -> usize {
        self.codec.max()
    }

    /// Appends the message, behind its header, to `out`. Where it is over the limit, `out` stays as it was and the
    /// error is [`Error::MessageTooLarge`].
    // A call would be a third of what a small message costs.
    #[inline(always)]
    pub fn encode(&self, message: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
        if message.len() > self.codec.max() {
            return Err(too_large(self.codec, Bytes::copy_from_slice(message)));
        }
        put_header(self.codec, message.len(), out);
        out.extend_from_slice(message);
        Ok(())
    }
}

#[cold]
fn too_large(codec: Codec, message: Bytes) -> Error {
    Error::MessageTooLarge { len: message.len(), max: codec.max(), message: message.into() }
}

/// Accepted messages on their way out, in order. What has been written is forgotten only at the end of a frame, so
/// that after a break the frame that was cut can be sent again whole.
#[derive(Debug)]
pub(crate) struct Output {
    pub(super) codec: Codec,
    /// What comes before the tail.
    sealed: VecDeque<Segment>,
    /// Whole frames, copied together; the last of them may be a header, its message chained behind it.
    pub(super) tail: Vec<u8>,
    pub(super) tail_messages: usize,
    /// How much of the first segment has been written, in bytes.
    cursor: usize,
    /// How much is yet to be written, in bytes.
    pub(super) len: usize,
    /// How much was ever written, in bytes.
    taken: u64,
    /// An empty buffer to use again.
    spare: Vec<u8>,
}

#[derive(Debug)]
enum Segment {
    /// Whole frames, except that the last may be the header of the `Chained` behind it, which is not counted here.
    Copied { bytes: Vec<u8>, messages: usize },
    /// The message of one frame.
    Chained(Bytes),
}

impl Output {
    pub(crate) fn new(codec: Codec) -> Self {
        Self {
            codec,
            sealed: VecDeque::new(),
            tail: Vec::new(),
            tail_messages: 0,
            cursor: 0,
            len: 0,
            taken: 0,
            spare: Vec::new(),
        }
    }

    /// An empty one, of the same format.
    pub(crate) fn another(&self) -> Self {
        Self::new(self.codec)
    }

    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// How much is yet to be written, in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How much was ever written, in bytes: while this grows, there is somebody who takes it.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Accepts a message. Where it is over the limit it comes back in the error, and nothing else changes.
    // A call would be a tenth of what a small message costs.
    #[inline(always)]
    pub(crate) fn push(&mut self, message: Bytes) -> Result<(), Error> {
        if message.len() < CHAIN_FROM && message.len() <= self.codec.max() {
            self.copy(&message);
            return Ok(());
        }
        if message.len() > self.codec.max() {
            return Err(too_large(self.codec, message));
        }
        self.chain(message);
        Ok(())
    }

    /// Accepts a copy of a short message where nothing but the copy is to be done, as of most; else it changes nothing.
    #[inline(always)]
    pub(crate) fn push_short(&mut self, message: &[u8]) -> bool {
        if message.len() >= CHAIN_FROM || message.len() > self.codec.max() || self.tail.len() >= SEAL_FROM {
            return false;
        }
        let before = self.tail.len();
        let is_put = put_short_header(self.codec, message.len(), &mut self.tail);
        if is_put {
            self.copy_behind(before, message);
        }
        is_put
    }

    /// As [`push`](Self::push), and where the message was copied, it is left to its owner to drop.
    #[inline]
    pub(crate) fn push_from(&mut self, message: &mut Bytes) -> Result<(), Error> {
        if message.len() < CHAIN_FROM && message.len() <= self.codec.max() {
            self.copy(message);
            return Ok(());
        }
        self.push(mem::take(message))
    }

    /// Accepts a copy of a message. Where it is over the limit, the copy is in the error, and nothing else changes.
    #[inline]
    pub(crate) fn push_copy(&mut self, message: &[u8]) -> Result<(), Error> {
        if message.len() < SEAL_FROM && message.len() <= self.codec.max() {
            self.copy(message);
            return Ok(());
        }
        // Memory of its own, which goes when it has been written: the buffers are kept, and would have grown for good.
        self.push(Bytes::copy_from_slice(message))
    }

    /// Gives a message back that is over the limit.
    pub(crate) fn check(&self, message: Bytes) -> Result<Bytes, Error> {
        if message.len() > self.codec.max() { Err(too_large(self.codec, message)) } else { Ok(message) }
    }

    #[inline(always)]
    fn copy(&mut self, message: &[u8]) {
        self.seal_if_long();
        let before = self.tail.len();
        put_header(self.codec, message.len(), &mut self.tail);
        self.copy_behind(before, message);
    }

    /// The message of a header, before which the tail had so many bytes. What writes the header is no argument of one function for
    /// both: a plain message takes two instructions more then.
    #[inline(always)]
    fn copy_behind(&mut self, before: usize, message: &[u8]) {
        self.tail.extend_from_slice(message);
        self.tail_messages += 1;
        self.len += self.tail.len() - before;
    }

    fn chain(&mut self, message: Bytes) {
        let before = self.tail.len();
        put_header(self.codec, message.len(), &mut self.tail);
        self.len += self.tail.len() - before + message.len();
        self.seal();
        self.sealed.push_back(Segment::Chained(message));
    }

    /// Goes on in another buffer where this one is long enough.
    #[inline]
    pub(super) fn seal_if_long(&mut self) {
        if self.tail.len() >= SEAL_FROM {
            self.seal();
            self.tail.reserve(SEAL_FROM + CHAIN_FROM);
        }
    }

    /// Ends the tail, so that something else can come behind it.
    pub(super) fn seal(&mut self) {
        if !self.tail.is_empty() {
            let bytes = mem::replace(&mut self.tail, mem::take(&mut self.spare));
            let messages = mem::take(&mut self.tail_messages);
            self.sealed.push_back(Segment::Copied { bytes, messages });
        }
    }

    /// Takes over all that `other` holds, of which nothing has been written; it is empty then, and keeps a buffer.
    pub(crate) fn append(&mut self, other: &mut Output) {
        debug_assert_eq!(other.cursor, 0);
        self.len += mem::take(&mut other.len);
        if other.sealed.is_empty() && other.tail.len() < CHAIN_FROM {
            self.seal_if_long();
            self.tail.extend_from_slice(&other.tail);
            self.tail_messages += mem::take(&mut other.tail_messages);
            other.tail.clear();
            return;
        }
        self.seal();
        self.sealed.append(&mut other.sealed);
        mem::swap(&mut self.tail, &mut other.tail);
        mem::swap(&mut self.tail_messages, &mut other.tail_messages);
    }

    // ---- what is kept elsewhere until it is acknowledged: see `Replay`

    /// All that is held, and how many messages, where that is so little that a copy costs nothing.
    pub(super) fn few(&self) -> Option<(&[u8], usize)> {
        let few = self.sealed.is_empty() && self.tail.len() < CHAIN_FROM;
        few.then_some((&self.tail[..], self.tail_messages))
    }

    /// What [`few`](Self::few) has shown was copied.
    pub(super) fn forget_few(&mut self) {
        self.tail.clear();
        self.tail_messages = 0;
        self.len = 0;
    }

    /// Takes out the first segment, as a piece: of a long message that is the header as well.
    pub(super) fn first_piece(&mut self) -> Option<Piece> {
        let Segment::Copied { mut bytes, messages } = self.sealed.pop_front()? else { return None };
        let Some(Segment::Chained(message)) = self.sealed.front() else {
            return Some(Piece::Frames { bytes: bytes.into(), messages });
        };
        bytes.truncate(bytes.len() - header_len(self.codec, message.len()));
        if bytes.is_empty() {
            let Some(Segment::Chained(message)) = self.sealed.pop_front() else { return None };
            return Some(Piece::Long(message));
        }
        // The header stays with its message.
        let mut header = Vec::with_capacity(MAX_HEADER);
        put_header(self.codec, message.len(), &mut header);
        self.sealed.push_front(Segment::Copied { bytes: header, messages: 0 });
        Some(Piece::Frames { bytes: bytes.into(), messages })
    }

    pub(super) fn put_first(&mut self, piece: Piece) {
        match piece {
            // What stays is not shared, so this is no copy.
            Piece::Frames { bytes, messages } => {
                // A header behind it was parted from it.
                let mut bytes = Vec::from(bytes);
                if let Some(Segment::Copied { bytes: header, messages: 0 }) = self.sealed.front() {
                    bytes.extend_from_slice(header);
                    self.sealed.pop_front();
                }
                self.sealed.push_front(Segment::Copied { bytes, messages });
            }
            Piece::Long(message) => {
                let mut header = Vec::with_capacity(MAX_HEADER);
                put_header(self.codec, message.len(), &mut header);
                self.sealed.push_front(Segment::Chained(message));
                self.sealed.push_front(Segment::Copied { bytes: header, messages: 0 });
            }
        }
    }

    /// Puts frames that were not sent in front of all.
    pub(super) fn prepend(&mut self, mut pieces: VecDeque<Piece>) {
        debug_assert_eq!(self.cursor, 0);
        while let Some(piece) = pieces.pop_back() {
            self.put_first(piece);
        }
        self.len = self.chunks().map(<[u8]>::len).sum();
    }

    /// Bytes that are no message of this output: what is kept elsewhere, or no message at all. Neither is counted in
    /// [`held`](Self::held), and after a break there is nothing to [rewind](Self::rewind).
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.seal_if_long();
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// As [`put`](Self::put), without a copy.
    pub(super) fn put_raw(&mut self, bytes: Bytes) {
        self.seal();
        self.len += bytes.len();
        self.sealed.push_back(Segment::Chained(bytes));
    }

    /// As [`put`](Self::put), of a long message.
    pub(super) fn put_long(&mut self, message: Bytes) {
        let before = self.tail.len();
        put_header(self.codec, message.len(), &mut self.tail);
        self.len += self.tail.len() - before;
        self.put_raw(message);
    }

    /// What is to be written next, in order. The first `cursor` bytes are gone already.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let sealed = self.sealed.iter().map(|segment| match segment {
            Segment::Copied { bytes, .. } => &bytes[..],
            Segment::Chained(bytes) => &bytes[..],
        });
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let mut skip = self.cursor;
        sealed.chain(tail).map(move |chunk| &chunk[mem::take(&mut skip)..])
    }

    /// Counts `n` bytes as written; at most [`Output::len`].
    pub(crate) fn advance(&mut self, n: usize) {
        debug_assert!(n <= self.len);
        self.len -= n;
        self.taken += n as u64;
        self.cursor += n;
        while let Some(first) = self.sealed.front() {
            let len = match first {
                Segment::Copied { bytes, .. } => bytes.len(),
                Segment::Chained(bytes) => bytes.len(),
            };
            if self.cursor < len {
                return;
            }
            self.cursor -= len;
            match self.sealed.pop_front() {
                // One that has grown for a large message goes with it.
                Some(Segment::Copied { mut bytes, .. }) if bytes.capacity() <= KEEP_COPIED => {
                    bytes.clear();
                    self.spare = bytes;
                }
                Some(Segment::Copied { .. }) => {}
                // It may be memory of the program, and it is no fault of the connection if that panics.
                Some(Segment::Chained(message)) => drop(foreign::dispose(message)),
                None => {}
            }
        }
        if self.len == 0 {
            self.tail_messages = 0;
            self.tail.clear();
            self.cursor = 0;
        }
    }

    /// Lets go of a large buffer that the next burst may never need.
    pub(crate) fn release(&mut self) {
        if self.tail.is_empty() && self.tail.capacity() > KEEP_IDLE {
            self.tail = Vec::new();
        }
        if self.spare.capacity() > KEEP_IDLE {
            self.spare = Vec::new();
        }
    }

    /// How many messages were accepted and are not written whole.
    pub(crate) fn held(&self) -> usize {
        let sealed: usize = self
            .sealed
            .iter()
            .map(|segment| match segment {
                Segment::Copied { messages, .. } => *messages,
                Segment::Chained(_) => 1,
            })
            .sum();
        sealed + self.tail_messages - self.written_in_front().1
    }

    /// The whole frames of the first segment that were written: their bytes and their number.
    fn written_in_front(&self) -> (usize, usize) {
        let first = match self.sealed.front() {
            Some(Segment::Copied { bytes, .. }) => bytes,
            Some(Segment::Chained(_)) => return (0, 0),
            None => &self.tail,
        };
        let scan = Decoder::with(self.codec).scan(&first[..self.cursor], |_| {});
        debug_assert!(!matches!(scan.rest, Rest::Invalid));
        (scan.end, scan.messages)
    }

    /// Goes back to the start of the frame that is partly written, if there is one: the stream it went to is gone, and
    /// its receiver has thrown the part away.
    pub(crate) fn rewind(&mut self) {
        let (end, done) = self.written_in_front();
        match self.sealed.front_mut() {
            // Its header was written and forgotten.
            Some(Segment::Chained(message)) => {
                let mut bytes = Vec::with_capacity(MAX_HEADER);
                put_header(self.codec, message.len(), &mut bytes);
                self.len += bytes.len() + self.cursor;
                self.sealed.push_front(Segment::Copied { bytes, messages: 0 });
            }
            Some(Segment::Copied { bytes, messages }) => {
                bytes.drain(..end);
                *messages -= done;
                self.len += self.cursor - end;
            }
            None => {
                self.tail.drain(..end);
                self.tail_messages -= done;
                self.len += self.cursor - end;
            }
        }
        self.cursor = 0;
    }

    /// The message that `push` accepts here.
    pub(crate) fn message_of<E>(mut self, push: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<Bytes, E> {
        push(&mut self)?;
        Ok(self.take_messages().pop().unwrap_or_default())
    }

    /// Takes all messages that are not written whole, the oldest first.
    pub(crate) fn take_messages(&mut self) -> Vec<Bytes> {
        self.take_oldest(usize::MAX)
    }

    /// Takes the `count` oldest messages that are not written whole, the oldest first.
    pub(crate) fn take_oldest(&mut self, count: usize) -> Vec<Bytes> {
        self.rewind();
        self.seal();
        let decoder = Decoder::with(self.codec);
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(segment) = self.sealed.pop_front()
        {
            match segment {
                Segment::Copied { bytes, messages } => {
                    let mut bytes = Bytes::from(bytes);
                    let before = taken.len();
                    while taken.len() < count
                        && let Ok(Some(message)) = decoder.decode(&mut bytes)
                    {
                        taken.push(message);
                    }
                    // A header that is left over goes with its message, the next segment.
                    let rest = messages - (taken.len() - before);
                    if rest > 0 || (taken.len() == count && !bytes.is_empty()) {
                        self.sealed.push_front(Segment::Copied { bytes: bytes.into(), messages: rest });
                    }
                }
                Segment::Chained(message) => taken.push(message),
            }
        }
        self.len = self.chunks().map(<[u8]>::len).sum();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kept here because only the time that a long backlog takes would show it: how much was written of the first buffer is
    /// found out by reading it.
    #[test]
    fn small_outputs_that_are_appended_again_and_again_go_on_in_other_buffers() {
        let codec = Codec::new(WireFormat::u32_be(), 1 << 14).unwrap();
        let (mut long, mut small) = (Output::new(codec), Output::new(codec));
        for _ in 0..100_000 {
            small.push(Bytes::from_static(b"tiny")).unwrap();
            long.append(&mut small);
        }
        assert_eq!((long.len(), long.held()), (800_000, 100_000));
        assert!(long.chunks().all(|chunk| chunk.len() < SEAL_FROM + CHAIN_FROM));
    }

    /// Kept here because only a connection that is opened again shows it: the public writer gives messages back, not
    /// what it would write next.
    #[test]
    fn after_a_cut_at_any_byte_the_next_transport_gets_the_frames_that_were_not_written_whole() {
        for format in [WireFormat::buffstreams(), WireFormat::varint(), WireFormat::u32_be()] {
            let encoder = Encoder::new(format, 1 << 14).unwrap();
            let messages: Vec<Bytes> =
                [5, 0, CHAIN_FROM, CHAIN_FROM + 9, 0, 300].iter().map(|len| vec![7; *len].into()).collect();
            // Where each frame ends.
            let mut wire = Vec::new();
            let mut ends = Vec::new();
            for message in &messages {
                encoder.encode(message, &mut wire).unwrap();
                ends.push(wire.len());
            }
            for cut in 0..=wire.len() {
                let mut output = Output::new(encoder.codec);
                for message in &messages {
                    output.push(message.clone()).unwrap();
                }
                // In two parts, so that a header is forgotten before its message is begun.
                output.advance(cut / 2);
                output.advance(cut - cut / 2);
                let whole = ends.iter().take_while(|end| **end <= cut).count();
                let start = if whole == 0 { 0 } else { ends[whole - 1] };
                // A second time changes nothing.
                for _ in 0..2 {
                    output.rewind();
                    assert!(output.chunks().collect::<Vec<_>>().concat() == wire[start..], "{format}, cut at {cut}");
                    assert_eq!(output.len(), wire.len() - start, "{format}, cut at {cut}");
                    assert_eq!(output.held(), messages.len() - whole, "{format}, cut at {cut}");
                }
                // What is taken away is the oldest, and the rest is as it was.
                for count in 0..=messages.len() - whole {
                    let mut rest = Output::new(encoder.codec);
                    messages[whole..].iter().for_each(|message| rest.push(message.clone()).unwrap());
                    assert!(rest.take_oldest(count) == messages[whole..whole + count]);
                    let start = if whole + count == 0 { 0 } else { ends[whole + count - 1] };
                    assert!(rest.chunks().collect::<Vec<_>>().concat() == wire[start..], "{format}, {count} of {cut}");
                    assert_eq!((rest.len(), rest.held()), (wire.len() - start, messages.len() - whole - count));
                }
                output.advance(output.len());
                assert_eq!((output.len(), output.held()), (0, 0), "{format}, cut at {cut}");
            }
        }
    }
}
