//! Scheme `batch-settlement`: the checks a payment passes, in their order, and the sale.
//!
//! A voucher is money to whoever brings it, so its signature is checked before anything else is
//! said about the channel: a stranger learns and holds up nothing.

use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{B256, keccak256};
use axum::response::{IntoResponse, Response};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::ChainError;
use farthing_protocol::payment::{
    self, Batch, BatchDeposit, BatchRefund, Caip2, ChannelState, Reason, VoucherState,
};
use farthing_protocol::purchase::{Ask, Mode, Refusal, RequestId};
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use serde_json::json;

use crate::calls::Terms;
use crate::http::Shared;
use crate::http::answer::{self, Form, Paid, Telling};
use crate::http::crowd::Room;
use crate::http::problem::{Denied, Standing};
use crate::http::quote::Quote;
use crate::http::sale as sales;
use crate::http::turns::Turn;
use crate::http::window::Means;
use crate::http::witness::Witness;
use crate::ledger::{ChannelView, LedgerError};
use crate::settlement::SettlementError;

/// The least time a deposit's authorization must still be valid.
const DEPOSIT_MARGIN: Duration = Duration::from_secs(30);
/// How long a client is kept waiting for its transaction.
const MINING: Duration = Duration::from_secs(120);

/// A payment whose signature is good, with the right to use its channel.
struct Claimed {
    id: ChannelId,
    config: ChannelConfig,
    voucher: SignedVoucher,
    turn: Turn,
}

impl Claimed {
    const fn ceiling(&self) -> Amount {
        self.voucher.message.ceiling
    }
}

/// Sells what was quoted, paid by a voucher.
pub(in crate::http) async fn buy(
    shared: &Arc<Shared>,
    quote: &Quote,
    payment: Batch,
    room: Room,
) -> Result<Response, Denied> {
    let asked = keccak256(&quote.body);
    let claimed = claim(shared, &payment, asked, quote.amount).await?;
    let view = known(shared, &claimed).await?;
    let claimed = follows(shared, claimed, view.as_ref(), quote.amount).await?;
    let mut paid = Paid {
        form: Form::Now(Caip2(shared.desk.terms.network.chain_id)),
        payer: claimed.config.payer,
        transaction: None,
        moved: None,
    };
    if let Batch::Deposit(deposit) = &payment {
        let terms = deposit_terms(shared, &claimed, deposit, view.as_ref())?;
        exposed(shared, claimed.config.payer)?;
        paid.moved = Some(terms.amount);
        paid.transaction = Some(submit(shared, &claimed, terms).await?);
    }
    let landed = paid.transaction.is_some();
    let before = standing(shared, &claimed).await;
    match sale(shared, quote, claimed, (before.as_ref().ok(), &paid), room).await {
        Err(denied) if landed => {
            // The deposit is made whatever became of the rest: the client must hear of it.
            let mut response = answer::denied(shared, quote, denied);
            if let Ok(before) = before {
                let told = paid.header(Amount::ZERO, Some(before), None);
                paid.tell(response.headers_mut(), &told);
            }
            Ok(response)
        }
        other => other,
    }
}

/// Runs the sale beside the response, which only tells of it.
async fn sale(
    shared: &Arc<Shared>,
    quote: &Quote,
    claimed: Claimed,
    (before, paid): (Option<&ChannelState>, &Paid),
    room: Room,
) -> Result<Response, Denied> {
    let before = before.cloned().ok_or(Reason::BatchNotFound)?;
    covered(shared, &claimed)?;
    let ask = ask(shared, quote, &claimed)?;
    let telling = Telling {
        paid: paid.clone(),
        before: Some(before),
        witness: Witness::of(shared, quote, (paid.form, paid.payer)),
    };
    let means = (Means::Voucher, quote.shows_all_usage());
    let words = sales::begin(shared, ask, means, (claimed.turn, room));
    match quote.mode {
        Mode::Plain => telling.document(words).await,
        Mode::Stream => telling.events(words).await,
    }
}

