//! The chain goes away, loses answers, and sees money taken back.

use std::time::Duration;

use farthing_client::client::InferError;
use farthing_client::report::{ActionError, ActionReport, ChannelAction};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::Write;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::purchase::{Ask, Refusal, VoucherFault};
use farthing_tests::street::{Buyer, Forger, Street, TestNet, WEALTH, eventually, listen};
use farthing_tests::upstream::Behaviour;

const DAY: Duration = Duration::from_secs(86_400);
const PACE: Duration = Duration::from_millis(2);
const START: Timestamp = Timestamp(1_790_000_000_000);
const POLL: Duration = Duration::from_millis(20);

/// A street whose sellers look at the chain often and claim only when they must.
fn net() -> TestNet {
    TestNet::new().seller_config(|_, config| {
        config.settlement.poll_interval = POLL;
        config.settlement.claim_at = WEALTH;
    })
}

async fn act(street: &Street, action: ChannelAction) -> Result<ActionReport, ActionError> {
    let (id, _) = street.buyers[0].accounts()[0];
    street.buyers[0].client().channel(id, action).await
}

/// What the first buyer's wallet holds.
async fn wallet(street: &Street) -> Amount {
    let payer = street.buyers[0].wallet_keys().payer.address();
    let chain = street.ledgers.chain().expect("a chain");
    chain.token_balance(payer).await.expect("answers")
}

async fn payout(street: &Street) -> Amount {
    let chain = street.ledgers.chain().expect("a chain");
    let paid = chain.token_balance(street.sellers[0].payout()).await;
    paid.expect("answers")
}

/// Gas for the first buyer, who else needs none.
async fn fund(street: &Street) {
    let key = street.buyers[0].wallet_keys().authorizer.address();
    street.ledgers.fund(key).await.expect("funds");
}

