//! The durable store: typed tables, atomic batches, one version per table, one process per
//! directory. The only file that names the storage engine (sled).
//!
//! What it promises: when [`Durable`] resolves to `Ok`, the batch survives `kill -9` and a power
//! cut; a batch is there whole or not at all; batches are kept in the order they were sent, so
//! what is on disk is always a beginning of that order; the first failed write is the last one
//! ([`Health::Poisoned`]).
//!
//! How. All tables live in one tree of the engine, each row under its table's name, so one engine
//! batch is atomic across tables. One thread ([`commit`](self)) writes group after group: into a
//! small [`journal`](self) of our own, which costs one wait for the disk, and then into the engine
//! in memory; or, when the journal is full, straight into the engine with its `flush` and an
//! `fdatasync` of the database file, because the engine's own flush only starts writing (it calls
//! `sync_file_range`) and loses everything in a power cut. `flush_async` is never called: it
//! deadlocks under concurrency. Values stay under 2 KiB ([`MAX_VALUE`]): larger pages leave the
//! log and are not safe.
//!
//! Reads see a batch as soon as it is applied, which may be a moment before it is durable. Who
//! must not act on that keeps its own state, changed under its own lock, and waits for [`Durable`] before acting:
//!
//! ```no_run
//! # use farthing_protocol::store::{Batch, Schema, Store, Table};
//! # use std::sync::Mutex;
//! const CHANNELS: Table<u64, String> = Table::new("channels", 1);
//! # async fn example(ledger: Mutex<u64>) -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::open("data", Schema::new().table(&CHANNELS, &[]))?;
//! let permit = store.reserve().await?; // waits for room, holding no lock
//! let durable = {
//!     let mut next = ledger.lock().map_err(|_| "poisoned")?;
//!     *next += 1;
//!     permit.commit(Batch::new().put(&CHANNELS, &next, &"open".to_owned())?) // only sends
//! };
//! durable.await?; // on disk
//! # Ok(())
//! # }
//! ```

use std::fs::File;
use std::ops::RangeBounds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

mod table;
mod batch;
mod read;
mod schema;
mod upgrade;
mod journal;
mod commit;
mod disk;

pub use crate::store::batch::{Batch, BatchError, MAX_BATCH, MAX_KEY, MAX_VALUE};
pub use crate::store::commit::{CommitError, Durable, Health, Permit, QUEUE, Stats};
pub use crate::store::read::{Order, ReadError, View};
pub use crate::store::schema::{Schema, SchemaError, Step, StepError};
pub use crate::store::table::{FixedKey, Key, MAX_NAME, Table};

use crate::store::batch::Change;
use crate::store::commit::{Committer, Message, Monitor, watch_over};
use crate::store::disk::Lock;
use crate::store::journal::Journal;
use crate::store::read::{Row, Span};
use crate::store::upgrade::Upgrade;

/// Pages kept in memory: a node's whole ledger, or the hot part of a very large one.
const CACHE_BYTES: u64 = 128 * 1024 * 1024;

/// How often, 10 ms apart, to wait for the engine's threads of an earlier store in this process
/// to let go of the file.
const ENGINE_LOCK_TRIES: u32 = 200;

/// The row that says which generation of the journal counts. No table's name starts with a zero
/// byte.
const GENERATION: &[u8] = b"\0journal";

/// The change that makes another generation count.
fn generation(next: u64) -> Change {
    (GENERATION.to_vec(), Some(next.to_be_bytes().to_vec()))
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be used.
    #[error("{}: {source}; check that it exists, is yours and the disk is not full", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Someone has it.
    #[error("{} is in use by {holder}: stop it first, or use another data directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Who, as far as we can tell.
        holder: String,
    },
    /// The engine refuses the files.
    #[error("the database in {} cannot be opened: {reason}; keep a copy of it, then restore a backup", path.display())]
    Engine {
        /// The directory.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// The program's own schema is wrong.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// The data was written by a newer program.
    #[error(
        "table {table} is at version {stored}, but this program knows only up to {known}: use a newer release"
    )]
    Newer {
        /// The table.
        table: &'static str,
        /// The version on disk.
        stored: u32,
        /// The version of this program.
        known: u32,
    },
    /// The data has a table this program does not know.
    #[error(
        "the directory holds a table {table:?} (version {stored}) unknown to this program: use a newer release, or check that it is the right directory"
    )]
    Strange {
        /// Its name.
        table: String,
        /// Its version.
        stored: u32,
    },
    /// A migration step failed. The table is as it was.
    #[error("table {table} cannot be moved from version {from} to the next: {source}")]
    Migration {
        /// The table.
        table: &'static str,
        /// The version it still has.
        from: u32,
        /// Why.
        source: StepError,
    },
    /// The system gives us no thread.
    #[error("the committing thread cannot be started: {0}; raise the limit on threads")]
    Thread(std::io::Error),
}

/// What the engine or the disk said.
#[derive(Debug)]
pub(in crate::store) struct Fault(pub(in crate::store) String);

impl From<sled::Error> for Fault {
    fn from(error: sled::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self(error.to_string())
    }
}

