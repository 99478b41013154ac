//! [`TestNet`]: sellers, buyers, model servers and a chain as one value.
//!
//! ```no_run
//! # async fn street() -> Result<(), farthing_tests::street::StreetError> {
//! let street = farthing_tests::street::TestNet::new().sellers(2).buyers(1).start().await?;
//! street.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! Everything inside is the production code over loopback TCP, but for what a test replaces: the
//! chain (in memory, or anvil) and the model servers ([`crate::upstream`]).

mod room;
mod buyer;
mod gateway;
mod seller;
mod forger;
mod agent;
mod liar;
mod single;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::Address;
use farthing_client::client::OpenError;
use farthing_client::config::Config as BuyerConfig;
use farthing_client::gateway::BindError;
use farthing_node::config::Config as SellerConfig;
use farthing_node::node::StartError;
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::local::{ARTIFACTS, LocalChain, LocalError};
use farthing_protocol::chain::{Chain, ChainError, MemoryChain};
use farthing_protocol::clock::Clock;
use farthing_protocol::store::Batch;
use farthing_protocol::testing;
use farthing_protocol::x402::Network;

pub use crate::street::agent::{Agent, Reply};
pub use crate::street::buyer::{Buyer, Heard, listen};
pub use crate::street::forger::{Forger, Talk, Told};
pub use crate::street::gateway::RunningGateway;
pub use crate::street::liar::{Liar, Lie, Stall, Taken};
pub use crate::street::seller::{MODEL, Seller};
use crate::upstream::Behaviour;

/// What each buyer's wallet holds at the start: a thousand dollars.
pub const WEALTH: Amount = Amount::atoms(1_000_000_000);
/// Gas for those who send transactions.
const GAS: u128 = 10_000_000_000_000_000_000;
/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Why the street could not be built.
#[derive(Debug, thiserror::Error)]
pub enum StreetError {
    /// A seller.
    #[error("a seller did not start: {0}")]
    Seller(#[from] StartError),
    /// A buyer.
    #[error("a buyer did not start: {0}")]
    Buyer(#[from] OpenError),
    /// A buyer's endpoint.
    #[error(transparent)]
    Gateway(#[from] BindError),
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The local chain.
    #[error(transparent)]
    Local(#[from] LocalError),
    /// A file or a socket.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Something did not happen in time.
    #[error("not in time: {0}")]
    Late(&'static str),
    /// Anvil is not there.
    #[error("no anvil at {0}; run tests/tools/setup.sh anvil")]
    NoAnvil(PathBuf),
}

/// Which chain stands behind the street.
#[derive(Debug)]
pub enum Ledgers {
    /// The in-memory twin.
    Memory(MemoryChain),
    /// A real anvil with our contracts.
    Anvil(Box<LocalChain>),
}

impl Ledgers {
    /// A handle for a part.
    ///
    /// # Errors
    /// [`StreetError::Local`].
    pub fn chain(&self) -> Result<Chain, StreetError> {
        match self {
            Self::Memory(memory) => Ok(Chain::memory(memory.network(), memory)),
            Self::Anvil(anvil) => Ok(anvil.chain()?),
        }
    }

    /// Test dollars for an account.
    ///
    /// # Errors
    /// [`StreetError::Local`].
    pub async fn mint(&self, to: Address, amount: Amount) -> Result<(), StreetError> {
        match self {
            Self::Memory(memory) => memory.mint(to, amount),
            Self::Anvil(anvil) => anvil.mint(to, amount).await?,
        }
        Ok(())
    }

    /// Gas for an account.
    ///
    /// # Errors
    /// [`StreetError::Local`].
    pub async fn fund(&self, account: Address) -> Result<(), StreetError> {
        match self {
            Self::Memory(memory) => memory.fund(account, GAS),
            Self::Anvil(anvil) => anvil.fund(account, GAS).await?,
        }
        Ok(())
    }

    /// The twin, for tests that make it misbehave.
    ///
    /// # Panics
    /// When the street stands on anvil.
    #[must_use]
    #[allow(
        clippy::panic,
        reason = "a test that asks for the wrong chain is wrong"
    )]
    pub fn memory(&self) -> &MemoryChain {
        match self {
            Self::Memory(memory) => memory,
            Self::Anvil(_) => panic!("this street stands on anvil"),
        }
    }
}

type TweakSeller = Arc<dyn Fn(usize, &mut SellerConfig) + Send + Sync>;
type TweakBuyer = Arc<dyn Fn(usize, &mut BuyerConfig) + Send + Sync>;
type Narrate = Arc<dyn Fn(&str) + Send + Sync>;

/// The plan of a street.
#[derive(Clone)]
pub struct TestNet {
    sellers: usize,
    buyers: usize,
    anvil: bool,
    network: Network,
    crashable: bool,
    http: bool,
    clock: Clock,
    behaviour: Behaviour,
    tweak_seller: TweakSeller,
    tweak_buyer: TweakBuyer,
    narrate: Narrate,
}

impl std::fmt::Debug for TestNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "TestNet({} sellers, {} buyers)",
            self.sellers, self.buyers
        )
    }
}

