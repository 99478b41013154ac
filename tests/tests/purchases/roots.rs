//! Roots over receipts: both sides sign the same, and whoever signs another one is found out.

use std::time::Duration;

use alloy::primitives::B256;
use farthing_client::ledger::{Base, Gap, Ledger, Note, Opened, Standing, schema};
use farthing_client::wallet::{Keys, Wallet};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::eip712::Signed;
use farthing_protocol::frame::{Answer, Call};
use farthing_protocol::history::{History, leaf_of};
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::receipt::Receipt;
use farthing_protocol::root::{self, ReceiptRoot, RootWord, SignedRoot};
use farthing_protocol::store::Store;
use farthing_protocol::testing;
use farthing_protocol::x402::ChannelId;
use farthing_tests::street::{Buyer, Forger, Street, TestNet};

const NOW: Timestamp = Timestamp(1_767_225_600_000);
const RICH: Amount = Amount::atoms(1_000_000);

/// A street whose clock a test moves.
async fn street() -> Street {
    let net = TestNet::new().clock(Clock::manual(NOW));
    net.start().await.expect("starts")
}

async fn buy(street: &Street) {
    let bought = street.buyers[0].buy(Buyer::stream(3)).await;
    bought.expect("an answer");
    // Past the pause between two roots.
    street.clock.advance(Duration::from_secs(2));
}

