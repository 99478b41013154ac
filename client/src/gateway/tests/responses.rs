//! Responses over a real loopback socket: what is bought for them, kept of them and told again.

use std::sync::Mutex;

use serde_json::json;

use super::*;

pub(super) const RESPONSES: &str = "/v1/responses";

/// A gateway whose seller says one thing, and the bodies it was sent.
pub(super) async fn saying(
    settings: config::Gateway,
    said: &'static [&'static str],
) -> (Running, Arc<Mutex<Vec<Value>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    let gateway = start_with(settings, move |request: Request| {
        let body = serde_json::from_slice(&request.body).expect("JSON");
        heard.lock().expect("is whole").push(body);
        let mut events: Vec<_> = said.iter().map(|text| data(text)).collect();
        events.push(end());
        let mut answer = whole(events);
        let number = heard.lock().expect("is whole").len();
        answer.request.0 = alloy::primitives::B256::repeat_byte(u8::try_from(number).expect("few"));
        Ok(answer)
    });
    (gateway.await, asked)
}

pub(super) const HELLO: &[&str] = &[
    r#"{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":1,"total_tokens":4}}"#,
];
const CHUNKS: &[&str] = &[
    r#"{"choices":[{"delta":{"content":"Hel"}}]}"#,
    r#"{"choices":[{"delta":{"content":"lo"},"finish_reason":"stop"}]}"#,
];

impl Running {
    pub(super) async fn respond(&self, body: Value) -> Value {
        let reply = self.post(RESPONSES, body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    }
}

pub(super) fn path(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().expect("an id"))
}

#[tokio::test]
async fn a_response_is_bought_as_chat_and_kept_until_it_is_deleted() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    let body = json!({ "model": "test/model", "input": "Hi", "temperature": 0.5 });
    let reply = gateway.post(RESPONSES, body.to_string()).await;
    assert_eq!(reply.header("x-farthing-charged"), Some("11"));
    let response = reply.json();
    assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
    assert_eq!(response["usage"]["total_tokens"], 30);
    let sent = asked.lock().expect("is whole")[0].clone();
    let chat = json!({
        "model": "test/model", "temperature": 0.5,
        "messages": [{ "role": "user", "content": "Hi" }],
    });
    assert_eq!(sent, chat);
    let path = path(&response);
    assert_eq!(gateway.get(&path).await.json(), response);
    let cancel = gateway.post(&format!("{path}/cancel"), "").await;
    assert_eq!(cancel.json(), response);
    let gone = gateway.delete(&path).await;
    assert_eq!((gone.status, &gone.json()["deleted"]), (200, &true.into()));
    for reply in [gateway.get(&path).await, gateway.delete(&path).await] {
        let expected = (
            404,
            "invalid_request_error".to_owned(),
            "not_found".to_owned(),
        );
        assert_eq!(reply.error(), expected);
    }
}

#[tokio::test]
async fn a_conversation_goes_on_from_what_is_kept() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    let first = json!({ "model": "test/model", "input": "Hi", "instructions": "Be brief." });
    let first = gateway.respond(first).await;
    let second = gateway
        .respond(
            json!({ "model": "test/model", "input": "And?", "previous_response_id": first["id"] }),
        )
        .await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = json!({
        "model": "test/model", "previous_response_id": second["id"], "instructions": "Be long.",
        "input": [{ "type": "item_reference", "id": first["output"][0]["id"] }],
    });
    gateway.respond(third).await;
    let sent = asked.lock().expect("is whole").clone();
    let turn = |text: &str| {
        let said = json!({ "role": "user", "content": text });
        [said, json!({ "role": "assistant", "content": "Hello" })]
    };
    let second = [&turn("Hi")[..], &turn("And?")[..1]].concat();
    assert_eq!(sent[1]["messages"], Value::from(second));
    let system = json!({ "role": "system", "content": "Be long." });
    let again = turn("")[1].clone();
    let third = [&[system][..], &turn("Hi"), &turn("And?"), &[again]].concat();
    assert_eq!(sent[2]["messages"], Value::from(third));
}

