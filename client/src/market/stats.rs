//! What is measured of one model at one seller, and what it says now.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::purchase::Load;

/// Time in which an outcome's weight halves.
const HALF_LIFE: Duration = Duration::from_secs(600);
/// A seller nobody has tried counts as if it had succeeded in this share of …
const PRIOR_SUCCESS: f64 = 0.9;
/// … so many purchases.
const PRIOR_WEIGHT: f64 = 3.0;
/// What a new latency weighs against all earlier ones.
const NEW_SAMPLE: f64 = 0.3;
/// For how long a reported load is believed.
const LOAD_AGE: Duration = Duration::from_secs(30);
/// The pause after one failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// The longest that a seller's word "busy" is taken for.
const LONGEST_BUSY: Duration = Duration::from_secs(30);

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
    /// It ended for a reason that is not the seller's: the request was wrong, or nobody waits
    /// for the answer any more.
    Blameless,
}

/// A whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// From asking to the first token (or to the document).
    pub first_token: Duration,
    /// From asking to the end.
    pub elapsed: Duration,
    /// Tokens of the answer.
    pub tokens: u32,
    /// What it cost.
    pub charged: Amount,
}

/// Why a seller is left alone for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// What was measured of one model at one seller, as it counts now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// How many outcomes it rests on; the old count less than the new.
    pub weight: f64,
    /// The chance of success, 0 to 1, with a prior for those who were seldom tried.
    pub success: f64,
    /// Milliseconds to the first token.
    pub first_token: Option<f64>,
    /// Milliseconds per token after the first.
    pub per_token: Option<f64>,
    /// Purchases running.
    pub in_flight: u32,
    /// The load it last reported, unless that is long ago.
    pub load: Option<Load>,
    /// Whether it is left alone.
    pub pause: Option<Pause>,
    /// All that was paid.
    pub paid: Amount,
}

/// Nobody has tried it.
impl Default for Measured {
    fn default() -> Self {
        Self {
            weight: 0.0,
            success: PRIOR_SUCCESS,
            first_token: None,
            per_token: None,
            in_flight: 0,
            load: None,
            pause: None,
            paid: Amount::ZERO,
        }
    }
}

#[derive(Debug)]
pub(super) struct Stats {
    good: f64,
    all: f64,
    /// When `good` and `all` were last brought up to date.
    used: Timestamp,
    first_token: Option<f64>,
    per_token: Option<f64>,
    in_flight: u32,
    load: Option<(Load, Timestamp)>,
    /// Failures in a row: above 0, the breaker is open or half-open.
    failures: u32,
    cool_until: Timestamp,
    busy_until: Timestamp,
    paid: Amount,
}

impl Stats {
    pub(super) const fn new(now: Timestamp) -> Self {
        Self {
            good: 0.0,
            all: 0.0,
            used: now,
            first_token: None,
            per_token: None,
            in_flight: 0,
            load: None,
            failures: 0,
            cool_until: Timestamp(0),
            busy_until: Timestamp(0),
            paid: Amount::ZERO,
        }
    }

    /// When something last happened.
    pub(super) const fn used(&self) -> Timestamp {
        self.used
    }

    pub(super) fn begin(&mut self, now: Timestamp) {
        self.fade(now);
        self.in_flight = self.in_flight.saturating_add(1);
    }

    pub(super) fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub(super) fn load(&mut self, load: Load, now: Timestamp) {
        self.load = Some((load, now));
    }

    pub(super) fn record(&mut self, outcome: Outcome, now: Timestamp) {
        self.fade(now);
        match outcome {
            Outcome::Served(served) => self.served(served),
            Outcome::Busy { retry_after } => {
                self.busy_until = now.plus(retry_after.min(LONGEST_BUSY));
            }
            Outcome::Failed => {
                self.all += 1.0;
                let doubled = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
                let pause = FIRST_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE);
                self.cool_until = now.plus(pause);
                self.failures = self.failures.saturating_add(1);
            }
            Outcome::Blameless => {}
        }
    }

    fn served(&mut self, served: Served) {
        self.good += 1.0;
        self.all += 1.0;
        self.failures = 0;
        self.busy_until = Timestamp(0);
        self.paid = self.paid.saturating_add(served.charged);
        blend(&mut self.first_token, millis(served.first_token));
        if served.tokens > 1 {
            let flow = served.elapsed.saturating_sub(served.first_token);
            blend(
                &mut self.per_token,
                millis(flow) / f64::from(served.tokens - 1),
            );
        }
    }

    /// Outcomes lose weight with time.
    fn fade(&mut self, now: Timestamp) {
        let factor = faded(now.since(self.used));
        self.good *= factor;
        self.all *= factor;
        self.used = self.used.max(now);
    }

    pub(super) fn at(&self, now: Timestamp) -> Measured {
        let factor = faded(now.since(self.used));
        let (good, all) = (self.good * factor, self.all * factor);
        let load = self.load.filter(|(_, at)| now.since(*at) < LOAD_AGE);
        Measured {
            weight: all,
            success: (good + PRIOR_SUCCESS * PRIOR_WEIGHT) / (all + PRIOR_WEIGHT),
            first_token: self.first_token,
            per_token: self.per_token,
            in_flight: self.in_flight,
            load: load.map(|(load, _)| load),
            pause: self.pause(now),
            paid: self.paid,
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

fn faded(age: Duration) -> f64 {
    0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// An exponentially weighted average.
fn blend(average: &mut Option<f64>, sample: f64) {
    let old = average.unwrap_or(sample);
    *average = Some(old + NEW_SAMPLE * (sample - old));
}
