//! The actor behind [`crate::settlement::Settlement`]: its state, its loop, and how a transaction
//! is sent. What becomes of it is in `carry.rs`, what the chain has to say in `news.rs`, what
//! others ask for in `orders.rs`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError, ClaimRow, Prepared, Write};
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::store::{Batch, Order};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::ledger::records::{OWED, Purpose};
use crate::ledger::{ChannelView, Ledger};
use crate::settlement::errand::{Attempt, Errand};
use crate::settlement::news::Trail;
use crate::settlement::refusal::Refusal;
use crate::settlement::sight::Sight;
use crate::settlement::{
    Answer, Ground, InFlight, Moved, Outlook, Policy, SettlementError, claims, journal,
};

/// Transactions that may wait to be mined at once before buyers' are refused.
pub(in crate::settlement) const WAITING: usize = 64;
/// Places tried for one transaction before we give up.
const PLACES: usize = 4;
/// How long the last claims are waited for when the node stops.
const LAST_WAIT: Duration = Duration::from_secs(30);
/// How long those who order a claim wait for it; it goes on without them.
const CLAIM_WAIT: Duration = Duration::from_secs(120);

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
        most: Option<Amount>,
        reply: Answer<Moved>,
    },
    Take {
        channel: ChannelId,
        write: Write,
        reply: Answer<Moved>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

pub(in crate::settlement) struct Actor {
    // hooks to the rest
    pub(in crate::settlement) chain: Chain,
    pub(in crate::settlement) ledger: Ledger,
    pub(in crate::settlement) key: EvmKey,
    pub(in crate::settlement) clock: Clock,
    pub(in crate::settlement) policy: Policy,
    pub(in crate::settlement) sight: Arc<Sight>,
    inbox: mpsc::Receiver<Message>,
    /// Those who ordered claims, until all are over.
    gathering: JoinSet<()>,
    // own state
    /// What is under way, by nonce.
    pub(in crate::settlement) errands: BTreeMap<u64, Errand>,
    /// What was mined lately: a reorganisation may take it back.
    pub(in crate::settlement) recent: Vec<Errand>,
    pub(in crate::settlement) trail: Trail,
    /// Channels of which the books may say less than the chain: looked at with the next news.
    pub(in crate::settlement) stale: HashSet<ChannelId>,
    /// Channels whose refund is under way: frozen, whatever the chain says, until it has ended.
    pub(in crate::settlement) refunding: HashSet<ChannelId>,
    /// Channels whose rows the contract has refused.
    pub(in crate::settlement) refusals: HashMap<ChannelId, Refusal>,
    /// Claims that were mined and failed, in a row; and until when no other is tried.
    pub(in crate::settlement) failures: u32,
    pub(in crate::settlement) holds_until: Option<Instant>,
    /// Shared with those who ask; locked for moments only.
    outlook: Arc<Mutex<Outlook>>,
}

impl Actor {
    pub(in crate::settlement) fn new(
        ground: Ground,
        policy: Policy,
        inbox: mpsc::Receiver<Message>,
        shared: (Arc<Sight>, Arc<Mutex<Outlook>>),
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
        let (sight, outlook) = shared;
        Self {
            stale,
            chain,
            ledger,
            key,
            clock,
            policy,
            sight,
            inbox,
            outlook,
            gathering: JoinSet::new(),
            errands: BTreeMap::new(),
            recent: Vec::new(),
            trail: Trail::default(),
            refunding: HashSet::new(),
            refusals: HashMap::new(),
            failures: 0,
            holds_until: None,
        }
    }

    pub(in crate::settlement) async fn run(mut self) {
        if let Err(error) = self.resume() {
            tracing::error!(%error, "unfinished transactions could not be read");
        }
        let mut news = interval(self.policy.poll);
        let mut errands = interval(self.chain.poll_interval().min(self.policy.poll));
        loop {
            tokio::select! {
                biased;
                // News before orders: no crowd of callers keeps us from a withdrawal or a claim.
                _ = news.tick() => self.news_came().await,
                _ = errands.tick(), if !self.errands.is_empty() => self.look_after().await,
                Some(_) = self.gathering.join_next() => {}
                message = self.inbox.recv() => match message {
                    Some(Message::Stop { reply }) => {
                        self.last_claims().await;
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

    /// Takes up what a crash left unfinished: it is handed in once more, and looked after.
    fn resume(&mut self) -> Result<(), SettlementError> {
        for (nonce, (purpose, attempts)) in journal::unfinished(self.ledger.store())? {
            tracing::info!(nonce, ?purpose, "resuming a transaction");
            let errand = Errand::new(purpose, nonce, attempts, self.chain.network());
            self.stale.extend(errand.channels());
            if let Purpose::Refund(id) = purpose {
                self.refunding.insert(id);
            }
            self.errands.insert(nonce, errand);
        }
        let owed = self.ledger.store().scan(&OWED, .., Order::Up, usize::MAX)?;
        let owed = owed.into_iter().map(|(id, start)| (ChannelId(id), start));
        self.outlook().since.extend(owed);
        self.show();
        Ok(())
    }

    async fn handle(&mut self, message: Message) {
        match message {
            Message::Deposit {
                config,
                deposit,
                reply,
            } => self.deposit(config, deposit, reply).await,
            Message::Refund {
                channel,
                most,
                reply,
            } => self.refund(channel, most, reply).await,
            Message::Take {
                channel,
                write,
                reply,
            } => self.take(channel, write, reply).await,
            Message::Claim { reply } => self.claim_on_order(reply).await,
            Message::Stop { .. } => {}
        }
        self.show();
    }

    /// Simulates and signs, in the first place that is free.
    pub(in crate::settlement) async fn prepare(
        &self,
        write: &Write,
    ) -> Result<Prepared, SettlementError> {
        let nonce = self.free_nonce(0).await?;
        Ok(self.chain.prepare(write, &self.key, Some(nonce)).await?)
    }

    /// The first nonce from `floor` on that neither the node nor we have given away. (A node may
    /// have forgotten what we remember, or never have heard of it.)
    pub(in crate::settlement) async fn free_nonce(&self, floor: u64) -> Result<u64, ChainError> {
        let nonces = self.chain.nonces(self.key.address()).await?;
        let mut nonce = nonces.free.max(floor);
        while self.errands.contains_key(&nonce) {
            nonce = nonce.saturating_add(1);
        }
        Ok(nonce)
    }

    /// Records, sends, and from then on looks after a transaction; returns its nonce. In a place
    /// that somebody else has taken it is not left: it moves on to the next.
    pub(in crate::settlement) async fn send(
        &mut self,
        prepared: Prepared,
        purpose: Purpose,
    ) -> Result<u64, SettlementError> {
        let store = self.ledger.store().clone();
        let mut prepared = prepared;
        for _ in 0..PLACES {
            let now = self.clock.now();
            journal::record(&store, &prepared, purpose, now).await?;
            let sent = self.chain.broadcast(&prepared.raw).await;
            let attempt = Attempt::new(prepared.clone(), now);
            match sent {
                // When nothing is known, it is handed in again.
                Ok(_) | Err(ChainError::Unavailable(_)) => {
                    let (nonce, network) = (prepared.nonce, self.chain.network());
                    let errand = Errand::new(purpose, nonce, vec![attempt], network);
                    self.errands.insert(nonce, errand);
                    return Ok(nonce);
                }
                // Somebody has used up the nonce, which is all that was wanted.
                Err(error @ (ChainError::NonceUsed | ChainError::Underpriced))
                    if purpose == Purpose::Filler =>
                {
                    journal::close(&store, &[attempt], None).await?;
                    return Err(error.into());
                }
                Err(error @ (ChainError::NonceUsed | ChainError::Underpriced)) => {
                    journal::close(&store, &[attempt], None).await?;
                    let used = u64::from(error == ChainError::NonceUsed);
                    let nonce = self.free_nonce(prepared.nonce.saturating_add(used)).await?;
                    if nonce == prepared.nonce {
                        // Nobody has taken the place: it offers less than the chain asks.
                        return Err(error.into());
                    }
                    prepared = self.chain.moved(&prepared.raw, &self.key, nonce).await?;
                }
                Err(error) => {
                    journal::close(&store, &[attempt], None).await?;
                    return Err(error.into());
                }
            }
        }
        Err(SettlementError::Busy)
    }

    /// Prepares and sends; returns the nonce, under which its end can be waited for.
    pub(in crate::settlement) async fn submit(
        &mut self,
        write: &Write,
        purpose: Purpose,
    ) -> Result<u64, SettlementError> {
        let prepared = self.prepare(write).await?;
        self.send(prepared, purpose).await
    }

    /// Somebody waits for the end of an errand.
    pub(in crate::settlement) fn wait_for(&mut self, nonce: u64, reply: Answer<Moved>) {
        if let Some(errand) = self.errands.get_mut(&nonce) {
            errand.waiting.push(reply);
        }
    }

    pub(in crate::settlement) fn outlook(&self) -> MutexGuard<'_, Outlook> {
        // Plain data, whole at every step.
        self.outlook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what is under way to those who ask.
    pub(in crate::settlement) fn show(&self) {
        let in_flight = self.errands.values().filter_map(InFlight::of).collect();
        let claiming = self.errands.values().flat_map(|errand| {
            let newest = errand.newest().map(|attempt| attempt.hash);
            let rows = errand.rows.keys();
            rows.filter_map(move |id| newest.map(|hash| (*id, hash)))
        });
        let claiming = claiming.collect();
        let mut outlook = self.outlook();
        outlook.in_flight = in_flight;
        outlook.claiming = claiming;
        outlook.unconfirmed = self.sight.unconfirmed();
    }

    /// Payers with a deposit that is not mined: one at a time, for we pay the gas.
    pub(in crate::settlement) fn is_depositing(&self, payer: Address) -> bool {
        self.errands.values().any(|errand| {
            let Purpose::Deposit { channel, .. } = errand.purpose else {
                return false;
            };
            let view = self.ledger.channel(channel);
            errand.mined.is_none() && view.is_some_and(|view| view.config.payer == payer)
        })
    }

    /// All channels but those whose rows the contract refused a short while ago.
    pub(in crate::settlement) fn claimable(&self) -> Vec<(ChannelId, ChannelView)> {
        let now = self.clock.now();
        let rests = |id: &ChannelId| {
            let refusal = self.refusals.get(id);
            refusal.is_some_and(|refusal| refusal.rests(now))
        };
        let channels = self.ledger.channels().into_iter();
        channels.filter(|(id, _)| !rests(id)).collect()
    }

    /// What claims on their way are about.
    pub(in crate::settlement) fn on_their_way(&self) -> HashMap<ChannelId, Amount> {
        let mut totals = HashMap::new();
        for (id, total) in self.errands.values().flat_map(|errand| &errand.rows) {
            let known: &mut Amount = totals.entry(*id).or_default();
            *known = (*known).max(*total);
        }
        totals
    }

    /// Sends these claims. When the contract refuses rows together, each half is tried, so that
    /// one bad row costs only itself. Returns the nonces.
    pub(in crate::settlement) async fn claim(
        &mut self,
        batches: Vec<Vec<ClaimRow>>,
    ) -> Result<Vec<u64>, SettlementError> {
        let mut left = batches;
        left.reverse();
        let mut sent = Vec::new();
        while let Some(mut rows) = left.pop() {
            let Some(write) = claims::write(rows.clone()) else {
                continue;
            };
            match self.submit(&write, Purpose::Claim).await {
                Ok(nonce) => {
                    self.moves(nonce, self.fresh(&rows));
                    for row in &rows {
                        self.forgive(row.config.id(self.chain.network()));
                    }
                    sent.push(nonce);
                }
                Err(SettlementError::Chain(ChainError::Reverted { name })) if rows.len() == 1 => {
                    self.refuse(&rows, &name);
                }
                Err(SettlementError::Chain(ChainError::Reverted { .. })) => {
                    let half = rows.split_off(rows.len() / 2);
                    left.extend([half, rows]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// What these rows claim beyond what is claimed.
    fn fresh(&self, rows: &[ClaimRow]) -> Amount {
        let fresh = rows.iter().map(|row| {
            let view = self.ledger.channel(row.config.id(self.chain.network()));
            let claimed = view.map(|view| view.channel.claimed()).unwrap_or_default();
            row.total_claimed.saturating_sub(claimed)
        });
        fresh.fold(Amount::ZERO, Amount::saturating_add)
    }

    /// Remembers what an errand moves, to tell those who wait.
    pub(in crate::settlement) fn moves(&mut self, nonce: u64, amount: Amount) {
        if let Some(errand) = self.errands.get_mut(&nonce) {
            errand.moves = amount;
        }
    }

    fn refuse(&mut self, rows: &[ClaimRow], name: &str) {
        let now = self.clock.now();
        for row in rows {
            let id = row.config.id(self.chain.network());
            tracing::error!(channel = %id.short(), %name, "the contract refuses a claim; it is tried again later");
            let refusal = Refusal::after(self.refusals.get(&id), now);
            self.refusals.insert(id, refusal);
            self.outlook().refused.insert(id, name.to_owned());
        }
    }

    /// What the contract refused before, it takes now or may take.
    pub(in crate::settlement) fn forgive(&mut self, id: ChannelId) {
        if self.refusals.remove(&id).is_some() {
            self.outlook().refused.remove(&id);
        }
    }

    /// Everything that can be claimed now.
    fn everything(&self) -> Vec<Vec<ClaimRow>> {
        let short = self.outlook().short.clone();
        let standing = claims::Standing {
            channels: &self.claimable(),
            in_flight: &self.on_their_way(),
            short: &short,
            since: &claims::Since::new(),
            row_cost: Amount::ZERO,
            now: self.clock.now(),
        };
        standing.all(&self.policy)
    }

    async fn claim_on_order(&mut self, reply: Answer<Vec<Moved>>) {
        let claimed = self.claim(self.everything()).await;
        if let Err(error) = claimed {
            // Whoever asked may have gone.
            return drop(reply.send(Err(error)));
        }
        let mut ends = Vec::new();
        for errand in self.errands.values_mut() {
            if errand.purpose == Purpose::Claim {
                let (told, end) = oneshot::channel();
                errand.waiting.push(told);
                ends.push(end);
            }
        }
        self.gathering.spawn(async move {
            let all = async {
                let mut moved = Vec::new();
                for end in ends {
                    moved.push(end.await.unwrap_or(Err(SettlementError::Stopped))?);
                }
                Ok(moved)
            };
            let all = tokio::time::timeout(CLAIM_WAIT, all).await;
            // Whoever asked may have gone.
            reply.send(all.unwrap_or(Err(SettlementError::Late))).ok();
        });
    }

    async fn last_claims(&mut self) {
        let claiming = async {
            self.claim(self.everything()).await?;
            let is_claim = |errand: &Errand| errand.purpose == Purpose::Claim;
            let mut ticks = interval(self.chain.poll_interval());
            while self.errands.values().any(is_claim) {
                ticks.tick().await;
                self.look_after().await;
            }
            Ok::<(), SettlementError>(())
        };
        match tokio::time::timeout(LAST_WAIT, claiming).await {
            Ok(Ok(())) => tracing::info!("claimed before stopping"),
            Ok(Err(error)) => tracing::warn!(%error, "the last claim must wait for the next start"),
            Err(_) => {
                tracing::warn!("the last claim is on its way and looked for at the next start")
            }
        }
    }

    /// Remembers on disk since when channels are owed something.
    pub(in crate::settlement) async fn note_owed(&self) -> Result<(), SettlementError> {
        let channels = self.ledger.channels();
        let now = self.clock.now();
        let changed = {
            let mut outlook = self.outlook();
            let outlook = &mut *outlook;
            claims::note(&mut outlook.since, (&channels, &outlook.short), now)
        };
        if changed.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (id, start) in changed {
            batch = match start {
                Some(start) => batch.put(&OWED, &id.0, &start)?,
                None => batch.delete(&OWED, &id.0),
            };
        }
        Ok(self.ledger.store().commit(batch).await?)
    }
}

pub(in crate::settlement) fn interval(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
