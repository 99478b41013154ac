//! Who a node is: an ed25519 key. Also every label under which that key signs.
//!
//! A signature is made over `label ‖ 0x00 ‖ message`, so that bytes signed for one purpose can
//! never be shown as signed for another. A [`NodeId`] prints as the libp2p PeerId of its key.

mod known;

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::identity::known::KnownNode;

/// What a signature is for. The text is part of what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// A seller's offer ([`crate::offer`]).
    Offer,
    /// A seller's receipt ([`crate::receipt`]).
    Receipt,
}

impl Label {
    const fn text(self) -> &'static str {
        match self {
            Self::Offer => "farthing offer v1",
            Self::Receipt => "farthing receipt v1",
        }
    }

    fn prefix(self, message: &[u8]) -> Vec<u8> {
        let text = self.text().as_bytes();
        let mut bytes = Vec::with_capacity(text.len() + 1 + message.len());
        bytes.extend_from_slice(text);
        bytes.push(0);
        bytes.extend_from_slice(message);
        bytes
    }
}

/// The signature does not belong to this node and these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the signature was not made by node {0} over these bytes")]
pub struct BadSignature(pub NodeId);

/// The text is not a node's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a node id: expected the PeerId of an ed25519 key, such as 12D3KooW…")]
pub struct InvalidNodeId;

/// A 64-byte ed25519 signature as carried on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodeSignature(pub [u8; 64]);

impl fmt::Debug for NodeSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeSignature({}…)", alloy::hex::encode(&self.0[..4]))
    }
}

/// As hex in text formats, as raw bytes in binary ones.
impl Serialize for NodeSignature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        alloy::primitives::FixedBytes::from(self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for NodeSignature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        alloy::primitives::FixedBytes::<64>::deserialize(deserializer).map(|b| Self(b.0))
    }
}

/// The protobuf and multihash bytes in front of an ed25519 key in a PeerId (libp2p peer-ids spec).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// A node's public identity: its ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The id with these key bytes. Whether they are a valid point shows when verifying.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The public key's bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks a signature made by this node for this purpose.
    ///
    /// # Errors
    /// [`BadSignature`]; also for weak keys and non-canonical signatures (strict verification).
    pub fn verify(
        &self,
        label: Label,
        message: &[u8],
        signature: &NodeSignature,
    ) -> Result<(), BadSignature> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| BadSignature(*self))?;
        key.verify_strict(&label.prefix(message), &Signature::from_bytes(&signature.0))
            .map_err(|_| BadSignature(*self))
    }

    /// The last eight characters: what logs use.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        text.get(text.len().saturating_sub(8)..)
            .unwrap_or_default()
            .to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0_u8; 38];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        f.write_str(&bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = InvalidNodeId;

    fn from_str(text: &str) -> Result<Self, InvalidNodeId> {
        let mut bytes = [0_u8; 38];
        // A longer text cannot decode into 38 bytes, and base58 is quadratic in its length.
        if text.len() > 60 {
            return Err(InvalidNodeId);
        }
        let written = bs58::decode(text)
            .onto(&mut bytes)
            .map_err(|_| InvalidNodeId)?;
        if written != bytes.len() || bytes[..6] != PEER_ID_PREFIX {
            return Err(InvalidNodeId);
        }
        let mut key = [0_u8; 32];
        key.copy_from_slice(&bytes[6..]);
        Ok(Self(key))
    }
}

/// As the PeerId text in text formats, as 32 bytes in binary ones.
impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Self)
        }
    }
}

/// A node's secret identity. Zeroed when dropped; never printed.
pub struct NodeKey(SigningKey);

impl NodeKey {
    /// The key with this 32-byte secret seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The secret seed, for the network's own handshake.
    #[must_use]
    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public identity.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId(self.0.verifying_key().to_bytes())
    }

    /// Signs bytes for one purpose.
    #[must_use]
    pub fn sign(&self, label: Label, message: &[u8]) -> NodeSignature {
        NodeSignature(self.0.sign(&label.prefix(message)).to_bytes())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({}, secret)", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_for_one_purpose_is_refused_for_another() {
        let key = NodeKey::from_seed(&[7; 32]);
        let signature = key.sign(Label::Offer, b"bytes");
        assert_eq!(key.id().verify(Label::Offer, b"bytes", &signature), Ok(()));
        assert!(
            key.id()
                .verify(Label::Receipt, b"bytes", &signature)
                .is_err()
        );
        assert!(key.id().verify(Label::Offer, b"other", &signature).is_err());
        assert!(
            NodeKey::from_seed(&[8; 32])
                .id()
                .verify(Label::Offer, b"bytes", &signature)
                .is_err()
        );
    }

    #[test]
    fn an_id_survives_its_text() {
        let id = NodeKey::from_seed(&[7; 32]).id();
        assert!(id.to_string().starts_with("12D3KooW"));
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in [
            "",
            "12D3KooW",
            "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
            &"1".repeat(500),
        ] {
            assert_eq!(bad.parse::<NodeId>(), Err(InvalidNodeId));
        }
    }
}
