// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity ^0.8.24;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// Shows a contract that a purchase of inference happened as its receipt says: the receipt is a
/// leaf of the tree whose root the channel's buyer and seller have both signed.
///
/// Unlike what else stands in this folder it is made for public chains: it holds no money and no
/// state. Everything is bound to the channel's id, which binds chain, settlement contract, token
/// and both keys; so whoever calls needs to trust the settlement's address and nothing else.
///
/// What a proof does not say: that buyer and seller are strangers to each other, that the answer
/// was any good, or that the money has moved (ask the settlement contract for that).
library ReceiptProof {
    /// The channel's terms: their hash in the settlement contract's domain is the channel's id.
    struct ChannelConfig {
        address payer;
        address payerAuthorizer;
        address receiver;
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay;
        bytes32 salt;
    }

    /// One purchase, as the seller states it. `status` 0 is a complete answer.
    struct Receipt {
        bytes32 channelId;
        uint64 seq;
        bytes32 requestId;
        bytes32 requestHash;
        bytes32 responseHash;
        bytes32 modelId;
        bytes32 termsHash;
        uint32 promptTokens;
        uint32 cachedTokens;
        uint32 completionTokens;
        uint128 charged;
        uint128 cumulative;
        uint64 startedAtMs;
        uint64 finishedAtMs;
        uint8 status;
    }

    /// The first `count` receipts of a channel, and what they charge in all.
    struct Root {
        bytes32 channelId;
        uint64 count;
        uint128 cumulative;
        bytes32 root;
    }

    struct Proof {
        Receipt receipt;
        Root root;
        /// The hashes beside the way up, from the leaf on.
        bytes32[] path;
        /// By the channel's `payerAuthorizer`, over the root.
        bytes buyer;
        /// By the channel's `receiverAuthorizer`, over the root.
        bytes seller;
    }

    /// What is wrong, in the order in which it is looked for.
    enum Fault {
        None,
        /// Receipt or root is another channel's than the one with these terms.
        Channel,
        /// The receipt's place is not below the root's count.
        Place,
        /// The totals cannot both be true.
        Total,
        /// The path does not lead from the receipt to the root.
        Path,
        /// The buyer did not sign the root, or not in the canonical form.
        Buyer,
        /// The seller did not sign the root, or not in the canonical form.
        Seller
    }

    error NotProven(Fault fault);

    bytes32 internal constant DOMAIN_TYPEHASH =
        keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
    bytes32 internal constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 channelId,uint64 seq,bytes32 requestId,bytes32 requestHash,bytes32 responseHash,bytes32 modelId,bytes32 termsHash,uint32 promptTokens,uint32 cachedTokens,uint32 completionTokens,uint128 charged,uint128 cumulative,uint64 startedAtMs,uint64 finishedAtMs,uint8 status)"
    );
    bytes32 internal constant ROOT_TYPEHASH =
        keccak256("ReceiptRoot(bytes32 channelId,uint64 count,uint128 cumulative,bytes32 root)");

    /// Reverts unless the proof holds on this chain for a channel of this settlement contract.
    function verify(address settlement, ChannelConfig calldata channel, Proof calldata proof) internal view {
        Fault fault = check(settlement, channel, proof);
        if (fault != Fault.None) revert NotProven(fault);
    }

    /// The first thing that is wrong with a proof; `Fault.None` if it holds.
    function check(address settlement, ChannelConfig calldata channel, Proof calldata proof)
        internal
        view
        returns (Fault)
    {
        Receipt calldata receipt = proof.receipt;
        Root calldata root = proof.root;
        bytes32 id = channelId(settlement, channel);
        if (receipt.channelId != id || root.channelId != id) return Fault.Channel;
        if (receipt.seq >= root.count) return Fault.Place;
        bool last = receipt.seq + 1 == root.count;
        if (receipt.charged > receipt.cumulative) return Fault.Total;
        if (last ? receipt.cumulative != root.cumulative : receipt.cumulative > root.cumulative) return Fault.Total;
        (bytes32 reached, bool fits) = climb(leafOf(receipt), receipt.seq, root.count, proof.path);
        if (!fits || reached != root.root) return Fault.Path;
        bytes32 digest = rootDigest(settlement, root);
        if (!signedBy(channel.payerAuthorizer, digest, proof.buyer)) return Fault.Buyer;
        if (!signedBy(channel.receiverAuthorizer, digest, proof.seller)) return Fault.Seller;
        return Fault.None;
    }

    /// The channel with these terms.
    function channelId(address settlement, ChannelConfig calldata channel) internal view returns (bytes32) {
        bytes32 terms = keccak256(abi.encode(CHANNEL_CONFIG_TYPEHASH, channel));
        return typed(domain("x402 Batch Settlement", settlement), terms);
    }

    /// The leaf that a receipt is in its channel's tree.
    function leafOf(Receipt calldata receipt) internal pure returns (bytes32) {
        bytes32 content = keccak256(abi.encode(RECEIPT_TYPEHASH, receipt));
        return keccak256(abi.encodePacked(bytes1(0x00), content));
    }

    /// What both sides sign.
    function rootDigest(address settlement, Root calldata root) internal view returns (bytes32) {
        return typed(domain("Inference Receipts", settlement), keccak256(abi.encode(ROOT_TYPEHASH, root)));
    }

    /// The root that leaf `index` of `count` leads to by a path, and whether the path is as long
    /// as that place's is. `index` is below `count`.
    function climb(bytes32 leaf, uint256 index, uint256 count, bytes32[] calldata path)
        internal
        pure
        returns (bytes32 hash, bool fits)
    {
        hash = leaf;
        uint256 last = count - 1;
        for (uint256 i = 0; i < path.length; ++i) {
            if (last == 0) return (hash, false);
            if (index & 1 == 1 || index == last) {
                hash = node(path[i], hash);
                // On the right edge a level without a neighbour adds nothing.
                while (index & 1 == 0 && index != 0) {
                    index >>= 1;
                    last >>= 1;
                }
            } else {
                hash = node(hash, path[i]);
            }
            index >>= 1;
            last >>= 1;
        }
        fits = last == 0;
    }

    /// keccak256(0x01 ‖ left ‖ right), in scratch space: it is most of a proof's work.
    function node(bytes32 left, bytes32 right) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            // The 65th byte is the first of the free memory pointer.
            let free := mload(0x40)
            mstore8(0x00, 0x01)
            mstore(0x01, left)
            mstore(0x21, right)
            hash := keccak256(0x00, 0x41)
            mstore(0x40, free)
        }
    }

    function domain(string memory name, address settlement) private view returns (bytes32) {
        return keccak256(
            abi.encode(DOMAIN_TYPEHASH, keccak256(bytes(name)), keccak256("1"), block.chainid, settlement)
        );
    }

    function typed(bytes32 separator, bytes32 message) private pure returns (bytes32) {
        return keccak256(abi.encodePacked(hex"1901", separator, message));
    }

    /// 65 bytes, v 27 or 28, low s; never the zero address.
    function signedBy(address signer, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        // The third value says why, and a bad signature is bad for any reason.
        // slither-disable-next-line unused-return
        (address who, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        return problem == ECDSA.RecoverError.NoError && who == signer;
    }
}
