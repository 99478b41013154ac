use alloy::primitives::{Address, B256, U256};
use farthing_protocol::amount::Cost;
use farthing_protocol::clock::Timestamp;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::store::Store;
use farthing_protocol::testing;
use farthing_protocol::x402::Permit;
use tempfile::TempDir;

use super::*;
use crate::ledger::{OPEN, OpenPurchase, Served, schema};

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
