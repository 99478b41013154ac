//! Tests against a small server that says exactly what it is told to.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

const SOON: Duration = Duration::from_secs(10);

/// What the server does once it has read a request.
#[derive(Clone)]
enum Step {
    Say(Vec<u8>),
    /// Nothing, for ever.
    Hang,
    /// Says when the other side has hung up.
    AwaitClose,
}

fn say(text: &str) -> Step {
    Step::Say(text.as_bytes().to_vec())
}

fn head(status: &str, kind: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n")
}

fn stream_of(events: &str) -> Step {
    say(&(head("200 OK", "text/event-stream; charset=utf-8") + events))
}

/// The base URL of a server that does `steps` for every request, and tells what it was asked.
async fn server(steps: Vec<Step>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let base = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let (heard, asked) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(answer(socket, steps.clone(), heard.clone()));
        }
    });
    (base, asked)
}

async fn answer(mut socket: TcpStream, steps: Vec<Step>, heard: mpsc::Sender<String>) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    heard.send(text).await.ok();
    for step in steps {
        match step {
            Step::Say(bytes) => {
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            Step::Hang => std::future::pending().await,
            Step::AwaitClose => {
                while socket.read_buf(&mut request).await.unwrap_or(0) > 0 {}
                heard.send("closed".into()).await.ok();
            }
        }
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    body.len() >= length.map_or(0, |length| length.parse().expect("a number"))
}

fn config(base_url: &str) -> UpstreamConfig {
    UpstreamConfig {
        base_url: base_url.into(),
        first_token_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(100),
        health_interval: Duration::from_millis(20),
        ..UpstreamConfig::default()
    }
}

fn client(base: &str) -> openai::Client {
    openai::Client::new(&config(base)).expect("a client")
}

async fn events(steps: Vec<Step>) -> Vec<Result<Bytes, UpstreamError>> {
    heard(steps).await.0
}

/// What comes of a stream, and whether it said that this is all.
async fn heard(steps: Vec<Step>) -> (Vec<Result<Bytes, UpstreamError>>, bool) {
    let (base, _asked) = server(steps).await;
    let asked = client(&base)
        .events(Endpoint::Chat, Bytes::from_static(b"{}"), SOON)
        .await;
    let mut events = match asked {
        Ok(events) => events,
        Err(error) => return (vec![Err(error)], false),
    };
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        seen.push(event);
    }
    assert!(events.next().await.is_none(), "something after the end");
    (seen, events.is_done())
}

async fn document(steps: Vec<Step>) -> Result<Bytes, UpstreamError> {
    let (base, _asked) = server(steps).await;
    let body = Bytes::from_static(b"{}");
    client(&base)
        .document(Endpoint::Embeddings, body, SOON)
        .await
}

