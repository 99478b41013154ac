//! What a stranger puts into an x402 header.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::payment(bytes));
