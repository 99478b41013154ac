//! The twin: a chain in memory that takes the same signed transactions, runs them on a model of
//! the contract, and does what a test tells it (stand still, go away, lose its answers, take
//! blocks back, become dear).

mod whims;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloy::consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy::eips::Decodable2718;
use alloy::primitives::{Address, B256, Bytes, LogData, TxKind, keccak256};
use alloy::rpc::types::Log;

use crate::chain::abi;
use crate::chain::error::ChainError;
use crate::chain::model::{Context, Done, Model};
use crate::chain::words::{Block, Call, Fees, LogQuery, Nonces, Outcome, Told};
use crate::clock::Clock;
use crate::eip712::EvmSignature;
use crate::x402::Network;

/// What a block asks per gas, unless a test makes it dear. Offers are twice that and a tip: one
/// gwei.
const BASE_FEE: u128 = 450_000_000;
/// The tip.
const PRIORITY: u128 = 100_000_000;
/// Blocks whose states are remembered.
const MEMORY: usize = 128;

/// Gas of a call: so much, plus [`GAS_PER_BYTE`] for its data. About what the contract takes.
const GAS_PER_CALL: u64 = 60_000;
/// See [`GAS_PER_CALL`].
const GAS_PER_BYTE: u64 = 40;

/// A chain in memory. Clones are handles to the same chain. It mines at once, like anvil.
#[derive(Debug, Clone)]
pub struct MemoryChain {
    clock: Clock,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    model: Model,
    gas: HashMap<Address, u128>,
    nonces: HashMap<Address, u64>,
    height: u64,
    waiting: Vec<Waiting>,
    outcomes: HashMap<B256, Outcome>,
    logs: Vec<Log>,
    line: Line,
    held: bool,
    mute: bool,
    eventless: bool,
    choosy: bool,
    partly_silent: bool,
    receipts: Receipts,
    contrary: bool,
    asked: u64,
    most_behind: u64,
    base_fee: u128,
    /// The latest blocks, the newest last.
    past: VecDeque<Past>,
    /// Every block's name, by height.
    names: Vec<B256>,
    /// How often history was rewritten: goes into the blocks' names.
    branch: u64,
}

/// The state after a block.
#[derive(Debug, Clone)]
struct Past {
    number: u64,
    model: Model,
    nonces: HashMap<Address, u64>,
}

#[derive(Debug, Clone)]
struct Waiting {
    hash: B256,
    from: Address,
    transaction: TxEip1559,
}

/// What the line to the chain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Up,
    /// Nothing gets through.
    Away,
    /// Transactions arrive, but their sender hears nothing back.
    Deaf,
}

/// Who knows of mined transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receipts {
    /// Whoever is asked.
    Shown,
    /// Not the node that is asked first, but another.
    Elsewhere,
    /// Nobody.
    Hidden,
}

impl MemoryChain {
    /// A chain that carries `network`'s contracts, its time given by `clock`.
    #[must_use]
    pub fn new(network: Network, clock: Clock) -> Self {
        let mut state = State {
            model: Model::new(network),
            gas: HashMap::new(),
            nonces: HashMap::new(),
            height: 1,
            waiting: Vec::new(),
            outcomes: HashMap::new(),
            logs: Vec::new(),
            line: Line::Up,
            held: false,
            mute: false,
            eventless: false,
            choosy: false,
            partly_silent: false,
            receipts: Receipts::Shown,
            contrary: false,
            asked: 0,
            most_behind: 0,
            base_fee: BASE_FEE,
            past: VecDeque::new(),
            names: vec![B256::ZERO],
            branch: 0,
        };
        state.remember();
        Self {
            clock,
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The network whose contracts it carries.
    #[must_use]
    pub fn network(&self) -> Network {
        self.lock().model.network().clone()
    }

    /// The clock its blocks are dated by.
    #[must_use]
    pub const fn clock(&self) -> &Clock {
        &self.clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self) -> Result<MutexGuard<'_, State>, ChainError> {
        let mut state = self.lock();
        state.asked = state.asked.saturating_add(1);
        if state.line == Line::Away {
            return Err(ChainError::Unavailable("the twin is away".into()));
        }
        Ok(state)
    }

    pub(super) fn check_chain(&self, expected: u64) -> Result<(), ChainError> {
        let got = self.answer()?.model.network().chain_id;
        if got == expected {
            return Ok(());
        }
        Err(ChainError::WrongChain {
            url: "memory".into(),
            expected,
            got,
        })
    }

    pub(super) fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        Ok(self.answer()?.model.has_code(address))
    }

