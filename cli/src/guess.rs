//! Which format bytes are in: every preset reads them, and what each makes of them is weighed.
//!
//! The measure is how many bits a format saves. Without a format, a byte costs as much as its frequency in these bytes says. With
//! the right one, the bytes of a header tell a length, and lengths are alike: they cost less. A format that fits by chance saves
//! nothing, whatever the bytes are, and one that loses its place is out. That messages begin alike counts in the same way.

use buffstreams::WireFormat;
use buffstreams::wire::Decoder;

use crate::format::Format;
use crate::hint;

/// The longest message that is believed, in bytes, where the format itself has no limit.
const LONGEST: usize = 16 << 20;
/// How many bits a format must save to be named.
const ENOUGH: f64 = 20.0;
/// How many more than any other.
const AHEAD: f64 = 10.0;
/// How many messages there must be.
const MESSAGES: usize = 3;
/// What an empty message costs, in bits, beside its length: few programs send any, and halves of a longer header look like one.
const EMPTY: f64 = 3.0;
/// What it costs that the bytes end inside a message, where nothing more comes.
const CUT: f64 = 12.0;
/// How many classes of lengths there are, by their bits.
const CLASSES: usize = 25;
/// The widths of the buffstreams header that are tried, in bytes: up to a limit of 4 GiB.
const WIDTHS: std::ops::RangeInclusive<usize> = 2..=5;

/// What a format makes of the bytes.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) format: Format,
    /// The limit to read it with; `None` if it does not matter.
    pub(crate) max: Option<u64>,
    /// How many whole messages it finds.
    pub(crate) messages: usize,
    /// Where it loses its place, in bytes from the start.
    pub(crate) lost: Option<usize>,
    /// How many bytes of an unfinished message are at the end.
    pub(crate) rest: usize,
    /// How many bits it saves.
    pub(crate) bits: f64,
}

impl Reading {
    /// The options that choose this format.
    pub(crate) fn options(&self) -> String {
        match self.max {
            Some(max) => format!("--format {} --max {max}", self.format),
            None => format!("--format {}", self.format),
        }
    }
}

/// Every format, the likeliest first.
#[derive(Clone, Debug)]
pub(crate) struct Ranking {
    pub(crate) readings: Vec<Reading>,
    is_sure: bool,
}

impl Ranking {
    /// The format, if there is little doubt.
    pub(crate) fn sure(&self) -> Option<&Reading> {
        self.readings.first().filter(|_| self.is_sure)
    }
}

