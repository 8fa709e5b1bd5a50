//! What bytes look like that the configured format cannot read: a guess that saves days when two ends disagree.
//!
//! A wrong name costs more time than none, so one is given only where it is wrong in fewer than one of a thousand cases, which
//! `tests/it/guess_rates.rs` measures. A foreign protocol is known by its first bytes (see [`names`]). Another format is known
//! by its headers: the bytes are read with each format in turn, from the start of the connection, and what speaks against
//! chance is added up, in bits. The best is named if it has enough of them, and many more than any other.

use super::{Codec, Decoder, FixedFormat, Header, Layout, MAX_HEADER, WireFormat, names};
use crate::error::{FrameError, FrameErrorKind, LooksLike};

/// How much must speak for a format, in bits: of some thirty that are tried, one has this much by chance in one of 2,000 streams
/// of random bytes.
const ENOUGH: i32 = 16;
/// How much of that must come from behind the first length. That one may be anybody's: with zeros in it, it makes sense in many
/// formats. What it tells must be true: that another header follows, or the end.
const CONFIRMED: i32 = 10;
/// How much more must speak for it than for any other, the configured one included: it is a thousand times as likely.
const AHEAD: i32 = 10;
/// How much less of each will do for a usual mistake: it is that much likelier to begin with.
const USUAL: i32 = 4;
/// How much a frame that is not whole speaks against a format, while the peer goes on.
const UNFINISHED: i32 = 3;
/// How many headers are read, at most: after so many it is plain enough.
const HEADERS: usize = 32;
/// How many of the first bytes of a connection are kept.
const FIRST: usize = 16;
/// For how many batches of frames they are kept: a peer of another format does not get far.
const BATCHES: u8 = 16;

/// What has been received of a connection, as far as it is still there.
#[derive(Clone, Copy)]
struct Seen<'a> {
    /// Its first bytes.
    first: &'a [u8],
    /// What was received last.
    input: &'a [u8],
    /// Where in the connection that starts.
    at: usize,
    /// Nothing comes behind it.
    ended: bool,
}

impl Seen<'_> {
    fn end(&self) -> usize {
        self.at.saturating_add(self.input.len())
    }

    /// As many of the bytes at this place as a header may have, up to the end or to a gap.
    fn header(&self, place: usize, header: &mut [u8; MAX_HEADER]) -> usize {
        let bytes = (place..).map_while(|place| match place.checked_sub(self.at) {
            Some(place) => self.input.get(place),
            None => self.first.get(place),
        });
        header.iter_mut().zip(bytes).map(|(to, from)| *to = *from).count()
    }

    /// This part of what was received last.
    fn message(&self, start: usize, end: usize) -> Option<&[u8]> {
        self.input.get(start.checked_sub(self.at)?..end.checked_sub(self.at)?)
    }

    /// Puts the first bytes of the connection, as many as there are up to a gap, into `start`. Returns how many they are.
    fn start(&self, start: &mut [u8; names::TEXT]) -> usize {
        let input = if self.at == self.first.len() { self.input } else { &[] };
        start.iter_mut().zip(self.first.iter().chain(input)).map(|(to, from)| *to = *from).count()
    }
}

/// The start of a connection, kept until its first batches have passed: where the place is lost behind them, it is mostly there
/// that a peer shows what it speaks.
#[derive(Debug)]
pub(crate) enum Start {
    Kept {
        first: [u8; FIRST],
        /// How many bytes of whole frames have passed.
        passed: u32,
        batches: u8,
    },
    /// The place was lost, with more in sight than there is when the error is told.
    Guessed(Option<LooksLike>),
    Past,
}

// Each connection has one, idle ones as well.
const _: () = assert!(size_of::<Start>() <= 24);

impl Start {
    pub(crate) fn new() -> Self {
        Self::Kept { first: [0; FIRST], passed: 0, batches: 0 }
    }

    /// Keeps what is needed of a batch, before it goes: the bytes up to `end`. Where its end is no place of a frame, all the bytes
    /// that it was found in tell more than what is left of them will.
    #[inline]
    pub(crate) fn pass(&mut self, decoder: Decoder, bytes: &[u8], end: usize, lost: bool) {
        if let Self::Kept { .. } = self {
            self.keep(decoder, bytes, end, lost);
        }
    }

