//! The settlement contract's words: x402 `batch-settlement` on EVM.
//!
//! A channel is named by the EIP-712 hash of its [`ChannelConfig`], which binds chain, contract,
//! token and both parties: a voucher on it can be replayed nowhere else. Source: x402 v2,
//! scheme `batch-settlement`; types and addresses as in `docs/payments.md`.

mod consent;
mod permit;
mod transfer;

use std::fmt;
use std::time::Duration;

use alloy::primitives::aliases::U40;
use alloy::primitives::{Address, B256, U256, address, keccak256};
use alloy::sol_types::SolValue;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::clock::Timestamp;
use crate::eip712::{Domain, EvmKey, SignatureError, Typed};

pub use consent::{MAX_PAYER_SIGNATURE, PayerSignature, TooLong};
pub use permit::{PERMIT2, Permit, SignedPermit, UPTO_PROXY};
pub use transfer::{SignedTransfer, Transfer};

/// The settlement contract's address on every public chain (CREATE2).
pub const SETTLEMENT: Address = address!("4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");
/// The collector that pulls EIP-3009 deposits, on every public chain.
pub const COLLECTOR: Address = address!("4020806089470a89826cB9fB1f4059150b550004");

/// The contract's bounds on a channel's withdraw delay.
pub const WITHDRAW_DELAY: std::ops::RangeInclusive<u64> = 900..=30 * 86_400;

/// Solidity forms, exactly as the contract hashes them.
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

        struct ReceiveWithAuthorization {
            address from;
            address to;
            uint256 value;
            uint256 validAfter;
            uint256 validBefore;
            bytes32 nonce;
        }

        struct Refund {
            bytes32 channelId;
            uint256 nonce;
            uint128 amount;
        }
    }
}

/// Where the money lives: one chain, one settlement contract, one token. Buyers and sellers
/// meet only on the same network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The settlement contract ([`SETTLEMENT`] everywhere but in experiments).
    pub settlement: Address,
    /// The deposit collector for EIP-3009 tokens ([`COLLECTOR`]).
    pub collector: Address,
    /// The payment token.
    pub token: Address,
    /// The token's EIP-712 domain name ("USDC").
    pub token_name: String,
    /// The token's EIP-712 domain version ("2").
    pub token_version: String,
}

impl Network {
    /// The domain in which channels, vouchers and refunds are signed.
    #[must_use]
    pub fn domain(&self) -> Domain {
        Domain::new("x402 Batch Settlement", "1", self.chain_id, self.settlement)
    }

    /// The token's own domain, in which deposits are authorised (EIP-3009).
    #[must_use]
    pub fn token_domain(&self) -> Domain {
        Domain::new(
            &self.token_name,
            &self.token_version,
            self.chain_id,
            self.token,
        )
    }

    /// The gossip topic on which this network's offers travel.
    #[must_use]
    pub fn topic(&self) -> String {
        format!(
            "farthing/offers/1/{}/{:#x}/{:#x}",
            self.chain_id, self.settlement, self.token
        )
    }
}

/// A channel's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChannelId(pub B256);

impl ChannelId {
    /// The first eight hex digits: what logs use.
    #[must_use]
    pub fn short(&self) -> String {
        alloy::hex::encode(&self.0[..4])
    }
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&format_args!("{:#x}", self.0), f)
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelId({})", self.short())
    }
}

impl std::str::FromStr for ChannelId {
    type Err = alloy::hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The immutable terms of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChannelConfig {
    /// The wallet whose tokens are deposited and to which the rest returns.
    pub payer: Address,
    /// The buyer's hot key: signs vouchers. Never zero here (zero would mean EIP-1271).
    pub payer_authorizer: Address,
    /// The seller's payout address.
    pub receiver: Address,
    /// The seller's hot key: claims and refunds.
    pub receiver_authorizer: Address,
    /// The payment token.
    pub token: Address,
    /// Seconds between a buyer's withdrawal request and its execution ([`WITHDRAW_DELAY`]).
    pub withdraw_delay: u64,
    /// Tells several channels between the same parties apart.
    pub salt: B256,
}

impl ChannelConfig {
    /// The channel's id on this network.
    #[must_use]
    pub fn id(&self, network: &Network) -> ChannelId {
        ChannelId(network.domain().hash(&self.to_sol()))
    }
}

impl Typed for ChannelConfig {
    type Sol = sol_types::ChannelConfig;

