//! A few seconds of strangers' bytes in every test run: arbitrary ones and mutated vectors go
//! through the very properties that `make fuzz` hunts with (`protocol/fuzz/src/lib.rs`).

#![allow(
    unreachable_pub,
    clippy::disallowed_methods,
    reason = "the properties are a library elsewhere; the environment says where seeds are wanted"
)]

#[path = "../fuzz/src/lib.rs"]
mod properties;
#[path = "decoders/seeds.rs"]
mod seeds;

use farthing_protocol::frame::{Answer, Call, ToBuyer, ToSeller};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use seeds::seeds;

/// Every property at once.
fn all(bytes: &[u8]) {
    properties::frame::<ToSeller>(bytes);
    properties::frame::<ToBuyer>(bytes);
    properties::frame::<Call>(bytes);
    properties::frame::<Answer>(bytes);
    properties::signed_offer(bytes);
    properties::proof(bytes);
    properties::testimony(bytes);
    properties::body(bytes);
    properties::demand(bytes);
    properties::evm_signature(bytes);
    properties::payment(bytes);
    properties::session(bytes);
}

#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    Splice(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (place(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (place(), 1..9_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => place().prop_map(Change::Cut),
        1 => (place(), place()).prop_map(|(at, other)| Change::Splice(at, other)),
    ]
}

/// The bytes after a change; of no bytes at all, no bytes.
fn changed(mut bytes: Vec<u8>, change: &Change, seeds: &[Vec<u8>]) -> Vec<u8> {
    if bytes.is_empty() {
        return bytes;
    }
    let len = bytes.len();
    match change {
        Change::Set(at, byte) => bytes[at.index(len)] = *byte,
        Change::Insert(at, more) => {
            let at = at.index(len);
            bytes.splice(at..at, more.iter().copied());
        }
        Change::Remove(at, count) => {
            let at = at.index(len);
            bytes.drain(at..(at + count).min(len));
        }
        Change::Cut(at) => bytes.truncate(at.index(len)),
        Change::Splice(at, other) => {
            let other = other.get(seeds);
            let at = at.index(len);
            bytes.splice(at.., other.iter().skip(at).copied());
        }
    }
    bytes
}

#[test]
fn every_vector_passes_unchanged() {
    let seeds = seeds();
    assert!(seeds.len() > 100, "only {} vectors were found", seeds.len());
    for seed in &seeds {
        all(seed);
    }
}

/// Not a test: `make fuzz` begins from the vectors too.
#[test]
fn seeds_are_written_where_they_are_wanted() {
    let Some(folder) = std::env::var_os("FARTHING_SEEDS") else {
        return;
    };
    for (n, seed) in seeds().iter().enumerate() {
        let path = std::path::Path::new(&folder).join(n.to_string());
        std::fs::write(path, seed).expect("the seeds can be written");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arbitrary_bytes_break_nothing(bytes in vec(any::<u8>(), 0..300)) {
        all(&bytes);
        // And behind a version byte, where more of them get further.
        let versioned = [&[1, bytes.first().map_or(0, |b| b % 8)], &bytes[..]].concat();
        all(&versioned);
    }

    #[test]
    fn mutated_vectors_break_nothing(seed in any::<Index>(), changes in vec(change(), 1..5)) {
        let seeds = seeds();
        let mut bytes = seed.get(&seeds).clone();
        for change in &changes {
            bytes = changed(bytes, change, &seeds);
        }
        all(&bytes);
    }
}
