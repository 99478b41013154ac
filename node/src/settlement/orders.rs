//! What others ask of the settlement: a buyer's deposit, a buyer's refund.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{ChainError, Prepared, Write};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};

use crate::ledger::LedgerError;
use crate::ledger::records::Purpose;
use crate::settlement::actor::Actor;
use crate::settlement::{Answer, Moved, SettlementError, claims};

/// The most gas we pay for one deposit: a first one takes 140 000 with its margin; a contract
/// that pays may use the rest to judge its owners' signatures, and no more.
const DEPOSIT_GAS: u64 = 500_000;

impl Actor {
    pub(in crate::settlement) async fn deposit(
        &mut self,
        config: ChannelConfig,
        deposit: Deposit,
        reply: Answer<Moved>,
    ) {
        let id = config.id(self.chain.network());
        match self.known_deposit(id, &config, &deposit).await {
            Ok(None) if self.depositing.contains(&config.payer) => {
                // Whoever asked may have gone.
                reply.send(Err(SettlementError::Busy)).ok();
            }
            Ok(None) => {
                let write = Write::Deposit { config, deposit };
                match self.prepare_deposit(&config, &write).await {
                    Ok(prepared) => {
                        self.depositing.insert(config.payer);
                        self.submit(prepared, Purpose::Deposit(id), reply).await;
                    }
                    // Whoever asked may have gone.
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            done => {
                let moved = done.map(Option::unwrap_or_default);
                let moved = moved.map(|amount| Moved {
                    transaction: B256::ZERO,
                    amount,
                });
                // Whoever asked may have gone.
                reply.send(moved).ok();
            }
        }
    }

    /// Enters the channel into the books when its deposit is known to succeed and is not yet
    /// sent: a promise of money that nobody has takes no room on our disk.
    async fn prepare_deposit(
        &mut self,
        config: &ChannelConfig,
        write: &Write,
    ) -> Result<Prepared, SettlementError> {
        let prepared = self.prepare(write).await?;
        if prepared.gas > DEPOSIT_GAS {
            return Err(SettlementError::Costly {
                gas: prepared.gas,
                most: DEPOSIT_GAS,
            });
        }
        let id = config.id(self.chain.network());
        let seen = self.look(id).await?;
        self.ledger.observe(*config, id, seen).await?;
        Ok(prepared)
    }

    /// The balance, if this deposit was mined before; the channel is then in the books.
    async fn known_deposit(
        &mut self,
        id: ChannelId,
        config: &ChannelConfig,
        deposit: &Deposit,
    ) -> Result<Option<Amount>, SettlementError> {
        let used = self
            .chain
            .authorization_used(config.payer, deposit.nonce(id))
            .await?;
        if !used {
            return Ok(None);
        }
        let seen = self.look(id).await?;
        self.ledger.observe(*config, id, seen).await?;
        Ok(Some(seen.balance))
    }

    pub(in crate::settlement) async fn refund(&mut self, id: ChannelId, reply: Answer<Moved>) {
        if !self.refunding.insert(id) {
            // Whoever asked may have gone.
            return drop(reply.send(Err(SettlementError::InUse)));
        }
        let (moved, sent) = match self.prepare_refund(id).await {
            Ok((write, amount)) => {
                let moved = self.complete(&write, Purpose::Refund(id)).await;
                (moved.map(|moved| Moved { amount, ..moved }), true)
            }
            Err(error) => (Err(error), false),
        };
        // One that may still be mined ends its freeze when it is.
        let unknown = matches!(
            moved,
            Err(SettlementError::Chain(
                ChainError::Unconfirmed(_) | ChainError::Unavailable(_)
            ))
        );
        if !(sent && unknown) {
            self.refunding.remove(&id);
            // Lifts the freeze, or the next news does.
            self.refresh(id).await.ok();
        }
        // Whoever asked may have gone.
        reply.send(moved).ok();
    }

    /// Claims what is ours, stops new purchases, and says what is left.
    async fn prepare_refund(&mut self, id: ChannelId) -> Result<(Write, Amount), SettlementError> {
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        if !view.channel.reserved().is_zero() {
            return Err(SettlementError::InUse);
        }
        self.freeze(id, &view).await?;
        // Nothing can be reserved any more; what came in a moment before has its money.
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        if !view.channel.reserved().is_zero() {
            self.refresh(id).await?;
            return Err(SettlementError::InUse);
        }
        if let Some(write) = claims::row(&view).and_then(|row| claims::write(vec![row])) {
            self.complete(&write, Purpose::Claim).await?;
        }
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        let amount = view
            .channel
            .balance()
            .saturating_sub(view.channel.claimed().max(view.channel.charged()));
        if amount.is_zero() {
            return Err(SettlementError::Nothing);
        }
        Ok((
            Write::Refund {
                config: view.config,
                amount,
            },
            amount,
        ))
    }
}
