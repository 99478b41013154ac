// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

/// A way of pulling a payer's tokens into the settlement contract.
interface IDepositCollector {
    /// Moves exactly `amount` of `token` from `payer` to the caller, or reverts.
    /// `data` is whatever this collector needs as the payer's consent to fund `channelId`.
    function collect(address payer, address token, uint256 amount, bytes32 channelId, bytes calldata data) external;
}
