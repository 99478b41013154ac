//! A stream of frames, in pieces.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::session(bytes));
