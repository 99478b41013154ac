//! One request sold by one seller to one buyer: what is asked, used and refused.

use std::fmt;
use std::time::Duration;

use alloy::primitives::B256;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
pub use crate::offer::Endpoint;
use crate::offer::OfferHash;
use crate::root::SignedRoot;
use crate::voucher::SignedVoucher;
use crate::x402::ChannelId;

/// Names one purchase; chosen at random by the buyer and never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub B256);

impl RequestId {
    /// The first eight hex digits: what logs use.
    #[must_use]
    pub fn short(&self) -> String {
        alloy::hex::encode(&self.0[..4])
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({})", self.short())
    }
}

/// How the answer is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// One JSON document. Reserved in full before work starts.
    Plain,
    /// A stream of JSON events, paid in windows while it flows.
    Stream,
}

/// What a buyer asks for: the first frame of a purchase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The purchase's name.
    pub request: RequestId,
    /// The offer whose prices apply. The seller honours it until it expires.
    pub offer: OfferHash,
    /// The model, as the offer names it.
    pub model: String,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// Plain or streamed; must agree with the body's `stream`.
    pub mode: Mode,
    /// The most this purchase may cost.
    pub max_cost: Amount,
    /// Milliseconds until the buyer stops waiting.
    pub deadline_ms: u64,
    /// The channel that pays.
    pub channel: ChannelId,
    /// The newest voucher on it. Sending it again is harmless.
    pub voucher: Option<SignedVoucher>,
    /// The root over the channel's receipts so far, for the seller to sign too. Not with every ask.
    pub ack: Option<SignedRoot>,
    /// The OpenAI request body, untouched.
    pub body: Bytes,
}

impl Ask {
    /// The deadline as a duration.
    #[must_use]
    pub const fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// Tokens used so far or in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Those of them that came from a cache.
    pub cached: u32,
    /// Tokens of the answer.
    pub completion: u32,
}

/// A seller's load at this moment. It rides on answers; it is never gossiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Load {
    /// Purchases being served.
    pub running: u32,
    /// Purchases that can be served at once.
    pub slots: u32,
}

/// How a purchase ended, as the receipt says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Ending {
    /// The whole answer was delivered.
    Complete = 0,
    /// The buyer cancelled or hung up.
    Cancelled = 1,
    /// The model server failed in the middle.
    UpstreamFailed = 2,
    /// No voucher came for the next window.
    Unpaid = 3,
    /// The seller was restarted; its last checkpoint is charged.
    Interrupted = 4,
    /// The buyer's cost ceiling or deadline was reached.
    Limit = 5,
}

/// Why a voucher is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum VoucherFault {
    /// Not signed by the channel's authorizer, or over something else.
    #[error("the voucher is not signed by the channel's key")]
    Foreign,
    /// A form of signature the contract would reject.
    #[error("the voucher's signature is not canonical (65 bytes, v 27 or 28, low s)")]
    NotCanonical,
    /// The voucher names another channel.
    #[error("the voucher belongs to another channel")]
    OtherChannel,
    /// The ceiling exceeds what the channel can pay.
    #[error("the voucher's ceiling exceeds the {available} atoms available; top the channel up")]
    OverDeposit {
        /// Deposit less armed withdrawal.
        available: Amount,
    },
    /// The voucher proves nothing: it is known already, and so perhaps to others.
    #[error("the buyer has not shown that it holds the channel's key; prove it by a call")]
    Unproven,
}

/// Why a seller refuses a purchase. Nothing is charged for a refused one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The offer has no such model.
    #[error("the seller does not offer this model")]
    UnknownModel,
    /// The model is not offered on this endpoint.
    #[error("the seller does not offer this model on this endpoint")]
    Endpoint,
    /// The offer named is not one that still holds.
    #[error("the offer has expired or been replaced; use the seller's newest")]
    StaleOffer,
    /// The request itself is wrong.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The model server refused the request with this status and body.
    #[error("the model server answered {status}")]
    Upstream {
        /// Its HTTP status.
        status: u16,
        /// Its body, at most [`crate::frame::REFUSAL_BODY_LIMIT`] bytes.
        body: Bytes,
    },
    /// All slots are taken.
    #[error("busy; try again in {retry_after_ms} ms")]
    Busy {
        /// A guess at when a slot is free.
        retry_after_ms: u64,
    },
    /// The body is larger than the seller takes.
    #[error("the body has more than the {max} bytes this seller takes")]
    TooLarge {
        /// Bytes allowed.
        max: u64,
    },
    /// The purchase may cost more than the buyer allows.
    #[error("the purchase may cost {needed} atoms, more than the buyer allows")]
    CostCeiling {
        /// The quote.
        needed: Amount,
    },
    /// The seller knows no such channel.
    #[error("the seller knows no such channel; open it first")]
    NoChannel,
    /// The voucher is not accepted.
    #[error(transparent)]
    Voucher(VoucherFault),
    /// This request id was used before.
    #[error("this request id was used before")]
    Duplicate,
    /// The seller cannot serve now, for a reason of its own.
    #[error("the seller cannot serve now: {0}")]
    Unavailable(String),
}

impl Refusal {
    /// True when another seller may well accept what this one refused.
    #[must_use]
    pub const fn may_succeed_elsewhere(&self) -> bool {
        match self {
            // A request the model server calls wrong is wrong everywhere; its overload is not.
            Self::Upstream { status, .. } => {
                *status >= 500 || matches!(*status, 401 | 403 | 404 | 408 | 429)
            }
            Self::BadRequest(_) | Self::CostCeiling { .. } => false,
            _ => true,
        }
    }
}
