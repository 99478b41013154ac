//! What the node tells its operator: plain data that the parts fill in, the control socket serves
//! as JSON and the command line shows as tables.

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::net::Reachability;
use farthing_protocol::offer::Prices;
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::x402::ChannelId;
use serde::{Deserialize, Serialize};

/// The payment token, as people read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its address.
    pub address: Address,
    /// Its symbol.
    pub symbol: String,
    /// Digits behind the point.
    pub decimals: u8,
}

impl Token {
    /// An amount in units of the token: `0.001234 USDC`.
    #[must_use]
    pub fn show(&self, amount: Amount) -> String {
        let places = usize::from(self.decimals);
        let digits = format!("{:0>width$}", amount.get(), width = places + 1);
        let (whole, fraction) = digits.split_at(digits.len() - places);
        let point = if places == 0 { "" } else { "." };
        format!("{whole}{point}{fraction} {}", self.symbol)
    }
}

/// How a running node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Who it is.
    pub node: NodeId,
    /// The program's version.
    pub version: String,
    /// When it started.
    pub started: Timestamp,
    /// When this was written.
    pub now: Timestamp,
    /// The chain it is paid on.
    pub chain_id: u64,
    /// Where its earnings go.
    pub payout: Address,
    /// What claims for it.
    pub claim: Address,
    /// Where it can be reached.
    pub addresses: Vec<String>,
    /// How strangers reach it.
    pub reach: Reach,
    /// Peers connected now.
    pub peers: u32,
    /// Why the model server is down; nothing when it is up.
    pub upstream_down: Option<String>,
    /// Why the chain is away; nothing when it answers.
    pub chain_away: Option<String>,
    /// The offer that holds; nothing when nothing is on sale.
    pub offer: Option<OfferStatus>,
    /// What is sold.
    pub models: Vec<ModelStatus>,
}

/// How strangers reach the node, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// How, or why not.
    pub how: String,
    /// What the operator can do about it; nothing when all is well.
    pub remedy: Option<String>,
}

impl Reach {
    /// The words for it.
    #[must_use]
    pub fn of(reachability: Reachability) -> Self {
        let (how, barrier) = match reachability {
            Reachability::Unknown => ("not known yet: nobody has tried".to_owned(), None),
            Reachability::Told => ("at network.external, as configured".to_owned(), None),
            Reachability::Tested => (
                "directly: a peer that was asked to got through".into(),
                None,
            ),
            Reachability::Visited => ("directly: strangers have come".to_owned(), None),
            Reachability::Relayed { relays, barrier } => (
                format!("through {relays} relays only: {barrier}"),
                Some(barrier),
            ),
            Reachability::Unreachable(barrier) => (format!("not at all: {barrier}"), Some(barrier)),
        };
        let remedy = barrier.map(|barrier| barrier.remedy().to_owned());
        Self { how, remedy }
    }
}

/// The offer that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferStatus {
    /// Its number.
    pub seq: u64,
    /// When it ends.
    pub expires: Timestamp,
}

/// One model on sale.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelStatus {
    /// `author/name`.
    pub id: String,
    /// Its name at the model server; nothing when the server does not have it.
    pub upstream_name: Option<String>,
    /// What it costs.
    pub prices: Prices,
    /// Purchases being served.
    pub running: u32,
    /// Purchases served at once at most.
    pub slots: u32,
}

/// What the node has earned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earnings {
    /// In which money.
    pub token: Token,
    /// Of all channels together.
    pub total: Sums,
    /// Paid out to the payout address; nothing when the chain does not answer.
    pub settled: Option<Amount>,
    /// Deposited, mined, and not deep enough to count.
    pub unconfirmed: Amount,
    /// Why claims must wait although the chain answers.
    pub trouble: Option<String>,
    /// How often the chain took blocks back since the start.
    pub reorganisations: u64,
    /// Transactions on their way, the oldest nonce first.
    pub in_flight: Vec<Transaction>,
    /// Each channel with a charge, the most at risk first.
    pub channels: Vec<ChannelEarnings>,
}

