//! What the targets share: formats from arbitrary bytes.

use arbitrary::Arbitrary;
use buffstreams::WireFormat;

/// Every format there is, and some that cannot work.
#[derive(Clone, Copy, Debug, Arbitrary)]
pub enum Format {
    Buffstreams,
    Varint,
    Fixed { width: u8, offset: u8, little: bool, counted: bool },
}

impl From<Format> for WireFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Buffstreams => WireFormat::buffstreams(),
            Format::Varint => WireFormat::varint(),
            Format::Fixed { width, offset, little, counted } => {
                let mut fixed = WireFormat::fixed(width % 10).offset(offset % 10);
                fixed = if little { fixed.little_endian() } else { fixed };
                fixed = if counted { fixed.length_includes_header() } else { fixed };
                fixed.into()
            }
        }
    }
}
