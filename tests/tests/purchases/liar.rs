//! A seller made by hand tries everything that would make a buyer pay for nothing.

use std::time::Duration;

use alloy::primitives::B256;
use farthing_client::client::InferError;
use farthing_client::ledger::Standing;
use farthing_protocol::amount::Amount;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::x402::ChannelId;
use farthing_tests::street::{Buyer, Liar, Lie, Street, TestNet, eventually, listen};

/// A buyer that knows no seller but the liar.
async fn alone_with(lie: Lie) -> (Street, Liar) {
    let liar = Liar::start(lie).await.expect("listens");
    let addresses = liar.addresses();
    let net = TestNet::new().sellers(0);
    let net = net.buyer_config(move |_, config| {
        config.network.bootstrap = addresses.clone();
        config.spend.deposit_wait = Duration::from_millis(500);
    });
    let street = net.start().await.expect("starts");
    liar.enter(&street).await.expect("has gas");
    eventually("the buyer knows the liar", || {
        street.buyers[0].knows(liar.id())
    })
    .await
    .expect("is known");
    (street, liar)
}

/// What a buyer's one purchase ends as.
async fn bought(street: &Street) -> Result<(), InferError> {
    let mut answer = street.buyers[0].infer(Buyer::stream(200)).await?;
    let (_, end) = listen(&mut answer).await;
    end.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absurd_demand_is_not_signed_and_the_purchase_ends() {
    let absurd = Amount::atoms(500_000);
    let (street, liar) = alone_with(Lie::Demand(absurd)).await;
    let end = bought(&street).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    let (_, account) = street.buyers[0].accounts()[0];
    let taken = liar.taken();
    let highest = taken.ceilings.iter().max().copied().unwrap_or_default();
    // The prompt's bound, a window, one of headroom, and as much again.
    assert!(highest < Amount::atoms(500), "{highest} was signed");
    assert!(!highest.is_zero());
    assert!(account.channel.ceiling() < Amount::atoms(500));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_that_is_said_to_be_mined_and_is_not_buys_nothing_and_costs_nothing() {
    let (street, liar) = alone_with(Lie::Mined).await;
    let end = bought(&street).await;
    assert!(matches!(end, Err(InferError::Failed { .. })), "{end:?}");
    assert_eq!(liar.taken().asks, 0, "it is asked for nothing");
    let promised = street.buyers[0].accounts();
    assert!(
        promised
            .iter()
            .all(|(_, account)| account.channel.ceiling().is_zero()),
        "{promised:?}"
    );
    street.stop().await;
}

/// Buys once from a seller whose receipt was changed so, and returns the charge that was booked.
async fn after(change: fn(&mut Receipt)) -> (Amount, usize, Option<String>) {
    let (street, liar) = alone_with(Lie::Receipt(change)).await;
    // Whatever the application is told: the money is what counts here.
    bought(&street).await.ok();
    let buyer = &street.buyers[0];
    eventually("the channel is frozen", || {
        let frozen = |(_, account): &(_, farthing_client::ledger::Account)| {
            account.standing == Standing::Frozen
        };
        buyer.accounts().iter().all(frozen)
    })
    .await
    .expect("is frozen");
    let (id, account) = buyer.accounts()[0];
    let kept = buyer.ledger().newest_receipts(id, 9).expect("reads");
    assert!(bought(&street).await.is_err(), "nobody else sells");
    assert_eq!(liar.taken().asks, 1, "it is not asked again");
    let dispute = kept.first().and_then(|kept| kept.dispute.clone());
    let found = (account.channel.charged(), kept.len(), dispute);
    street.stop().await;
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_about_another_exchange_is_not_booked_and_freezes_the_channel() {
    let changes: [fn(&mut Receipt); 6] = [
        |receipt| receipt.channel = ChannelId(B256::repeat_byte(1)),
        |receipt| receipt.request = RequestId(B256::repeat_byte(1)),
        |receipt| receipt.request_hash = B256::repeat_byte(1),
        |receipt| receipt.response_hash = B256::repeat_byte(1),
        |receipt| receipt.model_hash = B256::repeat_byte(1),
        |receipt| receipt.offer = OfferHash(B256::repeat_byte(1)),
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let (charged, receipts, _) = after(change).await;
        assert_eq!((charged, receipts), (Amount::ZERO, 0), "change {n}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_truncates_and_charges_in_full_is_disputed_and_left() {
    let (charged, receipts, dispute) = after(|receipt| {
        // Three tokens came; sixty are asked for, within what was set aside.
        receipt.usage.completion = 60;
        receipt.charged = Amount::atoms(31);
        receipt.cumulative = receipt.charged;
    })
    .await;
    assert_eq!(receipts, 1, "kept, as evidence");
    assert_eq!(charged, Amount::atoms(31));
    let dispute = dispute.expect("it is disputed");
    assert!(dispute.contains("completion tokens"), "{dispute}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receipt_over_more_than_was_set_aside_is_not_booked() {
    let (charged, receipts, _) = after(|receipt| {
        receipt.charged = Amount::atoms(400_000);
        receipt.cumulative = receipt.charged;
    })
    .await;
    assert_eq!((charged, receipts), (Amount::ZERO, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_an_answer_is_not_whole_because_its_seller_says_that_we_stopped_it() {
    let (street, _liar) = alone_with(Lie::Ends(3, Ending::Cancelled)).await;
    let end = bought(&street).await;
    assert!(matches!(end, Err(InferError::Interrupted(_))), "{end:?}");
    let buyer = &street.buyers[0];
    let receipts = buyer.receipts().await;
    let receipt = receipts.last().expect("what came is paid");
    assert_eq!(receipt.usage.completion, 3);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_word_is_none_whatever_its_seller_calls_it() {
    for ending in [Ending::Cancelled, Ending::Complete] {
        let (street, _liar) = alone_with(Lie::Ends(0, ending)).await;
        let end = bought(&street).await;
        assert!(matches!(end, Err(InferError::Failed { .. })), "{end:?}");
        street.stop().await;
    }
}
