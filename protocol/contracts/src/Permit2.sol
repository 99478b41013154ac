// Local chains only; public chains use the canonical deployment at 0x000000000022D473030F116dDEE9F6B43aC78BA3.
// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

/// Transfers by signature, compatible in ABI, errors and EIP-712 types with that half of Permit2.
/// Its other half, allowances with an expiry, is not here: nothing in x402 uses it.
///
/// An owner approves this contract in a token once. From then on each signed permit lets the
/// spender it names take up to its amount, once. Nonces are bits in a map, so permits are used
/// in any order.
contract Permit2 {
    using SafeERC20 for IERC20;

    struct TokenPermissions {
        address token;
        uint256 amount;
    }

    struct PermitTransferFrom {
        TokenPermissions permitted;
        uint256 nonce;
        uint256 deadline;
    }

    struct SignatureTransferDetails {
        address to;
        uint256 requestedAmount;
    }

    bytes32 private constant _DOMAIN =
        keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)");
    bytes32 private constant _PERMISSIONS = keccak256("TokenPermissions(address token,uint256 amount)");
    bytes32 private constant _PERMIT = keccak256(
        "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
    );
    /// The caller's witness completes it; its text begins with the name of the witness's type.
    string private constant _WITNESSED =
        "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline,";

    /// By owner and word: which of 256 nonces are used.
    mapping(address owner => mapping(uint256 word => uint256 bits)) public nonceBitmap;

    event UnorderedNonceInvalidation(address indexed owner, uint256 word, uint256 mask);

    error InvalidAmount(uint256 maxAmount);
    error InvalidContractSignature();
    error InvalidNonce();
    error InvalidSignature();
    error InvalidSignatureLength();
    error InvalidSigner();
    error SignatureExpired(uint256 signatureDeadline);

    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() public view returns (bytes32) {
        return keccak256(abi.encode(_DOMAIN, keccak256("Permit2"), block.chainid, address(this)));
    }

    /// Takes a permit. Its spender is the caller, so nobody else can.
    function permitTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata transferDetails,
        address owner,
        bytes calldata signature
    ) external {
        bytes32 structHash =
            keccak256(abi.encode(_PERMIT, _permissions(permit), msg.sender, permit.nonce, permit.deadline));
        _take(permit, transferDetails, owner, structHash, signature);
    }

    /// The same, for a permit that also covers data of the spender's own, by hash.
    function permitWitnessTransferFrom(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata transferDetails,
        address owner,
        bytes32 witness,
        string calldata witnessTypeString,
        bytes calldata signature
    ) external {
        bytes32 typeHash = keccak256(abi.encodePacked(_WITNESSED, witnessTypeString));
        bytes32 structHash =
            keccak256(abi.encode(typeHash, _permissions(permit), msg.sender, permit.nonce, permit.deadline, witness));
        _take(permit, transferDetails, owner, structHash, signature);
    }

    /// Lets an owner take back permits that nobody has used yet.
    function invalidateUnorderedNonces(uint256 wordPos, uint256 mask) external {
        nonceBitmap[msg.sender][wordPos] |= mask;
        emit UnorderedNonceInvalidation(msg.sender, wordPos, mask);
    }

    function _take(
        PermitTransferFrom calldata permit,
        SignatureTransferDetails calldata details,
        address owner,
        bytes32 structHash,
        bytes calldata signature
    ) private {
        require(block.timestamp <= permit.deadline, SignatureExpired(permit.deadline));
        require(details.requestedAmount <= permit.permitted.amount, InvalidAmount(permit.permitted.amount));
        _use(owner, permit.nonce);
        _check(owner, keccak256(abi.encodePacked(hex"1901", DOMAIN_SEPARATOR(), structHash)), signature);
        bool moved =
            IERC20(permit.permitted.token).trySafeTransferFrom(owner, details.to, details.requestedAmount);
        // The deployed contract says nothing either of why the token refuses.
        require(moved, "TRANSFER_FROM_FAILED");
    }

    function _use(address owner, uint256 nonce) private {
        uint256 bit = 1 << (nonce & 0xff);
        uint256 bits = nonceBitmap[owner][nonce >> 8];
        require(bits & bit == 0, InvalidNonce());
        nonceBitmap[owner][nonce >> 8] = bits | bit;
    }

    /// An account without code answers by ECDSA (either `s`: the nonce stops a second use), one
    /// with code by EIP-1271.
    function _check(address owner, bytes32 digest, bytes calldata signature) private view {
        if (owner.code.length != 0) {
            require(
                IERC1271(owner).isValidSignature(digest, signature) == IERC1271.isValidSignature.selector,
                InvalidContractSignature()
            );
            return;
        }
        address signer = ecrecover(digest, _v(signature), bytes32(signature[:32]), _s(signature));
        require(signer != address(0), InvalidSignature());
        require(signer == owner, InvalidSigner());
    }

    /// 65 bytes, or the 64 of EIP-2098 in which `s` carries the parity.
    function _v(bytes calldata signature) private pure returns (uint8) {
        require(signature.length == 65 || signature.length == 64, InvalidSignatureLength());
        if (signature.length == 65) return uint8(signature[64]);
        return uint8(uint256(bytes32(signature[32:64])) >> 255) + 27;
    }

    function _s(bytes calldata signature) private pure returns (bytes32) {
        bytes32 s = bytes32(signature[32:64]);
        return signature.length == 65 ? s : s & bytes32(uint256(type(int256).max));
    }

    function _permissions(PermitTransferFrom calldata permit) private pure returns (bytes32) {
        return keccak256(abi.encode(_PERMISSIONS, permit.permitted.token, permit.permitted.amount));
    }
}
