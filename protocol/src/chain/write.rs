//! Transactions in two steps: prepare (simulated, signed, hashed), then broadcast.
//!
//! Between the two the caller stores [`Prepared::raw`]: whatever crashes afterwards, the same
//! bytes can be sent again and never act twice.

use alloy::consensus::transaction::RlpEcdsaEncodableTx;
use alloy::consensus::{SignableTransaction, TxEip1559};
use alloy::primitives::{Address, B256, Bytes, Signature, TxKind, U256};
use alloy::sol_types::SolCall;
use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::chain::abi::{ISettlement, IToken, IUptoProxy};
use crate::chain::error::ChainError;
use crate::chain::words::{Call, Fees};
use crate::eip712::EvmKey;
use crate::voucher::SignedVoucher;
use crate::x402::{
    ChannelConfig, Deposit, Network, PERMIT2, SignedPermit, SignedTransfer, UPTO_PROXY,
};

/// The most rows one claim should carry: about 22 000 gas and 480 bytes each.
pub const MAX_CLAIM_ROWS: usize = 50;

/// One channel's line in a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimRow {
    /// The channel.
    pub config: ChannelConfig,
    /// The buyer's promise.
    pub voucher: SignedVoucher,
    /// The channel's new total, at most the voucher's ceiling. A total already claimed is
    /// skipped by the contract.
    pub total_claimed: Amount,
}

/// What to do to the contracts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// Moves a buyer's authorized deposit into a channel. Anyone may sign the transaction.
    Deposit {
        /// The channel.
        config: ChannelConfig,
        /// The payer's authorization.
        deposit: Deposit,
    },
    /// Books what vouchers promise. One bad row fails them all. By receiver or authorizer.
    Claim {
        /// At most [`MAX_CLAIM_ROWS`].
        rows: Vec<ClaimRow>,
    },
    /// Pays out what is claimed. By anyone.
    Settle {
        /// Whose claims.
        receiver: Address,
        /// In which token.
        token: Address,
    },
    /// Both in one transaction.
    ClaimAndSettle {
        /// At most [`MAX_CLAIM_ROWS`].
        rows: Vec<ClaimRow>,
        /// Whose claims are paid out.
        receiver: Address,
        /// In which token.
        token: Address,
    },
    /// Starts the clock of a withdrawal. By payer or payer authorizer.
    InitiateWithdraw {
        /// The channel.
        config: ChannelConfig,
        /// Atoms asked back.
        amount: Amount,
    },
    /// Executes it after the delay. By payer or payer authorizer.
    FinalizeWithdraw {
        /// The channel.
        config: ChannelConfig,
    },
    /// Gives unclaimed money back at once. By receiver or authorizer.
    Refund {
        /// The channel.
        config: ChannelConfig,
        /// Atoms, capped by what is unclaimed.
        amount: Amount,
    },
    /// Executes a payment in full (x402 `exact`). By anyone.
    Exact {
        /// The payer's authorization, in the network's token.
        transfer: SignedTransfer,
    },
    /// Takes a part of what a payer permits (x402 `upto`), and uses the permit up. By the
    /// permit's facilitator. Where the contracts are absent it succeeds and does nothing:
    /// [`crate::chain::Chain::verify_upto`] first.
    Upto {
        /// The payer's permit.
        permit: SignedPermit,
        /// Atoms, at most the permit's ceiling.
        amount: Amount,
    },
    /// Lets Permit2 move at most so much of the signer's tokens, in the place of what it was
    /// allowed before; each move still needs a permit. By the payer.
    AllowPermit2 {
        /// Atoms.
        amount: Amount,
    },
}

impl Write {
    /// The contract that is called.
    pub(super) const fn target(&self, network: &Network) -> Address {
        match self {
            Self::Exact { .. } | Self::AllowPermit2 { .. } => network.token,
            Self::Upto { .. } => UPTO_PROXY,
            _ => network.settlement,
        }
    }

    /// The call's bytes.
    pub(super) fn data(&self, network: &Network) -> Bytes {
        match self {
            Self::Deposit { config, deposit } => deposit_data(config, deposit, network),
            Self::Claim { rows } => claim_data(rows),
            Self::Settle { receiver, token } => settle_data(*receiver, *token),
            Self::ClaimAndSettle {
                rows,
                receiver,
                token,
            } => multicall_data(vec![claim_data(rows), settle_data(*receiver, *token)]),
            Self::InitiateWithdraw { config, amount } => ISettlement::initiateWithdrawCall {
                config: config.into(),
                amount: amount.get(),
            }
            .abi_encode()
            .into(),
            Self::FinalizeWithdraw { config } => ISettlement::finalizeWithdrawCall {
                config: config.into(),
            }
            .abi_encode()
            .into(),
            Self::Refund { config, amount } => ISettlement::refundCall {
                config: config.into(),
                amount: amount.get(),
            }
            .abi_encode()
            .into(),
            Self::Exact { transfer } => exact_data(transfer),
            Self::Upto { permit, amount } => upto_data(permit, *amount),
            Self::AllowPermit2 { amount } => IToken::approveCall {
                spender: PERMIT2,
                value: U256::from(amount.get()),
            }
            .abi_encode()
            .into(),
        }
    }
}

