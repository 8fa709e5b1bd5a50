//! A header of fixed width: the length as an unsigned integer, and perhaps something in front of it.

/// A header of fixed width, as [`WireFormat::fixed`](super::WireFormat::fixed) starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FixedFormat {
    pub(super) width: u8,
    pub(super) offset: u8,
    pub(super) little_endian: bool,
    pub(super) includes_header: bool,
}

impl FixedFormat {
    /// Writes the length with its lowest byte first.
    #[must_use]
    pub const fn little_endian(mut self) -> Self {
        self.little_endian = true;
        self
    }

    /// Puts `bytes` bytes, 8 at most, in front of the length. They are written as zeros and not looked at when read.
    #[must_use]
    pub const fn offset(mut self, bytes: u8) -> Self {
        self.offset = bytes;
        self
    }

    /// Lets the length count the header as well as the message.
    #[must_use]
    pub const fn length_includes_header(mut self) -> Self {
        self.includes_header = true;
        self
    }

    pub(super) const fn header(self) -> usize {
        self.offset as usize + self.width as usize
    }

    /// The length field of a message of `len` bytes. Eight bytes fit behind any offset; what is over the width is overwritten by
    /// the message.
    #[inline(always)]
    pub(super) fn field(self, len: u64) -> [u8; 8] {
        let written = if self.includes_header { len + self.header() as u64 } else { len };
        let field = if self.little_endian { written } else { (written << self.unused()).swap_bytes() };
        field.to_le_bytes()
    }

    /// What stands in the length field at the start of `field`.
    #[inline(always)]
    pub(super) fn value(self, field: [u8; 8]) -> u64 {
        if self.little_endian {
            u64::from_le_bytes(field) << self.unused() >> self.unused()
        } else {
            u64::from_be_bytes(field) >> self.unused()
        }
    }

    /// How many bits of eight bytes are not the field's.
    #[inline(always)]
    pub(super) fn unused(self) -> u32 {
        64 - 8 * u32::from(self.width)
    }

    /// The longest message whose length this field can hold, in bytes.
    pub(super) fn capacity(self) -> u64 {
        let largest = u64::MAX >> self.unused();
        if self.includes_header { largest.saturating_sub(self.header() as u64) } else { largest }
    }

    /// Reads the length field at the start of `input`; `None` when its end has not been received.
    #[inline]
    pub(super) fn read(self, input: &[u8]) -> Option<u64> {
        let width = self.width as usize;
        let mut field = [0; 8];
        match input.first_chunk() {
            Some(eight) => field = *eight,
            None => field[..width].copy_from_slice(input.get(..width)?),
        }
        Some(self.value(field))
    }
}
