//! A format as text, as a file of settings or a command line has it: there and back.

use std::fmt;
use std::str::FromStr;

use super::{FixedFormat, Kind, MAX_OFFSET, WireFormat};
use crate::error::ParseWireFormatError;

/// The presets, by name.
const WORDS: [(&str, WireFormat); 9] = [
    ("buffstreams", WireFormat::buffstreams()),
    ("varint", WireFormat::varint()),
    ("u8", WireFormat::u8()),
    ("u16_be", WireFormat::u16_be()),
    ("u16_le", WireFormat::u16_le()),
    ("u24_be", WireFormat::u24_be()),
    ("u32_be", WireFormat::u32_be()),
    ("u32_le", WireFormat::u32_le()),
    ("u64_be", WireFormat::u64_be()),
];

/// The name of the preset, or `fixed(3,le,offset=2,includes)`: the width in bytes, the byte order, and what is not the default.
impl fmt::Display for WireFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((word, _)) = WORDS.iter().find(|(_, format)| format == self) {
            return f.write_str(word);
        }
        // The others are presets.
        let Kind::Fixed(fixed) = self.0 else { return Ok(()) };
        write!(f, "fixed({},{}", fixed.width, if fixed.little_endian { "le" } else { "be" })?;
        if fixed.offset > 0 {
            write!(f, ",offset={}", fixed.offset)?;
        }
        if fixed.includes_header {
            f.write_str(",includes")?;
        }
        f.write_str(")")
    }
}

/// Reads what `Display` writes: the name of a preset, as `u32_be`, or `fixed(…)`.
///
/// In the brackets come the width of the length in bytes, from 1 to 8, then in any order `be` or `le`, `offset=` with from 0 to 8
/// bytes, and `includes` for [`FixedFormat::length_includes_header`]. Whatever is left out has the default of
/// [`WireFormat::fixed`], and spaces around each part do not count.
///
/// ```
/// use buffstreams::{ParseWireFormatError, WireFormat};
///
/// assert_eq!("u32_be".parse(), Ok(WireFormat::u32_be()));
/// let format: WireFormat = "fixed(3, le, offset=2, includes)".parse()?;
/// assert_eq!(format, WireFormat::fixed(3).little_endian().offset(2).length_includes_header().into());
/// assert_eq!(format.to_string(), "fixed(3,le,offset=2,includes)");
/// # Ok::<(), ParseWireFormatError>(())
/// ```
impl FromStr for WireFormat {
    type Err = ParseWireFormatError;

    fn from_str(text: &str) -> Result<Self, ParseWireFormatError> {
        if let Some((_, format)) = WORDS.iter().find(|(word, _)| *word == text) {
            return Ok(*format);
        }
        let unknown = || ParseWireFormatError::UnknownName { name: text.to_owned() };
        let parts = text.strip_prefix("fixed(").ok_or_else(unknown)?;
        let parts = parts.strip_suffix(')').ok_or(ParseWireFormatError::NotClosed)?;
        parse_fixed(parts).map(Self::from)
    }
}

/// As its text.
#[cfg(feature = "serde")]
impl serde::Serialize for WireFormat {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for WireFormat {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl serde::de::Visitor<'_> for Text {
            type Value = WireFormat;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a wire format like \"u32_be\" or \"fixed(3,le,offset=2)\"")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<WireFormat, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

fn parse_fixed(parts: &str) -> Result<FixedFormat, ParseWireFormatError> {
    let mut parts = parts.split(',').map(str::trim);
    let width = parts.next().unwrap_or_default();
    let invalid_width = || ParseWireFormatError::Width { width: width.to_owned() };
    let mut fixed = WireFormat::fixed(number(width).filter(|width| (1..=8).contains(width)).ok_or_else(invalid_width)?);
    let (mut order, mut offset) = (None, None);
    for part in parts {
        let twice = match part {
            "be" | "le" => order.replace(part == "le").is_some(),
            "includes" => std::mem::replace(&mut fixed.includes_header, true),
            _ => {
                let unknown = || ParseWireFormatError::UnknownPart { part: part.to_owned() };
                let given = part.strip_prefix("offset=").ok_or_else(unknown)?;
                let invalid = || ParseWireFormatError::Offset { offset: given.to_owned(), max: MAX_OFFSET };
                let bytes = number(given).filter(|bytes| *bytes <= MAX_OFFSET).ok_or_else(invalid)?;
                offset.replace(bytes).is_some()
            }
        };
        if twice {
            return Err(ParseWireFormatError::Twice { part: part.to_owned() });
        }
    }
    fixed.little_endian = order.unwrap_or_default();
    fixed.offset = offset.unwrap_or_default();
    Ok(fixed)
}

/// A number without a sign, which `parse` would take.
fn number(text: &str) -> Option<u8> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
