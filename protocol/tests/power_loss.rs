//! Cuts the power: ext4 on a loop device, shut down under the writer without flushing its
//! journal (`FS_IOC_SHUTDOWN`, `NOLOGFLUSH`), mounted again and checked. What was acknowledged
//! must be there.
//!
//! Needs root, loop devices, `mkfs.ext4` and `python3` (for one ioctl), so it skips, and says so,
//! unless `FARTHING_POWER_LOSS=1`. `FARTHING_POWER_ROUNDS` (default 25), `FARTHING_SEED`.

#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]
#![allow(clippy::panic, reason = "a failed assertion says where and why")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use farthing_protocol::store::Store;

#[path = "store/workload.rs"]
mod workload;

use workload::{CHILD_DIR, Dice, Writer, say, schema, verify};

/// `_IOR('X', 125, u32)` and `EXT4_GOING_FLAGS_NOLOGFLUSH`, from the kernel's ext4 interface.
const SHUTDOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";

/// Not a test: the child that other tests start and kill.
#[test]
fn child_writes_until_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(workload::write_until_killed(Path::new(&dir)));
}

/// A file system in a file, unmounted however the test ends.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    fn new(dir: &Path) -> Self {
        let disk = Self {
            image: dir.join("disk.img"),
            mount: dir.join("mnt"),
        };
        let image = std::fs::File::create(&disk.image).expect("image");
        image.set_len(512 * 1024 * 1024).expect("image");
        std::fs::create_dir(&disk.mount).expect("mount point");
        run(Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&disk.image));
        disk
    }

    fn mount(&self) {
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&self.image)
            .arg(&self.mount));
    }

    fn cut_power(&self) {
        run(Command::new("python3")
            .args(["-c", SHUTDOWN])
            .arg(&self.mount));
    }

    fn unmount(&self) {
        run(Command::new("umount").arg(&self.mount));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // It is mounted only if the test failed half-way.
        Command::new("umount")
            .args(["-q", "-l"])
            .arg(&self.mount)
            .status()
            .ok();
    }
}

fn run(command: &mut Command) {
    let status = command
        .status()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(status.success(), "{command:?}: {status}");
}

#[test]
fn no_acknowledged_batch_is_lost_to_a_power_cut() {
    if std::env::var("FARTHING_POWER_LOSS").as_deref() != Ok("1") {
        say("SKIPPED: the power-loss test needs root and loop devices; set FARTHING_POWER_LOSS=1");
        return;
    }
    let number = |name, default| {
        std::env::var(name)
            .ok()
            .and_then(|t| t.parse().ok())
            .unwrap_or(default)
    };
    let (rounds, seed) = (
        number("FARTHING_POWER_ROUNDS", 25),
        number("FARTHING_SEED", 1),
    );
    let dir = tempfile::tempdir().expect("dir");
    let disk = Disk::new(dir.path());
    let data = disk.mount.join("data");
    let mut dice = Dice(seed);
    let (mut kept, mut acked) = (0, 0);
    for round in 0..rounds {
        disk.mount();
        let mut writer = Writer::start(Writer::command("child_writes_until_killed"), &data);
        // Some rounds are long enough to fill the journal's halves several times.
        let moment = 1 + dice.roll(if round % 3 == 0 { 6000 } else { 300 });
        while writer.hear() && writer.acked < kept + moment {}
        std::thread::sleep(Duration::from_micros(dice.roll(20_000)));
        disk.cut_power();
        writer.child.kill().ok();
        writer.hear_out();
        acked += writer.acked.saturating_sub(kept);
        disk.unmount();

        disk.mount();
        let store = Store::open(&data, schema())
            .unwrap_or_else(|e| panic!("round {round}, seed {seed}: {e}"));
        let head = verify(&store).unwrap_or_else(|e| panic!("round {round}, seed {seed}: {e}"));
        assert!(
            writer.acked > 0,
            "round {round}: nothing written: {:?}",
            writer.said
        );
        assert!(
            head >= writer.acked,
            "round {round}, seed {seed}: {} acknowledged, {head} kept",
            writer.acked
        );
        kept = head;
        drop(store);
        std::fs::File::open(data.join("lock"))
            .expect("lock")
            .lock()
            .expect("free in the end");
        disk.unmount();
    }
    say(&format!(
        "{rounds} power cuts, {acked} batches acknowledged, {kept} kept, none lost"
    ));
}
