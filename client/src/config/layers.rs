//! Where settings come from: file, environment and flags, laid over each other.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::config::{Config, Invalid, LOCAL_CHAIN};

/// How a setting is written in an environment variable or a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// As it is.
    Text,
    /// Decimal digits.
    Integer,
    /// `true` or `false`.
    Flag,
    /// Separated by commas.
    List,
}

/// Every key that an environment variable or flag can set: all but the tables `aliases`,
/// `spend.models`, `x402`, `upstream` and `auto`.
/// `gateway.listen` is `FARTHING_GATEWAY_LISTEN`.
const KEYS: &[(&str, Kind)] = &[
    ("data_dir", Kind::Text),
    ("chain.rpc", Kind::List),
    ("chain.chain_id", Kind::Integer),
    ("chain.settlement", Kind::Text),
    ("chain.collector", Kind::Text),
    ("chain.token", Kind::Text),
    ("chain.token_name", Kind::Text),
    ("chain.token_version", Kind::Text),
    ("chain.token_symbol", Kind::Text),
    ("chain.token_decimals", Kind::Integer),
    ("network.listen", Kind::List),
    ("network.bootstrap", Kind::List),
    ("network.mdns", Kind::Flag),
    ("gateway.listen", Kind::Text),
    ("gateway.api_keys_file", Kind::Text),
    ("gateway.max_body", Kind::Integer),
    ("gateway.deadline", Kind::Text),
    ("gateway.keep_alive", Kind::Text),
    ("gateway.background", Kind::Integer),
    ("gateway.responses_kept", Kind::Integer),
    ("gateway.responses_bytes", Kind::Integer),
    ("gateway.responses_for", Kind::Text),
    ("wallet.payer", Kind::Text),
    ("wallet.instance", Kind::Integer),
    ("spend.per_purchase", Kind::Text),
    ("spend.per_seller", Kind::Text),
    ("spend.per_model", Kind::Text),
    ("spend.per_day", Kind::Text),
    ("spend.total", Kind::Text),
    ("spend.deposit", Kind::Text),
    ("spend.max_deposit", Kind::Text),
    ("spend.top_up_below", Kind::Text),
    ("spend.deposit_wait", Kind::Text),
    ("spend.approve_above", Kind::Text),
    ("mcp.per_call", Kind::Text),
    ("mcp.per_session", Kind::Text),
    ("router.strategy", Kind::Text),
    ("router.max_price_input", Kind::Integer),
    ("router.max_price_output", Kind::Integer),
    ("router.only", Kind::List),
    ("router.ignore", Kind::List),
    ("router.regions", Kind::List),
    ("router.quantizations", Kind::List),
    ("router.private", Kind::Flag),
    ("router.explore", Kind::Integer),
    ("router.sticky", Kind::Text),
    ("router.decisions", Kind::Integer),
    ("router.attempts", Kind::Integer),
    ("router.connect", Kind::Text),
    ("router.first_token", Kind::Text),
    ("router.idle", Kind::Text),
    ("router.hedge", Kind::Integer),
    ("router.rescue", Kind::Flag),
    ("reputation.listen", Kind::Flag),
    ("reputation.testify", Kind::Flag),
    ("reputation.testify_every", Kind::Text),
    ("reputation.credit", Kind::Text),
    ("reputation.stake", Kind::Text),
    ("probes.share", Kind::Integer),
    ("probes.per_day", Kind::Text),
    ("receipts.keep", Kind::Text),
    ("receipts.most", Kind::Integer),
    ("receipts.archive", Kind::Flag),
    ("log.filter", Kind::Text),
    ("log.format", Kind::Text),
];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key or value that is not ours.
    #[error("in {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A flag or variable has a value of the wrong kind.
    #[error("`{key}`, as given by {origin}: {reason}")]
    Value {
        /// The key.
        key: String,
        /// The flag or variable.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// A flag names no setting.
    #[error("there is no setting `{key}`; `client.example.toml` lists them all")]
    UnknownKey {
        /// What was named.
        key: String,
    },
    /// A chain other than the local one is not written out.
    #[error(
        "`{key}` must be given for chain {chain_id}: it enters signatures, so only the local chain ({LOCAL_CHAIN}) has defaults"
    )]
    NotWrittenOut {
        /// The key.
        key: String,
        /// The chain named.
        chain_id: String,
    },
    /// A setting that cannot be meant.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

