//! The contracts' words: interfaces, our configs in their form, and reverts by name.
//!
//! Source: x402 v2 `batch-settlement`, contract `x402BatchSettlement`. The errors of the token
//! are those of OpenZeppelin; USDC reverts with messages instead, which are passed on as they are.

use alloy::primitives::B256;
use alloy::sol;
use alloy::sol_types::{Revert, SolCall, SolError};

use crate::chain::error::ChainError;
use crate::eip712::Typed;
use crate::x402::ChannelConfig;

sol! {
    interface ISettlement {
        struct Config {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }

        struct Voucher {
            Config channel;
            uint128 maxClaimableAmount;
        }

        struct VoucherClaim {
            Voucher voucher;
            bytes signature;
            uint128 totalClaimed;
        }

        function deposit(Config config, uint128 amount, address collector, bytes collectorData) external;
        function claim(VoucherClaim[] voucherClaims) external;
        function settle(address receiver, address token) external;
        function initiateWithdraw(Config config, uint128 amount) external;
        function finalizeWithdraw(Config config) external;
        function refund(Config config, uint128 amount) external;
        function multicall(bytes[] data) external returns (bytes[] results);

        function getChannelId(Config config) external view returns (bytes32);
        function channels(bytes32 channelId) external view returns (uint128 balance, uint128 totalClaimed);
        function pendingWithdrawals(bytes32 channelId) external view returns (uint128 amount, uint40 initiatedAt);
        function refundNonce(bytes32 channelId) external view returns (uint256);
        function receivers(address receiver, address token) external view returns (uint128 totalClaimed, uint128 totalSettled);

        event Deposited(bytes32 indexed channelId, address indexed sender, uint128 amount, uint128 newBalance);
        event Claimed(bytes32 indexed channelId, address indexed sender, uint128 claimAmount, uint128 newTotalClaimed);
        event Settled(address indexed receiver, address indexed token, address indexed sender, uint128 amount);
        event Refunded(bytes32 indexed channelId, address indexed sender, uint128 amount);
        event WithdrawInitiated(bytes32 indexed channelId, uint128 amount, uint40 finalizeAfter);
        event WithdrawFinalized(bytes32 indexed channelId, address indexed sender, uint128 amount);

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
        error NotReceiverAuthorizer();
        error NothingToWithdraw();
        error WithdrawAmountExceedsAvailable();
        error WithdrawalAlreadyPending();
        error WithdrawalNotPending();
        error WithdrawDelayNotElapsed();
        error ECDSAInvalidSignature();
        error ECDSAInvalidSignatureLength(uint256 length);
        error ECDSAInvalidSignatureS(bytes32 s);
        error SafeERC20FailedOperation(address token);
        error ReentrancyGuardReentrantCall();
        error AddressEmptyCode(address target);
        error FailedCall();
        error OnlySettlement();
    }

    interface IToken {
        function name() external view returns (string);
        function version() external view returns (string);
        function DOMAIN_SEPARATOR() external view returns (bytes32);
        function balanceOf(address account) external view returns (uint256);
        function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
        function allowance(address owner, address spender) external view returns (uint256);
        function approve(address spender, uint256 value) external returns (bool);
        function transferWithAuthorization(address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes signature) external;
        function mint(address to, uint256 value) external;

        error ERC3009InvalidSignature();
        error ERC3009InvalidAuthorizationTime(uint256 validAfter, uint256 validBefore);
        error ERC3009UsedAuthorization(address authorizer, bytes32 nonce);
        error ERC20InsufficientBalance(address sender, uint256 balance, uint256 needed);
        error ERC20InvalidReceiver(address receiver);
        error ERC20InvalidSender(address sender);
        error ERC20InvalidSpender(address spender);
    }

    interface IPermit2 {
        function DOMAIN_SEPARATOR() external view returns (bytes32);
        function nonceBitmap(address owner, uint256 word) external view returns (uint256);

        error InvalidAmount(uint256 maxAmount);
        error InvalidContractSignature();
        error InvalidNonce();
        error InvalidSignature();
        error InvalidSignatureLength();
        error InvalidSigner();
        error SignatureExpired(uint256 signatureDeadline);
    }

    interface IUptoProxy {
        struct TokenPermissions {
            address token;
            uint256 amount;
        }

        struct PermitTransferFrom {
            TokenPermissions permitted;
            uint256 nonce;
            uint256 deadline;
        }

        struct Witness {
            address to;
            address facilitator;
            uint256 validAfter;
        }

        function settle(PermitTransferFrom permit, uint256 amount, address owner, Witness witness, bytes signature) external;
        function PERMIT2() external view returns (address);

        error AmountExceedsPermitted();
        error InvalidDestination();
        error InvalidOwner();
        error InvalidPermit2Address();
        error PaymentTooEarly();
        error UnauthorizedFacilitator();
    }
}

sol! {
    /// An account that judges signatures itself (EIP-1271). Its yes is its own selector.
    interface IWallet {
        function isValidSignature(bytes32 hash, bytes signature) external view returns (bytes4);
    }
}

