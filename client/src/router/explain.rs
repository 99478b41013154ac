//! A plan for people: each seller kept or dropped, with the numbers.

use farthing_protocol::clock::Timestamp;

use crate::policy::Terms;
use crate::report::{RouteChoice, RouteDropped, RouteReport};
use crate::router::{Choice, Plan, Standing};

/// What became of everyone, of a decision at this time among so many on offer.
#[must_use]
pub fn report(terms: &Terms, plan: &Plan, (at, on_offer): (Timestamp, usize)) -> RouteReport {
    let dropped = plan.dropped.iter().map(|dropped| RouteDropped {
        seller: dropped.seller,
        model: dropped.model.clone(),
        reason: dropped.reason.to_string(),
    });
    RouteReport {
        at,
        seed: plan.seed,
        models: terms.models.clone(),
        rule: terms.rule.clone(),
        strategy: match terms.preferences.sort {
            Some(sort) => format!("by {sort:?} alone").to_lowercase(),
            None => format!("{:?}", terms.strategy).to_lowercase(),
        },
        attempts: terms.attempts,
        on_offer,
        kept: plan.choices.iter().map(kept).collect(),
        dropped: dropped.collect(),
    }
}

fn kept(choice: &Choice) -> RouteChoice {
    let measured = &choice.candidate.measured;
    RouteChoice {
        seller: choice.candidate.seller(),
        model: choice.candidate.model().id.clone(),
        score: choice.score,
        cost: choice.expected.cost.ceil(),
        max_cost: choice.max_cost,
        first_token_ms: choice.expected.first_token,
        total_ms: choice.expected.millis,
        success: measured.success,
        purchases: measured.weight,
        in_flight: measured.in_flight,
        load: measured.load,
        standing: match choice.standing {
            Standing::Score => None,
            other => Some(word(other).to_owned()),
        },
        why: choice.to_string(),
    }
}

const fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Score => "score",
        Standing::Warm => "warm",
        Standing::Explored => "explored",
        Standing::LastResort(_) => "last resort",
    }
}
