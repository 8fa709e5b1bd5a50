//! The wire: how the length of a message is written, and nothing else.
//!
//! Everything here is pure. It names no socket, no clock and no runtime, so it can be fuzzed, property-tested and
//! counted in instructions. [`Decoder`] takes messages out of bytes, [`Encoder`] puts them into bytes; the readers and
//! writers of this crate drive them over sockets.
//!
//! ```
//! use buffstreams::wire::{Decoder, Encoder};
//! use buffstreams::{Bytes, WireFormat};
//!
//! let mut wire = Vec::new();
//! Encoder::new(WireFormat::buffstreams(), 4096)?.encode(&[7; 110], &mut wire)?;
//! assert_eq!(wire[..3], [0xdc, 0x01, 0x00]);
//!
//! let mut received = Bytes::from(wire);
//! let message = Decoder::new(WireFormat::buffstreams(), 4096)?.decode(&mut received)?;
//! assert_eq!(message.unwrap(), &[7; 110][..]);
//! # Ok::<(), buffstreams::Error>(())
//! ```

mod decoder;
mod draft;
mod encoder;
mod first_byte;
mod fixed;
mod guess;
mod header;
mod names;
mod piece;
mod replay;
mod text;
#[cfg(any(test, fuzzing))]
pub(crate) mod trial;

use decoder::Last;
pub(crate) use decoder::{Frames, Slices};

pub use decoder::{Decoder, Header};
pub use draft::{Buffer, BufferFull};
pub use encoder::Encoder;
pub(crate) use encoder::Output;
pub use fixed::FixedFormat;
pub(crate) use guess::{Start, stranger};
pub(crate) use replay::Replay;

use crate::error::{ConfigError, FrameErrorKind};

/// The longest header there is: an offset of 8 bytes, then a length of 8 bytes.
const MAX_HEADER: usize = 16;
/// The largest offset of a fixed length field.
const MAX_OFFSET: u8 = 8;
/// The longest varint of 64 bits.
const MAX_VARINT: usize = 10;
/// The largest `max_message_size` whose own header can hold it in the buffstreams format. The header has a byte for
/// each 8 bits and one more, a varint holds 7 bits a byte and needs one for the sign: at 56 bits it no longer fits.
const MAX_BUFFSTREAMS: u64 = (1 << 55) - 1;

/// How the length of a message is written in front of it. Both ends of a connection must use the same.
///
/// | preset | header | length |
/// |---|---|---|
/// | [`buffstreams`](Self::buffstreams) | 2 to 8 bytes, set by `max_message_size` | zig-zag varint, padded with zeros |
/// | [`u8`](Self::u8) … [`u64_be`](Self::u64_be) | 1 to 8 bytes | unsigned integer |
/// | [`varint`](Self::varint) | 1 to 10 bytes | unsigned varint |
/// | [`fixed`](Self::fixed) | offset + 1 to 8 bytes | unsigned integer, may include the header |
///
/// A format that cannot write a length as large as `max_message_size` lowers that limit to what it can: with
/// [`u8`](Self::u8) a message has at most 255 bytes, whatever the configuration says.
///
/// As text, in a file of settings or on a command line, it is the name of its preset, or as `fixed(3,le,offset=2,includes)`: it
/// has `FromStr` and `Display`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WireFormat(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Buffstreams,
    Fixed(FixedFormat),
    Varint,
}

impl WireFormat {
    /// The format of the Go library buffstreams v2.0.0, and the default.
    ///
    /// The header's width in bytes is `ceil((floor(log2(max_message_size)) + 1) / 8) + 1`: 3 for 4096. It holds the
    /// length as Go's `binary.PutVarint` writes it, then zeros. Both ends must be given the same `max_message_size`,
    /// which sets the width: 255 and 256 do not understand each other.
    pub const fn buffstreams() -> Self {
        Self(Kind::Buffstreams)
    }

    /// A length of one byte.
    pub const fn u8() -> Self {
        Self(Kind::Fixed(Self::fixed(1)))
    }

    /// A length of two bytes, big endian.
    pub const fn u16_be() -> Self {
        Self(Kind::Fixed(Self::fixed(2)))
    }

