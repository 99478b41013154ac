//! Readers that stop in the middle of very long streams.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::bench::BenchError;
use crate::bench::figures::Sample;
use crate::bench::fleet::{Each, Fleet};
use crate::bench::load::{Load, Route};
use crate::bench::many::{Plan, warm_up};

/// Bytes of one token of these streams.
pub(in crate::bench::many) const TOKEN: usize = 16 * 1024;
/// Tokens of one stream: 16 MiB of text.
const TOKENS: usize = 1_024;
/// Bytes that are read before a reader stops.
const READ: usize = 1024 * 1024;
/// How often memory is looked at meanwhile.
const LOOKS: u32 = 4;
/// Whole streams that others read meanwhile.
const OTHERS: usize = 8;

/// What was measured.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// Readers.
    pub readers: usize,
    /// Bytes that each left unread, at least.
    pub unread: usize,
    /// Memory before, at each look while they stood still, and after they went.
    pub memory: Vec<(String, Each<u64>)>,
    /// Whole streams of others meanwhile.
    pub others: Sample,
    /// Processor time of gateway and node in a second in which nobody reads.
    pub idle: (Duration, Duration),
}

impl Stopped {
    /// Lets them stop, and looks.
    ///
    /// # Errors
    /// [`BenchError`]; a reader that is refused is one.
    pub async fn measure(plan: &Plan, fleet: &mut Fleet) -> Result<Self, BenchError> {
        let load = Load::new(fleet)?;
        warm_up(&load, Route::Paid, fleet).await?;
        let mut memory = vec![("idle".to_owned(), fleet.memory()?)];
        let body = plan.body(TOKENS, Duration::ZERO);
        let mut readers = Vec::new();
        for _ in 0..plan.stopped {
            let mut response = load.chat(Route::Paid, body.clone()).await?;
            let mut read = 0;
            while read < READ {
                let bytes = response.chunk().await?;
                read += bytes.map_or(READ, |bytes| bytes.len());
            }
            readers.push(response);
        }
        let step = plan.pause / LOOKS;
        let before = fleet.used().await?.cpu;
        for look in 1..=LOOKS {
            sleep(step).await;
            memory.push((
                format!("after {} s", (step * look).as_secs()),
                fleet.memory()?,
            ));
        }
        let after = fleet.used().await?.cpu;
        let a_second =
            |used: Duration| used / u32::try_from(plan.pause.as_secs()).unwrap_or(1).max(1);
        let mut others = Sample::default();
        for _ in 0..OTHERS {
            let begun = Instant::now();
            let mut response = load.chat(Route::Paid, body.clone()).await?;
            while response.chunk().await?.is_some() {}
            others.push(begun.elapsed());
        }
        memory.push((
            format!("{OTHERS} others have read all of theirs"),
            fleet.memory()?,
        ));
        drop(readers);
        sleep(step).await;
        memory.push(("all have gone".to_owned(), fleet.memory()?));
        Ok(Self {
            readers: plan.stopped,
            unread: TOKENS * TOKEN - READ,
            memory,
            others,
            idle: (
                a_second(after.gateway.saturating_sub(before.gateway)),
                a_second(after.node.saturating_sub(before.node)),
            ),
        })
    }
}
