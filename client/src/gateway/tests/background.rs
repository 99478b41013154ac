//! Responses that nobody waits for: begun, followed, left, come back to, ended.

use serde_json::json;

use super::responses::{RESPONSES, path};
use super::*;

const LAST: &str = r#"{"choices":[{"delta":{"content":" ho"},"finish_reason":"stop"}]}"#;

fn alone(more: Value) -> Value {
    let mut body = json!({ "model": "test/model", "input": "Hi", "background": true });
    for (field, value) in more.as_object().expect("an object") {
        body[field] = value.clone();
    }
    body
}

/// Somebody who follows the events at this path.
async fn follow(gateway: &Running, path: &str) -> TcpStream {
    let stream = TcpStream::connect(gateway.address).await;
    let mut stream = stream.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("is sent");
    stream
}

/// The events of a stream that has ended, in order.
fn events(text: &str) -> Vec<Value> {
    let datas = text.split("data: ").skip(1);
    let read = |data: &str| {
        let (json, _) = data.split_once("\n\n").expect("an end of the event");
        serde_json::from_str(json).expect("JSON")
    };
    datas.map(read).collect()
}

async fn heard(gateway: &Running, path: &str) -> Vec<Value> {
    let reply = gateway.get(&format!("{path}?stream=true")).await;
    let events = events(&reply.text);
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    events
}

