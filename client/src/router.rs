//! The router: terms and candidates become a [`Plan`], the sellers to try in order, with an
//! explanation for each one kept or dropped.
//!
//! Pure: the same terms, candidates and seed make the same plan. First the filter (what cannot
//! be bought here at all), then a score from expected price, measured speed and success, then a
//! little exploration, so that newcomers get a chance. A seller that is cooling down or busy is
//! tried only when there is no other, but then it is: nobody is ever banned for good.

use std::collections::BTreeMap;
use std::fmt;

use farthing_protocol::amount::{Amount, Cost, Overflow, Price};
use farthing_protocol::identity::NodeId;
use farthing_protocol::pricing::{self, Demand, FIRST_WINDOW};
use farthing_protocol::purchase::Endpoint;

use crate::market::{Candidate, Pause};
use crate::policy::Terms;

mod credit;
mod score;

pub use score::Expected;

/// Bytes that one token of a prompt holds at most, as a guess that favours the seller: only a
/// prompt that cannot possibly fit is kept from it.
const MOST_BYTES_PER_TOKEN: u64 = 16;
/// One request in so many tries a seller that was never tried before.
const EXPLORE: u64 = 20;
/// A newcomer is explored only up to this multiple of the best seller's expected cost.
const EXPLORE_COST: u128 = 2;

/// A seller that may be tried.
#[derive(Debug, Clone)]
pub struct Choice {
    /// The seller, its offer and what was measured.
    pub candidate: Candidate,
    /// What the request can use of its model.
    pub demand: Demand,
    /// The most it may cost there: the quote, or the limit per purchase if that is less.
    pub max_cost: Amount,
    /// What to expect of it.
    pub expected: Expected,
    /// Less is better.
    pub score: f64,
    /// Why it stands where it stands.
    pub standing: Standing,
}

/// Why a choice stands where it stands in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// By its score.
    Score,
    /// It is new and gets a chance.
    Explored,
    /// It is paused; it is a last resort.
    LastResort(Pause),
}

/// The choice in one line.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let measured = &self.candidate.measured;
        write!(f, "about {} atoms", self.expected.cost.ceil())?;
        match measured.first_token {
            Some(millis) => write!(f, ", first token after {millis:.0} ms")?,
            None => write!(f, ", speed unknown")?,
        }
        write!(f, ", {:.0} % success", measured.success * 100.0)?;
        match self.standing {
            Standing::Score => Ok(()),
            Standing::Explored => write!(f, "; new, and given a chance"),
            Standing::LastResort(pause) => write!(f, "; {}, but there is no other", Left(pause)),
        }
    }
}

/// A pause in words.
struct Left(Pause);

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.left().as_secs_f64().ceil();
        match self.0 {
            Pause::CoolingDown(_) => write!(f, "cooling down {seconds} s"),
            Pause::OnProbation => f.write_str("on probation"),
            Pause::Busy(_) => write!(f, "busy for {seconds} s"),
        }
    }
}

/// Why a seller is not in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// It sells the model elsewhere.
    #[error("no such endpoint: {0}")]
    Endpoint(Endpoint),
    /// The prompt cannot fit.
    #[error("context too small: {context} tokens")]
    Context {
        /// Tokens it takes.
        context: u32,
    },
    /// A token is dearer than the configuration allows.
    #[error("price over ceiling: {price} micro-atoms per token, at most {limit}")]
    Price {
        /// What it asks.
        price: Price,
        /// What is allowed.
        limit: Price,
    },
    /// The purchase may cost more than one purchase may.
    #[error("may cost {needed} atoms, over the limit of {limit} per purchase")]
    OverLimit {
        /// What must be reserved before work starts.
        needed: Amount,
        /// `spend.per_purchase`.
        limit: Amount,
    },
    /// More would be at risk there at one time than it has proven to be worth.
    #[error("{needed} atoms would be at risk there, it is trusted with {credit} so far")]
    Unproven {
        /// What would be signed ahead of proof, with what runs there.
        needed: Amount,
        /// What it is trusted with.
        credit: Amount,
    },
    /// Its prices are beyond all numbers.
    #[error("its prices do not make an amount")]
    Overflow,
    /// It failed a short while ago.
    #[error("cooling down {seconds} s")]
    CoolingDown {
        /// Seconds left; 0 while another purchase tries it.
        seconds: u64,
    },
    /// It said that it is busy.
    #[error("busy for {seconds} s")]
    Busy {
        /// Seconds left.
        seconds: u64,
    },
}

impl From<Pause> for Reason {
    fn from(pause: Pause) -> Self {
        let seconds = pause.left().as_millis().div_ceil(1000);
        let seconds = u64::try_from(seconds).unwrap_or(u64::MAX);
        match pause {
            Pause::CoolingDown(_) | Pause::OnProbation => Self::CoolingDown { seconds },
            Pause::Busy(_) => Self::Busy { seconds },
        }
    }
}

/// A seller left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The seller.
    pub seller: NodeId,
    /// Why.
    pub reason: Reason,
}

/// Whom to try, in order, and whom not.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The sellers to try, the best first.
    pub choices: Vec<Choice>,
    /// The others.
    pub dropped: Vec<Dropped>,
}

impl Plan {
    /// Why each was left out, in one line: every reason with how often it holds.
    #[must_use]
    pub fn why_dropped(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for dropped in &self.dropped {
            *counts.entry(dropped.reason.to_string()).or_default() += 1;
        }
        let lines: Vec<_> = counts
            .into_iter()
            .map(|(reason, count)| format!("{count} × {reason}"))
            .collect();
        if lines.is_empty() {
            return "nobody offers it now".to_owned();
        }
        lines.join("; ")
    }

