//! Payments made for one purchase, at the seller's HTTP door: `exact` and `upto`.

use alloy::primitives::{Address, B256, U256};
use farthing_protocol::amount::Amount;
use farthing_protocol::payment::{PaymentPayload, PaymentRequirements, Reason, scheme};
use farthing_protocol::testing;
use farthing_protocol::x402::PERMIT2;
use farthing_tests::street::{Agent, Reply, Street, TestNet, WEALTH, eventually};
use farthing_tests::upstream::Fault;
use serde_json::{Value, json};

async fn street() -> (Street, Agent) {
    let net = TestNet::new().buyers(0).http();
    let street = net.start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    (street, agent.expect("has money"))
}

async fn way(agent: &Agent, body: &Value, scheme: &str) -> PaymentRequirements {
    let reply = agent.ask(body, None).await.expect("answers");
    let way = reply.way(scheme).cloned();
    way.unwrap_or_else(|| panic!("{scheme} is not offered: {}", reply.text()))
}

async fn ask(agent: &Agent, body: &Value, payment: &PaymentPayload) -> Reply {
    agent.ask(body, Some(payment)).await.expect("answers")
}

async fn holds(street: &Street, account: Address) -> Amount {
    let chain = street.ledgers.chain().expect("a chain");
    chain.token_balance(account).await.expect("answers")
}

async fn quiet(street: &Street) {
    let ledger = street.sellers[0].node().ledger();
    let quiet = eventually("the sales have ended", || ledger.running() == 0);
    quiet.await.expect("they end");
}

