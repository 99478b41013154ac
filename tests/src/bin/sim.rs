//! `make sim`: what the client's router comes to in a world of sellers, against other ways of
//! choosing and an oracle. Writes docs/simulation.md.

use std::io::{self, Write};

use clap::Parser;
use farthing_tests::sim::pace;
use farthing_tests::sim::report::{PAGE, Report};
use farthing_tests::sim::run::{Rules, Run};
use farthing_tests::sim::ways::Way;
use farthing_tests::sim::workload::Demand;
use farthing_tests::sim::world::{Size, World};

/// Simulates buyers and sellers.
#[derive(Debug, Parser)]
struct Options {
    /// Where chance begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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
    /// Only ways whose name begins so; the oracle and ours are always among them.
    #[arg(long)]
    only: Option<String>,
    /// Measure a choice among so many sellers.
    #[arg(long, default_values_t = [100, 1000, 10_000])]
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
    let world = World::new(options.seed, size);
    let only = options.only.as_deref().unwrap_or_default();
    let always = |way: &Way| matches!(way, Way::Oracle | Way::Farthing);
    let ways = Way::ALL.into_iter();
    let ways = ways.filter(|way| always(way) || way.to_string().starts_with(only));
    let mut runs = Vec::new();
    for way in ways {
        say(&format!("{way}: {} requests", world.requests.len()));
        runs.push(Run::new(&world, way, Rules::default()).finish());
    }
    let mut paces = Vec::new();
    for sellers in options.pace {
        say(&format!("choices among {sellers} sellers"));
        let world = World::new(options.seed, Size { sellers, ..size });
        paces.push(pace::measure(&world, 20_000));
    }
    let report = Report {
        seed: options.seed,
        size,
        runs,
        paces,
    };
    writeln!(io::stdout(), "{report}")?;
    if options.write {
        report.write(PAGE.as_ref())?;
        say("written to docs/simulation.md");
    }
    Ok(())
}

fn say(line: &str) {
    // Whoever closed the terminal does not want to know.
    writeln!(io::stderr(), "sim: {line}").ok();
}
