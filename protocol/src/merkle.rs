//! An append-only Merkle tree over hashes, of which only the peaks are kept.
//!
//! The shape is RFC 6962's: a tree of `n` leaves splits at the largest power of two below `n`. A
//! leaf is `keccak(0x00 ‖ content)` and a node `keccak(0x01 ‖ left ‖ right)`, so neither can be
//! shown as the other, and a leaf is bound to its place. The **peaks** are the roots of the
//! complete trees that `n` leaves fall into, one for each bit of `n`: all that is needed to append
//! and to say the root. A complete tree of `2^level` leaves, the `index`th of its size, is a
//! [`Node`]; once complete it never changes, so nodes can be kept to prove old leaves cheaply.
//!
//! Pure and total: no count, index or path makes it fail but by saying so.

use alloy::primitives::{B256, Keccak256};
use serde::{Deserialize, Serialize};

/// The longest path there can be: one hash for each bit of a count.
pub const MAX_PATH: usize = 64;

/// A leaf over some content's hash.
#[must_use]
pub fn leaf(content: B256) -> B256 {
    let mut hash = Keccak256::new();
    hash.update([0x00]);
    hash.update(content);
    hash.finalize()
}

/// The node above two others.
#[must_use]
pub fn node(left: B256, right: B256) -> B256 {
    let mut hash = Keccak256::new();
    hash.update([0x01]);
    hash.update(left);
    hash.update(right);
    hash.finalize()
}

/// The root of a complete tree: the `index`th of those with `2^level` leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its height above the leaves.
    pub level: u8,
    /// Its place among those of its level.
    pub index: u64,
    /// Its hash.
    pub hash: B256,
}

/// The peaks of a tree: its largest complete trees, from left to right.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peaks {
    count: u64,
    hashes: Vec<B256>,
}

impl Peaks {
    /// The tree of `count` leaves with these peaks, largest first; `None` when that many leaves
    /// have another number of peaks.
    #[must_use]
    pub fn new(count: u64, hashes: Vec<B256>) -> Option<Self> {
        let fits = hashes.len() == count.count_ones() as usize;
        fits.then_some(Self { count, hashes })
    }

    /// The tree of `count` leaves, whose complete parts `block` knows by level and index.
    ///
    /// # Errors
    /// What `block` says.
    pub fn read<E>(count: u64, block: impl FnMut(u8, u64) -> Result<B256, E>) -> Result<Self, E> {
        let hashes = blocks(0, count, block)?;
        Ok(Self { count, hashes })
    }

    /// How many leaves there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The peaks, largest first.
    #[must_use]
    pub fn hashes(&self) -> &[B256] {
        &self.hashes
    }

    /// Appends a leaf and tells `complete` of every node it completes, the leaf itself first.
    /// A tree that is full (2^64 − 1 leaves) stays as it is.
    pub fn push(&mut self, leaf: B256, mut complete: impl FnMut(Node)) {
        let Some(count) = self.count.checked_add(1) else {
            return;
        };
        let mut made = Node {
            level: 0,
            index: self.count,
            hash: leaf,
        };
        complete(made);
        // Each set bit at the end of the count is a peak as large as what was just made.
        while made.index & 1 == 1 {
            let Some(left) = self.hashes.pop() else {
                break;
            };
            made = Node {
                level: made.level.saturating_add(1),
                index: made.index >> 1,
                hash: node(left, made.hash),
            };
            complete(made);
        }
        self.hashes.push(made.hash);
        self.count = count;
    }

    /// The root; an empty tree has none.
    #[must_use]
    pub fn root(&self) -> Option<B256> {
        bag(&self.hashes)
    }
}

/// The root over peaks, largest first.
fn bag(peaks: &[B256]) -> Option<B256> {
    let mut peaks = peaks.iter().rev();
    let last = *peaks.next()?;
    Some(peaks.fold(last, |right, left| node(*left, right)))
}

/// The complete trees that `count` leaves from `from` on fall into. `from` is a multiple of a
/// power of two that is at least `count`.
fn blocks<E>(
    from: u64,
    count: u64,
    mut block: impl FnMut(u8, u64) -> Result<B256, E>,
) -> Result<Vec<B256>, E> {
    let (mut at, mut hashes) = (from, Vec::with_capacity(count.count_ones() as usize));
    for level in (0..64_u8).rev() {
        let size = 1_u64 << level;
        if count & size != 0 {
            hashes.push(block(level, at >> level)?);
            at = at.saturating_add(size);
        }
    }
    Ok(hashes)
}

