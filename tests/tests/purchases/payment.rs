//! A buyer made by hand tries everything that would make a seller work for nothing.

use std::time::Duration;

use alloy::primitives::{Address, B256, U256, hex};
use farthing_protocol::amount::Amount;
use farthing_protocol::eip712::EvmSignature;
use farthing_protocol::frame::{Answer, Call, CallRefusal, ToBuyer, ToSeller};
use farthing_protocol::net::Protocol;
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ask, Ending, Mode, Refusal, VoucherFault};
use farthing_protocol::testing;
use farthing_protocol::voucher::SignedVoucher;
use farthing_protocol::x402::{ChannelConfig, ChannelId, Deposit, DepositTerms};
use farthing_tests::street::{Buyer, Forger, Street, Talk, TestNet, Told, eventually};
use farthing_tests::upstream::Behaviour;
use tokio::io::AsyncWriteExt;

const RICH: Amount = Amount::atoms(1_000_000);
const SHORT: Duration = Duration::from_millis(300);
const PACE: Duration = Duration::from_millis(2);

async fn street() -> Street {
    let net = TestNet::new().upstreams(Behaviour::default().tokens(500));
    let net = net.seller_config(|_, config| config.limits.unpaid_wait = SHORT);
    net.start().await.expect("starts")
}

async fn forger(street: &Street) -> Forger {
    Forger::funded(street, 1, RICH).await.expect("deposits")
}

fn ask(forger: &Forger, street: &Street, voucher: Option<SignedVoucher>) -> Ask {
    let ask = forger.ask(street, 500).expect("an offer");
    Ask { voucher, ..ask }
}

/// What the seller has charged on the forger's channel.
fn charged(street: &Street, forger: &Forger) -> Amount {
    let view = street.sellers[0].node().ledger().channel(forger.id());
    view.map(|view| view.channel.charged()).unwrap_or_default()
}

/// After all that, an honest purchase works and the seller holds nothing for anybody.
async fn still_healthy(street: Street) {
    let heard = street.buyers[0].buy(Buyer::stream(100)).await;
    let heard = heard.expect("an honest buyer is served");
    assert_eq!(heard.bill.receipt.receipt.usage.completion, 100);
    let ledger = street.sellers[0].node().ledger();
    eventually("nothing runs", || {
        let idle =
            |(_, view): &(_, farthing_node::ledger::ChannelView)| view.channel.reserved().is_zero();
        ledger.running() == 0 && ledger.channels().iter().all(idle)
    })
    .await
    .expect("idle");
    street.stop().await;
}

