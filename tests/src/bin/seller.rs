//! `farthing-node`, built beside the tests that start and kill it, with a clock they can disturb.

use std::process::ExitCode;

fn main() -> ExitCode {
    farthing_node::cli::main_by(farthing_tests::chaos::clock::by_orders())
}
