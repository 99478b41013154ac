//! What each scheme puts into a payment.
//!
//! - `batch-settlement`: a [`crate::voucher`] on a channel, with a deposit before the first;
//! - `exact`: an EIP-3009 transfer of the whole price;
//! - `upto`: a Permit2 permit for at most the price.

use alloy::primitives::{Address, B256, Bytes, U256};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::amount::Amount;
use crate::eip712::{EvmSignature, Signed};
use crate::payment::{Reason, checksummed, decimal};
use crate::voucher::{SignedVoucher, Voucher};
use crate::x402::{ChannelConfig, ChannelId, Deposit, PayerSignature};

/// The scheme whose payments are vouchers on a channel.
pub const BATCH: &str = "batch-settlement";
/// The scheme whose payments are the whole price.
pub const EXACT: &str = "exact";
/// The scheme whose payments are at most the price.
pub const UPTO: &str = "upto";

/// A payment of one of the schemes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payment {
    /// Of `batch-settlement`.
    Batch(Batch),
    /// Of `exact`.
    Exact(Exact),
    /// Of `upto`.
    Upto(Upto),
}

impl Payment {
    /// A payment from its JSON.
    ///
    /// # Errors
    /// [`Reason::UnsupportedScheme`], [`Reason::InvalidPayload`], [`Reason::BatchPayloadType`].
    pub fn read(scheme: &str, payload: &Value) -> Result<Self, Reason> {
        match scheme {
            BATCH => Batch::read(payload).map(Self::Batch),
            EXACT => read(payload).map(Self::Exact),
            UPTO => read(payload).map(Self::Upto),
            _ => Err(Reason::UnsupportedScheme),
        }
    }
}

fn read<'v, T: Deserialize<'v>>(payload: &'v Value) -> Result<T, Reason> {
    // A list would be read as the fields in their order.
    if !payload.is_object() {
        return Err(Reason::InvalidPayload);
    }
    T::deserialize(payload).map_err(|_| Reason::InvalidPayload)
}

/// A payment of `batch-settlement`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Batch {
    /// A deposit, and the first voucher on it.
    Deposit(BatchDeposit),
    /// A voucher.
    Voucher(BatchVoucher),
    /// The wish to have the rest back.
    Refund(BatchRefund),
}

impl Batch {
    fn read(payload: &Value) -> Result<Self, Reason> {
        match payload.get("type").and_then(Value::as_str) {
            Some("deposit") => read(payload).map(Self::Deposit),
            Some("voucher") => read(payload).map(Self::Voucher),
            Some("refund") => read(payload).map(Self::Refund),
            _ => Err(Reason::BatchPayloadType),
        }
    }

    /// The channel's terms.
    #[must_use]
    pub const fn config(&self) -> &ChannelConfig {
        match self {
            Self::Deposit(payment) => &payment.channel_config.0,
            Self::Voucher(payment) => &payment.channel_config.0,
            Self::Refund(payment) => &payment.channel_config.0,
        }
    }

    /// The voucher.
    #[must_use]
    pub const fn voucher(&self) -> &WireVoucher {
        match self {
            Self::Deposit(payment) => &payment.voucher,
            Self::Voucher(payment) => &payment.voucher,
            Self::Refund(payment) => &payment.voucher,
        }
    }
}

/// A deposit, and the first voucher on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchDeposit {
    /// The channel's terms.
    pub channel_config: WireConfig,
    /// The voucher.
    pub voucher: WireVoucher,
    /// The deposit.
    pub deposit: WireDeposit,
}

impl BatchDeposit {
    /// The deposit, if it is one by EIP-3009.
    #[must_use]
    pub fn terms(&self) -> Option<Deposit> {
        let permission = self.deposit.authorization.erc3009_authorization.as_ref()?;
        Some(Deposit {
            amount: self.deposit.amount,
            valid_after: permission.valid_after,
            valid_before: permission.valid_before,
            salt: permission.salt,
            signature: permission.signature.clone(),
        })
    }
}

