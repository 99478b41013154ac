//! The settlement on a real chain: what stands still, is displaced, is forgotten, and a node that
//! dies.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use alloy::primitives::B256;
use farthing_protocol::chain::local::{ARTIFACTS, LocalChain};
use farthing_protocol::chain::{Chain, RpcConfig};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::store::{Order, Store};
use farthing_protocol::testing;
use farthing_protocol::x402::{Deposit, DepositTerms};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};

use crate::ledger::records::{MINED, Purpose};
use crate::ledger::{Ledger, schema};
use crate::settlement::tests::world::{
    Office, WEALTH, atoms, claim_key, config, eventually, payer,
};
use crate::settlement::tests::{GWEI, MINUTE, eager, under_way};
use crate::settlement::{Ground, Policy, Settlement};

/// A chain of real blocks and the seller's office on it.
struct Stage {
    anvil: LocalChain,
    chain: Chain,
    clock: Clock,
    office: Office,
    _dir: TempDir,
}

async fn anvil() -> LocalChain {
    let binary = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/anvil"));
    assert!(binary.exists(), "no anvil: run tests/tools/setup.sh anvil");
    let anvil = LocalChain::start(&binary, testing::network(), ARTIFACTS.as_ref()).await;
    let anvil = anvil.expect("anvil starts and takes the contracts");
    let minted = anvil.mint(payer().address(), atoms(WEALTH)).await;
    minted.expect("mints");
    let funded = anvil.fund(claim_key().address(), 1_000_000_000_000_000_000);
    funded.await.expect("funds");
    anvil
}

impl Stage {
    /// An office that reaches the chain by these addresses, then by the chain's own.
    async fn by(anvil: LocalChain, mut urls: Vec<String>, policy: Policy) -> Self {
        urls.push(anvil.url().to_owned());
        let rpc = RpcConfig {
            urls,
            timeout: Duration::from_secs(5),
            ..RpcConfig::default()
        };
        let chain = Chain::connect(testing::network(), rpc).expect("valid");
        let now = chain.latest().await.expect("a block").timestamp;
        let clock = Clock::manual(Timestamp(now * 1000));
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), schema()).expect("opens");
        let ledger = Ledger::open(store, clock.now()).await.expect("opens");
        let ground = Ground {
            chain: chain.clone(),
            ledger: ledger.clone(),
            key: claim_key(),
            clock: clock.clone(),
        };
        let poll = Duration::from_millis(20);
        let (settlement, task) = Settlement::start(ground, Policy { poll, ..policy });
        let office = Office {
            ledger,
            settlement,
            task,
            sold: AtomicU64::new(0),
        };
        Self {
            anvil,
            chain,
            clock,
            office,
            _dir: dir,
        }
    }

    async fn open(policy: Policy) -> Self {
        Self::by(anvil().await, Vec::new(), policy).await
    }

    async fn deposit(&self, lane: u8, amount: u128) -> Deposit {
        let now = self.chain.latest().await.expect("a block").timestamp;
        let terms = DepositTerms {
            amount: atoms(amount),
            valid_before: Timestamp((now + 600) * 1000),
            salt: B256::repeat_byte(1),
        };
        Deposit::sign(&config(lane), terms, &testing::network(), &payer())
    }

    async fn funded(&self, lane: u8) {
        let deposit = self.deposit(lane, 1_000).await;
        let moved = self.office.settlement.deposit(config(lane), deposit).await;
        assert_eq!(moved.expect("is mined").amount, atoms(1_000));
    }

    async fn claimed(&self, lane: u8, amount: u128) {
        eventually("it is claimed", || {
            self.office.claimed(lane) == atoms(amount)
        })
        .await;
        let id = config(lane).id(&testing::network());
        let there = self.chain.channel(id).await.expect("answers");
        assert_eq!(there.claimed, atoms(amount));
    }

    async fn hold(&self, held: bool) {
        self.anvil.set_held(held).await.expect("obeys");
    }

    async fn close(self) {
        self.office.settlement.stop().await;
        self.office.task.await.expect("ends");
        self.office.ledger.store().stop().await;
    }
}

