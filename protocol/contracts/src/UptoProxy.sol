// Local chains only; public chains use the canonical deployment at 0x4020A4f3b7b90ccA423B9fabCc0CE57C6C240002.
// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {Permit2} from "./Permit2.sol";

/// Takes a payment of at most the amount a payer signed, compatible in ABI, errors and EIP-712
/// types with the x402 `upto` proxy. Written from its public interface, for chains that lack it.
///
/// The payer's signature names the receiver and the facilitator, so only that facilitator can
/// take the payment, and only to that receiver. `settleWithPermit`, which would bring the
/// approval of Permit2 along, is not here: our token has no EIP-2612.
contract UptoProxy is ReentrancyGuardTransient {
    struct Witness {
        address to;
        address facilitator;
        uint256 validAfter;
    }

    bytes32 public constant WITNESS_TYPEHASH =
        keccak256("Witness(address to,address facilitator,uint256 validAfter)");
    /// What completes the type that Permit2 hashes.
    string public constant WITNESS_TYPE_STRING =
        "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to,address facilitator,uint256 validAfter)";

    // solhint-disable-next-line var-name-mixedcase
    Permit2 public immutable PERMIT2;

    event Settled();

    error AmountExceedsPermitted();
    error InvalidDestination();
    error InvalidOwner();
    error InvalidPermit2Address();
    error PaymentTooEarly();
    error UnauthorizedFacilitator();

    constructor(address permit2) {
        require(permit2 != address(0), InvalidPermit2Address());
        PERMIT2 = Permit2(permit2);
    }

    function settle(
        Permit2.PermitTransferFrom calldata permit,
        uint256 amount,
        address owner,
        Witness calldata witness,
        bytes calldata signature
    ) external nonReentrant {
        require(msg.sender == witness.facilitator, UnauthorizedFacilitator());
        require(amount <= permit.permitted.amount, AmountExceedsPermitted());
        require(owner != address(0), InvalidOwner());
        require(witness.to != address(0), InvalidDestination());
        require(block.timestamp >= witness.validAfter, PaymentTooEarly());
        bytes32 hash = keccak256(abi.encode(WITNESS_TYPEHASH, witness.to, witness.facilitator, witness.validAfter));
        PERMIT2.permitWitnessTransferFrom(
            permit,
            Permit2.SignatureTransferDetails({to: witness.to, requestedAmount: amount}),
            owner,
            hash,
            WITNESS_TYPE_STRING,
            signature
        );
        emit Settled();
    }
}