async fn claimed(street: &Street) {
    eventually("all is claimed", || {
        let channels = street.sellers[0].channels();
        channels
            .iter()
            .all(|(_, view)| view.channel.unclaimed().is_zero())
    })
    .await
    .expect("claimed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_chain_is_away_open_channels_are_served_and_claims_wait() {
    let net = net().buyers(2).seller_config(|_, config| {
        config.settlement.poll_interval = POLL;
        config.settlement.claim_at = Amount::atoms(1);
    });
    let street = net.start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    claimed(&street).await;
    let memory = street.ledgers.memory();
    memory.set_away(true);
    for _ in 0..3 {
        street.buyers[0]
            .buy(Buyer::chat(16))
            .await
            .expect("answers");
    }
    let end = street.buyers[1].buy(Buyer::chat(16)).await;
    assert!(matches!(end, Err(InferError::Chain(_))), "{end:?}");
    assert!(street.buyers[1].accounts().is_empty());
    let (_, view) = street.sellers[0].channels()[0];
    assert!(!view.channel.unclaimed().is_zero());
    memory.set_away(false);
    street.buyers[1]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    claimed(&street).await;
    let charged = street.settled().await.expect("agrees");
    assert_eq!(payout(&street).await, charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_whose_answer_is_lost_is_not_made_twice() {
    let street = net().start().await.expect("starts");
    let memory = street.ledgers.memory();
    memory.set_deaf(true);
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    memory.set_deaf(false);
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let deposit = street.buyers[0].config.spend.deposit;
    assert_eq!(wallet(&street).await, WEALTH.saturating_sub(deposit));
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_mined_during_an_outage_is_found_when_the_chain_is_back() {
    let street = net().start().await.expect("starts");
    let (buyer, seller) = (&street.buyers[0], &street.sellers[0]);
    let memory = street.ledgers.memory();
    memory.set_held(true);
    let outage = async {
        let seen = eventually("the deposit is on its way", || {
            !seller.channels().is_empty()
        });
        seen.await.expect("seen");
        memory.set_away(true);
        memory.set_held(false);
        memory.mine(1);
        let settlement = seller.node().settlement();
        let noticed = eventually("the outage is noticed", || settlement.outlook().away);
        noticed.await.expect("noticed");
        memory.set_away(false);
    };
    let (bought, ()) = tokio::join!(buyer.buy(Buyer::chat(16)), outage);
    if let Err(error) = bought {
        // The outage came between signing and sending: it was not even recorded as sent.
        assert!(
            matches!(error, InferError::Chain(_) | InferError::Failed { .. }),
            "{error:?}"
        );
        buyer.buy(Buyer::chat(16)).await.expect("answers");
    }
    let spent = WEALTH.saturating_sub(wallet(&street).await);
    assert_eq!(spent, buyer.config.spend.deposit);
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_up_that_landed_unheard_counts() {
    let mut street = net()
        .crashable()
        .buyer_config(|_, config| config.spend.deposit = Amount::atoms(100_000))
        .start()
        .await
        .expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let memory = street.ledgers.memory().clone();
    memory.set_held(true);
    let (id, _) = street.buyers[0].accounts()[0];
    let client = street.buyers[0].client().clone();
    let action = ChannelAction::TopUp {
        amount: Some(Amount::atoms(200_000)),
    };
    tokio::select! {
        done = client.channel(id, action) => panic!("{done:?}"),
        () = journalled(&street) => {}
    }
    drop(client);
    street.sellers[0].crash().expect("crashes");
    memory.set_held(false);
    memory.mine(1);
    street.start_seller(0).await.expect("starts");
    let deposits = || async { WEALTH.saturating_sub(wallet(&street).await) };
    let before = deposits().await;
    let report = act(&street, action).await.expect("acts");
    assert_eq!(report.channel.balance, Amount::atoms(300_000));
    assert!(before == Amount::atoms(300_000) || before == Amount::atoms(100_000));
    assert_eq!(deposits().await, Amount::atoms(300_000));
    street.stop().await;
}

/// Until the seller has written down a transaction that is not mined.
async fn journalled(street: &Street) {
    use farthing_node::ledger::records::TRANSACTIONS;
    use farthing_protocol::store::Order;
    let store = street.sellers[0].node().ledger().store();
    let waiting = eventually("a transaction waits", || {
        let found = store.scan(&TRANSACTIONS, .., Order::Up, 1);
        !found.expect("reads").is_empty()
    });
    waiting.await.expect("waits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_makes_the_seller_claim_at_once_and_lend_no_more_than_the_rest() {
    let street = net().start().await.expect("starts");
    let deposit = Amount::atoms(150_000);
    let forger = Forger::funded(&street, 1, deposit).await.expect("deposits");
    let key = forger.authorizer.clone();
    street.ledgers.fund(key.address()).await.expect("funds");
    let ask = |ceiling: u128| {
        let ask = forger.ask(&street, 16).expect("an offer");
        let voucher = Some(forger.voucher(Amount::atoms(ceiling)));
        Ask { voucher, ..ask }
    };
    let told = forger.buy(ask(1_000)).await.expect("is told");
    assert!(told.receipt.is_some());
    let chain = street.ledgers.chain().expect("a chain");
    let arm = Write::InitiateWithdraw {
        config: forger.config,
        amount: Amount::atoms(149_500),
    };
    let prepared = chain.prepare(&arm, &key, None).await.expect("prepares");
    chain.broadcast(&prepared.raw).await.expect("is mined");
    let ledger = street.sellers[0].node().ledger();
    eventually("the withdrawal is seen", || {
        let view = ledger.channel(forger.id());
        view.is_some_and(|view| !view.channel.armed().is_zero())
    })
    .await
    .expect("seen");
    claimed(&street).await;
    let told = forger.buy(ask(1_500)).await.expect("is told");
    let available = Amount::atoms(500);
    let expected = Refusal::Voucher(VoucherFault::OverDeposit { available });
    assert_eq!(told.refusal, Some(expected));
    // The rest is still good, and what is charged on it is claimed as well.
    let told = forger.buy(ask(1_000)).await.expect("is told");
    assert!(told.receipt.is_some(), "{told:?}");
    claimed(&street).await;
    assert_eq!(payout(&street).await, street.sold());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_outruns_its_deposit_tops_it_up_as_it_flows() {
    let street = TestNet::new()
        .upstreams(Behaviour::default().tokens(1000).pace(PACE / 2))
        .seller_config(|_, config| config.chain.min_deposit = Amount::atoms(100))
        .buyer_config(|_, config| {
            config.spend.deposit = Amount::atoms(150);
            config.spend.max_deposit = Amount::atoms(10_000);
        })
        .start()
        .await
        .expect("starts");
    let heard = street.buyers[0].buy(Buyer::stream(1000)).await;
    let receipt = heard.expect("answers").bill.receipt.receipt;
    assert_eq!(receipt.usage.completion, 1000);
    let (_, account) = street.buyers[0].accounts()[0];
    assert!(account.channel.balance() >= receipt.charged);
    assert!(receipt.charged > Amount::atoms(450));
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_up_by_hand_and_a_refused_refund_do_not_disturb_a_running_stream() {
    let street = net()
        .upstreams(Behaviour::default().tokens(300).pace(PACE))
        .start()
        .await
        .expect("starts");
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(300))
        .await
        .expect("begins");
    let amount = Some(Amount::atoms(250_000));
    let report = act(&street, ChannelAction::TopUp { amount }).await;
    let deposit = street.buyers[0].config.spend.deposit;
    let expected = deposit.saturating_add(Amount::atoms(250_000));
    assert_eq!(report.expect("tops up").channel.balance, expected);
    let refund = act(&street, ChannelAction::Refund).await;
    assert!(matches!(refund, Err(ActionError::Refused(_))), "{refund:?}");
    let (_, end) = listen(&mut answer).await;
    let bill = end.expect("answers");
    assert_eq!(bill.receipt.receipt.usage.completion, 300);
    street.settled().await.expect("agrees");
    street.stop().await;
}

async fn refund_to_the_atom(street: Street) {
    for _ in 0..3 {
        street.buyers[0]
            .buy(Buyer::chat(16))
            .await
            .expect("answers");
    }
    let charged = street.settled().await.expect("agrees");
    act(&street, ChannelAction::Refund).await.expect("refunds");
    assert_eq!(wallet(&street).await, WEALTH.saturating_sub(charged));
    assert_eq!(payout(&street).await, charged);
    // The channel is used again, with a new deposit.
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let charged = street.settled().await.expect("agrees");
    let deposit = street.buyers[0].config.spend.deposit;
    let (_, account) = street.buyers[0].accounts()[0];
    assert!(account.channel.balance() >= deposit);
    act(&street, ChannelAction::Refund).await.expect("refunds");
    assert_eq!(wallet(&street).await, WEALTH.saturating_sub(charged));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_returns_the_rest_to_the_atom() {
    refund_to_the_atom(net().start().await.expect("starts")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_on_a_real_chain_returns_the_rest_to_the_atom() {
    refund_to_the_atom(net().anvil().start().await.expect("starts")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_that_meets_an_outage_leaves_the_channel_in_use() {
    let street = net().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let memory = street.ledgers.memory();
    memory.set_away(true);
    let refund = act(&street, ChannelAction::Refund).await;
    assert!(refund.is_err(), "{refund:?}");
    memory.set_away(false);
    let ledger = street.sellers[0].node().ledger();
    eventually("the channel is thawed", || {
        let channels = ledger.channels();
        channels
            .iter()
            .all(|(_, view)| view.channel.armed().is_zero())
    })
    .await
    .expect("thawed");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    street.settled().await.expect("agrees");
    assert_eq!(street.buyers[0].accounts().len(), 1);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_is_complete_after_its_delay_and_not_before() {
    let clock = Clock::manual(START);
    let street = net().clock(clock.clone()).start().await.expect("starts");
    fund(&street).await;
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let charged = street.settled().await.expect("agrees");
    act(&street, ChannelAction::Withdraw).await.expect("begins");
    claimed(&street).await;
    let early = act(&street, ChannelAction::Finalize).await;
    assert!(early.is_err(), "{early:?}");
    clock.advance(DAY + POLL);
    act(&street, ChannelAction::Finalize)
        .await
        .expect("is over");
    assert_eq!(wallet(&street).await, WEALTH.saturating_sub(charged));
    assert_eq!(payout(&street).await, charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payer_at_the_limit_is_served_on_none_of_its_lanes_until_a_claim_is_through() {
    let limited = net().seller_config(|_, config| {
        config.settlement.poll_interval = POLL;
        config.settlement.claim_at = WEALTH;
        config.limits.exposure_per_payer = Amount::atoms(1);
    });
    let street = limited.start().await.expect("starts");
    let deposit = Amount::atoms(150_000);
    let mut forger = Forger::funded(&street, 1, deposit).await.expect("deposits");
    forger.config.salt.0[31] = 1;
    let opened = forger.fund(&street, deposit).await;
    opened.expect("opens a second lane");
    let ask = |forger: &Forger| {
        let ask = forger.ask(&street, 16).expect("an offer");
        let voucher = Some(forger.voucher(Amount::atoms(1_000)));
        Ask { voucher, ..ask }
    };
    let memory = street.ledgers.memory();
    memory.set_held(true);
    let told = forger.buy(ask(&forger)).await.expect("is told");
    assert!(told.receipt.is_some());
    for lane in [1, 0] {
        forger.config.salt.0[31] = lane;
        let told = forger.buy(ask(&forger)).await.expect("is told");
        let limit = |refusal: &Refusal| matches!(refusal, Refusal::Unavailable(why) if why.contains("limit"));
        assert!(told.refusal.as_ref().is_some_and(limit), "{told:?}");
    }
    // The claim is on its way without anybody's asking.
    memory.set_held(false);
    memory.mine(1);
    claimed(&street).await;
    let told = forger.buy(ask(&forger)).await.expect("is told");
    assert!(told.receipt.is_some(), "{told:?}");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_lost_on_one_channel_stops_no_other() {
    let clock = Clock::manual(START);
    let net = net().buyers(2).clock(clock.clone());
    let mut street = net.start().await.expect("starts");
    fund(&street).await;
    for buyer in &street.buyers {
        buyer.buy(Buyer::chat(16)).await.expect("answers");
    }
    // The seller is away for longer than the delay, and could not claim when it stopped.
    street.ledgers.memory().set_away(true);
    street.sellers[0].stop().await;
    street.ledgers.memory().set_away(false);
    act(&street, ChannelAction::Withdraw).await.expect("begins");
    clock.advance(DAY + POLL);
    act(&street, ChannelAction::Finalize)
        .await
        .expect("is over");
    assert_eq!(wallet(&street).await, WEALTH);
    street.start_seller(0).await.expect("starts");
    street.acquainted().await.expect("meets");
    let heard = street.buyers[1].buy(Buyer::chat(16)).await;
    heard.expect("the other buyer is served");
    let settlement = street.sellers[0].node().settlement();
    settlement.claim().await.expect("claims");
    assert_eq!(payout(&street).await, street.buyers[1].charged());
    street.stop().await;
}