    fn to_sol(&self) -> Self::Sol {
        sol_types::ChannelConfig {
            payer: self.payer,
            payerAuthorizer: self.payer_authorizer,
            receiver: self.receiver,
            receiverAuthorizer: self.receiver_authorizer,
            token: self.token,
            withdrawDelay: U40::saturating_from(self.withdraw_delay),
            salt: self.salt,
        }
    }
}

/// The payer's permission to move a deposit into a channel (EIP-3009
/// `receiveWithAuthorization` to the collector). Its nonce binds it to the channel, so whoever
/// submits it can only complete it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deposit {
    /// Atoms to deposit.
    pub amount: Amount,
    /// Seconds since the epoch, exclusive.
    pub valid_after: u64,
    /// Seconds since the epoch, exclusive.
    pub valid_before: u64,
    /// Makes each deposit on a channel a different authorization.
    pub salt: B256,
    /// The payer's consent in the token's domain.
    pub signature: PayerSignature,
}

/// How much to deposit, until when, and which of the channel's deposits it is.
#[derive(Debug, Clone, Copy)]
pub struct DepositTerms {
    /// Atoms to deposit.
    pub amount: Amount,
    /// When the permission ends.
    pub valid_before: Timestamp,
    /// Makes each deposit on a channel a different authorization.
    pub salt: B256,
}

impl DepositTerms {
    /// The deposit, to be signed elsewhere: its signature is empty.
    #[must_use]
    pub fn unsigned(self) -> Deposit {
        Deposit {
            amount: self.amount,
            valid_after: 0,
            valid_before: self.valid_before.seconds(),
            salt: self.salt,
            signature: PayerSignature::default(),
        }
    }
}

impl Deposit {
    /// Signs a deposit into `config`'s channel. Outside tests only the client's wallet does.
    #[must_use]
    pub fn sign(
        config: &ChannelConfig,
        terms: DepositTerms,
        network: &Network,
        payer: &EvmKey,
    ) -> Self {
        let unsigned = terms.unsigned();
        let signature = payer.sign_hash(unsigned.digest(config, network));
        Self {
            signature: signature.into(),
            ..unsigned
        }
    }

    /// The token-level nonce of this deposit: what `authorizationState` is asked for.
    #[must_use]
    pub fn nonce(&self, channel: ChannelId) -> B256 {
        keccak256((channel.0, U256::from_be_bytes(self.salt.0)).abi_encode())
    }

    /// What the payer consents to, as the token hashes it. It does not depend on the signature.
    #[must_use]
    pub fn digest(&self, config: &ChannelConfig, network: &Network) -> B256 {
        network
            .token_domain()
            .hash(&self.authorization(config, network))
    }

    /// The EIP-3009 authorization behind the deposit, in the form that wallets show and sign.
    pub(crate) fn authorization(
        &self,
        config: &ChannelConfig,
        network: &Network,
    ) -> sol_types::ReceiveWithAuthorization {
        sol_types::ReceiveWithAuthorization {
            from: config.payer,
            to: network.collector,
            value: U256::from(self.amount.get()),
            validAfter: U256::from(self.valid_after),
            validBefore: U256::from(self.valid_before),
            nonce: self.nonce(config.id(network)),
        }
    }

    /// Checks that the payer's own key signed exactly this deposit: the rule for an account
    /// without code. (`chain::Chain::consents` is the rule for all.)
    ///
    /// # Errors
    /// Any [`SignatureError`].
    pub fn verify(&self, config: &ChannelConfig, network: &Network) -> Result<(), SignatureError> {
        let signature = self.signature.ecdsa().ok_or(SignatureError::Invalid)?;
        let got = signature.recover(self.digest(config, network))?;
        if got != config.payer {
            return Err(SignatureError::WrongSigner {
                expected: config.payer,
                got,
            });
        }
        Ok(())
    }

    /// The collector's argument: `abi.encode(validAfter, validBefore, salt, signature)`.
    #[must_use]
    pub fn collector_data(&self) -> alloy::primitives::Bytes {
        (
            U256::from(self.valid_after),
            U256::from(self.valid_before),
            U256::from_be_bytes(self.salt.0),
            self.signature.bytes().clone(),
        )
            .abi_encode_params()
            .into()
    }
}

/// The window in which a deposit authorization may still be mined.
pub const DEPOSIT_VALIDITY: Duration = Duration::from_secs(600);

/// The receiver's promise to return part of a channel to its payer at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refund {
    /// The channel.
    pub channel: ChannelId,
    /// The contract's refund nonce of that channel.
    pub nonce: U256,
    /// Atoms to return.
    pub amount: Amount,
}

impl Typed for Refund {
    type Sol = sol_types::Refund;

    fn to_sol(&self) -> Self::Sol {
        sol_types::Refund {
            channelId: self.channel.0,
            nonce: self.nonce,
            amount: self.amount.get(),
        }
    }
}
