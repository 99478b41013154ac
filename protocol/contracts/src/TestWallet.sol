// Local chains only: a stand-in for a Safe or another contract that owns money.
// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// A wallet of two owners that signs by EIP-1271: both must have signed, the lower address first.
///
/// Its owners are code, not storage, so the runtime may be placed at any address.
contract TestWallet {
    address private immutable _first;
    address private immutable _second;

    constructor(address first, address second) {
        require(first < second && first != address(0), "owners in the order of their addresses");
        _first = first;
        _second = second;
    }

    /// @param signature 65 bytes of each owner, and nothing else.
    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        if (signature.length != 130) return bytes4(0);
        bool good = _signed(_first, digest, signature[:65]) && _signed(_second, digest, signature[65:]);
        return good ? this.isValidSignature.selector : bytes4(0);
    }

    function _signed(address owner, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        // The third value only explains the second.
        // slither-disable-next-line unused-return
        (address signer, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, signature);
        return problem == ECDSA.RecoverError.NoError && signer == owner;
    }
}
