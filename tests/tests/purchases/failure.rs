//! Sellers and model servers that fail: what the buyer hears, and who is paid for what.

use std::time::Duration;

use farthing_client::client::{InferError, Request};
use farthing_client::ledger::Standing;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::offer::Prices;
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Ending, Usage};
use farthing_protocol::receipt::Receipt;
use farthing_tests::street::{Buyer, MODEL, Street, TestNet, listen};
use farthing_tests::upstream::{Behaviour, Fault};
use serde_json::Value;

const SHORT: Duration = Duration::from_millis(200);

/// Two sellers, the first of which fails its first request so.
async fn first_fails(fault: Fault) -> Street {
    let net = TestNet::new()
        .sellers(2)
        .upstreams(Behaviour::default().tokens(40));
    let net = net.seller_config(|_, config| {
        config.upstream.first_token_timeout = SHORT;
        config.upstream.idle_timeout = SHORT;
    });
    let street = net.start().await.expect("starts");
    street.sellers[0].upstream.fail(1, fault);
    street
}

async fn one_seller(behaviour: Behaviour) -> Street {
    let net = TestNet::new().upstreams(behaviour);
    net.start().await.expect("starts")
}

fn prices(street: &Street, seller: usize) -> Prices {
    street.sellers[seller].config.models[0].offer().prices
}

fn cost(usage: &Usage, prices: &Prices) -> Amount {
    pricing::cost(usage, prices).map_or(Amount::MAX, Cost::ceil)
}

