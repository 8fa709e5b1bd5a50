//! Arbitrary bytes behind the handshake of a session: none of them may do more than end it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| buffstreams::fuzz::session_peer(input));
