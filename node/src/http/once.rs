//! Schemes `exact` and `upto`: a payment made for one purchase.
//!
//! It is entered into the books before work, so that it buys once. `exact` is taken in full before
//! anything is handed over; `upto` for what was used, before a document is handed over and after a
//! stream, and at least what is worth a transaction. What could not be taken although it was used
//! stays in the books as owed, and is tried again now and then and at the next start.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::eip712::Signed;
use farthing_protocol::payment::scheme::signature;
use farthing_protocol::payment::{self, Exact, PaymentRequirements, Reason, Upto};
use farthing_protocol::purchase::{Ask, Mode, Refusal, RequestId};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Permit, Transfer, UPTO_PROXY};

use crate::http::Shared;
use crate::http::answer::{Form, Paid, Telling};
use crate::http::crowd::Room;
use crate::http::problem::Denied;
use crate::http::quote::Quote;
use crate::http::sale;
use crate::http::window::{Means, Ordered};
use crate::http::witness::Witness;
use crate::ledger::Ledger;
use crate::ledger::once::Once;
use crate::settlement::{Fate, Settlement, SettlementError};

/// How long before a payment ends its sale does: until it is mined.
const SETTLE: Duration = Duration::from_secs(45);
/// The least time a payment must still be valid.
const MARGIN: Duration = Duration::from_secs(60);

/// Sells what was quoted, paid by a payment for this purchase alone.
pub(in crate::http) async fn buy(
    shared: &Arc<Shared>,
    quote: &Quote,
    (way, once, form): (&PaymentRequirements, Once, Form),
    room: Room,
) -> Result<Response, Denied> {
    let terms = &shared.desk.terms;
    let config = ChannelConfig {
        token: terms.network.token,
        ..once.terms(terms.claim)
    };
    let id = config.id(&terms.network);
    if shared.desk.shop.ledger.channel(id).is_some() {
        return Err(used(&once).into());
    }
    let funds = fresh(&shared.chain, &once).await?;
    let telling = Telling {
        paid: Paid {
            form,
            payer: config.payer,
            transaction: None,
            moved: None,
        },
        before: None,
        witness: Witness::of(shared, quote, (form, config.payer)),
    };
    let least = match once {
        Once::Exact(_) => way.amount,
        Once::Upto(_) => shared.settings.min_single.min(way.amount),
    };
    let means = Means::Once {
        once,
        id,
        config,
        funds,
        least,
        settlement: shared.desk.settlement.clone(),
        ordered: Arc::clone(&shared.ordered),
        streams: quote.mode == Mode::Stream,
    };
    let ask = ask(shared, quote, (id, way.amount), &once);
    let words = sale::begin(shared, ask, (means, quote.shows_all_usage()), room);
    match quote.mode {
        Mode::Plain => telling.document(words).await,
        Mode::Stream => telling.events(words).await,
    }
}

/// The sale ends while its payment can still be taken.
fn ask(
    shared: &Shared,
    quote: &Quote,
    (channel, max_cost): (ChannelId, Amount),
    once: &Once,
) -> Ask {
    let shop = &shared.desk.shop;
    let left = once.until().saturating_sub(shop.clock.now().seconds());
    let left = Duration::from_secs(left).saturating_sub(SETTLE);
    let deadline = shop.limits.deadline.min(left).as_millis();
    Ask {
        request: RequestId(payment::once_request(channel)),
        offer: quote.offer.hash(),
        model: quote.model.clone(),
        endpoint: quote.endpoint,
        mode: quote.mode,
        max_cost,
        deadline_ms: u64::try_from(deadline).unwrap_or(u64::MAX),
        channel,
        voucher: None,
        ack: None,
        body: quote.body.clone(),
    }
}

pub(in crate::http) const fn used(once: &Once) -> Reason {
    match once {
        Once::Exact(_) => Reason::ExactNonceUsed,
        Once::Upto(_) => Reason::UptoNonceUsed,
    }
}

