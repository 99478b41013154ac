use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Offer;
use farthing_protocol::purchase::Endpoint;

use super::tests::{candidate, candidate_by, measured, order, seller};
use super::*;
use crate::config::Config;
use crate::policy::Warm;

fn terms(text: &str) -> Terms {
    terms_by(&Config::default(), text)
}

fn terms_by(config: &Config, text: &str) -> Terms {
    let body = Bytes::from(format!(
        r#"{{"model":"test/model","messages":[],"max_tokens":100{text}}}"#
    ));
    Terms::of(Endpoint::Chat, &body, config).expect("accepted")
}

fn with(n: u8, change: impl FnOnce(&mut Offer)) -> Candidate {
    candidate_by(n, change, measured(0.9, 100.0))
}

fn reasons(plan: &Plan) -> Vec<String> {
    let dropped = plan.dropped.iter();
    dropped.map(|dropped| dropped.reason.to_string()).collect()
}

fn able(n: u8, features: &[&str]) -> Candidate {
    with(n, |offer| {
        offer.models[0].features = features.iter().map(|name| (*name).to_owned()).collect();
    })
}

#[test]
fn who_states_what_is_asked_for_stands_before_who_does_not() {
    let sellers = || vec![able(1, &[]), able(2, &["tools"])];
    let tools = r#","tools":[{"type":"function"}]"#;
    let made = plan(&terms(tools), sellers(), 1);
    assert_eq!(order(&made), [seller(2), seller(1)]);
    let strict = format!(r#"{tools},"provider":{{"require_parameters":true}}"#);
    let made = plan(&terms(&strict), sellers(), 1);
    assert_eq!(order(&made), [seller(2)]);
    assert_eq!(reasons(&made), ["does not offer tools"]);
    let long = r#","provider":{"require_parameters":true}"#;
    let mut long = terms(long);
    long.bound.each = 5000;
    let made = plan(&long, sellers(), 1);
    assert_eq!(reasons(&made), ["does not offer so long an answer"; 2]);
}

#[test]
fn an_image_is_not_shown_to_the_blind() {
    let body = r#"{"model":"test/model","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://x"}}]}]}"#;
    let terms = Terms::of(Endpoint::Chat, &Bytes::from(body), &Config::default());
    let made = plan(
        &terms.expect("accepted"),
        vec![able(1, &["tools"]), able(2, &["vision"])],
        1,
    );
    assert_eq!(order(&made), [seller(2)]);
    assert_eq!(reasons(&made), ["does not offer vision"]);
}

#[test]
fn place_privacy_and_precision_are_filters() {
    let sellers = || {
        vec![
            with(1, |offer| {
                offer.region = Some("eu-west".into());
                offer.data_policy = Some("none".into());
                offer.models[0].quantization = Some("BF16".into());
            }),
            with(2, |offer| {
                offer.region = Some("europa".into());
                offer.data_policy = Some("logs".into());
                offer.models[0].quantization = Some("q4_1".into());
            }),
            with(3, |offer| {
                offer.region = None;
                offer.data_policy = None;
                offer.models[0].quantization = None;
            }),
        ]
    };
    let mut config = Config::default();
    config.router.regions = vec!["EU".into()];
    let kept = |terms: &Terms| order(&plan(terms, sellers(), 1));
    assert_eq!(kept(&terms_by(&config, "")), [seller(1)]);
    for wish in [
        r#","provider":{"zdr":true}"#,
        r#","provider":{"data_collection":"deny"}"#,
        r#","provider":{"quantizations":["bf16","fp16"]}"#,
    ] {
        let made = plan(&terms(wish), sellers(), 1);
        assert_eq!(order(&made), [seller(1)], "{wish}");
        assert_eq!(made.dropped.len(), 2);
    }
    assert_eq!(
        kept(&terms(r#","provider":{"quantizations":["unknown"]}"#)),
        [seller(3)]
    );
}

fn three() -> Vec<Candidate> {
    let well = measured(0.9, 100.0);
    [(1, 100_000), (2, 500_000), (3, 900_000)]
        .map(|(n, price)| candidate(n, price, well))
        .to_vec()
}

fn wish(provider: &str) -> Vec<NodeId> {
    let terms = terms(&format!(r#","provider":{provider}"#));
    order(&plan(&terms, three(), 1))
}

#[test]
fn sellers_are_wanted_by_whole_ids_and_left_out_by_the_ends_of_them_too() {
    let (second, third) = (seller(2).to_string(), seller(3).to_string());
    assert_eq!(
        wish(&format!(r#"{{"order":["{third}","{second}"]}}"#)),
        [seller(3), seller(2), seller(1)]
    );
    assert_eq!(
        wish(&format!(
            r#"{{"order":["{third}"],"allow_fallbacks":false}}"#
        )),
        [seller(3)]
    );
    assert_eq!(wish(r#"{"allow_fallbacks":false}"#), [seller(1)]);
    assert_eq!(wish(&format!(r#"{{"only":["{third}"]}}"#)), [seller(3)]);
    assert_eq!(
        wish(&format!(r#"{{"ignore":["{third}","{second}"]}}"#)),
        [seller(1)]
    );
    // Anybody can make an id that ends like another's.
    let end = seller(3).short();
    assert_eq!(wish(&format!(r#"{{"only":["{end}"]}}"#)), []);
    let strict = format!(r#"{{"order":["{end}"],"allow_fallbacks":false}}"#);
    assert_eq!(wish(&strict), []);
    let first = wish(&format!(r#"{{"order":["{end}"]}}"#))[0];
    assert_eq!(first, seller(1));
    let rest = [seller(1), seller(2)];
    assert_eq!(wish(&format!(r#"{{"ignore":["{end}"]}}"#)), rest);
    // A few letters mean nobody.
    let few = &end[end.len() - 3..];
    let all = wish(&format!(r#"{{"ignore":["{few}"]}}"#));
    assert_eq!(all.len(), 3);
}

#[test]
fn a_sort_orders_by_one_thing_alone() {
    let fast = Measured {
        per_token: Some(1.0),
        ..measured(0.9, 900.0)
    };
    let sellers = || {
        vec![
            candidate(1, 100_000, measured(0.8, 500.0)),
            candidate(2, 900_000, fast),
            candidate(3, 900_000, measured(0.8, 50.0)),
            candidate(4, 900_000, measured(0.999, 700.0)),
        ]
    };
    for (sort, first) in [
        ("price", 1),
        ("throughput", 2),
        ("latency", 3),
        ("exacto", 4),
    ] {
        let terms = terms(&format!(r#","provider":{{"sort":"{sort}"}}"#));
        for seed in 0..50 {
            assert_eq!(
                order(&plan(&terms, sellers(), seed))[0],
                seller(first),
                "{sort}"
            );
        }
    }
}

#[test]
fn slower_than_preferred_is_later_and_not_out() {
    let slow = candidate(1, 100_000, measured(0.9, 3000.0));
    let quick = candidate(2, 900_000, measured(0.9, 200.0));
    let terms = terms(r#","provider":{"preferred_max_latency":1.0}"#);
    let made = plan(&terms, vec![slow.clone(), quick.clone()], 1);
    assert_eq!(order(&made), [seller(2), seller(1)]);
    let sluggish = Measured {
        per_token: Some(100.0),
        ..measured(0.9, 100.0)
    };
    let made = plan(
        &self::terms(r#","provider":{"preferred_min_throughput":{"p50":20}}"#),
        vec![candidate(1, 100_000, sluggish), quick],
        1,
    );
    assert_eq!(order(&made), [seller(2), seller(1)]);
}

fn model(n: u8, id: &str, price: u64) -> Candidate {
    let change = |offer: &mut Offer| {
        id.clone_into(&mut offer.models[0].id);
        offer.models[0].prices.output = farthing_protocol::amount::Price(price);
    };
    candidate_by(n, change, measured(0.9, 100.0))
}

#[test]
fn the_models_of_a_request_are_tried_one_after_the_other_or_compared() {
    let sellers = || {
        let first = (1..=4).map(|n| model(n, "a/a", 500_000));
        let second = (5..=6).map(|n| model(n, "b/b", 100_000));
        first.chain(second).collect::<Vec<_>>()
    };
    let body = r#"{"models":["a/a","b/b"],"messages":[],"max_tokens":10}"#;
    let terms = Terms::of(Endpoint::Chat, &Bytes::from(body), &Config::default());
    let terms = terms.expect("accepted");
    let made = plan(&terms, sellers(), 1);
    let models: Vec<_> = made
        .choices
        .iter()
        .map(|c| c.candidate.model().id.as_str())
        .collect();
    assert_eq!(models, ["a/a", "a/a", "a/a", "b/b", "b/b", "a/a"]);
    assert_eq!(terms.attempts, 6);
    let across = body.replace(
        "10}",
        r#"10,"provider":{"sort":{"by":"price","partition":"none"}}}"#,
    );
    let terms = Terms::of(Endpoint::Chat, &Bytes::from(across), &Config::default());
    let made = plan(&terms.expect("accepted"), sellers(), 1);
    assert_eq!(made.choices[0].candidate.model().id, "b/b");
}

#[test]
fn a_conversation_stays_with_its_seller_while_that_is_well_and_not_much_dearer() {
    let mut terms = terms(r#","session_id":"s""#);
    terms.expected.prompt = 5000;
    terms.warm = Some(Warm {
        seller: seller(2),
        tokens: 4000,
    });
    let well = measured(0.9, 100.0);
    let first = |terms: &Terms, price, measured| {
        let sellers = vec![candidate(1, 500_000, well), candidate(2, price, measured)];
        let made = plan(terms, sellers, 1);
        (made.choices[0].candidate.seller(), made.choices[0].standing)
    };
    assert_eq!(first(&terms, 600_000, well), (seller(2), Standing::Warm));
    assert_eq!(first(&terms, 9_000_000, well).0, seller(1));
    let failing = Measured {
        pause: Some(Pause::CoolingDown(Duration::from_secs(1))),
        failures: 1,
        ..well
    };
    assert_eq!(first(&terms, 500_000, failing).0, seller(1));
    terms.warm = None;
    assert_eq!(first(&terms, 600_000, well).0, seller(1));
}

#[test]
fn an_only_seller_that_fails_and_fails_is_left_alone_but_not_for_good() {
    let failing = |failures, left| Measured {
        failures,
        pause: Some(Pause::CoolingDown(Duration::from_secs(left))),
        ..measured(0.5, 100.0)
    };
    let made = |measured| plan(&terms(""), vec![candidate(1, 500_000, measured)], 1);
    assert_eq!(order(&made(failing(2, 1))), [seller(1)]);
    let open = made(failing(5, 14));
    assert_eq!(order(&open), []);
    assert_eq!(open.retry_after(), Some(Duration::from_secs(5)));
    // Of its sixteen seconds it has rested for ten.
    assert_eq!(order(&made(failing(5, 6))), [seller(1)]);
    let tried = Measured {
        in_flight: 1,
        ..failing(5, 6)
    };
    assert_eq!(order(&made(tried)), []);
    let probing = Measured {
        pause: Some(Pause::OnProbation),
        ..failing(5, 0)
    };
    assert_eq!(made(probing).retry_after(), Some(Duration::from_secs(1)));
    let well = candidate(2, 900_000, measured(0.9, 100.0));
    let both = plan(
        &terms(""),
        vec![candidate(1, 100_000, failing(5, 6)), well],
        1,
    );
    assert_eq!((order(&both), both.retry_after()), (vec![seller(2)], None));
}

#[test]
fn not_everybody_asks_the_same_of_those_that_are_equally_good() {
    let equal = || {
        let well = measured(0.95, 100.0);
        (1..=9)
            .map(|n| candidate(n, 500_000, well))
            .collect::<Vec<_>>()
    };
    let mut config = Config::default();
    config.router.explore = 0;
    let terms = terms_by(&config, "");
    let firsts: Vec<_> = (0..900)
        .map(|seed| order(&plan(&terms, equal(), seed))[0])
        .collect();
    for n in 1..=9 {
        let share = firsts.iter().filter(|first| **first == seller(n)).count();
        assert!((50..200).contains(&share), "{n}: {share} of 900");
    }
    // Of two near ones, the idle one.
    let full = |n: u8| Measured {
        in_flight: n.into(),
        ..measured(0.95, 100.0)
    };
    let crowded = (1..=9).map(|n| candidate(n, 500_000, full(n)));
    let crowded: Vec<_> = crowded.collect();
    for seed in 0..100 {
        assert_ne!(order(&plan(&terms, crowded.clone(), seed))[0], seller(9));
    }
}
