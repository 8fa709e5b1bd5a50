//! Drives the decoder over any `AsyncRead`: reads of 64 KiB into a lent buffer, whole frames out of it in batches.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::io::AsyncRead;
use futures::stream::{FusedStream, Stream};

use super::buffers::{CHUNK, Lent};
use super::messages::Messages;
use crate::config::Config;
use crate::error::{ConfigError, Error};
use crate::session::{Control, Frame, Side, Violation};
use crate::wire::{Decoder, Frames, Start};

/// Up to this many bytes of an unfinished frame are set aside in a buffer of about their size while the reader waits: a peer
/// that stalls holds no more than twice what it sent.
const STASH: usize = CHUNK / 2;
/// A frame over this many bytes is large: it is read into a buffer of its own, with little of what comes behind it.
const LARGE: usize = CHUNK / 4;
/// How much is read behind a large frame, in bytes: enough to see the next header, little enough to move.
const LOOKAHEAD: usize = 32;
/// A batch that fills no more than this fraction of its buffer is copied out of it, so that a message pins at most this many
/// times what came with it.
const PIN: usize = 4;
/// How often one poll reads before it lets other tasks run.
const READS_PER_POLL: usize = 16;

/// The messages of any byte stream: a `Stream` of `Result<Bytes, Error>`.
///
/// This is the reading half of a [`Connection`](crate::Connection) without its socket: for a transport of your own, a
/// file, or a test. A clean end between two frames is the end of the stream; an end inside a frame is
/// [`Error::Truncated`]; a header that makes no sense is [`Error::Frame`]. After an error the stream ends.
///
/// A message shares the memory of the read that it came in: keeping a small one alive keeps at most four times the
/// bytes that were received with it, or about 128 bytes. It is never the only owner of that memory, which is used
/// again. Dropping a future that waits for the next message loses nothing.
///
/// ```
/// use buffstreams::{Config, Reader};
/// use futures::StreamExt;
///
/// # futures::executor::block_on(async {
/// let wire: &[u8] = &[6, 0, 0, b'o', b'n', b'e', 6, 0, 0, b't', b'w', b'o'];
/// let mut reader = Reader::new(wire, &Config::new())?;
/// assert_eq!(reader.next().await.unwrap()?, "one");
/// assert_eq!(reader.next().await.unwrap()?, "two");
/// assert!(reader.next().await.is_none());
/// # Ok::<(), buffstreams::Error>(()) }).unwrap();
/// ```
pub struct Reader<R> {
    source: Source<R>,
    buffer: Buffer,
    /// How many bytes the frame at the start of the buffer has, or its header where that is not whole; 0 where nobody
    /// has looked.
    want: usize,
    /// It stopped reading to let other tasks run, not because nothing was there.
    yielded: bool,
    dialect: Dialect,
    frames: Frames,
}

/// What the peer speaks.
struct Dialect {
    /// It is told by how the connection started.
    start: Start,
    /// The frames are those of a session, in which this side is at the other end, and what is no message is a control.
    session: Option<Side>,
    /// What stood where a header should be: it comes before what is in the buffer.
    control: Option<Result<Control, Violation>>,
}

enum Source<R> {
    Open(R),
    Ended,
}

/// What has been received and not been taken; a frame starts at its start.
enum Buffer {
    Empty,
    /// A header, or little more.
    Glimpsed {
        bytes: [u8; LOOKAHEAD],
        len: u8,
    },
    /// A buffer smaller than a chunk only keeps what is in it.
    Lent {
        buf: Lent,
        filled: usize,
    },
}

/// What one read brought: whole frames.
pub(crate) struct Batch {
    pub(crate) frames: Frames,
    /// How many frames it has.
    pub(crate) messages: usize,
    /// How many bytes they have, headers included.
    pub(crate) bytes: usize,
    /// How much memory they hold, in bytes.
    pub(crate) memory: usize,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads frames of `config`'s format and limit from `io`. It knows no sessions: [`Config::session`] changes nothing here.
    pub fn new(io: R, config: &Config) -> Result<Self, ConfigError> {
        config.plain_codec().map(|codec| Self::with(io, Decoder::with(codec)))
    }

    /// Takes it apart: the transport, and what was read from it and not yielded, from the header of the next message on. To go on
    /// in another protocol, as after a message that says so, those bytes come first, and then the rest of the transport.
    ///
    /// After its end, or an error, it has neither: the transport is `None`, and there are no bytes.
    pub fn into_parts(self) -> (Option<R>, Bytes) {
        let io = match self.source {
            Source::Open(io) => Some(io),
            Source::Ended => None,
        };
        let whole = self.frames.into_bytes();
        let part = self.buffer.received();
        (io, if part.is_empty() { whole } else { [&whole, part].concat().into() })
    }