fn ask(shared: &Shared, quote: &Quote, claimed: &Claimed) -> Result<Ask, Denied> {
    let view = shared.desk.shop.ledger.channel(claimed.id);
    let view = view.ok_or(Reason::BatchNotFound)?;
    let deadline = shared.desk.shop.limits.deadline.as_millis();
    Ok(Ask {
        request: RequestId(payment::voucher_request(
            claimed.id,
            claimed.ceiling(),
            view.channel.receipts(),
        )),
        offer: quote.offer.hash(),
        model: quote.model.clone(),
        endpoint: quote.endpoint,
        mode: quote.mode,
        max_cost: quote.amount,
        deadline_ms: u64::try_from(deadline).unwrap_or(u64::MAX),
        channel: claimed.id,
        voucher: Some(claimed.voucher),
        ack: None,
        body: quote.body.clone(),
    })
}

/// Checks what can be checked without the channel, and waits for its turn there.
async fn claim(
    shared: &Shared,
    payment: &Batch,
    asked: B256,
    amount: Amount,
) -> Result<Claimed, Denied> {
    let terms = &shared.desk.terms;
    let config = *payment.config();
    ours(terms, &config)?;
    let id = named(terms, payment)?;
    let voucher = signed(shared, payment)?;
    let ceiling = voucher.message.ceiling;
    let ledger = &shared.desk.shop.ledger;
    let fits = || {
        let view = ledger.channel(id);
        view.is_some_and(|view| view.channel.charged().add(amount) == Ok(ceiling))
    };
    let known = ledger.channel(id).is_some();
    let turn = shared.turns.take(id, asked, known, fits).await?;
    Ok(Claimed {
        id,
        config,
        voucher,
        turn,
    })
}

/// A channel that is not exactly ours could not be claimed from.
fn ours(terms: &Terms, config: &ChannelConfig) -> Result<(), Reason> {
    let checks = [
        (Reason::BatchReceiver, config.receiver == terms.payout),
        (
            Reason::BatchReceiverAuthorizer,
            config.receiver_authorizer == terms.claim,
        ),
        (Reason::BatchToken, config.token == terms.network.token),
        (
            Reason::BatchWithdrawDelay,
            config.withdraw_delay == terms.withdraw_delay,
        ),
        (Reason::InvalidPayload, !config.payer.is_zero()),
        // Zero would mean that a contract is asked, which may change its mind.
        (Reason::BatchSignature, !config.payer_authorizer.is_zero()),
    ];
    match checks.into_iter().find(|(_, holds)| !holds) {
        Some((reason, _)) => Err(reason),
        None => Ok(()),
    }
}

/// The channel's name is the hash of its terms, which bind chain and contract.
fn named(terms: &Terms, payment: &Batch) -> Result<ChannelId, Reason> {
    let id = payment.config().id(&terms.network);
    if payment.voucher().channel_id == id {
        Ok(id)
    } else {
        Err(Reason::BatchChannelId)
    }
}

/// Always checked, also of a voucher that is stale or known.
fn signed(shared: &Shared, payment: &Batch) -> Result<SignedVoucher, Reason> {
    let signed = payment.voucher().signed().ok_or(Reason::BatchSignature)?;
    let key = payment.config().payer_authorizer;
    match signed.verify(&shared.desk.shop.domain, key) {
        Ok(_) => Ok(signed),
        Err(error) => {
            tracing::debug!(%error, "a voucher's signature is not taken");
            Err(Reason::BatchSignature)
        }
    }
}

/// The channel, from our books, or from the chain if it was opened elsewhere or we forgot it.
async fn known(shared: &Shared, claimed: &Claimed) -> Result<Option<ChannelView>, Denied> {
    let ledger = &shared.desk.shop.ledger;
    if let Some(view) = ledger.channel(claimed.id) {
        return Ok(Some(view));
    }
    let settlement = &shared.desk.settlement;
    match settlement.adopt(claimed.config, claimed.id).await {
        Ok(view) => Ok(Some(view)),
        Err(SettlementError::Ledger(LedgerError::NoChannel)) => Ok(None),
        Err(SettlementError::Shallow) => Err(Reason::SettlementPending.into()),
        Err(SettlementError::Chain(error)) => Err(chain_away(&error).into()),
        Err(error) => {
            tracing::warn!(%error, "a channel cannot be taken in");
            Err(Refusal::Unavailable("the channel cannot be looked at now".to_owned()).into())
        }
    }
}