#[tokio::test]
async fn on_anvil_a_claim_that_the_base_fee_left_behind_is_replaced_by_a_dearer_one() {
    let stage = Stage::open(eager()).await;
    stage.funded(0).await;
    stage.hold(true).await;
    stage.office.sell(0, 300).await;
    under_way(&stage.office, 1).await;
    let first = stage.office.settlement.outlook().in_flight[0].clone();
    stage
        .anvil
        .set_base_fee(50 * GWEI)
        .await
        .expect("becomes dear");
    stage.anvil.mine(1).await.expect("mines");
    assert_eq!(stage.chain.outcome(first.hash).await, Ok(None));
    stage.clock.advance(MINUTE);
    eventually("its fee is raised", || {
        let in_flight = stage.office.settlement.outlook().in_flight;
        in_flight[0].attempts == 2 && in_flight[0].fee > 50 * GWEI
    })
    .await;
    stage.hold(false).await;
    stage.anvil.mine(1).await.expect("mines");
    stage.claimed(0, 300).await;
    under_way(&stage.office, 0).await;
    let mined = stage.office.store().scan(&MINED, .., Order::Up, 9);
    let mined = mined.expect("reads").into_iter();
    let claims: Vec<_> = mined
        .filter(|(_, mined)| mined.purpose == Purpose::Claim)
        .map(|(hash, _)| hash)
        .collect();
    assert_eq!(claims.len(), 1);
    assert_ne!(claims[0], first.hash);
    stage.close().await;
}

#[tokio::test]
async fn on_anvil_a_deposit_whose_place_another_transaction_has_taken_is_made_in_the_next() {
    let stage = Stage::open(Policy::default()).await;
    stage.hold(true).await;
    let asked = stage.office.asks(stage.deposit(0, 1_000).await);
    under_way(&stage.office, 1).await;
    let nonce = stage.office.settlement.outlook().in_flight[0].nonce;
    let key = claim_key();
    let filler = stage.chain.filler(&key, nonce).await.expect("possible");
    let mut foreign = stage.chain.dearer(&filler.raw, &key).await;
    // Twice, for the deposit's fee is as high as the filler's.
    if let Ok(Some(once)) = &foreign {
        foreign = stage.chain.dearer(&once.raw, &key).await;
    }
    let foreign = foreign.expect("possible").expect("no limit");
    let taken = stage.chain.broadcast(&foreign.raw).await;
    taken.expect("displaces it");
    stage.hold(false).await;
    stage.anvil.mine(1).await.expect("mines");
    let moved = asked.await.expect("runs").expect("is mined");
    assert_eq!(moved.amount, atoms(1_000));
    let nonces = stage.chain.nonces(key.address()).await.expect("answers");
    assert_eq!(nonces.mined, nonce + 2);
    stage.close().await;
}

#[tokio::test]
async fn on_anvil_a_claim_that_the_node_dropped_is_handed_in_again() {
    let stage = Stage::open(eager()).await;
    stage.funded(0).await;
    stage.hold(true).await;
    stage.office.sell(0, 300).await;
    under_way(&stage.office, 1).await;
    let hash = stage.office.settlement.outlook().in_flight[0].hash;
    stage.anvil.forget(hash).await.expect("forgets");
    stage.hold(false).await;
    stage.claimed(0, 300).await;
    under_way(&stage.office, 0).await;
    let outcome = stage.chain.outcome(hash).await.expect("answers");
    assert!(outcome.expect("the same bytes").success);
    stage.close().await;
}

/// Carries all that comes to an address until it is dropped.
async fn line(end: String) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let carries = tokio::spawn(async move {
        let mut calls = tokio::task::JoinSet::new();
        while let Ok((mut caller, _)) = listener.accept().await {
            let end = end.clone();
            calls.spawn(async move {
                let mut node = TcpStream::connect(end).await?;
                tokio::io::copy_bidirectional(&mut caller, &mut node).await
            });
        }
    });
    (url, carries)
}

#[tokio::test]
async fn on_anvil_when_the_first_node_dies_the_second_carries_on_with_what_is_under_way() {
    let anvil = anvil().await;
    let end = anvil.url().trim_start_matches("http://").to_owned();
    let (url, carries) = line(end).await;
    let stage = Stage::by(anvil, vec![url], eager()).await;
    stage.funded(0).await;
    stage.hold(true).await;
    stage.office.sell(0, 300).await;
    under_way(&stage.office, 1).await;
    // Every connection is cut, and nobody listens there any more.
    carries.abort();
    assert!(carries.await.is_err(), "it has ended");
    stage.hold(false).await;
    stage.anvil.mine(1).await.expect("mines");
    stage.claimed(0, 300).await;
    stage.office.sell(0, 200).await;
    stage.claimed(0, 500).await;
    assert!(!stage.office.settlement.outlook().away);
    stage.close().await;
}
