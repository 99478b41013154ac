//! [`Config`]: every setting of the buyer, typed, with a default that runs on a local chain.
//!
//! Flags go over the environment (`FARTHING_…`), that over the file, that over the default
//! ([`layers`]). The one thing without a default is what ends up inside a signature: as soon as
//! another chain than the local one is named, the whole `[chain]` table must be written out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use alloy::primitives::{Address, address};
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::frame::ASK_LIMIT;
use farthing_protocol::x402::{COLLECTOR, Network, SETTLEMENT};
use serde::{Deserialize, Serialize};

pub mod layers;
mod auto;
mod mcp;
mod reputation;
mod upstream;

pub use crate::config::auto::{Auto, Task};
pub use crate::config::mcp::Mcp;
pub use reputation::{Probes, Reputation};
pub use upstream::Upstream;

/// The chain id of a local chain (anvil), the only one with defaults.
pub const LOCAL_CHAIN: u64 = 31337;
/// Where `make dev` and `make demo` deploy the test token.
const LOCAL_TOKEN: Address = address!("dc64a140aa3e981100a9beca4e685f962f0cf6c9");
/// What may be at risk at a seller nobody knows, in atoms.
pub(crate) const NEWCOMER_CREDIT: Amount = Amount::atoms(50_000);
/// What an ask's frame needs beside the body.
const ASK_OVERHEAD: usize = 4 * 1024;

/// Every setting of the buyer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys, ledger and control socket live.
    pub data_dir: PathBuf,
    /// The chain that settles.
    pub chain: Chain,
    /// The peer-to-peer network.
    pub network: Peers,
    /// The HTTP endpoint for applications.
    pub gateway: Gateway,
    /// Who pays.
    pub wallet: Wallet,
    /// What may be spent.
    pub spend: Spend,
    /// What an agent may spend that has `farthing mcp`.
    pub mcp: Mcp,
    /// Sellers that are met over plain HTTP.
    pub x402: Vec<X402>,
    /// Model servers of one's own.
    pub upstream: Vec<Upstream>,
    /// How a seller is chosen.
    pub router: Router,
    /// What is believed of sellers, and what others are told.
    pub reputation: Reputation,
    /// How sellers are put to the proof.
    pub probes: Probes,
    /// Names of your own for models: alias → model id.
    pub aliases: BTreeMap<String, String>,
    /// Which models `model: "auto"` means: the first rule that fits.
    pub auto: Vec<Auto>,
    /// How long receipts are kept.
    pub receipts: ReceiptsConfig,
    /// What is logged, and how.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: "~/.local/share/farthing/client".into(),
            chain: Chain::default(),
            network: Peers::default(),
            gateway: Gateway::default(),
            wallet: Wallet::default(),
            spend: Spend::default(),
            mcp: Mcp::default(),
            x402: Vec::new(),
            upstream: Vec::new(),
            router: Router::default(),
            reputation: Reputation::default(),
            probes: Probes::default(),
            aliases: BTreeMap::new(),
            auto: Vec::new(),
            receipts: ReceiptsConfig::default(),
            log: Log::default(),
        }
    }
}

/// The chain, the contracts and the token. All of it enters signatures, or how money is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Chain {
    /// JSON-RPC endpoints, tried in order.
    pub rpc: Vec<String>,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The settlement contract.
    pub settlement: Address,
    /// The collector of EIP-3009 deposits.
    pub collector: Address,
    /// The payment token.
    pub token: Address,
    /// The token's EIP-712 domain name.
    pub token_name: String,
    /// The token's EIP-712 domain version.
    pub token_version: String,
    /// How amounts are shown to people.
    pub token_symbol: String,
    /// Digits behind the point when amounts are shown.
    pub token_decimals: u8,
}

impl Chain {
    /// What offers, channels and vouchers are bound to.
    #[must_use]
    pub fn network(&self) -> Network {
        Network {
            chain_id: self.chain_id,
            settlement: self.settlement,
            collector: self.collector,
            token: self.token,
            token_name: self.token_name.clone(),
            token_version: self.token_version.clone(),
        }
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            rpc: vec!["http://127.0.0.1:8545".into()],
            chain_id: LOCAL_CHAIN,
            settlement: SETTLEMENT,
            collector: COLLECTOR,
            token: LOCAL_TOKEN,
            token_name: "USDC".into(),
            token_version: "2".into(),
            token_symbol: "USDC".into(),
            token_decimals: 6,
        }
    }
}

/// How this node meets others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Peers {
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses (with `/p2p/…`) of peers to ask first.
    pub bootstrap: Vec<String>,
    /// Whether peers on the local network are found by multicast DNS.
    pub mdns: bool,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            listen: vec![
                "/ip4/0.0.0.0/udp/0/quic-v1".into(),
                "/ip4/0.0.0.0/tcp/0".into(),
            ],
            bootstrap: Vec::new(),
            mdns: true,
        }
    }
}

