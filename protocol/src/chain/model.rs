//! The settlement contract, its token and Permit2 as a pure model: what the twin runs instead of an EVM.
//!
//! It takes the same call data and gives the same outputs, events and reverts as the contract,
//! in the same order of checks. Callers run it on a copy and keep the copy only on success.

use std::collections::{HashMap, HashSet};

use alloy::primitives::aliases::U40;
use alloy::primitives::{Address, B256, Bytes, LogData, U256};
use alloy::sol_types::{SolCall, SolError, SolEvent, SolInterface, SolValue};

use crate::amount::Amount;
use crate::chain::abi::ISettlement;
use crate::eip712::{EvmSignature, SignatureError, Signed};
use crate::voucher::Voucher;
use crate::x402::{ChannelConfig, ChannelId, Network, PERMIT2, UPTO_PROXY, WITHDRAW_DELAY};

/// Revert data, as the contract would return it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reverted(pub(super) Bytes);

impl Reverted {
    fn because(error: impl SolError) -> Self {
        Self(error.abi_encode().into())
    }

    /// A call to nowhere, or with bytes that mean nothing.
    const fn silent() -> Self {
        Self(Bytes::new())
    }
}

/// Fails with a contract's error unless the condition holds.
macro_rules! require {
    ($condition:expr, $error:expr) => {
        if !$condition {
            return Err(Reverted::because($error));
        }
    };
}

mod permit;
mod token;
mod wallet;

/// Who calls, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context {
    pub(super) caller: Address,
    /// The block's time in seconds.
    pub(super) now: u64,
}

/// What a call that succeeded leaves behind besides the state.
#[derive(Debug, Clone, Default)]
pub(super) struct Done {
    pub(super) output: Bytes,
    pub(super) events: Vec<LogData>,
}

impl Done {
    fn returning(output: Vec<u8>) -> Self {
        Self {
            output: output.into(),
            events: Vec::new(),
        }
    }

