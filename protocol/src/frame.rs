//! The alphabet of the wire: every message that crosses a stream, and how large it may be.
//!
//! A frame on the wire is a big-endian `u32` length and that many bytes: the version byte and the
//! encoded value (`codec`). Two protocols: a **purchase** (frames both ways; a stream may carry one
//! after another) and a **call** (one [`Call`], one [`Answer`]).

use std::time::Duration;

use alloy::primitives::B256;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::codec::{self, Error};
use crate::offer::SignedOffer;
use crate::purchase::{Ask, Load, Refusal, Usage};
use crate::receipt::SignedReceipt;
use crate::root::{CoSigned, RootWord, SignedRoot};
use crate::testimony::SignedTestimony;
use crate::voucher::SignedVoucher;
use crate::x402::{ChannelConfig, ChannelId, Deposit};

/// The most bytes of an ask's frame. Sellers may take less ([`Refusal::TooLarge`]).
pub const ASK_LIMIT: usize = 8 * 1024 * 1024;
/// The most bytes of any other frame a buyer sends on a purchase.
pub const PAY_LIMIT: usize = 1024;
/// The most bytes of a frame a seller sends on a purchase.
pub const CHUNK_LIMIT: usize = 1024 * 1024;
/// The most payload bytes a seller puts into one chunk; longer events are split.
pub const CHUNK_PAYLOAD: usize = 256 * 1024;
/// The most bytes of a model server's error body that are passed on.
pub const REFUSAL_BODY_LIMIT: usize = 16 * 1024;
/// The most bytes of a call.
pub const CALL_LIMIT: usize = 4 * 1024;
/// The most bytes of an answer to a call.
pub const ANSWER_LIMIT: usize = 1024 * 1024;
/// The most offers in one page of a book.
pub const BOOK_PAGE: usize = 48;
/// The most receipts in one answer.
pub const RECEIPT_PAGE: usize = 256;
/// The most testimonies in one answer.
pub const TESTIMONY_PAGE: usize = 256;

/// How long a seller keeps a stream for another ask after a `Done` that says `open`. A buyer uses
/// it no later than half of that after it.
pub const KEPT_OPEN: Duration = Duration::from_secs(60);

/// What a buyer says on a purchase. The first frame is the ask, and no other is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSeller {
    /// What is wanted.
    Ask(Box<Ask>),
    /// A newer voucher, sent ahead of need or on [`ToBuyer::NeedVoucher`].
    Pay(SignedVoucher),
    /// Stop. What was delivered is charged.
    Cancel,
}

/// Whether a chunk ends an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// More of the same event follows.
    More,
    /// The event (or, in plain mode, the document) is whole with this chunk.
    Last,
}

/// What a seller says on a purchase: one `Accepted` or `Refused`, then chunks, then one `Done`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToBuyer {
    /// The purchase is reserved and the model server is being asked.
    Accepted {
        /// The seller's load, this purchase included.
        load: Load,
    },
    /// Nothing will come and nothing is charged. May follow `Accepted`, never a chunk.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The seller's load.
        load: Load,
    },
    /// Work waits until a voucher with at least this ceiling arrives.
    NeedVoucher {
        /// `charged + Σ reserved + what this purchase needs next`.
        ceiling: Amount,
        /// What the seller has charged on the channel.
        charged: Amount,
    },
    /// A part of the answer: the JSON of one stream event, or of the document.
    Chunk {
        /// Bytes, at most [`CHUNK_PAYLOAD`].
        data: Bytes,
        /// Whether the event is whole.
        part: Part,
        /// Tokens so far, by the seller's count.
        usage: Usage,
    },
    /// The end: what it cost.
    Done {
        /// The receipt.
        receipt: Box<SignedReceipt>,
        /// The seller's load.
        load: Load,
        /// The answer to the ask's root, if it had one.
        root: Option<Box<RootWord>>,
        /// Whether the seller waits on this stream for another ask ([`KEPT_OPEN`]).
        open: bool,
    },
}

