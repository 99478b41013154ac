//! What others ask of the settlement: a buyer's deposit, a buyer's refund.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{ChainError, Prepared, Write};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};

use crate::ledger::LedgerError;
use crate::ledger::once::is_once;
use crate::ledger::records::Purpose;
use crate::settlement::actor::{Actor, WAITING};
use crate::settlement::errand::Errand;
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
        let purpose = Purpose::Deposit {
            channel: id,
            nonce: deposit.nonce(id),
        };
        let begun = match self.known_deposit(id, &config, &deposit).await {
            Ok(Some(moved)) => Err(Ok(moved)),
            Ok(None) => self
                .begin_deposit(config, deposit, purpose)
                .await
                .map_err(Err),
            Err(error) => Err(Err(error)),
        };
        match begun {
            Ok(nonce) => self.wait_for(nonce, reply),
            // Whoever asked may have gone.
            Err(known) => drop(reply.send(known)),
        }
    }

    /// Sends it; returns its nonce. One that is under way already is waited for.
    async fn begin_deposit(
        &mut self,
        config: ChannelConfig,
        deposit: Deposit,
        purpose: Purpose,
    ) -> Result<u64, SettlementError> {
        let same = self
            .errands
            .iter()
            .find(|(_, errand)| errand.purpose == purpose);
        if let Some((nonce, _)) = same {
            return Ok(*nonce);
        }
        if self.errands.len() >= WAITING || self.is_depositing(config.payer) {
            return Err(SettlementError::Busy);
        }
        let write = Write::Deposit { config, deposit };
        let prepared = self.prepare_deposit(&config, &write).await?;
        self.send(prepared, purpose).await
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
        if self.ledger.channel(id).is_none() {
            let seen = self.sight.look(id).await?;
            self.ledger.observe(*config, id, seen).await?;
        }
        Ok(prepared)
    }

    /// The balance, if this deposit was mined before and counts; the channel is then in the books.
    async fn known_deposit(
        &mut self,
        id: ChannelId,
        config: &ChannelConfig,
        deposit: &Deposit,
    ) -> Result<Option<Moved>, SettlementError> {
        let used = self
            .chain
            .authorization_used(config.payer, deposit.nonce(id))
            .await?;
        if !used {
            return Ok(None);
        }
        let seen = self.sight.look(id).await?;
        if !self.sight.counts_whole(id) {
            let under_way = |errand: &Errand| matches!(errand.purpose, Purpose::Deposit { channel, .. } if channel == id);
            // The one that carries it tells when it counts; if another carried it, ask again.
            return match self.errands.values().any(under_way) {
                true => Ok(None),
                false => Err(SettlementError::Shallow),
            };
        }
        if seen.balance.is_zero() && self.ledger.channel(id).is_none() {
            // Its payer has cancelled it, or has taken all of it back: nothing is there to enter.
            let name = "the deposit's authorization is used up, and nothing is deposited".into();
            return Err(ChainError::Reverted { name }.into());
        }
        if self.ledger.channel(id).is_some() {
            // A refund that is under way keeps it frozen.
            self.enter_seen(id, seen).await?;
        } else {
            self.ledger.observe(*config, id, seen).await?;
        }
        Ok(Some(Moved {
            transaction: B256::ZERO,
            amount: seen.balance,
        }))
    }

    /// Takes a payment made for one purchase. One that is under way already is waited for.
    pub(in crate::settlement) async fn take(
        &mut self,
        channel: ChannelId,
        write: Write,
        reply: Answer<Moved>,
    ) {
        let purpose = Purpose::Once(channel);
        let mut errands = self.errands.iter();
        let same = errands.find(|(_, errand)| errand.purpose == purpose);
        let begun = match same.map(|(nonce, _)| *nonce) {
            Some(nonce) => Ok(nonce),
            None if self.errands.len() >= WAITING => Err(SettlementError::Busy),
            None => self.submit(&write, purpose).await,
        };
        match begun {
            Ok(nonce) => self.wait_for(nonce, reply),
            // Whoever asked may have gone.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(in crate::settlement) async fn refund(
        &mut self,
        id: ChannelId,
        most: Option<Amount>,
        reply: Answer<Moved>,
    ) {
        if !self.refunding.insert(id) {
            // Whoever asked may have gone.
            return drop(reply.send(Err(SettlementError::InUse)));
        }
        match self.begin_refund(id, most).await {
            Ok(nonce) => self.wait_for(nonce, reply),
            Err(error) => {
                self.refunding.remove(&id);
                // Lifts the freeze, or the next news does.
                self.refresh(id).await.ok();
                // Whoever asked may have gone.
                reply.send(Err(error)).ok();
            }
        }
    }

    /// Stops new purchases, claims what is ours, and sends back what is left. The refund is sent
    /// behind the claim and leaves what was charged in the channel, whatever becomes of the claim.
    async fn begin_refund(
        &mut self,
        id: ChannelId,
        most: Option<Amount>,
    ) -> Result<u64, SettlementError> {
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        if is_once(&view.config) {
            // No such channel is on the chain, where to return nothing costs gas all the same.
            return Err(SettlementError::Nothing);
        }
        if self.outlook().short.contains_key(&id) {
            // All that is there is owed.
            return Err(SettlementError::Nothing);
        }
        if !view.channel.reserved().is_zero() {
            return Err(SettlementError::InUse);
        }
        self.freeze(id, &view).await?;
        // Nothing can be reserved any more; what came in a moment before has its money.
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        if !view.channel.reserved().is_zero() {
            return Err(SettlementError::InUse);
        }
        if !self.on_their_way().contains_key(&id)
            && let Some(row) = claims::row(&view)
        {
            self.claim(vec![vec![row]]).await?;
        }
        let kept = view.channel.claimed().max(view.channel.charged());
        let rest = view.channel.balance().saturating_sub(kept);
        let amount = rest.min(most.unwrap_or(rest));
        if amount.is_zero() {
            return Err(SettlementError::Nothing);
        }
        let config = view.config;
        let write = Write::Refund { config, amount };
        let nonce = self.submit(&write, Purpose::Refund(id)).await?;
        self.moves(nonce, amount);
        Ok(nonce)
    }
}
