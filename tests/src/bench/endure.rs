//! A long run of mixed paid traffic at a moderate load: does anything grow?
//!
//! Applications buy plain answers and streams, read slowly, hang up, and ask for what is refused,
//! all through one gateway from one node. Every few seconds memory, tasks, threads, files and disk
//! are read; after the warm-up a line is laid through them by least squares. At the end everything
//! is stopped in order, and both books are opened and compared with each other and the chain.

mod traffic;
mod line;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::testing;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::bench::fleet::{Each, Fleet, Shape, Transport};
use crate::bench::load::{Load, Route, Unary};
use crate::bench::machine::Machine;
use crate::bench::{BenchError, machine};
use crate::chaos::audit::{Audit, Books};

pub use crate::bench::endure::report::{Report, SECTION};
pub use crate::bench::endure::traffic::{Kind, Seen, Traffic};

/// How long, and how much.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How long the traffic lasts.
    pub time: Duration,
    /// Plain answers that are bought before, as fast as they come, so that the books are longer than
    /// what of them is kept in memory.
    pub fill: usize,
    /// What of the traffic is not counted.
    pub warm_up: Duration,
    /// How often everything is read.
    pub every: Duration,
    /// How the buyer reaches the node.
    pub transport: Transport,
    /// Where the ledgers are. The system's temporary directory if none.
    pub disk: Option<PathBuf>,
}

/// Plain requests at once while the books are filled, and for how long at a time.
const LINES: usize = 64;
const STEP: Duration = Duration::from_secs(5);

/// What filling the books came to.
#[derive(Debug, Clone, Copy)]
pub struct Filled {
    /// Purchases.
    pub purchases: u64,
    /// Memory before.
    pub before: Each<u64>,
    /// Memory after.
    pub after: Each<u64>,
}

/// How things stand at one time.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Since the traffic began.
    pub at: Duration,
    /// Requests that had their answer by then.
    pub answered: u64,
    /// Memory in bytes.
    pub memory: Each<u64>,
    /// Files and sockets.
    pub descriptors: Each<u64>,
    /// Threads.
    pub threads: Each<u64>,
    /// Tasks of gateway and node.
    pub tasks: (u64, u64),
    /// Bytes of the gateway's directory and of the node's.
    pub disk: (u64, u64),
    /// Processor time so far.
    pub cpu: Each<Duration>,
}

/// Runs the traffic, looks, and audits.
///
/// # Errors
/// [`BenchError`] when a process ends or a book cannot be opened.
pub async fn run(plan: &Plan, say: impl Fn(&str)) -> Result<Report, BenchError> {
    let machine = Machine::look();
    say("starting chain, model server, node and gateway");
    let shape = Shape::new(plan.transport, plan.disk.as_deref());
    let mut fleet = Fleet::open(&shape).await?;
    let load = Load::new(&fleet)?;
    load.one_by_one(Route::Paid, 50).await?;
    say("filling the books");
    let filled = fill(plan, &load, &mut fleet).await?;
    let traffic = Arc::new(Traffic::new(&fleet.paid)?);
    let begun = Instant::now();
    let running = traffic.start(begun + plan.time);
    let mut looks = Vec::new();
    let mut ticks = interval(plan.every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while begun.elapsed() < plan.time {
        ticks.tick().await;
        let now = look(&mut fleet, begun, &traffic).await?;
        say(&now.to_string());
        looks.push(now);
    }
    running.join_all().await;
    let last = look(&mut fleet, begun, &traffic).await?;
    say("stopping, and comparing the books");
    let remains = fleet.stop().await;
    let part = |error: &dyn std::fmt::Display| BenchError::Part(error.to_string());
    let (node, gateway) = (remains.node(), remains.gateway());
    let books = Books::open(&node, &gateway).await;
    let books = books.map_err(|error| part(&error))?;
    let audit: Audit = books
        .audit(&remains.chain, testing::payout())
        .await
        .map_err(|error| part(&error))?;
    Ok(Report {
        machine,
        plan: plan.clone(),
        filled,
        looks,
        last,
        seen: traffic.seen(),
        audit,
    })
}

async fn fill(plan: &Plan, load: &Load, fleet: &mut Fleet) -> Result<Filled, BenchError> {
    let before = fleet.memory()?;
    let mut purchases = 0;
    while purchases < plan.fill {
        purchases += Unary::soak(load, fleet, LINES, STEP).await?.count();
    }
    Ok(Filled {
        purchases: purchases as u64,
        before,
        after: fleet.memory()?,
    })
}

async fn look(fleet: &mut Fleet, begun: Instant, traffic: &Traffic) -> Result<Look, BenchError> {
    let used = fleet.used().await?;
    let [node, gateway] = fleet.disks().map(|dir| machine::size(&dir));
    Ok(Look {
        at: begun.elapsed(),
        answered: traffic.answered(),
        memory: fleet.memory()?,
        descriptors: fleet.pids().each(machine::descriptors)?,
        threads: fleet.pids().each(machine::threads)?,
        tasks: (used.gateway.tasks, used.node.tasks),
        disk: (gateway?, node?),
        cpu: used.cpu,
    })
}
