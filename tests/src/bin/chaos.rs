//! `make chaos`: faults of every kind during paid traffic, and an audit of every book.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it reports to a terminal"
)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use farthing_tests::chaos::fault::schedule;
use farthing_tests::chaos::process::Dice;
use farthing_tests::chaos::table::{figures, table};
use farthing_tests::chaos::{Plan, programs_beside_this, run};
use farthing_tests::section::{BENCHMARKS, Section};
use tokio::signal::unix::{SignalKind, signal};

/// Lets faults of every kind strike a seller and a buyer, and audits every book.
#[derive(Debug, Parser)]
struct Options {
    /// Faults.
    #[arg(long, default_value_t = 1_000)]
    faults: usize,
    /// Faults between two audits.
    #[arg(long, default_value_t = 50)]
    act: usize,
    /// Where to leave disks and logs.
    #[arg(long)]
    dir: Option<std::path::PathBuf>,
    /// Decides when, what and for how long.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the table into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
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
        faults: schedule(options.faults, &mut Dice::new(options.seed)),
        longest: Duration::from_secs(60),
        act: options.act,
        seed: options.seed,
        programs,
        dir: options.dir,
    };
    let began = tokio::time::Instant::now();
    println!("chaos: {} faults, seed {}", options.faults, plan.seed);
    let all = options.faults;
    let ran = run(plan, |strike| {
        let healed = match strike.healed {
            Some(took) => format!("a whole answer {:.1} s after it", took.as_secs_f64()),
            None => "NO WHOLE ANSWER AFTER IT".to_owned(),
        };
        let number = format!("{}/{all}", strike.number);
        let at = began.elapsed().as_secs();
        println!(
            "  {number:>9}  {at:>5} s  {:<38} {healed}",
            strike.fault.to_string()
        );
    });
    let mut terminated = match signal(SignalKind::terminate()) {
        Ok(signal) => signal,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::FAILURE;
        }
    };
    // Whatever ends it, the programs and the chain end with it.
    let ran = tokio::select! {
        ran = ran => ran,
        _ = terminated.recv() => return ExitCode::FAILURE,
    };
    match ran {
        Ok(report) => {
            let took = began.elapsed().as_secs();
            let text = format!(
                "{all} faults, seed {}, {took} s, {} build.\n\n{}\n{}",
                options.seed,
                if cfg!(debug_assertions) {
                    "debug"
                } else {
                    "release"
                },
                table(&report),
                figures(&report)
            );
            print!("\n{text}");
            let written = !options.write || {
                let section = Section { name: "chaos" };
                let written = section.write(BENCHMARKS.as_ref(), &text);
                written
                    .inspect_err(|error| eprintln!("chaos: {error}"))
                    .is_ok()
            };
            if written && report.audit.violations.is_empty() {
                println!("all books agree");
                ExitCode::SUCCESS
            } else {
                println!("something does not hold");
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}
