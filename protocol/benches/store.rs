//! Durable commits per second and how long one takes, by the number of concurrent writers.
//!
//! `cargo bench -p farthing-protocol --features store --bench store [dir]`: the directory decides
//! which disk is measured (default: the system's temporary directory).

#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use farthing_protocol::store::{Batch, Schema, Store, Table};

const ROWS: Table<u64, (u64, Vec<u8>)> = Table::new("rows", 1);
/// Rows are overwritten after this many, so the database stays the size of a busy ledger.
const SPREAD: u64 = 20_000;
const TIME: Duration = Duration::from_secs(4);

fn main() -> Result<(), Box<dyn Error>> {
    let base = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let dir = match base {
        Some(base) => tempfile::tempdir_in(base)?,
        None => tempfile::tempdir()?,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:>8} {:>11} {:>9} {:>9} {:>9} {:>11}",
        "writers", "commits/s", "p50 ms", "p99 ms", "max ms", "per group"
    )?;
    for writers in [1, 10, 64, 256] {
        let line = runtime.block_on(measure(&dir.path().join(writers.to_string()), writers))?;
        writeln!(out, "{line}")?;
    }
    Ok(())
}

async fn measure(dir: &Path, writers: u64) -> Result<String, Box<dyn Error>> {
    let store = Store::open(dir, Schema::new().table(&ROWS, &[]))?;
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|_| tokio::spawn(write(store.clone(), next.clone(), start)))
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await?);
    }
    let elapsed = start.elapsed().as_secs_f64();
    times.sort_unstable();
    let stats = store.stats();
    let at = |part: f64| {
        let index = (times.len() as f64 * part) as usize;
        times
            .get(index.min(times.len().saturating_sub(1)))
            .map_or(0.0, |t| t.as_secs_f64() * 1000.0)
    };
    Ok(format!(
        "{writers:>8} {:>11.0} {:>9.2} {:>9.2} {:>9.2} {:>11.1}",
        stats.commits as f64 / elapsed,
        at(0.5),
        at(0.99),
        at(1.0),
        stats.commits as f64 / stats.groups as f64,
    ))
}

async fn write(store: Store, next: Arc<AtomicU64>, start: Instant) -> Vec<Duration> {
    let mut times = Vec::new();
    while start.elapsed() < TIME {
        let n = next.fetch_add(1, Ordering::Relaxed);
        let begin = Instant::now();
        let row = (n, vec![u8::try_from(n % 251).unwrap_or(0); 390]);
        let Ok(batch) = Batch::new().put(&ROWS, &(n.wrapping_mul(7919) % SPREAD), &row) else {
            break;
        };
        if store.commit(batch).await.is_err() {
            break;
        }
        times.push(begin.elapsed());
    }
    times
}
