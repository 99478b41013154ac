//! The way to the chain: deposits in, claims out, withdrawals watched.
//!
//! One actor is the only user of the claim key's transactions. Each is signed, recorded, and only
//! then broadcast, and looked after until it is final; after a crash it is broadcast again, which
//! is harmless. An outage of the chain delays everything and loses nothing: what is charged stays
//! charged, and no new credit is given on what the chain has not confirmed.
//!
//! To have it carry another kind of transaction: a [`crate::ledger::records::Purpose`] for the
//! journal, a message, and in `orders.rs` calls of `Actor::submit` and `Actor::wait_for`, which
//! answers when it is final. Whatever is carried must be harmless when it is sent twice.

mod sight;
mod errand;
mod claims;
mod refusal;
mod journal;
mod news;
mod carry;
mod orders;
mod actor;
mod fate;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError, Write};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::ledger::once::Once;
use crate::ledger::records::Purpose;
use crate::ledger::{ChannelView, Ledger, LedgerError};
use crate::settlement::actor::{Actor, Message};
use crate::settlement::errand::Errand;
pub use crate::settlement::fate::Fate;
use crate::settlement::sight::Sight;

/// Questions that may wait for the actor.
const INBOX: usize = 64;
/// Unknown channels that are looked up at once.
const ADOPTIONS: usize = 8;

/// When to claim.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Unclaimed atoms on a channel worth a claim.
    pub claim_at: Amount,
    /// The longest a charge stays unclaimed.
    pub claim_age: Duration,
    /// The most channels in one claim.
    pub max_rows: usize,
    /// A claim for its value is worth so many times the gas of one row.
    pub gas_multiple: u128,
    /// Atoms that a whole coin of the chain costs; zero when that is not to be considered.
    pub coin_price: Amount,
    /// Unclaimed atoms of one payer, over all its channels, at which it is claimed from at once.
    pub exposure: Amount,
    /// Blocks after which a transaction counts as final.
    pub confirmations: u64,
    /// Atoms of all buyers' deposits together that count as soon as they are mined.
    pub trust_unconfirmed: Amount,
    /// How long a transaction waits before its fee is raised.
    pub bump_after: Duration,
    /// How often the chain is asked for news.
    pub poll: Duration,
}

#[cfg(test)]
impl Default for Policy {
    fn default() -> Self {
        Self {
            claim_at: Amount::atoms(1_000_000),
            claim_age: Duration::from_secs(12 * 3600),
            max_rows: 50,
            gas_multiple: 50,
            coin_price: Amount::ZERO,
            exposure: Amount::atoms(5_000_000),
            confirmations: 1,
            trust_unconfirmed: Amount::ZERO,
            bump_after: Duration::from_secs(60),
            poll: Duration::from_millis(2),
        }
    }
}

/// Why the chain was not moved.
#[derive(Debug, thiserror::Error)]
pub enum SettlementError {
    /// The chain said no, or nothing.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The books.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The transaction was mined and failed.
    #[error("transaction {0} was mined but failed")]
    Failed(B256),
    /// Purchases run on the channel.
    #[error("the channel is in use")]
    InUse,
    /// A payer's consent would burn more gas than a deposit is worth to us.
    #[error("the deposit may take {gas} gas; at most {most} are paid for")]
    Costly {
        /// What it may take.
        gas: u64,
        /// What we pay for.
        most: u64,
    },
    /// Nothing is left to return.
    #[error("nothing is left to return")]
    Nothing,
    /// A deposit that is mined, but not deep enough to count.
    #[error("the deposit is mined but not deep enough yet; ask again in a few blocks")]
    Shallow,
    /// It goes on, but nobody waits for it any longer.
    #[error("it takes long; see `farthing-node earnings` for what becomes of it")]
    Late,
    /// Too much waits already.
    #[error("too many transactions are waiting; try again later")]
    Busy,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
}

impl Outlook {
    /// Atoms of a channel's charges that cannot be claimed, because it does not hold them.
    #[must_use]
    pub fn lost(&self, id: ChannelId, view: &ChannelView) -> Amount {
        let held = self.short.get(&id);
        held.map_or(Amount::ZERO, |held| {
            let payable = (*held).max(view.channel.claimed());
            view.channel.charged().saturating_sub(payable)
        })
    }
}

impl From<farthing_protocol::store::CommitError> for SettlementError {
    fn from(error: farthing_protocol::store::CommitError) -> Self {
        Self::Ledger(error.into())
    }
}

