//! All receipts of one channel in their order, as a tree: what both ledgers append to and sign.
//!
//! Receipts enter by `seq` without gaps, each charging what it adds to the one before. So whoever
//! signs a root says of itself that its last receipt's total is the root's, and a receipt that
//! contradicts an earlier one is found here and nowhere else. Pure: no disk, no clock.

use std::collections::VecDeque;

use alloy::primitives::B256;

use crate::amount::Amount;
use crate::merkle::{Node, Peaks, leaf};
use crate::receipt::{Receipt, VerifiedReceipt};
use crate::root::ReceiptRoot;
use crate::x402::ChannelId;

/// Complete trees of so many levels and above are kept on disk ([`BLOCK`] leaves each): what lies
/// below is hashed again from its receipts when it is wanted.
pub const BLOCK_LEVEL: u8 = 6;
/// Receipts in the smallest tree that is kept. They are pruned together.
pub const BLOCK: u64 = 1 << BLOCK_LEVEL;
/// So many receipts that no signed root covers yet make a new root due.
pub const ROOT_EVERY: u64 = 64;
/// How far back a [`Trail`] can still say a root.
pub const TRAIL: usize = 64;

/// Why a receipt cannot be the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// It is another channel's.
    #[error("the receipt belongs to another channel")]
    Channel,
    /// It has another place.
    #[error("receipt {got} where {expected} is the next")]
    Place {
        /// The next one's place.
        expected: u64,
        /// The place it says.
        got: u64,
    },
    /// Its total does not follow from the one before.
    #[error(
        "the receipt says {got} atoms in all where the one before and its charge make {expected}"
    )]
    Total {
        /// What follows.
        expected: Amount,
        /// What it says.
        got: Amount,
    },
}

/// A receipt as the tree has it.
#[must_use]
pub fn leaf_of(receipt: &Receipt) -> B256 {
    leaf(receipt.struct_hash())
}

/// What of a receipt its place in the tree depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its leaf.
    pub leaf: B256,
    /// What it charges.
    pub charged: Amount,
    /// What it says is charged in all.
    pub cumulative: Amount,
}

impl Entry {
    /// Of a receipt.
    #[must_use]
    pub fn of(receipt: &Receipt) -> Self {
        Self {
            leaf: leaf_of(receipt),
            charged: receipt.charged,
            cumulative: receipt.cumulative,
        }
    }

    /// Of one that was checked, whose hash is known from that.
    #[must_use]
    pub fn of_checked(checked: &VerifiedReceipt) -> Self {
        Self {
            leaf: leaf(checked.hash()),
            charged: checked.receipt().charged,
            cumulative: checked.receipt().cumulative,
        }
    }
}

/// The receipts of a channel so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    channel: ChannelId,
    peaks: Peaks,
    /// What the last receipt says in all; nothing while there is none.
    total: Option<Amount>,
}

impl History {
    /// A channel without receipts.
    #[must_use]
    pub fn new(channel: ChannelId) -> Self {
        Self::resume(channel, Peaks::default(), None)
    }

    /// A channel whose receipts so far have these peaks, and whose last one says `total`.
    #[must_use]
    pub const fn resume(channel: ChannelId, peaks: Peaks, total: Option<Amount>) -> Self {
        Self {
            channel,
            peaks,
            total,
        }
    }

    /// How many receipts it has: the next one's `seq`.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.peaks.count()
    }

    /// The tree's peaks.
    #[must_use]
    pub const fn peaks(&self) -> &Peaks {
        &self.peaks
    }

    /// Appends the next receipt; the nodes to keep are what it completes from [`BLOCK_LEVEL`] up.
    ///
    /// # Errors
    /// [`Contradiction`]; nothing is changed.
    pub fn push(&mut self, receipt: &Receipt) -> Result<Vec<Node>, Contradiction> {
        self.place(receipt)?;
        self.append(&Entry::of(receipt))
    }

    /// Whether a receipt is at the next place of this channel.
    fn place(&self, receipt: &Receipt) -> Result<(), Contradiction> {
        if receipt.channel != self.channel {
            return Err(Contradiction::Channel);
        }
        let (expected, got) = (self.count(), receipt.seq);
        if got != expected {
            return Err(Contradiction::Place { expected, got });
        }
        Ok(())
    }

    /// Appends what is known to be the next receipt of this channel.
    ///
    /// # Errors
    /// [`Contradiction::Total`]; nothing is changed.
    pub fn append(&mut self, entry: &Entry) -> Result<Vec<Node>, Contradiction> {
        if let Some(total) = self.total {
            let expected = total.saturating_add(entry.charged);
            if entry.cumulative != expected {
                let got = entry.cumulative;
                return Err(Contradiction::Total { expected, got });
            }
        }
        let mut kept = Vec::new();
        self.peaks.push(entry.leaf, |node| {
            if node.level >= BLOCK_LEVEL {
                kept.push(node);
            }
        });
        self.total = Some(entry.cumulative);
        Ok(kept)
    }

    /// What to sign: the root over all receipts so far, with the last one's total. A channel
    /// without receipts has none.
    #[must_use]
    pub fn root(&self) -> Option<ReceiptRoot> {
        Some(ReceiptRoot {
            channel: self.channel,
            count: self.count(),
            cumulative: self.total?,
            root: self.peaks.root()?,
        })
    }
}

/// A history that can still say the roots of a little while ago: the other side may not have the
/// newest receipts yet.
#[derive(Debug, Clone)]
pub struct Trail {
    now: History,
    behind: History,
    /// What `now` has and `behind` has not.
    recent: VecDeque<Entry>,
}

impl From<History> for Trail {
    fn from(now: History) -> Self {
        Self {
            behind: now.clone(),
            now,
            recent: VecDeque::new(),
        }
    }
}

