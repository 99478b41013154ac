//! What others' testimonies come to, by seller and model. Pure.
//!
//! Words weigh what was paid: a testimony counts for the atoms claimed on its channel, split over
//! the models it speaks of by what it says they cost, fading with its age. All channels of one
//! payer together count for at most the stake. Below it, splitting one's money over many payers
//! changes nothing: the sum is the same.

use std::collections::HashMap;
use std::time::Duration;

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::roll::Heard;
use farthing_protocol::testimony::Line;

use crate::ledger::experience::{FALSE_RECEIPT, faded};

/// Time in which a testimony's weight halves.
const HALF_LIFE: Duration = Duration::from_secs(3 * 86_400);

/// What others say of one seller's model.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Word {
    /// Atoms behind it, those behind older words counting less.
    pub value: f64,
    /// The share of good purchases, 0 to 1, each witness counting by its value.
    pub quality: f64,
    /// How many payers speak.
    pub payers: usize,
}

/// What a payer's channels say of one seller's model.
#[derive(Debug, Clone, Copy, Default)]
struct Voice {
    value: f64,
    good: f64,
}

/// What everybody but `us` says.
#[must_use]
pub fn weigh(
    heard: &[Heard],
    us: Address,
    stake: Amount,
    now: Timestamp,
) -> HashMap<(NodeId, B256), Word> {
    let mut voices: HashMap<(NodeId, B256), HashMap<Address, Voice>> = HashMap::new();
    for heard in heard {
        let payer = heard.testimony.config().payer;
        if payer == us {
            continue;
        }
        let said = heard.testimony.testimony();
        let age = faded(now.since(said.until), HALF_LIFE);
        for (line, value) in shares(&said.lines, heard.claimed) {
            let Some(quality) = quality(line) else {
                continue;
            };
            let of = voices.entry((said.seller, line.model)).or_default();
            let voice = of.entry(payer).or_default();
            voice.value += value * age;
            voice.good += value * age * quality;
        }
    }
    let word = |of: HashMap<Address, Voice>| chorus(of.into_values(), float(stake));
    voices
        .into_iter()
        .map(|(key, of)| (key, word(of)))
        .collect()
}

fn chorus(voices: impl Iterator<Item = Voice>, stake: f64) -> Word {
    let mut word = Word::default();
    let mut good = 0.0;
    for voice in voices.filter(|voice| voice.value > 0.0) {
        let counted = voice.value.min(stake);
        word.value += counted;
        word.payers += 1;
        good += voice.good * counted / voice.value;
    }
    if word.value > 0.0 {
        word.quality = (good / word.value).clamp(0.0, 1.0);
    }
    word
}

/// The lines with their parts of what was claimed: by what each says it cost, evenly if nothing.
fn shares(lines: &[Line], claimed: Amount) -> Vec<(&Line, f64)> {
    let sum: f64 = lines.iter().map(|line| float(line.charged)).sum();
    let part = |line: &Line| {
        if sum > 0.0 {
            float(line.charged) / sum
        } else {
            1.0 / float_count(lines.len())
        }
    };
    let share = |line| (line, float(claimed) * part(line));
    lines.iter().map(share).collect()
}

/// The share of good purchases; none of nothing.
fn quality(line: &Line) -> Option<f64> {
    let count = |count: u32| f64::from(count);
    let good = (count(line.served) - count(line.invalid)).max(0.0);
    let bad = count(line.failed) + count(line.broken) + count(line.invalid);
    let bad = bad + FALSE_RECEIPT * count(line.disputed);
    (good + bad > 0.0).then(|| good / (good + bad))
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a weight compares; it is never paid"
)]
const fn float(amount: Amount) -> f64 {
    amount.get() as f64
}

#[allow(clippy::cast_precision_loss, reason = "sixteen at most")]
const fn float_count(count: usize) -> f64 {
    count as f64
}
