//! What is measured of one model at one endpoint of one seller, and what it says now.
//!
//! A latency is the usual one plus what a peak leaves: a sample slower than expected counts at
//! once and in full, and is forgotten within seconds; a purchase that still waits for its first
//! token counts by how long it has waited. So a seller that stalls is slow before it fails.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::purchase::Load;
use serde::{Deserialize, Serialize};

use crate::market::belief::Belief;
use crate::market::sketch::{Sketch, Spread};
use crate::market::slope::Slope;

/// Time in which an outcome's weight halves.
const HALF_LIFE: Duration = Duration::from_secs(1200);
/// What a new latency weighs against all earlier ones.
const NEW_SAMPLE: f64 = 0.3;
/// A sample counts for what is usual as so many times what was expected at most: once in a while
/// everybody is late.
const OUTLIER: f64 = 3.0;
/// Time in which what a peak adds halves.
const PEAK_HALF_LIFE: Duration = Duration::from_secs(10);
/// Purchases whose wait for a first token is watched, per seller and model.
const WATCHED: usize = 64;
/// For how long a reported load is believed.
const LOAD_AGE: Duration = Duration::from_secs(30);
/// Time in which the chance that a seller is still full halves.
const FULL_HALF_LIFE: Duration = Duration::from_secs(20);
/// What is left of that chance when it takes a purchase.
const NOT_FULL: f64 = 0.3;
/// The pause after one failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// The longest that a seller's word "busy" is taken for.
const LONGEST_BUSY: Duration = Duration::from_secs(30);
/// Whoever was not waited for to the end is taken to need so many times as long.
const UNFINISHED: f64 = 2.0;
/// Overtaken so often in a row without a word, a seller has failed.
const SILENT: u32 = 2;
/// The shortest wait that says something of a seller that was never measured.
const LEAST_SILENCE: f64 = 1_000.0;

/// How a purchase ended, as far as it says something about the seller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The whole answer came.
    Served(Served),
    /// No slot was free.
    Busy {
        /// The wait the seller named.
        retry_after: Duration,
    },
    /// It did not work, and not for a reason of ours.
    Failed,
    /// Nobody waited any longer for its first token, because another was first or the application
    /// has gone: it takes longer than that. Twice in a row, and it has failed.
    Overtaken {
        /// From asking on.
        waited: Duration,
        /// About how many tokens the prompt has; 0 if unknown.
        prompt: u32,
    },
    /// It ended for a reason that is not the seller's: the request was wrong, or nobody waits
    /// for the answer any more.
    Blameless,
}

/// A whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// From asking to the first token, or to an answer that is no text; none of a document, whose
    /// tokens come all at once.
    pub first_token: Option<Duration>,
    /// From asking to the end.
    pub elapsed: Duration,
    /// The longest silence between two events after the first.
    pub longest_gap: Duration,
    /// Tokens of the prompt; 0 if unknown.
    pub prompt: u32,
    /// Tokens of the answer; 0 if unknown.
    pub tokens: u32,
    /// What it cost.
    pub charged: Amount,
}

/// Why a seller is left alone for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// It failed; after this time one purchase may try it.
    CoolingDown(Duration),
    /// It failed, the pause is over, and one purchase is trying it.
    OnProbation,
    /// It said that it is busy for this long.
    Busy(Duration),
}

impl Pause {
    /// How long it still lasts.
    #[must_use]
    pub const fn left(self) -> Duration {
        match self {
            Self::CoolingDown(left) | Self::Busy(left) => left,
            Self::OnProbation => Duration::ZERO,
        }
    }
}

/// What was measured of one model at one endpoint of one seller, as it counts now. Durations are
/// milliseconds, rounded to microseconds, so that they are the same when written and read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    /// How many outcomes it rests on; the old count less than the new.
    pub weight: f64,
    /// The chance of success, 0 to 1, with a prior for those who were seldom tried.
    pub success: f64,
    /// Milliseconds to the first token: the usual ones, what a peak leaves, and what the longest
    /// waiting purchase has waited.
    pub first_token: Option<f64>,
    /// Milliseconds to the first token that half of the last purchases did not exceed.
    pub first_token_p50: Option<f64>,
    /// The same of 95 in a hundred.
    pub first_token_p95: Option<f64>,
    /// The same of 99 in a hundred.
    pub first_token_p99: Option<f64>,
    /// Milliseconds that a token of the prompt adds to the first token.
    pub per_prompt: f64,
    /// Tokens of the prompts that the times to the first token are about, on average.
    pub prompt: f64,
    /// Milliseconds per token after the first.
    pub per_token: Option<f64>,
    /// The longest silence within an answer, in milliseconds, that 99 in a hundred did not exceed.
    pub gap_p99: Option<f64>,
    /// Purchases running.
    pub in_flight: u32,
    /// Purchases running at the seller, of all its models.
    pub at_seller: u32,
    /// The load it last reported, unless that is long ago.
    pub load: Option<Load>,
    /// The chance that it would say that it is busy, 0 to 1, by what it said before.
    pub full: f64,
    /// The share of purchases that it turned away for being full, 0 to 1, since this start.
    pub refusals: f64,
    /// Failures in a row.
    pub failures: u32,
    /// Whether it is left alone.
    pub pause: Option<Pause>,
    /// All that was paid.
    pub paid: Amount,
    /// Tokens of all answers.
    pub tokens: u64,
    /// What may be signed ahead of proof there at one time.
    pub credit: Amount,
}

