use farthing_protocol::eip712::EvmKey;
use farthing_protocol::identity::NodeKey;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, Usage};
use farthing_protocol::receipt::{Receipt, model_hash};
use farthing_protocol::testing;
use farthing_protocol::x402::Transfer;
use tempfile::TempDir;

use super::once::{Once, OpenOnce};
use super::*;

const NOW: Timestamp = Timestamp(1_767_225_600_000);
const MODEL: &str = "mock/model";

fn atoms(n: u128) -> Amount {
    Amount::atoms(n)
}

fn open(dir: &TempDir) -> Ledger {
    let store = Store::open(dir.path(), schema()).expect("opens");
    Ledger::open(store).expect("reads")
}

fn desk() -> (Ledger, TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    (open(&dir), dir)
}

fn seller() -> NodeKey {
    testing::node_key(7)
}

fn limits(most: u128) -> Limits {
    Limits {
        per_purchase: atoms(most),
        per_seller: atoms(most),
        per_model: atoms(most),
        models: BTreeMap::new(),
        per_day: atoms(most),
        total: atoms(most),
        approve_above: None,
    }
}

fn seen(balance: u128) -> Opened {
    let config = ChannelConfig {
        payer: testing::evm_key(1).address(),
        payer_authorizer: testing::evm_key(2).address(),
        receiver: testing::evm_key(3).address(),
        receiver_authorizer: EvmKey::address(&testing::evm_key(4)),
        token: testing::network().token,
        withdraw_delay: 86_400,
        salt: B256::ZERO,
    };
    Opened {
        id: config.id(&testing::network()),
        seller: seller().id(),
        config,
        balance: atoms(balance),
        claimed: Amount::ZERO,
        armed: Amount::ZERO,
        base: Base::default(),
    }
}

fn request(n: u8) -> RequestId {
    RequestId(B256::repeat_byte(n))
}

fn want(n: u8, more: u128) -> Want {
    Want {
        channel: seen(0).id,
        request: request(n),
        model: model_hash(MODEL),
        more: atoms(more),
        headroom: Amount::ZERO,
        floor: Amount::ZERO,
    }
}

fn receipt(n: u8, seq: u64, charged: u128) -> VerifiedReceipt {
    let receipt = Receipt {
        channel: seen(0).id,
        seq,
        request: request(n),
        request_hash: B256::ZERO,
        response_hash: B256::ZERO,
        model_hash: model_hash(MODEL),
        offer: OfferHash(B256::ZERO),
        usage: Usage::default(),
        charged: atoms(charged),
        cumulative: atoms(charged),
        started: NOW,
        finished: NOW,
        ending: Ending::Complete,
    };
    let signed = receipt.sign(&seller());
    signed.verify(seller().id()).expect("is signed")
}

#[tokio::test]
async fn regression_a_chain_node_that_is_behind_closes_a_channel_only_until_it_has_caught_up() {
    let (ledger, _dir) = desk();
    let opened = ledger.observe(seen(1_000), NOW).await.expect("opens");
    assert_eq!(opened.standing, Standing::Good);
    let most = limits(1_000);
    ledger
        .promise(want(1, 100), &most, NOW)
        .await
        .expect("promises");
    let booked = ledger.book(receipt(1, 0, 100), Note::default(), NOW);
    assert_eq!(booked.await.expect("books"), Fate::Settled);

    let behind = ledger.observe(seen(0), NOW).await.expect("is heard");
    assert_eq!(behind.standing, Standing::Short);
    let refused = ledger.promise(want(2, 100), &most, NOW).await;
    assert!(
        matches!(refused, Err(LedgerError::NotInUse(Standing::Short))),
        "{refused:?}"
    );

    let again = ledger.observe(seen(1_000), NOW).await.expect("is heard");
    assert_eq!(again.standing, Standing::Good);
    let raised = ledger.promise(want(2, 100), &most, NOW).await;
    assert_eq!(raised.expect("promises"), atoms(200));
}

#[tokio::test]
async fn what_the_buyer_closed_stays_closed_whatever_its_chain_node_shows() {
    let (ledger, _dir) = desk();
    ledger.observe(seen(1_000), NOW).await.expect("opens");
    let most = limits(1_000);
    ledger
        .promise(want(1, 100), &most, NOW)
        .await
        .expect("promises");
    let booked = ledger.book(receipt(1, 0, 100), Note::default(), NOW);
    booked.await.expect("books");
    for standing in [Standing::Closing, Standing::Frozen, Standing::Left] {
        let set = ledger.update(seen(0).id, |account| {
            account.standing = standing;
            Ok(())
        });
        set.await.expect("is set");
        for balance in [0, 1_000] {
            let account = ledger.observe(seen(balance), NOW).await.expect("is heard");
            assert_eq!(account.standing, standing);
        }
    }
}

