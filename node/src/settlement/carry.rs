//! Carries transactions to their end: mined, deep enough, in the books.
//!
//! One that is not mined is handed in again, at every node; one that waits too long is signed
//! anew with higher fees in the same place, and whichever is mined counts. One that a
//! reorganisation took back is handed in again. One whose place another transaction has taken is
//! sent in a new place if it still has something to do. Nothing is given up while it can be mined,
//! but for what every node has refused for ten minutes; of what cannot be made anew, every node
//! must have said so.

use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Block, ChainError, Outcome, Prepared};
use farthing_protocol::x402::ChannelId;
use futures::future::join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;

use crate::ledger::LedgerError;
use crate::ledger::records::Purpose;
use crate::settlement::actor::Actor;
use crate::settlement::errand::{Attempt, Errand};
use crate::settlement::news::DEEPEST;
use crate::settlement::{Moved, SettlementError, journal};

/// How long those who asked for a transaction wait for it; it goes on without them. Also how long
/// one is kept that every node refuses.
const PATIENCE: Duration = Duration::from_secs(600);
/// A transaction that is not mined is handed in again after so many looks.
const LOOKS: u32 = 10;
/// The most transactions signed for one errand: each is an eighth dearer than the one before.
const MOST_ATTEMPTS: usize = 32;
/// The longest pause after claims that were mined and failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

type Found = Option<(B256, Outcome)>;

impl Actor {
    /// Looks what has become of everything that is under way.
    pub(in crate::settlement) async fn look_after(&mut self) {
        let looked = self.look_at_all().await;
        if let Err(error) = looked {
            tracing::debug!(%error, "transactions could not be looked after");
        }
        self.impatient();
        self.show();
    }

    async fn look_at_all(&mut self) -> Result<(), SettlementError> {
        let head = self.chain.latest().await?;
        let looks = self.errands.iter().map(|(nonce, errand)| async {
            let found = self.found(errand).await;
            (*nonce, found)
        });
        for (nonce, found) in join_all(looks).await {
            match found? {
                Some((hash, outcome)) => self.mined(nonce, (hash, outcome), head).await?,
                None => self.not_mined(nonce, head).await?,
            }
        }
        self.fill_gap().await
    }

    /// Whichever transaction of an errand is mined.
    pub(in crate::settlement) async fn found(&self, errand: &Errand) -> Result<Found, ChainError> {
        let ask = async |hash| (hash, self.chain.outcome(hash).await);
        first(errand.attempts.iter().map(|attempt| ask(attempt.hash))).await
    }

    /// As [`Actor::found`], but every node is asked: before anything is given up.
    async fn found_anywhere(&self, nonce: u64) -> Result<Found, ChainError> {
        let attempts = self.errands.get(&nonce).map(|errand| &errand.attempts);
        let ask = async |hash| (hash, self.chain.outcome_anywhere(hash).await);
        let attempts = attempts.into_iter().flatten();
        first(attempts.map(|attempt| ask(attempt.hash))).await
    }

    async fn mined(
        &mut self,
        nonce: u64,
        found: (B256, Outcome),
        head: Block,
    ) -> Result<(), SettlementError> {
        let (hash, outcome) = found;
        let Some(errand) = self.errands.get_mut(&nonce) else {
            return Ok(());
        };
        let is_new = errand.mined.replace(outcome.block) != Some(outcome.block);
        errand.lost = None;
        let depth = head.number.saturating_sub(outcome.block).saturating_add(1);
        if depth >= self.policy.confirmations.max(1) {
            return self.conclude(nonce, hash, outcome).await;
        }
        if let (Purpose::Deposit { channel, .. }, true) = (errand.purpose, is_new) {
            // As much of it as may count already is good to be worked against.
            let amount = match self.refresh(channel).await {
                Ok(amount) => amount,
                Err(error) => {
                    // To be tried again with the next look.
                    if let Some(errand) = self.errands.get_mut(&nonce) {
                        errand.mined = None;
                    }
                    return Err(error);
                }
            };
            if outcome.success && self.sight.counts_whole(channel) {
                let moved = Moved {
                    transaction: hash,
                    amount,
                };
                if let Some(errand) = self.errands.get_mut(&nonce) {
                    errand.tell(|| Ok(moved));
                }
            }
        }
        Ok(())
    }

