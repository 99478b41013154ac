//! A chain that tests give orders to, twin or anvil, and the small cast that acts on it: a payer,
//! its hot key, a seller.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use alloy::primitives::{Address, B256, U256};

use crate::amount::Amount;
use crate::chain::local::{ARTIFACTS, LocalChain};
use crate::chain::{Chain, ChainError, ClaimRow, MemoryChain, Outcome, Write};
use crate::clock::{Clock, Timestamp};
use crate::eip712::{EvmKey, Signed};
use crate::testing::{channel_config, evm_key, network, payout};
use crate::voucher::{SignedVoucher, Voucher};
use crate::x402::{
    ChannelConfig, ChannelId, Deposit, DepositTerms, Network, PERMIT2, Permit, SignedPermit,
    SignedTransfer, Transfer,
};

pub(super) const DEADLINE: Duration = Duration::from_secs(10);
pub(super) const ETHER: u128 = 1_000_000_000_000_000_000;

/// A chain that a test can give orders to.
pub(super) struct Bench {
    pub(super) chain: Chain,
    pub(super) hands: Hands,
}

pub(super) enum Hands {
    Twin(MemoryChain),
    Anvil(Box<LocalChain>),
}

/// Each sentence is a test of the twin and a test of the real contracts.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod twin {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::chain::bench::Bench::twin()).await;
            })*
        }
        mod anvil {
            $(#[tokio::test]
            async fn $name() {
                $crate::chain::bench::on_anvil(super::$name).await;
            })*
        }
    };
}

pub(super) async fn on_anvil<F: Future<Output = ()>>(test: impl FnOnce(Bench) -> F) {
    test(Bench::anvil().await).await;
}
pub(super) use conformance;

impl Bench {
    pub(super) fn twin() -> Self {
        let clock = Clock::manual(Clock::system().now());
        let memory = MemoryChain::new(network(), clock);
        Self {
            chain: Chain::memory(network(), &memory),
            hands: Hands::Twin(memory),
        }
    }

    pub(super) async fn anvil() -> Self {
        let local = LocalChain::start(&anvil_binary(), network(), ARTIFACTS.as_ref()).await;
        let local = local.expect("anvil starts and takes the contracts");
        Self {
            chain: local.chain().expect("a valid configuration"),
            hands: Hands::Anvil(Box::new(local)),
        }
    }

    pub(super) async fn mint(&self, to: Address, atoms: u128) {
        match &self.hands {
            Hands::Twin(memory) => memory.mint(to, Amount::atoms(atoms)),
            Hands::Anvil(local) => local.mint(to, Amount::atoms(atoms)).await.expect("mints"),
        }
    }

    pub(super) async fn approve(&self, owner: Address, atoms: u128) {
        let amount = Amount::atoms(atoms);
        match &self.hands {
            Hands::Twin(memory) => memory.approve(owner, PERMIT2, amount),
            Hands::Anvil(local) => {
                let approved = local.approve(owner, PERMIT2, amount).await;
                approved.expect("approves");
            }
        }
    }

    pub(super) async fn fund(&self, account: Address) {
        match &self.hands {
            Hands::Twin(memory) => memory.fund(account, ETHER),
            Hands::Anvil(local) => local.fund(account, ETHER).await.expect("funds"),
        }
    }

    /// A contract wallet with these owners.
    pub(super) async fn place_wallet(&self, at: Address, owners: Vec<Address>) {
        match &self.hands {
            Hands::Twin(memory) => memory.place_wallet(at, owners),
            Hands::Anvil(local) => local.place_wallet(at, owners).await.expect("is placed"),
        }
    }

    pub(super) async fn advance(&self, seconds: u64) {
        let by = Duration::from_secs(seconds);
        match &self.hands {
            Hands::Twin(memory) => {
                memory.clock().advance(by);
                memory.mine(1);
            }
            Hands::Anvil(local) => local.advance(by).await.expect("advances"),
        }
    }

    pub(super) async fn mine(&self, blocks: u64) {
        match &self.hands {
            Hands::Twin(memory) => memory.mine(blocks),
            Hands::Anvil(local) => local.mine(blocks).await.expect("mines"),
        }
    }

    pub(super) async fn hold(&self, held: bool) {
        match &self.hands {
            Hands::Twin(memory) => memory.set_held(held),
            Hands::Anvil(local) => local.set_held(held).await.expect("obeys"),
        }
    }

    /// The same chain, believed to be another network.
    pub(super) fn seen_as(&self, network: Network) -> Chain {
        match &self.hands {
            Hands::Twin(memory) => Chain::memory(network, memory),
            Hands::Anvil(local) => Chain::connect(network, local.config()).expect("valid"),
        }
    }

    /// Tokens for the payer and gas for those who act.
    pub(super) async fn furnish(&self) {
        self.mint(payer().address(), 1_000_000).await;
        for account in [&payer(), &hot(), &seller()] {
            self.fund(account.address()).await;
        }
    }

    pub(super) async fn deposit_of(&self, atoms: u128, salt: u8) -> Deposit {
        self.deposit_into(&channel_config(), atoms, salt).await
    }

