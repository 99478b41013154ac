//! A chain, a clock and a disk; and the seller's office on them, which can be opened, closed and
//! lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alloy::primitives::{B256, U256, keccak256};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::{Chain, ClaimRow, MemoryChain, OnChain, Write};
use farthing_protocol::clock::{Clock, Timestamp};
use farthing_protocol::eip712::{EvmKey, Signed};
use farthing_protocol::offer::OfferHash;
use farthing_protocol::purchase::{Ending, RequestId, Usage};
use farthing_protocol::store::Store;
use farthing_protocol::testing;
use farthing_protocol::voucher::Voucher;
use farthing_protocol::x402::{
    ChannelConfig, ChannelId, Deposit, DepositTerms, PERMIT2, Permit, Transfer,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::ledger::once::Once;
use crate::ledger::{ChannelView, Ledger, OpenPurchase, Served, schema};
use crate::settlement::actor::Actor;
use crate::settlement::{Ground, Moved, Policy, Purpose, Settlement, SettlementError, claims};

const START: Timestamp = Timestamp(1_790_000_000_000);
const GAS: u128 = 1_000_000_000_000_000_000;
pub(super) const WEALTH: u128 = 1_000_000;

pub(super) const fn atoms(n: u128) -> Amount {
    Amount::atoms(n)
}

pub(super) fn claim_key() -> EvmKey {
    testing::evm_key(1)
}

pub(super) fn payer() -> EvmKey {
    testing::evm_key(9)
}

/// A channel of the payer, by its lane.
pub(super) fn config(lane: u8) -> ChannelConfig {
    let mut config = testing::channel_config();
    config.salt.0[31] = lane;
    config
}

/// Looks again and again, for a while.
pub(super) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    assert!(waited.is_ok(), "not in time: {what}");
}

pub(super) struct World {
    pub(super) chain: MemoryChain,
    pub(super) clock: Clock,
    dir: TempDir,
    max_fee: u128,
}

impl World {
    pub(super) fn new() -> Self {
        let clock = Clock::manual(START);
        let chain = MemoryChain::new(testing::network(), clock.clone());
        chain.mint(payer().address(), atoms(WEALTH));
        for key in [claim_key(), payer()] {
            chain.fund(key.address(), GAS);
        }
        Self {
            chain,
            clock,
            dir: tempfile::tempdir().expect("a directory"),
            max_fee: u128::MAX,
        }
    }

    pub(super) fn with_max_fee(self, max_fee: u128) -> Self {
        Self { max_fee, ..self }
    }

    pub(super) fn handle(&self) -> Chain {
        Chain::memory(testing::network(), &self.chain)
    }

    pub(super) fn id(&self, lane: u8) -> ChannelId {
        config(lane).id(&testing::network())
    }

    pub(super) async fn build(&self, policy: Policy) -> (Office, Actor) {
        let store = Store::open(self.dir.path(), schema()).expect("opens");
        let ledger = Ledger::open(store, self.clock.now()).await.expect("opens");
        let ground = Ground {
            chain: self.handle().with_max_fee(self.max_fee),
            ledger: ledger.clone(),
            key: claim_key(),
            clock: self.clock.clone(),
        };
        let (settlement, actor) = Settlement::build(ground, policy);
        let office = Office {
            ledger,
            settlement,
            task: tokio::spawn(async {}),
            sold: AtomicU64::new(self.clock.now().0 ^ self.disk()),
        };
        (office, actor)
    }

    /// Each opening sells under other names.
    fn disk(&self) -> u64 {
        static OPENINGS: AtomicU64 = AtomicU64::new(0);
        OPENINGS.fetch_add(1, Ordering::Relaxed) << 32
    }

    pub(super) async fn open(&self, policy: Policy) -> Office {
        let (office, actor) = self.build(policy).await;
        Office {
            task: tokio::spawn(actor.run()),
            ..office
        }
    }

    /// Stops in order.
    pub(super) async fn close(&self, office: Office) {
        office.settlement.stop().await;
        self.shut(office).await;
    }

    /// Lets go of the disk; the actor has ended, however it did.
    pub(super) async fn shut(&self, office: Office) {
        office.task.await.ok();
        office.ledger.store().stop().await;
    }

    pub(super) async fn loses_disk(self, office: Office) -> Self {
        office.task.abort();
        self.shut(office).await;
        let dir = tempfile::tempdir().expect("a directory");
        Self { dir, ..self }
    }