    pub(super) fn gas_balance(&self, account: Address) -> Result<u128, ChainError> {
        Ok(self.answer()?.gas_of(account))
    }

    pub(super) fn call(&self, call: &Call) -> Result<Bytes, ChainError> {
        let now = self.clock.now().seconds();
        let state = self.answer()?;
        let done = state.simulate(call.from, now, call.to, &call.data)?.1;
        Ok(done.output)
    }

    pub(super) fn estimate(&self, call: &Call) -> Result<u64, ChainError> {
        self.call(call)?;
        if self.answer()?.contrary {
            return Err(ChainError::reverted("ClaimExceedsBalance"));
        }
        Ok(gas_used(&call.data))
    }

    pub(super) fn fees(&self) -> Result<Fees, ChainError> {
        let base = self.answer()?.base_fee;
        Ok(Fees {
            max: base.saturating_mul(2).saturating_add(PRIORITY),
            priority: PRIORITY,
        })
    }

    pub(super) fn call_at(&self, call: &Call, block: u64) -> Result<Bytes, ChainError> {
        let now = self.clock.now().seconds();
        let state = self.answer()?;
        // The first block remembered here is as empty as the one before it.
        let past = state.past.iter().find(|past| past.number == block.max(1));
        let past = past.ok_or_else(|| ChainError::Unavailable("that state is gone".into()))?;
        let by = Context {
            caller: call.from,
            now,
        };
        let done = past.model.clone().run(by, call.to, &call.data);
        Ok(done.map_err(|why| abi::reverted(&why.0))?.output)
    }

    pub(super) fn block(&self, number: u64) -> Result<Option<Block>, ChainError> {
        let timestamp = self.clock.now().seconds();
        let state = self.answer()?;
        let name = usize::try_from(number).ok();
        let name = name.and_then(|number| state.names.get(number).copied());
        Ok(name.map(|hash| Block {
            number,
            hash,
            timestamp,
        }))
    }

    pub(super) fn nonces(&self, account: Address) -> Result<Nonces, ChainError> {
        let state = self.answer()?;
        let mined = state.nonce_of(account);
        let taken = |nonce: &u64| {
            let here = |w: &Waiting| w.from == account && w.transaction.nonce == *nonce;
            !state.waiting.iter().any(here)
        };
        let free = (mined..).find(taken).unwrap_or(mined);
        Ok(Nonces { mined, free })
    }

    pub(super) fn spread(&self, raw: &Bytes) -> Told {
        let word = self.send(raw);
        let by_all = !matches!(word, Err(ChainError::Unavailable(_))) && !self.lock().partly_silent;
        Told { word, by_all }
    }

    pub(super) fn send(&self, raw: &Bytes) -> Result<(), ChainError> {
        let now = self.clock.now().seconds();
        let mut state = self.answer()?;
        state.admit(read(raw)?)?;
        if !state.held {
            state.mine(now);
        }
        if state.line == Line::Deaf {
            return Err(ChainError::Unavailable("the twin lost its answer".into()));
        }
        Ok(())
    }

    pub(super) fn outcome(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        let state = self.answer()?;
        let shown = state.receipts == Receipts::Shown;
        Ok(state.outcomes.get(&hash).copied().filter(|_| shown))
    }

