//! Arbitrary bytes as the handshake and the frames of a session: never a panic, and the same however the bytes are split.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    buffstreams::fuzz::session_wire(input);
    // Most inputs do not find the start of a handshake by themselves.
    let started = [&b"\xf5buffstreams\x01"[..], input].concat();
    buffstreams::fuzz::session_wire(&started);
});
