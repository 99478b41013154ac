//! `farthing`: see [`farthing_client::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// See docs/decisions/0011.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    farthing_client::cli::main().await
}
