// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// The two ways back to the payer: a refund, which the receiver gives, and a withdrawal, which waits.
contract ReturnTest is Street {
    uint256 private before;

    function setUp() public override {
        super.setUp();
        fund(lane(0), 1000);
        before = token.balanceOf(payer);
    }

    function returned() private view returns (uint256) {
        return token.balanceOf(payer) - before;
    }

    function initiate(uint128 amount) private {
        vm.prank(payerAuthorizer);
        settlement.initiateWithdraw(lane(0), amount);
    }

    function finalize() private {
        vm.prank(payer);
        settlement.finalizeWithdraw(lane(0));
    }

    // ------------------------------------------------------------ withdraw

    function test_withdraw_after_the_delay() public {
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.WithdrawInitiated(id(lane(0)), 1000, uint40(START) + DELAY);
        initiate(1000);
        (uint128 amount, uint40 since) = settlement.pendingWithdrawals(id(lane(0)));
        vm.assertEq(amount, 1000, "pending");
        vm.assertEq(since, START, "since");

        vm.warp(START + DELAY - 1);
        vm.expectRevert(BatchSettlement.WithdrawDelayNotElapsed.selector);
        finalize();

        vm.warp(START + DELAY);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.WithdrawFinalized(id(lane(0)), payer, 1000);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.ChannelClosed(id(lane(0)), lane(0));
        finalize();
        vm.assertEq(returned(), 1000, "returned");

        vm.expectRevert(BatchSettlement.WithdrawalNotPending.selector);
        finalize();
    }

    function test_the_money_goes_to_the_payer_whoever_finalizes() public {
        initiate(400);
        vm.warp(START + DELAY);
        vm.prank(payerAuthorizer);
        settlement.finalizeWithdraw(lane(0));
        vm.assertEq(returned(), 400, "returned");
        vm.assertEq(token.balanceOf(payerAuthorizer), 0, "not to the hot key");
    }

    function test_a_claim_during_the_delay_comes_first() public {
        initiate(1000);
        claim(lane(0), 700);
        vm.warp(START + DELAY);
        finalize();
        vm.assertEq(returned(), 300, "the rest");
        settlement.settle(receiver, TOKEN);
        vm.assertEq(token.balanceOf(receiver), 700, "the claim");
        vm.assertEq(token.balanceOf(SETTLEMENT), 0, "nothing left over");
    }

    /// Armed long ago, finalized at once: what a seller that does not watch would lose.
    function test_a_claim_after_a_finalized_withdrawal_fails() public {
        initiate(1000);
        vm.warp(START + DELAY);
        finalize();
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(lane(0), 700, 700));
        vm.expectRevert(BatchSettlement.ClaimExceedsBalance.selector);
        vm.prank(receiver);
        settlement.claim(rows);
    }

    function test_a_withdrawal_of_nothing_left_is_quietly_over() public {
        initiate(1000);
        claim(lane(0), 1000);
        vm.warp(START + DELAY);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.WithdrawFinalized(id(lane(0)), payer, 0);
        finalize();
        vm.assertEq(returned(), 0, "returned");
    }

    function test_initiate_is_refused() public {
        vm.expectRevert(BatchSettlement.NothingToWithdraw.selector);
        initiate(0);
        vm.expectRevert(BatchSettlement.WithdrawAmountExceedsAvailable.selector);
        initiate(1001);
        claim(lane(0), 300);
        vm.expectRevert(BatchSettlement.WithdrawAmountExceedsAvailable.selector);
        initiate(701);
        initiate(1);
        vm.expectRevert(BatchSettlement.WithdrawalAlreadyPending.selector);
        initiate(1);
    }

    function test_a_deposit_does_not_disarm() public {
        initiate(1000);
        fund(lane(0), 500);
        vm.assertEq(pendingOf(lane(0)), 1000, "pending");
    }

    function testFuzz_only_the_payer_side_withdraws(address who) public {
        vm.assume(who != payer && who != payerAuthorizer);
        vm.expectRevert(BatchSettlement.InvalidChannel.selector);
        vm.prank(who);
        settlement.initiateWithdraw(lane(0), 1);

        initiate(1000);
        vm.warp(START + DELAY);
        vm.expectRevert(BatchSettlement.NotAuthorizedToFinalizeWithdraw.selector);
        vm.prank(who);
        settlement.finalizeWithdraw(lane(0));
    }

    function testFuzz_the_delay_is_kept(uint40 delay, uint40 waited) public {
        BatchSettlement.ChannelConfig memory config = lane(1);
        config.withdrawDelay = uint40(bound(delay, 15 minutes, 30 days));
        fund(config, 10);
        vm.prank(payer);
        settlement.initiateWithdraw(config, 10);
        waited = uint40(bound(waited, 0, 60 days));
        vm.warp(START + waited);
        if (waited < config.withdrawDelay) vm.expectRevert(BatchSettlement.WithdrawDelayNotElapsed.selector);
        vm.prank(payer);
        settlement.finalizeWithdraw(config);
    }

    // ------------------------------------------------------------ refund

    function test_refund_returns_what_is_unclaimed() public {
        claim(lane(0), 300);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.Refunded(id(lane(0)), receiver, 700);
        vm.prank(receiver);
        settlement.refund(lane(0), type(uint128).max);
        vm.assertEq(returned(), 700, "capped");
        vm.assertEq(balanceOf(lane(0)), 300, "balance");
        vm.assertEq(settlement.refundNonce(id(lane(0))), 1, "nonce");
    }

    function test_a_full_refund_closes() public {
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.Refunded(id(lane(0)), receiverAuthorizer, 1000);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.ChannelClosed(id(lane(0)), lane(0));
        vm.prank(receiverAuthorizer);
        settlement.refund(lane(0), 1000);
    }

    function test_anyone_submits_a_signed_refund() public {
        bytes memory signature = sign(CLAIM_KEY, settlement.getRefundDigest(id(lane(0)), 0, 400));
        vm.prank(stranger);
        settlement.refundWithSignature(lane(0), 400, 0, signature);
        vm.assertEq(returned(), 400, "returned");

        vm.expectRevert(BatchSettlement.InvalidRefundNonce.selector);
        settlement.refundWithSignature(lane(0), 400, 0, signature);
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.refundWithSignature(lane(0), 400, 1, signature);
    }

    /// Else a signature over an empty channel could be kept and used after the next deposit.
    function test_the_nonce_is_spent_even_on_nothing() public {
        claim(lane(0), 1000);
        bytes memory signature = sign(CLAIM_KEY, settlement.getRefundDigest(id(lane(0)), 0, 400));
        settlement.refundWithSignature(lane(0), 400, 0, signature);
        vm.assertEq(returned(), 0, "nothing to return");
        vm.assertEq(settlement.refundNonce(id(lane(0))), 1, "nonce");

        fund(lane(0), 500);
        vm.expectRevert(BatchSettlement.InvalidRefundNonce.selector);
        settlement.refundWithSignature(lane(0), 400, 0, signature);
    }

    function test_a_direct_refund_voids_signed_ones() public {
        bytes memory signature = sign(CLAIM_KEY, settlement.getRefundDigest(id(lane(0)), 0, 400));
        vm.prank(receiver);
        settlement.refund(lane(0), 1);
        vm.expectRevert(BatchSettlement.InvalidRefundNonce.selector);
        settlement.refundWithSignature(lane(0), 400, 0, signature);
    }

    function test_a_signed_refund_is_what_was_signed() public {
        bytes32 channelId = id(lane(0));
        bytes memory signature = sign(CLAIM_KEY, settlement.getRefundDigest(channelId, 0, 400));
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.refundWithSignature(lane(0), 401, 0, signature);
        fund(lane(1), 1000);
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.refundWithSignature(lane(1), 400, 0, signature);
        bytes memory odd = twin(CLAIM_KEY, settlement.getRefundDigest(channelId, 0, 400));
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.refundWithSignature(lane(0), 400, 0, odd);
        // The receiver itself may refund by call, but only its authorizer by signature.
        bytes memory other = sign(0xb0b, settlement.getRefundDigest(channelId, 0, 400));
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.refundWithSignature(lane(0), 400, 0, other);
    }

    function test_a_refund_of_zero_is_refused() public {
        vm.expectRevert(BatchSettlement.ZeroRefund.selector);
        vm.prank(receiver);
        settlement.refund(lane(0), 0);
    }

    function testFuzz_only_the_receiver_side_refunds(address who) public {
        vm.assume(who != receiver && who != receiverAuthorizer);
        vm.expectRevert(BatchSettlement.NotAuthorizedToRefund.selector);
        vm.prank(who);
        settlement.refund(lane(0), 1);
    }

    // ------------------------------------------------------------ both at once

    function testFuzz_a_refund_shrinks_the_pending_withdrawal(uint128 pending, uint128 back) public {
        pending = bound128(pending, 1, 1000);
        back = bound128(back, 1, 1000);
        initiate(pending);
        vm.prank(receiver);
        settlement.refund(lane(0), back);
        (uint128 left, uint40 since) = settlement.pendingWithdrawals(id(lane(0)));
        vm.assertEq(left, back >= pending ? 0 : pending - back, "left");
        vm.assertEq(since, back >= pending ? 0 : START, "armed");
    }

    function test_a_small_refund_does_not_restart_the_clock() public {
        initiate(1000);
        vm.prank(receiver);
        settlement.refund(lane(0), 1);
        vm.warp(START + DELAY);
        finalize();
        vm.assertEq(returned(), 1000, "all of it");
    }

    function testFuzz_what_goes_in_comes_out(uint128 total, uint128 back, uint128 pull) public {
        total = bound128(total, 1, 1000);
        claim(lane(0), total);
        vm.prank(receiver);
        settlement.refund(lane(0), bound128(back, 1, type(uint128).max));
        uint128 left = balanceOf(lane(0)) - total;
        if (left != 0) {
            initiate(bound128(pull, 1, left));
            vm.warp(START + DELAY);
            finalize();
        }
        settlement.settle(receiver, TOKEN);
        vm.assertEq(token.balanceOf(receiver), total, "receiver");
        vm.assertEq(returned() + total + token.balanceOf(SETTLEMENT), 1000, "in = out + held");
        vm.assertEq(token.balanceOf(SETTLEMENT), balanceOf(lane(0)) - claimedOf(lane(0)), "held = unclaimed");
    }
}
