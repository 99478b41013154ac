//! The store keeps its promises: whole batches, in order, after any death.

#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]
#![allow(clippy::panic, reason = "a failed assertion says where and why")]

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farthing_protocol::store::{
    Batch, CommitError, Health, MAX_BATCH, OpenError, Order, ReadError, Schema, StepError, Store,
    Table, View,
};
use tempfile::tempdir;

#[path = "store/workload.rs"]
mod workload;

use workload::{CHILD_DIR, Dice, HEAD, ROWS, Writer, batch, say, schema, verify};

/// Not a test: the child that other tests start and kill.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    runtime().block_on(workload::write_until_killed(Path::new(&dir)));
}

/// Not a test: the child that runs into a full disk.
#[test]
fn child_fills_the_disk() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    runtime().block_on(async {
        let store = Store::open(dir, schema()).expect("opens");
        let mut n = 0;
        let more = |n| {
            let batch = batch(n).expect("fits");
            batch.put(&workload::SLOTS, &(9, n), &(n, vec![9; 400]))
        };
        let error = loop {
            n += 1;
            match store.commit(more(n).expect("fits")).await {
                Ok(()) => say(&format!("acked {n}")),
                Err(e) => break e,
            }
        };
        say(&format!("first {error:?}"));
        say(&format!(
            "second {:?}",
            store.commit(batch(n).expect("fits")).await
        ));
        let places = store.try_reserve().map(|place| place.is_some());
        say(&format!("third {places:?}"));
        say(&format!("health {:?}", store.health()));
        say(&format!("failed {}", store.stats().failed));
        store.stop().await;
        say("stopped");
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime")
}

#[test]
fn no_acknowledged_batch_is_lost_to_kill_nine() {
    let rounds = number("FARTHING_KILL_ROUNDS", 10);
    let seed = number("FARTHING_SEED", 1);
    let dir = tempdir().expect("dir");
    let mut dice = Dice(seed);
    let mut total = 0;
    for round in 0..rounds {
        let mut writer = Writer::start(Writer::command("child_writes_until_killed"), dir.path());
        let moment = 1 + dice.roll(400);
        let before = total;
        while writer.hear() && (writer.acked == 0 || writer.acked < before + moment) {}
        std::thread::sleep(Duration::from_micros(dice.roll(20_000)));
        writer.child.kill().expect("killed");
        writer.hear_out();
        let store = Store::open(dir.path(), schema()).expect("opens after a kill");
        let head = verify(&store).unwrap_or_else(|e| panic!("round {round}, seed {seed}: {e}"));
        assert!(
            writer.acked > 0,
            "round {round}: the child wrote nothing: {:?}",
            writer.said
        );
        assert!(
            head >= writer.acked,
            "round {round}, seed {seed}: {} acknowledged, {head} kept",
            writer.acked
        );
        total = head;
        drop(store);
        wait_free(dir.path());
    }
    say(&format!("{rounds} kills, {total} batches, none lost"));
}

/// Bytes of the engine's pages.
const PAGE: usize = 4096;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Batches that some tests write before they damage something.
const FILLED: u64 = 600;

fn fill(store: &Store) {
    for n in 1..=FILLED {
        store
            .commit_blocking(batch(n).expect("fits"))
            .expect("durable");
    }
}

/// The tree's file cut off anywhere loses nothing the journal makes good, and where it cannot, the
/// directory is refused: a ledger that has forgotten a promise must not go on.
#[test]
fn a_torn_file_is_made_whole_or_refused() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let fresh = std::fs::metadata(dir.path().join("rows"))
        .expect("rows")
        .len();
    fill(&store);
    let bytes = std::fs::read(dir.path().join("rows")).expect("rows");
    let snapshots = copy_without_tree(dir.path());
    drop(store);
    let mut dice = Dice(7);
    let low = usize::try_from(fresh).expect("small").min(bytes.len() / 2);
    let mut cuts: Vec<_> = (0..number("FARTHING_TEARS", 60))
        .map(|_| low + usize::try_from(dice.roll((bytes.len() - low) as u64)).expect("small"))
        .collect();
    // The engine's pages, too: its length alone does not betray those.
    cuts.iter_mut()
        .step_by(2)
        .for_each(|cut| *cut -= *cut % PAGE);
    cuts.extend([0, 1, 100].map(|less| bytes.len() - less));
    let (mut whole, mut refused) = (0, 0);
    for cut in cuts {
        let torn = snapshots();
        std::fs::write(torn.path().join("rows"), &bytes[..cut]).expect("written");
        match Store::open(torn.path(), schema()) {
            Ok(store) => {
                assert_eq!(verify(&store), Ok(FILLED), "cut at {cut}");
                whole += 1;
            }
            Err(OpenError::Engine { .. }) => refused += 1,
            Err(other) => panic!("cut at {cut}: {other}"),
        }
    }
    assert!(whole > 0 && refused > 0, "{whole} whole, {refused} refused");
}

