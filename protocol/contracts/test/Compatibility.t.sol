// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {ERC3009DepositCollector} from "../src/ERC3009DepositCollector.sol";
import {IDepositCollector} from "../src/IDepositCollector.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// The bytes that must be those of the deployed contract. Each constant here comes from outside.
contract CompatibilityTest is Street {
    function eq(bytes4 left, bytes4 right) private pure {
        vm.assertEq(bytes32(left), bytes32(right), "selector");
    }

    function test_selectors_of_actions() public pure {
        eq(BatchSettlement.deposit.selector, 0x140f1e75);
        eq(BatchSettlement.claim.selector, 0x29237b0c);
        eq(BatchSettlement.claimWithSignature.selector, 0xe43ce1f2);
        eq(BatchSettlement.settle.selector, 0x9db32a8f);
        eq(BatchSettlement.initiateWithdraw.selector, 0xcf5cf3dc);
        eq(BatchSettlement.finalizeWithdraw.selector, 0xe88377b1);
        eq(BatchSettlement.refund.selector, 0xdce4bfae);
        eq(BatchSettlement.refundWithSignature.selector, 0xb77433e9);
        eq(settlement.multicall.selector, 0xac9650d8);
    }

    function test_selectors_of_views() public view {
        eq(BatchSettlement.getChannelId.selector, 0x5e5e0b87);
        eq(settlement.channels.selector, 0x7a7ebd7b);
        eq(settlement.pendingWithdrawals.selector, 0xb7f06ebe);
        eq(settlement.refundNonce.selector, 0xf0dc792e);
        eq(settlement.receivers.selector, 0x21ff6389);
    }

    function test_collector_interface() public pure {
        eq(IDepositCollector.collect.selector, bytes4(keccak256("collect(address,address,uint256,bytes32,bytes)")));
    }

    function test_typehashes() public view {
        vm.assertEq(
            settlement.CHANNEL_CONFIG_TYPEHASH(),
            0x1c9a06ceab9b0ebbd3301dc56c9111bb6d9af421356dc9ccb3b7084c755db308,
            "ChannelConfig"
        );
        vm.assertEq(
            settlement.VOUCHER_TYPEHASH(), 0x1e1bd6ff84c3e0d9029a292b212e039c0ca97ec497c55191a4a5874294609a69, "Voucher"
        );
        vm.assertEq(
            settlement.REFUND_TYPEHASH(), 0xbe23ad087435072cd69b49cc5b92de10ee610fce7ae0ab428307972d764bb216, "Refund"
        );
        vm.assertEq(
            settlement.CLAIM_ENTRY_TYPEHASH(),
            0x30b9a0367528fca13c3e8ec6134c3113f1887ebe7a1ad61de0955aac288b0cf5,
            "ClaimEntry"
        );
        vm.assertEq(
            settlement.CLAIM_BATCH_TYPEHASH(),
            0x42bd57c010b870c2e96203c66341f28a6a19b4d56a74533a8eb5f706b9fd6d57,
            "ClaimBatch"
        );
    }

    function test_topics() public pure {
        vm.assertEq(
            BatchSettlement.WithdrawInitiated.selector,
            0xe4280d0d903c7f258f62b07c62f262377cbaa23f7791d78126e6446e0f0e3c23,
            "WithdrawInitiated"
        );
        // Known by their first four bytes only.
        eq(bytes4(BatchSettlement.Deposited.selector), 0x6c2a0935);
        eq(bytes4(BatchSettlement.Claimed.selector), 0x36bd546b);
    }

    function test_domain() public view {
        (, string memory name, string memory version, uint256 chainId, address verifyingContract,,) =
            settlement.eip712Domain();
        vm.assertEq(name, "x402 Batch Settlement", "name");
        vm.assertEq(version, "1", "version");
        vm.assertEq(chainId, 31337, "chain");
        vm.assertEq(verifyingContract, SETTLEMENT, "contract");
    }

    function test_delay_bounds() public view {
        vm.assertEq(settlement.MIN_WITHDRAW_DELAY(), 900, "least");
        vm.assertEq(settlement.MAX_WITHDRAW_DELAY(), 2_592_000, "most");
    }

    // ------------------------------------------------------------ the known vector

    bytes private constant VECTOR_SIGNATURE =
        hex"214e42cdc27fba213f8f1341a6a02e3e5e21b0466c28c0fa292d4871dd6fd2fb676fd24c204e8f2e1fe9b93c770790cef7291772f5e320415e414542522548301c";

    function vectorConfig() private pure returns (BatchSettlement.ChannelConfig memory config) {
        config.payer = 0x70997970C51812dc3A010C7d01b50e0d17dc79C8;
        config.payerAuthorizer = 0x70997970C51812dc3A010C7d01b50e0d17dc79C8;
        config.receiver = 0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC;
        config.receiverAuthorizer = 0x90F79bf6EB2c4f870365E785982E1f101E93b906;
        config.token = TOKEN;
        config.withdrawDelay = 900;
    }

    function test_vector_channel_id() public view {
        vm.assertEq(
            id(vectorConfig()), 0xc3f5533449838f80bf54ba83c6d297fe6acb726f0b84f73461ad2d3d4bf549f5, "channel id"
        );
    }

    /// Other people's signature, made by another implementation, claims real money here.
    function test_vector_voucher_claims() public {
        BatchSettlement.ChannelConfig memory config = vectorConfig();
        payer = config.payer;
        token.mint(payer, 10_000);
        BatchSettlement.VoucherClaim memory row;
        row.voucher.channel = config;
        row.voucher.maxClaimableAmount = 7200;
        row.signature = VECTOR_SIGNATURE;
        row.totalClaimed = 7200;

        // anvil's key #1 is the payer of the vector.
        uint256 key = 0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d;
        bytes memory authorization = sign(key, receiveDigest(id(config), 10_000, 1));
        settlement.deposit(
            config, 10_000, COLLECTOR, abi.encode(uint256(0), type(uint256).max, uint256(1), authorization)
        );
        vm.prank(config.receiverAuthorizer);
        settlement.claim(one(row));
        settlement.settle(config.receiver, TOKEN);

        vm.assertEq(token.balanceOf(config.receiver), 7200, "paid");
        vm.assertEq(token.balanceOf(SETTLEMENT), 2800, "kept");
    }

    /// Digests read from the deployed contract on Base Sepolia depend on the chain, ours must too.
    function test_ids_differ_by_chain_and_by_contract() public {
        bytes32 here = id(lane(0));
        BatchSettlement elsewhere = new BatchSettlement();
        vm.assertTrue(elsewhere.getChannelId(lane(0)) != here, "contract");
        vm.chainId(8453);
        vm.assertTrue(id(lane(0)) != here, "chain");
    }

    /// The constructors leave nothing in storage, so the runtime alone is the contract.
    function test_constructors_store_nothing() public {
        address fresh = address(new TestUSD());
        address[3] memory all =
            [address(new BatchSettlement()), address(new ERC3009DepositCollector(SETTLEMENT)), fresh];
        for (uint256 i = 0; i < all.length; ++i) {
            for (uint256 slot = 0; slot < 16; ++slot) {
                vm.assertEq(vm.load(all[i], bytes32(slot)), bytes32(0), "slot");
            }
        }
        vm.assertEq(TestUSD(fresh).name(), "USDC", "name");
        vm.assertEq(collector.settlement(), SETTLEMENT, "immutable");
    }
}