    pub(super) fn deposit(&self, lane: u8, amount: u128, salt: u8) -> Deposit {
        let terms = DepositTerms {
            amount: atoms(amount),
            valid_before: self.clock.now().plus(Duration::from_secs(600)),
            salt: B256::repeat_byte(salt),
        };
        Deposit::sign(&config(lane), terms, &testing::network(), &payer())
    }

    pub(super) async fn on_chain(&self, lane: u8) -> OnChain {
        self.handle().channel(self.id(lane)).await.expect("answers")
    }

    pub(super) async fn balance(&self, lane: u8) -> Amount {
        self.on_chain(lane).await.balance
    }

    pub(super) async fn height(&self) -> u64 {
        self.handle().latest().await.expect("answers").number
    }

    pub(super) async fn nonces(&self) -> u64 {
        let nonces = self.handle().nonces(claim_key().address()).await;
        nonces.expect("answers").mined
    }

    async fn run(&self, write: &Write, key: &EvmKey) {
        let chain = self.handle();
        let prepared = chain.prepare(write, key, None).await.expect("possible");
        chain.broadcast(&prepared.raw).await.expect("is taken");
    }

    /// Somebody else with the claim key sends a dearer transaction with this nonce.
    pub(super) async fn takes_place(&self, nonce: u64) {
        let chain = self.handle();
        let filler = chain.filler(&claim_key(), nonce).await.expect("possible");
        let dearer = chain.dearer(&filler.raw, &claim_key()).await;
        let dearer = dearer.expect("possible").expect("no limit");
        chain.broadcast(&dearer.raw).await.expect("is taken");
    }

    pub(super) async fn initiates(&self, lane: u8, amount: u128) {
        let config = config(lane);
        let amount = atoms(amount);
        self.run(&Write::InitiateWithdraw { config, amount }, &payer())
            .await;
    }

    /// The buyer gets all of its deposit back.
    pub(super) async fn withdraws_all(&self, lane: u8) {
        let all = self.balance(lane).await;
        self.withdraws(lane, all.get()).await;
    }

    /// The buyer gets so much of its deposit back.
    pub(super) async fn withdraws(&self, lane: u8, amount: u128) {
        self.initiates(lane, amount).await;
        self.delay_passes(lane);
        self.finalizes(lane).await;
    }

    /// So much time passes that the buyer can get what it has asked back.
    pub(super) fn delay_passes(&self, lane: u8) {
        let delay = config(lane).withdraw_delay;
        self.clock.advance(Duration::from_secs(delay + 1));
    }

    /// The buyer gets what it asked back long ago.
    pub(super) async fn finalizes(&self, lane: u8) {
        let config = config(lane);
        self.run(&Write::FinalizeWithdraw { config }, &payer())
            .await;
    }

    /// Somebody else hands a deposit in.
    pub(super) async fn deposits(&self, lane: u8, amount: u128, salt: u8) {
        let (config, deposit) = (config(lane), self.deposit(lane, amount, salt));
        self.run(&Write::Deposit { config, deposit }, &payer())
            .await;
    }

    /// A payment in full for one purchase, and the name the books give it.
    pub(super) fn exact(&self, amount: u128, nonce: u8) -> (ChannelId, Once) {
        let now = self.clock.now().seconds();
        let transfer = Transfer {
            from: payer().address(),
            to: testing::payout(),
            amount: atoms(amount),
            valid_after: now - 60,
            valid_before: now + 600,
            nonce: B256::repeat_byte(nonce),
        };
        let domain = testing::network().token_domain();
        let once = Once::Exact(Signed::sign(transfer, &domain, &payer()));
        let id = once.terms(claim_key().address()).id(&testing::network());
        (id, once)
    }

    /// A permit to take up to so much for one purchase, and the name the books give it.
    pub(super) fn upto(&self, ceiling: u128, nonce: u64) -> (ChannelId, Once) {
        self.chain
            .approve(payer().address(), PERMIT2, atoms(WEALTH));
        let permit = Permit {
            owner: payer().address(),
            token: testing::network().token,
            ceiling: atoms(ceiling),
            nonce: U256::from(nonce),
            deadline: self.clock.now().seconds() + 600,
            to: testing::payout(),
            facilitator: claim_key().address(),
            valid_after: 0,
        };
        let domain = Permit::domain(testing::network().chain_id);
        let once = Once::Upto(Signed::sign(permit, &domain, &payer()));
        let id = once.terms(claim_key().address()).id(&testing::network());
        (id, once)
    }

    /// The payer takes a payment back.
    pub(super) fn cancels(&self, once: &Once) {
        match once {
            Once::Exact(transfer) => {
                let nonce = transfer.message.nonce;
                self.chain.cancel_authorization(payer().address(), nonce);
            }
            Once::Upto(permit) => {
                let nonce = permit.message.nonce;
                self.chain.cancel_permit(payer().address(), nonce);
            }
        }
    }

