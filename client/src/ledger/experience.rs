//! What became of the purchases of one model from one seller: counted for whoever is told of it,
//! and weighed with the old counting less. Pure: the time is an argument.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use serde::{Deserialize, Serialize};

/// Time in which what happened counts half.
const HALF_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// After so long the counts begin anew, so that what others are told is of these days.
const PERIOD: Duration = Duration::from_secs(30 * 86_400);
/// A false receipt counts as so many failures: it is no accident.
pub const FALSE_RECEIPT: f64 = 20.0;
/// What a whole answer that is not what was asked for weighs, beside counting as served.
const INVALID: f64 = 2.0;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// So many whole answers, at this cost in all.
    Served(u32, Amount),
    /// So many purchases that did not work, and not for a reason of ours.
    Failed(u32),
    /// One of those that did not work broke off when its answer had begun.
    Broken,
    /// One of those that did not work ended with a false receipt.
    Disputed,
    /// A whole answer was not what was asked for.
    Invalid,
    /// Two other sellers agree against a whole answer: that is their word, and is told nobody.
    Alone,
    /// Our own tokenizer counts fewer tokens than the seller did: nobody else can see it.
    Miscounted,
}

/// What became of the purchases of one model from one seller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    /// The model's id.
    pub model: String,
    /// Since when the counts count.
    pub since: Timestamp,
    /// When something last happened, and to when the weights are faded.
    pub used: Timestamp,
    /// Weight of what was good.
    pub good: f64,
    /// Weight of what was bad.
    pub bad: f64,
    /// Whole answers.
    pub served: u32,
    /// Purchases that did not work, the broken and disputed ones among them.
    pub failed: u32,
    /// Answers that broke off.
    pub broken: u32,
    /// False receipts.
    pub disputed: u32,
    /// Whole answers that were not what was asked for, that others agree against, or whose tokens
    /// we count otherwise.
    pub invalid: u32,
    /// Those of them but the first: they are told nobody.
    pub alone: u32,
    /// Atoms charged for whole answers.
    pub charged: Amount,
    /// Atoms charged for whole answers since anything was wrong with a receipt, however long ago.
    pub settled: Amount,
}

impl Experience {
    /// None yet.
    #[must_use]
    pub fn new(model: &str, now: Timestamp) -> Self {
        Self {
            model: model.to_owned(),
            since: now,
            used: now,
            good: 0.0,
            bad: 0.0,
            served: 0,
            failed: 0,
            broken: 0,
            disputed: 0,
            invalid: 0,
            alone: 0,
            charged: Amount::ZERO,
            settled: Amount::ZERO,
        }
    }

    /// Enters what happened.
    pub fn note(&mut self, deed: Deed, now: Timestamp) {
        (self.good, self.bad) = self.weights(now);
        self.used = self.used.max(now);
        if now.since(self.since) >= PERIOD {
            let old = std::mem::replace(self, Self::new(&self.model, now));
            (self.good, self.bad, self.settled) = (old.good, old.bad, old.settled);
        }
        match deed {
            Deed::Served(count, cost) => {
                self.good += f64::from(count);
                self.served = self.served.saturating_add(count);
                self.charged = self.charged.saturating_add(cost);
                self.settled = self.settled.saturating_add(cost);
            }
            Deed::Failed(count) => {
                self.bad += f64::from(count);
                self.failed = self.failed.saturating_add(count);
            }
            // These say more of a purchase that is entered as failed or served, before or after.
            Deed::Broken => self.broken = self.broken.saturating_add(1),
            Deed::Disputed => {
                self.bad += FALSE_RECEIPT - 1.0;
                self.disputed = self.disputed.saturating_add(1);
                self.settled = Amount::ZERO;
            }
            Deed::Invalid | Deed::Alone | Deed::Miscounted => {
                self.bad += INVALID;
                self.invalid = self.invalid.saturating_add(1);
                let is_told = deed == Deed::Invalid;
                self.alone = self.alone.saturating_add(u32::from(!is_told));
            }
        }
    }

    /// Purchases that failed in no more particular way.
    #[must_use]
    pub fn plainly_failed(&self) -> u32 {
        let particular = self.broken.saturating_add(self.disputed);
        self.failed.saturating_sub(particular)
    }

    /// Whole answers that were not what was asked for, as anyone could see.
    #[must_use]
    pub const fn plainly_invalid(&self) -> u32 {
        self.invalid.saturating_sub(self.alone)
    }

    /// What is good and what is bad, as it counts now.
    #[must_use]
    pub fn weights(&self, now: Timestamp) -> (f64, f64) {
        let factor = faded(now.since(self.used), HALF_LIFE);
        (self.good * factor, self.bad * factor)
    }
}

/// What is left of a weight of one after this time.
#[must_use]
pub fn faded(age: Duration, half_life: Duration) -> f64 {
    0.5_f64.powf(age.as_secs_f64() / half_life.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_000);

    #[test]
    fn what_happened_is_counted_once_whatever_it_turns_out_to_be() {
        let mut known = Experience::new("m", NOW);
        known.note(Deed::Served(3, Amount::atoms(30)), NOW);
        known.note(Deed::Failed(2), NOW);
        known.note(Deed::Broken, NOW);
        known.note(Deed::Invalid, NOW);
        let counts = (
            known.served,
            known.plainly_failed(),
            known.broken,
            known.invalid,
        );
        assert_eq!(counts, (3, 1, 1, 1));
        assert_eq!(known.weights(NOW), (3.0, 2.0 + INVALID));
        assert_eq!(known.settled, Amount::atoms(30));
        known.note(Deed::Disputed, NOW);
        known.note(Deed::Failed(1), NOW);
        assert_eq!((known.plainly_failed(), known.disputed), (1, 1));
        assert_eq!(known.settled, Amount::ZERO, "a liar begins anew");
        assert_eq!(known.weights(NOW), (3.0, 2.0 + INVALID + FALSE_RECEIPT));
    }

    #[test]
    fn what_happened_long_ago_counts_less_and_is_not_told_for_ever() {
        let mut known = Experience::new("m", NOW);
        known.note(Deed::Served(8, Amount::atoms(80)), NOW);
        let later = NOW.plus(HALF_LIFE);
        assert_eq!(known.weights(later), (4.0, 0.0));
        let month = NOW.plus(PERIOD);
        known.note(Deed::Served(1, Amount::atoms(10)), month);
        assert_eq!((known.served, known.since), (1, month));
        assert_eq!(known.charged, Amount::atoms(10));
        assert_eq!(known.settled, Amount::atoms(90), "what it earned stays");
    }
}
