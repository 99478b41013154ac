//! Sellers that are listed in the configuration and met over plain HTTP.

use alloy::primitives::keccak256;
use farthing_protocol::amount::Price;
use farthing_protocol::identity::{NodeId, NodeKey};
use farthing_protocol::offer::{Endpoint, ModelOffer, Prices};
use reqwest::Url;

use crate::config::X402;

/// What a token is reckoned at where a seller's prices are not stated: one dollar a million.
const RECKONED: Price = Price(1_000_000);

/// An x402 seller, as the configuration names it.
#[derive(Debug, Clone, PartialEq)]
pub struct WebOffer {
    /// Its name among the sellers: made from its address, nobody's key.
    pub id: NodeId,
    /// Its OpenAI-compatible base, such as `https://seller.example/v1`.
    pub base: Url,
    /// What it sells.
    pub models: Vec<ModelOffer>,
    /// Whether its prices are stated.
    pub priced: bool,
}

impl WebOffer {
    /// The seller of a setting, with these models; none when its address is not one.
    #[must_use]
    pub fn of(setting: &X402, models: &[String]) -> Option<Self> {
        let base: Url = setting.url.parse().ok()?;
        let id = NodeKey::from_seed(&keccak256(base.as_str()).0).id();
        let prices = Prices {
            input: setting.price_input.unwrap_or(RECKONED),
            cached_input: setting.price_input.unwrap_or(RECKONED),
            output: setting.price_output.unwrap_or(RECKONED),
            request: Price(0),
        };
        let model = |id: &String| ModelOffer {
            id: id.clone(),
            endpoints: Endpoint::ALL.to_vec(),
            features: Vec::new(),
            context: u32::MAX,
            max_output: setting.max_output,
            quantization: None,
            weights_digest: None,
            prices,
            slots: 1,
        };
        Some(Self {
            id,
            base,
            models: models.iter().map(model).collect(),
            priced: setting.price_input.is_some() && setting.price_output.is_some(),
        })
    }
}