/// The HTTP endpoint for applications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// Where it listens. Anything but a loopback address needs `api_keys_file`.
    pub listen: SocketAddr,
    /// A file with one accepted API key per line; without it, no key is asked for.
    pub api_keys_file: Option<PathBuf>,
    /// The most bytes of a request body.
    pub max_body: usize,
    /// How long one request may take to arrive, and how long its answer may be silent.
    #[serde(with = "humantime_serde")]
    pub deadline: Duration,
    /// How often a silent stream says that it is alive.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
    /// How many responses may be under way in the background at once.
    pub background: usize,
    /// How many answers of `/v1/responses` are kept in the data directory; 0: none.
    pub responses_kept: u64,
    /// The most bytes of them.
    pub responses_bytes: u64,
    /// For how long after its last use one is kept.
    #[serde(with = "humantime_serde")]
    pub responses_for: Duration,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8402)),
            api_keys_file: None,
            max_body: 4 * 1024 * 1024,
            // As long as the OpenAI libraries wait.
            deadline: Duration::from_secs(600),
            keep_alive: Duration::from_secs(10),
            background: 32,
            responses_kept: 1_000,
            responses_bytes: 256 * 1024 * 1024,
            // As long as OpenAI keeps them.
            responses_for: Duration::from_secs(30 * 86_400),
        }
    }
}

/// Who pays, and which of several machines this is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wallet {
    /// The payer, if its key is not on this machine: a hardware wallet, a Safe, a DAO. Deposits
    /// are then signed there.
    pub payer: Option<Address>,
    /// Tells machines with the same keys apart: each uses channels of its own.
    pub instance: u32,
}

/// What may be spent. Amounts are in atoms of the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spend {
    /// The most one request may cost.
    pub per_purchase: Amount,
    /// The most that is promised to one seller per day (UTC).
    pub per_seller: Amount,
    /// The most that one model may cost per day (UTC).
    pub per_model: Amount,
    /// Instead of it, for some models: model id → atoms.
    pub models: BTreeMap<String, Amount>,
    /// The most all sellers together may be paid per day (UTC).
    pub per_day: Amount,
    /// The most ever spent from this data directory.
    pub total: Amount,
    /// The size of a first deposit and of each top-up.
    pub deposit: Amount,
    /// The most ever deposited and unspent on one channel.
    pub max_deposit: Amount,
    /// A channel with less left than this is added to before it is empty.
    pub top_up_below: Amount,
    /// How long our own chain node may take to show a deposit that a seller says is mined.
    #[serde(with = "humantime_serde")]
    pub deposit_wait: Duration,
    /// A purchase that may cost more than this wants a person's yes; unset: none does.
    pub approve_above: Option<Amount>,
}

impl Default for Spend {
    fn default() -> Self {
        Self {
            per_purchase: Amount::atoms(100_000),
            per_seller: Amount::atoms(2_000_000),
            per_model: Amount::atoms(5_000_000),
            models: BTreeMap::new(),
            per_day: Amount::atoms(5_000_000),
            total: Amount::atoms(50_000_000),
            deposit: Amount::atoms(1_000_000),
            max_deposit: Amount::atoms(5_000_000),
            top_up_below: Amount::atoms(250_000),
            deposit_wait: Duration::from_secs(30),
            approve_above: None,
        }
    }
}

/// A seller that takes x402 over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct X402 {
    /// Its OpenAI-compatible base, such as `https://seller.example/v1`.
    pub url: String,
    /// The models to buy there; empty: those it lists.
    #[serde(default)]
    pub models: Vec<String>,
    /// Its price of a prompt token in micro-atoms, if it is known.
    #[serde(default)]
    pub price_input: Option<Price>,
    /// Its price of a token of the answer in micro-atoms, if it is known.
    #[serde(default)]
    pub price_output: Option<Price>,
    /// The longest answer it gives, in tokens.
    #[serde(default = "max_output")]
    pub max_output: u32,
}

const fn max_output() -> u32 {
    4096
}

/// Whether nobody on the way to an address can read or change what is said: TLS, or this machine.
fn is_private(url: &str) -> bool {
    let Ok(url) = url.parse::<reqwest::Url>() else {
        return false;
    };
    let host = url.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let here = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    url.scheme() == "https" || (url.scheme() == "http" && here)
}

/// What matters most when sellers are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Price, speed and success together.
    #[default]
    Balanced,
    /// The expected price, failures included.
    Cheapest,
    /// The expected time to the whole answer.
    Fastest,
    /// The chance that it works.
    Reliable,
}

