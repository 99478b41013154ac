//! What the buyer tells people about itself: plain data that the parts fill in, the gateway
//! serves as JSON and the command line shows as tables.

use alloy::primitives::{Address, B256};
use farthing_protocol::amount::{Amount, Cost, Price};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Prices;
use farthing_protocol::purchase::{Endpoint, Load, RequestId};
use farthing_protocol::receipt::SignedReceipt;
use farthing_protocol::root::{CoSigned, SignedRoot};
use farthing_protocol::x402::{ChannelConfig, ChannelId, Network};
use serde::{Deserialize, Serialize};

pub mod calendar;
mod sellers;

pub use sellers::{SellerReport, WordReport};
mod route;

pub use crate::report::route::{RouteChoice, RouteDropped, RouteReport, RouteWish};

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

    /// An amount in units of the token as a plain decimal number, exactly: `0.001234`, `2`.
    #[must_use]
    pub fn number(&self, amount: Amount) -> String {
        decimal(amount.get(), usize::from(self.decimals))
    }

    /// A cost in units of the token as a plain decimal number, exactly; and a price, which is the
    /// cost of one token of text: `0.0000005`.
    #[must_use]
    pub fn number_of(&self, cost: Cost) -> String {
        decimal(cost.get(), usize::from(self.decimals) + MICRO_PLACES)
    }

    /// A price per token of text, as people compare them: per million, `0.50 USDC/M`.
    #[must_use]
    pub fn show_price(&self, price: Price) -> String {
        // Micro-atoms per token are atoms per million tokens.
        let exact = self.show(Amount::atoms(u128::from(price.0)));
        let (number, symbol) = exact.split_once(' ').unwrap_or((&exact, ""));
        let short = number.trim_end_matches('0');
        let places = short.len() - short.find('.').map_or(short.len(), |point| point + 1);
        let padding = "0".repeat(2_usize.saturating_sub(places));
        if number.contains('.') {
            format!("{short}{padding} {symbol}/M")
        } else {
            format!("{number} {symbol}/M")
        }
    }
}

/// Digits between an atom and a micro-atom.
const MICRO_PLACES: usize = 6;

/// A number of which the last `places` digits stand behind the point, without zeros at the end.
fn decimal(number: u128, places: usize) -> String {
    let digits = format!("{number:0>width$}", width = places + 1);
    let (whole, fraction) = digits.split_at(digits.len() - places);
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{whole}{point}{fraction}")
}

/// A model on offer, over all its sellers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelListing {
    /// `author/name`.
    pub id: String,
    /// How many sellers offer it now.
    pub sellers: u32,
    /// Where it can be bought, from one seller or another.
    pub endpoints: Vec<Endpoint>,
    /// The features any of them names.
    pub features: Vec<String>,
    /// The largest context on offer.
    pub context: u32,
    /// The longest answer on offer.
    pub max_output: u32,
    /// The cheapest price of each kind; not all need be from one seller.
    pub cheapest: Prices,
    /// When the oldest of its offers was issued.
    pub since: Timestamp,
}

/// One model in one seller's offer, and what this buyer measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfferReport {
    /// The seller.
    pub seller: NodeId,
    /// The model.
    pub model: String,
    /// Where it can be bought.
    pub endpoints: Vec<Endpoint>,
    /// What it costs.
    pub prices: Prices,
    /// Tokens of prompt and answer together.
    pub context: u32,
    /// The most tokens of one answer.
    pub max_output: u32,
    /// Purchases served at once.
    pub slots: u32,
    /// Where the seller says it is.
    pub region: Option<String>,
    /// What the seller says it does with prompts.
    pub data_policy: Option<String>,
    /// When the offer ends.
    pub expires: Timestamp,
    /// What was measured; nothing for a seller never tried.
    pub measured: Option<Measurement>,
}

