//! Received bytes -> frames, without a copy. Total: any input gives frames, a wait for more, or an error; never a panic.

use bytes::{Buf, Bytes};

use super::{Codec, WireFormat, guess};
use crate::error::{ConfigError, FrameError, FrameErrorKind, LooksLike};

/// Takes messages out of received bytes. It keeps nothing between calls, so it can be copied freely.
#[derive(Clone, Copy, Debug)]
pub struct Decoder {
    codec: Codec,
}

/// A header that makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The header's own width, in bytes.
    pub width: usize,
    /// The length of the message behind it, in bytes; at most `max_message_size`.
    pub payload: usize,
}

/// The header that was read last. Messages often have the length of the one before; then the place of the next frame does
/// not have to be computed out of memory, and a processor looks for it before it has seen this one.
#[derive(Clone)]
pub(super) struct Last {
    /// What it was written as, as far as it goes.
    pub(super) bytes: u64,
    pub(super) mask: u64,
    pub(super) header: Header,
}

impl Default for Last {
    /// No header is like it.
    fn default() -> Self {
        Self { bytes: 1, mask: 0, header: Header { width: 0, payload: 0 } }
    }
}

impl Header {
    /// The length of the whole frame, in bytes.
    pub fn frame(&self) -> usize {
        // Both are bounded by the codec; a sum that does not fit is as good as one that is never reached.
        self.width.saturating_add(self.payload)
    }
}

impl Decoder {
    /// A decoder of this format that refuses lengths over `max_message_size` bytes.
    pub fn new(format: impl Into<WireFormat>, max_message_size: usize) -> Result<Self, ConfigError> {
        Codec::new(format.into(), max_message_size).map(Self::with)
    }

    pub(crate) fn with(codec: Codec) -> Self {
        Self { codec }
    }

    /// The limit in force, in bytes: `max_message_size`, or what the format can hold if that is less.
    pub fn max_message_size(&self) -> usize {
        self.codec.max()
    }

    /// Reads the header at the start of `input`; `None` when its end has not been received.
    ///
    /// What an error [looks like](FrameError::looks_like) is guessed as if `input` were the start of a connection. A
    /// [`Reader`](crate::Reader) and all that stands on it know where in the connection they are, and guess better.
    #[inline]
    pub fn header(&self, input: &[u8]) -> Result<Option<Header>, FrameError> {
        self.codec.read(input).map_err(|kind| self.describe(kind, input))
    }

    /// Takes the first message off `input`, without a copy; `None`, and `input` as it was, when its end has not been
    /// received. After an error the stream has lost its place: nothing behind it can be trusted.
    #[inline]
    pub fn decode(&self, input: &mut Bytes) -> Result<Option<Bytes>, FrameError> {
        let Some(header) = self.header(input)? else { return Ok(None) };
        if input.len() < header.frame() {
            return Ok(None);
        }
        input.advance(header.width);
        Ok(Some(input.split_to(header.payload)))
    }

    /// How many bytes the frame at the start of `input` has, header included; where the header is not whole, how many
    /// that has at least.
    pub(crate) fn want(&self, input: &[u8]) -> Result<usize, FrameErrorKind> {
        let header = self.codec.read(input)?;
        Ok(header.map_or_else(|| self.least(input), |header| header.frame()))
    }

    fn least(&self, input: &[u8]) -> usize {
        self.codec.least_header().max(input.len() + 1)
    }

    /// Finds the whole frames at the start of `input` and hands each message to `visit`.
    #[inline]
    pub(crate) fn scan(&self, input: &[u8], mut visit: impl FnMut(&[u8])) -> Scan {
        let mut scan = Scan { end: 0, messages: 0, rest: Rest::Nothing };
        let mut last = Last::default();
        loop {
            let ahead = &input[scan.end..];
            if ahead.is_empty() {
                return scan;
            }
            let header = match self.codec.read_after(&mut last, ahead) {
                Ok(Some(header)) if header.frame() <= ahead.len() => header,
                Ok(Some(header)) => {
                    scan.rest = Rest::Partial { want: header.frame() };
                    return scan;
                }
                Ok(None) => {
                    scan.rest = Rest::Partial { want: self.least(ahead) };
                    return scan;
                }
                Err(_) => {
                    scan.rest = Rest::Invalid;
                    return scan;
                }
            };
            scan.end += header.frame();
            scan.messages += 1;
            visit(&ahead[header.width..header.frame()]);
        }
    }

    #[cold]
    fn describe(&self, kind: FrameErrorKind, input: &[u8]) -> FrameError {
        self.refuse(kind, guess::looks_like(self.codec, input), input)
    }

    /// The error for `input`, which does not start with a header.
    pub(crate) fn refuse(&self, kind: FrameErrorKind, looks_like: Option<LooksLike>, input: &[u8]) -> FrameError {
        // The header alone is kept: an error may be logged, and a message may not.
        let (header, offset) = self.codec.header_in(input);
        FrameError::new(kind, looks_like, header, offset)
    }