/// What the disk gives back otherwise than it was written is an error, no panic and no other row.
#[test]
fn a_damaged_page_is_an_error_where_it_is_read() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    fill(&store);
    drop(store);
    wait_free(dir.path());
    let bytes = std::fs::read(dir.path().join("rows")).expect("rows");
    let copies = copy_without_tree(dir.path());
    let mut dice = Dice(11);
    let (mut harmless, mut found) = (0, 0);
    for round in 0..number("FARTHING_TEARS", 60) {
        let at = usize::try_from(dice.roll(bytes.len() as u64)).expect("small");
        let mut damaged = bytes.clone();
        if round % 2 == 0 {
            damaged[at] ^= 1 << (round % 8);
        } else {
            let page = at - at % PAGE;
            damaged[page..]
                .iter_mut()
                .take(PAGE)
                .for_each(|byte| *byte = 0);
        }
        let copy = copies();
        std::fs::write(copy.path().join("rows"), &damaged).expect("written");
        let read = match Store::open(copy.path(), schema()) {
            Ok(store) => verify(&store),
            Err(refused) => Err(refused.to_string()),
        };
        match read {
            Ok(head) => {
                assert_eq!(head, FILLED, "round {round}, at {at}");
                harmless += 1;
            }
            Err(_) => found += 1,
        }
    }
    assert!(
        harmless > 0 && found > 0,
        "{harmless} harmless, {found} found"
    );
}

#[test]
fn a_directory_that_was_being_made_is_made_anew() {
    let dir = tempdir().expect("dir");
    std::fs::write(dir.path().join("rows.new"), vec![0; 72 * 1024]).expect("written");
    std::fs::write(dir.path().join("journal"), vec![0; 100]).expect("written");
    let store = Store::open(dir.path(), schema()).expect("opens");
    store
        .commit_blocking(batch(1).expect("fits"))
        .expect("durable");
    drop(store);
    wait_free(dir.path());
    assert_eq!(reopened(dir.path()), Ok(1));
}

/// The journal knows that there was one.
#[test]
fn a_tree_that_is_gone_is_not_made_anew() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    fill(&store);
    drop(store);
    wait_free(dir.path());
    std::fs::remove_file(dir.path().join("rows")).expect("removed");
    for _ in 0..2 {
        let refused = Store::open(dir.path(), schema()).expect_err("refused");
        assert!(matches!(refused, OpenError::Engine { .. }), "{refused}");
    }
}

/// What makes copies of a directory but for the tree's file.
fn copy_without_tree(dir: &Path) -> impl Fn() -> tempfile::TempDir + use<> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)
        .expect("dir")
        .map(|entry| entry.expect("entry"))
    {
        if entry.path().is_file() && entry.file_name() != "rows" {
            files.push((
                entry.file_name(),
                std::fs::read(entry.path()).expect("read"),
            ));
        }
    }
    move || {
        let copy = tempdir().expect("dir");
        for (name, bytes) in &files {
            std::fs::write(copy.path().join(name), bytes).expect("written");
        }
        copy
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_commits_share_a_disk_write_and_resolve_in_order() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let next = Arc::new(Mutex::new(0_u64));
    let resolved = Arc::new(Mutex::new(0_u64));
    let mut tasks = Vec::new();
    for _ in 0..100 {
        let (store, next, resolved) = (store.clone(), next.clone(), resolved.clone());
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                let permit = store.reserve().await.expect("a place");
                let (n, durable) = {
                    let mut next = next.lock().expect("lock");
                    *next += 1;
                    (*next, permit.commit(batch(*next).expect("fits")))
                };
                durable.await.expect("durable");
                let kept = store.get(&HEAD, &()).expect("read").expect("there");
                assert!(kept >= n);
                *resolved.lock().expect("lock") += 1;
            }
        }));
    }
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(verify(&store), Ok(1000));
    assert_eq!(*resolved.lock().expect("lock"), 1000);
    let stats = store.stats();
    assert_eq!((stats.commits, stats.failed), (1000, 0));
    assert!(stats.groups < 600 && stats.largest_group > 5, "{stats:?}");
    assert!(stats.last_sync > Duration::ZERO);
}

