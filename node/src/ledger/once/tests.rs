use std::time::Duration;

use alloy::primitives::{Address, B256, U256};
use farthing_protocol::amount::Cost;
use farthing_protocol::chain::Fees;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::retention::{Archive, MIN_AGE, Retention};
use farthing_protocol::store::{Store, Table};
use farthing_protocol::testing;
use farthing_protocol::x402::Permit;
use tempfile::TempDir;

use super::*;
use crate::ledger::records::{DOORS, Pending};
use crate::ledger::{Door, OPEN, OpenPurchase, Retired, SERVED, Served, schema};

const NOW: Timestamp = Timestamp(1_790_000_000_000);
const CEILING: Amount = Amount::atoms(1_000);

async fn open(dir: &TempDir) -> Ledger {
    let store = Store::open(dir.path(), schema()).expect("opens");
    Ledger::open(store, NOW).await.expect("opens")
}

fn permit(nonce: u64) -> (ChannelId, ChannelConfig, Once) {
    let key = testing::evm_key(9);
    let message = Permit {
        owner: key.address(),
        token: testing::network().token,
        ceiling: CEILING,
        nonce: U256::from(nonce),
        deadline: NOW.seconds() + 300,
        to: Address::repeat_byte(0x5e),
        facilitator: testing::evm_key(1).address(),
        valid_after: 0,
    };
    let domain = Permit::domain(testing::network().chain_id);
    let once = Once::Upto(Signed::sign(message, &domain, &key));
    let config = once.terms(testing::evm_key(1).address());
    (config.id(&testing::network()), config, once)
}

fn purchase(channel: ChannelId, cost: Cost) -> OpenPurchase {
    OpenPurchase {
        channel,
        request_hash: B256::ZERO,
        response_hash: B256::ZERO,
        model_hash: B256::ZERO,
        offer: OfferHash(B256::ZERO),
        usage: Usage::default(),
        cost,
        started: NOW,
    }
}

/// Sells an answer on it that is too small to cost an atom.
async fn sell_for_nothing(ledger: &Ledger, id: ChannelId) {
    let request = RequestId(id.0);
    let reservation = ledger.reserve(id, request, CEILING).expect("is covered");
    let served = Served {
        purchase: purchase(id, Cost::default()),
        finished: NOW,
        ending: Ending::Complete,
    };
    let receipt = ledger.finish(reservation, served).await.expect("ends");
    assert!(receipt.charged.is_zero());
}

#[tokio::test]
async fn the_payments_of_one_payer_may_not_promise_more_than_it_has() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = open(&dir).await;
    let (first, config, once) = permit(1);
    let entered = ledger.open_once(first, config, once, CEILING).await;
    entered.expect("is covered");
    let (second, config, once) = permit(2);
    let refused = ledger.open_once(second, config, once, CEILING).await;
    assert!(matches!(refused, Err(LedgerError::Rejected(_))));
    ledger.void_once(first).await.expect("is forgotten");
    let entered = ledger.open_once(second, config, once, CEILING).await;
    entered.expect("the money is free again");
}

#[tokio::test]
async fn regression_an_answer_that_cost_nothing_ties_up_no_money_and_buys_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = open(&dir).await;
    let (id, config, once) = permit(1);
    let entered = ledger.open_once(id, config, once, CEILING).await;
    entered.expect("is covered");
    sell_for_nothing(&ledger, id).await;
    ledger.void_once(id).await.expect("is written");
    assert!(ledger.untaken().expect("reads").is_empty());
    let again = ledger.open_once(id, config, once, CEILING).await;
    assert!(matches!(again, Err(LedgerError::Duplicate)));
    let (next, config, once) = permit(2);
    let entered = ledger.open_once(next, config, once, CEILING).await;
    entered.expect("the first ties up nothing");
    // Its receipt has its channel after a restart, too.
    ledger.store().stop().await;
    drop(ledger);
    let ledger = open(&dir).await;
    assert_eq!(ledger.receipts(id, 0, 9).expect("reads").len(), 1);
    assert!(ledger.channel(id).is_some());
}

#[tokio::test]
async fn regression_a_checkpoint_of_no_channel_does_not_keep_the_books_shut() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = open(&dir).await;
    let (id, ..) = permit(1);
    let orphan = Batch::new()
        .put(&OPEN, &id.0, &purchase(id, Cost::default()))
        .expect("fits");
    ledger.store().commit(orphan).await.expect("is written");
    ledger.store().stop().await;
    drop(ledger);
    assert!(open(&dir).await.channels().is_empty());
}

