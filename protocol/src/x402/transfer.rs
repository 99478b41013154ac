//! A payment in full: what scheme `exact` signs.
//!
//! Source: EIP-3009 `transferWithAuthorization`, x402 v1 and v2 `exact` on EVM.

use alloy::primitives::{Address, B256, U256};
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::eip712::{Signed, Typed};

mod sol_types {
    alloy::sol! {
        struct TransferWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }
    }
}

/// The payer's permission to move exactly so much to one address, once. It is signed in the
/// token's own domain ([`crate::x402::Network::token_domain`]); anyone may submit it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Who pays, and signs.
    pub from: Address,
    /// Who is paid.
    pub to: Address,
    /// Atoms.
    pub amount: Amount,
    /// Seconds since the epoch, exclusive.
    pub valid_after: u64,
    /// Seconds since the epoch, exclusive.
    pub valid_before: u64,
    /// Chosen by the payer; the token takes each only once
    /// ([`crate::chain::Chain::authorization_used`]).
    pub nonce: B256,
}

impl Typed for Transfer {
    type Sol = sol_types::TransferWithAuthorization;

    fn to_sol(&self) -> Self::Sol {
        sol_types::TransferWithAuthorization {
            from: self.from,
            to: self.to,
            value: U256::from(self.amount.get()),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce,
        }
    }
}

/// A transfer with the signature of its `from`.
pub type SignedTransfer = Signed<Transfer>;

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::sol_types::SolStruct;

    #[test]
    fn the_type_is_that_of_eip_3009() {
        // keccak256 of the type's text, as published with EIP-3009.
        let typehash =
            alloy::hex!("7c7c6cdb67a18743f49ec6fa9b35f50d52ed05cbed4cc592e13b44501c1a2267");
        let hash = alloy::primitives::keccak256(
            sol_types::TransferWithAuthorization::eip712_encode_type().as_bytes(),
        );
        assert_eq!(hash, typehash);
    }
}
