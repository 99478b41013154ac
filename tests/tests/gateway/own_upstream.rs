//! Model servers of one's own in the market, beside the sellers.

use std::collections::BTreeMap;

use farthing_client::client::Event;
use farthing_client::config::Upstream;
use farthing_protocol::amount::Amount;
use farthing_tests::street::{Buyer, MODEL, Street, TestNet};
use farthing_tests::upstream::{Behaviour, Fault, MockUpstream};

const KEY: &str = "sk-of-ones-own";

/// A street with one seller, and a server of the buyer's own with one slot that knows the model
/// by another name.
async fn street(behaviour: Behaviour) -> (Street, MockUpstream) {
    let behaviour = behaviour.api_key(KEY).models(["local"]);
    let own = MockUpstream::start(behaviour).await.expect("listens");
    let url = own.base_url();
    let net = TestNet::new().sellers(1).buyer_config(move |_, config| {
        let file = config.data_dir.with_file_name("upstream.key");
        std::fs::write(&file, format!("{KEY}\n")).expect("is written");
        config.upstream = vec![Upstream {
            tokenize: false,
            url: url.clone(),
            models: BTreeMap::from([(MODEL.to_owned(), "local".to_owned())]),
            api_key_file: Some(file),
            slots: 1,
            max_output: 1024,
        }];
    });
    (net.start().await.expect("starts"), own)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_ones_own_answers_first_by_its_own_name_and_costs_nothing() {
    let (street, own) = street(Behaviour::default()).await;
    let buyer = &street.buyers[0];
    for request in [Buyer::chat(20), Buyer::stream(20)] {
        let mut answer = buyer.infer(request).await.expect("is answered");
        let mut last = None;
        while let Some(event) = answer.next().await {
            last = Some(event.expect("goes on"));
        }
        assert!(matches!(last, Some(Event::Paid(Amount::ZERO))), "{last:?}");
    }
    assert_eq!(own.count(), 2);
    let asked = own.requests();
    let body = String::from_utf8_lossy(&asked[0].body);
    assert!(body.contains(r#""model":"local""#), "{body}");
    assert_eq!(street.sellers[0].upstream.count(), 0);
    assert!(buyer.accounts().is_empty(), "no channel was opened");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_of_ones_own_has_no_room_for_is_bought() {
    let (street, own) = street(Behaviour::default()).await;
    own.fail(1, Fault::StallAfter(2));
    let buyer = &street.buyers[0];
    let mut first = buyer.infer(Buyer::stream(20)).await.expect("begins");
    assert_ne!(first.seller, street.sellers[0].id());
    let event = first.next().await.expect("an event");
    assert!(matches!(event, Ok(Event::Data(_))), "{event:?}");
    // It goes on for as long as nobody ends it.
    let second = buyer.buy(Buyer::chat(20)).await.expect("is bought");
    assert_eq!(second.seller, street.sellers[0].id());
    drop(first);
    own.disconnected(1).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_server_of_ones_own_fails_the_answer_is_bought() {
    let (street, own) = street(Behaviour::default().fault(Fault::ServerErrorOnce)).await;
    let heard = street.buyers[0].buy(Buyer::chat(20)).await;
    assert_eq!(heard.expect("is bought").seller, street.sellers[0].id());
    assert_eq!(own.count(), 1);
    street.stop().await;
}
