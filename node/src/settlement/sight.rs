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

    /// Looks at a channel. All as of one block: a deposit between two answers is in both of them
    /// or in none, and a withdrawal is either still armed or gone from the balance.
    pub(in crate::settlement) async fn look(
        &self,
        id: ChannelId,
    ) -> Result<Observation, ChainError> {
        let tip = self.chain.latest().await?.number;
        if self.depth <= 1 {
            let (now, armed) =
                tokio::try_join!(self.chain.channel_at(id, tip), self.armed_at(id, tip))?;
            let (balance, claimed) = (now.balance, now.claimed);
            return Ok(Observation {
                balance,
                claimed,
                armed,
            });
        }
        Box::pin(self.look_deep(id, tip)).await
    }

    async fn look_deep(&self, id: ChannelId, tip: u64) -> Result<Observation, ChainError> {
        let deep = tip.checked_sub(self.depth.saturating_sub(1));
        let young = deep.map_or(0, |deep| deep.saturating_add(1))..=tip;
        let (now, then, armed, deposited) = tokio::try_join!(
            self.chain.channel_at(id, tip),
            self.deep(id, deep),
            self.armed_at(id, tip),
            async { Ok(self.deposited(id, young).await) }
        )?;
        // A withdrawal within the depth may hide a deposit that followed it: the deposits are
        // counted, and what the balance rose by in case a node keeps its events to itself.
        let rise = now.balance.saturating_sub(then.balance);
        let (deposited, hidden) = match deposited {
            Ok(deposited) => (deposited, Amount::ZERO),
            Err(error) => {
                tracing::debug!(channel = %id.short(), %error, "young deposits cannot be told apart");
                (Amount::ZERO, self.hidden(id, deep).await?)
            }
        };
        let fresh = rise.max(deposited).min(now.balance);
        let early = self.allow(id, fresh);
        Ok(Observation {
            balance: now.balance.saturating_sub(fresh).saturating_add(early),
            claimed: then.claimed.min(now.claimed),
            armed: armed.max(hidden),
        })
    }

    /// The most that young deposits may have put back of what left the channel since, when no
    /// node names them: nothing is lent on so much. A payer can take out only what it had armed
    /// before (the delay is far longer than we wait); what we give back is frozen until it is
    /// deep.
    async fn hidden(&self, id: ChannelId, deep: Option<u64>) -> Result<Amount, ChainError> {
        match deep {
            Some(deep) => self.armed_at(id, deep).await,
            None => Ok(Amount::ZERO),
        }
    }

    async fn armed_at(&self, id: ChannelId, block: u64) -> Result<Amount, ChainError> {
        let pending = self.chain.pending_withdrawal_at(id, block).await?;
        Ok(pending.map(|pending| pending.amount).unwrap_or_default())
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
