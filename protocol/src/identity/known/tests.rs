use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

use super::*;
use crate::identity::NodeKey;

const MESSAGE: &[u8] = b"what is signed";

/// One whose table is in use.
fn known(id: NodeId) -> KnownNode {
    let node = KnownNode::new(id);
    node.checks.store(WORTH, Ordering::Relaxed);
    node
}

/// What both say, which is one thing.
fn verdict(id: NodeId, message: &[u8], signature: &NodeSignature) -> bool {
    let slow = id.verify(Label::Receipt, message, signature);
    let fast = known(id).verify(Label::Receipt, message, signature);
    assert_eq!(slow, fast, "{id} {signature:?}");
    fast.is_ok()
}

/// A signature over [`MESSAGE`] with this commitment, whose response satisfies the equation as far
/// as the part of `key` without torsion goes.
fn forged(
    key: &SigningKey,
    public: [u8; 32],
    commitment: [u8; 32],
    nonce: Scalar,
) -> NodeSignature {
    let hash = Sha512::new()
        .chain_update(commitment)
        .chain_update(public)
        .chain_update(Label::Receipt.prefix(MESSAGE));
    let response = nonce + Scalar::from_hash(hash) * key.to_scalar();
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&commitment);
    bytes[32..].copy_from_slice(response.as_bytes());
    NodeSignature(bytes)
}

/// The encodings of points of small order: as they must be, with the sign of zero, and with `y`
/// not reduced.
fn small_orders() -> Vec<[u8; 32]> {
    let mut all: Vec<[u8; 32]> = EIGHT_TORSION
        .iter()
        .map(|point| point.compress().to_bytes())
        .collect();
    // p, p + 1: zero and one once more.
    for low in [0xed, 0xee] {
        let mut bytes = [0xff; 32];
        (bytes[0], bytes[31]) = (low, 0x7f);
        all.push(bytes);
    }
    let signed = all.clone().into_iter().map(|mut bytes| {
        bytes[31] ^= 0x80;
        bytes
    });
    all.extend(signed);
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_signature_with_one_bit_changed_holds_for_neither(seed in any::<[u8; 32]>(), bit in 0_usize..512) {
        let key = NodeKey::from_seed(&seed);
        let mut signature = key.sign(Label::Receipt, MESSAGE);
        prop_assert!(verdict(key.id(), MESSAGE, &signature));
        prop_assert!(!verdict(key.id(), b"another", &signature));
        signature.0[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!verdict(key.id(), MESSAGE, &signature));
    }
}

#[test]
fn the_first_checks_and_those_by_the_table_say_the_same() {
    let key = NodeKey::from_seed(&[7; 32]);
    let node = KnownNode::new(key.id());
    let good = key.sign(Label::Receipt, MESSAGE);
    let other = key.sign(Label::Offer, MESSAGE);
    for _ in 0..2 * WORTH {
        assert_eq!(node.verify(Label::Receipt, MESSAGE, &good), Ok(()));
        assert_eq!(
            node.verify(Label::Receipt, MESSAGE, &other),
            Err(BadSignature(key.id()))
        );
    }
    assert!(node.table.get().is_some_and(Option::is_some));
}

#[test]
fn a_key_of_small_order_or_none_signs_nothing() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let mut odd = small_orders();
    // No point has this y.
    odd.push([2; 32]);
    for public in odd {
        for commitment in small_orders() {
            let signature = forged(&key, public, commitment, Scalar::ZERO);
            assert!(!verdict(NodeId::from_bytes(public), MESSAGE, &signature));
            let mut zero = signature;
            zero.0[32..].fill(0);
            assert!(!verdict(NodeId::from_bytes(public), MESSAGE, &zero));
        }
    }
}

#[test]
fn a_commitment_of_small_order_is_refused_though_the_equation_holds() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let public = key.verifying_key().to_bytes();
    let id = NodeId::from_bytes(public);
    for commitment in small_orders() {
        let signature = forged(&key, public, commitment, Scalar::ZERO);
        assert!(!verdict(id, MESSAGE, &signature));
    }
    // The same with a nonce is a signature.
    let nonce = Scalar::from(5_u64);
    let commitment = (ED25519_BASEPOINT_POINT * nonce).compress().to_bytes();
    assert!(verdict(
        id,
        MESSAGE,
        &forged(&key, public, commitment, nonce)
    ));
}

#[test]
fn a_response_that_is_not_reduced_is_refused() {
    let key = NodeKey::from_seed(&[7; 32]);
    let mut signature = key.sign(Label::Receipt, MESSAGE);
    let order = -Scalar::ONE;
    let mut carried = 1;
    for (byte, more) in signature.0[32..].iter_mut().zip(order.as_bytes()) {
        let sum = u16::from(*byte) + u16::from(*more) + carried;
        (*byte, carried) = (sum as u8, sum >> 8);
    }
    assert!(!verdict(key.id(), MESSAGE, &signature));
}

#[test]
fn keys_and_commitments_with_a_part_of_small_order_are_judged_alike() {
    let key = SigningKey::from_bytes(&[7; 32]);
    let (mut held, mut refused) = (0, 0);
    for nonce in 1..=8_u64 {
        let nonce = Scalar::from(nonce);
        for beside_key in &EIGHT_TORSION {
            let public = key.verifying_key().to_edwards() + beside_key;
            let public = public.compress().to_bytes();
            for beside in &EIGHT_TORSION {
                let commitment = ED25519_BASEPOINT_POINT * nonce + beside;
                let commitment = commitment.compress().to_bytes();
                let signature = forged(&key, public, commitment, nonce);
                match verdict(NodeId::from_bytes(public), MESSAGE, &signature) {
                    true => held += 1,
                    false => refused += 1,
                }
            }
        }
    }
    assert!(held > 0 && refused > 0, "{held} held, {refused} refused");
}

#[test]
fn a_key_that_is_not_reduced_is_judged_alike() {
    let key = SigningKey::from_bytes(&[7; 32]);
    // y + p, for the y that are small enough.
    for y in 0..19_u8 {
        for sign in [0x7f, 0xff] {
            let mut public = [0xff; 32];
            (public[0], public[31]) = (0xed + y, sign);
            let nonce = Scalar::from(5_u64);
            let commitment = (ED25519_BASEPOINT_POINT * nonce).compress().to_bytes();
            let signature = forged(&key, public, commitment, nonce);
            assert!(!verdict(NodeId::from_bytes(public), MESSAGE, &signature));
            // Nor is it accepted as a commitment, of small order or not.
            let mut bytes = forged(&key, public, public, nonce);
            assert!(!verdict(NodeId::from_bytes(public), MESSAGE, &bytes));
            let own = NodeId::from_bytes(key.verifying_key().to_bytes());
            bytes = forged(&key, *own.as_bytes(), public, Scalar::ZERO);
            assert!(!verdict(own, MESSAGE, &bytes));
        }
    }
}