fn json(text: &'static str) -> Result<Bytes, UpstreamError> {
    Ok(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn a_stream_is_its_events_until_done() {
    let steps = vec![
        stream_of(": keep-alive\n\ndata: {\"a\""),
        say(":1}\n\ndata: {\"b\":2}\n\ndata: [DONE]\n\n"),
    ];
    let expected = [json("{\"a\":1}"), json("{\"b\":2}")];
    assert_eq!(events(steps).await, expected);
}

#[tokio::test]
async fn a_stream_may_lack_its_last_word_and_that_is_told() {
    for (end, is_done) in [
        ("", false),
        ("data: [DONE]\n\n", true),
        ("data: [DONE]", true),
    ] {
        let step = stream_of(&format!("data: {{}}\n\n{end}"));
        let (seen, said) = heard(vec![step]).await;
        assert_eq!((seen, said), (vec![json("{}")], is_done), "{end}");
    }
}

#[tokio::test]
async fn a_broken_connection_is_a_cut_answer() {
    let chunked =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let steps = vec![say(&format!("{chunked}a\r\ndata: {{}}\n\n\r\n"))];
    assert_eq!(events(steps).await, [json("{}"), Err(UpstreamError::Cut)]);
}

#[tokio::test]
async fn silence_is_told_from_slowness_to_begin() {
    let config = config("http://unused");
    let late = UpstreamError::NoFirstEvent(config.first_token_timeout);
    assert_eq!(events(vec![Step::Hang]).await, [Err(late.clone())]);
    assert_eq!(
        events(vec![stream_of(": hm\n\n"), Step::Hang]).await,
        [Err(late)]
    );
    let stalled = UpstreamError::Stalled(config.idle_timeout);
    assert_eq!(
        events(vec![stream_of("data: {}\n\n"), Step::Hang]).await,
        [json("{}"), Err(stalled)]
    );
}

#[tokio::test]
async fn the_deadline_covers_the_whole_answer() {
    let (base, _asked) = server(vec![stream_of("data: {}\n\n"), Step::Hang]).await;
    let body = Bytes::from_static(b"{}");
    let short = Duration::from_millis(80);
    let client = client(&base);
    let mut events = client
        .events(Endpoint::Chat, body.clone(), short)
        .await
        .expect("accepted");
    assert_eq!(events.next().await, Some(json("{}")));
    assert_eq!(events.next().await, Some(Err(UpstreamError::Deadline)));
    let plain = client.document(Endpoint::Chat, body, short).await;
    assert_eq!(plain, Err(UpstreamError::Deadline));
}

#[tokio::test]
async fn a_failure_reported_instead_of_an_answer_is_a_failure() {
    let failure = r#"{"error":{"code":500,"message":"no memory"}}"#;
    let reported = UpstreamError::Reported(Bytes::from_static(failure.as_bytes()));
    for stream in [
        format!("data: {{}}\n\ndata: {failure}\n\n"),
        format!("data: {{}}\n\nerror: {failure}\n\n"),
    ] {
        let seen = events(vec![stream_of(&stream)]).await;
        assert_eq!(seen, [json("{}"), Err(reported.clone())]);
    }
    let whole = say(&(head("200 OK", "application/json") + failure));
    assert_eq!(document(vec![whole.clone()]).await, Err(reported.clone()));
    assert_eq!(events(vec![whole]).await, [Err(reported)]);
}

#[tokio::test]
async fn what_is_no_json_object_is_malformed() {
    let malformed = |seen: &UpstreamError| matches!(seen, UpstreamError::Malformed(_));
    let seen = events(vec![stream_of("data: hello\n\n")]).await;
    assert!(
        matches!(&seen[..], [Err(error)] if malformed(error)),
        "{seen:?}"
    );
    let page = say(&(head("200 OK", "text/html") + "<html>"));
    let seen = events(vec![page.clone()]).await;
    assert!(
        matches!(&seen[..], [Err(error)] if malformed(error)),
        "{seen:?}"
    );
    let seen = document(vec![page]).await;
    assert!(matches!(&seen, Err(error) if malformed(error)), "{seen:?}");
}

#[tokio::test]
async fn a_refusal_keeps_its_status_body_and_patience() {
    let refusal =
        "HTTP/1.1 429 Too Many\r\nretry-after: 7\r\nconnection: close\r\n\r\n{\"error\":1}";
    let expected = UpstreamError::Status {
        status: 429,
        body: Bytes::from_static(b"{\"error\":1}"),
        retry_after: Some(Duration::from_secs(7)),
    };
    assert_eq!(document(vec![say(refusal)]).await, Err(expected.clone()));
    assert_eq!(events(vec![say(refusal)]).await, [Err(expected)]);
    let moved = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n";
    let seen = document(vec![say(moved)]).await;
    assert!(
        matches!(seen, Err(UpstreamError::Status { status: 302, .. })),
        "{seen:?}"
    );
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable_and_has_not_worked() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let base = format!("http://{}/v1", free.local_addr().expect("bound"));
    drop(free);
    let seen = client(&base).discover().await.expect_err("nobody");
    assert!(matches!(seen, UpstreamError::Unreachable(_)), "{seen:?}");
    assert!(!seen.may_have_worked() && UpstreamError::Cut.may_have_worked());
}

#[tokio::test]
async fn dropping_a_reply_hangs_up() {
    let (base, mut asked) = server(vec![stream_of("data: {}\n\n"), Step::AwaitClose]).await;
    let body = Bytes::from_static(b"{}");
    let mut events = client(&base)
        .events(Endpoint::Chat, body, SOON)
        .await
        .expect("accepted");
    assert_eq!(events.next().await, Some(json("{}")));
    asked.recv().await.expect("the request");
    drop(events);
    let closed = timeout(SOON, asked.recv()).await.expect("in time");
    assert_eq!(closed.as_deref(), Some("closed"));
}

#[tokio::test]
async fn a_connection_is_used_again_after_a_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let base = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let serve = tokio::spawn(async move {
        // One connection only: a second one would wait for ever.
        let (mut socket, _) = listener.accept().await.expect("accepts");
        for _ in 0..3 {
            let mut request = Vec::new();
            while !is_whole(&request) {
                socket.read_buf(&mut request).await.expect("reads");
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            let body = "e\r\ndata: [DONE]\n\n\r\n";
            socket.write_all(head.as_bytes()).await.expect("writes");
            socket.write_all(body.as_bytes()).await.expect("writes");
            socket.write_all(b"0\r\n\r\n").await.expect("writes");
        }
    });
    let client = client(&base);
    for _ in 0..3 {
        let body = Bytes::from_static(b"{}");
        let mut events = client
            .events(Endpoint::Chat, body, SOON)
            .await
            .expect("accepted");
        assert_eq!(events.next().await, None);
    }
    timeout(SOON, serve)
        .await
        .expect("in time")
        .expect("served");
}

#[tokio::test]
async fn the_key_is_sent_and_never_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    std::fs::write(&path, "sk-secret\n").expect("writes");
    let list = r#"{"object":"list","data":[{"id":"b","object":"model"},{"id":"a/b"}]}"#;
    let step = say(&(head("200 OK", "application/json") + list));
    let (base, mut asked) = server(vec![step]).await;
    let config = UpstreamConfig {
        api_key_file: Some(path.clone()),
        ..config(&base)
    };
    let client = openai::Client::new(&config).expect("a client");
    assert_eq!(client.discover().await, Ok(vec!["b".into(), "a/b".into()]));
    let request = asked.recv().await.expect("the request");
    assert!(request.starts_with("GET /v1/models "), "{request}");
    assert!(
        request.contains("authorization: Bearer sk-secret"),
        "{request}"
    );
    assert!(!format!("{client:?}").contains("secret"));
    std::fs::write(&path, "\n").expect("writes");
    assert!(matches!(
        openai::Client::new(&config),
        Err(StartError::Key(_))
    ));
}

#[tokio::test]
async fn health_follows_the_server_and_an_unreachable_one_is_down() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let base = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let metrics = Metrics::default();
    let upstream = Upstream::start(&config(&base), &metrics).expect("starts");
    let mut health = upstream.watch_health();
    let list = head("200 OK", "application/json") + r#"{"data":[]}"#;
    let (heard, _asked) = mpsc::channel(1000);
    let serve = tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            answer(socket, vec![say(&list)], heard.clone()).await;
        }
    });
    timeout(SOON, health.wait_for(|health| *health == Health::Up))
        .await
        .expect("in time")
        .expect("watched");
    assert_eq!(metrics.upstream_up.get(), 1);
    serve.abort();
    timeout(SOON, health.wait_for(|health| *health != Health::Up))
        .await
        .expect("in time")
        .expect("watched");
    assert_eq!(metrics.upstream_up.get(), 0);
    upstream.stop().await;
    assert!(health.changed().await.is_err(), "the task has ended");
}