    #[cold]
    fn keep(&mut self, decoder: Decoder, bytes: &[u8], end: usize, lost: bool) {
        if lost {
            *self = Self::Guessed(self.looks_like(decoder, bytes, false));
            return;
        }
        let Self::Kept { first, passed, batches } = self else { return };
        if let Some(room) = first.get_mut(*passed as usize..) {
            let take = room.len().min(end);
            room[..take].copy_from_slice(&bytes[..take]);
        }
        *batches += 1;
        match u32::try_from(end).ok().and_then(|end| passed.checked_add(end)) {
            Some(sum) if *batches < BATCHES => *passed = sum,
            _ => *self = Self::Past,
        }
    }

    /// What this peer seems to speak, now that `input` is what has been received behind the batches that passed.
    #[cold]
    pub(crate) fn looks_like(&self, decoder: Decoder, input: &[u8], ended: bool) -> Option<LooksLike> {
        match self {
            Self::Kept { first, passed, .. } => {
                let at = *passed as usize;
                look(decoder.codec(), Seen { first: &first[..at.min(FIRST)], input, at, ended }, false)
            }
            Self::Guessed(guess) => *guess,
            Self::Past => None,
        }
    }

    /// What a connection looks like that should have begun with TLS, and begins with `input`. Frames of the configured format have a
    /// name as well, then.
    #[cfg(feature = "tls")]
    pub(crate) fn without_tls(own: Codec, input: &[u8]) -> Option<LooksLike> {
        let seen = Seen { first: &[], input, at: 0, ended: false };
        let named = look(own, seen, false);
        named.or_else(|| {
            let own = Candidate { layout: own.layout, name: None, usual: true };
            own.walk(&seen, 0).is_some_and(|walk| walk.bits >= ENOUGH - USUAL).then_some(LooksLike::WithoutTls)
        })
    }

    /// The error of a connection that has `input` where a header should be.
    #[cold]
    pub(crate) fn refuse(&self, decoder: Decoder, kind: FrameErrorKind, input: &[u8]) -> FrameError {
        decoder.refuse(kind, self.looks_like(decoder, input, false), input)
    }
}

/// What a connection looks like that should have begun with the handshake of a session, and begins with `input`.
pub(crate) fn stranger(input: &[u8]) -> Option<LooksLike> {
    // Any format will do for the own one: this is the least likely.
    let own = Codec::new(WireFormat::u64_be(), usize::MAX).ok()?;
    look(own, Seen { first: &[], input, at: 0, ended: false }, false)
}

/// What `input` looks like, at which `codec` found no header. It is taken for the start of a connection, or for the place where
/// its second frame was looked for.
pub(super) fn looks_like(codec: Codec, input: &[u8]) -> Option<LooksLike> {
    look(codec, Seen { first: &[], input, at: 0, ended: false }, true)
}

fn look(own: Codec, seen: Seen<'_>, behind: bool) -> Option<LooksLike> {
    let mut start = [0; names::TEXT];
    let len = seen.start(&mut start);
    let start = &start[..len];
    let named = names::protocol(start, len == seen.end()).or_else(|| format(own, &seen, behind));
    // Behind a frame, a text is most likely a message.
    named.or_else(|| if behind { None } else { names::text(start) })
}

/// The format that the frames have, if it can be told.
fn format(own: Codec, seen: &Seen<'_>, behind: bool) -> Option<LooksLike> {
    let (mut best, mut guess, mut second) = (Walk::default(), None, 0);
    candidates(own.layout, |candidate| {
        let places = [Some(0), candidate.ahead_of(own.layout).filter(|_| behind)];
        let walks = places.into_iter().flatten().filter_map(|place| candidate.walk(seen, place));
        let Some(walk) = walks.max_by_key(|walk| walk.bits) else { return };
        if walk.bits > best.bits {
            second = second.max(best.bits + best.doubt);
            (best, guess) = (walk, Some(candidate));
        } else {
            second = second.max(walk.bits + walk.doubt);
        }
    });
    let guess = guess?;
    let less = if guess.usual && !seen.ended { USUAL } else { 0 };
    let enough = best.bits >= ENOUGH - less && best.confirmed >= CONFIRMED - less && best.bits - second >= AHEAD - less;
    // What ends inside a frame of this format does so in the configured one as well.
    guess.name.filter(|_| enough && best.whole && !(seen.ended && best.cut))
}

/// A format that it may be.
struct Candidate {
    layout: Layout,
    name: Option<LooksLike>,
    /// It comes of a usual mistake at this end.
    usual: bool,
}