/// Where settings come from, the strongest last.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The environment's variables.
    pub environment: Vec<(String, String)>,
    /// Keys set by flags.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// The configuration they make together, checked, with `~` in paths replaced.
    ///
    /// # Errors
    /// Any [`LoadError`]; it names the key.
    pub fn load(&self) -> Result<Config, LoadError> {
        let mut table = match &self.file {
            Some(path) => read(path)?,
            None => Table::new(),
        };
        for (key, kind) in KEYS {
            let variable = variable(key);
            let given = self.environment.iter().find(|(name, _)| *name == variable);
            if let Some((_, text)) = given {
                set(&mut table, key, *kind, text, &variable)?;
            }
        }
        for (key, text) in &self.flags {
            let known = KEYS.iter().find(|(name, _)| name == key);
            let (name, kind) = known.ok_or_else(|| LoadError::UnknownKey { key: key.clone() })?;
            set(&mut table, name, *kind, text, &format!("--set {key}"))?;
        }
        written_out(&table)?;
        let mut config = config(&table).map_err(|reason| LoadError::Value {
            key: "configuration".into(),
            origin: "all sources together".into(),
            reason,
        })?;
        self.expand(&mut config);
        config.check()?;
        Ok(config)
    }

    fn expand(&self, config: &mut Config) {
        let home = self.environment.iter().find(|(name, _)| name == "HOME");
        let Some((_, home)) = home else { return };
        let paths = [
            Some(&mut config.data_dir),
            config.gateway.api_keys_file.as_mut(),
        ];
        for path in paths.into_iter().flatten() {
            if let Ok(below) = path.strip_prefix("~") {
                *path = Path::new(home).join(below);
            }
        }
    }
}

/// The name of a key's environment variable.
fn variable(key: &str) -> String {
    format!("FARTHING_{}", key.replace('.', "_").to_uppercase())
}

/// Reads a file. It is checked on its own first, since only then does an error know its line.
fn read(path: &Path) -> Result<Table, LoadError> {
    let file = |source| LoadError::File {
        path: path.to_owned(),
        source: Box::new(source),
    };
    let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str::<Config>(&text).map_err(file)?;
    toml::from_str(&text).map_err(file)
}

fn config(table: &Table) -> Result<Config, String> {
    Config::deserialize(Value::Table(table.clone())).map_err(|e| e.to_string().trim().to_owned())
}

/// Lays one value over the table and reads the whole again, so that an error knows its key.
fn set(
    table: &mut Table,
    key: &str,
    kind: Kind,
    text: &str,
    origin: &str,
) -> Result<(), LoadError> {
    let wrong = |reason: String| LoadError::Value {
        key: key.to_owned(),
        origin: origin.to_owned(),
        reason,
    };
    let value = match kind {
        Kind::Text => Value::from(text),
        Kind::Integer => Value::from(
            text.parse::<i64>()
                .map_err(|_| wrong(format!("`{text}` is not a whole number")))?,
        ),
        Kind::Flag => Value::from(
            text.parse::<bool>()
                .map_err(|_| wrong(format!("`{text}` is neither true nor false")))?,
        ),
        Kind::List => {
            let items = text.split(',').map(str::trim);
            Value::Array(items.filter(|t| !t.is_empty()).map(Value::from).collect())
        }
    };
    let (parent, leaf) = key.split_once('.').unwrap_or(("", key));
    let place = if parent.is_empty() {
        &mut *table
    } else {
        let entry = table
            .entry(parent)
            .or_insert_with(|| Value::Table(Table::new()));
        entry
            .as_table_mut()
            .ok_or_else(|| wrong(format!("`{parent}` is not a table")))?
    };
    place.insert(leaf.to_owned(), value);
    config(table).map(|_| ()).map_err(wrong)
}

/// On any chain but the local one, every key of `[chain]` must be given.
fn written_out(table: &Table) -> Result<(), LoadError> {
    let chain = table.get("chain").and_then(Value::as_table);
    let Some(id) = chain.and_then(|chain| chain.get("chain_id")) else {
        return Ok(());
    };
    if id.as_integer() == i64::try_from(LOCAL_CHAIN).ok() {
        return Ok(());
    }
    let keys = KEYS
        .iter()
        .filter_map(|(key, _)| key.strip_prefix("chain."));
    for key in keys {
        if !chain.is_some_and(|chain| chain.contains_key(key)) {
            return Err(LoadError::NotWrittenOut {
                key: format!("chain.{key}"),
                chain_id: id.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, _)| *key)
}
