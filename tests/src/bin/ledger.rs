//! `make ledger`: what signatures, the disk and a seller's books cost by themselves, and books
//! with many receipts.

use std::io::Write;
use std::path::PathBuf;

use clap::Parser;
use farthing_tests::bench::parts::{self, SECTION};
use farthing_tests::bench::receipts::{self, BooksError};
use farthing_tests::section::BENCHMARKS;

/// Measures signatures, the disk and a seller's books by themselves.
#[derive(Debug, Parser)]
struct Options {
    /// Receipts in the large books; none are made for 0.
    #[arg(long, default_value_t = 1_000_000)]
    receipts: u64,
    /// Channels they are spread over.
    #[arg(long, default_value_t = 100)]
    channels: u64,
    /// Directory for the books, on the disk to be measured.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Write the figures into docs/benchmarks.md.
    #[arg(long)]
    write: bool,
}

#[tokio::main]
async fn main() -> Result<(), BooksError> {
    let options = Options::parse();
    let made = match &options.disk {
        Some(disk) => tempfile::tempdir_in(disk)?,
        None => tempfile::tempdir()?,
    };
    let mut report = parts::measure(made.path()).await?;
    if options.receipts > 0 {
        let (count, dir) = (options.receipts, made.path().join("many"));
        let figures = receipts::measure(&dir, count, options.channels, count / 100).await?;
        report.many = Some(figures);
    }
    writeln!(std::io::stdout(), "{report}")?;
    if options.write {
        SECTION.write(BENCHMARKS.as_ref(), &report.to_string())?;
    }
    Ok(())
}