    pub(super) async fn tokens(&self, account: alloy::primitives::Address) -> u128 {
        self.handle()
            .token_balance(account)
            .await
            .expect("answers")
            .get()
    }

    pub(super) async fn payer_holds(&self) -> u128 {
        self.tokens(payer().address()).await
    }
}

/// The seller's books and its way to the chain.
pub(super) struct Office {
    pub(super) ledger: Ledger,
    pub(super) settlement: Settlement,
    pub(super) task: JoinHandle<()>,
    pub(super) sold: AtomicU64,
}

impl Office {
    pub(super) fn store(&self) -> &Store {
        self.ledger.store()
    }

    pub(super) fn find(&self, lane: u8) -> Option<ChannelView> {
        self.ledger.channel(config(lane).id(&testing::network()))
    }

    pub(super) fn view(&self, lane: u8) -> ChannelView {
        self.find(lane).expect("is known")
    }

    pub(super) fn claimed(&self, lane: u8) -> Amount {
        self.view(lane).channel.claimed()
    }

    pub(super) async fn funded(&self, world: &World, lane: u8, amount: u128) {
        let deposit = world.deposit(lane, amount, 1);
        let moved = self.settlement.deposit(config(lane), deposit);
        if tokio::time::timeout(Duration::from_millis(100), moved)
            .await
            .is_err()
        {
            // It waits to be deep enough.
            world.chain.mine(3);
        }
        eventually("it is funded", || {
            self.find(lane)
                .is_some_and(|view| view.channel.balance() == atoms(amount))
        })
        .await;
        // Else what a test waits for next could be this transaction.
        eventually("its deposit is over", || {
            let outlook = self.settlement.outlook();
            let mut purposes = outlook.in_flight.iter().map(|errand| errand.purpose);
            !purposes.any(|purpose| matches!(purpose, Purpose::Deposit { .. }))
        })
        .await;
    }

    /// Asks for a deposit into the channel it was signed for.
    pub(super) fn asks(&self, deposit: Deposit) -> JoinHandle<Result<Moved, SettlementError>> {
        let settlement = self.settlement.clone();
        let lanes = (0..16).map(config);
        let mut lanes = lanes.filter(|lane| deposit.verify(lane, &testing::network()).is_ok());
        let config = lanes.next().expect("signed for a lane");
        tokio::spawn(async move { settlement.deposit(config, deposit).await })
    }

    /// Takes a payment made for one purchase, in a task of its own.
    pub(super) fn takes(
        &self,
        (id, once): (ChannelId, Once),
        atoms: u128,
    ) -> JoinHandle<Result<Moved, SettlementError>> {
        let (settlement, amount) = (self.settlement.clone(), Amount::atoms(atoms));
        tokio::spawn(async move { settlement.take(id, once, amount).await })
    }

    /// Sells so many atoms' worth on a channel, under a voucher for exactly that.
    pub(super) async fn sell(&self, lane: u8, charge: u128) {
        let id = config(lane).id(&testing::network());
        let charged = self.view(lane).channel.charged();
        let voucher = Voucher {
            channel: id,
            ceiling: charged.saturating_add(atoms(charge)),
        };
        let domain = testing::network().domain();
        let key = testing::evm_key(8);
        let voucher = Signed::sign(voucher, &domain, &key);
        let voucher = voucher.verify(&domain, key.address()).expect("is good");
        self.ledger.take(voucher).await.expect("is taken");
        let request = self.sold.fetch_add(1, Ordering::Relaxed);
        let request = RequestId(keccak256(request.to_be_bytes()));
        let reservation = self
            .ledger
            .reserve(id, request, atoms(charge))
            .expect("is covered");
        let purchase = OpenPurchase {
            channel: id,
            request_hash: B256::ZERO,
            response_hash: B256::ZERO,
            model_hash: B256::ZERO,
            offer: OfferHash(B256::ZERO),
            usage: Usage::default(),
            cost: atoms(charge).to_cost().expect("small"),
            started: START,
        };
        let served = Served {
            purchase,
            finished: START,
            ending: Ending::Complete,
        };
        self.ledger
            .finish(reservation, served)
            .await
            .expect("is charged");
    }

    pub(super) fn claim_write(&self, lane: u8) -> Write {
        let row: ClaimRow = claims::row(&self.view(lane)).expect("something is owed");
        claims::write(vec![row]).expect("a row")
    }
}
