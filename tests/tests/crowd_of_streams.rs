//! Hundreds of paid streams through one gateway at once: each comes whole, and nothing is left.
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test may ask plainly, and says what it saw"
)]

use std::sync::Arc;
use std::time::Duration;

use farthing_protocol::purchase::Ending;
use farthing_tests::street::{MODEL, RunningGateway, Street, TestNet, eventually};
use farthing_tests::upstream::{Behaviour, Stage};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const STREAMS: usize = 300;
const TOKENS: usize = 64;
/// Long enough for a stream to be open while the others are opened, on most machines.
const PACE: Duration = Duration::from_millis(30);
const SLOTS: u32 = 512;

async fn open(sellers: usize) -> (Street, RunningGateway) {
    let net = TestNet::new().sellers(sellers);
    let net = net.upstreams(Behaviour::default().tokens(TOKENS).pace(PACE));
    let net = net.seller_config(|_, config| {
        config.models[0].slots = SLOTS;
        config.limits.slots = SLOTS;
        config.limits.purchases_per_buyer = SLOTS;
    });
    let street = net.start().await.expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    (street, gateway.expect("listens"))
}

/// The pieces of content in some events, and how often they say that all is said.
fn read(text: &str) -> (usize, usize) {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let content = |data: &&str| {
        let event: Value = serde_json::from_str(data).unwrap_or_default();
        event["choices"][0]["delta"]["content"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    };
    let pieces = data.clone().filter(content).count();
    (pieces, data.filter(|data| *data == "[DONE]").count())
}

/// One application: reads the beginning, waits until all others have theirs, and reads the rest.
async fn buy(url: String, http: reqwest::Client, all: Arc<Barrier>) -> (usize, usize) {
    let body = json!({"model": MODEL, "stream": true, "max_tokens": TOKENS, "messages": [{"role": "user", "content": "A word"}]});
    let request = http.post(url).body(body.to_string());
    let mut response = request.send().await.expect("is answered");
    let status = response.status();
    let mut text = Vec::new();
    while read(&String::from_utf8_lossy(&text)).0 == 0 {
        let bytes = response.chunk().await.expect("goes on");
        text.extend_from_slice(&bytes.unwrap_or_else(|| panic!("{status} and no content")));
    }
    all.wait().await;
    while let Some(bytes) = response.chunk().await.expect("goes on") {
        text.extend_from_slice(&bytes);
    }
    read(&String::from_utf8_lossy(&text))
}

async fn all_at_once(sellers: usize) {
    let (street, gateway) = open(sellers).await;
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("builds");
    let all = Arc::new(Barrier::new(STREAMS + 1));
    let mut running = JoinSet::new();
    for _ in 0..STREAMS {
        let url = format!("{}/chat/completions", gateway.base_url());
        running.spawn(buy(url, http.clone(), Arc::clone(&all)));
    }
    all.wait().await;
    let at_once: usize = street
        .sellers
        .iter()
        .map(|seller| seller.node().ledger().running())
        .sum();
    println!("{at_once} of {STREAMS} run at {sellers} sellers when the last has begun");
    while let Some(heard) = running.join_next().await {
        assert_eq!(heard.expect("ends"), (TOKENS, 1));
    }
    let charged = street.settled().await.expect("agrees");
    let receipts = street.buyers[0].receipts().await;
    assert_eq!(receipts.len(), STREAMS);
    assert!(
        receipts
            .iter()
            .all(|receipt| receipt.ending == Ending::Complete)
    );
    let sum: u128 = receipts.iter().map(|receipt| receipt.charged.get()).sum();
    assert_eq!(charged.get(), sum);
    let asked = street
        .sellers
        .iter()
        .flat_map(|seller| seller.upstream.requests());
    assert!(
        asked
            .clone()
            .all(|request| request.stage == Stage::Finished)
    );
    assert_eq!(asked.count(), STREAMS, "nothing was bought twice");
    // Streams that wait for another purchase are bounded, and none is running.
    gateway.stop().await;
    let at_work = || {
        street
            .sellers
            .iter()
            .map(|seller| seller.node().ledger().running())
            .sum::<usize>()
    };
    eventually("nothing runs", || at_work() == 0)
        .await
        .expect("ends");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_streams_of_one_seller_come_whole_and_the_books_agree() {
    all_at_once(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_streams_of_two_sellers_come_whole_and_the_books_agree() {
    all_at_once(2).await;
}