#[tokio::test]
async fn what_nobody_waits_for_is_written_soon_and_before_what_follows() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let later = |n| {
        let store = store.clone();
        async move {
            let permit = store.reserve().await.expect("a place");
            permit.later(batch(n).expect("fits")).expect("sent");
        }
    };
    later(1).await;
    while store.stats().commits == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(verify(&store), Ok(1), "though nobody waits");
    for n in 2..=5 {
        later(n).await;
    }
    store
        .commit(batch(6).expect("fits"))
        .await
        .expect("durable");
    assert_eq!(verify(&store), Ok(6), "whoever waits pushes the others");
    later(7).await;
    store.stop().await;
    drop(store);
    wait_free(dir.path());
    assert_eq!(reopened(dir.path()), Ok(7), "also when it stops");
}

fn reopened(dir: &Path) -> Result<u64, String> {
    verify(&Store::open(dir, schema()).expect("opens"))
}

#[tokio::test]
async fn an_earlier_batch_never_resolves_after_a_later_one() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let mut waiting = Vec::new();
    for n in 1..=300 {
        waiting.push(
            store
                .reserve()
                .await
                .expect("a place")
                .commit(batch(n).expect("fits")),
        );
    }
    let last = waiting.pop().expect("the last");
    last.await.expect("durable");
    for earlier in waiting {
        let mut earlier = std::pin::pin!(earlier);
        let answer = futures_poll(earlier.as_mut());
        assert_eq!(answer, Some(Ok(())), "resolved before the last one");
    }
}

fn futures_poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    // Outside the runtime's fairness budget, which would make a ready future wait.
    match std::pin::pin!(tokio::task::unconstrained(future)).poll(&mut cx) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn what_a_batch_says_last_about_a_row_counts() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let twice = Batch::new()
        .put(&HEAD, &(), &1)
        .expect("fits")
        .put(&HEAD, &(), &2)
        .expect("fits");
    store.commit(twice).await.expect("durable");
    assert_eq!(store.get(&HEAD, &()), Ok(Some(2)));
    let gone = Batch::new()
        .put(&HEAD, &(), &3)
        .expect("fits")
        .delete(&HEAD, &());
    store.commit(gone).await.expect("durable");
    assert_eq!(store.get(&HEAD, &()), Ok(None));
    store
        .commit(Batch::new())
        .await
        .expect("an empty batch is a barrier");
}

#[tokio::test]
async fn scans_are_bounded_ordered_and_stay_in_their_table() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    for n in 1..=20 {
        store
            .commit(batch(n).expect("fits"))
            .await
            .expect("durable");
    }
    let keys =
        |rows: Vec<(u64, (u64, Vec<u8>))>| rows.into_iter().map(|row| row.0).collect::<Vec<_>>();
    assert_eq!(
        keys(store.scan(&ROWS, 5..8, Order::Up, 10).expect("rows")),
        [5, 6, 7]
    );
    assert_eq!(
        keys(store.scan(&ROWS, 5..=8, Order::Down, 2).expect("rows")),
        [8, 7]
    );
    assert_eq!(
        keys(store.scan(&ROWS, .., Order::Up, 100).expect("rows")).len(),
        20
    );
    assert_eq!(store.last(&ROWS).expect("row").map(|row| row.0), Some(20));
    assert_eq!(
        store
            .scan_prefix(&workload::SLOTS, &7_u8, Order::Up, 100)
            .expect("rows")
            .len(),
        20
    );
    assert!(
        store
            .scan_prefix(&workload::SLOTS, &8_u8, Order::Up, 100)
            .expect("rows")
            .is_empty()
    );
}

