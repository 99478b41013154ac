//! The mock over a real socket, with a stock HTTP client.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

fn client() -> reqwest::Client {
    reqwest::Client::new()
}

fn question(stream: bool) -> Value {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let mut body = json!({"model": "mock/model", "messages": messages, "stream": stream});
    if stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    body
}

async fn post(upstream: &MockUpstream, path: &str, body: &Value) -> reqwest::Response {
    let url = format!("{}/{path}", upstream.base_url());
    client().post(url).json(body).send().await.unwrap()
}

async fn chat(upstream: &MockUpstream, stream: bool) -> reqwest::Response {
    post(upstream, "chat/completions", &question(stream)).await
}

/// The payloads of a stream's events.
fn events(text: &str) -> Vec<&str> {
    text.split_terminator("\n\n")
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect()
}

#[tokio::test]
async fn a_plain_answer_has_text_and_usage() {
    let upstream = MockUpstream::start(Behaviour::default().tokens(3))
        .await
        .unwrap();
    let answer: Value = chat(&upstream, false).await.json().await.unwrap();
    assert_eq!(
        answer["choices"][0]["message"]["content"],
        "A farthing buys"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let prompt = prompt_tokens(&question(false)["messages"].to_string());
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(answer["usage"]["total_tokens"], prompt + 3);
}

#[tokio::test]
async fn a_stream_ends_with_finish_usage_and_done() {
    let upstream = MockUpstream::start(Behaviour::default().tokens(3))
        .await
        .unwrap();
    let text = chat(&upstream, true).await.text().await.unwrap();
    let events = events(&text);
    assert_eq!(events.len(), 7);
    let parsed: Vec<Value> = events[..6]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert_eq!(parsed[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(parsed[2]["choices"][0]["delta"]["content"], " farthing");
    assert_eq!(parsed[4]["choices"][0]["finish_reason"], "stop");
    assert_eq!(parsed[5]["choices"], json!([]));
    assert_eq!(parsed[5]["usage"]["completion_tokens"], 3);
    assert_eq!(events[6], "[DONE]");
    let seen = upstream.finished(1).await;
    assert_eq!((seen.chunks, seen.endpoint), (3, Endpoint::Chat));
}

#[tokio::test]
async fn usage_in_a_stream_waits_to_be_asked_for() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    let mut body = question(true);
    body.as_object_mut().unwrap().remove("stream_options");
    let text = post(&upstream, "chat/completions", &body)
        .await
        .text()
        .await
        .unwrap();
    assert!(!text.contains("usage"));
    upstream.behave(Behaviour::default().stream_usage(StreamUsage::Always));
    let text = post(&upstream, "chat/completions", &body)
        .await
        .text()
        .await
        .unwrap();
    assert!(text.contains("usage"));
}

#[tokio::test]
async fn a_limit_in_the_request_shortens_the_answer() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    let body = json!({"model": "mock/model", "prompt": "once", "max_tokens": 2});
    let answer: Value = post(&upstream, "completions", &body)
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(answer["choices"][0]["text"], "A farthing");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn embeddings_are_the_same_for_the_same_input() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    let body = json!({"model": "mock/model", "input": ["a", "b", "a"]});
    let answer: Value = post(&upstream, "embeddings", &body)
        .await
        .json()
        .await
        .unwrap();
    let vectors: Vec<&Value> = answer["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["embedding"])
        .collect();
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    assert_eq!(vectors[0].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn an_unknown_model_and_broken_json_are_openai_errors() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    let answer = post(
        &upstream,
        "chat/completions",
        &json!({"model": "x", "messages": []}),
    )
    .await;
    assert_eq!(answer.status(), 404);
    let body: Value = answer.json().await.unwrap();
    assert_eq!(body["error"]["code"], "model_not_found");
    let answer = post(&upstream, "chat/completions", &json!("no object")).await;
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_wrong_key_is_refused() {
    let upstream = MockUpstream::start(Behaviour::default().api_key("right"))
        .await
        .unwrap();
    assert_eq!(chat(&upstream, false).await.status(), 401);
    let url = format!("{}/models", upstream.base_url());
    let answer = client().get(url).bearer_auth("right").send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn faults_that_are_answers_have_their_status() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    let faults = [
        (Fault::RateLimited { retry_after: 7 }, 429),
        (Fault::ServerErrorOnce, 500),
        (Fault::Unavailable, 503),
        (Fault::ContextLength, 400),
        (Fault::ContentFilter, 400),
    ];
    for (number, (fault, status)) in (1..).zip(faults) {
        upstream.fail(number, fault);
        let answer = chat(&upstream, false).await;
        assert_eq!(answer.status(), status);
        if status == 429 {
            assert_eq!(answer.headers()["retry-after"], "7");
        }
        let body: Value = answer.json().await.unwrap();
        assert!(body["error"]["message"].is_string());
    }
    assert_eq!(chat(&upstream, false).await.status(), 200);
}

#[tokio::test]
async fn a_server_error_once_is_only_once() {
    let behaviour = Behaviour::default().fault(Fault::ServerErrorOnce);
    let upstream = MockUpstream::start(behaviour).await.unwrap();
    assert_eq!(chat(&upstream, false).await.status(), 500);
    assert_eq!(chat(&upstream, false).await.status(), 200);
}

#[tokio::test]
async fn a_reset_breaks_the_connection_before_any_answer() {
    let behaviour = Behaviour::default().fault(Fault::Reset);
    let upstream = MockUpstream::start(behaviour).await.unwrap();
    let url = format!("{}/chat/completions", upstream.base_url());
    let error = client()
        .post(url)
        .json(&question(false))
        .send()
        .await
        .unwrap_err();
    assert!(error.is_request() && !error.is_timeout(), "{error:?}");
    upstream.finished(1).await;
}

#[tokio::test]
async fn a_cut_stream_delivers_its_chunks_and_then_an_error() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    upstream.fail(1, Fault::CutAfter(2));
    let mut answer = chat(&upstream, true).await;
    let mut text = String::new();
    let error = loop {
        match answer.chunk().await {
            Ok(Some(bytes)) => text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Ok(None) => panic!("the stream ended cleanly"),
            Err(error) => break error,
        }
    };
    assert!(error.is_body() || error.is_decode(), "{error:?}");
    assert_eq!(events(&text).len(), 3);
    assert_eq!(upstream.finished(1).await.chunks, 2);
}

#[tokio::test]
async fn a_client_that_leaves_a_stalled_stream_is_noticed() {
    let upstream = MockUpstream::start(Behaviour::default()).await.unwrap();
    upstream.fail(1, Fault::StallAfter(4));
    let answer = chat(&upstream, true).await;
    upstream.sent(1, 4).await;
    drop(answer);
    assert_eq!(upstream.disconnected(1).await.chunks, 4);
}

#[tokio::test]
async fn a_client_that_leaves_while_waiting_is_noticed() {
    let behaviour = Behaviour::default().fault(Fault::NoResponse);
    let upstream = MockUpstream::start(behaviour).await.unwrap();
    let url = format!("{}/chat/completions", upstream.base_url());
    let asking = client().post(url).json(&question(false)).send();
    tokio::select! {
        _ = asking => panic!("there was an answer"),
        request = upstream.started(1) => assert_eq!(request.stage, Stage::Started),
    }
    upstream.disconnected(1).await;
}

#[tokio::test]
async fn a_stream_can_be_malformed_endless_lying_or_huge() {
    let upstream = MockUpstream::start(Behaviour::default().tokens(3))
        .await
        .unwrap();
    upstream.fail(1, Fault::MalformedChunk(1));
    let text = chat(&upstream, true).await.text().await.unwrap();
    assert!(serde_json::from_str::<Value>(events(&text)[1]).is_err());
    upstream.fail(2, Fault::NoDone);
    let text = chat(&upstream, true).await.text().await.unwrap();
    assert!(!text.contains("[DONE]"));
    upstream.fail(3, Fault::OverCount { factor: 10 });
    let text = chat(&upstream, true).await.text().await.unwrap();
    assert!(text.contains(r#""completion_tokens":30"#));
    upstream.fail(4, Fault::HugeChunk(100_000));
    let text = chat(&upstream, true).await.text().await.unwrap();
    assert!(events(&text)[1].len() > 100_000);
}

#[tokio::test]
async fn a_dropped_upstream_takes_its_connections_along() {
    let behaviour = Behaviour::default().fault(Fault::StallAfter(1));
    let upstream = MockUpstream::start(behaviour).await.unwrap();
    let mut answer = chat(&upstream, true).await;
    upstream.sent(1, 1).await;
    let url = format!("{}/models", upstream.base_url());
    drop(upstream);
    while let Ok(Some(_)) = answer.chunk().await {}
    assert!(client().get(url).send().await.is_err());
}

#[tokio::test]
async fn a_paced_stream_takes_its_time() {
    let pace = Duration::from_millis(20);
    let upstream = MockUpstream::start(Behaviour::default().tokens(5).pace(pace))
        .await
        .unwrap();
    let began = tokio::time::Instant::now();
    chat(&upstream, true).await.text().await.unwrap();
    assert!(began.elapsed() >= pace * 5);
}

#[tokio::test]
async fn the_pace_of_streams_stands_between_their_tokens_and_not_before_the_first() {
    let pace = Duration::from_millis(20);
    let behaviour = Behaviour {
        stream_pace: Some(pace),
        ..Behaviour::default()
            .tokens(5)
            .pace(Duration::from_secs(3600))
    };
    let upstream = MockUpstream::start(behaviour).await.unwrap();
    let began = tokio::time::Instant::now();
    chat(&upstream, true).await.text().await.unwrap();
    assert!(began.elapsed() >= pace * 4);
}

#[tokio::test]
async fn the_list_of_models_is_counted_but_not_numbered() {
    let behaviour = Behaviour::default().models(["a/one", "b/two"]);
    let upstream = MockUpstream::start(behaviour).await.unwrap();
    let url = format!("{}/models", upstream.base_url());
    let list: Value = client()
        .get(url)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(list["data"][1]["id"], "b/two");
    assert_eq!((upstream.model_lists(), upstream.count()), (1, 0));
}
