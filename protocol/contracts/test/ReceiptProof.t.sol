// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ReceiptProof} from "../src/ReceiptProof.sol";
import {ReceiptVerifier} from "../src/ReceiptVerifier.sol";
import {Receipts} from "./Receipts.sol";
import {vm} from "./Vm.sol";

contract ReceiptProofTest is Receipts {
    /// Chosen so that every shape of a right edge is among them.
    uint64 private constant MOST = 33;

    function pick(uint64 seq, uint64 count) private pure returns (uint64, uint64) {
        count = 1 + count % MOST;
        return (seq % count, count);
    }

    function test_every_receipt_of_every_small_tree_is_proven() public view {
        for (uint64 count = 1; count <= 12; ++count) {
            for (uint64 seq = 0; seq < count; ++seq) {
                ReceiptProof.Proof memory proof = proofOf(seq, count);
                assertFault(proof, ReceiptProof.Fault.None, "good");
                verifier.verify(terms(), proof);
            }
        }
    }

    function testFuzz_a_good_proof_passes(uint64 seq, uint64 count) public view {
        (seq, count) = pick(seq, count);
        assertFault(proofOf(seq, count), ReceiptProof.Fault.None, "good");
    }

    /// Each of a receipt's fields is in its leaf: changed, it is not proven any more.
    function testFuzz_any_changed_field_fails(uint64 seq, uint64 count, uint256 which, uint256 bit) public view {
        (seq, count) = pick(seq, count);
        ReceiptProof.Proof memory proof = proofOf(seq, count);
        uint256 width = [uint256(256), 64, 256, 256, 256, 256, 256, 32, 32, 32, 128, 128, 64, 64, 8][which % 15];
        ReceiptProof.Receipt memory receipt = proof.receipt;
        uint256 mask = 1 << (bit % width);
        assembly {
            let field := add(receipt, mul(mod(which, 15), 0x20))
            mstore(field, xor(mload(field), mask))
        }
        vm.assertTrue(faultOf(proof) != ReceiptProof.Fault.None, "a changed receipt was proven");
    }

    function testFuzz_any_changed_hash_of_the_path_fails(uint64 seq, uint64 count, uint256 which, uint256 bit)
        public
        view
    {
        (seq, count) = pick(seq, count);
        vm.assume(count > 1);
        ReceiptProof.Proof memory proof = proofOf(seq, count);
        uint256 place = which % proof.path.length;
        proof.path[place] = proof.path[place] ^ bytes32(1 << (bit % 256));
        assertFault(proof, ReceiptProof.Fault.Path, "a changed path");
    }

    function testFuzz_a_path_of_another_length_fails(uint64 seq, uint64 count, bytes32 more) public view {
        (seq, count) = pick(seq, count);
        ReceiptProof.Proof memory proof = proofOf(seq, count);
        bytes32[] memory path = proof.path;
        bytes32[] memory longer = new bytes32[](path.length + 1);
        for (uint256 i = 0; i < path.length; ++i) longer[i] = path[i];
        longer[path.length] = more;
        proof.path = longer;
        assertFault(proof, ReceiptProof.Fault.Path, "too long");
        if (path.length == 0) return;
        assembly {
            mstore(path, sub(mload(path), 1))
        }
        proof.path = path;
        assertFault(proof, ReceiptProof.Fault.Path, "too short");
    }

    function testFuzz_another_receipt_of_the_channel_is_not_this_one(uint64 seq, uint64 other, uint64 count)
        public
        view
    {
        (seq, count) = pick(seq, count);
        other = other % count;
        vm.assume(other != seq);
        ReceiptProof.Proof memory proof = proofOf(seq, count);
        proof.receipt = receiptAt(other);
        vm.assertTrue(faultOf(proof) != ReceiptProof.Fault.None, "another place");
    }

    function testFuzz_a_root_that_is_not_what_was_signed_fails(uint64 seq, uint64 count, uint128 more) public view {
        (seq, count) = pick(seq, count);
        ReceiptProof.Proof memory proof = proofOf(seq, count);
        proof.root.count = count + 1 + uint64(more % 7);
        vm.assertTrue(faultOf(proof) != ReceiptProof.Fault.None, "another count");
        proof = proofOf(seq, count);
        vm.assume(more != 0 && more < type(uint128).max - proof.root.cumulative);
        proof.root.cumulative += more;
        vm.assertTrue(faultOf(proof) != ReceiptProof.Fault.None, "another total");
        proof = proofOf(seq, count);
        proof.root.root = bytes32(uint256(more));
        assertFault(proof, ReceiptProof.Fault.Path, "another root");
    }

    function test_a_receipt_beyond_the_root_is_not_proven() public view {
        ReceiptProof.Proof memory proof = proofOf(3, 4);
        proof.root.count = 3;
        cosign(proof);
        assertFault(proof, ReceiptProof.Fault.Place, "beyond");
    }

    function test_totals_that_cannot_both_be_true_fail_although_both_signed() public view {
        ReceiptProof.Proof memory proof = proofOf(3, 4);
        proof.root.cumulative += 1;
        cosign(proof);
        assertFault(proof, ReceiptProof.Fault.Total, "the last receipt's total is the root's");
        proof = proofOf(2, 4);
        proof.root.cumulative = proof.receipt.cumulative - 1;
        cosign(proof);
        assertFault(proof, ReceiptProof.Fault.Total, "no receipt's total exceeds the root's");
    }

    function test_another_channel_is_not_this_one() public {
        ReceiptProof.Proof memory proof = proofOf(1, 4);
        ReceiptProof.ChannelConfig memory other = terms();
        other.salt = bytes32(uint256(1));
        vm.assertEq(uint256(verifier.check(other, proof)), uint256(ReceiptProof.Fault.Channel), "lane");
        other = terms();
        other.receiverAuthorizer = stranger;
        vm.assertEq(uint256(verifier.check(other, proof)), uint256(ReceiptProof.Fault.Channel), "claim key");
        proof.root.channelId = bytes32(uint256(1));
        assertFault(proof, ReceiptProof.Fault.Channel, "the root's");
        proof = proofOf(1, 4);
        proof.receipt.channelId = bytes32(uint256(1));
        assertFault(proof, ReceiptProof.Fault.Channel, "the receipt's");
        ReceiptVerifier elsewhere = new ReceiptVerifier(stranger);
        proof = proofOf(1, 4);
        vm.assertEq(uint256(elsewhere.check(terms(), proof)), uint256(ReceiptProof.Fault.Channel), "settlement");
        vm.chainId(1);
        assertFault(proof, ReceiptProof.Fault.Channel, "chain");
    }

    function test_one_signature_missing_or_exchanged_fails() public view {
        ReceiptProof.Proof memory proof = proofOf(1, 4);
        (bytes memory buyer, bytes memory seller) = (proof.buyer, proof.seller);
        proof.buyer = "";
        assertFault(proof, ReceiptProof.Fault.Buyer, "no buyer");
        proof.buyer = seller;
        assertFault(proof, ReceiptProof.Fault.Buyer, "the seller twice");
        proof.buyer = buyer;
        proof.seller = "";
        assertFault(proof, ReceiptProof.Fault.Seller, "no seller");
        proof.seller = buyer;
        assertFault(proof, ReceiptProof.Fault.Seller, "the buyer twice");
        proof.seller = sign(STRANGER_KEY, digestOf(proof.root));
        assertFault(proof, ReceiptProof.Fault.Seller, "a stranger");
    }

    function testFuzz_the_twin_with_high_s_fails(uint64 seq, uint64 count) public view {
        (seq, count) = pick(seq, count);
        ReceiptProof.Proof memory proof = proofOf(seq, count);
        proof.buyer = twin(proof.buyer);
        assertFault(proof, ReceiptProof.Fault.Buyer, "the buyer's twin");
        cosign(proof);
        proof.seller = twin(proof.seller);
        assertFault(proof, ReceiptProof.Fault.Seller, "the seller's twin");
    }

    function twin(bytes memory signature) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s) = (bytes32(0), bytes32(0));
        assembly {
            r := mload(add(signature, 0x20))
            s := mload(add(signature, 0x40))
        }
        return abi.encodePacked(r, bytes32(ORDER - uint256(s)), uint8(signature[64]) == 27 ? uint8(28) : uint8(27));
    }

    function test_what_is_not_proven_reverts_with_its_fault() public {
        ReceiptProof.Proof memory proof = proofOf(1, 4);
        proof.receipt.completionTokens += 1;
        vm.expectRevert(abi.encodeWithSelector(ReceiptProof.NotProven.selector, ReceiptProof.Fault.Path));
        verifier.verify(terms(), proof);
    }

    function test_a_voucher_key_of_zero_proves_nothing() public view {
        ReceiptProof.ChannelConfig memory config = terms();
        config.payerAuthorizer = address(0);
        ReceiptProof.Proof memory proof = proofOf(1, 4);
        vm.assertTrue(verifier.check(config, proof) != ReceiptProof.Fault.None, "zero");
    }
}