/// The storage engine, and all that is ever asked of it.
#[derive(Debug)]
pub(in crate::store) struct Engine {
    /// Shares the engine's record of failed writes.
    config: sled::Config,
    db: sled::Db,
    /// The file to force to the disk.
    file: File,
    /// Last, so that the directory is free only when the engine is gone.
    _lock: Lock,
}

impl Engine {
    fn open(dir: &Path) -> Result<Self, OpenError> {
        disk::prepare(dir)?;
        let lock = disk::lock(dir)?;
        disk::settle(dir)?;
        let refused = |fault: Fault| OpenError::Engine {
            path: dir.to_path_buf(),
            reason: fault.0,
        };
        let (config, db) = Self::start(dir).map_err(refused)?;
        disk::settle(dir)?;
        let file = File::open(dir.join("db")).map_err(|e| refused(e.into()))?;
        Ok(Self {
            config,
            db,
            file,
            _lock: lock,
        })
    }

    /// The engine panics on some damaged files: to us that is one more refusal.
    fn start(dir: &Path) -> Result<(sled::Config, sled::Db), Fault> {
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(CACHE_BYTES)
            .flush_every_ms(None);
        let mut tries = ENGINE_LOCK_TRIES;
        loop {
            let opened = catch_unwind(AssertUnwindSafe(|| config.open())).map_err(|_| {
                Fault("the storage engine panicked: the files are damaged".to_owned())
            })?;
            match opened {
                Err(sled::Error::Io(e)) if tries > 0 && e.to_string().contains("acquire lock") => {
                    tries -= 1;
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "the store opens at start, before anything is served"
                    )]
                    thread::sleep(Duration::from_millis(10));
                }
                other => return Ok((config, other?)),
            }
        }
    }

    /// Opens the journal and gives the engine what only the journal has.
    fn recover(&self, dir: &Path) -> Result<Journal, OpenError> {
        let recovered = || -> Result<Journal, Fault> {
            let known = self.get(GENERATION)?.as_deref().and_then(u64::read);
            let mut journal = Journal::open(dir, known.unwrap_or(0))?;
            File::open(dir)?.sync_all()?;
            let groups = journal.groups()?;
            if groups.is_empty() {
                return Ok(journal);
            }
            tracing::debug!(groups = groups.len(), "applying what only the journal has");
            for group in groups {
                self.put(group)?;
            }
            let next = journal.generation().saturating_add(1);
            self.apply(vec![generation(next)])?;
            self.sync()?;
            journal.renew(next);
            Ok(journal)
        };
        recovered().map_err(|fault| OpenError::Engine {
            path: dir.to_path_buf(),
            reason: fault.0,
        })
    }

    pub(in crate::store) fn get(&self, row: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.db.get(row)?.map(|bytes| bytes.to_vec()))
    }

    pub(in crate::store) fn scan(
        &self,
        span: Span,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Row>, Fault> {
        let rows = self.db.range::<Vec<u8>, Span>(span);
        let own = |row: sled::Result<(sled::IVec, sled::IVec)>| -> Result<Row, Fault> {
            row.map(|(key, value)| (key.to_vec(), value.to_vec()))
                .map_err(Fault::from)
        };
        match order {
            Order::Up => rows.take(limit).map(own).collect(),
            Order::Down => rows.rev().take(limit).map(own).collect(),
        }
    }

    /// Applies changes as one atomic batch. Durable only after [`Engine::sync`].
    pub(in crate::store) fn apply(&self, changes: Vec<Change>) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut batch = sled::Batch::default();
        for (row, value) in changes {
            match value {
                Some(bytes) => batch.insert(row, bytes),
                None => batch.remove(row),
            }
        }
        Ok(self.db.apply_batch(batch)?)
    }

    /// Applies changes one by one, in order. Not atomic, and several times cheaper than
    /// [`Engine::apply`], which makes the engine write its buffer twice and wakes its threads: for
    /// what the journal makes whole again.
    pub(in crate::store) fn put(&self, changes: Vec<Change>) -> Result<(), Fault> {
        for (row, value) in changes {
            match value {
                Some(bytes) => self.db.insert(row, bytes)?,
                None => self.db.remove(row)?,
            };
        }
        Ok(())
    }

    /// Everything applied is on disk when this returns.
    pub(in crate::store) fn sync(&self) -> Result<(), Fault> {
        self.db.flush()?;
        Ok(self.file.sync_data()?)
    }

    /// Wakes an [`Engine::sync`] that a failed write left asleep: the engine notes the failure
    /// but does not always tell who waits. A second flush finds the note, tells them and returns.
    pub(in crate::store) fn wake_if_failed(&self) {
        if self.config.global_error().is_err() {
            // What it returns is the failure that the sleeper will report.
            self.db.flush().ok();
        }
    }
}

/// A handle to the store; clones share it. The directory is free again when the last handle is
/// dropped and what was sent is written.
#[derive(Debug, Clone)]
pub struct Store {
    engine: Arc<Engine>,
    schema: Arc<Schema>,
    monitor: Arc<Monitor>,
    queue: mpsc::Sender<Message>,
    committer: Thread,
    ended: watch::Receiver<()>,
}

