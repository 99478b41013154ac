//! Committing: one thread writes, in the order sent, a group at a time.
//!
//! The thread takes what is waiting, forces it to the disk as one atomic group in the
//! [`journal`](crate::store::journal), lets readers see it, then answers everyone in the group.
//! While it waits for the disk the next group gathers, so the cost of a disk write is shared by all
//! who wait for it. What nobody waits for ([`Permit::later`]) may stay a moment, to share one too.
//! It ends when told to or when the last handle is gone, after writing what was sent before. After
//! the first failure it writes nothing more: whoever asks is told why.
//!
//! A second thread [folds](crate::store::fold) the journal into the tree. A third watches the
//! first: a disk can stop answering.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::store::Fault;
use crate::store::batch::{Batch, Change, MAX_BATCH};
use crate::store::engine::Engine;
use crate::store::fold::Folder;
use crate::store::journal::Journal;
use crate::store::schema::Schema;

/// How many commits may wait. More callers than this wait in [`crate::store::Store::reserve`],
/// where they hold no lock.
pub const QUEUE: usize = 1024;

/// A group stops growing here: with one more batch it is well below what half a journal takes
/// ([`crate::store::journal::ROWS`]).
const GROUP_BYTES: usize = 32 * 1024;

/// How long what nobody waits for may stay in memory.
const LINGER: Duration = Duration::from_millis(10);

/// How often the watcher looks.
const WATCH: Duration = Duration::from_millis(250);

/// A write that takes longer than this has failed: no disk in working order is this slow.
const STALL: Duration = Duration::from_secs(60);

/// Why a batch is not durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The write itself failed. It is not known whether the batch is on disk.
    #[error(
        "writing to the store failed: {reason}; the batch may or may not be on disk: free or repair the disk, then restart to find out"
    )]
    Failed {
        /// What failed.
        reason: Arc<str>,
    },
    /// An earlier write failed. This batch was not written.
    #[error(
        "the store refuses to write since an earlier failure: {reason}; free or repair the disk, then restart"
    )]
    Poisoned {
        /// What failed then.
        reason: Arc<str>,
    },
    /// The store has been stopped. This batch was not written.
    #[error("the store has been stopped")]
    Stopped,
    /// The batch writes a table the store was not opened with. It was not written.
    #[error("table {table} at version {version} is not in this store's schema")]
    Unknown {
        /// The table.
        table: &'static str,
        /// The version the batch was made for.
        version: u32,
    },
    /// The batch is too large to be written in one go. It was not written.
    #[error("a batch of {size} bytes is over {MAX_BATCH}: split it")]
    TooLarge {
        /// Bytes of the batch.
        size: usize,
    },
}

/// Whether the store still writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Sound,
    /// A write failed, and nothing has been written since.
    Poisoned(Arc<str>),
    /// It was stopped.
    Stopped,
}

/// What the committer has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Batches made durable.
    pub commits: u64,
    /// Groups they were written in: disk writes.
    pub groups: u64,
    /// Bytes of rows made durable.
    pub bytes: u64,
    /// Batches that failed or were refused after a failure.
    pub failed: u64,
    /// Batches in the latest group.
    pub last_group: u64,
    /// Batches in the largest group.
    pub largest_group: u64,
    /// How long the latest group took to apply.
    pub last_apply: Duration,
    /// How long the disk took to confirm the latest group, and to make room for it.
    pub last_sync: Duration,
}

/// A place in the queue: what it commits is sent without waiting.
#[derive(Debug)]
#[must_use = "a permit holds a place in the queue until it is used or dropped"]
pub struct Permit {
    place: mpsc::OwnedPermit<Message>,
    schema: Arc<Schema>,
    committer: Thread,
}

impl Permit {
    pub(in crate::store) const fn new(
        place: mpsc::OwnedPermit<Message>,
        schema: Arc<Schema>,
        committer: Thread,
    ) -> Self {
        Self {
            place,
            schema,
            committer,
        }
    }

