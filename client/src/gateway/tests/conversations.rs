//! Conversations over a real loopback socket: begun, added to, gone on from.

use serde_json::json;

use super::responses::{HELLO, RESPONSES, path as response_path, saying};
use super::*;

const CONVERSATIONS: &str = "/v1/conversations";

fn say(text: &str) -> Value {
    json!({ "role": "user", "content": text })
}

fn texts(page: &Value) -> Vec<&str> {
    let items = page["data"].as_array().expect("a list").iter();
    items
        .filter_map(|item| item["content"][0]["text"].as_str())
        .collect()
}

impl Running {
    async fn begin(&self, body: Value) -> (Value, String) {
        let begun = self.post(CONVERSATIONS, body.to_string()).await;
        assert_eq!(begun.status, 200, "{}", begun.text);
        let begun = begun.json();
        let path = format!("{CONVERSATIONS}/{}", begun["id"].as_str().expect("an id"));
        (begun, path)
    }
}

#[tokio::test]
async fn a_conversation_is_begun_noted_and_removed() {
    let (gateway, _) = saying(config::Gateway::default(), HELLO).await;
    let (begun, path) = gateway
        .begin(json!({ "metadata": { "topic": "coins" } }))
        .await;
    assert_eq!(begun["object"], "conversation");
    assert_eq!(gateway.get(&path).await.json(), begun);
    let noted = json!({ "metadata": { "topic": "words" } }).to_string();
    let noted = gateway.post(&path, noted).await.json();
    assert_eq!(noted["metadata"]["topic"], "words");
    assert_eq!(gateway.get(&path).await.json(), noted);
    let long = json!({ "metadata": { "topic": "x".repeat(513) } }).to_string();
    assert_eq!(gateway.post(&path, long).await.status, 400);
    let gone = gateway.delete(&path).await.json();
    assert_eq!(
        (&gone["object"], &gone["deleted"]),
        (&"conversation.deleted".into(), &true.into())
    );
    for reply in [gateway.get(&path).await, gateway.delete(&path).await] {
        assert_eq!(reply.error().0, 404);
    }
}

#[tokio::test]
async fn items_are_added_listed_found_and_removed() {
    let (gateway, _) = saying(config::Gateway::default(), HELLO).await;
    let (begun, path) = gateway.begin(json!({ "items": [say("a")] })).await;
    let items = format!("{path}/items");
    let more = json!({ "items": [say("b"), say("c")] }).to_string();
    let added = gateway.post(&items, more).await.json();
    assert_eq!(texts(&added), ["b", "c"]);
    assert_eq!(texts(&gateway.get(&items).await.json()), ["c", "b", "a"]);
    let page = gateway
        .get(&format!("{items}?order=asc&limit=2"))
        .await
        .json();
    assert_eq!(
        (texts(&page), &page["has_more"]),
        (vec!["a", "b"], &true.into())
    );
    let id = added["first_id"].as_str().expect("an id");
    let one = format!("{items}/{id}");
    assert_eq!(gateway.get(&one).await.json(), added["data"][0]);
    assert_eq!(gateway.delete(&one).await.json(), begun);
    assert_eq!(gateway.get(&one).await.error().0, 404);
    assert_eq!(texts(&gateway.get(&items).await.json()), ["c", "a"]);
    // The same name twice names two things.
    let named = json!({ "items": [{ "id": "x", "role": "user", "content": "d" }] }).to_string();
    let first = gateway.post(&items, named.clone()).await.json();
    let second = gateway.post(&items, named).await.json();
    assert_eq!(first["data"][0]["id"], "x");
    assert_ne!(second["data"][0]["id"], "x");
}