#[tokio::test]
async fn regression_a_second_receipt_for_a_place_is_evidence_and_ties_up_no_money() {
    let (ledger, dir) = desk();
    ledger.observe(seen(1_000), NOW).await.expect("opens");
    let most = limits(1_000);
    for n in [1, 2] {
        let promised = ledger.promise(want(n, 100), &most, NOW);
        promised.await.expect("promises");
    }
    let id = seen(0).id;
    let first = ledger.book(receipt(1, 0, 60), Note::default(), NOW);
    assert_eq!(first.await.expect("books"), Fate::Settled);
    let same = ledger.book(receipt(1, 0, 60), Note::default(), NOW);
    assert_eq!(same.await.expect("is known"), Fate::Known);
    let account = ledger.account(id).expect("is there");
    assert_eq!(account.standing, Standing::Good);

    let other = ledger.book(receipt(2, 0, 90), Note::default(), NOW);
    assert_eq!(other.await.expect("is kept"), Fate::Double);
    let account = ledger.account(id).expect("is there");
    assert_eq!(account.standing, Standing::Frozen);
    assert_eq!(account.channel.reserved(), Amount::ZERO);
    assert_eq!(account.channel.charged(), atoms(60));
    ledger.store().stop().await;
    drop(ledger);

    let ledger = open(&dir);
    let kept = ledger.doubles(id).expect("reads");
    assert_eq!(kept, [receipt(2, 0, 90).signed().clone()]);
    let account = ledger.account(id).expect("is there");
    assert_eq!(account.standing, Standing::Frozen);
}

fn once(n: u8, amount: u128) -> OpenOnce {
    OpenOnce {
        request: request(n),
        seller: seller().id(),
        url: "https://seller.example/v1".to_owned(),
        model: MODEL.to_owned(),
        once: Once::Exact(Transfer {
            from: testing::evm_key(1).address(),
            to: testing::evm_key(3).address(),
            amount: atoms(amount),
            valid_after: 0,
            valid_before: NOW.seconds() + 300,
            nonce: B256::repeat_byte(n),
        }),
        at: NOW,
    }
}

fn paid(n: u8, signed: u128, charged: u128) -> Payment {
    let opened = once(n, signed);
    Payment {
        request: opened.request,
        seller: opened.seller,
        url: opened.url,
        scheme: Scheme::Exact,
        model: opened.model,
        signed: atoms(signed),
        charged: atoms(charged),
        at: NOW,
        dispute: None,
        receipt: None,
        words: None,
    }
}

#[tokio::test]
async fn a_payment_for_one_purchase_counts_before_it_is_signed_and_across_a_crash() {
    let (ledger, dir) = desk();
    let opened = ledger.open_once(&once(1, 60), &limits(100)).await;
    opened.expect("within limits");
    // Dropped without a word, as a crash would leave it.
    ledger.store().stop().await;
    drop(ledger);
    let ledger = open(&dir);
    let promised = ledger.promised(NOW);
    assert_eq!((promised.today, promised.total), (atoms(60), atoms(60)));
    let over = ledger.open_once(&once(2, 50), &limits(100)).await;
    assert!(matches!(over, Err(LedgerError::Limit { .. })), "{over:?}");
    assert_eq!(ledger.left_once(), [once(1, 60)]);

    ledger.void_once(request(1)).await.expect("is given back");
    let promised = ledger.promised(NOW);
    assert_eq!((promised.today, promised.total), (atoms(0), atoms(0)));
    let opened = ledger.open_once(&once(2, 50), &limits(100)).await;
    opened.expect("within limits");
    ledger.store().stop().await;
}

#[tokio::test]
async fn each_limit_bounds_payments_for_one_purchase_and_promises_on_channels_together() {
    type Cut = fn(&mut Limits);
    let cuts: [(&str, Cut); 4] = [
        ("per_seller", |limits| limits.per_seller = atoms(100)),
        ("per_model", |limits| limits.per_model = atoms(100)),
        ("per_day", |limits| limits.per_day = atoms(100)),
        ("total", |limits| limits.total = atoms(100)),
    ];
    for (name, cut) in cuts {
        let (ledger, _dir) = desk();
        let mut most = limits(1_000);
        cut(&mut most);
        ledger.observe(seen(1_000), NOW).await.expect("opens");
        let promised = ledger.promise(want(9, 50), &most, NOW).await;
        promised.expect("within limits");
        let over = ledger.open_once(&once(1, 51), &most).await;
        assert!(
            matches!(over, Err(LedgerError::Limit { limit, .. }) if limit == name),
            "{name}: {over:?}"
        );
        let within = ledger.open_once(&once(1, 50), &most).await;
        within.expect("within limits");
        let over = ledger.promise(want(8, 1), &most, NOW).await;
        assert!(
            matches!(over, Err(LedgerError::Limit { limit, .. }) if limit == name),
            "{name}: {over:?}"
        );
    }
}

