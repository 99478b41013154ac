//! Whether goods can serve a request at all, and if not, why.

use std::fmt;

use farthing_protocol::amount::{Amount, Cost, MICRO, Overflow, Price};
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Prices;
use farthing_protocol::pricing::{Demand, FIRST_WINDOW};
use farthing_protocol::purchase::{Endpoint, Mode};

use crate::market::{Goods, Pause};
use crate::policy::{Preferences, Terms};

/// Bytes that one token of a prompt holds at most, as a guess that favours the seller: only a
/// prompt that cannot possibly fit is kept from it.
const MOST_BYTES_PER_TOKEN: u64 = 16;
/// What sellers say that keep nothing of a prompt.
const KEEPS_NOTHING: [&str; 2] = ["none", "zdr"];

/// Why a seller is not in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// It sells the model elsewhere.
    #[error("no such endpoint: {0}")]
    Endpoint(Endpoint),
    /// Its offer does not state something that the request cannot do without.
    #[error("does not offer {0}")]
    Feature(&'static str),
    /// The prompt cannot fit.
    #[error("context too small: {context} tokens")]
    Context {
        /// Tokens it takes.
        context: u32,
    },
    /// A token, or a request, is dearer than is allowed.
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
    /// It does not say that it is where, or what, or as discreet as it should be.
    #[error("{0}")]
    Unwanted(&'static str),
    /// It is ignored, or others are asked for by name.
    #[error("not among the sellers asked for, which are named by whole ids or hosts")]
    Unnamed,
    /// Its receipts were false.
    #[error("has signed a false receipt")]
    False,
    /// It failed a short while ago, or said that it is busy.
    #[error("{}", Left(*.0))]
    Paused(Pause),
}

/// A pause in words.
pub(super) struct Left(pub(super) Pause);

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

/// A seller left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// The seller.
    pub seller: NodeId,
    /// The model it would have been asked for.
    pub model: String,
    /// Why.
    pub reason: Reason,
}

/// Whether these goods can serve the request; what it can use of them.
///
/// # Errors
/// The first [`Reason`] why not.
pub fn check(terms: &Terms, goods: &Goods) -> Result<Demand, Reason> {
    if !goods.model.endpoints.contains(&terms.endpoint) {
        return Err(Reason::Endpoint(terms.endpoint));
    }
    check_there(terms, goods)
}

/// The same of goods that are sold at the request's endpoint: it is asked of many.
pub(super) fn check_there(terms: &Terms, goods: &Goods) -> Result<Demand, Reason> {
    let model = &goods.model;
    let prices = &model.prices;
    within(prices.input.max(prices.cached_input), terms.max_price_input)?;
    within(prices.output, terms.max_price_output)?;
    let wanted = &terms.preferences;
    within(prices.request, wanted.max_price_request)?;
    let least_prompt = terms.bytes / MOST_BYTES_PER_TOKEN;
    if least_prompt > u64::from(model.context) && !terms.media {
        let context = model.context;
        return Err(Reason::Context { context });
    }
    features(terms, goods)?;
    place(wanted, goods)?;
    let demand = terms.demand(model);
    let too_much = |_: Overflow| Reason::Overflow;
    // Compared before it is rounded: this is asked of many.
    let needed = opening(&demand, prices).map_err(too_much)?;
    if needed > Cost::micro_atoms(terms.max_cost.get().saturating_mul(MICRO)) {
        let (needed, limit) = (needed.ceil(), terms.max_cost);
        return Err(Reason::OverLimit { needed, limit });
    }
    Ok(demand)
}

/// What is reserved before a stranger starts to work.
pub(super) fn opening(demand: &Demand, prices: &Prices) -> Result<Cost, Overflow> {
    let output = match demand.mode {
        Mode::Plain => demand.output,
        Mode::Stream => demand.output.min(FIRST_WINDOW),
    };
    demand.up_to(prices, output)
}

fn within(price: Price, limit: Option<Price>) -> Result<(), Reason> {
    match limit {
        Some(limit) if price > limit => Err(Reason::Price { price, limit }),
        _ => Ok(()),
    }
}

fn features(terms: &Terms, goods: &Goods) -> Result<(), Reason> {
    let has = |name: &str| goods.model.features.iter().any(|feature| feature == name);
    if goods.stated
        && let Some(name) = terms.needs.senses().find(|name| !has(name))
    {
        return Err(Reason::Feature(name));
    }
    if !terms.preferences.require_parameters {
        return Ok(());
    }
    let mut asked = terms.needs.skills().chain(terms.needs.senses());
    if let Some(name) = asked.find(|name| !has(name)) {
        return Err(Reason::Feature(name));
    }
    let each = terms.bound.each;
    if each < u64::from(u32::MAX) && each > u64::from(goods.model.max_output) {
        return Err(Reason::Feature("so long an answer"));
    }
    Ok(())
}

fn place(wanted: &Preferences, goods: &Goods) -> Result<(), Reason> {
    if wanted.private {
        let says = goods.data_policy.as_deref().unwrap_or_default();
        if !KEEPS_NOTHING.contains(&says) {
            return Err(Reason::Unwanted("may keep prompts"));
        }
    }
    if !wanted.regions.is_empty() {
        let region = goods.region.as_deref().unwrap_or_default();
        if !wanted.regions.iter().any(|wanted| is_in(region, wanted)) {
            return Err(Reason::Unwanted("not in a wanted region"));
        }
    }
    for list in &wanted.quantizations {
        let has = goods.model.quantization.as_deref().unwrap_or("unknown");
        if !list.iter().any(|wanted| wanted.eq_ignore_ascii_case(has)) {
            return Err(Reason::Unwanted("not of a wanted quantization"));
        }
    }
    let named = |names: &Vec<String>| names.iter().any(|name| goods.is_named(name));
    let ignored = |name: &String| goods.is_meant(name);
    if wanted.ignore.iter().any(ignored) || !wanted.only.iter().all(named) {
        return Err(Reason::Unnamed);
    }
    if wanted.no_fallbacks && !wanted.order.is_empty() && !named(&wanted.order) {
        return Err(Reason::Unnamed);
    }
    Ok(())
}

/// `eu-west` is in `eu` and in `eu-west`, and not in `e`.
fn is_in(region: &str, wanted: &str) -> bool {
    let head = region.get(..wanted.len()).unwrap_or_default();
    let rest = region.get(wanted.len()..).unwrap_or_default();
    head.eq_ignore_ascii_case(wanted) && (rest.is_empty() || rest.starts_with(['-', '/', '_']))
}
