use axum::body::to_bytes;
use farthing_protocol::amount::{Amount, Price};
use farthing_protocol::offer::Prices;
use farthing_protocol::purchase::Usage;
use proptest::prelude::*;

use super::*;
use crate::client::scripted;
use crate::client::{Attempt, Bill, Errand};
use crate::gateway::keys::Denied;
use crate::report::Token;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden.json")).expect("JSON")
}

fn bytes(value: &Value) -> Bytes {
    value.to_string().into()
}

fn about(pair: &Value) -> About {
    let seller = farthing_protocol::testing::node_key(1).id();
    let endpoint = serde_json::from_value(pair["endpoint"].clone());
    About {
        id: "gen-07".into(),
        endpoint: endpoint.expect("an endpoint"),
        place: Place {
            seller,
            provider: "peer".into(),
            model: "a/b".into(),
        },
        prices: Some(Prices {
            input: Price(100_000),
            cached_input: Price(5_000),
            output: Price(500_000),
            request: Price(0),
        }),
        token: Token {
            address: farthing_protocol::testing::network().token,
            symbol: "USDC".into(),
            decimals: 6,
        },
        routing: None,
        excludes_reasoning: false,
    }
}

/// What an answer came to: by a receipt if it says what was used, else over plain HTTP.
fn settled(pair: &Value) -> Settled {
    let charged: Amount = pair["charged"]
        .as_str()
        .expect("atoms")
        .parse()
        .expect("atoms");
    let Ok(usage) = serde_json::from_value::<Usage>(pair["used"].clone()) else {
        return charged.into();
    };
    let mut receipt = scripted::receipt().signed;
    receipt.receipt.usage = usage;
    receipt.receipt.charged = charged;
    Box::new(Bill {
        receipt,
        charged,
        earlier: Vec::new(),
    })
    .into()
}

/// The chunks in some events.
fn read(page: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(page).expect("text");
    let events = text.split("\n\n").filter(|event| !event.is_empty());
    let data = events.map(|event| event.strip_prefix("data: ").expect("data"));
    data.map(|data| serde_json::from_str(data).expect("JSON"))
        .collect()
}

#[test]
fn every_golden_request_becomes_one_that_the_market_understands() {
    for pair in golden()["requests"].as_array().expect("a list") {
        let body = bytes(&pair["openrouter"]);
        let asked = request::read(&body, pair["session"].as_str()).expect("is read");
        let sent: Value = serde_json::from_slice(&asked.body).expect("JSON");
        assert_eq!(sent, pair["market"], "{}", pair["name"]);
        let same = pair["market"] == pair["openrouter"];
        assert_eq!(
            asked.body.as_ptr() == body.as_ptr(),
            same,
            "{}",
            pair["name"]
        );
    }
}

#[test]
fn what_only_their_servers_do_is_refused_by_name() {
    for pair in golden()["refused"].as_array().expect("a list") {
        let refused = request::read(&bytes(&pair["openrouter"]), None).expect_err("refused");
        let why = pair["why"].as_str().expect("why");
        assert!(refused.to_string().contains(why), "{refused}: {why}");
        assert_eq!(refused.status(), 400);
    }
}

#[test]
fn every_golden_answer_becomes_theirs() {
    for pair in golden()["answers"].as_array().expect("a list") {
        let document = about(pair).document(&bytes(&pair["completion"]), &settled(pair));
        let document: Value = serde_json::from_slice(&document.expect("reads")).expect("JSON");
        assert_eq!(document, pair["openrouter"], "{}", pair["name"]);
    }
}

#[test]
fn every_golden_stream_becomes_their_events() {
    for pair in golden()["streams"].as_array().expect("a list") {
        let mut telling = Telling::new(about(pair));
        let mut told = Vec::new();
        for chunk in pair["chunks"].as_array().expect("a list") {
            let event = telling.chunk(&bytes(chunk)).expect("reads");
            told.extend(event.iter().flat_map(|event| read(event)));
        }
        told.extend(read(&telling.end(&settled(pair))));
        assert_eq!(Value::from(told), pair["events"], "{}", pair["name"]);
    }
}

