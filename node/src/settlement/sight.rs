//! What the chain says of a channel, as far as it may be believed.
//!
//! What lowers our credit counts at once. What raises it, a deposit, counts when it is as deep as
//! the operator asks; until then only within an allowance for all buyers together, which is the
//! most that a reorganisation can take. A claim counts as made when it is as deep.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError};
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
        let (now, pending) =
            tokio::try_join!(self.chain.channel(id), self.chain.pending_withdrawal(id))?;
        let armed = pending.map(|pending| pending.amount).unwrap_or_default();
        if self.depth <= 1 {
            let (balance, claimed) = (now.balance, now.claimed);
            return Ok(Observation {
                balance,
                claimed,
                armed,
            });
        }
        let tip = self.chain.latest().await?.number;
        let deep = match tip.checked_sub(self.depth.saturating_sub(1)) {
            Some(block) => self.chain.channel_at(id, block).await?,
            None => Default::default(),
        };
        let fresh = now.balance.saturating_sub(deep.balance);
        let early = self.allow(id, fresh);
        Ok(Observation {
            balance: deep.balance.min(now.balance).saturating_add(early),
            claimed: deep.claimed.min(now.claimed),
            armed,
        })
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