/// What this buyer measured of one model at one seller.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The chance that a purchase succeeds, 0 to 1; the old counts less than the new.
    pub success: f64,
    /// Milliseconds to the first token.
    pub first_token_ms: Option<u64>,
    /// Tokens of the answer per second, once it flows.
    pub tokens_per_second: Option<f64>,
    /// Purchases running now.
    pub in_flight: u32,
    /// The load the seller last reported.
    pub load: Option<Load>,
    /// Milliseconds for which it is left alone.
    pub paused_ms: u64,
    /// All that was paid for this model there, since the program started.
    pub paid: Amount,
}

/// The wallet: what there is, what was spent and what may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalletReport {
    /// The payment token.
    pub token: Token,
    /// EIP-155 chain id.
    pub chain_id: u64,
    /// The address that funds channels: send the token there.
    pub payer: Address,
    /// The key that signs vouchers.
    pub authorizer: Address,
    /// What the payer holds; unknown while the chain is away.
    pub balance: Option<Amount>,
    /// Deposited in channels and not charged.
    pub in_channels: Amount,
    /// Promised by vouchers against its limit: since midnight (UTC).
    pub today: Spending,
    /// Promised by vouchers against its limit: ever.
    pub total: Spending,
    /// The most one purchase may cost.
    pub per_purchase: Amount,
    /// The most that is promised to one seller per day.
    pub per_seller: Amount,
    /// The most that one model may cost per day.
    pub per_model: Amount,
    /// A dearer purchase wants a person's yes.
    pub approve_above: Option<Amount>,
    /// How many purchases wait for one.
    pub waiting: usize,
    /// Whether the payer signs elsewhere.
    pub elsewhere: bool,
}

/// Which deposit a payer elsewhere is to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepositWish {
    /// Whom to pay.
    pub seller: NodeId,
    /// Atoms; the configured deposit if not said.
    pub amount: Option<Amount>,
    /// How many seconds there are to sign it and have it mined.
    pub valid: u64,
}

/// A deposit that a payer elsewhere is to sign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DraftReport {
    /// The hash that is signed, and the name under which the signature is taken back.
    pub id: B256,
    /// The channel it is for.
    pub channel: ChannelId,
    /// Who must sign.
    pub payer: Address,
    /// Atoms.
    pub amount: Amount,
    /// Until when it must be mined.
    pub until: Timestamp,
    /// What `eth_signTypedData_v4` takes.
    pub typed_data: serde_json::Value,
}

/// What was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Word {
    /// Nothing yet.
    Asked,
    /// Yes, once.
    Granted,
    /// No.
    Denied,
}

/// One purchase that wants a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The model.
    pub model: String,
    /// The seller it was first planned with; the word counts for any.
    pub seller: NodeId,
    /// The most it may cost.
    pub max_cost: Amount,
    /// When it was first asked for.
    pub asked: Timestamp,
    /// Until when it waits or counts.
    pub until: Timestamp,
    /// What was said.
    pub word: Word,
}

/// A purchase that wants, or has, a person's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalReport {
    /// Its name.
    pub id: B256,
    /// As it is kept.
    #[serde(flatten)]
    pub approval: Approval,
}

/// An amount spent, and the limit it counts against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spending {
    /// Promised so far: what sellers could claim at most.
    pub spent: Amount,
    /// The most it may become.
    pub limit: Amount,
}

/// How much Permit2 is to be allowed to move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit2Wish {
    /// Atoms; the limit of a day if not said.
    pub amount: Option<Amount>,
}

/// What Permit2 may now move of the payer's tokens, by permits that the payer signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permit2Report {
    /// Whose tokens.
    pub payer: Address,
    /// Atoms.
    pub allowed: Amount,
    /// The transaction.
    pub transaction: B256,
}

/// Where a channel is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ChannelPhase {
    /// The deposit is signed; the chain has not confirmed it.
    Opening,
    /// It pays.
    Open,
    /// A withdrawal is armed.
    Withdrawing {
        /// What will come back.
        amount: Amount,
        /// When `finalize` may be called.
        ready: Timestamp,
    },
    /// Nothing is left in it.
    Closed,
}

