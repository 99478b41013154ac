//! What the bench's child processes are: a node, or a buyer with its gateway, both as the real
//! programs run them but for keys that are the same every time.
//!
//! A child says one line of JSON when it is ready, answers each line it is told with one line of
//! [`Counts`], and ends in order when its input does.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use farthing_client::client::{self, Client};
use farthing_client::config::{Config as BuyerConfig, Upstream};
use farthing_client::gateway::Gateway;
use farthing_client::metrics::Metrics;
use farthing_client::wallet;
use farthing_node::config::{Config as SellerConfig, ModelConfig};
use farthing_node::node::{self, Node};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, RpcConfig};
use farthing_protocol::clock::Clock;
use farthing_protocol::descriptors;
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::store::Store;
use farthing_protocol::testing;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::bench::BenchError;
use crate::street::{MODEL, eventually};

/// The seller's number among the fixed keys.
const SELLER: u8 = 1;
/// The buyer's.
const BUYER: u8 = 2;
/// Enough for every round, so that no figure has a deposit in it.
const DEPOSIT: Amount = Amount::atoms(500_000_000);
/// Purchases at once, more than most rounds make.
pub const SLOTS: u32 = 512;

/// What a token of the answer costs, in micro-atoms.
const OUTPUT: u64 = 500_000;

/// What a child is told at its start.
#[derive(Debug, Clone, clap::Args)]
pub struct Setting {
    /// Where its data lives.
    #[arg(long)]
    pub data: PathBuf,
    /// The chain's RPC endpoint.
    #[arg(long)]
    pub chain: String,
    /// The model server's base URL: a node's, or a buyer's own, if it has one.
    #[arg(long)]
    pub upstream: Option<String>,
    /// Purchases at once.
    #[arg(long, default_value_t = SLOTS)]
    pub slots: u32,
    /// What a token of the answer costs (a node's), in micro-atoms.
    #[arg(long, default_value_t = OUTPUT)]
    pub output: u64,
    /// Addresses to listen at, for peers.
    #[arg(long)]
    pub listen: Vec<String>,
    /// Peers to begin with.
    #[arg(long)]
    pub bootstrap: Vec<String>,
}

/// A child's first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// Where a gateway answers.
    pub url: String,
    /// Where peers reach it.
    pub addresses: Vec<String>,
}

/// What a child has counted since its start.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Batches made durable.
    pub commits: u64,
    /// Disk writes they took.
    pub syncs: u64,
    /// Tasks alive now.
    pub tasks: u64,
}

impl Counts {
    fn of(store: &Store) -> Self {
        let stats = store.stats();
        Self {
            commits: stats.commits,
            syncs: stats.groups,
            tasks: Handle::current().metrics().num_alive_tasks() as u64,
        }
    }
}

/// The key that pays the node's gas.
#[must_use]
pub fn claim_key() -> EvmKey {
    testing::evm_key(SELLER)
}

/// The key whose tokens the buyer spends.
#[must_use]
pub fn payer_key() -> EvmKey {
    testing::evm_key(BUYER)
}

/// What the payer must hold.
#[must_use]
pub const fn wealth() -> Amount {
    Amount::atoms(2 * DEPOSIT.get())
}

/// Runs a node until its input ends.
///
/// # Errors
/// [`BenchError`].
pub async fn node(setting: Setting) -> Result<(), BenchError> {
    enough(&setting)?;
    let keys = node::Keys {
        node: testing::node_key(SELLER),
        claim: claim_key(),
    };
    let outside = node::Outside {
        clock: Clock::system(),
        chain: chain(&setting)?,
    };
    let node = Node::start(seller(&setting)?, keys, outside).await;
    let node = node.map_err(|error| BenchError::Part(error.to_string()))?;
    eventually("the node offers its model", || {
        node.offer()
            .is_some_and(|offer| offer.offer().model(MODEL).is_some())
    })
    .await?;
    say(&Ready {
        url: String::new(),
        addresses: node.addresses(),
    })?;
    answer(node.ledger().store().clone()).await?;
    node.stop().await;
    Ok(())
}

