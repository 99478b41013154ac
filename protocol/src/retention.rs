//! How long receipts are kept, and where they go: pure rules, and one file per day.
//!
//! Receipts leave the books in whole blocks of [`BLOCK`] from the beginning of a channel, so that
//! the nodes kept above them carry the tree on. What money or a proof still hangs on never goes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::amount::Amount;
use crate::clock::Timestamp;
use crate::history::BLOCK;
use crate::offer::MAX_LIFETIME;
use crate::receipt::Receipt;

/// However full the books are, no receipt goes sooner: the request it names could be asked for
/// again under the same offer.
pub const MIN_AGE: Duration = Duration::from_secs(4 * MAX_LIFETIME.as_secs());

/// What is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Receipts older than this go.
    pub keep: Duration,
    /// When there are more than so many, older ones go sooner.
    pub most: u64,
}

/// How far a channel's receipts are safe to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// So many are under a root that both sides have signed.
    pub covered: u64,
    /// How many there are.
    pub count: u64,
    /// Claimed on chain.
    pub claimed: Amount,
}

impl Retention {
    /// Whether a block of receipts may go. `full` says that there are more than `most`.
    #[must_use]
    pub fn may_go(&self, block: &[Receipt], reach: &Reach, full: bool, now: Timestamp) -> bool {
        let covered = |end: u64| end <= reach.covered;
        whole(block, reach).is_some_and(covered) && self.is_old(block, full, now)
    }

    /// Whether a block may go of a channel whose buyer has never signed a root, and by its age
    /// alone: it will hardly begin now. To be archived: with the nodes that are kept above it, that
    /// is what proves a receipt should a root come after all.
    #[must_use]
    pub fn may_go_unsigned(&self, block: &[Receipt], reach: &Reach, now: Timestamp) -> bool {
        let never = reach.covered == 0;
        never && whole(block, reach).is_some() && self.is_old(block, false, now)
    }

    /// Whether these receipts are all older than what is kept. `full` says that there are more than
    /// `most`.
    #[must_use]
    pub fn is_old(&self, receipts: &[Receipt], full: bool, now: Timestamp) -> bool {
        let age = if full {
            MIN_AGE
        } else {
            self.keep.max(MIN_AGE)
        };
        let mut all = receipts.iter();
        all.all(|it| now.since(it.finished) >= age)
    }
}

/// The end of a whole block on which no money hangs and behind which there is more: the last
/// receipt's total is where the tree goes on from.
fn whole(block: &[Receipt], reach: &Reach) -> Option<u64> {
    let (first, last) = block.first().zip(block.last())?;
    let end = last.seq.saturating_add(1);
    let whole = block.len() as u64 == BLOCK && first.seq % BLOCK == 0;
    let straight = end.checked_sub(first.seq) == Some(BLOCK);
    let safe = end < reach.count && last.cumulative <= reach.claimed;
    (whole && straight && safe).then_some(end)
}