#[tokio::test]
async fn what_is_not_in_the_schema_or_too_large_never_reaches_the_disk() {
    const OTHER: Table<u64, u64> = Table::new("other", 1);
    const HEAD2: Table<(), u64> = Table::new("head", 2);
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let strange = Batch::new().put(&OTHER, &1, &1).expect("fits");
    assert_eq!(
        store.commit(strange).await,
        Err(CommitError::Unknown {
            table: "other",
            version: 1
        })
    );
    let newer = Batch::new().put(&HEAD2, &(), &1).expect("fits");
    assert_eq!(
        store.commit(newer).await,
        Err(CommitError::Unknown {
            table: "head",
            version: 2
        })
    );
    assert_eq!(
        store.get(&OTHER, &1),
        Err(ReadError::Unknown {
            table: "other",
            version: 1
        })
    );
    let mut large = Batch::new();
    for n in 0..200 {
        large = large.put(&ROWS, &n, &(n, vec![1; 400])).expect("fits");
    }
    let size = large.size();
    assert!(size > MAX_BATCH);
    assert_eq!(
        store.commit(large).await,
        Err(CommitError::TooLarge { size })
    );
    assert_eq!((store.health(), verify(&store)), (Health::Sound, Ok(0)));
}

#[tokio::test]
async fn commit_blocking_works_even_inside_a_runtime() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    for n in 1..=300 {
        store
            .commit_blocking(batch(n).expect("fits"))
            .expect("durable");
    }
    assert_eq!(verify(&store), Ok(300));
}

#[test]
fn a_second_opener_is_told_who_has_the_directory() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let refused = Store::open(dir.path(), schema()).expect_err("it is taken");
    assert!(
        matches!(&refused, OpenError::Locked { holder, .. } if *holder == format!("process {}", std::process::id()))
    );
    assert!(refused.to_string().contains("stop it first"), "{refused}");
    drop(store);
    reopen(dir.path(), schema());
}

/// Opens once the committer of a store dropped a moment ago has ended.
fn reopen(dir: &Path, schema: Schema) -> Store {
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let lock = std::fs::File::open(dir.join("lock")).expect("lock file");
        if lock.try_lock().is_ok() {
            drop(lock);
            break;
        }
        std::thread::yield_now();
    }
    Store::open(dir, schema).expect("opens again")
}

#[test]
fn the_directory_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempdir().expect("dir");
    let inner = dir.path().join("a/b");
    let _store = Store::open(&inner, schema()).expect("opens");
    assert_eq!(
        std::fs::metadata(&inner)
            .expect("there")
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[tokio::test]
async fn a_stopped_store_writes_what_was_sent_and_nothing_more() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    let sent: Vec<_> = {
        let mut sent = Vec::new();
        for n in 1..=50 {
            sent.push(
                store
                    .reserve()
                    .await
                    .expect("a place")
                    .commit(batch(n).expect("fits")),
            );
        }
        sent
    };
    store.stop().await;
    for durable in sent {
        assert_eq!(durable.await, Ok(()));
    }
    assert_eq!(
        store.commit(batch(51).expect("fits")).await,
        Err(CommitError::Stopped)
    );
    assert_eq!(store.health(), Health::Stopped);
    store.stop().await;
    assert_eq!(verify(&store), Ok(50));
    drop(store);
    assert_eq!(
        verify(&Store::open(dir.path(), schema()).expect("free at once after stop")),
        Ok(50)
    );
}

#[test]
fn dropping_every_handle_still_writes_what_was_sent() {
    let dir = tempdir().expect("dir");
    let store = Store::open(dir.path(), schema()).expect("opens");
    for n in 1..=50 {
        let place = store.try_reserve().expect("sound").expect("room");
        drop(place.commit(batch(n).expect("fits")));
    }
    drop(store);
    assert_eq!(verify(&reopen(dir.path(), schema())), Ok(50));
}

const OLD: Table<u64, u64> = Table::new("ledger", 1);
const NEW: Table<u64, (u64, String)> = Table::new("ledger", 3);

static STEPS_RUN: AtomicU32 = AtomicU32::new(0);

const MIDDLE: Table<u64, (u64, u64)> = Table::new("ledger", 2);

fn to_second(view: &View<'_>, mut batch: Batch) -> Result<Batch, StepError> {
    STEPS_RUN.fetch_add(1, Ordering::SeqCst);
    for (key, value) in view.scan(&OLD, .., Order::Up, usize::MAX)? {
        batch = batch.put(&MIDDLE, &key, &(value, key))?;
    }
    Ok(batch)
}

