//! Many streams at once, and readers that stop: memory, delay and processor time of each stream.
//!
//! Every stream is opened by an application of its own and paced by the model server, so that all
//! of them run while the figures of the crowd are read. Three ways: straight to the model server,
//! through the gateway to a model server of the buyer's own, and through the market, each paid.

mod crowd;
mod stopped;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::descriptors;

use crate::bench::fleet::{Fleet, Shape, Transport};
use crate::bench::load::{Load, Route};
use crate::bench::machine::Machine;
pub use crate::bench::many::crowd::{Crowd, Way};
pub use crate::bench::many::report::{Report, SECTION};
pub use crate::bench::many::stopped::Stopped;
use crate::bench::{BenchError, streams};

/// What every request asks.
const QUESTION: &str = "How much is a farthing?";

/// How many, and how fast.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Streams open at once.
    pub streams: usize,
    /// Bytes of a stream's prompt, about.
    pub prompt: usize,
    /// Over what time they are opened.
    pub opening: Duration,
    /// Chunks of a stream.
    pub chunks: usize,
    /// The time between two of its chunks.
    pub pace: Duration,
    /// How long the crowd is watched once all are open.
    pub watch: Duration,
    /// Streams that are opened beside the crowd, one after the other.
    pub probes: usize,
    /// Readers that stop.
    pub stopped: usize,
    /// How long they stop.
    pub pause: Duration,
    /// How the buyer reaches the node.
    pub transport: Transport,
    /// Where the ledgers are. The system's temporary directory if none.
    pub disk: Option<PathBuf>,
}

impl Plan {
    /// A request for a stream of so many chunks.
    fn body(&self, chunks: usize, pace: Duration) -> Bytes {
        let body = streams::body(chunks, pace);
        let words = String::from_utf8_lossy(&body);
        let times = self.prompt.div_ceil(QUESTION.len()).max(1);
        words.replace(QUESTION, &QUESTION.repeat(times)).into()
    }

    /// With room for all streams, those beside them, and what is left of those before.
    fn shape(&self) -> Shape {
        let slots = u32::try_from(self.streams * 2).unwrap_or(u32::MAX);
        Shape {
            slots: slots.max(512),
            ..Shape::new(self.transport, self.disk.as_deref())
        }
    }
}

/// Measures all of it.
///
/// # Errors
/// [`BenchError`]; a stream that fails is a figure and no error.
pub async fn run(plan: &Plan, say: impl Fn(&str)) -> Result<Report, BenchError> {
    let need = 2 * plan.streams as u64 + 256;
    descriptors::need(need).map_err(|error| BenchError::Part(error.to_string()))?;
    let machine = Machine::look();
    let mut crowds = Vec::new();
    for way in Way::ALL {
        say(&format!("{} streams at once, {way}", plan.streams));
        let shape = Shape {
            own: way == Way::Own,
            ..plan.shape()
        };
        let mut fleet = Fleet::open(&shape).await?;
        let crowd = Crowd::measure(plan, way, &mut fleet).await?;
        say(&format!("{crowd}"));
        crowds.push(crowd);
        fleet.stop().await;
    }
    say(&format!("{} readers that stop", plan.stopped));
    let shape = Shape {
        token_bytes: Some(stopped::TOKEN),
        ..plan.shape()
    };
    let mut fleet = Fleet::open(&shape).await?;
    let stopped = Stopped::measure(plan, &mut fleet).await?;
    fleet.stop().await;
    Ok(Report {
        machine,
        plan: plan.clone(),
        crowds,
        stopped,
    })
}

/// Opens the channel, fills the pools, lets the first pages be touched; then what is left is idle.
async fn warm_up(load: &Load, route: Route, fleet: &mut Fleet) -> Result<(), BenchError> {
    load.one_by_one(route, 200).await?;
    fleet.settle().await
}
