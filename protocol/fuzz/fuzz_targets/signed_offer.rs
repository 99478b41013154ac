//! What is heard on the topic.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farthing_fuzz::signed_offer(bytes));
