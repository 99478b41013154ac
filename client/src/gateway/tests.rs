//! The gateway end to end over a real loopback socket; the answers are scripted.

#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::time::Duration;

use bytes::Bytes;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::client::scripted::{Events, answer, data, end, whole};
use crate::client::{Answer, Attempt, Errand, InferError, Request};

mod background;
mod conversations;
mod errors;
mod openai;
mod responses;

const CHAT: &str = "/v1/chat/completions";
const PLAIN: &str = r#"{"model":"test/model","messages":[]}"#;
const STREAM: &str = r#"{"model":"test/model","messages":[],"stream":true}"#;
const WITH_USAGE: &str =
    r#"{"model":"test/model","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
const CHUNK: &str = r#"{"id":"x","choices":[{"index":0,"delta":{"content":"hi"}}],"usage":null}"#;
const USAGE: &str = r#"{"id":"x","choices":[],"usage":{"prompt_tokens":1}}"#;
/// A test that waits longer than this has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that answers by a closure, stopped when dropped.
struct Running {
    address: SocketAddr,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

type Answered = Result<Answer, InferError>;

async fn start(infer: impl Fn(Request) -> Answered + Send + Sync + 'static) -> Running {
    start_with(config::Gateway::default(), infer).await
}

async fn start_with(
    mut settings: config::Gateway,
    infer: impl Fn(Request) -> Answered + Send + Sync + 'static,
) -> Running {
    settings.listen.set_port(0);
    let client = Client::scripted(infer);
    let gateway = Gateway::bind(client, settings, Metrics::default()).await;
    let gateway = gateway.expect("binds");
    let stop = CancellationToken::new();
    let address = gateway.address();
    tokio::spawn(gateway.serve(stop.clone()));
    Running { address, stop }
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect("is JSON")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Status, type and code of an error.
    fn error(&self) -> (u16, String, String) {
        let json = self.json();
        let error = &json["error"];
        assert!(
            error["message"].is_string() && error.get("param").is_some(),
            "{json}"
        );
        let text = |field: &str| error[field].as_str().unwrap_or_default().to_owned();
        (self.status, text("type"), text("code"))
    }
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Reply {
        let response = timeout(PATIENCE, request.send()).await.expect("in time");
        let response = response.expect("is answered");
        Reply {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            text: timeout(PATIENCE, response.text())
                .await
                .expect("in time")
                .expect("is text"),
        }
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        self.send(reqwest::Client::new().post(self.url(path)).body(body))
            .await
    }

    async fn delete(&self, path: &str) -> Reply {
        self.send(reqwest::Client::new().delete(self.url(path)))
            .await
    }

    async fn get(&self, path: &str) -> Reply {
        self.send(reqwest::Client::new().get(self.url(path))).await
    }
}

fn seller() -> NodeId {
    farthing_protocol::testing::node_key(1).id()
}

#[tokio::test]
async fn a_plain_answer_comes_as_the_seller_sent_it_with_its_price_in_the_head() {
    let (seen, mut requests) = mpsc::channel(1);
    let gateway = start(move |request| {
        seen.try_send(request).expect("one request");
        Ok(whole(vec![data("{\"odd\" :  1}"), end()]))
    })
    .await;
    let body = r#"{"messages":[], "model":"test/model","future_field":{"a":1.0e2}}"#;
    let reply = gateway.post(CHAT, body).await;
    assert_eq!((reply.status, reply.text.as_str()), (200, "{\"odd\" :  1}"));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-farthing-charged"), Some("11"));
    assert_eq!(
        reply.header("x-farthing-seller"),
        Some(seller().to_string().as_str())
    );
    assert_eq!(reply.header("x-farthing-model"), Some("test/model"));
    assert_eq!(reply.header("x-request-id").map(str::len), Some(66));
    let request = requests.recv().await.expect("one request");
    assert_eq!(request.endpoint, Endpoint::Chat);
    assert_eq!(request.body, body.as_bytes());
}

#[tokio::test]
async fn each_path_buys_at_its_endpoint() {
    let gateway = start(|request| {
        let text = format!("{{\"endpoint\":\"{}\"}}", request.endpoint);
        Ok(whole(vec![data(&text), end()]))
    })
    .await;
    for (path, name) in [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "completions"),
        ("/v1/embeddings", "embeddings"),
    ] {
        assert_eq!(gateway.post(path, PLAIN).await.json()["endpoint"], name);
    }
}