    /// It is final: into the books, then off the disk, then to those who wait.
    async fn conclude(
        &mut self,
        nonce: u64,
        hash: B256,
        outcome: Outcome,
    ) -> Result<(), SettlementError> {
        let Some(errand) = self.errands.get(&nonce) else {
            return Ok(());
        };
        let purpose = errand.purpose;
        if let Purpose::Refund(id) = purpose {
            self.refunding.remove(&id);
        }
        let (channels, moves) = (errand.channels(), errand.moves);
        self.refresh_all(&channels).await?;
        let amount = match purpose {
            Purpose::Deposit { channel, .. } => {
                let view = self.ledger.channel(channel);
                view.map(|view| view.channel.balance()).unwrap_or_default()
            }
            _ => moves,
        };
        let mined = journal::mined(purpose, outcome, self.clock.now());
        let Some(mut errand) = self.errands.remove(&nonce) else {
            return Ok(());
        };
        let store = self.ledger.store();
        if let Err(error) = journal::close(store, &errand.attempts, Some((hash, mined))).await {
            self.errands.insert(nonce, errand);
            return Err(error);
        }
        self.count_failures(purpose, outcome.success);
        let moved = Moved {
            transaction: hash,
            amount,
        };
        if outcome.success {
            tracing::info!(%hash, ?purpose, "mined");
            errand.tell(|| Ok(moved));
        } else {
            tracing::warn!(%hash, ?purpose, "mined, but failed");
            errand.tell(|| Err(SettlementError::Failed(hash)));
        }
        self.recent.push(errand);
        Ok(())
    }