/// Nobody has tried it or said anything of it.
impl Default for Measured {
    fn default() -> Self {
        Self::untried(Belief::default())
    }
}

impl Measured {
    /// Of one that was never measured, but that this is believed of.
    #[must_use]
    pub const fn untried(belief: Belief) -> Self {
        Self {
            weight: 0.0,
            success: belief.success,
            first_token: None,
            first_token_p50: None,
            first_token_p95: None,
            first_token_p99: None,
            per_prompt: 0.0,
            prompt: 0.0,
            per_token: None,
            gap_p99: None,
            in_flight: 0,
            at_seller: 0,
            load: None,
            full: 0.0,
            refusals: 0.0,
            failures: 0,
            pause: None,
            paid: Amount::ZERO,
            tokens: 0,
            credit: belief.credit,
        }
    }

    /// What a time to the first token, such as a quantile, becomes with a prompt of so many
    /// tokens: longer for a longer one, never shorter than measured.
    #[must_use]
    pub fn with_prompt(&self, millis: f64, prompt: u32) -> f64 {
        millis + (f64::from(prompt) - self.prompt).max(0.0) * self.per_prompt
    }

    /// How long it is left alone after its last failure, in all.
    #[must_use]
    pub fn cooling(&self) -> Duration {
        cooling(self.failures)
    }

    /// Tokens per second, once an answer flows.
    #[must_use]
    pub fn throughput(&self) -> Option<f64> {
        self.per_token.map(|millis| 1000.0 / millis.max(0.001))
    }
}

/// A latency with a memory of its last peak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Level {
    usual: f64,
    peak: f64,
    at: Timestamp,
}

impl Level {
    fn first(sample: f64, now: Timestamp) -> Self {
        Self {
            usual: sample,
            peak: sample,
            at: now,
        }
    }

    fn at(&self, now: Timestamp) -> f64 {
        let rest = (self.peak - self.usual).max(0.0);
        if rest == 0.0 {
            return self.usual;
        }
        self.usual + rest * halved(now.since(self.at), PEAK_HALF_LIFE)
    }

    fn add(&mut self, sample: f64, now: Timestamp) {
        let stood = self.at(now);
        // So that nothing is not expected for good.
        let most = (self.usual * OUTLIER).max(1.0);
        self.usual += NEW_SAMPLE * (sample.min(most) - self.usual);
        // A slow one counts in full at once; a fast one lowers what the last peak left.
        self.peak = if sample > stood {
            sample
        } else {
            stood + NEW_SAMPLE * (sample - stood)
        };
        self.at = self.at.max(now);
    }
}

fn level(level: &mut Option<Level>, sample: f64, now: Timestamp) {
    match level {
        Some(level) => level.add(sample, now),
        None => *level = Some(Level::first(sample, now)),
    }
}

/// The measurements themselves, as they are kept: on disk too, but for what is about this run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Stats {
    good: f64,
    all: f64,
    /// When `good` and `all` were last brought up to date.
    used: Timestamp,
    first_token: Option<Level>,
    per_token: Option<Level>,
    slope: Slope,
    first_tokens: Sketch,
    gaps: Sketch,
    /// Failures in a row: above 0, the breaker is open or half-open.
    failures: u32,
    cool_until: Timestamp,
    busy_until: Timestamp,
    paid: Amount,
    tokens: u64,
    #[serde(skip)]
    in_flight: u32,
    /// How often it was overtaken since it last answered.
    #[serde(skip)]
    silent: u32,
    /// Since when purchases wait for their first token.
    #[serde(skip)]
    waiting: Vec<Timestamp>,
    #[serde(skip)]
    load: Option<(Load, Timestamp)>,
    /// The chance that it is full, and as of when.
    #[serde(skip)]
    full: (f64, Timestamp),
    /// Purchases that it turned away for being full, and that it took: the old count less.
    #[serde(skip)]
    refused: f64,
    #[serde(skip)]
    taken: f64,
}