/// Shows the formats to try, each once: the configured one as well, since a message may be over the limit, or cut; and some that
/// have no name, since what fits them is not to be named after another.
fn candidates(own: Layout, mut visit: impl FnMut(Candidate)) {
    use LooksLike::{
        BuffstreamsWidth, FixedBigEndian, FixedLittleEndian, GrpcPrefix, LengthExcludesHeader, LengthIncludesHeader,
        OtherByteOrder, Varint,
    };
    let (mut akin, mut offset) = ([Some(own), None, None], 0);
    visit(Candidate { layout: own, name: None, usual: false });
    if let Layout::Fixed(fixed) = own {
        offset = fixed.offset;
        // A length of one byte says too little.
        if fixed.width > 1 {
            let (reversed, counted) = (Layout::Fixed(fixed.reversed()), Layout::Fixed(fixed.counted_otherwise()));
            let name = if fixed.includes_header { LengthExcludesHeader } else { LengthIncludesHeader };
            visit(Candidate { layout: reversed, name: Some(OtherByteOrder), usual: true });
            visit(Candidate { layout: counted, name: Some(name), usual: false });
            akin = [Some(own), Some(reversed), Some(counted)];
        }
    }
    let mut visit = |layout, name| {
        let usual = matches!((own, layout), (Layout::Buffstreams { .. }, Layout::Buffstreams { .. }));
        // With zeros in front of its length, a header may be one of these that is as wide.
        let same =
            offset > 0 && matches!((own, layout), (Layout::Fixed(a), Layout::Fixed(b)) if a.header() == b.header());
        if !same && !akin.contains(&Some(layout)) {
            visit(Candidate { layout, name, usual });
        }
    };
    for width in 2..=8 {
        visit(Layout::Buffstreams { width }, Some(BuffstreamsWidth { width }));
    }
    for field in [2, 3, 4, 8] {
        let (big, width) = (WireFormat::fixed(field), field.into());
        visit(Layout::Fixed(big), Some(FixedBigEndian { width }));
        visit(Layout::Fixed(big.reversed()), Some(FixedLittleEndian { width }));
        visit(Layout::Fixed(big.counted_otherwise()), None);
        visit(Layout::Fixed(big.reversed().counted_otherwise()), None);
    }
    visit(Layout::Fixed(WireFormat::fixed(4).offset(1)), Some(GrpcPrefix));
    visit(Layout::Varint, Some(Varint));
}

/// What came of reading the bytes with one format.
#[derive(Default)]
struct Walk {
    /// How much speaks for it.
    bits: i32,
    /// How much of that comes from behind the first length.
    confirmed: i32,
    /// How much it may have besides: its first message may be empty, as one of 256 is, and then these zeros are a length.
    doubt: i32,
    /// A frame that is not empty is whole.
    whole: bool,
    /// The last frame is not.
    cut: bool,
}

impl Candidate {
    /// Reads the bytes from this place on, header by header; `None` where one makes no sense.
    fn walk(&self, seen: &Seen<'_>, from: usize) -> Option<Walk> {
        let codec = Codec { layout: self.layout, max: self.layout.largest() };
        let mut walk = Walk::default();
        let mut at = from;
        for _ in 0..HEADERS {
            let mut bytes = [0; MAX_HEADER];
            let len = seen.header(at, &mut bytes);
            if len == 0 {
                break;
            }
            if self.is_grpc() && bytes[0] > 1 {
                return None;
            }
            let Some(header) = codec.read(&bytes[..len]).ok()? else {
                // In front of a gap it may be whole.
                walk.cut = at + len == seen.end();
                break;
            };
            let start = at.saturating_add(header.width);
            at = at.saturating_add(header.frame());
            let (length, exact) = (self.length(header), at == seen.end());
            let speaks = self.speaks(header, &bytes, exact);
            if at > seen.end() {
                // Nothing bears it out. It is odd that it should be much longer than all that came; and that it should not be whole
                // while the peer goes on: what is received mostly ends where something was written whole.
                walk.cut = true;
                walk.bits += if walk.whole { 0 } else { speaks } - (length - bits(seen.end())).max(0);
                walk.bits -= if seen.ended { 0 } else { UNFINISHED };
                break;
            }
            let content = seen.message(start, at).map_or(0, protobuf);
            if walk.whole {
                walk.bits += speaks + content;
                walk.confirmed += speaks + content;
            } else if header.payload > 0 {
                walk.whole = true;
                // Where it starts is certain, and only its end is to be borne out.
                walk.bits += speaks + content / 2;
                walk.confirmed += content / 2;
                // A peer that was cut may have been cut anywhere. What is received while it goes on ends where it stopped.
                walk.confirmed += if !exact {
                    0
                } else if seen.ended {
                    length
                } else {
                    2 * length
                };
            } else {
                walk.bits += speaks;
                if start == from + header.width {
                    walk.doubt = 8 * (header.width as i32 - 1) - speaks;
                }
            }
        }
        Some(walk)
    }