impl From<&Deposit> for WireDeposit {
    fn from(deposit: &Deposit) -> Self {
        Self {
            amount: deposit.amount,
            authorization: DepositAuthorization {
                erc3009_authorization: Some(Erc3009 {
                    valid_after: deposit.valid_after,
                    valid_before: deposit.valid_before,
                    salt: deposit.salt,
                    signature: deposit.signature.clone(),
                }),
            },
        }
    }
}

/// A voucher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchVoucher {
    /// The channel's terms.
    pub channel_config: WireConfig,
    /// The voucher.
    pub voucher: WireVoucher,
}

/// The wish to have the rest back, or part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchRefund {
    /// The channel's terms.
    pub channel_config: WireConfig,
    /// A voucher over what was charged and no more.
    pub voucher: WireVoucher,
    /// How much; all of it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<Amount>,
}

/// A channel's terms in x402's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ConfigFields", into = "ConfigFields")]
pub struct WireConfig(pub ChannelConfig);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFields {
    #[serde(serialize_with = "checksummed")]
    payer: Address,
    #[serde(serialize_with = "checksummed")]
    payer_authorizer: Address,
    #[serde(serialize_with = "checksummed")]
    receiver: Address,
    #[serde(serialize_with = "checksummed")]
    receiver_authorizer: Address,
    #[serde(serialize_with = "checksummed")]
    token: Address,
    withdraw_delay: u64,
    salt: B256,
}

impl From<ConfigFields> for WireConfig {
    fn from(fields: ConfigFields) -> Self {
        Self(ChannelConfig {
            payer: fields.payer,
            payer_authorizer: fields.payer_authorizer,
            receiver: fields.receiver,
            receiver_authorizer: fields.receiver_authorizer,
            token: fields.token,
            withdraw_delay: fields.withdraw_delay,
            salt: fields.salt,
        })
    }
}

impl From<WireConfig> for ConfigFields {
    fn from(WireConfig(config): WireConfig) -> Self {
        Self {
            payer: config.payer,
            payer_authorizer: config.payer_authorizer,
            receiver: config.receiver,
            receiver_authorizer: config.receiver_authorizer,
            token: config.token,
            withdraw_delay: config.withdraw_delay,
            salt: config.salt,
        }
    }
}

/// A voucher in x402's JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WireVoucher {
    /// The channel.
    pub channel_id: ChannelId,
    /// The ceiling.
    pub max_claimable_amount: Amount,
    /// Its signature, unchecked.
    pub signature: Bytes,
}

impl WireVoucher {
    /// The voucher, if its signature is of the one length the contract takes.
    #[must_use]
    pub fn signed(&self) -> Option<SignedVoucher> {
        Some(Signed {
            message: Voucher {
                channel: self.channel_id,
                ceiling: self.max_claimable_amount,
            },
            signature: signature(&self.signature)?,
        })
    }
}

impl From<&SignedVoucher> for WireVoucher {
    fn from(signed: &SignedVoucher) -> Self {
        Self {
            channel_id: signed.message.channel,
            max_claimable_amount: signed.message.ceiling,
            signature: signed.signature.to_bytes(),
        }
    }
}

/// The bytes as a signature, if there are 65 of them.
#[must_use]
pub fn signature(bytes: &Bytes) -> Option<EvmSignature> {
    let bytes: [u8; 65] = bytes.as_ref().try_into().ok()?;
    Some(EvmSignature::from_bytes(bytes))
}

/// A deposit in x402's JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireDeposit {
    /// Atoms.
    pub amount: Amount,
    /// The payer's permission.
    pub authorization: DepositAuthorization,
}

/// The payer's permission to move a deposit: of EIP-3009, or of a kind that is not taken here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DepositAuthorization {
    /// By EIP-3009.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erc3009_authorization: Option<Erc3009>,
}

/// An EIP-3009 permission for the deposit collector. Its nonce follows from the channel and the
/// salt ([`crate::x402::Deposit::nonce`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erc3009 {
    /// Seconds since the epoch, exclusive.
    #[serde(with = "decimal")]
    pub valid_after: u64,
    /// Seconds since the epoch, exclusive.
    #[serde(with = "decimal")]
    pub valid_before: u64,
    /// Makes each deposit a different one.
    pub salt: B256,
    /// The payer's consent, unchecked.
    pub signature: PayerSignature,
}