/// What both sides hold after `paid` was paid.
async fn paid(street: &Street, agent: &Agent, paid: Amount) {
    quiet(street).await;
    let payout = street.sellers[0].payout();
    assert_eq!(holds(street, payout).await, paid);
    let rest = WEALTH.saturating_sub(paid);
    assert_eq!(holds(street, agent.payer.address()).await, rest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exact_is_taken_in_full_before_the_answer_and_only_for_a_limited_one() {
    let (street, agent) = street().await;
    let mut body = Agent::plain("hello", 50);
    let price = way(&agent, &body, scheme::EXACT).await;
    let reply = ask(&agent, &body, &agent.exact(&price, 1)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let settled = reply.settled.as_ref().expect("a header");
    assert!(settled.transaction.starts_with("0x"));
    let amount = price.amount.to_string();
    assert_eq!(settled.amount.as_deref(), Some(amount.as_str()));
    let receipt = reply.receipt().expect("a receipt");
    let receipt = receipt.verify(street.sellers[0].id()).expect("signed");
    assert_eq!(receipt.receipt().charged, price.amount);
    paid(&street, &agent, price.amount).await;
    body.as_object_mut()
        .expect("an object")
        .remove("max_tokens");
    let reply = agent.ask(&body, None).await.expect("answers");
    assert!(reply.way(scheme::BATCH).is_some() && reply.way(scheme::EXACT).is_none());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exact_stream_is_paid_when_its_head_leaves() {
    let (street, agent) = street().await;
    let body = Agent::stream("hello", 50);
    let price = way(&agent, &body, scheme::EXACT).await;
    let reply = ask(&agent, &body, &agent.exact(&price, 1)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let settled = reply.settled.as_ref().expect("a header");
    assert!(settled.transaction.starts_with("0x"));
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    paid(&street, &agent, price.amount).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_authorization_buys_once_however_often_it_comes() {
    let (street, agent) = street().await;
    let body = Agent::plain("hello", 50);
    let price = way(&agent, &body, scheme::EXACT).await;
    let payment = agent.exact(&price, 1);
    let (one, other) = tokio::join!(ask(&agent, &body, &payment), ask(&agent, &body, &payment));
    let mut statuses = [one.status, other.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 402]);
    let again = ask(&agent, &body, &payment).await;
    assert_eq!(again.reason(), Some(Reason::ExactNonceUsed));
    paid(&street, &agent, price.amount).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_answer_takes_nothing_and_its_authorization_may_be_used_again() {
    let (street, agent) = street().await;
    street.sellers[0].upstream.fail(1, Fault::ContextLength);
    let body = Agent::plain("hello", 50);
    let price = way(&agent, &body, scheme::EXACT).await;
    let payment = agent.exact(&price, 1);
    let reply = ask(&agent, &body, &payment).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    paid(&street, &agent, Amount::ZERO).await;
    assert_eq!(street.sellers[0].channels().len(), 0, "it is forgotten");
    let reply = ask(&agent, &body, &payment).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    paid(&street, &agent, price.amount).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exact_payment_that_is_not_for_this_is_refused_by_name() {
    let (street, agent) = street().await;
    let body = Agent::plain("hello", 50);
    let price = way(&agent, &body, scheme::EXACT).await;
    let now = street.clock.now().seconds();
    for (field, odd, reason) in [
        ("to", json!(Address::repeat_byte(9)), Reason::ExactRecipient),
        ("value", json!("1"), Reason::ExactValue),
        (
            "validBefore",
            // Too short to answer and be mined.
            json!((now + 50).to_string()),
            Reason::ExactValidBefore,
        ),
        (
            "validAfter",
            json!((now + 60).to_string()),
            Reason::ExactValidAfter,
        ),
        ("nonce", json!(B256::repeat_byte(9)), Reason::ExactSignature),
        (
            "from",
            json!(Address::repeat_byte(9)),
            Reason::ExactSignature,
        ),
    ] {
        let mut payment = agent.exact(&price, 1);
        payment.payload["authorization"][field] = odd;
        let reply = ask(&agent, &body, &payment).await;
        assert_eq!(reply.reason(), Some(reason), "{field}");
    }
    let poor = Agent {
        payer: testing::evm_key(201),
        ..agent.clone()
    };
    let reply = ask(&agent, &body, &poor.exact(&price, 1)).await;
    assert_eq!(reply.reason(), Some(Reason::ExactBalance));
    assert_eq!(
        street.sellers[0].channels().len(),
        0,
        "nothing is remembered of it"
    );
    paid(&street, &agent, Amount::ZERO).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upto_is_taken_for_what_was_used_in_documents_and_streams() {
    let (street, agent) = street().await;
    let body = Agent::plain("hello", 50);
    let price = offered_upto(&agent, &body).await;
    let reply = ask(&agent, &body, &agent.upto(&price, 1)).await;
    assert_eq!(
        (reply.status, reply.reason()),
        (412, Some(Reason::UptoAllowance))
    );
    let memory = street.ledgers.memory();
    memory.approve(agent.payer.address(), PERMIT2, WEALTH);
    let payment = agent.upto(&price, 2);
    let reply = ask(&agent, &body, &payment).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let first = reply.receipt().expect("a receipt").receipt.charged;
    assert!(!first.is_zero() && first < price.amount);
    let settled = reply.settled.as_ref().expect("a header");
    assert_eq!(settled.amount.as_deref(), Some(first.to_string().as_str()));
    paid(&street, &agent, first).await;
    let again = ask(&agent, &body, &payment).await;
    assert_eq!(again.reason(), Some(Reason::UptoNonceUsed));
    let body = Agent::stream("hello", 50);
    let price = way(&agent, &body, scheme::UPTO).await;
    let reply = ask(&agent, &body, &agent.upto(&price, 3)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let comment = reply.comment().expect("a comment");
    let hash = comment["transaction"].as_str().expect("text");
    assert!(hash.starts_with("0x"), "{comment}");
    let second = reply.receipt().expect("a receipt").receipt.charged;
    paid(&street, &agent, first.saturating_add(second)).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_small_answer_by_upto_costs_what_its_transaction_is_worth_and_says_so_before()
{
    let least = Amount::atoms(60);
    let net = TestNet::new()
        .buyers(0)
        .http()
        .seller_config(move |_, config| config.http.min_single = least);
    let street = net.start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let agent = agent.expect("has money");
    let memory = street.ledgers.memory();
    memory.approve(agent.payer.address(), PERMIT2, WEALTH);
    let mut sum = Amount::ZERO;
    for (nonce, body) in [
        (1, Agent::plain("hello", 200)),
        (2, Agent::stream("hello", 200)),
    ] {
        let price = offered_upto(&agent, &body).await;
        assert_eq!(price.extra_text("minCharge"), Some("60"));
        assert!(price.amount > least, "no more than was signed");
        let reply = ask(&agent, &body, &agent.upto(&price, nonce)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let receipt = reply.receipt().expect("a receipt").receipt;
        let used = receipt
            .usage
            .prompt
            .saturating_add(receipt.usage.completion);
        assert!(used < 60, "it is small: {used}");
        assert_eq!(receipt.charged, least);
        sum = sum.saturating_add(least);
        paid(&street, &agent, sum).await;
    }
    street.stop().await;
}

/// The price by `upto`, once the door has asked the chain for the contracts.
async fn offered_upto(agent: &Agent, body: &Value) -> PaymentRequirements {
    loop {
        let offered = agent.ask(body, None).await.expect("answers");
        if let Some(price) = offered.way(scheme::UPTO) {
            return price.clone();
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_balance_does_not_back_two_payments_at_once() {
    let (street, agent) = street().await;
    let body = Agent::plain("hello", 50);
    let price = way(&agent, &body, scheme::EXACT).await;
    let poor = Agent {
        payer: testing::evm_key(202),
        ..agent.clone()
    };
    let funds = price.amount.saturating_add(Amount::atoms(1));
    let minted = street.ledgers.mint(poor.payer.address(), funds).await;
    minted.expect("mints");
    let payments = [1, 2].map(|nonce| poor.exact(&price, nonce));
    let (one, other) = tokio::join!(
        ask(&agent, &body, &payments[0]),
        ask(&agent, &body, &payments[1])
    );
    let refused = if one.status == 200 { &other } else { &one };
    assert_eq!(one.status.min(other.status), 200);
    assert_eq!(refused.reason(), Some(Reason::ExactBalance));
    quiet(&street).await;
    let payout = street.sellers[0].payout();
    assert_eq!(holds(&street, payout).await, price.amount);
    street.stop().await;
}

/// A stream that was delivered and could not be paid for; its seller is stopped. Returns the
/// nonce of its permit.
async fn unpaid_stream(street: &mut Street, agent: &Agent) -> U256 {
    let body = Agent::stream("hello", 50);
    let mut offered = agent.ask(&body, None).await.expect("answers");
    // The door asks the chain for the contracts while it opens.
    while offered.way(scheme::UPTO).is_none() {
        tokio::task::yield_now().await;
        offered = agent.ask(&body, None).await.expect("answers");
    }
    let price = offered.way(scheme::UPTO).cloned().expect("offered");
    let memory = street.ledgers.memory();
    memory.approve(agent.payer.address(), PERMIT2, WEALTH);
    memory.set_contrary(true);
    let reply = ask(agent, &body, &agent.upto(&price, 5)).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    quiet(street).await;
    street.sellers[0].stop().await;
    street.ledgers.memory().set_contrary(false);
    U256::from(5)
}

/// What was charged and claimed when nothing is waited for any more.
async fn ended(street: &Street) -> (Amount, Amount) {
    let ledger = street.sellers[0].node().ledger();
    let ended = eventually("it is settled one way or the other", || {
        ledger.untaken().is_ok_and(|left| left.is_empty())
    });
    ended.await.expect("it ends");
    let channels = street.sellers[0].channels();
    let channel = channels[0].1.channel;
    (channel.charged(), channel.claimed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_upto_stream_owes_is_taken_at_the_next_start() {
    let (mut street, agent) = street().await;
    unpaid_stream(&mut street, &agent).await;
    street.start_seller(0).await.expect("starts");
    let (charged, claimed) = ended(&street).await;
    assert!(!charged.is_zero());
    assert_eq!(claimed, charged);
    paid(&street, &agent, charged).await;
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_permit_cancelled_while_the_seller_was_down_is_owed_and_not_booked_as_taken() {
    let (mut street, agent) = street().await;
    let nonce = unpaid_stream(&mut street, &agent).await;
    let memory = street.ledgers.memory();
    memory.cancel_permit(agent.payer.address(), nonce);
    street.start_seller(0).await.expect("starts");
    let (charged, claimed) = ended(&street).await;
    assert!(!charged.is_zero());
    assert_eq!(claimed, Amount::ZERO);
    let owed = street.sellers[0].node().ledger();
    assert_eq!(owed.exposure(agent.payer.address()), charged);
    paid(&street, &agent, Amount::ZERO).await;
    street.stop().await;
}
