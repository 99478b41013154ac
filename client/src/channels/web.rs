//! Channels with sellers that are met over plain HTTP: the deposit travels with the first
//! voucher, and the seller's counter is the only thing there is to reconcile.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::Chain;
use farthing_protocol::identity::NodeId;
use farthing_protocol::store::Batch;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Network};
use tokio::time::Instant;

use crate::channels::deposit::{LOOK, Size, fresh_salt};
use crate::channels::{ChannelError, Channels, room};
use crate::ledger::{Account, Base, DEPOSITS, LedgerError, Opened, PendingDeposit, Standing};

/// A channel that a purchase can be paid on.
pub(super) type Filled = (ChannelId, ChannelConfig, Option<PendingDeposit>);

impl Channels {
    /// Where the money lives.
    #[must_use]
    pub fn network(&self) -> &Network {
        self.chain.network()
    }

    /// The chain.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// What of `before` a seller has sent back, once our own chain node shows it.
    ///
    /// # Errors
    /// [`ChannelError::Liar`] when it does not in time; the chain's, the books'.
    pub async fn returned(&self, id: ChannelId, before: Amount) -> Result<Amount, ChannelError> {
        let end = Instant::now() + self.funding.seen_wait;
        loop {
            let balance = self.chain.channel(id).await?.balance;
            if balance < before {
                self.refresh(id).await?;
                return Ok(before.saturating_sub(balance));
            }
            if Instant::now() >= end {
                return Err(ChannelError::Liar(
                    "it says the rest is sent back, our chain node does not",
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A channel on these terms on which `needed` can be promised, with the deposit to send along
    /// if it is not funded yet. That deposit is on disk, and counts in the books as if it were
    /// mined: the contract pays out no more than there is. To be called within the seller's turn.
    ///
    /// # Errors
    /// Any [`ChannelError`].
    pub async fn fill(
        &self,
        seller: NodeId,
        terms: &(dyn Fn(B256) -> ChannelConfig + Send + Sync),
        needed: Amount,
        min: Amount,
    ) -> Result<Filled, ChannelError> {
        let (id, config) = self.lane(terms);
        self.landed(&config, id).await?;
        let waiting = self.waiting(id)?.into_iter().next();
        let expected = waiting.as_ref().map(|pending| pending.deposit.amount);
        let account = self
            .expect(seller, config, expected.unwrap_or_default())
            .await?;
        if waiting.is_some() || room(&account) >= needed {
            return Ok((id, config, waiting));
        }
        let missing = needed.saturating_sub(room(&account));
        let size = Size::of(missing, self.funding.deposit).at_least(min);
        if !self.wallet.signs_deposits() {
            return Err(ChannelError::Elsewhere {
                payer: config.payer,
                seller,
                needed: missing,
            });
        }
        let amount = self.affordable(id, size).await?;
        let signed = self.wallet.deposit(&config, amount, fresh_salt());
        let deposit = signed.ok_or(ChannelError::NotSigned(config.payer))?;
        let pending = PendingDeposit {
            channel: id,
            seller,
            config,
            deposit,
        };
        let batch = Batch::new()
            .put(&DEPOSITS, &(id.0, pending.deposit.salt), &pending)
            .map_err(LedgerError::from)?;
        let committed = self.ledger.store().commit(batch).await;
        committed.map_err(LedgerError::from)?;
        self.expect(seller, config, amount).await?;
        Ok((id, config, Some(pending)))
    }

    /// The lane in use on these terms, or the next one.
    fn lane(
        &self,
        terms: &(dyn Fn(B256) -> ChannelConfig + Send + Sync),
    ) -> (ChannelId, ChannelConfig) {
        let mut lane = 0_u32;
        loop {
            let config = terms(self.salt(lane));
            let id = config.id(self.chain.network());
            let account = self.ledger.account(id);
            if account.is_none_or(|account| account.standing == Standing::Good) {
                return (id, config);
            }
            lane = lane.saturating_add(1);
        }
    }

    /// Enters what the chain says, and what is on its way.
    async fn expect(
        &self,
        seller: NodeId,
        config: ChannelConfig,
        more: Amount,
    ) -> Result<Account, ChannelError> {
        let id = config.id(self.chain.network());
        let seen = self.chain.channel(id).await?;
        let armed = self.chain.pending_withdrawal(id).await?;
        let opened = Opened {
            id,
            seller,
            config,
            balance: seen.balance.saturating_add(more),
            claimed: seen.claimed,
            armed: armed.map(|pending| pending.amount).unwrap_or_default(),
            base: Base::default(),
        };
        Ok(self.ledger.observe(opened, self.clock.now()).await?)
    }

    /// Looks on the chain whether a deposit that a seller says it took is there; until it is, it
    /// is sent along again and no other is made.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn confirm(&self, pending: &PendingDeposit) -> Result<(), ChannelError> {
        let (id, deposit) = (pending.channel, &pending.deposit);
        let payer = pending.config.payer;
        let used = self
            .chain
            .authorization_used(payer, deposit.nonce(id))
            .await;
        match used {
            Ok(true) => self.forget(id, deposit.salt).await,
            Ok(false) => {
                tracing::warn!(channel = %id.short(), "the seller took a deposit that is not on the chain");
                Ok(())
            }
            // The answer is paid for: it is not given up because our node is away.
            Err(error) if error.is_unavailable() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes over what a seller has charged in all, as far as our own signature, or the chain,
    /// proves it. Returns the counter that the next voucher follows.
    ///
    /// # Errors
    /// [`ChannelError::Liar`] when it is not proven.
    pub async fn correct(
        &self,
        id: ChannelId,
        charged: Amount,
        proven: Amount,
    ) -> Result<Amount, ChannelError> {
        let account = self.ledger.account(id);
        let account = account.ok_or(ChannelError::Liar("a channel that is none of ours"))?;
        let claimed = self.chain.channel(id).await?.claimed;
        if charged < claimed {
            return Err(ChannelError::Liar("it counts less than it has claimed"));
        }
        if charged > proven.max(claimed) {
            return Err(ChannelError::Liar("charges that no voucher of ours covers"));
        }
        let doubts = self.ledger.doubts(id);
        self.ledger.settle_doubts(id, &doubts);
        let known = account.channel.charged();
        if charged > known {
            let adopt = |account: &mut Account| {
                let channel = &mut account.channel;
                let ceiling = proven.max(channel.ceiling()).max(charged);
                channel.adopt(charged, channel.receipts(), ceiling)
            };
            self.ledger.update(id, adopt).await?;
            tracing::info!(channel = %id.short(), %known, %charged, "the seller's counter is taken over");
        }
        Ok(charged)
    }
}
