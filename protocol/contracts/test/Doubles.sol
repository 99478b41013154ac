// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {IDepositCollector} from "../src/IDepositCollector.sol";

/// A smart wallet (EIP-1271) with one owner, who may change their mind.
contract Wallet {
    address private immutable _owner;
    bool public open = true;

    constructor(address owner) {
        _owner = owner;
    }

    function close() external {
        open = false;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        return open && ECDSA.recover(digest, signature) == _owner ? this.isValidSignature.selector : bytes4(0);
    }
}

/// Pulls by plain allowance, off by `skew`: too little, or too much.
contract SkewedCollector is IDepositCollector {
    int256 private immutable _skew;

    constructor(int256 skew) {
        _skew = skew;
    }

    function collect(address payer, address token, uint256 amount, bytes32, bytes calldata) external {
        // forge-lint: disable-next-line(erc20-unchecked-transfer)
        IERC20(token).transferFrom(payer, msg.sender, uint256(int256(amount) + _skew));
    }
}

/// Calls back into its caller while it should be collecting.
contract ReentrantCollector is IDepositCollector {
    function collect(address, address, uint256, bytes32, bytes calldata data) external {
        (bool ok, bytes memory answer) = msg.sender.call(data);
        assembly ("memory-safe") {
            if iszero(ok) { revert(add(answer, 32), mload(answer)) }
        }
    }
}

/// Keeps one unit of every transfer.
contract FeeToken is ERC20("Fee", "FEE") {
    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from != address(0) && to != address(0)) super._update(to, address(0xfee), 1);
    }
}

/// Calls `payload` on `target` at each transfer out of `target`, and insists that it fails.
contract HostileToken is ERC20("Hostile", "EVIL") {
    address private _target;
    bytes private _payload;
    bytes4 public lastError;

    function arm(address target, bytes calldata payload) external {
        _target = target;
        _payload = payload;
    }

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (from == _target && from != address(0)) {
            (bool ok, bytes memory answer) = _target.call(_payload);
            require(!ok, "reentered");
            lastError = bytes4(answer);
        }
    }
}
