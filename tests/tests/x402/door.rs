//! The seller's HTTP door, bought from by an agent that is written from x402's words alone.

use farthing_protocol::amount::Amount;
use farthing_protocol::payment::{Reason, scheme};
use farthing_protocol::purchase::Ending;
use farthing_tests::street::{Agent, Reply, Street, TestNet, eventually};
use farthing_tests::upstream::Behaviour;
use futures::StreamExt;
use serde_json::Value;

async fn street(behaviour: Behaviour) -> Street {
    let net = TestNet::new().buyers(0).http().upstreams(behaviour);
    net.start().await.expect("starts")
}

async fn agent(street: &Street) -> Agent {
    let agent = Agent::new(street, &street.sellers[0], 1).await;
    agent.expect("has money")
}

fn json(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).expect("JSON")
}

/// What the books say: charged, over all channels.
async fn charged(street: &Street) -> Amount {
    let ledger = street.sellers[0].node().ledger();
    let quiet = eventually("the sales have ended", || ledger.running() == 0);
    quiet.await.expect("they end");
    street.sold()
}

async fn holds(street: &Street, account: alloy::primitives::Address) -> Amount {
    let chain = street.ledgers.chain().expect("a chain");
    chain.token_balance(account).await.expect("answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_payment_is_told_its_price_and_no_model_is_touched() {
    let street = street(Behaviour::default()).await;
    let agent = agent(&street).await;
    let body = Agent::plain("what does it cost?", 100);
    let reply = agent.ask(&body, None).await.expect("answers");
    assert_eq!(reply.status, 402);
    assert_eq!(reply.headers["cache-control"], "no-store");
    let exposed = reply.headers["access-control-expose-headers"].to_str();
    assert!(exposed.expect("text").contains("PAYMENT-REQUIRED"));
    let way = reply.way(scheme::BATCH).expect("a price");
    // Bytes + 256 at 0.1 atoms and 100 tokens at half an atom, rounded up.
    let prompt = body.to_string().len() as u128 + 256;
    let expected = (prompt * 100_000 + 100 * 500_000).div_ceil(1_000_000);
    assert_eq!(way.amount, Amount::atoms(expected));
    assert_eq!(way.pay_to, street.sellers[0].payout());
    let required = reply.required.as_ref().expect("a header");
    assert!(required.resource.url.ends_with("/v1/chat/completions"));
    assert_eq!(json(&reply)["error"]["code"], "payment_required");
    assert_eq!(street.sellers[0].upstream.requests().len(), 0);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposit_buys_the_first_answer_and_a_voucher_the_next() {
    let street = street(Behaviour::default()).await;
    let mut agent = agent(&street).await;
    let body = Agent::plain("hello", 50);
    let first = agent.buy(&body).await.expect("answers");
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(json(&first)["object"], "chat.completion");
    let settled = first.settled.as_ref().expect("a header");
    assert!(settled.transaction.starts_with("0x") && settled.success);
    assert_eq!(settled.amount.as_deref(), Some("100000"));
    let second = agent.buy(&body).await.expect("answers");
    assert_eq!(second.status, 200, "{}", second.text());
    let settled = second.settled.as_ref().expect("a header");
    assert_eq!(
        (settled.transaction.as_str(), settled.amount.as_deref()),
        ("", Some(""))
    );
    assert_eq!(second.cumulative(), Some(agent.charged));
    // One selling path: the same books and receipts as over libp2p.
    assert_eq!(charged(&street).await, agent.charged);
    let seller = &street.sellers[0];
    for (n, reply) in [&first, &second].into_iter().enumerate() {
        let receipt = reply.receipt().expect("a receipt");
        let receipt = receipt.verify(seller.id()).expect("signed by the seller");
        assert_eq!(receipt.receipt().seq, n as u64);
        assert_eq!(Some(receipt.receipt().charged), reply.charged());
        assert_eq!(receipt.receipt().ending, Ending::Complete);
        let hash = alloy::primitives::keccak256(&reply.body);
        assert_eq!(receipt.receipt().response_hash, hash);
    }
    // And the same claim job: what is charged is paid out.
    let moved = seller.node().settlement().claim().await.expect("claims");
    assert_eq!(moved.len(), 1);
    assert_eq!(holds(&street, seller.payout()).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_tells_its_price_in_a_comment_before_its_end() {
    let street = street(Behaviour::default()).await;
    let mut agent = agent(&street).await;
    let reply = agent
        .buy(&Agent::stream("hello", 50))
        .await
        .expect("answers");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(
        reply.charged(),
        Some(Amount::ZERO),
        "not known when the head leaves"
    );
    assert_eq!(
        reply.cumulative(),
        Some(Amount::ZERO),
        "what was charged before"
    );
    let text = reply.text();
    let comment = text.find(": x402 ").expect("a comment");
    let done = text.find("data: [DONE]").expect("an end");
    assert!(comment < done && text.ends_with("data: [DONE]\n\n"));
    assert!(
        !text.contains("\"choices\":[]"),
        "nobody asked for the usage"
    );
    let receipt = reply.receipt().expect("a receipt");
    let receipt = receipt.verify(street.sellers[0].id()).expect("signed");
    let total = charged(&street).await;
    assert_eq!(receipt.receipt().charged, total);
    assert!(!total.is_zero());
    // What the receipt's hash is over is what was shown.
    let shown: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .collect();
    assert_eq!(
        receipt.receipt().response_hash,
        alloy::primitives::keccak256(shown)
    );
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_stream_a_voucher_is_stale_is_told_what_was_charged_and_served_when_it_fits() {
    let street = street(Behaviour::default()).await;
    let mut agent = agent(&street).await;
    let first = agent
        .buy(&Agent::stream("hello", 50))
        .await
        .expect("answers");
    assert_eq!(first.status, 200);
    let body = Agent::plain("again", 50);
    let way = agent.price(&body).await.expect("a price");
    let stale = agent.payment(&way);
    let reply = agent.ask(&body, Some(&stale)).await.expect("answers");
    assert_eq!(reply.status, 402);
    assert_eq!(reply.reason(), Some(Reason::BatchMismatch));
    assert!(reply.settled.is_none(), "a client would not try again");
    let told = &reply.way(scheme::BATCH).expect("a way").extra;
    let before = first.receipt().expect("a receipt").receipt.cumulative;
    assert_eq!(
        told["channelState"]["chargedCumulativeAmount"],
        before.to_string()
    );
    // The proof: the agent's own signature.
    let proven: Amount = told["voucherState"]["signedMaxClaimable"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("an amount");
    let config = agent.config(&way);
    let mine = agent.sign(&config, proven).signature.to_bytes();
    assert_eq!(told["voucherState"]["signature"], mine.to_string());
    let second = agent.buy(&body).await.expect("answers");
    assert_eq!(second.status, 200, "{}", second.text());
    assert_eq!(charged(&street).await, agent.charged);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_requests_at_once_on_one_channel_are_all_served_with_one_second_try_each() {
    let street = street(Behaviour::default()).await;
    let mut agent = agent(&street).await;
    let opened = agent.buy(&Agent::plain("open", 20)).await.expect("answers");
    assert_eq!(opened.status, 200);
    // As a stock client with one wallet: all sign on what is known when they start.
    let bought = (0..8_u64).map(|n| {
        let mut agent = agent.clone();
        async move {
            let body = match n % 2 {
                0 => Agent::plain("at once", 20 + n),
                _ => Agent::stream("at once", 20 + n),
            };
            agent.buy(&body).await.expect("answers")
        }
    });
    let replies = futures::future::join_all(bought).await;
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    assert_eq!(statuses, [200; 8]);
    let receipts = replies.iter().filter_map(Reply::receipt);
    let sum = receipts.fold(agent.charged, |sum, signed| {
        sum.saturating_add(signed.receipt.charged)
    });
    assert_eq!(charged(&street).await, sum);
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_mid_stream_pays_for_what_was_delivered() {
    let pace = std::time::Duration::from_millis(2);
    let street = street(Behaviour::default().tokens(1000).pace(pace)).await;
    let agent = agent(&street).await;
    let body = Agent::stream("tell me a long story", 1000);
    let way = agent.price(&body).await.expect("a price");
    let payment = agent.payment(&way);
    let response = agent.request(&body, Some(&payment)).send().await;
    let mut events = response.expect("answers").bytes_stream();
    for _ in 0..10 {
        events.next().await.expect("goes on").expect("goes on");
    }
    drop(events);
    let seen = street.sellers[0].upstream.disconnected(1).await;
    let total = charged(&street).await;
    let (id, view) = street.sellers[0].channels().remove(0);
    assert_eq!(view.channel.charged(), total);
    let receipts = street.sellers[0].node().ledger().receipts(id, 0, 2);
    let receipt = receipts.expect("reads").remove(0);
    assert_eq!(receipt.ending, Ending::Cancelled);
    let delivered = u64::from(receipt.usage.completion);
    // The first event only says who speaks.
    assert!((9..=seen.chunks).contains(&delivered), "{delivered}");
    assert!(receipt.charged < way.amount && !receipt.charged.is_zero());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_is_asked_for_by_get_and_the_rest_comes_back() {
    let street = street(Behaviour::default()).await;
    let mut agent = agent(&street).await;
    agent
        .buy(&Agent::plain("hello", 50))
        .await
        .expect("answers");
    let url = format!("{}/chat/completions", agent.url);
    let probe = agent.send(agent.http.get(&url)).await.expect("answers");
    assert_eq!(probe.status, 402);
    assert!(probe.way(scheme::BATCH).is_some());
    // A small part is not worth the gas.
    let part = agent.refund(Some(Amount::atoms(1))).await.expect("answers");
    assert_eq!(part.reason(), Some(Reason::BatchRefundAmount));
    let reply = agent.refund(None).await.expect("answers");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let settled = reply.settled.as_ref().expect("a header");
    assert!(settled.transaction.starts_with("0x"));
    // Claimed what was ours, returned what was not.
    assert_eq!(
        holds(&street, street.sellers[0].payout()).await,
        agent.charged
    );
    let kept = farthing_tests::street::WEALTH.saturating_sub(agent.charged);
    assert_eq!(holds(&street, agent.payer.address()).await, kept);
    let again = agent.refund(None).await.expect("answers");
    assert_eq!(again.reason(), Some(Reason::BatchRefundNothing));
    // The channel can be used again after a new deposit.
    agent.balance = agent.charged;
    let reply = agent.buy(&Agent::plain("back", 50)).await.expect("answers");
    assert_eq!(reply.status, 200, "{}", reply.text());
    street.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_door_with_a_certificate_speaks_tls_and_nothing_else() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("makes one");
    let dir = tempfile::tempdir().expect("a directory");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("writes");
    std::fs::write(&key, made.key_pair.serialize_pem()).expect("writes");
    let net = TestNet::new()
        .buyers(0)
        .http()
        .seller_config(move |_, config| {
            config.http.tls_certificate = Some(certificate.clone());
            config.http.tls_key = Some(key.clone());
        });
    let street = net.start().await.expect("starts");
    let mut agent = agent(&street).await;
    assert!(agent.url.starts_with("https://"));
    let root = reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).expect("PEM");
    let http = reqwest::Client::builder().no_proxy();
    agent.http = http.add_root_certificate(root).build().expect("builds");
    let reply = agent
        .buy(&Agent::plain("hello", 50))
        .await
        .expect("answers");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let plain = agent.url.replace("https://", "http://");
    let refused = agent.http.get(format!("{plain}/models")).send().await;
    assert!(refused.is_err(), "nothing is said in the clear");
    street.stop().await;
}
