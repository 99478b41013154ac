//! What can go wrong at the chain's door, sorted by what the caller does next.

use alloy::primitives::{Address, B256};

/// Why the chain did not do as asked.
///
/// [`ChainError::Unavailable`] means *nothing is known*: wait and ask again. Everything else is
/// an answer, and asking again without a change brings the same one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No node answered in time, or not in words we know. A transaction sent meanwhile may or may
    /// not have arrived.
    #[error("no chain node answers ({0}); check `chain.rpc`, the call is tried again later")]
    Unavailable(String),
    /// As the chain stands, the call fails. The name is the contract's error
    /// (`ClaimExceedsBalance`), its message, or the selector in hex.
    #[error("the contract refuses: {name}")]
    Reverted {
        /// The error's name.
        name: String,
    },
    /// A node serves another chain than the network we trade on.
    #[error("{url} serves chain {got}, not {expected}; name a node of chain {expected}")]
    WrongChain {
        /// The node that was asked.
        url: String,
        /// The network's chain id.
        expected: u64,
        /// The node's chain id.
        got: u64,
    },
    /// Nothing is deployed where a contract should be (calls there would "succeed").
    #[error("no {what} at {address} on this chain; check the network's addresses")]
    ContractAbsent {
        /// Its name: `settlement contract`, `deposit collector`, `token`, …
        what: &'static str,
        /// Where it should be.
        address: Address,
    },
    /// What stands at the settlement address names channels otherwise than we do.
    #[error(
        "{0} is not an x402 batch-settlement contract of this chain; check the settlement address"
    )]
    SettlementDomain(Address),
    /// Deposits would be signed in a domain the token does not use.
    #[error(
        "token {token} does not sign as \"{expected}\" but says it is \"{got}\"; correct the token's name and version"
    )]
    TokenDomain {
        /// The token.
        token: Address,
        /// Our name and version.
        expected: String,
        /// The token's own.
        got: String,
    },
    /// The account cannot pay for the gas.
    #[error("{account} holds {balance} wei but may need {needed} for gas; send it some")]
    GasShort {
        /// Who signs the transaction.
        account: Address,
        /// The most the transaction may cost, in wei.
        needed: u128,
        /// What the account holds, in wei.
        balance: u128,
    },
    /// Another transaction with this nonce is already mined.
    #[error("the nonce is already used by another transaction; prepare anew")]
    NonceUsed,
    /// It offers less than the chain asks, or not enough more than another transaction with this
    /// nonce, which waits.
    #[error(
        "the chain asks for higher fees, or a waiting transaction with this nonce pays more; offer more"
    )]
    Underpriced,
    /// The node will not take the transaction, in its own words.
    #[error("the chain node refuses the transaction: {0}")]
    Refused(String),
    /// Not mined deep enough by the deadline; it may still be.
    #[error("transaction {0} is not confirmed yet; it may still be mined")]
    Unconfirmed(B256),
    /// The configuration cannot be used.
    #[error("chain configuration: {0}")]
    Config(String),
}

impl ChainError {
    pub(super) fn reverted(name: impl Into<String>) -> Self {
        Self::Reverted { name: name.into() }
    }

    /// True when nothing is known and the same call may succeed later.
    #[must_use]
    pub const fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}
