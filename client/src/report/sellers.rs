//! What is believed of sellers, for people.

use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use serde::{Deserialize, Serialize};

/// What others say of a seller's model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WordReport {
    /// How many payers speak.
    pub payers: usize,
    /// Atoms they have paid the seller by the chain, older words counting less.
    pub value: f64,
    /// The share of their purchases that was good, 0 to 1.
    pub quality: f64,
}

/// What is believed of one model at one seller, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SellerReport {
    /// The seller.
    pub seller: NodeId,
    /// The model.
    pub model: String,
    /// The chance that a purchase succeeds, 0 to 1, before what was measured in the last minutes.
    pub success: f64,
    /// What may be signed ahead of proof there at one time.
    pub credit: Amount,
    /// Own purchases that brought a whole answer, in the last weeks.
    pub served: u32,
    /// Own purchases that brought nothing.
    pub failed: u32,
    /// Own purchases whose answer broke off.
    pub broken: u32,
    /// False receipts.
    pub disputed: u32,
    /// Whole answers that were not what was asked for.
    pub invalid: u32,
    /// What the whole answers cost.
    pub charged: Amount,
    /// What others say.
    pub word: Option<WordReport>,
    /// All of it in one line.
    pub why: String,
}