impl From<farthing_protocol::store::BatchError> for SettlementError {
    fn from(error: farthing_protocol::store::BatchError) -> Self {
        Self::Ledger(error.into())
    }
}

impl From<farthing_protocol::store::ReadError> for SettlementError {
    fn from(error: farthing_protocol::store::ReadError) -> Self {
        Self::Ledger(error.into())
    }
}

/// A transaction that did what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// The transaction; zero when it had happened before we were asked.
    pub transaction: B256,
    /// Atoms moved, or the channel's balance after a deposit.
    pub amount: Amount,
}

/// What the settlement stands on.
#[derive(Debug)]
pub struct Ground {
    /// The chain.
    pub chain: Chain,
    /// The books.
    pub ledger: Ledger,
    /// Signs transactions; its address is the channels' `receiverAuthorizer`.
    pub key: EvmKey,
    /// The time of day.
    pub clock: Clock,
}

/// How things stand with the claims, for those who ask while the actor is busy.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// Since when each channel has something unclaimed.
    pub since: HashMap<ChannelId, Timestamp>,
    /// Channels that the contract refuses to pay from, and why. Each is tried again after a while.
    pub refused: HashMap<ChannelId, String>,
    /// Channels that hold less on chain than was charged, and what they hold: no more than that
    /// can be claimed, and the rest is lost unless more is deposited.
    pub short: HashMap<ChannelId, Amount>,
    /// Channels with a claim on its way, and its latest transaction.
    pub claiming: HashMap<ChannelId, B256>,
    /// What is under way.
    pub in_flight: Vec<InFlight>,
    /// Deposited, mined, and not deep enough to count.
    pub unconfirmed: HashMap<ChannelId, Amount>,
    /// Whether the chain failed to answer when last asked.
    pub away: bool,
    /// Why claims must wait although the chain answers: no gas, as a rule.
    pub trouble: Option<String>,
    /// How often the chain was seen to take blocks back, since the start.
    pub reorganisations: u64,
}

/// A transaction that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    /// What for.
    pub purpose: Purpose,
    /// Its nonce.
    pub nonce: u64,
    /// The latest transaction signed for it.
    pub hash: B256,
    /// How many were signed, each dearer than the one before.
    pub attempts: usize,
    /// When the first was signed.
    pub signed: Timestamp,
    /// What the latest offers per gas, in wei.
    pub fee: u128,
    /// The block it is in, when it is only not deep enough yet.
    pub mined: Option<u64>,
}

impl InFlight {
    fn of(errand: &Errand) -> Option<Self> {
        let (first, newest) = (errand.attempts.first()?, errand.newest()?);
        Some(Self {
            purpose: errand.purpose,
            nonce: errand.nonce,
            hash: newest.hash,
            attempts: errand.attempts.len(),
            signed: first.signed,
            fee: newest.fees.max,
            mined: errand.mined,
        })
    }
}

/// A handle to the settlement; clones share it.
#[derive(Debug, Clone)]
pub struct Settlement {
    chain: Chain,
    messages: mpsc::Sender<Message>,
    outlook: Arc<Mutex<Outlook>>,
    sight: Arc<Sight>,
    ledger: Ledger,
    adoptions: Arc<Semaphore>,
}

type Answer<T> = oneshot::Sender<Result<T, SettlementError>>;

impl Settlement {
    /// Starts the actor. It ends with [`Settlement::stop`] or when the last handle is dropped.
    #[must_use]
    pub fn start(ground: Ground, policy: Policy) -> (Self, JoinHandle<()>) {
        let (settlement, actor) = Self::build(ground, policy);
        (settlement, tokio::spawn(actor.run()))
    }

    fn build(ground: Ground, policy: Policy) -> (Self, Actor) {
        let (messages, inbox) = mpsc::channel(INBOX);
        let outlook = Arc::new(Mutex::new(Outlook::default()));
        let (depth, allowance) = (policy.confirmations, policy.trust_unconfirmed);
        let sight = Arc::new(Sight::new(ground.chain.clone(), depth, allowance));
        let settlement = Self {
            chain: ground.chain.clone(),
            messages,
            outlook: Arc::clone(&outlook),
            sight: Arc::clone(&sight),
            ledger: ground.ledger.clone(),
            adoptions: Arc::new(Semaphore::new(ADOPTIONS)),
        };
        let actor = Actor::new(ground, policy, inbox, (sight, outlook));
        (settlement, actor)
    }

