//! What must never be printed of purchases over HTTP: keys, vouchers and signatures, at any level
//! of the log.
#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use alloy::hex;
use farthing_protocol::amount::Amount;
use farthing_protocol::payment::{PaymentPayload, encode, scheme};
use farthing_protocol::testing;
use farthing_protocol::x402::PERMIT2;
use farthing_tests::street::{Agent, PATIENCE, TestNet, WEALTH};
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

/// Everything that was logged.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("whole").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Every text in a payment that is long enough to be a signature, and the header itself.
fn secrets_of(payment: &PaymentPayload) -> Vec<String> {
    fn signatures(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.values().for_each(|field| signatures(field, found)),
            Value::String(text) if text.len() >= 130 => {
                // The half that names nobody and nothing else.
                found.push(text.trim_start_matches("0x")[..64].to_lowercase());
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    signatures(&payment.payload, &mut found);
    assert!(!found.is_empty(), "a payment is signed");
    // The scheme's own part stands at the end of the header.
    let header = encode(payment).expect("short").to_lowercase();
    found.push(header[header.len() - 80..].to_owned());
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purchases_over_http_leave_no_key_no_voucher_and_no_signature_in_any_log() {
    let captured = Captured::default();
    tracing_subscriber::fmt()
        .with_env_filter(farthing_client::cli::local::filter("trace"))
        .with_ansi(false)
        .with_writer(captured.clone())
        .init();
    let net = TestNet::new().buyers(0).http();
    let street = net.start().await.expect("starts");
    let agent = Agent::new(&street, &street.sellers[0], 1).await;
    let mut agent = agent.expect("has money");
    let memory = street.ledgers.memory();
    memory.approve(agent.payer.address(), PERMIT2, WEALTH);
    let mut secrets = vec![
        hex::encode(agent.payer.secret()),
        hex::encode(testing::evm_key(1).secret()),
        hex::encode(testing::node_key(1).seed()),
    ];
    let body = Agent::plain("hello", 50);

    // By channel: a deposit with its voucher, a voucher, one that is stale, one that is forged.
    let way = agent.price(&body).await.expect("a price");
    secrets.extend(secrets_of(&agent.payment(&way)));
    assert_eq!(agent.buy(&body).await.expect("answers").status, 200);
    secrets.extend(secrets_of(&agent.payment(&way)));
    assert_eq!(agent.buy(&body).await.expect("answers").status, 200);
    let stale = agent.voucher(&way, Amount::atoms(1));
    let forger = Agent {
        key: testing::evm_key(77),
        ..agent.clone()
    };
    let mut forged = forger.payment(&way);
    let honest = agent.payment(&way);
    forged.payload["channelConfig"] = honest.payload["channelConfig"].clone();
    forged.payload["voucher"]["channelId"] = honest.payload["voucher"]["channelId"].clone();
    for payment in [stale, forged] {
        let reply = agent.ask(&body, Some(&payment)).await.expect("answers");
        assert_eq!(reply.status, 402, "{}", reply.text());
        secrets.extend(secrets_of(&payment));
    }

    // By single payments, and by what cannot be read as one.
    let offered = async {
        loop {
            let reply = agent.ask(&body, None).await.expect("answers");
            let ways = (reply.way(scheme::EXACT), reply.way(scheme::UPTO));
            if let (Some(exact), Some(upto)) = ways {
                return (exact.clone(), upto.clone());
            }
            tokio::task::yield_now().await;
        }
    };
    let offered = tokio::time::timeout(PATIENCE, offered).await;
    let (exact, upto) = offered.expect("in time");
    for payment in [agent.exact(&exact, 1), agent.upto(&upto, 1)] {
        let reply = agent.ask(&body, Some(&payment)).await.expect("answers");
        assert_eq!(reply.status, 200, "{}", reply.text());
        secrets.extend(secrets_of(&payment));
        let again = agent.ask(&body, Some(&payment)).await.expect("answers");
        assert_eq!(again.status, 402, "it buys once");
        let mut odd = payment.clone();
        odd.payload["signature"] = Value::from("0x".to_owned() + &"ab".repeat(65));
        let reply = agent.ask(&body, Some(&odd)).await.expect("answers");
        assert_eq!(reply.status, 402, "{}", reply.text());
        secrets.extend(secrets_of(&odd));
    }
    let url = format!("{}/chat/completions", agent.url);
    let noise = "bm90IGEgcGF5bWVudA==".repeat(8);
    let request = agent.http.post(url).body(body.to_string());
    let reply = agent
        .send(request.header("payment-signature", &noise))
        .await;
    assert_eq!(reply.expect("answers").status, 402);
    secrets.push(noise.to_lowercase());
    assert_eq!(agent.refund(None).await.expect("answers").status, 200);
    street.stop().await;

    let log = String::from_utf8_lossy(&captured.0.lock().expect("whole")).to_lowercase();
    assert!(
        log.contains("sold over http"),
        "the purchases are in the log"
    );
    for secret in secrets {
        let bytes = hex::decode(&secret);
        let list = bytes.map(|bytes| format!("{bytes:?}").trim_matches(['[', ']']).to_owned());
        for form in [Some(secret), list.ok()].into_iter().flatten() {
            let line = log.lines().find(|line| line.contains(&form));
            assert_eq!(line, None, "a secret is in the log");
        }
    }
}
