//! The spend policy: each limit stops spending by its name, and nothing is signed beyond it.

use std::time::Duration;

use farthing_client::client::{Errand, InferError, Request};
use farthing_client::config::Spend;
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_tests::street::{Buyer, Street, TestNet, WEALTH, listen};
use farthing_tests::upstream::Behaviour;

const DAY: Duration = Duration::from_secs(86_400);
const NOON: Timestamp = Timestamp(1_790_000_000_000 / 86_400_000 * 86_400_000 + 43_200_000);

async fn street(sellers: usize, spend: impl Fn(&mut Spend) + Send + Sync + 'static) -> Street {
    let net = TestNet::new()
        .sellers(sellers)
        .upstreams(Behaviour::default().tokens(200))
        .buyer_config(move |_, config| spend(&mut config.spend));
    net.start().await.expect("starts")
}

/// Buys until something stops it; returns what that says.
async fn until_stopped(buyer: &Buyer, request: &Request) -> String {
    for _ in 0..200 {
        match buyer.buy(request.clone()).await {
            Ok(_) => {}
            Err(InferError::SpendLimit(why)) => return why,
            Err(other) => panic!("{other:?}"),
        }
    }
    panic!("nothing stops it");
}

/// All that is signed, on all channels.
fn signed(buyer: &Buyer) -> Amount {
    let accounts = buyer.accounts().into_iter();
    let ceilings = accounts.map(|(_, account)| account.channel.ceiling());
    ceilings.fold(Amount::ZERO, Amount::saturating_add)
}

