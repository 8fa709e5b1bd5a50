//! Arbitrary sequences of what is accepted, written, acknowledged and written again on another connection.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| buffstreams::fuzz::output_replay(input));
