//! One thing to be done on the chain: the transactions signed for it, of which one is mined, and
//! those who wait for it.

use std::collections::HashMap;

use alloy::primitives::{B256, Bytes};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Fees, Prepared, claimed_in};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::x402::{ChannelId, Network};
use tokio::time::Instant;

use crate::ledger::records::Purpose;
use crate::settlement::{Answer, Moved, SettlementError};

/// A transaction as it was signed.
#[derive(Debug, Clone)]
pub(in crate::settlement) struct Attempt {
    pub(in crate::settlement) hash: B256,
    pub(in crate::settlement) raw: Bytes,
    pub(in crate::settlement) fees: Fees,
    pub(in crate::settlement) signed: Timestamp,
    /// When this process has known it.
    pub(in crate::settlement) since: Instant,
}

impl Attempt {
    pub(in crate::settlement) fn new(prepared: Prepared, signed: Timestamp) -> Self {
        Self {
            hash: prepared.hash,
            raw: prepared.raw,
            fees: prepared.fees,
            signed,
            since: Instant::now(),
        }
    }

    /// As it was when it was prepared, but for the gas it may use, which is in the bytes.
    pub(in crate::settlement) fn prepared(&self, nonce: u64) -> Prepared {
        Prepared {
            hash: self.hash,
            raw: self.raw.clone(),
            nonce,
            gas: 0,
            fees: self.fees,
        }
    }
}

/// One nonce of the claim key, until what it was used for is final.
#[derive(Debug)]
pub(in crate::settlement) struct Errand {
    pub(in crate::settlement) purpose: Purpose,
    pub(in crate::settlement) nonce: u64,
    /// In the order in which they were signed, each dearer than the one before.
    pub(in crate::settlement) attempts: Vec<Attempt>,
    /// What it moves, if it succeeds: known while this process lives.
    pub(in crate::settlement) moves: Amount,
    /// What a claim claims.
    pub(in crate::settlement) rows: HashMap<ChannelId, Amount>,
    /// Those who wait for its end.
    pub(in crate::settlement) waiting: Vec<Answer<Moved>>,
    /// The block it is in.
    pub(in crate::settlement) mined: Option<u64>,
    /// The block at which its nonce was first seen used by another transaction.
    pub(in crate::settlement) lost: Option<u64>,
    /// Whether the dearest transaction was refused when it was last handed in.
    pub(in crate::settlement) refused: bool,
    /// Since when every node that answers has refused all of its transactions; of what cannot be
    /// made anew, every node at all.
    pub(in crate::settlement) unwelcome: Option<Timestamp>,
    /// When it was begun, and when it was last handed in.
    pub(in crate::settlement) begun: Instant,
    pub(in crate::settlement) sent: Instant,
}

impl Errand {
    pub(in crate::settlement) fn new(
        purpose: Purpose,
        nonce: u64,
        attempts: Vec<Attempt>,
        network: &Network,
    ) -> Self {
        let rows = match (purpose, attempts.first()) {
            (Purpose::Claim, Some(first)) => claimed_in(&first.raw),
            _ => Vec::new(),
        };
        let now = Instant::now();
        Self {
            purpose,
            nonce,
            attempts,
            moves: Amount::ZERO,
            rows: rows
                .into_iter()
                .map(|(config, total)| (config.id(network), total))
                .collect(),
            waiting: Vec::new(),
            mined: None,
            lost: None,
            refused: false,
            unwelcome: None,
            begun: now,
            sent: now,
        }
    }

    /// The latest transaction: the one that is handed in first.
    pub(in crate::settlement) fn newest(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// Whether it is a buyer's payment, which cannot be made anew like a claim.
    pub(in crate::settlement) const fn is_made_once(&self) -> bool {
        matches!(self.purpose, Purpose::Deposit { .. } | Purpose::Once(_))
    }

    /// The channels whose books it changes.
    pub(in crate::settlement) fn channels(&self) -> Vec<ChannelId> {
        match self.purpose {
            Purpose::Deposit { channel, .. } | Purpose::Refund(channel) => vec![channel],
            Purpose::Claim => self.rows.keys().copied().collect(),
            // What it took is entered by who sold for it.
            Purpose::Settle | Purpose::Once(_) | Purpose::Filler => Vec::new(),
        }
    }

    /// Tells all who wait.
    pub(in crate::settlement) fn tell(
        &mut self,
        mut result: impl FnMut() -> Result<Moved, SettlementError>,
    ) {
        for waiting in self.waiting.drain(..) {
            // Whoever asked may have gone.
            waiting.send(result()).ok();
        }
    }
}
