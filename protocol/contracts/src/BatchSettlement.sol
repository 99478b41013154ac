// Local chains only; public chains use the canonical deployment at 0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003.
// SPDX-License-Identifier: Apache-2.0 OR MIT
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Multicall} from "@openzeppelin/contracts/utils/Multicall.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IDepositCollector} from "./IDepositCollector.sol";

/// Unidirectional payment channels, compatible in ABI, events, errors and signatures with the
/// x402 `batch-settlement` contract. Written from its public interface, for chains that lack it.
///
/// Money moves along four paths, and this is all of them:
/// - `deposit`            payer    -> channel balance
/// - `claim*`             balance  -> receiver's claimed total (bookkeeping; no transfer)
/// - `settle`             claimed total not yet settled -> receiver
/// - `refund*`, withdraw  balance not claimed -> payer
///
/// At all times, per token: held >= sum(balance - totalClaimed) + sum(receivers' claimed - settled).
contract BatchSettlement is EIP712, Multicall, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    // ---------------------------------------------------------------- types

    /// What a channel is; its hash is the channel's id, so none of it can change.
    struct ChannelConfig {
        address payer;
        /// Signs vouchers. Zero: `payer` signs them, as an EOA or by EIP-1271.
        address payerAuthorizer;
        address receiver;
        /// Claims and refunds on the receiver's behalf, by call or by signature.
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay;
        bytes32 salt;
    }

    struct Voucher {
        ChannelConfig channel;
        uint128 maxClaimableAmount;
    }

    /// One row of a claim. `totalClaimed` is the channel's new total, not an increment.
    struct VoucherClaim {
        Voucher voucher;
        bytes signature;
        uint128 totalClaimed;
    }

    struct ChannelState {
        /// Deposited, less refunded and withdrawn. Claims do not lower it.
        uint128 balance;
        uint128 totalClaimed;
    }

    struct WithdrawalState {
        uint128 amount;
        uint40 initiatedAt;
    }

    struct ReceiverState {
        uint128 totalClaimed;
        uint128 totalSettled;
    }

    // ---------------------------------------------------------------- constants

    uint40 public constant MIN_WITHDRAW_DELAY = 15 minutes;
    uint40 public constant MAX_WITHDRAW_DELAY = 30 days;

    bytes32 public constant CHANNEL_CONFIG_TYPEHASH = keccak256(
        "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
    );
    bytes32 public constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 channelId,uint128 maxClaimableAmount)");
    bytes32 public constant REFUND_TYPEHASH = keccak256("Refund(bytes32 channelId,uint256 nonce,uint128 amount)");
    bytes32 public constant CLAIM_ENTRY_TYPEHASH =
        keccak256("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)");
    bytes32 public constant CLAIM_BATCH_TYPEHASH = keccak256(
        "ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
    );

    // ---------------------------------------------------------------- state

    mapping(bytes32 channelId => ChannelState) public channels;
    mapping(bytes32 channelId => WithdrawalState) public pendingWithdrawals;
    /// The nonce the next `refundWithSignature` must carry.
    mapping(bytes32 channelId => uint256) public refundNonce;
    mapping(address receiver => mapping(address token => ReceiverState)) public receivers;

    // ---------------------------------------------------------------- events

    /// A channel with nothing claimed went from empty to funded. May happen again after a close.
    event ChannelCreated(bytes32 indexed channelId, ChannelConfig config);
    /// A channel with nothing claimed went back to empty.
    event ChannelClosed(bytes32 indexed channelId, ChannelConfig config);
    event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);
    event Claimed(bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed);
    event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
    event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
    event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
    event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

    // ---------------------------------------------------------------- errors

    /// The config has a zero field that must not be, or the caller is not this channel's payer side.
    error InvalidChannel();
    error InvalidCollector();
    error InvalidRefundNonce();
    error InvalidSignature();
    error ZeroDeposit();
    error ZeroRefund();
    error EmptyBatch();
    error DepositOverflow();
    error DepositCollectionFailed();
    error WithdrawDelayOutOfRange();
    error ClaimExceedsCeiling();
    error ClaimExceedsBalance();
    error NotAuthorizedToClaim();
    error NotAuthorizedToRefund();
    error NotAuthorizedToFinalizeWithdraw();
    /// A row of a signed batch names another `receiverAuthorizer` than the first row.
    error NotReceiverAuthorizer();
    error NothingToWithdraw();
    error WithdrawAmountExceedsAvailable();
    error WithdrawalAlreadyPending();
    error WithdrawalNotPending();
    error WithdrawDelayNotElapsed();

    constructor() EIP712("x402 Batch Settlement", "1") {}

    // ---------------------------------------------------------------- payer: deposit

    /// Adds `amount` to a channel, pulled by `collector`. Anyone may call: the payer's consent is
    /// the collector's business, and what counts here is that exactly `amount` arrived.
    function deposit(ChannelConfig calldata config, uint128 amount, address collector, bytes calldata collectorData)
        external
        nonReentrant
    {
        require(
            config.payer != address(0) && config.receiver != address(0) && config.receiverAuthorizer != address(0)
                && config.token != address(0),
            InvalidChannel()
        );
        require(
            config.withdrawDelay >= MIN_WITHDRAW_DELAY && config.withdrawDelay <= MAX_WITHDRAW_DELAY,
            WithdrawDelayOutOfRange()
        );
        require(collector != address(0), InvalidCollector());
        require(amount != 0, ZeroDeposit());

        bytes32 channelId = getChannelId(config);
        ChannelState storage channel = channels[channelId];
        ChannelState memory before = channel;
        require(amount <= type(uint128).max - before.balance, DepositOverflow());
        uint128 newBalance = before.balance + amount;
        channel.balance = newBalance;

        _collect(config, amount, collector, channelId, collectorData);

        if (before.balance == 0 && before.totalClaimed == 0) emit ChannelCreated(channelId, config);
        emit Deposited(channelId, msg.sender, amount, newBalance);
    }

    // ---------------------------------------------------------------- receiver: claim, settle

    /// Raises claimed totals. The caller must be receiver or receiverAuthorizer of every row.
    function claim(VoucherClaim[] calldata voucherClaims) external nonReentrant {
        require(voucherClaims.length != 0, EmptyBatch());
        for (uint256 i = 0; i < voucherClaims.length; ++i) {
            ChannelConfig calldata config = voucherClaims[i].voucher.channel;
            require(_isReceiverSide(config), NotAuthorizedToClaim());
            _claimRow(voucherClaims[i]);
        }
    }

    /// The same by anyone, with one signature over the whole batch by the rows' common authorizer.
    function claimWithSignature(VoucherClaim[] calldata voucherClaims, bytes calldata authorizerSignature)
        external
        nonReentrant
    {
        require(voucherClaims.length != 0, EmptyBatch());
        address authorizer = voucherClaims[0].voucher.channel.receiverAuthorizer;
        for (uint256 i = 1; i < voucherClaims.length; ++i) {
            require(voucherClaims[i].voucher.channel.receiverAuthorizer == authorizer, NotReceiverAuthorizer());
        }
        _requireSigned(authorizer, getClaimBatchDigest(voucherClaims), authorizerSignature);
        for (uint256 i = 0; i < voucherClaims.length; ++i) {
            _claimRow(voucherClaims[i]);
        }
    }

    /// Pays a receiver all that was claimed and not yet paid, over all its channels in `token`.
    function settle(address receiver, address token) external nonReentrant {
        ReceiverState storage account = receivers[receiver][token];
        uint128 amount = account.totalClaimed - account.totalSettled;
        if (amount == 0) return;

        account.totalSettled += amount;
        emit Settled(receiver, token, msg.sender, amount);
        IERC20(token).safeTransfer(receiver, amount);
    }

    // ---------------------------------------------------------------- receiver: refund

    /// Gives unclaimed money back at once. `amount` is capped by what is unclaimed.
    function refund(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        require(_isReceiverSide(config), NotAuthorizedToRefund());
        _refund(config, getChannelId(config), amount);
    }

    /// The same by anyone, with the receiverAuthorizer's signature over the current nonce.
    function refundWithSignature(
        ChannelConfig calldata config,
        uint128 amount,
        uint256 nonce,
        bytes calldata receiverAuthorizerSignature
    ) external nonReentrant {
        bytes32 channelId = getChannelId(config);
        require(nonce == refundNonce[channelId], InvalidRefundNonce());
        _requireSigned(
            config.receiverAuthorizer, getRefundDigest(channelId, nonce, amount), receiverAuthorizerSignature
        );
        _refund(config, channelId, amount);
    }

    // ---------------------------------------------------------------- payer: withdraw

    /// Starts the clock of a withdrawal. Nothing is reserved: the receiver may still claim.
    function initiateWithdraw(ChannelConfig calldata config, uint128 amount) external nonReentrant {
        require(_isPayerSide(config), InvalidChannel());
        require(amount != 0, NothingToWithdraw());

        bytes32 channelId = getChannelId(config);
        WithdrawalState storage pending = pendingWithdrawals[channelId];
        require(pending.initiatedAt == 0, WithdrawalAlreadyPending());
        require(amount <= _unclaimed(channels[channelId]), WithdrawAmountExceedsAvailable());

        uint40 initiatedAt = uint40(block.timestamp);
        pending.amount = amount;
        pending.initiatedAt = initiatedAt;
        emit WithdrawInitiated(channelId, amount, initiatedAt + config.withdrawDelay);
    }

    /// Ends it after the delay, paying what is still unclaimed up to the amount asked for.
    function finalizeWithdraw(ChannelConfig calldata config) external nonReentrant {
        require(_isPayerSide(config), NotAuthorizedToFinalizeWithdraw());

        bytes32 channelId = getChannelId(config);
        WithdrawalState memory pending = pendingWithdrawals[channelId];
        require(pending.initiatedAt != 0, WithdrawalNotPending());
        require(block.timestamp >= uint256(pending.initiatedAt) + config.withdrawDelay, WithdrawDelayNotElapsed());

        ChannelState storage channel = channels[channelId];
        uint128 amount = uint128(Math.min(pending.amount, _unclaimed(channel)));
        delete pendingWithdrawals[channelId];
        channel.balance -= amount;

        emit WithdrawFinalized(channelId, msg.sender, amount);
        _closeIfEmpty(config, channelId, channel);
        if (amount != 0) IERC20(config.token).safeTransfer(config.payer, amount);
    }

    // ---------------------------------------------------------------- digests

    /// The config's EIP-712 digest: bound to this chain and this contract, as everything signed is.
    function getChannelId(ChannelConfig calldata config) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(CHANNEL_CONFIG_TYPEHASH, config)));
    }

    function getVoucherDigest(bytes32 channelId, uint128 maxClaimableAmount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, channelId, maxClaimableAmount)));
    }

    function getRefundDigest(bytes32 channelId, uint256 nonce, uint128 amount) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(REFUND_TYPEHASH, channelId, nonce, amount)));
    }

    function getClaimBatchDigest(VoucherClaim[] calldata voucherClaims) public view returns (bytes32) {
        bytes32[] memory entries = new bytes32[](voucherClaims.length);
        for (uint256 i = 0; i < voucherClaims.length; ++i) {
            VoucherClaim calldata row = voucherClaims[i];
            entries[i] = keccak256(
                abi.encode(
                    CLAIM_ENTRY_TYPEHASH,
                    getChannelId(row.voucher.channel),
                    row.voucher.maxClaimableAmount,
                    row.totalClaimed
                )
            );
        }
        return _hashTypedDataV4(keccak256(abi.encode(CLAIM_BATCH_TYPEHASH, keccak256(abi.encodePacked(entries)))));
    }

    // ---------------------------------------------------------------- inside

    /// Trusts nothing about the collector or the token: the balance must rise by exactly `amount`.
    function _collect(
        ChannelConfig calldata config,
        uint128 amount,
        address collector,
        bytes32 channelId,
        bytes calldata collectorData
    ) private {
        uint256 held = IERC20(config.token).balanceOf(address(this));
        IDepositCollector(collector).collect(config.payer, config.token, amount, channelId, collectorData);
        require(IERC20(config.token).balanceOf(address(this)) == held + amount, DepositCollectionFailed());
    }

    /// A row at or below the claimed total is skipped unread, so resubmitting a batch is harmless.
    function _claimRow(VoucherClaim calldata row) private {
        ChannelConfig calldata config = row.voucher.channel;
        bytes32 channelId = getChannelId(config);
        ChannelState storage channel = channels[channelId];
        ChannelState memory before = channel;

        uint128 total = row.totalClaimed;
        if (total <= before.totalClaimed) return;
        require(total <= row.voucher.maxClaimableAmount, ClaimExceedsCeiling());
        require(total <= before.balance, ClaimExceedsBalance());

        bytes32 digest = getVoucherDigest(channelId, row.voucher.maxClaimableAmount);
        if (config.payerAuthorizer == address(0)) {
            _requireSigned(config.payer, digest, row.signature);
        } else {
            require(ECDSA.recover(digest, row.signature) == config.payerAuthorizer, InvalidSignature());
        }

        uint128 increase = total - before.totalClaimed;
        channel.totalClaimed = total;
        receivers[config.receiver][config.token].totalClaimed += increase;
        emit Claimed(channelId, msg.sender, increase, total);
    }

    /// The nonce is spent even when nothing can be refunded, so that no signature works twice.
    function _refund(ChannelConfig calldata config, bytes32 channelId, uint128 requested) private {
        require(requested != 0, ZeroRefund());
        ++refundNonce[channelId];

        ChannelState storage channel = channels[channelId];
        uint128 amount = uint128(Math.min(requested, _unclaimed(channel)));
        if (amount == 0) return;
        channel.balance -= amount;

        WithdrawalState storage pending = pendingWithdrawals[channelId];
        if (amount >= pending.amount) delete pendingWithdrawals[channelId];
        else pending.amount -= amount;

        emit Refunded(channelId, msg.sender, amount);
        _closeIfEmpty(config, channelId, channel);
        IERC20(config.token).safeTransfer(config.payer, amount);
    }

    function _closeIfEmpty(ChannelConfig calldata config, bytes32 channelId, ChannelState storage channel) private {
        if (channel.balance == 0 && channel.totalClaimed == 0) emit ChannelClosed(channelId, config);
    }

    function _unclaimed(ChannelState storage channel) private view returns (uint128) {
        return channel.balance - channel.totalClaimed;
    }

    function _isPayerSide(ChannelConfig calldata config) private view returns (bool) {
        return msg.sender == config.payer || msg.sender == config.payerAuthorizer;
    }

    function _isReceiverSide(ChannelConfig calldata config) private view returns (bool) {
        return msg.sender == config.receiver || msg.sender == config.receiverAuthorizer;
    }

    /// By ECDSA for an account without code, by EIP-1271 for one with code.
    function _requireSigned(address signer, bytes32 digest, bytes calldata signature) private view {
        require(SignatureChecker.isValidSignatureNowCalldata(signer, digest, signature), InvalidSignature());
    }
}
