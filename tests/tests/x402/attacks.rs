//! What a hostile client may try at the seller's HTTP door, each by its name.

use alloy::primitives::{Address, B256, Bytes, U256};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::Write;
use farthing_protocol::payment::{
    Batch, BatchVoucher, PAYMENT_SIGNATURE, PaymentPayload, PaymentRequirements, Reason,
    WireConfig, WireVoucher, encode, header, scheme,
};
use farthing_protocol::testing;
use farthing_protocol::x402::{ChannelConfig, Network};
use farthing_tests::street::{Agent, Reply, Street, TestNet, eventually};
use farthing_tests::upstream::{Behaviour, Fault};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn street() -> Street {
    let net = TestNet::new().buyers(0).http();
    net.start().await.expect("starts")
}

/// An agent with an open channel and something charged on it.
async fn opened(street: &Street) -> Agent {
    let agent = Agent::new(street, &street.sellers[0], 1).await;
    let mut agent = agent.expect("has money");
    let first = agent.buy(&question()).await.expect("answers");
    assert_eq!(first.status, 200, "{}", first.text());
    agent
}

fn question() -> Value {
    Agent::plain("a question", 50)
}

async fn sold(street: &Street) -> Amount {
    let ledger = street.sellers[0].node().ledger();
    let quiet = eventually("the sales have ended", || ledger.running() == 0);
    quiet.await.expect("they end");
    street.sold()
}

async fn told(agent: &Agent, payment: &PaymentPayload) -> Reply {
    let reply = agent.ask(&question(), Some(payment)).await;
    reply.expect("answers")
}