    /// A claim that is mined and fails was simulated a moment before: something races us, and each
    /// try costs gas. The next waits, twice as long each time; a withdrawal does not wait.
    fn count_failures(&mut self, purpose: Purpose, success: bool) {
        if purpose != Purpose::Claim {
            return;
        }
        self.failures = if success {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let pause = self.policy.poll.saturating_mul(1 << self.failures.min(12));
        self.holds_until = match self.failures {
            0 | 1 => None,
            _ => Some(Instant::now() + pause.min(LONGEST_PAUSE)),
        };
    }

    async fn not_mined(&mut self, nonce: u64, head: Block) -> Result<(), SettlementError> {
        let Some(errand) = self.errands.get_mut(&nonce) else {
            return Ok(());
        };
        if errand.mined.take().is_some() {
            tracing::warn!(nonce, purpose = ?errand.purpose, "the chain took a transaction back: it is sent again");
            self.stale.extend(errand.channels());
            errand.sent = Instant::now() - again(self.chain.poll_interval());
        }
        let Some(newest) = errand.newest().cloned() else {
            return self.abandon(nonce, SettlementError::Busy).await;
        };
        // By both clocks: the day's may be set back, the other begins anew with each start.
        let waited = self
            .clock
            .now()
            .since(newest.signed)
            .max(newest.since.elapsed());
        let mut sent = Ok(());
        if errand.lost.is_some() || errand.sent.elapsed() >= again(self.chain.poll_interval()) {
            errand.sent = Instant::now();
            sent = self.hand_in_again(nonce).await;
        }
        let unwelcome = self.errands.get(&nonce).and_then(|errand| errand.unwelcome);
        match sent {
            Err(ChainError::NonceUsed) => self.place_taken(nonce, head).await,
            _ if unwelcome.is_some_and(|since| self.clock.now().since(since) >= PATIENCE) => {
                self.unwelcome(nonce, head).await
            }
            _ if waited >= self.policy.bump_after => self.bump(nonce, &newest, head).await,
            Err(error) => {
                tracing::debug!(hash = %newest.hash, %error, "a transaction was not taken again");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Hands the dearest in again; if every node refuses it, all others at once, of which the
    /// dearest that one takes counts. (Our purse may not reach for the dearest.)
    async fn hand_in_again(&mut self, nonce: u64) -> Result<(), ChainError> {
        let attempts = self.errands.get(&nonce).map(|errand| &errand.attempts);
        let mut raws = attempts.into_iter().flatten().rev();
        let Some(newest) = raws.next() else {
            return Ok(());
        };
        let mut told = self.chain.spread(&newest.raw).await;
        // One that is too cheap is cured by a dearer one.
        let refused = matches!(told.word, Err(ChainError::Refused(_)));
        if is_refusal(&told.word) {
            let others = join_all(raws.map(|attempt| self.chain.spread(&attempt.raw))).await;
            for other in others {
                told.by_all &= other.by_all;
                told.word = other.word;
                if !is_refusal(&told.word) {
                    break;
                }
            }
        }
        let now = self.clock.now();
        if let Some(errand) = self.errands.get_mut(&nonce) {
            errand.refused = refused;
            match told.word {
                Err(ChainError::Refused(_)) if told.by_all || !errand.is_made_once() => {
                    errand.unwelcome.get_or_insert(now);
                }
                // Silence says nothing either way; who is silent may have it.
                Err(ChainError::Refused(_) | ChainError::Unavailable(_)) => {}
                _ => errand.unwelcome = None,
            }
        }
        told.word
    }

    /// No node has taken it for so long that it would only keep all others waiting: what is still
    /// to be done is done anew. Who asked is told that it may be mined yet.
    async fn unwelcome(&mut self, nonce: u64, head: Block) -> Result<(), SettlementError> {
        if let Some(found) = self.found_anywhere(nonce).await? {
            return self.mined(nonce, found, head).await;
        }
        let errand = self.errands.get(&nonce);
        let newest = errand.and_then(Errand::newest).map(|newest| newest.hash);
        let told = newest.map_or(ChainError::NonceUsed, ChainError::Unconfirmed);
        self.abandon(nonce, told.into()).await
    }

    /// Signs the same anew, dearer, in the same place.
    async fn bump(
        &mut self,
        nonce: u64,
        newest: &Attempt,
        head: Block,
    ) -> Result<(), SettlementError> {
        let Some(errand) = self.errands.get(&nonce) else {
            return Ok(());
        };
        // One that is refused does not become welcome by being dearer, unless it was too cheap.
        if errand.refused || errand.attempts.len() >= MOST_ATTEMPTS {
            return Ok(());
        }
        let purpose = errand.purpose;
        let Some(dearer) = self.chain.dearer(&newest.raw, &self.key).await? else {
            tracing::debug!(nonce, "settlement.max_fee allows no higher fee: waiting");
            return Ok(());
        };
        // The node that was asked may only not know yet.
        if let Some(found) = self.found_anywhere(nonce).await? {
            return self.mined(nonce, found, head).await;
        }
        let now = self.clock.now();
        journal::record(self.ledger.store(), &dearer, purpose, now).await?;
        tracing::info!(
            nonce,
            ?purpose,
            fee = dearer.fees.max,
            "a transaction waits too long: its fee is raised"
        );
        let raw = dearer.raw.clone();
        if let Some(errand) = self.errands.get_mut(&nonce) {
            errand.attempts.push(Attempt::new(dearer, now));
        }
        match self.chain.broadcast(&raw).await {
            // The older one was mined just now, or will be found to be: the next look shows.
            Ok(_) | Err(ChainError::NonceUsed | ChainError::Unavailable(_)) => Ok(()),
            Err(error) => {
                tracing::warn!(nonce, %error, "the dearer transaction was not taken");
                if let Some(errand) = self.errands.get_mut(&nonce) {
                    errand.refused = matches!(error, ChainError::Refused(_));
                }
                Ok(())
            }
        }
    }

    /// The claim key has sent another transaction with this nonce, or ours is mined and the node
    /// that was asked does not know it. When no node knows it and that is as deep as we ask, ours
    /// will never be mined. What cannot be made anew (a buyer's payment) waits until also the
    /// slowest node must know.
    async fn place_taken(&mut self, nonce: u64, head: Block) -> Result<(), SettlementError> {
        if let Some(found) = self.found_anywhere(nonce).await? {
            return self.mined(nonce, found, head).await;
        }
        let Some(errand) = self.errands.get_mut(&nonce) else {
            return Ok(());
        };
        let first_seen = *errand.lost.get_or_insert(head.number);
        let depth = head.number.saturating_sub(first_seen).saturating_add(1);
        let mut wanted = self.policy.confirmations.max(1);
        if errand.is_made_once() {
            wanted = wanted.saturating_add(self.chain.most_behind());
        }
        if depth < wanted {
            return Ok(());
        }
        tracing::warn!(nonce, purpose = ?errand.purpose, "another transaction of the claim key has taken this place; is the key used elsewhere?");
        let raw = errand.newest().map(|newest| newest.raw.clone());
        let hash = errand.newest().map(|newest| newest.hash);
        match (errand.purpose, raw) {
            // What is unclaimed is claimed anew; a refund is asked for anew.
            (Purpose::Claim | Purpose::Settle | Purpose::Refund(_) | Purpose::Filler, _)
            | (_, None) => self.abandon(nonce, ChainError::NonceUsed.into()).await,
            (Purpose::Deposit { .. } | Purpose::Once(_), Some(raw)) => {
                let place = self.free_nonce(nonce.saturating_add(1)).await?;
                match self.chain.moved(&raw, &self.key, place).await {
                    Ok(prepared) => self.move_to(nonce, prepared).await,
                    Err(error) if error.is_unavailable() => Err(error.into()),
                    Err(error @ ChainError::GasShort { .. }) => {
                        tracing::debug!(nonce, %error, "it moves when there is gas for it");
                        Ok(())
                    }
                    // It has happened, or cannot happen any more. Who asked is not told that
                    // nothing was sent: it was.
                    Err(error) => {
                        tracing::warn!(nonce, %error, "it cannot be made in another place");
                        let told = hash.map_or(error, ChainError::Unconfirmed);
                        self.abandon(nonce, told.into()).await
                    }
                }
            }
        }
    }

    async fn move_to(&mut self, nonce: u64, prepared: Prepared) -> Result<(), SettlementError> {
        let Some(old) = self.errands.remove(&nonce) else {
            return Ok(());
        };
        let (now, place) = (self.clock.now(), prepared.nonce);
        let new = (&prepared, old.purpose);
        if let Err(error) = journal::exchange(self.ledger.store(), &old.attempts, new, now).await {
            self.errands.insert(nonce, old);
            return Err(error);
        }
        let raw = prepared.raw.clone();
        let attempt = Attempt::new(prepared, now);
        let mut errand = Errand::new(old.purpose, place, vec![attempt], self.chain.network());
        errand.waiting = old.waiting;
        errand.begun = old.begun;
        self.errands.insert(place, errand);
        // What is not taken now is handed in again.
        self.chain.broadcast(&raw).await.ok();
        Ok(())
    }

    /// Nothing of this errand will be mined any more.
    async fn abandon(&mut self, nonce: u64, why: SettlementError) -> Result<(), SettlementError> {
        let Some(mut errand) = self.errands.remove(&nonce) else {
            return Ok(());
        };
        if let Err(error) = journal::close(self.ledger.store(), &errand.attempts, None).await {
            self.errands.insert(nonce, errand);
            return Err(error);
        }
        tracing::warn!(nonce, purpose = ?errand.purpose, error = %why, "a transaction will not be mined");
        if let Purpose::Refund(id) = errand.purpose {
            self.refunding.remove(&id);
        }
        self.stale.extend(errand.channels());
        let mut why = Some(why);
        errand.tell(move || Err(why.take().unwrap_or(SettlementError::Stopped)));
        Ok(())
    }

    /// A nonce below ours that nobody uses (its transaction was refused for good) would keep all
    /// others waiting: it is used up.
    async fn fill_gap(&mut self) -> Result<(), SettlementError> {
        let Some((lowest, errand)) = self.errands.first_key_value() else {
            return Ok(());
        };
        let lowest = *lowest;
        // What was just sent may not be known everywhere.
        let is_young = errand.begun.elapsed() < again(self.chain.poll_interval());
        if errand.mined.is_some() || is_young {
            return Ok(());
        }
        let nonces = self.chain.nonces(self.key.address()).await?;
        // Whatever waits at the node in an unbroken row is no gap.
        if nonces.free >= lowest {
            return Ok(());
        }
        tracing::warn!(nonce = nonces.free, "a gap in the nonces is filled");
        let filler = self.chain.filler(&self.key, nonces.free).await?;
        match self.send(filler, Purpose::Filler).await {
            // Somebody else was faster: there is no gap any more.
            Err(SettlementError::Chain(ChainError::NonceUsed | ChainError::Underpriced)) => Ok(()),
            sent => sent.map(drop),
        }
    }

    /// Those who have waited long enough are told that it is not known.
    fn impatient(&mut self) {
        for errand in self.errands.values_mut() {
            if errand.begun.elapsed() >= PATIENCE
                && let Some(hash) = errand.newest().map(|newest| newest.hash)
            {
                errand.tell(|| Err(ChainError::Unconfirmed(hash).into()));
            }
        }
    }

    /// What was mined lately and is in the chain no longer is under way again.
    pub(in crate::settlement) async fn revive(&mut self, head: u64) -> Result<(), SettlementError> {
        let keep = DEEPEST;
        let lost = std::mem::take(&mut self.recent);
        for mut errand in lost {
            if errand
                .mined
                .is_some_and(|block| head.saturating_sub(block) > keep)
            {
                continue;
            }
            let is_free = !self.errands.contains_key(&errand.nonce);
            if self.found(&errand).await?.is_some() || !is_free {
                self.recent.push(errand);
                continue;
            }
            tracing::warn!(nonce = errand.nonce, purpose = ?errand.purpose, "the chain took back what was final: it is sent again");
            let (store, network) = (self.ledger.store(), self.chain.network().clone());
            for attempt in &errand.attempts {
                let prepared = attempt.prepared(errand.nonce);
                journal::record(store, &prepared, errand.purpose, attempt.signed).await?;
            }
            let attempts = std::mem::take(&mut errand.attempts);
            let mut again = Errand::new(errand.purpose, errand.nonce, attempts, &network);
            // To be handed in with the next look.
            again.mined = errand.mined;
            self.errands.insert(errand.nonce, again);
        }
        Ok(())
    }

    /// Looks at a channel and enters what is seen.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub(in crate::settlement) async fn refresh(
        &mut self,
        id: ChannelId,
    ) -> Result<Amount, SettlementError> {
        self.refresh_all(&[id]).await?;
        let view = self.ledger.channel(id).ok_or(LedgerError::NoChannel)?;
        Ok(view.channel.balance())
    }
}

/// The first of these answers that tells of a mined transaction; all are asked at once.
async fn first(
    asked: impl Iterator<Item = impl Future<Output = (B256, Result<Option<Outcome>, ChainError>)>>,
) -> Result<Found, ChainError> {
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut known = Ok(None);
    while let Some((hash, told)) = asked.next().await {
        match told {
            Ok(Some(outcome)) => return Ok(Some((hash, outcome))),
            Ok(None) => {}
            Err(error) => known = Err(error),
        }
    }
    known
}

const fn is_refusal(word: &Result<(), ChainError>) -> bool {
    matches!(word, Err(ChainError::Refused(_) | ChainError::Underpriced))
}

/// How long until a transaction is handed in again.
fn again(look: Duration) -> Duration {
    look.saturating_mul(LOOKS)
}
