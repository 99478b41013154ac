//! Sellers that are listed in the configuration and met over plain HTTP, and model servers of
//! one's own.

use std::collections::BTreeMap;

use alloy::primitives::keccak256;
use farthing_protocol::amount::Price;
use farthing_protocol::identity::{NodeId, NodeKey};
use farthing_protocol::offer::{Endpoint, ModelOffer, Prices};
use reqwest::Url;
use reqwest::header::HeaderValue;

use crate::config::{Upstream, X402};

/// What a token is reckoned at where a seller's prices are not stated: one dollar a million.
const RECKONED: Price = Price(1_000_000);

/// What is paid to whom is met over plain HTTP.
#[derive(Debug, Clone, PartialEq)]
pub enum Fee {
    /// By the prices that the configuration states.
    Stated,
    /// What it asks for.
    Asked,
    /// Nothing: it is ours.
    None(Access),
}

/// The way into a model server of one's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// What it wants to see under `Authorization`.
    pub key: Option<HeaderValue>,
    /// Requests it answers at once.
    pub slots: u32,
    /// The id of a model on the market → its name there.
    pub names: BTreeMap<String, String>,
}

/// Who is met over plain HTTP, as the configuration names it.
#[derive(Debug, Clone, PartialEq)]
pub struct WebOffer {
    /// Its name among the sellers: made from its address, nobody's key.
    pub id: NodeId,
    /// Its OpenAI-compatible base, such as `https://seller.example/v1`.
    pub base: Url,
    /// What it sells.
    pub models: Vec<ModelOffer>,
    /// What it is paid.
    pub fee: Fee,
}

impl WebOffer {
    /// The seller of a setting, with these models; none when its address is not one.
    #[must_use]
    pub fn of(setting: &X402, models: &[String]) -> Option<Self> {
        let prices = Prices {
            input: setting.price_input.unwrap_or(RECKONED),
            cached_input: setting.price_input.unwrap_or(RECKONED),
            output: setting.price_output.unwrap_or(RECKONED),
            request: Price(0),
        };
        let stated = setting.price_input.is_some() && setting.price_output.is_some();
        let kind = Kind {
            max_output: setting.max_output,
            prices,
            // Its vouchers follow each other.
            slots: 1,
        };
        let fee = if stated { Fee::Stated } else { Fee::Asked };
        Self::at(&setting.url, models.iter().map(|id| kind.model(id)), fee)
    }

    /// A model server of one's own, with its key; none when its address is not one.
    #[must_use]
    pub fn own(setting: &Upstream, key: Option<HeaderValue>) -> Option<Self> {
        let free = Price(0);
        let kind = Kind {
            max_output: setting.max_output,
            prices: Prices {
                input: free,
                cached_input: free,
                output: free,
                request: free,
            },
            slots: setting.slots,
        };
        let models = setting.models.keys().map(|id| kind.model(id));
        let access = Access {
            key,
            slots: setting.slots,
            names: setting.models.clone(),
        };
        Self::at(&setting.url, models, Fee::None(access))
    }

    fn at(url: &str, models: impl Iterator<Item = ModelOffer>, fee: Fee) -> Option<Self> {
        let base: Url = url.parse().ok()?;
        Some(Self {
            id: NodeKey::from_seed(&keccak256(base.as_str()).0).id(),
            base,
            models: models.collect(),
            fee,
        })
    }
}

/// What all models of one of them have in common.
#[derive(Clone, Copy)]
struct Kind {
    max_output: u32,
    prices: Prices,
    slots: u32,
}

impl Kind {
    fn model(self, id: &str) -> ModelOffer {
        ModelOffer {
            id: id.to_owned(),
            endpoints: Endpoint::ALL.to_vec(),
            features: Vec::new(),
            context: u32::MAX,
            max_output: self.max_output,
            quantization: None,
            weights_digest: None,
            prices: self.prices,
            slots: self.slots,
        }
    }
}