/// Shows that a leaf is in a tree, at its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The leaf's place, from 0.
    pub index: u64,
    /// Leaves of the tree.
    pub count: u64,
    /// The hashes beside the way up, from the leaf on.
    pub path: Vec<B256>,
}

impl Proof {
    /// The proof of leaf `index` among `count`, where `block` knows every complete tree by level
    /// and index. It is asked for at most 2 · 64 of them. `None` when there is no such leaf.
    ///
    /// # Errors
    /// What `block` says.
    pub fn read<E>(
        index: u64,
        count: u64,
        mut block: impl FnMut(u8, u64) -> Result<B256, E>,
    ) -> Result<Option<Self>, E> {
        if index >= count {
            return Ok(None);
        }
        let (mut from, mut size, mut path) = (0_u64, count, Vec::new());
        while size > 1 {
            // The largest power of two below `size`.
            let half = 1_u64 << (size - 1).ilog2();
            let middle = from.saturating_add(half);
            let beside = if index < middle {
                let right = blocks(middle, size - half, &mut block)?;
                size = half;
                right
            } else {
                let left = blocks(from, half, &mut block)?;
                (from, size) = (middle, size - half);
                left
            };
            path.extend(bag(&beside));
        }
        path.reverse();
        Ok(Some(Self { index, count, path }))
    }

    /// The root that follows from `leaf` being at its place; `None` when the path does not fit
    /// index and count.
    #[must_use]
    pub fn root(&self, leaf: B256) -> Option<B256> {
        if self.index >= self.count || self.path.len() > MAX_PATH {
            return None;
        }
        let (mut at, mut last, mut hash) = (self.index, self.count - 1, leaf);
        for beside in &self.path {
            if last == 0 {
                return None;
            }
            if at & 1 == 1 || at == last {
                hash = node(*beside, hash);
                // On the right edge a level without a neighbour adds nothing.
                let up = if at & 1 == 1 { 0 } else { at.trailing_zeros() };
                at = at.checked_shr(up).unwrap_or(0);
                last = last.checked_shr(up).unwrap_or(0);
            } else {
                hash = node(hash, *beside);
            }
            at >>= 1;
            last >>= 1;
        }
        (last == 0).then_some(hash)
    }

    /// Whether it shows `leaf` under `root`.
    #[must_use]
    pub fn verify(&self, leaf: B256, root: B256) -> bool {
        self.root(leaf) == Some(root)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use proptest::prelude::*;

    fn content(n: u64) -> B256 {
        leaf(B256::from(alloy::primitives::U256::from(n)))
    }

    fn leaves(count: u64) -> Vec<B256> {
        (0..count).map(content).collect()
    }

    /// RFC 6962's definition, word for word: slow, and nothing shared with what is tested.
    fn definition(leaves: &[B256]) -> B256 {
        match leaves {
            [] => B256::ZERO,
            [one] => *one,
            more => {
                let mut half = 1;
                while half * 2 < more.len() {
                    half *= 2;
                }
                node(definition(&more[..half]), definition(&more[half..]))
            }
        }
    }

    fn block(leaves: &[B256]) -> impl FnMut(u8, u64) -> Result<B256, Infallible> + '_ {
        |level, index| {
            let size = 1_usize << level;
            let from = usize::try_from(index).expect("small") * size;
            Ok(definition(&leaves[from..from + size]))
        }
    }

    fn grown(leaves: &[B256]) -> Peaks {
        let mut peaks = Peaks::default();
        for leaf in leaves {
            peaks.push(*leaf, |_| {});
        }
        peaks
    }

    fn proof(leaves: &[B256], index: u64) -> Proof {
        let count = leaves.len() as u64;
        let Ok(proof) = Proof::read(index, count, block(leaves));
        proof.expect("the leaf is there")
    }

    #[test]
    fn every_leaf_of_every_small_tree_is_proven_and_no_other_is() {
        for count in 1..=40_u64 {
            let all = leaves(count);
            let root = definition(&all);
            assert_eq!(grown(&all).root(), Some(root), "{count}");
            for index in 0..count {
                let proof = proof(&all, index);
                for (at, leaf) in all.iter().enumerate() {
                    let own = at as u64 == index;
                    assert_eq!(proof.verify(*leaf, root), own, "{at} by {index} of {count}");
                }
            }
        }
    }

