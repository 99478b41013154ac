//! One receipt with all that a stranger needs to believe it: the channel's terms, the root that
//! both sides signed, and the path from one to the other.
//!
//! It is checked here as the contract checks it (`protocol/contracts/src/ReceiptProof.sol`), in the
//! same order, and written as a call of that contract.

use alloy::primitives::Bytes;
use alloy::primitives::aliases::U40;
use alloy::sol_types::SolCall;
use serde::{Deserialize, Serialize};

use crate::eip712::Typed;
use crate::history::leaf_of;
use crate::merkle::Proof;
use crate::receipt::SignedReceipt;
use crate::root::{CoSigned, NotCoSigned};
use crate::x402::{ChannelConfig, Network};

mod sol_types {
    alloy::sol! {
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }

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

        struct Root {
            bytes32 channelId;
            uint64 count;
            uint128 cumulative;
            bytes32 root;
        }

        struct Proof {
            Receipt receipt;
            Root root;
            bytes32[] path;
            bytes buyer;
            bytes seller;
        }

        function verify(ChannelConfig channel, Proof proof) external view;
    }
}

/// What is wrong with the evidence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Receipt or root is another channel's.
    #[error("the receipt is of another channel than the one with these terms")]
    Channel,
    /// The receipt is not among those the root covers.
    #[error("receipt {seq} is not among the first {count}")]
    Place {
        /// The receipt's place.
        seq: u64,
        /// What the root covers.
        count: u64,
    },
    /// The totals cannot both be true.
    #[error("the receipt's total does not fit the root's")]
    Total,
    /// The path does not lead from the receipt to the root.
    #[error("the path does not lead from the receipt to the root")]
    Path,
    /// A signature under the root.
    #[error(transparent)]
    Signature(NotCoSigned),
    /// The node's own signature. A contract does not look at it.
    #[error("the receipt is not signed by the node it names")]
    Node,
}

/// A receipt that can be proven.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Where the money lives.
    pub network: Network,
    /// The channel's terms.
    pub channel: ChannelConfig,
    /// The receipt, as the seller's node signed it.
    pub signed: SignedReceipt,
    /// The root over it, as both sides signed it.
    pub root: CoSigned,
    /// The way from the receipt to the root.
    pub proof: Proof,
}

impl Evidence {
    /// Checks everything, as the contract does, and the node's signature.
    ///
    /// # Errors
    /// The first [`Flaw`].
    pub fn verify(&self) -> Result<(), Flaw> {
        let (receipt, root) = (&self.signed.receipt, &self.root.root);
        let id = self.channel.id(&self.network);
        if receipt.channel != id || root.channel != id {
            return Err(Flaw::Channel);
        }
        let (seq, count) = (receipt.seq, root.count);
        if seq >= count || (self.proof.index, self.proof.count) != (seq, count) {
            return Err(Flaw::Place { seq, count });
        }
        let last = seq.saturating_add(1) == count;
        let fits = if last {
            receipt.cumulative == root.cumulative
        } else {
            receipt.cumulative <= root.cumulative
        };
        if !fits || receipt.charged > receipt.cumulative {
            return Err(Flaw::Total);
        }
        if !self.proof.verify(leaf_of(receipt), root.root) {
            return Err(Flaw::Path);
        }
        let cosigned = self.root.verify(&self.channel, &self.network);
        cosigned.map_err(Flaw::Signature)?;
        let signed = self.signed.clone().verify(self.signed.seller);
        signed.map(drop).map_err(|_| Flaw::Node)
    }

    /// A call of `ReceiptVerifier.verify`, which reverts unless the proof holds.
    #[must_use]
    pub fn calldata(&self) -> Bytes {
        let receipt = self.signed.receipt.to_sol();
        let (terms, root) = (&self.channel, &self.root);
        let call = sol_types::verifyCall {
            channel: sol_types::ChannelConfig {
                payer: terms.payer,
                payerAuthorizer: terms.payer_authorizer,
                receiver: terms.receiver,
                receiverAuthorizer: terms.receiver_authorizer,
                token: terms.token,
                withdrawDelay: U40::saturating_from(terms.withdraw_delay),
                salt: terms.salt,
            },
            proof: sol_types::Proof {
                receipt: sol_types::Receipt {
                    channelId: receipt.channelId,
                    seq: receipt.seq,
                    requestId: receipt.requestId,
                    requestHash: receipt.requestHash,
                    responseHash: receipt.responseHash,
                    modelId: receipt.modelId,
                    termsHash: receipt.termsHash,
                    promptTokens: receipt.promptTokens,
                    cachedTokens: receipt.cachedTokens,
                    completionTokens: receipt.completionTokens,
                    charged: receipt.charged,
                    cumulative: receipt.cumulative,
                    startedAtMs: receipt.startedAtMs,
                    finishedAtMs: receipt.finishedAtMs,
                    status: receipt.status,
                },
                root: sol_types::Root {
                    channelId: root.root.channel.0,
                    count: root.root.count,
                    cumulative: root.root.cumulative.get(),
                    root: root.root.root,
                },
                path: self.proof.path.clone(),
                buyer: root.buyer.to_bytes(),
                seller: root.seller.to_bytes(),
            },
        };
        call.abi_encode().into()
    }
}
