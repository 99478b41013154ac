//! Responses and conversations that are kept: one file each, readable by their owner alone.
//!
//! Bounded by number, bytes and age; age counts from the last use, so that a conversation that
//! goes on does not lose its beginning. The files are the truth; what is remembered of them is how
//! many there are. Not forced to the disk: a power cut may cost a response, never money. Nothing of
//! their content is ever logged.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use farthing_protocol::clock::{Clock, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::gateway::responses::item::Step;

/// The folder within the data directory.
pub const FOLDER: &str = "responses";
/// How often what is too old is looked for.
const SWEEP: Duration = Duration::from_secs(600);
/// The longest id.
const MAX_ID: usize = 64;

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// So many responses; 0 for none.
    pub most: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// After the last use.
    pub age: Duration,
}

/// A response with what it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The response.
    pub response: Value,
    /// The items of its own request.
    pub input: Vec<Value>,
    /// How each item of the response was told; `None` if it was told in no events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Vec<Step>>>,
}

/// What may be kept: a document that is not another kind's.
pub trait Document: Serialize + DeserializeOwned + Send + 'static {
    /// What it is called.
    fn id(&self) -> &str;
}

impl Document for Kept {
    fn id(&self) -> &str {
        self.response["id"].as_str().unwrap_or_default()
    }
}

/// It is larger than all that may be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoRoom {
    /// Its bytes.
    pub len: usize,
}

/// The responses of one data directory. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    bounds: Bounds,
    clock: Clock,
    /// What the files come to; unknown before the first sweep. Held while files change.
    tally: Mutex<Option<Tally>>,
    /// Held while one is read, changed and written again, or removed.
    changing: Mutex<()>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    files: u64,
    bytes: u64,
}

