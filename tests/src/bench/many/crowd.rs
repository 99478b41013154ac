//! A crowd of paced streams that all run at once.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::bench::BenchError;
use crate::bench::figures::Sample;
use crate::bench::fleet::{Each, Fleet, Used};
use crate::bench::load::{Load, Route};
use crate::bench::many::{Plan, warm_up};
use crate::bench::{machine, streams};
use crate::upstream::nanos;

/// How long after the last stream what is left is read.
const REST: Duration = Duration::from_secs(8);
/// All streams are open in this time, or some of them have failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Different errors that are told.
const TOLD: usize = 3;

/// How a stream comes to its application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Straight from the model server.
    Direct,
    /// Through the gateway, from a model server of the buyer's own.
    Own,
    /// Through the market, paid.
    Paid,
}

impl Way {
    /// All, the shortest first.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Own, Self::Paid];

    const fn route(self) -> Route {
        match self {
            Self::Direct => Route::Direct,
            Self::Own | Self::Paid => Route::Paid,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Own => "own model server",
            Self::Paid => "paid",
        })
    }
}

/// What was measured of a crowd.
#[derive(Debug, Clone)]
pub struct Crowd {
    /// How the streams came.
    pub way: Way,
    /// Streams that did not come whole, and some of the reasons.
    pub failed: usize,
    /// Those reasons.
    pub reasons: Vec<String>,
    /// The most streams that were open at once.
    pub open: usize,
    /// The fewest while they were watched.
    pub least: usize,
    /// From the first request to the last stream's first chunk.
    pub opened: Duration,
    /// Until a stream's first content, less the model server's pace: while the crowd grew.
    pub growing: Sample,
    /// The same, of unpaced streams beside the whole crowd.
    pub beside: Sample,
    /// Between two chunks of a stream.
    pub gaps: Sample,
    /// From a chunk's leaving the model server to its arrival.
    pub ways: Sample,
    /// Memory before, with all streams open, and after all have ended.
    pub memory: [Each<u64>; 3],
    /// Files and sockets with all streams open.
    pub descriptors: Each<u64>,
    /// Tasks of gateway and node before, with all open, and after.
    pub tasks: [(u64, u64); 3],
    /// Processor time while the crowd was watched.
    pub cpu: Each<Duration>,
    /// Chunks that arrived meanwhile.
    pub chunks: u64,
    /// How long it was watched.
    pub watched: Duration,
}

/// What the streams of a crowd share.
#[derive(Debug)]
struct Tally {
    open: watch::Sender<usize>,
    least: AtomicUsize,
    chunks: AtomicU64,
    heard: Mutex<Heard>,
}

/// What was heard of all streams that have ended.
#[derive(Debug, Default)]
struct Heard {
    first: Sample,
    gaps: Sample,
    ways: Sample,
    failed: usize,
    reasons: Vec<String>,
}

impl Tally {
    fn new() -> Self {
        Self {
            open: watch::Sender::new(0),
            least: AtomicUsize::new(usize::MAX),
            chunks: AtomicU64::new(0),
            heard: Mutex::default(),
        }
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        // Lists are whole at every step.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, stream: Result<Heard, BenchError>) {
        let mut heard = self.heard();
        match stream {
            Ok(one) => {
                heard.first.extend(one.first);
                heard.gaps.extend(one.gaps);
                heard.ways.extend(one.ways);
            }
            Err(error) => {
                heard.failed += 1;
                let reason = error.to_string();
                if heard.reasons.len() < TOLD && !heard.reasons.contains(&reason) {
                    heard.reasons.push(reason);
                }
            }
        }
    }

    fn ended(&self) {
        self.open.send_modify(|open| *open -= 1);
        self.least.fetch_min(*self.open.borrow(), Ordering::Relaxed);
    }
}

impl Crowd {
    /// Opens the streams, watches them and lets them end.
    ///
    /// # Errors
    /// [`BenchError`] when a process has ended.
    pub async fn measure(plan: &Plan, way: Way, fleet: &mut Fleet) -> Result<Self, BenchError> {
        let load = Load::new(fleet)?;
        warm_up(&load, way.route(), fleet).await?;
        let idle = fleet.memory()?;
        let tasks = tasks(&fleet.used().await?);
        let tally = Arc::new(Tally::new());
        let begun = Instant::now();
        let mut running = opening(plan, (&load, way.route()), &tally, begun);
        let mut counted = tally.open.subscribe();
        let all = counted.wait_for(|open| *open >= plan.streams);
        let all = timeout(PATIENCE, all).await.is_ok();
        let opened = begun.elapsed();
        let open = *tally.open.borrow();
        if !all {
            tally
                .heard()
                .reasons
                .push(format!("only {open} were open at once"));
        }
        tally.least.store(open, Ordering::Relaxed);
        let watched = watch(plan, &load, way.route(), (&mut *fleet, &*tally)).await?;
        let least = tally.least.load(Ordering::Relaxed);
        while running.join_next().await.is_some() {}
        // The applications close their connections.
        drop(load);
        sleep(REST).await;
        let left = fleet.memory()?;
        let after = self::tasks(&fleet.used().await?);
        let heard = std::mem::take(&mut *tally.heard());
        Ok(Self {
            way,
            failed: heard.failed,
            reasons: heard.reasons,
            open,
            least,
            opened,
            growing: heard.first,
            beside: watched.beside,
            gaps: heard.gaps,
            ways: heard.ways,
            memory: [idle, watched.memory, left],
            descriptors: watched.descriptors,
            tasks: [tasks, watched.tasks, after],
            cpu: watched.cpu,
            chunks: watched.chunks,
            watched: watched.time,
        })
    }

