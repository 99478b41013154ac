//! One conformance suite, run on the twin and, on a real anvil, on the contracts.

use super::bench::*;
use super::*;
use crate::eip712::EvmSignature;
use crate::testing::{channel_config, evm_key, network, payout};
use crate::x402::{Deposit, WITHDRAW_DELAY};

conformance![
    a_true_network_verifies,
    a_wrong_network_is_named,
    money_goes_in_and_is_claimed_and_settled,
    claim_and_settle_is_one_transaction,
    a_withdrawal_waits_for_its_delay,
    a_refund_returns_the_unclaimed_at_once,
    a_bad_voucher_is_refused_by_name,
    one_bad_row_fails_the_batch,
    what_is_claimed_already_is_skipped,
    a_deposit_authorization_works_once,
    a_bad_deposit_is_refused_by_name,
    nobody_acts_for_another,
    an_empty_purse_is_named_before_anything_is_sent,
    a_transaction_sent_twice_acts_once,
    a_waiting_transaction_can_be_replaced,
    confirmations_are_counted,
    events_tell_the_story,
];

async fn a_true_network_verifies(bench: Bench) {
    assert_eq!(bench.chain.verify().await, Ok(()));
}

async fn a_wrong_network_is_named(bench: Bench) {
    let seen = |network| bench.seen_as(network);
    let other = Network {
        chain_id: 1,
        ..network()
    };
    assert!(matches!(
        seen(other).verify().await,
        Err(ChainError::WrongChain {
            expected: 1,
            got: 31337,
            ..
        })
    ));
    let nowhere = Address::repeat_byte(0x55);
    let absent = |what| {
        Err(ChainError::ContractAbsent {
            what,
            address: nowhere,
        })
    };
    let no_settlement = Network {
        settlement: nowhere,
        ..network()
    };
    let no_collector = Network {
        collector: nowhere,
        ..network()
    };
    let no_token = Network {
        token: nowhere,
        ..network()
    };
    assert_eq!(
        seen(no_settlement.clone()).verify().await,
        absent("settlement contract")
    );
    assert_eq!(
        seen(no_collector).verify().await,
        absent("deposit collector")
    );
    assert_eq!(seen(no_token.clone()).verify().await, absent("token"));
    let unread = seen(no_settlement).channel(id()).await;
    assert_eq!(unread.map(|_| ()), absent("settlement contract"));
    let unread = seen(no_token).token_balance(payout()).await;
    assert_eq!(unread.map(|_| ()), absent("token"));
    let not_settlement = Network {
        settlement: network().token,
        ..network()
    };
    assert_eq!(
        seen(not_settlement).verify().await,
        Err(ChainError::SettlementDomain(network().token))
    );
    let renamed = Network {
        token_name: "USD Coin".into(),
        ..network()
    };
    assert_eq!(
        seen(renamed).verify().await,
        Err(ChainError::TokenDomain {
            token: network().token,
            expected: "USD Coin 2".into(),
            got: "USDC 2".into(),
        })
    );
}

async fn money_goes_in_and_is_claimed_and_settled(bench: Bench) {
    bench.furnish().await;
    assert_eq!(bench.held().await, (0, 0));
    let deposit = bench.deposit_of(10_000, 1).await;
    let used = || {
        bench
            .chain
            .authorization_used(payer().address(), deposit.nonce(id()))
    };
    assert_eq!(used().await, Ok(false));
    bench.run(deposit_write(deposit.clone()), &seller()).await;
    assert_eq!(used().await, Ok(true));
    assert_eq!(bench.held().await, (10_000, 0));
    assert_eq!(bench.tokens(payer().address()).await, 990_000);

    bench.run(claim(&[row(7_200, 7_000)]), &seller()).await;
    assert_eq!(bench.held().await, (10_000, 7_000));
    let payouts = || bench.chain.payouts(payout());
    let totals = payouts().await.expect("answers");
    assert_eq!((totals.claimed.get(), totals.settled.get()), (7_000, 0));
    assert_eq!(bench.tokens(payout()).await, 0);

    let settle = Write::Settle {
        receiver: payout(),
        token: network().token,
    };
    bench.run(settle, &hot()).await;
    assert_eq!(bench.tokens(payout()).await, 7_000);
    assert_eq!(bench.tokens(network().settlement).await, 3_000);
    let totals = payouts().await.expect("answers");
    assert_eq!((totals.claimed.get(), totals.settled.get()), (7_000, 7_000));
}

async fn claim_and_settle_is_one_transaction(bench: Bench) {
    bench.open(10_000).await;
    let both = Write::ClaimAndSettle {
        rows: vec![row(500, 500)],
        receiver: payout(),
        token: network().token,
    };
    bench.run(both.clone(), &seller()).await;
    assert_eq!(bench.tokens(payout()).await, 500);
    let bad = Write::ClaimAndSettle {
        rows: vec![row(20_000, 10_001)],
        receiver: payout(),
        token: network().token,
    };
    assert_eq!(bench.refusal(bad, &seller()).await, "ClaimExceedsBalance");
}