/// How a seller is chosen and how long it is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Router {
    /// `balanced`, `cheapest`, `fastest` or `reliable`.
    pub strategy: Strategy,
    /// The highest price of a prompt token, in micro-atoms; unset: any.
    pub max_price_input: Option<Price>,
    /// The highest price of an answer's token, in micro-atoms; unset: any.
    pub max_price_output: Option<Price>,
    /// Only sellers that these name, by whole id or host; empty: any.
    pub only: Vec<String>,
    /// Sellers never asked, by id, end of an id or host.
    pub ignore: Vec<String>,
    /// Only sellers in regions that begin so; empty: any.
    pub regions: Vec<String>,
    /// Only weights of these precisions, as offers state them; empty: any.
    pub quantizations: Vec<String>,
    /// Only sellers that say that they keep nothing of a prompt.
    pub private: bool,
    /// Of a hundred requests, how many may try a seller that is new.
    pub explore: u8,
    /// For how long after its last request a conversation goes to the seller that has it in its
    /// cache; zero: never.
    #[serde(with = "humantime_serde")]
    pub sticky: Duration,
    /// How many decisions are kept in a record in the data directory; 0: none.
    pub decisions: u32,
    /// How many sellers are tried before the first token, of each model.
    pub attempts: u32,
    /// How long a connection to a seller may take.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// How long a seller may take to its first token.
    #[serde(with = "humantime_serde")]
    pub first_token: Duration,
    /// How long a stream may be silent between tokens.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
    /// Of a hundred streams, how many may ask a second seller when the first token is late; 0: none.
    pub hedge: u8,
    /// Whether another seller goes on with an answer that broke off.
    pub rescue: bool,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            strategy: Strategy::Balanced,
            max_price_input: None,
            max_price_output: None,
            only: Vec::new(),
            ignore: Vec::new(),
            regions: Vec::new(),
            quantizations: Vec::new(),
            private: false,
            explore: 5,
            sticky: Duration::from_secs(600),
            decisions: 0,
            attempts: 3,
            connect: Duration::from_secs(5),
            first_token: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            hedge: 10,
            rescue: true,
        }
    }
}

/// How long receipts are kept in the books.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReceiptsConfig {
    /// Receipts older than this leave the books, once they are claimed and under a root that both
    /// sides have signed.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// When there are more than so many, the oldest leave sooner.
    pub most: u64,
    /// Whether they are appended to files in the data directory before they leave.
    pub archive: bool,
}

impl Default for ReceiptsConfig {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(90 * 86_400),
            most: 10_000_000,
            archive: true,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What is logged, and how. Prompts and answers never are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A filter such as `info` or `info,farthing_client=debug`.
    pub filter: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// A setting that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}`: {reason}")]
pub struct Invalid {
    /// The key, with its table.
    pub key: &'static str,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Config {
    /// Refuses settings that are well-formed but cannot be meant.
    ///
    /// # Errors
    /// [`Invalid`] for the first such setting.
    pub fn check(&self) -> Result<(), Invalid> {
        let invalid = |key, reason: &str| {
            let reason = reason.to_owned();
            Err(Invalid { key, reason })
        };
        if self.chain.rpc.is_empty() {
            return invalid("chain.rpc", "give at least one JSON-RPC endpoint");
        }
        if !self.gateway.listen.ip().is_loopback() && self.gateway.api_keys_file.is_none() {
            return invalid(
                "gateway.listen",
                "an address others can reach needs `gateway.api_keys_file`, or anybody could spend your money",
            );
        }
        if self.gateway.max_body == 0 || self.gateway.max_body > ASK_LIMIT - ASK_OVERHEAD {
            return Err(Invalid {
                key: "gateway.max_body",
                reason: format!("must be 1 to {} bytes", ASK_LIMIT - ASK_OVERHEAD),
            });
        }
        if self.router.attempts == 0 {
            return invalid("router.attempts", "must be at least 1");
        }
        if self.probes.share > 1000 {
            return invalid("probes.share", "must be 0 to 1000, of a thousand answers");
        }
        if self.reputation.stake.is_zero() {
            return invalid("reputation.stake", "must be more than nothing");
        }
        if self.router.explore > 100 {
            return invalid("router.explore", "is a share of a hundred");
        }
        if let Some(rule) = self.auto.iter().position(|rule| rule.models.is_empty()) {
            return Err(Invalid {
                key: "auto.models",
                reason: format!("rule {} names no model", rule + 1),
            });
        }
        if self.router.hedge > 100 {
            return invalid("router.hedge", "is a share of a hundred");
        }
        if self.spend.deposit > self.spend.max_deposit {
            return invalid("spend.deposit", "must not exceed `spend.max_deposit`");
        }
        if !self.x402.iter().all(|seller| is_private(&seller.url)) {
            return invalid("x402.url", "must be https, or http on this machine");
        }
        if let Some((key, reason)) = self.upstream.iter().find_map(Upstream::fault) {
            return invalid(key, reason);
        }
        if self.spend.top_up_below > self.spend.max_deposit {
            return invalid("spend.top_up_below", "must not exceed `spend.max_deposit`");
        }
        if self.wallet.payer.is_some_and(|payer| payer.is_zero()) {
            return invalid(
                "wallet.payer",
                "must not be zero: leave it out for a key here",
            );
        }
        let waits = [
            ("gateway.deadline", self.gateway.deadline),
            ("gateway.keep_alive", self.gateway.keep_alive),
            ("router.connect", self.router.connect),
            ("router.first_token", self.router.first_token),
            ("router.idle", self.router.idle),
            ("reputation.testify_every", self.reputation.testify_every),
        ];
        match waits.into_iter().find(|(_, wait)| wait.is_zero()) {
            Some((key, _)) => invalid(key, "must be longer than nothing, such as \"30s\""),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
