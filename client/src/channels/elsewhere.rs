//! Deposits of a payer whose key is elsewhere: prepared here, signed there, taken back.
//!
//! What is prepared is recorded and bounded. What comes back is believed only when the payer's
//! account takes it, asked on our own chain node; from then on it is a recorded deposit like any
//! other.

use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::{ChannelConfig, DepositTerms, PayerSignature};
use serde_json::Value;

use crate::channels::deposit::fresh_salt;
use crate::channels::{ChannelError, Channels, unspent};
use crate::ledger::{Account, DEPOSITS, DRAFTS, LedgerError, PendingDeposit};

/// The most deposits that wait to be signed.
const MAX_DRAFTS: usize = 32;

/// A deposit that the payer is to sign.
#[derive(Debug, Clone)]
pub struct Draft {
    /// The hash to be signed, and its name here.
    pub id: B256,
    /// The deposit, unsigned.
    pub pending: PendingDeposit,
    /// What `eth_signTypedData_v4` takes.
    pub typed_data: Value,
}

impl Channels {
    /// Prepares a deposit into the channel in use with this seller, or into the next one.
    ///
    /// # Errors
    /// [`ChannelError::MaxDeposit`], [`ChannelError::TooManyDrafts`], the books'.
    pub async fn draft(
        &self,
        offer: &VerifiedOffer,
        amount: Option<Amount>,
        valid: Duration,
    ) -> Result<Draft, ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let _turn = turn.lock().await;
        let config = match self.current(offer) {
            Some((_, account)) => account.config,
            None => self.next_lane(offer).1,
        };
        let amount = amount.unwrap_or(self.funding.deposit);
        let amount = amount.max(offer.offer().min_deposit);
        self.landed(&config, config.id(self.chain.network()))
            .await?;
        self.allowed(&config, amount).await?;
        let now = self.clock.now();
        let terms = DepositTerms {
            amount,
            valid_before: now.plus(valid),
            salt: fresh_salt(),
        };
        let pending = PendingDeposit {
            channel: config.id(self.chain.network()),
            seller: offer.offer().seller,
            config,
            deposit: terms.unsigned(),
        };
        let (id, typed_data) = self.words(&pending);
        let mut batch = Batch::new();
        let mut waiting = 0;
        for (old, draft) in self.drafts()? {
            if draft.deposit.valid_before <= now.seconds() {
                batch = batch.delete(&DRAFTS, &old);
            } else {
                waiting += 1;
            }
        }
        if waiting >= MAX_DRAFTS {
            return Err(ChannelError::TooManyDrafts(waiting));
        }
        let batch = batch
            .put(&DRAFTS, &id, &pending)
            .map_err(LedgerError::from)?;
        let committed = self.ledger.store().commit(batch).await;
        committed.map_err(LedgerError::from)?;
        Ok(Draft {
            id,
            pending,
            typed_data,
        })
    }

    /// Takes back what the payer has signed. It is on disk when this returns, and handed to the
    /// seller by [`Channels::fund`], or with the next purchase.
    ///
    /// # Errors
    /// [`ChannelError::NoDraft`], [`ChannelError::NotSigned`], the chain's, the books'.
    pub async fn import(
        &self,
        id: B256,
        signature: PayerSignature,
    ) -> Result<PendingDeposit, ChannelError> {
        let found = self.ledger.store().get(&DRAFTS, &id);
        let found: Option<PendingDeposit> = found.map_err(LedgerError::from)?;
        let mut pending = found.ok_or(ChannelError::NoDraft)?;
        pending.deposit.signature = signature;
        if pending.deposit.valid_before <= self.clock.now().seconds() {
            return Err(ChannelError::NoDraft);
        }
        let payer = pending.config.payer;
        let (config, deposit) = (&pending.config, &pending.deposit);
        if !self.chain.consents(config, deposit).await? {
            return Err(ChannelError::NotSigned(payer));
        }
        let place = (pending.channel.0, pending.deposit.salt);
        let batch = Batch::new()
            .delete(&DRAFTS, &id)
            .put(&DEPOSITS, &place, &pending)
            .map_err(LedgerError::from)?;
        let committed = self.ledger.store().commit(batch).await;
        committed.map_err(LedgerError::from)?;
        Ok(pending)
    }

    /// Hands a recorded deposit to the seller and enters what the chain then says.
    ///
    /// # Errors
    /// Any [`ChannelError`].
    pub async fn fund(
        &self,
        offer: &VerifiedOffer,
        pending: &PendingDeposit,
    ) -> Result<Account, ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let _turn = turn.lock().await;
        self.carry(offer, pending).await?;
        let base = match self.ledger.account(pending.channel) {
            Some(_) => crate::ledger::Base::default(),
            None => self.base(offer, pending.config).await?,
        };
        self.enter(pending.seller, pending.config, base).await
    }

    fn drafts(&self) -> Result<Vec<(B256, PendingDeposit)>, ChannelError> {
        let all = self.ledger.store().scan(&DRAFTS, .., Order::Up, usize::MAX);
        Ok(all.map_err(LedgerError::from)?)
    }

    fn words(&self, pending: &PendingDeposit) -> (B256, Value) {
        let network = self.chain.network();
        (
            pending.deposit.digest(&pending.config, network),
            pending.deposit.typed_data(&pending.config, network),
        )
    }

    async fn allowed(&self, config: &ChannelConfig, amount: Amount) -> Result<(), ChannelError> {
        let (id, now) = (config.id(self.chain.network()), self.clock.now().seconds());
        // A deposit that was mined since the books were written is nowhere but on the chain.
        let unspent = match self.ledger.account(id) {
            Some(account) => unspent(&self.look(&account).await?),
            None => {
                let seen = self.chain.channel(id).await?;
                seen.balance.saturating_sub(seen.claimed)
            }
        };
        // What waits to be signed, and what is signed and not mined yet, may all be deposited.
        let drafts = self.drafts()?.into_iter().map(|(_, draft)| draft);
        let waiting = drafts
            .chain(self.waiting(id)?)
            .filter(|pending| pending.channel == id && pending.deposit.valid_before > now);
        let waiting = waiting.map(|pending| pending.deposit.amount);
        let unspent = waiting.fold(unspent, Amount::saturating_add);
        let needed = unspent.saturating_add(amount);
        let allowed = self.funding.max_deposit;
        if needed > allowed {
            return Err(ChannelError::MaxDeposit { needed, allowed });
        }
        Ok(())
    }
}