    /// A length of two bytes, little endian.
    pub const fn u16_le() -> Self {
        Self(Kind::Fixed(Self::fixed(2).little_endian()))
    }

    /// A length of three bytes, big endian.
    pub const fn u24_be() -> Self {
        Self(Kind::Fixed(Self::fixed(3)))
    }

    /// A length of four bytes, big endian: the default of tokio-util's `LengthDelimitedCodec` and Erlang's
    /// `{packet, 4}`.
    pub const fn u32_be() -> Self {
        Self(Kind::Fixed(Self::fixed(4)))
    }

    /// A length of four bytes, little endian.
    pub const fn u32_le() -> Self {
        Self(Kind::Fixed(Self::fixed(4).little_endian()))
    }

    /// A length of eight bytes, big endian.
    pub const fn u64_be() -> Self {
        Self(Kind::Fixed(Self::fixed(8)))
    }

    /// Protobuf's own delimiter, an unsigned varint: Java's `writeDelimitedTo`, prost's `encode_length_delimited`.
    ///
    /// A varint with more bytes than its value needs is accepted, as protobuf's readers accept it: some writers
    /// reserve its place before they know the length.
    pub const fn varint() -> Self {
        Self(Kind::Varint)
    }

    /// A length field of `width` bytes, from 1 to 8, big endian, alone in the header. The methods of
    /// [`FixedFormat`] change the rest.
    ///
    /// ```
    /// use buffstreams::{Config, WireFormat};
    ///
    /// // Two bytes of something else, then a little-endian length that counts all five bytes of the header.
    /// let format = WireFormat::fixed(3).little_endian().offset(2).length_includes_header();
    /// let config = Config::new().wire_format(format);
    /// ```
    pub const fn fixed(width: u8) -> FixedFormat {
        FixedFormat { width, offset: 0, little_endian: false, includes_header: false }
    }
}

impl From<FixedFormat> for WireFormat {
    fn from(fixed: FixedFormat) -> Self {
        Self(Kind::Fixed(fixed))
    }
}

/// A format with its limit: checked once, so that nothing that uses it can meet a setting that does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codec {
    layout: Layout,
    max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Buffstreams { width: usize },
    Fixed(FixedFormat),
    Varint,
}

