//! The older form of x402, of which only `exact` is served: the ways to pay are in the body of
//! the 402, chains have names of their own, and the headers are called otherwise.

use alloy::primitives::Address;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::amount::Amount;
use crate::payment::scheme::{EXACT, Payment};
use crate::payment::{Fields, PaymentRequirements, Reason, Resource, checksummed, or_default};

/// The version.
pub const VERSION: u8 = 1;
/// The request's header that carries a [`PaymentPayload`].
pub const PAYMENT: &str = "x-payment";
/// The answer's header that carries a [`crate::payment::SettlementResponse`].
pub const PAYMENT_RESPONSE: &str = "x-payment-response";

/// The chains that have a name.
const NAMES: [(&str, u64); 9] = [
    ("base", 8453),
    ("base-sepolia", 84532),
    ("polygon", 137),
    ("polygon-amoy", 80002),
    ("avalanche", 43114),
    ("avalanche-fuji", 43113),
    ("sei", 1329),
    ("sei-testnet", 1328),
    ("iotex", 4689),
];

/// A chain's name; most have none and cannot be paid on in this form.
#[must_use]
pub fn name_of(chain_id: u64) -> Option<&'static str> {
    let (name, _) = NAMES.iter().find(|(_, id)| *id == chain_id)?;
    Some(name)
}

/// The chain with a name.
#[must_use]
pub fn chain_of(name: &str) -> Option<u64> {
    let (_, id) = NAMES.iter().find(|(known, _)| *known == name)?;
    Some(*id)
}

/// One way to pay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Requirements {
    /// `exact`.
    pub scheme: String,
    /// The chain's name.
    pub network: String,
    /// Atoms.
    pub max_amount_required: Amount,
    /// What is for sale.
    pub resource: String,
    /// The same, for people.
    pub description: String,
    /// The kind of answer.
    pub mime_type: String,
    /// Who is paid.
    #[serde(serialize_with = "checksummed")]
    pub pay_to: Address,
    /// Seconds until a payment made for this is too late.
    pub max_timeout_seconds: u64,
    /// The token.
    #[serde(serialize_with = "checksummed")]
    pub asset: Address,
    /// The token's EIP-712 domain.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Map::is_empty"
    )]
    pub extra: Fields,
}

impl Requirements {
    /// The older form of one way to pay, if there is one.
    #[must_use]
    pub fn of(now: &PaymentRequirements, resource: &Resource) -> Option<Self> {
        let network = name_of(now.network.0).filter(|_| now.scheme == EXACT)?;
        Some(Self {
            scheme: now.scheme.clone(),
            network: network.to_owned(),
            max_amount_required: now.amount,
            resource: resource.url.clone(),
            description: resource.description.clone().unwrap_or_default(),
            mime_type: resource.mime_type.clone().unwrap_or_default(),
            pay_to: now.pay_to,
            max_timeout_seconds: now.max_timeout_seconds,
            asset: now.asset,
            extra: now.extra.clone(),
        })
    }
}

/// What a buyer sends with its request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentPayload {
    /// [`VERSION`].
    pub x402_version: u8,
    /// The scheme.
    pub scheme: String,
    /// The chain's name.
    pub network: String,
    /// The payment itself.
    pub payload: Value,
}

impl PaymentPayload {
    /// The payment. Only `exact` was paid in this form.
    ///
    /// # Errors
    /// [`Reason::UnsupportedScheme`], [`Reason::InvalidPayload`].
    pub fn payment(&self) -> Result<Payment, Reason> {
        if self.scheme != EXACT {
            return Err(Reason::UnsupportedScheme);
        }
        Payment::read(&self.scheme, &self.payload)
    }
}