async fn a_withdrawal_waits_for_its_delay(bench: Bench) {
    bench.open(10_000).await;
    let pending = || bench.chain.pending_withdrawal(id());
    assert_eq!(pending().await, Ok(None));
    let refusal = async |write| bench.refusal(write, &hot()).await;
    assert_eq!(refusal(withdraw(0)).await, "NothingToWithdraw");
    assert_eq!(
        refusal(withdraw(10_001)).await,
        "WithdrawAmountExceedsAvailable"
    );
    assert_eq!(refusal(finalize()).await, "WithdrawalNotPending");
    bench.run(withdraw(9_000), &hot()).await;
    let armed = pending().await.expect("answers").expect("armed");
    assert_eq!(armed.amount.get(), 9_000);
    assert_eq!(refusal(withdraw(1)).await, "WithdrawalAlreadyPending");
    assert_eq!(refusal(finalize()).await, "WithdrawDelayNotElapsed");

    // The seller claims in time; the withdrawal gets what is left.
    bench.run(claim(&[row(4_000, 4_000)]), &seller()).await;
    bench.advance(channel_config().withdraw_delay + 1).await;
    bench.run(finalize(), &hot()).await;
    assert_eq!(bench.held().await, (4_000, 4_000));
    assert_eq!(bench.tokens(payer().address()).await, 996_000);
    assert_eq!(pending().await, Ok(None));
    let late = bench.refusal(claim(&[row(5_000, 5_000)]), &seller()).await;
    assert_eq!(late, "ClaimExceedsBalance");
}

async fn a_refund_returns_the_unclaimed_at_once(bench: Bench) {
    bench.open(10_000).await;
    bench.run(claim(&[row(1_000, 1_000)]), &seller()).await;
    bench.run(withdraw(6_000), &payer()).await;
    let refund = |atoms| Write::Refund {
        config: channel_config(),
        amount: Amount::atoms(atoms),
    };
    let nonce = || bench.chain.refund_nonce(id());
    assert_eq!(nonce().await, Ok(U256::ZERO));
    bench.run(refund(2_000), &seller()).await;
    assert_eq!(nonce().await, Ok(U256::from(1)));
    let armed = bench.chain.pending_withdrawal(id()).await.expect("answers");
    assert_eq!(armed.expect("still armed").amount.get(), 4_000);
    assert_eq!(bench.held().await, (8_000, 1_000));
    bench.run(refund(1_000_000), &seller()).await;
    assert_eq!(bench.held().await, (1_000, 1_000));
    assert_eq!(bench.tokens(payer().address()).await, 999_000);
    assert_eq!(bench.chain.pending_withdrawal(id()).await, Ok(None));
    assert_eq!(bench.refusal(refund(0), &seller()).await, "ZeroRefund");
}

/// The malleable twin of a signature: it recovers, and the contract refuses it.
fn malleable(signature: &EvmSignature) -> [u8; 65] {
    let order = U256::from_be_bytes(alloy::hex!(
        "fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141"
    ));
    let mut bytes = *signature.as_bytes();
    let s = U256::from_be_slice(&bytes[32..64]);
    bytes[32..64].copy_from_slice(&(order - s).to_be_bytes::<32>());
    bytes[64] = 55 - bytes[64];
    bytes
}

async fn a_bad_voucher_is_refused_by_name(bench: Bench) {
    bench.open(10_000).await;
    let good = row(5_000, 4_000);
    let with = async |bytes: [u8; 65]| {
        let mut row = good;
        row.voucher.signature = EvmSignature::from_bytes(bytes);
        bench.refusal(claim(&[row]), &seller()).await
    };
    let signature = good.voucher.signature;
    let mut odd = *signature.as_bytes();
    odd[64] -= 27;
    assert_eq!(with(malleable(&signature)).await, "ECDSAInvalidSignatureS");
    assert_eq!(with(odd).await, "ECDSAInvalidSignature");
    let mut foreign = good;
    foreign.voucher = voucher(&channel_config(), 5_000, &payer());
    assert_eq!(
        bench.refusal(claim(&[foreign]), &seller()).await,
        "InvalidSignature"
    );
    let mut raised = good;
    raised.voucher.message.ceiling = Amount::atoms(6_000);
    assert_eq!(
        bench.refusal(claim(&[raised]), &seller()).await,
        "InvalidSignature"
    );
    let over = bench.refusal(claim(&[row(5_000, 5_001)]), &seller()).await;
    assert_eq!(over, "ClaimExceedsCeiling");
    assert_eq!(bench.refusal(claim(&[]), &seller()).await, "EmptyBatch");
    bench.run(claim(&[good]), &seller()).await;
    assert_eq!(bench.held().await, (10_000, 4_000));
}

