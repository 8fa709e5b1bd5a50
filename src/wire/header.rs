//! Writing a header behind what there is.

use super::{Codec, MAX_HEADER};

/// Appends the header of a message of `len` bytes, which the caller has held against [`Codec::max`].
#[inline(always)]
pub(super) fn put_header(codec: Codec, len: usize, out: &mut Vec<u8>) {
    match codec.usual_header(len) {
        Some((header, width)) => put_first(&header, width, out),
        None => put_any_header(codec, len, out),
    }
}

/// The same where that takes no call: the usual header, and that of a session. Whether it is one of these.
#[inline(always)]
pub(super) fn put_short_header(codec: Codec, len: usize, out: &mut Vec<u8>) -> bool {
    let header = codec.usual_header(len).or_else(|| codec.fixed_header(len));
    header.inspect(|(header, width)| put_first(header, *width, out)).is_some()
}

#[inline(never)]
fn put_any_header(codec: Codec, len: usize, out: &mut Vec<u8>) {
    if let Some((header, width)) = codec.fixed_header(len) {
        return put_first(&header, width, out);
    }
    let mut header = [0; MAX_HEADER];
    let width = codec.write(len, &mut header);
    put_first(&header, width, out);
}

/// Appends the first `width` bytes. A copy of a known size is a few instructions, a copy of a size known at run time is a call.
#[inline(always)]
fn put_first<const N: usize>(header: &[u8; N], width: usize, out: &mut Vec<u8>) {
    let end = out.len() + width;
    out.extend_from_slice(header);
    out.truncate(end);
}