    /// When nothing is left only because of the limit per purchase: the least that any needs.
    #[must_use]
    pub fn over_limit(&self) -> Option<Amount> {
        if !self.choices.is_empty() {
            return None;
        }
        let needed = self
            .dropped
            .iter()
            .filter_map(|dropped| match dropped.reason {
                Reason::OverLimit { needed, .. } => Some(needed),
                _ => None,
            });
        needed.min()
    }
}

/// Whom to try for this request. `seed` decides between equals and who is explored.
#[must_use]
pub fn plan(terms: &Terms, candidates: Vec<Candidate>, seed: u64) -> Plan {
    let mut dropped = Vec::new();
    let mut kept = Vec::new();
    for candidate in candidates {
        let seller = candidate.seller();
        match consider(terms, candidate) {
            Ok(choice) => kept.push(choice),
            Err(reason) => dropped.push(Dropped { seller, reason }),
        }
    }
    let choices = without_paused(kept, &mut dropped);
    let mut choices = credit::within_credit(choices, &mut dropped);
    score::score(&mut choices, terms.strategy);
    choices.sort_by(|a, b| {
        let paused = |choice: &Choice| matches!(choice.standing, Standing::LastResort(_));
        let tie = |choice: &Choice| mix(seed, choice.candidate.seller());
        let by_score = a.score.total_cmp(&b.score);
        paused(a)
            .cmp(&paused(b))
            .then(by_score)
            .then_with(|| tie(a).cmp(&tie(b)))
    });
    explore(&mut choices, seed);
    dropped.sort_by_key(|dropped| (dropped.reason, dropped.seller));
    Plan { choices, dropped }
}

/// Whether this seller can be bought from at all, and what it would cost.
fn consider(terms: &Terms, candidate: Candidate) -> Result<Choice, Reason> {
    let model = candidate.model();
    let prices = &model.prices;
    if !model.endpoints.contains(&terms.endpoint) {
        return Err(Reason::Endpoint(terms.endpoint));
    }
    let least_prompt = terms.body.len() as u64 / MOST_BYTES_PER_TOKEN;
    if least_prompt > u64::from(model.context) && !terms.carries_media() {
        let context = model.context;
        return Err(Reason::Context { context });
    }
    within(prices.input.max(prices.cached_input), terms.max_price_input)?;
    within(prices.output, terms.max_price_output)?;
    let demand = terms.demand(model);
    let too_much = |_: Overflow| Reason::Overflow;
    let needed = demand.opening(prices, FIRST_WINDOW).map_err(too_much)?;
    if needed > terms.max_cost {
        let limit = terms.max_cost;
        return Err(Reason::OverLimit { needed, limit });
    }
    let quote = demand.quote(prices).map_err(too_much)?;
    let cost = pricing::cost(&terms.expected_of(model), prices).map_err(too_much)?;
    Ok(Choice {
        demand,
        max_cost: quote.min(terms.max_cost),
        expected: Expected::of(terms, &candidate, cost),
        score: 0.0,
        standing: Standing::Score,
        candidate,
    })
}

fn within(price: Price, limit: Option<Price>) -> Result<(), Reason> {
    match limit {
        Some(limit) if price > limit => Err(Reason::Price { price, limit }),
        _ => Ok(()),
    }
}

/// Leaves out whoever is paused, unless everybody is.
fn without_paused(kept: Vec<Choice>, dropped: &mut Vec<Dropped>) -> Vec<Choice> {
    let all_paused = kept
        .iter()
        .all(|choice| choice.candidate.measured.pause.is_some());
    let mut choices = Vec::with_capacity(kept.len());
    for mut choice in kept {
        match choice.candidate.measured.pause {
            None => choices.push(choice),
            Some(pause) if all_paused => {
                choice.standing = Standing::LastResort(pause);
                choices.push(choice);
            }
            Some(pause) => dropped.push(Dropped {
                seller: choice.candidate.seller(),
                reason: pause.into(),
            }),
        }
    }
    choices
}

/// Now and then puts a seller that was never tried in front of one that was.
fn explore(choices: &mut [Choice], seed: u64) {
    let untried = |choice: &Choice| choice.candidate.measured.weight == 0.0;
    let Some(best) = choices.first() else { return };
    if untried(best) || !mix_seed(seed).is_multiple_of(EXPLORE) {
        return;
    }
    let limit = best.expected.cost.get().saturating_mul(EXPLORE_COST);
    let newcomers: Vec<_> = (1..choices.len())
        .filter(|place| {
            let choice = &choices[*place];
            let affordable = choice.expected.cost <= Cost::micro_atoms(limit);
            untried(choice) && affordable && choice.standing == Standing::Score
        })
        .collect();
    let lot = |place: &&usize| mix(seed, choices[**place].candidate.seller());
    let Some(place) = newcomers.iter().min_by_key(lot).copied() else {
        return;
    };
    choices[place].standing = Standing::Explored;
    choices[..=place].rotate_right(1);
}

/// A number that looks random, from the seed alone (splitmix64).
const fn mix_seed(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that looks random, from seed and seller.
fn mix(seed: u64, seller: NodeId) -> u64 {
    let words = seller.as_bytes().chunks_exact(8);
    words.fold(mix_seed(seed), |sum, word| {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        mix_seed(sum ^ word)
    })
}

#[cfg(test)]
mod tests;
