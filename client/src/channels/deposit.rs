//! Deposits: recorded, handed to the seller, seen on the chain, forgotten.

use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::frame::{Answer, Call};
use farthing_protocol::offer::VerifiedOffer;
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::{ChannelConfig, ChannelId};
use tokio::time::Instant;

use crate::channels::{ChannelError, Channels, DEPOSIT_WAIT, room, unspent};
use crate::ledger::{Account, DEPOSITS, LedgerError, PendingDeposit, Standing};

/// Seconds by which the chain's clock may be behind ours.
const SKEW: u64 = 60;
/// Deposits in a row before a channel is short for another reason.
const TOP_UPS: u32 = 3;
/// How often we look.
pub(in crate::channels) const LOOK: Duration = Duration::from_millis(200);

/// How large a deposit is to be.
#[derive(Debug, Clone, Copy)]
pub(in crate::channels) struct Size {
    /// What is needed.
    least: Amount,
    /// What is usual.
    usual: Amount,
}

impl Size {
    pub(in crate::channels) const fn of(least: Amount, usual: Amount) -> Self {
        Self { least, usual }
    }

    pub(in crate::channels) fn at_least(self, min: Amount) -> Self {
        let least = self.least.max(min);
        Self { least, ..self }
    }
}

impl Channels {
    /// Deposits so much more that `needed` can be promised. What was deposited without our having
    /// heard of it counts.
    pub(in crate::channels) async fn top_up(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
        needed: Amount,
    ) -> Result<(), ChannelError> {
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        self.landed(&account.config, id).await?;
        for _ in 0..TOP_UPS {
            let account = self.look(&account).await?;
            let missing = needed.saturating_sub(room(&account));
            if missing.is_zero() {
                break;
            }
            let size = Size::of(missing, self.funding.deposit);
            self.deposit(offer, account.config, size).await?;
        }
        self.look(&account).await?;
        Ok(())
    }