impl Default for TestNet {
    fn default() -> Self {
        Self {
            sellers: 1,
            buyers: 1,
            anvil: false,
            network: testing::network(),
            crashable: false,
            http: false,
            clock: Clock::system(),
            behaviour: Behaviour::default(),
            tweak_seller: Arc::new(|_, _| {}),
            tweak_buyer: Arc::new(|_, _| {}),
            narrate: Arc::new(|_| {}),
        }
    }
}

impl TestNet {
    /// One seller and one buyer on the in-memory chain.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// So many sellers, each with its own model server; the `n`th is a little dearer than the
    /// one before it.
    #[must_use]
    pub fn sellers(mut self, sellers: usize) -> Self {
        self.sellers = sellers;
        self
    }

    /// So many buyers.
    #[must_use]
    pub fn buyers(mut self, buyers: usize) -> Self {
        self.buyers = buyers;
        self
    }

    /// A real anvil instead of the in-memory chain.
    #[must_use]
    pub fn anvil(mut self) -> Self {
        self.anvil = true;
        self
    }

    /// Another network than the local one.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// Gives everybody a runtime of their own, so that they can crash.
    #[must_use]
    pub fn crashable(mut self) -> Self {
        self.crashable = true;
        self
    }

    /// Opens every seller's door for buyers over HTTP, on a free loopback port
    /// ([`Seller::http_url`]).
    #[must_use]
    pub fn http(mut self) -> Self {
        self.http = true;
        self
    }

    /// This clock for everybody.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How the model servers behave at first.
    #[must_use]
    pub fn upstreams(mut self, behaviour: Behaviour) -> Self {
        self.behaviour = behaviour;
        self
    }

    /// Changes the `n`th seller's config before it starts.
    #[must_use]
    pub fn seller_config(
        mut self,
        tweak: impl Fn(usize, &mut SellerConfig) + Send + Sync + 'static,
    ) -> Self {
        self.tweak_seller = Arc::new(tweak);
        self
    }

    /// Changes the `n`th buyer's config before it starts.
    #[must_use]
    pub fn buyer_config(
        mut self,
        tweak: impl Fn(usize, &mut BuyerConfig) + Send + Sync + 'static,
    ) -> Self {
        self.tweak_buyer = Arc::new(tweak);
        self
    }

    /// Tells what is waited for while it is built.
    #[must_use]
    pub fn narrate(mut self, narrate: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.narrate = Arc::new(narrate);
        self
    }

    /// Builds it, and returns when every buyer knows every seller's offer.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn start(self) -> Result<Street, StreetError> {
        let network = self.network.clone();
        let narrate = &*self.narrate;
        narrate("the chain");
        let ledgers = if self.anvil {
            let anvil = LocalChain::start(&anvil()?, network.clone(), ARTIFACTS.as_ref()).await?;
            Ledgers::Anvil(Box::new(anvil))
        } else {
            Ledgers::Memory(MemoryChain::new(network.clone(), self.clock.clone()))
        };
        let mut street = Street {
            network,
            ledgers,
            clock: self.clock.clone(),
            crashable: self.crashable,
            http: self.http,
            sellers: Vec::new(),
            buyers: Vec::new(),
        };
        for n in 0..self.sellers {
            narrate(&format!("seller {} of {}", n + 1, self.sellers));
            let seller =
                Seller::open(&street, n, self.behaviour.clone(), &*self.tweak_seller).await?;
            street.sellers.push(seller);
        }
        for n in 0..self.buyers {
            narrate(&format!("buyer {} of {}", n + 1, self.buyers));
            let buyer = Buyer::open(&street, n, &*self.tweak_buyer).await?;
            street.buyers.push(buyer);
        }
        narrate("offers to be heard");
        let sells = |seller: &Seller| seller.node().offer().is_some();
        eventually("every seller has an offer", || {
            street.sellers.iter().all(sells)
        })
        .await?;
        street.acquainted().await?;
        Ok(street)
    }
}