    /// Sends the batch. Batches are written in the order of these calls, so a caller that needs
    /// an order holds its own lock around them and waits after releasing it.
    pub fn commit(self, batch: Batch) -> Durable {
        let (answer, waiting) = oneshot::channel();
        match self.refuse(&batch) {
            Some(error) => {
                // The receiver is right here: it cannot be gone.
                answer.send(Err(error)).ok();
            }
            None => {
                let answer = Some(answer);
                self.place.send(Message::Commit { batch, answer });
                self.committer.unpark();
            }
        }
        Durable { waiting }
    }

    /// Sends a batch that nobody waits for, in the order of the others. It is on disk a few
    /// milliseconds later, or when one after it is; a write that fails stops all others. The
    /// thread is not woken for it if it lingers already.
    ///
    /// # Errors
    /// [`CommitError::TooLarge`], [`CommitError::Unknown`].
    pub fn later(self, batch: Batch) -> Result<(), CommitError> {
        if let Some(error) = self.refuse(&batch) {
            return Err(error);
        }
        let answer = None;
        self.place.send(Message::Commit { batch, answer });
        Ok(())
    }

    fn refuse(&self, batch: &Batch) -> Option<CommitError> {
        if batch.size() > MAX_BATCH {
            return Some(CommitError::TooLarge { size: batch.size() });
        }
        let strange = batch
            .tables()
            .iter()
            .find(|(name, version)| !self.schema.knows(name, *version));
        strange.map(|(table, version)| CommitError::Unknown {
            table,
            version: *version,
        })
    }
}

/// Resolves when the batch is on disk. Dropping it does not take the batch back.
#[derive(Debug)]
#[must_use = "the batch is durable only once this has resolved"]
pub struct Durable {
    waiting: oneshot::Receiver<Result<(), CommitError>>,
}

impl Future for Durable {
    type Output = Result<(), CommitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.waiting)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(CommitError::Stopped)))
    }
}

#[derive(Debug)]
pub(in crate::store) enum Message {
    Commit {
        batch: Batch,
        /// Nobody, if it may linger.
        answer: Option<Answer>,
    },
    Stop,
}

/// What the committer shows of itself.
#[derive(Debug, Default)]
pub(in crate::store) struct Monitor {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stats: Stats,
    failure: Option<Arc<str>>,
    stopped: bool,
    /// Since when the disk has been busy with a group.
    busy: Option<Instant>,
    /// Since when it has been busy with the tree.
    folding: Option<Instant>,
    /// Who waits for that group.
    waiting: Vec<Answer>,
}

type Answer = oneshot::Sender<Result<(), CommitError>>;

impl Monitor {
    pub(in crate::store) fn stats(&self) -> Stats {
        self.lock().stats
    }

    pub(in crate::store) fn health(&self) -> Health {
        let state = self.lock();
        match &state.failure {
            Some(reason) => Health::Poisoned(reason.clone()),
            None if state.stopped => Health::Stopped,
            None => Health::Sound,
        }
    }

    /// Notes who waits for the group that is about to be written, unless writing is over.
    #[allow(
        clippy::disallowed_methods,
        reason = "measures the disk, decides nothing"
    )]
    fn begin(&self, waiting: Vec<Answer>) -> Result<(), Arc<str>> {
        let mut state = self.lock();
        state.waiting = waiting;
        match &state.failure {
            Some(reason) => Err(reason.clone()),
            None => {
                state.busy = Some(Instant::now());
                Ok(())
            }
        }
    }

    /// Answers all who wait for the group being written.
    fn answer(&self, answer: &Result<(), CommitError>) {
        let mut state = self.lock();
        state.busy = None;
        let waiting = std::mem::take(&mut state.waiting);
        if answer.is_err() {
            state.stats.failed = state.stats.failed.saturating_add(wide(waiting.len()));
        }
        drop(state);
        for caller in waiting {
            // A caller that no longer waits does not take its batch back.
            caller.send(answer.clone()).ok();
        }
    }

    /// Ends all writing, and tells those who wait.
    pub(in crate::store) fn fail(&self, reason: String) {
        let first = self.lock().failure.clone();
        let first = first.unwrap_or_else(|| {
            tracing::error!(%reason, "the store failed and writes nothing more");
            reason.into()
        });
        let first = self.lock().failure.get_or_insert(first).clone();
        self.answer(&Err(CommitError::Failed { reason: first }));
    }

    /// Notes that the tree is being written, or is no more.
    #[allow(
        clippy::disallowed_methods,
        reason = "measures the disk, decides nothing"
    )]
    pub(in crate::store) fn folding(&self, begins: bool) {
        self.lock().folding = begins.then(Instant::now);
    }

    /// For how long the disk has been busy with one thing.
    fn busy_for(&self) -> Option<Duration> {
        let state = self.lock();
        let since = state.busy.into_iter().chain(state.folding).min();
        since.map(|since| since.elapsed())
    }

    /// No code that can panic runs under this lock, so a poisoned one is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The committing thread.
