//! The actor behind [`crate::settlement::Settlement`].

use alloy::primitives::{Address, B256, Bytes};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError, ClaimRow, Outcome, Prepared, Write};
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::store::Batch;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior};

use crate::ledger::records::{COUNTERS, Purpose};
use crate::ledger::{ChannelView, Ledger, LedgerError, Observation};
use crate::settlement::carry::carry_through;
use crate::settlement::claims;
use crate::settlement::{Answer, Ground, Moved, Outlook, Policy, SettlementError, journal};

/// Transactions that may wait to be mined at once.
const WAITING: usize = 64;
/// How long everything else waits for a claim or a refund. Afterwards it is waited for aside.
const HALT: Duration = Duration::from_secs(30);
/// Blocks that are read once more.
const OVERLAP: u64 = 8;
/// The counter of the last block whose events we have read.
const SEEN_BLOCK: &str = "seen-block";

/// What the actor is told.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "a deposit is the usual message")]
pub(in crate::settlement) enum Message {
    Deposit {
        config: ChannelConfig,
        deposit: Deposit,
        reply: Answer<Moved>,
    },
    Claim {
        reply: Answer<Vec<Moved>>,
    },
    Refund {
        channel: ChannelId,
        reply: Answer<Moved>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// A transaction whose end has come.
struct Ended {
    hash: B256,
    purpose: Purpose,
    outcome: Result<Outcome, ChainError>,
    reply: Option<Answer<Moved>>,
}

pub(in crate::settlement) struct Actor {
    // hooks to the rest
    pub(in crate::settlement) chain: Chain,
    pub(in crate::settlement) ledger: Ledger,
    pub(in crate::settlement) key: EvmKey,
    pub(in crate::settlement) clock: Clock,
    pub(in crate::settlement) policy: Policy,
    pub(in crate::settlement) inbox: mpsc::Receiver<Message>,
    // own state
    waiting: JoinSet<Ended>,
    pub(in crate::settlement) seen_block: Option<u64>,
    /// Channels of which the books may say less than the chain: looked at with the next news.
    pub(in crate::settlement) stale: HashSet<ChannelId>,
    /// Channels whose refund is under way: frozen, whatever the chain says, until it has ended.
    pub(in crate::settlement) refunding: HashSet<ChannelId>,
    /// Payers with a deposit that is not mined yet: one at a time, for we pay the gas.
    pub(in crate::settlement) depositing: HashSet<Address>,
    /// Shared with those who ask; locked for moments only.
    pub(in crate::settlement) outlook: Arc<Mutex<Outlook>>,
}

impl Actor {
    pub(in crate::settlement) fn new(
        ground: Ground,
        policy: Policy,
        inbox: mpsc::Receiver<Message>,
        outlook: Arc<Mutex<Outlook>>,
    ) -> Self {
        let Ground {
            chain,
            ledger,
            key,
            clock,
        } = ground;
        let channels = ledger.channels().into_iter();
        let stale = channels
            .filter(|(_, view)| !view.channel.armed().is_zero())
            .map(|(id, _)| id)
            .collect();
        Self {
            stale,
            refunding: HashSet::new(),
            depositing: HashSet::new(),
            chain,
            ledger,
            key,
            clock,
            policy,
            inbox,
            waiting: JoinSet::new(),
            seen_block: None,
            outlook,
        }
    }

    pub(in crate::settlement) async fn run(mut self) {
        if let Err(error) = self.resume() {
            tracing::error!(%error, "unfinished transactions could not be read");
        }
        let mut ticks = interval(self.policy.poll);
        loop {
            tokio::select! {
                biased;
                // What has ended frees a place and answers somebody.
                Some(ended) = self.waiting.join_next() => match ended {
                    Ok(ended) => self.ended(ended).await,
                    Err(error) => tracing::error!(%error, "a waiting transaction was lost"),
                },
                // News before orders: no crowd of callers keeps us from a withdrawal or a claim.
                _ = ticks.tick() => self.tick().await,
                message = self.inbox.recv() => match message {
                    Some(Message::Stop { reply }) => {
                        self.last_claim().await;
                        // Whoever asked may have gone.
                        reply.send(()).ok();
                        return;
                    }
                    Some(message) => self.handle(message).await,
                    None => return,
                },
            }
        }
    }

    /// Sends what a crash left unfinished once more, and waits for it.
    fn resume(&mut self) -> Result<(), SettlementError> {
        for (hash, pending, raw) in journal::unfinished(self.ledger.store())? {
            tracing::info!(%hash, purpose = ?pending.purpose, "resuming a transaction");
            if let Purpose::Refund(id) = pending.purpose {
                self.refunding.insert(id);
                self.stale.insert(id);
            }
            self.wait_for(hash, raw, pending.purpose, None);
        }
        Ok(())
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Deposit {
                config,
                deposit,
                reply,
            } => self.deposit(config, deposit, reply).await,
            Message::Refund { channel, reply } => self.refund(channel, reply).await,
            Message::Claim { reply } => {
                let claimed = self.claim_all().await;
                // Whoever asked may have gone.
                reply.send(claimed).ok();
            }
            Message::Stop { .. } => {}
        }
    }

    /// Records and sends; the answer comes when it is mined.
    pub(in crate::settlement) async fn submit(
        &mut self,
        prepared: Prepared,
        purpose: Purpose,
        reply: Answer<Moved>,
    ) {
        match self.send(prepared, purpose).await {
            Ok(prepared) => self.wait_for(prepared.hash, prepared.raw, purpose, Some(reply)),
            Err(error) => {
                self.landed(purpose);
                // Whoever asked may have gone.
                reply.send(Err(error)).ok();
            }
        }
    }

    /// A transaction waits no more: its payer may deposit again.
    fn landed(&mut self, purpose: Purpose) {
        if let Purpose::Deposit(id) = purpose {
            let view = self.ledger.channel(id);
            self.depositing
                .retain(|payer| view.is_none_or(|view| view.config.payer != *payer));
        }
    }

    /// Simulates and signs.
    pub(in crate::settlement) async fn prepare(
        &self,
        write: &Write,
    ) -> Result<Prepared, SettlementError> {
        let is_deposit = matches!(write, Write::Deposit { .. });
        if is_deposit && self.waiting.len() >= WAITING {
            return Err(SettlementError::Busy);
        }
        Ok(self.chain.prepare(write, &self.key, None).await?)
    }

    async fn send(
        &mut self,
        prepared: Prepared,
        purpose: Purpose,
    ) -> Result<Prepared, SettlementError> {
        journal::record(self.ledger.store(), &prepared, purpose, self.clock.now()).await?;
        match self.chain.broadcast(&prepared.raw).await {
            // Nothing is known: the waiting task sends it again.
            Ok(_) => {}
            Err(error) if error.is_unavailable() => {}
            Err(error) => {
                journal::close(self.ledger.store(), prepared.hash, None).await?;
                return Err(error.into());
            }
        }
        Ok(prepared)
    }

    fn wait_for(&mut self, hash: B256, raw: Bytes, purpose: Purpose, reply: Option<Answer<Moved>>) {
        let (chain, depth) = (self.chain.clone(), self.policy.confirmations);
        self.waiting.spawn(async move {
            let outcome = carry_through(&chain, hash, &raw, depth).await;
            Ended {
                hash,
                purpose,
                outcome,
                reply,
            }
        });
    }

    async fn ended(&mut self, ended: Ended) {
        let Ended {
            hash,
            purpose,
            outcome,
            reply,
        } = ended;
        if purpose == Purpose::Claim {
            self.outlook().claiming = None;
        }
        self.landed(purpose);
        let result = self.conclude(hash, purpose, outcome).await;
        if let Err(error) = &result {
            tracing::warn!(%hash, ?purpose, %error, "a transaction did not do its work");
        }
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            reply.send(result).ok();
        }
    }

