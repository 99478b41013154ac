//! The router: terms and candidates become a [`Plan`], the sellers to try in order, with an
//! explanation for each one kept or dropped.
//!
//! Pure: the same terms, candidates and seed make the same plan, so a decision can be written
//! down and replayed ([`record`]). First the filter (what cannot be bought here at all), then a
//! score from expected price, measured speed and success, then the lineup: wishes of the request,
//! a lot among near-equals, a little exploration, so that newcomers get a chance.
//!
//! A seller that failed or is busy is paused, and dropped while there is another. When all are
//! paused, one that is busy or failed once or twice is tried all the same; one that has failed
//! again and again is not, even if it is the only one, but for a try now and then: so a request
//! fails at once when it must, and nobody is banned for good.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use farthing_protocol::amount::{Amount, Overflow};
use farthing_protocol::pricing::{self, Demand};

use crate::market::{Candidate, Goods, Market, Measured, Pause, Wanted};
use crate::policy::Terms;

mod filter;
mod credit;
mod score;
mod lineup;
pub mod patience;
pub mod hedge;
pub mod record;
pub mod explain;

use filter::Left;
pub use filter::{Dropped, Reason, check};
use lineup::Tier;
pub use score::Expected;

/// How many sellers of a plan may say that they are busy before that counts as a try. Where many
/// buyers want the same few, three refusals are no reason to give up.
pub const PASSES: u32 = 8;
/// So many failures in a row, and a seller is not tried even if it is the only one.
const OPEN: u32 = 3;
/// When all have failed so often, each is tried again when it has rested so long.
const REST: Duration = Duration::from_secs(5);
/// The shortest wait an application is told.
const LEAST_WAIT: Duration = Duration::from_secs(1);

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
    tier: Tier,
}

/// Why a choice stands where it stands in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// By its score.
    Score,
    /// It has the conversation in its cache.
    Warm,
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
            Some(_) => write!(f, ", first token after {:.0} ms", self.expected.first_token)?,
            None => write!(f, ", speed unknown")?,
        }
        write!(f, ", {:.0} % success", measured.success * 100.0)?;
        match self.standing {
            Standing::Score => Ok(()),
            Standing::Warm => write!(f, "; it has the conversation in its cache"),
            Standing::Explored => write!(f, "; new, and given a chance"),
            Standing::LastResort(pause) => write!(f, "; {}, but there is no other", Left(pause)),
        }
    }
}

/// Whom to try, in order, and whom not.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The sellers to try, the best first. A seller may stand there with several models.
    pub choices: Vec<Choice>,
    /// The others.
    pub dropped: Vec<Dropped>,
    /// What decided between equals.
    pub seed: u64,
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

    /// When nothing is left only for a while: how long, at most.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if !self.choices.is_empty() {
            return None;
        }
        let paused = self
            .dropped
            .iter()
            .filter_map(|dropped| match dropped.reason {
                Reason::Paused(pause) => Some(pause.left()),
                _ => None,
            });
        paused.min().map(|left| left.clamp(LEAST_WAIT, REST))
    }
}

/// The candidates for this request: some of many sellers, all of few
/// ([`Market::look`]). With those and the seed, [`plan`] decides.
#[must_use]
pub fn look(market: &Market, terms: &Terms, seed: u64) -> Vec<Candidate> {
    let wishes = &terms.preferences;
    // Who is looked at stands on the shelf of the endpoint.
    let admits = |goods: &Goods| filter::check_there(terms, goods).is_ok();
    let is_named = |goods: &Goods| {
        let mut names = wishes.order.iter().chain(wishes.only.iter().flatten());
        names.any(|name| goods.is_named(name))
    };
    let look = |model: &String| {
        market.look(&Wanted {
            model,
            endpoint: terms.endpoint,
            seed,
            warm: terms.warm.map(|warm| warm.seller),
            admits: &admits,
            names: wishes.names_sellers().then_some(&is_named),
        })
    };
    let mut found = terms.models.iter().map(look);
    // Mostly there is one model: its candidates stay where they are.
    let mut all = found.next().unwrap_or_default();
    found.for_each(|more| all.extend(more));
    all
}