impl Codec {
    pub(crate) fn new(format: WireFormat, max_message_size: usize) -> Result<Self, ConfigError> {
        if max_message_size == 0 {
            return Err(ConfigError::Zero { name: "max_message_size" });
        }
        let asked = max_message_size as u64;
        let (layout, max) = match format.0 {
            Kind::Buffstreams if asked > MAX_BUFFSTREAMS => {
                return Err(ConfigError::MessageSize { asked: max_message_size, max: MAX_BUFFSTREAMS });
            }
            Kind::Buffstreams => (Layout::Buffstreams { width: buffstreams_width(asked) }, max_message_size),
            Kind::Fixed(fixed) if !(1..=8).contains(&fixed.width) => {
                return Err(ConfigError::LengthWidth { width: fixed.width });
            }
            Kind::Fixed(fixed) if fixed.offset > MAX_OFFSET => {
                return Err(ConfigError::LengthOffset { offset: fixed.offset, max: MAX_OFFSET });
            }
            // The smaller of the two fits in a usize, because the limit asked for is one.
            Kind::Fixed(fixed) => (Layout::Fixed(fixed), asked.min(fixed.capacity()) as usize),
            Kind::Varint => (Layout::Varint, max_message_size),
        };
        Ok(Self { layout, max })
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    /// The usual header of the usual format, at the start of eight bytes, and its width: see [`usual_zigzag`].
    #[inline(always)]
    fn usual_header(&self, len: usize) -> Option<([u8; 8], usize)> {
        let Layout::Buffstreams { width } = self.layout else { return None };
        let value = (len as u64) << 1;
        let header = match value {
            0..0x80 => value,
            0x80..0x4000 => value & 0x7f | 0x80 | (value >> 7) << 8,
            _ => return None,
        };
        Some((header.to_le_bytes(), width))
    }

    /// That of a fixed format with nothing in front of the length, as sessions have.
    #[inline(always)]
    fn fixed_header(&self, len: usize) -> Option<([u8; 8], usize)> {
        match self.layout {
            Layout::Fixed(fixed) if fixed.offset == 0 => Some((fixed.field(len as u64), fixed.width.into())),
            _ => None,
        }
    }

    /// Writes the header of a message of `len` bytes, which the caller has held against [`Codec::max`], and returns
    /// its width.
    #[inline]
    fn write(&self, len: usize, header: &mut [u8; MAX_HEADER]) -> usize {
        let len = len as u64;
        match self.layout {
            Layout::Buffstreams { width } => {
                *header = [0; MAX_HEADER];
                write_varint(len << 1, header);
                width
            }
            Layout::Fixed(fixed) => {
                let offset = fixed.offset as usize;
                *header = [0; MAX_HEADER];
                header[offset..offset + 8].copy_from_slice(&fixed.field(len));
                fixed.header()
            }
            Layout::Varint => write_varint(len, header),
        }
    }

    /// Reads the header at the start of `input`; `None` when its end has not been received.
    ///
    /// Each message goes through here when it is taken, and when it is found, unless its header is that of the one before: the
    /// usual header of the usual format, and one that is the length alone, are read without a call, all others, and all errors,
    /// with one.
    #[inline(always)]
    fn read(&self, input: &[u8]) -> Result<Option<Header>, FrameErrorKind> {
        if let Some(eight) = input.first_chunk()
            && let Some(header) = self.read_usual(*eight)
        {
            return Ok(Some(header));
        }
        self.read_any(input)
    }

    #[inline(always)]
    fn read_usual(&self, eight: [u8; 8]) -> Option<Header> {
        let (width, len) = match self.layout {
            Layout::Buffstreams { width } => (width, usual_zigzag(eight, width)?),
            Layout::Fixed(fixed) if fixed.offset == 0 && !fixed.includes_header => {
                (fixed.width.into(), fixed.value(eight))
            }
            Layout::Fixed(_) | Layout::Varint => return None,
        };
        (len <= self.max as u64).then_some(Header { width, payload: len as usize })
    }

    /// The same, for a frame that comes behind another one.
    #[inline(always)]
    fn read_after(&self, last: &mut Last, input: &[u8]) -> Result<Option<Header>, FrameErrorKind> {
        let Some(eight) = input.first_chunk() else { return self.read(input) };
        let eight = u64::from_le_bytes(*eight);
        if eight & last.mask == last.bytes {
            return Ok(Some(last.header));
        }
        let read = self.read(input);
        if let Ok(Some(header @ Header { width: 1..=8, .. })) = read {
            let mask = u64::MAX >> (64 - 8 * header.width);
            *last = Last { bytes: eight & mask, mask, header };
        }
        read
    }

    #[inline(never)]
    fn read_any(&self, input: &[u8]) -> Result<Option<Header>, FrameErrorKind> {
        let (header, len) = match self.layout {
            Layout::Buffstreams { width } => {
                let Some(header) = input.get(..width) else { return Ok(None) };
                (width, read_zigzag(header)?)
            }
            Layout::Fixed(fixed) => {
                let header = fixed.header();
                let Some(field) = input.get(fixed.offset as usize..) else { return Ok(None) };
                let Some(written) = fixed.read(field) else { return Ok(None) };
                let counted = if fixed.includes_header { header as u64 } else { 0 };
                match written.checked_sub(counted) {
                    Some(len) => (header, len),
                    None => return Err(FrameErrorKind::BelowHeader { len: written, header }),
                }
            }
            Layout::Varint => match short_varint(input) {
                Some(short) => short,
                None => match read_varint(input, MAX_VARINT)? {
                    Some(read) => read,
                    None => return Ok(None),
                },
            },
        };
        if len > self.max as u64 {
            return Err(FrameErrorKind::TooLarge { len, max: self.max as u64 });
        }
        Ok(Some(Header { width: header, payload: len as usize }))
    }

    /// The bytes at the start of `input` where the header is, whether or not it makes sense: as many as this format's header
    /// has, and never more. And how many of them come in front of the length.
    fn header_in<'a>(&self, input: &'a [u8]) -> (&'a [u8], usize) {
        let (width, offset) = match self.layout {
            Layout::Buffstreams { width } => (width, 0),
            Layout::Fixed(fixed) => (fixed.header(), fixed.offset.into()),
            Layout::Varint => (input.iter().take(MAX_VARINT - 1).take_while(|byte| **byte >= 0x80).count() + 1, 0),
        };
        (&input[..input.len().min(width)], offset)
    }

