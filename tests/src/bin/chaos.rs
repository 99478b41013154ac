//! `make chaos`: kills either side at random during paid traffic and audits the books.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it reports to a terminal"
)]

use std::process::ExitCode;

use clap::Parser;
use farthing_tests::chaos::{Plan, programs_beside_this, run};

/// Kills the seller or the buyer at random moments, and audits every book at the end.
#[derive(Debug, Parser)]
struct Options {
    /// Kills.
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Where to leave disks and logs.
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Decides when and whom.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let programs = match programs_beside_this() {
        Ok(programs) => programs,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::FAILURE;
        }
    };
    let plan = Plan {
        rounds: options.rounds,
        seed: options.seed,
        programs,
        dir: options.dir,
    };
    println!("chaos: {} kills, seed {}", plan.rounds, plan.seed);
    let rounds = plan.rounds;
    let audit = run(plan, |round, whom| {
        if round % 10 == 0 || round == rounds {
            println!("  round {round}: killing {whom}");
        }
    });
    match audit.await {
        Ok(audit) => {
            for (name, value) in &audit.figures {
                println!("  {name:<52}{value:>14}");
            }
            for violation in &audit.violations {
                println!("  VIOLATION: {violation}");
            }
            let clean = audit.violations.is_empty();
            println!(
                "{}",
                if clean {
                    "all books agree"
                } else {
                    "the books do not agree"
                }
            );
            if clean {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}
