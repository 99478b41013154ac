//! What a buyer says of a seller.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::testimony(bytes));
