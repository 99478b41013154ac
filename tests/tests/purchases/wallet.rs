//! Who may spend what: payers whose keys are elsewhere, purchases that want a person's yes, and
//! channels that are kept filled, emptied and opened again.

use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes};
use farthing_client::client::{Errand, InferError};
use farthing_client::ledger::Standing;
use farthing_client::report::{ActionError, ChannelAction, DepositWish, DraftReport, Word};
use farthing_protocol::amount::Amount;
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::eip712::EvmKey;
use farthing_protocol::testing;
use farthing_protocol::x402::PayerSignature;
use farthing_tests::street::{Buyer, Ledgers, Street, TestNet, WEALTH, eventually};

const WALLET: Address = Address::repeat_byte(0xda);
const NOON: Timestamp = Timestamp(1_790_000_000_000 / 86_400_000 * 86_400_000 + 43_200_000);

/// The owners of the contract wallet, in the order of their addresses.
fn owners() -> [EvmKey; 2] {
    let mut owners = [testing::evm_key(240), testing::evm_key(241)];
    owners.sort_by_key(EvmKey::address);
    owners
}

/// A street whose buyer has no payer key: the payer is a contract of two owners.
async fn with_a_contract(net: TestNet) -> Street {
    let net = net.buyer_config(|_, config| config.wallet.payer = Some(WALLET));
    let street = net.start().await.expect("starts");
    let addresses = owners().iter().map(EvmKey::address).collect();
    match &street.ledgers {
        Ledgers::Memory(memory) => memory.place_wallet(WALLET, addresses),
        Ledgers::Anvil(anvil) => {
            let placed = anvil.place_wallet(WALLET, addresses).await;
            placed.expect("is placed");
        }
    }
    street
}

async fn prepared(street: &Street, amount: Option<Amount>) -> DraftReport {
    let seller = street.sellers[0].id();
    let wish = DepositWish {
        seller,
        amount,
        valid: 3600,
    };
    let draft = street.buyers[0].client().prepare_deposit(wish).await;
    draft.expect("is prepared")
}

fn signed(hash: B256, keys: &[EvmKey]) -> PayerSignature {
    let parts: Vec<_> = keys
        .iter()
        .map(|key| *key.sign_hash(hash).as_bytes())
        .collect();
    PayerSignature::new(Bytes::from(parts.concat())).expect("is short")
}

