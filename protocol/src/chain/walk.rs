//! Twin and contracts take the same random walk and must agree at each step: what is allowed,
//! why not, and who then holds what.

use alloy::primitives::B256;

use super::bench::*;
use super::*;
use crate::testing::{channel_config, evm_key, network, payout};

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn atoms(&mut self) -> u128 {
        u128::from(self.below(3_000))
    }

    fn config(&mut self) -> ChannelConfig {
        let salt = u8::try_from(self.below(2)).expect("small");
        ChannelConfig {
            salt: B256::repeat_byte(salt),
            ..channel_config()
        }
    }

    /// Mostly somebody who may.
    fn actor(&mut self, usual: &EvmKey) -> EvmKey {
        match self.below(8) {
            0 => evm_key(40),
            1 => hot(),
            _ => usual.clone(),
        }
    }

    fn row(&mut self) -> ClaimRow {
        let config = self.config();
        let key = if self.below(8) == 0 { payer() } else { hot() };
        ClaimRow {
            config,
            voucher: voucher(&config, self.atoms(), &key),
            total_claimed: Amount::atoms(self.atoms()),
        }
    }

    fn rows(&mut self) -> Vec<ClaimRow> {
        (0..self.below(4)).map(|_| self.row()).collect()
    }
}

enum Step {
    Deposit(ChannelConfig, u128, u8),
    Write(Write, EvmKey),
    Advance,
}

fn step(dice: &mut Dice) -> Step {
    let config = dice.config();
    let amount = Amount::atoms(dice.atoms());
    let (receiver, token) = (payout(), network().token);
    let rows = dice.rows();
    let (write, usual) = match dice.below(9) {
        0 | 1 => {
            let salt = u8::try_from(dice.below(12)).expect("small");
            return Step::Deposit(config, amount.get(), salt);
        }
        2 => return Step::Advance,
        3 | 4 => (Write::Claim { rows }, seller()),
        5 => {
            let both = Write::ClaimAndSettle {
                rows,
                receiver,
                token,
            };
            (both, seller())
        }
        6 => (Write::InitiateWithdraw { config, amount }, payer()),
        7 => (Write::FinalizeWithdraw { config }, payer()),
        _ => (Write::Refund { config, amount }, seller()),
    };
    Step::Write(write, dice.actor(&usual))
}

impl Bench {
    async fn take(&self, step: &Step) -> String {
        let (write, signer) = match step {
            Step::Advance => {
                self.advance(channel_config().withdraw_delay / 2 + 1).await;
                return "later".into();
            }
            Step::Deposit(config, atoms, salt) => {
                let deposit = self.deposit_into(config, *atoms, *salt).await;
                let config = *config;
                (Write::Deposit { config, deposit }, seller())
            }
            Step::Write(write, signer) => (write.clone(), signer.clone()),
        };
        match self.chain.prepare(&write, &signer, None).await {
            Err(error) => error.to_string(),
            Ok(prepared) => {
                self.chain.broadcast(&prepared.raw).await.expect("is taken");
                let mined = self.chain.wait(prepared.hash, 1, DEADLINE).await;
                format!("success {}", mined.expect("is mined").success)
            }
        }
    }

    async fn books(&self) -> String {
        let mut books = Vec::new();
        for salt in 0..2 {
            let config = ChannelConfig {
                salt: B256::repeat_byte(salt),
                ..channel_config()
            };
            let id = config.id(&network());
            let held = self.chain.channel(id).await.expect("answers");
            let nonce = self.chain.refund_nonce(id).await.expect("answers");
            let armed = self.chain.pending_withdrawal(id).await.expect("answers");
            let armed = armed.map(|pending| pending.amount);
            books.push(format!("{held:?} {nonce} {armed:?}"));
        }
        for account in [payer().address(), payout(), network().settlement] {
            books.push(self.tokens(account).await.to_string());
        }
        let payouts = self.chain.payouts(payout()).await.expect("answers");
        format!("{books:?} {payouts:?}")
    }
}

#[tokio::test]
async fn the_twin_and_the_contracts_walk_together() {
    for seed in [1, 7, 2026] {
        let anvil = Bench::anvil().await;
        let twin = Bench::twin();
        for bench in [&twin, &anvil] {
            bench.furnish().await;
            bench.fund(evm_key(40).address()).await;
        }
        let mut dice = Dice(seed);
        let mut successes = 0;
        for number in 0..80 {
            let step = step(&mut dice);
            let (expected, got) = (twin.take(&step).await, anvil.take(&step).await);
            assert_eq!(expected, got, "step {number} of walk {seed}");
            successes += u32::from(got == "success true");
            let (expected, got) = (twin.books().await, anvil.books().await);
            assert_eq!(expected, got, "after step {number} of walk {seed}");
        }
        assert!(successes > 15, "walk {seed} did little: {successes}");
    }
}
