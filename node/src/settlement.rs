//! The way to the chain: deposits in, claims out, withdrawals watched.
//!
//! One actor is the only user of the claim key's transactions. Each is signed, recorded, and only
//! then broadcast; after a crash it is broadcast again, which is harmless. An outage of the chain
//! delays everything and loses nothing: what is charged stays charged, and no new credit is given
//! on what the chain has not confirmed.

mod claims;
mod journal;
mod orders;
mod carry;
mod actor;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::ledger::{Ledger, LedgerError};
use crate::settlement::actor::{Actor, Message};

/// Questions that may wait for the actor.
const INBOX: usize = 64;

/// When to claim.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Unclaimed atoms on a channel worth a claim.
    pub claim_at: Amount,
    /// The longest a charge stays unclaimed.
    pub claim_age: Duration,
    /// The most channels in one claim.
    pub max_rows: usize,
    /// Blocks after which a transaction counts as final.
    pub confirmations: u64,
    /// How often the chain is asked for news.
    pub poll: Duration,
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
    /// Too much waits already.
    #[error("too many transactions are waiting; try again later")]
    Busy,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopped,
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
    /// Channels whose rows the contract refuses.
    pub refused: HashSet<ChannelId>,
    /// The claim that waits to be mined.
    pub claiming: Option<B256>,
    /// Whether the chain failed to answer when last asked.
    pub away: bool,
}

/// A handle to the settlement; clones share it.
#[derive(Debug, Clone)]
pub struct Settlement {
    chain: Chain,
    messages: mpsc::Sender<Message>,
    outlook: Arc<Mutex<Outlook>>,
}

type Answer<T> = oneshot::Sender<Result<T, SettlementError>>;

impl Settlement {
    /// Starts the actor. It ends with [`Settlement::stop`] or when the last handle is dropped.
    #[must_use]
    pub fn start(ground: Ground, policy: Policy) -> (Self, JoinHandle<()>) {
        let (messages, inbox) = mpsc::channel(INBOX);
        let outlook = Arc::new(Mutex::new(Outlook::default()));
        let chain = ground.chain.clone();
        let actor = Actor::new(ground, policy, inbox, Arc::clone(&outlook));
        let settlement = Self {
            chain,
            messages,
            outlook,
        };
        (settlement, tokio::spawn(actor.run()))
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

    /// Claims and settles everything unclaimed now. Moves nothing when there is nothing.
    ///
    /// # Errors
    /// [`SettlementError`].
    pub async fn claim(&self) -> Result<Vec<Moved>, SettlementError> {
        self.ask(|reply| Message::Claim { reply }).await
    }

    /// Returns the unspent rest of a channel to its payer.
    ///
    /// # Errors
    /// [`SettlementError::InUse`], [`SettlementError::Nothing`], or the chain's.
    pub async fn refund(&self, channel: ChannelId) -> Result<Moved, SettlementError> {
        self.ask(|reply| Message::Refund { channel, reply }).await
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
