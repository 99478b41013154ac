//! What a request costs at most, from its body alone: no model is touched to say it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::body::Body;
use farthing_protocol::offer::{ModelOffer, OfferHash, VerifiedOffer};
use farthing_protocol::payment::{
    BatchExtra, Caip2, Fields, PaymentRequirements, Resource, fields, scheme,
};
use farthing_protocol::pricing::Demand;
use farthing_protocol::purchase::{Endpoint, Mode, Refusal};
use serde::Deserialize;
use serde_json::Value;

use crate::calls::Terms;
use crate::http::Shared;
use crate::upstream::Health;

/// Where in the terms of a way to pay the offer is named whose prices apply.
pub(in crate::http) const OFFER: &str = "offer";
/// Where in the terms of `upto` it is said what is charged at least.
const MIN_CHARGE: &str = "minCharge";

/// A request and its price.
#[derive(Debug)]
pub(in crate::http) struct Quote {
    /// What is for sale.
    pub(in crate::http) resource: Resource,
    /// Whether we vouch for its address.
    pub(in crate::http) attested: bool,
    pub(in crate::http) endpoint: Endpoint,
    pub(in crate::http) mode: Mode,
    pub(in crate::http) body: Bytes,
    pub(in crate::http) offer: Arc<VerifiedOffer>,
    pub(in crate::http) model: String,
    /// The most it can cost.
    pub(in crate::http) amount: Amount,
    /// Whether the buyer said itself how long the answer may be.
    pub(in crate::http) limited: bool,
    /// Whether the buyer wants the event that holds only the usage.
    pub(in crate::http) shows_usage: bool,
}

/// What is for sale where.
pub(in crate::http) struct Stand {
    pub(in crate::http) resource: Resource,
    /// Whether its address is ours by our own word, not by the client's alone.
    pub(in crate::http) attested: bool,
}

/// A request as it came, before anything in it was read.
pub(in crate::http) struct Wish {
    pub(in crate::http) stand: Stand,
    pub(in crate::http) endpoint: Endpoint,
    pub(in crate::http) body: Bytes,
    /// The offer whose prices the buyer was told.
    pub(in crate::http) offer: Option<OfferHash>,
}

impl Quote {
    /// The price of a wish.
    ///
    /// # Errors
    /// The [`Refusal`] of a request that cannot be sold, whatever is paid.
    pub(in crate::http) fn of(shared: &Shared, wish: Wish) -> Result<Self, Refusal> {
        let offer = offer(shared, wish.offer)?;
        let body = Body::parse(&wish.body).map_err(bad_request)?;
        let name: Option<String> = body.get("model").map_err(bad_request)?;
        let name = name.ok_or_else(|| bad_request("no `model` is named"))?;
        let model = offer.offer().model(&name).ok_or(Refusal::UnknownModel)?;
        if !model.endpoints.contains(&wish.endpoint) {
            return Err(Refusal::Endpoint);
        }
        let amount = price(&wish, &body, model)?;
        let streams = body.get("stream").map_err(bad_request)?.unwrap_or(false);
        let shows_usage = shows_usage(&body)?;
        let said = body.raw("max_tokens").or(body.raw("max_completion_tokens"));
        let limited = said.is_some() || !wish.endpoint.writes();
        Ok(Self {
            resource: wish.stand.resource,
            attested: wish.stand.attested,
            endpoint: wish.endpoint,
            mode: if streams { Mode::Stream } else { Mode::Plain },
            body: wish.body,
            model: name,
            amount,
            limited,
            shows_usage,
            offer,
        })
    }

    /// The price of the smallest request there is, for those who only want to know how to pay.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`], [`Refusal::Endpoint`].
    pub(in crate::http) fn probe(
        shared: &Shared,
        stand: Stand,
        endpoint: Endpoint,
    ) -> Result<Self, Refusal> {
        let offer = offer(shared, None)?;
        let models = offer.offer().models.iter();
        let sold = models
            .map(|model| (model, &model.endpoints))
            .find(|(_, endpoints)| endpoints.contains(&endpoint));
        let (model, _) = sold.ok_or(Refusal::Endpoint)?;
        let name = Value::from(model.id.as_str());
        let wish = Wish {
            stand,
            endpoint,
            body: format!("{{\"model\":{name},\"max_tokens\":1}}").into(),
            offer: Some(offer.hash()),
        };
        Self::of(shared, wish)
    }

