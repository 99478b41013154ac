//! A decision of the router, as people look at it.

use farthing_protocol::amount::Amount;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::purchase::Load;
use serde::{Deserialize, Serialize};

/// A request whose route is wanted; nothing is bought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteWish {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The request's body.
    pub body: String,
}

/// Whom the router would ask, or asked, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteReport {
    /// When it was decided.
    pub at: Timestamp,
    /// What decided between equals.
    pub seed: u64,
    /// The models that will do, the wanted one first.
    pub models: Vec<String>,
    /// The rule of `auto` that chose them.
    pub rule: Option<String>,
    /// What mattered most.
    pub strategy: String,
    /// How many are tried before the first token.
    pub attempts: u32,
    /// How many sell the models.
    pub on_offer: usize,
    /// Those that would be asked, in order.
    pub kept: Vec<RouteChoice>,
    /// Those that would not.
    pub dropped: Vec<RouteDropped>,
}

/// One that would be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteChoice {
    /// The seller.
    pub seller: NodeId,
    /// The model.
    pub model: String,
    /// Less is better.
    pub score: f64,
    /// Atoms it is expected to cost.
    pub cost: Amount,
    /// Atoms it may cost at most.
    pub max_cost: Amount,
    /// Milliseconds to the first token, as expected.
    pub first_token_ms: f64,
    /// Milliseconds to the end, failures included.
    pub total_ms: f64,
    /// The chance that it works, 0 to 1.
    pub success: f64,
    /// On how many purchases that rests; the old count less than the new.
    pub purchases: f64,
    /// Purchases of ours running there.
    pub in_flight: u32,
    /// The load it last reported.
    pub load: Option<Load>,
    /// Why it does not stand where its score puts it.
    pub standing: Option<String>,
    /// All this in one line.
    pub why: String,
}

/// One that would not be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteDropped {
    /// The seller.
    pub seller: NodeId,
    /// The model.
    pub model: String,
    /// Why not.
    pub reason: String,
}