#[tokio::test]
async fn what_a_request_goes_on_from_must_be_kept() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    let from = json!({ "model": "test/model", "input": "x", "previous_response_id": "resp_no" });
    let reply = gateway.post(RESPONSES, from.to_string()).await;
    let (status, _, code) = reply.error();
    assert_eq!(
        (status, code.as_str()),
        (400, "previous_response_not_found")
    );
    assert_eq!(reply.json()["error"]["param"], "previous_response_id");
    for id in ["msg_no", "x", "msg_0123456789abcdef0123456789abcdefo0"] {
        let item = json!({ "type": "item_reference", "id": id });
        let body = json!({ "model": "test/model", "input": [item] });
        let reply = gateway.post(RESPONSES, body.to_string()).await;
        assert_eq!(reply.status, 404, "{}", reply.text);
    }
    assert!(asked.lock().expect("is whole").is_empty());
}

#[tokio::test]
async fn what_is_not_to_be_stored_is_not() {
    let none = config::Gateway {
        responses_kept: 0,
        ..config::Gateway::default()
    };
    for (settings, store) in [(config::Gateway::default(), false), (none, true)] {
        let (gateway, _) = saying(settings, HELLO).await;
        let body = json!({ "model": "test/model", "input": "Hi", "store": store });
        let response = gateway.respond(body).await;
        assert_eq!(response["store"], store);
        assert_eq!(gateway.get(&path(&response)).await.status, 404);
    }
}

#[tokio::test]
async fn a_streamed_response_is_kept_before_its_end_is_told() {
    let (gateway, _) = saying(config::Gateway::default(), CHUNKS).await;
    let body = json!({ "model": "test/model", "input": "Hi", "stream": true });
    let reply = gateway.post(RESPONSES, body.to_string()).await;
    assert!(reply.text.contains(": farthing {"), "{}", reply.text);
    assert!(!reply.text.contains("[DONE]"), "{}", reply.text);
    let last = reply
        .text
        .trim_end()
        .rsplit("data: ")
        .next()
        .expect("an end");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(last["type"], "response.completed");
    let response = &last["response"];
    assert_eq!(response["output"][0]["content"][0]["text"], "Hello");
    let path = path(response);
    assert_eq!(&gateway.get(&path).await.json(), response);
    let again = gateway
        .get(&format!("{path}?stream=true&starting_after=0"))
        .await;
    assert_eq!(again.header("content-type"), reply.header("content-type"));
    assert!(again.text.starts_with("event: response.in_progress"));
    let (status, kind, _) = gateway.get(&format!("{path}?stream=perhaps")).await.error();
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
}

#[tokio::test]
async fn a_stream_is_told_again_from_any_of_its_numbers_on() {
    let (gateway, _) = saying(config::Gateway::default(), CHUNKS).await;
    let body = json!({ "model": "test/model", "input": "Hi", "stream": true });
    let first = gateway.post(RESPONSES, body.to_string()).await.text;
    let events: Vec<_> = first
        .split_inclusive("\n\n")
        .filter(|event| !event.starts_with(':'))
        .collect();
    let last = events.last().expect("an end");
    let (_, last) = last.split_once("data: ").expect("data");
    let last: Value = serde_json::from_str(last.trim_end()).expect("JSON");
    let path = path(&last["response"]);
    for (number, _) in events.iter().enumerate() {
        let rest = format!("{path}?stream=true&starting_after={number}");
        let again = gateway.get(&rest).await;
        assert_eq!(again.text, events[number + 1..].concat(), "after {number}");
    }
}

