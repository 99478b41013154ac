//! Why a payment is not taken, in the words that x402's libraries look for.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// Why a payment is not taken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The word on the wire.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }

            /// The reason with this word, if it is one of these.
            #[must_use]
            pub fn of(text: &str) -> Option<Self> {
                match text {
                    $($text => Some(Self::$name),)+
                    _ => None,
                }
            }
        }
    };
}

reasons! {
    /// The header or what is in it cannot be read.
    InvalidPayload = "invalid_payload",
    /// The version is none of ours.
    InvalidVersion = "invalid_x402_version",
    /// The chain is another one.
    InvalidNetwork = "invalid_network",
    /// The scheme is none of ours.
    UnsupportedScheme = "unsupported_scheme",
    /// The chosen way to pay is none that was offered for this request.
    InvalidRequirements = "invalid_payment_requirements",
    /// The payer does not have the money.
    InsufficientFunds = "insufficient_funds",
    /// It could not be looked at, for a reason of the seller's own.
    UnexpectedVerify = "unexpected_verify_error",
    /// It could not be settled, for a reason of the seller's own.
    UnexpectedSettle = "unexpected_settle_error",
    /// The transaction was mined and failed.
    TransactionState = "invalid_transaction_state",
    /// The transaction is sent and not known to be mined: the same payment may be sent again.
    SettlementPending = "settlement_pending",
    /// `exact`: not signed by the payer, or in a form that the token refuses.
    ExactSignature = "invalid_exact_evm_signature",
    /// `exact`: not valid yet.
    ExactValidAfter = "invalid_exact_evm_payload_authorization_valid_after",
    /// `exact`: too late, or nearly.
    ExactValidBefore = "invalid_exact_evm_payload_authorization_valid_before",
    /// `exact`: not the price.
    ExactValue = "invalid_exact_evm_payload_authorization_value_mismatch",
    /// `exact`: paid to somebody else.
    ExactRecipient = "invalid_exact_evm_recipient_mismatch",
    /// `exact`: used before.
    ExactNonceUsed = "invalid_exact_evm_nonce_already_used",
    /// `exact`: the payer does not have the money.
    ExactBalance = "invalid_exact_evm_insufficient_balance",
    /// `exact`: the token refuses it.
    ExactSimulation = "invalid_exact_evm_transaction_simulation_failed",
    /// `upto`: not signed by the owner, or in a form that Permit2 refuses.
    UptoSignature = "invalid_permit2_signature",
    /// `upto`: too late, or nearly.
    UptoDeadline = "permit2_deadline_expired",
    /// `upto`: not valid yet.
    UptoNotYet = "permit2_not_yet_valid",
    /// `upto`: not the amount asked for.
    UptoAmount = "permit2_amount_mismatch",
    /// `upto`: another token.
    UptoToken = "permit2_token_mismatch",
    /// `upto`: for another spender.
    UptoSpender = "invalid_permit2_spender",
    /// `upto`: paid to somebody else.
    UptoRecipient = "invalid_permit2_recipient_mismatch",
    /// `upto`: to be taken by somebody else.
    UptoFacilitator = "upto_facilitator_mismatch",
    /// `upto`: used before.
    UptoNonceUsed = "permit2_invalid_nonce",
    /// `upto`: Permit2 may not move the owner's tokens yet.
    UptoAllowance = "permit2_allowance_required",
    /// `upto`: the owner does not have the money.
    UptoBalance = "permit2_insufficient_balance",
    /// `upto`: the contract refuses it.
    UptoSimulation = "permit2_simulation_failed",
    /// Another request with this channel is being served; try again.
    BatchBusy = "invalid_batch_settlement_evm_channel_busy",
    /// The channel's name is not that of its terms.
    BatchChannelId = "invalid_batch_settlement_evm_channel_id_mismatch",
    /// No deposit is on the channel.
    BatchNotFound = "invalid_batch_settlement_evm_channel_not_found",
    /// The voucher does not follow what was charged; the answer says what was.
    BatchMismatch = "invalid_batch_settlement_evm_cumulative_amount_mismatch",
    /// The voucher is below what was claimed.
    BatchBelowClaimed = "invalid_batch_settlement_evm_cumulative_below_claimed",
    /// The voucher is above what the deposit can pay.
    BatchExceedsBalance = "invalid_batch_settlement_evm_cumulative_exceeds_balance",
    /// The deposit is too small to be worth its gas.
    BatchMinDeposit = "invalid_batch_settlement_evm_deposit_below_min_deposit",
    /// The contract refuses the deposit.
    BatchDepositSimulation = "invalid_batch_settlement_evm_deposit_simulation_failed",
    /// The deposit's transaction failed.
    BatchDepositFailed = "invalid_batch_settlement_evm_deposit_transaction_failed",
    /// The deposit's authorization is not signed by the payer.
    BatchDepositSignature = "invalid_batch_settlement_evm_receive_authorization_signature",
    /// The deposit's authorization ends too soon.
    BatchValidBefore = "invalid_batch_settlement_evm_payload_authorization_valid_before",
    /// The deposit's authorization is not valid yet.
    BatchValidAfter = "invalid_batch_settlement_evm_payload_authorization_valid_after",
    /// The deposit is not authorised by EIP-3009.
    BatchAuthorization = "invalid_batch_settlement_evm_erc3009_authorization_required",
    /// The payer does not have the money.
    BatchBalance = "invalid_batch_settlement_evm_insufficient_balance",
    /// The payload is of no kind that is known.
    BatchPayloadType = "invalid_batch_settlement_evm_payload_type",
    /// The channel pays somebody else.
    BatchReceiver = "invalid_batch_settlement_evm_receiver_mismatch",
    /// The channel is claimed by somebody else.
    BatchReceiverAuthorizer = "invalid_batch_settlement_evm_receiver_authorizer_mismatch",
    /// The channel is in another token.
    BatchToken = "invalid_batch_settlement_evm_token_mismatch",
    /// The voucher is not signed by the channel's key, or in a form that the contract refuses.
    BatchSignature = "invalid_batch_settlement_evm_voucher_signature",
    /// The channel has another withdraw delay.
    BatchWithdrawDelay = "invalid_batch_settlement_evm_withdraw_delay_mismatch",
    /// More would be charged than was signed.
    BatchChargeExceeds = "invalid_batch_settlement_evm_charge_exceeds_signed_cumulative",
    /// Nothing is left to give back.
    BatchRefundNothing = "invalid_batch_settlement_evm_refund_no_balance",
    /// More is asked back than is left.
    BatchRefundAmount = "invalid_batch_settlement_evm_refund_amount_invalid",
    /// The refund's transaction failed.
    BatchRefundFailed = "invalid_batch_settlement_evm_refund_transaction_failed",
    /// The chain does not answer, so the channel cannot be looked at.
    BatchUnreadable = "invalid_batch_settlement_evm_rpc_read_failed",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
