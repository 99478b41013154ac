//! What is believed of sellers beside what was measured here lately, and what became of their
//! purchases since somebody asked. The market forms no belief: it is told ([`super::Market::believe`])
//! and tells what happened ([`super::Market::tallies`]).

use std::collections::HashMap;

use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;

use crate::config::NEWCOMER_CREDIT;
use crate::market::memory::MAX_MEASURED;
use crate::market::stats::Outcome;

/// A seller nobody knows counts as if it had succeeded in this share of …
const NEWCOMER_SUCCESS: f64 = 0.9;
/// … so many purchases.
const NEWCOMER_WEIGHT: f64 = 3.0;
/// The most models of one seller that something is believed of.
const MAX_MODELS: usize = farthing_protocol::offer::MAX_MODELS;

/// What is believed of a model at a seller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Belief {
    /// The chance that a purchase succeeds, 0 to 1.
    pub success: f64,
    /// How many purchases of ours this counts for.
    pub weight: f64,
    /// What may be signed ahead of proof there at one time, in all its purchases together.
    pub credit: Amount,
}

/// Of a seller nobody knows.
impl Default for Belief {
    fn default() -> Self {
        Self {
            success: NEWCOMER_SUCCESS,
            weight: NEWCOMER_WEIGHT,
            credit: NEWCOMER_CREDIT,
        }
    }
}

/// What became of purchases from one seller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Whole answers.
    pub served: u32,
    /// Those that did not work, and not for a reason of ours.
    pub failed: u32,
    /// What the whole answers cost.
    pub charged: Amount,
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Served(served) => {
                self.served = self.served.saturating_add(1);
                self.charged = self.charged.saturating_add(served.charged);
            }
            Outcome::Failed => self.failed = self.failed.saturating_add(1),
            Outcome::Busy { .. } | Outcome::Overtaken { .. } | Outcome::Blameless => {}
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Beliefs {
    newcomer: Belief,
    known: HashMap<NodeId, Vec<(String, Belief)>>,
    tallies: HashMap<(NodeId, String), Tally>,
}

impl Beliefs {
    pub(super) fn known(&self, seller: NodeId, model: &str) -> Option<Belief> {
        let models = self.known.get(&seller).into_iter().flatten();
        let mut known = models.filter(|(id, _)| id == model);
        known.next().map(|(_, belief)| *belief)
    }

    pub(super) const fn newcomer(&self) -> Belief {
        self.newcomer
    }

    /// Whether it is another belief than before.
    pub(super) fn believe(&mut self, seller: NodeId, model: &str, belief: Belief) -> bool {
        let full = !self.known.contains_key(&seller) && self.known.len() >= MAX_MEASURED;
        if full || self.known(seller, model) == Some(belief) {
            return false;
        }
        let models = self.known.entry(seller).or_default();
        if let Some((_, known)) = models.iter_mut().find(|(id, _)| id == model) {
            *known = belief;
        } else if models.len() < MAX_MODELS {
            models.push((model.to_owned(), belief));
        }
        true
    }

    pub(super) const fn believe_newcomers(&mut self, belief: Belief) {
        self.newcomer = belief;
    }

    pub(super) fn forget(&mut self, seller: NodeId, model: &str) {
        let Some(models) = self.known.get_mut(&seller) else {
            return;
        };
        models.retain(|(id, _)| id != model);
        if models.is_empty() {
            self.known.remove(&seller);
        }
    }

    pub(super) fn count(&mut self, seller: NodeId, model: &str, outcome: Outcome) {
        if !matches!(outcome, Outcome::Served(_) | Outcome::Failed) {
            return;
        }
        let key = (seller, model.to_owned());
        if self.tallies.len() < MAX_MEASURED || self.tallies.contains_key(&key) {
            self.tallies.entry(key).or_default().add(outcome);
        }
    }

    pub(super) fn tallies(&mut self) -> Vec<((NodeId, String), Tally)> {
        self.tallies.drain().collect()
    }
}
