//! `farthing`, built beside the tests that start and kill it, with a clock they can disturb.

use std::process::ExitCode;

use clap::Parser;
use farthing_client::cli::{Cli, run_by};

#[tokio::main]
async fn main() -> ExitCode {
    match run_by(farthing_tests::chaos::clock::by_orders(), Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "the program's last word to its user")]
            {
                eprintln!("farthing: {error}");
            }
            ExitCode::FAILURE
        }
    }
}
