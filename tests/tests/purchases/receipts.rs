//! Receipts as their owner uses them: listed, exported, checked, and shown to a contract.

use std::time::Duration;

use alloy::primitives::{Address, Bytes};
use farthing_client::cli::receipts::{Format, ReceiptsCommand, run};
use farthing_client::cli::render::{self, View};
use farthing_client::report::{ReceiptQuery, ReceiptReport};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::evidence::Evidence;
use farthing_protocol::purchase::RequestId;
use farthing_tests::street::{Buyer, Ledgers, MODEL, Street, TestNet};
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp(1_767_225_600_000);
/// Where the contract is placed that checks receipts.
const VERIFIER: Address = Address::repeat_byte(0x1e);

async fn street(net: TestNet) -> Street {
    net.clock(Clock::manual(NOW)).start().await.expect("starts")
}

async fn buy(street: &Street, times: u32) {
    for _ in 0..times {
        let bought = street.buyers[0].buy(Buyer::stream(3)).await;
        bought.expect("an answer");
        street.clock.advance(Duration::from_secs(2));
    }
}

/// The buyer's purchases in the order of their receipts.
async fn requests(street: &Street) -> Vec<RequestId> {
    let mut receipts = street.buyers[0].receipts().await;
    receipts.sort_by_key(|receipt| receipt.seq);
    receipts
        .into_iter()
        .map(|receipt| receipt.request)
        .collect()
}

/// All receipts of the buyer by pages of so many, newest first.
async fn paged(street: &Street, query: ReceiptQuery) -> Vec<ReceiptReport> {
    let (mut query, mut all) = (query, Vec::new());
    loop {
        let page = street.buyers[0].client().receipts(&query).await;
        let page = page.expect("reads");
        all.extend(page.receipts);
        match page.next {
            Some(next) => query.before = Some(next),
            None => return all,
        }
    }
}