/// Runs a buyer and its gateway until its input ends.
///
/// # Errors
/// [`BenchError`].
pub async fn gateway(setting: Setting) -> Result<(), BenchError> {
    enough(&setting)?;
    let config = buyer(&setting);
    let keys = client::Keys {
        node: testing::node_key(BUYER),
        wallet: wallet::Keys {
            payer: payer_key().into(),
            authorizer: testing::evm_key(BUYER + 1),
        },
    };
    let outside = client::Outside {
        clock: Clock::system(),
        chain: chain(&setting)?,
    };
    let part = |error: &dyn std::fmt::Display| BenchError::Part(error.to_string());
    let client = Client::start(config.clone(), keys, outside).await;
    let client = client.map_err(|error| part(&error))?;
    let gateway = Gateway::bind(client.clone(), config.gateway, Metrics::default()).await;
    let gateway = gateway.map_err(|error| part(&error))?;
    let url = format!("http://{}/v1", gateway.address());
    let stop = CancellationToken::new();
    let serving = tokio::spawn(gateway.serve(stop.clone()));
    eventually("the buyer hears the offer", || {
        client.models().iter().any(|model| model.id == MODEL)
    })
    .await?;
    say(&Ready {
        url,
        addresses: Vec::new(),
    })?;
    let ledger = client.ledger();
    let ledger = ledger.ok_or_else(|| BenchError::Part("a buyer without books".into()))?;
    answer(ledger.store().clone()).await?;
    stop.cancel();
    serving.await.map_err(|error| part(&error))??;
    client.stop().await;
    Ok(())
}

/// Room for two connections of each purchase, and some.
fn enough(setting: &Setting) -> Result<(), BenchError> {
    let few = descriptors::need(2 * u64::from(setting.slots) + 256);
    few.map_err(|error| BenchError::Part(error.to_string()))
}

fn chain(setting: &Setting) -> Result<Chain, BenchError> {
    let rpc = RpcConfig {
        urls: vec![setting.chain.clone()],
        ..RpcConfig::default()
    };
    Chain::connect(testing::network(), rpc).map_err(|error| BenchError::Part(error.to_string()))
}

fn seller(setting: &Setting) -> Result<SellerConfig, BenchError> {
    let model = format!(
        r#"id = "{MODEL}"
context = 131072
max_output = 1024
slots = {}
prices = {{ input = 100000, output = {} }}"#,
        setting.slots, setting.output
    );
    let model: ModelConfig =
        toml::from_str(&model).map_err(|error| BenchError::Part(error.to_string()))?;
    let mut config = SellerConfig::default();
    config.data_dir.clone_from(&setting.data);
    if let Some(upstream) = &setting.upstream {
        config.upstream.base_url.clone_from(upstream);
    }
    config.chain.payout = Some(testing::payout());
    config.network.listen.clone_from(&setting.listen);
    config.network.bootstrap.clone_from(&setting.bootstrap);
    config.network.mdns = false;
    config.limits.slots = setting.slots;
    config.limits.purchases_per_buyer = setting.slots;
    config.limits.exposure_per_payer = DEPOSIT;
    config.models = vec![model];
    Ok(config)
}

fn buyer(setting: &Setting) -> BuyerConfig {
    let mut config = BuyerConfig::default();
    config.data_dir.clone_from(&setting.data);
    config.network.listen.clone_from(&setting.listen);
    config.network.bootstrap.clone_from(&setting.bootstrap);
    config.network.mdns = false;
    config.gateway.listen.set_port(0);
    config
        .upstream
        .extend(setting.upstream.clone().map(|url| Upstream {
            url,
            models: BTreeMap::from([(MODEL.to_owned(), MODEL.to_owned())]),
            api_key_file: None,
            slots: setting.slots,
            max_output: 1024,
        }));
    let spend = &mut config.spend;
    for limit in [
        &mut spend.per_seller,
        &mut spend.per_day,
        &mut spend.total,
        &mut spend.deposit,
        &mut spend.max_deposit,
    ] {
        *limit = DEPOSIT;
    }
    config
}

fn say(line: &impl Serialize) -> Result<(), BenchError> {
    let line = serde_json::to_string(line).map_err(std::io::Error::from)?;
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// Answers every line with the counts, until there is none.
async fn answer(store: Store) -> Result<(), BenchError> {
    let listening = tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lines() {
            line?;
            say(&Counts::of(&store))?;
        }
        Ok(())
    });
    listening
        .await
        .map_err(|error| BenchError::Part(error.to_string()))?
}