    /// How things stand with the claims.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        self.outlook
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether the payer consents to this deposit, by its key or, if it is a contract, by its own
    /// word. Asked before a deposit takes the actor's time.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn consents(
        &self,
        config: &ChannelConfig,
        deposit: &Deposit,
    ) -> Result<bool, ChainError> {
        self.chain.consents(config, deposit).await
    }

    /// Submits a buyer's deposit; returns when it is mined and in the books. The caller has
    /// checked its terms. Submitting one twice is harmless.
    ///
    /// # Errors
    /// [`SettlementError`].
    pub async fn deposit(
        &self,
        config: ChannelConfig,
        deposit: Deposit,
    ) -> Result<Moved, SettlementError> {
        self.ask(|reply| Message::Deposit {
            config,
            deposit,
            reply,
        })
        .await
    }

    /// Takes into the books a channel that the chain knows and they do not: our disk was lost, or
    /// somebody else submitted the deposit. Charged is then what is claimed: what was charged and
    /// not claimed is forfeited. The caller has checked the terms, and that the buyer holds the
    /// channel's key. A known channel is left as it is.
    ///
    /// # Errors
    /// [`LedgerError::NoChannel`] when nothing is deposited; [`SettlementError::Shallow`],
    /// [`SettlementError::Busy`], the chain's, the books'.
    pub async fn adopt(
        &self,
        config: ChannelConfig,
        id: ChannelId,
    ) -> Result<ChannelView, SettlementError> {
        if let Some(view) = self.ledger.channel(id) {
            return Ok(view);
        }
        let permit = self.adoptions.try_acquire();
        let _permit = permit.map_err(|_| SettlementError::Busy)?;
        let seen = self.sight.look(id).await?;
        if seen.balance.is_zero() {
            return Err(match self.sight.counts_whole(id) {
                true => LedgerError::NoChannel.into(),
                false => SettlementError::Shallow,
            });
        }
        if let Some(view) = self.ledger.channel(id) {
            // The actor came first, and what it froze stays so.
            return Ok(view);
        }
        let view = self.ledger.observe(config, id, seen).await?;
        tracing::info!(channel = %id.short(), balance = %seen.balance, claimed = %seen.claimed, "took in a channel from the chain");
        Ok(view)
    }

    /// Claims and settles everything unclaimed now. Moves nothing when there is nothing.
    ///
    /// # Errors
    /// [`SettlementError`].
    pub async fn claim(&self) -> Result<Vec<Moved>, SettlementError> {
        self.ask(|reply| Message::Claim { reply }).await
    }

    /// Returns the unspent rest of a channel to its payer, or `most` of it.
    ///
    /// # Errors
    /// [`SettlementError::InUse`], [`SettlementError::Nothing`], or the chain's.
    pub async fn refund(
        &self,
        channel: ChannelId,
        most: Option<Amount>,
    ) -> Result<Moved, SettlementError> {
        self.ask(|reply| Message::Refund {
            channel,
            most,
            reply,
        })
        .await
    }

    /// Takes `amount` of a payment made for one purchase; of one that is paid in full, all. The
    /// caller has entered it into the books.
    ///
    /// # Errors
    /// [`SettlementError`].
    pub async fn take(
        &self,
        channel: ChannelId,
        once: Once,
        amount: Amount,
    ) -> Result<Moved, SettlementError> {
        let write = match once {
            Once::Exact(transfer) => Write::Exact { transfer },
            Once::Upto(permit) => Write::Upto { permit, amount },
        };
        self.ask(|reply| Message::Take {
            channel,
            write,
            reply,
        })
        .await
    }

    /// Claims what there is, if the chain answers, and ends the actor.
    pub async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.messages.send(Message::Stop { reply }).await.is_ok() {
            // An error means the actor has ended already.
            stopped.await.ok();
        }
    }

    async fn ask<T>(
        &self,
        message: impl FnOnce(Answer<T>) -> Message,
    ) -> Result<T, SettlementError> {
        let (reply, answer) = oneshot::channel();
        self.messages
            .send(message(reply))
            .await
            .map_err(|_| SettlementError::Stopped)?;
        answer.await.unwrap_or(Err(SettlementError::Stopped))
    }
}

#[cfg(test)]
mod tests;
