use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::{Endpoint, Offer, SignedOffer};
use farthing_protocol::testing;

use super::*;
use crate::config::Config;

const NOW: Timestamp = Timestamp(1_000_000);

fn offer(seq: u64, change: impl FnOnce(&mut Offer)) -> Arc<VerifiedOffer> {
    let mut offer = testing::offer_of(1, seq, NOW);
    offer.data_policy = Some("none".into());
    change(&mut offer);
    let signed = SignedOffer::sign(&offer, &testing::node_key(1)).expect("signs");
    Arc::new(signed.verify(&testing::network(), NOW).expect("verifies"))
}

fn terms() -> Terms {
    let body = br#"{"model":"test/model","messages":[],"max_tokens":100}"#;
    let mut config = Config::default();
    config.router.private = true;
    Terms::of(Endpoint::Chat, &Bytes::from_static(body), &config).expect("accepted")
}

#[test]
fn a_newer_offer_takes_the_place_of_an_older_one_only_if_the_request_would_have_it() {
    let older = offer(1, |_| {});
    let fits = |change: fn(&mut Offer)| replaces(&terms(), &offer(2, change), &older);
    assert!(fits(|_| {}));
    assert!(!replaces(&terms(), &older, &older), "it is the same");
    assert!(!fits(|offer| offer.models[0].prices.output.0 += 1));
    assert!(!fits(|offer| offer.models[0].features.clear()));
    assert!(!fits(
        |offer| offer.models[0].endpoints = vec![Endpoint::Embeddings]
    ));
    assert!(!fits(
        |offer| offer.data_policy = Some("trains on all of it".into())
    ));
    assert!(!fits(|offer| offer.models[0].id = "another/model".into()));
}

#[test]
fn what_says_nothing_is_held_back_within_bounds() {
    let mut held = Held::default();
    for _ in 1..MOST_HELD {
        let full = held.keep(Some(Bytes::from_static(b"{}")));
        assert!(!full.expect("is short"));
        assert!(!held.keep(None).expect("is nothing"));
    }
    assert!(held.keep(Some(Bytes::from_static(b"{}"))).expect("short"));
    let mut held = Held::default();
    let half = || Some(Bytes::from(vec![b' '; MOST_HELD_BYTES / 2]));
    held.keep(half()).expect("is short");
    held.keep(half()).expect("is short");
    let long = held.keep(Some(Bytes::from_static(b" ")));
    assert!(matches!(long, Err(Failure::Nonsense(_))), "{long:?}");
}
