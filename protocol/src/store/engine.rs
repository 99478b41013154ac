//! The engine: one ordered tree of rows in one file (redb), and before it, in memory, the rows
//! that only the journal has on disk yet. The only file that names redb.
//!
//! A group is **staged**: readers see it. When the journal is full the staged rows are **sealed**,
//! and **folded** into the tree in one transaction while others are staged. A reader looks at the
//! staged rows, then at the sealed ones, then into the tree; what is folded leaves memory only when
//! the tree has it on disk.
//!
//! A transaction is on disk when it returns: in two phases, and with what makes the tree open at
//! once after a kill, however large it is. redb does not check what it reads: each row has a
//! checksum of ours behind it, and a panic over a damaged page is an error like others.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use itertools::Itertools;
use redb::{Builder, Database, ReadableDatabase, TableDefinition};

use crate::store::batch::Change;
use crate::store::disk::{self, Lock};
use crate::store::journal::Journal;
use crate::store::read::{Order, Row, Span};
use crate::store::table::Key;
use crate::store::{Fault, OpenError};

/// The tree's file in the directory.
const NAME: &str = "rows";
/// The same while it is made.
const UNFINISHED: &str = "rows.new";
/// All tables' rows.
const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");
/// Pages of the tree kept in memory. What is read of a large ledger is mostly its ends. Beside them
/// the engine keeps a map of what is free: a quarter of a mebibyte for 4 GiB of file.
const CACHE_BYTES: usize = 32 * 1024 * 1024;
/// A file of the engine before this one.
const FORMER: &str = "conf";

/// The row that says which generation of the journal is not in the tree yet. No table's name starts
/// with a zero byte.
const GENERATION: &[u8] = b"\0journal";

/// Rows as changes leave them: none for one that was removed.
type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The storage engine, and all that is ever asked of it.
#[derive(Debug)]
pub(in crate::store) struct Engine {
    db: Database,
    layers: RwLock<Layers>,
    /// Last, so that the directory is free only when the engine is gone.
    _lock: Lock,
}

/// What is not in the tree yet.
#[derive(Debug, Default)]
struct Layers {
    /// Since the last seal.
    staged: Rows,
    /// Being folded.
    sealed: Arc<Rows>,
}

impl Layers {
    fn get(&self, row: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.staged.get(row).or_else(|| self.sealed.get(row))
    }

    /// What these say of a span, in order, up to the `limit`th row that is there: none of the first
    /// `limit` rows of all lies beyond that.
    fn within(&self, span: &Span, order: Order, limit: usize) -> Vec<Change> {
        let (newer, older) = (changes(&self.staged, span), changes(&self.sealed, span));
        let (newer, older) = (directed(newer, order), directed(older, order));
        let mut there = 0;
        let mut found = Vec::new();
        for (row, value) in laid_over(newer, older, order) {
            if there == limit {
                break;
            }
            there += usize::from(value.is_some());
            found.push((row, value));
        }
        found
    }
}

fn changes<'a>(rows: &'a Rows, span: &Span) -> impl DoubleEndedIterator<Item = Change> + 'a {
    let own = |(row, value): (&Vec<u8>, &Option<Vec<u8>>)| (row.clone(), value.clone());
    rows.range::<[u8], _>(bounds(span)).map(own)
}

/// Both, in order; of a row that both know, what the newer ones say.
fn laid_over(
    newer: impl IntoIterator<Item = Change>,
    older: impl IntoIterator<Item = Change>,
    order: Order,
) -> impl Iterator<Item = Change> {
    let first = move |(new, _): &Change, (old, _): &Change| match order {
        Order::Up => new.cmp(old),
        Order::Down => old.cmp(new),
    };
    let both = newer.into_iter().merge_join_by(older, first);
    both.map(|either| either.reduce(|new, _| new))
}

fn directed<'a, T: 'a>(
    rows: impl DoubleEndedIterator<Item = T> + 'a,
    order: Order,
) -> Box<dyn Iterator<Item = T> + 'a> {
    match order {
        Order::Up => Box::new(rows),
        Order::Down => Box::new(rows.rev()),
    }
}

fn bounds((low, high): &Span) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let low = low.as_ref().map(Vec::as_slice);
    (low, high.as_ref().map(Vec::as_slice))
}

/// Whether nothing can lie in a span. A tree's `range` panics if it ends before it begins.
fn is_empty((low, high): &Span) -> bool {
    match (low, high) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => low >= high,
    }
}

impl Engine {
    /// Opens the tree in `dir`, or makes it, with its journal, and takes in what only the journal
    /// has.
    pub(in crate::store) fn open(dir: &Path) -> Result<(Self, Journal), OpenError> {
        disk::prepare(dir)?;
        let lock = disk::lock(dir)?;
        disk::settle(dir, NAME)?;
        let path = dir.to_path_buf();
        let unusable = |source| OpenError::Directory {
            path: path.clone(),
            source,
        };
        // What cannot be looked at may be there: nothing is put in its place.
        let is_there = |name| dir.join(name).try_exists().map_err(unusable);
        if !is_there(NAME)? {
            if is_there(FORMER)? {
                return Err(OpenError::Former { path });
            }
            make(dir).map_err(unusable)?;
        }
        let open = || -> Result<(Self, Journal), Fault> {
            let engine = Self {
                db: builder().open(dir.join(NAME))?,
                layers: RwLock::default(),
                _lock: lock,
            };
            let journal = engine.recover(dir)?;
            Ok((engine, journal))
        };
        guarded(open).map_err(|fault| OpenError::Engine {
            path,
            reason: fault.0,
        })
    }