#[tokio::test]
async fn it_is_there_at_once_and_goes_on_until_all_is_said() {
    let (gateway, mut feeds) = fed(config::Gateway::default()).await;
    let begun = gateway.respond(alone(json!({}))).await;
    assert_eq!(
        (&begun["status"], &begun["background"], &begun["output"]),
        (&"queued".into(), &true.into(), &json!([]))
    );
    let path = path(&begun);
    let feed = feeds.recv().await.expect("is asked");
    let early = json!({ "model": "test/model", "input": "x", "previous_response_id": begun["id"] });
    let early = gateway.post(RESPONSES, early.to_string()).await;
    assert_eq!(early.error().0, 400, "{}", early.text);
    let mut follower = follow(&gateway, &format!("{path}?stream=true")).await;
    read_until(&mut follower, "response.queued").await;
    feed.send(data(CHUNK)).await.expect("is taken");
    read_until(&mut follower, r#""delta":"hi""#).await;
    let between = gateway.get(&path).await.json();
    assert_eq!(between["status"], "in_progress");
    assert_eq!(between["output"][0]["content"][0]["text"], "hi");
    feed.send(data(LAST)).await.expect("is taken");
    feed.send(end()).await.expect("is taken");
    read_until(&mut follower, "response.completed").await;
    let over = gateway.get(&path).await.json();
    assert_eq!(over["status"], "completed");
    assert_eq!(over["output"][0]["content"][0]["text"], "hi ho");
    assert_eq!(over["usage"]["total_tokens"], 30, "as the receipt counts");
    assert_eq!(over["farthing"]["charged"], "11");
    assert_eq!(over["farthing"]["receipt_seq"], 3);
    let told = heard(&gateway, &path).await;
    let names: Vec<_> = told.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(
        names[..3],
        [
            "response.created",
            "response.queued",
            "response.in_progress"
        ]
    );
    assert_eq!(told.last().expect("an end")["response"], over);
}

#[tokio::test]
async fn who_comes_back_is_told_what_they_have_not_heard() {
    let (gateway, mut feeds) = fed(config::Gateway::default()).await;
    let body = alone(json!({ "stream": true })).to_string();
    let mut first = ask_at(&gateway, RESPONSES, &body).await;
    let feed = feeds.recv().await.expect("is asked");
    feed.send(data(CHUNK)).await.expect("is taken");
    let text = read_until(&mut first, r#""delta":"hi""#).await;
    let number = events(&(text.clone() + "\n\n")).len();
    let created = &events(&text)[0]["response"];
    let path = path(created);
    // Hanging up ends nothing.
    drop(first);
    let after = format!("{path}?stream=true&starting_after={}", number - 1);
    let mut again = follow(&gateway, &after).await;
    feed.send(data(LAST)).await.expect("is taken");
    feed.send(end()).await.expect("is taken");
    let rest = read_until(&mut again, "response.completed").await;
    assert!(!rest.contains(r#""delta":"hi""#), "{rest}");
    assert!(rest.contains(r#""delta":" ho""#), "{rest}");
    // By now it is over: the numbers are the same.
    let whole = heard(&gateway, &path).await;
    for number in 0..whole.len() {
        let rest = format!("{path}?stream=true&starting_after={number}");
        let rest = events(&gateway.get(&rest).await.text);
        assert_eq!(rest, whole[number + 1..], "after {number}");
    }
}

#[tokio::test]
async fn one_that_is_cancelled_lets_go_of_its_seller_and_keeps_what_was_said() {
    let (gateway, mut feeds) = fed(config::Gateway::default()).await;
    let path = path(&gateway.respond(alone(json!({}))).await);
    let feed = feeds.recv().await.expect("is asked");
    let mut follower = follow(&gateway, &format!("{path}?stream=true")).await;
    feed.send(data(CHUNK)).await.expect("is taken");
    read_until(&mut follower, r#""delta":"hi""#).await;
    let cancelled = gateway.post(&format!("{path}/cancel"), "").await.json();
    timeout(PATIENCE, feed.closed()).await.expect("is let go");
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(cancelled["output"][0]["status"], "incomplete");
    assert_eq!(cancelled["output"][0]["content"][0]["text"], "hi");
    let request = cancelled["farthing"]["request"].as_str();
    assert!(request.is_some_and(|request| request.starts_with("0x0707")));
    read_until(&mut follower, "response.cancelled").await;
    assert_eq!(gateway.get(&path).await.json(), cancelled);
    let again = gateway.post(&format!("{path}/cancel"), "").await.json();
    assert_eq!(again, cancelled, "what is over stays as it is");
}

#[tokio::test]
async fn who_follows_a_silent_one_hears_that_it_is_still_there() {
    let settings = config::Gateway {
        keep_alive: Duration::from_millis(5),
        ..config::Gateway::default()
    };
    let (gateway, mut feeds) = fed(settings).await;
    let path = path(&gateway.respond(alone(json!({}))).await);
    let feed = feeds.recv().await.expect("is asked");
    let mut follower = follow(&gateway, &format!("{path}?stream=true")).await;
    read_until(&mut follower, ": keep-alive\n\n").await;
    feed.send(data(LAST)).await.expect("is taken");
    read_until(&mut follower, r#""delta":" ho""#).await;
}

#[tokio::test]
async fn the_same_request_by_its_name_is_not_begun_twice() {
    let (gateway, mut feeds) = fed(config::Gateway::default()).await;
    let again = async || {
        let request = reqwest::Client::new().post(gateway.url(RESPONSES));
        let request = request.header("idempotency-key", "one");
        gateway
            .send(request.body(alone(json!({})).to_string()))
            .await
    };
    let first = again().await;
    assert_eq!(first.json()["status"], "queued");
    let feed = feeds.recv().await.expect("is asked");
    assert_eq!(again().await.error().0, 409);
    feed.send(data(LAST)).await.expect("is taken");
    feed.send(end()).await.expect("is taken");
    let told = heard(&gateway, &path(&first.json())).await;
    assert_eq!(told.last().expect("an end")["type"], "response.completed");
}

#[tokio::test]
async fn one_that_is_removed_is_cancelled_and_gone() {
    let (gateway, mut feeds) = fed(config::Gateway::default()).await;
    let path = path(&gateway.respond(alone(json!({}))).await);
    let feed = feeds.recv().await.expect("is asked");
    assert_eq!(gateway.delete(&path).await.json()["deleted"], true);
    timeout(PATIENCE, feed.closed()).await.expect("is let go");
    assert_eq!(gateway.get(&path).await.status, 404);
}

#[tokio::test]
async fn there_are_never_more_than_allowed() {
    let settings = config::Gateway {
        background: 1,
        ..config::Gateway::default()
    };
    let (gateway, mut feeds) = fed(settings).await;
    let first = path(&gateway.respond(alone(json!({}))).await);
    let _feed = feeds.recv().await.expect("is asked");
    let second = gateway.post(RESPONSES, alone(json!({})).to_string()).await;
    let (status, _, code) = second.error();
    assert_eq!((status, code.as_str()), (429, "background_full"));
    assert_eq!(second.header("retry-after"), Some("5"));
    gateway.post(&format!("{first}/cancel"), "").await;
    gateway.respond(alone(json!({}))).await;
}

#[tokio::test]
async fn one_that_nobody_sells_or_that_breaks_says_so() {
    let broken = || InferError::Interrupted("gone".into());
    let gateway = start(move |request: Request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        match body.contains("nobody") {
            true => Err(broken()),
            false => Ok(whole(vec![data(CHUNK), Err(broken())])),
        }
    });
    let gateway = gateway.await;
    for (input, items) in [("nobody", 0), ("x", 1)] {
        let begun = gateway.respond(alone(json!({ "input": input }))).await;
        let told = heard(&gateway, &path(&begun)).await;
        let last = told.last().expect("an end");
        assert_eq!(last["type"], "response.failed");
        let response = &last["response"];
        assert!(response["error"]["message"].to_string().contains("gone"));
        assert_eq!(response["output"].as_array().map(Vec::len), Some(items));
        assert_eq!(&gateway.get(&path(&begun)).await.json(), response);
    }
}

#[tokio::test]
async fn where_nothing_is_kept_nothing_goes_on_alone() {
    let none = config::Gateway {
        responses_kept: 0,
        ..config::Gateway::default()
    };
    let (gateway, mut feeds) = fed(none).await;
    let refused = gateway.post(RESPONSES, alone(json!({})).to_string()).await;
    assert_eq!(refused.error().0, 400, "{}", refused.text);
    let unstored = alone(json!({ "store": false })).to_string();
    assert_eq!(gateway.post(RESPONSES, unstored).await.status, 400);
    assert!(feeds.try_recv().is_err(), "nothing is bought");
}

#[tokio::test]
async fn one_longer_than_may_be_is_broken_off() {
    let settings = config::Gateway {
        max_body: 4_000,
        ..config::Gateway::default()
    };
    let calls: Vec<_> = (0..20).map(|index| json!({ "index": index })).collect();
    let many = [json!({ "token": "x".repeat(4_000), "logprob": 0 })];
    for long in [
        json!({ "delta": { "content": "x".repeat(4_001) } }),
        json!({ "delta": { "content": "x" }, "logprobs": { "content": many } }),
        json!({ "delta": { "tool_calls": calls } }),
        json!({ "delta": { "tool_calls": [{ "id": "x".repeat(4_000) }] } }),
    ] {
        let chunk = json!({ "choices": [long] }).to_string();
        let gateway = start_with(settings.clone(), move |_| {
            let (feed, answer) = answer();
            feed.try_send(data(CHUNK)).expect("room");
            feed.try_send(data(&chunk)).expect("room");
            // It is not over: nothing but its length ends it.
            std::mem::forget(feed);
            Ok(answer)
        });
        let gateway = gateway.await;
        let begun = gateway.respond(alone(json!({}))).await;
        let told = heard(&gateway, &path(&begun)).await;
        assert!(told.len() > 5, "the first chunk is short enough");
        let last = &told.last().expect("an end")["response"];
        assert_eq!(last["status"], "failed");
        assert!(last["error"]["message"].to_string().contains("max_body"));
    }
}

/// A gateway on this client, and the task that serves it.
async fn serve(client: &Client) -> (Running, tokio::task::JoinHandle<std::io::Result<()>>) {
    let mut settings = config::Gateway::default();
    settings.listen.set_port(0);
    let gateway = Gateway::bind(client.clone(), settings, Metrics::default()).await;
    let gateway = gateway.expect("binds");
    let (address, stop) = (gateway.address(), CancellationToken::new());
    let serving = tokio::spawn(gateway.serve(stop.clone()));
    (Running { address, stop }, serving)
}

#[tokio::test]
async fn one_that_outlives_its_gateway_is_told_as_failed_with_what_was_said() {
    let (feeds, mut fed) = mpsc::channel(1);
    let client = Client::scripted(move |_| {
        let (feed, answer) = answer();
        feeds.try_send(feed).expect("one answer");
        Ok(answer)
    });
    let (gateway, serving) = serve(&client).await;
    let path = path(&gateway.respond(alone(json!({}))).await);
    let feed = fed.recv().await.expect("is asked");
    feed.send(data(CHUNK)).await.expect("is taken");
    let mut follower = follow(&gateway, &format!("{path}?stream=true")).await;
    read_until(&mut follower, r#""delta":"hi""#).await;
    // As after a crash: another process finds only what was written down.
    let (after, _serving) = serve(&client).await;
    let lost = after.get(&path).await.json();
    assert_eq!(lost["status"], "failed");
    assert!(lost["error"]["message"].to_string().contains("ended"));
    // As it is stopped in peace: it has its time, and then what there is of it is written down.
    tokio::time::pause();
    gateway.stop.cancel();
    serving.await.expect("ends").expect("in peace");
    tokio::time::resume();
    timeout(PATIENCE, feed.closed()).await.expect("is let go");
    let stopped = after.get(&path).await.json();
    assert_eq!(stopped["status"], "failed");
    assert!(stopped["error"]["message"].to_string().contains("stopped"));
    assert_eq!(stopped["output"][0]["content"][0]["text"], "hi");
}
