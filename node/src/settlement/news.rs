//! What the chain has to say: events of our channels, blocks taken back, claims that are due.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Block, ChainError};
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::ChannelId;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::ledger::once::is_once;
use crate::ledger::records::HEADS;
use crate::ledger::{ChannelView, LedgerError, Observation};
use crate::settlement::actor::Actor;
use crate::settlement::sight::Sight;
use crate::settlement::{SettlementError, claims};

/// Blocks that are read once more: a node's index of events may lag behind its head.
const OVERLAP: u64 = 8;
/// Blocks whose events are read at once; what was read is not read again after an outage.
const SPAN: u64 = 2_000;
/// The deepest reorganisation that is followed block by block; below it everything is looked at.
pub(in crate::settlement) const DEEPEST: u64 = 64;
/// Channels looked at together.
const TOGETHER: usize = 16;

/// The blocks we have read to, the newest last.
#[derive(Debug, Default)]
pub(in crate::settlement) struct Trail {
    read: Option<BTreeMap<u64, B256>>,
    /// The channel that was looked at last although nothing was heard of it.
    patrolled: Option<ChannelId>,
}

type Seen = Vec<(ChannelId, Result<Observation, ChainError>)>;

async fn look_at(sight: Arc<Sight>, ids: Vec<ChannelId>) -> Seen {
    let look = |id: ChannelId| {
        let sight = Arc::clone(&sight);
        async move { (id, sight.look(id).await) }
    };
    let looks = ids.into_iter().map(look);
    stream::iter(looks)
        .buffer_unordered(TOGETHER)
        .collect()
        .await
}

impl Actor {
    pub(in crate::settlement) async fn news_came(&mut self) {
        let away = self.outlook().away;
        match self.news().await {
            Ok(()) => {
                if away {
                    tracing::info!("the chain answers again");
                }
                let mut outlook = self.outlook();
                outlook.away = false;
                outlook.trouble = None;
            }
            Err(SettlementError::Chain(error)) if error.is_unavailable() => {
                if !away {
                    tracing::warn!(%error, "the chain does not answer; open channels go on being served");
                }
                self.outlook().away = true;
            }
            Err(error) => {
                let trouble = Some(error.to_string());
                if self.outlook().trouble != trouble {
                    tracing::error!(%error, "claims must wait");
                }
                let mut outlook = self.outlook();
                outlook.away = false;
                outlook.trouble = trouble;
            }
        }
        self.show();
    }

    async fn news(&mut self) -> Result<(), SettlementError> {
        let stale: Vec<_> = self.stale.iter().copied().collect();
        // A channel that cannot be looked at does not keep us from what is news, and a node that
        // keeps its events to itself not from claiming.
        let looked = self.refresh_all(&stale).await;
        let mut read = self.read_events().await;
        if read.is_ok() {
            read = self.patrol().await;
        }
        self.note_owed().await?;
        self.claim_what_is_due().await?;
        looked.and(read)
    }

    async fn claim_what_is_due(&mut self) -> Result<(), SettlementError> {
        let channels = self.claimable();
        // Gas has a price only when there may be something to pay it for.
        let large = channels
            .iter()
            .any(|(_, view)| view.channel.unclaimed() >= self.policy.claim_at);
        let row_cost = if large && !self.policy.coin_price.is_zero() {
            claims::row_cost(self.chain.fees().await?.max, self.policy.coin_price)
        } else {
            Amount::ZERO
        };
        let now = self.clock.now();
        let (since, short) = {
            let outlook = self.outlook();
            (outlook.since.clone(), outlook.short.clone())
        };
        let standing = claims::Standing {
            channels: &channels,
            in_flight: &self.on_their_way(),
            short: &short,
            since: &since,
            row_cost,
            now,
        };
        let mut due = standing.due(&self.policy);
        if self.holds_until.is_some_and(|until| Instant::now() < until) {
            let armed = |id: ChannelId| {
                let view = self.ledger.channel(id);
                view.is_some_and(|view| !view.channel.armed().is_zero())
            };
            due.retain(|rows| {
                let mut ids = rows.iter().map(|row| row.config.id(self.chain.network()));
                ids.all(armed)
            });
        }
        self.claim(due).await.map(drop)
    }

