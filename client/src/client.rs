//! [`Client`]: the SDK. [`Client::infer`] is the whole purchase; the gateway, the tests and your
//! program call the same one.
//!
//! ```no_run
//! use farthing_client::client::{Client, Event, Keys, Outside, Request};
//! use farthing_client::config::Config;
//! use farthing_protocol::keystore::Passphrase;
//! use farthing_protocol::offer::Endpoint;
//!
//! # async fn buy() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::default();
//! let passphrase = Passphrase::from_file("passphrase.txt".as_ref())?;
//! let keys = Keys::open(&config.data_dir, &passphrase, config.wallet.payer)?;
//! let outside = Outside::real(&config)?;
//! let client = Client::start(config, keys, outside).await?;
//! let body = r#"{"model":"author/name","messages":[{"role":"user","content":"Hello"}]}"#;
//! let mut answer = client.infer(Request { endpoint: Endpoint::Chat, body: body.into() }).await?;
//! while let Some(event) = answer.next().await {
//!     match event? {
//!         Event::Data(json) => println!("{}", String::from_utf8_lossy(&json)),
//!         Event::End(bill) => println!("cost {} atoms", bill.charged),
//!         Event::Paid(charged) => println!("cost {charged} atoms"),
//!     }
//! }
//! client.stop().await;
//! # Ok(())
//! # }
//! ```

mod answer;
mod failure;
mod splice;
mod sequel;
mod running;
mod attempt;
mod race;
mod rescue;
mod delivery;
mod counsel;
mod desk;
mod discovery;
mod decisions;
mod memory;
mod route;
mod infer;
mod likeness;
mod tokens;
mod probe;
mod renown;
mod scrutiny;
mod upkeep;
mod web;
mod parts;
#[cfg(test)]
pub(crate) mod scripted;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::Chain;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::evidence::Evidence;
use farthing_protocol::identity::NodeId;
use farthing_protocol::keystore::Passphrase;
use farthing_protocol::purchase::RequestId;
use farthing_protocol::roll::Roll;
use farthing_protocol::x402::{ChannelId, PayerSignature};

pub use crate::client::answer::{Answer, Attempt, Bill, Break, Errand, Event, InferError, Request};
pub use crate::client::decisions::{FILE as DECISIONS, OLDER as OLDER_DECISIONS};
use crate::client::parts::Parts;
pub use crate::client::parts::{Keys, OpenError, Outside, network, schema};
use crate::config::Config;
use crate::ledger::Ledger;
use crate::ledger::joint::Joint;
use crate::market::{Market, Ware};
use crate::report::{
    ActionError, ActionReport, ApprovalReport, ChannelAction, ChannelReport, DepositWish,
    DraftReport, HealthReport, InitReport, ModelListing, OfferReport, PaymentReport, Permit2Report,
    Permit2Wish, ReceiptBook, ReceiptPage, ReceiptQuery, ReceiptReport, RouteReport, RouteWish,
    SellerReport, Standing, Token, WalletReport, Word,
};
use crate::reputation::Reputation;

/// The buyer. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Client(Inside);

#[derive(Debug, Clone)]
enum Inside {
    Parts(Arc<Parts>),
    /// Answers written beforehand, for tests of what stands on the client.
    #[cfg(test)]
    Script(Arc<scripted::Script>),
}

/// Calls the parts, or under test the script.
macro_rules! inside {
    ($self:ident, $name:ident => $call:expr, $script:expr) => {
        match &$self.0 {
            Inside::Parts($name) => $call,
            #[cfg(test)]
            Inside::Script($name) => $script,
        }
    };
}

impl Client {
    /// Makes the keys that are missing in the data directory, and says where to send money.
    ///
    /// # Errors
    /// [`OpenError::Key`].
    pub fn init(config: &Config, passphrase: &Passphrase) -> Result<InitReport, OpenError> {
        let elsewhere = config.wallet.payer;
        Keys::create(&config.data_dir, passphrase, elsewhere)?;
        let keys = Keys::open(&config.data_dir, passphrase, elsewhere)?;
        Ok(InitReport {
            node: keys.node.id(),
            payer: keys.wallet.payer.address(),
            authorizer: keys.wallet.authorizer.address(),
            token: parts::token(config),
        })
    }

