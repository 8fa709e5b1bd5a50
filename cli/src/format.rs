//! The names of the wire formats: those of the presets, and a notation for any other fixed header.

use std::fmt;
use std::str::FromStr;

use buffstreams::WireFormat;

/// The fixed formats that have a name of their own.
const FIXED: [(&str, Fixed); 7] = [
    ("u8", Fixed::new(1, false)),
    ("u16_be", Fixed::new(2, false)),
    ("u16_le", Fixed::new(2, true)),
    ("u24_be", Fixed::new(3, false)),
    ("u32_be", Fixed::new(4, false)),
    ("u32_le", Fixed::new(4, true)),
    ("u64_be", Fixed::new(8, false)),
];

/// A wire format, as `--format` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Buffstreams,
    Varint,
    Fixed(Fixed),
}

/// A header of fixed width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    pub(crate) width: u8,
    pub(crate) little_endian: bool,
    pub(crate) offset: u8,
    pub(crate) includes_header: bool,
}

impl Fixed {
    pub(crate) const fn new(width: u8, little_endian: bool) -> Self {
        Self { width, little_endian, offset: 0, includes_header: false }
    }
}

impl Format {
    /// Every preset, the default first.
    pub(crate) fn presets() -> impl Iterator<Item = Self> {
        [Self::Buffstreams, Self::Varint].into_iter().chain(FIXED.map(|(_, fixed)| Self::Fixed(fixed)))
    }
}

impl From<Format> for WireFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Buffstreams => Self::buffstreams(),
            Format::Varint => Self::varint(),
            Format::Fixed(fixed) => {
                let mut format = Self::fixed(fixed.width).offset(fixed.offset);
                if fixed.little_endian {
                    format = format.little_endian();
                }
                if fixed.includes_header {
                    format = format.length_includes_header();
                }
                format.into()
            }
        }
    }
}

/// `u32_be`, or `fixed:WIDTH`, and behind it `:le`, `:offset=N` and `:inclusive`. What the library writes is read as well:
/// `fixed(3,le,offset=2,includes)`.
impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(preset) = Self::presets().find(|preset| preset.to_string() == text) {
            return Ok(preset);
        }
        let in_brackets = text.strip_prefix("fixed(").and_then(|text| text.strip_suffix(')'));
        let Some(parts) = text.strip_prefix("fixed:").or(in_brackets) else {
            let names: Vec<_> = Self::presets().map(|preset| preset.to_string()).collect();
            return Err(format!(
                "no such format; there are {}, and fixed:WIDTH[:le][:offset=N][:inclusive]",
                names.join(", ")
            ));
        };
        let mut parts = parts.split(if in_brackets.is_some() { ',' } else { ':' }).map(str::trim);
        let width = parts.next().and_then(|width| width.parse().ok()).filter(|width| (1..=8).contains(width));
        let width = width.ok_or("the width of a fixed length is from 1 to 8 bytes: fixed:4")?;
        let mut fixed = Fixed::new(width, false);
        for part in parts {
            match (part, part.strip_prefix("offset=")) {
                ("le", _) => fixed.little_endian = true,
                ("be", _) if in_brackets.is_some() => {}
                ("inclusive", _) => fixed.includes_header = true,
                ("includes", _) if in_brackets.is_some() => fixed.includes_header = true,
                (_, Some(bytes)) => {
                    let offset = bytes.parse().ok().filter(|offset| *offset <= 8);
                    fixed.offset =
                        offset.ok_or("the offset of a fixed length is from 0 to 8 bytes: fixed:4:offset=2")?;
                }
                _ => return Err(format!("{part:?} is no part of a fixed format: write le, offset=N or inclusive")),
            }
        }
        Ok(Self::Fixed(fixed))
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fixed = match self {
            Self::Buffstreams => return f.write_str("buffstreams"),
            Self::Varint => return f.write_str("varint"),
            Self::Fixed(fixed) => fixed,
        };
        if let Some((name, _)) = FIXED.iter().find(|(_, preset)| preset == fixed) {
            return f.write_str(name);
        }
        write!(f, "fixed:{}", fixed.width)?;
        if fixed.little_endian {
            f.write_str(":le")?;
        }
        if fixed.offset > 0 {
            write!(f, ":offset={}", fixed.offset)?;
        }
        if fixed.includes_header {
            f.write_str(":inclusive")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let others = ["fixed:3:le", "fixed:4:offset=1", "fixed:4:le:offset=8:inclusive", "fixed:5"];
        let presets = Format::presets().map(|preset| preset.to_string());
        for name in presets.chain(others.map(str::to_owned)) {
            assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
        }
        assert_eq!("fixed:4".parse::<Format>().unwrap().to_string(), "u32_be");
        assert_eq!("fixed(4, be)".parse::<Format>().unwrap().to_string(), "u32_be");
    }

    #[test]
    fn presets_are_those_of_the_library() {
        let library = [
            WireFormat::buffstreams(),
            WireFormat::varint(),
            WireFormat::u8(),
            WireFormat::u16_be(),
            WireFormat::u16_le(),
            WireFormat::u24_be(),
            WireFormat::u32_be(),
            WireFormat::u32_le(),
            WireFormat::u64_be(),
        ];
        assert_eq!(Format::presets().map(WireFormat::from).collect::<Vec<_>>(), library);
    }

    #[test]
    fn what_is_no_format_is_an_error() {
        for text in
            ["", "u32", "fixed", "fixed:", "fixed:9", "fixed:0", "fixed:4:be", "fixed:4:offset=9", "fixed:4:offset="]
        {
            assert!(text.parse::<Format>().is_err(), "{text}");
        }
    }
}
