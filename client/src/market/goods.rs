//! What a seller offers of one model, as the router sees it: [`Goods`], and with what was measured
//! a [`Candidate`].

use std::sync::Arc;

use farthing_protocol::amount::Price;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{ModelOffer, VerifiedOffer};
use serde::{Deserialize, Serialize};

use crate::market::sketch::Spread;
use crate::market::stats::Measured;
use crate::market::web::{Fee, WebOffer};

/// Where a seller is met.
#[derive(Debug, Clone, Default)]
pub enum Source {
    /// On the peer-to-peer network.
    Peer(Arc<VerifiedOffer>),
    /// Over plain HTTP.
    Web(Arc<WebOffer>),
    /// Nowhere: it was read from the record of a decision, and nothing can be bought of it.
    #[default]
    Record,
}

/// One model of one seller: all that a decision looks at but measurements, so that a decision can
/// be written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Goods {
    /// The seller.
    pub seller: NodeId,
    /// How requests may name it: its id as text, or the host of one met over plain HTTP.
    pub name: String,
    /// The model.
    pub model: ModelOffer,
    /// Whether its features are all it has: nobody states those of a seller met over plain HTTP.
    pub stated: bool,
    /// Where the seller says it is.
    pub region: Option<String>,
    /// What the seller says it does with prompts.
    pub data_policy: Option<String>,
    #[serde(skip)]
    source: Source,
}

impl Goods {
    /// A seller's goods, one for each model of its offer.
    pub(super) fn of_peer(offer: &Arc<VerifiedOffer>) -> impl Iterator<Item = Self> {
        let stated = offer.offer();
        let name = stated.seller.to_string();
        stated.models.iter().map(move |model| Self {
            seller: stated.seller,
            name: name.clone(),
            model: model.clone(),
            stated: true,
            region: stated.region.clone(),
            data_policy: stated.data_policy.clone(),
            source: Source::Peer(Arc::clone(offer)),
        })
    }

    /// The same of a seller met over plain HTTP.
    pub(super) fn of_web(offer: &Arc<WebOffer>) -> impl Iterator<Item = Self> {
        let host = offer.base.host_str().unwrap_or_default();
        offer.models.iter().map(move |model| Self {
            seller: offer.id,
            name: host.to_owned(),
            model: model.clone(),
            stated: false,
            region: None,
            // What is ours keeps what we let it keep.
            data_policy: matches!(offer.fee, Fee::None(_)).then(|| "none".to_owned()),
            source: Source::Web(Arc::clone(offer)),
        })
    }

    /// Whether a request's text names this seller: by its whole id, or its host. An end of an id
    /// is no name: anybody can make an id that ends like another's.
    #[must_use]
    pub fn is_named(&self, text: &str) -> bool {
        self.name == text
    }

    /// Whether a text means this seller to be left out: by its id, the end of it that tables
    /// show, or its host. Whoever makes an id that ends like another's is left out with it.
    #[must_use]
    pub fn is_meant(&self, text: &str) -> bool {
        const SHORTEST: usize = 6;
        self.is_named(text) || (self.stated && text.len() >= SHORTEST && self.name.ends_with(text))
    }
}

/// One seller of a model, with what is known about it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// What it offers.
    pub goods: Arc<Goods>,
    /// What was measured: at one side, for candidates are moved about.
    pub measured: Arc<Measured>,
}

/// One seller's goods, with what is told of them to people.
#[derive(Debug, Clone)]
pub struct Ware {
    /// What it offers.
    pub goods: Arc<Goods>,
    /// What was measured, if it was tried.
    pub measured: Option<Measured>,
    /// Milliseconds to the first token of its last purchases, if it was asked lately.
    pub first_tokens: Option<Spread>,
}

impl Goods {
    /// Its place among all: by model, then the cheapest first.
    pub(super) fn rank(&self) -> (&str, Price, Price, NodeId) {
        let prices = self.model.prices;
        (&self.model.id, prices.output, prices.input, self.seller)
    }

    /// Whether its prices are its own words: those of one met over plain HTTP may be reckoned.
    #[must_use]
    pub fn is_priced(&self) -> bool {
        match &self.source {
            Source::Web(offer) => offer.fee != Fee::Asked,
            Source::Peer(_) | Source::Record => true,
        }
    }
}

impl Candidate {
    /// The seller of this offer as a candidate for a model, if it offers it.
    #[must_use]
    pub fn of(offer: &Arc<VerifiedOffer>, model: &str, measured: Measured) -> Option<Self> {
        let mut goods = Goods::of_peer(offer);
        let goods = Arc::new(goods.find(|goods| goods.model.id == model)?);
        Some(Self {
            goods,
            measured: Arc::new(measured),
        })
    }

    /// The seller.
    #[must_use]
    pub fn seller(&self) -> NodeId {
        self.goods.seller
    }

    /// Where the seller is met.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.goods.source
    }

    /// The model within the offer.
    #[must_use]
    pub fn model(&self) -> &ModelOffer {
        &self.goods.model
    }
}
