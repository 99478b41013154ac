//! Our gateway beside those of others: the same requests to the same model server, straight and
//! through LiteLLM, Portkey, our gateway with a model server of its own, and our gateway as a buyer
//! on the market.
//!
//! The gateways have a core for themselves, one working at a time; the load, the model server, the
//! node and the chain have another. Contestants take turns in every round, so that whatever else the
//! machine does falls on all. Nothing here asserts; a missed bar is printed as missed.

mod line;
mod stage;
mod figures;
mod table;

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::bench::BenchError;
use crate::bench::figures::Sample;
use crate::bench::fleet::Place;
use crate::bench::load::plain;
use crate::bench::machine::{self, Machine};
use crate::bench::peers::figures::{Figures, Run};
use crate::bench::peers::line::{Line, Target};
use crate::bench::peers::stage::Stage;
use crate::street::MODEL;

pub use crate::bench::peers::table::Report;

/// What applications show to the gateways that ask for a key.
const KEY: &str = "sk-bench-peers";
/// Where the bars are: requests, or streams, at once.
const AT_ONCE: usize = 32;
/// Requests at once of the steps of the search for the best rate.
const LADDER: [usize; 7] = [1, 2, 4, 8, 16, AT_ONCE, 64];
/// What a gateway does behind its answers counts too.
const REST: Duration = Duration::from_millis(250);

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Contestant {
    /// The model server itself.
    Direct,
    /// LiteLLM's proxy.
    #[value(name = "litellm")]
    LiteLlm,
    /// Portkey's gateway.
    Portkey,
    /// Our gateway with a model server of its own.
    Own,
    /// Our gateway as a buyer.
    Paid,
}

impl Contestant {
    /// All, in the order in which they take turns.
    pub const ALL: [Self; 5] = [
        Self::Direct,
        Self::LiteLlm,
        Self::Portkey,
        Self::Own,
        Self::Paid,
    ];

    /// How tables call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::LiteLlm => "LiteLLM",
            Self::Portkey => "Portkey",
            Self::Own => "Farthing, own model server",
            Self::Paid => "Farthing, bought",
        }
    }
}

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Effort {
    /// Who; the model server itself is always measured.
    pub contestants: Vec<Contestant>,
    /// Rounds.
    pub rounds: usize,
    /// How long each warms up.
    pub warm_up: Duration,
    /// One request at a time, for so long.
    pub single: Duration,
    /// A step of the search, for so long.
    pub step: Duration,
    /// 32 requests at once, for so long.
    pub full: Duration,
    /// 32 streams at once, begun for so long.
    pub streams: Duration,
    /// Chunks of a stream.
    pub chunks: usize,
    /// The time between two of them.
    pub pace: Duration,
    /// Where and how the processes run.
    pub place: Place,
}

impl Effort {
    /// How long a number of requests at once is kept up.
    const fn time(&self, lines: usize) -> Duration {
        match lines {
            1 => self.single,
            AT_ONCE => self.full,
            _ => self.step,
        }
    }

    fn body(&self) -> Bytes {
        let chunks = self.chunks;
        Bytes::from(format!(
            r#"{{"model":"{MODEL}","stream":true,"max_tokens":{chunks},"messages":[{{"role":"user","content":"How much is a farthing?"}}]}}"#
        ))
    }
}

/// Puts this process, and all it starts, on the second core it may use, and says which is the first.
/// To be called before there is a second thread.
///
/// # Errors
/// When there is no second core, or no `taskset`.
pub fn pin() -> Result<usize, BenchError> {
    let cores = machine::allowed()?;
    let [first, second, ..] = cores[..] else {
        let text = "two cores are needed: one for the gateways, one for all else";
        return Err(BenchError::Part(text.into()));
    };
    let me = std::process::id().to_string();
    let output = std::process::Command::new("taskset")
        .args(["-p", "-c", &second.to_string(), &me])
        .output()
        .map_err(|error| BenchError::Part(format!("taskset (of util-linux): {error}")))?;
    if machine::allowed()? != [second] {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BenchError::Part(format!("taskset did not do it: {text}")));
    }
    Ok(first)
}

/// Measures everything.
///
/// # Errors
/// [`BenchError`].
pub async fn run(effort: &Effort, say: impl Fn(&str)) -> Result<Report, BenchError> {
    let machine = Machine::look();
    let versions = stage::versions(&effort.contestants).await?;
    let place = Place {
        pace: Some(effort.pace),
        ..effort.place.clone()
    };
    let stage = Stage::start(&place, &effort.contestants, &say).await?;
    let mut contestants = vec![Contestant::Direct];
    contestants.extend(
        Contestant::ALL
            .into_iter()
            .skip(1)
            .filter(|one| effort.contestants.contains(one)),
    );
    let bench = Bench {
        stage,
        effort,
        contestants,
    };
    let figures = bench.measure(&say).await;
    bench.stage.stop().await;
    Ok(Report {
        machine,
        versions,
        effort: effort.clone(),
        figures: figures?,
    })
}

