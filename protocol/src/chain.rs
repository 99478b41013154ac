//! The settlement contract and its token, on a chain node or in memory: the only module that
//! names a chain library.
//!
//! [`Chain`] is a cheap handle. It never holds money or keys, decides nothing and stores
//! nothing: it reads, and turns a [`Write`] into a signed transaction ([`Chain::prepare`]) that
//! the caller stores before [`Chain::broadcast`]. Every question has a deadline; a failure says
//! whether anything is known ([`ChainError`]). Nothing lives in the background, so dropping the
//! handle ends it.
//!
//! Behind it is a node over JSON-RPC ([`Chain::connect`]) or, in tests, `MemoryChain`, which
//! runs the same calls on a model of the contract; one conformance suite holds for both.

mod error;
mod words;
mod abi;
mod logs;
#[cfg(any(test, feature = "testing"))]
mod model;
#[cfg(any(test, feature = "testing"))]
mod memory;
mod rpc;
mod door;
mod write;
mod carriage;
#[cfg(any(test, feature = "testing"))]
pub mod local;

pub use carriage::claimed_in;
#[cfg(any(test, feature = "testing"))]
pub use carriage::gas_of;
pub use error::ChainError;
#[cfg(any(test, feature = "testing"))]
pub use memory::{MemoryChain, Receipts};
pub use rpc::RpcConfig;
pub use words::{
    Block, Change, Event, Fees, Nonces, OnChain, Outcome, Payouts, PendingWithdrawal, Told,
    Withdrawal,
};
pub use write::{ClaimRow, MAX_CLAIM_ROWS, Prepared, Write};

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::rpc::types::Log;
use alloy::sol_types::{SolCall, SolEvent};
use tokio::time::Instant;

use crate::amount::Amount;
use crate::eip712::EvmKey;
use crate::x402::{ChannelConfig, ChannelId, Deposit, Network, PERMIT2, Permit, UPTO_PROXY};
use abi::{IPermit2, ISettlement, IToken, IUptoProxy, IWallet};
use door::Door;
use words::{Call, LogQuery};
use write::Terms;

/// A handle to one network's contracts.
#[derive(Debug, Clone)]
pub struct Chain {
    network: Arc<Network>,
    door: Door,
    /// The most that a transaction offers per gas.
    max_fee: u128,
}

impl Chain {
    /// The network's contracts through chain nodes. Asks nothing yet: see [`Chain::verify`].
    ///
    /// # Errors
    /// [`ChainError::Config`].
    pub fn connect(network: Network, config: RpcConfig) -> Result<Self, ChainError> {
        let rpc = rpc::Rpc::new(config, network.chain_id)?;
        Ok(Self {
            network: Arc::new(network),
            door: Door::Rpc(rpc),
            max_fee: u128::MAX,
        })
    }

    /// The twin, seen as `network` (its own, unless a test wants it to be wrong).
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn memory(network: Network, memory: &MemoryChain) -> Self {
        Self {
            network: Arc::new(network),
            door: Door::Memory(memory.clone()),
            max_fee: u128::MAX,
        }
    }

    /// Where the money lives.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Checks that the nodes serve this network: the chain, the contracts, the domains in which
    /// we sign. To be done once, before any money moves.
    ///
    /// # Errors
    /// [`ChainError::WrongChain`], [`ChainError::ContractAbsent`],
    /// [`ChainError::SettlementDomain`], [`ChainError::TokenDomain`],
    /// [`ChainError::Unavailable`].
    pub async fn verify(&self) -> Result<(), ChainError> {
        let network = &self.network;
        self.door.check_chain(network.chain_id).await?;
        let contracts = [
            ("settlement contract", network.settlement),
            ("deposit collector", network.collector),
            ("token", network.token),
        ];
        for (what, address) in contracts {
            if !self.door.has_code(address).await? {
                return Err(ChainError::ContractAbsent { what, address });
            }
        }
        self.verify_settlement_domain().await?;
        self.verify_token_domain().await
    }

    /// Checks that permits can be taken on this chain: Permit2 and the proxy are there, the proxy
    /// uses it, and both sign as we do. To be done once, before `upto` is offered.
    ///
    /// # Errors
    /// [`ChainError::ContractAbsent`], [`ChainError::Unavailable`].
    pub async fn verify_upto(&self) -> Result<(), ChainError> {
        let separator = self
            .view(PERMIT2, IPermit2::DOMAIN_SEPARATORCall {})
            .await?;
        let proxied = self.view(UPTO_PROXY, IUptoProxy::PERMIT2Call {}).await?;
        let absent = |address| ChainError::ContractAbsent {
            what: self.what_is(address),
            address,
        };
        if separator != Permit::domain(self.network.chain_id).separator() {
            return Err(absent(PERMIT2));
        }
        if proxied != PERMIT2 {
            return Err(absent(UPTO_PROXY));
        }
        Ok(())
    }

