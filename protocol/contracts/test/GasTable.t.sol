// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {ReceiptProof} from "../src/ReceiptProof.sol";
import {Receipts} from "./Receipts.sol";
import {vm} from "./Vm.sol";

/// Prints what a transaction costs. Run by `./test.sh --gas`, where each call is its own transaction.
contract GasTable is Receipts {
    function line(string memory what) private view {
        string memory text = string.concat("| ", what, " | ", vm.toString(vm.lastCallGas().gasTotalUsed), " |");
        (bool ok,) = 0x000000000000000000636F6e736F6c652e6c6f67.staticcall(abi.encodeWithSignature("log(string)", text));
        ok;
    }

    function claimRows(uint256 count, bool bySignature, string memory what) private {
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](count);
        for (uint256 i = 0; i < count; ++i) {
            BatchSettlement.ChannelConfig memory config = lane(1000 * count + i);
            config.payerAuthorizer = payerAuthorizer;
            fund(config, 1000);
            rows[i] = voucher(config, 500, 500);
        }
        if (bySignature) {
            bytes memory signature = sign(CLAIM_KEY, settlement.getClaimBatchDigest(rows));
            settlement.claimWithSignature(rows, signature);
        } else {
            vm.prank(receiverAuthorizer);
            settlement.claim(rows);
        }
        line(what);
    }

    /// One receipt of so many, 2^levels, that all paths have that many hashes.
    function proveOne(uint256 levels, string memory what) private {
        uint64 seq = uint64(0x2aaaa & ((1 << levels) - 1));
        ReceiptProof.Proof memory proof;
        proof.receipt = receiptAt(seq);
        proof.root.channelId = proof.receipt.channelId;
        bytes32 hash = leafAt(seq);
        proof.path = new bytes32[](levels);
        for (uint256 i = 0; i < levels; ++i) {
            bytes32 beside = keccak256(abi.encode(i));
            proof.path[i] = beside;
            hash = (seq >> i) & 1 == 1
                ? keccak256(abi.encodePacked(hex"01", beside, hash))
                : keccak256(abi.encodePacked(hex"01", hash, beside));
        }
        proof.root.count = uint64(1 << levels);
        proof.root.cumulative = 7 * uint128(proof.root.count);
        proof.root.root = hash;
        cosign(proof);
        // A call, not a staticcall: a transaction of its own.
        (bool proven,) = address(verifier).call(abi.encodeCall(verifier.verify, (terms(), proof)));
        vm.assertTrue(proven, what);
        line(what);
    }

    function test_receipts() public {
        proveOne(0, "prove the only receipt");
        proveOne(10, "prove one receipt of 2^10");
        proveOne(20, "prove one receipt of 2^20");
    }

    function test_table() public {
        fund(lane(99), 1000);
        claim(lane(99), 1);
        settlement.settle(receiver, TOKEN);

        bytes memory data = consent(id(lane(0)), 1000, 500);
        settlement.deposit(lane(0), 1000, COLLECTOR, data);
        line("deposit, first");
        data = consent(id(lane(0)), 1000, 501);
        settlement.deposit(lane(0), 1000, COLLECTOR, data);
        line("deposit, top-up");

        claimRows(1, false, "claim, 1 row");
        claimRows(10, false, "claim, 10 rows");
        claimRows(50, false, "claim, 50 rows");
        claimRows(11, true, "claimWithSignature, 11 rows");
        settlement.settle(receiver, TOKEN);
        line("settle");

        vm.prank(receiver);
        settlement.refund(lane(0), 10);
        line("refund");
        vm.prank(payer);
        settlement.initiateWithdraw(lane(0), 10);
        line("initiateWithdraw");
        vm.warp(START + DELAY);
        vm.prank(payer);
        settlement.finalizeWithdraw(lane(0));
        line("finalizeWithdraw");
    }
}