impl Trail {
    /// The history up to now.
    #[must_use]
    pub const fn now(&self) -> &History {
        &self.now
    }

    /// Appends the next receipt, as [`History::push`].
    ///
    /// # Errors
    /// [`Contradiction`]; nothing is changed.
    pub fn push(&mut self, receipt: &Receipt) -> Result<Vec<Node>, Contradiction> {
        self.now.place(receipt)?;
        let entry = Entry::of(receipt);
        let kept = self.now.append(&entry)?;
        self.recent.push_back(entry);
        if self.recent.len() > TRAIL
            && let Some(oldest) = self.recent.pop_front()
        {
            // It has followed in `now` from the same state.
            self.behind.append(&oldest)?;
        }
        Ok(kept)
    }

    /// The root over the first `count` receipts, if that is recent enough.
    #[must_use]
    pub fn root_at(&self, count: u64) -> Option<ReceiptRoot> {
        if count > self.now.count() {
            return None;
        }
        let more = usize::try_from(count.checked_sub(self.behind.count())?).ok()?;
        let mut then = self.behind.clone();
        for entry in self.recent.iter().take(more) {
            then.append(entry).ok()?;
        }
        then.root()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::merkle::Proof;
    use crate::offer::OfferHash;
    use crate::purchase::{Ending, RequestId, Usage};
    use proptest::prelude::*;

    const CHANNEL: ChannelId = ChannelId(B256::repeat_byte(7));

    fn receipt(seq: u64, charged: u128, cumulative: u128) -> Receipt {
        Receipt {
            channel: CHANNEL,
            seq,
            request: RequestId(B256::with_last_byte(1)),
            request_hash: B256::ZERO,
            response_hash: B256::ZERO,
            model_hash: B256::ZERO,
            offer: OfferHash(B256::ZERO),
            usage: Usage::default(),
            charged: Amount::atoms(charged),
            cumulative: Amount::atoms(cumulative),
            started: Timestamp(seq),
            finished: Timestamp(seq),
            ending: Ending::Complete,
        }
    }

    /// So many receipts that charge 3 each, on a channel that was charged 10 before.
    fn receipts(count: u64) -> Vec<Receipt> {
        let total = |seq: u64| 10 + 3 * u128::from(seq + 1);
        (0..count).map(|seq| receipt(seq, 3, total(seq))).collect()
    }

    #[test]
    fn a_root_says_the_total_of_its_last_receipt() {
        let mut history = History::new(CHANNEL);
        assert_eq!(history.root(), None);
        for receipt in receipts(200) {
            history.push(&receipt).expect("it is the next");
            let root = history.root().expect("there are receipts");
            assert_eq!(root.cumulative, receipt.cumulative);
            assert_eq!(root.count, receipt.seq + 1);
        }
    }

    #[test]
    fn a_receipt_that_contradicts_an_earlier_one_is_refused_and_changes_nothing() {
        let mut history = History::new(CHANNEL);
        history.push(&receipt(0, 3, 13)).expect("the first");
        let before = history.clone();
        let elsewhere = Receipt {
            channel: ChannelId(B256::ZERO),
            ..receipt(1, 3, 16)
        };
        assert_eq!(history.push(&elsewhere), Err(Contradiction::Channel));
        for (seq, total) in [(0, 16), (2, 16)] {
            let refused = history.push(&receipt(seq, 3, total));
            assert!(matches!(refused, Err(Contradiction::Place { .. })), "{seq}");
        }
        for total in [15, 17, 13, 0] {
            let refused = history.push(&receipt(1, 3, total));
            assert!(
                matches!(refused, Err(Contradiction::Total { .. })),
                "{total}"
            );
        }
        assert_eq!(history, before);
        history.push(&receipt(1, 3, 16)).expect("the true one");
    }

    #[test]
    fn a_trail_says_recent_roots_and_no_others() {
        let (mut trail, mut roots) = (Trail::from(History::new(CHANNEL)), Vec::new());
        for receipt in receipts(200) {
            trail.push(&receipt).expect("it is the next");
            roots.push(trail.now().root());
        }
        for (count, root) in (1..).zip(&roots) {
            let recent = count >= 200 - TRAIL as u64;
            assert_eq!(trail.root_at(count), root.filter(|_| recent), "{count}");
        }
        assert_eq!(trail.root_at(201), None);
        assert_eq!(trail.root_at(0), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn kept_nodes_and_the_last_block_are_enough_to_go_on_and_to_prove(count in 1..400_u64, at: prop::sample::Index) {
            let all = receipts(count);
            let (mut history, mut kept) = (History::new(CHANNEL), Vec::new());
            for receipt in &all {
                kept.extend(history.push(receipt).expect("it is the next"));
            }
            let block = |level: u8, index: u64| {
                if level >= BLOCK_LEVEL {
                    let found = kept.iter().find(|node| (node.level, node.index) == (level, index));
                    return found.map(|node| node.hash).ok_or("a node is missing");
                }
                let size = 1_u64 << level;
                let from = index * size;
                let mut small = Peaks::default();
                for seq in from..from + size {
                    small.push(leaf_of(&all[usize::try_from(seq).expect("small")]), |_| {});
                }
                small.root().ok_or("no leaf")
            };
            let read = Peaks::read(count, block);
            prop_assert_eq!(read.as_ref(), Ok(history.peaks()));
            let index = at.index(all.len());
            let proof = Proof::read(index as u64, count, block);
            let proof = proof.expect("all is there").expect("it is a leaf");
            let root = history.root().expect("there are receipts").root;
            prop_assert!(proof.verify(leaf_of(&all[index]), root));
        }
    }
}