    async fn conclude(
        &mut self,
        hash: B256,
        purpose: Purpose,
        outcome: Result<Outcome, ChainError>,
    ) -> Result<Moved, SettlementError> {
        if let Err(ChainError::NonceUsed) = outcome {
            // Another has taken its place: it will never be mined.
            journal::close(self.ledger.store(), hash, None).await?;
        }
        if let (Purpose::Refund(id), Ok(_) | Err(ChainError::NonceUsed)) = (purpose, &outcome) {
            self.refunding.remove(&id);
        }
        let outcome = outcome?;
        let mined = journal::mined(purpose, outcome, self.clock.now());
        journal::close(self.ledger.store(), hash, Some(mined)).await?;
        let amount = match purpose {
            Purpose::Deposit(id) | Purpose::Refund(id) => self.refresh(id).await?,
            Purpose::Claim | Purpose::Settle => self.refresh_owed().await?,
        };
        if !outcome.success {
            return Err(SettlementError::Failed(hash));
        }
        tracing::info!(%hash, ?purpose, "mined");
        Ok(Moved {
            transaction: hash,
            amount,
        })
    }

    pub(in crate::settlement) async fn look(
        &self,
        id: ChannelId,
    ) -> Result<Observation, SettlementError> {
        let seen = self.chain.channel(id).await?;
        let armed = self
            .chain
            .pending_withdrawal(id)
            .await?
            .map(|w| w.amount)
            .unwrap_or_default();
        Ok(Observation {
            balance: seen.balance,
            claimed: seen.claimed,
            armed,
        })
    }