#[tokio::test]
async fn a_stream_is_written_as_it_came_and_ends_with_bill_and_one_done() {
    let done = "[DONE]";
    let gateway =
        start(move |_| Ok(whole(vec![data(CHUNK), data(USAGE), data(done), end()]))).await;
    let bill = format!(
        ": farthing {{\"charged\":\"11\",\"receipt_seq\":3,\"request\":\"0x{}\",\"seller\":\"{}\"}}\n\n",
        "07".repeat(32),
        seller()
    );
    let reply = gateway.post(CHAT, STREAM).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    assert_eq!(reply.header("x-farthing-charged"), None);
    assert_eq!(
        reply.text,
        format!("data: {CHUNK}\n\n{bill}data: [DONE]\n\n")
    );
    let reply = gateway.post(CHAT, WITH_USAGE).await;
    let expected = format!("data: {CHUNK}\n\ndata: {USAGE}\n\n{bill}data: [DONE]\n\n");
    assert_eq!(reply.text, expected);
}

#[tokio::test]
async fn a_stream_that_breaks_ends_in_an_error_and_never_in_done() {
    for broken in [
        vec![data(CHUNK), Err(InferError::Interrupted("gone".into()))],
        vec![data(CHUNK)],
    ] {
        let gateway = start(move |_| Ok(whole(broken.clone()))).await;
        let reply = gateway.post(CHAT, STREAM).await;
        assert_eq!(reply.status, 200);
        let rest = reply.text.strip_prefix(&format!("data: {CHUNK}\n\ndata: "));
        let error: Value = serde_json::from_str(rest.expect("has an error")).expect("is JSON");
        assert_eq!(error["error"]["code"], "interrupted");
        assert!(!reply.text.contains("[DONE]"));
    }
}

#[tokio::test]
async fn models_are_listed_and_found_by_an_id_with_a_slash() {
    let gateway = start(|_| Ok(answer().1)).await;
    let list = gateway.get("/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let card = &list["data"][0];
    assert_eq!(card["id"], "test/model");
    assert_eq!(card["object"], "model");
    assert_eq!(card["owned_by"], "test");
    assert_eq!(card["created"], 1_753_900_000);
    assert_eq!(card["farthing"]["sellers"], 2);
    assert_eq!(&gateway.get("/v1/models/test/model").await.json(), card);
    assert_eq!(&gateway.get("/v1/models/test%2Fmodel").await.json(), card);
    let reply = gateway.get("/v1/models/no/such").await;
    assert_eq!(reply.error().2, "model_not_found");
    assert_eq!(reply.json()["error"]["param"], "model");
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let gateway = start(|_| Ok(whole(vec![data("{}"), end()]))).await;
    gateway.post(CHAT, PLAIN).await;
    let health = gateway.get("/health").await;
    assert_eq!(
        (health.status, &health.json()["chain"]),
        (200, &Value::from("ok"))
    );
    let metrics = gateway.get("/metrics").await.text;
    let line = "farthing_gateway_requests_total{route=\"/v1/chat/completions\",status=\"200\"} 1";
    assert!(metrics.contains(line), "{metrics}");
}

#[tokio::test]
async fn with_keys_only_a_known_key_buys() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "secret\n").expect("is written");
    let settings = config::Gateway {
        api_keys_file: Some(file.path().to_owned()),
        ..config::Gateway::default()
    };
    let gateway = start_with(settings, |_| Ok(whole(vec![data("{}"), end()]))).await;
    for path in [CHAT, "/v1/models", "/metrics", "/v1/nothing"] {
        let reply = gateway.post(path, PLAIN).await;
        assert_eq!(reply.error().2, "invalid_api_key", "{path}");
        assert_eq!(reply.status, 401);
    }
    let request = |key| {
        let request = reqwest::Client::new().post(gateway.url(CHAT)).body(PLAIN);
        request.bearer_auth(key)
    };
    assert_eq!(gateway.send(request("wrong")).await.status, 401);
    assert_eq!(gateway.send(request("secret")).await.status, 200);
    assert_eq!(gateway.get("/health").await.status, 200);
}

#[tokio::test]
async fn a_web_page_from_elsewhere_cannot_spend() {
    let gateway = start(|_| Ok(whole(vec![data("{}"), end()]))).await;
    let request = reqwest::Client::new().post(gateway.url(CHAT)).body(PLAIN);
    let request = request.header("origin", "https://evil.example");
    assert_eq!(gateway.send(request).await.status, 403);
}

#[tokio::test]
async fn a_public_address_without_keys_is_refused() {
    let settings = config::Gateway {
        listen: SocketAddr::from(([0, 0, 0, 0], 0)),
        ..config::Gateway::default()
    };
    let client = Client::scripted(|_| Ok(answer().1));
    let bound = Gateway::bind(client, settings, Metrics::default()).await;
    assert!(matches!(bound, Err(BindError::Public { .. })));
}