impl Store {
    /// Opens the store in `dir`, making it if needed, and brings every table to its version.
    ///
    /// # Errors
    /// [`OpenError`], each saying what to do.
    pub fn open(dir: impl AsRef<Path>, schema: Schema) -> Result<Self, OpenError> {
        schema.check()?;
        let dir = dir.as_ref();
        let engine = Engine::open(dir)?;
        let journal = engine.recover(dir)?;
        Upgrade {
            engine: &engine,
            dir,
            schema: &schema,
        }
        .run()?;
        Self::start(Arc::new(engine), Arc::new(schema), journal)
    }

    fn start(
        engine: Arc<Engine>,
        schema: Arc<Schema>,
        journal: Journal,
    ) -> Result<Self, OpenError> {
        let (queue, inbox) = mpsc::channel(QUEUE);
        let (ended_by, ended) = watch::channel(());
        let monitor = Arc::new(Monitor::default());
        let (until, watched) = std::sync::mpsc::sync_channel(1);
        let (seen, state) = (engine.clone(), monitor.clone());
        let watcher = spawn("store-watcher", move || watch_over(&seen, &state, &watched))?;
        let committer = Committer {
            engine: engine.clone(),
            monitor: monitor.clone(),
            journal,
            inbox,
            ended: ended_by,
            watcher: (until, watcher),
        };
        let committer = spawn("store-committer", move || committer.run())?;
        Ok(Self {
            engine,
            schema,
            monitor,
            queue,
            committer: committer.thread().clone(),
            ended,
        })
    }

    /// Waits for a place in the queue. Hold no lock while waiting, and use or drop the permit
    /// soon: [`Store::stop`] waits for it.
    ///
    /// # Errors
    /// [`CommitError::Poisoned`] or [`CommitError::Stopped`].
    pub async fn reserve(&self) -> Result<Permit, CommitError> {
        self.writable()?;
        let place = self
            .queue
            .clone()
            .reserve_owned()
            .await
            .map_err(|_| CommitError::Stopped)?;
        Ok(self.permit(place))
    }

    /// Takes a place in the queue if there is one now: `Ok(None)` when it is full.
    ///
    /// # Errors
    /// As [`Store::reserve`].
    pub fn try_reserve(&self) -> Result<Option<Permit>, CommitError> {
        self.writable()?;
        match self.queue.clone().try_reserve_owned() {
            Ok(place) => Ok(Some(self.permit(place))),
            Err(mpsc::error::TrySendError::Full(_)) => Ok(None),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(CommitError::Stopped),
        }
    }

    fn permit(&self, place: mpsc::OwnedPermit<Message>) -> Permit {
        Permit::new(place, self.schema.clone(), self.committer.clone())
    }

    /// Commits one batch and waits.
    ///
    /// # Errors
    /// [`CommitError`]
    pub async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        self.reserve().await?.commit(batch).await
    }

    /// Commits one batch and blocks the thread until it is durable: for startup and tools.
    ///
    /// # Errors
    /// [`CommitError`]
    pub fn commit_blocking(&self, batch: Batch) -> Result<(), CommitError> {
        block_on(self.commit(batch))
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
        self.view(table)?.get(table, key)
    }

    /// At most `limit` rows whose keys are in `range`, from its low or its high end. To go on,
    /// scan again from beyond the last key. A batch committed meanwhile may be seen in part.
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
        self.view(table)?.scan(table, range, order, limit)
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
        self.view(table)?.scan_prefix(table, prefix, order, limit)
    }

    /// The row with the largest key.
    ///
    /// # Errors
    /// [`ReadError`]
    pub fn last<K: Key, V: DeserializeOwned>(
        &self,
        table: &Table<K, V>,
    ) -> Result<Option<(K, V)>, ReadError> {
        Ok(self.scan(table, .., Order::Down, 1)?.pop())
    }

    /// Whether it still writes.
    #[must_use]
    pub fn health(&self) -> Health {
        self.monitor.health()
    }

    /// What has been written so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.monitor.stats()
    }

    /// Takes no more batches, and returns when those sent are answered and the thread has ended.
    /// Reads go on working until the last handle is dropped.
    pub async fn stop(&self) {
        // A queue that is closed already has been told.
        self.queue.send(Message::Stop).await.ok();
        self.committer.unpark();
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    fn writable(&self) -> Result<(), CommitError> {
        match self.health() {
            Health::Sound => Ok(()),
            Health::Poisoned(reason) => Err(CommitError::Poisoned { reason }),
            Health::Stopped => Err(CommitError::Stopped),
        }
    }

    fn view<K, V>(&self, table: &Table<K, V>) -> Result<View<'_>, ReadError> {
        if self.schema.knows(table.name(), table.version()) {
            return Ok(View::new(&self.engine));
        }
        Err(ReadError::Unknown {
            table: table.name(),
            version: table.version(),
        })
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(OpenError::Thread)
}

/// Wakes a parked thread.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread alone. Unlike the runtime's own it works, if unwisely, inside one.
fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