    fn recover(&self, dir: &Path) -> Result<Journal, Fault> {
        let known = self.get(GENERATION)?.as_deref().and_then(u64::read);
        let known = known.ok_or_else(|| Fault("it does not say what its journal holds".to_owned()));
        let mut journal = Journal::open(dir, known?)?;
        let (groups, next) = journal.groups()?;
        if !groups.is_empty() {
            tracing::debug!(groups = groups.len(), "taking in what only the journal has");
            let mut rows: Rows = groups.into_iter().flatten().collect();
            rows.extend([generation(next)]);
            write(&self.db, &rows)?;
            journal.renew(next);
        }
        Ok(journal)
    }

    /// The row under a key.
    pub(in crate::store) fn get(&self, row: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        if let Some(value) = self.read_layers().get(row) {
            return Ok(value.clone());
        }
        guarded(|| {
            let tree = self.db.begin_read()?.open_table(ROWS)?;
            let value = tree.get(row)?;
            value.map(|value| checked(row, value.value())).transpose()
        })
    }

    /// At most `limit` rows of a span, as they are at one moment.
    pub(in crate::store) fn scan(
        &self,
        span: &Span,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, Fault> {
        if is_empty(span) {
            return Ok(Vec::new());
        }
        guarded(|| {
            let (newer, tree) = {
                let layers = self.read_layers();
                (layers.within(span, order, limit), self.db.begin_read()?)
            };
            let tree = tree.open_table(ROWS)?;
            let rows = tree.range::<&[u8]>(bounds(span))?;
            // Each of the newer ones may stand for one of these.
            let most = limit.saturating_add(newer.len());
            let older = directed(rows, order).take(most).map(|row| {
                let (row, value) = row?;
                let value = checked(row.value(), value.value())?;
                Ok((row.value().to_vec(), Some(value)))
            });
            let older = older.collect::<Result<Vec<_>, Fault>>()?;
            let all = laid_over(newer, older, order);
            let there = all.filter_map(|(row, value)| Some((row, value?)));
            Ok(there.take(limit).collect())
        })
    }

    /// Lets readers see a group that the journal has.
    pub(in crate::store) fn stage(&self, group: Vec<Change>) {
        self.write_layers().staged.extend(group);
    }

    /// Sets aside what is staged, to be folded. What was set aside before must be folded.
    pub(in crate::store) fn seal(&self) {
        let mut layers = self.write_layers();
        layers.sealed = Arc::new(std::mem::take(&mut layers.staged));
    }

    /// Puts what was sealed into the tree, so that the journal's generations before `next` count no
    /// more. Durable when it returns.
    pub(in crate::store) fn fold(&self, next: u64) -> Result<(), Fault> {
        let sealed = Arc::clone(&self.read_layers().sealed);
        let last = Rows::from([generation(next)]);
        guarded(|| write(&self.db, sealed.iter().chain(&last)))?;
        self.write_layers().sealed = Arc::default();
        Ok(())
    }

    /// Applies changes as one transaction, before anything is staged. Durable when it returns.
    pub(in crate::store) fn apply(&self, changes: Vec<Change>) -> Result<(), Fault> {
        let rows: Rows = changes.into_iter().collect();
        guarded(|| write(&self.db, &rows))
    }

    fn read_layers(&self) -> RwLockReadGuard<'_, Layers> {
        // Every change of them is whole before anything can panic.
        self.layers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_layers(&self) -> RwLockWriteGuard<'_, Layers> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The change that makes the generations before this one count no more.
fn generation(next: u64) -> Change {
    (GENERATION.to_vec(), Some(next.to_be_bytes().to_vec()))
}

/// Whether there is a tree in `dir`, or what was there before it.
pub(in crate::store) fn is_in(dir: &Path) -> bool {
    [NAME, FORMER].iter().any(|file| dir.join(file).exists())
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Makes the journal and then, beside its place, an empty tree, so that a tree is whole or not
/// there, and never without its journal.
fn make(dir: &Path) -> io::Result<()> {
    Journal::make(dir)?;
    let unfinished = dir.join(UNFINISHED);
    // Private from the first, and nothing of an attempt that was cut short.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    options.mode(0o600).open(&unfinished)?;
    let begin = || -> Result<(), Fault> {
        let db = builder().create(&unfinished)?;
        write(&db, &Rows::from([generation(0)]))
    };
    begin().map_err(|fault| io::Error::other(fault.0))?;
    File::open(&unfinished)?.sync_all()?;
    std::fs::rename(&unfinished, dir.join(NAME))?;
    File::open(dir)?.sync_all()
}

/// One transaction.
fn write<'a>(
    db: &Database,
    rows: impl IntoIterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
) -> Result<(), Fault> {
    let mut transaction = db.begin_write()?;
    transaction.set_two_phase_commit(true);
    transaction.set_quick_repair(true);
    {
        let mut tree = transaction.open_table(ROWS)?;
        for (row, value) in rows {
            match value {
                Some(value) => {
                    let mut value = value.clone();
                    value.extend(sum(row, &value));
                    tree.insert(row.as_slice(), value.as_slice())?
                }
                None => tree.remove(row.as_slice())?,
            };
        }
    }
    Ok(transaction.commit()?)
}

/// What stands behind a row's value in the tree.
fn sum(row: &[u8], value: &[u8]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(row);
    hasher.update(value);
    hasher.finalize().to_be_bytes()
}

/// A row's value as it was written.
fn checked(row: &[u8], stored: &[u8]) -> Result<Vec<u8>, Fault> {
    match stored.split_last_chunk() {
        Some((value, behind)) if *behind == sum(row, value) => Ok(value.to_vec()),
        _ => Err(Fault("a row is not as it was written".to_owned())),
    }
}

/// The engine panics on some damaged pages: to us that is one more error.
fn guarded<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    let damaged = |_| Fault("the storage engine panicked: its file is damaged".to_owned());
    catch_unwind(AssertUnwindSafe(work)).map_err(damaged)?
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What the engine says becomes a [`Fault`]: nothing is done by its kind.
macro_rules! faults {
    ($($error:ty),*) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self(error.to_string())
            }
        })*
    };
}