/// A gateway whose answers are fed by the test.
async fn fed(settings: config::Gateway) -> (Running, mpsc::Receiver<Events>) {
    let (feeds, receiver) = mpsc::channel(1);
    let gateway = start_with(settings, move |_| {
        let (events, answer) = answer();
        feeds.try_send(events).expect("one answer");
        Ok(answer)
    })
    .await;
    (gateway, receiver)
}

async fn ask(gateway: &Running, body: &str) -> TcpStream {
    ask_at(gateway, CHAT, body).await
}

async fn ask_at(gateway: &Running, path: &str, body: &str) -> TcpStream {
    let stream = TcpStream::connect(gateway.address).await;
    let mut stream = stream.expect("connects");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = head + body;
    stream.write_all(request.as_bytes()).await.expect("is sent");
    stream
}

async fn read_until(stream: &mut TcpStream, mark: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(mark) {
        let read = timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .expect("in time");
        let read = read.expect("reads");
        assert!(read > 0, "ended without {mark}: {text}");
        text += &String::from_utf8_lossy(&buffer[..read]);
    }
    text
}

#[tokio::test]
async fn an_application_that_hangs_up_cancels_its_answer() {
    for body in [PLAIN, STREAM] {
        let (gateway, mut feeds) = fed(config::Gateway::default()).await;
        let mut stream = ask(&gateway, body).await;
        let events = feeds.recv().await.expect("is asked");
        if body == STREAM {
            events.send(data(CHUNK)).await.expect("is taken");
            read_until(&mut stream, "\"hi\"").await;
        }
        drop(stream);
        timeout(PATIENCE, events.closed())
            .await
            .expect("is dropped");
    }
}

#[tokio::test]
async fn each_event_is_sent_at_once_and_silence_is_bridged() {
    let settings = config::Gateway {
        keep_alive: Duration::from_millis(20),
        ..config::Gateway::default()
    };
    let (gateway, mut feeds) = fed(settings).await;
    let mut stream = ask(&gateway, STREAM).await;
    let events = feeds.recv().await.expect("is asked");
    events.send(data(CHUNK)).await.expect("is taken");
    read_until(&mut stream, "\"hi\"").await;
    read_until(&mut stream, ": keep-alive\n\n").await;
    events.send(end()).await.expect("is taken");
    read_until(&mut stream, "data: [DONE]\n\n").await;
}

#[tokio::test]
async fn silence_is_bridged_in_the_words_of_the_dialect() {
    let settings = config::Gateway {
        keep_alive: Duration::from_millis(20),
        ..config::Gateway::default()
    };
    let (gateway, mut feeds) = fed(settings).await;
    let mut stream = ask_at(&gateway, "/api/v1/chat/completions", STREAM).await;
    let events = feeds.recv().await.expect("is asked");
    events.send(data(CHUNK)).await.expect("is taken");
    read_until(&mut stream, ": OPENROUTER PROCESSING\n\n").await;
    events.send(end()).await.expect("is taken");
    read_until(&mut stream, "data: [DONE]\n\n").await;
}

