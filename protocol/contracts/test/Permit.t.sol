// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {Permit2} from "../src/Permit2.sol";
import {UptoProxy} from "../src/UptoProxy.sol";
import {Wallet} from "./Doubles.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// x402 `upto`: the proxy and Permit2 behind it, each fault by its name.
contract PermitTest is Street {
    Permit2 private constant permit2 = Permit2(0x000000000022D473030F116dDEE9F6B43aC78BA3);
    UptoProxy private constant proxy = UptoProxy(0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002);

    /// The texts are written out here once more: a slip in the contracts must not pass unseen.
    bytes32 private constant PERMIT = keccak256(
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)"
    );
    bytes32 private constant PLAIN = keccak256(
        "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
    );
    bytes32 private constant PERMISSIONS = keccak256("TokenPermissions(address token,uint256 amount)");
    bytes32 private constant WITNESS = keccak256("Witness(address to,address facilitator,uint256 validAfter)");

    address private facilitator = vm.addr(CLAIM_KEY);

    function setUp() public override {
        super.setUp();
        place(address(permit2), type(Permit2).creationCode);
        place(address(proxy), abi.encodePacked(type(UptoProxy).creationCode, abi.encode(address(permit2))));
        vm.prank(payer);
        token.approve(address(permit2), type(uint256).max);
    }

    // ------------------------------------------------------------ the payer's hand

    function permission(uint256 amount, uint256 nonce)
        private
        pure
        returns (Permit2.PermitTransferFrom memory permit)
    {
        permit.permitted.token = TOKEN;
        permit.permitted.amount = amount;
        permit.nonce = nonce;
        permit.deadline = START + 60;
    }

    function witnessed() private view returns (UptoProxy.Witness memory) {
        return UptoProxy.Witness({to: receiver, facilitator: facilitator, validAfter: 0});
    }

    function enclosed(bytes32 structHash) private view returns (bytes32) {
        bytes32 domain = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)"),
                keccak256("Permit2"),
                block.chainid,
                address(permit2)
            )
        );
        return keccak256(abi.encodePacked(hex"1901", domain, structHash));
    }

    function digest(Permit2.PermitTransferFrom memory permit, UptoProxy.Witness memory witness)
        private
        view
        returns (bytes32)
    {
        bytes32 permitted = keccak256(abi.encode(PERMISSIONS, permit.permitted.token, permit.permitted.amount));
        bytes32 extra = keccak256(abi.encode(WITNESS, witness.to, witness.facilitator, witness.validAfter));
        return enclosed(
            keccak256(abi.encode(PERMIT, permitted, address(proxy), permit.nonce, permit.deadline, extra))
        );
    }

    function take(Permit2.PermitTransferFrom memory permit, uint256 amount) private {
        bytes memory signature = sign(PAYER_KEY, digest(permit, witnessed()));
        vm.prank(facilitator);
        proxy.settle(permit, amount, payer, witnessed(), signature);
    }

    // ------------------------------------------------------------ what works

    function test_selectors_and_types() public view {
        vm.assertEq(bytes32(permit2.permitWitnessTransferFrom.selector), bytes32(bytes4(0x137c29fe)), "witness");
        vm.assertEq(bytes32(permit2.permitTransferFrom.selector), bytes32(bytes4(0x30f28b7a)), "plain");
        vm.assertEq(bytes32(permit2.nonceBitmap.selector), bytes32(bytes4(0x4fe02b44)), "bitmap");
        vm.assertEq(bytes32(permit2.invalidateUnorderedNonces.selector), bytes32(bytes4(0x3ff9dcb1)), "invalidate");
        vm.assertEq(proxy.WITNESS_TYPEHASH(), WITNESS, "witness");
        vm.assertEq(address(proxy.PERMIT2()), address(permit2), "permit2");
    }

    function testFuzz_takes_any_part_of_the_permit(uint96 ceiling, uint96 amount, uint256 nonce) public {
        vm.assume(amount <= ceiling);
        uint256 before = token.balanceOf(payer);
        take(permission(ceiling, nonce), amount);
        vm.assertEq(token.balanceOf(receiver), amount, "received");
        vm.assertEq(token.balanceOf(payer), before - amount, "paid");
        vm.assertEq(token.balanceOf(address(proxy)) + token.balanceOf(address(permit2)), 0, "nothing sticks");
    }

    function test_nonces_are_bits() public {
        take(permission(5, 256 + 3), 5);
        vm.assertEq(permit2.nonceBitmap(payer, 1), 1 << 3, "the bit");
        vm.assertEq(permit2.nonceBitmap(payer, 0), 0, "another word");
        take(permission(5, 3), 5);
        vm.assertEq(token.balanceOf(receiver), 10, "both");
    }

    function test_without_a_witness() public {
        Permit2.PermitTransferFrom memory permit = permission(5, 1);
        bytes32 permitted = keccak256(abi.encode(PERMISSIONS, TOKEN, 5));
        bytes32 message =
            enclosed(keccak256(abi.encode(PLAIN, permitted, facilitator, permit.nonce, permit.deadline)));
        Permit2.SignatureTransferDetails memory details =
            Permit2.SignatureTransferDetails({to: receiver, requestedAmount: 4});
        bytes memory signature = sign(PAYER_KEY, message);
        vm.expectRevert(Permit2.InvalidSigner.selector);
        permit2.permitTransferFrom(permit, details, payer, signature);
        vm.prank(facilitator);
        permit2.permitTransferFrom(permit, details, payer, signature);
        vm.assertEq(token.balanceOf(receiver), 4, "received");
    }

    function test_compact_signatures() public {
        Permit2.PermitTransferFrom memory permit = permission(5, 1);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, digest(permit, witnessed()));
        bytes32 vs = v == 28 ? s | bytes32(uint256(1) << 255) : s;
        vm.prank(facilitator);
        proxy.settle(permit, 5, payer, witnessed(), abi.encodePacked(r, vs));
        vm.assertEq(token.balanceOf(receiver), 5, "received");
    }

    function test_smart_wallets_sign_by_eip1271() public {
        Wallet wallet = new Wallet(payer);
        token.mint(address(wallet), 5);
        vm.prank(address(wallet));
        token.approve(address(permit2), 5);
        Permit2.PermitTransferFrom memory permit = permission(5, 1);
        bytes memory signature = sign(PAYER_KEY, digest(permit, witnessed()));
        wallet.close();
        vm.expectRevert(Permit2.InvalidContractSignature.selector);
        vm.prank(facilitator);
        proxy.settle(permit, 5, address(wallet), witnessed(), signature);
    }

    // ------------------------------------------------------------ what does not

    function test_a_replayed_nonce() public {
        take(permission(5, 1), 2);
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.expectRevert(Permit2.InvalidNonce.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 3, payer, witnessed(), signature);

        // Nor under a new signature: the nonce itself is gone.
        signature = sign(PAYER_KEY, digest(permission(9, 1), witnessed()));
        vm.expectRevert(Permit2.InvalidNonce.selector);
        vm.prank(facilitator);
        proxy.settle(permission(9, 1), 3, payer, witnessed(), signature);
    }

    function test_a_nonce_taken_back() public {
        vm.prank(payer);
        permit2.invalidateUnorderedNonces(0, 2);
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.expectRevert(Permit2.InvalidNonce.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witnessed(), signature);
        take(permission(5, 0), 5);
    }

    function test_the_wrong_facilitator() public {
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.expectRevert(UptoProxy.UnauthorizedFacilitator.selector);
        vm.prank(stranger);
        proxy.settle(permission(5, 1), 5, payer, witnessed(), signature);

        UptoProxy.Witness memory witness = witnessed();
        witness.facilitator = stranger;
        vm.expectRevert(Permit2.InvalidSigner.selector);
        vm.prank(stranger);
        proxy.settle(permission(5, 1), 5, payer, witness, signature);
    }

    function test_past_the_proxy() public {
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        UptoProxy.Witness memory witness = witnessed();
        bytes32 hash = keccak256(abi.encode(WITNESS, witness.to, witness.facilitator, witness.validAfter));
        string memory text = proxy.WITNESS_TYPE_STRING();
        vm.expectRevert(Permit2.InvalidSigner.selector);
        vm.prank(facilitator);
        permit2.permitWitnessTransferFrom(
            permission(5, 1),
            Permit2.SignatureTransferDetails({to: facilitator, requestedAmount: 5}),
            payer,
            hash,
            text,
            signature
        );
    }

    function test_the_wrong_witness() public {
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        UptoProxy.Witness memory witness = witnessed();
        witness.to = stranger;
        vm.expectRevert(Permit2.InvalidSigner.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witness, signature);
        witness = witnessed();
        witness.validAfter = 1;
        vm.expectRevert(Permit2.InvalidSigner.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witness, signature);
    }

    function test_more_than_permitted() public {
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.expectRevert(UptoProxy.AmountExceedsPermitted.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 6, payer, witnessed(), signature);
        // Raising the permit instead breaks the signature.
        vm.expectRevert(Permit2.InvalidSigner.selector);
        vm.prank(facilitator);
        proxy.settle(permission(6, 1), 6, payer, witnessed(), signature);
    }

    function test_more_than_permitted_without_the_proxy() public {
        Permit2.SignatureTransferDetails memory details =
            Permit2.SignatureTransferDetails({to: receiver, requestedAmount: 6});
        vm.expectRevert(abi.encodeWithSelector(Permit2.InvalidAmount.selector, 5));
        permit2.permitTransferFrom(permission(5, 1), details, payer, new bytes(65));
    }

    function test_expired_and_early() public {
        Permit2.PermitTransferFrom memory permit = permission(5, 1);
        bytes memory signature = sign(PAYER_KEY, digest(permit, witnessed()));
        vm.warp(START + 61);
        vm.expectRevert(abi.encodeWithSelector(Permit2.SignatureExpired.selector, START + 60));
        vm.prank(facilitator);
        proxy.settle(permit, 5, payer, witnessed(), signature);
        vm.warp(START + 60);
        UptoProxy.Witness memory witness = witnessed();
        witness.validAfter = START + 61;
        signature = sign(PAYER_KEY, digest(permit, witness));
        vm.expectRevert(UptoProxy.PaymentTooEarly.selector);
        vm.prank(facilitator);
        proxy.settle(permit, 5, payer, witness, signature);
        take(permit, 5);
    }

    function test_nobody_and_nowhere() public {
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.expectRevert(UptoProxy.InvalidOwner.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, address(0), witnessed(), signature);
        UptoProxy.Witness memory witness = witnessed();
        witness.to = address(0);
        vm.expectRevert(UptoProxy.InvalidDestination.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witness, signature);
        vm.expectRevert(UptoProxy.InvalidPermit2Address.selector);
        new UptoProxy(address(0));
    }

    function test_signatures_that_are_none() public {
        vm.expectRevert(Permit2.InvalidSignatureLength.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witnessed(), new bytes(63));
        vm.expectRevert(Permit2.InvalidSignature.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witnessed(), new bytes(65));
    }

    function test_for_one_chain() public {
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.chainId(8453);
        vm.expectRevert(Permit2.InvalidSigner.selector);
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witnessed(), signature);
    }

    function test_no_allowance_and_no_money() public {
        vm.prank(payer);
        token.approve(address(permit2), 4);
        bytes memory signature = sign(PAYER_KEY, digest(permission(5, 1), witnessed()));
        vm.expectRevert("TRANSFER_FROM_FAILED");
        vm.prank(facilitator);
        proxy.settle(permission(5, 1), 5, payer, witnessed(), signature);
        // What failed has used nothing up.
        take(permission(5, 1), 4);
        vm.assertEq(token.allowance(payer, address(permit2)), 0, "spent");
    }
}