    pub(in crate::settlement) async fn refresh(
        &mut self,
        id: ChannelId,
    ) -> Result<Amount, SettlementError> {
        let Some(view) = self.ledger.channel(id) else {
            return Ok(Amount::ZERO);
        };
        self.stale.insert(id);
        let mut seen = self.look(id).await?;
        if self.refunding.contains(&id) {
            // It is as good as gone: promised back, and only waiting to be mined.
            seen.armed = seen.balance;
        }
        self.outlook().refused.remove(&id);
        match self.ledger.observe(view.config, id, seen).await {
            Ok(view) => {
                self.stale.remove(&id);
                Ok(view.channel.balance())
            }
            Err(LedgerError::Rejected(error)) => {
                // Less is there than was charged: money lost, on this channel and no other; or a
                // node that lags behind. It stays stale, and is looked at again.
                tracing::error!(channel = %id.short(), %error, "the chain contradicts the books");
                self.outlook().refused.insert(id);
                self.freeze(id, &view).await?;
                Ok(seen.balance)
            }
            Err(error) => Err(error.into()),
        }
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

    async fn refresh_owed(&mut self) -> Result<Amount, SettlementError> {
        let mut claimed = Amount::ZERO;
        for (id, view) in self.ledger.channels() {
            if claims::row(&view).is_none() {
                continue;
            }
            self.refresh(id).await?;
            let after = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
            let more = after
                .channel
                .claimed()
                .saturating_sub(view.channel.claimed());
            claimed = claimed.saturating_add(more);
        }
        Ok(claimed)
    }

    /// Sends and waits here: for the few things that must come one after the other.
    pub(in crate::settlement) async fn complete(
        &mut self,
        write: &Write,
        purpose: Purpose,
    ) -> Result<Moved, SettlementError> {
        let prepared = self.prepare(write).await?;
        let prepared = self.send(prepared, purpose).await?;
        self.outlook().claiming = (purpose == Purpose::Claim).then_some(prepared.hash);
        let waited = self
            .chain
            .wait(prepared.hash, self.policy.confirmations, HALT);
        let outcome = waited.await;
        if let Err(error) = outcome {
            // Not known yet: it goes on aside, and others get their turn.
            self.wait_for(prepared.hash, prepared.raw, purpose, None);
            return Err(error.into());
        }
        self.outlook().claiming = None;
        self.conclude(prepared.hash, purpose, outcome).await
    }

    fn outlook(&self) -> MutexGuard<'_, Outlook> {
        // Plain data, whole at every step.
        self.outlook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All channels but those whose rows the contract refuses.
    fn claimable(&self) -> Vec<(ChannelId, ChannelView)> {
        let refused = self.outlook().refused.clone();
        let channels = self.ledger.channels().into_iter();
        channels.filter(|(id, _)| !refused.contains(id)).collect()
    }

    async fn claim_all(&mut self) -> Result<Vec<Moved>, SettlementError> {
        let mut moved = Vec::new();
        // What is charged from now on is for the next time: others wait for their turn.
        let mut left = self.claimable();
        loop {
            let rows = claims::rows(&left, self.policy.max_rows);
            if rows.is_empty() {
                return Ok(moved);
            }
            left.retain(|(_, view)| rows.iter().all(|row| row.config != view.config));
            moved.extend(self.claim(rows).await?);
        }
    }

    /// Claims these rows. When the contract refuses them together, each half is tried, so that
    /// one bad row costs only itself.
    async fn claim(&mut self, rows: Vec<ClaimRow>) -> Result<Vec<Moved>, SettlementError> {
        let mut pending = vec![rows];
        let mut moved = Vec::new();
        while let Some(mut rows) = pending.pop() {
            let Some(write) = claims::write(rows.clone()) else {
                continue;
            };
            match self.complete(&write, Purpose::Claim).await {
                Ok(done) => moved.push(done),
                Err(SettlementError::Chain(ChainError::Reverted { name })) if rows.len() == 1 => {
                    let ids = rows.iter().map(|row| row.config.id(self.chain.network()));
                    tracing::error!(%name, "the contract refuses a claim");
                    self.outlook().refused.extend(ids);
                }
                Err(SettlementError::Chain(ChainError::Reverted { .. })) => {
                    let half = rows.split_off(rows.len() / 2);
                    pending.extend([rows, half]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }

    async fn last_claim(&mut self) {
        let claimed = tokio::time::timeout(HALT, self.claim_all()).await;
        match claimed.unwrap_or(Err(SettlementError::Stopped)) {
            Ok(moved) => tracing::info!(claims = moved.len(), "claimed before stopping"),
            Err(error) => tracing::warn!(%error, "the last claim must wait for the next start"),
        }
    }

    async fn tick(&mut self) {
        let away = self.outlook().away;
        match self.news().await {
            Ok(()) if away => {
                self.outlook().away = false;
                tracing::info!("the chain answers again");
            }
            Ok(()) => {}
            Err(error) if !away => {
                self.outlook().away = true;
                tracing::warn!(%error, "the chain does not answer; open channels go on being served");
            }
            Err(_) => {}
        }
    }

    async fn news(&mut self) -> Result<(), SettlementError> {
        self.read_events().await?;
        let channels = self.claimable();
        let now = self.clock.now();
        let due = {
            let mut outlook = self.outlook();
            claims::note(&mut outlook.since, &channels, now);
            outlook.claiming.is_none() && claims::due(&self.policy, &outlook.since, &channels, now)
        };
        if due {
            self.claim_all().await?;
        }
        Ok(())
    }

    /// Looks anew at each of our channels that something happened to.
    async fn read_events(&mut self) -> Result<(), SettlementError> {
        for id in self.stale.clone() {
            self.refresh(id).await?;
        }
        let latest = self.chain.latest().await?.number;
        let seen = match self.seen_block {
            Some(seen) => seen,
            None => self
                .ledger
                .store()
                .get(&COUNTERS, &SEEN_BLOCK.to_owned())?
                .unwrap_or(latest),
        };
        if latest > seen {
            // A node that lags, or a block that was replaced, is read again: looking is harmless.
            let from = seen.saturating_add(1).saturating_sub(OVERLAP);
            let events = self.chain.events(from..=latest).await?;
            let touched: HashSet<_> = events.into_iter().map(|event| event.channel).collect();
            for id in touched {
                self.refresh(id).await?;
            }
            let batch = Batch::new().put(&COUNTERS, &SEEN_BLOCK.to_owned(), &latest)?;
            self.ledger.store().commit(batch).await?;
        }
        self.seen_block = Some(latest);
        Ok(())
    }
}

fn interval(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