/// A voucher payment over any terms, with any bytes for a signature.
fn forged(
    agent: &Agent,
    way: &PaymentRequirements,
    config: ChannelConfig,
    change: impl Fn(&mut WireVoucher),
) -> PaymentPayload {
    let ceiling = agent.charged.saturating_add(way.amount);
    let mut voucher = WireVoucher::from(&agent.sign(&config, ceiling));
    change(&mut voucher);
    let payment = BatchVoucher {
        channel_config: WireConfig(config),
        voucher,
    };
    agent.payload(way, &Batch::Voucher(payment))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_of_another_chain_or_contract_is_worth_nothing_at_the_door() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    for elsewhere in [
        Network {
            chain_id: 1,
            ..street.network.clone()
        },
        Network {
            settlement: Address::repeat_byte(9),
            ..street.network.clone()
        },
    ] {
        let elsewhere = Agent {
            network: elsewhere,
            ..agent.clone()
        };
        let payment = elsewhere.payment(&way);
        let reply = told(&agent, &payment).await;
        assert_eq!(reply.reason(), Some(Reason::BatchChannelId));
    }
    let mut payment = agent.payment(&way);
    payment.accepted.network = farthing_protocol::payment::Caip2(1);
    let reply = told(&agent, &payment).await;
    assert_eq!(reply.reason(), Some(Reason::InvalidNetwork));
    assert_eq!(sold(&street).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_could_not_be_claimed_from_is_refused_at_the_door_by_name() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let ours = agent.config(&way);
    let other = Address::repeat_byte(0x42);
    for (reason, config) in [
        (
            Reason::BatchReceiver,
            ChannelConfig {
                receiver: other,
                ..ours
            },
        ),
        (
            Reason::BatchReceiverAuthorizer,
            ChannelConfig {
                receiver_authorizer: other,
                ..ours
            },
        ),
        (
            Reason::BatchToken,
            ChannelConfig {
                token: other,
                ..ours
            },
        ),
        (
            Reason::BatchWithdrawDelay,
            ChannelConfig {
                withdraw_delay: 900,
                ..ours
            },
        ),
        (
            Reason::BatchSignature,
            ChannelConfig {
                payer_authorizer: Address::ZERO,
                ..ours
            },
        ),
    ] {
        let reply = told(&agent, &forged(&agent, &way, config, |_| {})).await;
        assert_eq!((reply.status, reply.reason()), (402, Some(reason)));
    }
    let wrong = forged(&agent, &way, ours, |voucher| {
        voucher.channel_id.0 = B256::repeat_byte(3);
    });
    let reply = told(&agent, &wrong).await;
    assert_eq!(reply.reason(), Some(Reason::BatchChannelId));
    let nobody = Agent {
        salt: B256::repeat_byte(5),
        ..agent.clone()
    };
    let ceiling = way.amount;
    let reply = told(&agent, &nobody.voucher(&way, ceiling)).await;
    assert_eq!(reply.reason(), Some(Reason::BatchNotFound));
    assert_eq!(
        street.sellers[0].channels().len(),
        1,
        "nothing is remembered of it"
    );
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_at_the_door_learns_nothing_of_a_channel_and_spends_nothing_on_it() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let stranger = Agent {
        key: testing::evm_key(77),
        ..agent.clone()
    };
    let config = agent.config(&way);
    // What fits, what is stale, and what asks for the money back: all in another's name.
    for charged in [agent.charged, Amount::ZERO, Amount::atoms(7)] {
        let stranger = Agent {
            charged,
            ..stranger.clone()
        };
        let reply = told(&agent, &forged(&stranger, &way, config, |_| {})).await;
        assert_eq!(reply.reason(), Some(Reason::BatchSignature));
        assert!(!reply.text().contains(&agent.charged.to_string()));
        let way = reply.way(scheme::BATCH).expect("a way");
        assert!(!way.extra.contains_key("channelState"), "nothing is told");
    }
    assert_eq!(sold(&street).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malleable_odd_or_wrapped_voucher_is_refused_at_the_door() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let config = agent.config(&way);
    let order = U256::from_str_radix(
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141",
        16,
    );
    let order = order.expect("a number");
    let high = |bytes: &mut Vec<u8>| {
        let s = U256::from_be_slice(&bytes[32..64]);
        bytes[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
        bytes[64] = 55 - bytes[64];
    };
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let changes: [Change<'_>; 5] = [
        &high,
        &|bytes| bytes[64] -= 27,
        &|bytes| bytes.truncate(64),
        &|bytes| bytes.extend([0x64, 0x92].repeat(16)),
        &|bytes| bytes.clear(),
    ];
    for change in changes {
        let payment = forged(&agent, &way, config, |voucher| {
            let mut bytes = voucher.signature.to_vec();
            change(&mut bytes);
            voucher.signature = Bytes::from(bytes);
        });
        let reply = told(&agent, &payment).await;
        assert_eq!(reply.reason(), Some(Reason::BatchSignature));
    }
    // The proper one is as good as before.
    let reply = told(&agent, &agent.payment(&way)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voucher_brought_twice_at_once_buys_once() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let payment = agent.payment(&way);
    let (one, other) = tokio::join!(told(&agent, &payment), told(&agent, &payment));
    let (served, told) = match one.status {
        200 => (one, other),
        _ => (other, one),
    };
    assert_eq!((served.status, told.status), (200, 402));
    assert_eq!(told.reason(), Some(Reason::BatchMismatch));
    let charged = served.charged().expect("a price");
    assert_eq!(sold(&street).await, agent.charged.saturating_add(charged));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_price_or_payee_that_the_client_has_changed_is_not_what_was_offered() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let changes: [&dyn Fn(&mut PaymentRequirements); 5] = [
        &|way| way.amount = Amount::atoms(1),
        &|way| way.pay_to = Address::repeat_byte(9),
        &|way| way.asset = Address::repeat_byte(9),
        &|way| drop(way.extra.insert("withdrawDelay".into(), json!(900))),
        &|way| drop(way.extra.insert("offer".into(), json!(B256::ZERO))),
    ];
    for change in changes {
        let mut way = way.clone();
        change(&mut way);
        let reply = told(&agent, &agent.payment(&way)).await;
        assert_eq!(reply.reason(), Some(Reason::InvalidRequirements));
    }
    // The price of another request.
    let dearer = Agent::plain("a question", 500);
    let reply = agent.ask(&dearer, Some(&agent.payment(&way))).await;
    assert_eq!(
        reply.expect("answers").reason(),
        Some(Reason::InvalidRequirements)
    );
    // A promise of less than the price.
    let cheap = agent.voucher(&way, agent.charged.saturating_add(Amount::atoms(1)));
    let reply = told(&agent, &cheap).await;
    assert_eq!(reply.reason(), Some(Reason::BatchMismatch));
    assert_eq!(sold(&street).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_a_limit_is_priced_at_the_limit_of_the_offer() {
    let street = street().await;
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let agent = agent.expect("has money");
    let limit = u64::from(street.sellers[0].config.models[0].max_output);
    let mut unlimited = Agent::plain("a question", limit);
    let limited = agent.price(&unlimited).await.expect("a price");
    let fields = unlimited.as_object_mut().expect("an object");
    fields.remove("max_tokens");
    let unlimited = agent.price(&unlimited).await.expect("a price");
    // The body is shorter by what the field took.
    let shorter = Amount::atoms(2);
    assert!(unlimited.amount >= limited.amount.saturating_sub(shorter));
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_that_only_burns_gas_is_refused_at_the_door_before_any_is_spent() {
    let street = street().await;
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let agent = agent.expect("has money");
    let way = agent.price(&question()).await.expect("a price");
    let chain = street.ledgers.chain().expect("a chain");
    let claim = testing::evm_key(1).address();
    let gas = chain.gas_balance(claim).await.expect("answers");
    let least = street.sellers[0].config.chain.min_deposit;
    let small = least.saturating_sub(Amount::atoms(1));
    let reply = told(&agent, &agent.deposit(&way, way.amount, small)).await;
    assert_eq!(reply.reason(), Some(Reason::BatchMinDeposit));
    let mut short = way.clone();
    short.max_timeout_seconds = 10;
    let mut late = agent.deposit(&short, way.amount, least);
    late.accepted = way.clone();
    let reply = told(&agent, &late).await;
    assert_eq!(reply.reason(), Some(Reason::BatchValidBefore));
    let thief = Agent {
        payer: testing::evm_key(76),
        ..agent.clone()
    };
    // A deposit of somebody without money, and one that another has signed.
    let reply = told(&agent, &thief.deposit(&way, way.amount, least)).await;
    assert_eq!(reply.reason(), Some(Reason::BatchDepositSimulation));
    let mut foreign = agent.deposit(&way, way.amount, least);
    foreign.payload["deposit"]["amount"] = json!(least.saturating_add(Amount::atoms(1)));
    let reply = told(&agent, &foreign).await;
    assert_eq!(reply.reason(), Some(Reason::BatchDepositSignature));
    // A voucher over more than the deposit pays is seen before the deposit is made.
    let body = Agent::plain("a question", 1000);
    let agent = Agent {
        charged: Amount::ZERO,
        ..agent
    };
    assert_eq!(chain.gas_balance(claim).await.expect("answers"), gas);
    assert_eq!(street.sellers[0].channels().len(), 0);
    assert_eq!(agent.ask(&body, None).await.expect("answers").status, 402);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numbers_that_are_not_plain_digits_are_read_as_no_payment() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let good = agent.payment(&way);
    for odd in [
        json!("1e3"),
        json!("+7"),
        json!("0x10"),
        json!("-1"),
        json!(7),
        json!("340282366920938463463374607431768211456"),
    ] {
        let mut payment = good.clone();
        payment.payload["voucher"]["maxClaimableAmount"] = odd;
        let reply = told(&agent, &payment).await;
        assert_eq!(reply.reason(), Some(Reason::InvalidPayload));
    }
    assert_eq!(sold(&street).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn junk_and_giants_in_headers_and_bodies_are_refused_and_the_door_stays_open() {
    let street = street().await;
    let agent = opened(&street).await;
    let body = question();
    for junk in ["*", "e30=", "W10=", "bnVsbA==", "eyJ4NDAyVmVyc2lvbiI6Mn0="] {
        let request = agent.request(&body, None).header(PAYMENT_SIGNATURE, junk);
        let reply = agent.send(request).await.expect("answers");
        assert_eq!(
            (reply.status, reply.reason()),
            (402, Some(Reason::InvalidPayload))
        );
    }
    let way = agent.price(&body).await.expect("a price");
    let good = encode(&agent.payment(&way)).expect("small");
    let twice = agent.request(&body, None);
    let twice = twice
        .header(PAYMENT_SIGNATURE, &good)
        .header(PAYMENT_SIGNATURE, &good);
    let reply = agent.send(twice).await.expect("answers");
    assert_eq!(reply.reason(), Some(Reason::InvalidPayload));
    let long = "A".repeat(header::HEADER_LIMIT + 1);
    let request = agent.request(&body, None).header(PAYMENT_SIGNATURE, long);
    assert_eq!(agent.send(request).await.expect("answers").status, 431);
    // A version, a scheme and a kind that nobody knows.
    for (pointer, odd, reason) in [
        ("/x402Version", json!(3), Reason::InvalidVersion),
        (
            "/accepted/scheme",
            json!("barter"),
            Reason::UnsupportedScheme,
        ),
        ("/payload/type", json!("claim"), Reason::BatchPayloadType),
        ("/payload/type", json!("refund"), Reason::BatchPayloadType),
    ] {
        let mut payment = serde_json::to_value(agent.payment(&way)).expect("JSON");
        *payment.pointer_mut(pointer).expect("a field") = odd;
        let header = encode(&payment).expect("small");
        let request = agent.request(&body, None).header(PAYMENT_SIGNATURE, header);
        let reply = agent.send(request).await.expect("answers");
        assert_eq!(reply.reason(), Some(reason));
    }
    for (bad, status) in [
        ("not json".to_owned(), 400),
        ("[]".to_owned(), 400),
        (r#"{"model":"nobody/has-it"}"#.to_owned(), 404),
        (r#"{"messages":[]}"#.to_owned(), 400),
        (
            r#"{"model":"mock/model","max_tokens":"many"}"#.to_owned(),
            400,
        ),
    ] {
        let url = format!("{}/chat/completions", agent.url);
        let reply = agent.send(agent.http.post(url).body(bad)).await;
        assert_eq!(reply.expect("answers").status, status);
    }
    let url = format!("{}/nothing/here", agent.url);
    assert_eq!(
        agent
            .send(agent.http.get(url))
            .await
            .expect("answers")
            .status,
        404
    );
    let url = format!("{}/chat/completions", agent.url);
    assert_eq!(
        agent
            .send(agent.http.put(url))
            .await
            .expect("answers")
            .status,
        405
    );
    let reply = told(&agent, &agent.payment(&way)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_and_a_head_that_never_ends_are_cut_off() {
    let net = TestNet::new().buyers(0).http().seller_config(|_, config| {
        config.limits.max_body = 1000;
        config.http.read_timeout = std::time::Duration::from_millis(300);
    });
    let street = net.start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let agent = agent.expect("has money");
    let long = Agent::plain(&"x".repeat(2000), 5);
    let reply = agent.ask(&long, None).await.expect("answers");
    assert_eq!(reply.status, 413);
    let door = street.sellers[0].node().http().expect("open").address;
    for begun in [
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n{",
    ] {
        let mut stream = tokio::net::TcpStream::connect(door)
            .await
            .expect("connects");
        stream.write_all(begun.as_bytes()).await.expect("writes");
        let mut answer = Vec::new();
        let end = tokio::time::timeout(
            farthing_tests::street::PATIENCE,
            stream.read_to_end(&mut answer),
        );
        end.await.expect("in time").ok();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.contains("408"), "{answer}");
    }
    assert_eq!(
        agent.ask(&question(), None).await.expect("answers").status,
        402
    );
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_server_that_fails_costs_nothing_and_the_same_voucher_buys_later() {
    let net = TestNet::new()
        .buyers(0)
        .http()
        .upstreams(Behaviour::default());
    let street = net.start().await.expect("starts");
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let payment = agent.payment(&way);
    street.sellers[0].upstream.fail(2, Fault::ContextLength);
    let reply = told(&agent, &payment).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.settled.is_none());
    assert_eq!(sold(&street).await, agent.charged);
    let reply = told(&agent, &payment).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_that_landed_is_told_although_the_purchase_is_refused() {
    let street = street().await;
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let agent = agent.expect("has money");
    street.sellers[0].upstream.fail(1, Fault::ContextLength);
    let way = agent.price(&question()).await.expect("a price");
    let reply = told(&agent, &agent.payment(&way)).await;
    assert_eq!(reply.status, 400);
    let settled = reply.settled.as_ref().expect("it landed");
    assert!(settled.success && settled.transaction.starts_with("0x"));
    assert_eq!(reply.charged(), Some(Amount::ZERO));
    assert_eq!(sold(&street).await, Amount::ZERO);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_armed_withdrawal_counts_as_gone_at_the_door() {
    let street = street().await;
    let agent = opened(&street).await;
    let way = agent.price(&question()).await.expect("a price");
    let config = agent.config(&way);
    let chain = street.ledgers.chain().expect("a chain");
    street.ledgers.fund(agent.key.address()).await.expect("gas");
    let (id, view) = street.sellers[0].channels().remove(0);
    let rest = view.channel.balance().saturating_sub(agent.charged);
    let arm = Write::InitiateWithdraw {
        config,
        amount: rest,
    };
    let prepared = chain
        .prepare(&arm, &agent.key, None)
        .await
        .expect("simulates");
    chain.broadcast(&prepared.raw).await.expect("is taken");
    let ledger = street.sellers[0].node().ledger();
    let seen = || {
        ledger
            .channel(id)
            .is_some_and(|view| !view.channel.armed().is_zero())
    };
    eventually("the seller sees it", seen)
        .await
        .expect("in time");
    let reply = told(&agent, &agent.payment(&way)).await;
    assert_eq!(
        reply.reason(),
        Some(Reason::BatchExceedsBalance),
        "{}",
        reply.text()
    );
    assert_eq!(sold(&street).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_lost_its_books_finds_a_channel_on_chain_at_the_door() {
    let mut street = street().await;
    let mut agent = opened(&street).await;
    street.sellers[0].stop().await;
    let books = street.sellers[0].config.data_dir.clone();
    std::fs::remove_dir_all(books).expect("lost");
    street.start_seller(0).await.expect("starts");
    agent.url = street.sellers[0].http_url();
    // What was claimed when it stopped is what is charged; the agent's own count is the same.
    let reply = agent.buy(&question()).await.expect("answers");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.cumulative(), Some(agent.charged));
    assert_eq!(sold(&street).await, agent.charged);
    street.stop().await;
}