    #[test]
    fn a_proof_says_nothing_of_another_place_count_or_root() {
        let all = leaves(13);
        let root = definition(&all);
        for index in 0..13 {
            let good = proof(&all, index);
            let leaf = all[usize::try_from(index).expect("small")];
            let with = |index, count| Proof {
                index,
                count,
                ..good.clone()
            };
            for other in (0..16).filter(|other| *other != index) {
                assert!(!with(other, 13).verify(leaf, root), "{other} for {index}");
            }
            let mut longer = good.clone();
            longer.path.push(B256::ZERO);
            assert!(!longer.verify(leaf, root));
            let mut shorter = good.clone();
            shorter.path.pop();
            assert!(!shorter.verify(leaf, root));
            assert!(!good.verify(leaf, definition(&leaves(12))));
        }
    }

    #[test]
    fn an_empty_tree_has_no_root_and_no_proof() {
        assert_eq!(Peaks::default().root(), None);
        let Ok(none) = Proof::read(0, 0, block(&[]));
        assert_eq!(none, None);
        let nothing = Proof {
            index: 0,
            count: 0,
            path: Vec::new(),
        };
        assert_eq!(nothing.root(content(0)), None);
    }

    #[test]
    fn extreme_numbers_are_answered_and_do_not_panic() {
        for (index, count) in [
            (u64::MAX - 1, u64::MAX),
            (0, u64::MAX),
            (u64::MAX, u64::MAX),
        ] {
            for len in [0, 1, 63, 64, 65] {
                let path = vec![B256::ZERO; len];
                let proof = Proof { index, count, path };
                let bound = proof
                    .root(B256::ZERO)
                    .is_none_or(|_| index < count && len < 65);
                assert!(bound, "{proof:?}");
            }
        }
        let Ok(path) = Proof::read(u64::MAX - 1, u64::MAX, |_, _| {
            Ok::<_, Infallible>(B256::ZERO)
        });
        assert!(path.is_some_and(|proof| proof.path.len() <= MAX_PATH));
        let mut full = Peaks::new(u64::MAX, vec![B256::ZERO; 64]).expect("64 bits");
        full.push(B256::ZERO, |_| {});
        assert_eq!(full.count(), u64::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn peaks_of_any_length_agree_with_the_whole_tree(count in 1..300_u64, seed: u64) {
            let all: Vec<_> = (0..count).map(|n| content(n.wrapping_mul(seed | 1))).collect();
            let peaks = grown(&all);
            prop_assert_eq!(peaks.root(), Some(definition(&all)));
            let Ok(read) = Peaks::read(count, block(&all));
            prop_assert_eq!(&read, &peaks);
            prop_assert_eq!(Peaks::new(count, peaks.hashes().to_vec()), Some(peaks.clone()));
            prop_assert_eq!(Peaks::new(count + 1, vec![]), None);
        }

        #[test]
        fn nodes_are_told_once_each_when_they_are_complete(count in 1..200_u64) {
            let all = leaves(count);
            let (mut peaks, mut told) = (Peaks::default(), Vec::new());
            for leaf in &all {
                peaks.push(*leaf, |node| told.push(node));
            }
            for node in &told {
                let Ok(hash) = block(&all)(node.level, node.index);
                prop_assert_eq!(node.hash, hash);
            }
            let expected: u64 = (0..64).map(|level| count >> level).sum();
            prop_assert_eq!(told.len() as u64, expected);
        }

        #[test]
        fn what_was_proven_under_an_older_root_stays_a_prefix(old in 1..300_u64, more in 0..300_u64) {
            // Append-only: the tree of more leaves, cut at the old count, has the old root.
            let all = leaves(old + more);
            let Ok(cut) = Peaks::read(old, block(&all));
            let prefix: Vec<_> = all.iter().take(usize::try_from(old).expect("small")).copied().collect();
            prop_assert_eq!(cut.root(), Some(definition(&prefix)));
        }

        #[test]
        fn a_tampered_path_proves_nothing(count in 2..300_u64, at: prop::sample::Index, place: prop::sample::Index, bit in 0..256_usize) {
            let all = leaves(count);
            let index = at.index(all.len());
            let mut proof = proof(&all, index as u64);
            let place = place.index(proof.path.len());
            proof.path[place].0[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!proof.verify(all[index], definition(&all)));
        }
    }
}
