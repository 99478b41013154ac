//! When the next seller is asked beside the first. Pure.
//!
//! A first token that is later than nineteen times out of twenty, or twice as late as the next
//! seller's is expected, is worth a second question, if both together stay within what one purchase
//! may cost, and not for every request: what a hedge costs is the other's prompt, should both
//! begin. A seller that nobody knows is the likeliest to be late: its own time is what is expected
//! of it.

use std::time::Duration;

use farthing_protocol::amount::Cost;
use farthing_protocol::purchase::Mode;

use crate::market::Source;
use crate::policy::Terms;
use crate::router::{Choice, Standing};

/// A seller is known by so many purchases, at least, before its 95th percentile is one.
const WEIGHT: f64 = 5.0;
/// The next seller is asked after so many times what it is expected to take itself: a seller whose
/// requests often wait is late by its own measure only when it is too late.
const LATE: f64 = 2.0;
/// The second seller may be so many times as dear as the first.
const DEARER: u128 = 2;
/// One hedge, in the unit in which they are earned: hundredths.
const ONE: u32 = 100;
/// The most that is saved up.
const MOST: u32 = 5 * ONE;

/// After how long `second` is asked beside `first`, if it may be.
#[must_use]
pub fn after(terms: &Terms, first: &Choice, second: &Choice) -> Option<Duration> {
    // A document is paid for when it is whole, and the work of the loser by nobody.
    if terms.mode != Mode::Stream || !(is_peer(first) && is_peer(second)) {
        return None;
    }
    let measured = &first.candidate.measured;
    // Of two that nobody knows, neither is late.
    second
        .candidate
        .measured
        .first_token
        .or(measured.first_token)?;
    let with_prompt = |millis| measured.with_prompt(millis, terms.expected.prompt);
    let own = measured
        .first_token_p95
        .filter(|_| measured.weight >= WEIGHT)
        .map_or(first.expected.first_token * LATE, with_prompt);
    // Not before half of its answers have begun.
    let half = measured.first_token_p50.map_or(0.0, with_prompt);
    let late = half.max(own.min(second.expected.first_token * LATE));
    let both = first.max_cost.saturating_add(second.max_cost);
    let dear = first.expected.cost.get().checked_mul(DEARER)?;
    let affordable = both <= terms.max_cost && second.expected.cost <= Cost::micro_atoms(dear);
    let fit = !matches!(second.standing, Standing::LastResort(_));
    let wait = Duration::try_from_secs_f64(late / 1000.0).ok()?;
    (affordable && fit && wait < terms.deadlines.first_token).then_some(wait)
}

/// A payment over plain HTTP may be one for this purchase alone: it is not made twice.
fn is_peer(choice: &Choice) -> bool {
    matches!(choice.candidate.source(), Source::Peer(_))
}

/// How many hedges may be made: so many per hundred requests.
#[derive(Debug)]
pub struct Allowance(u32);

impl Default for Allowance {
    fn default() -> Self {
        Self(ONE)
    }
}

impl Allowance {
    /// A request has come: `percent` of one more hedge.
    pub fn earn(&mut self, percent: u8) {
        self.0 = self.0.saturating_add(u32::from(percent)).min(MOST);
    }

    /// Takes one, if there is one.
    pub const fn take(&mut self) -> bool {
        match self.0.checked_sub(ONE) {
            Some(left) => {
                self.0 = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
