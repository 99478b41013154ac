//! Settings of what is believed of sellers, and of how they are put to the proof.

use std::time::Duration;

use farthing_protocol::amount::Amount;
use serde::{Deserialize, Serialize};

/// What is believed of sellers, and what others are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reputation {
    /// Whether others' word counts, in proportion to what they have paid the seller by the chain.
    pub listen: bool,
    /// Whether others are told what became of our purchases. It shows whom we pay, and how much.
    pub testify: bool,
    /// How often they are told.
    #[serde(with = "humantime_serde")]
    pub testify_every: Duration,
    /// Atoms that may be signed ahead of proof, at one time, at a seller that has proven nothing.
    pub credit: Amount,
    /// Atoms paid to a seller at which others' word of it has half the weight it can have. One
    /// payer counts for as much at most.
    pub stake: Amount,
}

impl Default for Reputation {
    fn default() -> Self {
        Self {
            listen: true,
            testify: false,
            testify_every: Duration::from_secs(3_600),
            credit: crate::config::NEWCOMER_CREDIT,
            stake: Amount::atoms(10_000_000),
        }
    }
}

/// Requests that are asked a second time, of another seller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probes {
    /// How many of a thousand answers that can be compared are; 0: none.
    pub share: u32,
    /// The most that probes may cost per day (UTC), within the limits on everything.
    pub per_day: Amount,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            share: 5,
            per_day: Amount::atoms(50_000),
        }
    }
}
