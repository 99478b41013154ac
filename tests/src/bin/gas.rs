//! `make gas`: what deposits, claims and payments use on a real chain, and what that makes a
//! receipt cost.

#![allow(clippy::print_stdout, reason = "it reports to a terminal")]

use farthing_tests::gas::measure;
use farthing_tests::section::{BENCHMARKS, Section};
use farthing_tests::street::StreetError;

#[tokio::main]
async fn main() -> Result<(), StreetError> {
    let tables = measure().await?.tables();
    print!("{tables}");
    if std::env::args().any(|argument| argument == "--write") {
        Section { name: "gas" }.write(BENCHMARKS.as_ref(), &tables)?;
    }
    Ok(())
}