/// What the sellers could claim.
fn promised(street: &Street) -> Amount {
    let channels = street.sellers.iter().flat_map(|seller| seller.channels());
    let vouchers = channels.filter_map(|(_, view)| view.voucher);
    let ceilings = vouchers.map(|voucher| voucher.message.ceiling);
    ceilings.fold(Amount::ZERO, Amount::saturating_add)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purchase_dearer_than_one_may_be_is_not_asked_for() {
    let street = street(1, |spend| spend.per_purchase = Amount::atoms(20)).await;
    let end = street.buyers[0].buy(Buyer::chat(200)).await;
    let Err(InferError::SpendLimit(why)) = end else {
        panic!("{end:?}");
    };
    assert!(why.contains("per_purchase"), "{why}");
    assert_eq!(street.sellers[0].upstream.count(), 0);
    assert!(street.buyers[0].accounts().is_empty());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_where_the_limit_of_one_purchase_is() {
    let limit = Amount::atoms(90);
    let street = street(1, move |spend| spend.per_purchase = limit).await;
    let mut answer = street.buyers[0]
        .infer(Buyer::stream(200))
        .await
        .expect("begins");
    let (data, end) = listen(&mut answer).await;
    assert!(end.is_err(), "{} events, {end:?}", data.len());
    let charged = street.settled().await.expect("agrees");
    assert!(charged <= limit, "{charged}");
    assert!(!charged.is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_seller_is_paid_no_more_than_its_share_and_the_next_one_goes_on() {
    let limit = Amount::atoms(600);
    let street = street(2, move |spend| spend.per_seller = limit).await;
    let why = until_stopped(&street.buyers[0], &Buyer::chat(200)).await;
    assert!(why.contains("per_seller"), "{why}");
    let accounts = street.buyers[0].accounts();
    assert_eq!(accounts.len(), 2, "both sellers had their share");
    for (_, account) in accounts {
        assert!(account.channel.ceiling() <= limit);
    }
    assert!(promised(&street) <= signed(&street.buyers[0]));
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_has_its_limit_and_so_has_everything_together() {
    let limit = Amount::atoms(700);
    let daily = street(2, move |spend| spend.per_day = limit).await;
    let total = street(2, move |spend| spend.total = limit).await;
    for (street, name) in [(&daily, "per_day"), (&total, "total")] {
        let why = until_stopped(&street.buyers[0], &Buyer::stream(200)).await;
        assert!(why.contains(name), "{why}");
        assert!(signed(&street.buyers[0]) <= limit);
        assert!(promised(street) <= limit);
        street.settled().await.expect("agrees");
    }
    daily.stop().await;
    total.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_day_begins_anew_also_with_the_same_seller() {
    let clock = Clock::manual(NOON);
    let mut street = TestNet::new()
        .upstreams(Behaviour::default().tokens(200))
        .clock(clock.clone())
        .buyer_config(|_, config| config.spend.per_seller = Amount::atoms(600))
        .start()
        .await
        .expect("starts");
    let why = until_stopped(&street.buyers[0], &Buyer::stream(200)).await;
    assert!(why.contains("per_seller"), "{why}");
    // What was promised today is remembered over a restart.
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    let why = until_stopped(&street.buyers[0], &Buyer::stream(200)).await;
    assert!(why.contains("per_seller"), "{why}");
    clock.advance(DAY);
    // The offer of yesterday has expired: the seller makes a new one when it starts.
    street.sellers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    street.acquainted().await.expect("meets");
    let heard = street.buyers[0].buy(Buyer::stream(200)).await;
    assert!(heard.is_ok(), "{heard:?}");
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_purchases_do_not_slip_past_a_limit_together() {
    let limit = Amount::atoms(500);
    let street = street(1, move |spend| spend.total = limit).await;
    let buyer = &street.buyers[0];
    let buying = (0..24).map(|_| buyer.buy(Buyer::stream(200)));
    let ends = futures::future::join_all(buying).await;
    let stopped = ends.iter().filter(|end| end.is_err()).count();
    assert!(stopped > 0);
    for end in ends {
        if let Err(error) = end {
            assert!(matches!(error, InferError::SpendLimit(_)), "{error:?}");
        }
    }
    assert!(signed(buyer) <= limit);
    assert!(promised(&street) <= limit);
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_holds_no_more_than_its_limit() {
    let limit = Amount::atoms(150_000);
    let net = TestNet::new().buyer_config(move |_, config| {
        config.spend.deposit = limit;
        config.spend.max_deposit = limit;
        config.spend.per_purchase = WEALTH;
    });
    let net = net.seller_config(|_, config| {
        config.models[0].max_output = 4_000_000;
        config.models[0].context = 8_000_000;
    });
    let street = net.start().await.expect("starts");
    let buyer = &street.buyers[0];
    buyer.buy(Buyer::chat(16)).await.expect("answers");
    let end = buyer.buy(Buyer::chat(400_000)).await;
    let Err(InferError::SpendLimit(why)) = end else {
        panic!("{end:?}");
    };
    assert!(why.contains("max_deposit"), "{why}");
    let chain = street.ledgers.chain().expect("a chain");
    let (id, _) = buyer.accounts()[0];
    assert_eq!(chain.channel(id).await.expect("answers").balance, limit);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_wallet_is_named_with_its_address_and_a_poor_one_spends_what_it_has() {
    let street = street(1, |spend| {
        spend.deposit = WEALTH.saturating_add(Amount::atoms(1));
        spend.max_deposit = WEALTH.saturating_add(WEALTH);
    })
    .await;
    let buyer = &street.buyers[0];
    // It holds less than the usual deposit: all of it is deposited.
    buyer.buy(Buyer::chat(16)).await.expect("answers");
    let (_, account) = buyer.accounts()[0];
    assert_eq!(account.channel.balance(), WEALTH);
    street.stop().await;

    let poor = TestNet::new().seller_config(|_, config| {
        config.chain.min_deposit = WEALTH.saturating_add(Amount::atoms(1));
    });
    let street = poor
        .buyer_config(|_, config| config.spend.max_deposit = WEALTH.saturating_add(WEALTH))
        .start()
        .await
        .expect("starts");
    let buyer = &street.buyers[0];
    let end = buyer.buy(Buyer::chat(16)).await;
    let Err(InferError::Errand(Errand::EmptyWallet {
        address,
        balance,
        needed,
    })) = end
    else {
        panic!("{end:?}");
    };
    assert_eq!(address, buyer.wallet_keys().payer.address().to_string());
    assert!(balance < needed);
    assert!(buyer.accounts().is_empty());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_model_costs_no_more_than_its_share_also_after_a_restart() {
    let limit = Amount::atoms(600);
    let mut street = street(2, move |spend| {
        spend.per_model = WEALTH;
        spend.models.insert("mock/model".to_owned(), limit);
    })
    .await;
    let why = until_stopped(&street.buyers[0], &Buyer::chat(200)).await;
    assert!(why.contains("per_model"), "{why}");
    let charged = street.settled().await.expect("agrees");
    assert!(charged <= limit, "{charged}");
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    let why = until_stopped(&street.buyers[0], &Buyer::chat(200)).await;
    assert!(why.contains("per_model"), "{why}");
    assert!(street.settled().await.expect("agrees") <= limit);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_purchases_of_one_model_do_not_slip_past_its_limit_together() {
    let limit = Amount::atoms(300);
    let street = street(2, move |spend| spend.per_model = limit).await;
    let buyer = &street.buyers[0];
    let buying = (0..24).map(|_| buyer.buy(Buyer::stream(200)));
    let ends = futures::future::join_all(buying).await;
    assert!(ends.iter().any(Result::is_err));
    assert!(street.settled().await.expect("agrees") <= limit);
    street.stop().await;
}
