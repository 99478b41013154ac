// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ReceiptProof} from "../src/ReceiptProof.sol";
import {ReceiptVerifier} from "../src/ReceiptVerifier.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// Receipts of one channel, the tree over them by its definition, and proofs both have signed.
abstract contract Receipts is Street {
    ReceiptVerifier internal verifier = new ReceiptVerifier(SETTLEMENT);

    function terms() internal view returns (ReceiptProof.ChannelConfig memory config) {
        config.payer = payer;
        config.payerAuthorizer = payerAuthorizer;
        config.receiver = receiver;
        config.receiverAuthorizer = receiverAuthorizer;
        config.token = TOKEN;
        config.withdrawDelay = DELAY;
    }

    function receiptAt(uint64 seq) internal view returns (ReceiptProof.Receipt memory receipt) {
        receipt.channelId = id(lane(0));
        receipt.seq = seq;
        receipt.requestId = keccak256(abi.encode("request", seq));
        receipt.requestHash = keccak256("request");
        receipt.responseHash = keccak256("response");
        receipt.modelId = keccak256("model");
        receipt.termsHash = keccak256("offer");
        receipt.promptTokens = 12;
        receipt.cachedTokens = 4;
        receipt.completionTokens = 300;
        receipt.charged = 7;
        receipt.cumulative = 7 * (uint128(seq) + 1);
        receipt.startedAtMs = 1000 * seq;
        receipt.finishedAtMs = 1000 * seq + 900;
    }

    function leafAt(uint64 seq) internal view returns (bytes32) {
        bytes32 content = keccak256(abi.encode(ReceiptProof.RECEIPT_TYPEHASH, receiptAt(seq)));
        return keccak256(abi.encodePacked(hex"00", content));
    }

    function half(uint64 size) internal pure returns (uint64 left) {
        left = 1;
        while (left * 2 < size) left *= 2;
    }

    /// RFC 6962's definition of a root.
    function treeRoot(uint64 from, uint64 size) internal view returns (bytes32) {
        if (size == 1) return leafAt(from);
        uint64 left = half(size);
        return keccak256(abi.encodePacked(hex"01", treeRoot(from, left), treeRoot(from + left, size - left)));
    }

    /// RFC 6962's definition of an audit path.
    function treePath(uint64 index, uint64 from, uint64 size) internal view returns (bytes32[] memory path) {
        if (size == 1) return path;
        uint64 left = half(size);
        bool isLeft = index < left;
        bytes32[] memory below = isLeft ? treePath(index, from, left) : treePath(index - left, from + left, size - left);
        path = new bytes32[](below.length + 1);
        for (uint256 i = 0; i < below.length; ++i) path[i] = below[i];
        path[below.length] = isLeft ? treeRoot(from + left, size - left) : treeRoot(from, left);
    }

    function digestOf(ReceiptProof.Root memory root) internal view returns (bytes32) {
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Inference Receipts"),
                keccak256("1"),
                block.chainid,
                SETTLEMENT
            )
        );
        return keccak256(abi.encodePacked(hex"1901", separator, keccak256(abi.encode(ReceiptProof.ROOT_TYPEHASH, root))));
    }

    function cosign(ReceiptProof.Proof memory proof) internal view {
        proof.buyer = sign(VOUCHER_KEY, digestOf(proof.root));
        proof.seller = sign(CLAIM_KEY, digestOf(proof.root));
    }

    function proofOf(uint64 seq, uint64 count) internal view returns (ReceiptProof.Proof memory proof) {
        proof.receipt = receiptAt(seq);
        proof.root.channelId = id(lane(0));
        proof.root.count = count;
        proof.root.cumulative = 7 * uint128(count);
        proof.root.root = treeRoot(0, count);
        proof.path = treePath(seq, 0, count);
        cosign(proof);
    }

    function faultOf(ReceiptProof.Proof memory proof) internal view returns (ReceiptProof.Fault) {
        return verifier.check(terms(), proof);
    }

    function assertFault(ReceiptProof.Proof memory proof, ReceiptProof.Fault expected, string memory why)
        internal
        view
    {
        vm.assertEq(uint256(faultOf(proof)), uint256(expected), why);
    }
}
