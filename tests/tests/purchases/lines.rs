//! One stream carries one purchase after another.

use farthing_protocol::amount::Amount;
use farthing_protocol::frame::ToSeller;
use farthing_protocol::purchase::{Ask, Refusal};
use farthing_tests::street::{Buyer, Forger, Street, Talk, TestNet, eventually};
use farthing_tests::upstream::Behaviour;

const RICH: Amount = Amount::atoms(1_000_000);
const TOKENS: u32 = 20;

async fn street() -> Street {
    let net = TestNet::new().upstreams(Behaviour::default().tokens(TOKENS as usize));
    net.start().await.expect("starts")
}

fn paid(forger: &Forger, street: &Street, ceiling: u128) -> ToSeller {
    let ask = forger.ask(street, TOKENS).expect("an offer");
    ToSeller::Ask(Box::new(Ask {
        voucher: Some(forger.voucher(Amount::atoms(ceiling))),
        ..ask
    }))
}

async fn charged_once_more(talk: &mut Talk) -> u64 {
    let told = talk.rest().await.expect("is told");
    let receipt = told.receipt.expect("a receipt");
    assert_eq!(receipt.usage.completion, TOKENS);
    receipt.seq
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_takes_the_next_ask_on_the_same_stream() {
    let street = street().await;
    let forger = Forger::funded(&street, 1, RICH).await.expect("deposits");
    let mut talk = forger
        .say(&paid(&forger, &street, 10_000))
        .await
        .expect("says");
    assert_eq!(charged_once_more(&mut talk).await, 0);
    // What crossed the last word means nothing any more.
    let late = ToSeller::Pay(forger.voucher(Amount::atoms(10_001)));
    for word in [&late, &ToSeller::Cancel, &paid(&forger, &street, 20_000)] {
        talk.say(word).await.expect("says");
    }
    assert_eq!(charged_once_more(&mut talk).await, 1);
    // Too much of it is noise.
    for _ in 0..20 {
        talk.say(&late).await.ok();
    }
    let told = talk.rest().await.expect("is told");
    assert!(
        matches!(told.refusal, Some(Refusal::BadRequest(_))),
        "{told:?}"
    );
    assert!(matches!(talk.next().await, Ok(None)));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_stops_ends_the_streams_that_wait() {
    let mut street = street().await;
    let forger = Forger::funded(&street, 1, RICH).await.expect("deposits");
    let mut talk = forger
        .say(&paid(&forger, &street, 10_000))
        .await
        .expect("says");
    charged_once_more(&mut talk).await;
    street.sellers[0].stop().await;
    assert!(matches!(talk.next().await, Ok(None)));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_keeps_its_stream_and_opens_another_only_beside_it() {
    let mut street = street().await;
    let streams = |street: &Street| street.sellers[0].node().net().stats().streams;
    let buyer = &street.buyers[0];
    for _ in 0..5 {
        buyer.buy(Buyer::stream(TOKENS)).await.expect("is served");
    }
    eventually("one stream is left", || streams(&street) == 1)
        .await
        .expect("one");
    let (one, other) = tokio::join!(
        buyer.buy(Buyer::stream(TOKENS)),
        buyer.buy(Buyer::stream(TOKENS))
    );
    assert!(one.is_ok() && other.is_ok());
    assert!(streams(&street) <= 2);
    // Whoever was away is found by a new stream.
    street.sellers[0].stop().await;
    street.start_seller(0).await.expect("starts again");
    street.acquainted().await.expect("is heard of");
    let again = street.buyers[0].buy(Buyer::stream(TOKENS)).await;
    again.expect("is served again");
    street.stop().await;
}