impl From<&ChannelConfig> for ISettlement::Config {
    fn from(config: &ChannelConfig) -> Self {
        let sol = config.to_sol();
        Self {
            payer: sol.payer,
            payerAuthorizer: sol.payerAuthorizer,
            receiver: sol.receiver,
            receiverAuthorizer: sol.receiverAuthorizer,
            token: sol.token,
            withdrawDelay: sol.withdrawDelay,
            salt: sol.salt,
        }
    }
}

impl From<&ISettlement::Config> for ChannelConfig {
    fn from(sol: &ISettlement::Config) -> Self {
        Self {
            payer: sol.payer,
            payer_authorizer: sol.payerAuthorizer,
            receiver: sol.receiver,
            receiver_authorizer: sol.receiverAuthorizer,
            token: sol.token,
            withdraw_delay: sol.withdrawDelay.to(),
            salt: sol.salt,
        }
    }
}

/// The revert as an error with a name: a contract's error, a message, or the selector in hex.
pub(super) fn reverted(data: &[u8]) -> ChainError {
    ChainError::reverted(revert_name(data))
}

fn revert_name(data: &[u8]) -> String {
    let Some(selector) = data.first_chunk::<4>() else {
        return "NoReason".to_owned();
    };
    if let Ok(message) = Revert::abi_decode(data) {
        return message.reason;
    }
    ISettlement::ISettlementErrors::name_by_selector(*selector)
        .or_else(|| IToken::ITokenErrors::name_by_selector(*selector))
        .or_else(|| IUptoProxy::IUptoProxyErrors::name_by_selector(*selector))
        .or_else(|| IPermit2::IPermit2Errors::name_by_selector(*selector))
        .map_or_else(|| alloy::hex::encode_prefixed(selector), str::to_owned)
}

/// Reads what a view returned. Nothing at all means that no contract answered.
pub(super) fn returned<C: SolCall>(output: &[u8]) -> Option<C::Return> {
    C::abi_decode_returns(output).ok()
}

/// The topics of every event that changes a channel.
pub(super) fn channel_topics() -> Vec<B256> {
    use alloy::sol_types::SolEvent;
    vec![
        ISettlement::Deposited::SIGNATURE_HASH,
        ISettlement::Claimed::SIGNATURE_HASH,
        ISettlement::Refunded::SIGNATURE_HASH,
        ISettlement::WithdrawInitiated::SIGNATURE_HASH,
        ISettlement::WithdrawFinalized::SIGNATURE_HASH,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::hex;
    use alloy::sol_types::SolEvent;

    #[test]
    fn selectors_and_topics_are_the_published_ones() {
        let expected = [
            (ISettlement::depositCall::SELECTOR, "140f1e75"),
            (ISettlement::claimCall::SELECTOR, "29237b0c"),
            (ISettlement::settleCall::SELECTOR, "9db32a8f"),
            (ISettlement::initiateWithdrawCall::SELECTOR, "cf5cf3dc"),
            (ISettlement::finalizeWithdrawCall::SELECTOR, "e88377b1"),
            (ISettlement::refundCall::SELECTOR, "dce4bfae"),
            (ISettlement::getChannelIdCall::SELECTOR, "5e5e0b87"),
            (ISettlement::channelsCall::SELECTOR, "7a7ebd7b"),
            (ISettlement::pendingWithdrawalsCall::SELECTOR, "b7f06ebe"),
            (ISettlement::refundNonceCall::SELECTOR, "f0dc792e"),
            (ISettlement::receiversCall::SELECTOR, "21ff6389"),
            (ISettlement::multicallCall::SELECTOR, "ac9650d8"),
        ];
        for (got, expected) in expected {
            assert_eq!(hex::encode(got), expected);
        }
        assert_eq!(
            ISettlement::WithdrawInitiated::SIGNATURE_HASH.to_string(),
            "0xe4280d0d903c7f258f62b07c62f262377cbaa23f7791d78126e6446e0f0e3c23"
        );
        let prefix = |topic: B256| hex::encode(&topic[..4]);
        assert_eq!(prefix(ISettlement::Deposited::SIGNATURE_HASH), "6c2a0935");
        assert_eq!(prefix(ISettlement::Claimed::SIGNATURE_HASH), "36bd546b");
    }

    #[test]
    fn a_revert_is_named_whatever_its_form() {
        let named = |data: &[u8]| revert_name(data);
        assert_eq!(
            named(&ISettlement::ClaimExceedsBalance {}.abi_encode()),
            "ClaimExceedsBalance"
        );
        assert_eq!(
            named(&IToken::ERC3009InvalidSignature {}.abi_encode()),
            "ERC3009InvalidSignature"
        );
        let message = Revert::from("FiatTokenV2: invalid signature").abi_encode();
        assert_eq!(named(&message), "FiatTokenV2: invalid signature");
        assert_eq!(named(&[1, 2, 3, 4, 5]), "0x01020304");
        assert_eq!(named(&[]), "NoReason");
    }
}
