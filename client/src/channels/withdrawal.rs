//! Taking money back without the seller: by the contract's clock.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::Write;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::x402::ChannelId;

use crate::channels::{ChannelError, Channels, DEPOSIT_WAIT};
use crate::ledger::{LedgerError, Standing};

impl Channels {
    /// Starts a withdrawal on chain: needs no seller, but gas and the channel's delay.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn withdraw(
        &self,
        id: ChannelId,
        amount: Option<Amount>,
    ) -> Result<B256, ChannelError> {
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let most = account
            .channel
            .balance()
            .saturating_sub(account.channel.claimed());
        let amount = amount.unwrap_or(most);
        self.stand(id, account.standing.closing()).await?;
        self.write(
            id,
            &Write::InitiateWithdraw {
                config: account.config,
                amount,
            },
        )
        .await
    }

    /// Completes a withdrawal whose delay is over.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn finalize(&self, id: ChannelId) -> Result<B256, ChannelError> {
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let hash = self
            .write(
                id,
                &Write::FinalizeWithdraw {
                    config: account.config,
                },
            )
            .await?;
        let after = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        if after.channel.armed().is_zero() && account.standing == Standing::Closing {
            self.stand(id, Standing::Good).await?;
        }
        Ok(hash)
    }

    async fn write(&self, id: ChannelId, write: &Write) -> Result<B256, ChannelError> {
        let prepared = self
            .chain
            .prepare(write, self.wallet.gas_key(), None)
            .await?;
        let hash = self.chain.broadcast(&prepared.raw).await?;
        self.chain.wait(hash, 1, DEPOSIT_WAIT).await?;
        self.refresh(id).await?;
        Ok(hash)
    }

    /// When a started withdrawal can be completed; none when the chain knows of none.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn due(&self, id: ChannelId) -> Result<Option<Timestamp>, ChannelError> {
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        let pending = self.chain.pending_withdrawal(id).await?;
        Ok(pending.map(|pending| {
            let delay = account.config.withdraw_delay;
            let seconds = pending.initiated_at.saturating_add(delay);
            Timestamp(seconds.saturating_mul(1000))
        }))
    }

    /// Completes a withdrawal if its delay is over by the chain's own time, and looks at the
    /// channel if there is none any more. Returns when to ask again.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn finalize_if_due(&self, id: ChannelId) -> Result<Option<Timestamp>, ChannelError> {
        let Some(due) = self.due(id).await? else {
            self.refresh(id).await?;
            return Ok(None);
        };
        if self.chain.latest().await?.timestamp < due.seconds() {
            return Ok(Some(due));
        }
        let hash = self.finalize(id).await?;
        tracing::info!(channel = %id.short(), %hash, "a withdrawal is complete");
        Ok(None)
    }
}
