//! The buyer's parts, assembled in floor order and stopped in reverse. Nothing is set later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use alloy::primitives::{Address, B256};
use farthing_protocol::chain::{Chain, ChainError, RpcConfig};
use farthing_protocol::clock::Clock;
use farthing_protocol::eip712::{EvmKey, InvalidKey};
use farthing_protocol::identity::NodeKey;
use farthing_protocol::keystore::{self, KeyError, Passphrase, Secret};
use farthing_protocol::net::{self, Net, Reach};
use farthing_protocol::receipt::model_hash;
use farthing_protocol::store::{self, Schema, Store};
use farthing_protocol::x402::Network;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::channels::{self, Channels, Funding};
use crate::client::decisions::Decisions;
use crate::client::discovery;
use crate::client::memory::Memory;
use crate::client::renown::Repute;
use crate::client::tokens::Tokenizers;
use crate::client::upkeep::Upkeep;
use crate::client::web;
use crate::config::Config;
use crate::keeper::Keeper;
use crate::ledger::{self, Ledger, LedgerError, Limits};
use crate::market::{MEASURED, Market};
use crate::purchase::web::{Purse, WebShop};
use crate::purchase::{Lines, PurchaseError};
use crate::report::Token;
use crate::router::hedge::Allowance;
use crate::wallet::{self, Payer, Wallet};

/// The chain id of the local development network.
const LOCAL_CHAIN: u64 = 31337;

/// The client's secrets.
#[derive(Debug)]
pub struct Keys {
    /// Its identity on the network.
    pub node: NodeKey,
    /// Its payment keys.
    pub wallet: wallet::Keys,
}

/// The key files in a data directory.
const NODE: &str = "node.key";
const PAYER: &str = "payer.key";
const AUTHORIZER: &str = "authorizer.key";

impl Keys {
    /// Makes the key files that are not there yet: none for a payer who signs `elsewhere`.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn create(
        dir: &Path,
        passphrase: &Passphrase,
        elsewhere: Option<Address>,
    ) -> Result<(), KeyError> {
        let payer = elsewhere.is_none().then_some(PAYER);
        for name in [NODE, AUTHORIZER].into_iter().chain(payer) {
            let path = dir.join(name);
            if !path.exists() {
                keystore::create(&path, &Secret::random()?, passphrase)?;
            }
        }
        Ok(())
    }

    /// Opens the key files.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(
        dir: &Path,
        passphrase: &Passphrase,
        elsewhere: Option<Address>,
    ) -> Result<Self, OpenError> {
        let secret = |name: &str| keystore::open(&dir.join(name), passphrase);
        let payer = match elsewhere {
            Some(address) => Payer::Elsewhere(address),
            None => EvmKey::from_bytes(secret(PAYER)?.expose())?.into(),
        };
        Ok(Self {
            node: NodeKey::from_seed(secret(NODE)?.expose()),
            wallet: wallet::Keys {
                payer,
                authorizer: EvmKey::from_bytes(secret(AUTHORIZER)?.expose())?,
            },
        })
    }
}

/// What comes in from outside, so that tests can bring their own.
#[derive(Debug)]
pub struct Outside {
    /// The time of day.
    pub clock: Clock,
    /// The chain.
    pub chain: Chain,
}

impl Outside {
    /// The machine's clock and the configured chain nodes.
    ///
    /// # Errors
    /// [`ChainError::Config`].
    pub fn real(config: &Config) -> Result<Self, ChainError> {
        Self::by(Clock::system(), config)
    }

