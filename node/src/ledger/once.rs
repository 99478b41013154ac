//! Payments made for one purchase, as books with one line.
//!
//! A payment of x402 `exact` or `upto` is entered before work as a channel of its own, named by
//! terms that no contract takes (its delay is too short): the purchase is reserved, charged and
//! written on it like any other, and claimed by taking the payment. A payment is entered once, so
//! it buys once; it leaves with its receipt, when it is old, and by then the chain says that it was
//! used.

use std::collections::HashSet;

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::{Channel, Rejected};
use farthing_protocol::eip712::Signed;
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::{ChannelConfig, ChannelId, SignedPermit, SignedTransfer};
use serde::{Deserialize, Serialize};

use crate::ledger::records::{CHANNELS, ONCE, Purpose, TAKING, TRANSACTIONS};
use crate::ledger::{Books, ChannelRecord, Ledger, LedgerError};

/// A payment made for one purchase. Its signature was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Once {
    /// Taken in full, before anything is handed over.
    Exact(SignedTransfer),
    /// Taken for what was used.
    Upto(SignedPermit),
}

impl Once {
    /// Seconds since the epoch after which it cannot be taken.
    #[must_use]
    pub const fn until(&self) -> u64 {
        match self {
            Self::Exact(transfer) => transfer.message.valid_before,
            Self::Upto(permit) => permit.message.deadline,
        }
    }

    /// The most that can be taken.
    #[must_use]
    pub const fn ceiling(&self) -> Amount {
        match self {
            Self::Exact(transfer) => transfer.message.amount,
            Self::Upto(permit) => permit.message.ceiling,
        }
    }

    /// The terms under which the books know it. They are those of no channel: the contract takes
    /// no delay of 0 or 1.
    #[must_use]
    pub fn terms(&self, claim: Address) -> ChannelConfig {
        let (payer, receiver, token, delay, nonce) = match self {
            Self::Exact(Signed { message, .. }) => {
                (message.from, message.to, None, 0, message.nonce)
            }
            Self::Upto(Signed { message, .. }) => (
                message.owner,
                message.to,
                Some(message.token),
                1,
                B256::from(message.nonce),
            ),
        };
        ChannelConfig {
            payer,
            payer_authorizer: payer,
            receiver,
            receiver_authorizer: claim,
            token: token.unwrap_or_default(),
            withdraw_delay: delay,
            salt: nonce,
        }
    }
}

/// Whether these are the terms of a payment made for one purchase.
#[must_use]
pub const fn is_once(config: &ChannelConfig) -> bool {
    config.withdraw_delay <= 1
}

impl Books {
    /// What a payer's payments come to that are entered and not taken. One that ended with nothing
    /// to take is not among them.
    fn untaken(&self, payer: Address) -> Amount {
        let lanes = self.lanes.get(&payer).into_iter().flatten();
        let entries = lanes.filter_map(|id| self.channels.get(id));
        let open = entries.filter(|entry| {
            let channel = &entry.record.channel;
            let free = channel.receipts() > 0
                && channel.charged().is_zero()
                && channel.reserved().is_zero();
            is_once(&entry.record.config) && channel.claimed().is_zero() && !free
        });
        open.map(|entry| entry.record.channel.balance())
            .fold(Amount::ZERO, Amount::saturating_add)
    }
}

