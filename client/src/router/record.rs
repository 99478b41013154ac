//! A decision written down: terms, candidates, seed, and what came of them. Read again, it makes
//! the same plan, or says where it differs: the proof that a plan follows from these alone.

use std::sync::Arc;

use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::purchase::RequestId;
use serde::{Deserialize, Serialize};

use crate::market::{Candidate, Goods, Measured};
use crate::policy::Terms;
use crate::report::RouteReport;
use crate::router::{Plan, explain, plan};

/// One line of a record.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A decision.
    Decision(Box<Decision>),
    /// Which purchase came of it.
    Purchase {
        /// The decision's seed.
        seed: u64,
        /// The purchase.
        request: RequestId,
        /// Who sold.
        seller: NodeId,
    },
}

/// A candidate as it was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    goods: Goods,
    measured: Measured,
}

/// A seller and a model of it, and what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The seller.
    pub seller: NodeId,
    /// The model.
    pub model: String,
    /// Why it was dropped; nothing for one that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A decision.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Decision {
    /// When it was made.
    pub at: Timestamp,
    /// What decided between equals. It names the decision, too.
    pub seed: u64,
    /// How many sold the models at the time.
    pub on_offer: usize,
    terms: Terms,
    candidates: Vec<Seen>,
    order: Vec<Named>,
    dropped: Vec<Named>,
}

/// Where a replayed decision differs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Differs {
    /// In whom it would ask.
    #[error("at place {place}: {recorded} was recorded, {replayed} comes out")]
    Order {
        /// From 1.
        place: usize,
        /// As recorded.
        recorded: String,
        /// As it comes out.
        replayed: String,
    },
    /// In whom it leaves out, or why.
    #[error("among those left out: {recorded} was recorded, {replayed} comes out")]
    Dropped {
        /// As recorded.
        recorded: String,
        /// As it comes out.
        replayed: String,
    },
}

impl Decision {
    /// Notes the terms and candidates of a decision, before it is made.
    #[must_use]
    pub fn draft(terms: &Terms, candidates: &[Candidate], at: Timestamp, on_offer: usize) -> Self {
        let seen = |candidate: &Candidate| Seen {
            goods: (*candidate.goods).clone(),
            measured: *candidate.measured,
        };
        Self {
            at,
            seed: 0,
            on_offer,
            terms: terms.clone(),
            candidates: candidates.iter().map(seen).collect(),
            order: Vec::new(),
            dropped: Vec::new(),
        }
    }

    /// Notes what came of it.
    #[must_use]
    pub fn made(mut self, plan: &Plan) -> Self {
        self.seed = plan.seed;
        self.order = kept(plan);
        self.dropped = dropped(plan);
        self
    }

    fn again(&self) -> Plan {
        let candidates = self.candidates.iter().map(|seen| Candidate {
            goods: Arc::new(seen.goods.clone()),
            measured: Arc::new(seen.measured),
        });
        plan(&self.terms, candidates.collect(), self.seed)
    }

    /// Makes the decision again.
    ///
    /// # Errors
    /// [`Differs`], if another plan comes out.
    pub fn replay(&self) -> Result<(), Differs> {
        let plan = self.again();
        if let Some((place, recorded, replayed)) = difference(&self.order, &kept(&plan)) {
            return Err(Differs::Order {
                place: place + 1,
                recorded,
                replayed,
            });
        }
        match difference(&self.dropped, &dropped(&plan)) {
            None => Ok(()),
            Some((_, recorded, replayed)) => Err(Differs::Dropped { recorded, replayed }),
        }
    }

    /// The decision for people.
    #[must_use]
    pub fn explain(&self) -> RouteReport {
        explain::report(&self.terms, &self.again(), (self.at, self.on_offer))
    }
}

fn kept(plan: &Plan) -> Vec<Named> {
    let named = plan.choices.iter().map(|choice| Named {
        seller: choice.candidate.seller(),
        model: choice.candidate.model().id.clone(),
        reason: None,
    });
    named.collect()
}

fn dropped(plan: &Plan) -> Vec<Named> {
    let named = plan.dropped.iter().map(|dropped| Named {
        seller: dropped.seller,
        model: dropped.model.clone(),
        reason: Some(dropped.reason.to_string()),
    });
    named.collect()
}

/// The first place where two lists differ, and what stands there.
fn difference(recorded: &[Named], replayed: &[Named]) -> Option<(usize, String, String)> {
    let tell = |named: Option<&Named>| match named {
        None => "nobody".to_owned(),
        Some(Named {
            seller,
            model,
            reason,
        }) => {
            let reason = reason.as_deref().map(|reason| format!(" ({reason})"));
            format!(
                "{} with {model}{}",
                seller.short(),
                reason.unwrap_or_default()
            )
        }
    };
    let most = recorded.len().max(replayed.len());
    (0..most)
        .find(|place| recorded.get(*place) != replayed.get(*place))
        .map(|place| (place, tell(recorded.get(place)), tell(replayed.get(place))))
}
