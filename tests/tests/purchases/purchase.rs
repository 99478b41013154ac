//! The happy path, plain and streamed, on real libp2p over loopback.

use farthing_client::client::Request;
use farthing_protocol::amount::Amount;
use farthing_protocol::purchase::{Ending, Endpoint, Mode, RequestId};
use farthing_tests::street::{Buyer, Heard, MODEL, RunningGateway, Street, TestNet, eventually};
use farthing_tests::upstream::Behaviour;
use serde_json::{Value, json};

fn assert_agreed(street: &Street, heard: &Heard) {
    let receipt = &heard.bill.receipt.receipt;
    assert_eq!(receipt.ending, Ending::Complete);
    assert_eq!(receipt.charged, heard.bill.charged);
    assert_eq!(
        street.buyers[0].charged(),
        street
            .sellers
            .iter()
            .map(|s| s.charged())
            .fold(Amount::ZERO, Amount::saturating_add)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_answer_is_paid_for_and_both_books_agree() {
    let street = TestNet::new().start().await.expect("starts");
    let heard = street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    assert_eq!(heard.data.len(), 1);
    assert!(!heard.bill.charged.is_zero());
    assert_agreed(&street, &heard);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stream_is_paid_in_windows_while_it_flows() {
    let street = TestNet::new()
        .upstreams(Behaviour::default().tokens(600))
        .start()
        .await
        .expect("starts");
    let heard = street.buyers[0]
        .buy(Buyer::stream(600))
        .await
        .expect("answers");
    assert!(heard.data.len() >= 600, "{} events", heard.data.len());
    assert_eq!(heard.bill.receipt.receipt.usage.completion, 600);
    assert_agreed(&street, &heard);
    let (_, account) = street.buyers[0].accounts()[0];
    let ahead = account
        .channel
        .ceiling()
        .saturating_sub(account.channel.charged());
    assert!(
        ahead < Amount::atoms(400),
        "signed {ahead} atoms ahead of what was charged"
    );
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embeddings_are_sold_by_the_prompt_token() {
    let street = TestNet::new().start().await.expect("starts");
    let heard = street.buyers[0]
        .buy(Buyer::embeddings())
        .await
        .expect("answers");
    let usage = heard.bill.receipt.receipt.usage;
    assert!(usage.prompt > 0);
    assert_eq!(usage.completion, 0);
    assert_agreed(&street, &heard);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moderations_are_sold_by_the_prompt_though_no_server_counts_them() {
    let street = TestNet::new().start().await.expect("starts");
    let heard = street.buyers[0].buy(Request {
        endpoint: Endpoint::Moderations,
        body: format!(r#"{{"model":"{MODEL}","input":"a farthing"}}"#).into(),
    });
    let heard = heard.await.expect("answers");
    let usage = heard.bill.receipt.receipt.usage;
    assert!(usage.prompt > 0 && !heard.bill.charged.is_zero());
    assert_eq!(usage.completion, 0);
    assert_agreed(&street, &heard);
    street.stop().await;
}

/// The response of a reply, plain or in the last of its events, and the purchase behind it.
async fn response(reply: reqwest::Response) -> (Value, RequestId) {
    let purchase = reply.headers()["x-request-id"].to_str().expect("text");
    let purchase = RequestId(purchase.parse().expect("an id"));
    let text = reply.text().await.expect("is read");
    let last = text.trim_end().rsplit("data: ").next().expect("an end");
    let mut said: Value = serde_json::from_str(last).expect("JSON");
    if said["type"] == "response.completed" {
        said = said["response"].take();
    }
    (said, purchase)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_says_the_usage_of_its_receipt() {
    let street = TestNet::new().start().await.expect("starts");
    let gateway = RunningGateway::free(&street.buyers[0]).await;
    let gateway = gateway.expect("listens");
    let http = reqwest::Client::new();
    for stream in [false, true] {
        let body = json!({ "model": MODEL, "input": "Name three colours.", "stream": stream });
        let url = format!("{}/responses", gateway.base_url());
        let reply = http.post(url).body(body.to_string()).send().await;
        let (response, purchase) = response(reply.expect("answers")).await;
        assert_eq!(response["status"], "completed", "{response}");
        let id = response["id"].as_str().expect("an id");
        let stem = id.strip_prefix("resp_").expect("a response's");
        assert!(purchase.to_string()[2..].starts_with(stem));
        let report = street.buyers[0].client().receipt(purchase).await;
        let usage = report.expect("is held").signed.receipt.usage;
        let told = &response["usage"];
        assert_eq!(told["input_tokens"], usage.prompt);
        assert_eq!(told["output_tokens"], usage.completion);
        assert_eq!(told["input_tokens_details"]["cached_tokens"], usage.cached);
        assert_eq!(told["total_tokens"], usage.prompt + usage.completion);
    }
    gateway.stop().await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_purchases_at_once_share_one_channel() {
    let street = TestNet::new()
        .upstreams(Behaviour::default().tokens(100))
        .start()
        .await
        .expect("starts");
    let buyer = &street.buyers[0];
    let buying = (0..16).map(|n| {
        let mode = if n % 2 == 0 {
            Mode::Plain
        } else {
            Mode::Stream
        };
        async move {
            match mode {
                Mode::Plain => buyer.buy(Buyer::chat(100)).await,
                Mode::Stream => buyer.buy(Buyer::stream(100)).await,
            }
        }
    });
    let heard: Vec<_> = futures::future::join_all(buying)
        .await
        .into_iter()
        .map(|h| h.expect("answers"))
        .collect();
    let sum = heard
        .iter()
        .map(|h| h.bill.charged)
        .fold(Amount::ZERO, Amount::saturating_add);
    assert_eq!(buyer.accounts().len(), 1);
    assert_eq!(buyer.charged(), sum);
    assert_eq!(street.sellers[0].charged(), sum);
    let mut seqs: Vec<_> = heard.iter().map(|h| h.bill.receipt.receipt.seq).collect();
    seqs.sort_unstable();
    assert_eq!(seqs, (0..16).collect::<Vec<_>>());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cheaper_of_two_sellers_is_chosen() {
    let street = TestNet::new().sellers(2).start().await.expect("starts");
    let heard = street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    assert_eq!(heard.seller, street.sellers[0].id());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_charged_arrives_on_chain_to_the_atom() {
    let street = TestNet::new().start().await.expect("starts");
    for _ in 0..5 {
        street.buyers[0]
            .buy(Buyer::chat(16))
            .await
            .expect("answers");
    }
    let charged = street.sellers[0].charged();
    let chain = street.ledgers.chain().expect("a chain");
    let payout = street.sellers[0].payout();
    street.sellers[0]
        .node()
        .settlement()
        .claim()
        .await
        .expect("claims");
    assert_eq!(chain.token_balance(payout).await.expect("answers"), charged);
    let (id, _) = street.buyers[0].accounts()[0];
    assert_eq!(chain.channel(id).await.expect("answers").claimed, charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_seller_claims_what_it_is_owed() {
    let mut street = TestNet::new().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let charged = street.sellers[0].charged();
    let chain = street.ledgers.chain().expect("a chain");
    let payout = street.sellers[0].payout();
    street.sellers[0].stop().await;
    assert_eq!(chain.token_balance(payout).await.expect("answers"), charged);
    eventually("the books are closed", || true)
        .await
        .expect("holds");
    street.stop().await;
}
