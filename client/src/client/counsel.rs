//! What a person does for the wallet: says yes or no to dear purchases, and brings the signature
//! of a payer whose key is elsewhere.

use std::sync::Arc;
use std::time::Duration;

use alloy::hex;
use alloy::primitives::B256;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::x402::PayerSignature;

use crate::client::parts::Parts;
use crate::report::{
    ActionError, ActionReport, ApprovalReport, DepositWish, DraftReport, Permit2Report,
    Permit2Wish, Word,
};

/// The longest a prepared deposit may wait for its signature: a week.
const MAX_VALID: u64 = 7 * 86_400;
/// The fewest digits that name a purchase.
const DIGITS: usize = 8;

impl Parts {
    pub(in crate::client) async fn prepare_deposit(
        &self,
        wish: DepositWish,
    ) -> Result<DraftReport, ActionError> {
        if self.wallet.signs_deposits() {
            let text = "the payer's key is on this machine and signs by itself; set wallet.payer for one that is elsewhere";
            return Err(ActionError::Refused(text.into()));
        }
        let offer = self.offer_of(wish.seller)?;
        let valid = Duration::from_secs(wish.valid.clamp(60, MAX_VALID));
        let draft = self.channels.draft(&offer, wish.amount, valid).await?;
        let deposit = &draft.pending.deposit;
        Ok(DraftReport {
            id: draft.id,
            channel: draft.pending.channel,
            payer: draft.pending.config.payer,
            amount: deposit.amount,
            until: Timestamp(deposit.valid_before.saturating_mul(1000)),
            typed_data: draft.typed_data,
        })
    }

    pub(in crate::client) async fn import_deposit(
        &self,
        id: B256,
        signature: PayerSignature,
    ) -> Result<ActionReport, ActionError> {
        let pending = self.channels.import(id, signature).await?;
        let offer = self.offer_of(pending.seller).map_err(|_| {
            let text = "the signature is kept, and used when the seller has an offer again";
            ActionError::Unavailable(text.into())
        })?;
        self.channels.fund(&offer, &pending).await?;
        let amount = self.token().show(pending.deposit.amount);
        Ok(ActionReport {
            message: format!("deposited {amount}"),
            transaction: None,
            channel: self.channel_report(pending.channel).await?,
        })
    }

    pub(in crate::client) async fn allow_permit2(
        &self,
        wish: Permit2Wish,
    ) -> Result<Permit2Report, ActionError> {
        let allowed = wish.amount.unwrap_or(self.config.spend.per_day);
        let transaction = self.channels.allow_permit2(allowed).await?;
        Ok(Permit2Report {
            payer: self.wallet.payer(),
            allowed,
            transaction,
        })
    }

    pub(in crate::client) fn approvals(&self) -> Vec<ApprovalReport> {
        let all = self.ledger.approvals(self.clock.now()).into_iter();
        all.map(|(id, approval)| ApprovalReport { id, approval })
            .collect()
    }

    pub(in crate::client) async fn approve(
        &self,
        id: &str,
        word: Word,
    ) -> Result<ApprovalReport, ActionError> {
        let unknown = || ActionError::Unknown("such purchase, or it is made already".into());
        let wanted = id.trim_start_matches("0x").to_ascii_lowercase();
        if wanted.len() < DIGITS {
            let text = format!("name the purchase by {DIGITS} or more of its digits");
            return Err(ActionError::Refused(text));
        }
        let named = |report: &ApprovalReport| hex::encode(report.id).starts_with(&wanted);
        let mut found = self.approvals().into_iter().filter(named);
        let (first, second) = (found.next(), found.next());
        let id = first.filter(|_| second.is_none()).ok_or_else(unknown)?.id;
        let said = self.ledger.say(id, word, self.clock.now()).await?;
        let approval = said.ok_or_else(unknown)?;
        tracing::info!(purchase = %id, ?word, "a person's word on a purchase");
        Ok(ApprovalReport { id, approval })
    }

    fn offer_of(&self, seller: NodeId) -> Result<Arc<VerifiedOffer>, ActionError> {
        let gone = || ActionError::Unavailable("the seller has no offer now".to_owned());
        self.market.offer(seller).ok_or_else(gone)
    }
}