faults!(
    redb::CommitError,
    redb::DatabaseError,
    redb::StorageError,
    redb::TableError,
    redb::TransactionError
);

#[cfg(test)]
mod tests {
    use std::ops::RangeBounds;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Stage(Vec<(u8, Option<u8>)>),
        Seal,
        Fold,
    }

    fn step() -> impl Strategy<Value = Step> {
        let group = proptest::collection::vec((1..24_u8, proptest::option::of(0..9_u8)), 1..9);
        prop_oneof![
            3 => group.prop_map(Step::Stage),
            1 => Just(Step::Seal),
            1 => Just(Step::Fold),
        ]
    }

    fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
        prop_oneof![
            Just(Bound::Unbounded),
            (1..26_u8).prop_map(|row| Bound::Included(vec![row])),
            (1..26_u8).prop_map(|row| Bound::Excluded(vec![row])),
        ]
    }

    /// What a scan of these rows finds, plainly.
    fn found(
        rows: &BTreeMap<Vec<u8>, Vec<u8>>,
        span: &Span,
        order: Order,
        limit: usize,
    ) -> Vec<Row> {
        let inside = |(row, _): &(&Vec<u8>, &Vec<u8>)| span.contains(*row);
        let rows = rows.iter().filter(inside);
        let own = |(row, value): (&Vec<u8>, &Vec<u8>)| (row.clone(), value.clone());
        directed(rows, order).take(limit).map(own).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_read_is_what_was_written_wherever_it_lies(
            steps in proptest::collection::vec(step(), 1..16),
            spans in proptest::collection::vec((bound(), bound()), 4),
            limit in 0..9_usize,
        ) {
            let dir = tempfile::tempdir().expect("dir");
            let (engine, _journal) = Engine::open(dir.path()).expect("opens");
            let mut rows = BTreeMap::new();
            let (mut sealed, mut next) = (false, 0);
            for step in steps {
                match step {
                    Step::Stage(group) => {
                        for (row, value) in &group {
                            match value {
                                Some(value) => rows.insert(vec![*row], vec![*value]),
                                None => rows.remove([*row].as_slice()),
                            };
                        }
                        let change = |(row, value): (u8, Option<u8>)| (vec![row], value.map(|v| vec![v]));
                        engine.stage(group.into_iter().map(change).collect());
                    }
                    Step::Seal if !sealed => {
                        engine.seal();
                        sealed = true;
                    }
                    Step::Fold if sealed => {
                        next += 1;
                        engine.fold(next).expect("folds");
                        sealed = false;
                    }
                    Step::Seal | Step::Fold => {}
                }
                for row in 1..24_u8 {
                    let value = engine.get(&[row]).expect("reads");
                    prop_assert_eq!(&value, &rows.get([row].as_slice()).cloned());
                }
                for span in &spans {
                    for order in [Order::Up, Order::Down] {
                        // The journal's own row lies at the lower end.
                        let low = (Bound::Excluded(GENERATION.to_vec()), span.1.clone());
                        let span = if span.0 == Bound::Unbounded { &low } else { span };
                        let all = engine.scan(span, order, limit).expect("reads");
                        prop_assert_eq!(all, found(&rows, span, order, limit));
                    }
                }
            }
        }
    }

    #[test]
    fn the_directory_of_a_release_with_another_engine_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::write(dir.path().join(FORMER), "").expect("written");
        let refused = Engine::open(dir.path()).expect_err("refused");
        assert!(matches!(refused, OpenError::Former { .. }), "{refused}");
    }
}
