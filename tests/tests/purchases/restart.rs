//! Restarts, crashes and lost disks: the books of both sides come together again, and nothing is
//! charged twice.

use std::time::Duration;

use farthing_node::ledger::OPEN;
use farthing_protocol::amount::{Amount, Cost};
use farthing_protocol::frame::{Answer, Call};
use farthing_protocol::pricing;
use farthing_protocol::purchase::{Ending, Usage};
use farthing_protocol::store::Order;
use farthing_tests::street::{Buyer, Forger, Street, TestNet, WEALTH, eventually, listen};
use farthing_tests::upstream::Behaviour;

const PACE: Duration = Duration::from_millis(2);
const TOKENS: u32 = 1000;

async fn crashable() -> Street {
    let net = TestNet::new().crashable();
    net.upstreams(Behaviour::default().tokens(TOKENS as usize).pace(PACE))
        .seller_config(|_, config| config.limits.checkpoint = PACE * 5)
        .start()
        .await
        .expect("starts")
}

/// Buys something short, after which everything must agree. Returns what is charged in all.
async fn buy_and_agree(street: &Street) -> Amount {
    let heard = street.buyers[0].buy(Buyer::stream(16)).await;
    assert_eq!(
        heard
            .expect("answers")
            .bill
            .receipt
            .receipt
            .usage
            .completion,
        16
    );
    let charged = street.settled().await.expect("agrees");
    let receipts = street.sellers[0]
        .channels()
        .into_iter()
        .flat_map(|(id, _)| {
            let ledger = street.sellers[0].node().ledger();
            ledger.receipts(id, 0, 1000).expect("reads")
        });
    let sum = receipts.map(|receipt| receipt.charged);
    assert_eq!(sum.fold(Amount::ZERO, Amount::saturating_add), charged);
    charged
}

async fn deposited(street: &Street) -> Amount {
    let chain = street.ledgers.chain().expect("a chain");
    let (id, _) = street.sellers[0].channels()[0];
    chain.channel(id).await.expect("answers").balance
}

