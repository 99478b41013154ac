//! What the operator decides: one typed value, from flags, environment, file and defaults.
//!
//! Flags win over the environment, the environment over the file, the file over the defaults.
//! The defaults run on a local development network; a public chain must be written out
//! ([`ChainConfig`]). An unknown key is an error, and errors name the key.
//!
//! A variable `FARTHING_NODE_<TABLE>__<KEY>` sets one key (`FARTHING_NODE_UPSTREAM__BASE_URL`,
//! `FARTHING_NODE_DATA_DIR`); a list is written as in the file (`["a", "b"]`). The models are
//! set in the file only. This is the only file that reads the environment.

mod chain;
mod fault;
mod http;
mod model;
mod network;
mod upstream;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farthing_protocol::amount::Amount;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use chain::{ChainConfig, LOCAL_CHAIN, SettlementConfig};
pub use fault::{Fault, Invalid};
pub use http::HttpConfig;
pub use model::{ModelConfig, PriceConfig};
pub use network::{NetworkConfig, RelayConfig};
pub use upstream::{CommandConfig, UpstreamConfig};

/// The example file: every key at its default.
pub const EXAMPLE: &str = include_str!("../node.example.toml");
/// What every variable that sets a key starts with.
pub const ENV_PREFIX: &str = "FARTHING_NODE_";
/// Variables with the prefix that are no keys: the command line reads them.
pub const ENV_RESERVED: [&str; 1] = ["FARTHING_NODE_CONFIG"];

/// Everything a node can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys, ledger and control socket live. `~/` is the user's home.
    pub data_dir: PathBuf,
    /// A file whose first line unlocks the keys; without it the program asks.
    pub passphrase_file: Option<PathBuf>,
    /// The chain, the contracts and where the money goes.
    pub chain: ChainConfig,
    /// When earnings are claimed.
    pub settlement: SettlementConfig,
    /// Where peers are met.
    pub network: NetworkConfig,
    /// The model server.
    pub upstream: UpstreamConfig,
    /// What is sold. A discovered model without an entry has no price and is not sold.
    pub models: Vec<ModelConfig>,
    /// What the offer says besides models.
    pub offer: OfferConfig,
    /// What one buyer, one request and all together may take.
    pub limits: LimitsConfig,
    /// The door for buyers that come over HTTP.
    pub http: HttpConfig,
    /// How long receipts are kept.
    pub receipts: ReceiptsConfig,
    /// Where metrics are served.
    pub metrics: MetricsConfig,
    /// What is logged, and how.
    pub log: LogConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("~/.local/share/farthing/node"),
            passphrase_file: None,
            chain: ChainConfig::default(),
            settlement: SettlementConfig::default(),
            network: NetworkConfig::default(),
            upstream: UpstreamConfig::default(),
            models: Vec::new(),
            offer: OfferConfig::default(),
            limits: LimitsConfig::default(),
            http: HttpConfig::default(),
            receipts: ReceiptsConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

/// What the offer says besides models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OfferConfig {
    /// How long an offer is valid; at most [`farthing_protocol::offer::MAX_LIFETIME`].
    #[serde(with = "humantime_serde")]
    pub lifetime: Duration,
    /// How often it is renewed; shorter than its lifetime.
    #[serde(with = "humantime_serde")]
    pub refresh: Duration,
    /// Where the node is, as buyers filter it.
    pub region: Option<String>,
    /// What is done with prompts.
    pub data_policy: Option<String>,
}

impl Default for OfferConfig {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(600),
            refresh: Duration::from_secs(300),
            region: None,
            data_policy: None,
        }
    }
}

/// What one buyer, one request and all together may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// The most bytes of a request body.
    pub max_body: u64,
    /// The most purchases of one buyer at once.
    pub purchases_per_buyer: u32,
    /// Streams of all buyers at once, over all models.
    pub slots: u32,
    /// How long a stream waits for a voucher before it ends unpaid.
    #[serde(with = "humantime_serde")]
    pub unpaid_wait: Duration,
    /// How often a running stream is written down: what a crash would charge.
    #[serde(with = "humantime_serde")]
    pub checkpoint: Duration,
    /// The longest deadline a buyer may ask for.
    #[serde(with = "humantime_serde")]
    pub max_deadline: Duration,
    /// Unclaimed atoms on one channel at which it is served no more until a claim is through.
    pub exposure_per_payer: Amount,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_body: 4 * 1024 * 1024,
            purchases_per_buyer: 64,
            slots: 64,
            unpaid_wait: Duration::from_secs(10),
            checkpoint: Duration::from_secs(1),
            max_deadline: Duration::from_secs(600),
            exposure_per_payer: Amount::atoms(5_000_000),
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

/// Where metrics are served.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Address of the Prometheus endpoint; none without it.
    pub listen: Option<SocketAddr>,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or filters as `tracing` reads them (`info,farthing_node::serve=debug`).
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file is not what a configuration looks like.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A flag or variable is not, or the whole is not.
    #[error("{reason} (set by {})", .set_by.join(", "))]
    Override {
        /// The flags and variables in force.
        set_by: Vec<String>,
        /// Which key and why.
        reason: String,
    },
    /// A variable's name or value is not text.
    #[error("{0} is not UTF-8")]
    NotText(String),
    /// All keys are known and of the right kind, but some values make no sense.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Invalid>),
}

