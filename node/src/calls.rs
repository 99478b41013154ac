//! Small questions to the node: its book, deposits, channels, receipts, refunds.
//!
//! What a channel holds is told only to whoever proves to hold its key, by signing a voucher over
//! nothing with it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use alloy::primitives::Address;
use farthing_protocol::book::Book;
use farthing_protocol::frame::{
    Answer, BOOK_PAGE, CALL_LIMIT, Call, CallRefusal, RECEIPT_PAGE, TESTIMONY_PAGE,
};
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::Stream;
use farthing_protocol::net::session::Limits;
use farthing_protocol::net::wire::{self, WireError};
use farthing_protocol::roll::Roll;
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit, Network};
use tokio::time::Instant;

use crate::ledger::LedgerError;
use crate::ledger::once::is_once;
use crate::roots;
use crate::settlement::{Settlement, SettlementError};
use crate::shop::Shop;

/// How long a caller may take to say what it wants.
const CALL_WAIT: Duration = Duration::from_secs(10);
/// The least time a deposit's authorization must still be valid.
const DEPOSIT_MARGIN: Duration = Duration::from_secs(30);

/// The terms every channel with us must have.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Where the money lives.
    pub network: Network,
    /// Where it goes.
    pub payout: Address,
    /// Our claim key.
    pub claim: Address,
    /// Seconds of withdraw delay.
    pub withdraw_delay: u64,
    /// The smallest deposit we pay the gas for.
    pub min_deposit: farthing_protocol::amount::Amount,
}

/// What answers need.
#[derive(Debug)]
pub struct Desk {
    /// The seller's parts.
    pub shop: Arc<Shop>,
    /// The way to the chain.
    pub settlement: Settlement,
    /// The offers we know.
    pub book: Arc<Mutex<Book>>,
    /// What buyers say of sellers.
    pub roll: Roll,
    /// Our channels' terms.
    pub terms: Terms,
    /// For whom the chain is asked.
    lookups: Lookups,
}

/// Who has a channel looked up on the chain now: everybody one at a time, so that no stranger has
/// all that may run.
#[derive(Debug, Default)]
struct Lookups(Mutex<HashSet<NodeId>>);

/// A channel that is looked up, until this is dropped.
struct Lookup<'a>(&'a Lookups, NodeId);

impl Lookups {
    fn here(&self) -> MutexGuard<'_, HashSet<NodeId>> {
        // A set is whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, caller: NodeId) -> Option<Lookup<'_>> {
        let fresh = self.here().insert(caller);
        fresh.then(|| Lookup(self, caller))
    }
}

impl Drop for Lookup<'_> {
    fn drop(&mut self) {
        self.0.here().remove(&self.1);
    }
}

/// Answers one call of `caller`.
pub async fn answer(desk: Arc<Desk>, caller: NodeId, stream: Stream) {
    if let Err(error) = converse(&desk, caller, stream).await {
        tracing::debug!(%error, "a call was not answered");
    }
}

async fn converse(desk: &Desk, caller: NodeId, stream: Stream) -> Result<(), WireError> {
    let (mut hears, mut speaks) = wire::over(stream, Limits::default());
    let call: Call = hears.expect(CALL_LIMIT, Instant::now() + CALL_WAIT).await?;
    let answer = desk
        .reply(caller, call)
        .await
        .unwrap_or_else(Answer::Refused);
    speaks.send(&answer).await?;
    speaks.close().await
}

impl Desk {
    /// A desk at which nobody stands yet.
    #[must_use]
    pub fn new(
        shop: Arc<Shop>,
        settlement: Settlement,
        book: Arc<Mutex<Book>>,
        terms: Terms,
    ) -> Self {
        let roll = Roll::new(terms.network.clone(), shop.clock.clone());
        Self {
            shop,
            settlement,
            book,
            roll,
            terms,
            lookups: Lookups::default(),
        }
    }

    async fn reply(&self, caller: NodeId, call: Call) -> Result<Answer, CallRefusal> {
        match call {
            Call::Book { from } => Ok(Answer::Book(self.page(from))),
            Call::Deposit { config, deposit } => self.deposit(config, deposit).await,
            Call::Channel { config, proof } => {
                let channel = self.known(caller, config, &proof).await?;
                self.proven(caller, channel, &proof)?;
                let statement = self.shop.ledger.statement(channel);
                let statement = statement.map_err(|error| unavailable(&error))?;
                Ok(Answer::Channel(Box::new(statement)))
            }
            Call::Receipts {
                channel,
                proof,
                from,
            } => {
                self.proven(caller, channel, &proof)?;
                self.receipts(channel, from)
            }
            Call::Refund { channel, proof } => {
                self.proven(caller, channel, &proof)?;
                self.refund(channel).await
            }
            Call::Root(root) => {
                let word = roots::answer(&self.shop, root.message.channel, root).await;
                Ok(Answer::Root(Box::new(word)))
            }
            Call::Testimonies { from } => {
                let page = self.roll.page(from as usize, TESTIMONY_PAGE);
                Ok(Answer::Testimonies(page))
            }
            Call::Testify(said) => self.roll.answer(*said, caller),
        }
    }

    fn page(&self, from: u32) -> Vec<farthing_protocol::offer::SignedOffer> {
        let book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.page(from as usize, BOOK_PAGE, self.shop.clock.now())
    }

