//! One belief of our own experience, others' word, and how newcomers did lately. Pure.
//!
//! The bounds are stated in `docs/threat-model.md` and held by `reputation/attacks.rs`: others'
//! word never counts for more than [`MOST_WORD`] purchases of ours, and for half of it once we
//! have made [`OWN_HALF`]; no word lifts the credit, only what we paid there ourselves does.

use std::fmt;

use farthing_protocol::amount::Amount;

use crate::market::Belief;
use crate::reputation::hearsay::Word;

/// Others' word counts for at most so many purchases of ours.
pub const MOST_WORD: f64 = 6.0;
/// After so many purchases of ours, others' word counts half.
pub const OWN_HALF: f64 = 4.0;
/// Our own counts for at most so many, before what the market measures now.
pub const MOST_OWN: f64 = 20.0;
/// How far newcomers' fate moves what is believed of the next one: as much as so many purchases.
const NEWCOMERS: f64 = 5.0;

/// What is known of one model at one seller, as it counts now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Known {
    /// Weight of our good purchases.
    pub good: f64,
    /// Weight of our bad ones.
    pub bad: f64,
    /// What we paid that seller and had for it, for all its models.
    pub settled: Amount,
    /// What others say, if they say anything.
    pub word: Option<Word>,
}

/// What newcomers were lately, as it counts now.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Newcomers {
    /// Weight of first purchases that were good.
    pub good: f64,
    /// Weight of those that were bad.
    pub bad: f64,
}

/// The numbers that are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Atoms at risk at a seller that has proven nothing.
    pub credit: Amount,
    /// Atoms behind others' word at which it has half its weight.
    pub stake: Amount,
    /// Whether others' word counts.
    pub listen: bool,
}

/// What is believed of a seller that nobody knows: what newcomers did lately counts, so that new
/// names do not make new trust.
#[must_use]
pub fn newcomer(newcomers: Newcomers, rules: Rules) -> Belief {
    let usual = Belief::default();
    let all = NEWCOMERS + newcomers.good + newcomers.bad;
    let success = (usual.success * NEWCOMERS + newcomers.good) / all;
    Belief {
        success: success.min(usual.success),
        weight: usual.weight,
        credit: scaled(rules.credit, success / usual.success),
    }
}

/// What is believed of one that is known.
#[must_use]
pub fn judge(known: &Known, newcomers: Newcomers, rules: Rules) -> Belief {
    let base = newcomer(newcomers, rules);
    let made = known.good + known.bad;
    let own = made.min(MOST_OWN);
    let own_success = if made > 0.0 { known.good / made } else { 0.0 };
    let word = known.word.filter(|_| rules.listen).unwrap_or_default();
    let heard = weight_of(&word, made, rules.stake);
    let weight = base.weight + own + heard;
    let good = base.success * base.weight + own_success * own + word.quality * heard;
    let success = good / weight;
    let trust = (success / Belief::default().success).min(1.0);
    Belief {
        success,
        weight,
        credit: scaled(rules.credit.saturating_add(known.settled), trust),
    }
}

/// For how many purchases of ours others' word counts, when we have made so many.
#[must_use]
pub fn weight_of(word: &Word, made: f64, stake: Amount) -> f64 {
    if word.value <= 0.0 {
        return 0.0;
    }
    let backed = word.value / (word.value + scale(stake));
    MOST_WORD * backed * OWN_HALF / (OWN_HALF + made)
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a weight compares; it is never paid"
)]
fn scale(amount: Amount) -> f64 {
    (amount.get() as f64).max(1.0)
}

/// A part of an amount, 0 to 1, in thousandths.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to 1000"
)]
fn scaled(amount: Amount, part: f64) -> Amount {
    let thousandths = (part.clamp(0.0, 1.0) * 1000.0) as u128;
    let (whole, rest) = (amount.get() / 1000, amount.get() % 1000);
    let whole = whole.saturating_mul(thousandths);
    Amount::atoms(whole.saturating_add(rest * thousandths / 1000))
}

/// Why it is believed, in one line.
impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let made = self.good + self.bad;
        if made < 0.05 {
            f.write_str("never tried")?;
        } else {
            write!(f, "{:.1} of {made:.1} own purchases good", self.good)?;
        }
        let Some(word) = self.word else { return Ok(()) };
        write!(
            f,
            "; {} other payer{} with {:.0} atoms behind it say{} {:.0} %",
            word.payers,
            if word.payers == 1 { "" } else { "s" },
            word.value,
            if word.payers == 1 { "s" } else { "" },
            word.quality * 100.0
        )
    }
}
