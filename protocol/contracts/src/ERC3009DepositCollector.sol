// Local chains only; public chains use the canonical deployment at 0x4020806089470a89826cB9fB1f4059150b550004.
// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IDepositCollector} from "./IDepositCollector.sol";

/// The one call we need of a token like USDC: EIP-3009 with a signature of any kind.
interface IReceiveWithAuthorization {
    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes calldata signature
    ) external;
}

/// Funds a channel by an EIP-3009 authorization: the payer signs, anyone pays the gas.
///
/// The authorization's nonce contains the channel id, so a signature funds that channel and no
/// other. Whoever replays it first only completes the deposit that the payer asked for.
contract ERC3009DepositCollector is IDepositCollector {
    using SafeERC20 for IERC20;

    /// The only caller served, and the only destination of tokens.
    address public immutable settlement;

    error OnlySettlement();

    constructor(address settlement_) {
        // A collector for nobody collects for nobody.
        // slither-disable-next-line missing-zero-check
        settlement = settlement_;
    }

    /// @param data `abi.encode(uint256 validAfter, uint256 validBefore, uint256 salt, bytes signature)`
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata data) external {
        require(msg.sender == settlement, OnlySettlement());

        (uint256 validAfter, uint256 validBefore, uint256 salt, bytes memory signature) =
            abi.decode(data, (uint256, uint256, uint256, bytes));
        bytes32 nonce = keccak256(abi.encode(channelId, salt));

        IReceiveWithAuthorization(token)
            .receiveWithAuthorization(payer, address(this), amount, validAfter, validBefore, nonce, signature);
        IERC20(token).safeTransfer(settlement, amount);
    }
}