    /// Waits for the next messages, all of one read together: see [`Messages`]. `None` at the end.
    ///
    /// It can be mixed with the stream: what that has not yielded of a read comes first. The errors and the end are
    /// those of the stream. Dropping the future loses nothing.
    ///
    /// ```
    /// use buffstreams::{Config, Reader};
    ///
    /// # futures::executor::block_on(async {
    /// let wire: &[u8] = &[6, 0, 0, b'o', b'n', b'e', 6, 0, 0, b't', b'w', b'o'];
    /// let mut reader = Reader::new(wire, &Config::new())?;
    /// let mut letters = 0;
    /// while let Some(messages) = reader.next_batch().await {
    ///     for message in &messages? {
    ///         letters += message.len();
    ///     }
    /// }
    /// assert_eq!(letters, 6);
    /// # Ok::<(), buffstreams::Error>(()) }).unwrap();
    /// ```
    pub fn next_batch(&mut self) -> impl Future<Output = Option<Result<Messages, Error>>> + Unpin {
        poll_fn(|cx| {
            if self.frames.is_empty() && !ready!(self.poll_frames(cx))? {
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Ok(Messages::new(self.take_frames()))))
        })
    }

    pub(crate) fn with(io: R, decoder: Decoder) -> Self {
        let frames = Frames::new(decoder, Bytes::new());
        let source = Source::Open(io);
        Self {
            source,
            buffer: Buffer::Empty,
            want: 0,
            yielded: false,
            dialect: Dialect { start: Start::new(), session: None, control: None },
            frames,
        }
    }

    /// Reads what `from` sends in a session. What is no message comes by [`take_control`](Self::take_control).
    pub(crate) fn in_session(io: R, decoder: Decoder, from: Side) -> Self {
        let mut reader = Self::with(io, decoder);
        reader.dialect.session = Some(from);
        reader
    }

    /// In a session, when [`poll_fill`](Self::poll_fill) is ready: the control that came, if it was one, and not frames. After a
    /// violation nothing behind it can be trusted.
    pub(crate) fn take_control(&mut self) -> Option<Result<Control, Violation>> {
        self.dialect.control.take()
    }

    /// Whether a frame has begun and has not ended.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !matches!(self.buffer, Buffer::Empty)
    }

    /// How many bytes have been received and not been taken: while a frame comes, this grows.
    pub(crate) fn received(&self) -> usize {
        self.buffer.received().len()
    }

    /// Whether it is the peer that the last poll waits for.
    pub(crate) fn waits_for_peer(&self) -> bool {
        !self.yielded
    }

    /// Whether the frame that has begun, if one has, needs no more than a chunk.
    pub(crate) fn fits_a_chunk(&self) -> bool {
        self.want <= CHUNK
    }

    /// What was received and is not taken.
    #[inline]
    pub(crate) fn frames(&mut self) -> &mut Frames {
        &mut self.frames
    }

    /// The last message that was taken out of the frames did not decode: without a session, nobody is told.
    pub(crate) fn refuse_last(&mut self) {}

    /// Keeps what was taken out of the buffer, to be taken once more.
    pub(crate) fn keep(&mut self, frames: Frames) {
        self.frames = frames;
    }

    /// Takes what was received.
    pub(crate) fn take_frames(&mut self) -> Frames {
        self.frames.take_rest()
    }

    /// Waits for more frames; `false` at a clean end. It comes once for each batch.
    #[inline(never)]
    pub(crate) fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let filled = ready!(self.poll_fill(cx))?;
        if filled {
            self.frames = self.take().frames;
        }
        Poll::Ready(Ok(filled))
    }

    /// Waits until a whole frame is in the buffer; `false` at a clean end. An error is told once, then it is the end.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let Source::Open(io) = &mut self.source else { return Poll::Ready(Ok(false)) };
        let decoder = self.frames.decoder();
        let Self { buffer, dialect, want, yielded, .. } = self;
        let polled = buffer.poll_fill(io, decoder, dialect, want, yielded, cx);
        if let Poll::Ready(Ok(false) | Err(_)) = polled {
            self.source = Source::Ended;
            self.buffer = Buffer::Empty;
        }
        polled
    }

    /// Takes all whole frames out of the buffer, without a copy if they are worth a buffer of their own.
    pub(crate) fn take(&mut self) -> Batch {
        let decoder = self.frames.decoder();
        let Buffer::Lent { buf, filled } = self.buffer.replace() else {
            return Batch { frames: Frames::new(decoder, Bytes::new()), messages: 0, bytes: 0, memory: 0 };
        };
        let scan = decoder.scan(&buf[..filled], |_| {});
        self.dialect.start.pass(decoder, &buf[..filled], scan.end, scan.is_lost());
        let end = scan.end;
        self.want = scan.want();
        // A buffer of the pool may be many times larger than what was read into it.
        let whole = if end <= buf.len() / PIN && end <= CHUNK {
            let few = Lent::copy_of(&buf[..end]);
            self.buffer = Buffer::behind(end, buf, filled);
            few
        } else {
            if end < filled {
                // What is no header is kept as it is, to be told when these frames have been taken.
                let rest = &buf[end..filled];
                self.buffer = if self.want > CHUNK && rest.len() <= LOOKAHEAD {
                    // By the next poll the consumer may have given back a buffer that is large enough; until then there
                    // may only be one that is too small.
                    Buffer::set_aside(rest)
                } else {
                    let mut next = Lent::growing(with_lookahead(self.want.max(rest.len())), rest.len());
                    next[..rest.len()].copy_from_slice(rest);
                    Buffer::of(next, rest.len())
                };
            }
            buf
        };
        let memory = whole.len();
        let mut bytes = whole.freeze();
        bytes.truncate(end);
        Batch { frames: Frames::new(decoder, bytes), messages: scan.messages, bytes: end, memory }
    }

    /// Shows each whole frame's message to `visit` where it lies, and forgets them. Returns how many it showed and their
    /// bytes, headers included. Where `visit` panics, none of them are forgotten.
    pub(crate) fn visit(&mut self, visit: impl FnMut(&[u8])) -> (usize, usize) {
        let Buffer::Lent { buf, filled } = &self.buffer else { return (0, 0) };
        let decoder = self.frames.decoder();
        let scan = decoder.scan(&buf[..*filled], visit);
        let Buffer::Lent { buf, filled } = self.buffer.replace() else { return (0, 0) };
        self.dialect.start.pass(decoder, &buf[..filled], scan.end, scan.is_lost());
        self.want = scan.want();
        self.buffer = Buffer::behind(scan.end, buf, filled);
        (scan.messages, scan.end)
    }
}

