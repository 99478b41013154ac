//! What a stranger's bytes can make us allocate: in proportion to the bytes, not to their claims.
//! One test alone in its process, for it watches the allocator.

#[path = "decoders/seeds.rs"]
mod seeds;

use farthing_protocol::body::Body;
use farthing_protocol::frame::{Answer, Call, Frame, ToBuyer, ToSeller};
use farthing_protocol::offer::SignedOffer;
use peak_alloc::PeakAlloc;

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Of a frame of at most 4 KiB: sixteen times that, and the texts of errors.
const SMALL: usize = 80 * 1024;
/// Room that serde sets aside for a list before it sees the first element.
const LIST: usize = 1024 * 1024;

/// The most bytes in use at once while reading, beyond those in use before.
fn peak(read: impl FnOnce()) -> usize {
    let before = PEAK.current_usage();
    PEAK.reset_peak_usage();
    read();
    PEAK.peak_usage().saturating_sub(before)
}

fn within<T: Frame>(bytes: &[u8], most: usize) {
    let used = peak(|| drop(T::decode(bytes)));
    assert!(
        used <= most,
        "{used} bytes for {}",
        alloy::hex::encode(bytes)
    );
}

/// The bytes with a length of 2^32 or 2^24 written over each place.
fn lies(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let claims: [&[u8]; 3] = [
        &[0xfd, 0, 0, 0, 0, 1, 0, 0, 0],
        &[0xfc, 0, 0, 0, 1],
        &[0xfc, 0, 0, 0x0f, 0],
    ];
    (0..bytes.len())
        .flat_map(move |at| claims.map(|claim| [&bytes[..at], claim, &bytes[at..]].concat()))
}

#[test]
fn no_claimed_length_allocates_more_than_the_bytes_warrant() {
    for seed in seeds::seeds().iter().filter(|seed| seed.len() < 2_000) {
        for bytes in lies(seed) {
            within::<ToSeller>(&bytes, SMALL);
            within::<ToBuyer>(&bytes, SMALL);
            within::<Call>(&bytes, SMALL);
            within::<SignedOffer>(&bytes, SMALL);
            within::<Answer>(&bytes, SMALL + LIST);
            let used = peak(|| drop(Body::parse(&bytes)));
            assert!(used <= SMALL, "{used} bytes for a body");
        }
    }
}