#[tokio::test]
async fn failures_are_counted_by_name() {
    let (base, _asked) = server(vec![say("HTTP/1.1 500 Oh\r\nconnection: close\r\n\r\n")]).await;
    let metrics = Metrics::default();
    let upstream = Upstream::start(&config(&base), &metrics).expect("starts");
    let body = Bytes::from_static(b"{}");
    let asked = upstream.ask(Endpoint::Chat, Mode::Plain, body, SOON).await;
    assert!(asked.is_err());
    let text = metrics.encode();
    assert!(
        text.contains("upstream_failures_total{kind=\"status\"} 1"),
        "{text}"
    );
}

#[test]
fn a_body_is_prepared_without_touching_anything_else() {
    let prepare = |text: &str, mode| {
        let body = Body::parse(text.as_bytes()).expect("parses");
        prepare_body(&body, "m\"x", mode, None).map(|body| String::from_utf8(body).expect("text"))
    };
    let text = r#"{"model":"a/b","messages": [ 1.0 ],"stream":true}"#;
    assert_eq!(
        prepare(text, Mode::Stream).expect("prepares"),
        r#"{"model":"m\"x","messages":[ 1.0 ],"stream":true,"stream_options":{"include_usage":true}}"#
    );
    assert_eq!(
        prepare(
            r#"{"stream_options":{"x":1,"include_usage":false},"model":"a"}"#,
            Mode::Stream
        )
        .expect("prepares"),
        r#"{"stream_options":{"x":1,"include_usage":true},"model":"m\"x"}"#
    );
    assert_eq!(
        prepare(r#"{"stream_options":null}"#, Mode::Stream).expect("prepares"),
        r#"{"stream_options":{"include_usage":true},"model":"m\"x"}"#
    );
    assert_eq!(
        prepare("{}", Mode::Plain).expect("prepares"),
        r#"{"model":"m\"x"}"#
    );
    assert!(matches!(
        prepare(r#"{"stream_options":5}"#, Mode::Stream),
        Err(BodyError::Field {
            field: "stream_options",
            ..
        })
    ));
}

#[test]
fn an_answer_ends_at_the_limit_of_the_offer_whatever_was_asked() {
    let prepared = |text: &str| {
        let body = Body::parse(text.as_bytes()).expect("parses");
        let bytes = prepare_body(&body, "m", Mode::Plain, Some(100)).expect("prepares");
        String::from_utf8(bytes).expect("text")
    };
    assert_eq!(
        prepared(r#"{"model":"x"}"#),
        r#"{"model":"m","max_tokens":100}"#
    );
    assert_eq!(
        prepared(r#"{"max_tokens":7,"model":"x"}"#),
        r#"{"max_tokens":7,"model":"m"}"#
    );
    assert_eq!(
        prepared(r#"{"max_tokens":700,"model":"x"}"#),
        r#"{"max_tokens":100,"model":"m"}"#
    );
    assert_eq!(
        prepared(r#"{"max_completion_tokens":700,"max_tokens":900,"model":"x"}"#),
        r#"{"max_completion_tokens":100,"max_tokens":100,"model":"m"}"#
    );
    assert_eq!(
        prepared(r#"{"max_completion_tokens":700,"model":"x"}"#),
        r#"{"max_completion_tokens":100,"model":"m"}"#
    );
}
