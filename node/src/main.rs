//! `farthing-node`: see [`farthing_node::cli`].

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// See docs/decisions/0011.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    farthing_node::cli::main()
}
