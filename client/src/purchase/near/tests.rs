use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server, and where it is asked.
async fn server() -> (TcpListener, Url) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let address = listener.local_addr().expect("has an address");
    let base = format!("http://{address}/v1/").parse().expect("is a URL");
    (listener, base)
}

/// Takes one request to its end: the head, and a body of two bytes.
async fn hear(stream: &mut TcpStream) -> String {
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n{}") {
        assert_ne!(stream.read_buf(&mut heard).await.expect("is read"), 0);
    }
    String::from_utf8(heard).expect("is text")
}

async fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.expect("is written");
}

async fn whole(mut rest: Rest) -> Result<Vec<u8>, PurchaseError> {
    let mut whole = Vec::new();
    while let Some(piece) = rest.next().await? {
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

fn near() -> Near {
    Near::new(Duration::from_secs(10))
}

async fn ask(near: &Near, base: &Url) -> Result<(Response<()>, Rest), PurchaseError> {
    let body = Bytes::from_static(b"{}");
    let key = HeaderValue::from_static("Bearer k");
    near.ask((base, Endpoint::Chat), body, Some(key)).await
}

/// Returns when it shows that the server has ended the connection that is kept.
async fn noticed(near: &Near, base: &Url) {
    let server = authority(base);
    while let Some(link) = near.take(&server) {
        near.keep(&server, link);
        tokio::task::yield_now().await;
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none";

#[tokio::test]
async fn requests_follow_each_other_on_one_connection() {
    let (listener, base) = server().await;
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("comes");
        let first = hear(&mut stream).await;
        say(&mut stream, OK).await;
        let chunked = "HTTP/1.1 404 Not Found\r\ntransfer-encoding: chunked\r\n\r\n2\r\nth\r\n";
        hear(&mut stream).await;
        say(&mut stream, chunked).await;
        say(&mut stream, "3\r\nere\r\n0\r\n\r\n").await;
        hear(&mut stream).await;
        say(&mut stream, OK).await;
        first
    });
    let near = near();
    for (status, text) in [(200, "one"), (404, "there"), (200, "one")] {
        let (head, rest) = ask(&near, &base).await.expect("is answered");
        assert_eq!(head.status().as_u16(), status);
        assert_eq!(whole(rest).await.expect("is whole"), text.as_bytes());
    }
    let first = serving.await.expect("served");
    let named = format!("host: 127.0.0.1:{}\r\n", base.port().expect("has one"));
    assert!(first.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"));
    assert!(first.contains(&named), "{first}");
    assert!(first.contains("authorization: Bearer k\r\n"), "{first}");
    assert!(first.contains("content-length: 2\r\n"), "{first}");
}

#[tokio::test]
async fn a_connection_that_the_server_has_ended_is_not_asked_again() {
    let (listener, base) = server().await;
    let near = near();
    for _ in 0..3 {
        let asking = ask(&near, &base);
        let serving = async {
            let (mut stream, _) = listener.accept().await.expect("comes");
            hear(&mut stream).await;
            say(&mut stream, OK).await;
        };
        let (asked, ()) = tokio::join!(asking, serving);
        let (_, rest) = asked.expect("is answered");
        assert_eq!(whole(rest).await.expect("is whole"), b"one");
        noticed(&near, &base).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_dropped_ends_its_connection() {
    let (listener, base) = server().await;
    let near = near();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("comes");
        hear(&mut stream).await;
        say(
            &mut stream,
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none",
        )
        .await;
        let mut more = Vec::new();
        stream.read_to_end(&mut more).await
    });
    let (_, mut rest) = ask(&near, &base).await.expect("is answered");
    assert_eq!(rest.next().await.expect("goes on").expect("more"), "one");
    drop(rest);
    // An end or a reset, as the system likes.
    serving.await.expect("served").ok();
    assert!(near.take(&authority(&base)).is_none());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_taken_for_a_whole_one() {
    let (listener, base) = server().await;
    let near = near();
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\none",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n",
        "HTTP/1.1 200 OK\r\ncont",
        "",
    ] {
        let asking = async {
            let (_, rest) = ask(&near, &base).await?;
            whole(rest).await
        };
        let serving = async {
            let (mut stream, _) = listener.accept().await.expect("comes");
            hear(&mut stream).await;
            say(&mut stream, answer).await;
        };
        let (asked, ()) = tokio::join!(asking, serving);
        assert!(matches!(asked, Err(PurchaseError::Lost(_))), "{asked:?}");
    }
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_asked() {
    let (listener, base) = server().await;
    drop(listener);
    let asked = ask(&near(), &base).await;
    assert!(matches!(asked, Err(PurchaseError::Unreached(_))));
}

#[test]
fn only_plain_addresses_are_asked_this_way() {
    let near = |text: &str| is_near(&text.parse().expect("is a URL"));
    assert!(near("http://127.0.0.1:8000/v1"));
    assert!(near("http://localhost/v1"));
    assert!(near("http://[::1]:8000"));
    for far in [
        "https://127.0.0.1:8000/v1",
        "http://me:secret@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=x",
    ] {
        assert!(!near(far), "{far}");
    }
}
