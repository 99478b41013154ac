//! The short version of `make chaos`: a dozen kills, every book compared.
#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use farthing_tests::chaos::process::Programs;
use farthing_tests::chaos::{Plan, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_both_sides_lose_nothing_and_agree_alone() {
    let programs = Programs {
        seller: env!("CARGO_BIN_EXE_seller").into(),
        buyer: env!("CARGO_BIN_EXE_buyer").into(),
    };
    let audit = run(
        Plan {
            rounds: 12,
            seed: 7,
            programs,
            dir: None,
        },
        |_, _| {},
    )
    .await
    .expect("runs");
    assert!(audit.violations.is_empty(), "{:#?}", audit);
}