impl Store {
    /// The responses below this data directory. Nothing is read or made yet.
    #[must_use]
    pub fn new(data_dir: &std::path::Path, bounds: Bounds, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            dir: data_dir.join(FOLDER),
            bounds,
            clock,
            tally: Mutex::default(),
            changing: Mutex::default(),
        }))
    }

    /// Keeps a document; says whether it does: one that is larger than all of them may be is not
    /// kept.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn put(&self, one: impl Document) -> io::Result<bool> {
        self.off(move |inner| inner.put(&one)).await
    }

    /// A document, which counts as used now; `None` if it is not kept (any more), or is of another
    /// kind.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn get<T: Document>(&self, id: &str) -> io::Result<Option<T>> {
        let id = id.to_owned();
        self.off(move |inner| inner.get(&id)).await
    }

    /// Changes a document, if it is kept, `change` does not refuse and there is room for what comes
    /// of it; one change at a time.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn change<T: Document, R: Send + 'static, E: From<NoRoom> + Send + 'static>(
        &self,
        id: &str,
        change: impl FnOnce(&mut T) -> Result<R, E> + Send + 'static,
    ) -> io::Result<Option<Result<R, E>>> {
        let id = id.to_owned();
        let changed = move |inner: &Inner| {
            let _turn = inner.turn();
            let Some(mut one) = inner.get::<T>(&id)? else {
                return Ok(None);
            };
            let said = change(&mut one);
            if said.is_ok() && !inner.put(&one)? {
                let len = serde_json::to_vec(&one)?.len();
                return Ok(Some(Err(NoRoom { len }.into())));
            }
            Ok(Some(said))
        };
        self.off(changed).await
    }

    /// Removes a document of this kind; says whether there was one.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn remove<T: Document>(&self, id: &str) -> io::Result<bool> {
        let id = id.to_owned();
        let removed = move |inner: &Inner| {
            let _turn = inner.turn();
            match inner.get::<T>(&id)? {
                Some(_) => inner.remove(&id),
                None => Ok(false),
            }
        };
        self.off(removed).await
    }

    /// Removes what is too old, now and then, until cancelled.
    pub async fn tend(self, until: CancellationToken) {
        loop {
            let swept = self.off(|inner| inner.sweep(&mut inner.lock(), Tally::default()));
            if let Err(error) = swept.await {
                tracing::warn!(%error, "old responses cannot be removed");
            }
            tokio::select! {
                () = until.cancelled() => return,
                () = tokio::time::sleep(SWEEP) => {}
            }
        }
    }

    /// Files are waited for on a thread that nobody else needs.
    async fn off<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&inner));
        done.await.map_err(io::Error::other)?
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Option<Tally>> {
        // It is only a count, and counted anew by each sweep.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a response of this id is kept; `None` for what is no id of ours.
    fn path(&self, id: &str) -> Option<PathBuf> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let is_id = !id.is_empty() && id.len() <= MAX_ID && id.bytes().all(plain);
        is_id.then(|| self.dir.join(format!("{id}.json")))
    }

    fn put(&self, kept: &impl Document) -> io::Result<bool> {
        let Some(path) = self.path(kept.id()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let text = serde_json::to_vec(kept)?;
        let one = Tally {
            files: 1,
            bytes: text.len() as u64,
        };
        if !self.holds(one) {
            return Ok(false);
        }
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir)?;
        let mut tally = self.lock();
        let with = tally.map(|tally| tally.and(one));
        if !with.is_some_and(|with| self.holds(with)) {
            self.sweep(&mut tally, one)?;
        }
        let part = path.with_extension("part");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&part)?;
        file.write_all(&text)?;
        file.set_modified(self.now())?;
        fs::rename(&part, &path)?;
        *tally = Some(tally.unwrap_or_default().and(one));
        Ok(true)
    }

    fn get<T: Document>(&self, id: &str) -> io::Result<Option<T>> {
        let Some(path) = self.path(id) else {
            return Ok(None);
        };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let file = File::options().append(true).open(&path)?;
        if self.is_old(file.metadata()?.modified()?) {
            return Ok(None);
        }
        file.set_modified(self.now())?;
        // A power cut may have left it empty.
        Ok(serde_json::from_slice(&text).ok())
    }

    fn remove(&self, id: &str) -> io::Result<bool> {
        let Some(path) = self.path(id) else {
            return Ok(false);
        };
        let _held = self.lock();
        match fs::remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    /// Removes what is too old and, of the rest, those that were not used for longest, until there
    /// is room for `coming`. A tenth more, so that not each response sweeps.
    fn sweep(&self, tally: &mut Option<Tally>, coming: Tally) -> io::Result<()> {
        let files = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            files => files?,
        };
        let mut kept = Vec::new();
        let mut sum = Tally::default();
        for file in files {
            let file = file?;
            let meta = file.metadata()?;
            let modified = meta.modified()?;
            let whole = file.path().extension().is_some_and(|end| end == "json");
            if !whole || self.is_old(modified) {
                fs::remove_file(file.path())?;
                continue;
            }
            let one = Tally {
                files: 1,
                bytes: meta.len(),
            };
            sum = sum.and(one);
            kept.push((modified, file.path(), one));
        }
        if !self.holds(sum.and(coming)) {
            kept.sort_by(|(used, path, _), (other, than, _)| (used, path).cmp(&(other, than)));
            let spare = |bound: u64| bound / 10;
            let room = Tally {
                files: coming.files.saturating_add(spare(self.bounds.most)),
                bytes: coming.bytes.saturating_add(spare(self.bounds.bytes)),
            };
            for (_, path, one) in kept {
                if self.holds(sum.and(room)) {
                    break;
                }
                fs::remove_file(path)?;
                sum.files -= one.files;
                sum.bytes = sum.bytes.saturating_sub(one.bytes);
            }
        }
        *tally = Some(sum);
        Ok(())
    }

    const fn holds(&self, sum: Tally) -> bool {
        sum.files <= self.bounds.most && sum.bytes <= self.bounds.bytes
    }

    fn is_old(&self, modified: SystemTime) -> bool {
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        let modified = Timestamp(0).plus(since);
        self.clock.now().since(modified) > self.bounds.age
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.clock.now().0)
    }
}