#[tokio::test]
async fn every_answer_has_a_name_and_no_two_the_same() {
    let gateway = start(|_| Err(InferError::SpendLimit("none left".into()))).await;
    let mut names = std::collections::HashSet::new();
    for path in [
        "/health",
        "/metrics",
        "/nothing",
        "/v1/models",
        "/api/v1/models",
        "/",
    ] {
        let reply = gateway.get(path).await;
        names.insert(reply.header("x-request-id").expect("a name").to_owned());
    }
    for path in [
        CHAT,
        "/api/v1/chat/completions",
        "/v1/messages",
        "/api/v1/messages",
    ] {
        let reply = gateway
            .post(path, r#"{"model":"a/b","max_tokens":1,"messages":[]}"#)
            .await;
        assert_eq!(reply.status, 402, "{path}");
        let name = reply.header("x-request-id").expect("a name");
        let anthropic = path.ends_with("/messages").then_some(name);
        assert_eq!(reply.header("request-id"), anthropic, "{path}");
        names.insert(name.to_owned());
    }
    assert_eq!(names.len(), 10);
    assert!(names.iter().all(|name| name.starts_with("req_")));
}

#[tokio::test]
async fn a_path_that_is_no_text_is_told_so_in_the_shape_of_its_dialect() {
    let gateway = start(|_| Ok(answer().1)).await;
    for path in ["/api/v1/model/%FF/x", "/api/v1/models/x/%FF/endpoints"] {
        let reply = gateway.get(path).await;
        assert_eq!(reply.status, 400, "{path}");
        assert_eq!(reply.json()["error"]["code"], 400);
    }
    for path in ["/v1/models/%FF", "/v1/responses/%FF"] {
        assert_eq!(gateway.get(path).await.error().0, 400, "{path}");
    }
}

/// Everything that is logged, as text.
#[derive(Clone, Default)]
struct Logged(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_is_logged_meanwhile_names_the_request_and_not_what_it_says() {
    let logged = Logged::default();
    let writer = logged.clone();
    let log = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = tracing::subscriber::set_default(log);
    let gateway = start(|_| Err(InferError::Internal("the disk is full".into()))).await;
    let body = r#"{"model":"a/b","messages":[{"role":"user","content":"a secret"}]}"#;
    let reply = gateway.post(CHAT, body).await;
    assert_eq!(reply.status, 500);
    let name = reply.header("x-request-id").expect("a name").to_owned();
    let text = String::from_utf8(logged.0.lock().expect("whole").clone()).expect("text");
    let line = text.lines().find(|line| line.contains("a request failed"));
    assert!(
        line.is_some_and(|line| line.contains(&name)),
        "{name}: {text}"
    );
    assert!(!text.contains("a secret"), "{text}");
}

/// The paths that handlers are set to in these sources, as OpenAPI writes them.
fn routed(sources: &[&str]) -> Vec<String> {
    let calls = sources.iter().flat_map(|source| source.split(".route("));
    let paths = calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next());
    let paths = paths.filter(|path| path.starts_with('/'));
    let mut paths: Vec<_> = paths.map(|path| path.replace("{*", "{")).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn the_description_names_every_path_and_no_other() {
    let document: Value = serde_json::from_str(DESCRIPTION).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    let mut described: Vec<_> = paths.keys().cloned().collect();
    described.sort();
    let sources = [
        include_str!("../gateway.rs"),
        include_str!("api.rs"),
        include_str!("responses/conversations.rs"),
    ];
    assert_eq!(described, routed(&sources));
    let gateway = start(|_| Err(InferError::SpendLimit("none left".into()))).await;
    for (path, methods) in paths {
        let path = path.replace("{author}", "test").replace("{slug}", "model");
        let is_kept = path.contains("/responses/") || path.contains("/conversations/");
        let id = if is_kept { "kept_1" } else { "test/model" };
        let path = path.replace("{id}", id).replace("{item}", "msg_1");
        for method in methods.as_object().expect("methods").keys() {
            let reply = match method.as_str() {
                "get" => gateway.get(&path).await,
                "delete" => gateway.delete(&path).await,
                _ => gateway.post(&path, PLAIN).await,
            };
            // Nothing is kept here under any name; but somebody looks.
            let is_looked_for = reply.status == 404 && reply.error().2 == "not_found";
            assert!(
                ![404, 405].contains(&reply.status) || is_looked_for,
                "{method} {path}: {}",
                reply.text
            );
        }
    }
    assert_eq!(gateway.get("/openapi.json").await.json(), document);
}

#[tokio::test]
async fn a_silent_seller_is_not_waited_for_for_ever() {
    let settings = config::Gateway {
        keep_alive: Duration::from_millis(10),
        deadline: Duration::from_millis(50),
        ..config::Gateway::default()
    };
    let (gateway, mut feeds) = fed(settings).await;
    let reply = gateway.post(CHAT, PLAIN).await;
    assert_eq!(reply.error().2, "deadline");
    let silent = feeds.recv().await.expect("is asked");
    assert!(silent.is_closed());
    let mut stream = ask(&gateway, STREAM).await;
    let events = feeds.recv().await.expect("is asked");
    events.send(data(CHUNK)).await.expect("is taken");
    read_until(&mut stream, "\"code\":\"deadline\"").await;
}

#[tokio::test]
async fn the_gateway_ends_when_it_is_told_to() {
    let client = Client::scripted(|_| Ok(answer().1));
    let mut settings = config::Gateway::default();
    settings.listen.set_port(0);
    let gateway = Gateway::bind(client, settings, Metrics::default()).await;
    let stop = CancellationToken::new();
    let serving = tokio::spawn(gateway.expect("binds").serve(stop.clone()));
    stop.cancel();
    let ended = timeout(PATIENCE, serving).await.expect("in time");
    assert!(ended.expect("does not panic").is_ok());
}
