//! With which byte a frame can begin: what tells a frame from something else on the same port.

use super::{Codec, Layout};

impl Codec {
    /// Whether a frame of this format and limit can begin with `byte`: one that is written, or one that is read and that another
    /// implementation may write.
    pub(crate) fn can_begin_with(&self, byte: u8) -> bool {
        let max = self.max as u64;
        let byte = u64::from(byte);
        match self.layout {
            // Zig-zag: an odd number is a negative one. A varint that goes on has at least one bit behind these seven.
            Layout::Buffstreams { .. } => byte & 1 == 0 && byte / 2 <= max,
            // One that goes on may do so with nothing but zeros.
            Layout::Varint => byte & 0x7f <= max,
            // What is in front of the length is not looked at.
            Layout::Fixed(fixed) if fixed.offset > 0 => true,
            Layout::Fixed(fixed) => {
                let counted = if fixed.includes_header { fixed.header() as u64 } else { 0 };
                let behind = 8 * u32::from(fixed.width - 1);
                // The smallest length with this byte that is not below the header.
                let written = match fixed.little_endian {
                    false if (byte << behind) + ((1 << behind) - 1) >= counted => (byte << behind).max(counted),
                    true if byte >= counted => byte,
                    true if fixed.width > 1 => byte + 0x100,
                    _ => return false,
                };
                written - counted <= max
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{MAX_HEADER, WireFormat};
    use super::*;

    fn formats() -> Vec<WireFormat> {
        let mut formats = vec![WireFormat::buffstreams(), WireFormat::varint()];
        for width in 1..=8 {
            for fixed in [WireFormat::fixed(width), WireFormat::fixed(width).little_endian()] {
                for fixed in [fixed, fixed.length_includes_header(), fixed.offset(1), fixed.offset(8)] {
                    formats.push(fixed.into());
                }
            }
        }
        formats
    }

    /// Limits around each place where the answer for 0xf5 may change, and some others.
    fn limits() -> Vec<usize> {
        let mut limits = vec![1, 2, 4096, 65_535, 1 << 20, usize::MAX];
        for width in 0..8 {
            limits.extend(
                [0xf5_u64 << (8 * width), 1 << (8 * width), u64::MAX >> (56 - 8 * width)].map(|at| at as usize),
            );
        }
        limits.extend([117, 122, 245, 501]);
        let around = limits
            .into_iter()
            .flat_map(|at| (0..=9).flat_map(move |by| [at.saturating_sub(by), at.saturating_add(by)]));
        let mut limits: Vec<_> = around.filter(|limit| *limit > 0).collect();
        limits.sort_unstable();
        limits.dedup();
        limits
    }

    /// Whether some header with this first byte is read: with any second byte where that is the last, and else with what makes
    /// a short message, in each order of bytes, and zeros between.
    fn is_read(codec: &Codec, first: u8) -> bool {
        let last = codec.least_header() - 1;
        let reads = |bytes: &[(usize, u8)]| {
            let mut header = [0; MAX_HEADER];
            bytes.iter().for_each(|(at, byte)| header[*at] = *byte);
            matches!(codec.read_any(&header), Ok(Some(_)))
        };
        if last < 2 {
            return (0..=255).any(|second| reads(&[(1, second), (0, first)]));
        }
        let short = || (0..=MAX_HEADER as u8).chain([0x7f, 0x80, 0xff]);
        short().any(|second| short().any(|end| reads(&[(last, end), (1, second), (0, first)])))
    }

    #[test]
    fn a_frame_can_begin_with_the_bytes_that_are_read_at_its_start_and_with_no_other() {
        for format in formats() {
            for limit in limits() {
                let Ok(codec) = Codec::new(format, limit) else { continue };
                for byte in [0, 1, 2, 3, 9, 16, 0x7f, 0x80, 0xf4, 0xf5, 0xff] {
                    let can = codec.can_begin_with(byte);
                    assert_eq!(can, is_read(&codec, byte), "{format}, up to {limit} bytes, {byte:#04x}");
                }
                for len in
                    (0..=600).chain(codec.max().saturating_sub(9)..=codec.max()).filter(|len| *len <= codec.max())
                {
                    let mut header = [0; MAX_HEADER];
                    codec.write(len, &mut header);
                    assert!(codec.can_begin_with(header[0]), "{format}, {len} of up to {limit} bytes: {header:x?}");
                }
            }
        }
    }

    #[test]
    fn which_formats_can_begin_as_a_session_does() {
        let from = |format: WireFormat| {
            let can = |limit: usize| Codec::new(format, limit).is_ok_and(|codec| codec.can_begin_with(0xf5));
            limits().into_iter().find(|limit| can(*limit))
        };
        let cases: [(WireFormat, Option<u64>); 14] = [
            (WireFormat::buffstreams(), None),
            // Written with a byte of zeros behind; without, it is from 245.
            (WireFormat::varint(), Some(117)),
            (WireFormat::u8(), Some(245)),
            (WireFormat::u16_le(), Some(245)),
            (WireFormat::u32_le(), Some(245)),
            (WireFormat::u16_be(), Some(0xf500)),
            (WireFormat::u32_be(), Some(0xf500_0000)),
            (WireFormat::u64_be(), Some(0xf5 << 56)),
            (WireFormat::fixed(1).length_includes_header().into(), Some(244)),
            (WireFormat::fixed(4).length_includes_header().into(), Some(0xf500_0000 - 4)),
            (WireFormat::fixed(4).little_endian().length_includes_header().into(), Some(241)),
            (WireFormat::fixed(2).offset(1).into(), Some(1)),
            (WireFormat::fixed(4).offset(8).into(), Some(1)),
            (WireFormat::fixed(1).offset(1).little_endian().length_includes_header().into(), Some(1)),
        ];
        for (format, least) in cases {
            assert_eq!(from(format), least.map(|least| least as usize), "{format}");
        }
    }
}