pub(in crate::store) struct Committer {
    pub(in crate::store) engine: Arc<Engine>,
    pub(in crate::store) monitor: Arc<Monitor>,
    pub(in crate::store) journal: Journal,
    pub(in crate::store) folder: Folder,
    pub(in crate::store) inbox: mpsc::Receiver<Message>,
    /// Dropped when the thread has let go of the engine.
    pub(in crate::store) ended: watch::Sender<()>,
    /// The thread that watches this one, which ends when the sender is dropped.
    pub(in crate::store) watcher: (blocking::SyncSender<()>, JoinHandle<()>),
}

/// Watches the committer until the other end of `until` is dropped.
pub(in crate::store) fn watch_over(monitor: &Monitor, until: &blocking::Receiver<()>) {
    while until.recv_timeout(WATCH) == Err(blocking::RecvTimeoutError::Timeout) {
        if monitor.busy_for().is_some_and(|busy| busy > STALL) {
            monitor.fail("the disk does not answer".to_owned());
        }
    }
}

/// Batches written together, and who waits for them. Of several changes to one row only the last
/// is written: purchases made together on one channel all change its record.
#[derive(Default)]
struct Group {
    rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Bytes of the rows.
    size: usize,
    batches: usize,
    answers: Vec<Answer>,
}

impl Committer {
    /// Runs until stopped or until no handle is left.
    pub(in crate::store) fn run(mut self) {
        while let Some(message) = self.inbox.blocking_recv() {
            let group = self.gather(message);
            if group.batches > 0 {
                self.settle(group);
            }
        }
        self.monitor.lock().stopped = true;
        self.folder.stop();
        let (until, watcher) = self.watcher;
        drop(until);
        // It ends by itself.
        watcher.join().ok();
        drop(self.journal);
        // The directory is free from here on.
        drop(self.engine);
        drop(self.ended);
    }

    fn gather(&mut self, first: Message) -> Group {
        let mut group = Group::default();
        let mut next = Some(first);
        let mut until = None;
        while let Some(message) = next {
            match message {
                Message::Commit { batch, answer } => group.add(batch, answer),
                // What was sent or promised a place before still arrives; nothing new does.
                Message::Stop => self.inbox.close(),
            }
            if group.size >= GROUP_BYTES {
                break;
            }
            next = self.inbox.try_recv().ok();
            if next.is_none() && group.answers.is_empty() && !self.inbox.is_closed() {
                next = self.linger(*until.get_or_insert_with(soon));
            }
        }
        group
    }

