//! What the books look like on disk.

use alloy::primitives::B256;
use bytes::Bytes;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::chain::Fees;
use farthing_protocol::channel::{Channel, Rejected};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::Usage;
use farthing_protocol::receipt::Receipt;
use farthing_protocol::root::CoSigned;
use farthing_protocol::store::{Schema, Table};
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::{ChannelConfig, ChannelId};
use serde::{Deserialize, Serialize};

use crate::ledger::once::Once;

/// Channels by id.
pub const CHANNELS: Table<B256, ChannelRecord> = Table::new("channels", 1);
/// Receipts by channel and place in it.
pub const RECEIPTS: Table<(B256, u64), Receipt> = Table::new("receipts", 1);
/// Where the receipt of a request is: no request is served twice.
pub const SERVED: Table<B256, (B256, u64)> = Table::new("served", 1);
/// Purchases that were sold over HTTP, by request.
pub const DOORS: Table<B256, u8> = Table::new("doors", 1);
/// Complete parts of the trees over receipts, by channel, level and index: from
/// [`farthing_protocol::history::BLOCK_LEVEL`] up.
pub const NODES: Table<(B256, (u8, u64)), B256> = Table::new("nodes", 1);
/// The newest root that both sides have signed, by channel.
pub const ROOTS: Table<B256, CoSigned> = Table::new("roots", 1);
/// Payments made for one purchase, by their channel, until they are taken.
pub const ONCE: Table<B256, Once> = Table::new("once", 1);
/// How much of such a payment is being taken, from before its transaction is made until it is over.
pub const TAKING: Table<B256, Amount> = Table::new("taking", 1);
/// Checkpoints of running purchases by request.
pub const OPEN: Table<B256, OpenPurchase> = Table::new("open", 1);
/// Transactions that were signed and whose end is not known, by hash.
pub const TRANSACTIONS: Table<B256, Pending> = Table::new("transactions", 1);
/// Their raw bytes, in pieces of [`RAW_PIECE`], by hash and place.
pub const RAW: Table<(B256, u32), Bytes> = Table::new("raw", 1);
/// A piece of a raw transaction: well below the store's largest value.
pub const RAW_PIECE: usize = 1024;
/// Transactions that were mined, by hash: what `claim` and `earnings` show.
pub const MINED: Table<B256, Mined> = Table::new("mined", 1);
/// Since when each channel has something unclaimed.
pub const OWED: Table<B256, Timestamp> = Table::new("owed", 1);
/// The latest blocks whose events were read, by height: where to go back to when the chain does.
pub const HEADS: Table<u64, B256> = Table::new("heads", 1);
/// Small counters by name.
pub const COUNTERS: Table<String, u64> = Table::new("counters", 1);

/// Every table of a node's store.
#[must_use]
pub fn schema() -> Schema {
    Schema::new()
        .table(&CHANNELS, &[])
        .table(&RECEIPTS, &[])
        .table(&SERVED, &[])
        .table(&DOORS, &[])
        .table(&NODES, &[])
        .table(&ROOTS, &[])
        .table(&OPEN, &[])
        .table(&ONCE, &[])
        .table(&TAKING, &[])
        .table(&TRANSACTIONS, &[])
        .table(&RAW, &[])
        .table(&MINED, &[])
        .table(&OWED, &[])
        .table(&HEADS, &[])
        .table(&COUNTERS, &[])
}

/// One channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRecord {
    /// Its terms.
    pub config: ChannelConfig,
    /// Its state. The ceiling in it may lag behind the voucher's.
    pub channel: Channel,
    /// The highest voucher: what will be claimed with.
    pub voucher: Option<SignedVoucher>,
}

impl ChannelRecord {
    /// Brings a record that was read up to its voucher.
    ///
    /// # Errors
    /// [`Rejected`] when the voucher cannot belong to the state.
    pub(in crate::ledger) fn revive(&mut self) -> Result<(), Rejected> {
        if let Some(voucher) = self.voucher {
            let armed = self.channel.armed();
            // The voucher was accepted before any withdrawal that is armed now.
            self.channel.arm(Amount::ZERO);
            let ceiling = voucher.message.ceiling.min(self.channel.balance());
            self.channel.accept(ceiling)?;
            self.channel.arm(armed);
        }
        Ok(())
    }
}

/// How far a purchase has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPurchase {
    /// The channel that pays.
    pub channel: ChannelId,
    /// keccak-256 of the body as asked.
    pub request_hash: B256,
    /// keccak-256 of what was delivered so far.
    pub response_hash: B256,
    /// keccak-256 of the model id.
    pub model_hash: B256,
    /// The offer.
    pub offer: OfferHash,
    /// Tokens so far.
    pub usage: Usage,
    /// What they cost.
    pub cost: Cost,
    /// When it was admitted.
    pub started: Timestamp,
}

/// What a signed transaction is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// A buyer's deposit.
    Deposit {
        /// Into this channel.
        channel: ChannelId,
        /// The nonce of its authorization: which of the channel's deposits it is.
        nonce: B256,
    },
    /// A claim (and settle) of vouchers.
    Claim,
    /// Moving what was claimed to the payout address.
    Settle,
    /// Returning the rest of a channel.
    Refund(ChannelId),
    /// Taking a payment made for one purchase.
    Once(ChannelId),
    /// Nothing: it uses up a nonce behind which others wait.
    Filler,
}

/// A transaction that was signed and recorded before it was sent. Several may share a nonce: one
/// of them is mined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// What for.
    pub purpose: Purpose,
    /// Its nonce.
    pub nonce: u64,
    /// What it offers per gas.
    pub fees: Fees,
    /// When it was signed.
    pub signed: Timestamp,
}

/// A transaction that was mined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mined {
    /// What for.
    pub purpose: Purpose,
    /// In which block.
    pub block: u64,
    /// Whether it succeeded.
    pub success: bool,
    /// When we learned of it.
    pub seen: Timestamp,
}
