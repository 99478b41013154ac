//! Buyers that hang up: they pay for what was delivered, and nothing else.

use std::time::Duration;

use farthing_client::client::Request;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::pricing;
use farthing_protocol::purchase::Ending;
use farthing_tests::street::{Buyer, MODEL, RunningGateway, Street, TestNet};
use farthing_tests::upstream::{Behaviour, Fault};
use futures::StreamExt;
use serde_json::{Value, json};

const PACE: Duration = Duration::from_millis(2);
const LONG: Duration = Duration::from_secs(60);

async fn street(behaviour: Behaviour) -> Street {
    let net = TestNet::new().upstreams(behaviour);
    net.start().await.expect("starts")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_hangs_up_mid_stream_pays_exactly_what_was_delivered() {
    let street = street(Behaviour::default().tokens(1000).pace(PACE)).await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(1000))
        .await
        .expect("begins");
    for _ in 0..40 {
        answer.next().await.expect("goes on").expect("goes on");
    }
    drop(answer);
    let seen = street.sellers[0].upstream.disconnected(1).await;
    let charged = street.settled().await.expect("agrees");
    let receipts = street.buyers[0].receipts().await;
    let receipt = &receipts[0];
    assert_eq!(receipt.ending, Ending::Cancelled);
    let delivered = u64::from(receipt.usage.completion);
    assert!((39..=seen.chunks).contains(&delivered), "{delivered}");
    let prices = street.sellers[0].config.models[0].offer().prices;
    let due = pricing::cost(&receipt.usage, &prices).expect("fits");
    assert_eq!(charged, due.floor());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_cancelled_in_the_background_costs_exactly_what_was_delivered() {
    let street = street(
        Behaviour::default()
            .tokens(1000)
            .fault(Fault::StallAfter(40)),
    )
    .await;
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    let gateway = gateway.expect("listens");
    let http = reqwest::Client::new();
    let url = format!("{}/responses", gateway.base_url());
    let body = json!({"model": MODEL, "input": "Hi", "background": true});
    let begun = http.post(&url).body(body.to_string()).send().await;
    let begun: Value = begun.expect("begins").json().await.expect("JSON");
    let one = format!("{url}/{}", begun["id"].as_str().expect("an id"));
    let told = http.get(format!("{one}?stream=true")).send().await;
    let mut told = told.expect("is told").bytes_stream();
    let mut text = String::new();
    while text.matches("output_text.delta\ndata").count() < 40 {
        let more = told.next().await.expect("goes on").expect("goes on");
        text += &String::from_utf8_lossy(&more);
    }
    let cancelled = http.post(format!("{one}/cancel")).send().await;
    let cancelled: Value = cancelled.expect("ends").json().await.expect("JSON");
    assert_eq!(cancelled["status"], "cancelled", "{cancelled}");
    street.sellers[0].upstream.disconnected(1).await;
    let charged = street.settled().await.expect("agrees");
    let receipts = street.buyers[0].receipts().await;
    let receipt = &receipts[0];
    assert_eq!(receipt.ending, Ending::Cancelled);
    assert_eq!(receipt.usage.completion, 40);
    assert_eq!(receipt.charged, charged);
    let request = cancelled["farthing"]["request"].as_str();
    assert_eq!(request, Some(receipt.request.to_string().as_str()));
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_buyers_requests_given_up_at_once_leave_the_books_agreed() {
    let street = street(Behaviour::default().tokens(1000).pace(PACE)).await;
    let buyer = &street.buyers[0];
    let giving_up = (0..10).map(|n| async move {
        let mut answer = buyer.infer(Buyer::stream(1000)).await.expect("begins");
        for _ in 0..n * 7 {
            answer.next().await.expect("goes on").expect("goes on");
        }
    });
    futures::future::join_all(giving_up).await;
    let charged = street.settled().await.expect("agrees");
    let receipts = buyer.receipts().await;
    assert_eq!(receipts.len(), 10);
    let sum = receipts.iter().map(|receipt| receipt.charged);
    assert_eq!(sum.fold(Amount::ZERO, Amount::saturating_add), charged);
    street.stop().await;
}

/// Asks, hangs up when the model server has the request, and buys something else afterwards.
async fn hang_up_early(behaviour: Behaviour, request: Request) {
    let street = street(behaviour).await;
    let buyer = &street.buyers[0];
    tokio::select! {
        begun = buyer.infer(request) => panic!("{begun:?}"),
        _ = street.sellers[0].upstream.started(1) => {}
    }
    street.sellers[0].upstream.disconnected(1).await;
    street.sellers[0].upstream.behave(Behaviour::default());
    let heard = buyer.buy(Buyer::chat(16)).await.expect("answers");
    let charged = street.settled().await.expect("agrees");
    assert_eq!(charged, heard.bill.charged);
    assert_eq!(heard.bill.receipt.receipt.seq, 0);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_hangs_up_before_the_first_token_pays_nothing() {
    let slow = Behaviour::default().fault(Fault::SlowFirstToken(LONG));
    hang_up_early(slow, Buyer::stream(16)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_hangs_up_before_its_document_pays_nothing() {
    let slow = Behaviour::default().fault(Fault::SlowFirstToken(LONG));
    hang_up_early(slow, Buyer::chat(16)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_gives_up_while_its_channel_opens_leaves_nothing_set_aside() {
    let street = street(Behaviour::default()).await;
    let (buyer, memory) = (&street.buyers[0], street.ledgers.memory());
    memory.set_held(true);
    let request = buyer.infer(Buyer::chat(16));
    assert!(tokio::time::timeout(PACE * 50, request).await.is_err());
    memory.set_held(false);
    memory.mine(1);
    let heard = buyer.buy(Buyer::chat(16)).await.expect("answers");
    let charged = street.settled().await.expect("agrees");
    assert_eq!(charged, heard.bill.charged);
    // The deposit that nobody waited for is the channel's only one.
    let (_, account) = buyer.accounts()[0];
    assert_eq!(account.channel.balance(), buyer.config.spend.deposit);
    let due = Cost::ZERO.floor();
    assert_eq!(account.channel.reserved(), due);
    street.stop().await;
}

/// On one thread nobody else runs between the answer's coming and its going.
#[tokio::test]
async fn an_empty_answer_is_booked_although_its_buyer_went_before_it_heard_of_it() {
    let street = street(Behaviour::default().tokens(0)).await;
    let buyer = &street.buyers[0];
    drop(buyer.infer(Buyer::stream(16)).await.expect("begins"));
    let charged = street.settled().await.expect("agrees");
    let receipts = buyer.receipts().await;
    assert_eq!(receipts.len(), 1);
    assert_eq!(
        (receipts[0].ending, receipts[0].charged),
        (Ending::Complete, charged)
    );
    street.stop().await;
}