fn deposit_data(config: &ChannelConfig, deposit: &Deposit, network: &Network) -> Bytes {
    ISettlement::depositCall {
        config: config.into(),
        amount: deposit.amount.get(),
        collector: network.collector,
        collectorData: deposit.collector_data(),
    }
    .abi_encode()
    .into()
}

fn claim_data(rows: &[ClaimRow]) -> Bytes {
    let row = |row: &ClaimRow| ISettlement::VoucherClaim {
        voucher: ISettlement::Voucher {
            channel: (&row.config).into(),
            maxClaimableAmount: row.voucher.message.ceiling.get(),
        },
        signature: row.voucher.signature.to_bytes(),
        totalClaimed: row.total_claimed.get(),
    };
    let voucher_claims = rows.iter().map(row).collect();
    ISettlement::claimCall {
        voucherClaims: voucher_claims,
    }
    .abi_encode()
    .into()
}

fn settle_data(receiver: Address, token: Address) -> Bytes {
    ISettlement::settleCall { receiver, token }
        .abi_encode()
        .into()
}

fn exact_data(signed: &SignedTransfer) -> Bytes {
    let transfer = &signed.message;
    IToken::transferWithAuthorizationCall {
        from: transfer.from,
        to: transfer.to,
        value: U256::from(transfer.amount.get()),
        validAfter: U256::from(transfer.valid_after),
        validBefore: U256::from(transfer.valid_before),
        nonce: transfer.nonce,
        signature: signed.signature.to_bytes(),
    }
    .abi_encode()
    .into()
}

fn upto_data(signed: &SignedPermit, amount: Amount) -> Bytes {
    let permit = &signed.message;
    IUptoProxy::settleCall {
        permit: IUptoProxy::PermitTransferFrom {
            permitted: IUptoProxy::TokenPermissions {
                token: permit.token,
                amount: U256::from(permit.ceiling.get()),
            },
            nonce: permit.nonce,
            deadline: U256::from(permit.deadline),
        },
        amount: U256::from(amount.get()),
        owner: permit.owner,
        witness: IUptoProxy::Witness {
            to: permit.to,
            facilitator: permit.facilitator,
            validAfter: U256::from(permit.valid_after),
        },
        signature: signed.signature.to_bytes(),
    }
    .abi_encode()
    .into()
}

fn multicall_data(data: Vec<Bytes>) -> Bytes {
    ISettlement::multicallCall { data }.abi_encode().into()
}

/// A signed transaction that nobody has seen yet: store it, then broadcast it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its name from now on.
    pub hash: B256,
    /// Its bytes, as they are broadcast. A claim of many rows is larger than a stored record
    /// may be: keep it as a file.
    pub raw: Bytes,
    /// The signer's transaction count it uses up.
    pub nonce: u64,
    /// The most gas it may use.
    pub gas: u64,
    /// What it pays per gas.
    pub fees: Fees,
}

impl Prepared {
    /// The most it can cost, in wei.
    #[must_use]
    pub const fn max_cost(&self) -> u128 {
        self.fees.max.saturating_mul(self.gas as u128)
    }
}

/// What remains to be decided about a transaction once its call is known to succeed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) nonce: u64,
    pub(super) gas: u64,
    pub(super) fees: Fees,
}

/// Signs the call as an EIP-1559 transaction.
pub(super) fn seal(
    chain_id: u64,
    call: Call,
    terms: Terms,
    signer: &EvmKey,
) -> Result<Prepared, ChainError> {
    let transaction = TxEip1559 {
        chain_id,
        nonce: terms.nonce,
        gas_limit: terms.gas,
        max_fee_per_gas: terms.fees.max,
        max_priority_fee_per_gas: terms.fees.priority,
        to: TxKind::Call(call.to),
        value: U256::ZERO,
        access_list: Default::default(),
        input: call.data,
    };
    let signature = signer.sign_hash(transaction.signature_hash());
    let signature = Signature::from_raw_array(signature.as_bytes())
        .map_err(|e| ChainError::Refused(format!("our own signature: {e}")))?;
    let mut raw = Vec::with_capacity(transaction.eip2718_encoded_length(&signature));
    transaction.eip2718_encode(&signature, &mut raw);
    Ok(Prepared {
        hash: alloy::primitives::keccak256(&raw),
        raw: raw.into(),
        nonce: terms.nonce,
        gas: terms.gas,
        fees: terms.fees,
    })
}