    /// Opens the keys and starts on the machine's clock and the configured chain.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(config: Config, passphrase: &Passphrase) -> Result<Self, OpenError> {
        let keys = Keys::open(&config.data_dir, passphrase, config.wallet.payer)?;
        let outside = Outside::real(&config)?;
        Self::start(config, keys, outside).await
    }

    /// Opens the ledger, joins the network and starts what lives.
    ///
    /// # Errors
    /// [`OpenError`], each saying what to do.
    pub async fn start(config: Config, keys: Keys, outside: Outside) -> Result<Self, OpenError> {
        Ok(Self(Inside::Parts(
            Box::pin(Parts::start(config, keys, outside)).await?,
        )))
    }

    /// Buys one answer: chooses a seller, pays while the answer comes, keeps the receipt. Returns
    /// when the first event is there; until then failures are silent and the next seller is tried.
    ///
    /// # Errors
    /// [`InferError`]; nothing is charged for nothing delivered.
    pub async fn infer(&self, request: Request) -> Result<Answer, InferError> {
        inside!(self, it => Box::pin(it.watched(request)).await, it.infer(request).await)
    }

    /// Whom the router would ask for this request, and why. Nothing is bought.
    ///
    /// # Errors
    /// [`ActionError`].
    pub fn route(&self, wish: &RouteWish) -> Result<RouteReport, ActionError> {
        inside!(self, it => it.explain(wish), { let _ = wish; it.unknown("route") })
    }

    /// The models on offer.
    #[must_use]
    pub fn models(&self) -> Vec<ModelListing> {
        inside!(self, it => it.market.models(), it.models())
    }

    /// A model on offer, by its id or a name of the buyer's own, which it then goes by.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<ModelListing> {
        let id = inside!(self, it => it.config.aliases.get(name).map(String::as_str), { let _ = it; None });
        let id = id.unwrap_or(name);
        let mut model = self.models().into_iter().find(|model| model.id == id)?;
        name.clone_into(&mut model.id);
        Some(model)
    }

    /// Every offer of every model.
    #[must_use]
    pub fn offers(&self) -> Vec<OfferReport> {
        inside!(self, it => it.market.offers(), it.offers())
    }

    /// Who sells what, by model and price: of one model, or of all.
    #[must_use]
    pub fn wares(&self, model: Option<&str>) -> Vec<Ware> {
        inside!(self, it => it.market.wares(model), it.wares(model))
    }

    /// How requests may name a seller: its id, or the host of one met over plain HTTP.
    #[must_use]
    pub fn name_of(&self, seller: NodeId) -> String {
        inside!(self, it => it.market.name_of(seller), { let _ = it; seller.to_string() })
    }

    /// The payment token.
    #[must_use]
    pub fn token(&self) -> Token {
        inside!(self, it => it.token(), { let _ = it; scripted::wallet().token })
    }

    /// The time of day.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        inside!(self, it => it.clock.now(), { let _ = it; scripted::NOW })
    }

    /// What was charged on each day (UTC, days since the epoch) from `from` on.
    ///
    /// # Errors
    /// [`ActionError`].
    pub fn charged_by_day(&self, from: u64) -> Result<BTreeMap<u64, Amount>, ActionError> {
        inside!(self, it => Ok(it.ledger.charged_by_day(from)?), { let _ = (it, from); Ok(BTreeMap::new()) })
    }

    /// What an answer came to, if several sellers had a part in it.
    ///
    /// # Errors
    /// [`ActionError`].
    pub fn joint(&self, named: RequestId) -> Result<Option<Joint>, ActionError> {
        inside!(self, it => Ok(it.ledger.joint(named)?), { let _ = (it, named); Ok(None) })
    }

    /// What is believed of every seller that anything is known of, and why.
    #[must_use]
    pub fn sellers(&self) -> Vec<SellerReport> {
        inside!(self, it => it.repute.reputation.report(), { let _ = it; Vec::new() })
    }

    /// Sums over all channels, for metrics.
    #[must_use]
    pub fn standing(&self) -> Standing {
        inside!(self, it => it.standing(), { let _ = it; Standing::default() })
    }

    /// Whether it can buy.
    pub async fn health(&self) -> HealthReport {
        inside!(self, it => it.health().await, it.health().await)
    }

    /// The wallet.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn wallet(&self) -> Result<WalletReport, ActionError> {
        inside!(self, it => Ok(it.wallet_report().await), it.wallet().await)
    }

    /// The channels.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn channels(&self) -> Result<Vec<ChannelReport>, ActionError> {
        inside!(self, it => it.channel_reports().await, it.channels().await)
    }

    /// Does something with a channel.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn channel(
        &self,
        channel: ChannelId,
        action: ChannelAction,
    ) -> Result<ActionReport, ActionError> {
        inside!(self, it => it.act(channel, action).await, it.channel(channel, action).await)
    }

    /// Prepares a deposit that a payer elsewhere is to sign.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn prepare_deposit(&self, wish: DepositWish) -> Result<DraftReport, ActionError> {
        inside!(self, it => it.prepare_deposit(wish).await, it.unknown("deposit"))
    }

    /// Takes a payer's signature of a prepared deposit, and deposits it.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn import_deposit(
        &self,
        id: B256,
        signature: PayerSignature,
    ) -> Result<ActionReport, ActionError> {
        inside!(self, it => it.import_deposit(id, signature).await, { let _ = signature; it.unknown("deposit") })
    }

    /// Lets Permit2 move the payer's tokens, which sellers that take `upto` only need.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn allow_permit2(&self, wish: Permit2Wish) -> Result<Permit2Report, ActionError> {
        inside!(self, it => it.allow_permit2(wish).await, { let _ = wish; it.unknown("payer") })
    }

    /// The purchases that want a person's word.
    #[must_use]
    pub fn approvals(&self) -> Vec<ApprovalReport> {
        inside!(self, it => it.approvals(), { let _ = it; Vec::new() })
    }

    /// A person's word on a purchase, named by its id or the beginning of it.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn approve(&self, id: &str, word: Word) -> Result<ApprovalReport, ActionError> {
        inside!(self, it => it.approve(id, word).await, it.unknown("purchase to approve"))
    }

    /// A page of the receipts held, newest first.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn receipts(&self, query: &ReceiptQuery) -> Result<ReceiptPage, ActionError> {
        inside!(self, it => Ok(it.records().await.page(query)?), it.receipts(query).await)
    }

    /// The receipts of a channel from `from` on, in order: some of them, none at the end.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn stretch(
        &self,
        channel: ChannelId,
        from: u64,
    ) -> Result<Vec<ReceiptReport>, ActionError> {
        inside!(self, it => Ok(it.records().await.stretch(channel, from)?), it.stretch(channel, from).await)
    }

    /// What is needed to check the receipts elsewhere, for each channel.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn books(&self) -> Result<Vec<ReceiptBook>, ActionError> {
        inside!(self, it => Ok(it.records().await.books()?), it.books().await)
    }

    /// The evidence of one receipt.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn evidence(&self, request: RequestId) -> Result<Evidence, ActionError> {
        inside!(self, it => it.evidence(request).await, it.evidence(request).await)
    }

    /// One purchase's receipt.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn receipt(&self, request: RequestId) -> Result<ReceiptReport, ActionError> {
        inside!(self, it => it.records().await.one(request), it.receipt(request).await)
    }

    /// The payment of one purchase from a seller met over plain HTTP.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn payment(&self, request: RequestId) -> Result<PaymentReport, ActionError> {
        inside!(self, it => it.records().await.payment(request), { let _ = request; it.unknown("payment") })
    }

    /// All payments to sellers met over plain HTTP that a query is about, newest first.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn payments(&self, query: &ReceiptQuery) -> Result<Vec<PaymentReport>, ActionError> {
        inside!(self, it => Ok(it.records().await.payments(query)?), { let _ = (it, query); Ok(Vec::new()) })
    }

    /// Ends what lives, in order. Purchases under way lose their streams; what is in doubt is
    /// reconciled after the next start.
    pub async fn stop(&self) {
        inside!(self, it => it.stop().await, it.stop().await);
    }

    /// Where keys, books and kept responses live.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        inside!(self, it => &it.config.data_dir, it.dir.path())
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        inside!(self, it => it.clock.clone(), { let _ = it; Clock::system() })
    }

    /// The market.
    #[must_use]
    pub fn market(&self) -> Option<&Market> {
        inside!(self, it => Some(&it.market), { let _ = it; None })
    }

    /// What is believed of sellers.
    #[must_use]
    pub fn reputation(&self) -> Option<&Reputation> {
        inside!(self, it => Some(&it.repute.reputation), { let _ = it; None })
    }

    /// What others say of sellers.
    #[must_use]
    pub fn roll(&self) -> Option<&Roll> {
        inside!(self, it => Some(&it.repute.roll), { let _ = it; None })
    }

    /// The books.
    #[must_use]
    pub fn ledger(&self) -> Option<&Ledger> {
        inside!(self, it => Some(&it.ledger), { let _ = it; None })
    }

    /// The chain.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        inside!(self, it => Some(&it.chain), { let _ = it; None })
    }
}
