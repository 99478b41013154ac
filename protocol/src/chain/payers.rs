//! Whose money may be deposited on whose word: keys and contracts, on the twin and on the
//! contracts themselves.

use alloy::primitives::{Address, B256, Bytes};

use super::bench::{Bench, deposit_write, payer, seller};
use crate::amount::Amount;
use crate::chain::Write;
use crate::clock::Timestamp;
use crate::eip712::EvmKey;
use crate::testing::{channel_config, evm_key, network};
use crate::x402::{ChannelConfig, Deposit, DepositTerms, PayerSignature};

const WALLET: Address = Address::repeat_byte(0xda);

/// The wallet's owners, in the order of their addresses.
fn owners() -> [EvmKey; 2] {
    let mut owners = [evm_key(70), evm_key(71)];
    owners.sort_by_key(EvmKey::address);
    owners
}

fn config() -> ChannelConfig {
    ChannelConfig {
        payer: WALLET,
        ..channel_config()
    }
}

/// A rich wallet on the chain, and a deposit it may consent to.
async fn furnished(bench: &Bench) -> Deposit {
    bench.furnish().await;
    let addresses = owners().iter().map(EvmKey::address).collect();
    bench.place_wallet(WALLET, addresses).await;
    bench.mint(WALLET, 1_000_000).await;
    let now = bench.chain.latest().await.expect("a block").timestamp;
    let terms = DepositTerms {
        amount: Amount::atoms(400_000),
        valid_before: Timestamp((now + 600) * 1000),
        salt: B256::repeat_byte(1),
    };
    terms.unsigned()
}

fn signed_by(deposit: &Deposit, keys: [&EvmKey; 2]) -> Deposit {
    let digest = deposit.digest(&config(), &network());
    let parts = keys.map(|key| *key.sign_hash(digest).as_bytes());
    let signature = PayerSignature::new(Bytes::from(parts.concat())).expect("is short");
    Deposit {
        signature,
        ..deposit.clone()
    }
}

fn write(deposit: Deposit) -> Write {
    Write::Deposit {
        config: config(),
        deposit,
    }
}

async fn a_contract_pays_on_its_owners_word(bench: Bench) {
    let deposit = furnished(&bench).await;
    let [low, high] = &owners();
    let good = signed_by(&deposit, [low, high]);
    assert_eq!(bench.chain.consents(&config(), &good).await, Ok(true));
    bench.run(write(good.clone()), &seller()).await;
    let id = config().id(&network());
    let held = bench.chain.channel(id).await.expect("answers").balance;
    assert_eq!(held, deposit.amount);
    assert_eq!(bench.tokens(WALLET).await, 600_000);
    assert_eq!(
        bench.refusal(write(good), &seller()).await,
        "ERC3009UsedAuthorization"
    );
}

async fn a_contract_does_not_pay_on_another_word(bench: Bench) {
    let deposit = furnished(&bench).await;
    let [low, high] = &owners();
    let stranger = &evm_key(72);
    let one = low.sign_hash(deposit.digest(&config(), &network()));
    let more = Deposit {
        amount: Amount::atoms(400_001),
        ..signed_by(&deposit, [low, high])
    };
    let one_owner = Deposit {
        signature: one.into(),
        ..deposit.clone()
    };
    let bad = [
        signed_by(&deposit, [high, low]),
        signed_by(&deposit, [low, low]),
        signed_by(&deposit, [low, stranger]),
        more,
        one_owner,
        deposit.clone(),
    ];
    for bad in bad {
        assert_eq!(bench.chain.consents(&config(), &bad).await, Ok(false));
        assert_eq!(
            bench.refusal(write(bad), &seller()).await,
            "ERC3009InvalidSignature"
        );
    }
}

/// EIP-7702 gives code to keys; a leaked or delegated key then says nothing any more.
async fn an_account_with_code_is_never_judged_by_its_key(bench: Bench) {
    bench.furnish().await;
    let good = bench.deposit_of(1_000, 1).await;
    assert_eq!(
        bench.chain.consents(&channel_config(), &good).await,
        Ok(true)
    );
    let addresses = owners().iter().map(EvmKey::address).collect();
    bench.place_wallet(payer().address(), addresses).await;
    assert_eq!(
        bench.chain.consents(&channel_config(), &good).await,
        Ok(false)
    );
    assert_eq!(
        bench.refusal(deposit_write(good), &seller()).await,
        "ERC3009InvalidSignature"
    );
}

/// An account with code that does not know EIP-1271 consents to nothing.
async fn a_contract_of_another_kind_consents_to_nothing(bench: Bench) {
    let deposit = furnished(&bench).await;
    let other = ChannelConfig {
        payer: network().token,
        ..config()
    };
    let [low, high] = &owners();
    let deposit = signed_by(&deposit, [low, high]);
    assert_eq!(bench.chain.consents(&other, &deposit).await, Ok(false));
}

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod twin {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Bench::twin()).await;
            })*
        }
        mod anvil {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Bench::anvil().await).await;
            })*
        }
    };
}

on_both![
    a_contract_pays_on_its_owners_word,
    a_contract_does_not_pay_on_another_word,
    an_account_with_code_is_never_judged_by_its_key,
    a_contract_of_another_kind_consents_to_nothing,
];
