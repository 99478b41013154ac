//! Requests that are answered whole: one after the other, or many at once.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::CONTENT_TYPE;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::bench::figures::{Pair, Sample};
use crate::bench::fleet::{Each, Fleet, Used};
use crate::bench::roles::Counts;
use crate::bench::{BenchError, Effort};
use crate::street::MODEL;

/// Tokens of a plain answer.
pub const TOKENS: usize = 16;
/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Straight to the model server.
    Direct,
    /// Through the market.
    Paid,
}

impl Route {
    /// Both, in the order in which rounds alternate.
    pub const BOTH: [Self; 2] = [Self::Direct, Self::Paid];
}

impl<T> Pair<T> {
    /// The one of this route.
    pub const fn of(&mut self, route: Route) -> &mut T {
        match route {
            Route::Direct => &mut self.direct,
            Route::Paid => &mut self.paid,
        }
    }
}

/// An HTTP client with the two addresses. Connections are kept; clones share them.
#[derive(Debug, Clone)]
pub struct Load {
    http: reqwest::Client,
    direct: String,
    paid: String,
}

impl Load {
    /// A client of this fleet.
    ///
    /// # Errors
    /// [`BenchError::Http`].
    pub fn new(fleet: &Fleet) -> Result<Self, BenchError> {
        let http = reqwest::Client::builder()
            .tcp_nodelay(true)
            .no_proxy()
            .timeout(PATIENCE)
            .build()?;
        let (direct, paid) = (fleet.direct.clone(), fleet.paid.clone());
        Ok(Self { http, direct, paid })
    }

    /// Sends one chat request, and returns when the head of the answer is there.
    ///
    /// # Errors
    /// [`BenchError`] on any status but 200.
    pub async fn chat(&self, route: Route, body: Bytes) -> Result<reqwest::Response, BenchError> {
        let base = match route {
            Route::Direct => &self.direct,
            Route::Paid => &self.paid,
        };
        let request = self
            .http
            .post(format!("{base}/chat/completions"))
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let response = request.send().await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await?;
        Err(BenchError::Answer(format!("{route:?}: {status}: {text}")))
    }

    async fn whole(&self, route: Route) -> Result<Duration, BenchError> {
        let asked = Instant::now();
        let answer = self.chat(route, plain()).await?.bytes().await?;
        let took = asked.elapsed();
        if answer.is_empty() {
            return Err(BenchError::Answer("an empty answer".into()));
        }
        Ok(took)
    }

    /// So many requests, each after the answer to the one before.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn one_by_one(&self, route: Route, count: usize) -> Result<Sample, BenchError> {
        let mut sample = Sample::default();
        for _ in 0..count {
            sample.push(self.whole(route).await?);
        }
        Ok(sample)
    }

    /// So many request lines, each busy until the time is up.
    async fn at_once(
        &self,
        route: Route,
        lines: usize,
        time: Duration,
    ) -> Result<Sample, BenchError> {
        let end = Instant::now() + time;
        let mut running = JoinSet::new();
        for _ in 0..lines {
            let load = self.clone();
            running.spawn(async move {
                let mut sample = Sample::default();
                while Instant::now() < end {
                    sample.push(load.whole(route).await?);
                }
                Ok::<_, BenchError>(sample)
            });
        }
        let mut all = Sample::default();
        while let Some(line) = running.join_next().await {
            all.extend(line.map_err(|error| BenchError::Answer(error.to_string()))??);
        }
        Ok(all)
    }
}

/// The small plain body.
pub(super) fn plain() -> Bytes {
    Bytes::from(format!(
        r#"{{"model":"{MODEL}","max_tokens":{TOKENS},"messages":[{{"role":"user","content":"How much is a farthing?"}}]}}"#
    ))
}

/// What requests of one route took and used.
#[derive(Debug, Clone, Default)]
pub struct Spent {
    /// How long each took.
    pub latency: Sample,
    /// How long the rounds took.
    pub elapsed: Duration,
    /// Requests per second of each round.
    pub rates: Vec<f64>,
    /// Processor time.
    pub cpu: Each<Duration>,
    /// What the node counted.
    pub node: Counts,
    /// What the gateway counted.
    pub gateway: Counts,
}

impl Spent {
    fn enter(&mut self, sample: Sample, elapsed: Duration, used: (Used, Used)) {
        let (before, after) = used;
        self.rates.push(sample.len() as f64 / elapsed.as_secs_f64());
        self.latency.extend(sample);
        self.elapsed += elapsed;
        self.cpu.upstream += after.cpu.upstream.saturating_sub(before.cpu.upstream);
        self.cpu.node += after.cpu.node.saturating_sub(before.cpu.node);
        self.cpu.gateway += after.cpu.gateway.saturating_sub(before.cpu.gateway);
        self.cpu.load += after.cpu.load.saturating_sub(before.cpu.load);
        self.node.enter(&before.node, &after.node);
        self.gateway.enter(&before.gateway, &after.gateway);
    }

    /// Requests answered.
    #[must_use]
    pub fn count(&self) -> usize {
        self.latency.len()
    }

    /// Requests per second, over all rounds.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.count() as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }
}

impl Counts {
    fn enter(&mut self, before: &Self, after: &Self) {
        self.commits += after.commits - before.commits;
        self.syncs += after.syncs - before.syncs;
    }
}

/// Plain requests, direct and paid.
#[derive(Debug, Clone, Default)]
pub struct Unary(pub Pair<Spent>);

impl Unary {
    /// One at a time.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn one_by_one(
        load: &Load,
        fleet: &mut Fleet,
        effort: &Effort,
    ) -> Result<Self, BenchError> {
        let mut all = Self::default();
        for _ in 0..effort.rounds {
            for route in Route::BOTH {
                let before = fleet.used().await?;
                let start = Instant::now();
                let sample = load.one_by_one(route, effort.requests).await?;
                let elapsed = start.elapsed();
                let after = fleet.used().await?;
                all.0.of(route).enter(sample, elapsed, (before, after));
            }
        }
        Ok(all)
    }

    /// Many at once.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn at_once(
        load: &Load,
        fleet: &mut Fleet,
        effort: &Effort,
    ) -> Result<Self, BenchError> {
        let mut all = Self::default();
        for _ in 0..effort.rounds.div_ceil(3) {
            for route in Route::BOTH {
                let before = fleet.used().await?;
                let start = Instant::now();
                let sample = load.at_once(route, effort.at_once, effort.round).await?;
                let elapsed = start.elapsed();
                let after = fleet.used().await?;
                all.0.of(route).enter(sample, elapsed, (before, after));
            }
        }
        Ok(all)
    }

    /// Paid ones only, so many at once, for so long.
    ///
    /// # Errors
    /// [`BenchError`].
    pub async fn soak(
        load: &Load,
        fleet: &mut Fleet,
        lines: usize,
        time: Duration,
    ) -> Result<Spent, BenchError> {
        let mut spent = Spent::default();
        let before = fleet.used().await?;
        let start = Instant::now();
        let sample = load.at_once(Route::Paid, lines, time).await?;
        let elapsed = start.elapsed();
        spent.enter(sample, elapsed, (before, fleet.used().await?));
        Ok(spent)
    }
}
