//! `make sim`: what the router comes to in a world of sellers, against others and an oracle.

use std::io::{self, Write};

use clap::Parser;
use farthing_tests::sim::run::{Rules, Run};
use farthing_tests::sim::ways::Way;
use farthing_tests::sim::workload::Demand;
use farthing_tests::sim::world::{Size, World};

/// Simulates ways of choosing sellers.
#[derive(Debug, Parser)]
struct Options {
    /// Where chance begins.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 1000)]
    sellers: usize,
    #[arg(long, default_value_t = 40)]
    buyers: usize,
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    #[arg(long, default_value_t = 2400)]
    seconds: u64,
    /// Only these ways, by the beginnings of their names.
    #[arg(long)]
    only: Vec<String>,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    let size = Size {
        sellers: options.sellers,
        bad: 0.2,
        demand: Demand {
            buyers: options.buyers,
            rate: options.rate,
            seconds: options.seconds,
        },
    };
    let world = World::new(options.seed, size);
    let mut out = io::stdout();
    writeln!(out, "{} requests", world.requests.len())?;
    let wanted = |way: &Way| {
        let name = way.to_string();
        options.only.is_empty() || options.only.iter().any(|only| name.starts_with(only))
    };
    for way in Way::ALL.into_iter().filter(wanted) {
        let figures = Run::new(&world, way, Rules::default()).finish();
        let cold = options.seconds / 4;
        for (from, until) in [(0, cold), (cold, options.seconds)] {
            let s = figures.summary(from, until);
            writeln!(
                out,
                "{way:28} {from:5}s ok {:.4} ttft {:6.0} {:7.0} end {:6.0} cost {:.3} J {:.3} tries {:.2} resc {:.3} bad {:.3} gini {:.2} dec {:?} {:?}",
                s.success, s.first_p50, s.first_p99, s.elapsed_p50, s.cost, s.objective, s.tries,
                s.rescued, figures.from_bad(), figures.spread(), figures.decision(0.5), figures.decision(0.99)
            )?;
        }
    }
    Ok(())
}