impl Buffer {
    fn of(buf: Lent, filled: usize) -> Self {
        if filled == 0 { Self::Empty } else { Self::Lent { buf, filled } }
    }

    /// What was received behind the first `end` bytes, moved to the start.
    #[inline(always)]
    fn behind(end: usize, mut buf: Lent, filled: usize) -> Self {
        // Mostly nothing is left, and a copy of nothing is a call.
        if end < filled {
            buf.copy_within(end..filled, 0);
        }
        Self::of(buf, filled - end)
    }

    fn received(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Glimpsed { bytes, len } => &bytes[..(*len).into()],
            Self::Lent { buf, filled } => &buf[..*filled],
        }
    }

    fn replace(&mut self) -> Self {
        std::mem::replace(self, Self::Empty)
    }

    /// Puts what has been received into a lent buffer with room for more.
    fn unpack(&mut self, want: usize) -> (Lent, usize) {
        match self.replace() {
            Self::Empty => (Lent::chunk(), 0),
            Self::Glimpsed { bytes, len } => Self::lend(&bytes[..len.into()], want),
            Self::Lent { buf, filled } if filled < buf.len() && buf.len() >= CHUNK => (buf, filled),
            Self::Lent { buf, filled } => Self::lend(&buf[..filled], want),
        }
    }

    fn lend(received: &[u8], want: usize) -> (Lent, usize) {
        let mut buf = Lent::growing(with_lookahead(want), received.len());
        buf[..received.len()].copy_from_slice(received);
        (buf, received.len())
    }

    /// Keeps what has been received while nothing more comes.
    fn pack(&mut self, buf: Lent, filled: usize) {
        *self = if filled <= STASH { Self::set_aside(&buf[..filled]) } else { Self::of(buf, filled) };
    }

    /// Keeps this in as little memory as it needs.
    fn set_aside(received: &[u8]) -> Self {
        let mut bytes = [0; LOOKAHEAD];
        match (received.len(), bytes.get_mut(..received.len())) {
            (0, _) => Self::Empty,
            (len, Some(glimpsed)) => {
                glimpsed.copy_from_slice(received);
                Self::Glimpsed { bytes, len: len as u8 }
            }
            (len, None) => Self::Lent { buf: Lent::copy_of(received), filled: len },
        }
    }

    fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        io: &mut R,
        decoder: Decoder,
        Dialect { start, session, control }: &mut Dialect,
        want: &mut usize,
        yielded: &mut bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, Error>> {
        *yielded = false;
        let (mut buf, mut filled) = self.unpack(*want);
        for _ in 0..READS_PER_POLL {
            // A frame that has been announced is looked at again when it is whole, and not before.
            if filled > 0 && filled >= *want {
                *want = match (decoder.want(&buf[..filled]), *session) {
                    (Ok(want), _) => want,
                    (Err(kind), None) => return Poll::Ready(Err(start.refuse(decoder, kind, &buf[..filled]).into())),
                    (Err(_), Some(from)) => match control_in(&buf[..filled], decoder, from) {
                        Ok((read, len)) if len <= filled => {
                            *control = read.map(Ok);
                            *want = 0;
                            *self = Self::behind(len, buf, filled);
                            return Poll::Ready(Ok(true));
                        }
                        Ok((_, len)) => len,
                        Err(violation) => {
                            *control = Some(Err(violation));
                            return Poll::Ready(Ok(true));
                        }
                    },
                };
                if *want <= filled {
                    *self = Self::Lent { buf, filled };
                    return Poll::Ready(Ok(true));
                }
            }
            if filled == buf.len() {
                *self = Self::Lent { buf, filled };
                (buf, filled) = self.unpack(*want);
            }
            let end = if *want > LARGE { buf.len().min(with_lookahead(*want)) } else { buf.len() };
            match Pin::new(&mut *io).poll_read(cx, &mut buf[filled..end]) {
                Poll::Ready(Ok(0)) if filled == 0 => return Poll::Ready(Ok(false)),
                end if is_early(&end) => {
                    let looks_like = start.looks_like(decoder, &buf[..filled], true);
                    // Between two frames it is the next header that did not come.
                    let want = if filled > 0 { *want } else { decoder.want(&[]).unwrap_or_default() };
                    return Poll::Ready(Err(Error::Truncated { got: filled, want, looks_like }));
                }
                Poll::Ready(Ok(n)) => filled += n,
                Poll::Ready(Err(error)) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Error::Read(error))),
                Poll::Pending => {
                    self.pack(buf, filled);
                    return Poll::Pending;
                }
            }
        }
        self.pack(buf, filled);
        *yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The control at the start of `received`, where there is no message, and how many bytes it has; it may not be whole.