    /// A channel must have the same name there and here.
    async fn verify_settlement_domain(&self) -> Result<(), ChainError> {
        let sample = ChannelConfig {
            payer: Address::repeat_byte(1),
            payer_authorizer: Address::repeat_byte(2),
            receiver: Address::repeat_byte(3),
            receiver_authorizer: Address::repeat_byte(4),
            token: self.network.token,
            withdraw_delay: *crate::x402::WITHDRAW_DELAY.start(),
            salt: B256::ZERO,
        };
        let call = ISettlement::getChannelIdCall {
            config: (&sample).into(),
        };
        let settlement = self.network.settlement;
        let other = || ChainError::SettlementDomain(settlement);
        match self.view(settlement, call).await {
            Ok(id) if id == sample.id(&self.network).0 => Ok(()),
            Err(error @ ChainError::Unavailable(_)) => Err(error),
            Ok(_) | Err(_) => Err(other()),
        }
    }

    async fn verify_token_domain(&self) -> Result<(), ChainError> {
        let token = self.network.token;
        let expected = self.network.token_domain().separator();
        match self.view(token, IToken::DOMAIN_SEPARATORCall {}).await {
            Ok(separator) if separator == expected => return Ok(()),
            Err(error @ ChainError::Unavailable(_)) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let unnamed = |_| "?".to_owned();
        let name = self.view(token, IToken::nameCall {}).await;
        let version = self.view(token, IToken::versionCall {}).await;
        Err(ChainError::TokenDomain {
            token,
            expected: format!("{} {}", self.network.token_name, self.network.token_version),
            got: format!(
                "{} {}",
                name.unwrap_or_else(unnamed),
                version.unwrap_or_else(unnamed)
            ),
        })
    }

    /// The latest block.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn latest(&self) -> Result<Block, ChainError> {
        self.door.latest().await
    }