impl Stats {
    pub(super) const fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            good: 0.0,
            all: 0.0,
            used: now,
            first_token: None,
            per_token: None,
            slope: Slope::default(),
            first_tokens: Sketch::default(),
            gaps: Sketch::default(),
            failures: 0,
            cool_until: Timestamp(0),
            busy_until: Timestamp(0),
            paid: Amount::ZERO,
            tokens: 0,
            in_flight: 0,
            silent: 0,
            waiting: Vec::new(),
            load: None,
            full: (0.0, now),
            refused: 0.0,
            taken: 0.0,
        }
    }

    /// Readies what was read from the disk. A clock that was ahead leaves no pause for good.
    pub(super) fn wake(&mut self, now: Timestamp) {
        self.first_tokens.know();
        self.gaps.know();
        self.used = self.used.min(now);
        self.cool_until = self.cool_until.min(now.plus(LONGEST_PAUSE));
        self.busy_until = self.busy_until.min(now.plus(LONGEST_BUSY));
    }

    /// The times to the first token of its last purchases, unless the last one is `idle` ago.
    pub(super) fn first_tokens(&self, idle: Duration, now: Timestamp) -> Option<Spread> {
        (now.since(self.used) < idle).then(|| self.first_tokens.spread())?
    }

    /// When something last happened.
    pub(super) const fn used(&self) -> Timestamp {
        self.used
    }

    pub(super) fn begin(&mut self, now: Timestamp) {
        self.fade(now);
        self.in_flight = self.in_flight.saturating_add(1);
        if self.waiting.len() < WATCHED {
            self.waiting.push(now);
        }
    }

    /// A purchase that began at `since` waits no more: its first token came, or it ended.
    pub(super) fn answered(&mut self, since: Timestamp) {
        if let Some(place) = self.waiting.iter().position(|began| *began == since) {
            self.waiting.swap_remove(place);
        }
    }

    pub(super) fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if self.in_flight == 0 {
            self.waiting.clear();
        }
    }

    pub(super) fn load(&mut self, load: Load, now: Timestamp) {
        self.load = Some((load, now));
        self.taken += 1.0;
        self.full = (self.is_full(now) * NOT_FULL, now);
    }

    fn is_full(&self, now: Timestamp) -> f64 {
        let (chance, at) = self.full;
        if chance == 0.0 {
            return 0.0;
        }
        chance * halved(now.since(at), FULL_HALF_LIFE)
    }

    /// The share that it turned away. Once is chance: nobody is left alone for long for it.
    fn refusals(&self, factor: f64) -> f64 {
        let (refused, taken) = (self.refused * factor, self.taken * factor);
        (refused - 1.0).max(0.0) / (refused + taken + 1.0)
    }

    pub(super) fn record(&mut self, outcome: Outcome, now: Timestamp) {
        self.fade(now);
        match outcome {
            Outcome::Served(served) => self.served(served, now),
            Outcome::Busy { retry_after } => {
                self.busy_until = now.plus(retry_after.min(LONGEST_BUSY));
                self.refused += 1.0;
                self.full = (1.0, now);
            }
            Outcome::Failed => self.failed(now),
            Outcome::Overtaken { waited, prompt } => self.overtaken(millis(waited), prompt, now),
            Outcome::Blameless => {}
        }
    }

    fn failed(&mut self, now: Timestamp) {
        self.all += 1.0;
        self.failures = self.failures.saturating_add(1);
        self.cool_until = now.plus(cooling(self.failures));
    }

    fn served(&mut self, served: Served, now: Timestamp) {
        self.good += 1.0;
        self.all += 1.0;
        self.failures = 0;
        self.silent = 0;
        self.busy_until = Timestamp(0);
        self.paid = self.paid.saturating_add(served.charged);
        self.tokens = self.tokens.saturating_add(u64::from(served.tokens));
        match served.first_token {
            Some(first) => self.streamed(served, first, now),
            None => self.came_whole(served, now),
        }
    }

    fn streamed(&mut self, served: Served, first: Duration, now: Timestamp) {
        let flow = served.elapsed.saturating_sub(first);
        let first = millis(first);
        let prompt = f64::from(served.prompt);
        self.slope.add(prompt, first);
        // As it would have been with a prompt as usual.
        let usual = first - (prompt - self.slope.prompt) * self.slope.per_prompt();
        level(&mut self.first_token, usual.max(0.0), now);
        self.first_tokens.add(first);
        if served.tokens > 1 {
            let each = millis(flow) / f64::from(served.tokens - 1);
            level(&mut self.per_token, each, now);
            self.gaps.add(millis(served.longest_gap));
        }
    }

    /// A document's time, but for that to a first token as streams have shown it, is its tokens'.
    fn came_whole(&mut self, served: Served, now: Timestamp) {
        let first = self.first_token.map_or(0.0, |level| level.usual);
        let flow = millis(served.elapsed) - first;
        if served.tokens > 1 && flow > 0.0 {
            level(&mut self.per_token, flow / f64::from(served.tokens), now);
        }
    }

    /// A wait that was given up says something only where it is longer than usual for such a
    /// prompt; and it is a failure only where even the seller's slow answers begin sooner.
    fn overtaken(&mut self, waited: f64, prompt: u32, now: Timestamp) {
        let prompt = match prompt {
            0 => 0.0,
            prompt => (f64::from(prompt) - self.slope.prompt) * self.slope.per_prompt(),
        };
        let usual = self.first_token.map(|level| level.at(now));
        if waited - prompt < usual.unwrap_or(LEAST_SILENCE) {
            return;
        }
        let takes = (waited - prompt) * UNFINISHED;
        level(&mut self.first_token, takes, now);
        let slow = self.first_tokens.quantiles().p95;
        self.first_tokens.add((takes + prompt).max(0.0));
        if waited < slow.unwrap_or(LEAST_SILENCE) {
            return;
        }
        self.silent = self.silent.saturating_add(1);
        if self.silent >= SILENT {
            self.failed(now);
        }
    }

    /// Outcomes lose weight with time.
    fn fade(&mut self, now: Timestamp) {
        let factor = halved(now.since(self.used), HALF_LIFE);
        self.good *= factor;
        self.all *= factor;
        self.refused *= factor;
        self.taken *= factor;
        self.used = self.used.max(now);
    }

    pub(super) fn at(&self, now: Timestamp, belief: Belief) -> Measured {
        let factor = halved(now.since(self.used), HALF_LIFE);
        let (good, all) = (self.good * factor, self.all * factor);
        let load = self.load.filter(|(_, at)| now.since(*at) < LOAD_AGE);
        let (first, gaps) = (self.first_tokens.quantiles(), self.gaps.quantiles());
        let success = (good + belief.success * belief.weight) / (all + belief.weight);
        Measured {
            weight: rounded(all),
            success: rounded(success),
            first_token: self.waited(now).map(rounded),
            first_token_p50: first.p50.map(rounded),
            first_token_p95: first.p95.map(rounded),
            first_token_p99: first.p99.map(rounded),
            per_prompt: rounded(self.slope.per_prompt()),
            prompt: rounded(self.slope.prompt),
            per_token: self.per_token.map(|level| rounded(level.at(now))),
            gap_p99: gaps.p99.map(rounded),
            in_flight: self.in_flight,
            at_seller: self.in_flight,
            load: load.map(|(load, _)| load),
            full: rounded(self.is_full(now)),
            refusals: rounded(self.refusals(factor)),
            failures: self.failures,
            pause: self.pause(now),
            paid: self.paid,
            tokens: self.tokens,
            credit: belief.credit,
        }
    }

    /// The time to the first token; a purchase that waits longer than it counts by its wait.
    fn waited(&self, now: Timestamp) -> Option<f64> {
        let known = self.first_token.map(|level| level.at(now));
        let oldest = self.waiting.iter().min();
        let waits = oldest.map(|since| millis(now.since(*since)));
        match (known, waits) {
            (Some(known), Some(waits)) => Some(known.max(waits)),
            (Some(known), None) => Some(known),
            // It says little of one that nobody knows, until it is long.
            (None, Some(waits)) => (waits > UNKNOWN_WAIT).then_some(waits),
            (None, None) => None,
        }
    }

    fn pause(&self, now: Timestamp) -> Option<Pause> {
        if self.failures > 0 && now < self.cool_until {
            return Some(Pause::CoolingDown(self.cool_until.since(now)));
        }
        if self.failures > 0 && self.in_flight > 0 {
            return Some(Pause::OnProbation);
        }
        (now < self.busy_until).then(|| Pause::Busy(self.busy_until.since(now)))
    }
}

/// Milliseconds after which the wait at a seller that was never measured counts.
const UNKNOWN_WAIT: f64 = 2_000.0;

/// The pause after so many failures in a row.
fn cooling(failures: u32) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else {
        return Duration::ZERO;
    };
    let doubled = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

/// What is left of a weight of one after this time.
fn halved(age: Duration, half_life: Duration) -> f64 {
    if age.is_zero() {
        return 1.0;
    }
    (-age.as_secs_f64() / half_life.as_secs_f64()).exp2()
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// To three digits behind the point: such a number is the same when written and read.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}
