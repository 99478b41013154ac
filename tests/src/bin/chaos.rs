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
    match ran.await {
        Ok(report) => {
            print!("\n{}\n{}", table(&report), figures(&report));
            println!("- it took {} s", began.elapsed().as_secs());
            if report.audit.violations.is_empty() {
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