    fn emitting(event: &impl SolEvent) -> Self {
        Self {
            output: Bytes::new(),
            events: vec![event.encode_log_data()],
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    balance: u128,
    claimed: u128,
}

impl State {
    const fn unclaimed(self) -> u128 {
        self.balance.saturating_sub(self.claimed)
    }
}

/// Everything the contracts store.
#[derive(Debug, Clone)]
pub(super) struct Model {
    network: Network,
    channels: HashMap<ChannelId, State>,
    /// Amount and start of the withdrawal whose clock runs.
    pending: HashMap<ChannelId, (u128, u64)>,
    refund_nonces: HashMap<ChannelId, u64>,
    /// Claimed and settled per receiver.
    receivers: HashMap<Address, (u128, u128)>,
    tokens: HashMap<Address, u128>,
    /// Of owner and spender.
    allowances: HashMap<(Address, Address), U256>,
    used: HashSet<(Address, B256)>,
    /// Permit2's bitmap, by owner and word.
    permits: HashMap<(Address, U256), U256>,
    /// Contract wallets: their owners, all of whom must sign, in the order of their addresses.
    wallets: HashMap<Address, Vec<Address>>,
}

impl Model {
    pub(super) fn new(network: Network) -> Self {
        Self {
            network,
            channels: HashMap::new(),
            pending: HashMap::new(),
            refund_nonces: HashMap::new(),
            receivers: HashMap::new(),
            tokens: HashMap::new(),
            allowances: HashMap::new(),
            used: HashSet::new(),
            permits: HashMap::new(),
            wallets: HashMap::new(),
        }
    }

    pub(super) const fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn has_code(&self, address: Address) -> bool {
        let network = &self.network;
        let ours = [network.settlement, network.collector, network.token];
        ours.contains(&address)
            || [PERMIT2, UPTO_PROXY].contains(&address)
            || self.wallets.contains_key(&address)
    }

    /// Runs one call. To an address without code it does nothing, successfully.
    pub(super) fn run(&mut self, by: Context, to: Address, data: &[u8]) -> Result<Done, Reverted> {
        if to == self.network.settlement {
            self.run_settlement(by, data)
        } else if to == self.network.token {
            self.run_token(by, data)
        } else if to == PERMIT2 {
            self.run_permit2(data)
        } else if to == UPTO_PROXY {
            self.run_upto(by, data)
        } else if let Some(owners) = self.wallets.get(&to) {
            wallet::run(owners, data)
        } else if self.has_code(to) {
            Err(Reverted::silent())
        } else {
            Ok(Done::default())
        }
    }

    fn run_settlement(&mut self, by: Context, data: &[u8]) -> Result<Done, Reverted> {
        use ISettlement::ISettlementCalls as Calls;
        let call = Calls::abi_decode(data).map_err(|_| Reverted::silent())?;
        match call {
            Calls::deposit(call) => self.deposit(by, &call),
            Calls::claim(call) => self.claim(by, &call.voucherClaims),
            Calls::settle(call) => self.settle(by, call.receiver, call.token),
            Calls::refund(call) => self.refund(by, &(&call.config).into(), call.amount),
            Calls::initiateWithdraw(call) => self.initiate(by, &(&call.config).into(), call.amount),
            Calls::finalizeWithdraw(call) => self.finalize(by, &(&call.config).into()),
            Calls::multicall(call) => self.multicall(by, &call.data),
            view => Ok(Done::returning(self.look(&view))),
        }
    }

    fn look(&self, view: &ISettlement::ISettlementCalls) -> Vec<u8> {
        use ISettlement::ISettlementCalls as Calls;
        match view {
            Calls::getChannelId(call) => self.id(&(&call.config).into()).0.abi_encode(),
            Calls::channels(call) => {
                let state = self.state(ChannelId(call.channelId));
                (state.balance, state.claimed).abi_encode_params()
            }
            Calls::pendingWithdrawals(call) => {
                let (amount, start) = self.armed(ChannelId(call.channelId));
                (amount, U256::from(start)).abi_encode_params()
            }
            Calls::refundNonce(call) => {
                let id = ChannelId(call.channelId);
                U256::from(self.refund_nonces.get(&id).copied().unwrap_or_default()).abi_encode()
            }
            Calls::receivers(call) if call.token == self.network.token => {
                let totals = self.receivers.get(&call.receiver).copied();
                totals.unwrap_or_default().abi_encode_params()
            }
            _ => (0_u128, 0_u128).abi_encode_params(),
        }
    }

    fn multicall(&mut self, by: Context, calls: &[Bytes]) -> Result<Done, Reverted> {
        let mut outputs = Vec::with_capacity(calls.len());
        let mut events = Vec::new();
        for call in calls {
            let done = self.run_settlement(by, call)?;
            outputs.push(done.output);
            events.extend(done.events);
        }
        let output = ISettlement::multicallCall::abi_encode_returns(&outputs).into();
        Ok(Done { output, events })
    }

    fn id(&self, config: &ChannelConfig) -> ChannelId {
        config.id(&self.network)
    }

    fn state(&self, id: ChannelId) -> State {
        self.channels.get(&id).copied().unwrap_or_default()
    }

    fn armed(&self, id: ChannelId) -> (u128, u64) {
        self.pending.get(&id).copied().unwrap_or_default()
    }

    fn deposit(&mut self, by: Context, call: &ISettlement::depositCall) -> Result<Done, Reverted> {
        let config = ChannelConfig::from(&call.config);
        let named = [
            config.payer,
            config.receiver,
            config.receiver_authorizer,
            config.token,
        ];
        require!(
            !named.contains(&Address::ZERO),
            ISettlement::InvalidChannel {}
        );
        require!(
            WITHDRAW_DELAY.contains(&config.withdraw_delay),
            ISettlement::WithdrawDelayOutOfRange {}
        );
        require!(!call.collector.is_zero(), ISettlement::InvalidCollector {});
        require!(call.amount != 0, ISettlement::ZeroDeposit {});
        let id = self.id(&config);
        let mut state = self.state(id);
        let Some(balance) = state.balance.checked_add(call.amount) else {
            return Err(Reverted::because(ISettlement::DepositOverflow {}));
        };
        if call.collector != self.network.collector || config.token != self.network.token {
            return Err(Reverted::silent());
        }
        self.collect(by, &config, call)?;
        state.balance = balance;
        self.channels.insert(id, state);
        Ok(Done::emitting(&ISettlement::Deposited {
            channelId: id.0,
            sender: by.caller,
            amount: call.amount,
            newBalance: balance,
        }))
    }

    fn claim(&mut self, by: Context, rows: &[ISettlement::VoucherClaim]) -> Result<Done, Reverted> {
        require!(!rows.is_empty(), ISettlement::EmptyBatch {});
        let mut done = Done::default();
        for row in rows {
            let config = ChannelConfig::from(&row.voucher.channel);
            require!(
                is_receiver(by, &config),
                ISettlement::NotAuthorizedToClaim {}
            );
            done.events.extend(self.claim_row(by, &config, row)?);
        }
        Ok(done)
    }

    fn claim_row(
        &mut self,
        by: Context,
        config: &ChannelConfig,
        row: &ISettlement::VoucherClaim,
    ) -> Result<Option<LogData>, Reverted> {
        let id = self.id(config);
        let mut state = self.state(id);
        let total = row.totalClaimed;
        let ceiling = row.voucher.maxClaimableAmount;
        if total <= state.claimed {
            return Ok(None);
        }
        require!(total <= ceiling, ISettlement::ClaimExceedsCeiling {});
        require!(total <= state.balance, ISettlement::ClaimExceedsBalance {});
        self.check_voucher(config, ceiling, &row.signature)?;
        let increase = total.saturating_sub(state.claimed);
        state.claimed = total;
        self.channels.insert(id, state);
        let totals = self.receivers.entry(config.receiver).or_default();
        totals.0 = totals.0.saturating_add(increase);
        let event = ISettlement::Claimed {
            channelId: id.0,
            sender: by.caller,
            claimAmount: increase,
            newTotalClaimed: total,
        };
        Ok(Some(event.encode_log_data()))
    }

    /// OpenZeppelin's `ECDSA.recover`, with its errors, against the payer's authorizer. (A zero
    /// authorizer would ask the payer, whose every failure has one name.)
    fn check_voucher(
        &self,
        config: &ChannelConfig,
        ceiling: u128,
        signature: &[u8],
    ) -> Result<(), Reverted> {
        let by_payer = config.payer_authorizer.is_zero();
        let invalid = || Reverted::because(ISettlement::InvalidSignature {});
        let Ok(bytes) = <[u8; 65]>::try_from(signature) else {
            let length = U256::from(signature.len());
            return Err(if by_payer {
                invalid()
            } else {
                Reverted::because(ISettlement::ECDSAInvalidSignatureLength { length })
            });
        };
        let signer = if by_payer {
            config.payer
        } else {
            config.payer_authorizer
        };
        let message = Voucher {
            channel: self.id(config),
            ceiling: Amount::atoms(ceiling),
        };
        let signature = EvmSignature::from_bytes(bytes);
        let checked = Signed { message, signature }.verify(&self.network.domain(), signer);
        checked.map(|_| ()).map_err(|error| match error {
            _ if by_payer => invalid(),
            SignatureError::WrongSigner { .. } => invalid(),
            SignatureError::HighS => {
                let s = B256::from_slice(&bytes[32..64]);
                Reverted::because(ISettlement::ECDSAInvalidSignatureS { s })
            }
            SignatureError::RecoveryByte(_) | SignatureError::Invalid => {
                Reverted::because(ISettlement::ECDSAInvalidSignature {})
            }
        })
    }

    fn settle(&mut self, by: Context, receiver: Address, token: Address) -> Result<Done, Reverted> {
        let (claimed, settled) = self.receivers.get(&receiver).copied().unwrap_or_default();
        let amount = claimed.saturating_sub(settled);
        if amount == 0 || token != self.network.token {
            return Ok(Done::default());
        }
        self.receivers.insert(receiver, (claimed, claimed));
        self.transfer(self.network.settlement, receiver, amount)?;
        Ok(Done::emitting(&ISettlement::Settled {
            receiver,
            token,
            sender: by.caller,
            amount,
        }))
    }

    fn refund(
        &mut self,
        by: Context,
        config: &ChannelConfig,
        requested: u128,
    ) -> Result<Done, Reverted> {
        require!(
            is_receiver(by, config),
            ISettlement::NotAuthorizedToRefund {}
        );
        require!(requested != 0, ISettlement::ZeroRefund {});
        let id = self.id(config);
        let nonce = self.refund_nonces.entry(id).or_default();
        *nonce = nonce.saturating_add(1);
        let amount = requested.min(self.state(id).unclaimed());
        if amount == 0 {
            return Ok(Done::default());
        }
        let (armed, start) = self.armed(id);
        if amount >= armed {
            self.pending.remove(&id);
        } else {
            self.pending
                .insert(id, (armed.saturating_sub(amount), start));
        }
        self.give_back(id, config, amount)?;
        Ok(Done::emitting(&ISettlement::Refunded {
            channelId: id.0,
            sender: by.caller,
            amount,
        }))
    }

    fn give_back(
        &mut self,
        id: ChannelId,
        config: &ChannelConfig,
        amount: u128,
    ) -> Result<(), Reverted> {
        let mut state = self.state(id);
        state.balance = state.balance.saturating_sub(amount);
        self.channels.insert(id, state);
        self.transfer(self.network.settlement, config.payer, amount)
    }

    fn initiate(
        &mut self,
        by: Context,
        config: &ChannelConfig,
        amount: u128,
    ) -> Result<Done, Reverted> {
        require!(is_payer(by, config), ISettlement::InvalidChannel {});
        require!(amount != 0, ISettlement::NothingToWithdraw {});
        let id = self.id(config);
        require!(
            self.armed(id).1 == 0,
            ISettlement::WithdrawalAlreadyPending {}
        );
        require!(
            amount <= self.state(id).unclaimed(),
            ISettlement::WithdrawAmountExceedsAvailable {}
        );
        self.pending.insert(id, (amount, by.now));
        let finalize_after = by.now.saturating_add(config.withdraw_delay);
        Ok(Done::emitting(&ISettlement::WithdrawInitiated {
            channelId: id.0,
            amount,
            finalizeAfter: U40::saturating_from(finalize_after),
        }))
    }

    fn finalize(&mut self, by: Context, config: &ChannelConfig) -> Result<Done, Reverted> {
        require!(
            is_payer(by, config),
            ISettlement::NotAuthorizedToFinalizeWithdraw {}
        );
        let id = self.id(config);
        let (armed, start) = self.armed(id);
        require!(start != 0, ISettlement::WithdrawalNotPending {});
        require!(
            by.now >= start.saturating_add(config.withdraw_delay),
            ISettlement::WithdrawDelayNotElapsed {}
        );
        let amount = armed.min(self.state(id).unclaimed());
        self.pending.remove(&id);
        self.give_back(id, config, amount)?;
        Ok(Done::emitting(&ISettlement::WithdrawFinalized {
            channelId: id.0,
            sender: by.caller,
            amount,
        }))
    }
}

fn is_payer(by: Context, config: &ChannelConfig) -> bool {
    by.caller == config.payer || by.caller == config.payer_authorizer
}

fn is_receiver(by: Context, config: &ChannelConfig) -> bool {
    by.caller == config.receiver || by.caller == config.receiver_authorizer
}