    /// Looks at one channel in turn of which nothing was heard: no lost event stays unnoticed.
    async fn patrol(&mut self) -> Result<(), SettlementError> {
        let mut ids: Vec<_> = self
            .ledger
            .channels()
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        ids.sort_unstable();
        let next = ids.iter().find(|id| Some(**id) > self.trail.patrolled);
        let Some(id) = next.or(ids.first()).copied() else {
            return Ok(());
        };
        self.trail.patrolled = Some(id);
        self.refresh_all(&[id]).await
    }

    /// Looks anew at each of our channels that something happened to.
    async fn read_events(&mut self) -> Result<(), SettlementError> {
        let latest = self.chain.latest().await?;
        let read = self.read_so_far()?;
        let last = read.last_key_value().map(|(number, hash)| (*number, *hash));
        let Some((number, hash)) = last else {
            // What was before is seen when a channel is first looked at.
            return self.remember(latest).await;
        };
        if (latest.number, latest.hash) == (number, hash) {
            return Ok(());
        }
        // A node a few blocks behind the one that was asked before has taken nothing back.
        let behind = number.checked_sub(latest.number).filter(|by| *by > 0);
        let known = read.get(&latest.number);
        if behind.is_some_and(|by| by <= OVERLAP) && known == Some(&latest.hash) {
            return Ok(());
        }
        let mut from = self.fork(latest, &read).await?.saturating_add(1);
        loop {
            let to = latest.number.min(from.saturating_add(SPAN));
            let to = if to == latest.number {
                Some(latest)
            } else {
                self.chain.block(to).await?
            };
            let to = to.ok_or_else(|| ChainError::Unavailable("a block is missing".into()))?;
            self.read_blocks(from, to).await?;
            if to.number >= latest.number {
                return Ok(());
            }
            from = to.number.saturating_add(1);
        }
    }

    async fn read_blocks(&mut self, from: u64, to: Block) -> Result<(), SettlementError> {
        let blocks = from.saturating_sub(OVERLAP)..=to.number;
        let events = self.chain.events(blocks).await?;
        let touched: HashSet<_> = events.into_iter().map(|event| event.channel).collect();
        let ours = touched
            .into_iter()
            .filter(|id| self.ledger.channel(*id).is_some());
        let ours: Vec<_> = ours.collect();
        self.stale.extend(&ours);
        self.refresh_all(&ours).await?;
        self.remember(to).await
    }

    /// The blocks that were read.
    fn read_so_far(&mut self) -> Result<BTreeMap<u64, B256>, SettlementError> {
        if let Some(read) = &self.trail.read {
            return Ok(read.clone());
        }
        let rows = self
            .ledger
            .store()
            .scan(&HEADS, .., Order::Up, usize::MAX)?;
        let read: BTreeMap<_, _> = rows.into_iter().collect();
        self.trail.read = Some(read.clone());
        Ok(read)
    }

    async fn remember(&mut self, block: Block) -> Result<(), SettlementError> {
        let read = self.trail.read.get_or_insert_default();
        let mut batch = Batch::new().put(&HEADS, &block.number, &block.hash)?;
        let oldest = block.number.saturating_sub(DEEPEST);
        let gone = |number: &u64| *number > block.number || *number < oldest;
        for number in read.keys().copied().filter(gone) {
            batch = batch.delete(&HEADS, &number);
        }
        self.ledger.store().commit(batch).await?;
        read.retain(|number, _| !gone(number));
        read.insert(block.number, block.hash);
        Ok(())
    }