fn cost(street: &Street, usage: &Usage) -> Amount {
    let prices = street.sellers[0].config.models[0].offer().prices;
    pricing::cost(usage, &prices).map_or(Amount::MAX, Cost::ceil)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_seller_goes_on_with_the_same_channel_and_its_old_offer_is_replaced() {
    let mut street = TestNet::new().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let old = street.sellers[0].node().offer().expect("an offer").hash();
    street.sellers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    let heard = street.buyers[0].buy(Buyer::chat(16)).await;
    let receipt = heard.expect("answers").bill.receipt.receipt;
    assert_ne!(receipt.offer, old);
    assert_eq!(receipt.seq, 1);
    street.settled().await.expect("agrees");
    assert_eq!(street.buyers[0].accounts().len(), 1);
    assert_eq!(street.sellers[0].channels().len(), 1);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_buyer_goes_on_with_the_same_channel_and_deposits_nothing_more() {
    let mut street = TestNet::new().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let before = deposited(&street).await;
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    let heard = street.buyers[0].buy(Buyer::chat(16)).await;
    assert_eq!(heard.expect("answers").bill.receipt.receipt.seq, 1);
    street.settled().await.expect("agrees");
    assert_eq!(street.buyers[0].receipts().await.len(), 2);
    assert_eq!(deposited(&street).await, before);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_crashes_mid_stream_charges_its_last_checkpoint_once() {
    let mut street = crashable().await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(TOKENS))
        .await
        .expect("begins");
    let store = street.sellers[0].node().ledger().store().clone();
    eventually("a checkpoint is written", || {
        let open = store.scan(&OPEN, .., Order::Up, 1).expect("reads");
        open.iter()
            .any(|(_, purchase)| purchase.usage.completion > 20)
    })
    .await
    .expect("written");
    drop(store);
    street.sellers[0].crash().expect("crashes");
    let (data, end) = listen(&mut answer).await;
    assert!(end.is_err(), "{end:?}");
    street.start_seller(0).await.expect("starts");
    let interrupted = street.sellers[0].charged();
    assert!(!interrupted.is_zero());
    buy_and_agree(&street).await;
    let receipts = street.buyers[0].receipts().await;
    assert_eq!(receipts.len(), 2);
    let cut = &receipts[1];
    assert_eq!(cut.ending, Ending::Interrupted);
    assert_eq!(cut.charged, interrupted);
    assert!((21..=data.len()).contains(&(cut.usage.completion as usize)));
    assert!(cut.charged <= cost(&street, &cut.usage));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_crashes_twice_charges_an_interrupted_answer_once() {
    let mut street = crashable().await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(TOKENS))
        .await
        .expect("begins");
    street.sellers[0].upstream.sent(1, 50).await;
    street.sellers[0].crash().expect("crashes");
    assert!(listen(&mut answer).await.1.is_err());
    street.start_seller(0).await.expect("starts");
    let charged = street.sellers[0].charged();
    street.sellers[0].crash().expect("crashes");
    street.start_seller(0).await.expect("starts");
    assert_eq!(street.sellers[0].charged(), charged);
    buy_and_agree(&street).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_crashes_mid_stream_finds_out_what_it_paid() {
    let mut street = crashable().await;
    street.buyers[0]
        .buy(Buyer::stream(20))
        .await
        .expect("answers");
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(TOKENS))
        .await
        .expect("begins");
    for _ in 0..60 {
        answer.next().await.expect("goes on").expect("goes on");
    }
    street.buyers[0].crash().expect("crashes");
    drop(answer);
    street.sellers[0].upstream.disconnected(2).await;
    let ledger = street.sellers[0].node().ledger();
    eventually("it is charged", || ledger.running() == 0)
        .await
        .expect("charged");
    let charged = street.sellers[0].charged();
    street.start_buyer(0).await.expect("starts");
    buy_and_agree(&street).await;
    let receipts = street.buyers[0].receipts().await;
    assert_eq!(receipts.len(), 3);
    assert_eq!(receipts[1].ending, Ending::Cancelled);
    assert!(receipts[1].usage.completion >= 59);
    assert_eq!(receipts[1].cumulative, charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_may_crash_in_the_middle_of_many_answers() {
    let mut street = crashable().await;
    for round in 0..3_u64 {
        let mut answers = Vec::new();
        for _ in 0..5 {
            let answer = street.buyers[0].infer(Buyer::stream(TOKENS)).await;
            answers.push(answer.expect("begins"));
        }
        for answer in &mut answers {
            for _ in 0..40 {
                answer.next().await.expect("goes on").expect("goes on");
            }
        }
        if round != 1 {
            street.sellers[0].crash().expect("crashes");
        }
        if round != 0 {
            street.buyers[0].crash().expect("crashes");
        }
        drop(answers);
        if round != 1 {
            street.start_seller(0).await.expect("starts");
        }
        if round != 0 {
            street.start_buyer(0).await.expect("starts");
        }
        buy_and_agree(&street).await;
    }
    let (_, view) = street.sellers[0].channels()[0];
    let voucher = view.voucher.expect("a voucher").message;
    assert!(view.channel.charged() <= voucher.ceiling);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_lost_its_disk_finds_its_channel_on_chain_and_believes_its_own_signature() {
    let mut street = TestNet::new().start().await.expect("starts");
    for _ in 0..3 {
        street.buyers[0]
            .buy(Buyer::chat(16))
            .await
            .expect("answers");
    }
    let before = deposited(&street).await;
    street.buyers[0].stop().await;
    street.buyers[0].lose_disk().expect("is lost");
    street.start_buyer(0).await.expect("starts");
    let heard = street.buyers[0].buy(Buyer::chat(16)).await;
    assert_eq!(heard.expect("answers").bill.receipt.receipt.seq, 3);
    street.settled().await.expect("agrees");
    assert_eq!(deposited(&street).await, before);
    assert_eq!(street.sellers[0].channels().len(), 1);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_lost_its_disk_after_a_claim_is_charged_nothing_twice() {
    let mut street = TestNet::new().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let settlement = street.sellers[0].node().settlement();
    settlement.claim().await.expect("claims");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    street.buyers[0].stop().await;
    street.buyers[0].lose_disk().expect("is lost");
    street.start_buyer(0).await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    street.settled().await.expect("agrees");
    // And once more, now that its new books are on its new disk.
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    buy_and_agree(&street).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_is_made_once_although_the_seller_crashed_while_it_was_mined() {
    let mut street = TestNet::new().crashable().start().await.expect("starts");
    let memory = street.ledgers.memory().clone();
    memory.set_held(true);
    let seller = &street.sellers[0];
    tokio::select! {
        bought = street.buyers[0].buy(Buyer::chat(16)) => panic!("{bought:?}"),
        seen = eventually("the deposit is on its way", || !seller.channels().is_empty()) => {
            seen.expect("seen");
        }
    }
    street.sellers[0].crash().expect("crashes");
    memory.set_held(false);
    memory.mine(1);
    street.start_seller(0).await.expect("starts");
    buy_once_known(&street).await;
    street.settled().await.expect("agrees");
    assert_eq!(
        deposited(&street).await,
        street.buyers[0].config.spend.deposit
    );
    street.stop().await;
}

/// Buys, trying again while the buyer still waits for the seller that crashed.
async fn buy_once_known(street: &Street) {
    for _ in 0..50 {
        if street.buyers[0].buy(Buyer::chat(16)).await.is_ok() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("the seller is not used again");
}

/// The seller crashes, and starts again on an empty disk.
async fn bereft(street: &mut Street) {
    let seller = &mut street.sellers[0];
    seller.crash().expect("crashes");
    std::fs::remove_dir_all(&seller.config.data_dir).expect("is lost");
    street.start_seller(0).await.expect("starts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_lost_its_disk_returns_the_rest_and_sells_on_the_next_lane() {
    let mut street = TestNet::new().crashable().start().await.expect("starts");
    for _ in 0..3 {
        let bought = street.buyers[0].buy(Buyer::chat(16)).await;
        bought.expect("answers");
    }
    let (old, _) = street.sellers[0].channels()[0];
    bereft(&mut street).await;
    let heard = street.buyers[0].buy(Buyer::chat(16)).await;
    let receipt = heard.expect("answers").bill.receipt.receipt;
    assert_ne!(receipt.channel, old);
    assert_eq!(receipt.seq, 0, "the books begin anew");
    let chain = street.ledgers.chain().expect("a chain");
    let left = chain.channel(old).await.expect("answers");
    assert_eq!(left.balance, left.claimed, "the rest was returned");
    assert_eq!(left.claimed, Amount::ZERO, "what was not claimed is lost");
    let payer = street.buyers[0].wallet_keys().payer.address();
    let wealth = chain.token_balance(payer).await.expect("answers");
    let deposit = street.buyers[0].config.spend.deposit;
    assert_eq!(wealth.saturating_add(deposit), WEALTH);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_lost_its_disk_finds_a_channel_on_chain_for_who_holds_its_key() {
    let mut street = TestNet::new().crashable().start().await.expect("starts");
    let rich = Amount::atoms(100_000);
    let forger = Forger::funded(&street, 1, rich).await.expect("opens");
    bereft(&mut street).await;
    assert!(street.sellers[0].channels().is_empty());
    let (config, proof) = (forger.config, forger.voucher(Amount::ZERO));
    let answer = forger.call(&Call::Channel { config, proof }).await;
    let Answer::Channel(statement) = answer.expect("answers") else {
        panic!("it is told");
    };
    assert_eq!(statement.balance, rich);
    assert_eq!(statement.receipts, 0);
    street.stop().await;
}
