//! Arbitrary sequences of what can happen to a session, its connections cut at any byte: what must always hold does.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| buffstreams::fuzz::session_ops(input));
