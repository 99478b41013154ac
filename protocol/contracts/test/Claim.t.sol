// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {HostileToken, SkewedCollector, Wallet} from "./Doubles.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

contract ClaimTest is Street {
    function setUp() public override {
        super.setUp();
        fund(lane(0), 1000);
    }

    function claimed() private view returns (uint128) {
        return claimedOf(lane(0));
    }

    function owed() private view returns (uint128 total, uint128 settled) {
        return settlement.receivers(receiver, TOKEN);
    }

    function refused(BatchSettlement.VoucherClaim memory row, bytes4 why) private {
        vm.expectRevert(why);
        vm.prank(receiverAuthorizer);
        settlement.claim(one(row));
    }

    // ------------------------------------------------------------ what a claim does

    function test_claim_raises_the_total_and_moves_nothing() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 300);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.Claimed(id(lane(0)), receiver, 300, 300);
        vm.prank(receiver);
        settlement.claim(one(row));

        (uint128 total, uint128 settled) = owed();
        vm.assertEq(claimed(), 300, "claimed");
        vm.assertEq(balanceOf(lane(0)), 1000, "balance is untouched");
        vm.assertEq(total, 300, "receiver total");
        vm.assertEq(settled, 0, "not settled");
        vm.assertEq(token.balanceOf(SETTLEMENT), 1000, "no transfer");
    }

    function test_one_voucher_may_be_claimed_in_steps() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 300);
        vm.prank(receiver);
        settlement.claim(one(row));
        row.totalClaimed = 500;
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.Claimed(id(lane(0)), receiverAuthorizer, 200, 500);
        vm.prank(receiverAuthorizer);
        settlement.claim(one(row));
        vm.assertEq(claimed(), 500, "claimed");
    }

    /// Skipped, not refused: even its signature is unread, so a resubmitted batch is harmless.
    function test_a_row_that_raises_nothing_is_skipped() public {
        claim(lane(0), 300);
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](3);
        rows[0] = voucher(lane(0), 300, 300);
        rows[1] = voucher(lane(0), 300, 299);
        rows[1].signature = "junk";
        rows[2] = voucher(lane(0), 400, 400);
        vm.prank(receiver);
        settlement.claim(rows);
        (uint128 total,) = owed();
        vm.assertEq(total, 400, "counted once");
    }

    function test_a_batch_over_channels() public {
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](3);
        for (uint256 i = 0; i < 3; ++i) {
            if (i != 0) fund(lane(i), 1000);
            rows[i] = voucher(lane(i), 1000, uint128(100 * (i + 1)));
        }
        vm.prank(receiverAuthorizer);
        settlement.claim(rows);
        (uint128 total,) = owed();
        vm.assertEq(total, 600, "sum");
    }

    // ------------------------------------------------------------ a bad row

    function test_a_row_over_its_ceiling() public {
        refused(voucher(lane(0), 500, 501), BatchSettlement.ClaimExceedsCeiling.selector);
    }

    function test_a_row_over_the_balance() public {
        refused(voucher(lane(0), 2000, 1001), BatchSettlement.ClaimExceedsBalance.selector);
        refused(voucher(lane(9), 1, 1), BatchSettlement.ClaimExceedsBalance.selector);
    }

    function test_a_row_signed_by_another() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        row.signature = sign(STRANGER_KEY, settlement.getVoucherDigest(id(lane(0)), 500));
        refused(row, BatchSettlement.InvalidSignature.selector);
        // The cold wallet's own signature does not count once it has named an authorizer.
        row.signature = sign(PAYER_KEY, settlement.getVoucherDigest(id(lane(0)), 500));
        refused(row, BatchSettlement.InvalidSignature.selector);
    }

    function test_a_row_with_a_raised_ceiling() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 501);
        row.voucher.maxClaimableAmount = 501;
        refused(row, BatchSettlement.InvalidSignature.selector);
    }

    function test_an_empty_batch() public {
        vm.expectRevert(BatchSettlement.EmptyBatch.selector);
        settlement.claim(new BatchSettlement.VoucherClaim[](0));
        vm.expectRevert(BatchSettlement.EmptyBatch.selector);
        settlement.claimWithSignature(new BatchSettlement.VoucherClaim[](0), "");
    }

    function test_one_bad_row_spoils_the_batch() public {
        fund(lane(1), 1000);
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](2);
        rows[0] = voucher(lane(1), 100, 100);
        rows[1] = voucher(lane(0), 2000, 2000);
        vm.expectRevert(BatchSettlement.ClaimExceedsBalance.selector);
        vm.prank(receiver);
        settlement.claim(rows);
        vm.assertEq(claimedOf(lane(1)), 0, "the good row too");
    }

    // ------------------------------------------------------------ odd signatures

    function test_high_s_is_refused() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        bytes32 digest = settlement.getVoucherDigest(id(lane(0)), 500);
        (,, bytes32 s) = vm.sign(VOUCHER_KEY, digest);
        row.signature = twin(VOUCHER_KEY, digest);
        bytes memory why = abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureS.selector, bytes32(ORDER - uint256(s)));
        vm.expectRevert(why);
        vm.prank(receiver);
        settlement.claim(one(row));
    }

    function test_v_of_zero_or_one_is_refused() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        row.signature[64] = bytes1(uint8(row.signature[64]) - 27);
        refused(row, ECDSA.ECDSAInvalidSignature.selector);
    }

    function test_compact_or_cut_signatures_are_refused() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        for (uint256 length = 0; length < 70; ++length) {
            if (length == 65) continue;
            row.signature = new bytes(length);
            vm.expectRevert(abi.encodeWithSelector(ECDSA.ECDSAInvalidSignatureLength.selector, length));
            vm.prank(receiver);
            settlement.claim(one(row));
        }
    }

    function test_a_signature_that_recovers_to_nobody_is_refused() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        row.signature = abi.encodePacked(bytes32(0), bytes32(uint256(1)), uint8(27));
        refused(row, ECDSA.ECDSAInvalidSignature.selector);
    }

    // ------------------------------------------------------------ who may claim

    function testFuzz_only_the_receiver_side_claims(address who) public {
        vm.assume(who != receiver && who != receiverAuthorizer);
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(lane(0), 500, 500));
        vm.expectRevert(BatchSettlement.NotAuthorizedToClaim.selector);
        vm.prank(who);
        settlement.claim(rows);
    }

    function test_the_receiver_side_of_every_row() public {
        fund(lane(1), 1000);
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](2);
        rows[0] = voucher(lane(0), 100, 100);
        receiver = vm.addr(0xb0b3);
        receiverAuthorizer = vm.addr(0xb0b4);
        rows[1] = voucher(lane(1), 100, 100);
        vm.expectRevert(BatchSettlement.NotAuthorizedToClaim.selector);
        vm.prank(rows[0].voucher.channel.receiver);
        settlement.claim(rows);
    }

    function test_anyone_submits_a_signed_batch() public {
        fund(lane(1), 1000);
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](2);
        rows[0] = voucher(lane(0), 100, 90);
        rows[1] = voucher(lane(1), 200, 200);
        bytes memory signature = sign(CLAIM_KEY, settlement.getClaimBatchDigest(rows));
        vm.prank(stranger);
        settlement.claimWithSignature(rows, signature);
        (uint128 total,) = owed();
        vm.assertEq(total, 290, "total");
        // Again: accepted, and changes nothing.
        settlement.claimWithSignature(rows, signature);
        (total,) = owed();
        vm.assertEq(total, 290, "total again");
    }

    function test_a_signed_batch_is_what_was_signed() public {
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(lane(0), 100, 90));
        bytes memory signature = sign(CLAIM_KEY, settlement.getClaimBatchDigest(rows));
        rows[0].totalClaimed = 91;
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.claimWithSignature(rows, signature);

        rows[0].totalClaimed = 90;
        bytes32 digest = settlement.getClaimBatchDigest(rows);
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.claimWithSignature(rows, twin(CLAIM_KEY, digest));
        // A row's own authorizer signs for it, not the stranger who sends it.
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        settlement.claimWithSignature(rows, sign(STRANGER_KEY, digest));
    }

    function test_a_signed_batch_has_one_authorizer() public {
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](2);
        rows[0] = voucher(lane(0), 100, 100);
        receiverAuthorizer = stranger;
        fund(lane(0), 1000);
        rows[1] = voucher(lane(0), 100, 100);
        bytes memory signature = sign(CLAIM_KEY, settlement.getClaimBatchDigest(rows));
        vm.expectRevert(BatchSettlement.NotReceiverAuthorizer.selector);
        settlement.claimWithSignature(rows, signature);
    }

    function test_the_authorizer_may_be_a_contract() public {
        Wallet hub = new Wallet(receiverAuthorizer);
        receiverAuthorizer = address(hub);
        fund(lane(0), 1000);
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(lane(0), 100, 100));
        bytes memory signature = sign(CLAIM_KEY, settlement.getClaimBatchDigest(rows));
        settlement.claimWithSignature(rows, signature);
        vm.assertEq(claimed(), 100, "claimed");
    }

    // ------------------------------------------------------------ payerAuthorizer = 0

    function test_the_payer_signs_when_no_authorizer_is_named() public {
        payerAuthorizer = address(0);
        fund(lane(0), 1000);
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        refused(row, BatchSettlement.InvalidSignature.selector);
        row.signature = sign(PAYER_KEY, settlement.getVoucherDigest(id(lane(0)), 500));
        vm.prank(receiver);
        settlement.claim(one(row));
        vm.assertEq(claimed(), 500, "claimed");
    }

    /// Why Farthing insists on an authorizer: a wallet can take its word back.
    function test_a_smart_wallet_can_take_its_word_back() public {
        Wallet wallet = new Wallet(payer);
        token.mint(address(wallet), 1000);
        payer = address(wallet);
        payerAuthorizer = address(0);
        fund(lane(0), 1000);
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        row.signature = sign(PAYER_KEY, settlement.getVoucherDigest(id(lane(0)), 500));
        vm.prank(receiver);
        settlement.claim(one(row));

        row.voucher.maxClaimableAmount = 600;
        row.totalClaimed = 600;
        row.signature = sign(PAYER_KEY, settlement.getVoucherDigest(id(lane(0)), 600));
        wallet.close();
        refused(row, BatchSettlement.InvalidSignature.selector);
    }

    // ------------------------------------------------------------ replay

    function test_a_voucher_is_for_its_channel_only() public {
        fund(lane(1), 1000);
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        row.voucher.channel = lane(1);
        refused(row, BatchSettlement.InvalidSignature.selector);
    }

    function test_a_voucher_is_for_its_chain_only() public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        vm.chainId(8453);
        fund(lane(0), 1000);
        refused(row, BatchSettlement.InvalidSignature.selector);
    }

    function test_a_voucher_is_for_its_contract_only() public {
        BatchSettlement other = new BatchSettlement();
        SkewedCollector plain = new SkewedCollector(0);
        vm.prank(payer);
        token.approve(address(plain), 1000);
        other.deposit(lane(0), 1000, address(plain), "");
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(lane(0), 500, 500));
        vm.expectRevert(BatchSettlement.InvalidSignature.selector);
        vm.prank(receiver);
        other.claim(rows);
    }

    /// The same numbers under another type are another message.
    function test_a_refund_or_batch_signature_is_no_voucher() public {
        payerAuthorizer = receiverAuthorizer;
        fund(lane(0), 1000);
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        row.signature = sign(CLAIM_KEY, settlement.getRefundDigest(id(lane(0)), 0, 500));
        refused(row, BatchSettlement.InvalidSignature.selector);
        row.signature = sign(CLAIM_KEY, settlement.getClaimBatchDigest(one(row)));
        refused(row, BatchSettlement.InvalidSignature.selector);
    }

    // ------------------------------------------------------------ settle

    function test_settle_pays_all_channels_at_once() public {
        fund(lane(1), 1000);
        claim(lane(0), 300);
        claim(lane(1), 400);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.Settled(receiver, TOKEN, stranger, 700);
        vm.prank(stranger);
        settlement.settle(receiver, TOKEN);
        vm.assertEq(token.balanceOf(receiver), 700, "paid");
        vm.assertEq(token.balanceOf(stranger), 0, "not to the caller");

        settlement.settle(receiver, TOKEN);
        vm.assertEq(token.balanceOf(receiver), 700, "once");
        claim(lane(0), 350);
        settlement.settle(receiver, TOKEN);
        vm.assertEq(token.balanceOf(receiver), 750, "then the rest");
        settlement.settle(receiver, TOKEN);
        vm.assertEq(token.balanceOf(receiver), 750, "and no more");
    }

    function test_claim_and_settle_in_one_transaction() public {
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(lane(0), 500, 500));
        bytes[] memory calls = new bytes[](2);
        calls[0] = abi.encodeCall(BatchSettlement.claim, (rows));
        calls[1] = abi.encodeCall(BatchSettlement.settle, (receiver, TOKEN));
        vm.prank(receiverAuthorizer);
        settlement.multicall(calls);
        vm.assertEq(token.balanceOf(receiver), 500, "paid");

        vm.expectRevert(BatchSettlement.NotAuthorizedToClaim.selector);
        vm.prank(stranger);
        settlement.multicall(calls);
    }

    function test_a_hostile_token_cannot_reenter() public {
        HostileToken evil = new HostileToken();
        SkewedCollector plain = new SkewedCollector(0);
        evil.mint(payer, 1000);
        vm.prank(payer);
        evil.approve(address(plain), 1000);
        BatchSettlement.ChannelConfig memory config = lane(0);
        config.token = address(evil);
        settlement.deposit(config, 1000, address(plain), "");
        claim(config, 400);

        evil.arm(SETTLEMENT, abi.encodeCall(BatchSettlement.settle, (receiver, address(evil))));
        settlement.settle(receiver, address(evil));
        vm.assertEq(
            bytes32(evil.lastError()),
            bytes32(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector),
            "guarded"
        );
        vm.assertEq(evil.balanceOf(receiver), 400, "paid once");
    }

    // ------------------------------------------------------------ in general

    /// Whatever is asked, the outcome is the exact error or the exact rise.
    function testFuzz_claim_rule(uint128 balance, uint128 before, uint128 max, uint128 total) public {
        balance = bound128(balance, 1, type(uint128).max);
        before = bound128(before, 0, balance);
        BatchSettlement.ChannelConfig memory config = lane(5);
        fund(config, balance);
        if (before != 0) claim(config, before);

        BatchSettlement.VoucherClaim[] memory rows = one(voucher(config, max, total));
        if (total > before && total > max) vm.expectRevert(BatchSettlement.ClaimExceedsCeiling.selector);
        else if (total > before && total > balance) vm.expectRevert(BatchSettlement.ClaimExceedsBalance.selector);
        vm.prank(receiver);
        settlement.claim(rows);

        bool rises = total > before && total <= max && total <= balance;
        vm.assertEq(claimedOf(config), rises ? total : before, "claimed");
        vm.assertEq(balanceOf(config), balance, "balance");
    }

    /// No bit of a voucher can change and still be paid.
    function testFuzz_a_changed_signature_is_refused(uint256 position, uint8 mask) public {
        BatchSettlement.VoucherClaim memory row = voucher(lane(0), 500, 500);
        position = bound(position, 0, 64);
        row.signature[position] ^= bytes1(uint8(bound(mask, 1, 255)));
        vm.prank(receiver);
        (bool ok,) = SETTLEMENT.call(abi.encodeCall(BatchSettlement.claim, (one(row))));
        vm.assertTrue(!ok, "accepted");
    }

    function testFuzz_digests_follow_eip712(bytes32 channelId, uint256 nonce, uint128 a, uint128 b) public view {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("x402 Batch Settlement"),
                keccak256("1"),
                block.chainid,
                SETTLEMENT
            )
        );
        bytes32 refundHash = keccak256(abi.encode(settlement.REFUND_TYPEHASH(), channelId, nonce, a));
        vm.assertEq(
            settlement.getRefundDigest(channelId, nonce, a),
            keccak256(abi.encodePacked(hex"1901", domain, refundHash)),
            "refund"
        );

        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](2);
        rows[0].voucher.channel = lane(nonce);
        rows[0].voucher.maxClaimableAmount = a;
        rows[0].totalClaimed = b;
        bytes32 typehash = settlement.CLAIM_ENTRY_TYPEHASH();
        bytes32 first = keccak256(abi.encode(typehash, id(lane(nonce)), a, b));
        bytes32 second = keccak256(abi.encode(typehash, id(rows[1].voucher.channel), 0, 0));
        bytes32 batch =
            keccak256(abi.encode(settlement.CLAIM_BATCH_TYPEHASH(), keccak256(abi.encodePacked(first, second))));
        vm.assertEq(
            settlement.getClaimBatchDigest(rows), keccak256(abi.encodePacked(hex"1901", domain, batch)), "batch"
        );
    }
}