/// One payment channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelReport {
    /// The channel.
    pub id: ChannelId,
    /// The seller it pays.
    pub seller: NodeId,
    /// Where it is in its life.
    #[serde(flatten)]
    pub phase: ChannelPhase,
    /// Deposited.
    pub balance: Amount,
    /// Charged by receipts.
    pub charged: Amount,
    /// What running purchases may still charge.
    pub reserved: Amount,
    /// The highest voucher signed.
    pub ceiling: Amount,
    /// Claimed by the seller on chain.
    pub claimed: Amount,
    /// How many receipts it has.
    pub receipts: u64,
}

/// What can be done with a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
pub enum ChannelAction {
    /// Deposit more.
    TopUp {
        /// How much; the configured deposit if not said.
        amount: Option<Amount>,
    },
    /// Ask the contract for the unspent rest; the withdraw delay begins.
    Withdraw,
    /// Take out what was asked for, when the delay is over.
    Finalize,
    /// Ask the seller to send the unspent rest back at once.
    Refund,
}

/// What an action on a channel did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionReport {
    /// One line for people: what happened and what comes next.
    pub message: String,
    /// The transaction, if one was sent.
    pub transaction: Option<String>,
    /// The channel as it is now.
    pub channel: ChannelReport,
}

/// One receipt held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptReport {
    /// The model's id (the receipt itself holds only its hash); unknown for a receipt that was
    /// fetched from the seller after a crash.
    pub model: Option<String>,
    /// The endpoint, if known.
    pub endpoint: Option<Endpoint>,
    /// What is wrong with it, if we do not agree.
    pub dispute: Option<String>,
    /// The seller's signed statement.
    pub signed: SignedReceipt,
}

/// How a purchase over HTTP was paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// By a voucher on a channel.
    BatchSettlement,
    /// By a permit for at most so much.
    Upto,
    /// In full.
    Exact,
}

/// One payment over HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// The purchase.
    pub request: RequestId,
    /// The seller.
    pub seller: NodeId,
    /// Where it sells.
    pub url: String,
    /// How it was paid.
    pub scheme: Scheme,
    /// The model.
    pub model: String,
    /// What was signed for it alone, in atoms; nothing of what a channel paid.
    pub signed: Amount,
    /// What was charged.
    pub charged: Amount,
    /// When.
    pub at: Timestamp,
    /// What is wrong with it, if we do not agree.
    pub dispute: Option<String>,
    /// The seller's receipt, if it signs such.
    pub receipt: Option<SignedReceipt>,
    /// What else it said of the payment, as JSON, a few hundred bytes at most.
    pub words: Option<String>,
}

/// One payment to a seller met over plain HTTP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaymentReport {
    /// The channel that paid; none for a payment made for this purchase alone.
    pub channel: Option<ChannelId>,
    /// What is kept of it: the seller, what it charged, and what proves it, its signed receipt if
    /// it is a Farthing node, else its own words.
    #[serde(flatten)]
    pub payment: Payment,
}

/// Which receipts are wanted, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptQuery {
    /// Only of this channel.
    pub channel: Option<ChannelId>,
    /// Only of sellers whose id ends so: the short form that tables show is enough.
    pub seller: Option<String>,
    /// Only of this model.
    pub model: Option<String>,
    /// Only those that ended at this moment or later.
    pub since: Option<Timestamp>,
    /// Only those that ended before this moment.
    pub before: Option<Timestamp>,
    /// About so many.
    pub limit: u32,
}

/// Some receipts, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptPage {
    /// The receipts.
    pub receipts: Vec<ReceiptReport>,
    /// Payments to sellers met over plain HTTP, of the same time.
    #[serde(default)]
    pub payments: Vec<PaymentReport>,
    /// There may be more: ask for those before this moment.
    pub next: Option<Timestamp>,
}

/// Which part of a channel is wanted, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StretchQuery {
    /// The channel.
    pub channel: ChannelId,
    /// The first receipt.
    pub from: u64,
}