/// A small question to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// The unexpired offers you know, from this index on.
    Book {
        /// 0, then the sum of the pages read.
        from: u32,
    },
    /// Submit this deposit; open the channel or top it up.
    Deposit {
        /// The channel's terms.
        config: ChannelConfig,
        /// The payer's authorization.
        deposit: Deposit,
    },
    /// What you hold of this channel; look on the chain if your books do not know it.
    Channel {
        /// The channel's terms, which name it.
        config: ChannelConfig,
        /// A voucher over 0 atoms: proves that the asker holds the channel's key.
        proof: SignedVoucher,
    },
    /// The channel's receipts from `seq` on.
    Receipts {
        /// The channel.
        channel: ChannelId,
        /// As in [`Call::Channel`].
        proof: SignedVoucher,
        /// The first one wanted.
        from: u64,
    },
    /// Return the unspent rest of this channel to its payer.
    Refund {
        /// The channel.
        channel: ChannelId,
        /// As in [`Call::Channel`].
        proof: SignedVoucher,
    },
    /// Sign this root too: it is the channel's key that signed it, which is proof enough.
    Root(SignedRoot),
    /// The testimonies you have looked up and found money behind, from this index on.
    Testimonies {
        /// 0, then the sum of the pages read.
        from: u32,
    },
    /// Here is a testimony.
    Testify(Box<SignedTestimony>),
}

/// What a seller holds of a channel. The buyer believes `charged` only up to `voucher`, which
/// carries its own signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Charged in all.
    pub charged: Amount,
    /// Receipts issued.
    pub receipts: u64,
    /// The highest voucher held.
    pub voucher: Option<SignedVoucher>,
    /// The deposit as the seller sees it on chain.
    pub balance: Amount,
    /// The newest root that both have signed.
    pub root: Option<CoSigned>,
    /// The peaks of the tree at the last whole block of receipts under that root: from there on a
    /// buyer that has lost its books can build the tree again from receipts.
    pub peaks: Vec<B256>,
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CallRefusal {
    /// The channel's terms are not those of the seller's offer.
    #[error("the channel's {0} is not what this seller's offer states")]
    Terms(String),
    /// The deposit cannot be submitted.
    #[error("the deposit cannot be submitted: {0}")]
    Deposit(String),
    /// The seller knows no such channel.
    #[error("the seller knows no such channel")]
    NoChannel,
    /// The proof was not made by the channel's key.
    #[error("the proof was not signed by the channel's key")]
    Proof,
    /// Purchases are running or money is reserved; try again when they have ended.
    #[error("the channel is in use; try again when its purchases have ended")]
    InUse,
    /// Too many calls, or the seller is short of something.
    #[error("the seller cannot do this now: {0}")]
    Unavailable(String),
}

/// The answer to a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A page of offers; an empty one is the end.
    Book(Vec<SignedOffer>),
    /// The deposit is mined.
    Deposited {
        /// The transaction.
        transaction: B256,
        /// The channel's balance after it.
        balance: Amount,
    },
    /// What the seller holds.
    Channel(Box<Statement>),
    /// Receipts in order of `seq`.
    Receipts(Vec<SignedReceipt>),
    /// The rest was returned.
    Refunded {
        /// The transaction.
        transaction: B256,
        /// Atoms returned.
        amount: Amount,
    },
    /// Not done.
    Refused(CallRefusal),
    /// What the seller says to a root.
    Root(Box<RootWord>),
    /// A page of testimonies; an empty one is the end.
    Testimonies(Vec<SignedTestimony>),
    /// A testimony was taken in, or was known.
    Heard,
}

/// A message that crosses a stream and knows its largest size.
pub trait Frame: Sized + Serialize + serde::de::DeserializeOwned {
    /// The most bytes an encoded message may have.
    const LIMIT: usize;

    /// The bytes of the frame, without the length in front.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Unencodable`].
    fn encode(&self) -> Result<Vec<u8>, Error> {
        let bytes = codec::encode(self)?;
        if bytes.len() > Self::LIMIT {
            return Err(Error::TooLarge {
                len: bytes.len(),
                max: Self::LIMIT,
            });
        }
        Ok(bytes)
    }

    /// The message in these bytes.
    ///
    /// # Errors
    /// Any decoding [`Error`].
    fn decode(bytes: &[u8]) -> Result<Self, Error> {
        codec::decode(bytes, Self::LIMIT)
    }
}

impl Frame for ToSeller {
    const LIMIT: usize = ASK_LIMIT;
}
impl Frame for ToBuyer {
    const LIMIT: usize = CHUNK_LIMIT;
}
impl Frame for Call {
    const LIMIT: usize = CALL_LIMIT;
}
impl Frame for Answer {
    const LIMIT: usize = ANSWER_LIMIT;
}
impl Frame for SignedOffer {
    const LIMIT: usize = crate::offer::MAX_BYTES + 128;
}