async fn an_agent_lives_on_a_contract(net: TestNet) {
    let street = with_a_contract(net).await;
    let buyer = &street.buyers[0];
    let Err(InferError::Errand(Errand::Approval(why))) = buyer.buy(Buyer::chat(16)).await else {
        panic!("there is nothing to pay with");
    };
    assert!(why.contains("farthing wallet deposit --prepare"), "{why}");

    let draft = prepared(&street, None).await;
    assert_eq!(draft.payer, WALLET);
    let [low, high] = owners();
    let client = buyer.client();
    for wrong in [vec![low.clone()], vec![high.clone(), low.clone()]] {
        let refused = client
            .import_deposit(draft.id, signed(draft.id, &wrong))
            .await;
        assert!(
            matches!(refused, Err(ActionError::Refused(_))),
            "{refused:?}"
        );
    }
    let good = signed(draft.id, &[low, high]);
    let done = client.import_deposit(draft.id, good.clone()).await;
    let done = done.expect("the owners have signed");
    assert_eq!(done.channel.balance, draft.amount);
    let again = client.import_deposit(draft.id, good).await;
    assert!(matches!(again, Err(ActionError::Unknown(_))), "{again:?}");

    for request in [Buyer::chat(16), Buyer::stream(100)] {
        buyer.buy(request).await.expect("answers");
    }
    let charged = street.settled().await.expect("agrees");
    assert!(!charged.is_zero());
    let refund = client.channel(done.channel.id, ChannelAction::Refund).await;
    assert!(refund.is_ok(), "{refund:?}");
    let chain = street.ledgers.chain().expect("a chain");
    let rest = chain.token_balance(WALLET).await.expect("answers");
    assert_eq!(
        rest.saturating_add(charged),
        WEALTH,
        "the rest is the contract's"
    );
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_wallet_funds_an_agent_which_buys() {
    an_agent_lives_on_a_contract(TestNet::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contract_wallet_funds_an_agent_which_buys_on_anvil() {
    an_agent_lives_on_a_contract(TestNet::new().anvil()).await;
}

/// Anvil's own wallet stands for a hardware one: it gets the typed data and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_wallet_signs_the_typed_data_on_anvil() {
    let owner: Address = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
        .parse()
        .expect("an address");
    let net = TestNet::new().anvil();
    let net = net.buyer_config(move |_, config| config.wallet.payer = Some(owner));
    let street = net.start().await.expect("starts");
    let draft = prepared(&street, Some(Amount::atoms(500_000))).await;
    let Ledgers::Anvil(anvil) = &street.ledgers else {
        panic!("this street stands on anvil");
    };
    let ask = serde_json::json!({
        "jsonrpc": "2.0", "id": 1, "method": "eth_signTypedData_v4",
        "params": [owner, draft.typed_data],
    });
    let http = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let reply = http
        .post(anvil.url())
        .json(&ask)
        .send()
        .await
        .expect("answers");
    let reply: serde_json::Value = reply.json().await.expect("JSON");
    let signature: PayerSignature =
        serde_json::from_value(reply["result"].clone()).expect("a signature");
    let buyer = &street.buyers[0];
    let done = buyer.client().import_deposit(draft.id, signature).await;
    assert_eq!(done.expect("is taken").channel.balance, draft.amount);
    buyer.buy(Buyer::stream(50)).await.expect("answers");
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_payer_elsewhere_has_signed_survives_a_restart_and_pays_the_next_purchase() {
    let mut street = with_a_contract(TestNet::new()).await;
    let draft = prepared(&street, None).await;
    street.sellers[0].stop().await;
    street.buyers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    street.start_buyer(0).await.expect("starts");
    // The seller is away when the signature comes: it is kept.
    street.sellers[0].stop().await;
    let good = signed(draft.id, &owners());
    let imported = street.buyers[0]
        .client()
        .import_deposit(draft.id, good)
        .await;
    assert!(imported.is_err(), "{imported:?}");
    street.start_seller(0).await.expect("starts");
    street.acquainted().await.expect("meets");
    let heard = street.buyers[0].buy(Buyer::chat(16)).await;
    assert!(heard.is_ok(), "{heard:?}");
    street.stop().await;
}

/// Everything over 50 atoms wants a yes.
async fn careful() -> Street {
    let net = TestNet::new();
    let net = net.buyer_config(|_, config| {
        config.spend.approve_above = Some(Amount::atoms(50));
    });
    net.start().await.expect("starts")
}

async fn wants_a_yes(street: &Street) -> bool {
    match street.buyers[0].buy(Buyer::chat(500)).await {
        Ok(_) => false,
        Err(InferError::Errand(Errand::Approval(why))) => {
            assert!(why.contains("farthing wallet approve"), "{why}");
            true
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// A person's word on the one purchase that waits.
async fn say(street: &Street, word: Word) {
    let client = street.buyers[0].client();
    let waiting = client.approvals();
    assert_eq!(waiting.len(), 1);
    let id = waiting[0].id.to_string();
    client
        .approve(&id[..10], word)
        .await
        .expect("is waited for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dear_purchase_waits_for_a_yes_which_counts_once() {
    let mut street = careful().await;
    street.buyers[0]
        .buy(Buyer::chat(1))
        .await
        .expect("is cheap");
    assert!(wants_a_yes(&street).await);
    assert!(wants_a_yes(&street).await, "nobody has said anything");
    say(&street, Word::Granted).await;
    // The word is remembered over a restart, and so is its use.
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    assert!(!wants_a_yes(&street).await);
    street.buyers[0].stop().await;
    street.start_buyer(0).await.expect("starts");
    assert!(wants_a_yes(&street).await);
    say(&street, Word::Denied).await;
    let denied = street.buyers[0].buy(Buyer::chat(500)).await;
    let Err(InferError::Errand(Errand::Approval(why))) = denied else {
        panic!("{denied:?}");
    };
    assert!(why.contains("denied"), "{why}");
    let stranger = street.buyers[0]
        .client()
        .approve("0xdeadbeef00", Word::Granted);
    assert!(stranger.await.is_err());
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_yes_lets_one_of_many_racing_purchases_pass() {
    let street = careful().await;
    assert!(wants_a_yes(&street).await);
    say(&street, Word::Granted).await;
    let racing = (0..8).map(|_| wants_a_yes(&street));
    let ends = futures::future::join_all(racing).await;
    assert_eq!(ends.into_iter().filter(|waits| !waits).count(), 1);
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_runs_low_is_topped_up_before_it_is_empty_and_never_over_its_limit() {
    let (deposit, limit) = (Amount::atoms(400), Amount::atoms(500));
    let net = TestNet::new()
        .seller_config(|_, config| config.chain.min_deposit = Amount::atoms(1))
        .buyer_config(move |_, config| {
            config.spend.deposit = deposit;
            config.spend.max_deposit = limit;
            config.spend.top_up_below = Amount::atoms(390);
        });
    let street = net.start().await.expect("starts");
    let buyer = &street.buyers[0];
    let holds = || buyer.accounts()[0].1.channel;
    for _ in 0..60 {
        buyer.buy(Buyer::chat(100)).await.expect("answers");
        let channel = holds();
        let unspent = channel.balance().saturating_sub(channel.charged());
        assert!(unspent <= limit, "{unspent}");
        // What a purchase needs is never all there is: nobody had to wait for a deposit.
        assert!(unspent >= Amount::atoms(40), "{unspent}");
        if channel.charged() < deposit {
            continue;
        }
        eventually("it is topped up", || holds().balance() > deposit)
            .await
            .expect("is topped up");
    }
    assert!(
        holds().charged() > deposit,
        "more was spent than the first deposit"
    );
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_is_completed_when_it_is_due_and_the_drained_channel_opens_again() {
    let clock = Clock::manual(NOON);
    let net = TestNet::new().clock(clock.clone());
    let net = net.seller_config(|_, config| config.chain.withdraw_delay = Duration::from_secs(900));
    let mut street = net.start().await.expect("starts");
    let key = street.buyers[0].wallet_keys().authorizer.address();
    street.ledgers.fund(key).await.expect("funds");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    street.settled().await.expect("agrees");
    let (id, _) = street.buyers[0].accounts()[0];
    let client = street.buyers[0].client().clone();
    let begun = client.channel(id, ChannelAction::Withdraw).await;
    begun.expect("begins");
    // While it runs out, another lane pays.
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    assert_eq!(street.buyers[0].accounts().len(), 2);
    clock.advance(Duration::from_secs(901));
    eventually("the withdrawal is completed", || {
        let accounts = street.buyers[0].accounts();
        let account = accounts.iter().find(|(known, _)| *known == id);
        account.is_some_and(|(_, account)| account.channel.armed().is_zero())
    })
    .await
    .expect("is completed");
    let chain = street.ledgers.chain().expect("a chain");
    let left = chain.channel(id).await.expect("answers");
    assert_eq!(
        left.balance, left.claimed,
        "all but what was earned is back"
    );
    street.sellers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    street.acquainted().await.expect("meets");
    let accounts = street.buyers[0].accounts();
    let other = accounts.iter().find(|(known, _)| *known != id);
    let other = other.expect("the other lane").0;
    let refund = client.channel(other, ChannelAction::Refund).await;
    refund.expect("sends the rest back");
    // Both are drained: one of them is filled again, and no third is opened.
    let bought = street.buyers[0].buy(Buyer::chat(16)).await;
    bought.expect("answers");
    let mut held = Amount::ZERO;
    for lane in [id, other] {
        let seen = chain.channel(lane).await.expect("answers");
        held = held.saturating_add(seen.balance.saturating_sub(seen.claimed));
    }
    assert!(held >= Amount::atoms(900_000), "{held}");
    assert_eq!(street.buyers[0].accounts().len(), 2);
    street.settled().await.expect("agrees");
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_machines_with_the_same_keys_sign_on_channels_of_their_own() {
    let mut street = TestNet::new().start().await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let (first, _) = street.buyers[0].accounts()[0];
    street.settled().await.expect("agrees");
    street.buyers[0].stop().await;
    street.buyers[0].lose_disk().expect("is lost");
    street.buyers[0].config.wallet.instance = 1;
    street.start_buyer(0).await.expect("starts");
    street.buyers[0]
        .buy(Buyer::chat(16))
        .await
        .expect("answers");
    let accounts = street.buyers[0].accounts();
    assert_eq!(accounts.len(), 1);
    assert_ne!(accounts[0].0, first);
    assert_eq!(street.sellers[0].channels().len(), 2);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_waits_to_be_signed_elsewhere_counts_against_max_deposit() {
    let street = with_a_contract(TestNet::new()).await;
    let most = street.buyers[0].config.spend.max_deposit;
    let large = Amount::atoms(most.get() / 5 * 3);
    prepared(&street, Some(large)).await;
    let wish = DepositWish {
        seller: street.sellers[0].id(),
        amount: Some(large),
        valid: 3600,
    };
    let second = street.buyers[0].client().prepare_deposit(wish).await;
    let Err(ActionError::Refused(why)) = second else {
        panic!("{second:?}");
    };
    assert!(why.contains("max_deposit"), "{why}");
    prepared(&street, Some(most.saturating_sub(large))).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_deposit_that_was_mined_unheard_counts_against_max_deposit() {
    let street = with_a_contract(TestNet::new()).await;
    let most = street.buyers[0].config.spend.max_deposit;
    let large = Amount::atoms(most.get() / 5 * 3);
    let draft = prepared(&street, Some(large)).await;
    let (memory, seller) = (street.ledgers.memory(), &street.sellers[0]);
    memory.set_held(true);
    let good = signed(draft.id, &owners());
    let client = street.buyers[0].client();
    tokio::select! {
        done = client.import_deposit(draft.id, good) => panic!("it is not mined: {done:?}"),
        sent = eventually("it is on its way", || !seller.channels().is_empty()) => {
            sent.expect("is sent");
        }
    }
    // Whoever waited for it is gone.
    memory.set_held(false);
    memory.mine(1);
    let chain = street.ledgers.chain().expect("a chain");
    let mined = async {
        while chain.channel(draft.channel).await.expect("answers").balance != large {
            tokio::task::yield_now().await;
        }
    };
    let mined = tokio::time::timeout(Duration::from_secs(60), mined).await;
    mined.expect("is mined");
    let wish = DepositWish {
        seller: seller.id(),
        amount: Some(large),
        valid: 3600,
    };
    for _ in 0..2 {
        let second = client.prepare_deposit(wish).await;
        let Err(ActionError::Refused(why)) = second else {
            panic!("{second:?}");
        };
        assert!(why.contains("max_deposit"), "{why}");
    }
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_lane_whose_seller_lost_its_books_stays_left_after_its_money_is_back() {
    let clock = Clock::manual(NOON);
    let net = TestNet::new().clock(clock.clone());
    let net = net.seller_config(|_, config| config.chain.withdraw_delay = Duration::from_secs(900));
    let mut street = net.start().await.expect("starts");
    let key = street.buyers[0].wallet_keys().authorizer.address();
    street.ledgers.fund(key).await.expect("funds");
    buy_one(&street).await;
    street.settled().await.expect("agrees");
    let (id, _) = street.buyers[0].accounts()[0];
    // The seller is set back to an older copy of its books.
    street.sellers[0].stop().await;
    let books = street.sellers[0].config.data_dir.clone();
    let copy = books.with_extension("old");
    copy_dir(&books, &copy);
    street.start_seller(0).await.expect("starts");
    street.acquainted().await.expect("meets");
    buy_one(&street).await;
    street.settled().await.expect("agrees");
    street.sellers[0].stop().await;
    std::fs::remove_dir_all(&books).expect("is gone");
    copy_dir(&copy, &books);
    street.buyers[0].stop().await;
    street.start_seller(0).await.expect("starts");
    street.start_buyer(0).await.expect("starts");
    buy_one(&street).await;
    assert_eq!(street.buyers[0].accounts().len(), 2, "on the next lane");
    let ledger = street.buyers[0].ledger();
    let account = |id| ledger.account(id).expect("known");
    assert_eq!(account(id).standing, Standing::Left);
    // Such a lane stays left also where the rest must be withdrawn by the contract's clock.
    let mut lanes = street.buyers[0].accounts().into_iter();
    let (other, _) = lanes.find(|(lane, _)| *lane != id).expect("the next lane");
    let leave = ledger.update(other, |account| {
        account.standing = Standing::Left;
        Ok(())
    });
    leave.await.expect("is left");
    let client = street.buyers[0].client().clone();
    let begun = client.channel(other, ChannelAction::Withdraw).await;
    begun.expect("begins");
    clock.advance(Duration::from_secs(901));
    eventually("the withdrawal is completed", || {
        account(other).channel.armed().is_zero()
    })
    .await
    .expect("is completed");
    assert_eq!(account(id).standing, Standing::Left);
    assert_eq!(account(other).standing, Standing::Left);
    street.stop().await;
}

async fn buy_one(street: &Street) {
    let bought = street.buyers[0].buy(Buyer::chat(16)).await;
    bought.expect("answers");
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("is made");
    for entry in std::fs::read_dir(from).expect("is read") {
        let entry = entry.expect("is read");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("is known").is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).expect("is copied");
        }
    }
}
