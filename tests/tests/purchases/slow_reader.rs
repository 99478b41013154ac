//! Applications that read slowly, or stop reading: the seller is slowed down, nothing is kept for
//! them beyond what the connections in between hold, and one that goes is noticed all the same.

use farthing_protocol::amount::Price;
use farthing_protocol::purchase::Ending;
use farthing_tests::street::{MODEL, PATIENCE, RunningGateway, Street, TestNet, eventually};
use farthing_tests::upstream::Behaviour;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer of 32 MiB, more than all that the sockets and streams between hold.
const TOKENS: u32 = 2_048;
const TOKEN: usize = 16 * 1024;
const WHOLE: usize = TOKENS as usize * TOKEN;
/// Tokens that may be on their way to one who does not read.
const HELD: u64 = 1_024;
/// Bytes of the end that are looked at.
const TAIL: usize = 64;

async fn open() -> (Street, RunningGateway) {
    let upstream = Behaviour::default()
        .tokens(TOKENS as usize)
        .token_bytes(TOKEN);
    let net = TestNet::new().upstreams(upstream);
    let net = net.seller_config(|_, config| {
        let model = &mut config.models[0];
        model.max_output = TOKENS;
        // All of it is paid for at once: what slows the seller down is not a voucher.
        model.prices.output = Price(1);
        model.prices.input = Price(1);
        model.prices.cached_input = Some(Price(1));
    });
    let street = net.start().await.expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    (street, gateway.expect("listens"))
}

/// A stream of which only the first bytes were read.
async fn ask(gateway: &RunningGateway) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address()).await.expect("opens");
    let body = json!({"model": MODEL, "stream": true, "max_tokens": TOKENS, "messages": [{"role": "user", "content": "A long answer"}]});
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: farthing\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = format!("{head}{body}");
    stream.write_all(request.as_bytes()).await.expect("is read");
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 200");
    stream
}

/// Reads it to its end, which must be a good one: how many bytes came.
async fn rest(stream: &mut TcpStream) -> usize {
    let mut buffer = vec![0; 1024 * 1024];
    let (mut bytes, mut tail) = (0, Vec::new());
    loop {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await;
        let read = read.expect("in time").expect("is read");
        if read == 0 {
            let tail = String::from_utf8_lossy(&tail);
            assert!(tail.contains("data: [DONE]"), "{tail}");
            return bytes;
        }
        bytes += read;
        tail.extend_from_slice(&buffer[read.saturating_sub(TAIL)..read]);
        tail.drain(..tail.len().saturating_sub(TAIL));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_stops_the_seller_and_gets_all_of_it_later() {
    let (street, gateway) = open().await;
    let upstream = &street.sellers[0].upstream;
    let mut idle = ask(&gateway).await;
    // Another reads as much from its beginning to its end: time enough for the first.
    let mut busy = ask(&gateway).await;
    assert!(rest(&mut busy).await > WHOLE);
    upstream.finished(2).await;
    let sent = upstream.requests()[0].chunks;
    println!("{sent} of {TOKENS} tokens are on their way to one who does not read");
    assert!(
        sent <= HELD,
        "{sent} of {TOKENS} tokens were sent to nobody"
    );
    assert!(rest(&mut idle).await > WHOLE);
    upstream.finished(1).await;
    street.settled().await.expect("agrees");
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_goes_without_having_read_stops_the_seller() {
    let (street, gateway) = open().await;
    let upstream = &street.sellers[0].upstream;
    let idle = ask(&gateway).await;
    let running = || street.sellers[0].node().ledger().running();
    eventually("it runs", || running() == 1)
        .await
        .expect("runs");
    drop(idle);
    let seen = upstream.disconnected(1).await;
    assert!(seen.chunks <= HELD, "{} tokens were sent", seen.chunks);
    street.settled().await.expect("agrees");
    let receipts = street.buyers[0].receipts().await;
    assert_eq!(receipts.len(), 1);
    assert_eq!(receipts[0].ending, Ending::Cancelled);
    gateway.stop().await;
    street.stop().await;
}
