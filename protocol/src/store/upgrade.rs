//! Bringing what is on disk to the versions of a schema, or refusing to touch it.

use std::ops::Bound;
use std::path::Path;

use crate::store::batch::Batch;
use crate::store::engine::Engine;
use crate::store::read::{Order, View};
use crate::store::schema::{Entry, Schema};
use crate::store::table::{Key, after_prefix};
use crate::store::{Fault, OpenError};

/// The rows that say which version each table has: `\0version\0<table>`. No table's name starts
/// with a zero byte.
const VERSIONS: &[u8] = b"\0version\0";

/// Brings the tables on disk to the versions of a schema.
pub(in crate::store) struct Upgrade<'a> {
    pub(in crate::store) engine: &'a Engine,
    pub(in crate::store) dir: &'a Path,
    pub(in crate::store) schema: &'a Schema,
}

impl Upgrade<'_> {
    /// Moves each table up, one step and one batch per version.
    pub(in crate::store) fn run(&self) -> Result<(), OpenError> {
        self.refuse_strangers()?;
        for entry in self.schema.entries() {
            match self.stored(entry.name)? {
                None => self.write(entry, entry.version, Batch::new())?,
                Some(stored) => self.climb(entry, stored)?,
            }
        }
        Ok(())
    }

    fn climb(&self, entry: &Entry, stored: u32) -> Result<(), OpenError> {
        let known = entry.version;
        if stored > known {
            return Err(OpenError::Newer {
                table: entry.name,
                stored,
                known,
            });
        }
        for (from, step) in (1..known)
            .zip(entry.steps)
            .filter(|(from, _)| *from >= stored)
        {
            tracing::info!(table = entry.name, from, "migrating");
            let batch = step(&View::new(self.engine), Batch::new()).map_err(|source| {
                OpenError::Migration {
                    table: entry.name,
                    from,
                    source,
                }
            })?;
            self.write(entry, from.saturating_add(1), batch)?;
        }
        Ok(())
    }

    /// Writes a version and the rows that go with it, in one batch.
    fn write(&self, entry: &Entry, version: u32, mut batch: Batch) -> Result<(), OpenError> {
        let row = [VERSIONS, entry.name.as_bytes()].concat();
        batch.push(row, Some(version.to_be_bytes().to_vec()));
        let written = self.engine.apply(batch.into_changes());
        written.map_err(|fault| self.failed(fault))
    }

    fn stored(&self, name: &str) -> Result<Option<u32>, OpenError> {
        let row = [VERSIONS, name.as_bytes()].concat();
        let found = self.engine.get(&row).map_err(|fault| self.failed(fault))?;
        found.map(|bytes| self.version(&bytes)).transpose()
    }

    fn version(&self, bytes: &[u8]) -> Result<u32, OpenError> {
        u32::read(bytes).ok_or_else(|| self.failed(Fault("a version is damaged".to_owned())))
    }

    fn refuse_strangers(&self) -> Result<(), OpenError> {
        let high = after_prefix(VERSIONS).map_or(Bound::Unbounded, Bound::Excluded);
        let span = (Bound::Included(VERSIONS.to_vec()), high);
        let rows = self
            .engine
            .scan(&span, Order::Up, usize::MAX)
            .map_err(|f| self.failed(f))?;
        for (key, value) in rows {
            let name = String::from_utf8_lossy(key.get(VERSIONS.len()..).unwrap_or_default());
            if self.schema.find(&name).is_none() {
                let stored = self.version(&value)?;
                return Err(OpenError::Strange {
                    table: name.into_owned(),
                    stored,
                });
            }
        }
        Ok(())
    }

    fn failed(&self, fault: Fault) -> OpenError {
        OpenError::Engine {
            path: self.dir.to_path_buf(),
            reason: fault.0,
        }
    }
}
