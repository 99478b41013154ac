//! What was earned, what is at risk, and why.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::x402::ChannelId;
use tokio::time::timeout;

use crate::control::{CHAIN_WAIT, Desk};
use crate::ledger::ChannelView;
use crate::ledger::records::Purpose;
use crate::report::{ChannelEarnings, Earnings, Sums, Transaction, Why};
use crate::settlement::{InFlight, Outlook};

/// Answers `/earnings`.
pub(in crate::control) async fn earnings(State(desk): State<Arc<Desk>>) -> Json<Earnings> {
    let outlook = desk.node.settlement().outlook();
    let mut channels = Vec::new();
    for (id, view) in desk.node.ledger().channels() {
        let waits = outlook.unconfirmed.contains_key(&id);
        if !view.channel.charged().is_zero() || !view.channel.armed().is_zero() || waits {
            channels.push(desk.channel(id, &view, &outlook).await);
        }
    }
    channels.sort_by_key(|channel| std::cmp::Reverse(channel.sums.at_risk));
    let total = channels
        .iter()
        .fold(Sums::default(), |sum, channel| sum.plus(channel.sums));
    // Payments that have left the books were earned all the same.
    let retired = desk.node.ledger().retired();
    let total = total.plus(Sums {
        charged: retired.charged,
        claimed: retired.taken,
        ..Sums::default()
    });
    let payouts = timeout(
        CHAIN_WAIT,
        desk.node.chain().payouts(desk.node.terms().payout),
    )
    .await;
    let settled = payouts
        .ok()
        .and_then(Result::ok)
        .map(|payouts| payouts.settled);
    let unconfirmed = outlook.unconfirmed.values().copied();
    Json(Earnings {
        token: desk.token(),
        total,
        settled,
        unconfirmed: unconfirmed.fold(Amount::ZERO, Amount::saturating_add),
        trouble: outlook.trouble.clone(),
        reorganisations: outlook.reorganisations,
        in_flight: outlook.in_flight.iter().map(transaction).collect(),
        channels,
    })
}

fn transaction(one: &InFlight) -> Transaction {
    let (purpose, channel) = match one.purpose {
        Purpose::Deposit { channel, .. } => ("deposit", Some(channel)),
        Purpose::Claim => ("claim", None),
        Purpose::Settle => ("settle", None),
        Purpose::Once(channel) => ("single payment", Some(channel)),
        Purpose::Refund(channel) => ("refund", Some(channel)),
        Purpose::Filler => ("filler", None),
    };
    Transaction {
        purpose: purpose.to_owned(),
        channel,
        hash: one.hash,
        nonce: one.nonce,
        signed: one.signed,
        fee: one.fee,
        attempts: one.attempts as u64,
        mined: one.mined,
    }
}

impl Desk {
    async fn channel(
        &self,
        id: ChannelId,
        view: &ChannelView,
        outlook: &Outlook,
    ) -> ChannelEarnings {
        let channel = view.channel;
        let claiming = outlook.claiming.contains_key(&id);
        let lost = outlook.lost(id, view);
        let at_risk = channel.unclaimed().saturating_sub(lost);
        ChannelEarnings {
            channel: id,
            payer: view.config.payer,
            receipts: channel.receipts(),
            sums: Sums {
                charged: channel.charged(),
                claimed: channel.claimed(),
                at_risk,
                in_flight: if claiming { at_risk } else { Amount::ZERO },
                lost,
            },
            ceiling: view
                .voucher
                .as_ref()
                .map_or(Amount::ZERO, |voucher| voucher.message.ceiling),
            armed: channel.armed(),
            unconfirmed: outlook.unconfirmed.get(&id).copied().unwrap_or_default(),
            since: outlook.since.get(&id).copied(),
            why: self.why(id, view, outlook).await,
        }
    }

    async fn why(&self, id: ChannelId, view: &ChannelView, outlook: &Outlook) -> Why {
        let channel = view.channel;
        if let Some(why) = outlook.refused.get(&id) {
            return Why::Refused { why: why.clone() };
        }
        if let Some(holds) = outlook.short.get(&id).copied() {
            let lost = outlook.lost(id, view);
            return Why::Short { holds, lost };
        }
        if let Some(at) = self.leaving(id, view).await {
            return Why::Leaving { at };
        }
        if channel.unclaimed().is_zero() {
            return Why::Safe;
        }
        if view.voucher.is_none() {
            return Why::Uncovered;
        }
        if let Some(transaction) = outlook.claiming.get(&id).copied() {
            return Why::Claiming { transaction };
        }
        if outlook.away {
            return Why::ChainAway;
        }
        if let Some(why) = outlook.trouble.clone() {
            return Why::Held { why };
        }
        let policy = &self.config.settlement;
        let now = self.clock.now();
        let since = outlook.since.get(&id).copied().unwrap_or(now);
        let claim_by = since.plus(policy.claim_age);
        if channel.unclaimed() >= policy.claim_at || claim_by <= now {
            Why::Due
        } else {
            Why::Small { claim_by }
        }
    }

    /// When an armed withdrawal can be executed.
    async fn leaving(&self, id: ChannelId, view: &ChannelView) -> Option<Timestamp> {
        if view.channel.armed().is_zero() {
            return None;
        }
        let pending = timeout(CHAIN_WAIT, self.node.chain().pending_withdrawal(id))
            .await
            .ok()?
            .ok()??;
        let seconds = pending
            .initiated_at
            .saturating_add(view.config.withdraw_delay);
        Some(Timestamp(seconds.saturating_mul(1000)))
    }
}
