//! `farthing`, built beside the tests that speak to it over its standard input.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    farthing_client::cli::main().await
}
