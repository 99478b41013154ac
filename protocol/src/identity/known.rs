//! A node that signs again and again: what is the same for each of its signatures is worked out
//! once.
//!
//! A signature `(R, s)` of the key `A` over a message holds when `R = s·B − k·A`, where `k` hashes
//! all three. Multiplying takes most of the time of checking, and both points are known before: of
//! each a table of multiples is kept, from which a product is a few dozen additions and no
//! doubling. What is believed is what [`NodeId::verify`] believes, and the tests ask both.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity;
use ed25519_dalek::VerifyingKey;
use sha2::{Digest, Sha512};

use crate::identity::{BadSignature, Label, NodeId, NodeSignature};

/// After how many checks a table is worth its making, which takes as long as about ten of them.
const WORTH: u8 = 16;
/// Bits of the digits for the base point, whose table is made once.
const BASE: usize = 6;
/// And for a node's key: 133 kB each.
const KEY: usize = 5;

/// A node whose signatures are checked often. It is the same as its id, and checks alike.
pub struct KnownNode {
    id: NodeId,
    checks: AtomicU8,
    table: OnceLock<Option<Multiples>>,
}

impl KnownNode {
    /// Nothing is worked out yet.
    #[must_use]
    pub const fn new(id: NodeId) -> Self {
        Self {
            id,
            checks: AtomicU8::new(0),
            table: OnceLock::new(),
        }
    }

    /// Who it is.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// Checks a signature as [`NodeId::verify`] does.
    ///
    /// # Errors
    /// [`BadSignature`].
    pub fn verify(
        &self,
        label: Label,
        message: &[u8],
        signature: &NodeSignature,
    ) -> Result<(), BadSignature> {
        // A race loses a count, no more.
        let checks = self.checks.load(Ordering::Relaxed);
        if checks < WORTH {
            self.checks.store(checks + 1, Ordering::Relaxed);
            return self.id.verify(label, message, signature);
        }
        match self.table.get_or_init(|| minus(self.id)) {
            Some(table) if self.holds(table, &label.prefix(message), signature) => Ok(()),
            Some(_) => Err(BadSignature(self.id)),
            None => self.id.verify(label, message, signature),
        }
    }

    fn holds(&self, table: &Multiples, message: &[u8], signature: &NodeSignature) -> bool {
        let (Some(commitment), Some(response)) = (
            signature.0.first_chunk::<32>(),
            signature.0.last_chunk::<32>(),
        ) else {
            return false;
        };
        let response = Scalar::from_canonical_bytes(*response);
        let Some(response) = Option::<Scalar>::from(response) else {
            return false;
        };
        let hash = Sha512::new()
            .chain_update(commitment)
            .chain_update(self.id.as_bytes())
            .chain_update(message);
        let due = base().times(&response) + table.times(&Scalar::from_hash(hash));
        // Equal bytes: `R` is written as it must be, and is of small order if `due` is.
        !due.is_small_order() && due.compress().as_bytes() == commitment
    }
}

/// Two are the same when they are the same node.
impl PartialEq for KnownNode {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for KnownNode {}

impl std::fmt::Debug for KnownNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KnownNode({})", self.id)
    }
}

/// The multiples of a node's key, negated; none of a key that strict verification refuses.
fn minus(id: NodeId) -> Option<Multiples> {
    let key = VerifyingKey::from_bytes(id.as_bytes()).ok()?;
    (!key.is_weak()).then(|| Multiples::of(-key.to_edwards(), KEY))
}

fn base() -> &'static Multiples {
    static TABLE: OnceLock<Multiples> = OnceLock::new();
    TABLE.get_or_init(|| Multiples::of(ED25519_BASEPOINT_POINT, BASE))
}

/// The multiples of a point that a scalar is made of: for each digit of so many bits, from one to
/// the half of the digit's range; more than half is one more of the next digit, and less of this.
struct Multiples {
    bits: usize,
    digits: Vec<Vec<EdwardsPoint>>,
}

impl Multiples {
    /// Of one point, for digits of two to eight bits.
    fn of(point: EdwardsPoint, bits: usize) -> Self {
        let mut unit = point;
        let digit = |_| {
            let mut multiple = EdwardsPoint::identity();
            let row = (0..1_usize << (bits - 1)).map(|_| {
                multiple += unit;
                multiple
            });
            let row: Vec<_> = row.collect();
            // The last is half of the next digit's unit.
            unit = multiple + multiple;
            row
        };
        // A digit above all, for what is carried.
        let digits = (0..=256 / bits).map(digit).collect();
        Self { bits, digits }
    }

    /// A product. Takes longer or shorter by the scalar, which is no secret.
    fn times(&self, scalar: &Scalar) -> EdwardsPoint {
        let bytes = scalar.as_bytes();
        let mut carried = 0_usize;
        let mut sum = EdwardsPoint::identity();
        for (place, row) in self.digits.iter().enumerate() {
            let digit = window(bytes, place * self.bits, self.bits) + carried;
            carried = usize::from(digit > row.len());
            if carried == 0 {
                if let Some(multiple) = digit.checked_sub(1).and_then(|nth| row.get(nth)) {
                    sum += multiple;
                }
            } else {
                let less = (1 << self.bits) - digit;
                if let Some(multiple) = less.checked_sub(1).and_then(|nth| row.get(nth)) {
                    sum -= multiple;
                }
            }
        }
        sum
    }
}

/// So many bits, at most eight, from this one on.
fn window(bytes: &[u8; 32], from: usize, bits: usize) -> usize {
    let at = |place: usize| bytes.get(place).map_or(0, |byte| usize::from(*byte));
    let pair = at(from / 8) | (at(from / 8 + 1) << 8);
    (pair >> (from % 8)) & ((1 << bits) - 1)
}

#[cfg(test)]
mod tests;
