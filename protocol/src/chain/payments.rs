//! The conformance suite's second half: payments of one request each, `exact` and `upto`.

use super::bench::*;
use super::*;
use crate::chain::local::LocalChain;
use crate::eip712::{EvmSignature, Signed};
use crate::testing::{evm_key, network, payout};
use crate::x402::{Permit, Transfer};

conformance![
    an_exact_payment_moves_its_amount_once,
    a_bad_transfer_is_refused_by_name,
    an_upto_payment_takes_what_is_asked_and_no_more,
    a_permit_is_used_up_whatever_was_taken,
    permits_are_taken_in_any_order,
    a_permit_is_for_its_facilitator_alone,
    a_bad_permit_is_refused_by_name,
    a_payer_that_allows_or_holds_too_little_pays_nothing,
    upto_is_there,
];

async fn now(bench: &Bench) -> u64 {
    bench.chain.latest().await.expect("a block").timestamp
}

async fn an_exact_payment_moves_its_amount_once(bench: Bench) {
    bench.furnish().await;
    let transfer = transfer(now(&bench).await, 700);
    let used = || {
        bench
            .chain
            .authorization_used(transfer.from, transfer.nonce)
    };
    assert_eq!(used().await, Ok(false));
    // By anyone: here a key that has no part in it.
    bench.run(exact(transfer, &payer()), &hot()).await;
    assert_eq!(used().await, Ok(true));
    assert_eq!(bench.tokens(payout()).await, 700);
    assert_eq!(bench.tokens(payer().address()).await, 999_300);
    let again = bench.refusal(exact(transfer, &payer()), &seller()).await;
    assert_eq!(again, "ERC3009UsedAuthorization");
}

async fn a_bad_transfer_is_refused_by_name(bench: Bench) {
    bench.furnish().await;
    let now = now(&bench).await;
    let good = transfer(now, 700);
    let refusal = async |transfer| bench.refusal(exact(transfer, &payer()), &seller()).await;
    let foreign = bench.refusal(exact(good, &hot()), &seller()).await;
    assert_eq!(foreign, "ERC3009InvalidSignature");
    let Write::Exact { mut transfer } = exact(good, &payer()) else {
        unreachable!("made an exact payment");
    };
    transfer.message.amount = Amount::atoms(701);
    let raised = bench.refusal(Write::Exact { transfer }, &seller()).await;
    assert_eq!(raised, "ERC3009InvalidSignature");
    let early = Transfer {
        valid_after: now + 300,
        ..good
    };
    assert_eq!(refusal(early).await, "ERC3009InvalidAuthorizationTime");
    let late = Transfer {
        valid_before: now,
        ..good
    };
    assert_eq!(refusal(late).await, "ERC3009InvalidAuthorizationTime");
    let rich = Transfer {
        amount: Amount::atoms(1_000_001),
        ..good
    };
    assert_eq!(refusal(rich).await, "ERC20InsufficientBalance");
    let nobody = Transfer {
        to: Address::ZERO,
        ..good
    };
    assert_eq!(refusal(nobody).await, "ERC20InvalidReceiver");
    assert_eq!(bench.tokens(payer().address()).await, 1_000_000);
}

async fn an_upto_payment_takes_what_is_asked_and_no_more(bench: Bench) {
    bench.furnish().await;
    bench.approve(payer().address(), 10_000).await;
    let permit = permit(now(&bench).await, 900);
    let over = bench.refusal(upto(permit, 901), &seller()).await;
    assert_eq!(over, "AmountExceedsPermitted");
    bench.run(upto(permit, 250), &seller()).await;
    assert_eq!(bench.tokens(payout()).await, 250);
    assert_eq!(bench.tokens(payer().address()).await, 999_750);
    let left = bench.chain.permit2_allowance(payer().address()).await;
    assert_eq!(left, Ok(Amount::atoms(9_750)));
}

async fn a_permit_is_used_up_whatever_was_taken(bench: Bench) {
    bench.furnish().await;
    bench.approve(payer().address(), 10_000).await;
    let permit = permit(now(&bench).await, 900);
    let used = || bench.chain.permit_used(permit.owner, permit.nonce);
    assert_eq!(used().await, Ok(false));
    bench.run(upto(permit, 0), &seller()).await;
    assert_eq!(used().await, Ok(true));
    assert_eq!(bench.tokens(payout()).await, 0);
    let again = bench.refusal(upto(permit, 900), &seller()).await;
    assert_eq!(again, "InvalidNonce");
}

async fn permits_are_taken_in_any_order(bench: Bench) {
    bench.furnish().await;
    bench.approve(payer().address(), 10_000).await;
    let first = permit(now(&bench).await, 10);
    for nonce in [U256::MAX, U256::from(255), U256::from(256), U256::ZERO] {
        let permit = Permit { nonce, ..first };
        let used = bench.chain.permit_used(permit.owner, nonce).await;
        assert_eq!(used, Ok(false), "{nonce}");
        bench.run(upto(permit, 10), &seller()).await;
        let used = bench.chain.permit_used(permit.owner, nonce).await;
        assert_eq!(used, Ok(true), "{nonce}");
    }
    assert_eq!(bench.tokens(payout()).await, 40);
}

