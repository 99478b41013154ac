//! The seller's signed statement of one purchase.
//!
//! A receipt is an EIP-712 struct, so that a contract can check one later, signed by the seller's
//! ed25519 node key over its struct hash. `seq` counts the receipts of a channel without gaps and
//! `cumulative` is what the channel is charged after this one.

use std::sync::OnceLock;

use alloy::primitives::{B256, keccak256};
use alloy::sol_types::SolStruct;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::clock::Timestamp;
use crate::eip712::Typed;
use crate::identity::{BadSignature, KnownNode, Label, NodeId, NodeKey, NodeSignature};
use crate::offer::OfferHash;
use crate::purchase::{Ending, RequestId, Usage};
use crate::x402::ChannelId;

mod sol_types {
    alloy::sol! {
        struct Receipt {
            bytes32 channelId;
            uint64 seq;
            bytes32 requestId;
            bytes32 requestHash;
            bytes32 responseHash;
            bytes32 modelId;
            bytes32 termsHash;
            uint32 promptTokens;
            uint32 cachedTokens;
            uint32 completionTokens;
            uint128 charged;
            uint128 cumulative;
            uint64 startedAtMs;
            uint64 finishedAtMs;
            uint8 status;
        }
    }
}

/// What was bought and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The channel that pays.
    pub channel: ChannelId,
    /// This receipt's place among the channel's, from 0 without gaps.
    pub seq: u64,
    /// The purchase.
    pub request: RequestId,
    /// keccak-256 of the request body as asked.
    pub request_hash: B256,
    /// keccak-256 of the delivered chunks, concatenated.
    pub response_hash: B256,
    /// keccak-256 of the model id.
    pub model_hash: B256,
    /// The offer whose prices applied.
    pub offer: OfferHash,
    /// Tokens.
    pub usage: Usage,
    /// What this purchase cost.
    pub charged: Amount,
    /// What the channel is charged in all, after this purchase.
    pub cumulative: Amount,
    /// When the seller admitted the purchase.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// How it ended.
    pub ending: Ending,
}

/// How a model is named in a receipt: keccak-256 of its id.
#[must_use]
pub fn model_hash(model: &str) -> B256 {
    keccak256(model.as_bytes())
}

impl Receipt {
    /// `hashStruct`: what is signed, and the leaf content of a receipt tree.
    #[must_use]
    pub fn struct_hash(&self) -> B256 {
        static KIND: OnceLock<B256> = OnceLock::new();
        let sol = self.to_sol();
        // As `eip712_hash_struct` does, but for the hash of the type, which is always the same.
        let kind = KIND.get_or_init(|| sol.eip712_type_hash());
        let mut data = Vec::with_capacity(16 * 32);
        data.extend_from_slice(kind.as_slice());
        data.extend_from_slice(&sol.eip712_encode_data());
        keccak256(&data)
    }

    /// The receipt with the seller's signature.
    #[must_use]
    pub fn sign(self, key: &NodeKey) -> SignedReceipt {
        let signature = key.sign(Label::Receipt, self.struct_hash().as_slice());
        SignedReceipt {
            receipt: self,
            seller: key.id(),
            signature,
        }
    }
}

impl Typed for Receipt {
    type Sol = sol_types::Receipt;

    fn to_sol(&self) -> Self::Sol {
        sol_types::Receipt {
            channelId: self.channel.0,
            seq: self.seq,
            requestId: self.request.0,
            requestHash: self.request_hash,
            responseHash: self.response_hash,
            modelId: self.model_hash,
            termsHash: self.offer.0,
            promptTokens: self.usage.prompt,
            cachedTokens: self.usage.cached,
            completionTokens: self.usage.completion,
            charged: self.charged.get(),
            cumulative: self.cumulative.get(),
            startedAtMs: self.started.0,
            finishedAtMs: self.finished.0,
            status: self.ending as u8,
        }
    }
}

/// A receipt with a signature nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedReceipt {
    /// What is claimed.
    pub receipt: Receipt,
    /// Who claims to be the seller.
    pub seller: NodeId,
    /// The claimed signature.
    pub signature: NodeSignature,
}

impl SignedReceipt {
    /// The receipt, if this seller signed it.
    ///
    /// # Errors
    /// [`BadSignature`], also when `seller` is not who the receipt names.
    pub fn verify(self, seller: NodeId) -> Result<VerifiedReceipt, BadSignature> {
        self.verify_by(&KnownNode::new(seller))
    }

    /// The same, for a seller that signs many.
    ///
    /// # Errors
    /// As [`Self::verify`].
    pub fn verify_by(self, seller: &KnownNode) -> Result<VerifiedReceipt, BadSignature> {
        if self.seller != seller.id() {
            return Err(BadSignature(seller.id()));
        }
        let hash = self.receipt.struct_hash();
        seller.verify(Label::Receipt, hash.as_slice(), &self.signature)?;
        Ok(VerifiedReceipt { signed: self, hash })
    }
}

/// A receipt whose signature was checked by [`SignedReceipt::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReceipt {
    signed: SignedReceipt,
    hash: B256,
}

impl VerifiedReceipt {
    /// What the seller states.
    #[must_use]
    pub const fn receipt(&self) -> &Receipt {
        &self.signed.receipt
    }

    /// Its [`Receipt::struct_hash`], which was signed.
    #[must_use]
    pub const fn hash(&self) -> B256 {
        self.hash
    }

    /// With its signature, for keeping.
    #[must_use]
    pub const fn signed(&self) -> &SignedReceipt {
        &self.signed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_hashes_as_the_struct_it_is() {
        let mut receipt = Receipt {
            channel: ChannelId(B256::repeat_byte(1)),
            seq: 7,
            request: RequestId(B256::repeat_byte(2)),
            request_hash: B256::repeat_byte(3),
            response_hash: B256::repeat_byte(4),
            model_hash: model_hash("a/b"),
            offer: OfferHash(B256::repeat_byte(5)),
            usage: Usage::default(),
            charged: Amount::atoms(9),
            cumulative: Amount::atoms(10),
            started: Timestamp(1),
            finished: Timestamp(2),
            ending: Ending::Complete,
        };
        for seq in [0, u64::MAX] {
            receipt.seq = seq;
            let whole = receipt.to_sol().eip712_hash_struct();
            assert_eq!(receipt.struct_hash(), whole);
        }
    }
}
