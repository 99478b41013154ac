//! What a seller truly is: how fast, how large, when it is away, and in what way it is bad.
//!
//! Everything that chance decides about one request at one seller comes from dice thrown for that
//! pair alone, so every way of choosing meets the same world. Times are microseconds of virtual
//! time.

use std::fmt;

use farthing_protocol::identity::NodeKey;
use farthing_protocol::offer::Prices;

use crate::sim::dice::Dice;
use crate::sim::workload::Request;

/// Microseconds in a millisecond.
pub const MILLI: u64 = 1_000;
/// Microseconds in a second.
pub const SECOND: u64 = 1_000_000;

/// How much the time of one request varies at the best of times, as a share.
const JITTER: f64 = 0.08;
/// The share of requests that are far slower than the others …
const TAIL: f64 = 0.02;
/// … by at least this factor, and at most that.
const TAIL_FACTOR: (f64, f64) = (3.0, 60.0);
/// The shape of that tail: below 2, so that its variance has no bound but the cap.
const TAIL_SHAPE: f64 = 1.5;
/// How much slower each token comes when all slots are taken.
const CROWDED: f64 = 0.5;
/// A seller that games probes takes only requests this small at its best.
const PROBE: u32 = 400;
/// How much an overcharger adds. The buyer's own count lets no more through.
const OVERCHARGE: f64 = 1.25;

/// In what way a seller is bad, if it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// It is not.
    Honest,
    /// It takes requests and never answers.
    Dead,
    /// It comes and goes.
    Flapping,
    /// A quarter of its answers come late, some very late.
    SlowTail,
    /// It takes only so many requests in a time, and says how long to wait.
    Limiter,
    /// The same, but it does not say.
    SilentLimiter,
    /// It breaks off in the middle of half its answers.
    Cutter,
    /// It states low prices and many slots, is slow and mostly fails.
    Liar,
    /// The cheapest of all, and every request fails.
    Magnet,
    /// It charges for more than it delivers.
    Overcharger,
    /// Its offer is renewed, but nobody is at its door.
    Stale,
    /// Fast for small requests, slow for real ones.
    Gamer,
}

impl Kind {
    /// All that are bad, in equal shares. The two limiters share one.
    pub const BAD: [Self; 10] = [
        Self::Dead,
        Self::Flapping,
        Self::SlowTail,
        Self::Limiter,
        Self::Cutter,
        Self::Liar,
        Self::Magnet,
        Self::Overcharger,
        Self::Stale,
        Self::Gamer,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Honest => "honest",
            Self::Dead => "dead",
            Self::Flapping => "flapping",
            Self::SlowTail => "slow tail",
            Self::Limiter => "rate limiter",
            Self::SilentLimiter => "rate limiter that names no wait",
            Self::Cutter => "cutter",
            Self::Liar => "liar",
            Self::Magnet => "magnet",
            Self::Overcharger => "overcharger",
            Self::Stale => "stale",
            Self::Gamer => "probe-gamer",
        })
    }
}

/// A time in which a seller is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// When it begins.
    pub from: u64,
    /// When it ends.
    pub until: u64,
    /// Whether connections are left without an answer, instead of refused.
    pub silent: bool,
}

/// What is true of a seller.
#[derive(Debug)]
pub struct Seller {
    /// In what way it is bad.
    pub kind: Kind,
    /// The key of its node.
    pub key: NodeKey,
    /// The way there and back, milliseconds.
    pub rtt: f64,
    /// Milliseconds from a request's arrival to its first token, without the prompt's share.
    pub first: f64,
    /// Milliseconds for each token of the prompt.
    pub prefill: f64,
    /// Milliseconds for each token of the answer when it is alone.
    pub per_token: f64,
    /// Requests served at once.
    pub slots: u32,
    /// Requests that wait before more are refused.
    pub queue: u32,
    /// Slots as its offer states them.
    pub stated_slots: u32,
    /// Tokens a second as it states them, where somebody asks.
    pub stated_rate: f64,
    /// When it is away, in order.
    pub outages: Vec<Outage>,
    /// Its prices, and from when.
    pub prices: Vec<(u64, Prices)>,
}

/// What happens to a request once a seller works on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fate {
    /// When its first token is at the buyer, if any ever is.
    pub first: Option<u64>,
    /// When it ends; [`u64::MAX`] if it never does by itself.
    pub end: u64,
    /// How.
    pub how: How,
    /// Tokens delivered until then.
    pub tokens: u32,
}

/// How work on a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// With the whole answer.
    Done,
    /// With an error, or a connection that breaks.
    Broken,
    /// Nothing more comes, and nobody says so.
    Silent,
}

impl Fate {
    /// Tokens that are at the buyer by a time.
    #[must_use]
    pub fn delivered(&self, by: u64) -> u32 {
        let Some(first) = self.first.filter(|first| *first <= by) else {
            return 0;
        };
        let share = (by - first) as f64 / self.end.saturating_sub(first).max(1) as f64;
        ((f64::from(self.tokens) * share.min(1.0)) as u32).clamp(1, self.tokens.max(1))
    }
}