/// One key set from outside the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Who sets it, as shown in errors: a flag or a variable.
    pub from: String,
    /// The key's path in the file: `chain.chain_id`.
    pub key: String,
    /// Its value: plain text for what is text in the file, else as in the file.
    pub value: String,
}

impl Override {
    /// A key set by a flag.
    #[must_use]
    pub fn flag(flag: &str, key: &str, value: impl fmt::Display) -> Self {
        Self {
            from: flag.to_owned(),
            key: key.to_owned(),
            value: value.to_string(),
        }
    }
}

impl Config {
    /// The configuration in force: defaults, then the file, then `overrides` in their order
    /// (the environment's first, then the flags'). Paths are expanded and values validated.
    ///
    /// # Errors
    /// Any [`ConfigError`].
    pub fn load(file: Option<&Path>, overrides: &[Override]) -> Result<Self, ConfigError> {
        let (path, text) = match file {
            Some(path) => (path, read(path)?),
            None => (Path::new("the defaults"), String::new()),
        };
        let in_file = |e: toml::de::Error| ConfigError::File {
            path: path.to_owned(),
            reason: e.to_string(),
        };
        let mut table: Table = toml::from_str(&text).map_err(in_file)?;
        let defaults = Value::try_from(Self::default()).ok();
        for change in overrides {
            let default = defaults.as_ref().and_then(|root| lookup(root, &change.key));
            put(&mut table, change, default).map_err(|reason| ConfigError::Override {
                set_by: vec![change.from.clone()],
                reason,
            })?;
        }
        let config = table.try_into::<Self>().map_err(|merged| {
            match toml::from_str::<Self>(&text) {
                // The file alone has the same fault: show the line.
                Err(alone) if alone.message() == merged.message() => in_file(alone),
                _ => ConfigError::Override {
                    set_by: overrides.iter().map(|change| change.from.clone()).collect(),
                    reason: merged.to_string().trim_end().to_owned(),
                },
            }
        })?;
        let config = config.expanded();
        let faults = config.validate();
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError::Invalid(faults))
        }
    }

    /// Everything that is wrong with the values, each named by its key.
    #[must_use]
    pub fn validate(&self) -> Vec<Invalid> {
        fault::of(self)
    }

    fn expanded(mut self) -> Self {
        let Some(home) = home() else {
            return self;
        };
        let expand = |path: &mut PathBuf| {
            if let Ok(rest) = path.strip_prefix("~") {
                *path = home.join(rest);
            }
        };
        expand(&mut self.data_dir);
        self.passphrase_file.iter_mut().for_each(expand);
        self.upstream.api_key_file.iter_mut().for_each(expand);
        self.http.tls_certificate.iter_mut().for_each(expand);
        self.http.tls_key.iter_mut().for_each(expand);
        self
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// The keys set by environment variables, in the order of their names.
///
/// # Errors
/// [`ConfigError::NotText`].
pub fn environment() -> Result<Vec<Override>, ConfigError> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place that reads the environment"
    )]
    let variables = std::env::vars_os();
    from_variables(variables)
}

fn from_variables(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<Override>, ConfigError> {
    let mut found = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str() else { continue };
        let Some(key) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        if ENV_RESERVED.contains(&name) {
            continue;
        }
        let Some(value) = value.to_str() else {
            return Err(ConfigError::NotText(name.to_owned()));
        };
        let key = key.to_lowercase().replace("__", ".");
        found.push(Override::flag(name, &key, value));
    }
    found.sort_by(|a, b| a.from.cmp(&b.from));
    Ok(found)
}

#[allow(
    clippy::disallowed_methods,
    reason = "the one place that reads the environment"
)]
fn home() -> Option<PathBuf> {
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

fn lookup<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(root, |value, name| value.get(name))
}

/// Sets one key. Its default tells whether the value is text; where there is none, what reads as
/// a TOML value is one, and all else is text.
fn put(table: &mut Table, change: &Override, default: Option<&Value>) -> Result<(), String> {
    let text = || Value::String(change.value.clone());
    let parsed = || {
        let line = format!("value = {}", change.value);
        let mut read: Table = toml::from_str(&line).ok()?;
        read.remove("value").filter(|_| read.is_empty())
    };
    let value = match default {
        Some(Value::String(_)) => text(),
        _ => parsed().unwrap_or_else(text),
    };
    let mut names: Vec<&str> = change.key.split('.').collect();
    let last = names.pop().unwrap_or_default();
    let mut place = table;
    for name in names {
        let entry = place
            .entry(name)
            .or_insert_with(|| Value::Table(Table::new()));
        place = entry
            .as_table_mut()
            .ok_or_else(|| format!("`{}`: `{name}` is not a table", change.key))?;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests;