    /// How much a header speaks against chance, in bits. Of all the values that random bytes would have in its place, few are
    /// as small as lengths are; and only one makes the frame end where the bytes end.
    fn speaks(&self, header: Header, bytes: &[u8; MAX_HEADER], exact: bool) -> i32 {
        let (width, known) = match self.layout {
            Layout::Varint => (header.width, 0),
            Layout::Buffstreams { width } => (width, 0),
            Layout::Fixed(fixed) => {
                let offset = usize::from(fixed.offset);
                let zeros = if bytes[..offset] == [0; MAX_HEADER][..offset] { 8 * offset as i32 } else { 0 };
                // In front of gRPC's length is one of two bytes, in front of ours are mostly zeros.
                (fixed.width.into(), if self.is_grpc() { 7 } else { zeros })
            }
        };
        // This much is taken off, so that random bytes get nothing on average, however many headers are added up.
        let spread = if let Layout::Varint = self.layout { 4 } else { bits(4 * width - 1) };
        match self.length(header) {
            // Zeros are in many places.
            0 => -spread,
            _ if exact => 8 * width as i32 + known - spread,
            length => 8 * width as i32 + known - spread - length,
        }
    }

    fn is_grpc(&self) -> bool {
        self.name == Some(LooksLike::GrpcPrefix)
    }

    /// How many bits the number in a header has.
    fn length(&self, header: Header) -> i32 {
        let counted = match self.layout {
            Layout::Fixed(fixed) if fixed.includes_header => header.width,
            _ => 0,
        };
        bits(header.payload.saturating_add(counted))
    }

    /// Where the second frame of this format is, seen from where `own` looks for it: they read the same length in the first
    /// header, and then this one goes further.
    fn ahead_of(&self, own: Layout) -> Option<usize> {
        match (self.layout, own) {
            (Layout::Buffstreams { width }, Layout::Buffstreams { width: own }) => width.checked_sub(own),
            (Layout::Fixed(fixed), Layout::Fixed(own)) if self.name == Some(LooksLike::LengthExcludesHeader) => {
                Some(own.header()).filter(|_| fixed.width == own.width)
            }
            (Layout::Fixed(fixed), Layout::Fixed(own)) if fixed.little_endian && own.little_endian => {
                fixed.header().checked_sub(own.header())
            }
            _ => None,
        }
    }
}

fn bits(number: usize) -> i32 {
    (usize::BITS - number.leading_zeros()) as i32
}

impl Layout {
    /// The longest message that has such a header, in bytes, whatever the limit.
    fn largest(self) -> usize {
        let largest = match self {
            Self::Buffstreams { width } => u64::MAX >> (64 - 8 * (width - 1)),
            Self::Fixed(fixed) => fixed.capacity(),
            Self::Varint => u64::MAX,
        };
        usize::try_from(largest).unwrap_or(usize::MAX)
    }
}

impl FixedFormat {
    fn reversed(self) -> Self {
        Self { little_endian: !self.little_endian, ..self }
    }

    fn counted_otherwise(self) -> Self {
        Self { includes_header: !self.includes_header, ..self }
    }
}

/// How much a message speaks for its two ends, in bits: it does if it reads as Protocol Buffers, as most messages do. In these,
/// one of some eight bytes is the end of a field.
fn protobuf(message: &[u8]) -> i32 {
    const BITS: i32 = 6;
    const FIELDS: i32 = 200;
    let mut ahead = message;
    let mut fields = 0;
    while !ahead.is_empty() && fields < FIELDS {
        let Some(behind) = field(ahead) else { return 0 };
        ahead = behind;
        fields += 1;
    }
    if ahead.is_empty() { fields.min(BITS) } else { 0 }
}

/// What comes behind a field of Protocol Buffers.
fn field(bytes: &[u8]) -> Option<&[u8]> {
    let (width, tag) = super::read_varint(bytes, super::MAX_VARINT).ok()??;
    let bytes = &bytes[width..];
    if !(1..1 << 29).contains(&(tag >> 3)) {
        return None;
    }
    let skip = match tag & 7 {
        0 => super::read_varint(bytes, super::MAX_VARINT).ok()??.0,
        1 => 8,
        2 => {
            let (width, len) = super::read_varint(bytes, super::MAX_VARINT).ok()??;
            width.checked_add(usize::try_from(len).ok()?)?
        }
        5 => 4,
        _ => return None,
    };
    bytes.get(skip..)
}