    pub(super) async fn deposit_into(
        &self,
        config: &ChannelConfig,
        atoms: u128,
        salt: u8,
    ) -> Deposit {
        let now = self.chain.latest().await.expect("a block").timestamp;
        let terms = DepositTerms {
            amount: Amount::atoms(atoms),
            valid_before: Timestamp((now + 600) * 1000),
            salt: B256::repeat_byte(salt),
        };
        Deposit::sign(config, terms, &network(), &payer())
    }

    /// Prepares, broadcasts, waits; the write must succeed.
    pub(super) async fn run(&self, write: Write, signer: &EvmKey) -> Outcome {
        let prepared = self.chain.prepare(&write, signer, None).await;
        let prepared = prepared.expect("the write is possible");
        let hash = self.chain.broadcast(&prepared.raw).await.expect("is taken");
        assert_eq!(hash, prepared.hash);
        let outcome = self.chain.wait(hash, 1, DEADLINE).await.expect("is mined");
        assert!(outcome.success);
        assert!(outcome.gas <= prepared.gas);
        outcome
    }

    /// The name by which the contract refuses a write.
    pub(super) async fn refusal(&self, write: Write, signer: &EvmKey) -> String {
        match self.chain.prepare(&write, signer, None).await {
            Err(ChainError::Reverted { name }) => name,
            other => format!("not refused: {other:?}"),
        }
    }

    pub(super) async fn open(&self, atoms: u128) {
        self.furnish().await;
        let deposit = self.deposit_of(atoms, 1).await;
        self.run(deposit_write(deposit), &seller()).await;
    }

    pub(super) async fn tokens(&self, account: Address) -> u128 {
        self.chain
            .token_balance(account)
            .await
            .expect("answers")
            .get()
    }

    pub(super) async fn held(&self) -> (u128, u128) {
        let state = self.chain.channel(id()).await.expect("answers");
        (state.balance.get(), state.claimed.get())
    }
}

/// The anvil that the set-up installs: a test without it fails and says so.
pub(super) fn anvil_binary() -> PathBuf {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/bin/anvil"));
    assert!(path.exists(), "no anvil: run tests/tools/setup.sh anvil");
    path
}

pub(super) fn payer() -> EvmKey {
    evm_key(9)
}

pub(super) fn hot() -> EvmKey {
    evm_key(8)
}

pub(super) fn seller() -> EvmKey {
    evm_key(1)
}

pub(super) fn id() -> ChannelId {
    channel_config().id(&network())
}

pub(super) fn deposit_write(deposit: Deposit) -> Write {
    Write::Deposit {
        config: channel_config(),
        deposit,
    }
}

pub(super) fn voucher(config: &ChannelConfig, ceiling: u128, key: &EvmKey) -> SignedVoucher {
    let voucher = Voucher {
        channel: config.id(&network()),
        ceiling: Amount::atoms(ceiling),
    };
    Signed::sign(voucher, &network().domain(), key)
}

pub(super) fn row(ceiling: u128, total: u128) -> ClaimRow {
    ClaimRow {
        config: channel_config(),
        voucher: voucher(&channel_config(), ceiling, &hot()),
        total_claimed: Amount::atoms(total),
    }
}

pub(super) fn claim(rows: &[ClaimRow]) -> Write {
    Write::Claim {
        rows: rows.to_vec(),
    }
}

pub(super) fn withdraw(atoms: u128) -> Write {
    Write::InitiateWithdraw {
        config: channel_config(),
        amount: Amount::atoms(atoms),
    }
}

pub(super) fn finalize() -> Write {
    Write::FinalizeWithdraw {
        config: channel_config(),
    }
}

/// The payer's permission to move so much to the payout address, in force at `now`.
pub(super) fn transfer(now: u64, atoms: u128) -> Transfer {
    Transfer {
        from: payer().address(),
        to: payout(),
        amount: Amount::atoms(atoms),
        valid_after: now - 60,
        valid_before: now + 600,
        nonce: B256::repeat_byte(3),
    }
}

pub(super) fn exact(transfer: Transfer, key: &EvmKey) -> Write {
    let transfer: SignedTransfer = Signed::sign(transfer, &network().token_domain(), key);
    Write::Exact { transfer }
}

/// The payer's permission for the seller to take at most so much, in force at `now`.
pub(super) fn permit(now: u64, atoms: u128) -> Permit {
    Permit {
        owner: payer().address(),
        token: network().token,
        ceiling: Amount::atoms(atoms),
        nonce: U256::from(0x1234_u64),
        deadline: now + 600,
        to: payout(),
        facilitator: seller().address(),
        valid_after: 0,
    }
}

pub(super) fn signed(permit: Permit, key: &EvmKey) -> SignedPermit {
    Signed::sign(permit, &Permit::domain(network().chain_id), key)
}

pub(super) fn upto(permit: Permit, atoms: u128) -> Write {
    Write::Upto {
        permit: signed(permit, &payer()),
        amount: Amount::atoms(atoms),
    }
}
