//! What carrying a transaction to its end takes: its signer's counts, blocks by number, the same
//! call signed anew in its place or in another.

use alloy::consensus::{TxEip1559, TxEnvelope};
use alloy::eips::Decodable2718;
use alloy::primitives::{Address, B256, Bytes, TxKind, keccak256};
use alloy::sol_types::{SolCall, SolInterface};

use super::abi::{self, ISettlement};
use super::words::{self, Block, Call, Fees, Nonces, OnChain, Outcome, PendingWithdrawal, Told};
use super::write::{self, Prepared, Terms};
use super::{Chain, ChainError};
use crate::amount::Amount;
use crate::eip712::EvmKey;
use crate::x402::{ChannelConfig, ChannelId};

/// Gas of a transaction that does nothing.
const GAS_OF_NOTHING: u64 = 21_000;

impl Chain {
    /// The same handle, whose transactions offer at most `wei` per gas. Where the chain asks for
    /// more, they wait.
    #[must_use]
    pub fn with_max_fee(self, wei: u128) -> Self {
        Self {
            max_fee: wei,
            ..self
        }
    }

    /// How often it is worth asking whether a transaction is mined.
    #[must_use]
    pub fn poll_interval(&self) -> std::time::Duration {
        self.door.poll_interval()
    }

    /// Blocks by which two answers may be apart, because different nodes gave them: what one of
    /// them shows only once may not be so until it is deeper.
    #[must_use]
    pub fn most_behind(&self) -> u64 {
        self.door.most_behind()
    }

    /// As [`Chain::outcome`], but asked of every node there is: before a transaction is given up.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`] when none answers.
    pub async fn outcome_anywhere(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        self.door.outcome_anywhere(hash).await
    }

    /// How many transactions an account has sent.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn nonces(&self, account: Address) -> Result<Nonces, ChainError> {
        self.door.nonces(account).await
    }

    /// The block at this height, if there is one.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        self.door.block(number).await
    }

    /// As [`Chain::channel`], but after that block. Nodes remember the last hundred or so.
    ///
    /// # Errors
    /// As [`Chain::channel`].
    pub async fn channel_at(&self, id: ChannelId, block: u64) -> Result<OnChain, ChainError> {
        let call = ISettlement::channelsCall { channelId: id.0 };
        let state = self.view_at(call, block).await?;
        Ok(OnChain {
            balance: Amount::atoms(state.balance),
            claimed: Amount::atoms(state.totalClaimed),
        })
    }

    /// As [`Chain::pending_withdrawal`], but after that block.
    ///
    /// # Errors
    /// As [`Chain::channel_at`].
    pub async fn pending_withdrawal_at(
        &self,
        id: ChannelId,
        block: u64,
    ) -> Result<Option<PendingWithdrawal>, ChainError> {
        let call = ISettlement::pendingWithdrawalsCall { channelId: id.0 };
        let state = self.view_at(call, block).await?;
        Ok(words::pending(state.amount, state.initiatedAt.to()))
    }

    /// What the settlement contract says after that block.
    async fn view_at<C: SolCall>(&self, call: C, block: u64) -> Result<C::Return, ChainError> {
        let settlement = self.network.settlement;
        let call = Call {
            from: Address::ZERO,
            to: settlement,
            data: call.abi_encode().into(),
        };
        let output = self.door.call_at(&call, block).await?;
        abi::returned::<C>(&output).ok_or(ChainError::ContractAbsent {
            what: "settlement contract",
            address: settlement,
        })
    }

    /// Hands a transaction in at every node there is: to be used for one that waits. One that
    /// takes it is enough; the word is as of [`Chain::broadcast`].
    pub async fn spread(&self, raw: &Bytes) -> Told {
        self.door.spread(raw).await
    }

    /// The same transaction in the same place, dear enough to take the place of the one that
    /// waits there. Nothing when the highest fee we offer does not allow for it.
    ///
    /// # Errors
    /// [`ChainError::Refused`] when `raw` is no transaction of ours, [`ChainError::Unavailable`].
    pub async fn dearer(
        &self,
        raw: &Bytes,
        signer: &EvmKey,
    ) -> Result<Option<Prepared>, ChainError> {
        let waiting = read(raw)?;
        let least = Fees {
            max: waiting.max_fee_per_gas,
            priority: waiting.max_priority_fee_per_gas,
        }
        .bumped();
        if least.max > self.max_fee {
            return Ok(None);
        }
        let fees = self.door.fees().await?.max(least).capped(self.max_fee);
        let terms = Terms {
            nonce: waiting.nonce,
            gas: waiting.gas_limit,
            fees,
        };
        let call = call(&waiting, signer.address());
        write::seal(self.network.chain_id, call, terms, signer).map(Some)
    }

    /// The same call in another place, simulated anew.
    ///
    /// # Errors
    /// As [`Chain::prepare`]; [`ChainError::Refused`] when `raw` is no transaction of ours.
    pub async fn moved(
        &self,
        raw: &Bytes,
        signer: &EvmKey,
        nonce: u64,
    ) -> Result<Prepared, ChainError> {
        let least = Fees {
            max: 0,
            priority: 0,
        };
        let call = call(&read(raw)?, signer.address());
        self.prepare_call(call, signer, nonce, least).await
    }

    /// A transaction that does nothing but use up a nonce behind which others wait.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn filler(&self, signer: &EvmKey, nonce: u64) -> Result<Prepared, ChainError> {
        let call = Call {
            from: signer.address(),
            to: signer.address(),
            data: Bytes::new(),
        };
        let terms = Terms {
            nonce,
            gas: GAS_OF_NOTHING,
            fees: self.door.fees().await?.capped(self.max_fee),
        };
        write::seal(self.network.chain_id, call, terms, signer)
    }
}

/// The channels that a signed claim is about, and the totals it claims of them.
#[must_use]
pub fn claimed_in(raw: &Bytes) -> Vec<(ChannelConfig, Amount)> {
    use ISettlement::ISettlementCalls as Calls;
    let Ok(transaction) = read(raw) else {
        return Vec::new();
    };
    let claims = |data: &[u8]| match Calls::abi_decode(data) {
        Ok(Calls::claim(call)) => call.voucherClaims,
        _ => Vec::new(),
    };
    let rows = match Calls::abi_decode(&transaction.input) {
        Ok(Calls::multicall(call)) => call.data.iter().flat_map(|data| claims(data)).collect(),
        _ => claims(&transaction.input),
    };
    let total = |row: &ISettlement::VoucherClaim| {
        let config = ChannelConfig::from(&row.voucher.channel);
        (config, Amount::atoms(row.totalClaimed))
    };
    rows.iter().map(total).collect()
}

/// The most gas that a signed transaction of ours may use.
#[cfg(any(test, feature = "testing"))]
#[must_use]
pub fn gas_of(raw: &Bytes) -> Option<u64> {
    read(raw).ok().map(|transaction| transaction.gas_limit)
}

fn call(transaction: &TxEip1559, from: Address) -> Call {
    Call {
        from,
        to: match transaction.to {
            TxKind::Call(to) => to,
            TxKind::Create => Address::ZERO,
        },
        data: transaction.input.clone(),
    }
}

fn read(raw: &Bytes) -> Result<TxEip1559, ChainError> {
    let unread = || ChainError::Refused(format!("{} is no transaction of ours", keccak256(raw)));
    let envelope = TxEnvelope::decode_2718(&mut raw.as_ref()).map_err(|_| unread())?;
    let signed = envelope.as_eip1559().ok_or_else(unread)?;
    Ok(signed.tx().clone())
}