#[tokio::test]
async fn what_cannot_be_told_to_a_seller_is_not_taken_in() {
    let small = config::Gateway {
        max_body: 4_000,
        ..config::Gateway::default()
    };
    let (gateway, _) = saying(small, HELLO).await;
    let (_, path) = gateway.begin(json!({})).await;
    let items = format!("{path}/items");
    for wrong in [
        json!({ "items": [{ "type": "web_search_call", "id": "ws_1" }] }),
        json!({ "items": [{ "role": "user" }] }),
        json!({ "items": vec![say("x"); 21] }),
        json!({}),
    ] {
        let reply = gateway.post(&items, wrong.to_string()).await;
        assert_eq!(reply.error().0, 400, "{wrong}");
    }
    let long = json!({ "items": [say(&"x".repeat(2_500))] }).to_string();
    assert_eq!(gateway.post(&items, long.clone()).await.status, 200);
    assert_eq!(gateway.post(&items, long).await.error().0, 413);
    let kept = gateway.get(&items).await.json();
    assert_eq!(kept["data"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn items_are_no_longer_together_than_a_body_however_they_are_named() {
    let small = config::Gateway {
        max_body: 1_000,
        ..config::Gateway::default()
    };
    let (gateway, asked) = saying(small, HELLO).await;
    let listed = json!({ "items": vec![say("x"); 20] }).to_string();
    assert_eq!(gateway.post(CONVERSATIONS, listed).await.error().0, 413);
    let body = json!({ "model": "test/model", "input": "Hi" });
    let hello = gateway.respond(body).await["output"][0]["id"].clone();
    let named = |times| vec![json!({ "type": "item_reference", "id": hello }); times];
    let eight = json!({ "items": named(8) }).to_string();
    assert_eq!(gateway.post(CONVERSATIONS, eight).await.error().0, 413);
    let turn = |times| json!({ "model": "test/model", "input": named(times) });
    let long = gateway.post(RESPONSES, turn(8).to_string()).await;
    assert_eq!(long.error().0, 413);
    assert_eq!(asked.lock().expect("is whole").len(), 1);
    gateway.respond(turn(2)).await;
}

#[tokio::test]
async fn what_there_is_no_room_for_is_not_said_to_be_added() {
    let little = config::Gateway {
        responses_bytes: 3_000,
        ..config::Gateway::default()
    };
    let (gateway, _) = saying(little, HELLO).await;
    let (begun, path) = gateway.begin(json!({})).await;
    let items = format!("{path}/items");
    let long = json!({ "items": [say(&"x".repeat(2_000))] }).to_string();
    assert_eq!(gateway.post(&items, long.clone()).await.status, 200);
    assert_eq!(gateway.post(&items, long).await.error().0, 413);
    // It is paid for: it is answered all the same.
    let turn = json!({
        "model": "test/model", "input": "x".repeat(1_000), "conversation": begun["id"],
        "store": false,
    });
    assert_eq!(gateway.respond(turn).await["status"], "completed");
    let kept = gateway.get(&items).await.json();
    assert_eq!(kept["data"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn each_turn_goes_on_from_those_before_and_is_added() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    let first = json!({ "items": [{ "role": "developer", "content": "Be brief." }] });
    let (begun, path) = gateway.begin(first).await;
    let turn = |text: &str, store: bool| json!({ "model": "test/model", "input": text, "conversation": begun["id"], "store": store });
    let response = gateway.respond(turn("Hi", true)).await;
    assert_eq!(response["conversation"]["id"], begun["id"]);
    // What is not stored is a turn all the same.
    let unstored = gateway.respond(turn("And?", false)).await;
    assert_eq!(gateway.get(&response_path(&unstored)).await.status, 404);
    let named = json!({
        "model": "test/model", "input": [{ "type": "item_reference", "id": unstored["output"][0]["id"] }],
        "conversation": { "id": begun["id"] },
    });
    gateway.respond(named).await;
    let sent = asked.lock().expect("is whole").clone();
    let said = |role: &str, text: &str| json!({ "role": role, "content": text });
    let (system, hello) = (said("system", "Be brief."), said("assistant", "Hello"));
    let two = json!([system, said("user", "Hi"), hello, said("user", "And?")]);
    assert_eq!(sent[1]["messages"], two);
    let three = json!([
        system,
        said("user", "Hi"),
        hello,
        said("user", "And?"),
        hello,
        hello
    ]);
    assert_eq!(sent[2]["messages"], three);
    let kept = gateway.get(&format!("{path}/items?order=asc")).await.json();
    let expected = [
        "Be brief.",
        "Hi",
        "Hello",
        "And?",
        "Hello",
        "Hello",
        "Hello",
    ];
    assert_eq!(texts(&kept), expected);
}

#[tokio::test]
async fn a_turn_of_what_is_not_there_or_of_two_things_buys_nothing() {
    let (gateway, asked) = saying(config::Gateway::default(), HELLO).await;
    let turn = |more: Value| {
        let mut body = json!({ "model": "test/model", "input": "x" });
        for (field, value) in more.as_object().expect("an object") {
            body[field] = value.clone();
        }
        body.to_string()
    };
    let missing = gateway
        .post(RESPONSES, turn(json!({ "conversation": "conv_no" })))
        .await;
    assert_eq!(missing.error().0, 404);
    let both = json!({ "conversation": "conv_no", "previous_response_id": "resp_no" });
    assert_eq!(gateway.post(RESPONSES, turn(both)).await.error().0, 400);
    assert!(asked.lock().expect("is whole").is_empty());
}

#[tokio::test]
async fn a_turn_that_broke_off_is_not_added() {
    let gateway = start(|_| {
        let begun = data(CHUNK);
        Ok(whole(vec![
            begun,
            Err(InferError::Interrupted("gone".into())),
        ]))
    });
    let gateway = gateway.await;
    let (begun, path) = gateway.begin(json!({ "items": [say("a")] })).await;
    let turn =
        json!({ "model": "test/model", "input": "b", "conversation": begun["id"], "stream": true });
    let told = gateway.post(RESPONSES, turn.to_string()).await;
    assert!(told.text.contains("response.failed"), "{}", told.text);
    let kept = gateway.get(&format!("{path}/items")).await.json();
    assert_eq!(texts(&kept), ["a"]);
}

#[tokio::test]
async fn a_response_is_no_conversation_and_a_conversation_no_response() {
    let (gateway, _) = saying(config::Gateway::default(), HELLO).await;
    let (begun, path) = gateway.begin(json!({})).await;
    let response = gateway
        .respond(json!({ "model": "test/model", "input": "x" }))
        .await;
    let id = |value: &Value| value["id"].as_str().expect("an id").to_owned();
    for wrong in [
        format!("{RESPONSES}/{}", id(&begun)),
        format!("{CONVERSATIONS}/{}", id(&response)),
    ] {
        assert_eq!(gateway.get(&wrong).await.status, 404, "{wrong}");
        assert_eq!(gateway.delete(&wrong).await.status, 404, "{wrong}");
    }
    assert_eq!(gateway.get(&path).await.json(), begun);
    assert_eq!(
        gateway.get(&response_path(&response)).await.json(),
        response
    );
}
