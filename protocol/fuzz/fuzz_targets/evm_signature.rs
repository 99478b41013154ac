//! A hash and a signature.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::evm_signature(bytes));
