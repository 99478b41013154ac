//! `make sim`: what the client's router comes to in a world of sellers, against other ways of
//! choosing and an oracle. Writes docs/simulation.md.

use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use clap::Parser;
use farthing_tests::sim::figures::Figures;
use farthing_tests::sim::pace;
use farthing_tests::sim::report::{PAGE, Report};
use farthing_tests::sim::run::Run;
use farthing_tests::sim::ways::Way;
use farthing_tests::sim::workload::Demand;
use farthing_tests::sim::world::{Size, World};
use mimalloc::MiMalloc;

/// As in the programs that choose.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Simulates buyers and sellers.
#[derive(Debug, Parser)]
struct Options {
    /// Where chance begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Other seeds, of which only the bars are told.
    #[arg(long, num_args = 0.., value_delimiter = ',', default_value = "2,3")]
    also: Vec<u64>,
    /// Sellers.
    #[arg(long, default_value_t = 1000)]
    sellers: usize,
    /// The share of them that is bad.
    #[arg(long, default_value_t = 0.2)]
    bad: f64,
    /// Buyers.
    #[arg(long, default_value_t = 40)]
    buyers: usize,
    /// Requests a second of each buyer.
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Seconds of virtual time.
    #[arg(long, default_value_t = 2400)]
    seconds: u64,
    /// Only ways of these names.
    #[arg(long)]
    only: Vec<String>,
    /// Measure a choice among so many sellers.
    #[arg(long, num_args = 0.., value_delimiter = ',', default_value = "100,1000,10000")]
    pace: Vec<usize>,
    /// Write the figures into docs/simulation.md.
    #[arg(long)]
    write: bool,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    let size = Size {
        sellers: options.sellers,
        bad: options.bad,
        demand: Demand {
            buyers: options.buyers,
            rate: options.rate,
            seconds: options.seconds,
        },
    };
    let wanted = |way: &Way| {
        let name = way.to_string();
        options.only.is_empty() || options.only.contains(&name)
    };
    let ways: Vec<_> = Way::ALL.into_iter().filter(wanted).collect();
    let report = |seed| Report {
        seed,
        size,
        runs: runs(&World::new(seed, size), &ways),
        paces: Vec::new(),
        others: Vec::new(),
    };
    let others = options
        .also
        .iter()
        .map(|seed| (*seed, report(*seed).bars()));
    let others = others.collect();
    let mut paces = Vec::new();
    for sellers in options.pace {
        say(&format!("choices among {sellers} sellers"));
        let world = World::new(options.seed, Size { sellers, ..size });
        paces.push(pace::measure(&world, 20_000));
    }
    let report = Report {
        paces,
        others,
        ..report(options.seed)
    };
    writeln!(io::stdout(), "{report}")?;
    if options.write {
        report.write(PAGE.as_ref())?;
        say("written to docs/simulation.md");
    }
    Ok(())
}

/// The runs of a world, as many at once as there are processors.
fn runs(world: &World, ways: &[Way]) -> Vec<Figures> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let work = || {
        while let Some(way) = ways.get(next.fetch_add(1, Ordering::Relaxed)) {
            let requests = world.requests.len();
            say(&format!("seed {}, {way}: {requests} requests", world.seed));
            let run = Run::new(world, *way).finish();
            done.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(run);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut runs = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    runs.sort_by_key(|run| run.way);
    runs
}

fn say(line: &str) {
    // Whoever closed the terminal does not want to know.
    writeln!(io::stderr(), "sim: {line}").ok();
}
