//! `farthing`: the buyer's program.

use std::process::ExitCode;

use clap::Parser;
use farthing_client::cli::{Cli, run};
use mimalloc::MiMalloc;

/// See docs/decisions/0011.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

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