fn refused(told: &Told) -> &Refusal {
    assert_eq!(told.chunks, 0);
    assert_eq!(told.receipt, None);
    told.refusal.as_ref().expect("a refusal")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unpaid_tail_is_not_delivered() {
    let street = street().await;
    let slow = Behaviour::default().tokens(500).pace(PACE);
    street.sellers[0].upstream.behave(slow);
    let forger = forger(&street).await;
    let mut ask = ask(&forger, &street, None);
    let opening = Forger::opening(&street, &ask).expect("an amount");
    ask.voucher = Some(forger.voucher(opening));
    let told = forger.buy(ask).await.expect("is told");
    assert!(!told.needed.is_empty());
    assert!(told.needed.iter().all(|needed| *needed > opening));
    let receipt = told.receipt.expect("a receipt");
    assert_eq!(receipt.ending, Ending::Unpaid);
    assert!((1..500).contains(&receipt.usage.completion));
    assert_eq!(
        told.chunks,
        receipt.usage.completion as usize + 1,
        "and the role"
    );
    assert!(receipt.charged <= opening);
    assert_eq!(charged(&street, &forger), receipt.charged);
    street.sellers[0].upstream.disconnected(1).await;
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyer_that_hangs_up_while_its_seller_waits_for_a_voucher_pays_what_it_got() {
    let street = street().await;
    let forger = forger(&street).await;
    let mut ask = ask(&forger, &street, None);
    let opening = Forger::opening(&street, &ask).expect("an amount");
    ask.voucher = Some(forger.voucher(opening));
    let mut talk = forger
        .say(&ToSeller::Ask(Box::new(ask)))
        .await
        .expect("asks");
    let mut chunks = 0;
    loop {
        match talk.next().await.expect("hears").expect("a word") {
            ToBuyer::Chunk { .. } => chunks += 1,
            ToBuyer::NeedVoucher { .. } => break,
            _ => {}
        }
    }
    drop(talk);
    let ledger = street.sellers[0].node().ledger();
    eventually("it is over", || ledger.running() == 0)
        .await
        .expect("is over");
    let receipt = &ledger.receipts(forger.id(), 0, 1).expect("reads")[0];
    assert_eq!(receipt.usage.completion + 1, chunks);
    assert!(receipt.charged <= opening);
    still_healthy(street).await;
}

/// The same signature in the form the contract rejects.
fn high_s(voucher: SignedVoucher) -> SignedVoucher {
    let order = U256::from_be_bytes(hex!(
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
    ));
    let mut bytes = *voucher.signature.as_bytes();
    let s = U256::from_be_slice(&bytes[32..64]);
    bytes[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
    bytes[64] = 55 - bytes[64];
    let signature = EvmSignature::from_bytes(bytes);
    SignedVoucher {
        signature,
        ..voucher
    }
}

fn odd_v(voucher: SignedVoucher) -> SignedVoucher {
    let mut bytes = *voucher.signature.as_bytes();
    bytes[64] -= 27;
    let signature = EvmSignature::from_bytes(bytes);
    SignedVoucher {
        signature,
        ..voucher
    }
}

/// Vouchers that must not be worked against, with their names.
fn bad_vouchers(forger: &Forger) -> Vec<(SignedVoucher, VoucherFault)> {
    let ceiling = Amount::atoms(5_000);
    let good = forger.voucher(ceiling);
    let other = ChannelId(B256::repeat_byte(7));
    let mut raised = good;
    raised.message.ceiling = Amount::atoms(6_000);
    let over = VoucherFault::OverDeposit { available: RICH };
    let by = |key, channel| forger.voucher_by(key, channel, ceiling);
    vec![
        (by(&testing::evm_key(9), forger.id()), VoucherFault::Foreign),
        (by(&forger.payer, forger.id()), VoucherFault::Foreign),
        (raised, VoucherFault::Foreign),
        (by(&forger.authorizer, other), VoucherFault::OtherChannel),
        (high_s(good), VoucherFault::NotCanonical),
        (odd_v(good), VoucherFault::NotCanonical),
        (forger.voucher(RICH.saturating_add(Amount::atoms(1))), over),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_that_could_not_be_claimed_is_refused_by_name_before_any_work() {
    let street = street().await;
    let forger = forger(&street).await;
    for (voucher, fault) in bad_vouchers(&forger) {
        let told = forger.buy(ask(&forger, &street, Some(voucher))).await;
        assert_eq!(refused(&told.expect("is told")), &Refusal::Voucher(fault));
    }
    assert_eq!(street.sellers[0].upstream.count(), 0);
    assert_eq!(charged(&street, &forger), Amount::ZERO);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_voucher_in_the_middle_ends_the_stream_and_only_what_was_covered_is_charged() {
    let street = street().await;
    let forger = forger(&street).await;
    let first = forger.voucher(Amount::atoms(100));
    for (voucher, fault) in bad_vouchers(&forger) {
        let ask = ask(&forger, &street, Some(first));
        let before = charged(&street, &forger);
        let mut talk = forger
            .say(&ToSeller::Ask(Box::new(ask)))
            .await
            .expect("asks");
        talk.say(&ToSeller::Pay(voucher)).await.expect("pays");
        let told = talk.rest().await.expect("is told");
        let after = charged(&street, &forger);
        match &told.receipt {
            Some(receipt) => {
                assert_eq!(receipt.ending, Ending::Unpaid, "{fault}");
                assert_eq!(before.saturating_add(receipt.charged), after, "{fault}");
            }
            // It came before the first chunk, or nothing was left of the first voucher.
            None => {
                assert!(told.refusal.is_some(), "{fault}: {told:?}");
                assert_eq!(before, after, "{fault}");
            }
        }
        assert!(after <= Amount::atoms(100), "{fault}");
    }
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_voucher_is_harmless_but_its_signature_is_checked_all_the_same() {
    let street = street().await;
    let forger = forger(&street).await;
    let high = forger.voucher(Amount::atoms(2_000));
    let told = forger.buy(ask(&forger, &street, Some(high))).await;
    assert!(told.expect("is told").receipt.is_some());
    let low = forger.voucher(Amount::atoms(900));
    let told = forger.buy(ask(&forger, &street, Some(low))).await;
    assert!(told.expect("is told").receipt.is_some());
    let ceiling = |id| {
        let view = street.sellers[0].node().ledger().channel(id);
        view.expect("known").channel.ceiling()
    };
    assert_eq!(ceiling(forger.id()), Amount::atoms(2_000));
    let forged = forger.voucher_by(&testing::evm_key(9), forger.id(), Amount::atoms(900));
    let told = forger.buy(ask(&forger, &street, Some(forged))).await;
    let expected = Refusal::Voucher(VoucherFault::Foreign);
    assert_eq!(refused(&told.expect("is told")), &expected);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_is_served_once_however_often_it_comes() {
    let street = street().await;
    let forger = forger(&street).await;
    let ask = ask(&forger, &street, Some(forger.voucher(Amount::atoms(9_000))));
    let asking = (0..6).map(|_| forger.buy(ask.clone()));
    let told = futures::future::join_all(asking).await;
    let told: Vec<_> = told
        .into_iter()
        .map(|told| told.expect("is told"))
        .collect();
    let served: Vec<_> = told.iter().filter_map(|t| t.receipt.as_ref()).collect();
    assert_eq!(served.len(), 1);
    let others = told.iter().filter(|told| told.receipt.is_none());
    for other in others {
        assert_eq!(refused(other), &Refusal::Duplicate);
    }
    let again = forger.buy(ask).await.expect("is told");
    assert_eq!(refused(&again), &Refusal::Duplicate);
    assert_eq!(charged(&street, &forger), served[0].charged);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ask_that_does_not_hold_together_is_refused_by_name() {
    let street = street().await;
    let forger = forger(&street).await;
    let good = || ask(&forger, &street, Some(forger.voucher(Amount::atoms(5_000))));
    let opening = Forger::opening(&street, &good()).expect("an amount");
    let nowhere = ChannelId(B256::repeat_byte(1));
    let asks = [
        (
            Ask {
                channel: nowhere,
                ..good()
            },
            Refusal::NoChannel,
        ),
        (
            Ask {
                offer: OfferHash(B256::repeat_byte(1)),
                ..good()
            },
            Refusal::StaleOffer,
        ),
        (
            Ask {
                model: "no/such".into(),
                ..good()
            },
            Refusal::UnknownModel,
        ),
        (
            Ask {
                max_cost: Amount::atoms(1),
                ..good()
            },
            Refusal::CostCeiling { needed: opening },
        ),
    ];
    for (ask, expected) in asks {
        let told = forger.buy(ask).await.expect("is told");
        assert_eq!(refused(&told), &expected);
    }
    for ask in [
        Ask {
            mode: Mode::Plain,
            ..good()
        },
        Ask {
            body: "{".into(),
            ..good()
        },
        Ask {
            body: "[]".into(),
            ..good()
        },
    ] {
        let told = forger.buy(ask).await.expect("is told");
        assert!(matches!(refused(&told), Refusal::BadRequest(_)), "{told:?}");
    }
    let large = Ask {
        body: vec![b' '; 5 * 1024 * 1024].into(),
        ..good()
    };
    let told = forger.buy(large).await.expect("is told");
    assert!(matches!(refused(&told), Refusal::TooLarge { .. }));
    assert_eq!(charged(&street, &forger), Amount::ZERO);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_for_one_seller_is_worth_nothing_to_another() {
    let net = TestNet::new()
        .sellers(2)
        .upstreams(Behaviour::default().tokens(500));
    let street = net.start().await.expect("starts");
    let forger = forger(&street).await;
    let ceiling = Amount::atoms(5_000);
    // The same keys and terms, but the other seller's addresses in them.
    let terms = street.sellers[1].node().terms().clone();
    let elsewhere = ChannelConfig {
        receiver: terms.payout,
        receiver_authorizer: terms.claim,
        ..forger.config
    };
    let elsewhere = elsewhere.id(&street.network);
    assert_ne!(elsewhere, forger.id());
    let foreign = forger.voucher_by(&forger.authorizer, elsewhere, ceiling);
    let told = forger.buy(ask(&forger, &street, Some(foreign))).await;
    let expected = Refusal::Voucher(VoucherFault::OtherChannel);
    assert_eq!(refused(&told.expect("is told")), &expected);
    // And the one that was good there, with this channel's name on it.
    let mut renamed = foreign;
    renamed.message.channel = forger.id();
    let told = forger.buy(ask(&forger, &street, Some(renamed))).await;
    let expected = Refusal::Voucher(VoucherFault::Foreign);
    assert_eq!(refused(&told.expect("is told")), &expected);
    assert_eq!(charged(&street, &forger), Amount::ZERO);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_buyer_cannot_take_every_slot() {
    let pace = Duration::from_millis(5);
    let net = TestNet::new().upstreams(Behaviour::default().tokens(500).pace(pace));
    let net = net.seller_config(|_, config| {
        config.limits.purchases_per_buyer = 2;
        config.models[0].slots = 8;
    });
    let street = net.start().await.expect("starts");
    let greedy = forger(&street).await;
    let ceiling = Amount::atoms(50_000);
    let mut running = Vec::new();
    for _ in 0..2 {
        let ask = ask(&greedy, &street, Some(greedy.voucher(ceiling)));
        let word = ToSeller::Ask(Box::new(ask));
        let mut talk = greedy.say(&word).await.expect("asks");
        let first = talk.next().await.expect("hears").expect("a word");
        assert!(matches!(first, ToBuyer::Accepted { .. }), "{first:?}");
        running.push(talk);
    }
    for _ in 0..4 {
        let told = greedy.buy(ask(&greedy, &street, Some(greedy.voucher(ceiling))));
        let told = told.await.expect("is told");
        assert!(matches!(refused(&told), Refusal::Busy { .. }), "{told:?}");
    }
    // Six slots are left for everybody else.
    let heard = street.buyers[0].buy(Buyer::stream(16)).await;
    heard.expect("another buyer is served");
    drop(running);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_cannot_spend_what_is_left_on_a_channel_that_is_not_its_own() {
    let street = street().await;
    let victim = forger(&street).await;
    let voucher = victim.voucher(Amount::atoms(50_000));
    let told = victim.buy(ask(&victim, &street, Some(voucher))).await;
    let paid = told.expect("is told").receipt.expect("a receipt").charged;
    let thief = Forger::new(&street, 2).await.expect("joins");
    // The channel's name and, once claimed, its voucher are on the chain for all to read.
    for voucher in [None, Some(voucher)] {
        let told = thief.buy(ask(&victim, &street, voucher)).await;
        let expected = Refusal::Voucher(VoucherFault::Unproven);
        assert_eq!(refused(&told.expect("is told")), &expected);
    }
    assert_eq!(charged(&street, &victim), paid);
    let told = victim.buy(ask(&victim, &street, None)).await;
    assert!(told.expect("is told").receipt.is_some());
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_learns_and_moves_nothing() {
    let street = street().await;
    let victim = forger(&street).await;
    let (channel, config) = (victim.id(), victim.config);
    let strangers = [
        victim.voucher_by(&testing::evm_key(9), channel, Amount::ZERO),
        victim.voucher_by(&victim.payer, channel, Amount::ZERO),
        victim.voucher_by(&victim.authorizer, ChannelId(B256::ZERO), Amount::ZERO),
        odd_v(victim.voucher(Amount::ZERO)),
        // Real vouchers are on the chain for all to read.
        victim.voucher(Amount::atoms(5)),
    ];
    for proof in strangers {
        for call in [
            Call::Channel { config, proof },
            Call::Receipts {
                channel,
                proof,
                from: 0,
            },
            Call::Refund { channel, proof },
        ] {
            let answer = victim.call(&call).await.expect("answers");
            assert_eq!(answer, Answer::Refused(CallRefusal::Proof));
        }
    }
    let mut empty = config;
    empty.salt = B256::repeat_byte(1);
    let nowhere = empty.id(&victim.network);
    let by = |key| victim.voucher_by(key, nowhere, Amount::ZERO);
    let mut foreign = empty;
    foreign.receiver = Address::repeat_byte(9);
    let elsewhere = foreign.id(&victim.network);
    let there = victim.voucher_by(&victim.authorizer, elsewhere, Amount::ZERO);
    let asked = [
        (empty, by(&victim.authorizer), CallRefusal::NoChannel),
        // The chain is not asked for whoever has no key.
        (empty, by(&victim.payer), CallRefusal::Proof),
        (foreign, there, CallRefusal::Terms("receiver".to_owned())),
    ];
    for (config, proof, refusal) in asked {
        let call = Call::Channel { config, proof };
        let answer = victim.call(&call).await.expect("answers");
        assert_eq!(answer, Answer::Refused(refusal));
    }
    assert_eq!(street.sellers[0].channels().len(), 1);
    let proof = victim.voucher(Amount::ZERO);
    let answer = victim.call(&Call::Channel { config, proof }).await;
    let Answer::Channel(statement) = answer.expect("answers") else {
        panic!("the owner is told");
    };
    assert_eq!(statement.balance, RICH);
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_that_is_not_what_the_offer_states_is_refused_and_leaves_no_trace() {
    let street = street().await;
    let mut forger = Forger::new(&street, 1).await.expect("joins");
    let good = forger.config;
    let zero = Address::ZERO;
    let wrong = Address::repeat_byte(9);
    let configs = [
        ("receiver", {
            let mut c = good;
            c.receiver = wrong;
            c
        }),
        ("receiverAuthorizer", {
            let mut c = good;
            c.receiver_authorizer = wrong;
            c
        }),
        ("token", {
            let mut c = good;
            c.token = wrong;
            c
        }),
        ("withdrawDelay", {
            let mut c = good;
            c.withdraw_delay = 900;
            c
        }),
        ("payerAuthorizer", {
            let mut c = good;
            c.payer_authorizer = zero;
            c
        }),
    ];
    let terms = DepositTerms {
        amount: RICH,
        valid_before: street.clock.now().plus(Duration::from_secs(600)),
        salt: B256::ZERO,
    };
    for (what, config) in configs {
        forger.config = config;
        let deposit = forger.deposit(terms);
        let answer = forger.call(&Call::Deposit { config, deposit }).await;
        let expected = Answer::Refused(CallRefusal::Terms(what.to_owned()));
        assert_eq!(answer.expect("answers"), expected);
    }
    forger.config = good;
    let soon = street.clock.now().plus(Duration::from_secs(5));
    let small = DepositTerms {
        amount: Amount::atoms(10),
        ..terms
    };
    let late = DepositTerms {
        valid_before: soon,
        ..terms
    };
    let huge = DepositTerms {
        amount: Amount::atoms(u128::MAX),
        ..terms
    };
    let forged = Deposit::sign(&good, terms, &street.network, &testing::evm_key(9));
    let deposits = [
        ("at least", forger.deposit(small)),
        ("ends too soon", forger.deposit(late)),
        ("did not sign", forged),
        ("ERC20InsufficientBalance", forger.deposit(huge)),
    ];
    for (why, deposit) in deposits {
        let call = Call::Deposit {
            config: good,
            deposit,
        };
        let answer = forger.call(&call).await.expect("answers");
        let Answer::Refused(CallRefusal::Deposit(reason)) = answer else {
            panic!("{why}: {answer:?}");
        };
        assert!(reason.contains(why), "{why}: {reason}");
    }
    assert!(street.sellers[0].channels().is_empty());
    still_healthy(street).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_is_refused_and_silence_keeps_nobody_waiting() {
    let street = street().await;
    let forger = forger(&street).await;
    let mut silent = Vec::new();
    for protocol in [Protocol::Purchase, Protocol::Call].repeat(20) {
        silent.push(forger.stream(protocol).await.expect("opens"));
    }
    let told = |bytes: Vec<u8>| {
        let forger = &forger;
        async move {
            let mut stream = forger.stream(Protocol::Purchase).await.expect("opens");
            stream.write_all(&bytes).await.expect("writes");
            stream.flush().await.expect("writes");
            Talk::over(stream).rest().await.expect("is told")
        }
    };
    let garbage = [&16_u32.to_be_bytes()[..], &[0xee; 16]].concat();
    let told_garbage = told(garbage).await;
    assert!(matches!(refused(&told_garbage), Refusal::BadRequest(_)));
    let endless = [&u32::MAX.to_be_bytes()[..], &[1; 64]].concat();
    assert!(matches!(
        refused(&told(endless).await),
        Refusal::TooLarge { .. }
    ));
    let pay = ToSeller::Pay(forger.voucher(Amount::atoms(5)));
    let mut talk = forger.say(&pay).await.expect("says");
    let talked = talk.rest().await.expect("is told");
    assert!(matches!(refused(&talked), Refusal::BadRequest(_)));
    let mut call = forger.stream(Protocol::Call).await.expect("opens");
    call.write_all(&u32::MAX.to_be_bytes())
        .await
        .expect("writes");
    call.flush().await.expect("writes");
    assert_eq!(charged(&street, &forger), Amount::ZERO);
    let heard = street.buyers[0].buy(Buyer::stream(100)).await;
    assert!(heard.is_ok(), "{heard:?}");
    drop((silent, call));
    still_healthy(street).await;
}
