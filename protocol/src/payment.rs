//! How a payment is asked for and made over plain HTTP: the words of x402, version 2.
//!
//! Source: x402 v2, transport `http`, schemes `exact`, `upto` and `batch-settlement` on EVM. The
//! values travel as JSON in base64 headers ([`header`]); what a scheme puts into them is in
//! [`scheme`], why a payment is not taken in [`reason`], and the older form in [`v1`].
//!
//! Unknown fields pass. Amounts are plain decimal digits that fit 128 bits, never numbers.

pub mod attestation;
pub mod decimal;
pub mod header;
pub mod reason;
pub mod scheme;
pub mod v1;

use std::fmt;
use std::str::FromStr;

use alloy::primitives::{Address, B256, keccak256};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::amount::Amount;
use crate::x402::ChannelId;

pub use crate::payment::header::{HeaderError, decode, encode};
pub use crate::payment::reason::Reason;
pub use crate::payment::scheme::{
    Batch, BatchDeposit, BatchExtra, BatchRefund, BatchVoucher, ChannelState, Exact, Payment,
    SettlementExtra, Upto, VoucherState, WireConfig, WireDeposit, WireVoucher,
};

/// The version of x402 these words are of.
pub const VERSION: u8 = 2;
/// The request's header that carries a [`PaymentPayload`].
pub const PAYMENT_SIGNATURE: &str = "payment-signature";
/// The answer's header that carries a [`PaymentRequired`].
pub const PAYMENT_REQUIRED: &str = "payment-required";
/// The answer's header that carries a [`SettlementResponse`].
pub const PAYMENT_RESPONSE: &str = "payment-response";
/// How a [`StreamPrice`] begins.
const COMMENT: &str = ": x402 ";
/// The most ways to pay that are read from one answer.
pub const MAX_ACCEPTS: usize = 32;

/// JSON that only its writer understands.
pub type Fields = Map<String, Value>;

/// A chain as CAIP-2 names it: `eip155:` and the chain id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caip2(pub u64);

/// The text is not the name of an EVM chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an EVM chain in CAIP-2 form: give \"eip155:\" and the chain id, such as \"eip155:8453\""
)]
pub struct NotAChain;

impl fmt::Display for Caip2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eip155:{}", self.0)
    }
}

impl FromStr for Caip2 {
    type Err = NotAChain;

    fn from_str(text: &str) -> Result<Self, NotAChain> {
        let id = text.strip_prefix("eip155:").ok_or(NotAChain)?;
        let plain = id.bytes().all(|b| b.is_ascii_digit()) && !id.starts_with('0');
        let id = plain.then(|| id.parse().ok()).flatten();
        id.map(Self).ok_or(NotAChain)
    }
}

impl Serialize for Caip2 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Caip2 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What is for sale.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resource {
    /// Where.
    pub url: String,
    /// What, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The kind of answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mime_type: Option<String>,
}

/// One way to pay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequirements {
    /// `exact`, `upto` or `batch-settlement` ([`scheme`]).
    pub scheme: String,
    /// The chain.
    pub network: Caip2,
    /// Atoms: the price, or the most it may be.
    pub amount: Amount,
    /// The token.
    #[serde(serialize_with = "checksummed")]
    pub asset: Address,
    /// Who is paid.
    #[serde(serialize_with = "checksummed")]
    pub pay_to: Address,
    /// Seconds until a payment made for this is too late.
    pub max_timeout_seconds: u64,
    /// The scheme's own terms.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extra: Fields,
}

impl PaymentRequirements {
    /// A text among the scheme's own terms.
    #[must_use]
    pub fn extra_text(&self, name: &str) -> Option<&str> {
        self.extra.get(name)?.as_str()
    }

    /// Whether `chosen`, as a buyer sent it back, is this way to pay. A buyer may have added to
    /// [`PaymentRequirements::extra`]; it may not have changed what was there.
    #[must_use]
    pub fn is_echoed_by(&self, chosen: &Self) -> bool {
        self.scheme == chosen.scheme
            && self.network == chosen.network
            && self.amount == chosen.amount
            && self.asset == chosen.asset
            && self.pay_to == chosen.pay_to
            && self.max_timeout_seconds == chosen.max_timeout_seconds
            && self
                .extra
                .iter()
                .all(|(name, value)| chosen.extra.get(name) == Some(value))
    }
}

