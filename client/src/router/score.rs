//! What to expect of a seller, and one number for how good that is.
//!
//! A score is a product of ratios to the best candidate, each with an exponent that the strategy
//! sets: twice the price, twice the time and half the reliability are comparable without units,
//! and being worse in one thing can never help.

use farthing_protocol::amount::Cost;

use crate::config::Strategy;
use crate::market::{Candidate, Measured};
use crate::policy::Terms;
use crate::router::Choice;

/// Milliseconds to the first token where nobody was measured.
const FIRST_TOKEN: f64 = 500.0;
/// Milliseconds per token where nobody was measured.
const PER_TOKEN: f64 = 20.0;
/// A free seller counts as this many micro-atoms, so that ratios exist.
const LEAST_COST: f64 = 1.0;
/// Success below this is not worth telling apart.
const LEAST_SUCCESS: f64 = 0.01;

/// What to expect of a seller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// The price of the expected usage.
    pub cost: Cost,
    /// Tokens of the answer.
    pub tokens: f64,
}

impl Expected {
    pub(super) fn of(terms: &Terms, candidate: &Candidate, cost: Cost) -> Self {
        let usage = terms.expected_of(candidate.model());
        Self {
            cost,
            tokens: f64::from(usage.completion),
        }
    }
}

/// How much each ratio counts.
struct Weights {
    price: f64,
    time: f64,
    risk: f64,
}

impl Weights {
    const fn of(strategy: Strategy) -> Self {
        let (price, time, risk) = match strategy {
            Strategy::Balanced => (1.0, 0.5, 2.0),
            Strategy::Cheapest => (1.0, 0.0, 1.0),
            Strategy::Fastest => (0.0, 1.0, 1.0),
            Strategy::Reliable => (0.25, 0.25, 8.0),
        };
        Self { price, time, risk }
    }
}

/// Scores all choices against the best of each kind among them.
pub(super) fn score(choices: &mut [Choice], strategy: Strategy) {
    let weights = Weights::of(strategy);
    let first_token = middle(choices, |m| m.first_token).unwrap_or(FIRST_TOKEN);
    let per_token = middle(choices, |m| m.per_token).unwrap_or(PER_TOKEN);
    for choice in choices {
        let measured = &choice.candidate.measured;
        let time = measured.first_token.unwrap_or(first_token)
            + choice.expected.tokens * measured.per_token.unwrap_or(per_token);
        let time = time.max(1.0) * (1.0 + waiting(measured, choice.candidate.model().slots));
        let risk = 1.0 / measured.success.max(LEAST_SUCCESS);
        choice.score =
            price(choice).powf(weights.price) * time.powf(weights.time) * risk.powf(weights.risk);
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a score compares; it is never paid"
)]
fn price(choice: &Choice) -> f64 {
    (choice.expected.cost.get() as f64).max(LEAST_COST)
}

/// How full the seller is: purchases ahead of this one, per slot. Those of others count by the
/// seller's last word, ours by our own count.
fn waiting(measured: &Measured, slots: u32) -> f64 {
    let ours = f64::from(measured.in_flight) / f64::from(slots.max(1));
    let all = measured.load.map_or(0.0, |load| {
        f64::from(load.running) / f64::from(load.slots.max(1))
    });
    ours.max(all)
}

/// The middle of what was measured among the choices: what a newcomer is taken for.
fn middle(choices: &[Choice], pick: impl Fn(&Measured) -> Option<f64>) -> Option<f64> {
    let measured = choices.iter().map(|choice| &choice.candidate.measured);
    let mut values: Vec<_> = measured.filter_map(pick).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