/// The one receipt, checked to charge what it counts.
async fn only_receipt(street: &Street) -> Receipt {
    let mut receipts = street.buyers[0].receipts().await;
    assert_eq!(receipts.len(), 1, "{receipts:?}");
    let receipt = receipts.remove(0);
    assert!(receipt.charged <= cost(&receipt.usage, &prices(street, 0)));
    receipt
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_whose_model_server_breaks_mid_stream_is_paid_for_what_it_delivered() {
    let street = one_seller(Behaviour::default().tokens(100).fault(Fault::CutAfter(10))).await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(100))
        .await
        .expect("begins");
    let (data, end) = listen(&mut answer).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    assert_eq!(data.len(), 11, "the role and ten tokens");
    let charged = street.settled().await.expect("agrees");
    let receipt = only_receipt(&street).await;
    assert_eq!(receipt.ending, Ending::UpstreamFailed);
    assert_eq!(receipt.usage.completion, 10);
    assert_eq!(receipt.charged, charged);
    assert!(!charged.is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_which_one_of_two_answers_never_ends_is_no_complete_one() {
    let street = one_seller(Behaviour::default().tokens(10).fault(Fault::OneUnended)).await;
    let mut request = Buyer::stream(16);
    let mut body: Value = serde_json::from_slice(&request.body).expect("JSON");
    body["n"] = 2.into();
    request.body = body.to_string().into();
    let mut answer = street.buyers[0].infer(request).await.expect("begins");
    let (data, end) = listen(&mut answer).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    assert!(data.len() > 10, "both answers: {}", data.len());
    let charged = street.settled().await.expect("agrees");
    let receipt = only_receipt(&street).await;
    assert_eq!(receipt.ending, Ending::UpstreamFailed);
    assert!(!charged.is_zero() && receipt.charged == charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_server_that_falls_silent_ends_the_answer_and_is_paid_until_then() {
    let street = TestNet::new()
        .upstreams(Behaviour::default().fault(Fault::StallAfter(5)))
        .seller_config(|_, config| config.upstream.idle_timeout = SHORT)
        .start()
        .await
        .expect("starts");
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(16))
        .await
        .expect("begins");
    let (_, end) = listen(&mut answer).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    street.settled().await.expect("agrees");
    assert_eq!(only_receipt(&street).await.usage.completion, 5);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_seller_that_can_write_nothing_down_delivers_no_more() {
    let pace = Duration::from_millis(5);
    let street = one_seller(Behaviour::default().tokens(500).pace(pace)).await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(500))
        .await
        .expect("begins");
    street.sellers[0].upstream.sent(1, 20).await;
    // As after a failed write: the store takes no more batches.
    street.sellers[0].node().ledger().store().stop().await;
    let made = street.sellers[0].upstream.requests()[0].chunks;
    let (data, end) = listen(&mut answer).await;
    assert!(end.is_err(), "{end:?}");
    let first_window = 64;
    assert!(
        (data.len() as u64) < made + first_window,
        "{} events came after {made} tokens",
        data.len()
    );
    street.sellers[0].upstream.disconnected(1).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_loses_patience_cancels_pays_and_knows_what_it_paid() {
    let street = TestNet::new()
        .upstreams(Behaviour::default().fault(Fault::StallAfter(5)))
        .buyer_config(|_, config| config.router.idle = SHORT)
        .start()
        .await
        .expect("starts");
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(16))
        .await
        .expect("begins");
    let (data, end) = listen(&mut answer).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    assert_eq!(data.len(), 6);
    street.sellers[0].upstream.disconnected(1).await;
    street.settled().await.expect("agrees");
    let receipt = only_receipt(&street).await;
    assert_eq!(receipt.ending, Ending::Cancelled);
    assert_eq!(receipt.usage.completion, 5);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_nobody_can_read_ends_the_answer_and_what_came_before_is_paid() {
    let street = one_seller(Behaviour::default().fault(Fault::MalformedChunk(4))).await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(16))
        .await
        .expect("begins");
    let (data, end) = listen(&mut answer).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    assert_eq!(data.len(), 4, "the role and three tokens");
    let charged = street.settled().await.expect("agrees");
    let receipt = only_receipt(&street).await;
    assert_eq!(receipt.ending, Ending::UpstreamFailed);
    assert_eq!(receipt.usage.completion, 3);
    assert_eq!(receipt.charged, charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whatever_breaks_before_the_first_token_the_next_seller_answers_and_only_it_is_paid() {
    let faults = [
        Fault::ServerErrorOnce,
        Fault::Unavailable,
        Fault::Reset,
        Fault::NoResponse,
        Fault::CutAfter(0),
        Fault::StallAfter(0),
        Fault::MalformedChunk(1),
        Fault::RateLimited { retry_after: 1 },
    ];
    let mut failing = tokio::task::JoinSet::new();
    for fault in faults {
        failing.spawn(async move {
            let street = first_fails(fault.clone()).await;
            let heard = street.buyers[0].buy(Buyer::stream(40)).await;
            let heard = heard.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            assert_eq!(heard.seller, street.sellers[1].id(), "{fault:?}");
            assert_eq!(street.sellers[0].upstream.count(), 1, "{fault:?}");
            assert!(street.sellers[0].charged().is_zero(), "{fault:?}");
            let charged = street.settled().await.expect("agrees");
            assert_eq!(charged, heard.bill.charged, "{fault:?}");
            street.stop().await;
        });
    }
    while let Some(ended) = failing.join_next().await {
        ended.expect("no surprise");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_document_that_breaks_is_asked_of_the_next_seller_and_not_paid() {
    let faults = [
        Fault::ServerErrorOnce,
        Fault::Reset,
        Fault::CutAfter(3),
        Fault::MalformedChunk(1),
    ];
    let mut failing = tokio::task::JoinSet::new();
    for fault in faults {
        failing.spawn(async move {
            let street = first_fails(fault.clone()).await;
            let heard = street.buyers[0].buy(Buyer::chat(16)).await;
            let heard = heard.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            assert_eq!(heard.seller, street.sellers[1].id(), "{fault:?}");
            assert!(street.sellers[0].charged().is_zero(), "{fault:?}");
            street.settled().await.expect("agrees");
            street.stop().await;
        });
    }
    while let Some(ended) = failing.join_next().await {
        ended.expect("no surprise");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_the_model_server_calls_wrong_is_tried_once_and_costs_nothing() {
    let street = first_fails(Fault::ContextLength).await;
    let end = street.buyers[0].buy(Buyer::stream(16)).await;
    let Err(InferError::Upstream { status, body }) = end else {
        panic!("{end:?}");
    };
    assert_eq!(status, 400);
    assert!(String::from_utf8_lossy(&body).contains("context"));
    assert_eq!(street.sellers[1].upstream.count(), 0);
    assert_eq!(street.settled().await.expect("agrees"), Amount::ZERO);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_seller_is_passed_over_and_when_all_are_busy_the_buyer_hears_how_long() {
    let street = TestNet::new()
        .sellers(2)
        .upstreams(Behaviour::default().fault(Fault::StallAfter(1)))
        .seller_config(|_, config| config.models[0].slots = 1)
        .start()
        .await
        .expect("starts");
    let buyer = &street.buyers[0];
    let first = buyer.infer(Buyer::stream(16)).await.expect("begins");
    let second = buyer.infer(Buyer::stream(16)).await.expect("begins");
    assert_ne!(first.seller, second.seller);
    let third = buyer.infer(Buyer::stream(16)).await;
    let Err(InferError::Busy { retry_after_ms, .. }) = third else {
        panic!("{third:?}");
    };
    assert!(retry_after_ms > 0);
    drop((first, second));
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_seller_is_gone_the_buyer_hears_who_was_tried() {
    let mut street = TestNet::new().sellers(2).start().await.expect("starts");
    for seller in &mut street.sellers {
        seller.stop().await;
    }
    let end = street.buyers[0].buy(Buyer::chat(16)).await;
    let Err(InferError::Failed { attempts }) = end else {
        panic!("{end:?}");
    };
    let tried: Vec<_> = attempts.iter().map(|attempt| attempt.seller).collect();
    assert_eq!(tried, [street.sellers[0].id(), street.sellers[1].id()]);
    assert_eq!(street.bought(), Amount::ZERO);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_every_model_server_is_down_the_buyer_hears_why_and_pays_nothing() {
    let down = Behaviour::default();
    let street = TestNet::new().sellers(2).start().await.expect("starts");
    for seller in &street.sellers {
        let down = down.clone().fault(Fault::Unavailable);
        seller.upstream.behave(down);
    }
    let end = street.buyers[0].buy(Buyer::chat(16)).await;
    let Err(InferError::Failed { attempts }) = end else {
        panic!("{end:?}");
    };
    assert_eq!(attempts.len(), 2);
    assert_eq!(street.settled().await.expect("agrees"), Amount::ZERO);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_nobody_offers_is_unknown() {
    let street = one_seller(Behaviour::default()).await;
    let mut request = Buyer::chat(16);
    let body = String::from_utf8_lossy(&request.body).replace(MODEL, "no/such");
    request.body = body.into_bytes().into();
    let end = street.buyers[0].buy(request).await;
    assert!(
        matches!(&end, Err(InferError::UnknownModel { model }) if model == "no/such"),
        "{end:?}"
    );
    street.stop().await;
}

fn padded(bytes: usize) -> Request {
    let mut request = Buyer::chat(16);
    let body = String::from_utf8_lossy(&request.body).replace("How", &"x".repeat(bytes));
    request.body = body.into_bytes().into();
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_too_large_for_one_seller_goes_to_another_and_one_too_large_for_all_goes_nowhere() {
    let street = TestNet::new()
        .sellers(2)
        .seller_config(|n, config| config.limits.max_body = if n == 0 { 500 } else { 5_000 })
        .buyer_config(|_, config| config.gateway.max_body = 10_000)
        .start()
        .await
        .expect("starts");
    let buyer = &street.buyers[0];
    let heard = buyer.buy(padded(1_000)).await.expect("answers");
    assert_eq!(heard.seller, street.sellers[1].id());
    let end = buyer.buy(padded(6_000)).await;
    assert!(matches!(end, Err(InferError::Failed { .. })), "{end:?}");
    let end = buyer.buy(padded(20_000)).await;
    assert!(
        matches!(end, Err(InferError::TooLarge { max: 10_000, .. })),
        "{end:?}"
    );
    let charged = street.settled().await.expect("agrees");
    assert_eq!(charged, heard.bill.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_counts_too_much_is_disputed_frozen_and_not_used_again() {
    let street = TestNet::new().sellers(2).start().await.expect("starts");
    let liar = Behaviour::default().fault(Fault::OverCount { factor: 3 });
    street.sellers[0].upstream.behave(liar);
    let buyer = &street.buyers[0];
    let heard = buyer.buy(Buyer::chat(16)).await.expect("answers");
    assert_eq!(heard.seller, street.sellers[0].id());
    let (id, account) = buyer.accounts()[0];
    assert_eq!(account.standing, Standing::Frozen);
    let kept = buyer.ledger().newest_receipts(id, 1).expect("reads");
    let dispute = kept[0].dispute.as_deref().unwrap_or_default();
    assert!(dispute.contains("completion tokens"), "{dispute:?}");
    street.sellers[0].upstream.behave(Behaviour::default());
    for _ in 0..3 {
        let heard = buyer.buy(Buyer::chat(16)).await.expect("answers");
        assert_eq!(heard.seller, street.sellers[1].id());
    }
    assert_eq!(street.sellers[0].upstream.count(), 1);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_counts_beyond_all_measure_gets_no_more_than_was_delivered() {
    let street = one_seller(Behaviour::default().fault(Fault::OverCount { factor: 1000 })).await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(16))
        .await
        .expect("begins");
    // It is all there before the seller names its price.
    let (_, end) = listen(&mut answer).await;
    end.expect("is whole");
    let charged = street.settled().await.expect("agrees");
    let body = Buyer::stream(16).body.len();
    let most = Usage {
        prompt: u32::try_from(body).unwrap_or(u32::MAX),
        cached: 0,
        completion: 16,
    };
    assert!(charged <= cost(&most, &prices(&street, 0)), "{charged}");
    street.stop().await;
}