/// What a seller answers with status 402.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentRequired {
    /// [`VERSION`].
    pub x402_version: u8,
    /// Why a payment that came was not taken: the text of a [`Reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is for sale.
    pub resource: Resource,
    /// The ways to pay, best first. Those of other families of chains are left out when read.
    #[serde(deserialize_with = "known")]
    pub accepts: Vec<PaymentRequirements>,
    /// Extensions by name.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extensions: Fields,
}

/// What a buyer sends with its request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentPayload {
    /// [`VERSION`].
    pub x402_version: u8,
    /// What is bought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<Resource>,
    /// The way to pay that was chosen.
    pub accepted: PaymentRequirements,
    /// The payment itself, read by [`PaymentPayload::payment`].
    pub payload: Value,
    /// Extensions by name.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extensions: Fields,
}

impl PaymentPayload {
    /// The payment, as its scheme reads it.
    ///
    /// # Errors
    /// [`Reason::UnsupportedScheme`], [`Reason::InvalidPayload`], [`Reason::BatchPayloadType`].
    pub fn payment(&self) -> Result<Payment, Reason> {
        Payment::read(&self.accepted.scheme, &self.payload)
    }
}

/// What became of a payment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SettlementResponse {
    /// Whether it was taken.
    pub success: bool,
    /// Why not: the text of a [`Reason`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_reason: Option<String>,
    /// The same for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Who paid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer: Option<String>,
    /// The transaction, or nothing.
    pub transaction: String,
    /// The chain, in CAIP-2 form or by its older name.
    pub network: String,
    /// Atoms moved by the transaction, or nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub amount: Option<String>,
    /// Extensions by name.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extensions: Fields,
    /// The scheme's own words ([`SettlementExtra`]).
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extra: Fields,
}

impl SettlementResponse {
    /// What `batch-settlement` says of the charge and the channel, if it does and can be read.
    #[must_use]
    pub fn batch(&self) -> Option<SettlementExtra> {
        serde_json::from_value(Value::Object(self.extra.clone())).ok()
    }
}

/// What a seller says of a stream's price, as a comment of it before its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamPrice {
    /// Charged for this stream.
    pub charged_amount: Amount,
    /// Charged on the channel in all.
    pub charged_cumulative_amount: Amount,
    /// The transaction that took the money, or nothing.
    pub transaction: String,
    /// The signed receipt.
    pub receipt: Value,
    /// Extensions by name, as in [`SettlementResponse::extensions`].
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extensions: Fields,
}

impl StreamPrice {
    /// The line. Every reader of events skips it.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{COMMENT}{}", Value::Object(fields(self)))
    }

    /// What a line says, if it is one of these.
    #[must_use]
    pub fn of(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(COMMENT)?).ok()
    }
}

/// The name of a purchase that is paid by a voucher: one per voucher and place among the
/// channel's receipts, so that whatever comes twice is the same purchase.
#[must_use]
pub fn voucher_request(channel: ChannelId, ceiling: Amount, receipts: u64) -> B256 {
    let (ceiling, receipts) = (ceiling.get().to_be_bytes(), receipts.to_be_bytes());
    keccak256([channel.0.as_slice(), &ceiling, &receipts].concat())
}

/// The name of a purchase that is paid by a payment made for it alone.
#[must_use]
pub fn once_request(channel: ChannelId) -> B256 {
    keccak256([b"once".as_slice(), channel.0.as_slice()].concat())
}

/// A value as the fields of its JSON object; nothing of what is no object.
#[must_use]
pub fn fields(value: &impl Serialize) -> Fields {
    match serde_json::to_value(value) {
        Ok(Value::Object(fields)) => fields,
        _ => Fields::new(),
    }
}

/// An address as wallets show it (EIP-55).
pub(crate) fn checksummed<S: Serializer>(address: &Address, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&address.to_checksum(None))
}

/// A field that may be absent or null.
pub(crate) fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// The ways to pay that can be understood, at most [`MAX_ACCEPTS`].
fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PaymentRequirements>, D::Error> {
    let all = Vec::<Value>::deserialize(from)?;
    let read = all
        .into_iter()
        .filter_map(|one| serde_json::from_value(one).ok());
    Ok(read.take(MAX_ACCEPTS).collect())
}

#[cfg(test)]
mod tests;