/// A running street.
#[derive(Debug)]
pub struct Street {
    /// Where the money lives.
    pub network: Network,
    /// The chain.
    pub ledgers: Ledgers,
    /// Everybody's clock.
    pub clock: Clock,
    crashable: bool,
    http: bool,
    /// The sellers.
    pub sellers: Vec<Seller>,
    /// The buyers.
    pub buyers: Vec<Buyer>,
}

impl Street {
    /// One more buyer, once the street stands.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn join(
        &mut self,
        tweak: impl Fn(usize, &mut BuyerConfig) + Send + Sync,
    ) -> Result<(), StreetError> {
        let buyer = Buyer::open(self, self.buyers.len(), &tweak).await?;
        self.buyers.push(buyer);
        Ok(())
    }

    /// Waits until every buyer knows every running seller's offer.
    ///
    /// # Errors
    /// [`StreetError::Late`].
    pub async fn acquainted(&self) -> Result<(), StreetError> {
        let running: Vec<_> = self.sellers.iter().filter_map(Seller::running_id).collect();
        eventually("every buyer knows every seller", || {
            self.buyers
                .iter()
                .filter(|buyer| buyer.is_running())
                .all(|buyer| running.iter().all(|seller| buyer.knows(*seller)))
        })
        .await
    }

    /// Starts the `n`th seller again, and returns when it has an offer.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn start_seller(&mut self, n: usize) -> Result<(), StreetError> {
        let mut seller = self.sellers.remove(n);
        let started = seller.start(self).await;
        self.sellers.insert(n, seller);
        started?;
        eventually("the seller has an offer", || {
            self.sellers[n].node().offer().is_some()
        })
        .await
    }

    /// Starts the `n`th buyer again, and returns when it knows the sellers.
    ///
    /// # Errors
    /// [`StreetError`].
    pub async fn start_buyer(&mut self, n: usize) -> Result<(), StreetError> {
        let mut buyer = self.buyers.remove(n);
        let started = buyer.start(self).await;
        self.buyers.insert(n, buyer);
        started?;
        self.acquainted().await
    }

    /// Waits until nothing is set aside and the books of both sides say the same; returns what
    /// is charged in all.
    ///
    /// # Errors
    /// [`StreetError::Late`].
    pub async fn settled(&self) -> Result<Amount, StreetError> {
        eventually("both sides' books agree", || {
            self.is_quiet() && self.bought() == self.sold()
        })
        .await?;
        // The books in memory are ahead of the disk by what is on its way there.
        let sellers = self
            .sellers
            .iter()
            .map(|seller| seller.node().ledger().store());
        for store in sellers.chain(self.buyers.iter().map(|buyer| buyer.ledger().store())) {
            let written = store.commit(Batch::new()).await;
            written.map_err(|_| StreetError::Late("the books are on disk"))?;
        }
        Ok(self.sold())
    }

    /// Charged by all sellers.
    #[must_use]
    pub fn sold(&self) -> Amount {
        let charged = self.sellers.iter().map(Seller::charged);
        charged.fold(Amount::ZERO, Amount::saturating_add)
    }

    /// Charged to all buyers, by their own books.
    #[must_use]
    pub fn bought(&self) -> Amount {
        let charged = self.buyers.iter().map(Buyer::charged);
        charged.fold(Amount::ZERO, Amount::saturating_add)
    }

    fn is_quiet(&self) -> bool {
        let seller = |seller: &Seller| seller.node().ledger().running() == 0;
        let buyer = |buyer: &Buyer| {
            let accounts = buyer.accounts();
            accounts
                .iter()
                .all(|(_, account)| account.channel.reserved().is_zero())
        };
        self.sellers.iter().all(seller) && self.buyers.iter().all(buyer)
    }

    /// Stops everybody, sellers first (so that they can claim).
    pub async fn stop(mut self) {
        for seller in &mut self.sellers {
            seller.stop().await;
        }
        for buyer in &mut self.buyers {
            buyer.stop().await;
        }
    }
}

/// The anvil that `tests/tools/setup.sh anvil` installs.
///
/// # Errors
/// [`StreetError::NoAnvil`].
pub fn anvil() -> Result<PathBuf, StreetError> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/anvil"));
    if path.exists() {
        Ok(path)
    } else {
        Err(StreetError::NoAnvil(path))
    }
}

/// Looks again and again until `holds`; for facts that announce themselves nowhere.
///
/// # Errors
/// [`StreetError::Late`] after [`PATIENCE`].
pub async fn eventually(what: &'static str, holds: impl Fn() -> bool) -> Result<(), StreetError> {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .map_err(|_| StreetError::Late(what))
}
