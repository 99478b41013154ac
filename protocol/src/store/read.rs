//! Reading rows: one at a time, or a bounded stretch of a table.

use std::ops::{Bound, RangeBounds};

use serde::de::DeserializeOwned;

use crate::codec;
use crate::store::Fault;
use crate::store::batch::MAX_VALUE;
use crate::store::engine::Engine;
use crate::store::table::{Key, Table, after_prefix};

/// Why rows cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The disk or the engine failed.
    #[error("reading table {table}: {reason}; stop, check the disk, then restart")]
    Disk {
        /// The table.
        table: &'static str,
        /// What the engine says.
        reason: String,
    },
    /// A row whose key is not one of this table.
    #[error(
        "table {table} holds a key that is not one of its own: {key:02x?}; see `Backups` in docs/operations.md"
    )]
    Key {
        /// The table.
        table: &'static str,
        /// The bytes.
        key: Vec<u8>,
    },
    /// A row that does not decode.
    #[error("table {table}, key {key:02x?}: {source}; see `Backups` in docs/operations.md")]
    Value {
        /// The table.
        table: &'static str,
        /// The row's key.
        key: Vec<u8>,
        /// What the codec says.
        source: codec::Error,
    },
    /// The table is not in the schema the store was opened with.
    #[error("table {table} at version {version} is not in this store's schema")]
    Unknown {
        /// The table.
        table: &'static str,
        /// The version asked for.
        version: u32,
    },
}

/// Which end of a stretch to start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Smallest key first.
    Up,
    /// Largest key first.
    Down,
}

/// A row as the engine holds it: key and value bytes.
pub(in crate::store) type Row = (Vec<u8>, Vec<u8>);

/// From where to where, in row keys.
pub(in crate::store) type Span = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// A reader of any table at any version: what a migration step is given.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    engine: &'a Engine,
}

impl<'a> View<'a> {
    pub(in crate::store) const fn new(engine: &'a Engine) -> Self {
        Self { engine }
    }

    /// The row under `key`.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn get<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        key: &K,
    ) -> Result<Option<V>, ReadError> {
        let row = table.row_key(key);
        let found = self.engine.get(&row).map_err(|fault| disk(table, fault))?;
        found.map(|bytes| value(table, &row, &bytes)).transpose()
    }

    /// At most `limit` rows whose keys are in `range`, from its low or its high end.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn scan<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        range: impl RangeBounds<K>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(K, V)>, ReadError> {
        self.collect(table, &span(table, range), order, limit)
    }

    /// At most `limit` rows whose keys start with `prefix`: the first part of a compound key.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn scan_prefix<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        prefix: &impl Key,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(K, V)>, ReadError> {
        let low = table.row_key(prefix);
        let high = after_prefix(&low).map_or(Bound::Unbounded, Bound::Excluded);
        self.collect(table, &(Bound::Included(low), high), order, limit)
    }

    fn collect<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        span: &Span,
        order: Order,
        limit: usize,
    ) -> Result<Vec<(K, V)>, ReadError> {
        let rows = self
            .engine
            .scan(span, order, limit)
            .map_err(|fault| disk(table, fault))?;
        rows.iter()
            .map(|(row, bytes)| Ok((key(table, row)?, value(table, row, bytes)?)))
            .collect()
    }
}

fn span<K: Key, V>(table: &Table<K, V>, range: impl RangeBounds<K>) -> Span {
    let low = match range.start_bound() {
        Bound::Included(key) => Bound::Included(table.row_key(key)),
        Bound::Excluded(key) => Bound::Excluded(table.row_key(key)),
        Bound::Unbounded => Bound::Included(table.prefix()),
    };
    let high = match range.end_bound() {
        Bound::Included(key) => Bound::Included(table.row_key(key)),
        Bound::Excluded(key) => Bound::Excluded(table.row_key(key)),
        Bound::Unbounded => after_prefix(&table.prefix()).map_or(Bound::Unbounded, Bound::Excluded),
    };
    (low, high)
}

fn key<K: Key, V>(table: &Table<K, V>, row: &[u8]) -> Result<K, ReadError> {
    let own = row.get(table.prefix_len()..).unwrap_or_default();
    K::read(own).ok_or_else(|| ReadError::Key {
        table: table.name(),
        key: own.to_vec(),
    })
}

fn value<K, V: DeserializeOwned>(
    table: &Table<K, V>,
    row: &[u8],
    bytes: &[u8],
) -> Result<V, ReadError> {
    codec::decode(bytes, MAX_VALUE).map_err(|source| ReadError::Value {
        table: table.name(),
        key: row.get(table.prefix_len()..).unwrap_or_default().to_vec(),
        source,
    })
}

fn disk<K, V>(table: &Table<K, V>, fault: Fault) -> ReadError {
    ReadError::Disk {
        table: table.name(),
        reason: fault.0,
    }
}