async fn a_permit_is_for_its_facilitator_alone(bench: Bench) {
    bench.furnish().await;
    bench.approve(payer().address(), 10_000).await;
    let good = permit(now(&bench).await, 900);
    let stolen = bench.refusal(upto(good, 900), &hot()).await;
    assert_eq!(stolen, "UnauthorizedFacilitator");
    // Writing another facilitator into it breaks the signature.
    let mut renamed = signed(good, &payer());
    renamed.message.facilitator = hot().address();
    let write = Write::Upto {
        permit: renamed,
        amount: Amount::atoms(900),
    };
    assert_eq!(bench.refusal(write, &hot()).await, "InvalidSigner");
    assert_eq!(bench.tokens(payer().address()).await, 1_000_000);
}

async fn a_bad_permit_is_refused_by_name(bench: Bench) {
    bench.furnish().await;
    bench.approve(payer().address(), 10_000).await;
    let now = now(&bench).await;
    let good = permit(now, 900);
    let refusal = async |permit| bench.refusal(upto(permit, 1), &seller()).await;
    let with = |permit| Write::Upto {
        permit,
        amount: Amount::atoms(1),
    };
    let expired = Permit {
        deadline: now - 1,
        ..good
    };
    assert_eq!(refusal(expired).await, "SignatureExpired");
    let early = Permit {
        valid_after: now + 300,
        ..good
    };
    assert_eq!(refusal(early).await, "PaymentTooEarly");
    let nowhere = Permit {
        to: Address::ZERO,
        ..good
    };
    assert_eq!(refusal(nowhere).await, "InvalidDestination");
    let foreign = with(signed(good, &hot()));
    assert_eq!(bench.refusal(foreign, &seller()).await, "InvalidSigner");
    let mut redirected = signed(good, &payer());
    redirected.message.to = seller().address();
    let redirected = bench.refusal(with(redirected), &seller()).await;
    assert_eq!(redirected, "InvalidSigner");
    let mut raised = signed(good, &payer());
    raised.message.ceiling = Amount::atoms(901);
    assert_eq!(
        bench.refusal(with(raised), &seller()).await,
        "InvalidSigner"
    );
    let mut odd = signed(good, &payer());
    let mut bytes = *odd.signature.as_bytes();
    bytes[64] -= 27;
    odd.signature = EvmSignature::from_bytes(bytes);
    assert_eq!(
        bench.refusal(with(odd), &seller()).await,
        "InvalidSignature"
    );
    // A permit for another chain is another message.
    let domain = Permit::domain(1);
    let elsewhere = with(Signed::sign(good, &domain, &payer()));
    assert_eq!(bench.refusal(elsewhere, &seller()).await, "InvalidSigner");
}

async fn a_payer_that_allows_or_holds_too_little_pays_nothing(bench: Bench) {
    bench.furnish().await;
    let permit = permit(now(&bench).await, 2_000_000);
    let refusal = async |atoms| bench.refusal(upto(permit, atoms), &seller()).await;
    let allowed = || bench.chain.permit2_allowance(payer().address());
    assert_eq!(allowed().await, Ok(Amount::ZERO));
    assert_eq!(refusal(1).await, "TRANSFER_FROM_FAILED");
    bench.approve(payer().address(), 2_000_000).await;
    assert_eq!(allowed().await, Ok(Amount::atoms(2_000_000)));
    assert_eq!(refusal(1_000_001).await, "TRANSFER_FROM_FAILED");
    let used = bench.chain.permit_used(permit.owner, permit.nonce).await;
    assert_eq!(used, Ok(false));
    bench.run(upto(permit, 1_000_000), &seller()).await;
    assert_eq!(bench.tokens(payout()).await, 1_000_000);
    // What is in another token is not ours to take.
    let foreign = Permit {
        token: evm_key(40).address(),
        nonce: U256::ZERO,
        ..permit
    };
    assert_ne!(foreign.token, network().token);
    let refused = bench.refusal(upto(foreign, 1), &seller()).await;
    assert_eq!(refused, "TRANSFER_FROM_FAILED");
}

async fn upto_is_there(bench: Bench) {
    assert_eq!(bench.chain.verify_upto().await, Ok(()));
}

#[tokio::test]
async fn a_chain_without_permit2_is_named_on_anvil() {
    let bare = LocalChain::start_bare(&anvil_binary(), network()).await;
    let bare = bare.expect("starts");
    let chain = bare.chain().expect("valid");
    assert_eq!(
        chain.verify_upto().await,
        Err(ChainError::ContractAbsent {
            what: "Permit2",
            address: PERMIT2,
        })
    );
}
