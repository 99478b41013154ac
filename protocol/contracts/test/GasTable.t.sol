// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// Prints what a transaction costs. Run by `./test.sh --gas`, where each call is its own transaction.
contract GasTable is Street {
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