    /// The processor time of one process for one chunk.
    #[must_use]
    pub fn per_chunk(&self, cpu: Duration) -> Duration {
        cpu / u32::try_from(self.chunks.max(1)).unwrap_or(u32::MAX)
    }

    /// The share of all cores that was in use, in percent.
    #[must_use]
    pub fn busy(&self, cores: usize) -> f64 {
        let Each {
            upstream,
            node,
            gateway,
            load,
        } = self.cpu;
        let cpu = (upstream + node + gateway + load).as_secs_f64();
        100.0 * cpu / (self.watched.as_secs_f64() * cores as f64).max(f64::EPSILON)
    }
}

impl fmt::Display for Crowd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_stream = |of: fn(&Each<u64>) -> u64| {
            let [idle, open, _] = &self.memory;
            of(open).saturating_sub(of(idle)) / 1024 / self.open.max(1) as u64
        };
        write!(
            f,
            "{} open in {:?}, {} failed; {} KiB a stream in the gateway, {} in the node {:?}",
            self.open,
            self.opened,
            self.failed,
            per_stream(|each| each.gateway),
            per_stream(|each| each.node),
            self.reasons
        )
    }
}

fn tasks(used: &Used) -> (u64, u64) {
    (used.gateway.tasks, used.node.tasks)
}

/// Opens the streams at even distances.
fn opening(
    plan: &Plan,
    (load, route): (&Load, Route),
    tally: &Arc<Tally>,
    begun: Instant,
) -> JoinSet<()> {
    let body = plan.body(plan.chunks, plan.pace);
    let mut running = JoinSet::new();
    for number in 0..plan.streams {
        let count = u32::try_from(plan.streams).unwrap_or(u32::MAX);
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        let at = begun + plan.opening * number / count;
        let (load, tally, body) = (load.clone(), Arc::clone(tally), body.clone());
        let (chunks, pace) = (plan.chunks, plan.pace);
        running.spawn(async move {
            sleep_until(at).await;
            let mut is_open = false;
            let stream = follow((&load, route), body, (chunks, pace), |_| {
                tally.chunks.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut is_open, true) {
                    tally.open.send_modify(|open| *open += 1);
                }
            });
            let stream = stream.await;
            if is_open {
                tally.ended();
            }
            tally.enter(stream);
        });
    }
    running
}

/// Reads one stream to its end.
async fn follow(
    (load, route): (&Load, Route),
    body: Bytes,
    (chunks, pace): (usize, Duration),
    mut came: impl FnMut(usize),
) -> Result<Heard, BenchError> {
    let asked = Instant::now();
    let mut response = load.chat(route, body).await?;
    let mut heard = Heard::default();
    let (mut seen, mut count, mut last) = (Vec::new(), 0, asked);
    while let Some(bytes) = response.chunk().await? {
        let (now, at) = (nanos(), Instant::now());
        seen.extend_from_slice(&bytes);
        let (used, stamps) = streams::stamps(&seen);
        seen.drain(..used);
        for sent in stamps {
            if count == 0 {
                heard.first.push((at - asked).saturating_sub(pace));
            } else {
                heard.gaps.push(at - last);
            }
            let way = u64::try_from(now.saturating_sub(sent)).unwrap_or(u64::MAX);
            heard.ways.push(Duration::from_nanos(way));
            (count, last) = (count + 1, at);
            came(count);
        }
    }
    if count == chunks {
        return Ok(heard);
    }
    let text = format!("{count} chunks of {chunks} came");
    Err(BenchError::Answer(text))
}

/// What was seen of the whole crowd.
struct Watched {
    beside: Sample,
    memory: Each<u64>,
    descriptors: Each<u64>,
    tasks: (u64, u64),
    cpu: Each<Duration>,
    chunks: u64,
    time: Duration,
}

async fn watch(
    plan: &Plan,
    load: &Load,
    route: Route,
    (fleet, tally): (&mut Fleet, &Tally),
) -> Result<Watched, BenchError> {
    // First the crowd alone, then others beside it.
    let (from, chunks) = (Instant::now(), tally.chunks.load(Ordering::Relaxed));
    let before = fleet.used().await?;
    sleep(plan.watch).await;
    let after = fleet.used().await?;
    let (time, until) = (from.elapsed(), tally.chunks.load(Ordering::Relaxed));
    let memory = fleet.memory()?;
    let descriptors = fleet.pids().each(machine::descriptors)?;
    let mut beside = Sample::default();
    let body = plan.body(2, Duration::ZERO);
    for _ in 0..plan.probes {
        let probe = follow((load, route), body.clone(), (2, Duration::ZERO), |_| ());
        match probe.await {
            Ok(heard) => beside.extend(heard.first),
            Err(error) => tally.enter(Err(error)),
        }
    }
    let spent =
        |of: fn(&Each<Duration>) -> Duration| of(&after.cpu).saturating_sub(of(&before.cpu));
    Ok(Watched {
        beside,
        memory,
        descriptors,
        tasks: tasks(&after),
        cpu: Each {
            upstream: spent(|cpu| cpu.upstream),
            node: spent(|cpu| cpu.node),
            gateway: spent(|cpu| cpu.gateway),
            load: spent(|cpu| cpu.load),
        },
        chunks: until - chunks,
        time,
    })
}