/// The voucher must be over exactly what was charged and this price. One that is not is told what
/// was charged, and its turn is kept: before a deposit is submitted, and before any work.
async fn follows(
    shared: &Shared,
    claimed: Claimed,
    view: Option<&ChannelView>,
    more: Amount,
) -> Result<Claimed, Denied> {
    let charged = view.map(|view| view.channel.charged()).unwrap_or_default();
    if charged.add(more) == Ok(claimed.ceiling()) {
        return Ok(claimed);
    }
    let onchain = view.map(|view| view.channel.claimed()).unwrap_or_default();
    let reason = if claimed.ceiling() < onchain {
        Reason::BatchBelowClaimed
    } else {
        Reason::BatchMismatch
    };
    let channel = standing(shared, &claimed).await?;
    let voucher = view.and_then(|view| view.voucher).map(|best| VoucherState {
        signed_max_claimable: best.message.ceiling,
        signature: best.signature.to_bytes(),
    });
    if view.is_some() {
        claimed.turn.keep();
    }
    Err(Denied::Behind(
        reason,
        Box::new(Standing { channel, voucher }),
    ))
}

/// What the deposit and the armed withdrawal leave must pay for it all.
fn covered(shared: &Shared, claimed: &Claimed) -> Result<(), Denied> {
    let view = shared.desk.shop.ledger.channel(claimed.id);
    let view = view.ok_or(Reason::BatchNotFound)?;
    if claimed.ceiling() > view.channel.available() {
        return Err(Reason::BatchExceedsBalance.into());
    }
    Ok(())
}

/// A deposit worth its gas, still valid for a while, that makes the voucher good.
fn deposit_terms(
    shared: &Shared,
    claimed: &Claimed,
    payment: &BatchDeposit,
    view: Option<&ChannelView>,
) -> Result<Deposit, Reason> {
    let deposit = payment.terms().ok_or(Reason::BatchAuthorization)?;
    if deposit.amount < shared.desk.terms.min_deposit {
        return Err(Reason::BatchMinDeposit);
    }
    let now = shared.desk.shop.clock.now();
    if deposit.valid_before < now.plus(DEPOSIT_MARGIN).seconds() {
        return Err(Reason::BatchValidBefore);
    }
    if deposit.valid_after >= now.seconds() {
        return Err(Reason::BatchValidAfter);
    }
    let there = view
        .map(|view| view.channel.available())
        .unwrap_or_default();
    if claimed.ceiling() > there.saturating_add(deposit.amount) {
        return Err(Reason::BatchExceedsBalance);
    }
    Ok(deposit)
}

/// No gas is spent for a payer that is not served anyway.
fn exposed(shared: &Shared, payer: alloy::primitives::Address) -> Result<(), Refusal> {
    let owed = shared.desk.shop.ledger.exposure(payer);
    if owed >= shared.desk.shop.limits.exposure {
        let text =
            "the payer's unclaimed charges have reached this seller's limit; a claim is on its way";
        return Err(Refusal::Unavailable(text.to_owned()));
    }
    Ok(())
}