    /// The ways to pay, best first.
    pub(in crate::http) fn accepts(&self, shared: &Shared) -> Vec<PaymentRequirements> {
        let terms = &shared.desk.terms;
        let batch = BatchExtra {
            receiver_authorizer: terms.claim,
            withdraw_delay: terms.withdraw_delay,
            name: terms.network.token_name.clone(),
            version: terms.network.token_version.clone(),
            min_deposit: Some(terms.min_deposit),
            channel_state: None,
            voucher_state: None,
        };
        let batch = self.way(shared, scheme::BATCH, self.amount, fields(&batch));
        [Some(batch), self.upto(shared), self.exact(shared)]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Offered where the contracts are there and the price is worth a transaction. What is used is
    /// charged, and no less than is worth one: the terms say so beforehand, and it is within the
    /// ceiling that is signed.
    fn upto(&self, shared: &Shared) -> Option<PaymentRequirements> {
        let worth = self.amount >= shared.settings.min_single;
        let there = shared.takes_upto.load(Ordering::Relaxed);
        (worth && there).then(|| {
            let mut extra = token(&shared.desk.terms);
            let claim = shared.desk.terms.claim.to_checksum(None);
            extra.insert("facilitatorAddress".to_owned(), claim.into());
            extra.insert("assetTransferMethod".to_owned(), "permit2".into());
            let least = shared.settings.min_single.to_string();
            extra.insert(MIN_CHARGE.to_owned(), least.into());
            self.way(shared, scheme::UPTO, self.amount, extra)
        })
    }

    /// Offered where the buyer has said what it wants at most, for it is charged in full, and at
    /// least what is worth a transaction.
    fn exact(&self, shared: &Shared) -> Option<PaymentRequirements> {
        let amount = self.amount.max(shared.settings.min_single);
        self.limited.then(|| {
            let extra = token(&shared.desk.terms);
            self.way(shared, scheme::EXACT, amount, extra)
        })
    }

    /// Whether every event is shown.
    pub(in crate::http) fn shows_all_usage(&self) -> bool {
        self.shows_usage || self.mode == Mode::Plain
    }

    fn way(
        &self,
        shared: &Shared,
        scheme: &str,
        amount: Amount,
        mut extra: Fields,
    ) -> PaymentRequirements {
        let Terms {
            network, payout, ..
        } = &shared.desk.terms;
        let hash = format!("{:#x}", self.offer.hash().0);
        extra.insert(OFFER.to_owned(), hash.into());
        PaymentRequirements {
            scheme: scheme.to_owned(),
            network: Caip2(network.chain_id),
            amount,
            asset: network.token,
            pay_to: *payout,
            max_timeout_seconds: shared.price_holds,
            extra,
        }
    }
}

/// The token's EIP-712 domain.
fn token(terms: &Terms) -> Fields {
    let mut extra = Fields::new();
    extra.insert("name".to_owned(), terms.network.token_name.clone().into());
    let version = terms.network.token_version.clone();
    extra.insert("version".to_owned(), version.into());
    extra
}

/// The offer a buyer was told, while it holds; else the newest.
fn offer(shared: &Shared, told: Option<OfferHash>) -> Result<Arc<VerifiedOffer>, Refusal> {
    let shop = &shared.desk.shop;
    if let Health::Down(reason) = shop.upstream.health() {
        tracing::debug!(%reason, "no price: the model server is down");
        return Err(Refusal::Unavailable("the model server is down".to_owned()));
    }
    let now = shop.clock.now();
    let told = told.and_then(|hash| shop.shelf.find(hash, now));
    let newest = || {
        shop.shelf
            .newest()
            .filter(|offer| offer.offer().expires > now)
    };
    let nothing = || Refusal::Unavailable("nothing is on sale at this moment".to_owned());
    told.or_else(newest).ok_or_else(nothing)
}

fn price(wish: &Wish, body: &Body<'_>, model: &ModelOffer) -> Result<Amount, Refusal> {
    let demand = Demand::of(&wish.body, body, wish.endpoint, model).map_err(bad_request)?;
    let quote = demand
        .quote(&model.prices)
        .map_err(|_| bad_request("the request's cost cannot be represented"))?;
    // Nothing can be promised with a voucher over nothing more.
    Ok(quote.max(Amount::atoms(1)))
}

fn shows_usage(body: &Body<'_>) -> Result<bool, Refusal> {
    #[derive(Deserialize)]
    struct Options {
        include_usage: Option<bool>,
    }
    let options: Option<Options> = body.get("stream_options").map_err(bad_request)?;
    Ok(options.and_then(|options| options.include_usage) == Some(true))
}

fn bad_request(error: impl std::fmt::Display) -> Refusal {
    Refusal::BadRequest(error.to_string())
}