    pub(super) fn outcome_anywhere(&self, hash: B256) -> Result<Option<Outcome>, ChainError> {
        let state = self.answer()?;
        let hidden = state.receipts == Receipts::Hidden;
        Ok(state.outcomes.get(&hash).copied().filter(|_| !hidden))
    }

    pub(super) fn most_behind(&self) -> u64 {
        self.lock().most_behind
    }

    pub(super) fn latest(&self) -> Result<Block, ChainError> {
        let state = self.answer()?;
        Ok(Block {
            number: state.height,
            hash: state.names.last().copied().unwrap_or_default(),
            timestamp: self.clock.now().seconds(),
        })
    }

    pub(super) fn logs(&self, query: &LogQuery) -> Result<Vec<Log>, ChainError> {
        let matches = |log: &&Log| {
            let block = log.block_number.unwrap_or_default();
            let topics = log.inner.topics();
            let topic = topics.first();
            log.inner.address == query.address
                && query
                    .about
                    .is_none_or(|about| topics.get(1) == Some(&about))
                && query.blocks.contains(&block)
                && topic.is_some_and(|topic| query.topics.contains(topic))
        };
        let state = self.answer()?;
        if state.eventless {
            return Err(ChainError::Unavailable("it serves no events".into()));
        }
        if state.mute {
            return Ok(Vec::new());
        }
        Ok(state.logs.iter().filter(matches).cloned().collect())
    }
}

fn gas_used(data: &[u8]) -> u64 {
    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
    GAS_PER_CALL.saturating_add(bytes.saturating_mul(GAS_PER_BYTE))
}

/// A signed transaction and who signed it.
fn read(raw: &Bytes) -> Result<Waiting, ChainError> {
    let refused = |why: &str| ChainError::Refused(why.to_owned());
    let envelope = TxEnvelope::decode_2718(&mut raw.as_ref())
        .map_err(|e| refused(&format!("not a transaction: {e}")))?;
    let signed = envelope
        .as_eip1559()
        .ok_or_else(|| refused("only EIP-1559 transactions are taken here"))?;
    let mut bytes = signed.signature().as_bytes();
    // Transactions carry a parity, messages 27 or 28.
    bytes[64] = if signed.signature().v() { 28 } else { 27 };
    let from = EvmSignature::from_bytes(bytes)
        .recover(signed.tx().signature_hash())
        .map_err(|e| refused(&e.to_string()))?;
    Ok(Waiting {
        hash: keccak256(raw),
        from,
        transaction: signed.tx().clone(),
    })
}

impl State {
    fn gas_of(&self, account: Address) -> u128 {
        self.gas.get(&account).copied().unwrap_or_default()
    }

    fn nonce_of(&self, account: Address) -> u64 {
        self.nonces.get(&account).copied().unwrap_or_default()
    }

    fn simulate(
        &self,
        caller: Address,
        now: u64,
        to: Address,
        data: &[u8],
    ) -> Result<(Model, Done), ChainError> {
        let mut model = self.model.clone();
        match model.run(Context { caller, now }, to, data) {
            Ok(done) => Ok((model, done)),
            Err(reverted) => Err(abi::reverted(&reverted.0)),
        }
    }

    /// The pool's door: the same refusals as a node's.
    fn admit(&mut self, new: Waiting) -> Result<(), ChainError> {
        let waits = self.waiting.iter().any(|w| w.hash == new.hash);
        let shown = self.receipts == Receipts::Shown;
        if waits || shown && self.outcomes.contains_key(&new.hash) {
            return Ok(());
        }
        let transaction = &new.transaction;
        if transaction.chain_id != self.model.network().chain_id {
            return Err(ChainError::Refused("invalid chain id".into()));
        }
        if transaction.nonce < self.nonce_of(new.from) {
            return Err(ChainError::NonceUsed);
        }
        let fee = transaction.max_fee_per_gas;
        if u128::from(transaction.gas_limit).saturating_mul(fee) > self.gas_of(new.from) {
            return Err(ChainError::Refused("insufficient funds for gas".into()));
        }
        if self.choosy && fee < self.base_fee {
            return Err(ChainError::Underpriced);
        }
        let place = |w: &Waiting| w.from == new.from && w.transaction.nonce == transaction.nonce;
        if let Some(old) = self.waiting.iter().position(place) {
            let least = self
                .waiting
                .get(old)
                .map_or(0, |w| w.transaction.max_fee_per_gas / 10 * 11);
            if fee < least {
                return Err(ChainError::Underpriced);
            }
            self.waiting.remove(old);
        }
        self.waiting.push(new);
        Ok(())
    }