    /// Atoms of the payment token that an account holds.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn token_balance(&self, account: Address) -> Result<Amount, ChainError> {
        let call = IToken::balanceOfCall { account };
        let balance: U256 = self.view(self.network.token, call).await?;
        Ok(Amount::atoms(balance.saturating_to()))
    }

    /// Wei that an account holds, for gas.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn gas_balance(&self, account: Address) -> Result<u128, ChainError> {
        self.door.gas_balance(account).await
    }

    /// What a transaction has to offer now.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn fees(&self) -> Result<Fees, ChainError> {
        self.door.fees().await
    }

    /// What the contract holds for a channel; nothing for one it does not know.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn channel(&self, id: ChannelId) -> Result<OnChain, ChainError> {
        let call = ISettlement::channelsCall { channelId: id.0 };
        let state = self.view(self.network.settlement, call).await?;
        Ok(OnChain {
            balance: Amount::atoms(state.balance),
            claimed: Amount::atoms(state.totalClaimed),
        })
    }

    /// The withdrawal whose clock runs on a channel, if any.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn pending_withdrawal(
        &self,
        id: ChannelId,
    ) -> Result<Option<PendingWithdrawal>, ChainError> {
        let call = ISettlement::pendingWithdrawalsCall { channelId: id.0 };
        let pending = self.view(self.network.settlement, call).await?;
        Ok(words::pending(pending.amount, pending.initiatedAt.to()))
    }

    /// The nonce the next signed refund of a channel must carry.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn refund_nonce(&self, id: ChannelId) -> Result<U256, ChainError> {
        let call = ISettlement::refundNonceCall { channelId: id.0 };
        self.view(self.network.settlement, call).await
    }

    /// What was claimed for a receiver in the payment token, and what of it was paid out.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn payouts(&self, receiver: Address) -> Result<Payouts, ChainError> {
        let token = self.network.token;
        let call = ISettlement::receiversCall { receiver, token };
        let state = self.view(self.network.settlement, call).await?;
        Ok(Payouts {
            claimed: Amount::atoms(state.totalClaimed),
            settled: Amount::atoms(state.totalSettled),
        })
    }

    /// Whether an authorization of a payer, of a deposit ([`crate::x402::Deposit::nonce`]) or a
    /// transfer, was used or cancelled.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn authorization_used(
        &self,
        payer: Address,
        nonce: B256,
    ) -> Result<bool, ChainError> {
        let call = IToken::authorizationStateCall {
            authorizer: payer,
            nonce,
        };
        self.view(self.network.token, call).await
    }

    /// Whether the payer consents to exactly this deposit, as the token will judge it: an account
    /// without code by its key's canonical signature, one with code by its own word (EIP-1271),
    /// never the other way. A contract may change its mind; only the transaction is final.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn consents(
        &self,
        config: &ChannelConfig,
        deposit: &Deposit,
    ) -> Result<bool, ChainError> {
        if !self.door.has_code(config.payer).await? {
            return Ok(deposit.verify(config, &self.network).is_ok());
        }
        let call = IWallet::isValidSignatureCall {
            hash: deposit.digest(config, &self.network),
            signature: deposit.signature.bytes().clone(),
        };
        let call = Call {
            from: self.network.token,
            to: config.payer,
            data: call.abi_encode().into(),
        };
        match self.door.call(&call).await {
            Ok(output) => {
                let word = abi::returned::<IWallet::isValidSignatureCall>(&output);
                Ok(word.is_some_and(|word| word == IWallet::isValidSignatureCall::SELECTOR))
            }
            Err(error @ ChainError::Unavailable(_)) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Whether a permit of an owner was used or cancelled.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn permit_used(&self, owner: Address, nonce: U256) -> Result<bool, ChainError> {
        let (word, bit) = permit_place(nonce);
        let call = IPermit2::nonceBitmapCall { owner, word };
        let bits: U256 = self.view(PERMIT2, call).await?;
        Ok(bits.bit(bit))
    }

    /// Atoms of the payment token that Permit2 may move for an owner.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`], [`ChainError::ContractAbsent`].
    pub async fn permit2_allowance(&self, owner: Address) -> Result<Amount, ChainError> {
        let call = IToken::allowanceCall {
            owner,
            spender: PERMIT2,
        };
        let allowed: U256 = self.view(self.network.token, call).await?;
        Ok(Amount::atoms(allowed.saturating_to()))
    }

    /// All that happened to channels in these blocks, oldest first.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn events(&self, blocks: RangeInclusive<u64>) -> Result<Vec<Event>, ChainError> {
        let logs = self.logs(abi::channel_topics(), None, blocks).await?;
        Ok(logs.iter().filter_map(logs::event).collect())
    }

    /// As [`Chain::events`], of one channel.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn events_of(
        &self,
        id: ChannelId,
        blocks: RangeInclusive<u64>,
    ) -> Result<Vec<Event>, ChainError> {
        let logs = self.logs(abi::channel_topics(), Some(id.0), blocks);
        Ok(logs.await?.iter().filter_map(logs::event).collect())
    }

    /// The withdrawals started in these blocks, oldest first.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn withdrawals(
        &self,
        blocks: RangeInclusive<u64>,
    ) -> Result<Vec<Withdrawal>, ChainError> {
        let topics = vec![ISettlement::WithdrawInitiated::SIGNATURE_HASH];
        let logs = self.logs(topics, None, blocks).await?;
        Ok(logs
            .iter()
            .filter_map(logs::event)
            .filter_map(logs::withdrawal)
            .collect())
    }

    async fn logs(
        &self,
        topics: Vec<B256>,
        about: Option<B256>,
        blocks: RangeInclusive<u64>,
    ) -> Result<Vec<Log>, ChainError> {
        let query = LogQuery {
            address: self.network.settlement,
            topics,
            about,
            blocks,
        };
        self.door.logs(&query).await
    }

    /// Simulates a write, prices and signs it: ready to be stored, then broadcast. Without a
    /// nonce it takes the next one after all waiting transactions, so one task should prepare
    /// for one signer.
    ///
    /// # Errors
    /// [`ChainError::Reverted`] with the contract's reason, [`ChainError::GasShort`],
    /// [`ChainError::Unavailable`].
    pub async fn prepare(
        &self,
        write: &Write,
        signer: &EvmKey,
        nonce: Option<u64>,
    ) -> Result<Prepared, ChainError> {
        let nonce = match nonce {
            Some(nonce) => nonce,
            None => self.door.nonces(signer.address()).await?.free,
        };
        let least = Fees {
            max: 0,
            priority: 0,
        };
        self.prepare_at(write, signer, nonce, least).await
    }

    /// Prepares `write` in the place of a transaction that waits too long: the same nonce, and
    /// fees high enough for nodes to let it go.
    ///
    /// # Errors
    /// As [`Chain::prepare`].
    pub async fn replace(
        &self,
        write: &Write,
        signer: &EvmKey,
        waiting: &Prepared,
    ) -> Result<Prepared, ChainError> {
        let least = waiting.fees.bumped();
        self.prepare_at(write, signer, waiting.nonce, least).await
    }

    async fn prepare_at(
        &self,
        write: &Write,
        signer: &EvmKey,
        nonce: u64,
        least: Fees,
    ) -> Result<Prepared, ChainError> {
        let call = Call {
            from: signer.address(),
            to: write.target(&self.network),
            data: write.data(&self.network),
        };
        self.prepare_call(call, signer, nonce, least).await
    }

    async fn prepare_call(
        &self,
        call: Call,
        signer: &EvmKey,
        nonce: u64,
        least: Fees,
    ) -> Result<Prepared, ChainError> {
        let from = signer.address();
        let door = &self.door;
        // One round trip for all four; a call that reverts fails the estimate by the same name.
        let (_, gas, fees, balance) = tokio::try_join!(
            door.call(&call),
            door.estimate(&call),
            door.fees(),
            door.gas_balance(from)
        )?;
        let terms = Terms {
            nonce,
            // A fifth more than estimated: another's transaction may come first.
            gas: gas.saturating_add(gas / 5),
            fees: fees.max(least).capped(self.max_fee),
        };
        let prepared = write::seal(self.network.chain_id, call, terms, signer)?;
        let needed = prepared.max_cost();
        if balance < needed {
            return Err(ChainError::GasShort {
                account: from,
                needed,
                balance,
            });
        }
        Ok(prepared)
    }

    /// Hands in a prepared transaction; handing it in again is harmless. On
    /// [`ChainError::Unavailable`] it may have arrived all the same.
    ///
    /// # Errors
    /// [`ChainError::NonceUsed`], [`ChainError::Underpriced`], [`ChainError::Refused`],
    /// [`ChainError::Unavailable`].
    pub async fn broadcast(&self, raw: &Bytes) -> Result<B256, ChainError> {
        self.door.send(raw).await?;
        Ok(keccak256(raw))
    }

    /// What became of a transaction, if it is mined.
    ///
    /// # Errors
    /// [`ChainError::Unavailable`].
    pub async fn outcome(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        self.door.outcome(hash).await
    }

    /// Waits until a transaction is `confirmations` blocks deep (1: mined). Outages on the way
    /// are sat out.
    ///
    /// # Errors
    /// [`ChainError::Unconfirmed`] or, if the last question got no answer,
    /// [`ChainError::Unavailable`], after `deadline`.
    pub async fn wait(
        &self,
        hash: B256,
        confirmations: u64,
        deadline: Duration,
    ) -> Result<Outcome, ChainError> {
        let end = Instant::now() + deadline;
        loop {
            let error = match self.confirmed(hash, confirmations).await {
                Ok(Some(outcome)) => return Ok(outcome),
                Ok(None) => ChainError::Unconfirmed(hash),
                Err(error) if error.is_unavailable() => error,
                Err(error) => return Err(error),
            };
            let next = Instant::now() + self.door.poll_interval();
            if next > end {
                return Err(error);
            }
            tokio::time::sleep_until(next).await;
        }
    }

    async fn confirmed(&self, hash: B256, depth: u64) -> Result<Option<Outcome>, ChainError> {
        let Some(outcome) = self.door.outcome(hash).await? else {
            return Ok(None);
        };
        if depth <= 1 {
            return Ok(Some(outcome));
        }
        let tip = self.door.latest().await?.number;
        let deep = tip.saturating_sub(outcome.block).saturating_add(1) >= depth;
        Ok(deep.then_some(outcome))
    }

    async fn view<C: SolCall>(&self, to: Address, call: C) -> Result<C::Return, ChainError> {
        let call = Call {
            from: Address::ZERO,
            to,
            data: call.abi_encode().into(),
        };
        let output = self.door.call(&call).await?;
        abi::returned::<C>(&output).ok_or(ChainError::ContractAbsent {
            what: self.what_is(to),
            address: to,
        })
    }

    fn what_is(&self, address: Address) -> &'static str {
        match address {
            PERMIT2 => "Permit2",
            UPTO_PROXY => "proxy for x402 upto",
            token if token == self.network.token => "token",
            _ => "settlement contract",
        }
    }
}

/// Where Permit2 notes a nonce: the word, and the bit in it.
fn permit_place(nonce: U256) -> (U256, usize) {
    (nonce >> 8, nonce.as_limbs()[0] as usize & 0xff)
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod outage;
#[cfg(test)]
mod payments;
#[cfg(test)]
mod payers;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