/// Files that pruned receipts are appended to, as lines, before they leave the books.
#[derive(Debug, Clone)]
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Files in this directory, which is made when it is first needed.
    #[must_use]
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Appends rows as lines of JSON, beside the runtime's threads, and returns when they are on
    /// disk.
    ///
    /// # Errors
    /// As [`Archive::append`].
    pub async fn keep<T: Serialize>(&self, day: u64, rows: &[T]) -> io::Result<()> {
        let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
        let (archive, lines) = (self.clone(), lines.map_err(io::Error::other)?);
        let written = tokio::task::spawn_blocking(move || archive.append(day, &lines)).await;
        written.map_err(io::Error::other)?
    }

    /// Appends lines to the file of a day, and returns when they are on disk. A crash between this
    /// and the pruning writes them once more.
    ///
    /// # Errors
    /// What the system says.
    pub fn append(&self, day: u64, lines: &[String]) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir)?;
        let path = self.dir.join(format!("receipts-{day:06}.jsonl"));
        let fresh = !path.exists();
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).mode(0o600).open(path)?;
        let mut text = lines.join("\n");
        text.push('\n');
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        if fresh {
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offer::OfferHash;
    use crate::purchase::{Ending, RequestId, Usage};
    use crate::x402::ChannelId;
    use alloy::primitives::B256;

    const NOW: Timestamp = Timestamp(1_767_225_600_000);
    const DAY: Duration = Duration::from_secs(86_400);
    const RULE: Retention = Retention {
        keep: Duration::from_secs(86_400),
        most: 1_000,
    };

    fn block(from: u64, age: Duration) -> Vec<Receipt> {
        let millis = u64::try_from(age.as_millis()).expect("small");
        let receipt = |seq: u64| Receipt {
            channel: ChannelId(B256::ZERO),
            seq,
            request: RequestId(B256::ZERO),
            request_hash: B256::ZERO,
            response_hash: B256::ZERO,
            model_hash: B256::ZERO,
            offer: OfferHash(B256::ZERO),
            usage: Usage::default(),
            charged: Amount::atoms(1),
            cumulative: Amount::atoms(u128::from(seq) + 1),
            started: NOW,
            finished: Timestamp(NOW.0 - millis),
            ending: Ending::Complete,
        };
        (from..from + BLOCK).map(receipt).collect()
    }

    fn reach(covered: u64, count: u64, claimed: u128) -> Reach {
        Reach {
            covered,
            count,
            claimed: Amount::atoms(claimed),
        }
    }

    #[test]
    fn only_what_is_old_claimed_and_under_a_root_goes() {
        let old = block(64, DAY * 2);
        let good = reach(128, 200, 128);
        assert!(RULE.may_go(&old, &good, false, NOW));
        assert!(
            !RULE.may_go(&old, &reach(127, 200, 128), true, NOW),
            "not covered"
        );
        assert!(
            !RULE.may_go(&old, &reach(128, 128, 128), true, NOW),
            "the last one"
        );
        assert!(
            !RULE.may_go(&old, &reach(128, 200, 127), true, NOW),
            "not claimed"
        );
        assert!(!RULE.may_go(&[], &good, true, NOW));
        assert!(!RULE.may_go(&old[1..], &good, true, NOW), "half a block");
        let mut gap = old;
        gap.last_mut().expect("a block").seq += 1;
        assert!(!RULE.may_go(&gap, &reach(200, 300, 200), true, NOW));
    }

    #[test]
    fn without_any_root_only_what_is_older_than_all_that_is_kept_goes() {
        let old = block(64, DAY * 2);
        assert!(!RULE.may_go(&old, &reach(0, 200, 128), true, NOW));
        assert!(RULE.may_go_unsigned(&old, &reach(0, 200, 128), NOW));
        let young = block(64, DAY / 2);
        assert!(!RULE.may_go_unsigned(&young, &reach(0, 200, 128), NOW));
        for (reach, why) in [
            (reach(1, 200, 128), "it does sign roots"),
            (reach(0, 128, 128), "the last one"),
            (reach(0, 200, 127), "not claimed"),
        ] {
            assert!(!RULE.may_go_unsigned(&old, &reach, NOW), "{why}");
        }
    }

    #[test]
    fn what_is_too_many_goes_sooner_but_never_within_an_offers_life() {
        let young = block(0, DAY / 2);
        let good = reach(64, 200, 64);
        assert!(!RULE.may_go(&young, &good, false, NOW));
        assert!(RULE.may_go(&young, &good, true, NOW));
        assert!(!RULE.may_go(&block(0, MIN_AGE / 2), &good, true, NOW));
        let hasty = Retention {
            keep: Duration::ZERO,
            ..RULE
        };
        assert!(!hasty.may_go(&block(0, MIN_AGE / 2), &good, false, NOW));
        assert!(MIN_AGE > MAX_LIFETIME);
    }

    #[test]
    fn an_archive_grows_by_lines() {
        let dir = tempfile::tempdir().expect("a directory");
        let archive = Archive::new(dir.path().join("receipts"));
        for line in ["one", "two"] {
            archive.append(7, &[line.to_owned()]).expect("writes");
        }
        let text = std::fs::read_to_string(dir.path().join("receipts/receipts-000007.jsonl"));
        assert_eq!(text.expect("reads"), "one\ntwo\n");
    }
}
