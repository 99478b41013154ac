//! `make crowd`: what discovery costs each peer, and how soon a newcomer has bought.

use std::io::Write;
use std::time::Duration;

use clap::Parser;
use farthing_tests::crowd::{self, CrowdError, SECTION};
use farthing_tests::section::BENCHMARKS;
use tokio::time::Instant;

/// Measures discovery in crowds of growing size.
#[derive(Debug, Parser)]
struct Options {
    /// The sizes of the crowds.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000])]
    peers: Vec<usize>,
    /// Seconds in which nothing is published, to see what that costs.
    #[arg(long, default_value_t = 60)]
    quiet: u64,
    /// Newcomers in each place.
    #[arg(long, default_value_t = 60)]
    newcomers: u8,
    /// Write the figures into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
}

#[tokio::main]
async fn main() -> Result<(), CrowdError> {
    let options = Options::parse();
    let begun = Instant::now();
    let progress = |step: &str| {
        // Who does not want to hear it has closed it.
        writeln!(
            std::io::stderr(),
            "{:>5} s  {step}",
            begun.elapsed().as_secs()
        )
        .ok();
    };
    let quiet = Duration::from_secs(options.quiet);
    let report = crowd::measure(&options.peers, quiet, options.newcomers, progress).await?;
    writeln!(std::io::stdout(), "{report}")?;
    if options.write {
        SECTION.write(BENCHMARKS.as_ref(), &report.to_string())?;
    }
    Ok(())
}
