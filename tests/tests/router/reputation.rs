//! What is believed of sellers, end to end: by own experience, by others' word, by probes.

use std::time::Duration;

use bytes::Bytes;
use farthing_client::client::Request;
use farthing_client::config::{Config, Upstream};
use farthing_client::report::SellerReport;
use farthing_protocol::amount::Amount;
use farthing_protocol::identity::NodeId;
use farthing_protocol::offer::Endpoint;
use farthing_protocol::receipt::model_hash;
use farthing_protocol::roll::Told;
use farthing_protocol::testimony::{Line, SignedTestimony, Testimony};
use farthing_tests::street::{Buyer, Liar, Lie, MODEL, Street, TestNet, eventually};
use farthing_tests::upstream::{Behaviour, Fault, MockUpstream};

/// What a buyer believes of a seller.
fn known(buyer: &Buyer, seller: NodeId) -> Option<SellerReport> {
    let reports = buyer.client().sellers();
    reports.into_iter().find(|report| report.seller == seller)
}

fn success(buyer: &Buyer, seller: NodeId) -> f64 {
    known(buyer, seller).map_or(0.9, |report| report.success)
}

/// The buyer buys from the first seller until it has paid it something, and then sees it fail;
/// the seller claims what it was paid.
async fn burned(street: &Street) {
    let (buyer, seller) = (&street.buyers[0], &street.sellers[0]);
    let heard = buyer.buy(Buyer::chat(20)).await.expect("is answered");
    assert_eq!(heard.seller, seller.id(), "the cheaper one");
    let broken = Behaviour::default().fault(Fault::CutAfter(0));
    seller.upstream.behave(broken);
    let heard = buyer.buy(Buyer::chat(20)).await.expect("by the other");
    assert_ne!(heard.seller, seller.id());
    street.settled().await.expect("is quiet");
    let claimed = seller.node().settlement().claim().await;
    assert!(!claimed.expect("claims").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_that_hears_from_who_paid_avoids_a_failing_seller() {
    let mut street = TestNet::new().sellers(2).start().await.expect("a street");
    burned(&street).await;
    // It speaks once the seller has claimed, and after a restart: what it found is on its disk.
    let buyer = &mut street.buyers[0];
    buyer.stop().await;
    buyer.config.reputation.testify = true;
    buyer.config.reputation.testify_every = Duration::from_secs(1);
    street.start_buyer(0).await.expect("starts again");
    eventually("a seller has looked it up", || {
        let mut sellers = street.sellers.iter();
        sellers.any(|seller| !seller.node().roll().heard().is_empty())
    })
    .await
    .expect("hears");
    let tweak = |_, config: &mut Config| config.reputation.stake = Amount::atoms(1);
    street.join(tweak).await.expect("a newcomer");
    street.acquainted().await.expect("knows the sellers");
    let bad = street.sellers[0].id();
    let newcomer = &street.buyers[1];
    let heard = eventually("the newcomer has heard", || success(newcomer, bad) < 0.75).await;
    if let Err(error) = heard {
        let roll = newcomer.client().roll().expect("a real client");
        let waiting = roll.waiting();
        panic!(
            "{error}: {:?}, {waiting} wait, {:?}",
            newcomer.client().sellers(),
            roll.heard()
        );
    }
    let report = known(newcomer, bad).expect("is known");
    assert_eq!((report.served, report.failed), (0, 0), "by word only");
    let word = report.word.expect("others speak");
    assert!(word.payers == 1 && word.value > 0.0, "{word:?}");
    let heard = newcomer.buy(Buyer::chat(20)).await.expect("is answered");
    assert_ne!(heard.seller, bad, "it is avoided though it is cheaper");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slander_without_a_payment_behind_it_moves_nothing() {
    let plan = TestNet::new().sellers(1).buyers(2);
    let street = plan.start().await.expect("a street");
    let (listener, slanderer) = (&street.buyers[0], &street.buyers[1]);
    let seller = street.sellers[0].id();
    // It has bought and was served well, but nothing is claimed on its channel yet.
    let bought = slanderer.buy(Buyer::chat(20)).await.expect("is answered");
    let (channel, account) = slanderer.accounts()[0];
    let now = street.clock.now();
    let testimony = Testimony {
        channel,
        seller,
        since: now,
        until: now,
        lines: vec![Line {
            model: model_hash(MODEL),
            served: 0,
            failed: 1_000,
            broken: 0,
            disputed: 1_000,
            invalid: 0,
            charged: Amount::atoms(1_000_000_000),
        }],
    };
    let keys = slanderer.wallet_keys();
    let by = (&street.network, &keys.authorizer);
    let slander = SignedTestimony::sign(testimony, account.config, bought.bill.receipt, by);
    let before = success(listener, seller);
    let roll = listener.client().roll().expect("a real client");
    assert_eq!(roll.hear(slander, seller), Told::Fresh, "it is well made");
    eventually("it was looked up", || roll.waiting() == 0)
        .await
        .expect("is looked up");
    assert!(roll.heard().is_empty(), "and found to be worth nothing");
    assert!(roll.page(0, 9).is_empty(), "nor is it handed on");
    assert!((success(listener, seller) - before).abs() < 1e-9);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_counts_more_than_two_others_sinks_by_a_probe_within_its_limit() {
    let plan = TestNet::new().sellers(3).buyer_config(|_, config| {
        config.probes.share = 1_000;
        config.probes.per_day = Amount::atoms(20_000);
    });
    let street = plan.start().await.expect("a street");
    let (buyer, padder) = (&street.buyers[0], &street.sellers[0]);
    let doubled = Fault::OverCount { factor: 2 };
    padder.upstream.behave(Behaviour::default().fault(doubled));
    let prompt = "How much is a farthing? ".repeat(60);
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":40,"temperature":0,"messages":[{{"role":"user","content":"{prompt}"}}]}}"#
    );
    let request = Request {
        endpoint: Endpoint::Chat,
        body: Bytes::from(body),
    };
    let heard = buyer.buy(request).await.expect("is answered");
    assert_eq!(heard.seller, padder.id(), "the cheapest");
    eventually("the probe has told", || {
        known(buyer, padder.id()).is_some_and(|report| report.invalid == 1)
    })
    .await
    .expect("is found out");
    for honest in &street.sellers[1..] {
        assert_eq!(honest.upstream.count(), 1, "each was asked once");
        assert!(known(buyer, honest.id()).is_some_and(|report| report.invalid == 0));
    }
    street.settled().await.expect("all is paid and booked");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_counts_more_than_our_own_tokenizer_sinks_and_an_honest_one_does_not() {
    // A server of the buyer's own, which sells nothing and has the model's tokenizer.
    let own = MockUpstream::start(Behaviour::default()).await;
    let own = own.expect("listens");
    let url = own.base_url();
    let plan = TestNet::new().buyer_config(move |_, config| {
        config.probes.share = 0;
        config.upstream.push(Upstream {
            url: url.clone(),
            models: [(MODEL.to_owned(), "mock/model".to_owned())].into(),
            api_key_file: None,
            slots: 0,
            tokenize: true,
            max_output: 1024,
        });
    });
    let street = plan.start().await.expect("a street");
    let (buyer, seller) = (&street.buyers[0], &street.sellers[0]);
    let prompt = "How much is a farthing? ".repeat(60);
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":40,"messages":[{{"role":"user","content":"{prompt}"}}]}}"#
    );
    let request = || Request {
        endpoint: Endpoint::Chat,
        body: Bytes::from(body.clone()),
    };
    buyer.buy(request()).await.expect("is answered");
    eventually("its answer and its prompt are counted", || {
        own.counts() == 2
    })
    .await
    .expect("are counted");
    assert!(known(buyer, seller.id()).is_none_or(|report| report.invalid == 0));
    let doubled = Fault::OverCount { factor: 2 };
    seller.upstream.behave(Behaviour::default().fault(doubled));
    buyer.buy(request()).await.expect("is answered");
    eventually("it is found out", || {
        known(buyer, seller.id()).is_some_and(|report| report.invalid == 1)
    })
    .await
    .expect("is found out");
    assert_eq!(own.count(), 0, "it is asked for no answer");
    street.settled().await.expect("all is paid and booked");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_lies_sinks_for_who_met_it() {
    let padded = Lie::Receipt(|receipt| {
        receipt.usage.completion = 60;
        receipt.charged = Amount::atoms(31);
        receipt.cumulative = receipt.charged;
    });
    let liar = Liar::start(padded).await.expect("listens");
    let at = liar.addresses();
    let plan = TestNet::new().sellers(0);
    let plan = plan.buyer_config(move |_, config| config.network.bootstrap.clone_from(&at));
    let street = plan.start().await.expect("a street");
    liar.enter(&street).await.expect("has gas");
    let buyer = &street.buyers[0];
    eventually("the liar is known", || buyer.knows(liar.id()))
        .await
        .expect("is known");
    // Whatever the application is told: what is believed counts here.
    buyer.buy(Buyer::stream(200)).await.ok();
    eventually("it is believed less", || success(buyer, liar.id()) < 0.3)
        .await
        .expect("sinks");
    let report = known(buyer, liar.id()).expect("is known");
    assert_eq!(report.disputed, 1);
    assert!(report.credit < Amount::atoms(20_000), "{report:?}");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_whose_json_is_none_sinks() {
    let street = TestNet::new().start().await.expect("a street");
    let (buyer, seller) = (&street.buyers[0], street.sellers[0].id());
    let words = Behaviour::default().words_only();
    street.sellers[0].upstream.behave(words);
    let body = format!(
        r#"{{"model":"{MODEL}","max_tokens":20,"response_format":{{"type":"json_object"}},"messages":[{{"role":"user","content":"JSON, please"}}]}}"#
    );
    for _ in 0..3 {
        let request = Request {
            endpoint: Endpoint::Chat,
            body: Bytes::from(body.clone()),
        };
        buyer.buy(request).await.expect("is answered, in words");
    }
    let invalid = || known(buyer, seller).map_or(0, |report| report.invalid);
    eventually("all are looked at", || invalid() == 3)
        .await
        .expect("are looked at");
    let believed = success(buyer, seller);
    assert!(believed < 0.75, "{believed}");
    street.stop().await;
}
