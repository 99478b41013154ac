//! What one client may take of a seller's HTTP door.

use std::net::SocketAddr;

use farthing_node::config::HttpConfig;
use farthing_tests::street::{Agent, PATIENCE, Reply, Street, TestNet};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn street(tweak: fn(&mut HttpConfig)) -> (Street, Agent) {
    let net = TestNet::new()
        .buyers(0)
        .http()
        .seller_config(move |_, config| tweak(&mut config.http));
    let street = net.start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    (street, agent.expect("has money"))
}

fn door(street: &Street) -> SocketAddr {
    street.sellers[0].node().http().expect("open").address
}

/// A request whose body does not come, from behind a proxy.
async fn begun(street: &Street, client: &str) -> TcpStream {
    let mut stream = TcpStream::connect(door(street)).await.expect("connects");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {client}\r\nExpect: 100-continue\r\nContent-Length: 500\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("writes");
    // Now the door waits for the body, and the request has its place.
    let mut answer = [0; 12];
    let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
    read.expect("in time").expect("reads");
    assert_eq!(&answer, b"HTTP/1.1 100");
    stream
}

async fn ask(agent: &Agent, client: &str) -> Reply {
    let body = Agent::plain("what does it cost?", 10);
    let request = agent.request(&body, None).header("X-Forwarded-For", client);
    agent.send(request).await.expect("answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_client_behind_a_proxy_cannot_take_the_room_of_the_others() {
    let (street, agent) = street(|http| http.requests_per_client = 2).await;
    let (greedy, other) = ("203.0.113.7, 192.0.2.1", "192.0.2.2");
    let first = begun(&street, greedy).await;
    let _second = begun(&street, greedy).await;
    // What it says of itself before the proxy's own word changes nothing.
    let refused = ask(&agent, "198.51.100.9, 192.0.2.1").await;
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains_key("retry-after"));
    let body: Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert_eq!(body["error"]["code"], "too_many_requests");
    assert_eq!(ask(&agent, other).await.status, 402);
    // It has its place back when its own request has ended.
    drop(first);
    let again = async { while ask(&agent, "192.0.2.1").await.status == 429 {} };
    timeout(PATIENCE, again).await.expect("has its place back");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_one_client_over_its_share_are_closed_and_a_proxys_are_not() {
    let (street, agent) = street(|http| {
        http.connections_per_client = 2;
        http.proxies.clear();
    })
    .await;
    let held = [
        begun(&street, "192.0.2.1").await,
        begun(&street, "192.0.2.2").await,
    ];
    let mut third = TcpStream::connect(door(&street)).await.expect("connects");
    let mut nothing = Vec::new();
    let end = timeout(PATIENCE, third.read_to_end(&mut nothing)).await;
    // Closed in order or not: it gets no answer.
    end.expect("in time").ok();
    assert!(nothing.is_empty());
    drop(held);
    let again = async {
        let body = Agent::plain("and now?", 10);
        while agent.ask(&body, None).await.is_err() {}
    };
    timeout(PATIENCE, again).await.expect("has its place back");
    street.stop().await;
    // A door that knows its proxy does not count the proxy's own connections.
    let (street, agent) = self::street(|http| http.connections_per_client = 1).await;
    let _held = [
        begun(&street, "192.0.2.1").await,
        begun(&street, "192.0.2.2").await,
    ];
    assert_eq!(ask(&agent, "192.0.2.3").await.status, 402);
    street.stop().await;
}
