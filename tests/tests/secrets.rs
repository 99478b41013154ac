//! What must never be printed: keys and vouchers, at any level of the log.
#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use alloy::hex;
use farthing_client::wallet::Payer;
use farthing_protocol::testing;
use farthing_tests::street::{Buyer, TestNet};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purchase_leaves_no_key_and_no_voucher_in_any_log() {
    let captured = Captured::default();
    tracing_subscriber::fmt()
        .with_env_filter(farthing_client::cli::local::filter("trace"))
        .with_ansi(false)
        .with_writer(captured.clone())
        .init();
    let street = TestNet::new().start().await.expect("starts");
    let buyer = &street.buyers[0];
    buyer.buy(Buyer::stream(200)).await.expect("answers");
    buyer.buy(Buyer::chat(16)).await.expect("answers");
    street.settled().await.expect("agrees");

    let keys = buyer.wallet_keys();
    let printed = format!("{keys:?} {:?}", buyer.client());
    let mut secrets = vec![
        ("the authorizer's key", keys.authorizer.secret().to_vec()),
        ("the claim key", testing::evm_key(1).secret().to_vec()),
        ("a node's key", testing::node_key(1).seed().to_vec()),
    ];
    if let Payer::Here(key) = &keys.payer {
        secrets.push(("the payer's key", key.secret().to_vec()));
    }
    for (_, view) in street.sellers[0].channels() {
        let voucher = view.voucher.expect("it was paid");
        secrets.push(("a voucher", voucher.signature.as_bytes()[..32].to_vec()));
    }
    street.stop().await;

    let log = String::from_utf8_lossy(&captured.0.lock().expect("whole")).to_lowercase();
    assert!(log.contains("asking"), "the purchase is in the log");
    for (what, bytes) in secrets {
        let list = format!("{bytes:?}");
        let list = list.trim_matches(['[', ']']);
        for form in [hex::encode(&bytes), list.to_owned()] {
            let line = log.lines().find(|line| line.contains(&form));
            assert_eq!(line, None, "{what} is in the log");
            assert!(!printed.to_lowercase().contains(&form), "{what} is printed");
        }
    }
}