#[tokio::test]
async fn regression_a_price_that_is_said_too_low_leaves_a_models_limit_as_it_was() {
    let (ledger, dir) = desk();
    let most = Limits {
        per_model: atoms(100),
        ..limits(1_000)
    };
    ledger.open_once(&once(1, 60), &most).await.expect("fits");
    ledger.settle_once(&paid(1, 60, 1)).await.expect("books");
    let is_full = async |ledger: &Ledger| {
        let over = ledger.open_once(&once(2, 41), &most).await;
        let full = matches!(&over, Err(LedgerError::Limit { limit, .. }) if *limit == "per_model");
        assert!(full, "{over:?}");
    };
    is_full(&ledger).await;
    ledger.store().stop().await;
    drop(ledger);
    let ledger = open(&dir);
    is_full(&ledger).await;
    ledger
        .open_once(&once(2, 40), &most)
        .await
        .expect("just fits");
}

#[tokio::test]
async fn what_was_signed_for_a_purchase_counts_for_good_and_what_it_cost_is_remembered() {
    let (ledger, dir) = desk();
    let most = limits(100);
    ledger.open_once(&once(1, 60), &most).await.expect("fits");
    ledger.settle_once(&paid(1, 60, 25)).await.expect("books");
    // Twice is once.
    ledger.settle_once(&paid(1, 60, 25)).await.expect("books");
    let check = |ledger: &Ledger| {
        let promised = ledger.promised(NOW);
        assert_eq!((promised.today, promised.total), (atoms(60), atoms(60)));
        assert_eq!(ledger.charged_once(), atoms(25));
        assert!(ledger.left_once().is_empty());
    };
    check(&ledger);
    ledger.store().stop().await;
    drop(ledger);
    let ledger = open(&dir);
    check(&ledger);
    let (channel, payment) = ledger
        .payment(request(1))
        .expect("reads")
        .expect("is there");
    assert_eq!((channel, payment), (None, paid(1, 60, 25)));
}

#[tokio::test]
async fn regression_a_payment_that_cannot_be_written_changes_nothing() {
    let (ledger, _dir) = desk();
    let id = seen(0).id;
    ledger.observe(seen(1_000), NOW).await.expect("opens");
    let promised = ledger.promise(want(1, 50), &limits(1_000), NOW).await;
    promised.expect("within limits");
    let before = ledger.account(id).expect("is there");
    let mut payment = paid(1, 0, 20);
    payment.url = "x".repeat(1 << 20);
    let failed = ledger.book_payment(id, &payment, Lesson::Trust).await;
    assert!(matches!(failed, Err(LedgerError::Batch(_))), "{failed:?}");
    assert_eq!(ledger.account(id), Some(before));
    let fits = paid(1, 0, 20);
    let booked = ledger.book_payment(id, &fits, Lesson::Trust);
    booked.await.expect("is still set aside");
}

#[tokio::test]
async fn regression_a_yes_on_its_way_to_a_purchase_that_is_given_up_is_not_lost() {
    let (ledger, _dir) = desk();
    let (id, wish) = (
        B256::repeat_byte(5),
        Wish {
            model: MODEL,
            seller: seller().id(),
            max_cost: atoms(10),
        },
    );
    ledger
        .take_approval(id, wish, NOW)
        .await
        .expect_err("waits");
    let said = ledger.say(id, Word::Granted, NOW).await;
    said.expect("is said").expect("is known");
    // Polled until it waits for the disk, then dropped, as when an application hangs up. A disk
    // that was faster has given the yes out: it is given back, and taken again.
    let mut waited = false;
    for _ in 0..1_000 {
        let mut take = Box::pin(ledger.take_approval(id, wish, NOW));
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let polled = std::future::Future::poll(take.as_mut(), &mut cx);
        waited = polled.is_pending();
        if waited {
            break;
        }
        ledger.end_approval(id, false);
    }
    assert!(waited, "nothing ever waits for the disk");
    let taken = ledger.take_approval(id, wish, NOW).await;
    taken.expect("the yes is still there");
}
