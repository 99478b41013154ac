//! How much may be at risk at a seller: what it has proven, and a little for nothing.

use farthing_protocol::pricing::FIRST_WINDOW;

use crate::router::{Choice, Dropped, Reason};

/// Leaves out those where this purchase, beside those that run, would put more at risk than the
/// seller's credit, unless nobody has enough: then all stay, for an outage would be worse.
pub(super) fn within_credit(kept: Vec<Choice>, dropped: &mut Vec<Dropped>) -> Vec<Choice> {
    let over: Vec<_> = kept.iter().map(overdrawn).collect();
    if over.iter().all(Option::is_some) {
        return kept;
    }
    let mut choices = Vec::with_capacity(kept.len());
    for (choice, over) in kept.into_iter().zip(over) {
        let seller = choice.candidate.seller();
        match over {
            None => choices.push(choice),
            Some(reason) => dropped.push(Dropped { seller, reason }),
        }
    }
    choices
}

/// What is signed before work starts, for all purchases there as if they were like this one.
fn overdrawn(choice: &Choice) -> Option<Reason> {
    let measured = &choice.candidate.measured;
    let prices = &choice.candidate.model().prices;
    let opening = choice.demand.opening(prices, FIRST_WINDOW).ok()?;
    let each = opening.min(choice.max_cost);
    let running = u128::from(measured.in_flight).saturating_add(1);
    let needed = each.get().saturating_mul(running);
    let credit = measured.credit;
    (needed > credit.get()).then_some(Reason::Unproven {
        needed: farthing_protocol::amount::Amount::atoms(needed),
        credit,
    })
}