    /// A channel that our books do not know is taken in from the chain: our disk was lost, or
    /// somebody else submitted the deposit. Only who holds its key makes us look.
    async fn known(
        &self,
        caller: NodeId,
        config: ChannelConfig,
        proof: &SignedVoucher,
    ) -> Result<ChannelId, CallRefusal> {
        let id = config.id(&self.terms.network);
        if self.shop.ledger.channel(id).is_some() {
            return Ok(id);
        }
        self.terms.check(&config)?;
        self.holds_key(id, config.payer_authorizer, proof)?;
        let busy = || CallRefusal::Unavailable("one channel is looked up at a time".to_owned());
        let _look = self.lookups.begin(caller).ok_or_else(busy)?;
        match self.settlement.adopt(config, id).await {
            Ok(_) => Ok(id),
            Err(SettlementError::Ledger(LedgerError::NoChannel)) => Err(CallRefusal::NoChannel),
            Err(error) => Err(CallRefusal::Unavailable(error.to_string())),
        }
    }

    fn holds_key(
        &self,
        id: ChannelId,
        key: Address,
        proof: &SignedVoucher,
    ) -> Result<(), CallRefusal> {
        let about = proof.message.channel == id && proof.message.ceiling.is_zero();
        if about && proof.verify(&self.shop.domain, key).is_ok() {
            Ok(())
        } else {
            Err(CallRefusal::Proof)
        }
    }

    /// Whoever proves to hold the channel's key may buy on it from then on.
    fn proven(
        &self,
        caller: NodeId,
        id: ChannelId,
        proof: &SignedVoucher,
    ) -> Result<(), CallRefusal> {
        let view = self.shop.ledger.channel(id).ok_or(CallRefusal::NoChannel)?;
        if is_once(&view.config) {
            // A payment made for one purchase over HTTP: its payer's key opens nothing else.
            return Err(CallRefusal::NoChannel);
        }
        self.holds_key(id, view.config.payer_authorizer, proof)?;
        self.shop.ledger.own(id, caller);
        Ok(())
    }

    fn receipts(&self, id: ChannelId, from: u64) -> Result<Answer, CallRefusal> {
        let receipts = self
            .shop
            .ledger
            .receipts(id, from, RECEIPT_PAGE)
            .map_err(|e| unavailable(&e))?;
        let signed = receipts
            .into_iter()
            .map(|receipt| receipt.sign(&self.shop.key));
        Ok(Answer::Receipts(signed.collect()))
    }

    async fn deposit(
        &self,
        config: ChannelConfig,
        deposit: Deposit,
    ) -> Result<Answer, CallRefusal> {
        self.terms.check(&config)?;
        self.check_deposit(&config, &deposit).await?;
        let moved = self.settlement.deposit(config, deposit).await;
        let moved = moved.map_err(|error| CallRefusal::Deposit(error.to_string()))?;
        Ok(Answer::Deposited {
            transaction: moved.transaction,
            balance: moved.amount,
        })
    }

    async fn check_deposit(
        &self,
        config: &ChannelConfig,
        deposit: &Deposit,
    ) -> Result<(), CallRefusal> {
        let refuse = |reason: String| Err(CallRefusal::Deposit(reason));
        if deposit.amount < self.terms.min_deposit {
            return refuse(format!(
                "at least {} atoms must be deposited",
                self.terms.min_deposit
            ));
        }
        let margin = self.shop.clock.now().plus(DEPOSIT_MARGIN).seconds();
        if deposit.valid_before < margin {
            return refuse("the authorization ends too soon".to_owned());
        }
        match self.settlement.consents(config, deposit).await {
            Ok(true) => Ok(()),
            Ok(false) => refuse("the payer did not sign it".to_owned()),
            Err(error) => refuse(error.to_string()),
        }
    }

    async fn refund(&self, id: ChannelId) -> Result<Answer, CallRefusal> {
        match self.settlement.refund(id, None).await {
            Ok(moved) => Ok(Answer::Refunded {
                transaction: moved.transaction,
                amount: moved.amount,
            }),
            Err(SettlementError::InUse) => Err(CallRefusal::InUse),
            Err(error) => Err(CallRefusal::Unavailable(error.to_string())),
        }
    }
}

impl Terms {
    /// A channel that is not exactly ours is not worth our gas: we could not claim from it.
    fn check(&self, config: &ChannelConfig) -> Result<(), CallRefusal> {
        let checks = [
            ("receiver", config.receiver == self.payout),
            (
                "receiverAuthorizer",
                config.receiver_authorizer == self.claim,
            ),
            ("token", config.token == self.network.token),
            (
                "withdrawDelay",
                config.withdraw_delay == self.withdraw_delay,
            ),
            ("payer", !config.payer.is_zero()),
            ("payerAuthorizer", !config.payer_authorizer.is_zero()),
        ];
        match checks.iter().find(|(_, holds)| !holds) {
            Some((what, _)) => Err(CallRefusal::Terms((*what).to_owned())),
            None => Ok(()),
        }
    }
}

fn unavailable(error: &LedgerError) -> CallRefusal {
    tracing::error!(%error, "the ledger failed");
    CallRefusal::Unavailable("the seller's ledger failed".to_owned())
}

#[cfg(test)]
mod tests {
    use farthing_protocol::testing;

    use super::*;

    #[test]
    fn everybody_has_one_channel_looked_up_at_a_time() {
        let lookups = Lookups::default();
        let (one, other) = (testing::node_key(1).id(), testing::node_key(2).id());
        let first = lookups.begin(one);
        assert!(first.is_some());
        assert!(lookups.begin(one).is_none());
        assert!(lookups.begin(other).is_some());
        drop(first);
        assert!(lookups.begin(one).is_some());
        assert!(lookups.here().is_empty());
    }
}
