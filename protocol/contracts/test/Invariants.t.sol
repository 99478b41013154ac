// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Crowd} from "./Crowd.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// What stays true whatever anyone does, in any order. One function, so one random walk checks all.
contract InvariantsTest is Street {
    Crowd private crowd;

    function setUp() public override {
        super.setUp();
        crowd = new Crowd();
    }

    /// forge reads this: random calls go to the crowd only.
    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(crowd);
    }

    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    function targetSelectors() public view returns (FuzzSelector[] memory targets) {
        bytes4[] memory doors = new bytes4[](9);
        doors[0] = Crowd.deposit.selector;
        doors[1] = Crowd.donate.selector;
        doors[2] = Crowd.pay.selector;
        doors[3] = Crowd.payAll.selector;
        doors[4] = Crowd.settle.selector;
        doors[5] = Crowd.refund.selector;
        doors[6] = Crowd.withdraw.selector;
        doors[7] = Crowd.intrude.selector;
        doors[8] = Crowd.wait_.selector;
        targets = new FuzzSelector[](1);
        targets[0] = FuzzSelector(address(crowd), doors);
    }

    function invariant_the_books_balance() public view {
        _moneyInIsMoneyOutPlusHeld();
        _claimsAndNoncesOnlyRise();
        _strangersMoveNothing();
    }

    function _moneyInIsMoneyOutPlusHeld() private view {
        uint256 held = token.balanceOf(SETTLEMENT);
        address first = crowd.firstReceiver();
        address second = crowd.stranger2();
        (uint256 claimed1, uint256 settled1) = settlement.receivers(first, TOKEN);
        (uint256 claimed2, uint256 settled2) = settlement.receivers(second, TOKEN);

        uint256 balances;
        uint256 claimed;
        for (uint256 i = 0; i < crowd.LANES(); ++i) {
            (uint256 balance, uint256 total) = settlement.channels(id(crowd.laneOf(i)));
            vm.assertLe(total, balance, "a channel owes more than it has");
            vm.assertLe(total, crowd.signed(i), "claimed more than was signed");
            balances += balance;
            claimed += total;
        }

        // Each claimed atom is owed to exactly one receiver.
        vm.assertEq(claimed, claimed1 + claimed2, "claimed, by channel and by receiver");
        // Paid is what was settled, to the receivers and nobody else.
        vm.assertEq(token.balanceOf(first), settled1, "first receiver");
        vm.assertEq(token.balanceOf(second), settled2, "second receiver");
        vm.assertEq(token.balanceOf(crowd.laneOf(0).receiverAuthorizer), 0, "claim key");
        vm.assertEq(token.balanceOf(crowd.laneOf(0).payerAuthorizer), 0, "voucher key");
        vm.assertEq(token.balanceOf(COLLECTOR), 0, "collector");
        // Held is what is unclaimed, plus claimed and not settled, plus gifts.
        vm.assertEq(held, balances - settled1 - settled2 + crowd.donated(), "held");
        // And nothing was lost on the way back to the payer.
        uint256 returned = token.balanceOf(payer) + crowd.deposited() - crowd.PURSE();
        vm.assertEq(crowd.deposited() + crowd.donated(), held + settled1 + settled2 + returned, "in = out + held");
    }

    function _claimsAndNoncesOnlyRise() private view {
        vm.assertEq(crowd.fallen(), 0, "fell");
    }

    function _strangersMoveNothing() private view {
        vm.assertEq(crowd.strangersWins(), 0, "a stranger got through");
        vm.assertEq(token.balanceOf(vm.addr(STRANGER_KEY)), 0, "a stranger was paid");
    }
}