    /// The next message: as soon as somebody waits for one, else what has come by then.
    #[allow(clippy::disallowed_methods, reason = "paces the disk, decides nothing")]
    fn linger(&mut self, until: Instant) -> Option<Message> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // Whoever waits, or wants it to end, wakes it; others do not.
            thread::park_timeout(left);
            if let Ok(message) = self.inbox.try_recv() {
                return Some(message);
            }
            if left.is_zero() {
                return None;
            }
        }
    }

    fn settle(&mut self, group: Group) {
        let (bytes, count) = (group.size, group.batches);
        if let Err(reason) = self.monitor.begin(group.answers) {
            return self.monitor.answer(&Err(CommitError::Poisoned { reason }));
        }
        match self.write(group.rows.into_iter().collect()) {
            Ok((apply, sync)) => {
                self.count(bytes, count, apply, sync);
                self.monitor.answer(&Ok(()));
            }
            Err(fault) => self.monitor.fail(fault.0),
        }
    }

    /// Writes; a panic of the engine is one more way to fail.
    fn write(&mut self, changes: Vec<Change>) -> Result<(Duration, Duration), Fault> {
        let work = AssertUnwindSafe(|| self.force(changes));
        catch_unwind(work).unwrap_or_else(|_| Err(Fault("the storage engine panicked".to_owned())))
    }

    /// Puts a group on disk, lets readers see it, and tells how long that and the disk took.
    #[allow(
        clippy::disallowed_methods,
        reason = "measures the disk, decides nothing"
    )]
    fn force(&mut self, changes: Vec<Change>) -> Result<(Duration, Duration), Fault> {
        // A barrier: what was sent before it has been answered, so it is on disk.
        if changes.is_empty() {
            return Ok((Duration::ZERO, Duration::ZERO));
        }
        let start = Instant::now();
        if !self.journal.append(&changes)? {
            let next = self.journal.generation().saturating_add(1);
            self.folder.seal(&self.engine, next)?;
            self.journal.renew(next);
            if !self.journal.append(&changes)? {
                return Err(Fault("a group is larger than the journal".to_owned()));
            }
        }
        let synced = Instant::now();
        self.engine.stage(changes);
        Ok((synced.elapsed(), synced.duration_since(start)))
    }

    fn count(&self, bytes: usize, count: usize, apply: Duration, sync: Duration) {
        let count = wide(count);
        let stats = &mut self.monitor.lock().stats;
        stats.commits = stats.commits.saturating_add(count);
        stats.groups = stats.groups.saturating_add(1);
        stats.bytes = stats.bytes.saturating_add(wide(bytes));
        stats.last_group = count;
        stats.largest_group = stats.largest_group.max(count);
        stats.last_apply = apply;
        stats.last_sync = sync;
    }
}

impl Group {
    fn add(&mut self, batch: Batch, answer: Option<Answer>) {
        self.batches += 1;
        for (row, value) in batch.into_changes() {
            let (key, bytes) = (row.len(), value.as_ref().map_or(0, Vec::len));
            self.size = self.size.saturating_add(key).saturating_add(bytes);
            if let Some(older) = self.rows.insert(row, value) {
                let older = older.map_or(0, |bytes| bytes.len());
                self.size = self.size.saturating_sub(key).saturating_sub(older);
            }
        }
        self.answers.extend(answer);
    }
}

#[allow(clippy::disallowed_methods, reason = "paces the disk, decides nothing")]
fn soon() -> Instant {
    Instant::now() + LINGER
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::table::Table;

    const NOTES: Table<u64, String> = Table::new("notes", 1);

    #[test]
    fn of_several_changes_to_one_row_a_group_writes_the_last() {
        let note = |text: &str| Batch::new().put(&NOTES, &1, &text.to_owned());
        let mut group = Group::default();
        let mut add = |batch| {
            let (answer, _) = oneshot::channel();
            group.add(batch, Some(answer));
            (group.rows.len(), group.size)
        };
        let one = add(note("as long").expect("fits"));
        assert_eq!(add(note("as this").expect("fits")), one);
        let (rows, size) = add(note("longer than that").expect("fits"));
        assert_eq!((rows, size), (1, one.1 + 9));
        let other = Batch::new().put(&NOTES, &2, &"as long".to_owned());
        assert_eq!(add(other.expect("fits")), (2, size + one.1));
        let deleted = add(Batch::new().delete(&NOTES, &2));
        assert_eq!(deleted.0, 2, "a row that goes is a change, too");
        assert_eq!(group.answers.len(), 5);
    }
}
