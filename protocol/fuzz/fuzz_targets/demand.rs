//! What a request's body may cost.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::demand(bytes));