fn control_in(received: &[u8], decoder: Decoder, from: Side) -> Result<(Option<Control>, usize), Violation> {
    let max = u32::try_from(decoder.max_message_size()).unwrap_or(u32::MAX);
    Ok(match Frame::parse(received, max, from)? {
        Some((Frame::Control(control), len)) => (Some(control), len),
        Some((Frame::Data(_), _)) | None => (None, Frame::len_of(received)),
    })
}

/// Whether it is an end where there should be more: inside a frame, or, as the transport knows, anywhere.
fn is_early(read: &Poll<std::io::Result<usize>>) -> bool {
    match read {
        Poll::Ready(Ok(n)) => *n == 0,
        Poll::Ready(Err(error)) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        Poll::Pending => false,
    }
}

/// A frame of this length and some of what comes behind it. With no limit on messages the length is whatever a peer
/// announces, so it may be the largest number there is.
fn with_lookahead(want: usize) -> usize {
    want.saturating_add(LOOKAHEAD)
}

impl<R: AsyncRead + Unpin> Stream for Reader<R> {
    type Item = Result<Bytes, Error>;

    #[inline]
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(len) = this.frames.find() {
                return Poll::Ready(Some(Ok(this.frames.cut(len))));
            }
            if !ready!(this.poll_frames(cx))? {
                return Poll::Ready(None);
            }
        }
    }
}

impl<R: AsyncRead + Unpin> FusedStream for Reader<R> {
    fn is_terminated(&self) -> bool {
        matches!(self.source, Source::Ended) && self.frames.is_empty()
    }
}

impl<R> fmt::Debug for Reader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (&self.source, &self.buffer) {
            (Source::Ended, _) => "ended",
            (Source::Open(_), Buffer::Empty) => "between frames",
            (Source::Open(_), _) => "inside a frame",
        };
        f.debug_struct("Reader").field("state", &state).finish_non_exhaustive()
    }
}