/// Sells an answer on it that costs so much.
async fn sell_for(ledger: &Ledger, id: ChannelId, atoms: u128) {
    let request = RequestId(id.0);
    let reservation = ledger.reserve(id, request, CEILING).expect("is covered");
    let reservation = reservation.over_http();
    let cost = Amount::atoms(atoms).to_cost().expect("small");
    let served = Served {
        purchase: purchase(id, cost),
        finished: NOW,
        ending: Ending::Complete,
    };
    ledger.finish(reservation, served).await.expect("ends");
}

const EVERYTHING: Retention = Retention {
    keep: Duration::ZERO,
    most: 0,
};

#[tokio::test]
async fn regression_a_payment_that_was_taken_leaves_with_its_receipt_when_both_are_old() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = open(&dir).await;
    let archive = Archive::new(dir.path().join("archive"));
    let later = NOW.plus(MIN_AGE);
    let prune = async |ledger: &Ledger, now| {
        let pruned = ledger.prune(&EVERYTHING, Some(&archive), now).await;
        pruned.expect("prunes")
    };
    let (id, config, once) = permit(1);
    let entered = ledger.open_once(id, config, once, CEILING).await;
    entered.expect("is covered");
    sell_for(&ledger, id, 300).await;
    assert_eq!(prune(&ledger, later).await, 0, "it is owed");
    ledger
        .took_once(id, Amount::atoms(300))
        .await
        .expect("is written");
    assert_eq!(prune(&ledger, NOW).await, 0, "it is young");
    let pending = Pending {
        purpose: Purpose::Once(id),
        nonce: 0,
        fees: Fees {
            max: 1,
            priority: 1,
        },
        signed: NOW,
    };
    let hash = B256::repeat_byte(1);
    let way = Batch::new().put(&TRANSACTIONS, &hash, &pending);
    let way = ledger.store().commit(way.expect("fits")).await;
    way.expect("is written");
    assert_eq!(prune(&ledger, later).await, 0, "it is not final");
    let end = Batch::new().delete(&TRANSACTIONS, &hash);
    ledger.store().commit(end).await.expect("is written");

    let receipt = ledger.receipt(id, 0).expect("reads").expect("is there");
    assert_eq!(ledger.door(&receipt).expect("reads"), Door::Upto);
    assert_eq!(prune(&ledger, later).await, 1);
    assert!(ledger.channel(id).is_none());
    assert_eq!(ledger.receipt(id, 0).expect("reads"), None);
    let file = dir.path().join("archive");
    let file = file.join(format!("receipts-{:06}.jsonl", later.day()));
    let lines = std::fs::read_to_string(file).expect("is archived");
    let line: serde_json::Value = serde_json::from_str(lines.trim()).expect("one line");
    assert_eq!(line["taken"], "300");
    assert_eq!(line["receipt"]["charged"], "300");
    let payer = testing::evm_key(9).address();
    assert_eq!(
        line["terms"]["payer"].as_str().map(str::parse),
        Some(Ok(payer))
    );

    // What was earned is remembered, and nothing else is.
    ledger.store().stop().await;
    drop(ledger);
    let ledger = open(&dir).await;
    assert!(ledger.channels().is_empty());
    let earned = Retired {
        payments: 1,
        charged: Amount::atoms(300),
        taken: Amount::atoms(300),
    };
    assert_eq!(ledger.retired(), earned);
    assert!(is_empty(&ledger, &SERVED) && is_empty(&ledger, &DOORS));
}

#[tokio::test]
async fn a_payment_that_was_taken_for_nothing_leaves_too_and_counts() {
    let dir = tempfile::tempdir().expect("a folder");
    let ledger = open(&dir).await;
    let (id, config, once) = permit(1);
    let entered = ledger.open_once(id, config, once, CEILING).await;
    entered.expect("is covered");
    let pruned = ledger.prune(&EVERYTHING, None, NOW).await;
    assert_eq!(pruned.expect("prunes"), 0);
    assert!(ledger.channel(id).is_some(), "it may still buy");
    ledger.took_once(id, CEILING).await.expect("is written");
    ledger.prune(&EVERYTHING, None, NOW).await.expect("prunes");
    assert!(ledger.channel(id).is_none());
    assert_eq!(ledger.retired().taken, CEILING);
}

fn is_empty<V: serde::de::DeserializeOwned>(ledger: &Ledger, table: &Table<B256, V>) -> bool {
    let rows = ledger.store().scan(table, .., Order::Up, 1);
    rows.expect("reads").is_empty()
}