fn times(receipts: &[ReceiptReport]) -> Vec<Timestamp> {
    receipts
        .iter()
        .map(|it| it.signed.receipt.finished)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_are_listed_by_pages_and_by_what_is_asked_for() {
    let street = street(TestNet::new().sellers(2)).await;
    buy(&street, 7).await;
    let everything = ReceiptQuery {
        limit: 100,
        ..ReceiptQuery::default()
    };
    let all = paged(&street, everything.clone()).await;
    assert_eq!(all.len(), 7);
    assert!(times(&all).is_sorted_by(|newer, older| newer > older));
    for limit in 1..5 {
        let query = ReceiptQuery {
            limit,
            ..ReceiptQuery::default()
        };
        assert_eq!(paged(&street, query).await, all, "{limit}");
    }
    let seller = all[0].signed.seller;
    let of = |it: &&ReceiptReport| it.signed.seller == seller;
    let expected: Vec<_> = all.iter().filter(of).cloned().collect();
    for seller in [seller.to_string(), seller.short()] {
        let query = ReceiptQuery {
            seller: Some(seller),
            ..everything.clone()
        };
        assert_eq!(paged(&street, query).await, expected);
    }
    let channel = all[0].signed.receipt.channel;
    let of_channel = ReceiptQuery {
        channel: Some(channel),
        ..everything.clone()
    };
    assert_eq!(paged(&street, of_channel).await, expected);
    for (model, count) in [(MODEL, 7), ("no/such", 0)] {
        let query = ReceiptQuery {
            model: Some(model.to_owned()),
            ..everything.clone()
        };
        assert_eq!(paged(&street, query).await.len(), count, "{model}");
    }
    for (at, receipt) in all.iter().enumerate() {
        let moment = receipt.signed.receipt.finished;
        let since = ReceiptQuery {
            since: Some(moment),
            ..everything.clone()
        };
        assert_eq!(paged(&street, since).await, all[..=at]);
        let before = ReceiptQuery {
            before: Some(moment),
            ..everything.clone()
        };
        assert_eq!(paged(&street, before).await, all[at + 1..]);
    }
    street.stop().await;
}

/// What `farthing receipts …` says on a buyer's disk while no gateway runs.
async fn said(street: &Street, command: ReceiptsCommand) -> Result<String, String> {
    let config = &street.buyers[0].config;
    let view = View {
        token: render::token(&config.chain),
        json: false,
    };
    let mut out = Vec::new();
    let done = run(config, command, &view, &mut out).await;
    let text = String::from_utf8(out).expect("text");
    done.map(|()| text.clone())
        .map_err(|error| format!("{error}\n{text}"))
}

fn export(format: Format) -> ReceiptsCommand {
    ReceiptsCommand::Export {
        channel: None,
        format,
        out: None,
    }
}

fn verify(file: Option<&std::path::Path>, proof: Option<&std::path::Path>) -> ReceiptsCommand {
    ReceiptsCommand::Verify {
        file: file.map(Into::into),
        proof: proof.map(Into::into),
        channel: None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_can_be_checked_by_anybody_and_a_change_is_found() {
    let mut street = street(TestNet::new()).await;
    buy(&street, 5).await;
    let requests = requests(&street).await;
    street.buyers[0].stop().await;
    let own = said(&street, verify(None, None)).await.expect("no fault");
    assert!(own.contains("UNDER A ROOT"), "{own}");
    let csv = said(&street, export(Format::Csv)).await.expect("exports");
    assert_eq!(csv.lines().count(), 6);
    let lines = said(&street, export(Format::Jsonl)).await.expect("exports");
    assert_eq!(lines.lines().count(), 6);

    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("receipts.jsonl");
    std::fs::write(&file, &lines).expect("writes");
    said(&street, verify(Some(&file), None))
        .await
        .expect("no fault");
    let tampered = lines.replacen("\"completion\":3", "\"completion\":2", 1);
    assert_ne!(tampered, lines);
    let dropped: String = lines.split_inclusive('\n').take(4).collect();
    for (bad, fault) in [
        (tampered, "is not signed by the seller"),
        (dropped, "are missing"),
        ("{}".to_owned(), "line 1"),
        ("x".repeat(100_000), "too long"),
    ] {
        std::fs::write(&file, bad).expect("writes");
        let error = said(&street, verify(Some(&file), None))
            .await
            .expect_err("a fault");
        assert!(error.contains(fault), "{error}");
    }

    let proof = dir.path().join("proof.json");
    let prove = |request, out: Option<&std::path::Path>| ReceiptsCommand::Prove {
        request,
        out: out.map(Into::into),
    };
    said(&street, prove(requests[1], Some(&proof)))
        .await
        .expect("proves");
    let holds = said(&street, verify(None, Some(&proof)))
        .await
        .expect("holds");
    assert!(holds.contains("receipt 1 of channel"), "{holds}");
    let again = said(&street, prove(requests[1], Some(&proof))).await;
    assert!(again.expect_err("it is there").contains("proof.json"));
    let last = said(&street, prove(requests[4], None))
        .await
        .expect_err("no root covers it");
    assert!(
        last.contains("has not signed a root over this receipt"),
        "{last}"
    );
    let text = std::fs::read_to_string(&proof).expect("reads");
    let changed = text.replacen("\"cumulative\": \"", "\"cumulative\": \"1", 1);
    std::fs::write(&proof, changed).expect("writes");
    let flaw = said(&street, verify(None, Some(&proof)))
        .await
        .expect_err("a flaw");
    assert!(flaw.contains("does not hold"), "{flaw}");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_that_no_root_covers_is_shown_to_its_seller_before_it_is_proven() {
    let mut street = street(TestNet::new()).await;
    buy(&street, 3).await;
    let last = requests(&street).await[2];
    let evidence = street.buyers[0].client().evidence(last).await;
    let evidence = evidence.expect("the seller signs");
    assert_eq!(evidence.root.root.count, 3);
    assert_eq!(evidence.verify(), Ok(()));
    buy(&street, 1).await;
    let newest = requests(&street).await[3];
    street.sellers[0].stop().await;
    let error = street.buyers[0].client().evidence(newest).await;
    assert!(error.is_err(), "a seller that is away signs nothing");
    assert!(street.buyers[0].client().evidence(last).await.is_ok());
    street.stop().await;
}

/// Whether the contract takes a call; anything but its own refusal is a failure of the test.
async fn believed(url: &str, calldata: &Bytes) -> bool {
    let call = json!({ "to": VERIFIER, "data": calldata });
    let body =
        json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_call", "params": [call, "latest"] });
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let answer = http.post(url).json(&body).send().await.expect("answers");
    let answer: Value = answer.json().await.expect("JSON");
    match answer.get("result") {
        Some(result) => {
            assert_eq!(result, "0x", "it returns nothing");
            true
        }
        None => {
            let text = answer.to_string();
            assert!(text.contains("revert"), "{text}");
            false
        }
    }
}

/// The same evidence, changed in one place each.
fn tampered(good: &Evidence) -> Vec<(&'static str, Evidence)> {
    let change = |what, change: fn(&mut Evidence)| {
        let mut bad = good.clone();
        change(&mut bad);
        (what, bad)
    };
    vec![
        change("charged", |it| {
            it.signed.receipt.charged = farthing_protocol::amount::Amount::ZERO
        }),
        change("response", |it| it.signed.receipt.response_hash.0[0] ^= 1),
        change("place", |it| it.signed.receipt.seq += 1),
        change("count", |it| it.root.root.count += 1),
        change("path", |it| it.proof.path[0].0[31] ^= 1),
        change("shorter path", |it| it.proof.path.clear()),
        change("one signature twice", |it| it.root.seller = it.root.buyer),
        change("another channel", |it| it.channel.salt.0[0] ^= 1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_believes_a_proof_of_a_real_receipt_and_no_changed_one() {
    // The chain has a clock of its own.
    let street = TestNet::new().anvil().start().await.expect("starts");
    let Ledgers::Anvil(anvil) = &street.ledgers else {
        panic!("this street stands on anvil");
    };
    anvil.place_verifier(VERIFIER).await.expect("is placed");
    buy(&street, 5).await;
    for request in requests(&street).await.into_iter().rev() {
        let evidence = street.buyers[0].client().evidence(request).await;
        let good = evidence.expect("is proven");
        assert!(believed(anvil.url(), &good.calldata()).await);
        for (what, bad) in tampered(&good) {
            assert!(bad.verify().is_err(), "{what}");
            assert!(!believed(anvil.url(), &bad.calldata()).await, "{what}");
        }
    }
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_receipts_are_shown_when_the_store_writes_no_more() {
    let street = street(TestNet::new()).await;
    buy(&street, 2).await;
    street.settled().await.expect("agrees");
    street.buyers[0].ledger().store().stop().await;
    assert_eq!(paged(&street, ReceiptQuery::default()).await.len(), 2);
    street.stop().await;
}
