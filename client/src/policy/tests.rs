use proptest::prelude::*;

use super::*;
use crate::config::{Auto, Strategy};

fn terms(endpoint: Endpoint, text: &str) -> Result<Terms, Refused> {
    let mut config = Config::default();
    config.aliases.insert("fast".into(), "a/b".into());
    Terms::of(endpoint, &Bytes::copy_from_slice(text.as_bytes()), &config)
}

#[test]
fn a_body_without_an_alias_is_sent_as_it_came() {
    let text = r#"{"messages":[], "model" : "a/b","x": 1.0}"#;
    let terms = terms(Endpoint::Chat, text).expect("accepted");
    assert_eq!(terms.body, text.as_bytes());
    assert_eq!(terms.model, "a/b");
    assert_eq!(terms.mode, Mode::Plain);
}

#[test]
fn an_alias_becomes_the_model_it_stands_for() {
    let text = r#"{"messages":[],"model":"fast","stream":true}"#;
    let terms = terms(Endpoint::Chat, text).expect("accepted");
    assert_eq!(terms.model, "a/b");
    let expected = r#"{"messages":[],"model":"a/b","stream":true}"#;
    assert_eq!(terms.body, expected.as_bytes());
    assert_eq!(terms.mode, Mode::Stream);
}

#[test]
fn what_no_seller_would_take_is_refused_by_name() {
    use Endpoint::{Chat, Completions, Embeddings};
    let refused = |endpoint, text: &str| terms(endpoint, text).expect_err(text);
    assert!(matches!(refused(Chat, "{"), Refused::Body(_)));
    assert!(matches!(
        refused(Chat, r#"{"model":7,"messages":[]}"#),
        Refused::Body(BodyError::Field { field: "model", .. })
    ));
    assert_eq!(
        refused(Chat, r#"{"messages":[]}"#),
        Refused::Missing("model")
    );
    assert_eq!(
        refused(Chat, r#"{"model":"m"}"#),
        Refused::Missing("messages")
    );
    assert_eq!(
        refused(Completions, r#"{"model":"m"}"#),
        Refused::Missing("prompt")
    );
    assert_eq!(
        refused(Embeddings, r#"{"model":"m"}"#),
        Refused::Missing("input")
    );
    assert_eq!(
        refused(Chat, r#"{"model":"","messages":[]}"#),
        Refused::ModelName
    );
    assert_eq!(
        refused(Embeddings, r#"{"model":"m","input":"x","stream":true}"#),
        Refused::Unstreamed(Embeddings)
    );
    let large = "x".repeat(Config::default().gateway.max_body + 1);
    assert!(matches!(refused(Chat, &large), Refused::TooLarge { .. }));
}

proptest! {
    #[test]
    fn a_demand_is_what_the_seller_will_compute(
        max_tokens in proptest::option::of(any::<u64>()),
        newer in proptest::option::of(0_u64..5000),
        n in proptest::option::of(0_u64..300),
        best_of in proptest::option::of(0_u64..300),
        max_output in 1_u32..,
    ) {
        let body = serde_json::json!({
            "model": "a/b", "prompt": "p",
            "max_tokens": max_tokens, "max_completion_tokens": newer,
            "n": n, "best_of": best_of,
        });
        let text = body.to_string();
        let terms = terms(Endpoint::Completions, &text).expect("accepted");
        let mut model = probe(max_output);
        model.id = "a/b".into();
        let fields = Body::parse(text.as_bytes()).expect("parses");
        let theirs = Demand::of(text.as_bytes(), &fields, Endpoint::Completions, &model);
        prop_assert_eq!(terms.demand(&model), theirs.expect("reads"));
    }
}

fn read(config: &Config, text: &str) -> Result<Terms, Refused> {
    Terms::of(
        Endpoint::Chat,
        &Bytes::copy_from_slice(text.as_bytes()),
        config,
    )
}

fn default(text: &str) -> Terms {
    read(&Config::default(), text).expect("accepted")
}

#[test]
fn what_is_for_the_router_is_not_sent_to_a_seller() {
    let text =
        r#"{"provider":{"sort":"price"},"model":"a/b","messages":[],"session_id":"s","x":1}"#;
    let terms = default(text);
    assert_eq!(
        terms.body,
        br#"{"model":"a/b","messages":[],"x":1}"#.as_slice()
    );
    assert_eq!(terms.preferences.sort, Some(Sort::Price));
    assert!(terms.session.is_some());
}

#[test]
fn several_models_may_be_named_and_each_body_names_its_own() {
    let terms = default(r#"{"model":"a/b","models":["c/dd","a/b"],"messages":[],"x":1}"#);
    assert_eq!(terms.models, ["a/b", "c/dd"]);
    assert_eq!(terms.attempts, 2 * Config::default().router.attempts);
    assert_eq!(
        terms.body,
        br#"{"model":"a/b","messages":[],"x":1}"#.as_slice()
    );
    let other = terms.toward("c/dd");
    assert_eq!(
        other.body,
        br#"{"model":"c/dd","messages":[],"x":1}"#.as_slice()
    );
    let mut model = probe(10);
    model.id = "c/dd".into();
    let fields = Body::parse(&other.body).expect("parses");
    let theirs = Demand::of(&other.body, &fields, Endpoint::Chat, &model).expect("reads");
    assert_eq!(terms.demand(&model), theirs);
    assert_eq!(other.demand(&model), theirs);
    assert!(matches!(terms.toward("a/b"), Cow::Borrowed(_)));
    let first = default(r#"{"models":["c/d","a/b"],"messages":[]}"#);
    assert_eq!(first.model, "c/d");
    let many: Vec<_> = (0..9).map(|n| format!("m{n}")).collect();
    let text = serde_json::json!({"models": many, "messages": []}).to_string();
    let refused = read(&Config::default(), &text);
    assert_eq!(refused, Err(Refused::TooManyModels(8)));
    let refused = read(&Config::default(), r#"{"models":"a","messages":[]}"#);
    assert!(matches!(
        refused,
        Err(Refused::Body(BodyError::Field {
            field: "models",
            ..
        }))
    ));
}

#[test]
fn a_suffix_orders_the_sellers_and_is_not_part_of_the_name() {
    for (name, sort) in [
        ("a/b:nitro", Some(Sort::Throughput)),
        ("a/b:floor", Some(Sort::Price)),
        ("a/b:exacto", Some(Sort::Quality)),
        ("a/b:8b", None),
    ] {
        let text = format!(r#"{{"model":"{name}","messages":[]}}"#);
        let terms = default(&text);
        assert_eq!(terms.preferences.sort, sort);
        let id = if sort.is_some() { "a/b" } else { name };
        assert_eq!(terms.model, id);
        assert!(String::from_utf8_lossy(&terms.body).contains(&format!(r#""model":"{id}""#)));
    }
    let both = default(r#"{"model":"a/b:nitro","provider":{"sort":"price"},"messages":[]}"#);
    assert_eq!(both.preferences.sort, Some(Sort::Price));
    let mut config = Config::default();
    config.aliases.insert("fast".into(), "a/b".into());
    let terms = read(&config, r#"{"model":"fast:floor","messages":[]}"#).expect("accepted");
    assert_eq!(
        (terms.model.as_str(), terms.preferences.sort),
        ("a/b", Some(Sort::Price))
    );
}

#[test]
fn auto_takes_the_models_of_the_first_rule_that_fits() {
    let text = r#"{"model":"auto","messages":[{"role":"user","content":"translate: hello"}]}"#;
    let refused = read(&Config::default(), text).expect_err("no rules");
    assert!(refused.to_string().contains("translation"), "{refused}");
    let auto = vec![
        Auto {
            name: Some("words".into()),
            tasks: vec![Task::Translation],
            models: vec!["a/translator".into(), "a/any".into()],
            strategy: Some(Strategy::Cheapest),
            ..Auto::default()
        },
        Auto {
            models: vec!["a/any".into()],
            ..Auto::default()
        },
    ];
    let mut config = Config {
        auto,
        ..Config::default()
    };
    let terms = read(&config, text).expect("accepted");
    assert_eq!(terms.models, ["a/translator", "a/any"]);
    assert_eq!(terms.strategy, Strategy::Cheapest);
    assert!(
        terms
            .rule
            .as_ref()
            .is_some_and(|rule| rule.starts_with("words (translation"))
    );
    assert!(String::from_utf8_lossy(&terms.body).contains(r#""model":"a/translator""#));
    let terms = read(&config, &text.replace("translate", "say")).expect("accepted");
    assert_eq!(terms.models, ["a/any"]);
    assert!(
        terms
            .rule
            .as_ref()
            .is_some_and(|rule| rule.starts_with("2 ("))
    );
    config.aliases.insert("auto".into(), "my/own".into());
    assert_eq!(read(&config, text).expect("accepted").model, "my/own");
}

#[test]
fn a_request_can_lower_the_price_ceilings_but_not_raise_them() {
    let mut config = Config::default();
    config.router.max_price_input = Some(Price(400_000));
    let text =
        r#"{"model":"m","messages":[],"provider":{"max_price":{"prompt":0.5,"completion":"2"}}}"#;
    let terms = read(&config, text).expect("accepted");
    assert_eq!(terms.max_price_input, Some(Price(400_000)));
    assert_eq!(terms.max_price_output, Some(Price(2_000_000)));
}

#[test]
fn a_request_can_lower_what_it_may_cost_but_not_raise_it() {
    for (own, most) in [("2500", 2_500), ("99000000", 100_000), ("0", 0)] {
        let text = format!(r#"{{"model":"m","messages":[],"provider":{{"max_cost":"{own}"}}}}"#);
        let terms = default(&text);
        assert_eq!(terms.max_cost, Amount::atoms(most), "{own}");
        assert!(!String::from_utf8_lossy(&terms.body).contains("max_cost"));
    }
}

#[test]
fn terms_are_the_same_when_written_and_read_but_for_the_body() {
    let text = r#"{"model":"a/b:nitro","models":["c"],"messages":[],"provider":{"order":["x"],"preferred_max_latency":1.5},"session_id":"s"}"#;
    let mut terms = default(text);
    let written = serde_json::to_string(&terms).expect("is written");
    assert!(!written.contains("messages"));
    terms.body = Bytes::new();
    let read: Terms = serde_json::from_str(&written).expect("is read");
    assert_eq!(read, terms);
}