    /// The last block we have read that is still in the chain. If it is not the last we have
    /// read, blocks were taken back: what was in them is looked at anew.
    async fn fork(
        &mut self,
        latest: Block,
        read: &BTreeMap<u64, B256>,
    ) -> Result<u64, SettlementError> {
        let newest = read.keys().next_back().copied().unwrap_or_default();
        let mut fork = newest.saturating_sub(DEEPEST);
        for (number, hash) in read.iter().rev() {
            let there = if *number == latest.number {
                Some(latest)
            } else if *number < latest.number {
                self.chain.block(*number).await?
            } else {
                None
            };
            if there.is_some_and(|block| block.hash == *hash) {
                fork = *number;
                break;
            }
        }
        if fork < newest {
            tracing::warn!(from = fork, to = newest, "the chain took blocks back");
            self.outlook().reorganisations += 1;
            self.stale
                .extend(self.ledger.channels().into_iter().map(|(id, _)| id));
            self.revive(latest.number).await?;
            let stale: Vec<_> = self.stale.iter().copied().collect();
            self.refresh_all(&stale).await?;
        } else {
            let is_young = |mined: Option<u64>| {
                mined.is_some_and(|block| latest.number.saturating_sub(block) <= DEEPEST)
            };
            self.recent.retain(|errand| is_young(errand.mined));
        }
        Ok(fork)
    }

    /// Looks at these channels and enters what is seen. What cannot be looked at stays stale.
    pub(in crate::settlement) async fn refresh_all(
        &mut self,
        ids: &[ChannelId],
    ) -> Result<(), SettlementError> {
        // A payment made for one purchase is no channel of the contract.
        let on_chain = |id: &&ChannelId| {
            let view = self.ledger.channel(**id);
            !view.is_some_and(|view| is_once(&view.config))
        };
        let ids: Vec<_> = ids.iter().filter(on_chain).copied().collect();
        self.stale.extend(&ids);
        let seen = look_at(Arc::clone(&self.sight), ids).await;
        let mut failed = None;
        for (id, seen) in seen {
            match seen {
                Ok(seen) => self.enter_seen(id, seen).await?,
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Enters what was seen of a channel that the books know, as far as it may be believed.
    pub(in crate::settlement) async fn enter_seen(
        &mut self,
        id: ChannelId,
        seen: Observation,
    ) -> Result<(), SettlementError> {
        let Some(view) = self.ledger.channel(id) else {
            self.stale.remove(&id);
            return Ok(());
        };
        let mut seen = seen;
        if self.refunding.contains(&id) {
            // It is as good as gone: promised back, and only waiting to be mined.
            seen.armed = seen.balance;
        }
        match self.ledger.observe(view.config, id, seen).await {
            Ok(after) => {
                self.stale.remove(&id);
                if self.outlook().short.remove(&id).is_some() {
                    tracing::info!(channel = %id.short(), "the channel holds again what was charged");
                }
                if after.channel != view.channel {
                    self.forgive(id);
                }
                if view.channel.armed().is_zero() && !after.channel.armed().is_zero() {
                    tracing::warn!(channel = %id.short(), armed = %after.channel.armed(), "a withdrawal is armed: what is owed is claimed now");
                }
                Ok(())
            }
            // Less is there than was charged: money lost, on this channel and no other; or a node
            // that lags behind. It stays stale, and is looked at again.
            Err(LedgerError::Rejected(_)) => self.fall_short(id, &view, seen).await,
            Err(error) => Err(error.into()),
        }
    }

    /// A channel holds less than was charged. What it holds is claimed before the payer takes that
    /// too; it lends nothing, and the books go on saying what was charged.
    async fn fall_short(
        &mut self,
        id: ChannelId,
        view: &ChannelView,
        seen: Observation,
    ) -> Result<(), SettlementError> {
        let known = self.outlook().short.insert(id, seen.balance);
        if known != Some(seen.balance) {
            let charged = view.channel.charged();
            tracing::error!(channel = %id.short(), holds = %seen.balance, %charged, "the channel holds less than was charged: what it holds is claimed, the rest is lost unless more is deposited");
            self.forgive(id);
        }
        let balance = view.channel.balance();
        let frozen = Observation {
            balance,
            claimed: seen.claimed.min(balance),
            armed: balance,
        };
        self.ledger.observe(view.config, id, frozen).await?;
        Ok(())
    }

    /// Gives no more credit on a channel until the chain reports on it again.
    pub(in crate::settlement) async fn freeze(
        &self,
        id: ChannelId,
        view: &ChannelView,
    ) -> Result<(), SettlementError> {
        let (balance, claimed) = (view.channel.balance(), view.channel.claimed());
        let frozen = Observation {
            balance,
            claimed,
            armed: balance,
        };
        self.ledger.observe(view.config, id, frozen).await?;
        Ok(())
    }
}
