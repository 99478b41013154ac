//! What is on disk has a version, and one step per version.

use crate::store::batch::{Batch, BatchError};
use crate::store::read::{ReadError, View};
use crate::store::table::{Table, is_name};

/// One step of a migration: reads rows of the old version through the view and adds the rows of
/// the new one (and removals of the old) to the batch, which is written together with the new
/// version number. It runs once, or after a crash again from the start.
pub type Step = fn(&View<'_>, Batch) -> Result<Batch, StepError>;

/// Why a migration step gave up. Nothing has been written.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// An old row could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A new row could not be written.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// The old rows cannot become new ones.
    #[error("{0}")]
    Refused(String),
}

/// Why a schema cannot be used: a mistake in the program, found at start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// A name that is not lower-case letters, digits and dashes, or is too long.
    #[error("{0:?} cannot name a table: use up to 32 lower-case letters, digits and dashes")]
    Name(&'static str),
    /// The same name twice.
    #[error("table {0} is declared twice")]
    Twice(&'static str),
    /// Versions count from 1 and each one after the first needs its step.
    #[error(
        "table {table} is at version {version} but has {steps} migration steps: one per version after the first"
    )]
    Steps {
        /// The table.
        table: &'static str,
        /// The declared version.
        version: u32,
        /// The steps given.
        steps: usize,
    },
}

/// One table as the program knows it.
#[derive(Debug)]
pub(in crate::store) struct Entry {
    pub(in crate::store) name: &'static str,
    pub(in crate::store) version: u32,
    pub(in crate::store) steps: &'static [Step],
}

/// Every table of one store, with the steps that lead to its present version.
#[derive(Debug, Default)]
pub struct Schema {
    entries: Vec<Entry>,
}

impl Schema {
    /// A schema without tables.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a table; `steps[0]` leads from version 1 to 2, and so on: none for version 1.
    #[must_use]
    pub fn table<K, V>(mut self, table: &Table<K, V>, steps: &'static [Step]) -> Self {
        self.entries.push(Entry {
            name: table.name(),
            version: table.version(),
            steps,
        });
        self
    }

    pub(in crate::store) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(in crate::store) fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// Whether the program may use this table as it describes it.
    pub(in crate::store) fn knows(&self, name: &str, version: u32) -> bool {
        self.find(name)
            .is_some_and(|entry| entry.version == version)
    }

    pub(in crate::store) fn check(&self) -> Result<(), SchemaError> {
        for (i, entry) in self.entries.iter().enumerate() {
            if !is_name(entry.name) {
                return Err(SchemaError::Name(entry.name));
            }
            if self
                .entries
                .iter()
                .take(i)
                .any(|earlier| earlier.name == entry.name)
            {
                return Err(SchemaError::Twice(entry.name));
            }
            let steps = entry.steps.len();
            if usize::try_from(entry.version).ok() != steps.checked_add(1) {
                return Err(SchemaError::Steps {
                    table: entry.name,
                    version: entry.version,
                    steps,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Table<u64, u64> = Table::new("a", 1);
    const A2: Table<u64, u64> = Table::new("a", 2);
    const BAD: Table<u64, u64> = Table::new("a\0b", 1);

    #[test]
    fn mistakes_are_named() {
        assert_eq!(Schema::new().table(&A, &[]).check(), Ok(()));
        assert_eq!(
            Schema::new().table(&A, &[]).table(&A, &[]).check(),
            Err(SchemaError::Twice("a"))
        );
        assert_eq!(
            Schema::new().table(&BAD, &[]).check(),
            Err(SchemaError::Name("a\0b"))
        );
        assert_eq!(
            Schema::new().table(&A2, &[]).check(),
            Err(SchemaError::Steps {
                table: "a",
                version: 2,
                steps: 0
            })
        );
        assert_eq!(
            Schema::new().table(&A2, &[|_, batch| Ok(batch)]).check(),
            Ok(())
        );
    }
}