/// An `exact` payment, checked as far as it can be without the chain.
///
/// # Errors
/// The [`Reason`] it is not taken for.
pub(in crate::http) fn exact(
    shared: &Shared,
    way: &PaymentRequirements,
    payment: &Exact,
) -> Result<Once, Reason> {
    let signed = &payment.authorization;
    let now = shared.desk.shop.clock.now();
    let checks = [
        (Reason::ExactRecipient, signed.to == way.pay_to),
        (Reason::ExactValue, signed.value == way.amount),
        (Reason::ExactValidAfter, signed.valid_after < now.seconds()),
        (
            Reason::ExactValidBefore,
            signed.valid_before >= now.plus(MARGIN).seconds(),
        ),
        (Reason::ExactSignature, !signed.from.is_zero()),
    ];
    holds(&checks)?;
    let message = Transfer {
        from: signed.from,
        to: signed.to,
        amount: signed.value,
        valid_after: signed.valid_after,
        valid_before: signed.valid_before,
        nonce: signed.nonce,
    };
    let signature = signature(&payment.signature).ok_or(Reason::ExactSignature)?;
    let signed = Signed { message, signature };
    let domain = shared.desk.terms.network.token_domain();
    let verified = signed.verify(&domain, message.from);
    verified.map_err(|_| Reason::ExactSignature)?;
    Ok(Once::Exact(signed))
}

/// An `upto` payment, checked as far as it can be without the chain.
///
/// # Errors
/// The [`Reason`] it is not taken for.
pub(in crate::http) fn upto(
    shared: &Shared,
    way: &PaymentRequirements,
    payment: &Upto,
) -> Result<Once, Reason> {
    let signed = &payment.permit2_authorization;
    let terms = &shared.desk.terms;
    let now = shared.desk.shop.clock.now();
    let checks = [
        (Reason::UptoSpender, signed.spender == UPTO_PROXY),
        (Reason::UptoToken, signed.permitted.token == way.asset),
        (Reason::UptoAmount, signed.permitted.amount == way.amount),
        (Reason::UptoRecipient, signed.witness.to == way.pay_to),
        (
            Reason::UptoFacilitator,
            signed.witness.facilitator == terms.claim,
        ),
        (
            Reason::UptoNotYet,
            signed.witness.valid_after <= now.seconds(),
        ),
        (
            Reason::UptoDeadline,
            signed.deadline >= now.plus(MARGIN).seconds(),
        ),
        (Reason::UptoSignature, !signed.from.is_zero()),
    ];
    holds(&checks)?;
    let message = Permit {
        owner: signed.from,
        token: signed.permitted.token,
        ceiling: signed.permitted.amount,
        nonce: signed.nonce,
        deadline: signed.deadline,
        to: signed.witness.to,
        facilitator: signed.witness.facilitator,
        valid_after: signed.witness.valid_after,
    };
    let signature = signature(&payment.signature).ok_or(Reason::UptoSignature)?;
    let signed = Signed { message, signature };
    let domain = Permit::domain(terms.network.chain_id);
    let verified = signed.verify(&domain, message.owner);
    verified.map_err(|_| Reason::UptoSignature)?;
    Ok(Once::Upto(signed))
}

fn holds(checks: &[(Reason, bool)]) -> Result<(), Reason> {
    match checks.iter().find(|(_, holds)| !holds) {
        Some((reason, _)) => Err(*reason),
        None => Ok(()),
    }
}

/// The chain's word: not used yet, and the money is there. Returns what the payer can pay.
async fn fresh(chain: &Chain, once: &Once) -> Result<Amount, Denied> {
    let checked = match once {
        Once::Exact(transfer) => fresh_transfer(chain, &transfer.message).await,
        Once::Upto(permit) => fresh_permit(chain, &permit.message).await,
    };
    let checked = checked.map_err(|error| {
        tracing::warn!(%error, "a payment cannot be looked up");
        Refusal::Unavailable("the chain does not answer".to_owned())
    })?;
    Ok(checked?)
}

async fn fresh_transfer(
    chain: &Chain,
    transfer: &Transfer,
) -> Result<Result<Amount, Reason>, ChainError> {
    let (used, balance) = tokio::try_join!(
        chain.authorization_used(transfer.from, transfer.nonce),
        chain.token_balance(transfer.from)
    )?;
    Ok(match () {
        () if used => Err(Reason::ExactNonceUsed),
        () if balance < transfer.amount => Err(Reason::ExactBalance),
        () => Ok(balance),
    })
}

