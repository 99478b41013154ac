//! What the buyer's books look like on disk.

use alloy::primitives::B256;
use farthing_protocol::amount::Amount;
use farthing_protocol::channel::Channel;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::{CoSigned, SignedRoot};
use farthing_protocol::store::{Schema, Table};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit};
use serde::{Deserialize, Serialize};

use crate::ledger::experience::Experience;
use crate::ledger::joint::Joint;
use crate::ledger::once::CountedOnce;
use crate::ledger::payments::Payment;
use crate::report::Approval;

/// Channels by id.
pub const CHANNELS: Table<B256, Account> = Table::new("channels", 1);
/// Receipts by channel and place in it.
pub const RECEIPTS: Table<(B256, u64), Kept> = Table::new("receipts", 1);
/// Where the receipt of a request is.
pub const REQUESTS: Table<B256, (B256, u64)> = Table::new("requests", 1);
/// Complete parts of the trees over receipts, by channel, level and index: from
/// [`farthing_protocol::history::BLOCK_LEVEL`] up.
pub const NODES: Table<(B256, (u8, u64)), B256> = Table::new("nodes", 1);
/// The newest root that both sides have signed, by channel.
pub const ROOTS: Table<B256, CoSigned> = Table::new("roots", 1);
/// Roots that a seller has signed against its own receipts, by channel.
pub const CONTRADICTIONS: Table<B256, SignedRoot> = Table::new("contradictions", 1);
/// Receipts that differ from the one booked at their place, by channel and place: the seller has
/// signed both.
pub const DOUBLES: Table<(B256, u64), SignedReceipt> = Table::new("doubles", 1);
/// Atoms promised per day (UTC, days since the epoch).
pub const DAYS: Table<u64, Amount> = Table::new("days", 1);
/// Atoms promised per day and seller's node.
pub const SELLER_DAYS: Table<(u64, B256), Amount> = Table::new("seller-days", 1);
/// Atoms charged per day and model (the hash of its id).
pub const MODEL_DAYS: Table<(u64, B256), Amount> = Table::new("model-days", 1);
/// What was paid over plain HTTP, by channel ([`crate::ledger::once::NO_CHANNEL`] where none paid)
/// and purchase.
pub const PAYMENTS: Table<(B256, B256), Payment> = Table::new("http-payments", 1);
/// Payments for one purchase each whose end is not known, by purchase.
pub const ONCE: Table<B256, CountedOnce> = Table::new("once", 1);
/// Purchases that want a person's word, or have it and are not made yet.
pub const APPROVALS: Table<B256, Approval> = Table::new("approvals", 1);
/// Deposits to be signed by a wallet elsewhere, by the hash that it signs.
pub const DRAFTS: Table<B256, PendingDeposit> = Table::new("drafts", 1);
/// Deposits that were signed and whose mining we have not seen, by channel and salt.
pub const DEPOSITS: Table<(B256, B256), PendingDeposit> = Table::new("deposits", 1);
/// What became of purchases, by seller and the hash of the model's id.
pub const EXPERIENCES: Table<(B256, B256), Experience> = Table::new("experiences", 1);
/// What answers came to in which several sellers had a part, by the first one's purchase.
pub const JOINTS: Table<B256, Joint> = Table::new("joints", 1);
/// Atoms that probes may have cost per day (UTC, days since the epoch).
pub const PROBE_DAYS: Table<u64, Amount> = Table::new("probe-days", 1);

/// Every table of a client's store.
#[must_use]
pub fn schema() -> Schema {
    Schema::new()
        .table(&CHANNELS, &[])
        .table(&RECEIPTS, &[])
        .table(&REQUESTS, &[])
        .table(&NODES, &[])
        .table(&ROOTS, &[])
        .table(&CONTRADICTIONS, &[])
        .table(&DOUBLES, &[])
        .table(&DAYS, &[])
        .table(&SELLER_DAYS, &[])
        .table(&MODEL_DAYS, &[])
        .table(&APPROVALS, &[])
        .table(&PAYMENTS, &[])
        .table(&ONCE, &[])
        .table(&DRAFTS, &[])
        .table(&DEPOSITS, &[])
        .table(&EXPERIENCES, &[])
        .table(&JOINTS, &[])
        .table(&PROBE_DAYS, &[])
}

/// Whether new promises are made on a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    /// Yes.
    Good,
    /// No: the seller's receipts or counters were false.
    Frozen,
    /// No: the buyer is taking its money back.
    Closing,
    /// Not now: our own chain node shows less than was charged. It may be behind; when it shows
    /// the money again the channel is good again.
    Short,
    /// Never again: the seller has lost its books of this channel.
    Left,
}

impl Standing {
    /// What becomes of it when the buyer begins to take its money back.
    #[must_use]
    pub const fn closing(self) -> Self {
        match self {
            Self::Good | Self::Short => Self::Closing,
            // Its seller is not to be trusted, or not to be asked, again.
            other => other,
        }
    }
}

/// One channel with one seller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The seller's node.
    pub seller: NodeId,
    /// The channel's terms.
    pub config: ChannelConfig,
    /// Its state. The ceiling is the highest that was ever signed or is about to be.
    pub channel: Channel,
    /// All receipts before this one are booked.
    pub booked: u64,
    /// Whether we go on using it.
    pub standing: Standing,
    /// When it was opened.
    pub opened: Timestamp,
}

/// A receipt as kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// As the seller signed it.
    pub receipt: SignedReceipt,
    /// The model's id (the receipt has only its hash), if known.
    pub model: Option<String>,
    /// The endpoint, if known.
    pub endpoint: Option<Endpoint>,
    /// What is wrong with it, if we do not agree.
    pub dispute: Option<String>,
}

/// A deposit's authorization, recorded before the seller gets it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingDeposit {
    /// The channel.
    pub channel: ChannelId,
    /// Whose channel it is.
    pub seller: NodeId,
    /// The channel's terms.
    pub config: ChannelConfig,
    /// The authorization.
    pub deposit: Deposit,
}
