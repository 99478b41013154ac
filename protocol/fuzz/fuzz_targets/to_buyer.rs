//! What sellers say on a purchase.
#![no_main]

libfuzzer_sys::fuzz_target!(
    |bytes: &[u8]| farthing_fuzz::frame::<farthing_protocol::frame::ToBuyer>(bytes)
);
