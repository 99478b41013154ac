//! One word over all receipts of a channel so far, signed by both sides.
//!
//! A receipt alone is evidence for people: its ed25519 signature is dear to check on chain. A
//! [`ReceiptRoot`] is the root of a Merkle tree ([`crate::merkle`]) over a channel's receipts,
//! signed by the buyer's voucher key and by the seller's claim key, which the channel's id binds.
//! Any one of the receipts can then be shown to a contract with one path of hashes.

use alloy::primitives::{Address, B256};
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::eip712::{Domain, EvmSignature, SignatureError, Signed, Typed};
use crate::x402::{ChannelConfig, ChannelId, Network};

mod sol_types {
    alloy::sol! {
        struct ReceiptRoot {
            bytes32 channelId;
            uint64 count;
            uint128 cumulative;
            bytes32 root;
        }
    }
}

/// The domain's name.
pub const DOMAIN: &str = "Inference Receipts";

/// The domain in which roots over a network's receipts are signed.
#[must_use]
pub fn domain(network: &Network) -> Domain {
    Domain::new(DOMAIN, "1", network.chain_id, network.settlement)
}

/// The first `count` receipts of a channel, as one hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptRoot {
    /// The channel.
    pub channel: ChannelId,
    /// How many receipts it covers: those with `seq` below it. Not zero.
    pub count: u64,
    /// What the last of them says the channel was charged in all.
    pub cumulative: Amount,
    /// The root of the tree over them.
    pub root: B256,
}

impl Typed for ReceiptRoot {
    type Sol = sol_types::ReceiptRoot;

    fn to_sol(&self) -> Self::Sol {
        sol_types::ReceiptRoot {
            channelId: self.channel.0,
            count: self.count,
            cumulative: self.cumulative.get(),
            root: self.root,
        }
    }
}

/// A root with one side's signature.
pub type SignedRoot = Signed<ReceiptRoot>;

/// What a seller answers to a buyer's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootWord {
    /// The same by our books: the claim key's signature over it.
    Signed(EvmSignature),
    /// It cannot be compared now: too far back, or ahead of what we have.
    Later,
    /// Another one by our books: ours, with the claim key's signature. One side is wrong, and the
    /// signed receipts show which.
    Differs(SignedRoot),
    /// It is not signed by the channel's key.
    Foreign,
}

/// A root with both signatures: what a contract believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoSigned {
    /// What both say.
    pub root: ReceiptRoot,
    /// By the channel's `payerAuthorizer`.
    pub buyer: EvmSignature,
    /// By the channel's `receiverAuthorizer`.
    pub seller: EvmSignature,
}

/// Why a co-signed root is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotCoSigned {
    /// It is about another channel.
    #[error("the root is of another channel than the one with these terms")]
    Channel,
    /// The buyer's signature.
    #[error("the buyer did not sign it: {0}")]
    Buyer(SignatureError),
    /// The seller's signature.
    #[error("the seller did not sign it: {0}")]
    Seller(SignatureError),
}

impl CoSigned {
    /// Checks both signatures against the keys in the channel's terms.
    ///
    /// # Errors
    /// [`NotCoSigned`].
    pub fn verify(&self, config: &ChannelConfig, network: &Network) -> Result<(), NotCoSigned> {
        if config.id(network) != self.root.channel {
            return Err(NotCoSigned::Channel);
        }
        let domain = domain(network);
        let by = |signature: EvmSignature, signer: Address| {
            let message = self.root;
            Signed { message, signature }.verify(&domain, signer)
        };
        by(self.buyer, config.payer_authorizer).map_err(NotCoSigned::Buyer)?;
        by(self.seller, config.receiver_authorizer).map_err(NotCoSigned::Seller)?;
        Ok(())
    }
}