fn to_third(view: &View<'_>, mut batch: Batch) -> Result<Batch, StepError> {
    STEPS_RUN.fetch_add(1, Ordering::SeqCst);
    for (key, value) in view.scan(&MIDDLE, .., Order::Up, usize::MAX)? {
        batch =
            batch
                .delete(&MIDDLE, &key)
                .put(&NEW, &(key + 1000), &(value.0, "moved".to_owned()))?;
    }
    Ok(batch)
}

fn refusing(_: &View<'_>, _: Batch) -> Result<Batch, StepError> {
    Err(StepError::Refused("these rows are odd".to_owned()))
}

#[test]
fn a_table_climbs_one_step_per_version_once_and_never_down() {
    let dir = tempdir().expect("dir");
    let old = || Schema::new().table(&OLD, &[]);
    let new = || Schema::new().table(&NEW, &[to_second, to_third]);
    let store = Store::open(dir.path(), old()).expect("opens");
    for n in 0..500 {
        store
            .commit_blocking(Batch::new().put(&OLD, &n, &(n * 2)).expect("fits"))
            .expect("durable");
    }
    drop(store);

    let stuck = Schema::new().table(&NEW, &[to_second, refusing]);
    let refused = {
        drop(reopen(dir.path(), old()));
        wait_free(dir.path());
        Store::open(dir.path(), stuck).expect_err("refused")
    };
    assert!(
        matches!(
            refused,
            OpenError::Migration {
                table: "ledger",
                from: 2,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(STEPS_RUN.load(Ordering::SeqCst), 1);

    for _ in 0..2 {
        let store = reopen(dir.path(), new());
        let rows = store.scan(&NEW, .., Order::Up, 10_000).expect("rows");
        assert_eq!(rows.len(), 500);
        assert_eq!(rows[7], (1007, (14, "moved".to_owned())));
        assert_eq!(STEPS_RUN.load(Ordering::SeqCst), 2, "each step ran once");
    }

    wait_free(dir.path());
    let refused = Store::open(dir.path(), old()).expect_err("newer");
    assert!(
        matches!(
            refused,
            OpenError::Newer {
                table: "ledger",
                stored: 3,
                known: 1
            }
        ),
        "{refused}"
    );
    let text = refused.to_string();
    assert!(text.contains('3') && text.contains('1'), "{text}");
}

fn wait_free(dir: &Path) {
    let lock = std::fs::File::open(dir.join("lock")).expect("lock file");
    lock.lock().expect("free in the end");
}

#[test]
fn a_directory_of_another_program_is_refused() {
    let dir = tempdir().expect("dir");
    drop(Store::open(dir.path(), schema()).expect("opens"));
    wait_free(dir.path());
    let refused = Store::open(dir.path(), Schema::new().table(&HEAD, &[])).expect_err("strange");
    assert!(
        matches!(&refused, OpenError::Strange { table, stored: 1 } if table == "rows"),
        "{refused}"
    );
}

/// A file size limit stands in for a full disk: the write of the database fails with an error.
#[test]
fn after_a_failed_write_the_store_refuses_and_keeps_what_it_acknowledged() {
    let dir = tempdir().expect("dir");
    let inner = Writer::command("child_fills_the_disk");
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 3000; exec \"$@\"", "limited"]);
    limited.arg(inner.get_program()).args(inner.get_args());
    let mut writer = Writer::start(limited, dir.path());
    writer.hear_out();
    let said = writer.said.join("\n");
    // Whoever was being written is told that it failed, unless nobody was.
    assert!(
        said.contains("first Failed") || said.contains("first Poisoned"),
        "{said}"
    );
    assert!(said.contains("second Err(Poisoned"), "{said}");
    assert!(said.contains("third Err(Poisoned"), "{said}");
    assert!(said.contains("health Poisoned"), "{said}");
    assert!(said.contains("stopped"), "{said}");
    assert!(writer.acked > 100, "{}", writer.acked);
    let store = Store::open(dir.path(), schema()).expect("opens once there is room");
    let head = verify(&store).expect("whole");
    assert!(
        head >= writer.acked,
        "{head} kept, {} acknowledged",
        writer.acked
    );
}
