//! A workload whose every state is known: after batch `n` the tables hold exactly what [`verify`]
//! computes from `n`, so a reopened store shows at once what was lost, torn or reordered.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farthing_protocol::store::{Batch, BatchError, Order, Schema, Store, Table};

/// The number of the latest batch.
pub(crate) const HEAD: Table<(), u64> = Table::new("head", 1);
/// The latest [`KEPT`] batches, inserted and later deleted.
pub(crate) const ROWS: Table<u64, (u64, Vec<u8>)> = Table::new("rows", 1);
/// Overwritten all the time.
pub(crate) const SLOTS: Table<(u8, u64), (u64, Vec<u8>)> = Table::new("slots", 1);

/// How many rows stay.
pub(crate) const KEPT: u64 = 400;
const SLOT_COUNT: u64 = 64;
const WRITERS: u64 = 8;

/// The environment variable that turns a test binary into the writing child.
pub(crate) const CHILD_DIR: &str = "FARTHING_STORE_CHILD_DIR";

pub(crate) fn schema() -> Schema {
    Schema::new()
        .table(&HEAD, &[])
        .table(&ROWS, &[])
        .table(&SLOTS, &[])
}

/// A small generator: the same seed, the same run.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }
}

/// Bytes that only batch `n` writes: mostly some hundred, at times almost two thousand.
fn filling(n: u64) -> Vec<u8> {
    let mut dice = Dice(n);
    let len = if dice.roll(10) == 0 {
        1900
    } else {
        50 + dice.roll(500)
    };
    (0..len)
        .map(|_| u8::try_from(dice.roll(256)).unwrap_or(0))
        .collect()
}

/// Batch number `n`, from 1.
pub(crate) fn batch(n: u64) -> Result<Batch, BatchError> {
    let value = (n, filling(n));
    let batch = Batch::new()
        .put(&ROWS, &n, &value)?
        .put(&SLOTS, &(7, n % SLOT_COUNT), &value)?
        .put(&HEAD, &(), &n)?;
    Ok(if n > KEPT {
        batch.delete(&ROWS, &(n - KEPT))
    } else {
        batch
    })
}

/// The number of the latest batch, when the store holds exactly what all batches up to it leave.
pub(crate) fn verify(store: &Store) -> Result<u64, String> {
    let head = store
        .get(&HEAD, &())
        .map_err(|e| e.to_string())?
        .unwrap_or(0);
    let first = head.saturating_sub(KEPT) + 1;
    let expected: Vec<_> = (first..=head).map(|n| (n, (n, filling(n)))).collect();
    let rows = store
        .scan(&ROWS, .., Order::Up, 10_000)
        .map_err(|e| e.to_string())?;
    if rows != expected {
        let numbers: Vec<u64> = rows.iter().map(|row| row.0).collect();
        return Err(format!("rows are {numbers:?}, expected {first}..={head}"));
    }
    let slots = store
        .scan_prefix(&SLOTS, &7_u8, Order::Up, 1000)
        .map_err(|e| e.to_string())?;
    for slot in 0..SLOT_COUNT {
        let latest = (0..SLOT_COUNT.min(head))
            .map(|back| head - back)
            .find(|n| n % SLOT_COUNT == slot);
        let held = slots
            .iter()
            .find(|row| row.0 == (7, slot))
            .map(|row| row.1.clone());
        if held != latest.map(|n| (n, filling(n))) {
            return Err(format!(
                "slot {slot} holds {:?}, expected {latest:?}",
                held.map(|h| h.0)
            ));
        }
    }
    Ok(head)
}

/// Writes from several tasks until killed or until a write fails; prints each number once its
/// batch is durable. Returns the error.
pub(crate) async fn write_until_killed(dir: &Path) -> String {
    let store = Store::open(dir, schema()).expect("the child opens the store");
    let next = Arc::new(Mutex::new(
        verify(&store).expect("the child finds the store whole"),
    ));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| tokio::spawn(write(store.clone(), next.clone())))
        .collect();
    let mut last = String::new();
    for writer in writers {
        last = writer.await.expect("a writer ends");
    }
    last
}

async fn write(store: Store, next: Arc<Mutex<u64>>) -> String {
    loop {
        let permit = match store.reserve().await {
            Ok(permit) => permit,
            Err(e) => return e.to_string(),
        };
        let (n, durable) = {
            let mut next = next.lock().expect("no writer panicked");
            *next += 1;
            (*next, permit.commit(batch(*next).expect("fits")))
        };
        if let Err(e) = durable.await {
            return e.to_string();
        }
        say(&format!("acked {n}"));
    }
}

/// One line to whoever started us, in one write.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())
        .expect("the parent reads");
    out.flush().expect("the parent reads");
}

/// A child of this very test binary that runs the test `name` with `dir` in its environment.
pub(crate) struct Writer {
    pub(crate) child: Child,
    lines: Receiver<String>,
    /// The largest number acknowledged so far.
    pub(crate) acked: u64,
    /// Other lines it printed.
    pub(crate) said: Vec<String>,
}

impl Writer {
    pub(crate) fn start(mut command: Command, dir: &Path) -> Self {
        let mut child = command
            .env(CHILD_DIR, dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the child starts");
        let out = child.stdout.take().expect("a pipe");
        let (sender, lines) = sync_channel(65_536);
        std::thread::spawn(move || {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            acked: 0,
            said: Vec::new(),
        }
    }

    /// The command that runs one test of this binary and shows what it prints.
    pub(crate) fn command(test: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("this binary"));
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
        command
    }

    /// Waits for the next line; false when there will be none.
    pub(crate) fn hear(&mut self) -> bool {
        let Ok(line) = self.lines.recv_timeout(Duration::from_secs(60)) else {
            return false;
        };
        match line.strip_prefix("acked ").and_then(|n| n.parse().ok()) {
            Some(n) => self.acked = self.acked.max(n),
            None => self.said.push(line),
        }
        true
    }

    /// Takes all that it still has to say, until its end of the pipe is closed.
    pub(crate) fn hear_out(&mut self) {
        while self.hear() {}
        self.child.wait().expect("the child ends");
    }
}