/// Submits a deposit and waits until it is mined.
async fn submit(shared: &Shared, claimed: &Claimed, deposit: Deposit) -> Result<B256, Denied> {
    let settlement = &shared.desk.settlement;
    match settlement.consents(&claimed.config, &deposit).await {
        Ok(true) => {}
        Ok(false) => return Err(Reason::BatchDepositSignature.into()),
        Err(error) => return Err(chain_away(&error).into()),
    }
    let mined = tokio::time::timeout(MINING, settlement.deposit(claimed.config, deposit)).await;
    let moved = mined.map_err(|_| Reason::SettlementPending)?;
    moved
        .map(|moved| moved.transaction)
        .map_err(|error| match error {
            SettlementError::Chain(ChainError::Reverted { name }) => {
                tracing::debug!(%name, "the contract refuses a deposit");
                Reason::BatchDepositSimulation.into()
            }
            SettlementError::Chain(error) if error.is_unavailable() => chain_away(&error).into(),
            SettlementError::Failed(_) => Reason::BatchDepositFailed.into(),
            SettlementError::Busy => Reason::BatchBusy.into(),
            SettlementError::Shallow | SettlementError::Late => Reason::SettlementPending.into(),
            error => {
                tracing::warn!(%error, "a deposit was not made");
                Reason::BatchDepositFailed.into()
            }
        })
}

fn chain_away(error: &ChainError) -> Refusal {
    tracing::warn!(%error, "the chain does not answer");
    Refusal::Unavailable("the chain does not answer".to_owned())
}

/// What we hold of the channel.
async fn standing(shared: &Shared, claimed: &Claimed) -> Result<ChannelState, Denied> {
    let view = shared.desk.shop.ledger.channel(claimed.id);
    let channel = view.map(|view| view.channel).unwrap_or_default();
    let mut withdraw_requested_at = 0;
    if !channel.armed().is_zero() {
        let pending = shared.chain.pending_withdrawal(claimed.id).await;
        let asked = pending.map_err(|error| chain_away(&error))?;
        withdraw_requested_at = asked.map_or(0, |withdrawal| withdrawal.initiated_at);
    }
    Ok(ChannelState {
        channel_id: claimed.id,
        balance: channel.balance(),
        total_claimed: channel.claimed(),
        withdraw_requested_at,
        refund_nonce: None,
        charged_cumulative_amount: Some(channel.charged()),
    })
}

/// Gives back the rest of a channel, or part of it. Asked for by a voucher over what was charged
/// and no more.
pub(in crate::http) async fn refund(
    shared: &Arc<Shared>,
    payment: BatchRefund,
) -> Result<Response, Denied> {
    let most = payment.amount;
    if most == Some(Amount::ZERO) {
        return Err(Reason::BatchRefundAmount.into());
    }
    let claimed = claim(shared, &Batch::Refund(payment), B256::ZERO, Amount::ZERO).await?;
    let view = known(shared, &claimed)
        .await?
        .ok_or(Reason::BatchNotFound)?;
    let claimed = follows(shared, claimed, Some(&view), Amount::ZERO).await?;
    // Each refund costs us a transaction: a small part of the rest is not worth one.
    let balance = view.channel.balance();
    let rest = balance.saturating_sub(view.channel.charged());
    if most.is_some_and(|most| most < rest && most < shared.desk.terms.min_deposit) {
        return Err(Reason::BatchRefundAmount.into());
    }
    let asked = shared.desk.settlement.refund(claimed.id, most);
    let waited = tokio::time::timeout(MINING, asked).await;
    let moved = waited.map_err(|_| Reason::SettlementPending)?;
    let moved = moved.map_err(|error| match error {
        SettlementError::InUse => Reason::BatchBusy,
        SettlementError::Nothing => Reason::BatchRefundNothing,
        SettlementError::Late => Reason::SettlementPending,
        error => {
            tracing::warn!(%error, "a refund was not made");
            Reason::BatchRefundFailed
        }
    })?;
    let paid = Paid {
        form: Form::Now(Caip2(shared.desk.terms.network.chain_id)),
        payer: claimed.config.payer,
        transaction: Some(moved.transaction),
        moved: Some(moved.amount),
    };
    let now = standing(shared, &claimed).await?;
    let told = paid.header(Amount::ZERO, Some(now), None);
    let mut response = answer::free(&json!({ "refunded": moved.amount })).into_response();
    paid.tell(response.headers_mut(), &told);
    Ok(response)
}