impl Seller {
    /// The outage at this time, if there is one.
    #[must_use]
    pub fn outage(&self, at: u64) -> Option<Outage> {
        let next = self.outages.partition_point(|outage| outage.until <= at);
        self.outages
            .get(next)
            .copied()
            .filter(|outage| outage.from <= at)
    }

    /// Its prices at this time.
    #[must_use]
    pub fn prices_at(&self, at: u64) -> Prices {
        let next = self.prices.partition_point(|(from, _)| *from <= at);
        self.prices[next.saturating_sub(1)].1
    }

    /// Milliseconds to the first token and for each further one, by nature and without chance, for
    /// a request that is worked on alone.
    #[must_use]
    pub fn nature(&self, prompt: u32, output: u32) -> (f64, f64) {
        let slow = match self.kind {
            Kind::Liar => 5.0,
            Kind::Gamer if prompt.saturating_add(output) > PROBE => 8.0,
            _ => 1.0,
        };
        let first = (self.first + self.prefill * f64::from(prompt)) * slow;
        (self.rtt + first, self.per_token * slow)
    }

    /// The chance that it answers in full, by its nature.
    #[must_use]
    pub const fn reliability(&self) -> f64 {
        match self.kind {
            Kind::Dead | Kind::Stale | Kind::Magnet => 0.0,
            Kind::Cutter => 0.5,
            Kind::Liar => 0.4,
            _ => 1.0,
        }
    }

    /// What it charges for each token it should charge for.
    #[must_use]
    pub const fn surcharge(&self) -> f64 {
        match self.kind {
            Kind::Overcharger => OVERCHARGE,
            _ => 1.0,
        }
    }

    /// How much slower each token comes with so many others at work.
    #[must_use]
    pub fn crowd(&self, running: u32) -> f64 {
        1.0 + CROWDED * f64::from(running) / f64::from(self.slots.max(1))
    }

    /// What becomes of `work` if it is begun at `at`, with `running` others at work.
    #[must_use]
    pub fn fate(&self, work: &Work<'_>, at: u64, running: u32) -> Fate {
        let mut dice = Dice::of(work.seed, &[work.request.id, work.place]);
        let jitter = 1.0 + dice.exponential(JITTER);
        let tail = if self.kind == Kind::SlowTail {
            0.25
        } else {
            TAIL
        };
        let late = dice.chance(tail);
        let factor = dice.pareto(TAIL_FACTOR.0, TAIL_SHAPE).min(TAIL_FACTOR.1);
        let jitter = if late { jitter * factor } else { jitter };
        let pace = 1.0 + dice.exponential(JITTER);
        let luck = dice.unit();
        let broken_at = dice.unit();

        let (first, per_token) = self.nature(work.prompt, work.tokens);
        let first = self.rtt + (first - self.rtt) * jitter;
        let per_token = per_token * pace * self.crowd(running);
        let first = at + micros(first);
        let end = first + micros(per_token * f64::from(work.tokens.saturating_sub(1)));
        let whole = Fate {
            first: Some(first),
            end,
            how: How::Done,
            tokens: work.tokens,
        };
        let fate = match self.kind {
            Kind::Dead => Fate {
                first: None,
                end: u64::MAX,
                how: How::Silent,
                tokens: 0,
            },
            // An error takes a moment, and comes before any token.
            Kind::Liar | Kind::Magnet if luck >= self.reliability() => Fate {
                first: None,
                end: at + micros(self.rtt + self.first),
                how: How::Broken,
                tokens: 0,
            },
            Kind::Cutter if luck > self.reliability() => {
                let broken = first + ((end - first) as f64 * broken_at) as u64;
                cut(whole, broken, How::Broken)
            }
            _ => whole,
        };
        self.away(fate, at)
    }

    /// What an outage in the middle makes of it.
    fn away(&self, fate: Fate, at: u64) -> Fate {
        let next = self.outages.partition_point(|outage| outage.until <= at);
        match self.outages.get(next) {
            Some(outage) if outage.from < fate.end => {
                let how = if outage.silent {
                    How::Silent
                } else {
                    How::Broken
                };
                cut(fate, outage.from.max(at), how)
            }
            _ => fate,
        }
    }
}

/// The same, but for an end at `at`.
fn cut(fate: Fate, at: u64, how: How) -> Fate {
    let first = fate.first.filter(|first| *first < at);
    let tokens = first.map_or(0, |first| {
        let share = (at - first) as f64 / (fate.end - first).max(1) as f64;
        ((f64::from(fate.tokens) * share) as u32).clamp(1, fate.tokens)
    });
    Fate {
        first,
        end: at,
        how,
        tokens,
    }
}

/// A piece of work for a seller: a request, or what is left of it.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// The world's seed.
    pub seed: u64,
    /// The request.
    pub request: &'a Request,
    /// The seller's place in the world.
    pub place: u64,
    /// Tokens of the prompt, with what was delivered by others.
    pub prompt: u32,
    /// Tokens still to come.
    pub tokens: u32,
}

/// Milliseconds as microseconds.
#[must_use]
pub fn micros(millis: f64) -> u64 {
    (millis.max(0.0) * MILLI as f64) as u64
}