    /// This clock and the configured chain nodes.
    ///
    /// # Errors
    /// [`ChainError::Config`].
    pub fn by(clock: Clock, config: &Config) -> Result<Self, ChainError> {
        let rpc = RpcConfig {
            urls: config.chain.rpc.clone(),
            ..RpcConfig::default()
        };
        Ok(Self {
            clock,
            chain: Chain::connect(network(config), rpc)?,
        })
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A key file holds something else.
    #[error(transparent)]
    InvalidKey(#[from] InvalidKey),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] store::OpenError),
    /// The books.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The chain is another one, or lacks the contracts. (One that is away is waited for.)
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The network.
    #[error(transparent)]
    Net(#[from] net::StartError),
    /// The way to x402 sellers.
    #[error(transparent)]
    Web(PurchaseError),
    /// The key of a model server of one's own.
    #[error("cannot read the key in {path} (`upstream.api_key_file`): {reason}")]
    Upstream {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Every table of a client's store: the books, and what was measured.
#[must_use]
pub fn schema() -> Schema {
    ledger::schema().table(&MEASURED, &[])
}

/// Where the money lives, by the config.
#[must_use]
pub fn network(config: &Config) -> Network {
    let chain = &config.chain;
    Network {
        chain_id: chain.chain_id,
        settlement: chain.settlement,
        collector: chain.collector,
        token: chain.token,
        token_name: chain.token_name.clone(),
        token_version: chain.token_version.clone(),
    }
}

/// The payment token as people read it.
pub(in crate::client) fn token(config: &Config) -> Token {
    let chain = &config.chain;
    Token {
        address: chain.token,
        symbol: chain.token_symbol.clone(),
        decimals: chain.token_decimals,
    }
}

/// Everything that lives in a client.
#[derive(Debug)]
pub(in crate::client) struct Parts {
    pub(in crate::client) config: Config,
    pub(in crate::client) clock: Clock,
    pub(in crate::client) ledger: Ledger,
    pub(in crate::client) chain: Chain,
    pub(in crate::client) net: Net,
    pub(in crate::client) wallet: Wallet,
    pub(in crate::client) channels: Arc<Channels>,
    pub(in crate::client) upkeep: Upkeep,
    pub(in crate::client) lines: Lines,
    pub(in crate::client) web: WebShop,
    pub(in crate::client) market: Market,
    pub(in crate::client) decisions: Decisions,
    pub(in crate::client) repute: Repute,
    pub(in crate::client) tokenizers: Tokenizers,
    hedges: std::sync::Mutex<Allowance>,
    stop: CancellationToken,
    tasks: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

impl Parts {
    pub(in crate::client) async fn start(
        config: Config,
        keys: Keys,
        outside: Outside,
    ) -> Result<Arc<Self>, OpenError> {
        let Outside { clock, chain } = outside;
        verify(&chain).await?;
        let ledger = Ledger::open(Store::open(&config.data_dir, schema())?)?;
        let (net, inbox) = Net::start(keys.node.seed(), net_config(&config)).await?;
        let network = network(&config);
        let wallet = Wallet::new(
            keys.wallet,
            limits(&config),
            network.clone(),
            clock.clone(),
            ledger.clone(),
        );
        let ground = channels::Ground {
            chain: chain.clone(),
            net: net.clone(),
            wallet: wallet.clone(),
            ledger: ledger.clone(),
            clock: clock.clone(),
        };
        let market = Market::salted(network, clock.clone(), salt());
        let memory = Memory::open(market.clone(), ledger.store().clone());
        let memory = memory.map_err(LedgerError::from)?;
        let most = config.router.decisions;
        let (decisions, recorder) = Decisions::new(&config.data_dir, most);
        let (repute, living) = Repute::open(&config, &ground, &market)?;
        let lines = Lines::new(net.clone());
        let stop = CancellationToken::new();
        let discovery = discovery::Discovery::new(
            net.clone(),
            market.clone(),
            lines.clone(),
            repute.roll.clone(),
        );
        let channels = Arc::new(Channels::new(ground, funding(&config)));
        let (upkeep, keeper) = Upkeep::new(Arc::clone(&channels), ledger.clone(), clock.clone());
        let (kept, dir) = (&config.receipts, &config.data_dir);
        let pruner = Keeper::new(ledger.clone(), clock.clone(), kept, dir);
        let purse = Purse {
            channels: Arc::clone(&channels),
            wallet: wallet.clone(),
            ledger: ledger.clone(),
            clock: clock.clone(),
        };
        let web = WebShop::new(purse, config.router.connect).map_err(OpenError::Web)?;
        let lister = web::Lister::new(market.clone(), config.x402.clone());
        let tokenizers = web::list_own(&market, &config.upstream)?;
        let mut tasks = living.spawn(&stop);
        tasks.extend([
            tokio::spawn(memory.run(stop.clone())),
            tokio::spawn(recorder.run(stop.clone())),
            tokio::spawn(lister.run(stop.clone())),
            tokio::spawn(pruner.run(stop.clone())),
            tokio::spawn(keeper.run(stop.clone())),
            tokio::spawn(discovery.run(inbox, stop.clone())),
        ]);
        Ok(Arc::new(Self {
            channels,
            lines,
            web,
            upkeep,
            config,
            clock,
            ledger,
            chain,
            net,
            wallet,
            market,
            decisions,
            repute,
            tokenizers,
            hedges: std::sync::Mutex::default(),
            stop,
            tasks: std::sync::Mutex::new(tasks),
        }))
    }

    /// How many hedges may be made.
    pub(in crate::client) fn hedges(&self) -> std::sync::MutexGuard<'_, Allowance> {
        self.hedges
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Stops in reverse. Purchases under way lose their streams; what is in doubt is reconciled
    /// after the next start.
    pub(in crate::client) async fn stop(&self) {
        self.stop.cancel();
        let tasks = std::mem::take(
            &mut *self
                .tasks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        );
        for task in tasks.into_iter().rev() {
            // A part that failed has said so.
            task.await.ok();
        }
        self.net.stop().await;
        self.ledger.store().stop().await;
    }
}

/// Checks the chain if it answers. One that is away is waited for; a wrong one is an error.
async fn verify(chain: &Chain) -> Result<(), ChainError> {
    match chain.verify().await {
        Err(error) if error.is_unavailable() => {
            tracing::warn!(%error, "starting without the chain; channels cannot be opened until it answers");
            Ok(())
        }
        other => other,
    }
}

const fn funding(config: &Config) -> Funding {
    let spend = &config.spend;
    Funding {
        deposit: spend.deposit,
        max_deposit: spend.max_deposit,
        top_up_below: spend.top_up_below,
        seen_wait: spend.deposit_wait,
        instance: config.wallet.instance,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "which of equals are asked first differs from buyer to buyer"
)]
fn salt() -> u64 {
    rand::random()
}

fn net_config(config: &Config) -> net::Config {
    net::Config {
        listen: config.network.listen.clone(),
        external: Vec::new(),
        bootstrap: config.network.bootstrap.clone(),
        mdns: config.network.mdns,
        topic: network(config).topic(),
        reach: if config.chain.chain_id == LOCAL_CHAIN {
            Reach::Local
        } else {
            Reach::Public
        },
        ..net::Config::default()
    }
}

fn limits(config: &Config) -> Limits {
    let spend = &config.spend;
    let models = spend.models.iter();
    Limits {
        per_purchase: spend.per_purchase,
        per_seller: spend.per_seller,
        per_model: spend.per_model,
        models: models.map(|(id, most)| (model_hash(id), *most)).collect(),
        approve_above: spend.approve_above,
        per_day: spend.per_day,
        total: spend.total,
    }
}

/// A name for a purchase that nobody has used.
#[expect(
    clippy::disallowed_methods,
    reason = "a name that nobody has used and nobody can guess"
)]
pub(in crate::client) fn request_id() -> farthing_protocol::purchase::RequestId {
    farthing_protocol::purchase::RequestId(B256::from(rand::random::<[u8; 32]>()))
}
