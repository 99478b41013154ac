// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity ^0.8.24;

import {ReceiptProof} from "./ReceiptProof.sol";

/// `ReceiptProof` as a contract to call: without state, owner or money. What `farthing receipts
/// prove` writes as calldata is a call of `verify`.
contract ReceiptVerifier {
    /// The settlement contract whose channels are believed.
    address public immutable SETTLEMENT;

    // Whoever deploys it for no contract has one that proves nothing.
    // slither-disable-next-line missing-zero-check
    constructor(address settlement) {
        SETTLEMENT = settlement;
    }

    /// Reverts with `NotProven` unless the proof holds.
    function verify(ReceiptProof.ChannelConfig calldata channel, ReceiptProof.Proof calldata proof) external view {
        ReceiptProof.verify(SETTLEMENT, channel, proof);
    }

    /// The first thing that is wrong with a proof; 0 if it holds.
    function check(ReceiptProof.ChannelConfig calldata channel, ReceiptProof.Proof calldata proof)
        external
        view
        returns (ReceiptProof.Fault)
    {
        return ReceiptProof.check(SETTLEMENT, channel, proof);
    }
}