    fn mine(&mut self, now: u64) {
        self.height = self.height.saturating_add(1);
        let ready = |state: &Self, w: &Waiting| {
            let offer = w.transaction.max_fee_per_gas;
            w.transaction.nonce == state.nonce_of(w.from) && offer >= state.base_fee
        };
        while let Some(next) = self.waiting.iter().position(|w| ready(self, w)) {
            let transaction = self.waiting.remove(next);
            self.include(&transaction, now);
        }
        self.remember();
    }

    /// What a test does from outside the chain's history, a rewritten one knows too.
    fn alter(&mut self, change: impl Fn(&mut Model)) {
        change(&mut self.model);
        self.past
            .iter_mut()
            .for_each(|past| change(&mut past.model));
    }

    fn hash_of(&self, number: u64) -> B256 {
        keccak256([self.branch.to_be_bytes(), number.to_be_bytes()].concat())
    }

    fn remember(&mut self) {
        self.names.push(self.hash_of(self.height));
        self.past.push_back(Past {
            number: self.height,
            model: self.model.clone(),
            nonces: self.nonces.clone(),
        });
        if self.past.len() > MEMORY {
            self.past.pop_front();
        }
    }

    /// Back to an older block; returns how many were taken back.
    fn take_back(&mut self, blocks: u64) -> u64 {
        let oldest = self.past.front().map_or(self.height, |past| past.number);
        let target = self.height.saturating_sub(blocks).max(oldest);
        let taken = self.height.saturating_sub(target);
        self.past.retain(|past| past.number <= target);
        if let Some(past) = self.past.back().cloned() {
            self.model = past.model;
            self.nonces = past.nonces;
        }
        self.height = target;
        let kept = usize::try_from(target).unwrap_or(usize::MAX);
        self.names.truncate(kept.saturating_add(1));
        self.branch = self.branch.saturating_add(1);
        self.outcomes.retain(|_, outcome| outcome.block <= target);
        self.logs
            .retain(|log| log.block_number.is_some_and(|block| block <= target));
        taken
    }

    fn include(&mut self, waiting: &Waiting, now: u64) {
        let transaction = &waiting.transaction;
        let used = gas_used(&transaction.input).min(transaction.gas_limit);
        let cost = u128::from(used).saturating_mul(transaction.max_fee_per_gas);
        let gas = self.gas_of(waiting.from).saturating_sub(cost);
        self.gas.insert(waiting.from, gas);
        let nonce = transaction.nonce.saturating_add(1);
        self.nonces.insert(waiting.from, nonce);
        let success = match transaction.to {
            TxKind::Call(to) => self.execute(waiting, now, to),
            TxKind::Create => false,
        };
        let outcome = Outcome {
            block: self.height,
            success,
            gas: used,
            gas_price: transaction.max_fee_per_gas,
        };
        self.outcomes.insert(waiting.hash, outcome);
    }

    fn execute(&mut self, waiting: &Waiting, now: u64, to: Address) -> bool {
        let data = &waiting.transaction.input;
        let Ok((model, done)) = self.simulate(waiting.from, now, to, data) else {
            return false;
        };
        self.model = model;
        for event in done.events {
            self.logs.push(self.log(to, event, waiting.hash));
        }
        true
    }

    fn log(&self, address: Address, data: LogData, transaction: B256) -> Log {
        Log {
            inner: alloy::primitives::Log { address, data },
            block_number: Some(self.height),
            transaction_hash: Some(transaction),
            ..Log::default()
        }
    }
}
