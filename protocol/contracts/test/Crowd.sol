// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {Street} from "./Street.sol";
import {vm} from "./Vm.sol";

/// Six channels used at random by everyone who may use them, and by a stranger who may not.
/// Keeps its own books, for the invariants to compare with the chain's.
contract Crowd is Street {
    uint256 public constant LANES = 6;
    uint256 public constant PURSE = type(uint160).max;

    uint256 public deposited;
    uint256 public donated;
    /// Per lane: the highest ceiling signed, the claimed total last seen, the refund nonce last seen.
    uint128[LANES] public signed;
    uint128[LANES] public seen;
    uint256[LANES] public nonces;
    uint256 public strangersWins;
    uint256 public fallen;
    uint256 public calls;

    /// Kept: deriving it from its key in every call took a fifth of a run.
    address private immutable _second = vm.addr(0xb0b5);
    uint256 private _clock = START;
    uint256 private _salt = 1 << 128;

    /// Two receivers, three lanes each.
    function laneOf(uint256 i) public view returns (BatchSettlement.ChannelConfig memory config) {
        config = lane(i);
        if (i % 2 == 1) config.receiver = stranger2();
    }

    function stranger2() public view returns (address) {
        return _second;
    }

    function firstReceiver() public view returns (address) {
        return receiver;
    }

    modifier watched() {
        // forge resets the clock between calls of a run; the crowd's never goes back.
        vm.warp(_clock);
        ++calls;
        _;
        for (uint256 i = 0; i < LANES; ++i) {
            uint128 now_ = claimedOf(laneOf(i));
            uint256 nonce = settlement.refundNonce(id(laneOf(i)));
            if (now_ < seen[i] || nonce < nonces[i]) ++fallen;
            seen[i] = now_;
            nonces[i] = nonce;
        }
    }

    function deposit(uint256 which, uint128 amount) external watched {
        amount = bound128(amount, 1, 1e15);
        BatchSettlement.ChannelConfig memory config = laneOf(which % LANES);
        settlement.deposit(config, amount, COLLECTOR, consent(id(config), amount, ++_salt));
        deposited += amount;
    }

    /// A gift straight to the contract must not become anyone's.
    function donate(uint128 amount) external watched {
        amount = bound128(amount, 0, 1e12);
        token.mint(SETTLEMENT, amount);
        donated += amount;
    }

    function pay(uint256 which, uint128 max, uint128 total) external watched {
        BatchSettlement.VoucherClaim[] memory rows = one(_row(which % LANES, max, total));
        vm.prank(receiverAuthorizer);
        settlement.claim(rows);
    }

    function payAll(uint128 max, uint128 total, bool bySignature) external watched {
        BatchSettlement.VoucherClaim[] memory rows = new BatchSettlement.VoucherClaim[](LANES);
        for (uint256 i = 0; i < LANES; ++i) {
            rows[i] = _row(i, max, total / uint128(i + 1));
        }
        if (bySignature) {
            settlement.claimWithSignature(rows, sign(CLAIM_KEY, settlement.getClaimBatchDigest(rows)));
        } else {
            vm.prank(receiverAuthorizer);
            settlement.claim(rows);
        }
    }

    function settle(bool first) external watched {
        settlement.settle(first ? receiver : stranger2(), TOKEN);
    }

    function refund(uint256 which, uint128 amount, bool bySignature) external watched {
        BatchSettlement.ChannelConfig memory config = laneOf(which % LANES);
        amount = bound128(amount, 1, 2e15);
        if (bySignature) {
            uint256 nonce = settlement.refundNonce(id(config));
            bytes memory signature = sign(CLAIM_KEY, settlement.getRefundDigest(id(config), nonce, amount));
            settlement.refundWithSignature(config, amount, nonce, signature);
        } else {
            vm.prank(config.receiver);
            settlement.refund(config, amount);
        }
    }

    function withdraw(uint256 which, uint128 amount) external watched {
        BatchSettlement.ChannelConfig memory config = laneOf(which % LANES);
        (, uint40 since) = settlement.pendingWithdrawals(id(config));
        uint128 unclaimed = balanceOf(config) - claimedOf(config);
        if (since == 0 && unclaimed != 0) {
            vm.prank(payerAuthorizer);
            settlement.initiateWithdraw(config, bound128(amount, 1, unclaimed));
        } else if (since != 0) {
            _clock = _clock > since + DELAY ? _clock : since + DELAY;
            vm.warp(_clock);
            vm.prank(payer);
            settlement.finalizeWithdraw(config);
        }
    }

    /// Tries every door with the right papers of other people; each must stay shut.
    function intrude(uint256 which, uint128 amount) external watched {
        BatchSettlement.ChannelConfig memory config = laneOf(which % LANES);
        amount = bound128(amount, 1, 1e15);
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(config, amount, amount));
        bytes32 batch = settlement.getClaimBatchDigest(rows);
        uint256 nonce = settlement.refundNonce(id(config));
        bytes32 back = settlement.getRefundDigest(id(config), nonce, amount);

        _try(abi.encodeCall(BatchSettlement.claim, (rows)));
        _try(abi.encodeCall(BatchSettlement.claimWithSignature, (rows, sign(STRANGER_KEY, batch))));
        _try(abi.encodeCall(BatchSettlement.claimWithSignature, (rows, twin(CLAIM_KEY, batch))));
        _try(abi.encodeCall(BatchSettlement.refund, (config, amount)));
        _try(abi.encodeCall(BatchSettlement.refundWithSignature, (config, amount, nonce, sign(STRANGER_KEY, back))));
        _try(abi.encodeCall(BatchSettlement.initiateWithdraw, (config, 1)));
        _try(abi.encodeCall(BatchSettlement.finalizeWithdraw, (config)));
        _try(abi.encodeCall(BatchSettlement.deposit, (config, amount, COLLECTOR, consent(id(config), amount + 1, 0))));
        bytes[] memory nested = new bytes[](1);
        nested[0] = abi.encodeCall(BatchSettlement.refund, (config, amount));
        _try(abi.encodeCall(settlement.multicall, (nested)));
    }

    function wait_(uint256 time) external watched {
        _clock += bound(time, 0, 1 hours);
    }

    function _try(bytes memory call) private {
        vm.prank(stranger);
        (bool ok,) = SETTLEMENT.call(call);
        if (ok) ++strangersWins;
    }

    /// A row the contract must accept: within ceiling and balance, or stale.
    function _row(uint256 i, uint128 max, uint128 total) private returns (BatchSettlement.VoucherClaim memory row) {
        BatchSettlement.ChannelConfig memory config = laneOf(i);
        total = bound128(total, 0, balanceOf(config));
        max = bound128(max, total, type(uint128).max);
        if (max > signed[i]) signed[i] = max;
        return voucher(config, max, total);
    }
}
