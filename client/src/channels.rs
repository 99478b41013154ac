//! Channels with sellers: open, top up, reconcile, and take the money back.
//!
//! A deposit is an EIP-3009 authorization that the seller submits, so the buyer needs the token
//! but no gas. It is on disk before the seller gets it; whether it was mined we see on the chain
//! ourselves. One opening or top-up per seller at a time.

mod deposit;
mod elsewhere;
mod once;
mod reconcile;
mod web;
mod withdrawal;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ChainError};
use farthing_protocol::clock::Clock;
use farthing_protocol::frame::{Answer, Call, CallRefusal};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::ask::{AskError, ask};
use farthing_protocol::net::{Net, OpenError};
use farthing_protocol::offer::VerifiedOffer;

use farthing_protocol::x402::{ChannelConfig, ChannelId};

use crate::channels::deposit::Size;
use crate::ledger::{Account, Base, Ledger, LedgerError, Opened, Standing};
use crate::wallet::Wallet;

/// How long a seller may take to have a deposit mined.
const DEPOSIT_WAIT: Duration = Duration::from_secs(120);
/// How long a channel may take to be ready, others' turns included.
const READY_WAIT: Duration = Duration::from_secs(240);
/// How long any other call may take.
const CALL_WAIT: Duration = Duration::from_secs(15);

