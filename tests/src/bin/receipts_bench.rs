//! Measures a seller's books with many receipts, in a directory of their own:
//! `receipts_bench [RECEIPTS] [CHANNELS] [DIR]`.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

use std::path::PathBuf;

use farthing_tests::bench::receipts::{BooksError, measure};

#[tokio::main]
async fn main() -> Result<(), BooksError> {
    let mut words = std::env::args().skip(1);
    let mut number = |default: u64| {
        let word = words.next().and_then(|word| word.parse().ok());
        word.unwrap_or(default)
    };
    let (count, channels) = (number(1_000_000), number(100));
    let made = tempfile::tempdir()?;
    let dir = words.next().map_or(made.path().to_owned(), PathBuf::from);
    let figures = measure(&dir, count, channels, count / 100).await?;
    println!("{figures:#?}");
    Ok(())
}