/// The one channel of the street.
fn channel(street: &Street) -> ChannelId {
    street.buyers[0].accounts()[0].0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_each_purchase_both_sign_the_root_over_all_earlier_receipts() {
    let street = street().await;
    for bought in 1..=4 {
        buy(&street).await;
        let id = channel(&street);
        let buyers = street.buyers[0].ledger().root(id);
        let sellers = street.sellers[0].node().ledger().root(id);
        assert_eq!(buyers, sellers);
        assert_eq!(buyers.map_or(0, |signed| signed.root.count), bought - 1);
    }
    let id = channel(&street);
    let ledger = street.buyers[0].ledger();
    let signed = ledger.root(id).expect("signed");
    let config = ledger.account(id).expect("known").config;
    assert_eq!(signed.verify(&config, &street.network), Ok(()));
    let receipts = street.buyers[0].receipts().await;
    let last = receipts
        .iter()
        .find(|receipt| receipt.seq + 1 == signed.root.count);
    assert_eq!(last.expect("held").cumulative, signed.root.cumulative);
    for receipt in receipts
        .iter()
        .filter(|receipt| receipt.seq < signed.root.count)
    {
        let proof = ledger.proof(id, receipt.seq, signed.root.count);
        let proof = proof.expect("reads").expect("is under it");
        assert!(proof.verify(leaf_of(receipt), signed.root.root));
    }
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_of_both_sides_the_tree_goes_on() {
    let mut street = street().await;
    for _ in 0..3 {
        buy(&street).await;
    }
    street.sellers[0].stop().await;
    street.buyers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    street.start_buyer(0).await.expect("starts");
    let id = channel(&street);
    let kept = street.buyers[0].ledger().root(id).expect("kept");
    assert_eq!(kept.root.count, 2);
    buy(&street).await;
    buy(&street).await;
    let signed = street.buyers[0].ledger().root(id).expect("signed");
    assert_eq!(signed.root.count, 4);
    assert_eq!(street.sellers[0].node().ledger().root(id), Some(signed));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_purchases_at_once_end_under_one_root() {
    let street = street().await;
    buy(&street).await;
    let buyer = &street.buyers[0];
    let together = (0..24).map(|_| buyer.buy(Buyer::stream(5)));
    for bought in futures::future::join_all(together).await {
        bought.expect("an answer");
    }
    street.clock.advance(Duration::from_secs(2));
    buy(&street).await;
    let id = channel(&street);
    let signed = buyer.ledger().root(id).expect("signed");
    assert_eq!(signed.root.count, 25);
    assert_eq!(street.sellers[0].node().ledger().root(id), Some(signed));
    street.stop().await;
}

/// What the seller says to a root of a forger, by a call.
async fn said(forger: &Forger, root: SignedRoot) -> RootWord {
    match forger.call(&Call::Root(root)).await.expect("answers") {
        Answer::Root(word) => *word,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_is_not_the_sellers_own_is_never_signed() {
    let street = street().await;
    let forger = Forger::funded(&street, 1, RICH).await.expect("deposits");
    let mut ask = forger.ask(&street, 3).expect("an offer");
    ask.voucher = Some(forger.voucher(Amount::atoms(50_000)));
    let receipt = forger.buy(ask).await.expect("hears").receipt;
    let mut history = History::new(forger.id());
    history.push(&receipt.expect("a receipt")).expect("follows");
    let good = history.root().expect("one receipt");
    let domain = root::domain(&street.network);
    let sign = |root: ReceiptRoot| Signed::sign(root, &domain, &forger.authorizer);

    let RootWord::Signed(seller) = said(&forger, sign(good)).await else {
        panic!("the true root is not signed");
    };
    let message = good;
    let signature = seller;
    let claim = forger.config.receiver_authorizer;
    assert!(Signed { message, signature }.verify(&domain, claim).is_ok());

    let ahead = ReceiptRoot { count: 2, ..good };
    assert_eq!(said(&forger, sign(ahead)).await, RootWord::Later);
    let nothing = ReceiptRoot { count: 0, ..good };
    assert_eq!(said(&forger, sign(nothing)).await, RootWord::Later);
    let unknown = ReceiptRoot {
        channel: ChannelId(B256::ZERO),
        ..good
    };
    assert_eq!(said(&forger, sign(unknown)).await, RootWord::Later);
    let others = Signed::sign(good, &domain, &forger.payer);
    assert_eq!(said(&forger, others).await, RootWord::Foreign);
    for wrong in [
        ReceiptRoot {
            root: B256::ZERO,
            ..good
        },
        ReceiptRoot {
            cumulative: Amount::ZERO,
            ..good
        },
    ] {
        let RootWord::Differs(own) = said(&forger, sign(wrong)).await else {
            panic!("a false root is not answered by the true one");
        };
        assert_eq!(own.message, good);
        assert!(own.verify(&domain, claim).is_ok());
    }
    let held = street.sellers[0].node().ledger().root(forger.id());
    assert_eq!(held.map(|signed| signed.root), Some(good));
    street.stop().await;
}

/// A buyer's books with one channel, and no network around them.
struct Desk {
    wallet: Wallet,
    ledger: Ledger,
    clock: Clock,
    _dir: tempfile::TempDir,
}

fn id() -> ChannelId {
    testing::channel_config().id(&testing::network())
}

impl Desk {
    async fn open() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), schema()).expect("opens");
        let ledger = Ledger::open(store).expect("opens");
        let opened = Opened {
            id: id(),
            seller: testing::node_key(1).id(),
            config: testing::channel_config(),
            balance: RICH,
            claimed: Amount::ZERO,
            armed: Amount::ZERO,
            base: Base {
                ceiling: RICH,
                ..Base::default()
            },
        };
        ledger.observe(opened, NOW).await.expect("enters");
        let limits = farthing_client::ledger::Limits {
            per_purchase: RICH,
            per_seller: RICH,
            per_model: RICH,
            models: Default::default(),
            per_day: RICH,
            total: RICH,
            approve_above: None,
        };
        let keys = Keys {
            payer: testing::evm_key(9).into(),
            authorizer: testing::evm_key(8),
        };
        let clock = Clock::manual(NOW);
        let wallet = Wallet::new(
            keys,
            limits,
            testing::network(),
            clock.clone(),
            ledger.clone(),
        );
        Self {
            wallet,
            ledger,
            clock,
            _dir: dir,
        }
    }

    async fn book(&self, receipt: Receipt) {
        let signed = receipt.sign(&testing::node_key(1));
        let verified = signed.verify(testing::node_key(1).id()).expect("signed");
        let note = Note::default();
        self.ledger.book(verified, note, NOW).await.expect("books");
        self.ledger.written().await.expect("writes");
    }

    fn standing(&self) -> Standing {
        self.ledger.account(id()).expect("known").standing
    }

    async fn acknowledge(&self) -> Option<SignedRoot> {
        self.wallet.acknowledge(id()).await.expect("reads")
    }
}

fn receipt(seq: u64, cumulative: u128) -> Receipt {
    Receipt {
        channel: id(),
        seq,
        request: RequestId(B256::with_last_byte(u8::try_from(seq).expect("few"))),
        request_hash: B256::ZERO,
        response_hash: B256::ZERO,
        model_hash: B256::ZERO,
        offer: OfferHash(B256::ZERO),
        usage: Usage::default(),
        charged: Amount::atoms(10),
        cumulative: Amount::atoms(cumulative),
        started: NOW,
        finished: NOW,
        ending: Ending::Complete,
    }
}

#[tokio::test]
async fn a_root_covers_only_receipts_without_a_gap_and_is_not_due_all_the_time() {
    let desk = Desk::open().await;
    assert_eq!(desk.acknowledge().await, None);
    desk.book(receipt(0, 10)).await;
    desk.book(receipt(2, 30)).await;
    let first = desk.acknowledge().await.expect("due");
    assert_eq!(first.message.count, 1);
    desk.book(receipt(1, 20)).await;
    assert_eq!(desk.acknowledge().await, None, "so soon");
    desk.clock.advance(Duration::from_secs(1));
    let second = desk.acknowledge().await.expect("due");
    assert_eq!(second.message.count, 3);
    assert_eq!(second.message.cumulative, Amount::atoms(30));
    for seq in 3..67 {
        desk.book(receipt(seq, 10 * u128::from(seq + 1))).await;
    }
    let third = desk.acknowledge().await.expect("many make it due at once");
    assert_eq!(third.message.count, 67);
}

#[tokio::test]
async fn a_seller_whose_receipts_do_not_follow_is_frozen() {
    let desk = Desk::open().await;
    desk.book(receipt(0, 10)).await;
    desk.book(receipt(1, 20)).await;
    assert_eq!(desk.standing(), Standing::Good);
    desk.book(receipt(2, 40)).await;
    assert_eq!(desk.standing(), Standing::Frozen);
    assert_eq!(
        desk.acknowledge().await,
        None,
        "and no root is signed over it"
    );
}

#[tokio::test]
async fn a_seller_that_signs_another_root_is_frozen_and_its_word_kept() {
    let desk = Desk::open().await;
    desk.book(receipt(0, 10)).await;
    let ours = desk.acknowledge().await.expect("due");
    let domain = root::domain(&testing::network());
    let theirs = ReceiptRoot {
        root: B256::repeat_byte(1),
        ..ours.message
    };
    let theirs = Signed::sign(theirs, &domain, &testing::evm_key(1));
    desk.wallet
        .countersigned(&ours, RootWord::Differs(theirs))
        .await
        .expect("records");
    assert_eq!(desk.standing(), Standing::Frozen);
    assert_eq!(
        desk.ledger.contradiction(id()).expect("reads"),
        Some(theirs)
    );
    assert_eq!(desk.ledger.root(id()), None);
}

#[tokio::test]
async fn a_countersignature_that_is_not_the_claim_keys_is_a_lie() {
    for word in [
        RootWord::Signed(testing::blank_signature()),
        RootWord::Foreign,
    ] {
        let desk = Desk::open().await;
        desk.book(receipt(0, 10)).await;
        let ours = desk.acknowledge().await.expect("due");
        desk.wallet
            .countersigned(&ours, word)
            .await
            .expect("records");
        assert_eq!(desk.standing(), Standing::Frozen, "{word:?}");
        assert_eq!(desk.ledger.root(id()), None);
    }
    let desk = Desk::open().await;
    desk.book(receipt(0, 10)).await;
    let ours = desk.acknowledge().await.expect("due");
    let word = RootWord::Later;
    desk.wallet
        .countersigned(&ours, word)
        .await
        .expect("nothing");
    assert_eq!(desk.standing(), Standing::Good);
}

#[tokio::test]
async fn a_receipt_that_is_not_there_is_a_gap_and_not_a_proof() {
    let desk = Desk::open().await;
    desk.book(receipt(0, 10)).await;
    assert!(matches!(desk.ledger.proof(id(), 0, 1), Ok(Some(_))));
    assert!(matches!(desk.ledger.proof(id(), 1, 1), Ok(None)));
    assert!(matches!(desk.ledger.proof(id(), 0, 2), Err(Gap::Missing)));
}