/// Reads the first bytes of a stream in every format; `ended` says that they are all there is.
pub(crate) fn rank(bytes: &[u8], ended: bool) -> Ranking {
    let costs = costs(bytes);
    let widths = WIDTHS.map(|width| (Format::Buffstreams, Some(hint::largest_of_width(width))));
    let others = Format::presets().filter(|format| *format != Format::Buffstreams).map(|format| (format, None));
    let mut readings: Vec<_> =
        widths.chain(others).filter_map(|(format, max)| read(format, max, bytes, ended, &costs)).collect();
    readings.sort_by(|one, other| {
        (one.lost.is_some(), other.bits)
            .partial_cmp(&(other.lost.is_some(), one.bits))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let bits = |at: usize| {
        readings.get(at).filter(|reading| reading.lost.is_none()).map_or(0.0, |reading| reading.bits.max(0.0))
    };
    let is_sure = readings.first().is_some_and(|best| {
        best.lost.is_none() && best.messages >= MESSAGES && best.bits >= ENOUGH && best.bits - bits(1) >= AHEAD
    });
    Ranking { readings, is_sure }
}

/// What each value of a byte costs, in bits, by how often it is there.
fn costs(bytes: &[u8]) -> [f64; 256] {
    let mut counts = [1_u32; 256];
    bytes.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    counts.map(|count| ((bytes.len() + 256) as f64 / f64::from(count)).log2())
}

fn read(format: Format, max: Option<u64>, bytes: &[u8], ended: bool, costs: &[f64; 256]) -> Option<Reading> {
    let limit = max.map_or(LONGEST, |max| usize::try_from(max).unwrap_or(LONGEST));
    let decoder = Decoder::new(WireFormat::from(format), limit).ok()?;
    let (mut place, mut lengths) = (0, Lengths::default());
    // Messages of most programs begin alike. Where they do not, that speaks against nothing.
    let (mut alike, mut firsts) = (0.0, Firsts { counts: [0.0; 256], total: 0.0 });
    let mut reading = Reading { format, max, messages: 0, lost: None, rest: 0, bits: 0.0 };
    while place < bytes.len() {
        let ahead = &bytes[place..];
        match decoder.header(ahead) {
            Ok(Some(header)) if header.frame() <= ahead.len() => {
                let written: f64 = ahead[..header.width].iter().map(|byte| costs[usize::from(*byte)]).sum();
                reading.bits += written - lengths.cost(header.payload);
                if let Some(first) = ahead[header.width..header.frame()].first() {
                    alike += costs[usize::from(*first)] - firsts.cost(*first);
                }
                reading.messages += 1;
                place += header.frame();
            }
            // What is longer than anybody would believe is as good as no header.
            Ok(Some(header)) if header.payload > LONGEST => {
                reading.lost = Some(place);
                break;
            }
            Ok(_) => {
                reading.rest = ahead.len();
                break;
            }
            Err(_) => {
                reading.lost = Some(place);
                break;
            }
        }
    }
    reading.bits += f64::max(alike - 1.0, 0.0);
    match (ended, reading.rest, reading.messages) {
        (true, 0, messages @ 1..) => reading.bits += ((bytes.len() / messages + 1) as f64).log2(),
        (true, 1.., _) => reading.bits -= CUT,
        _ => {}
    }
    Some(reading)
}

/// What the first bytes of messages cost, in bits, by those before them.
struct Firsts {
    counts: [f64; 256],
    total: f64,
}

impl Firsts {
    /// How much a byte counts that has not been seen.
    const UNSEEN: f64 = 0.05;

    fn cost(&mut self, first: u8) -> f64 {
        let count = &mut self.counts[usize::from(first)];
        let cost = ((self.total + 256.0 * Self::UNSEEN) / (*count + Self::UNSEEN)).log2();
        (*count, self.total) = (*count + 1.0, self.total + 1.0);
        cost
    }
}

/// What lengths cost, in bits, by those before them: adaptive, so that lengths that are alike become cheap.
#[derive(Default)]
struct Lengths {
    classes: [f64; CLASSES],
    /// How often a length was that of the message before, and how often not.
    same: [f64; 2],
    total: f64,
    last: Option<usize>,
}

impl Lengths {
    fn cost(&mut self, length: usize) -> f64 {
        let is_same = self.last == Some(length);
        let [same, other] = self.same;
        let repeated = if is_same { same } else { other };
        let mut cost = ((same + other + 1.0) / (repeated + 0.5)).log2();
        if !is_same {
            let class = ((usize::BITS - length.leading_zeros()) as usize).min(CLASSES - 1);
            cost += ((self.total + 0.5 * CLASSES as f64) / (self.classes[class] + 0.5)).log2();
            // The highest bit is that of the class.
            cost += class.saturating_sub(1) as f64;
            self.classes[class] += 1.0;
            self.total += 1.0;
        }
        if self.last.is_some() {
            self.same[usize::from(!is_same)] += 1.0;
        }
        self.last = Some(length);
        if length == 0 { cost + EMPTY } else { cost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buffstreams::wire::Encoder;

    fn capture(format: Format, max: usize, messages: &[Vec<u8>]) -> Vec<u8> {
        let encoder = Encoder::new(WireFormat::from(format), max).unwrap();
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| encoder.encode(message, &mut bytes).unwrap());
        bytes
    }

    /// How many captures there are: `BUFFSTREAMS_CAPTURES`, or 100.
    fn captures() -> usize {
        std::env::var("BUFFSTREAMS_CAPTURES").map_or(100, |captures| captures.parse().unwrap())
    }

    /// Bytes as programs send them: text, JSON, Protocol Buffers, or noise.
    fn payload(rng: &mut fastrand::Rng, kind: usize, length: usize, number: usize) -> Vec<u8> {
        let mut message = match kind {
            0 => format!("line {number}: ").into_bytes(),
            1 => format!("{{\"id\":{number},\"name\":\"").into_bytes(),
            2 => vec![0x08, (number % 128) as u8, 0x12, (length % 120) as u8],
            _ => Vec::new(),
        };
        let text = b"the quick brown fox jumps over the lazy dog ";
        while message.len() < length {
            message.push(if kind < 3 { text[(message.len() + number) % text.len()] } else { rng.u8(..) });
        }
        message.truncate(length);
        message
    }

    /// A capture of this number: its format by turns; the kind, the number and the lengths of its messages by the seed.
    fn generate(number: usize) -> (Format, usize, Vec<u8>) {
        let mut rng = fastrand::Rng::with_seed(number as u64);
        let formats: Vec<_> = Format::presets().collect();
        let format = formats[number % formats.len()];
        let max = if format == Format::Buffstreams { [200, 4096, 1 << 20][rng.usize(..3)] } else { 1 << 20 };
        let longest = match format {
            Format::Fixed(fixed) if fixed.width == 1 => 255,
            _ => max.min([200, 600, 3000][rng.usize(..3)]),
        };
        let shortest = if rng.bool() { 0 } else { longest / 2 };
        let kind = rng.usize(..4);
        let count = rng.usize(20..300);
        let messages: Vec<_> = (0..count)
            .map(|at| {
                let length = rng.usize(shortest..=longest);
                payload(&mut rng, kind, length, at)
            })
            .collect();
        (format, max, capture(format, max, &messages))
    }

    #[test]
    fn of_100_captures_95_are_named_and_none_is_named_wrongly() {
        let mut right = 0;
        for number in 0..captures() {
            let (format, max, bytes) = generate(number);
            let ranking = rank(&bytes, true);
            let Some(sure) = ranking.sure() else {
                println!("{number}: not sure of {format}, of {} bytes", bytes.len());
                continue;
            };
            assert_eq!(sure.format, format, "{number}: {:?}", &ranking.readings[..3]);
            if let Some(largest) = sure.max {
                let same = |max: u64| (64 - max.leading_zeros()).div_ceil(8);
                assert_eq!(same(largest), same(max as u64), "{number}: the width of the header");
            }
            right += 1;
        }
        println!("{right} of {} are named", captures());
        assert!(right * 100 >= captures() * 95, "{right} of {} are named", captures());
    }

    /// As above, cut at any place, as what is read of a connection that goes on: none is named wrongly.
    #[test]
    fn what_is_cut_is_not_named_wrongly() {
        let mut right = 0;
        for number in 0..3 * captures() {
            let (format, _, bytes) = generate(number);
            let bytes = &bytes[..fastrand::Rng::with_seed(number as u64).usize(..bytes.len())];
            let ranking = rank(bytes, false);
            if let Some(sure) = ranking.sure() {
                assert_eq!(sure.format, format, "{number}: {:?}", &ranking.readings[..3]);
                right += 1;
            }
        }
        assert!(right * 100 >= 3 * captures() * 83, "{right} of {} are named", 3 * captures());
    }

    #[test]
    fn noise_and_text_are_named_nothing() {
        for seed in 0..300 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let length = rng.usize(..100_000);
            let noise: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
            assert!(rank(&noise, seed % 2 == 0).sure().is_none(), "{seed}: {:?}", rank(&noise, false).readings[0]);
            let text = payload(&mut rng, (seed % 2) as usize, length, 7);
            assert!(rank(&text, seed % 2 == 0).sure().is_none(), "{seed}: {:?}", rank(&text, false).readings[0]);
        }
        assert!(rank(b"", true).sure().is_none());
    }

    #[test]
    fn two_formats_that_read_the_same_are_not_told_apart() {
        let short: Vec<_> = (0..100).map(|at| vec![b'a'; at]).collect();
        let ranking = rank(&capture(Format::Varint, 4096, &short), true);
        assert!(ranking.sure().is_none());
        let first: Vec<_> = ranking.readings[..2].iter().map(|reading| reading.format.to_string()).collect();
        assert!(first.contains(&"varint".into()) && first.contains(&"u8".into()), "{first:?}");
    }
}