/// Whom to try for this request. `seed` decides between equals and who is explored.
#[must_use]
pub fn plan(terms: &Terms, candidates: Vec<Candidate>, seed: u64) -> Plan {
    let mut dropped = Vec::new();
    let mut kept = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        match consider(terms, &candidate) {
            Ok(worth) => kept.push(worth.choice(terms, candidate)),
            Err(reason) => dropped.push(left_out(&candidate.goods, reason)),
        }
    }
    without_paused(&mut kept, &mut dropped);
    let kept = credit::within_credit(kept, &mut dropped);
    let choices = lined_up(terms, kept, seed);
    dropped.sort_by(|a, b| (a.reason, a.seller, &a.model).cmp(&(b.reason, b.seller, &b.model)));
    Plan {
        choices,
        dropped,
        seed,
    }
}

fn left_out(goods: &Goods, reason: Reason) -> Dropped {
    Dropped {
        seller: goods.seller,
        model: goods.model.id.clone(),
        reason,
    }
}

/// What buying from a seller would come to.
struct Worth {
    demand: Demand,
    max_cost: Amount,
    expected: Expected,
}

impl Worth {
    fn choice(self, terms: &Terms, candidate: Candidate) -> Choice {
        Choice {
            demand: self.demand,
            max_cost: self.max_cost,
            expected: self.expected,
            score: 0.0,
            standing: Standing::Score,
            tier: Tier::of(terms, &candidate),
            candidate,
        }
    }
}

/// Whether this seller can be bought from at all, and what it would cost.
fn consider(terms: &Terms, candidate: &Candidate) -> Result<Worth, Reason> {
    let demand = check(terms, &candidate.goods)?;
    let prices = &candidate.model().prices;
    let too_much = |_: Overflow| Reason::Overflow;
    let quote = demand.quote(prices).map_err(too_much)?;
    let mut usage = terms.expected_within(&demand);
    if let Some(warm) = terms.warm.filter(|warm| warm.seller == candidate.seller()) {
        usage.cached = warm.tokens.min(usage.prompt);
    }
    let cost = pricing::cost(&usage, prices).map_err(too_much)?;
    Ok(Worth {
        demand,
        max_cost: quote.min(terms.max_cost),
        expected: Expected::of(cost, usage.completion),
    })
}

/// Leaves out whoever is paused, unless everybody is: then whoever may be tried all the same.
fn without_paused(kept: &mut Vec<Choice>, dropped: &mut Vec<Dropped>) {
    let all_paused = kept
        .iter()
        .all(|choice| choice.candidate.measured.pause.is_some());
    kept.retain_mut(|choice| {
        let measured = &choice.candidate.measured;
        match measured.pause {
            None => true,
            Some(pause) if all_paused && may_be_tried(measured, pause) => {
                choice.standing = Standing::LastResort(pause);
                true
            }
            Some(pause) => {
                dropped.push(left_out(&choice.candidate.goods, Reason::Paused(pause)));
                false
            }
        }
    });
}

/// Whether a paused seller may be tried when there is no other.
fn may_be_tried(measured: &Measured, pause: Pause) -> bool {
    let rested = |left| measured.cooling().saturating_sub(left) >= REST;
    match pause {
        Pause::Busy(_) => true,
        Pause::OnProbation => measured.failures < OPEN,
        Pause::CoolingDown(left) => {
            measured.failures < OPEN || (rested(left) && measured.in_flight == 0)
        }
    }
}

/// Scores and orders the choices: each model by itself, the wanted one first, unless the request
/// wants them compared.
fn lined_up(terms: &Terms, kept: Vec<Choice>, seed: u64) -> Vec<Choice> {
    let models = terms.models.len();
    if models <= 1 || terms.preferences.across {
        let mut choices = kept;
        score::score(&mut choices, terms);
        return lineup::order(terms, choices, seed);
    }
    let mut groups: Vec<Vec<Choice>> = vec![Vec::new(); models];
    for choice in kept {
        let rank = terms.rank(&choice.candidate.model().id);
        groups[rank.unwrap_or(models - 1)].push(choice);
    }
    // Each model gets its share of the attempts before what is left of the first is tried.
    let share = (terms.attempts as usize / models).max(1);
    let (mut choices, mut rest) = (Vec::new(), Vec::new());
    for mut group in groups {
        score::score(&mut group, terms);
        let mut group = lineup::order(terms, group, seed);
        rest.extend(group.split_off(share.min(group.len())));
        choices.extend(group);
    }
    choices.extend(rest);
    choices
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod wishes;