impl Tally {
    const fn and(self, other: Self) -> Self {
        Self {
            files: self.files.saturating_add(other.files),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shelf {
        _dir: tempfile::TempDir,
        store: Store,
        clock: Clock,
    }

    fn shelf(most: u64, bytes: u64) -> Shelf {
        let dir = tempfile::tempdir().expect("a folder");
        let clock = Clock::manual(Timestamp(1_753_900_000_000));
        let age = Duration::from_secs(60);
        let bounds = Bounds { most, bytes, age };
        Shelf {
            store: Store::new(dir.path(), bounds, clock.clone()),
            _dir: dir,
            clock,
        }
    }

    fn kept(id: &str) -> Kept {
        Kept {
            response: serde_json::json!({ "id": id, "text": "x".repeat(200) }),
            input: Vec::new(),
            steps: None,
        }
    }

    impl Shelf {
        async fn put(&self, id: &str) {
            self.store.put(kept(id)).await.expect("is written");
            self.clock.advance(Duration::from_secs(1));
        }

        async fn has(&self, id: &str) -> bool {
            self.store.get::<Kept>(id).await.expect("is read").is_some()
        }

        fn files(&self) -> usize {
            fs::read_dir(&self.store.0.dir).expect("a folder").count()
        }
    }

    #[tokio::test]
    async fn what_is_kept_is_found_until_it_is_removed() {
        let shelf = shelf(10, 10_000);
        assert!(!shelf.has("resp_a").await);
        shelf.put("resp_a").await;
        let found = shelf.store.get("resp_a").await.expect("is read");
        assert_eq!(found, Some(kept("resp_a")));
        assert!(
            shelf
                .store
                .remove::<Kept>("resp_a")
                .await
                .expect("is removed")
        );
        assert!(!shelf.store.remove::<Kept>("resp_a").await.expect("is gone"));
        assert!(!shelf.has("resp_a").await);
    }

    #[tokio::test]
    async fn what_is_removed_while_it_is_changed_does_not_come_back() {
        let shelf = shelf(10, 10_000);
        for _ in 0..200 {
            shelf.put("a").await;
            let change = |_: &mut Kept| {
                std::thread::yield_now();
                Ok::<(), NoRoom>(())
            };
            let both = tokio::join!(
                shelf.store.change("a", change),
                shelf.store.remove::<Kept>("a")
            );
            both.0.expect("is changed or gone");
            assert!(both.1.expect("is removed"));
            assert!(!shelf.has("a").await);
        }
    }

    #[tokio::test]
    async fn a_change_that_there_is_no_room_for_is_refused() {
        let shelf = shelf(10, 600);
        shelf.put("a").await;
        let grow = |kept: &mut Kept| {
            kept.input.push("x".repeat(600).into());
            Ok::<(), NoRoom>(())
        };
        let changed = shelf.store.change("a", grow).await.expect("is read");
        let refused = changed.expect("is there").expect_err("no room");
        assert!(refused.len > 800);
        let found = shelf.store.get("a").await.expect("is read");
        assert_eq!(found, Some(kept("a")));
    }

    #[tokio::test]
    async fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let shelf = shelf(10, 10_000);
        shelf.put("resp_a").await;
        let dir = shelf.store.0.dir.clone();
        let mode = |path| fs::metadata(path).expect("is there").permissions().mode() & 0o777;
        assert_eq!(mode(dir.join("resp_a.json")), 0o600);
        assert_eq!(mode(dir), 0o700);
    }

    #[tokio::test]
    async fn an_id_cannot_name_another_file() {
        let shelf = shelf(10, 10_000);
        shelf.put("resp_a").await;
        for id in [
            "../responses/resp_a",
            "",
            "resp_a.json",
            "a/b",
            &"a".repeat(65),
        ] {
            assert!(!shelf.has(id).await, "{id}");
            assert!(
                !shelf.store.remove::<Kept>(id).await.expect("nothing"),
                "{id}"
            );
            assert!(shelf.store.put(kept(id)).await.is_err(), "{id}");
        }
    }

    #[tokio::test]
    async fn those_not_used_for_longest_make_room() {
        let shelf = shelf(3, 10_000);
        for id in ["a", "b", "c"] {
            shelf.put(id).await;
        }
        assert!(shelf.has("a").await);
        shelf.clock.advance(Duration::from_secs(1));
        shelf.put("d").await;
        let left = [
            shelf.has("a").await,
            shelf.has("b").await,
            shelf.has("c").await,
            shelf.has("d").await,
        ];
        assert_eq!(left, [true, false, true, true]);
    }

    #[tokio::test]
    async fn there_are_never_more_files_or_bytes_than_allowed() {
        let by_number = shelf(5, 1_000_000);
        let by_bytes = shelf(1_000, 1_500);
        for n in 0..40 {
            by_number.put(&format!("r{n}")).await;
            by_bytes.put(&format!("r{n}")).await;
            assert!(by_number.files() <= 5);
            assert!(by_bytes.files() <= 6);
        }
        assert!(by_number.has("r39").await && by_bytes.has("r39").await);
        let none = shelf(0, 1_000_000);
        none.put("a").await;
        assert!(!none.has("a").await);
    }

    #[tokio::test]
    async fn what_is_not_used_for_too_long_is_gone_and_leaves_the_disk() {
        let shelf = shelf(10, 10_000);
        shelf.put("old").await;
        shelf.put("used").await;
        shelf.clock.advance(Duration::from_secs(50));
        assert!(shelf.has("used").await);
        shelf.clock.advance(Duration::from_secs(50));
        assert!(!shelf.has("old").await);
        assert!(shelf.has("used").await);
        let stopped = CancellationToken::new();
        stopped.cancel();
        shelf.store.clone().tend(stopped).await;
        assert_eq!(shelf.files(), 1);
    }
}
