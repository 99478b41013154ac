//! OpenAI's dialect is the one that is passed through: the same bytes to the seller, the same bytes
//! back. [`tests/tests/gateway/passthrough.rs`] sees the requests at the model server.

use std::sync::{Arc, Mutex};

use super::*;

fn golden() -> Value {
    serde_json::from_str(include_str!("../openai/golden.json")).expect("JSON")
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn each(kind: &str) -> Vec<Value> {
    golden()[kind].as_array().expect("a list").clone()
}

#[tokio::test]
async fn every_golden_request_reaches_the_market_as_it_was_written() {
    let bought = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&bought);
    let gateway = start(move |request: Request| {
        heard.lock().expect("is whole").push(request);
        Ok(whole(vec![data("{}"), end()]))
    });
    let gateway = gateway.await;
    let all = each("requests");
    for pair in &all {
        let reply = gateway
            .post(&text(&pair["path"]), text(&pair["body"]))
            .await;
        assert_eq!(reply.status, 200, "{}: {}", pair["name"], reply.text);
    }
    let bought = bought.lock().expect("is whole");
    assert_eq!(bought.len(), all.len());
    for (pair, request) in all.iter().zip(bought.iter()) {
        assert_eq!(request.body, text(&pair["body"]), "{}", pair["name"]);
        assert_eq!(request.endpoint.path(), &text(&pair["path"])[3..]);
    }
}

#[tokio::test]
async fn every_golden_answer_reaches_the_application_as_it_was_written() {
    for pair in each("answers") {
        let document = text(&pair["document"]);
        let said = document.clone();
        let gateway = start(move |_| Ok(whole(vec![data(&said), end()]))).await;
        let reply = gateway.post(&text(&pair["path"]), PLAIN).await;
        assert_eq!(reply.text, document, "{}", pair["name"]);
    }
}

#[tokio::test]
async fn every_golden_stream_reaches_the_application_as_it_was_written() {
    for pair in each("streams") {
        let list = |field: &str| -> Vec<String> {
            let chunks = pair[field].as_array().expect("a list");
            chunks.iter().map(text).collect()
        };
        let chunks = list("chunks");
        let gateway = start(move |_| {
            let said = chunks.iter().map(|chunk| data(chunk));
            Ok(whole(said.chain([end()]).collect()))
        });
        let reply = gateway.await.post(CHAT, text(&pair["asked"])).await;
        let told = reply
            .text
            .split("\n\n")
            .filter_map(|event| event.strip_prefix("data: "));
        let told: Vec<_> = told.collect();
        let mut expected = list("told");
        expected.push("[DONE]".to_owned());
        assert_eq!(told, expected, "{}", pair["name"]);
    }
}
