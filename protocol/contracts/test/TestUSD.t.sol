// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Wallet} from "./Doubles.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

interface SevenArguments {
    function transferWithAuthorization(address, address, uint256, uint256, uint256, bytes32, bytes calldata) external;
    function receiveWithAuthorization(address, address, uint256, uint256, uint256, bytes32, bytes calldata) external;
}

interface NineArguments {
    function transferWithAuthorization(address, address, uint256, uint256, uint256, bytes32, uint8, bytes32, bytes32)
        external;
    function receiveWithAuthorization(address, address, uint256, uint256, uint256, bytes32, uint8, bytes32, bytes32)
        external;
}

contract TestUSDTest is Street {
    bytes32 private constant TRANSFER = keccak256(
        "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes32 private constant RECEIVE = keccak256(
        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
    );
    bytes4 private constant INVALID = bytes4(keccak256("ERC3009InvalidSignature()"));
    bytes32 private constant NONCE = keccak256("any nonce will do");

    function digest(bytes32 typehash, address from, uint256 value, uint256 validAfter, uint256 validBefore)
        private
        view
        returns (bytes32)
    {
        bytes32 structHash = keccak256(abi.encode(typehash, from, receiver, value, validAfter, validBefore, NONCE));
        return keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
    }

    function test_looks_like_usdc() public view {
        vm.assertEq(token.name(), "USDC", "name");
        vm.assertEq(token.symbol(), "USDC", "symbol");
        vm.assertEq(token.version(), "2", "version");
        vm.assertEq(token.decimals(), 6, "decimals");
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("USDC"),
                keccak256("2"),
                block.chainid,
                TOKEN
            )
        );
        vm.assertEq(token.DOMAIN_SEPARATOR(), domain, "domain");
    }

    function test_has_usdc_selectors() public pure {
        vm.assertEq(bytes32(SevenArguments.transferWithAuthorization.selector), bytes32(bytes4(0xcf092995)), "t7");
        vm.assertEq(bytes32(SevenArguments.receiveWithAuthorization.selector), bytes32(bytes4(0x88b7ab63)), "r7");
        vm.assertEq(bytes32(NineArguments.transferWithAuthorization.selector), bytes32(bytes4(0xe3ee160e)), "t9");
        vm.assertEq(bytes32(NineArguments.receiveWithAuthorization.selector), bytes32(bytes4(0xef55bec6)), "r9");
    }

    function test_both_shapes_take_the_same_signature() public {
        bytes32 message = digest(TRANSFER, payer, 5, 0, START + 60);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, message);
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, v, r, s);
        vm.assertTrue(token.authorizationState(payer, NONCE), "used");

        // One nonce, one transfer, whichever shape comes second.
        vm.expectRevert(abi.encodeWithSignature("ERC3009UsedAuthorization(address,bytes32)", payer, NONCE));
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, abi.encodePacked(r, s, v));
        vm.assertEq(token.balanceOf(receiver), 5, "once");
    }

    function test_transfer_by_bytes() public {
        bytes memory signature = sign(PAYER_KEY, digest(TRANSFER, payer, 5, 0, START + 60));
        vm.prank(stranger);
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
        vm.assertEq(token.balanceOf(receiver), 5, "paid");
    }

    function test_receive_is_for_the_receiver_to_submit() public {
        bytes memory signature = sign(PAYER_KEY, digest(RECEIVE, payer, 5, 0, START + 60));
        vm.expectRevert(abi.encodeWithSignature("ERC20InvalidReceiver(address)", receiver));
        vm.prank(stranger);
        token.receiveWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
        vm.prank(receiver);
        token.receiveWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
        vm.assertEq(token.balanceOf(receiver), 5, "paid");
    }

    function test_one_type_does_not_pass_for_the_other() public {
        bytes memory signature = sign(PAYER_KEY, digest(RECEIVE, payer, 5, 0, START + 60));
        vm.expectRevert(INVALID);
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
    }

    function test_high_s_is_refused() public {
        bytes memory signature = twin(PAYER_KEY, digest(TRANSFER, payer, 5, 0, START + 60));
        vm.expectRevert(INVALID);
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
    }

    function testFuzz_time_window(uint40 validAfter, uint40 validBefore) public {
        bytes memory signature = sign(PAYER_KEY, digest(TRANSFER, payer, 5, validAfter, validBefore));
        if (validAfter >= START || validBefore <= START) {
            vm.expectRevert(
                abi.encodeWithSignature("ERC3009InvalidAuthorizationTime(uint256,uint256)", validAfter, validBefore)
            );
        }
        token.transferWithAuthorization(payer, receiver, 5, validAfter, validBefore, NONCE, signature);
    }

    function test_smart_wallets_sign_by_eip1271_only() public {
        Wallet wallet = new Wallet(payer);
        token.mint(address(wallet), 5);
        bytes memory signature = sign(PAYER_KEY, digest(TRANSFER, address(wallet), 5, 0, START + 60));
        wallet.close();
        vm.expectRevert(INVALID);
        token.transferWithAuthorization(address(wallet), receiver, 5, 0, START + 60, NONCE, signature);

        wallet = new Wallet(payer);
        token.mint(address(wallet), 5);
        signature = sign(PAYER_KEY, digest(TRANSFER, address(wallet), 5, 0, START + 60));
        token.transferWithAuthorization(address(wallet), receiver, 5, 0, START + 60, NONCE, signature);
        vm.assertEq(token.balanceOf(receiver), 5, "paid");
    }

    /// An EOA that delegated its code (EIP-7702) is asked as a contract: its key alone no longer counts.
    function test_an_account_with_code_is_a_contract() public {
        bytes memory signature = sign(PAYER_KEY, digest(TRANSFER, payer, 5, 0, START + 60));
        vm.etch(payer, hex"00");
        vm.expectRevert(INVALID);
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
    }

    function test_signatures_are_for_one_chain() public {
        bytes memory signature = sign(PAYER_KEY, digest(TRANSFER, payer, 5, 0, START + 60));
        vm.chainId(8453);
        vm.expectRevert(INVALID);
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
    }

    function test_cancel() public {
        bytes32 structHash =
            keccak256(abi.encode(keccak256("CancelAuthorization(address authorizer,bytes32 nonce)"), payer, NONCE));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(PAYER_KEY, keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash)));
        token.cancelAuthorization(payer, NONCE, v, r, s);
        bytes memory signature = sign(PAYER_KEY, digest(TRANSFER, payer, 5, 0, START + 60));
        vm.expectRevert(abi.encodeWithSignature("ERC3009UsedAuthorization(address,bytes32)", payer, NONCE));
        token.transferWithAuthorization(payer, receiver, 5, 0, START + 60, NONCE, signature);
    }

    function testFuzz_anyone_mints(address to, uint128 value) public {
        vm.assume(to != address(0) && to != payer);
        vm.prank(stranger);
        token.mint(to, value);
        vm.assertEq(token.balanceOf(to), value, "minted");
    }
}
