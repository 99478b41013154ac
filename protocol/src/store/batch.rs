//! A batch: rows that become durable together or not at all.

use serde::Serialize;

use crate::codec;
use crate::store::table::{Key, Table};

/// The largest value in bytes, as encoded: a page of the engine has 4 KiB. Larger things belong in
/// files, named by a row.
pub const MAX_VALUE: usize = codec::RECORD_LIMIT;

/// The longest key in bytes, the table's name not counted.
pub const MAX_KEY: usize = 256;

/// The most bytes one batch may write: a group of batches, and one more, must find room in half a
/// journal.
pub const MAX_BATCH: usize = 64 * 1024;

/// Why a row cannot be put in a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// The encoded value is too large for the ledger.
    #[error(
        "a value for table {table} takes {size} bytes, but at most {MAX_VALUE} are allowed: keep it in a file and store its name"
    )]
    ValueTooLarge {
        /// The table.
        table: &'static str,
        /// Bytes of the encoded value.
        size: usize,
    },
    /// The encoded key is too large.
    #[error(
        "a key for table {table} takes {size} bytes, but at most {MAX_KEY} are allowed: hash it"
    )]
    KeyTooLarge {
        /// The table.
        table: &'static str,
        /// Bytes of the encoded key.
        size: usize,
    },
    /// The value's own serializer refused.
    #[error("a value for table {table}: {source}")]
    Encode {
        /// The table.
        table: &'static str,
        /// What the codec says.
        source: codec::Error,
    },
}

/// One row to write (`Some`) or to remove (`None`).
pub(in crate::store) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Rows to write and to remove, in order; of several changes to one row the last one counts.
#[derive(Debug, Default)]
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    changes: Vec<Change>,
    tables: Vec<(&'static str, u32)>,
    size: usize,
}

impl Batch {
    /// An empty batch. Committing it waits for everything sent before it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a row, replacing what was there.
    ///
    /// # Errors
    /// [`BatchError`] when the key or the value is too large, or cannot be encoded.
    pub fn put<K: Key, V: Serialize>(
        mut self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
    ) -> Result<Self, BatchError> {
        let name = table.name();
        let row = table.row_key(key);
        let key_size = row.len().saturating_sub(table.prefix_len());
        if key_size > MAX_KEY {
            return Err(BatchError::KeyTooLarge {
                table: name,
                size: key_size,
            });
        }
        let bytes = codec::encode(value).map_err(|source| BatchError::Encode {
            table: name,
            source,
        })?;
        if bytes.len() > MAX_VALUE {
            return Err(BatchError::ValueTooLarge {
                table: name,
                size: bytes.len(),
            });
        }
        self.note(name, table.version());
        self.push(row, Some(bytes));
        Ok(self)
    }

    /// Removes a row, if it is there.
    pub fn delete<K: Key, V>(mut self, table: &Table<K, V>, key: &K) -> Self {
        let row = table.row_key(key);
        self.note(table.name(), table.version());
        // A key too long to be written cannot be there.
        if row.len().saturating_sub(table.prefix_len()) <= MAX_KEY {
            self.push(row, None);
        }
        self
    }

    /// Bytes this batch writes, keys included.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Whether it changes nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Name and version of each table it touches.
    pub(in crate::store) fn tables(&self) -> &[(&'static str, u32)] {
        &self.tables
    }

    pub(in crate::store) fn into_changes(self) -> Vec<Change> {
        self.changes
    }

    pub(in crate::store) fn push(&mut self, row: Vec<u8>, value: Option<Vec<u8>>) {
        let size = row.len() + value.as_ref().map_or(0, Vec::len);
        self.size = self.size.saturating_add(size);
        self.changes.push((row, value));
    }

    fn note(&mut self, name: &'static str, version: u32) {
        if !self.tables.contains(&(name, version)) {
            self.tables.push((name, version));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOBS: Table<Vec<u8>, Vec<u8>> = Table::new("blobs", 1);

    #[test]
    fn a_value_of_two_kibibytes_fits_and_one_byte_more_does_not() {
        let overhead = codec::encode(&vec![0_u8; 2000]).expect("encodes").len() - 2000;
        let largest = vec![7_u8; MAX_VALUE - overhead];
        let batch = Batch::new().put(&BLOBS, &vec![1], &largest).expect("fits");
        assert_eq!(batch.size(), "blobs".len() + 1 + 1 + MAX_VALUE);
        let larger = vec![7_u8; MAX_VALUE - overhead + 1];
        assert_eq!(
            Batch::new().put(&BLOBS, &vec![1], &larger).err(),
            Some(BatchError::ValueTooLarge {
                table: "blobs",
                size: MAX_VALUE + 1
            })
        );
    }

    #[test]
    fn a_key_over_its_limit_is_refused_and_its_removal_ignored() {
        let long = vec![0_u8; MAX_KEY + 1];
        assert_eq!(
            Batch::new().put(&BLOBS, &long, &vec![]).err(),
            Some(BatchError::KeyTooLarge {
                table: "blobs",
                size: MAX_KEY + 1
            })
        );
        assert!(Batch::new().delete(&BLOBS, &long).is_empty());
    }
}