    /// Tops a channel up by hand. An earlier attempt of which nothing was heard, but which has
    /// reached the chain, counts.
    ///
    /// # Errors
    /// Any [`ChannelError`].
    pub async fn add(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
        amount: Amount,
    ) -> Result<Account, ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let _turn = turn.lock().await;
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let landed = self.landed(&account.config, id).await?;
        let missing = amount.saturating_sub(landed);
        if !missing.is_zero() {
            self.deposit(offer, account.config, Size::of(missing, missing))
                .await?;
        }
        self.look(&account).await
    }

    /// Adds to a channel that is running low, so that no purchase has to wait for it. Does nothing
    /// when somebody else is at it, or when the payer would have to be asked.
    ///
    /// # Errors
    /// Any [`ChannelError`].
    pub async fn top_up_ahead(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
    ) -> Result<(), ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let Ok(_turn) = turn.try_lock() else {
            return Ok(());
        };
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let space = self.funding.max_deposit.saturating_sub(unspent(&account));
        let wanted = account.standing == Standing::Good && self.is_low(&account);
        let idle = !self.wallet.signs_deposits() && self.waiting(id)?.is_empty();
        if !wanted || idle || space < offer.offer().min_deposit {
            return Ok(());
        }
        let size = Size::of(Amount::atoms(1), self.funding.deposit);
        self.deposit(offer, account.config, size).await?;
        self.look(&account).await.map(drop)
    }

    /// Whether a channel should be added to before it is empty.
    #[must_use]
    pub fn is_low(&self, account: &Account) -> bool {
        // A small deposit is not low from its first moment.
        let half = Amount::atoms(self.funding.deposit.get() / 2);
        room(account) < self.funding.top_up_below.min(half)
    }

    /// Records, sends and confirms one deposit: one that waits already, or a new one.
    pub(in crate::channels) async fn deposit(
        &self,
        offer: &VerifiedOffer,
        config: ChannelConfig,
        size: Size,
    ) -> Result<(), ChannelError> {
        let id = config.id(self.chain.network());
        self.landed(&config, id).await?;
        let pending = match self.waiting(id)?.into_iter().next() {
            Some(pending) => pending,
            None => self.authorize(offer, config, size).await?,
        };
        self.carry(offer, &pending).await
    }

    /// Sends and confirms a recorded deposit.
    pub(in crate::channels) async fn carry(
        &self,
        offer: &VerifiedOffer,
        pending: &PendingDeposit,
    ) -> Result<(), ChannelError> {
        let id = pending.channel;
        let before = self.chain.channel(id).await?.balance;
        self.submit(offer, pending).await?;
        let expected = before.saturating_add(pending.deposit.amount);
        self.seen(id, pending, expected).await?;
        self.forget(id, pending.deposit.salt).await
    }

    /// Has the seller submit a recorded deposit. Doing so twice is harmless.
    pub(in crate::channels) async fn submit(
        &self,
        offer: &VerifiedOffer,
        pending: &PendingDeposit,
    ) -> Result<(), ChannelError> {
        let call = Call::Deposit {
            config: pending.config,
            deposit: pending.deposit.clone(),
        };
        match self.call(offer, &call, DEPOSIT_WAIT).await? {
            Answer::Deposited { .. } => Ok(()),
            Answer::Refused(refusal) => Err(ChannelError::Refused(refusal)),
            _ => Err(ChannelError::Liar("another answer than to a deposit")),
        }
    }

    pub(in crate::channels) async fn forget(
        &self,
        id: ChannelId,
        salt: B256,
    ) -> Result<(), ChannelError> {
        let gone = Batch::new().delete(&DEPOSITS, &(id.0, salt));
        let committed = self.ledger.store().commit(gone).await;
        Ok(committed.map_err(LedgerError::from)?)
    }

    /// How much to deposit: the usual amount, or what limit and wallet leave of it.
    pub(in crate::channels) async fn affordable(
        &self,
        id: ChannelId,
        size: Size,
    ) -> Result<Amount, ChannelError> {
        let account = self.ledger.account(id);
        let unspent = account.map(|account| unspent(&account)).unwrap_or_default();
        let allowed = self.funding.max_deposit;
        let space = allowed.saturating_sub(unspent);
        if size.least > space {
            let needed = unspent.saturating_add(size.least);
            return Err(ChannelError::MaxDeposit { needed, allowed });
        }
        let balance = self.chain.token_balance(self.wallet.payer()).await?;
        if balance < size.least {
            let address = self.wallet.payer().to_string();
            return Err(ChannelError::EmptyWallet {
                address,
                balance,
                needed: size.least,
            });
        }
        Ok(size.usual.max(size.least).min(space).min(balance))
    }

    /// Recorded deposits of a channel.
    pub(in crate::channels) fn waiting(
        &self,
        id: ChannelId,
    ) -> Result<Vec<PendingDeposit>, ChannelError> {
        let waiting = self
            .ledger
            .store()
            .scan_prefix(&DEPOSITS, &id.0, Order::Up, usize::MAX);
        let waiting = waiting.map_err(LedgerError::from)?;
        Ok(waiting.into_iter().map(|(_, pending)| pending).collect())
    }

    /// What deposits have added of which we had not heard; forgets them, and those too late.
    pub(in crate::channels) async fn landed(
        &self,
        config: &ChannelConfig,
        id: ChannelId,
    ) -> Result<Amount, ChannelError> {
        let mut landed = Amount::ZERO;
        for pending in self.waiting(id)? {
            let deposit = &pending.deposit;
            let used = self
                .chain
                .authorization_used(config.payer, deposit.nonce(id))
                .await?;
            // Until the chain's clock is past it too, it may still be mined, and a second would
            // be one too many.
            let late = deposit.valid_before.saturating_add(SKEW) <= self.clock.now().seconds();
            if used {
                landed = landed.saturating_add(deposit.amount);
            }
            if used || late {
                self.forget(id, deposit.salt).await?;
            }
        }
        Ok(landed)
    }

    /// A new authorization, recorded.
    async fn authorize(
        &self,
        offer: &VerifiedOffer,
        config: ChannelConfig,
        size: Size,
    ) -> Result<PendingDeposit, ChannelError> {
        let id = config.id(self.chain.network());
        let size = size.at_least(offer.offer().min_deposit);
        let seller = offer.offer().seller;
        if !self.wallet.signs_deposits() {
            return Err(ChannelError::Elsewhere {
                payer: config.payer,
                seller,
                needed: size.least,
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
        Ok(pending)
    }

    /// Waits until our own chain node shows the deposit too.
    async fn seen(
        &self,
        id: ChannelId,
        pending: &PendingDeposit,
        expected: Amount,
    ) -> Result<(), ChannelError> {
        let end = Instant::now() + self.funding.seen_wait;
        loop {
            let used = self
                .chain
                .authorization_used(pending.config.payer, pending.deposit.nonce(id))
                .await?;
            if used || self.chain.channel(id).await?.balance >= expected {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(ChannelError::Liar(
                    "it says the deposit is mined, our chain node does not",
                ));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// A name for a deposit that nobody has used and nobody can guess.
#[expect(
    clippy::disallowed_methods,
    reason = "a name that nobody has used and nobody can guess"
)]
pub(in crate::channels) fn fresh_salt() -> B256 {
    B256::from(rand::random::<[u8; 32]>())
}
