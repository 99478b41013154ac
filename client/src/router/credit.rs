//! How much may be at risk at a seller: what it has proven, and a little for nothing.

use farthing_protocol::amount::Amount;

use crate::router::filter::opening;
use crate::router::{Choice, Dropped, Reason, left_out};

/// Leaves out those where this purchase, beside those that run, would put more at risk than the
/// seller's credit, unless no seller of the model has enough: then all stay, for an outage would
/// be worse.
pub(super) fn within_credit(kept: Vec<Choice>, dropped: &mut Vec<Dropped>) -> Vec<Choice> {
    let over: Vec<_> = kept.iter().map(overdrawn).collect();
    if over.iter().all(Option::is_none) {
        return kept;
    }
    let judged = kept.iter().zip(&over);
    let trusted = judged.filter(|(_, over)| over.is_none());
    let models: Vec<_> = trusted
        .map(|(choice, _)| choice.candidate.model().id.clone())
        .collect();
    let mut choices = Vec::with_capacity(kept.len());
    for (choice, over) in kept.into_iter().zip(over) {
        match over.filter(|_| models.contains(&choice.candidate.model().id)) {
            None => choices.push(choice),
            Some(reason) => dropped.push(left_out(&choice.candidate.goods, reason)),
        }
    }
    choices
}

/// What is signed before work starts, for all purchases there as if they were like this one.
fn overdrawn(choice: &Choice) -> Option<Reason> {
    let measured = &choice.candidate.measured;
    let prices = &choice.candidate.model().prices;
    let opening = opening(&choice.demand, prices).ok()?.ceil();
    let each = opening.min(choice.max_cost);
    let running = measured.at_seller.max(measured.in_flight);
    let running = u128::from(running).saturating_add(1);
    let needed = Amount::atoms(each.get().saturating_mul(running));
    let credit = measured.credit;
    (needed > credit).then_some(Reason::Unproven { needed, credit })
}
