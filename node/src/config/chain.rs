//! The chain, the contracts, and when earnings are claimed.

use std::time::Duration;

use alloy::primitives::{Address, address};
use farthing_protocol::amount::Amount;
use farthing_protocol::x402::{COLLECTOR, Network, SETTLEMENT};
use serde::{Deserialize, Serialize};

/// The chain id of the local development network (anvil's).
pub const LOCAL_CHAIN: u64 = 31337;
/// Where the development network deploys its test dollar.
pub(super) const LOCAL_TOKEN: Address = address!("dc64a140aa3e981100a9beca4e685f962f0cf6c9");

/// The chain, the contracts and where the money goes.
///
/// Everything that enters a signature (chain id, contracts, token and its domain) has a default
/// on the local development network only. With another `chain_id` each of them must be written
/// out: a wrong port costs a minute, a wrong domain costs the money.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
pub struct ChainConfig {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// JSON-RPC endpoints, in order of preference. They may hold keys: never logged whole.
    pub rpc: Vec<String>,
    /// The settlement contract.
    pub settlement: Address,
    /// The contract that collects EIP-3009 deposits.
    pub collector: Address,
    /// The payment token.
    pub token: Address,
    /// The token's EIP-712 domain name.
    pub token_name: String,
    /// The token's EIP-712 domain version.
    pub token_version: String,
    /// Where earnings go; a cold address. On the local network the claim key's own by default.
    pub payout: Option<Address>,
    /// The withdraw delay buyers' channels must have.
    #[serde(with = "humantime_serde")]
    pub withdraw_delay: Duration,
    /// The smallest first deposit the node submits (it pays the gas).
    pub min_deposit: Amount,
}

impl Default for ChainConfig {
    fn default() -> Self {
        Self {
            chain_id: LOCAL_CHAIN,
            rpc: vec!["http://127.0.0.1:8545".into()],
            settlement: SETTLEMENT,
            collector: COLLECTOR,
            token: LOCAL_TOKEN,
            token_name: "USDC".into(),
            token_version: "2".into(),
            payout: None,
            withdraw_delay: Duration::from_secs(86_400),
            min_deposit: Amount::atoms(100_000),
        }
    }
}

impl ChainConfig {
    /// True on the local development network.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        self.chain_id == LOCAL_CHAIN
    }

    /// Where the money lives.
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

/// The table as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    chain_id: Option<u64>,
    rpc: Option<Vec<String>>,
    settlement: Option<Address>,
    collector: Option<Address>,
    token: Option<Address>,
    token_name: Option<String>,
    token_version: Option<String>,
    payout: Option<Address>,
    #[serde(default, with = "humantime_serde")]
    withdraw_delay: Option<Duration>,
    min_deposit: Option<Amount>,
}

/// A key that has no default on this chain.
#[derive(Debug, thiserror::Error)]
#[error(
    "`chain.{key}` must be written out for chain {chain_id}: \
     only the local development network ({LOCAL_CHAIN}) has a default"
)]
struct NotWritten {
    key: &'static str,
    chain_id: u64,
}

impl TryFrom<Raw> for ChainConfig {
    type Error = NotWritten;

    fn try_from(raw: Raw) -> Result<Self, NotWritten> {
        let local = Self::default();
        let chain_id = raw.chain_id.unwrap_or(LOCAL_CHAIN);
        Ok(Self {
            chain_id,
            rpc: written("rpc", chain_id, raw.rpc, local.rpc)?,
            settlement: written("settlement", chain_id, raw.settlement, local.settlement)?,
            collector: written("collector", chain_id, raw.collector, local.collector)?,
            token: written("token", chain_id, raw.token, local.token)?,
            token_name: written("token_name", chain_id, raw.token_name, local.token_name)?,
            token_version: written(
                "token_version",
                chain_id,
                raw.token_version,
                local.token_version,
            )?,
            payout: raw.payout,
            withdraw_delay: raw.withdraw_delay.unwrap_or(local.withdraw_delay),
            min_deposit: raw.min_deposit.unwrap_or(local.min_deposit),
        })
    }
}

/// The value as written, or its default where there is one.
fn written<T>(
    key: &'static str,
    chain_id: u64,
    value: Option<T>,
    local: T,
) -> Result<T, NotWritten> {
    match value {
        Some(value) => Ok(value),
        None if chain_id == LOCAL_CHAIN => Ok(local),
        None => Err(NotWritten { key, chain_id }),
    }
}

/// When earnings are claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettlementConfig {
    /// Unclaimed atoms on a channel worth a claim.
    pub claim_at: Amount,
    /// The longest a charge stays unclaimed.
    #[serde(with = "humantime_serde")]
    pub claim_age: Duration,
    /// The most channels in one claim.
    pub max_rows: u32,
    /// A claim is worth so many times the gas of one row, if that is more than `claim_at`.
    pub gas_multiple: u32,
    /// Atoms that a whole coin of the chain costs, to price gas; zero when it is not to be priced.
    pub coin_price: Amount,
    /// The most that a transaction offers per gas, in wei. Where more is asked, it waits.
    pub max_fee: u64,
    /// How long a transaction waits before it is replaced by a dearer one.
    #[serde(with = "humantime_serde")]
    pub bump_after: Duration,
    /// Blocks after which a transaction counts as final.
    pub confirmations: u64,
    /// Atoms of all buyers' deposits together that count before they are final.
    pub trust_unconfirmed: Amount,
    /// How often the chain is asked for news.
    #[serde(with = "humantime_serde")]
    pub poll_interval: Duration,
}

impl Default for SettlementConfig {
    fn default() -> Self {
        Self {
            claim_at: Amount::atoms(1_000_000),
            claim_age: Duration::from_secs(12 * 3600),
            max_rows: 50,
            gas_multiple: 50,
            coin_price: Amount::ZERO,
            max_fee: 100_000_000_000,
            bump_after: Duration::from_secs(60),
            confirmations: 1,
            trust_unconfirmed: Amount::atoms(1_000_000),
            poll_interval: Duration::from_secs(2),
        }
    }
}
