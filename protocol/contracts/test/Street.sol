// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {BatchSettlement} from "../src/BatchSettlement.sol";
import {ERC3009DepositCollector} from "../src/ERC3009DepositCollector.sol";
import {TestUSD} from "../src/TestUSD.sol";
import {vm} from "./Vm.sol";

/// The contracts at their canonical addresses on chain 31337, a payer with money and a receiver.
abstract contract Street {
    address internal constant SETTLEMENT = 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003;
    address internal constant COLLECTOR = 0x4020806089470a89826cB9fB1f4059150b550004;
    address internal constant TOKEN = 0xDc64a140Aa3E981100a9becA4E685f962f0cF6C9;

    BatchSettlement internal constant settlement = BatchSettlement(SETTLEMENT);
    ERC3009DepositCollector internal constant collector = ERC3009DepositCollector(COLLECTOR);
    TestUSD internal constant token = TestUSD(TOKEN);

    uint40 internal constant DELAY = 900;
    uint256 internal constant START = 1_700_000_000;
    /// Half the order of secp256k1 bounds a canonical `s`.
    uint256 internal constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    uint256 internal constant PAYER_KEY = 0xa11ce;
    uint256 internal constant VOUCHER_KEY = 0xa11ce2;
    uint256 internal constant CLAIM_KEY = 0xb0b2;
    uint256 internal constant STRANGER_KEY = 0xbad;

    address internal payer = vm.addr(PAYER_KEY);
    address internal payerAuthorizer = vm.addr(VOUCHER_KEY);
    address internal receiver = vm.addr(0xb0b);
    address internal receiverAuthorizer = vm.addr(CLAIM_KEY);
    address internal stranger = vm.addr(STRANGER_KEY);

    uint256 private _depositSalt;

    function setUp() public virtual {
        vm.warp(START);
        place(SETTLEMENT, type(BatchSettlement).creationCode);
        place(COLLECTOR, abi.encodePacked(type(ERC3009DepositCollector).creationCode, abi.encode(SETTLEMENT)));
        place(TOKEN, type(TestUSD).creationCode);
        token.mint(payer, type(uint160).max);
    }

    /// The etch trick: runs the constructor at its final address, then keeps what it returned.
    function place(address target, bytes memory initcode) internal {
        vm.etch(target, initcode);
        (bool ok, bytes memory runtime) = target.call("");
        vm.assertTrue(ok, "constructor");
        vm.etch(target, runtime);
    }

    // ------------------------------------------------------------ channels

    function lane(uint256 salt) internal view returns (BatchSettlement.ChannelConfig memory config) {
        config.payer = payer;
        config.payerAuthorizer = payerAuthorizer;
        config.receiver = receiver;
        config.receiverAuthorizer = receiverAuthorizer;
        config.token = TOKEN;
        config.withdrawDelay = DELAY;
        config.salt = bytes32(salt);
    }

    function id(BatchSettlement.ChannelConfig memory config) internal view returns (bytes32) {
        return settlement.getChannelId(config);
    }

    function balanceOf(BatchSettlement.ChannelConfig memory config) internal view returns (uint128 balance) {
        (balance,) = settlement.channels(id(config));
    }

    function claimedOf(BatchSettlement.ChannelConfig memory config) internal view returns (uint128 claimed) {
        (, claimed) = settlement.channels(id(config));
    }

    function pendingOf(BatchSettlement.ChannelConfig memory config) internal view returns (uint128 amount) {
        (amount,) = settlement.pendingWithdrawals(id(config));
    }

    // ------------------------------------------------------------ signatures

    function sign(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    /// The other signature that recovers to the same address, which the chain must refuse.
    function twin(uint256 key, bytes32 digest) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
    }

    function voucher(BatchSettlement.ChannelConfig memory config, uint128 max, uint128 total)
        internal
        view
        returns (BatchSettlement.VoucherClaim memory row)
    {
        row.voucher.channel = config;
        row.voucher.maxClaimableAmount = max;
        row.signature = sign(VOUCHER_KEY, settlement.getVoucherDigest(id(config), max));
        row.totalClaimed = total;
    }

    function one(BatchSettlement.VoucherClaim memory row)
        internal
        pure
        returns (BatchSettlement.VoucherClaim[] memory rows)
    {
        rows = new BatchSettlement.VoucherClaim[](1);
        rows[0] = row;
    }

    function receiveDigest(bytes32 channelId, uint256 amount, uint256 salt) internal view returns (bytes32) {
        bytes32 structHash = keccak256(
            abi.encode(
                keccak256(
                    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
                ),
                payer,
                COLLECTOR,
                amount,
                uint256(0),
                type(uint256).max,
                keccak256(abi.encode(channelId, salt))
            )
        );
        return keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
    }

    function consent(bytes32 channelId, uint256 amount, uint256 salt) internal view returns (bytes memory) {
        bytes memory signature = sign(PAYER_KEY, receiveDigest(channelId, amount, salt));
        return abi.encode(uint256(0), type(uint256).max, salt, signature);
    }

    // ------------------------------------------------------------ shortcuts

    function fund(BatchSettlement.ChannelConfig memory config, uint128 amount) internal {
        settlement.deposit(config, amount, COLLECTOR, consent(id(config), amount, ++_depositSalt));
    }

    function claim(BatchSettlement.ChannelConfig memory config, uint128 total) internal {
        BatchSettlement.VoucherClaim[] memory rows = one(voucher(config, total, total));
        vm.prank(receiverAuthorizer);
        settlement.claim(rows);
    }

    function bound(uint256 x, uint256 low, uint256 high) internal pure returns (uint256) {
        return high - low == type(uint256).max ? x : low + x % (high - low + 1);
    }

    function bound128(uint256 x, uint256 low, uint256 high) internal pure returns (uint128) {
        return uint128(bound(x, low, high));
    }
}
