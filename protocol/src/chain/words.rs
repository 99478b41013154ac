//! What is said at the door: calls, fees, blocks, outcomes.

use std::ops::RangeInclusive;

use alloy::primitives::{Address, B256, Bytes};
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::chain::error::ChainError;
use crate::x402::ChannelId;

/// A call to a contract by somebody.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) data: Bytes,
}

/// Which logs of the settlement contract.
#[derive(Debug, Clone)]
pub(super) struct LogQuery {
    pub(super) address: Address,
    /// Any of these as the first topic.
    pub(super) topics: Vec<B256>,
    /// This as the second, if it matters.
    pub(super) about: Option<B256>,
    pub(super) blocks: RangeInclusive<u64>,
}

/// What a transaction offers to pay per unit of gas, in wei (EIP-1559).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fees {
    /// At most this, base fee included.
    pub max: u128,
    /// Of which to the block's builder.
    pub priority: u128,
}

impl Fees {
    /// The least that replaces a waiting transaction with these fees: nodes want ten per cent
    /// more, and we give an eighth.
    #[must_use]
    pub const fn bumped(self) -> Self {
        Self {
            max: bump(self.max),
            priority: bump(self.priority),
        }
    }

    /// These, but at most `most` per gas in all.
    #[must_use]
    pub fn capped(self, most: u128) -> Self {
        Self {
            max: self.max.min(most),
            priority: self.priority.min(most),
        }
    }

    /// The higher of both, field by field.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            max: self.max.max(other.max),
            priority: self.priority.max(other.priority),
        }
    }
}

const fn bump(fee: u128) -> u128 {
    fee.saturating_add(fee / 8).saturating_add(1)
}

/// How many transactions an account has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nonces {
    /// Those that are mined: the nonce that is mined next.
    pub mined: u64,
    /// With those that wait at the node in an unbroken row: the first nonce that is free there.
    pub free: u64,
}

/// What the nodes say of a transaction that was handed in at every one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whether one takes it, and else why not.
    pub word: Result<(), ChainError>,
    /// Whether every node has said something: one that is silent may have taken it.
    pub by_all: bool,
}

/// A block's number, name and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Height.
    pub number: u64,
    /// Its hash: another one at the same height is another history.
    pub hash: B256,
    /// Seconds since the epoch, by the chain.
    pub timestamp: u64,
}

/// What became of a mined transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The block it is in.
    pub block: u64,
    /// False when it reverted: gas was paid, nothing else happened.
    pub success: bool,
    /// Gas used.
    pub gas: u64,
    /// Wei paid per gas.
    pub gas_price: u128,
}

/// What the contract holds for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OnChain {
    /// Deposited, less refunded and withdrawn. Claims do not lower it.
    pub balance: Amount,
    /// Claimed in all.
    pub claimed: Amount,
}

/// A withdrawal the buyer has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingWithdrawal {
    /// Atoms asked back.
    pub amount: Amount,
    /// When, in seconds since the epoch; it can be executed `withdraw_delay` later.
    pub initiated_at: u64,
}

/// A withdrawal as the contract tells it; none when its clock never began.
pub(super) fn pending(amount: u128, initiated_at: u64) -> Option<PendingWithdrawal> {
    (initiated_at != 0).then(|| PendingWithdrawal {
        amount: Amount::atoms(amount),
        initiated_at,
    })
}

/// A receiver's totals over all its channels in one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Payouts {
    /// Claimed in all.
    pub claimed: Amount,
    /// Of which transferred to the receiver.
    pub settled: Amount,
}

/// A buyer has started the clock of a withdrawal: claim at once, count the amount as gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Withdrawal {
    /// The channel.
    pub channel: ChannelId,
    /// Atoms asked back.
    pub amount: Amount,
    /// When it can be executed, in seconds since the epoch.
    pub finalize_after: u64,
    /// The block of the event.
    pub block: u64,
}

/// Something that happened to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The block it is in.
    pub block: u64,
    /// The transaction that did it.
    pub transaction: B256,
    /// The channel.
    pub channel: ChannelId,
    /// What happened.
    pub change: Change,
}

/// What happened to a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Money came in.
    Deposited {
        /// So much.
        amount: Amount,
        /// The balance since.
        balance: Amount,
    },
    /// The seller claimed.
    Claimed {
        /// So much more.
        amount: Amount,
        /// Claimed in all since.
        claimed: Amount,
    },
    /// The seller gave money back.
    Refunded {
        /// So much.
        amount: Amount,
    },
    /// The buyer asked for money back.
    WithdrawInitiated {
        /// So much.
        amount: Amount,
        /// When it can be executed, in seconds since the epoch.
        finalize_after: u64,
    },
    /// The buyer got it.
    WithdrawFinalized {
        /// So much (what was left).
        amount: Amount,
    },
}
