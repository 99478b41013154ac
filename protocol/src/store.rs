//! The durable store: typed tables, atomic batches, one version per table, one process per
//! directory.
//!
//! What it promises: when [`Durable`] resolves to `Ok`, the batch survives `kill -9` and a power
//! cut; a batch is there whole or not at all; batches are kept in the order they were sent, so
//! what is on disk is always a beginning of that order; the first failed write is the last one
//! ([`Health::Poisoned`]).
//!
//! How. All tables live in one tree of the [`engine`](self), each row under its table's name, so
//! one transaction is atomic across tables. One thread ([`commit`](self)) writes group after group
//! into a [`journal`](self) of our own, which costs one wait for the disk; when half of it is full,
//! a second thread folds that half into the tree, while the first goes on with the other. Memory is
//! bounded, whatever the tree's size. Values stay under 2 KiB ([`MAX_VALUE`]): what is larger is
//! a file.
//!
//! Reads see a batch a moment before whoever committed it is told that it is durable. Who
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

use std::ops::RangeBounds;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle, Thread};

use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};

mod table;
mod batch;
mod read;
mod schema;
mod upgrade;
mod journal;
mod engine;
mod fold;
mod commit;
mod disk;

pub use crate::store::batch::{Batch, BatchError, MAX_BATCH, MAX_KEY, MAX_VALUE};
pub use crate::store::commit::{CommitError, Durable, Health, Permit, QUEUE, Stats};
pub use crate::store::read::{Order, ReadError, View};
pub use crate::store::schema::{Schema, SchemaError, Step, StepError};
pub use crate::store::table::{FixedKey, Key, MAX_NAME, Table};

use crate::store::commit::{Committer, Message, Monitor, watch_over};
use crate::store::engine::Engine;
use crate::store::fold::Folder;
use crate::store::journal::Journal;
use crate::store::upgrade::Upgrade;

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
    #[error(
        "the books in {} cannot be opened: {reason}; keep a copy of them, and see `Backups` in docs/operations.md for how to go on without",
        path.display()
    )]
    Engine {
        /// The directory.
        path: PathBuf,
        /// What the engine says.
        reason: String,
    },
    /// It holds books of a release with another engine.
    #[error(
        "the books in {} were written by an earlier release, and this one cannot read them: close the channels with that release, then begin a new directory",
        path.display()
    )]
    Former {
        /// The directory.
        path: PathBuf,
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
        let (engine, journal) = Engine::open(dir)?;
        Upgrade {
            engine: &engine,
            dir,
            schema: &schema,
        }
        .run()?;
        Self::start(Arc::new(engine), Arc::new(schema), journal)
    }

    /// Whether there is a store in a directory, of this release or an earlier one.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        engine::is_in(dir)
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
        let state = monitor.clone();
        let watcher = spawn("store-watcher", move || watch_over(&state, &watched))?;
        let committer = Committer {
            engine: engine.clone(),
            monitor: monitor.clone(),
            journal,
            folder: Folder::start(engine.clone(), monitor.clone())?,
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
    /// scan again from beyond the last key. One scan sees the rows as they are at one moment.
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
