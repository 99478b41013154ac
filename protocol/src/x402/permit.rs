//! A payment of at most so much: what scheme `upto` signs.
//!
//! Source: Permit2 `PermitWitnessTransferFrom`, x402 v2 `upto` on EVM. The payer has to approve
//! [`PERMIT2`] in the token once; each permit is then taken by the proxy at [`UPTO_PROXY`], in
//! the facilitator's transaction and no other's.

use alloy::primitives::{Address, U256, address};
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::eip712::{Domain, Signed, Typed};

/// Permit2, at the same address on every chain.
pub const PERMIT2: Address = address!("000000000022D473030F116dDEE9F6B43aC78BA3");
/// The proxy that takes `upto` permits, at the same address on every chain.
pub const UPTO_PROXY: Address = address!("4020A4f3b7b90ccA423B9fabCc0CE57C6C240002");

mod sol_types {
    alloy::sol! {
        struct TokenPermissions {
            address token;
            uint256 amount;
        }

        struct Witness {
            address to;
            address facilitator;
            uint256 validAfter;
        }

        struct PermitWitnessTransferFrom {
            TokenPermissions permitted;
            address spender;
            uint256 nonce;
            uint256 deadline;
            Witness witness;
        }
    }
}

/// The payer's permission to take up to so much, once, for one receiver, by one facilitator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit {
    /// Who pays, and signs.
    pub owner: Address,
    /// In which token.
    pub token: Address,
    /// At most so many atoms.
    pub ceiling: Amount,
    /// Chosen by the payer; Permit2 takes each only once, in any order
    /// ([`crate::chain::Chain::permit_used`]).
    pub nonce: U256,
    /// Seconds since the epoch, inclusive.
    pub deadline: u64,
    /// Who is paid.
    pub to: Address,
    /// Who alone may take it, and so learns before others what is taken.
    pub facilitator: Address,
    /// Seconds since the epoch, inclusive.
    pub valid_after: u64,
}

impl Permit {
    /// The domain in which permits are signed.
    #[must_use]
    pub fn domain(chain_id: u64) -> Domain {
        Domain::unversioned("Permit2", chain_id, PERMIT2)
    }
}

impl Typed for Permit {
    type Sol = sol_types::PermitWitnessTransferFrom;

    fn to_sol(&self) -> Self::Sol {
        sol_types::PermitWitnessTransferFrom {
            permitted: sol_types::TokenPermissions {
                token: self.token,
                amount: U256::from(self.ceiling.get()),
            },
            spender: UPTO_PROXY,
            nonce: self.nonce,
            deadline: U256::from(self.deadline),
            witness: sol_types::Witness {
                to: self.to,
                facilitator: self.facilitator,
                validAfter: U256::from(self.valid_after),
            },
        }
    }
}

/// A permit with the signature of its owner.
pub type SignedPermit = Signed<Permit>;

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::sol_types::SolStruct;

    #[test]
    fn the_type_is_the_one_that_permit2_puts_together() {
        let text = "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,\
                    uint256 nonce,uint256 deadline,Witness witness)\
                    TokenPermissions(address token,uint256 amount)\
                    Witness(address to,address facilitator,uint256 validAfter)";
        assert_eq!(
            sol_types::PermitWitnessTransferFrom::eip712_encode_type(),
            text
        );
    }
}