async fn fresh_permit(
    chain: &Chain,
    permit: &Permit,
) -> Result<Result<Amount, Reason>, ChainError> {
    let (used, balance, allowance) = tokio::try_join!(
        chain.permit_used(permit.owner, permit.nonce),
        chain.token_balance(permit.owner),
        chain.permit2_allowance(permit.owner)
    )?;
    Ok(match () {
        () if used => Err(Reason::UptoNonceUsed),
        () if allowance < permit.ceiling => Err(Reason::UptoAllowance),
        () if balance < permit.ceiling => Err(Reason::UptoBalance),
        () => Ok(balance.min(allowance)),
    })
}

/// What it takes to end payments: the chain, the books, and who sends transactions.
#[derive(Debug, Clone, Copy)]
pub(in crate::http) struct Purse<'a> {
    pub(in crate::http) chain: &'a Chain,
    pub(in crate::http) ordered: &'a Ordered,
    pub(in crate::http) ledger: &'a Ledger,
    pub(in crate::http) settlement: &'a Settlement,
}

/// Ends what a crash left: what is owed is taken, what was not used is forgotten. `left` is what
/// was there before the door opened. Returns those for which nothing is owed and of which it is not
/// known yet whether they were taken, to be looked at again.
pub(in crate::http) async fn resume(
    purse: Purse<'_>,
    left: Vec<(ChannelId, Once)>,
) -> Vec<(ChannelId, Once)> {
    let mut unknown = Vec::new();
    for (id, once) in left {
        // What is gone has ended otherwise.
        let Some(view) = purse.ledger.channel(id) else {
            continue;
        };
        let (charged, claimed) = (view.channel.charged(), view.channel.claimed());
        if claimed.is_zero() && !try_end(purse, (id, once), charged).await && charged.is_zero() {
            unknown.push((id, once));
        }
    }
    unknown
}

/// Takes what is owed for sales that are over, and ends those whose taking ended in doubt.
pub(in crate::http) async fn collect(purse: Purse<'_>) {
    let ledger = purse.ledger;
    let untaken = ledger.untaken().unwrap_or_else(|error| {
        tracing::error!(%error, "payments that were not taken cannot be read");
        Vec::new()
    });
    for (id, once) in untaken {
        let Some(view) = ledger.channel(id) else {
            continue;
        };
        let channel = view.channel;
        let is_owed = !channel.unclaimed().is_zero();
        // Entered a moment ago, it was not tried; tried, it has bought nothing.
        let in_doubt = || {
            let tried = ledger.asked_of_once(id).is_ok_and(|asked| asked.is_some());
            tried && !purse.ordered.has(id)
        };
        if channel.reserved().is_zero() && (is_owed || in_doubt()) {
            try_end(purse, (id, once), channel.charged()).await;
        }
    }
}

/// Whether it has ended.
async fn try_end(purse: Purse<'_>, (id, once): (ChannelId, Once), charged: Amount) -> bool {
    let ended = end(purse, (id, once), charged).await;
    ended.unwrap_or_else(|error| {
        tracing::warn!(channel = %id.short(), %error, "a payment is not taken; it is tried again");
        false
    })
}

async fn end(
    purse: Purse<'_>,
    (id, once): (ChannelId, Once),
    charged: Amount,
) -> Result<bool, SettlementError> {
    let Purse {
        chain,
        ledger,
        settlement,
        ..
    } = purse;
    let nothing = charged.is_zero();
    match settlement.fate(id, &once).await? {
        // What a crash left on its way is looked after; until it ends it has bought nothing else.
        Fate::UnderWay => return Ok(false),
        Fate::Taken => {
            if nothing {
                tracing::warn!(channel = %id.short(), "a payment was taken for a purchase that a crash cut off");
            }
            let asked = ledger.asked_of_once(id)?;
            let taken = match asked.filter(|_| nothing) {
                Some(asked) => asked,
                None if nothing => once.ceiling(),
                None => charged,
            };
            ledger.took_once(id, taken).await?;
        }
        Fate::Open | Fate::Cancelled if nothing => ledger.void_once(id).await?,
        Fate::Open if chain.latest().await?.timestamp > once.until() => {
            tracing::error!(channel = %id.short(), %charged, "a payment was not taken in its time: it stays owed");
            ledger.lose_once(id).await?;
        }
        Fate::Open => {
            settlement.take(id, once, charged).await?;
            ledger.took_once(id, charged).await?;
        }
        Fate::Cancelled => {
            tracing::error!(channel = %id.short(), %charged, "a payer has cancelled a payment after it was used: it stays owed");
            ledger.lose_once(id).await?;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