#[test]
fn an_amount_no_float_can_hold_is_told_to_the_last_atom() {
    let pair = json!({ "endpoint": "chat", "charged": "12345678901234567890123" });
    let usage = about(&pair).usage(None, &settled(&pair));
    assert!(
        usage.contains(r#""cost":12345678901234567.890123,"#),
        "{usage}"
    );
}

#[test]
fn thinking_that_nobody_wants_to_see_is_left_out() {
    let pair = json!({ "endpoint": "chat", "charged": "1" });
    let mut telling = Telling::new(About {
        excludes_reasoning: true,
        ..about(&pair)
    });
    let chunk =
        json!({"choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "b"}}]});
    let told = telling
        .chunk(&bytes(&chunk))
        .expect("reads")
        .expect("an event");
    assert_eq!(
        read(&told)[0]["choices"][0]["delta"],
        json!({ "content": "a" })
    );
}

#[test]
fn a_rescued_answer_says_who_broke_off_and_who_went_on() {
    let pair = json!({ "endpoint": "chat", "charged": "20" });
    let mut about = about(&pair);
    let other = farthing_protocol::testing::node_key(2).id();
    let second = Place {
        seller: other,
        provider: "other".into(),
        model: "a/b".into(),
    };
    let busy = Place {
        provider: "third".into(),
        ..second.clone()
    };
    about.routing = Some(Routing {
        requested: "a/b:floor".into(),
        why: "the cheapest".into(),
        plan: vec![about.place.clone(), second],
        tried: vec![(busy, 429)],
    });
    let mut bill = Bill {
        receipt: scripted::receipt().signed,
        charged: Amount::atoms(20),
        earlier: vec![scripted::receipt().signed],
    };
    bill.receipt.seller = other;
    let settled: Settled = Box::new(bill).into();
    let mut telling = Telling::new(about);
    let last = &read(&telling.end(&settled))[0];
    let report = &last["openrouter_metadata"];
    assert_eq!(report["strategy"], "direct");
    assert_eq!(report["attempt"], 3);
    let attempts = report["attempts"].as_array().expect("a list").iter();
    let attempts: Vec<_> = attempts
        .map(|one| (&one["provider"], &one["status"]))
        .collect();
    let expected =
        [("third", 429), ("peer", 502), ("other", 200)].map(|(a, b)| (json!(a), json!(b)));
    assert_eq!(
        attempts,
        expected.iter().map(|(a, b)| (a, b)).collect::<Vec<_>>()
    );
    assert_eq!(report["endpoints"]["total"], 2);
    assert_eq!(report["endpoints"]["available"][0]["selected"], true);
    // Two counted, and the cost of neither alone is known by kind.
    assert_eq!(last["usage"]["cost"], 0.00002);
    assert_eq!(last["usage"]["cost_details"], Value::Null);
    assert_eq!(last["usage"]["completion_tokens"], 40);
}

#[test]
fn a_generation_is_named_after_its_purchase() {
    let request = scripted::receipt().signed.receipt.request;
    let name = answer::generation(request);
    assert_eq!(name, format!("gen-{}", "07".repeat(32)));
    assert_eq!(answer::purchase(&name), Some(request));
    assert_eq!(answer::purchase(&request.to_string()), Some(request));
    for wrong in ["", "gen-", "gen-07", "chatcmpl-1"] {
        assert_eq!(answer::purchase(wrong), None, "{wrong}");
    }
}

async fn told_of(problem: &Problem) -> (u16, Value) {
    let response = refused(problem);
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 10_000)
        .await
        .expect("a body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}

#[tokio::test]
async fn every_problem_has_its_status_as_a_number_and_its_word() {
    let upstream = |status, body: &'static str| {
        let body = Bytes::from_static(body.as_bytes());
        Problem::from(InferError::Upstream { status, body })
    };
    let too_long = r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#;
    let model = || "no/such".to_owned();
    let approval = Errand::Approval("x".into());
    for (problem, status, word, reason) in [
        (
            InferError::BadRequest("x".into()).into(),
            400,
            "invalid_request",
            "invalid_request",
        ),
        (
            upstream(400, too_long),
            400,
            "context_length_exceeded",
            "upstream_refused",
        ),
        (
            upstream(422, "{}"),
            422,
            "unprocessable",
            "upstream_refused",
        ),
        (
            upstream(403, too_long),
            502,
            "provider_unavailable",
            "upstream_failed",
        ),
        (
            Denied::Missing.into(),
            401,
            "authentication",
            "invalid_api_key",
        ),
        (
            Denied::Foreign.into(),
            403,
            "permission_denied",
            "foreign_origin",
        ),
        (
            InferError::SpendLimit("x".into()).into(),
            402,
            "payment_required",
            "spend_limit_reached",
        ),
        (
            InferError::from(approval).into(),
            402,
            "payment_required",
            "approval_required",
        ),
        (
            InferError::UnknownModel { model: model() }.into(),
            404,
            "not_found",
            "model_not_found",
        ),
        (Problem::NotHere("x".into()), 404, "not_found", "not_found"),
        (Problem::NotArrived("x"), 408, "timeout", "request_timeout"),
        (
            InferError::TooLarge { len: 2, max: 1 }.into(),
            413,
            "payload_too_large",
            "payload_too_large",
        ),
        (
            InferError::Busy {
                retry_after_ms: 5,
                attempts: vec![],
            }
            .into(),
            429,
            "rate_limit_exceeded",
            "sellers_busy",
        ),
        (
            InferError::Internal("x".into()).into(),
            500,
            "server",
            "internal",
        ),
        (
            InferError::Failed { attempts: vec![] }.into(),
            502,
            "provider_unavailable",
            "sellers_failed",
        ),
        (
            InferError::Interrupted("x".into()).into(),
            502,
            "provider_unavailable",
            "interrupted",
        ),
        (
            InferError::NoSeller {
                model: model(),
                reason: "x".into(),
            }
            .into(),
            503,
            "provider_overloaded",
            "no_seller",
        ),
        (
            InferError::Chain("x".into()).into(),
            503,
            "provider_overloaded",
            "chain_unavailable",
        ),
        (Problem::Deadline, 504, "timeout", "deadline"),
    ] {
        let (told, body) = told_of(&problem).await;
        let error = &body["error"];
        assert_eq!(
            (told, &error["code"]),
            (status, &json!(status)),
            "{problem}"
        );
        assert!(error["message"].is_string(), "{body}");
        assert_eq!(error["metadata"]["error_type"], word, "{problem}");
        assert_eq!(error["metadata"]["reason"], reason, "{problem}");
    }
}

#[tokio::test]
async fn an_error_names_who_was_tried_and_why_each_failed() {
    let seller = farthing_protocol::testing::node_key(1).id();
    let attempts = vec![Attempt {
        seller,
        model: "a/b".into(),
        status: 504,
        reason: "no first token in time".into(),
    }];
    let (_, body) = told_of(&InferError::Failed { attempts }.into()).await;
    let expected = json!([{
        "provider": seller, "model": "a/b", "code": 504, "status": 504,
        "message": "no first token in time",
    }]);
    assert_eq!(body["error"]["metadata"]["previous_errors"], expected);
}

proptest! {
    #[test]
    fn no_bytes_of_a_stranger_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let pair = json!({ "endpoint": "chat", "charged": "1" });
        request::read(&Bytes::from(bytes.clone()), None).ok();
        about(&pair).document(&bytes, &settled(&pair)).ok();
        Telling::new(about(&pair)).chunk(&bytes).ok();
        let usage = about(&pair).usage(std::str::from_utf8(&bytes).ok(), &settled(&pair));
        prop_assert!(serde_json::from_str::<Value>(&usage).is_ok());
    }
}