async fn one_bad_row_fails_the_batch(bench: Bench) {
    bench.open(10_000).await;
    let mut unfunded = row(100, 100);
    unfunded.config.salt = B256::repeat_byte(7);
    unfunded.voucher = voucher(&unfunded.config, 100, &hot());
    let refusal = bench
        .refusal(claim(&[row(2_000, 2_000), unfunded]), &seller())
        .await;
    assert_eq!(refusal, "ClaimExceedsBalance");
    assert_eq!(bench.held().await, (10_000, 0));
}

async fn what_is_claimed_already_is_skipped(bench: Bench) {
    bench.open(10_000).await;
    bench.run(claim(&[row(2_000, 2_000)]), &seller()).await;
    bench.run(claim(&[row(2_000, 2_000)]), &seller()).await;
    bench.run(claim(&[row(1_000, 900)]), &seller()).await;
    assert_eq!(bench.held().await, (10_000, 2_000));
}

async fn a_deposit_authorization_works_once(bench: Bench) {
    bench.furnish().await;
    let deposit = bench.deposit_of(400_000, 1).await;
    bench.run(deposit_write(deposit.clone()), &seller()).await;
    assert_eq!(
        bench.refusal(deposit_write(deposit), &seller()).await,
        "ERC3009UsedAuthorization"
    );
    let another = bench.deposit_of(100_000, 2).await;
    bench.run(deposit_write(another), &seller()).await;
    assert_eq!(bench.held().await, (500_000, 0));
}

async fn a_bad_deposit_is_refused_by_name(bench: Bench) {
    bench.furnish().await;
    let good = bench.deposit_of(1_000, 1).await;
    let refusal = async |deposit| bench.refusal(deposit_write(deposit), &seller()).await;
    let raised = Deposit {
        amount: Amount::atoms(1_001),
        ..good.clone()
    };
    assert_eq!(refusal(raised).await, "ERC3009InvalidSignature");
    let nothing = Deposit {
        amount: Amount::ZERO,
        ..good.clone()
    };
    assert_eq!(refusal(nothing).await, "ZeroDeposit");
    let rich = bench.deposit_of(1_000_001, 1).await;
    assert_eq!(refusal(rich).await, "ERC20InsufficientBalance");
    let quick = ChannelConfig {
        withdraw_delay: WITHDRAW_DELAY.start() - 1,
        ..channel_config()
    };
    let write = Write::Deposit {
        config: quick,
        deposit: good.clone(),
    };
    assert_eq!(
        bench.refusal(write, &seller()).await,
        "WithdrawDelayOutOfRange"
    );
    bench.advance(601).await;
    assert_eq!(refusal(good).await, "ERC3009InvalidAuthorizationTime");
    assert_eq!(bench.tokens(payer().address()).await, 1_000_000);
}

async fn nobody_acts_for_another(bench: Bench) {
    bench.open(10_000).await;
    let refund = Write::Refund {
        config: channel_config(),
        amount: Amount::atoms(1),
    };
    let stranger = evm_key(40);
    bench.fund(stranger.address()).await;
    let refusal = async |write| bench.refusal(write, &stranger).await;
    assert_eq!(refusal(claim(&[row(1, 1)])).await, "NotAuthorizedToClaim");
    assert_eq!(refusal(refund).await, "NotAuthorizedToRefund");
    assert_eq!(refusal(withdraw(1)).await, "InvalidChannel");
    assert_eq!(refusal(finalize()).await, "NotAuthorizedToFinalizeWithdraw");
}

async fn an_empty_purse_is_named_before_anything_is_sent(bench: Bench) {
    bench.mint(payer().address(), 1_000).await;
    let write = deposit_write(bench.deposit_of(1_000, 1).await);
    let account = evm_key(41).address();
    let refused = bench.chain.prepare(&write, &evm_key(41), None).await;
    assert!(
        matches!(refused, Err(ChainError::GasShort { account: who, balance: 0, .. }) if who == account),
        "{refused:?}"
    );
}

