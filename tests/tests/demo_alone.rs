//! The demo's story on the real model, as `make demo ONCE=1` tells it: CI proves it, with every
//! figure checked on chain.
#![allow(clippy::disallowed_methods, reason = "a test may ask plainly")]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use farthing_protocol::amount::Amount;
use farthing_tests::demo::books::{Balances, total};
use farthing_tests::demo::stage::Stage;
use farthing_tests::demo::story;
use farthing_tests::demo::watch::Watch;
use farthing_tests::llama::Llama;
use farthing_tests::show::{Logs, Page};

/// What was written on the page.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_adds_up_on_the_real_model() {
    assert!(
        Llama::is_installed(),
        "no model server: run tests/tools/setup.sh model"
    );
    let (logs, watch, paper) = (
        Logs::new().expect("a folder"),
        Watch::default(),
        Paper::default(),
    );
    logs.listen("warn", watch.layer()).expect("listens");
    let page = Page::on(Box::new(paper.clone()), false);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let stage = Stage::set(&page, &logs, listen).await.expect("is set");
    let told = story::tell(&stage, &watch, &page).await;
    let written = String::from_utf8_lossy(&paper.0.lock().expect("not poisoned")).into_owned();
    println!("{written}");
    assert!(told.expect("a good end") >= 20);
    assert!(!written.contains('✗'));

    // Once more, apart from the story's own sums: the chain against the buyer's receipts.
    let street = &stage.street;
    let chain = street.ledgers.chain().expect("a chain");
    let balances = Balances::read(street, &chain).await.expect("answers");
    let buyer = street.buyers[0].ledger();
    let mut charged = Amount::ZERO;
    let mut deposited = Amount::ZERO;
    for (id, _) in buyer.accounts() {
        let receipts = buyer.receipts(id, 0, usize::MAX).expect("readable");
        let sum = total(receipts.iter().map(|kept| kept.receipt.receipt.charged));
        let on_chain = chain.channel(id).await.expect("answers");
        assert_eq!(on_chain.claimed, sum);
        charged = charged.saturating_add(sum);
        deposited = deposited.saturating_add(on_chain.balance);
    }
    assert!(!charged.is_zero());
    assert_eq!(total(balances.payouts.iter().copied()), charged);
    assert_eq!(balances.contract, deposited.saturating_sub(charged));
    stage.stop().await;
}