/// One purchase as its seller has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sold {
    /// Who paid; nothing when the books no longer know the channel.
    pub payer: Option<Address>,
    /// Through which door it came, and how it was paid.
    pub door: String,
    /// The model; nothing when it is not in the configuration any more.
    pub model: Option<String>,
    /// The receipt.
    pub signed: SignedReceipt,
}

/// Some purchases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoldPage {
    /// In which money.
    pub token: Token,
    /// Them.
    pub sold: Vec<Sold>,
}

/// A transaction on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    /// What for: `deposit`, `claim`, `refund`, …
    pub purpose: String,
    /// The channel it is about; nothing when it is about several.
    pub channel: Option<ChannelId>,
    /// Its hash: of the latest, when its fee was raised.
    pub hash: B256,
    /// Its nonce.
    pub nonce: u64,
    /// When it was first signed.
    pub signed: Timestamp,
    /// Wei it offers per gas.
    pub fee: u128,
    /// How often it was signed, each time dearer.
    pub attempts: u64,
    /// The block it is in, when it only waits to be deep enough.
    pub mined: Option<u64>,
}

/// What was earned on channels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    /// Charged: what the receipts say.
    pub charged: Amount,
    /// Claimed on chain: safe.
    pub claimed: Amount,
    /// Charged and not claimed yet: lost if no claim succeeds in time.
    pub at_risk: Amount,
    /// Of that, what claims on their way are about.
    pub in_flight: Amount,
    /// Charged, and not there any more to be claimed: not counted as at risk.
    pub lost: Amount,
}

impl Sums {
    /// These and those.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            charged: self.charged.saturating_add(other.charged),
            claimed: self.claimed.saturating_add(other.claimed),
            at_risk: self.at_risk.saturating_add(other.at_risk),
            in_flight: self.in_flight.saturating_add(other.in_flight),
            lost: self.lost.saturating_add(other.lost),
        }
    }
}

/// What was earned on one channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelEarnings {
    /// The channel.
    pub channel: ChannelId,
    /// Whose money it holds.
    pub payer: Address,
    /// Receipts so far.
    pub receipts: u64,
    /// What was earned.
    pub sums: Sums,
    /// What the best voucher promises.
    pub ceiling: Amount,
    /// What the buyer has asked back.
    pub armed: Amount,
    /// Deposited, and not deep enough to count.
    pub unconfirmed: Amount,
    /// Since when something is unclaimed.
    pub since: Option<Timestamp>,
    /// Why something is still at risk, or that nothing is.
    pub why: Why,
}

/// Why a charge is not claimed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Why {
    /// Everything charged is claimed.
    Safe,
    /// Too little to be worth a claim's gas yet.
    Small {
        /// When it will be claimed even so.
        claim_by: Timestamp,
    },
    /// It is worth a claim and will be in the next.
    Due,
    /// A claim is on its way.
    Claiming {
        /// Its transaction.
        transaction: B256,
    },
    /// The buyer has asked its deposit back: it must be claimed before then.
    Leaving {
        /// When the buyer can take it.
        at: Timestamp,
    },
    /// The chain does not answer.
    ChainAway,
    /// Claims must wait although the chain answers.
    Held {
        /// Why: no gas, as a rule.
        why: String,
    },
    /// The channel holds less than was charged: the buyer withdrew while nobody claimed, or the
    /// chain took a deposit back.
    Short {
        /// What it holds: all that can be claimed.
        holds: Amount,
        /// What cannot be claimed unless more is deposited.
        lost: Amount,
    },
    /// The contract refuses the channel's row; it is tried again.
    Refused {
        /// In its words.
        why: String,
    },
    /// No voucher covers it: the buyer was cut off between work and payment.
    Uncovered,
}

/// What claiming now has moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// In which money.
    pub token: Token,
    /// Each transaction and the atoms it moved.
    pub transactions: Vec<(B256, Amount)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_is_shown_in_units_of_its_token() {
        let token = |decimals| Token {
            address: Address::ZERO,
            symbol: "T".into(),
            decimals,
        };
        assert_eq!(token(6).show(Amount::ZERO), "0.000000 T");
        assert_eq!(token(6).show(Amount::atoms(1_234_567)), "1.234567 T");
        assert_eq!(token(0).show(Amount::atoms(12)), "12 T");
    }
}