#[tokio::test]
async fn what_was_told_in_no_events_is_told_from_its_beginning() {
    let (gateway, _) = saying(config::Gateway::default(), HELLO).await;
    let body = json!({ "model": "test/model", "input": "Hi" });
    let path = path(&gateway.respond(body).await);
    let again = gateway.get(&format!("{path}?stream=true")).await;
    assert!(again.text.contains(r#""delta":"Hello""#), "{}", again.text);
    let after = gateway
        .get(&format!("{path}?stream=true&starting_after=7"))
        .await;
    assert_eq!(after.error().0, 400);
}

#[tokio::test]
async fn a_response_that_broke_off_is_kept_as_failed() {
    let gateway = start(|_| {
        let begun = data(CHUNKS[0]);
        Ok(whole(vec![
            begun,
            Err(InferError::Interrupted("gone".into())),
        ]))
    });
    let gateway = gateway.await;
    let body = json!({ "model": "test/model", "input": "Hi", "stream": true });
    let reply = gateway.post(RESPONSES, body.to_string()).await;
    let (_, failed) = reply
        .text
        .split_once("event: response.failed\ndata: ")
        .expect("fails");
    let failed: Value = serde_json::from_str(failed.trim_end()).expect("JSON");
    let response = &failed["response"];
    assert_eq!(response["status"], "failed");
    assert!(reply.text.contains("event: error\n"), "{}", reply.text);
    assert_eq!(&gateway.get(&path(response)).await.json(), response);
}

#[tokio::test]
async fn the_items_of_a_request_are_listed_page_by_page() {
    let (gateway, _) = saying(config::Gateway::default(), HELLO).await;
    let say = |text: &str| json!({ "role": "user", "content": text });
    let input = [say("a"), say("b"), say("c")];
    let response = gateway
        .respond(json!({ "model": "test/model", "input": input }))
        .await;
    let path = format!("{}/input_items", path(&response));
    let texts = |page: &Value| -> Vec<String> {
        let items = page["data"].as_array().expect("a list").iter();
        let text = |item: &Value| item["content"][0]["text"].as_str().map(str::to_owned);
        items.filter_map(text).collect()
    };
    let all = gateway.get(&path).await.json();
    assert_eq!(texts(&all), ["c", "b", "a"]);
    assert_eq!(all["has_more"], false);
    let two = gateway
        .get(&format!("{path}?order=asc&limit=2"))
        .await
        .json();
    assert_eq!(texts(&two), ["a", "b"]);
    assert_eq!(two["has_more"], true);
    let after = two["last_id"].as_str().expect("an id");
    let rest = gateway
        .get(&format!("{path}?order=asc&after={after}"))
        .await
        .json();
    assert_eq!(texts(&rest), ["c"]);
    let none = gateway.get(&format!("{path}?after=nothing")).await.json();
    assert_eq!(none["data"], json!([]));
    assert_eq!(gateway.get(&format!("{path}?order=up")).await.status, 400);
}

#[tokio::test]
async fn tokens_are_counted_with_what_went_before_and_nothing_is_bought() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    let count = async |body: Value| {
        let reply = gateway
            .post("/v1/responses/input_tokens", body.to_string())
            .await;
        assert_eq!(reply.json()["object"], "response.input_tokens");
        reply.json()["input_tokens"].as_u64().expect("a number")
    };
    let short = count(json!({ "model": "test/model", "input": "Hi" })).await;
    let long = count(json!({ "model": "test/model", "input": "Hi".repeat(100) })).await;
    assert!(short > 0 && long > short + 40, "{short} {long}");
    assert!(asked.lock().expect("is whole").is_empty());
    let first = gateway
        .respond(json!({ "model": "test/model", "input": "Hi" }))
        .await;
    let on = json!({ "model": "test/model", "input": "Hi", "previous_response_id": first["id"] });
    assert!(count(on).await > short);
}

#[tokio::test]
async fn a_request_that_only_openai_can_serve_buys_nothing() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    for body in [
        json!({ "model": "test/model", "input": "x", "background": true, "store": false }),
        json!({ "model": "test/model", "input": "x", "prompt": { "id": "pmpt_1" } }),
        json!({ "model": "test/model", "input": "x", "tools": [{ "type": "web_search" }] }),
        json!({ "model": "test/model", "input": 7 }),
    ] {
        let (status, kind, _) = gateway.post(RESPONSES, body.to_string()).await.error();
        assert_eq!(
            (status, kind.as_str()),
            (400, "invalid_request_error"),
            "{body}"
        );
    }
    assert!(asked.lock().expect("is whole").is_empty());
}

#[tokio::test]
async fn a_moderation_without_a_model_asks_for_the_usual_one() {
    let said = &[r#"{"id":"m","results":[]}"#];
    let (gateway, asked) = saying(config::Gateway::default(), said).await;
    let without = r#"{"input":"x"}"#;
    let with = r#"{"input":"x","model":"test/model"}"#;
    for body in [without, with] {
        assert_eq!(gateway.post("/v1/moderations", body).await.text, said[0]);
    }
    let sent = asked.lock().expect("is whole").clone();
    assert_eq!(sent[0]["model"], "omni-moderation-latest");
    assert_eq!(sent[1]["model"], "test/model");
}

#[tokio::test]
async fn hanging_up_cancels_a_response_at_once() {
    let (gateway, mut feeds) = fed(config::Gateway::default()).await;
    let body = r#"{"model":"test/model","input":"x","stream":true}"#;
    let mut stream = ask_at(&gateway, RESPONSES, body).await;
    let events = feeds.recv().await.expect("is asked");
    events.send(data(CHUNK)).await.expect("is taken");
    read_until(&mut stream, "\"delta\":\"hi\"").await;
    drop(stream);
    let dropped = timeout(PATIENCE, events.closed()).await;
    dropped.expect("is dropped");
}
