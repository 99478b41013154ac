//! `farthing-node`: see [`farthing_node::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    farthing_node::cli::main()
}
