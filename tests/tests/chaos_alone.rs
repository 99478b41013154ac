//! The short version of `make chaos`: a fault of each kind, every book compared.
#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::time::Duration;

use farthing_tests::chaos::fault::one_of_each;
use farthing_tests::chaos::process::{Dice, Programs};
use farthing_tests::chaos::table::{figures, table};
use farthing_tests::chaos::{Plan, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn struck_by_every_kind_of_fault_both_sides_lose_nothing_and_agree_alone() {
    let programs = Programs {
        seller: env!("CARGO_BIN_EXE_seller").into(),
        buyer: env!("CARGO_BIN_EXE_buyer").into(),
    };
    let seed = 7;
    let faults = one_of_each(&mut Dice::new(seed));
    let count = faults.len();
    let plan = Plan {
        faults,
        longest: Duration::from_millis(400),
        act: count,
        seed,
        programs,
        dir: None,
    };
    let report = run(plan, |strike| println!("{strike:?}")).await;
    let report = report.expect("runs");
    assert_eq!(report.strikes.len(), count);
    assert!(
        report.audit.violations.is_empty(),
        "\n{}\n{}",
        table(&report),
        figures(&report)
    );
}