/// What is measured with.
struct Bench<'a> {
    stage: Stage,
    effort: &'a Effort,
    contestants: Vec<Contestant>,
}

impl Bench<'_> {
    async fn measure(&self, say: &impl Fn(&str)) -> Result<Figures, BenchError> {
        say("warming up");
        for contestant in &self.contestants {
            self.plain(*contestant, AT_ONCE, self.effort.warm_up)
                .await?;
            self.streams(*contestant, Duration::ZERO).await?;
        }
        let mut figures = Figures::default();
        for number in 1..=self.effort.rounds {
            let round = |what: &str| say(&format!("round {number}: {what}"));
            round("one request at a time");
            for contestant in &self.contestants {
                let run = self.plain(*contestant, 1, self.effort.single).await?;
                figures.round(*contestant, number).steps.push((1, run));
            }
            round("more at once");
            for contestant in &self.contestants {
                self.climb(*contestant, number, &mut figures).await?;
            }
            round("streams");
            for contestant in &self.contestants {
                let run = self.streams(*contestant, self.effort.streams).await?;
                figures.round(*contestant, number).streams = run;
            }
        }
        for contestant in &self.contestants {
            let used = self.stage.used(*contestant)?;
            figures.memory.insert(*contestant, used.memory);
        }
        Ok(figures)
    }

    /// More and more at once, until two steps in a row were too slow; and those where the bars are.
    async fn climb(
        &self,
        contestant: Contestant,
        number: usize,
        figures: &mut Figures,
    ) -> Result<(), BenchError> {
        for lines in LADDER.into_iter().skip(1) {
            let steps = &figures.round(contestant, number).steps;
            let slow = steps.iter().rev().take(2).filter(|(_, run)| !run.quick());
            if lines != AT_ONCE && slow.count() == 2 {
                continue;
            }
            let time = self.effort.time(lines);
            let run = self.plain(contestant, lines, time).await?;
            figures.round(contestant, number).steps.push((lines, run));
        }
        Ok(())
    }

    /// So many plain requests at once.
    async fn plain(
        &self,
        contestant: Contestant,
        lines: usize,
        time: Duration,
    ) -> Result<Run, BenchError> {
        let target = self.stage.target(contestant)?;
        let open = open(&target, lines).await.map_err(|e| of(contestant, e))?;
        let body = plain();
        self.counted(contestant, move |running, start| {
            let end = start + time;
            for mut line in open {
                let body = body.clone();
                running.spawn(async move {
                    let mut sample = Sample::default();
                    while Instant::now() < end {
                        sample.push(line.plain(body.clone()).await?);
                    }
                    Ok::<_, BenchError>(sample)
                });
            }
        })
        .await
    }

    /// As many streams at once as the bars ask for. They do not begin together but spread over the
    /// time of one: so each meets others at any stage, as strangers' streams do.
    async fn streams(&self, contestant: Contestant, time: Duration) -> Result<Run, BenchError> {
        let target = self.stage.target(contestant)?;
        let open = open(&target, AT_ONCE)
            .await
            .map_err(|e| of(contestant, e))?;
        let (body, chunks) = (self.effort.body(), self.effort.chunks);
        let waits = u32::try_from(chunks.saturating_sub(1)).unwrap_or(u32::MAX);
        let apart = self.effort.pace * waits / AT_ONCE as u32;
        self.counted(contestant, move |running, start| {
            for (begins, mut line) in
                std::iter::successors(Some(start), |at| Some(*at + apart)).zip(open)
            {
                let body = body.clone();
                running.spawn(async move {
                    sleep_until(begins).await;
                    let mut sample = Sample::default();
                    loop {
                        sample.push(line.stream(body.clone(), chunks).await?);
                        if start.elapsed() >= time {
                            return Ok::<_, BenchError>(sample);
                        }
                    }
                });
            }
        })
        .await
    }

    /// Lets tasks run to their end, and counts what the gateway used for them.
    async fn counted(
        &self,
        contestant: Contestant,
        begin: impl FnOnce(&mut JoinSet<Result<Sample, BenchError>>, Instant),
    ) -> Result<Run, BenchError> {
        let before = self.stage.used(contestant)?;
        let mut running = JoinSet::new();
        let start = Instant::now();
        begin(&mut running, start);
        let mut latency = Sample::default();
        while let Some(line) = running.join_next().await {
            let line = line.map_err(|error| BenchError::Answer(error.to_string()))?;
            latency.extend(line.map_err(|error| of(contestant, error))?);
        }
        let elapsed = start.elapsed();
        sleep(REST).await;
        let after = self.stage.used(contestant)?;
        Ok(Run {
            latency,
            elapsed,
            cpu: after.cpu.saturating_sub(before.cpu),
        })
    }
}

async fn open(target: &Target, lines: usize) -> Result<Vec<Line>, BenchError> {
    let mut open = Vec::new();
    for _ in 0..lines {
        open.push(Line::open(target).await?);
    }
    Ok(open)
}

fn of(contestant: Contestant, error: BenchError) -> BenchError {
    BenchError::Answer(format!("{}: {error}", contestant.name()))
}
