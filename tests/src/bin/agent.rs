//! `farthing`, built beside the tests that speak to it over its standard input.

use std::process::ExitCode;

use clap::Parser;
use farthing_client::cli::{Cli, run};

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
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