async fn a_transaction_sent_twice_acts_once(bench: Bench) {
    bench.furnish().await;
    let write = deposit_write(bench.deposit_of(1_000, 1).await);
    bench.hold(true).await;
    let chain = &bench.chain;
    let prepared = chain
        .prepare(&write, &seller(), None)
        .await
        .expect("possible");
    let rival = chain
        .prepare(&write, &seller(), Some(prepared.nonce))
        .await
        .expect("possible");
    for _ in 0..2 {
        assert_eq!(chain.broadcast(&prepared.raw).await, Ok(prepared.hash));
    }
    assert_eq!(chain.outcome(prepared.hash).await, Ok(None));
    let early = chain
        .wait(prepared.hash, 1, Duration::from_millis(50))
        .await;
    assert_eq!(early, Err(ChainError::Unconfirmed(prepared.hash)));
    let next = chain
        .prepare(&write, &seller(), None)
        .await
        .expect("possible");
    assert_eq!(next.nonce, prepared.nonce + 1);
    bench.mine(1).await;
    let outcome = chain.wait(prepared.hash, 1, DEADLINE).await;
    assert!(outcome.expect("mined").success);
    // Mined: handing it in again is still harmless, and the same place is taken for others.
    assert_eq!(chain.broadcast(&prepared.raw).await, Ok(prepared.hash));
    if rival.hash != prepared.hash {
        let refused = chain.broadcast(&rival.raw).await;
        assert_eq!(refused, Err(ChainError::NonceUsed));
    }
    assert_eq!(bench.held().await, (1_000, 0));
    // The second one was right when it was prepared; now it fails, and says so.
    bench.hold(false).await;
    chain.broadcast(&next.raw).await.expect("is taken");
    let outcome = chain.wait(next.hash, 1, DEADLINE).await.expect("mined");
    assert!(!outcome.success);
    assert_eq!(bench.held().await, (1_000, 0));
}

async fn a_waiting_transaction_can_be_replaced(bench: Bench) {
    bench.open(10_000).await;
    bench.hold(true).await;
    let chain = &bench.chain;
    let slow = claim(&[row(1_000, 1_000)]);
    let slow = chain
        .prepare(&slow, &seller(), None)
        .await
        .expect("possible");
    chain.broadcast(&slow.raw).await.expect("is taken");
    let write = claim(&[row(2_000, 2_000)]);
    let cheap = chain.prepare(&write, &seller(), Some(slow.nonce)).await;
    let cheap = chain.broadcast(&cheap.expect("possible").raw).await;
    assert_eq!(cheap, Err(ChainError::Underpriced));
    let fast = chain
        .replace(&write, &seller(), &slow)
        .await
        .expect("possible");
    chain.broadcast(&fast.raw).await.expect("is taken");
    bench.mine(1).await;
    let outcome = chain.wait(fast.hash, 1, DEADLINE).await;
    assert!(outcome.expect("mined").success);
    assert_eq!(chain.outcome(slow.hash).await, Ok(None));
    assert_eq!(bench.held().await, (10_000, 2_000));
}

async fn confirmations_are_counted(bench: Bench) {
    bench.furnish().await;
    let write = deposit_write(bench.deposit_of(1_000, 1).await);
    let chain = &bench.chain;
    let prepared = chain
        .prepare(&write, &seller(), None)
        .await
        .expect("possible");
    chain.broadcast(&prepared.raw).await.expect("is taken");
    let shallow = chain
        .wait(prepared.hash, 3, Duration::from_millis(100))
        .await;
    assert_eq!(shallow, Err(ChainError::Unconfirmed(prepared.hash)));
    bench.mine(2).await;
    let deep = chain.wait(prepared.hash, 3, DEADLINE).await;
    assert!(deep.expect("deep enough").success);
}

async fn events_tell_the_story(bench: Bench) {
    bench.open(10_000).await;
    let first = bench.chain.latest().await.expect("a block").number;
    bench.run(claim(&[row(2_000, 2_000)]), &seller()).await;
    let armed = bench.run(withdraw(5_000), &hot()).await;
    let last = bench.chain.latest().await.expect("a block").number;

    let withdrawals = bench.chain.withdrawals(0..=last).await.expect("answers");
    let pending = bench.chain.pending_withdrawal(id()).await.expect("answers");
    let initiated_at = pending.expect("armed").initiated_at;
    let expected = Withdrawal {
        channel: id(),
        amount: Amount::atoms(5_000),
        finalize_after: initiated_at + channel_config().withdraw_delay,
        block: armed.block,
    };
    assert_eq!(withdrawals, [expected]);
    assert_eq!(bench.chain.withdrawals(0..=first).await, Ok(Vec::new()));

    let events = bench.chain.events(0..=last).await.expect("answers");
    assert!(events.iter().all(|event| event.channel == id()));
    let changes: Vec<_> = events.iter().map(|event| event.change).collect();
    let atoms = Amount::atoms;
    assert_eq!(
        changes,
        [
            Change::Deposited {
                amount: atoms(10_000),
                balance: atoms(10_000)
            },
            Change::Claimed {
                amount: atoms(2_000),
                claimed: atoms(2_000)
            },
            Change::WithdrawInitiated {
                amount: atoms(5_000),
                finalize_after: expected.finalize_after
            },
        ]
    );
}
