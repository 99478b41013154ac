//! The proof of a leaf.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::proof(bytes));