impl Ledger {
    /// Enters a payment, before anything is worked for it. The payer's payments that are entered
    /// and not taken may together come to at most `funds`.
    ///
    /// # Errors
    /// [`LedgerError::Duplicate`] when it was entered before; [`Rejected::OverDeposit`]; the
    /// store's.
    pub async fn open_once(
        &self,
        id: ChannelId,
        config: ChannelConfig,
        once: Once,
        funds: Amount,
    ) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            if books.channels.contains_key(&id) {
                return Err(LedgerError::Duplicate);
            }
            let before = books.untaken(config.payer);
            let promised = before.add(once.ceiling())?;
            if promised > funds {
                return Err(LedgerError::Rejected(Rejected::OverDeposit {
                    ceiling: promised,
                    available: funds,
                }));
            }
            let mut channel = Channel::open(once.ceiling(), Amount::ZERO);
            channel.accept(once.ceiling())?;
            let record = ChannelRecord {
                config,
                channel,
                voucher: None,
            };
            let batch = Batch::new()
                .put(&CHANNELS, &id.0, &record)?
                .put(&ONCE, &id.0, &once)?;
            books.enter(id, record);
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// Forgets a payment that bought nothing and was not tried to be taken: it may be used again.
    /// One that bought an answer for which there is nothing to take has its receipt, and is only
    /// not waited for any more.
    ///
    /// # Errors
    /// The store's.
    pub async fn void_once(&self, id: ChannelId) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let Some(entry) = books.channels.get(&id) else {
                return Ok(());
            };
            let (config, channel) = (entry.record.config, entry.record.channel);
            let nothing = channel.reserved().is_zero()
                && channel.charged().is_zero()
                && channel.claimed().is_zero();
            if !is_once(&config) || !nothing {
                return Ok(());
            }
            let mut batch = Batch::new().delete(&ONCE, &id.0).delete(&TAKING, &id.0);
            if channel.receipts() == 0 {
                books.leave(id, config.payer);
                batch = batch.delete(&CHANNELS, &id.0);
            }
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// Writes down how much of a payment is about to be taken, before anything is signed for it:
    /// should a crash come between, the books know what was.
    ///
    /// # Errors
    /// The store's.
    pub async fn taking_once(&self, id: ChannelId, amount: Amount) -> Result<(), LedgerError> {
        let batch = Batch::new().put(&TAKING, &id.0, &amount)?;
        Ok(self.store.commit(batch).await?)
    }

    /// How much of a payment was about to be taken when it was last tried.
    ///
    /// # Errors
    /// The store's.
    pub fn asked_of_once(&self, id: ChannelId) -> Result<Option<Amount>, LedgerError> {
        Ok(self.store.get(&TAKING, &id.0)?)
    }

    /// Enters that `amount` of a payment was taken.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn took_once(&self, id: ChannelId, amount: Amount) -> Result<(), LedgerError> {
        let permit = self.store.reserve().await?;
        let durable = {
            let mut books = self.books();
            let entry = books.entry(id)?;
            let mut record = entry.record;
            record.channel.observe(record.channel.balance(), amount)?;
            let batch = Batch::new()
                .put(&CHANNELS, &id.0, &record)?
                .delete(&ONCE, &id.0)
                .delete(&TAKING, &id.0);
            entry.record = record;
            permit.commit(batch)
        };
        Ok(durable.await?)
    }

    /// Waits no longer for a payment that its payer has cancelled. What was charged for it stays
    /// owed, and counts against the payer.
    ///
    /// # Errors
    /// The store's.
    pub async fn lose_once(&self, id: ChannelId) -> Result<(), LedgerError> {
        let batch = Batch::new().delete(&ONCE, &id.0).delete(&TAKING, &id.0);
        Ok(self.store.commit(batch).await?)
    }

    /// The payments of which a transaction is on its way, or mined and not final.
    ///
    /// # Errors
    /// The store's.
    pub fn being_taken(&self) -> Result<HashSet<ChannelId>, LedgerError> {
        let rows = self.store.scan(&TRANSACTIONS, .., Order::Up, usize::MAX)?;
        let purposes = rows.into_iter().map(|(_, pending)| pending.purpose);
        Ok(purposes
            .filter_map(|purpose| match purpose {
                Purpose::Once(id) => Some(id),
                _ => None,
            })
            .collect())
    }

    /// The payments that are not known to be taken.
    ///
    /// # Errors
    /// The store's.
    pub fn untaken(&self) -> Result<Vec<(ChannelId, Once)>, LedgerError> {
        let rows = self.store.scan(&ONCE, .., Order::Up, usize::MAX)?;
        Ok(rows
            .into_iter()
            .map(|(id, once)| (ChannelId(id), once))
            .collect())
    }
}

#[cfg(test)]
mod tests;
