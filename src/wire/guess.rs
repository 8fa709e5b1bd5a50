//! What bytes that are no header look like: a guess that saves days when two ends disagree on a setting.

use super::{Codec, FixedFormat, Layout, WireFormat};
use crate::error::LooksLike;

/// What `input`, at which `codec` found no header, looks like instead.
pub(super) fn looks_like(codec: Codec, input: &[u8]) -> Option<LooksLike> {
    const HTTP: [&[u8]; 9] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"HTTP", b"DELE", b"OPTI", b"CONN", b"PRI "];
    if HTTP.iter().any(|start| input.starts_with(start)) {
        return Some(LooksLike::Http);
    }
    if input.starts_with(&[0x16, 0x03]) {
        return Some(LooksLike::Tls);
    }
    if input.starts_with(b"SSH-") {
        return Some(LooksLike::Ssh);
    }
    candidates(codec.layout).find(|(layout, _)| fits(Codec { layout: *layout, ..codec }, input)).map(|(_, guess)| guess)
}

/// The formats to try, the likeliest first.
fn candidates(own: Layout) -> impl Iterator<Item = (Layout, LooksLike)> {
    let reversed = match own {
        Layout::Fixed(fixed) if fixed.width > 1 => {
            let other = FixedFormat { little_endian: !fixed.little_endian, ..fixed };
            Some((Layout::Fixed(other), LooksLike::OtherByteOrder))
        }
        _ => None,
    };
    let buffstreams = (2..=8).map(|width| (Layout::Buffstreams { width }, LooksLike::BuffstreamsWidth { width }));
    let fixed = [4, 2, 8, 3].into_iter().flat_map(|width: u8| {
        let big = WireFormat::fixed(width);
        let width = width as usize;
        [
            (Layout::Fixed(big), LooksLike::FixedBigEndian { width }),
            (Layout::Fixed(big.little_endian()), LooksLike::FixedLittleEndian { width }),
        ]
    });
    let varint = (Layout::Varint, LooksLike::Varint);
    reversed.into_iter().chain(buffstreams).chain(fixed).chain([varint]).filter(move |(layout, _)| *layout != own)
}

/// Whether `input` reads as frames of this codec, the first of them whole and not empty: a run of zeros fits any format.
fn fits(codec: Codec, input: &[u8]) -> bool {
    let mut at = 0;
    while at < input.len() {
        match codec.read(&input[at..]) {
            Ok(Some(header)) if at == 0 && (header.payload == 0 || header.frame() > input.len()) => return false,
            Ok(Some(header)) => at = at.saturating_add(header.frame()),
            Ok(None) => return at > 0,
            Err(_) => return false,
        }
    }
    at > 0
}
