//! The market as people look at it.

use std::collections::BTreeMap;
use std::sync::Arc;

use farthing_protocol::amount::Price;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::{ModelOffer, Offer, Prices, VerifiedOffer};

use crate::market::stats::Measured;
use crate::market::web::WebOffer;
use crate::report::{Measurement, ModelListing, OfferReport};

/// The models on offer, by id.
pub(super) fn models<'a>(
    offers: impl Iterator<Item = &'a Arc<VerifiedOffer>>,
    web: &'a [Arc<WebOffer>],
    now: Timestamp,
) -> Vec<ModelListing> {
    let mut listed: BTreeMap<&str, ModelListing> = BTreeMap::new();
    let peers = offers.map(|offer| (&offer.offer().models, offer.offer().issued));
    let all = peers.chain(web.iter().map(|offer| (&offer.models, now)));
    for (models, since) in all {
        for model in models {
            let listing = listed
                .entry(&model.id)
                .or_insert_with(|| first(model, since));
            listing.sellers += 1;
            add(listing, model, since);
        }
    }
    listed.into_values().collect()
}

fn first(model: &ModelOffer, since: Timestamp) -> ModelListing {
    ModelListing {
        id: model.id.clone(),
        sellers: 0,
        endpoints: Vec::new(),
        features: Vec::new(),
        context: 0,
        max_output: 0,
        cheapest: model.prices,
        since,
    }
}

fn add(listing: &mut ModelListing, model: &ModelOffer, since: Timestamp) {
    listing.endpoints.extend(&model.endpoints);
    listing.endpoints.sort_unstable();
    listing.endpoints.dedup();
    listing.features.extend(model.features.iter().cloned());
    listing.features.sort_unstable();
    listing.features.dedup();
    listing.context = listing.context.max(model.context);
    listing.max_output = listing.max_output.max(model.max_output);
    listing.since = listing.since.min(since);
    let least = |a: Price, b: Price| a.min(b);
    let (have, new) = (listing.cheapest, model.prices);
    listing.cheapest = Prices {
        input: least(have.input, new.input),
        cached_input: least(have.cached_input, new.cached_input),
        output: least(have.output, new.output),
        request: least(have.request, new.request),
    };
}

/// Every offer of every model, by model and price.
pub(super) fn offers<'a>(
    offers: impl Iterator<Item = &'a Arc<VerifiedOffer>>,
    measured: impl Fn(NodeId, &str) -> Option<Measured>,
    now: Timestamp,
) -> Vec<OfferReport> {
    let mut reports = Vec::new();
    for offer in offers.map(|offer| offer.offer()) {
        for model in &offer.models {
            let measured = measured(offer.seller, &model.id);
            reports.push(report(offer, model, measured, now));
        }
    }
    reports.sort_by(|a, b| key(a).cmp(&key(b)));
    reports
}

fn key(report: &OfferReport) -> (&str, Price, Price, NodeId) {
    let prices = report.prices;
    (&report.model, prices.output, prices.input, report.seller)
}

fn report(
    offer: &Offer,
    model: &ModelOffer,
    measured: Option<Measured>,
    now: Timestamp,
) -> OfferReport {
    OfferReport {
        seller: offer.seller,
        model: model.id.clone(),
        endpoints: model.endpoints.clone(),
        prices: model.prices,
        context: model.context,
        max_output: model.max_output,
        slots: model.slots,
        region: offer.region.clone(),
        data_policy: offer.data_policy.clone(),
        expires: offer.expires.max(now),
        measured: measured.map(measurement),
    }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "milliseconds are positive, and casts from floats saturate"
)]
fn measurement(measured: Measured) -> Measurement {
    let pause = measured.pause.map_or(0, |pause| pause.left().as_millis());
    Measurement {
        success: measured.success,
        first_token_ms: measured.first_token.map(|millis| millis as u64),
        tokens_per_second: measured.per_token.map(|millis| 1000.0 / millis.max(0.001)),
        in_flight: measured.in_flight,
        load: measured.load,
        paused_ms: u64::try_from(pause).unwrap_or(u64::MAX),
        paid: measured.paid,
    }
}