    /// How many bytes the header has at least: all of them, except in a varint.
    fn least_header(&self) -> usize {
        match self.layout {
            Layout::Buffstreams { width } => width,
            Layout::Fixed(fixed) => fixed.header(),
            Layout::Varint => 1,
        }
    }
}

/// The width of a buffstreams header in bytes, `ceil(bits / 8) + 1` for a limit of `bits` bits. The Go library computes
/// the bits in floating point; the two agree up to 2^48 - 1, where its rounding starts to show.
fn buffstreams_width(max_message_size: u64) -> usize {
    let bits = max_message_size.ilog2() as usize + 1;
    bits.div_ceil(8) + 1
}

/// Reads a varint of one or two bytes, as short messages have: its width and its value. A loop takes the rest.
#[inline]
fn short_varint(input: &[u8]) -> Option<(usize, u64)> {
    match *input {
        [one @ ..0x80, ..] => Some((1, one.into())),
        [first, second @ ..0x80, ..] => Some((2, u64::from(first & 0x7f) | u64::from(second) << 7)),
        _ => None,
    }
}

/// Reads a buffstreams header of `width` bytes, if it is of the usual kind: a varint of up to three bytes (a message
/// under 1 MiB) that is no longer than it needs to be, not negative, and zeros behind it.
#[inline]
fn usual_zigzag(input: [u8; 8], width: usize) -> Option<u64> {
    let header = u64::from_le_bytes(input) & (u64::MAX >> (64 - 8 * width));
    let value = match header {
        0..0x80 => header,
        0x100..0x8000 if header & 0x80 != 0 => header & 0x7f | header >> 1 & 0x3f80,
        0x1_0000..0x80_0000 if header & 0x8080 == 0x8080 => {
            header & 0x7f | header >> 1 & 0x3f80 | header >> 2 & 0x1f_c000
        }
        _ => return None,
    };
    (value & 1 == 0).then_some(value >> 1)
}

/// Reads a whole buffstreams header, byte by byte: what is wrong with it comes out here.
fn read_zigzag(header: &[u8]) -> Result<u64, FrameErrorKind> {
    let Some((varint, value)) = read_varint(header, header.len())? else {
        return Err(FrameErrorKind::Unterminated { width: header.len() });
    };
    if varint > 1 && header[varint - 1] == 0 {
        return Err(FrameErrorKind::Overlong { bytes: varint });
    }
    if let Some(at) = header[varint..].iter().position(|byte| *byte != 0) {
        let offset = varint + at;
        return Err(FrameErrorKind::Padding { offset, byte: header[offset] });
    }
    if value & 1 == 1 {
        // -1 is written as 1, -2 as 3: half of it, with every bit turned over.
        return Err(FrameErrorKind::Negative { len: !(value >> 1) as i64 });
    }
    Ok(value >> 1)
}

/// Reads a varint of at most `longest` bytes: its width and its value, or `None` when its end has not been received.
fn read_varint(input: &[u8], longest: usize) -> Result<Option<(usize, u64)>, FrameErrorKind> {
    let mut value = 0;
    for (i, byte) in input.iter().take(longest).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if i == MAX_VARINT - 1 && bits > 1 {
            return Err(FrameErrorKind::Overflow);
        }
        value |= bits << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((i + 1, value)));
        }
    }
    if input.len() < longest { Ok(None) } else { Err(FrameErrorKind::Unterminated { width: longest }) }
}

/// Writes a varint and returns its width.
#[inline]
fn write_varint(mut value: u64, out: &mut [u8; MAX_HEADER]) -> usize {
    let mut width = 0;
    while value >= 0x80 {
        out[width] = value as u8 | 0x80;
        value >>= 7;
        width += 1;
    }
    out[width] = value as u8;
    width + 1
}
