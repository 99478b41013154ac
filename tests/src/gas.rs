//! Gas, measured: real transactions with real signatures on anvil, and what they make a receipt
//! cost.
//!
//! Receipts are not bought one by one here: on the chain they are only the total of a claim, and
//! a claim over the total of ten thousand costs what a claim over one costs. So a cycle's gas is
//! measured and divided.

use std::fmt::Write as _;
use std::time::Duration;

use alloy::primitives::{B256, U256, keccak256};
use farthing_protocol::amount::Amount;
use farthing_protocol::chain::local::{ARTIFACTS, LocalChain};
use farthing_protocol::chain::{Chain, ChainError, ClaimRow, Write};
use farthing_protocol::clock::Timestamp;
use farthing_protocol::eip712::{EvmKey, Signed};
use farthing_protocol::testing;
use farthing_protocol::voucher::Voucher;
use farthing_protocol::x402::{
    ChannelConfig, Deposit, DepositTerms, Network, PERMIT2, Permit, Transfer,
};

use crate::street::{StreetError, WEALTH, anvil};

/// Rows of a claim that are measured.
const ROWS: [usize; 3] = [1, 10, 50];
/// Receipts of a cycle.
const RECEIPTS: [u64; 3] = [1, 100, 10_000];
/// What a receipt charges here, in atoms: an answer of two hundred tokens.
const RECEIPT: u128 = 115;
/// What a deposit brings, in atoms.
const DEPOSIT: u128 = 5_000_000;
/// How long a transaction may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What each kind of transaction uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gas {
    /// The first deposit of a channel, and one more.
    pub deposit: [u64; 2],
    /// By the number of rows: a claim on channels that were never claimed from, and a later one.
    pub claims: Vec<(usize, [u64; 2])>,
    /// A later claim of so many rows together with the payout.
    pub paid_out: Vec<(usize, u64)>,
    /// A payout alone.
    pub settle: u64,
    /// An `exact` payment.
    pub exact: u64,
    /// An `upto` payment, with a number among those used before.
    pub upto: u64,
}

/// The cast.
struct Stage {
    anvil: LocalChain,
    chain: Chain,
    network: Network,
    payer: EvmKey,
    voucher: EvmKey,
    seller: EvmKey,
    sent: u64,
}

impl Stage {
    async fn set_up() -> Result<Self, StreetError> {
        let network = testing::network();
        let anvil = LocalChain::start(&anvil()?, network.clone(), ARTIFACTS.as_ref()).await?;
        let stage = Self {
            chain: anvil.chain()?,
            anvil,
            network,
            payer: testing::evm_key(9),
            voucher: testing::evm_key(8),
            seller: testing::evm_key(1),
            sent: 0,
        };
        let payer = stage.payer.address();
        stage.anvil.mint(payer, WEALTH).await?;
        // Accounts in use are cheaper than new ones, and the usual case.
        stage
            .anvil
            .mint(testing::payout(), Amount::atoms(1))
            .await?;
        for account in [payer, stage.seller.address()] {
            stage.anvil.fund(account, 10_u128.pow(19)).await?;
        }
        stage.anvil.approve(payer, PERMIT2, WEALTH).await?;
        Ok(stage)
    }

    /// Sends it and returns the gas it used.
    async fn gas(&mut self, write: Write) -> Result<u64, StreetError> {
        self.sent += 1;
        let prepared = self.chain.prepare(&write, &self.seller, None).await?;
        let hash = self.chain.broadcast(&prepared.raw).await?;
        let outcome = self.chain.wait(hash, 1, PATIENCE).await?;
        if !outcome.success {
            let name = "a measured transaction".to_owned();
            return Err(ChainError::Reverted { name }.into());
        }
        Ok(outcome.gas)
    }

    async fn now(&self) -> Result<u64, StreetError> {
        Ok(self.chain.latest().await?.timestamp)
    }

    fn lane(&self, n: usize) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer.address(),
            payer_authorizer: self.voucher.address(),
            receiver: testing::payout(),
            receiver_authorizer: self.seller.address(),
            token: self.network.token,
            withdraw_delay: 86_400,
            salt: B256::from(U256::from(n)),
        }
    }

    async fn deposit(&mut self, n: usize) -> Result<u64, StreetError> {
        let config = self.lane(n);
        let terms = DepositTerms {
            amount: Amount::atoms(DEPOSIT),
            valid_before: Timestamp((self.now().await? + 600) * 1000),
            salt: keccak256(self.sent.to_be_bytes()),
        };
        let deposit = Deposit::sign(&config, terms, &self.network, &self.payer);
        self.gas(Write::Deposit { config, deposit }).await
    }

    /// Rows that raise the total of the lanes from `first` on to so much.
    fn rows(&self, first: usize, count: usize, total: u128) -> Vec<ClaimRow> {
        let row = |n| {
            let config = self.lane(n);
            let voucher = Voucher {
                channel: config.id(&self.network),
                ceiling: Amount::atoms(total),
            };
            ClaimRow {
                config,
                voucher: Signed::sign(voucher, &self.network.domain(), &self.voucher),
                total_claimed: Amount::atoms(total),
            }
        };
        (first..first + count).map(row).collect()
    }

    async fn exact(&mut self) -> Result<u64, StreetError> {
        let now = self.now().await?;
        let transfer = Transfer {
            from: self.payer.address(),
            to: testing::payout(),
            amount: Amount::atoms(RECEIPT),
            valid_after: now - 60,
            valid_before: now + 600,
            nonce: keccak256(self.sent.to_be_bytes()),
        };
        let transfer = Signed::sign(transfer, &self.network.token_domain(), &self.payer);
        self.gas(Write::Exact { transfer }).await
    }

    async fn upto(&mut self) -> Result<u64, StreetError> {
        let permit = Permit {
            owner: self.payer.address(),
            token: self.network.token,
            ceiling: Amount::atoms(RECEIPT * 2),
            nonce: U256::from(self.sent),
            deadline: self.now().await? + 600,
            to: testing::payout(),
            facilitator: self.seller.address(),
            valid_after: 0,
        };
        let domain = Permit::domain(self.network.chain_id);
        let permit = Signed::sign(permit, &domain, &self.payer);
        let amount = Amount::atoms(RECEIPT);
        self.gas(Write::Upto { permit, amount }).await
    }
}