    pub(super) fn codec(&self) -> Codec {
        self.codec
    }
}

/// What a run of bytes holds, from its start.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Where the whole frames end.
    pub(crate) end: usize,
    /// How many they are.
    pub(crate) messages: usize,
    /// What comes after them.
    pub(crate) rest: Rest,
}

impl Scan {
    /// How many bytes the frame that is not whole has, or its header; 0 where there is none.
    pub(crate) fn want(&self) -> usize {
        match self.rest {
            Rest::Partial { want } => want,
            Rest::Nothing | Rest::Invalid => 0,
        }
    }

    /// Whether there is no header where the next frame should be.
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.rest, Rest::Invalid)
    }
}

#[derive(Debug)]
pub(crate) enum Rest {
    /// Nothing.
    Nothing,
    /// The start of a frame of `want` bytes, header included; of its header's bytes where that is not whole.
    Partial { want: usize },
    /// No header: what is wrong with it is told when it is looked at again.
    Invalid,
}

/// Whole frames, from one read of a socket: their messages are sliced off without a copy.
///
/// It is an iterator, and its `next` in two steps, for the streams: they construct what they yield around [`Frames::cut`]
/// itself, in one place, so that a message gets from there to its consumer in registers. Moved through memory on the way,
/// it costs several times as much: it is written in words and read in pairs of them, which a processor cannot forward.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    decoder: Decoder,
    bytes: Bytes,
}

impl Frames {
    /// `bytes` are whole frames, as [`Decoder::scan`] found them.
    pub(crate) fn new(decoder: Decoder, bytes: Bytes) -> Self {
        Self { decoder, bytes }
    }

    pub(crate) fn decoder(&self) -> Decoder {
        self.decoder
    }

    /// What is left of them, and none in its place.
    pub(crate) fn take_rest(&mut self) -> Self {
        let none = Self::new(self.decoder(), Bytes::new());
        std::mem::replace(self, none)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Those that were not taken, with their headers.
    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes
    }

    /// How many bytes are left, headers included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Goes on to the next message, and tells how long it is.
    // A call, which keeps `poll_next` of the streams so small that it becomes part of the consumer.
    #[inline(never)]
    pub(crate) fn find(&mut self) -> Option<usize> {
        // These bytes were scanned, so there is no error to lose; if there were one, the batch would end.
        let header = self.decoder.codec.read(&self.bytes).ok()??;
        if self.bytes.len() < header.frame() {
            return None;
        }
        self.bytes.advance(header.width);
        Some(header.payload)
    }

    /// Takes the message that was found.
    #[inline]
    pub(crate) fn cut(&mut self, len: usize) -> Bytes {
        self.bytes.split_to(len)
    }

    /// Shows the message that was found, and goes on behind it, even if that panics.
    #[inline]
    pub(crate) fn show<T>(&mut self, len: usize, to: impl FnOnce(&[u8]) -> T) -> T {
        let shown = Shown { bytes: &mut self.bytes, len };
        to(&shown.bytes[..len])
    }

    /// The messages where they lie.
    #[inline]
    pub(crate) fn slices(&self) -> Slices<'_> {
        Slices { decoder: self.decoder, last: Last::default(), rest: &self.bytes }
    }

    /// How many there are in front of those that are `left` of them.
    pub(crate) fn messages_before(&self, left: &Self) -> u64 {
        let mut slices = self.slices();
        let mut messages = 0;
        while slices.rest.len() > left.len() && slices.next().is_some() {
            messages += 1;
        }
        messages
    }

    /// A message of [`slices`](Self::slices) on its own.
    pub(crate) fn slice_ref(&self, message: &[u8]) -> Bytes {
        self.bytes.slice_ref(message)
    }
}

impl Iterator for Frames {
    type Item = Bytes;

    #[inline]
    fn next(&mut self) -> Option<Bytes> {
        let len = self.find()?;
        Some(self.cut(len))
    }
}

/// A message that is shown to somebody.
struct Shown<'a> {
    bytes: &'a mut Bytes,
    len: usize,
}

impl Drop for Shown<'_> {
    #[inline]
    fn drop(&mut self) {
        self.bytes.advance(self.len);
    }
}

/// The messages of whole frames, where they lie.
#[derive(Clone)]
pub(crate) struct Slices<'a> {
    decoder: Decoder,
    last: Last,
    rest: &'a [u8],
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        // As in `Frames::find`, there is no error to lose.
        let header = self.decoder.codec.read_after(&mut self.last, self.rest).ok()??;
        let (frame, rest) = self.rest.split_at_checked(header.frame())?;
        self.rest = rest;
        Some(&frame[header.width..])
    }
}