/// What is needed of a channel to check its receipts, wherever they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptBook {
    /// The channel.
    pub channel: ChannelId,
    /// Where its money lives.
    pub network: Network,
    /// Its terms.
    pub config: ChannelConfig,
    /// The seller's node.
    pub seller: NodeId,
    /// The first receipt held: those before it were pruned, or never here.
    pub from: u64,
    /// The peaks of the tree over the receipts before it.
    pub peaks: Vec<B256>,
    /// How many receipts are booked without a gap.
    pub count: u64,
    /// The newest root that both sides have signed.
    pub root: Option<CoSigned>,
    /// A root that the seller has signed against its own receipts.
    pub contradiction: Option<SignedRoot>,
    /// Receipts that the seller has signed for places that others have.
    #[serde(default)]
    pub doubles: Vec<SignedReceipt>,
}

/// Sums over all channels, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Channels in the books.
    pub channels: usize,
    /// Charged by receipts.
    pub charged: Amount,
    /// Promised by vouchers.
    pub promised: Amount,
    /// Deposited and not charged.
    pub unspent: Amount,
    /// Sellers with an unexpired offer.
    pub sellers: usize,
}

/// Whether the buyer can buy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthReport {
    /// The program's version.
    pub version: String,
    /// Peers connected.
    pub peers: u32,
    /// Sellers with an unexpired offer.
    pub sellers: u32,
    /// Models on offer.
    pub models: u32,
    /// What is wrong with the chain; nothing when it answers as it should.
    pub chain_fault: Option<String>,
}

impl HealthReport {
    /// Whether a purchase has a chance.
    #[must_use]
    pub const fn ready(&self) -> bool {
        self.sellers > 0 && self.chain_fault.is_none()
    }
}

/// What `farthing init` made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitReport {
    /// This node among its peers.
    pub node: NodeId,
    /// The address that funds channels: send the token there.
    pub payer: Address,
    /// The key that signs vouchers.
    pub authorizer: Address,
    /// The payment token.
    pub token: Token,
}

/// Why something that was asked of the wallet, a channel or the receipts is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is no such channel or receipt.
    #[error("there is no {0}")]
    Unknown(String),
    /// The rules forbid it now.
    #[error("{0}")]
    Refused(String),
    /// The chain or the seller cannot be reached.
    #[error("{0}")]
    Unavailable(String),
    /// The client itself cannot go on.
    #[error("the client cannot go on: {0}")]
    Internal(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(decimals: u8) -> Token {
        Token {
            address: Address::ZERO,
            symbol: "USDC".into(),
            decimals,
        }
    }

    #[test]
    fn an_amount_reads_in_units_of_the_token() {
        for (atoms, text) in [
            (0, "0.000000 USDC"),
            (1_234, "0.001234 USDC"),
            (1_000_000, "1.000000 USDC"),
            (12_345_678_901, "12345.678901 USDC"),
        ] {
            assert_eq!(token(6).show(Amount::atoms(atoms)), text);
        }
        assert_eq!(token(0).show(Amount::atoms(12)), "12 USDC");
        assert!(token(255).show(Amount::MAX).starts_with("0.000"));
    }

    #[test]
    fn a_number_is_exact_and_has_no_zeros_at_its_end() {
        for (atoms, text) in [
            (0, "0"),
            (11, "0.000011"),
            (1_000_000, "1"),
            (1_200_000, "1.2"),
            (u128::MAX, "340282366920938463463374607431768.211455"),
        ] {
            assert_eq!(token(6).number(Amount::atoms(atoms)), text);
        }
        assert_eq!(token(0).number(Amount::atoms(120)), "120");
        assert_eq!(token(6).number_of(Price(500_000).times(1)), "0.0000005");
        assert_eq!(token(0).number_of(Price(1).times(1)), "0.000001");
    }

    #[test]
    fn a_price_reads_per_million_tokens() {
        for (price, text) in [
            (500_000, "0.50 USDC/M"),
            (0, "0.00 USDC/M"),
            (1, "0.000001 USDC/M"),
            (1_250_000, "1.25 USDC/M"),
            (10_000_000, "10.00 USDC/M"),
        ] {
            assert_eq!(token(6).show_price(Price(price)), text);
        }
        assert_eq!(token(0).show_price(Price(20)), "20 USDC/M");
    }
}