/// Sends one of everything.
///
/// # Errors
/// [`StreetError`] when the chain does not do as told.
pub async fn measure() -> Result<Gas, StreetError> {
    let mut stage = Stage::set_up().await?;
    let mut gas = Gas::default();
    let (receiver, token) = (testing::payout(), stage.network.token);
    let lanes: usize = ROWS.iter().sum();
    for n in 0..lanes {
        gas.deposit[0] = stage.deposit(n).await?;
    }
    gas.deposit[1] = stage.deposit(0).await?;
    let mut first = 0;
    for count in ROWS {
        let rows = stage.rows(first, count, RECEIPT);
        let new = stage.gas(Write::Claim { rows }).await?;
        // From the first payout on, the receiver's books are in use.
        gas.settle = stage.gas(Write::Settle { receiver, token }).await?;
        let rows = stage.rows(first, count, RECEIPT * 101);
        let later = stage.gas(Write::Claim { rows }).await?;
        gas.settle = stage.gas(Write::Settle { receiver, token }).await?;
        gas.claims.push((count, [new, later]));
        let rows = stage.rows(first, count, RECEIPT * 10_101);
        let both = Write::ClaimAndSettle {
            rows,
            receiver,
            token,
        };
        gas.paid_out.push((count, stage.gas(both).await?));
        first += count;
    }
    for _ in 0..2 {
        gas.exact = stage.exact().await?;
        gas.upto = stage.upto().await?;
    }
    Ok(gas)
}

impl Gas {
    /// Of one channel's cycle: a deposit, and its part of a claim with payout of so many rows.
    fn cycle(&self, rows: usize) -> u64 {
        let paid = self.paid_out.iter().find(|(count, _)| *count == rows);
        let paid = paid.map_or(0, |(_, gas)| *gas);
        self.deposit[1] + paid / (rows.max(1) as u64)
    }

    /// The tables, in Markdown.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut text = String::from("| receipts per channel cycle |");
        for count in RECEIPTS {
            write!(text, " {count} |").ok();
        }
        text += "\n|---|---|---|---|\n";
        let mut row = |name: &str, gas: &dyn Fn(u64) -> u64| {
            write!(text, "| {name} |").ok();
            for count in RECEIPTS {
                write!(text, " {} |", gas(count)).ok();
            }
            text.push('\n');
        };
        for rows in ROWS {
            let cycle = self.cycle(rows);
            let name = match rows {
                1 => "one channel claimed by itself".to_owned(),
                _ => format!("{rows} channels in a claim"),
            };
            row(&name, &|receipts| cycle.div_ceil(receipts));
        }
        row("x402 `exact`, a transaction per receipt", &|_| self.exact);
        row("x402 `upto`, a transaction per receipt", &|_| self.upto);
        text += "\n| transaction | gas |\n|---|---|\n";
        let [new, more] = self.deposit;
        writeln!(text, "| deposit, first / one more | {new} / {more} |").ok();
        for (rows, [new, later]) in &self.claims {
            let what = format!("claim of {rows}, first / later");
            writeln!(text, "| {what} | {new} / {later} |").ok();
        }
        for (rows, gas) in &self.paid_out {
            writeln!(text, "| claim of {rows} with payout | {gas} |").ok();
        }
        writeln!(text, "| payout | {} |", self.settle).ok();
        writeln!(text, "| `exact` | {} |", self.exact).ok();
        writeln!(text, "| `upto` | {} |", self.upto).ok();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_bears_its_part_of_a_deposit_and_of_a_claim() {
        let gas = Gas {
            deposit: [120_000, 100_000],
            paid_out: vec![(1, 80_000), (10, 200_000), (50, 1_000_000)],
            ..Gas::default()
        };
        assert_eq!(gas.cycle(1), 180_000);
        assert_eq!(gas.cycle(50), 120_000);
        let text = gas.tables();
        assert!(text.contains("| one channel claimed by itself | 180000 | 1800 | 18 |"));
        assert!(text.contains("| 50 channels in a claim | 120000 | 1200 | 12 |"));
    }

    #[tokio::test]
    async fn on_a_real_chain_a_channel_is_cheaper_than_a_payment_each_from_a_few_receipts_on() {
        let gas = measure().await.expect("anvil does as told");
        assert!(gas.cycle(1) < gas.exact * 10, "{gas:?}");
        assert!(gas.cycle(50) / 100 < gas.exact / 10, "{gas:?}");
        let (rows, [_, later]) = gas.claims[2];
        assert!(later < rows as u64 * 30_000, "{gas:?}");
    }
}
