// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {ERC3009DepositCollector} from "../src/ERC3009DepositCollector.sol";
import {TestWallet} from "../src/TestWallet.sol";
import {FeeToken, ReentrantCollector, SkewedCollector, Wallet} from "./Doubles.sol";
import {Street} from "./Street.sol";
import {Vm, vm} from "./Vm.sol";

contract DepositTest is Street {
    function refused(BatchSettlement.ChannelConfig memory config, bytes4 why) private {
        vm.expectRevert(why);
        settlement.deposit(config, 1, COLLECTOR, "");
    }

    function test_creates_then_tops_up() public {
        BatchSettlement.ChannelConfig memory config = lane(0);
        bytes32 channelId = id(config);
        bytes memory first = consent(channelId, 100, 1);
        bytes memory second = consent(channelId, 50, 2);

        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.ChannelCreated(channelId, config);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.Deposited(channelId, stranger, 100, 100);
        vm.prank(stranger);
        settlement.deposit(config, 100, COLLECTOR, first);

        vm.recordLogs();
        settlement.deposit(config, 50, COLLECTOR, second);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; ++i) {
            vm.assertTrue(logs[i].topics[0] != BatchSettlement.ChannelCreated.selector, "created twice");
        }

        vm.assertEq(balanceOf(config), 150, "balance");
        vm.assertEq(token.balanceOf(SETTLEMENT), 150, "held");
        vm.assertEq(token.balanceOf(COLLECTOR), 0, "nothing stays in the collector");
    }

    function test_created_again_after_being_emptied() public {
        BatchSettlement.ChannelConfig memory config = lane(0);
        fund(config, 100);
        vm.prank(receiver);
        settlement.refund(config, 100);
        bytes memory data = consent(id(config), 7, 77);
        vm.expectEmit(SETTLEMENT);
        emit BatchSettlement.ChannelCreated(id(config), config);
        settlement.deposit(config, 7, COLLECTOR, data);
    }

    function test_zero_fields_are_refused() public {
        BatchSettlement.ChannelConfig memory config = lane(0);
        config.payer = address(0);
        refused(config, BatchSettlement.InvalidChannel.selector);
        config = lane(0);
        config.receiver = address(0);
        refused(config, BatchSettlement.InvalidChannel.selector);
        config = lane(0);
        config.receiverAuthorizer = address(0);
        refused(config, BatchSettlement.InvalidChannel.selector);
        config = lane(0);
        config.token = address(0);
        refused(config, BatchSettlement.InvalidChannel.selector);

        vm.expectRevert(BatchSettlement.InvalidCollector.selector);
        settlement.deposit(lane(0), 1, address(0), "");
        vm.expectRevert(BatchSettlement.ZeroDeposit.selector);
        settlement.deposit(lane(0), 0, COLLECTOR, "");
    }

    function test_delay_must_be_in_range() public {
        BatchSettlement.ChannelConfig memory config = lane(0);
        config.withdrawDelay = 899;
        refused(config, BatchSettlement.WithdrawDelayOutOfRange.selector);
        config.withdrawDelay = 30 days + 1;
        refused(config, BatchSettlement.WithdrawDelayOutOfRange.selector);
        config.withdrawDelay = 30 days;
        fund(config, 1);
    }

    function test_overflow_is_refused() public {
        fund(lane(0), type(uint128).max);
        bytes memory data = consent(id(lane(0)), 1, 99);
        vm.expectRevert(BatchSettlement.DepositOverflow.selector);
        settlement.deposit(lane(0), 1, COLLECTOR, data);
    }

    // ------------------------------------------------------------ collectors

    function test_a_collector_must_bring_exactly_the_amount() public {
        int256[3] memory skews = [int256(-1), 1, -100];
        for (uint256 i = 0; i < skews.length; ++i) {
            SkewedCollector skewed = new SkewedCollector(skews[i]);
            vm.prank(payer);
            token.approve(address(skewed), type(uint256).max);
            vm.expectRevert(BatchSettlement.DepositCollectionFailed.selector);
            settlement.deposit(lane(0), 100, address(skewed), "");
        }
        SkewedCollector honest = new SkewedCollector(0);
        vm.prank(payer);
        token.approve(address(honest), type(uint256).max);
        settlement.deposit(lane(0), 100, address(honest), "");
        vm.assertEq(balanceOf(lane(0)), 100, "any honest collector will do");
    }

    function test_a_fee_on_transfer_token_is_refused() public {
        FeeToken fee = new FeeToken();
        SkewedCollector plain = new SkewedCollector(0);
        fee.mint(payer, 1000);
        vm.prank(payer);
        fee.approve(address(plain), 1000);
        BatchSettlement.ChannelConfig memory config = lane(0);
        config.token = address(fee);
        vm.expectRevert(BatchSettlement.DepositCollectionFailed.selector);
        settlement.deposit(config, 100, address(plain), "");
    }

    /// Without the guard one transfer would count for the inner and the outer deposit.
    function test_a_reentrant_collector_is_refused() public {
        bytes memory inner =
            abi.encodeCall(BatchSettlement.deposit, (lane(0), 100, COLLECTOR, consent(id(lane(0)), 100, 1)));
        ReentrantCollector evil = new ReentrantCollector();
        vm.expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        settlement.deposit(lane(0), 100, address(evil), inner);
    }

    function test_a_collector_without_code_is_refused() public {
        vm.expectRevert(bytes(""));
        settlement.deposit(lane(0), 1, stranger, "");
    }

    function test_only_settlement_may_collect() public {
        bytes32 channelId = id(lane(0));
        bytes memory data = consent(channelId, 100, 1);
        vm.prank(stranger);
        vm.expectRevert(ERC3009DepositCollector.OnlySettlement.selector);
        collector.collect(payer, TOKEN, 100, channelId, data);
    }

    // ------------------------------------------------------------ the payer's consent

    function test_consent_funds_its_channel_only() public {
        bytes memory data = consent(id(lane(0)), 100, 1);
        vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
        settlement.deposit(lane(1), 100, COLLECTOR, data);
    }

    function test_consent_is_for_its_amount_only() public {
        bytes memory data = consent(id(lane(0)), 100, 1);
        vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
        settlement.deposit(lane(0), 101, COLLECTOR, data);
    }

    function test_consent_works_once() public {
        bytes memory data = consent(id(lane(0)), 100, 1);
        settlement.deposit(lane(0), 100, COLLECTOR, data);
        bytes32 nonce = keccak256(abi.encode(id(lane(0)), uint256(1)));
        vm.expectRevert(abi.encodeWithSignature("ERC3009UsedAuthorization(address,bytes32)", payer, nonce));
        settlement.deposit(lane(0), 100, COLLECTOR, data);
    }

    function test_consent_has_its_time() public {
        bytes memory signature = sign(PAYER_KEY, receiveDigest(id(lane(0)), 100, 1));
        // Signed for (0, max); any other window is another message.
        bytes memory data = abi.encode(uint256(0), START, uint256(1), signature);
        vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
        settlement.deposit(lane(0), 100, COLLECTOR, data);
    }

    function test_a_malleable_consent_is_refused() public {
        bytes memory signature = twin(PAYER_KEY, receiveDigest(id(lane(0)), 100, 1));
        vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
        settlement.deposit(lane(0), 100, COLLECTOR, abi.encode(uint256(0), type(uint256).max, uint256(1), signature));
    }

    function test_a_smart_wallet_funds_a_channel() public {
        Wallet wallet = new Wallet(payer);
        token.mint(address(wallet), 100);
        payer = address(wallet);
        bytes memory data = consent(id(lane(0)), 100, 1);
        settlement.deposit(lane(0), 100, COLLECTOR, data);
        vm.assertEq(balanceOf(lane(0)), 100, "balance");
    }

    // ------------------------------------------------------------ payers that are contracts

    uint256 private constant FIRST_OWNER = 0x50a1;
    uint256 private constant SECOND_OWNER = 0x50a2;

    /// A wallet of two owners with money, as this street's payer; their keys, in its order.
    function sharedWallet() private returns (uint256 low, uint256 high) {
        (low, high) = vm.addr(FIRST_OWNER) < vm.addr(SECOND_OWNER)
            ? (FIRST_OWNER, SECOND_OWNER)
            : (SECOND_OWNER, FIRST_OWNER);
        payer = address(new TestWallet(vm.addr(low), vm.addr(high)));
        token.mint(payer, 1000);
    }

    function depositSignedBy(uint256 one_, uint256 other) private {
        bytes32 digest = receiveDigest(id(lane(0)), 100, 1);
        bytes memory both = bytes.concat(sign(one_, digest), sign(other, digest));
        settlement.deposit(lane(0), 100, COLLECTOR, abi.encode(uint256(0), type(uint256).max, uint256(1), both));
    }

    function test_a_wallet_of_two_owners_funds_a_channel() public {
        (uint256 low, uint256 high) = sharedWallet();
        depositSignedBy(low, high);
        vm.assertEq(balanceOf(lane(0)), 100, "balance");
        vm.assertEq(token.balanceOf(payer), 900, "the wallet's rest");
    }

    function test_a_wallet_takes_no_other_signatures() public {
        (uint256 low, uint256 high) = sharedWallet();
        uint256[2][3] memory wrong = [[high, low], [low, low], [low, STRANGER_KEY]];
        for (uint256 i = 0; i < wrong.length; ++i) {
            bytes32 digest = receiveDigest(id(lane(0)), 100, 1);
            bytes memory both = bytes.concat(sign(wrong[i][0], digest), sign(wrong[i][1], digest));
            vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
            settlement.deposit(lane(0), 100, COLLECTOR, abi.encode(uint256(0), type(uint256).max, uint256(1), both));
        }
    }

    /// A key whose account has code may not fall back on its signature (EIP-7702 makes such).
    function test_an_account_with_code_is_never_judged_by_its_key() public {
        bytes memory data = consent(id(lane(0)), 100, 1);
        vm.etch(payer, hex"5f5ffd");
        vm.expectRevert(bytes4(keccak256("ERC3009InvalidSignature()")));
        settlement.deposit(lane(0), 100, COLLECTOR, data);
    }

    function test_a_contract_gets_its_withdrawal_back() public {
        (uint256 low, uint256 high) = sharedWallet();
        depositSignedBy(low, high);
        vm.prank(payerAuthorizer);
        settlement.initiateWithdraw(lane(0), 60);
        vm.warp(START + DELAY);
        vm.prank(payerAuthorizer);
        settlement.finalizeWithdraw(lane(0));
        vm.assertEq(token.balanceOf(payer), 960, "it goes to the wallet, not to the session key");
    }

    function testFuzz_deposits_add_up(uint128[8] calldata amounts) public {
        uint256 sum;
        for (uint256 i = 0; i < amounts.length; ++i) {
            uint128 amount = bound128(amounts[i], 1, type(uint128).max / 8);
            fund(lane(i % 3), amount);
            sum += amount;
        }
        vm.assertEq(token.balanceOf(SETTLEMENT), sum, "held");
        vm.assertEq(uint256(balanceOf(lane(0))) + balanceOf(lane(1)) + balanceOf(lane(2)), sum, "balances");
    }
}
