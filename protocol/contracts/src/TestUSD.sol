// Local chains only: anyone may mint. On public chains the token is the real USDC.
// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// A stand-in for USDC: 6 decimals, EIP-712 domain {"USDC", "2"}, EIP-3009 in both shapes.
///
/// OpenZeppelin's `ERC3009` brings the `v, r, s` shape with random nonces. The `bytes signature`
/// shape, which also serves smart wallets (EIP-1271), is added here: OpenZeppelin's own version
/// of it orders nonces in sequences, and so rejects the random nonces that x402 clients sign.
///
/// Nothing the constructor stores matters (name and symbol are code), so the runtime may be
/// placed at any address without its storage.
contract TestUSD is ERC3009 {
    constructor() ERC20("", "") EIP712("USDC", "2") {}

    function name() public pure override returns (string memory) {
        return "USDC";
    }

    function symbol() public pure override returns (string memory) {
        return "USDC";
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function version() external pure returns (string memory) {
        return "2";
    }

    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    /// Test money for anyone.
    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external {
        _checkSignature(
            from,
            abi.encode(TRANSFER_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce),
            signature
        );
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) external {
        require(to == _msgSender(), ERC20InvalidReceiver(to));
        _checkSignature(
            from,
            abi.encode(RECEIVE_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce),
            signature
        );
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// An account without code answers by ECDSA, one with code by EIP-1271; never both.
    function _checkSignature(address signer, bytes memory encoded, bytes memory signature) private view {
        bytes32 digest = _hashTypedDataV4(keccak256(encoded));
        require(SignatureChecker.isValidSignatureNow(signer, digest, signature), ERC3009InvalidSignature());
    }
}
