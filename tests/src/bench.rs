//! What the market costs in time: the same requests directly to a model server that does not
//! think, and through buyer's gateway → libp2p → node → that server, paid and durable.
//!
//! Model server, node, gateway and chain are processes of their own, as in life; the load comes
//! from the bench's process. Direct and paid rounds alternate, so that whatever else the machine
//! does falls on both. Figures are of this machine: the ratios travel, the milliseconds do not.
//! Nothing here asserts; a missed bar is printed as missed.

pub mod figures;
pub mod fleet;
pub mod load;
pub mod machine;
pub mod many;
pub mod endure;
pub mod parts;
pub mod receipts;
pub mod report;
pub mod roles;
pub mod streams;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::bench::fleet::{Fleet, Transport};
use crate::bench::load::{Load, Route, Unary};
use crate::bench::machine::Machine;
use crate::bench::report::Report;
use crate::street::StreetError;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A part of the street.
    #[error(transparent)]
    Street(#[from] StreetError),
    /// A process, a pipe or a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A process did not say what it should.
    #[error("{0}")]
    Part(String),
    /// A request failed.
    #[error("a request failed: {0}")]
    Http(#[from] reqwest::Error),
    /// A request was not answered as it should.
    #[error("{0}")]
    Answer(String),
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Requests before any figure counts.
    pub warm_up: usize,
    /// Rounds of each kind; direct and paid ones alternate.
    pub rounds: usize,
    /// Requests of a round, one after the other.
    pub requests: usize,
    /// Requests under way at once in the rounds of throughput.
    pub at_once: usize,
    /// How long a round of throughput takes.
    pub round: Duration,
    /// Unpaced streams of a round.
    pub streams: usize,
    /// Paced streams of each kind.
    pub paced: usize,
    /// Chunks of a stream.
    pub chunks: usize,
    /// The time between two chunks of a paced stream.
    pub pace: Duration,
    /// How the buyer reaches the node.
    pub transport: Transport,
    /// Where the ledgers are: the disk that is measured. The system's temporary directory if none.
    pub disk: Option<PathBuf>,
}

/// Measures everything.
///
/// # Errors
/// [`BenchError`].
pub async fn run(effort: &Effort, say: impl Fn(&str)) -> Result<Report, BenchError> {
    let machine = Machine::look();
    say("starting chain, model server, node and gateway");
    let mut fleet = Fleet::start(effort).await?;
    let idle = fleet.memory()?;
    let load = Load::new(&fleet)?;
    say("warming up");
    for route in Route::BOTH {
        load.one_by_one(route, effort.warm_up).await?;
    }
    fleet.settle().await?;
    say("one request at a time");
    let single = Unary::one_by_one(&load, &mut fleet, effort).await?;
    say("many requests at once");
    let many = Unary::at_once(&load, &mut fleet, effort).await?;
    say("streams");
    let burst = streams::burst(&load, effort).await?;
    say("paced streams");
    let paced = streams::paced(&load, effort).await?;
    let loaded = fleet.memory()?;
    fleet.stop().await;
    Ok(Report {
        machine,
        effort: effort.clone(),
        idle,
        loaded,
        single,
        many,
        burst,
        paced,
    })
}

/// Only paid load, for a profiler to look at: so many requests at once for so long, or as many
/// paced streams, one after the other, as `effort` says. Says the processes' ids before it begins.
///
/// # Errors
/// [`BenchError`].
pub async fn soak(effort: &Effort, soak: Soak, say: impl Fn(&str)) -> Result<(), BenchError> {
    let mut fleet = Fleet::start(effort).await?;
    let load = Load::new(&fleet)?;
    load.one_by_one(Route::Paid, effort.warm_up).await?;
    let pids = fleet.pids();
    say(&format!("node {}, gateway {}", pids.node, pids.gateway));
    let (lines, time) = match soak {
        Soak::Requests { lines, time } => (lines, time),
        Soak::Streams => {
            let way = streams::paced(&load, effort).await?.way;
            let (added, most) = (way.added(50), way.added(99));
            say(&format!("added to a chunk: p50 {added:?}, p99 {most:?}"));
            fleet.stop().await;
            return Ok(());
        }
    };
    let spent = Unary::soak(&load, &mut fleet, lines, time).await?;
    let per = |cpu: Duration| cpu / u32::try_from(spent.count().max(1)).unwrap_or(1);
    say(&format!(
        "{:.0} a second, p50 {:?}, p99 {:?}; processor time gateway {:?}, node {:?}",
        spent.rate(),
        spent.latency.median(),
        spent.latency.percentile(99),
        per(spent.cpu.gateway),
        per(spent.cpu.node),
    ));
    fleet.stop().await;
    Ok(())
}

/// What a soak is made of.
#[derive(Debug, Clone, Copy)]
pub enum Soak {
    /// Plain requests.
    Requests {
        /// At once.
        lines: usize,
        /// For how long.
        time: Duration,
    },
    /// Paced streams, one at a time.
    Streams,
}