/// A payment of `exact`: an EIP-3009 transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exact {
    /// The payer's signature, unchecked.
    pub signature: Bytes,
    /// What is signed.
    pub authorization: ExactAuthorization,
}

/// What a payer of `exact` signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExactAuthorization {
    /// Who pays.
    #[serde(serialize_with = "checksummed")]
    pub from: Address,
    /// Who is paid.
    #[serde(serialize_with = "checksummed")]
    pub to: Address,
    /// Atoms.
    pub value: Amount,
    /// Seconds since the epoch, exclusive.
    #[serde(with = "decimal")]
    pub valid_after: u64,
    /// Seconds since the epoch, exclusive.
    #[serde(with = "decimal")]
    pub valid_before: u64,
    /// Makes each payment a different one.
    pub nonce: B256,
}

/// A payment of `upto`: a Permit2 permit with a witness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upto {
    /// The owner's signature, unchecked.
    pub signature: Bytes,
    /// What is signed.
    pub permit2_authorization: UptoAuthorization,
}

/// What a payer of `upto` signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UptoAuthorization {
    /// Who pays.
    #[serde(serialize_with = "checksummed")]
    pub from: Address,
    /// Token and most.
    pub permitted: Permitted,
    /// Who may call Permit2: the proxy of the scheme.
    #[serde(serialize_with = "checksummed")]
    pub spender: Address,
    /// Makes each permit a different one.
    #[serde(with = "decimal")]
    pub nonce: U256,
    /// Seconds since the epoch, inclusive.
    #[serde(with = "decimal")]
    pub deadline: u64,
    /// Who is paid, and by whom it is taken.
    pub witness: UptoWitness,
}

/// Token and most of a permit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permitted {
    /// The token.
    #[serde(serialize_with = "checksummed")]
    pub token: Address,
    /// Atoms at most.
    pub amount: Amount,
}

/// Who is paid, and by whom a permit is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UptoWitness {
    /// Who is paid.
    #[serde(serialize_with = "checksummed")]
    pub to: Address,
    /// Whose transaction takes it.
    #[serde(serialize_with = "checksummed")]
    pub facilitator: Address,
    /// Seconds since the epoch, inclusive.
    #[serde(with = "decimal")]
    pub valid_after: u64,
}

/// The terms of `batch-settlement` in a way to pay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BatchExtra {
    /// Who claims.
    #[serde(serialize_with = "checksummed")]
    pub receiver_authorizer: Address,
    /// Seconds of withdraw delay.
    pub withdraw_delay: u64,
    /// The token's EIP-712 domain name.
    pub name: String,
    /// The token's EIP-712 domain version.
    pub version: String,
    /// The smallest deposit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_deposit: Option<Amount>,
    /// What the seller holds of the channel, when a voucher did not follow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_state: Option<ChannelState>,
    /// The proof of it: the buyer's own signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voucher_state: Option<VoucherState>,
}

/// What a seller holds of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// The channel.
    pub channel_id: ChannelId,
    /// Deposited.
    pub balance: Amount,
    /// Claimed on chain.
    pub total_claimed: Amount,
    /// Seconds since the epoch of a withdrawal that is armed, or 0.
    pub withdraw_requested_at: u64,
    /// The contract's refund nonce, where it was looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refund_nonce: Option<String>,
    /// Charged in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged_cumulative_amount: Option<Amount>,
}

/// The highest voucher a seller holds of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VoucherState {
    /// Its ceiling.
    pub signed_max_claimable: Amount,
    /// Its signature.
    pub signature: Bytes,
}

/// What `batch-settlement` says of a charge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettlementExtra {
    /// Charged for this request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub charged_amount: Option<Amount>,
    /// What the seller holds of the channel now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_state: Option<ChannelState>,
}
