//! A node that signs again and again: what is the same for each of its signatures is worked out
//! once.
//!
//! A signature `(R, s)` of the key `A` over a message holds when `R = s·B − k·A`, where `k` hashes
//! all three. Multiplying takes most of the time of checking, and both points are known before: of
//! each the curve's library makes a table, from which a product is a few dozen additions. What is
//! believed is what [`NodeId::verify`] believes, and the tests ask both.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use curve25519_dalek::edwards::{EdwardsBasepointTable, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::BasepointTable;
use ed25519_dalek::VerifyingKey;
use sha2::{Digest, Sha512};

use crate::identity::{BadSignature, Label, NodeId, NodeSignature};

/// After how many checks a table of a node's key is worth its making, and its 30 kB.
const WORTH: u8 = 16;

/// A node whose signatures are checked often. It is the same as its id, and checks alike.
pub struct KnownNode {
    id: NodeId,
    checks: AtomicU8,
    table: OnceLock<Option<Box<EdwardsBasepointTable>>>,
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

    fn holds(
        &self,
        table: &EdwardsBasepointTable,
        message: &[u8],
        signature: &NodeSignature,
    ) -> bool {
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
        let due = EdwardsPoint::mul_base(&response) + table * &Scalar::from_hash(hash);
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

/// The table of a node's key, negated; none of a key that strict verification refuses.
fn minus(id: NodeId) -> Option<Box<EdwardsBasepointTable>> {
    let key = VerifyingKey::from_bytes(id.as_bytes()).ok()?;
    (!key.is_weak()).then(|| Box::new(EdwardsBasepointTable::create(&-key.to_edwards())))
}

#[cfg(test)]
mod tests;
