//! A message that is being written behind the others, where it will be sent from.

use std::fmt;

use bytes::BufMut;

use super::MAX_HEADER;
use super::encoder::{KEEP_COPIED, Output, SEAL_FROM};

/// Where a [`Codec`](crate::typed::Codec) writes a message: the batch that is sent, behind the messages before it, or a buffer that
/// is put behind that batch when the codec has returned. The module [`typed`](crate::typed) says which it is.
///
/// It takes `max_message_size` bytes and no more, so a codec that writes on is stopped there. Nothing of it counts until the codec
/// has returned. If that fails or panics, or the message was too long, the batch is as it was.
///
/// It is an [`io::Write`](std::io::Write), and a [`BufMut`] by [`as_buf_mut`](Self::as_buf_mut).
pub struct Buffer<'a> {
    output: &'a mut Output,
    /// Where the frame starts, and the message in it. What is behind `start` is not accepted.
    start: usize,
    body: usize,
    /// There was more than there is room for.
    overran: bool,
}

/// A message is over `max_message_size`, and does not fit in its [`Buffer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of more than {max} bytes")]
#[non_exhaustive]
pub struct BufferFull {
    /// The limit in force, in bytes.
    pub max: usize,
}

impl<'a> Buffer<'a> {
    pub(crate) fn new(output: &'a mut Output) -> Self {
        output.seal_if_long();
        let start = output.tail.len();
        // Most headers have one width, whatever they say.
        let mut header = [0; MAX_HEADER];
        let width = output.codec.write(0, &mut header);
        output.tail.extend_from_slice(&header[..width]);
        Self { output, start, body: start + width, overran: false }
    }

    /// How many bytes have been written.
    #[inline]
    pub fn len(&self) -> usize {
        self.output.tail.len() - self.body
    }

    /// Whether nothing has been written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many bytes there is room for.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.output.codec.max() - self.len()
    }

    /// Writes these bytes. If they do not fit, none of them is written, and the message is refused, whatever the codec returns.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), BufferFull> {
        self.fit(bytes.len())?;
        self.output.tail.extend_from_slice(bytes);
        Ok(())
    }

    /// Makes room for `bytes` more. If they do not fit, the message is refused, whatever the codec returns.
    pub fn reserve(&mut self, bytes: usize) -> Result<(), BufferFull> {
        self.fit(bytes)?;
        self.output.tail.reserve(bytes);
        Ok(())
    }

    #[inline]
    fn fit(&mut self, bytes: usize) -> Result<(), BufferFull> {
        self.overran |= bytes > self.remaining();
        if self.overran { Err(self.full()) } else { Ok(()) }
    }

    fn full(&self) -> BufferFull {
        BufferFull { max: self.output.codec.max() }
    }

    /// The rest of it, for a codec that writes to a [`BufMut`]: one that panics when more is written than
    /// [`remaining_mut`](BufMut::remaining_mut) says.
    pub fn as_buf_mut(&mut self) -> impl BufMut {
        let remaining = self.remaining();
        (&mut self.output.tail).limit(remaining)
    }

    /// Why the message is refused, if there was more of it than fits.
    pub(crate) fn is_full(&self) -> Option<BufferFull> {
        self.overran.then(|| self.full())
    }

    /// Ends the message, which is accepted then.
    pub(crate) fn accept(mut self) {
        let (len, width) = (self.len(), self.body - self.start);
        let mut header = [0; MAX_HEADER];
        let wanted = self.output.codec.write(len, &mut header);
        let tail = &mut self.output.tail;
        if wanted > width {
            // A varint.
            tail.extend_from_slice(&header[width..wanted]);
            tail.copy_within(self.body..self.body + len, self.start + wanted);
        }
        tail[self.start..self.start + wanted].copy_from_slice(&header[..wanted]);
        let end = tail.len();
        self.output.len += end - self.start;
        self.output.tail_messages += 1;
        self.start = end;
        if len >= SEAL_FROM {
            // It goes when it has been written, as a message that is chained does.
            self.output.seal();
        }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let tail = &mut self.output.tail;
        tail.truncate(self.start);
        if tail.capacity() > KEEP_COPIED {
            tail.shrink_to(SEAL_FROM);
        }
    }
}

impl fmt::Debug for Buffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len()).field("remaining", &self.remaining()).finish()
    }
}
