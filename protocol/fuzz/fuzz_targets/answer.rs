//! Answers to small questions.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |bytes: &[u8]| farthing_fuzz::frame::<farthing_protocol::frame::Answer>(bytes)
);
