//! What the chain says of a channel, as far as it may be believed.
//!
//! What lowers our credit counts at once. What raises it, a deposit, counts when it is as deep as
//! the operator asks; until then only within an allowance for all buyers together, which is the
//! most that a reorganisation can take. A claim counts as made when it is as deep.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError, Change, OnChain};
use farthing_protocol::x402::ChannelId;

use crate::ledger::Observation;

/// The eyes of the settlement; shared by all who look.
#[derive(Debug)]
pub(in crate::settlement) struct Sight {
    chain: Chain,
    /// Blocks after which something counts as final.
    depth: u64,
    /// Atoms that may count before, of all channels together.
    allowance: Amount,
    shallow: Mutex<Shallow>,
}

#[derive(Debug, Default)]
struct Shallow {
    /// Counted although not deep enough, by channel.
    early: HashMap<ChannelId, Amount>,
    /// Deposited and not counted yet, by channel.
    unconfirmed: HashMap<ChannelId, Amount>,
}

impl Sight {
    pub(in crate::settlement) fn new(chain: Chain, depth: u64, allowance: Amount) -> Self {
        Self {
            chain,
            depth: depth.max(1),
            allowance,
            shallow: Mutex::default(),
        }
    }

    fn shallow(&self) -> MutexGuard<'_, Shallow> {
        // Plain data, whole at every step.
        self.shallow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deposits that are mined and do not count yet.
    pub(in crate::settlement) fn unconfirmed(&self) -> HashMap<ChannelId, Amount> {
        self.shallow().unconfirmed.clone()
    }

    /// Whether all that was deposited counts.
    pub(in crate::settlement) fn counts_whole(&self, id: ChannelId) -> bool {
        !self.shallow().unconfirmed.contains_key(&id)
    }

    /// Looks at a channel.
    pub(in crate::settlement) async fn look(
        &self,
        id: ChannelId,
    ) -> Result<Observation, ChainError> {
        if self.depth <= 1 {
            let (now, pending) =
                tokio::try_join!(self.chain.channel(id), self.chain.pending_withdrawal(id))?;
            let (balance, claimed) = (now.balance, now.claimed);
            let armed = pending.map(|pending| pending.amount).unwrap_or_default();
            return Ok(Observation {
                balance,
                claimed,
                armed,
            });
        }
        Box::pin(self.look_deep(id)).await
    }

    /// All as of one block: a deposit between two answers is in both of them or in none.
    async fn look_deep(&self, id: ChannelId) -> Result<Observation, ChainError> {
        let tip = self.chain.latest().await?.number;
        let deep = tip.checked_sub(self.depth.saturating_sub(1));
        let (now, then, pending, deposited) = tokio::try_join!(
            self.chain.channel_at(id, tip),
            self.deep(id, deep),
            self.chain.pending_withdrawal(id),
            self.deposited(id, deep.map_or(0, |deep| deep.saturating_add(1))..=tip)
        )?;
        let armed = pending.map(|pending| pending.amount).unwrap_or_default();
        // A withdrawal within the depth may hide a deposit that followed it: the deposits are
        // counted, and what the balance rose by in case a node keeps its events to itself.
        let rise = now.balance.saturating_sub(then.balance);
        let fresh = rise.max(deposited).min(now.balance);
        let early = self.allow(id, fresh);
        Ok(Observation {
            balance: now.balance.saturating_sub(fresh).saturating_add(early),
            claimed: then.claimed.min(now.claimed),
            armed,
        })
    }

    /// What was there when it was as deep as we ask; nothing when the chain is not that long.
    async fn deep(&self, id: ChannelId, block: Option<u64>) -> Result<OnChain, ChainError> {
        match block {
            Some(block) => self.chain.channel_at(id, block).await,
            None => Ok(OnChain::default()),
        }
    }

    /// What was deposited in these blocks.
    async fn deposited(
        &self,
        id: ChannelId,
        blocks: RangeInclusive<u64>,
    ) -> Result<Amount, ChainError> {
        let events = self.chain.events_of(id, blocks).await?;
        let deposits = events.into_iter().filter_map(|event| match event.change {
            Change::Deposited { amount, .. } => Some(amount),
            _ => None,
        });
        Ok(deposits.fold(Amount::ZERO, Amount::saturating_add))
    }

    /// How much of a fresh deposit counts.
    fn allow(&self, id: ChannelId, fresh: Amount) -> Amount {
        let mut shallow = self.shallow();
        shallow.early.remove(&id);
        let others = shallow.early.values().copied();
        let others = others.fold(Amount::ZERO, Amount::saturating_add);
        let early = fresh.min(self.allowance.saturating_sub(others));
        let rest = fresh.saturating_sub(early);
        if !early.is_zero() {
            shallow.early.insert(id, early);
        }
        if rest.is_zero() {
            shallow.unconfirmed.remove(&id);
        } else {
            shallow.unconfirmed.insert(id, rest);
        }
        early
    }
}