/// Why there is no usable channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The wallet does not hold what is to be deposited.
    #[error(
        "the wallet {address} holds {balance} atoms but {needed} are needed for a deposit; send the token to it"
    )]
    EmptyWallet {
        /// The payer.
        address: String,
        /// What it holds.
        balance: Amount,
        /// What is needed.
        needed: Amount,
    },
    /// More is needed on one channel than the policy allows to deposit.
    #[error(
        "a deposit of {needed} atoms is needed, but [spend] max_deposit allows {allowed} on one channel"
    )]
    MaxDeposit {
        /// What the channel would have to hold.
        needed: Amount,
        /// What the policy allows.
        allowed: Amount,
    },
    /// The payer's key is elsewhere, and no deposit that it has signed waits here.
    #[error(
        "{needed} atoms must be deposited and the payer {payer} signs elsewhere: `farthing wallet deposit --prepare --seller {seller}` prints what it must sign"
    )]
    Elsewhere {
        /// The payer.
        payer: Address,
        /// Whom to pay.
        seller: NodeId,
        /// What is needed.
        needed: Amount,
    },
    /// Too many deposits wait to be signed elsewhere.
    #[error("{0} deposits wait to be signed already: import one, or let one expire")]
    TooManyDrafts(usize),
    /// No such deposit waits to be signed.
    #[error("no such deposit waits to be signed; it may have expired: prepare it anew")]
    NoDraft,
    /// The payer does not take the signature.
    #[error("the payer {0} does not take this signature for this deposit")]
    NotSigned(Address),
    /// The seller was not reached or did not answer; what it did is not known.
    #[error("the seller did not answer: {0}")]
    Silent(#[from] AskError),
    /// The seller refused.
    #[error("the seller refused: {0}")]
    Refused(CallRefusal),
    /// The seller's words do not fit the question, or are not proven.
    #[error("the seller is not to be believed: {0}")]
    Liar(&'static str),
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The books.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

/// How channels are funded.
#[derive(Debug, Clone, Copy)]
pub struct Funding {
    /// The usual deposit.
    pub deposit: Amount,
    /// The most one channel may hold unspent.
    pub max_deposit: Amount,
    /// A channel with less than this left is added to before it is empty.
    pub top_up_below: Amount,
    /// How long our own node may take to see a deposit that the seller has seen.
    pub seen_wait: Duration,
    /// Which of the machines with the same keys this is: each has channels of its own.
    pub instance: u32,
}

/// One seller's turn: openings and top-ups with it wait for each other.
pub type Turn = Arc<tokio::sync::Mutex<()>>;

/// The buyer's channels.
#[derive(Debug)]
pub struct Channels {
    chain: Chain,
    net: Net,
    wallet: Wallet,
    ledger: Ledger,
    funding: Funding,
    clock: Clock,
    turns: Mutex<HashMap<NodeId, Turn>>,
}

/// What the channels stand on.
#[derive(Debug)]
pub struct Ground {
    /// The chain.
    pub chain: Chain,
    /// The network.
    pub net: Net,
    /// The wallet.
    pub wallet: Wallet,
    /// The books.
    pub ledger: Ledger,
    /// The time of day.
    pub clock: Clock,
}

impl Channels {
    /// Channels over these parts.
    #[must_use]
    pub fn new(ground: Ground, funding: Funding) -> Self {
        let Ground {
            chain,
            net,
            wallet,
            ledger,
            clock,
        } = ground;
        Self {
            chain,
            net,
            wallet,
            ledger,
            funding,
            clock,
            turns: Mutex::default(),
        }
    }

    /// A channel with this seller on which `needed` more can be promised: the one there is,
    /// topped up if it is short, or a new one. Reconciles first what is in doubt.
    ///
    /// # Errors
    /// Any [`ChannelError`].
    pub async fn ready(
        &self,
        offer: &VerifiedOffer,
        needed: Amount,
    ) -> Result<ChannelId, ChannelError> {
        if let Some((id, account)) = self.current(offer)
            && room(&account) >= needed
            && !self.ledger.in_doubt(id)
        {
            return Ok(id);
        }
        let made = tokio::time::timeout(READY_WAIT, self.make_ready(offer, needed)).await;
        made.map_err(|_| ChannelError::Silent(AskError::Open(OpenError::Deadline)))?
    }

    async fn make_ready(
        &self,
        offer: &VerifiedOffer,
        needed: Amount,
    ) -> Result<ChannelId, ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let _turn = turn.lock().await;
        let mut id = match self.current(offer) {
            Some((id, _)) => id,
            None => self.open(offer, needed).await?,
        };
        if self.ledger.in_doubt(id) {
            self.reconcile(offer, id).await?;
            // The channel may have been left: the seller has lost its books.
            if self.current(offer).is_none_or(|(current, _)| current != id) {
                id = self.open(offer, needed).await?;
            }
        }
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        if room(&account) < needed {
            self.top_up(offer, id, needed).await?;
        }
        Ok(id)
    }

    /// A seller's turn: whoever opens, fills or leaves a channel with it holds it.
    pub fn turn(&self, seller: NodeId) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Sellers we have channels with are few; those in the map without one cost 100 bytes.
        Arc::clone(turns.entry(seller).or_default())
    }

    /// The channel in use with this seller on its present terms.
    fn current(&self, offer: &VerifiedOffer) -> Option<(ChannelId, Account)> {
        let fits = |account: &Account| {
            account.standing == Standing::Good
                && self.is_lane(account.config.salt)
                && account.config == self.terms(offer, account.config.salt)
        };
        let mut found: Vec<_> = self
            .ledger
            .accounts()
            .into_iter()
            .filter(|(_, a)| fits(a))
            .collect();
        // The fullest: a drained one is filled again only when there is no other.
        found.sort_unstable_by_key(|(id, account)| (Reverse(room(account)), account.opened, *id));
        found.into_iter().next()
    }

    fn terms(&self, offer: &VerifiedOffer, salt: B256) -> ChannelConfig {
        let offer = offer.offer();
        ChannelConfig {
            payer: self.wallet.payer(),
            payer_authorizer: self.wallet.authorizer(),
            receiver: offer.payout,
            receiver_authorizer: offer.claim,
            token: offer.token,
            withdraw_delay: offer.withdraw_delay,
            salt,
        }
    }

    /// The first channel with this seller that our books do not know. Those that are frozen or
    /// closing keep their numbers.
    fn next_lane(&self, offer: &VerifiedOffer) -> (ChannelId, ChannelConfig) {
        let mut lane = 0_u32;
        loop {
            let config = self.terms(offer, self.salt(lane));
            let id = config.id(self.chain.network());
            if self.ledger.account(id).is_none() {
                return (id, config);
            }
            lane = lane.saturating_add(1);
        }
    }

    /// Two machines with the same keys must not sign on one channel: neither knows what the other
    /// has promised there.
    fn salt(&self, lane: u32) -> B256 {
        let place = u64::from(self.funding.instance) << 32 | u64::from(lane);
        B256::from(U256::from(place))
    }

    fn is_lane(&self, salt: B256) -> bool {
        let place = U256::from_be_bytes(salt.0);
        place >> 32 == U256::from(self.funding.instance)
    }

    /// Opens a channel, or finds the one that is open on chain although our books forgot it.
    async fn open(&self, offer: &VerifiedOffer, needed: Amount) -> Result<ChannelId, ChannelError> {
        let (id, config) = self.next_lane(offer);
        let seen = self.chain.channel(id).await?;
        if seen.balance > seen.claimed {
            // A deposit that was mined although we did not hear of it: the seller may not know
            // the channel either.
            for pending in self.waiting(id)? {
                self.submit(offer, &pending).await?;
                self.forget(id, pending.deposit.salt).await?;
            }
            let base = self.base(offer, config).await?;
            self.enter(offer.offer().seller, config, base).await?;
            return Ok(id);
        }
        self.deposit(offer, config, Size::of(needed, self.funding.deposit))
            .await?;
        self.enter(offer.offer().seller, config, Base::default())
            .await?;
        Ok(id)
    }

    /// Enters into the books what the chain says of a channel.
    async fn look(&self, account: &Account) -> Result<Account, ChannelError> {
        self.enter(account.seller, account.config, Base::default())
            .await
    }

    /// Enters a channel, or what the chain now says of a known one.
    async fn enter(
        &self,
        seller: NodeId,
        config: ChannelConfig,
        base: Base,
    ) -> Result<Account, ChannelError> {
        let id = config.id(self.chain.network());
        let seen = self.chain.channel(id).await?;
        let armed = self
            .chain
            .pending_withdrawal(id)
            .await?
            .map(|w| w.amount)
            .unwrap_or_default();
        let opened = Opened {
            id,
            seller,
            config,
            balance: seen.balance,
            claimed: seen.claimed,
            armed,
            base,
        };
        Ok(self.ledger.observe(opened, self.clock.now()).await?)
    }

    /// Looks again at what the chain says of a known channel.
    ///
    /// # Errors
    /// The chain's or the books'.
    pub async fn refresh(&self, id: ChannelId) -> Result<Account, ChannelError> {
        let account = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        self.look(&account).await
    }

    /// Asks the seller to return the unspent rest at once.
    ///
    /// # Errors
    /// Any [`ChannelError`].
    pub async fn refund(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
    ) -> Result<Amount, ChannelError> {
        let turn = self.turn(offer.offer().seller);
        let _turn = turn.lock().await;
        if self.ledger.in_doubt(id) {
            self.reconcile(offer, id).await?;
        }
        let before = self.ledger.account(id).ok_or(LedgerError::NoChannel)?;
        if !before.channel.reserved().is_zero() {
            return Err(ChannelError::Refused(CallRefusal::InUse));
        }
        self.stand(id, Standing::Closing).await?;
        let refunded = self.refunded(offer, id).await;
        // Whatever was said, the chain knows. One that is away is asked before the next promise
        // is too large for it.
        let seen = self.refresh(id).await;
        self.stand(id, before.standing).await?;
        seen.and(refunded)
    }

    pub(in crate::channels) async fn refunded(
        &self,
        offer: &VerifiedOffer,
        id: ChannelId,
    ) -> Result<Amount, ChannelError> {
        let call = Call::Refund {
            channel: id,
            proof: self.wallet.proof(id),
        };
        match self.call(offer, &call, DEPOSIT_WAIT).await? {
            Answer::Refunded { amount, .. } => Ok(amount),
            Answer::Refused(refusal) => Err(ChannelError::Refused(refusal)),
            _ => Err(ChannelError::Liar("another answer than to a refund")),
        }
    }

    /// Sets whether new promises are made on a channel.
    ///
    /// # Errors
    /// The books'.
    pub async fn stand(&self, id: ChannelId, standing: Standing) -> Result<(), ChannelError> {
        let change = |account: &mut Account| {
            account.standing = standing;
            Ok(())
        };
        Ok(self.ledger.update(id, change).await.map(drop)?)
    }

    /// One question to a seller.
    async fn call(
        &self,
        offer: &VerifiedOffer,
        call: &Call,
        wait: Duration,
    ) -> Result<Answer, ChannelError> {
        let offer = offer.offer();
        Ok(ask(&self.net, offer.seller, &offer.addresses, call, wait).await?)
    }
}

/// What is deposited and not charged, whatever runs: what `max_deposit` limits.
fn unspent(account: &Account) -> Amount {
    let channel = &account.channel;
    channel.available().saturating_sub(channel.charged())
}

/// What may still be promised beyond what is.
fn room(account: &Account) -> Amount {
    let channel = &account.channel;
    channel
        .available()
        .saturating_sub(channel.charged())
        .saturating_sub(channel.reserved())
}
