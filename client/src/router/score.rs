//! What to expect of a seller, and one number for how good that is.
//!
//! A score is a product of what is expected, each factor with an exponent that the strategy sets:
//! twice the price, twice the time and half the reliability are comparable without units, and
//! being worse in one thing can never help. Failing has its price in each of them: an atom is
//! divided by the chance that it buys something, and a failure costs the time until somebody else
//! has answered.

use farthing_protocol::amount::Cost;

use crate::config::Strategy;
use crate::market::Measured;
use crate::policy::{Sort, Terms};
use crate::router::Choice;

/// Milliseconds to the first token where nobody was measured.
const FIRST_TOKEN: f64 = 500.0;
/// Milliseconds per token where nobody was measured.
const PER_TOKEN: f64 = 20.0;
/// A free seller counts as this many micro-atoms, so that ratios exist.
const LEAST_COST: f64 = 1.0;
/// Success below this is not worth telling apart.
const LEAST_SUCCESS: f64 = 0.01;
/// What is expected of an unknown seller weighs as much as so many purchases: what was measured
/// counts less as it grows old.
const PRIOR: f64 = 0.5;
/// What it adds to a score, in times, to be turned away almost surely, because that happened just
/// now; and to be turned away as a rule.
const FULL: f64 = 3.0;
const OFTEN: f64 = 2.0;
/// The wait for the first token counts so many times more than the rest: nobody can read yet.
const BLANK: f64 = 12.0;
/// A failure costs at least so many milliseconds.
const RETRY: f64 = 1_000.0;

/// What to expect of a seller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// The price of the expected usage.
    pub cost: Cost,
    /// Tokens of the answer.
    pub tokens: f64,
    /// Milliseconds to the first token, with this prompt and the load that there is.
    pub first_token: f64,
    /// Milliseconds to the end, failures included.
    pub millis: f64,
}

impl Expected {
    pub(super) fn of(cost: Cost, completion: u32) -> Self {
        Self {
            cost,
            tokens: f64::from(completion),
            first_token: 0.0,
            millis: 0.0,
        }
    }
}

/// How much each factor counts.
struct Weights {
    price: f64,
    time: f64,
    risk: f64,
}

impl Weights {
    const fn of(strategy: Strategy) -> Self {
        let (price, time, risk) = match strategy {
            Strategy::Balanced => (1.0, 0.75, 1.0),
            Strategy::Cheapest => (1.0, 0.0, 0.5),
            Strategy::Fastest => (0.0, 1.0, 0.5),
            Strategy::Reliable => (0.25, 0.25, 8.0),
        };
        Self { price, time, risk }
    }
}

/// Scores all choices.
pub(super) fn score(choices: &mut [Choice], terms: &Terms) {
    let weights = Weights::of(terms.strategy);
    let usual = Usual {
        first_token: middle(choices, |m| m.first_token).unwrap_or(FIRST_TOKEN),
        per_token: middle(choices, |m| m.per_token).unwrap_or(PER_TOKEN),
        prompt: terms.expected.prompt,
        measured_at: middle(choices, |m| m.first_token.map(|_| m.prompt)).unwrap_or(0.0),
        per_prompt: middle(choices, |m| Some(m.per_prompt).filter(|adds| *adds > 0.0))
            .unwrap_or(0.0),
    };
    for choice in choices {
        let measured = &choice.candidate.measured;
        let success = measured.success.clamp(LEAST_SUCCESS, 1.0);
        let warm = terms
            .warm
            .filter(|warm| warm.seller == choice.candidate.seller());
        let read = warm.map_or(0, |warm| warm.tokens);
        let times = usual.of(choice, read);
        choice.expected.first_token = times.first;
        let retry = usual.first_token.max(times.first).max(RETRY);
        choice.expected.millis = times.whole + retry * (1.0 - success) / success;
        choice.score = match terms.preferences.sort {
            Some(Sort::Price) => price(choice) / success,
            Some(Sort::Throughput) => times.token.max(0.001) / success,
            Some(Sort::Latency) => times.first.max(0.001) / success,
            Some(Sort::Quality) => 1.0 / success,
            None => {
                let dear = power(price(choice) / success, weights.price);
                let millis = choice.expected.millis + times.first * BLANK;
                let slow = power(millis.max(1.0), weights.time);
                let full = 1.0 + measured.full * FULL + measured.refusals * OFTEN;
                dear * slow * full * power(1.0 / success, weights.risk)
            }
        };
    }
}

/// What an unknown seller is taken for.
struct Usual {
    first_token: f64,
    per_token: f64,
    prompt: u32,
    /// The prompt that the usual time to a first token is about, and what each token more adds.
    measured_at: f64,
    per_prompt: f64,
}

struct Times {
    first: f64,
    token: f64,
    whole: f64,
}

impl Usual {
    /// A time to the first token that was measured with one prompt, with another. Where a seller
    /// has not shown what a longer one adds, it is what is usual.
    fn with_prompt(&self, (millis, prompt): (f64, f64), adds: f64, fresh: u32) -> f64 {
        let adds = if adds > 0.0 { adds } else { self.per_prompt };
        millis + (f64::from(fresh) - prompt).max(0.0) * adds
    }

    /// How long it takes, when `read` tokens of the prompt are in its cache.
    fn of(&self, choice: &Choice, read: u32) -> Times {
        let measured = &choice.candidate.measured;
        let fresh = self.prompt.saturating_sub(read);
        let first = measured
            .first_token
            .map(|first| self.with_prompt((first, measured.prompt), measured.per_prompt, fresh));
        let usual = (self.first_token, self.measured_at);
        let usual = self.with_prompt(usual, self.per_prompt, fresh);
        let first = shrunk(first, usual, measured.weight);
        let token = shrunk(measured.per_token, self.per_token, measured.weight);
        let crowd = 1.0 + waiting(measured, choice.candidate.model().slots);
        Times {
            first: first * crowd,
            token: token * crowd,
            whole: (first + choice.expected.tokens * token) * crowd,
        }
    }
}

/// Between what was measured and what is usual: the more and the newer the samples, the nearer to
/// them.
fn shrunk(measured: Option<f64>, usual: f64, weight: f64) -> f64 {
    let Some(measured) = measured else {
        return usual;
    };
    // One that waits now and was never measured counts by its wait.
    let weight = weight.max(PRIOR / 4.0);
    (measured * weight + usual * PRIOR) / (weight + PRIOR)
}

/// A power, without the work where there is none.
fn power(base: f64, exponent: f64) -> f64 {
    match exponent {
        0.0 => 1.0,
        1.0 => base,
        0.5 => base.sqrt(),
        0.75 => base.sqrt() * base.sqrt().sqrt(),
        _ => base.powf(exponent),
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
    let mut values: Vec<_> = measured.filter_map(|measured| pick(measured)).collect();
    if values.is_empty() {
        return None;
    }
    let place = values.len() / 2;
    let (_, middle, _) = values.select_nth_unstable_by(place, f64::total_cmp);
    Some(*middle)
}
